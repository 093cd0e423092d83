/* respan.c: a span of a gzip blob as what its encoder's model mispredicts, and made again from that.
 *
 * Theory of operation. Both ways are one walk over the span's parts: each decision is coded at its place
 * (corrections.c), where analysis knows it from the span's events and making learns it. A span is cut
 * into *segments*: what the model sees as one input, up to a flush, a member's end, or the span's end. In
 * a segment come its blocks; for each the model is asked for its tokens, then for its codes, and in making
 * the block's bits are written. FORMAT.md, section 16.5, is this file in words.
 *
 * Analysis gives up when the corrections outgrow their room. Making trusts nothing: corrections may be
 * anybody's; every number is bounded by what the span can hold, all else is the model's, which cannot be
 * wrong about memory; whether the bytes are right, only their digest tells. */
#include "walk.h"

enum item { ITEM_HEADER, ITEM_ZEROS, ITEM_TRAILING, ITEM_END };
enum ending { ENDING_CUT, ENDING_FLUSH, ENDING_MEMBER };
enum end { END_USUAL, END_SEGMENT, END_COUNT, END_CONTENT };

#define LIKELY 64512 /* 63 of 64 */
#define EVEN 32768

static int misfit(const ls_walk *w, const char *reason) {
    return ls_fail(w->err, LS_EFORMAT, w->offset + w->pos, reason);
}

static int too_much(const ls_walk *w) {
    return ls_fail(w->err, LS_ELIMIT, w->offset + w->pos, "too much is mispredicted");
}

static const ls_event *next_event(const ls_walk *w) {
    return !w->c.reading && w->next < w->span->n_events ? &w->span->events[w->next] : NULL;
}

static uint64_t out_bit(const ls_walk *w, const uint8_t *out) {
    return (uint64_t)(w->bits.at - out) * 8 + w->bits.n;
}

static int is_flush(const ls_walk *w, const ls_event *e) {
    return e->kind == LS_EVENT_STORED && !e->size && !e->final &&
           !(w->m->flags & LS_MODEL_UNFLUSHED);
}

/* ---- bytes out --------------------------------------------------------------------------------- */

static int room_for(ls_walk *w, size_t n) {
    return (size_t)(w->end - w->bits.at) >= n + 16 ? LS_OK
                                                   : misfit(w, "more comes out than should");
}

/* On a byte boundary. */
static int put_bytes(ls_walk *w, const uint8_t *p, size_t n) {
    if (!w->c.reading)
        return LS_OK;
    if (room_for(w, n))
        return LS_EFORMAT;
    memcpy(w->bits.at, p, n);
    w->bits.at += n;
    return LS_OK;
}

/* The bits up to the byte boundary: said only if one is set. In making their number is known. */
static int padding(ls_walk *w, uint32_t value, uint64_t bit) {
    uint32_t n = (uint32_t)(-bit & 7);
    uint32_t odd = ls_corr_code(&w->c, &w->x.padding, value != 0);
    if (odd)
        value = ls_corr_raw(&w->c, value, n);
    if (w->c.reading) {
        if (room_for(w, 8))
            return LS_EFORMAT;
        ls_bits_put(&w->bits, odd ? value : 0, n);
        ls_bits_flush(&w->bits);
    }
    return LS_OK;
}

/* ---- blocks -------------------------------------------------------------------------------------- */

typedef struct segment {
    size_t start, end; /* in the span's content */
    uint32_t ending;
} segment;

/* Where a block of the model ends by itself, if content decides. */
static size_t usual_end(const ls_walk *w, const segment *g) {
    uint64_t since = w->at - w->flushed, step = w->m->block_content;
    uint64_t left = step - since % step;
    return left < g->end - w->pos ? w->pos + (size_t)left : g->end;
}

/* Where its content ends a block of the model that begins here, or SIZE_MAX. */
static size_t marked_end(const ls_walk *w, const segment *g) {
    size_t before = w->whole ? w->pos - w->member : w->pos + w->before;
    if (before > w->at)
        before = (size_t)w->at;
    size_t n = w->m->mark(w->content + w->pos, before, w->at, g->end - w->pos);
    return n == SIZE_MAX ? SIZE_MAX : w->pos + n;
}

static size_t content_of(const ls_token *tokens, size_t n) {
    size_t size = 0;
    for (size_t i = 0; i < n; i++)
        size += tokens[i] < 256 ? 1 : tokens[i] & 0xffff;
    return size;
}

