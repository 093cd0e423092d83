/* respan.c: a span of a gzip blob as what its encoder's model mispredicts, and made again from that.
 *
 * Theory of operation. Both ways are one walk over the span's parts: each decision is coded at its place
 * (corrections.c), where analysis knows it from the span's events and making learns it. A span is cut
 * into *segments*: what the model sees as one input, up to a flush, a member's end, or the span's end
 * (segments.c). In a segment come its blocks (span_blocks.c); for each the model is asked for its tokens, then for
 * its codes, and in making the block's bits are written. FORMAT.md, section 16.5, is these files in words.
 *
 * Analysis gives up when the corrections outgrow their room. Making trusts nothing: corrections may be
 * anybody's; every number is bounded by what the span can hold, all else is the model's, which cannot be
 * wrong about memory; whether the bytes are right, only their digest tells. */
#include "walk.h"

#define LIKELY 64512 /* 63 of 64 */
#define EVEN 32768

static uint64_t out_bit(const ls_walk *w, const uint8_t *out) {
    return (uint64_t)(w->bits.at - out) * 8 + w->bits.n;
}

/* Where the span begins in its member. */
static int begin(ls_walk *w, uint64_t bit, uint32_t *inside, uint32_t *carry) {
    ls_corr *c = &w->c;
    ls_contexts *x = &w->x;
    int lean = w->version > 1;
    *carry = ls_corr_raw(c, *carry, bit & 7);
    *inside = lean && !bit ? 0 : !ls_corr_code(c, &x->inside, !*inside);
    if (!*inside) {
        w->at = w->flushed = 0;
        return LS_OK;
    }
    if (!ls_corr_code(c, &x->at, w->at != w->offset)) {
        w->at = w->offset;
    } else {
        uint32_t high = ls_corr_number_code(c, &x->numbers, (uint32_t)(w->at >> 32));
        w->at = (uint64_t)high << 32 | ls_corr_number_code(c, &x->numbers, (uint32_t)w->at);
    }
    if (w->at > w->offset)
        return ls_misfit(w, "a member before the blob");
    if (lean && w->m->flags & LS_MODEL_UNFLUSHED) {
        w->flushed = 0;
    } else if (!ls_corr_code(c, &x->flushed[0], w->flushed != w->at)) {
        w->flushed = w->at;
    } else if (!ls_corr_code(c, &x->flushed[1], w->flushed != 0)) {
        w->flushed = 0;
    } else {
        uint32_t high = ls_corr_number_code(c, &x->numbers, (uint32_t)(w->flushed >> 32));
        w->flushed =
            (uint64_t)high << 32 | ls_corr_number_code(c, &x->numbers, (uint32_t)w->flushed);
    }
    if (w->flushed > w->at)
        return ls_misfit(w, "a flush behind the span");
    if (w->m->flags & LS_MODEL_UNFLUSHED)
        w->flushed = 0;
    return LS_OK;
}

static int walk(ls_walk *w, uint32_t inside) {
    for (;;) {
        if (!inside) {
            int what = ls_between(w);
            if (what < 0)
                return what;
            if (what == 2)
                return w->pos == w->size ? LS_OK : ls_misfit(w, "a span ends early");
            inside = what == 1;
            continue;
        }
        ls_stretch g;
        if (++w->blocks > 2 * LS_TOKENS_EVENTS)
            return ls_misfit(w, "too many segments");
        if (ls_run_segment(w, &g))
            return w->err->code;
        if (w->c.full)
            return ls_too_much(w);
        if (g.ending == ENDING_CUT)
            return LS_OK;
        inside = g.ending == ENDING_FLUSH;
    }
}

/* ---- the face ------------------------------------------------------------------------------------------ */

static void expect(ls_contexts *x) {
    ls_corr_expect((ls_corr_bit *)x, sizeof *x / sizeof(ls_corr_bit), EVEN);
    ls_corr_expect(&x->inside, 1, LIKELY);
    ls_corr_expect(&x->at, 1, LIKELY);
    ls_corr_expect(x->ending, 4, 58982);
    ls_corr_expect(&x->after, 1, LIKELY);
    ls_corr_expect(&x->more, 1, LIKELY);
    ls_corr_expect(x->ordinary, 4, LIKELY);
    ls_corr_expect(&x->padding, 1, LIKELY);
    ls_corr_expect(&x->filled, 1, LIKELY);
    ls_corr_expect(x->has_corrections, 2, LIKELY);
    ls_corr_expect(&x->variant, 1, LIKELY);
    ls_corr_expect(&x->runs, 1, LIKELY);
    ls_corr_expect(&x->codelen, 1, LIKELY);
    ls_corr_expect(&x->hclen, 1, LIKELY);
    ls_corr_expect(&x->same_header, 1, LIKELY);
    ls_corr_expect(&x->plain_header, 1, LIKELY);
    ls_corr_expect(x->expected, 10, LIKELY);
    ls_corr_expect(&x->computed, 1, LIKELY);
}

static size_t walk_size(void) {
    return (sizeof(ls_walk) + 63) / 64 * 64;
}

