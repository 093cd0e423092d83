/* join.c: header stream, marks and content become the tar again: the inverse of split.c.
 *
 * It runs the scanner over the header stream, which tells where a payload of how many bytes goes.
 * Memory: the caller's struct and scratch; bytes are copied once, from where they lie to `out`. Without
 * `out` only the scanner runs: the cost is that of the header stream, however much content there is.
 */
#include <string.h>

#include "tar_impl.h"

struct ls_join {
    ls_tar tar;
    uint64_t mark_gap; /* payloads before the one that the next mark is for */
    uint64_t mark_bytes;
    uint64_t inline_left; /* bytes of this payload that are in the header stream */
    uint8_t have_mark;
    uint8_t asked; /* the marks were asked about the payload at hand */
    uint8_t failed;
};

size_t ls_join_sizeof(void) {
    return sizeof(ls_join);
}

void ls_join_init(ls_join *j, uint8_t *scratch, size_t scratch_size) {
    memset(j, 0, sizeof *j);
    ls_tar_init(&j->tar, scratch, scratch_size);
}

typedef struct call {
    const uint8_t *head;
    size_t head_size;
    const uint8_t *marks;
    size_t marks_size;
    int marks_final;
    const ls_slice *slices;
    size_t n_slices;
    int slices_final;
    uint8_t *out;
    size_t out_size;
    ls_join_out *res;
} call;

enum { GO_ON, STOP, FAILED };

static size_t smallest(uint64_t a, size_t b, size_t c) {
    size_t m = b < c ? b : c;
    return a < m ? (size_t)a : m;
}

int ls_tar_varint(const uint8_t *p, size_t n, size_t *at, uint64_t *value) {
    uint64_t v = 0;
    size_t i = *at;
    for (unsigned shift = 0; i < n; i++, shift += 7) {
        if (shift == 63 && p[i] > 1)
            return -1;
        v |= (uint64_t)(p[i] & 0x7f) << shift;
        if (p[i] < 0x80) {
            *at = i + 1;
            *value = v;
            return 1;
        }
    }
    return 0;
}

/* Learns from the marks how much of this payload is in the header stream. */
static int ask_marks(ls_join *j, call *c, ls_error *err) {
    if (!j->have_mark && !(c->res->marks_used == c->marks_size && c->marks_final)) {
        size_t at = c->res->marks_used;
        int got = ls_tar_varint(c->marks, c->marks_size, &at, &j->mark_gap);
        if (got > 0)
            got = ls_tar_varint(c->marks, c->marks_size, &at, &j->mark_bytes);
        if (got == 0 && !c->marks_final)
            return STOP;
        if (got <= 0 || j->mark_bytes == 0) {
            ls_tar_fail(err, LS_EINVALID, j->tar.pos, "the marks are damaged");
            return FAILED;
        }
        c->res->marks_used = at;
        j->have_mark = 1;
    }
    j->asked = 1;
    j->inline_left = 0;
    if (!j->have_mark)
        return GO_ON;
    if (j->mark_gap > 0) {
        j->mark_gap--;
        return GO_ON;
    }
    if (j->mark_bytes > j->tar.left) {
        ls_tar_fail(err, LS_EINVALID, j->tar.pos, "a mark claims more than its payload");
        return FAILED;
    }
    j->have_mark = 0;
    j->inline_left = j->mark_bytes;
    return GO_ON;
}

static void from_head(call *c, size_t n) {
    if (c->out)
        memcpy(c->out + c->res->out_len, c->head + c->res->head_used, n);
    c->res->head_used += n;
    c->res->out_len += n;
}

/* Steps over slices that are used up. */
static void next_slice(call *c) {
    while (c->res->slices_used < c->n_slices &&
           c->res->slice_offset == c->slices[c->res->slices_used].size) {
        c->res->slices_used++;
        c->res->slice_offset = 0;
    }
}