static void advance(ls_walk *w, size_t size) {
    w->pos += size;
    w->at += size;
}

/* Corrections of the tokens of this block; `most` bounds how many there can be. */
static int code_corrections(ls_walk *w, size_t *count, size_t most) {
    ls_corr *c = &w->c;
    ls_contexts *x = &w->x;
    uint32_t n = (uint32_t)*count, at = w->index;
    if (!ls_corr_code(c, &x->has_corrections[0], n != 0)) {
        *count = 0;
        return LS_OK;
    }
    n = ls_corr_number_code(c, &x->corrections, n - 1) + 1;
    if (n > most || !n)
        return misfit(w, "more corrections than tokens");
    for (uint32_t i = 0; i < n; i++) {
        ls_correction *k = &w->corrections[i];
        uint32_t gap = ls_corr_number_code(c, &x->gaps, k->index - at);
        if (gap > LS_TOKENS_CONTENT)
            return misfit(w, "a correction behind the span");
        if (c->reading)
            k->index = at + gap;
        at = k->index + 1;
        if (at - w->index > most)
            return misfit(w, "a correction behind the block");
        uint32_t match = ls_corr_code(c, &x->literal[0], k->actual >= 256);
        if (!match) {
            if (c->reading)
                k->actual = 0;
            continue;
        }
        uint32_t dist = k->actual >> 16, length = k->actual & 0xffff;
        uint32_t symbol = c->reading ? 0 : ls_dist_symbol(dist);
        length = ls_corr_tree(c, x->length, length - MIN_MATCH, 8) + MIN_MATCH;
        symbol = ls_corr_tree(c, x->dist, symbol, 5);
        if (symbol >= DIST_SYMBOLS)
            return misfit(w, "no such distance");
        dist = ls_dist_base[symbol] +
               ls_corr_raw(c, dist - ls_dist_base[symbol], ls_dist_extra[symbol]);
        if (c->reading)
            k->actual = dist << 16 | length;
        if (c->full)
            return too_much(w);
    }
    *count = n;
    w->mispredicted += n;
    return LS_OK;
}

/* What fills up the byte behind a block that its content ended: how many empty blocks, of which kind. */
static uint32_t fill_of(const ls_walk *w, uint64_t bit, uint32_t *kind) {
    uint32_t n = (uint32_t)(bit & 7);
    *kind = LS_EVENT_FIXED;
    if (n && !(n & 1) && w->m->flags & LS_MODEL_FILLS_FIXED)
        return (8 - n) / 2;
    *kind = LS_EVENT_STORED;
    return n != 0;
}

/* Analysis: whether that is what comes. */
static int is_filled(const ls_walk *w) {
    const ls_tokens_span *s = w->span;
    if (w->next >= s->n_events)
        return 0;
    uint32_t kind, n = fill_of(w, s->events[w->next].bit, &kind);
    if (w->next + n > s->n_events)
        return 0;
    for (const ls_event *e = &s->events[w->next], *end = e + n; e < end; e++)
        if (e->kind != kind || e->size || e->tokens || e->final ||
            (kind == LS_EVENT_STORED && e->padding))
            return 0;
    return 1;
}

static int code_filled(ls_walk *w) {
    uint32_t kind, n;
    int reading = w->c.reading;
    if (ls_corr_code(&w->c, &w->x.filled, !reading && !is_filled(w)))
        return LS_OK;
    n = fill_of(w,
                reading || w->next >= w->span->n_events ? w->bits.n : w->span->events[w->next].bit,
                &kind);
    w->next += n;
    if (!reading)
        return LS_OK;
    if (room_for(w, 64))
        return LS_EFORMAT;
    for (; n; n--) {
        ls_bits_header(&w->bits, 0, kind, NULL);
        if (kind == LS_EVENT_STORED) {
            ls_bits_align(&w->bits);
            ls_bits_put(&w->bits, UINT64_C(0xffff0000), 32);
        } else {
            ls_bits_put(&w->bits, 0, 7); /* the end of the block */
        }
        ls_bits_flush(&w->bits);
    }
    return LS_OK;
}

