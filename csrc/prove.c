/* prove.c: holds what the splitter gave against the bytes that came, window by window, before any of
 * it is kept (RULES 20). A scanner of its own runs over the header stream, as the joiner's will, and
 * says where a payload of how many bytes goes: there a piece must lie, of just those bytes of the
 * window; everything else must be equal to the header stream. So whatever the splitter does wrong,
 * nothing is stored that does not join to what came.
 *
 * Memory: the caller's struct and scratch. Cost: metadata is read twice, payload not at all. */
#include <string.h>

#include "tar_impl.h"

struct ls_prove {
    ls_tar tar;
    uint64_t gap;         /* payloads since the last mark */
    uint64_t inline_left; /* bytes of this payload that are still to come from the header stream */
    uint8_t asked;        /* the marks were asked about the payload at hand */
};

size_t ls_prove_sizeof(void) {
    return sizeof(ls_prove);
}

void ls_prove_init(ls_prove *p, uint8_t *scratch, size_t scratch_size) {
    memset(p, 0, sizeof *p);
    ls_tar_init(&p->tar, scratch, scratch_size);
}

typedef struct call {
    const uint8_t *data;
    size_t size, at;
    const uint8_t *head;
    size_t head_size, head_at;
    const uint8_t *marks;
    size_t marks_size, marks_at;
    const ls_piece *pieces;
    size_t n_pieces, piece_at;
} call;

/* `n` bytes that stand in the header stream as they came. */
static const char *same(call *c, size_t n) {
    if (n > c->head_size - c->head_at || n > c->size - c->at)
        return "the header stream is too short";
    if (memcmp(c->head + c->head_at, c->data + c->at, n) != 0)
        return "the header stream differs from the tar";
    c->head_at += n;
    c->at += n;
    return NULL;
}

/* The splitter marks a payload where it begins: a mark for this one is in this call, or there is none. */
static const char *ask_marks(ls_prove *p, call *c) {
    uint64_t gap, n;
    size_t at = c->marks_at;
    p->asked = 1;
    p->inline_left = 0;
    if (at < c->marks_size) {
        if (ls_tar_varint(c->marks, c->marks_size, &at, &gap) <= 0 ||
            ls_tar_varint(c->marks, c->marks_size, &at, &n) <= 0 || gap < p->gap)
            return "the marks are damaged";
        if (gap == p->gap) {
            if (n == 0 || n > p->tar.left)
                return "a mark claims more than its payload";
            c->marks_at = at;
            p->inline_left = n;
            p->gap = 0;
            return NULL;
        }
    }
    p->gap++;
    return NULL;
}

static const char *payload(ls_prove *p, call *c) {
    const char *why = p->asked ? NULL : ask_marks(p, c);
    if (why != NULL)
        return why;
    if (p->inline_left > 0) {
        size_t n = c->size - c->at;
        if (p->inline_left < n)
            n = (size_t)p->inline_left;
        why = same(c, n);
        p->inline_left -= n;
        ls_tar_skip(&p->tar, n);
        return why;
    }
    if (c->piece_at == c->n_pieces)
        return "a payload lacks a piece";
    const ls_piece *piece = &c->pieces[c->piece_at++];
    if (piece->offset != c->at || piece->length == 0 || piece->length > p->tar.left ||
        piece->length > c->size - c->at)
        return "a piece lies elsewhere";
    c->at += piece->length;
    ls_tar_skip(&p->tar, piece->length);
    return NULL;
}

static const char *metadata(ls_prove *p, call *c) {
    size_t n = c->head_size - c->head_at;
    if (n > c->size - c->at)
        n = c->size - c->at;
    if (n == 0)
        return "the header stream is too short";
    return same(c, ls_tar_take(&p->tar, c->head + c->head_at, n));
}

int ls_prove_feed(ls_prove *p, const uint8_t *data, size_t size, const uint8_t *head,
                  size_t head_size, const uint8_t *marks, size_t marks_size, const ls_piece *pieces,
                  size_t n_pieces, ls_error *err) {
    call c = {data, size, 0, head, head_size, 0, marks, marks_size, 0, pieces, n_pieces, 0};
    const char *why = NULL;
    if (p->tar.scratch_size < LS_TAR_SCRATCH)
        return ls_tar_fail(err, LS_ESPACE, p->tar.pos, "the scratch memory is too small");
    while (why == NULL) {
        if (p->tar.state == TAR_READY) {
            ls_tar_begin(&p->tar);
            p->asked = 0;
        } else if (c.at == size) {
            break;
        } else {
            why = p->tar.state == TAR_DATA ? payload(p, &c) : metadata(p, &c);
        }
    }
    if (why == NULL &&
        (c.head_at != head_size || c.marks_at != marks_size || c.piece_at != n_pieces))
        why = "header stream, marks or pieces are left over";
    return why == NULL ? LS_OK : ls_tar_fail(err, LS_EINVALID, p->tar.pos, why);
}
