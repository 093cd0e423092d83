/* split.c: a tar becomes a header stream, marks and pieces of content.
 *
 * Memory: metadata is copied to `head`; payload is hashed where it lies and never copied.
 * Where a payload is cut depends on its bytes and its declared size alone, never on the windows:
 *   up to LS_CHUNK_MAX one chunk; up to LS_SPLIT_WINDOW seen whole; above that, gear-cut chunks.
 * Splits that know a format look at content only: a CPython .pyc file (PEP 552: magic ending in
 * "\r\n", flags 0 to 3, 16 bytes of header with the source's time or hash, then marshalled code)
 * keeps its header in the header stream, so that a rebuild with new timestamps is the same content.
 */
#include <string.h>

#include "tar_impl.h"

#define PYC_HEADER 16
#define MARK_MAX 20 /* two varints of 64 bits */

struct ls_split {
    ls_tar tar;
    uint64_t entries;
    uint64_t gap; /* payloads since the last mark */
    int simd;
    uint8_t decided; /* how the payload at hand is cut */
};

size_t ls_split_sizeof(void) {
    return sizeof(ls_split);
}

void ls_split_init(ls_split *s, int simd, uint8_t *scratch, size_t scratch_size) {
    memset(s, 0, sizeof *s);
    ls_tar_init(&s->tar, scratch, scratch_size);
    s->simd = simd;
}

int ls_split_lost(const ls_split *s, ls_error *err) {
    return ls_tar_lost(&s->tar, err);
}

int ls_split_complete(const ls_split *s) {
    return ls_tar_complete(&s->tar);
}

static size_t put_varint(uint8_t *out, uint64_t v) {
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        out[n++] = (uint8_t)(v | 0x80);
    out[n++] = (uint8_t)v;
    return n;
}

/* Bytes at the start of a payload that belong to the header stream. */
static size_t inline_prefix(const uint8_t *p, size_t n) {
    if (n <= PYC_HEADER || p[2] != 0x0d || p[3] != 0x0a)
        return 0;
    if (p[4] > 3 || p[5] != 0 || p[6] != 0 || p[7] != 0)
        return 0;
    return p[16] == 0xe3 || p[16] == 0x63 ? PYC_HEADER : 0;
}

/* What one call works on. */
typedef struct call {
    const uint8_t *data;
    size_t size;
    int final;
    uint8_t *head;
    size_t head_size;
    uint8_t *marks;
    size_t marks_size;
    ls_piece *pieces;
    size_t max_pieces;
    ls_split_out *out;
} call;

enum { GO_ON, NEED_INPUT, NEED_ROOM };

static void add_piece(const ls_split *s, call *c, size_t len, uint32_t kind) {
    ls_piece *piece = &c->pieces[c->out->n_pieces++];
    piece->offset = c->out->used;
    piece->length = (uint32_t)len; /* at most LS_SPLIT_WINDOW */
    piece->kind = kind;
    ls_blake3_hash(s->simd, NULL, c->data + c->out->used, len, piece->id);
    c->out->used += len;
}

/* The next bytes of a payload that is cut as it streams. */
static int stream_payload(ls_split *s, call *c) {
    size_t rest = c->size - c->out->used;
    int ends = rest >= s->tar.left || c->final;
    if (rest > s->tar.left)
        rest = (size_t)s->tar.left;
    if (rest == 0)
        return NEED_INPUT;
    if (c->out->n_pieces == c->max_pieces)
        return NEED_ROOM;
    size_t n = ls_chunk_next(c->data + c->out->used, rest, ends);
    if (n == 0)
        return NEED_INPUT;
    add_piece(s, c, n, LS_PIECE_CHUNK);
    ls_tar_skip(&s->tar, n);
    return GO_ON;
}

/* The payload begins at c->out->used, with nothing of it taken yet. */
static int begin_payload(ls_split *s, call *c) {
    const uint8_t *p = c->data + c->out->used;
    uint64_t left = s->tar.left;
    size_t have = c->size - c->out->used;
    int whole = have >= left || c->final;
    if (have > left)
        have = (size_t)left;
    if (!whole && have <= PYC_HEADER)
        return NEED_INPUT;
    size_t prefix = have > 0 ? inline_prefix(p, have) : 0;
    int streams = left - prefix > LS_SPLIT_WINDOW;
    if (!streams && !whole)
        return NEED_INPUT;
    if (!streams && have > 0 && c->out->n_pieces == c->max_pieces)
        return NEED_ROOM;
    if (prefix > 0) {
        if (c->marks_size - c->out->marks_len < MARK_MAX ||
            c->head_size - c->out->head_len < prefix)
            return NEED_ROOM;
        uint8_t *mark = c->marks + c->out->marks_len;
        size_t n = put_varint(mark, s->gap);
        c->out->marks_len += n + put_varint(mark + n, prefix);
        memcpy(c->head + c->out->head_len, p, prefix);
        c->out->head_len += prefix;
        c->out->used += prefix;
        ls_tar_skip(&s->tar, prefix);
        s->gap = 0;
    } else {
        s->gap++;
    }
    s->decided = 1;
    if (!streams && have > prefix) {
        size_t n = have - prefix;
        add_piece(s, c, n, n > LS_CHUNK_MAX ? LS_PIECE_FILE : LS_PIECE_CHUNK);
        ls_tar_skip(&s->tar, n);
    }
    return GO_ON;
}

static int metadata(ls_split *s, call *c) {
    size_t n = c->size - c->out->used, room = c->head_size - c->out->head_len;
    if (n == 0)
        return NEED_INPUT;
    if (room == 0)
        return NEED_ROOM;
    n = ls_tar_take(&s->tar, c->data + c->out->used, n < room ? n : room);
    memcpy(c->head + c->out->head_len, c->data + c->out->used, n);
    c->out->head_len += n;
    c->out->used += n;
    return GO_ON;
}

int ls_split_feed(ls_split *s, const uint8_t *data, size_t size, int final, uint8_t *head,
                  size_t head_size, uint8_t *marks, size_t marks_size, ls_piece *pieces,
                  size_t max_pieces, ls_split_out *out, ls_error *err) {
    call c = {data, size, final, head, head_size, marks, marks_size, pieces, max_pieces, out};
    int what = GO_ON;
    memset(out, 0, sizeof *out);
    if (s->tar.scratch_size < LS_TAR_SCRATCH)
        return ls_tar_fail(err, LS_ESPACE, s->tar.pos, "the scratch memory is too small");
    while (what == GO_ON) {
        switch (s->tar.state) {
        case TAR_READY:
            ls_tar_begin(&s->tar);
            s->entries++;
            s->decided = 0;
            break;
        case TAR_DATA:
            what = s->decided ? stream_payload(s, &c) : begin_payload(s, &c);
            break;
        default:
            what = metadata(s, &c);
            break;
        }
    }
    out->entries = s->entries;
    if (what == NEED_ROOM && out->used == 0)
        return ls_tar_fail(err, LS_ESPACE, s->tar.pos, "the output arrays are too small");
    if (final && out->used == size)
        ls_tar_end(&s->tar);
    return LS_OK;
}