static int stored_block(ls_walk *w, const segment *g, const ls_event *e, uint32_t final) {
    ls_contexts *x = &w->x;
    uint32_t size = e ? e->size : 0;
    size_t rest = g->end - w->pos, marked = rest && w->m->mark ? marked_end(w, g) : SIZE_MAX;
    if (rest && ls_corr_code(&w->c, &x->stored_size[2], size == 0)) {
        size = 0;
    } else if (marked != SIZE_MAX && marked - w->pos < 65536 &&
               !ls_corr_code(&w->c, &x->stored_size[3], w->pos + size != marked)) {
        size = (uint32_t)(marked - w->pos);
    } else if (rest) {
        uint32_t same = w->last_size < rest ? w->last_size : rest < 65535 ? (uint32_t)rest : 65535;
        if (!ls_corr_code(&w->c, &x->stored_size[0], size != same))
            size = same;
        else if (!ls_corr_code(&w->c, &x->stored_size[1], size != rest))
            size = rest < 65535 ? (uint32_t)rest : 65535;
        else
            size = ls_corr_number_code(&w->c, &x->sizes, size);
        if (size > rest || size > 65535)
            return misfit(w, "a stored block behind the segment");
        if (size)
            w->last_size = size;
    }
    if (w->c.reading) {
        if (room_for(w, 16))
            return LS_EFORMAT;
        ls_bits_header(&w->bits, final, 0, NULL);
    }
    if (padding(w, e ? e->padding : 0, w->c.reading ? w->bits.n : e->bit + 3))
        return LS_EFORMAT;
    if (w->c.reading) {
        ls_bits_put(&w->bits, size | (uint64_t)(size ^ 0xffff) << 16, 32);
        ls_bits_flush(&w->bits);
    }
    if (put_bytes(w, w->content + w->pos, size))
        return LS_EFORMAT;
    if (size) {
        int result = w->m->skip(w->m, w->state, size);
        if (result != LS_OK)
            return misfit(w, "the model does not follow a stored block");
    }
    advance(w, size);
    return marked != SIZE_MAX && w->pos >= marked && !final ? code_filled(w) : LS_OK;
}

/* What analysis finds out about a block before it is coded. */
typedef struct finding {
    size_t corrections, tokens, size;
    uint32_t variant, end;
    int plain; /* its codes */
} finding;

/* Whether a block is as long as its content, or the most tokens of one, make it. */
static int ends_marked(const ls_walk *w, const segment *g, const ls_event *e) {
    if (!e->tokens || e->tokens > w->m->block_tokens)
        return 0;
    ls_token last = w->span->tokens[w->token + e->tokens - 1];
    size_t marked = marked_end(w, g), end = w->pos + e->size;
    return end - (last < 256 ? 1 : last & 0xffff) < marked &&
           (end >= marked || e->tokens == w->m->block_tokens);
}

static int look(ls_walk *w, const segment *g, const ls_event *e, finding *f) {
    const ls_token *tokens = w->span->tokens + w->token;
    f->tokens = e->tokens;
    f->size = e->size;
    if (e->tokens) {
        ls_asking a = {.tokens = w->span->tokens + w->token,
                       .n = e->tokens,
                       .index = w->index,
                       .corrections = w->corrections,
                       .capacity = w->capacity};
        int result = w->m->verify(w->m, w->state, &a);
        if (result == LS_ELIMIT)
            return too_much(w);
        if (result != LS_OK)
            return misfit(w, "the model does not follow the tokens");
        f->corrections = a.count;
    }
    size_t end = w->pos + e->size;
    uint64_t since = w->at + e->size - w->flushed;
    if (w->m->mark            ? ends_marked(w, g, e)
        : w->m->block_content ? end == usual_end(w, g)
                              : w->m->block_tokens && e->tokens == w->m->block_tokens)
        f->end = END_USUAL;
    else if (end == g->end)
        f->end = END_SEGMENT;
    else if (w->m->block_content && since % w->m->block_content == 0)
        f->end = END_CONTENT;
    else
        f->end = END_COUNT;
    if (e->kind == LS_EVENT_DYNAMIC) {
        ls_header_unpack(w->span->bytes + e->bytes, &w->header);
        ls_tree_look(w, tokens, e->tokens, &f->variant, &f->plain);
    }
    return LS_OK;
}

