/* segments.c: what of a span lies between its blocks: headers, trailers, zeros, flushes, ends of the model's input.
 *
 * A *segment* is what the model sees as one input; it is begun anew for each (FORMAT.md, section 16.5). */
#include "walk.h"

enum item { ITEM_HEADER, ITEM_ZEROS, ITEM_TRAILING, ITEM_END };

/* ---- between members ------------------------------------------------------------------------------- */

/* Bytes of a header or behind the last member. */
static int code_bytes(ls_walk *w, const uint8_t *p, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)ls_corr_tree(&w->c, w->x.byte, p ? p[i] : 0, 8);
        if (ls_put_bytes(w, &byte, 1))
            return LS_EFORMAT;
        if (w->c.full)
            return ls_too_much(w);
    }
    return LS_OK;
}

/* What byte i of a plain header is likely to be: as the encoder at this level writes it. */
static uint8_t likely_byte(const ls_walk *w, const uint8_t *p, uint32_t i) {
    static const uint8_t plain[10] = {0x1f, 0x8b, 8};
    uint32_t family = w->m->id / 100, level = w->m->id % 10;
    if (i == 6 || i == 7) /* Go's time that is none, as klauspost/compress wrote it */
        return p[5] != 9 ? 0 : i == 6 ? 0x6e : 0x88;
    if (i == 8)
        return level == 9 ? 2 : level == 1 ? 4 : 0;
    return i < 9 ? plain[i] : family == 1 || family == 4 ? 3 : 255;
}

/* A header as recipes have it from version 2 on: by how it differs from a plain one. */
static int code_header(ls_walk *w, const uint8_t *p, uint32_t *size) {
    ls_corr *c = &w->c;
    if (!ls_corr_code(c, &w->x.plain_header, *size != 10))
        *size = 10;
    else
        *size = ls_corr_number_code(c, &w->x.bytes, *size);
    if (*size > LS_TOKENS_HEADER)
        return ls_misfit(w, "a header is too long");
    if (c->reading && ls_room_for(w, *size))
        return LS_EFORMAT;
    for (uint32_t i = 0; i < *size; i++) {
        uint8_t byte = c->reading ? 0 : p[i];
        uint8_t likely = i < 10 ? likely_byte(w, c->reading ? w->bits.at : p, i) : 0;
        if (i < 10 && !ls_corr_code(c, &w->x.expected[i], byte != likely))
            byte = likely;
        else
            byte = (uint8_t)ls_corr_tree(c, w->x.byte, byte, 8);
        if (c->full)
            return ls_too_much(w);
        if (c->reading)
            w->bits.at[i] = byte;
    }
    if (c->reading)
        w->bits.at += *size;
    return LS_OK;
}