static int payload(ls_join *j, call *c, ls_error *err) {
    size_t room = c->out_size - c->res->out_len;
    if (!j->asked) {
        int what = ask_marks(j, c, err);
        if (what != GO_ON)
            return what;
    }
    if (room == 0)
        return STOP;
    if (j->inline_left > 0) {
        size_t n = smallest(j->inline_left, c->head_size - c->res->head_used, room);
        if (n == 0)
            return STOP;
        from_head(c, n);
        j->inline_left -= n;
        ls_tar_skip(&j->tar, n);
        return GO_ON;
    }
    next_slice(c);
    if (c->res->slices_used == c->n_slices)
        return STOP;
    const ls_slice *slice = &c->slices[c->res->slices_used];
    size_t n = smallest(j->tar.left, slice->size - c->res->slice_offset, room);
    if (c->out)
        memcpy(c->out + c->res->out_len, slice->data + c->res->slice_offset, n);
    c->res->slice_offset += n;
    c->res->out_len += n;
    ls_tar_skip(&j->tar, n);
    return GO_ON;
}

static int metadata(ls_join *j, call *c) {
    size_t n =
        smallest(UINT64_MAX, c->head_size - c->res->head_used, c->out_size - c->res->out_len);
    if (n == 0)
        return STOP;
    n = ls_tar_take(&j->tar, c->head + c->res->head_used, n);
    from_head(c, n);
    return GO_ON;
}

/* The contradiction, if nothing can go on because of one. */
static const char *left_over(const ls_join *j, const call *c, int head_final) {
    int head_over = c->res->head_used == c->head_size;
    int content_over = c->res->slices_used == c->n_slices;
    int in_payload = j->tar.state == TAR_DATA;
    if (c->res->out_len == c->out_size && !(head_over && content_over))
        return NULL; /* the output is full: not known yet */
    if (in_payload && !j->asked)
        return NULL; /* marks are wanted */
    if (in_payload && j->inline_left == 0) {
        if (!content_over || !c->slices_final)
            return NULL;
        if (!head_over)
            return "content ends before the header stream";
    }
    if (!head_over || !head_final)
        return NULL;
    if (in_payload && j->inline_left > 0)
        return "the header stream ends inside a payload's first bytes";
    if (!content_over)
        return "content is left over";
    if (j->have_mark || c->res->marks_used < c->marks_size)
        return "marks are left over";
    return NULL;
}

int ls_join_run(ls_join *j, const uint8_t *head, size_t head_size, int head_final,
                const uint8_t *marks, size_t marks_size, int marks_final, const ls_slice *slices,
                size_t n_slices, size_t first_offset, int slices_final, uint8_t *out,
                size_t out_size, ls_join_out *res, ls_error *err) {
    call c = {head,     head_size,    marks, marks_size, marks_final, slices,
              n_slices, slices_final, out,   out_size,   res};
    int what = GO_ON;
    memset(res, 0, sizeof *res);
    if (j->tar.scratch_size < LS_TAR_SCRATCH)
        return ls_tar_fail(err, LS_ESPACE, j->tar.pos, "the scratch memory is too small");
    if (j->failed)
        return ls_tar_fail(err, LS_ESTATE, j->tar.pos, "called again after an error");
    if (n_slices > 0 ? first_offset > slices[0].size : first_offset > 0) {
        j->failed = 1;
        return ls_tar_fail(err, LS_EINVALID, j->tar.pos, "first_offset is behind its slice");
    }
    res->slice_offset = first_offset;
    while (what == GO_ON) {
        switch (j->tar.state) {
        case TAR_READY:
            ls_tar_begin(&j->tar);
            j->asked = 0;
            break;
        case TAR_DATA:
            what = payload(j, &c, err);
            break;
        default:
            what = metadata(j, &c);
            break;
        }
    }
    next_slice(&c);
    if (what == STOP) {
        const char *why = left_over(j, &c, head_final);
        if (why == NULL)
            return LS_OK;
        ls_tar_fail(err, LS_EINVALID, j->tar.pos, why);
    }
    j->failed = 1;
    return LS_EINVALID;
}