static int write_block(ls_walk *w, uint32_t type, uint32_t final, size_t n) {
    if (room_for(w, 1024))
        return LS_EFORMAT;
    ls_bits_header(&w->bits, final, type, &w->header);
    const ls_bits_table *t = &w->fixed;
    if (type == LS_EVENT_DYNAMIC) {
        const ls_header *h = &w->header;
        memset(&w->litlen, 0, sizeof w->litlen);
        memset(&w->dist, 0, sizeof w->dist);
        memcpy(w->litlen.lengths, h->lengths, h->hlit);
        memcpy(w->dist.lengths, h->lengths + h->hlit, h->hdist);
        ls_code_assign(&w->litlen, LITLEN_SYMBOLS);
        ls_code_assign(&w->dist, DIST_SYMBOLS);
        ls_bits_table_make(&w->table, &w->litlen, &w->dist);
        t = &w->table;
    } else if (!w->has_fixed) {
        ls_fixed_codes(&w->litlen, &w->dist);
        ls_bits_table_make(&w->fixed, &w->litlen, &w->dist);
        w->has_fixed = 1;
    }
    if (ls_bits_body(&w->bits, w->end, t, w->tokens, n))
        return misfit(w, "more comes out than should");
    return LS_OK;
}

/* A block of tokens; `ordinary`: dynamic, ends as usual, all as the model has it. */
static int token_block(ls_walk *w, const segment *g, finding *f, int ordinary, uint32_t type,
                       uint32_t final) {
    ls_corr *c = &w->c;
    size_t rest = g->end - w->pos, count = 0, until = 0, marked = 0;
    uint32_t end = ordinary ? END_USUAL : f->end;
    if (!rest) {
        f->tokens = f->size = f->corrections = 0;
    } else {
        if (!ordinary)
            end = ls_corr_tree(c, w->x.end, f->end, 2);
        if (end == END_SEGMENT) {
            until = g->end;
        } else if (end == END_COUNT) {
            count = ls_corr_number_code(c, &w->x.counts, (uint32_t)f->tokens);
            if (count > rest || count > LS_TOKENS_TOKENS)
                return misfit(w, "a block behind the segment");
        } else if (w->m->mark) {
            if (end != END_USUAL)
                return misfit(w, "no such end of a block");
            marked = marked_end(w, g);
            until = marked == SIZE_MAX ? g->end : marked;
        } else if (w->m->block_content) {
            until = usual_end(w, g);
            if (end == END_CONTENT) {
                uint64_t step = w->m->block_content;
                uint64_t steps = (w->pos + f->size - until) / step;
                steps = ls_corr_number_code(c, &w->x.steps, (uint32_t)steps);
                if (steps > (g->end - until) / step)
                    return misfit(w, "a block behind the segment");
                until += (size_t)(steps * step);
            }
        } else {
            count = w->m->block_tokens;
            if (!count || count > rest)
                return misfit(w, "a block behind the segment");
        }
        if (!ordinary && code_corrections(w, &f->corrections, count ? count : rest))
            return w->err->code;
        if (ordinary)
            f->corrections = 0;
    }
    const ls_token *tokens = c->reading ? w->tokens : w->span->tokens + w->token;
    if (c->reading && (count || until)) {
        ls_asking a = {.tokens = w->tokens,
                       .n = LS_TOKENS_TOKENS,
                       .index = w->index,
                       .corrections = w->corrections,
                       .count = f->corrections,
                       .over = marked != 0};
        if (marked)
            a.n = w->m->block_tokens;
        int result = w->m->make(w->m, w->state, &a, count, until ? until - g->start : 0);
        if (result != LS_OK || a.next != a.count || a.n > LS_TOKENS_TOKENS)
            return misfit(w, "the model does not make what is recorded");
        f->tokens = a.n;
        f->size = content_of(w->tokens, a.n);
        if (f->size > rest || (!marked && (count ? a.n != count : w->pos + f->size != until)))
            return misfit(w, "the model does not make what is recorded");
    } else if (c->reading) {
        f->tokens = f->size = 0;
    }
    if (type == LS_EVENT_DYNAMIC && ls_tree_code(w, tokens, f->tokens, f->variant, ordinary))
        return misfit(w, "no such codes");
    if (c->reading && write_block(w, type, final, f->tokens))
        return LS_EFORMAT;
    w->index += (uint32_t)f->tokens;
    w->token += f->tokens;
    advance(w, f->size);
    return marked && w->pos >= marked && !final ? code_filled(w) : LS_OK;
}