size_t ls_respan_sizeof(uint32_t model) {
    const ls_model *m = ls_model_by_id(model);
    return m ? walk_size() + (m->state + 63) / 64 * 64 : 0;
}

int ls_respan_model(uint32_t n, ls_model_facts *facts) {
    const ls_model *m = ls_model_number(n);
    if (!m)
        return 0;
    facts->id = m->id;
    facts->history = m->history;
    facts->ahead = m->ahead;
    facts->span = m->span;
    facts->superseded = m->flags & LS_MODEL_SUPERSEDED;
    facts->name = m->name;
    return 1;
}

static ls_walk *prepare(void *work, uint32_t version, uint32_t model, ls_error *err) {
    ls_walk *w = work;
    memset(w, 0, offsetof(ls_walk, x));
    expect(&w->x);
    w->version = version;
    w->m = version && version <= LS_RECIPE_VERSION ? ls_model_by_id(model) : NULL;
    w->state = (uint8_t *)work + walk_size();
    w->err = err;
    w->last_size = 65535;
    err->code = LS_OK;
    err->offset = 0;
    err->reason[0] = 0;
    return w;
}

/* Content of the span behind that is still this one's input. */
static size_t input_behind(ls_walk *w, const ls_tokens_span *following) {
    if (!following || !following->inside)
        return 0;
    ls_stretch g = {0};
    const ls_tokens_span *span = w->span;
    w->span = following;
    ls_scan(w, &g);
    w->span = span;
    return g.end;
}

int ls_respan_analyse(void *work, uint32_t version, uint32_t model, ls_tokens_span *span,
                      const ls_tokens_span *following, uint32_t *scratch, uint8_t *out, size_t room,
                      size_t *out_len, ls_error *err) {
    ls_walk *w = prepare(work, version, model, err);
    *out_len = 0;
    if (!w->m)
        return ls_fail(err, LS_EINVALID, 0, "no such model or version");
    w->span = span;
    w->content = span->content + span->before;
    w->size = span->size;
    w->before = span->before;
    w->offset = span->offset;
    w->at = span->at;
    w->flushed = w->m->flags & LS_MODEL_UNFLUSHED ? 0 : span->flushed;
    w->corrections = (ls_correction *)scratch;
    w->capacity = room < LS_TOKENS_TOKENS / 16 ? 8 * room + 64 : LS_TOKENS_TOKENS;
    if (w->m->history > LS_MODEL_MAX_HISTORY || w->m->ahead > LS_MODEL_MAX_AHEAD)
        return ls_fail(err, LS_EINVALID, 0, "a model wants too much");
    size_t after = input_behind(w, following);
    if (after > w->m->ahead)
        after = w->m->ahead;
    if (span->before + span->size + after + LS_TOKENS_SLACK > span->content_room)
        return ls_fail(err, LS_ESPACE, 0, "no room behind the content");
    if (after)
        memcpy(span->content + span->before + span->size, following->content + following->before,
               after);
    w->after = after;
    ls_corr_write(&w->c, out, room);
    uint32_t inside = span->inside, carry = span->carry;
    int result = begin(w, span->bit, &inside, &carry);
    if (result == LS_OK)
        result = walk(w, inside);
    if (result != LS_OK)
        return result;
    *out_len = ls_corr_finish(&w->c);
    return w->c.full ? ls_too_much(w) : LS_OK;
}

int ls_respan_make(void *work, uint32_t version, uint32_t model, const ls_respan *r,
                   uint32_t *tokens, uint32_t *scratch, uint8_t *out, size_t room, size_t *out_len,
                   ls_error *err) {
    ls_walk *w = prepare(work, version, model, err);
    *out_len = 0;
    if (!w->m)
        return ls_fail(err, LS_EINVALID, 0, "no such model or version");
    if (r->end_bit < r->bit || r->end_bit / 8 - r->bit / 8 + LS_RESPAN_ROOM > room ||
        r->size > LS_TOKENS_CONTENT)
        return ls_fail(err, LS_EINVALID, r->offset, "span or room out of range");
    w->content = r->content;
    w->size = r->size;
    w->before = r->before;
    w->after = r->after;
    w->offset = r->offset;
    w->tokens = tokens;
    w->corrections = (ls_correction *)scratch;
    w->bits.at = out;
    w->end = out + room;
    ls_corr_read(&w->c, r->corrections, r->corrections_size);
    uint32_t inside = 0, carry = 0, phase = r->bit & 7;
    int result = begin(w, r->bit, &inside, &carry);
    if (result != LS_OK)
        return result;
    w->bits.held = carry;
    w->bits.n = phase;
    result = walk(w, inside);
    if (result != LS_OK)
        return result;
    if (out_bit(w, out) != r->end_bit - r->bit + phase)
        return ls_misfit(w, "other bits come out than should");
    *out_len = (size_t)(w->bits.at - out);
    return LS_OK;
}

size_t ls_respan_mispredicted(const void *work) {
    return ((const ls_walk *)work)->mispredicted;
}
