/* span_blocks.c: a deflate block of a span: its kind, its end, its tokens, what fills the byte behind it.
 *
 * Each is coded as another than the model's, or as the model has it (FORMAT.md, section 16.5, "A block"). Analysis
 * looks first (`look`), so that a block that is all the model's costs one bit that was likely. In making
 * the block's bits are written here. */
#include "walk.h"

enum end { END_USUAL, END_SEGMENT, END_COUNT, END_CONTENT };

/* ---- bytes out --------------------------------------------------------------------------------- */

/* On a byte boundary. */
int ls_put_bytes(ls_walk *w, const uint8_t *p, size_t n) {
    if (!w->c.reading)
        return LS_OK;
    if (ls_room_for(w, n))
        return LS_EFORMAT;
    memcpy(w->bits.at, p, n);
    w->bits.at += n;
    return LS_OK;
}

/* The bits up to the byte boundary: said only if one is set. In making their number is known. */
int ls_padding(ls_walk *w, uint32_t value, uint64_t bit) {
    uint32_t n = (uint32_t)(-bit & 7);
    uint32_t odd = ls_corr_code(&w->c, &w->x.padding, value != 0);
    if (odd)
        value = ls_corr_raw(&w->c, value, n);
    if (w->c.reading) {
        if (ls_room_for(w, 8))
            return LS_EFORMAT;
        ls_bits_put(&w->bits, odd ? value : 0, n);
        ls_bits_flush(&w->bits);
    }
    return LS_OK;
}

/* ---- blocks -------------------------------------------------------------------------------------- */

/* Where a block of the model ends by itself, if content decides. */
static size_t usual_end(const ls_walk *w, const ls_stretch *g) {
    uint64_t since = w->at - w->flushed, step = w->m->block_content;
    uint64_t left = step - since % step;
    return left < g->end - w->pos ? w->pos + (size_t)left : g->end;
}

/* Where its content ends a block of the model that begins here, or SIZE_MAX. */
static size_t marked_end(const ls_walk *w, const ls_stretch *g) {
    size_t n = w->m->mark(w->content + w->pos, ls_before(w), w->at, g->end - w->pos);
    return n == SIZE_MAX ? SIZE_MAX : w->pos + n;
}