static int block(ls_walk *w, const segment *g, uint32_t *final) {
    ls_corr *c = &w->c;
    ls_contexts *x = &w->x;
    const ls_event *e = next_event(w);
    finding f = {0};
    size_t rest = g->end - w->pos;
    uint32_t type = e ? e->kind : 0, kind = w->kind;
    if (++w->blocks > 2 * LS_TOKENS_EVENTS)
        return misfit(w, "too many blocks");
    if (e && type != LS_EVENT_STORED && look(w, g, e, &f))
        return w->err->code;
    *final = e ? e->final : 0;
    w->next++;
    if (rest) {
        int ordinary = e && type == LS_EVENT_DYNAMIC && !e->final && f.end == END_USUAL &&
                       f.tokens && f.plain && !f.corrections;
        if (!ls_corr_code(c, &x->ordinary[kind], !ordinary)) {
            *final = 0;
            w->kind = 0;
            return token_block(w, g, &f, 1, LS_EVENT_DYNAMIC, 0);
        }
    }
    if (!ls_corr_code(c, &x->stored[kind], type == LS_EVENT_STORED))
        type = ls_corr_code(c, &x->fixed[kind], type == LS_EVENT_FIXED) ? LS_EVENT_FIXED
                                                                        : LS_EVENT_DYNAMIC;
    else
        type = LS_EVENT_STORED;
    *final = ls_corr_code(c, &x->final[type * 2 + !rest], *final);
    w->kind = type == LS_EVENT_DYNAMIC ? 1 : type == LS_EVENT_FIXED ? 2 : 3;
    return type == LS_EVENT_STORED ? stored_block(w, g, e, *final)
                                   : token_block(w, g, &f, 0, type, *final);
}

/* ---- what lies between blocks ---------------------------------------------------------------------- */

/* Bytes of a header or behind the last member. */
static int code_bytes(ls_walk *w, const uint8_t *p, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)ls_corr_tree(&w->c, w->x.byte, p ? p[i] : 0, 8);
        if (put_bytes(w, &byte, 1))
            return LS_EFORMAT;
        if (w->c.full)
            return too_much(w);
    }
    return LS_OK;
}

static int header(ls_walk *w, const ls_event *e) {
    const uint8_t *p = e ? w->span->bytes + e->bytes : NULL;
    uint32_t size = e ? e->size : 0;
    size_t known = w->last_header_size;
    int same = known && known == size && p && !memcmp(p, w->header_copy, size);
    if (known && !ls_corr_code(&w->c, &w->x.same_header, !same)) {
        if (put_bytes(w, w->header_copy, known))
            return LS_EFORMAT;
    } else {
        size = ls_corr_number_code(&w->c, &w->x.bytes, size);
        if (size > LS_TOKENS_HEADER)
            return misfit(w, "a header is too long");
        if (w->c.reading)
            p = w->bits.at;
        if (code_bytes(w, w->c.reading ? NULL : p, size))
            return w->err->code;
        if (size <= sizeof w->header_copy) {
            memcpy(w->header_copy, p, size);
            w->last_header_size = size;
        }
    }
    w->at = w->flushed = 0;
    w->whole = 1;
    w->member = w->pos;
    return LS_OK;
}

static int trailer(ls_walk *w, const ls_event *e) {
    uint32_t crc = e ? ls_load32(w->span->bytes + e->bytes) : 0, made = 0;
    if (padding(w, e ? e->padding : 0, w->c.reading ? w->bits.n : e->bit))
        return LS_EFORMAT;
    if (w->whole) {
        if (!w->has_crc)
            ls_crc_make(&w->crc);
        w->has_crc = 1;
        made = ls_crc_update(&w->crc, 0, w->content + w->member, w->pos - w->member);
    }
    if (!w->whole || ls_corr_code(&w->c, &w->x.computed, crc != made)) {
        crc = ls_corr_raw(&w->c, crc >> 16, 16) << 16 | ls_corr_raw(&w->c, crc & 0xffff, 16);
    } else {
        crc = made;
    }
    uint8_t bytes[8];
    for (int i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(crc >> 8 * i);
        bytes[4 + i] = (uint8_t)(w->at >> 8 * i);
    }
    w->next++;
    return put_bytes(w, bytes, 8);
}