static int header(ls_walk *w, const ls_event *e) {
    const uint8_t *p = e ? w->span->bytes + e->bytes : NULL;
    uint32_t size = e ? e->size : 0;
    size_t known = w->last_header_size;
    int same = known && known == size && p && !memcmp(p, w->header_copy, size);
    if (known && !ls_corr_code(&w->c, &w->x.same_header, !same)) {
        if (ls_put_bytes(w, w->header_copy, known))
            return LS_EFORMAT;
    } else {
        const uint8_t *known_bytes = w->c.reading ? NULL : p;
        if (w->c.reading)
            p = w->bits.at;
        if (w->version > 1) {
            if (code_header(w, known_bytes, &size))
                return w->err->code;
        } else {
            size = ls_corr_number_code(&w->c, &w->x.bytes, size);
            if (size > LS_TOKENS_HEADER)
                return ls_misfit(w, "a header is too long");
            if (code_bytes(w, known_bytes, size))
                return w->err->code;
        }
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
    if (ls_padding(w, e ? e->padding : 0, w->c.reading ? w->bits.n : e->bit))
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
    return ls_put_bytes(w, bytes, 8);
}

/* Zeros, trailing bytes, or the header that begins a member (1), or the end (2). Negative: wrong. */
int ls_between(ls_walk *w) {
    const ls_event *e = ls_next_event(w);
    uint32_t item = !e                           ? ITEM_END
                    : e->kind == LS_EVENT_HEADER ? ITEM_HEADER
                    : e->kind == LS_EVENT_ZEROS  ? ITEM_ZEROS
                                                 : ITEM_TRAILING;
    item = ls_corr_tree(&w->c, w->x.item, item, 2);
    if (++w->blocks > 2 * LS_TOKENS_EVENTS)
        return ls_misfit(w, "too many parts");
    w->next++;
    if (item == ITEM_END)
        return 2;
    if (item == ITEM_HEADER)
        return header(w, e) ? w->err->code : 1;
    uint32_t size = ls_corr_number_code(&w->c, &w->x.bytes, e ? e->size : 0);
    if (item == ITEM_TRAILING) {
        if (size > LS_TOKENS_TRAILING)
            return ls_misfit(w, "too many trailing bytes");
        return code_bytes(w, e ? w->span->bytes + e->bytes : NULL, size) ? w->err->code : LS_OK;
    }
    if (w->c.reading) {
        if (ls_room_for(w, size))
            return LS_EFORMAT;
        memset(w->bits.at, 0, size);
        w->bits.at += size;
    }
    return LS_OK;
}

/* ---- segments ---------------------------------------------------------------------------------------- */

/* How far the model's input goes on from the next event: content, and what ends it. */
void ls_scan(const ls_walk *w, ls_stretch *g) {
    const ls_tokens_span *s = w->span;
    g->ending = ENDING_CUT;
    for (size_t i = w->next; i < s->n_events; i++) {
        const ls_event *e = &s->events[i];
        if (e->kind == LS_EVENT_TRAILER || ls_is_flush(w, e)) {
            g->ending = e->kind == LS_EVENT_TRAILER ? ENDING_MEMBER : ENDING_FLUSH;
            return;
        }
        g->end += e->size;
    }
}

static int open_segment(ls_walk *w, ls_stretch *g) {
    ls_corr *c = &w->c;
    ls_contexts *x = &w->x;
    size_t rest = w->size - w->pos, size = 0;
    g->start = g->end = w->pos;
    g->ending = 0;
    if (!c->reading) {
        ls_scan(w, g);
        size = g->end - g->start;
    }
    g->ending = ls_corr_tree(c, x->ending, g->ending, 2);
    if (g->ending > ENDING_MEMBER)
        return ls_misfit(w, "no such end of a segment");
    if (g->ending == ENDING_CUT || !ls_corr_code(c, &x->fills, size != rest))
        size = rest;
    else if (!ls_corr_code(c, &x->same_size, size != w->last_segment))
        size = w->last_segment;
    else
        size = ls_corr_number_code(c, &x->sizes, (uint32_t)size);
    if (size > rest)
        return ls_misfit(w, "a segment behind the span");
    w->last_segment = size;
    g->end = g->start + size;
    if (!size)
        return LS_OK;
    ls_span span = {.data = w->content + w->pos, .size = size, .at = w->at, .flushed = w->flushed};
    size_t before = ls_before(w);
    span.before = before < w->m->history ? before : w->m->history;
    if (g->ending == ENDING_CUT && w->m->ahead) {
        span.after = w->after < w->m->ahead ? w->after : w->m->ahead;
        if (!ls_corr_code(c, &x->after, span.after != w->m->ahead))
            span.after = w->m->ahead;
        else
            span.after = ls_corr_number_code(c, &x->sizes, (uint32_t)span.after);
        if (span.after > w->after)
            return ls_misfit(w, "a span behind the content");
    }
    w->m->begin(w->m, w->state, &span);
    return LS_OK;
}

static int close_segment(ls_walk *w, const ls_stretch *g) {
    if (g->ending == ENDING_FLUSH) {
        const ls_event *e = ls_next_event(w);
        ls_stretch none = {.start = w->pos, .end = w->pos};
        w->next++;
        w->flushed = w->at;
        return ls_stored_block(w, &none, e, 0);
    }
    return g->ending == ENDING_MEMBER ? trailer(w, ls_next_event(w)) : LS_OK;
}

int ls_run_segment(ls_walk *w, ls_stretch *g) {
    uint32_t final = 0;
    if (open_segment(w, g))
        return w->err->code;
    for (;;) {
        if (w->pos == g->end && g->ending != ENDING_MEMBER) {
            const ls_event *e = ls_next_event(w);
            uint32_t more = e && !(g->ending == ENDING_FLUSH && ls_is_flush(w, e));
            if (!ls_corr_code(&w->c, &w->x.more, more))
                break;
        }
        if (ls_span_block(w, g, &final))
            return w->err->code;
        if (w->c.full)
            return ls_too_much(w);
        if (final)
            break;
    }
    if (w->pos != g->end || (final && g->ending != ENDING_MEMBER))
        return ls_misfit(w, "a segment ends early");
    return close_segment(w, g);
}