static size_t content_of(const ls_token *tokens, size_t n) {
    size_t size = 0;
    for (size_t i = 0; i < n; i++)
        size += tokens[i] < 256 ? 1 : tokens[i] & 0xffff;
    return size;
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
        return ls_misfit(w, "more corrections than tokens");
    for (uint32_t i = 0; i < n; i++) {
        ls_correction *k = &w->corrections[i];
        uint32_t gap = ls_corr_number_code(c, &x->gaps, k->index - at);
        if (gap > LS_TOKENS_CONTENT)
            return ls_misfit(w, "a correction behind the span");
        if (c->reading)
            k->index = at + gap;
        at = k->index + 1;
        if (at - w->index > most)
            return ls_misfit(w, "a correction behind the block");
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
            return ls_misfit(w, "no such distance");
        dist = ls_dist_base[symbol] +
               ls_corr_raw(c, dist - ls_dist_base[symbol], ls_dist_extra[symbol]);
        if (c->reading)
            k->actual = dist << 16 | length;
        if (c->full)
            return ls_too_much(w);
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

/* `ordinary`: of a block that is, which says it already if the model has types. */
static int code_filled(ls_walk *w, int ordinary) {
    uint32_t kind, n;
    int reading = w->c.reading;
    if (!(ordinary && w->m->flags & LS_MODEL_TYPES) &&
        ls_corr_code(&w->c, &w->x.filled, !reading && !is_filled(w)))
        return LS_OK;
    n = fill_of(w,
                reading || w->next >= w->span->n_events ? w->bits.n : w->span->events[w->next].bit,
                &kind);
    w->next += n;
    if (!reading)
        return LS_OK;
    if (ls_room_for(w, 64))
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

int ls_stored_block(ls_walk *w, const ls_stretch *g, const ls_event *e, uint32_t final) {
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
            return ls_misfit(w, "a stored block behind the segment");
        if (size)
            w->last_size = size;
    }
    if (w->c.reading) {
        if (ls_room_for(w, 16))
            return LS_EFORMAT;
        ls_bits_header(&w->bits, final, 0, NULL);
    }
    if (ls_padding(w, e ? e->padding : 0, w->c.reading ? w->bits.n : e->bit + 3))
        return LS_EFORMAT;
    if (w->c.reading) {
        ls_bits_put(&w->bits, size | (uint64_t)(size ^ 0xffff) << 16, 32);
        ls_bits_flush(&w->bits);
    }
    if (ls_put_bytes(w, w->content + w->pos, size))
        return LS_EFORMAT;
    if (size) {
        int result = w->m->skip(w->m, w->state, size);
        if (result != LS_OK)
            return ls_misfit(w, "the model does not follow a stored block");
    }
    ls_advance(w, size);
    return marked != SIZE_MAX && w->pos >= marked && !final ? code_filled(w, 0) : LS_OK;
}

/* What analysis finds out about a block before it is coded. */
typedef struct finding {
    size_t corrections, tokens, size;
    uint32_t variant, end;
    int plain; /* its codes */
} finding;

/* Whether a block is as long as its content, or the most tokens of one, make it. */
static int ends_marked(const ls_walk *w, const ls_stretch *g, const ls_event *e) {
    if (!e->tokens || e->tokens > w->m->block_tokens)
        return 0;
    ls_token last = w->span->tokens[w->token + e->tokens - 1];
    size_t marked = marked_end(w, g), end = w->pos + e->size;
    return end - (last < 256 ? 1 : last & 0xffff) < marked &&
           (end >= marked || e->tokens == w->m->block_tokens);
}

static int look(ls_walk *w, const ls_stretch *g, const ls_event *e, finding *f) {
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
            return ls_too_much(w);
        if (result != LS_OK)
            return ls_misfit(w, "the model does not follow the tokens");
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
    if (ls_room_for(w, 1024))
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
        return ls_misfit(w, "more comes out than should");
    return LS_OK;
}

/* Analysis: whether all of a block is as the model has it, `next` being the event behind it. */
static int is_ordinary(ls_walk *w, const ls_stretch *g, const ls_event *e, const finding *f) {
    if (!e || e->final || f->end != END_USUAL || !f->tokens || f->corrections)
        return 0;
    if (!(w->m->flags & LS_MODEL_TYPES))
        return e->kind == LS_EVENT_DYNAMIC && f->plain;
    const ls_token *tokens = w->span->tokens + w->token;
    int fixed = e->kind == LS_EVENT_FIXED;
    if (fixed ? ls_tree_plain(w, tokens, f->tokens) != LS_OK : !f->plain)
        return 0;
    if (ls_tree_fixed(w, tokens, f->tokens) != fixed)
        return 0;
    return w->pos + f->size < marked_end(w, g) || is_filled(w);
}

/* A block of tokens; `ordinary`: ends as usual, all as the model has it; dynamic, if the model has no types. */
static int token_block(ls_walk *w, const ls_stretch *g, finding *f, int ordinary, uint32_t type,
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
                return ls_misfit(w, "a block behind the segment");
        } else if (w->m->mark) {
            if (end != END_USUAL)
                return ls_misfit(w, "no such end of a block");
            marked = marked_end(w, g);
            until = marked == SIZE_MAX ? g->end : marked;
        } else if (w->m->block_content) {
            until = usual_end(w, g);
            if (end == END_CONTENT) {
                uint64_t step = w->m->block_content;
                uint64_t steps = (w->pos + f->size - until) / step;
                steps = ls_corr_number_code(c, &w->x.steps, (uint32_t)steps);
                if (steps > (g->end - until) / step)
                    return ls_misfit(w, "a block behind the segment");
                until += (size_t)(steps * step);
            }
        } else {
            count = w->m->block_tokens;
            if (!count || count > rest)
                return ls_misfit(w, "a block behind the segment");
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
            return ls_misfit(w, "the model does not make what is recorded");
        f->tokens = a.n;
        f->size = content_of(w->tokens, a.n);
        if (f->size > rest || (!marked && (count ? a.n != count : w->pos + f->size != until)))
            return ls_misfit(w, "the model does not make what is recorded");
    } else if (c->reading) {
        f->tokens = f->size = 0;
    }
    if (type == LS_EVENT_DYNAMIC && ls_tree_code(w, tokens, f->tokens, f->variant, ordinary))
        return ls_misfit(w, "no such codes");
    if (ordinary && w->m->flags & LS_MODEL_TYPES && c->reading &&
        ls_tree_fixed(w, tokens, f->tokens))
        type = LS_EVENT_FIXED;
    if (c->reading && write_block(w, type, final, f->tokens))
        return LS_EFORMAT;
    w->index += (uint32_t)f->tokens;
    w->token += f->tokens;
    ls_advance(w, f->size);
    return marked && w->pos >= marked && !final ? code_filled(w, ordinary) : LS_OK;
}

int ls_span_block(ls_walk *w, const ls_stretch *g, uint32_t *final) {
    ls_corr *c = &w->c;
    ls_contexts *x = &w->x;
    const ls_event *e = ls_next_event(w);
    finding f = {0};
    size_t rest = g->end - w->pos;
    uint32_t type = e ? e->kind : 0, kind = w->kind;
    if (++w->blocks > 2 * LS_TOKENS_EVENTS)
        return ls_misfit(w, "too many blocks");
    if (e && type != LS_EVENT_STORED && look(w, g, e, &f))
        return w->err->code;
    *final = e ? e->final : 0;
    w->next++;
    if (rest) {
        if (!ls_corr_code(c, &x->ordinary[kind], !is_ordinary(w, g, e, &f))) {
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
    return type == LS_EVENT_STORED ? ls_stored_block(w, g, e, *final)
                                   : token_block(w, g, &f, 0, type, *final);
}