/* Zeros, trailing bytes, or the header that begins a member (1), or the end (2). Negative: wrong. */
static int between(ls_walk *w) {
    const ls_event *e = next_event(w);
    uint32_t item = !e                           ? ITEM_END
                    : e->kind == LS_EVENT_HEADER ? ITEM_HEADER
                    : e->kind == LS_EVENT_ZEROS  ? ITEM_ZEROS
                                                 : ITEM_TRAILING;
    item = ls_corr_tree(&w->c, w->x.item, item, 2);
    if (++w->blocks > 2 * LS_TOKENS_EVENTS)
        return misfit(w, "too many parts");
    w->next++;
    if (item == ITEM_END)
        return 2;
    if (item == ITEM_HEADER)
        return header(w, e) ? w->err->code : 1;
    uint32_t size = ls_corr_number_code(&w->c, &w->x.bytes, e ? e->size : 0);
    if (item == ITEM_TRAILING) {
        if (size > LS_TOKENS_TRAILING)
            return misfit(w, "too many trailing bytes");
        return code_bytes(w, e ? w->span->bytes + e->bytes : NULL, size) ? w->err->code : LS_OK;
    }
    if (w->c.reading) {
        if (room_for(w, size))
            return LS_EFORMAT;
        memset(w->bits.at, 0, size);
        w->bits.at += size;
    }
    return LS_OK;
}

/* ---- segments ---------------------------------------------------------------------------------------- */

/* How far the model's input goes on from the next event: content, and what ends it. */
static void scan(const ls_walk *w, segment *g) {
    const ls_tokens_span *s = w->span;
    g->ending = ENDING_CUT;
    for (size_t i = w->next; i < s->n_events; i++) {
        const ls_event *e = &s->events[i];
        if (e->kind == LS_EVENT_TRAILER || is_flush(w, e)) {
            g->ending = e->kind == LS_EVENT_TRAILER ? ENDING_MEMBER : ENDING_FLUSH;
            return;
        }
        g->end += e->size;
    }
}

static int open_segment(ls_walk *w, segment *g) {
    ls_corr *c = &w->c;
    ls_contexts *x = &w->x;
    size_t rest = w->size - w->pos, size = 0;
    g->start = g->end = w->pos;
    g->ending = 0;
    if (!c->reading) {
        scan(w, g);
        size = g->end - g->start;
    }
    g->ending = ls_corr_tree(c, x->ending, g->ending, 2);
    if (g->ending > ENDING_MEMBER)
        return misfit(w, "no such end of a segment");
    if (g->ending == ENDING_CUT || !ls_corr_code(c, &x->fills, size != rest))
        size = rest;
    else if (!ls_corr_code(c, &x->same_size, size != w->last_segment))
        size = w->last_segment;
    else
        size = ls_corr_number_code(c, &x->sizes, (uint32_t)size);
    if (size > rest)
        return misfit(w, "a segment behind the span");
    w->last_segment = size;
    g->end = g->start + size;
    if (!size)
        return LS_OK;
    ls_span span = {.data = w->content + w->pos, .size = size, .at = w->at, .flushed = w->flushed};
    size_t before = w->whole ? w->pos - w->member : w->pos + w->before;
    span.before = before < w->m->history ? before : w->m->history;
    if (span.before > w->at)
        span.before = (size_t)w->at;
    if (g->ending == ENDING_CUT && w->m->ahead) {
        span.after = w->after < w->m->ahead ? w->after : w->m->ahead;
        if (!ls_corr_code(c, &x->after, span.after != w->m->ahead))
            span.after = w->m->ahead;
        else
            span.after = ls_corr_number_code(c, &x->sizes, (uint32_t)span.after);
        if (span.after > w->after)
            return misfit(w, "a span behind the content");
    }
    w->m->begin(w->m, w->state, &span);
    return LS_OK;
}

static int close_segment(ls_walk *w, const segment *g) {
    if (g->ending == ENDING_FLUSH) {
        const ls_event *e = next_event(w);
        segment none = {.start = w->pos, .end = w->pos};
        w->next++;
        w->flushed = w->at;
        return stored_block(w, &none, e, 0);
    }
    return g->ending == ENDING_MEMBER ? trailer(w, next_event(w)) : LS_OK;
}

static int run_segment(ls_walk *w, segment *g) {
    uint32_t final = 0;
    if (open_segment(w, g))
        return w->err->code;
    for (;;) {
        if (w->pos == g->end && g->ending != ENDING_MEMBER) {
            const ls_event *e = next_event(w);
            uint32_t more = e && !(g->ending == ENDING_FLUSH && is_flush(w, e));
            if (!ls_corr_code(&w->c, &w->x.more, more))
                break;
        }
        if (block(w, g, &final))
            return w->err->code;
        if (w->c.full)
            return too_much(w);
        if (final)
            break;
    }
    if (w->pos != g->end || (final && g->ending != ENDING_MEMBER))
        return misfit(w, "a segment ends early");
    return close_segment(w, g);
}

/* Where the span begins in its member. */
static int begin(ls_walk *w, uint32_t *inside, uint32_t *carry, uint32_t carry_bits) {
    ls_corr *c = &w->c;
    ls_contexts *x = &w->x;
    *carry = ls_corr_raw(c, *carry, carry_bits);
    *inside = !ls_corr_code(c, &x->inside, !*inside);
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
        return misfit(w, "a member before the blob");
    if (!ls_corr_code(c, &x->flushed[0], w->flushed != w->at)) {
        w->flushed = w->at;
    } else if (!ls_corr_code(c, &x->flushed[1], w->flushed != 0)) {
        w->flushed = 0;
    } else {
        uint32_t high = ls_corr_number_code(c, &x->numbers, (uint32_t)(w->flushed >> 32));
        w->flushed =
            (uint64_t)high << 32 | ls_corr_number_code(c, &x->numbers, (uint32_t)w->flushed);
    }
    if (w->flushed > w->at)
        return misfit(w, "a flush behind the span");
    if (w->m->flags & LS_MODEL_UNFLUSHED)
        w->flushed = 0;
    return LS_OK;
}

static int walk(ls_walk *w, uint32_t inside) {
    for (;;) {
        if (!inside) {
            int what = between(w);
            if (what < 0)
                return what;
            if (what == 2)
                return w->pos == w->size ? LS_OK : misfit(w, "a span ends early");
            inside = what == 1;
            continue;
        }
        segment g;
        if (++w->blocks > 2 * LS_TOKENS_EVENTS)
            return misfit(w, "too many segments");
        if (run_segment(w, &g))
            return w->err->code;
        if (w->c.full)
            return too_much(w);
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

static ls_walk *prepare(void *work, uint32_t model, ls_error *err) {
    ls_walk *w = work;
    memset(w, 0, offsetof(ls_walk, x));
    expect(&w->x);
    w->m = ls_model_by_id(model);
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
    segment g = {0};
    const ls_tokens_span *span = w->span;
    w->span = following;
    scan(w, &g);
    w->span = span;
    return g.end;
}

int ls_respan_analyse(void *work, uint32_t model, ls_tokens_span *span,
                      const ls_tokens_span *following, uint32_t *scratch, uint8_t *out, size_t room,
                      size_t *out_len, ls_error *err) {
    ls_walk *w = prepare(work, model, err);
    *out_len = 0;
    if (!w->m)
        return ls_fail(err, LS_EINVALID, 0, "no such model");
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
    int result = begin(w, &inside, &carry, span->bit & 7);
    if (result == LS_OK)
        result = walk(w, inside);
    if (result != LS_OK)
        return result;
    *out_len = ls_corr_finish(&w->c);
    return w->c.full ? too_much(w) : LS_OK;
}

int ls_respan_make(void *work, uint32_t model, const ls_respan *r, uint32_t *tokens,
                   uint32_t *scratch, uint8_t *out, size_t room, size_t *out_len, ls_error *err) {
    ls_walk *w = prepare(work, model, err);
    *out_len = 0;
    if (!w->m)
        return ls_fail(err, LS_EINVALID, 0, "no such model");
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
    int result = begin(w, &inside, &carry, phase);
    if (result != LS_OK)
        return result;
    w->bits.held = carry;
    w->bits.n = phase;
    result = walk(w, inside);
    if (result != LS_OK)
        return result;
    if (out_bit(w, out) != r->end_bit - r->bit + phase)
        return misfit(w, "other bits come out than should");
    *out_len = (size_t)(w->bits.at - out);
    return LS_OK;
}

size_t ls_respan_mispredicted(const void *work) {
    return ((const ls_walk *)work)->mispredicted;
}
