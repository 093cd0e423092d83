/* tokens.c: the decoder of gzip members (RFC 1952, RFC 1951) that keeps what the encoder decided.
 *
 * Theory of operation. `feed` is called with what was not used before, and more. It goes from part to
 * part: a member's header, a block's header, stored bytes, tokens, a trailer, what lies behind. A part
 * is decoded when all of it is there, else it comes again (tokens and stored bytes: as far as they are
 * there). Every part becomes an event of the span. A span may end where a block or a member begins.
 *
 * Between two calls no bits are held: `bit` counts those of the first byte that were used up.
 *
 * Validity is zlib's: see codes.c for codes; the end of a block must have a code; symbols 286, 287, 30,
 * 31, distances before the member's start, wrong checksums and sizes are refused. What is valid but has
 * no place in a token (length 258 written as 227 + 31) or no room in a span is LS_ELIMIT.
 *
 * Cost: about 3 ns a byte of content, CRC included. */
#include "respan_impl.h"

enum state { IN_HEADER, AT_BLOCK, IN_STORED, IN_TOKENS, IN_TRAILER, BEHIND, IN_TRAILING, DEAD };

struct ls_tokens {
    uint64_t base;   /* bytes used in all calls before */
    uint64_t offset; /* content of all spans before */
    uint64_t at;     /* content of the member before the span */
    uint64_t flushed;
    uint64_t trailing;
    size_t member; /* in the span's content: where the member begins, if it begins there */
    size_t summed; /* content up to here is in the CRC */
    uint32_t crc;
    uint32_t members; /* 0, 1: none, some are complete */
    uint32_t bit, carry;
    uint32_t state;
    uint32_t final;
    uint32_t stored;     /* bytes left of a stored block */
    uint32_t new_member; /* the member begins in this span */
    ls_crc_table crc_table;
    uint32_t litlen[LITLEN_ENTRIES], dist[DIST_ENTRIES];
};

/* What a call works with. */
typedef struct input {
    const uint8_t *data;
    size_t size, at; /* of data; the next byte that is not in `held` */
    uint64_t held;
    uint32_t n; /* bits in `held`, whose other bits are 0 */
    int last;
} input;

size_t ls_tokens_sizeof(void) {
    return sizeof(ls_tokens);
}

void ls_tokens_init(ls_tokens *d) {
    memset(d, 0, offsetof(ls_tokens, crc_table));
    ls_crc_make(&d->crc_table);
    d->state = IN_HEADER;
}

void ls_tokens_begin(ls_tokens *d, ls_tokens_span *s, const ls_tokens_span *last, size_t history) {
    if (last) {
        d->offset += last->size;
        d->at = d->new_member ? last->size - d->member : d->at + last->size;
    }
    uint32_t inside = last && d->state != IN_HEADER && d->state < BEHIND;
    if (!inside)
        d->at = d->flushed = 0;
    size_t before = d->at < history ? (size_t)d->at : history;
    if (before)
        memcpy(s->content, last->content + last->before + last->size - before, before);
    s->before = before;
    s->size = s->n_tokens = s->n_events = s->n_bytes = 0;
    s->offset = d->offset;
    s->at = d->at;
    s->flushed = d->flushed;
    s->bit = s->end_bit = d->base * 8 + d->bit;
    s->inside = inside;
    s->carry = d->carry;
    d->new_member = 0;
    d->member = 0;
    d->summed = 0;
}

/* ---- bits -------------------------------------------------------------------------------------- */

static void fill(input *in) {
    while (in->n < 56 && in->at < in->size) {
        in->held |= (uint64_t)in->data[in->at++] << in->n;
        in->n += 8;
    }
}

static uint32_t take(input *in, uint32_t n) {
    uint32_t v = (uint32_t)(in->held & (((uint64_t)1 << n) - 1));
    in->held >>= n;
    in->n -= n;
    return v;
}

/* Bits from the start of the blob. */
static uint64_t where(const ls_tokens *d, const input *in) {
    return (d->base + in->at) * 8 - in->n;
}

static ls_event *event(ls_tokens_span *s, uint32_t kind, uint64_t bit) {
    ls_event *e = &s->events[s->n_events++];
    memset(e, 0, sizeof *e);
    e->kind = kind;
    e->bit = bit;
    e->bytes = (uint32_t)s->n_bytes;
    return e;
}

/* Forgets the whole bytes that are held: the next byte is data[at]. */
static void to_bytes(input *in) {
    in->at -= in->n / 8;
    in->held &= ((uint64_t)1 << (in->n & 7)) - 1;
    in->n &= 7;
}

static void sum(ls_tokens *d, const ls_tokens_span *s) {
    d->crc = ls_crc_update(&d->crc_table, d->crc, s->content + s->before + d->summed,
                           s->size - d->summed);
    d->summed = s->size;
}

static uint64_t member_size(const ls_tokens *d, const ls_tokens_span *s) {
    return d->new_member ? s->size - d->member : d->at + s->size;
}

/* More of the input is needed: or that was all. */
static int more(ls_tokens *d, input *in, ls_error *err) {
    if (in->last)
        return ls_fail(err, LS_EINVALID, d->base + in->size, "truncated");
    return LS_TOKENS_MORE;
}

#define NEXT 3 /* the part is done */

/* ---- parts ------------------------------------------------------------------------------------- */

static uint32_t crc16(const ls_tokens *d, const uint8_t *p, size_t n) {
    return ls_crc_update(&d->crc_table, 0, p, n) & 0xffff;
}

static int header(ls_tokens *d, ls_tokens_span *s, input *in, ls_error *err) {
    const uint8_t *p = in->data + in->at;
    size_t n = in->size - in->at, size = 10;
    uint64_t offset = d->base + in->at;
    static const uint8_t magic[3] = {0x1f, 0x8b, 8};
    for (size_t i = 0; i < 3 && i < n; i++)
        if (p[i] != magic[i])
            return ls_fail(err, LS_EINVALID, offset + i,
                           i < 2 ? "not gzip" : "unknown compression method");
    if (n > 3 && (p[3] & 0xe0))
        return ls_fail(err, LS_EINVALID, offset + 3, "reserved flags are set");
    if (n < size)
        return more(d, in, err);
    uint32_t flags = p[3];
    if (flags & 4) {
        if (n < size + 2)
            return more(d, in, err);
        size += 2u + (uint32_t)p[size] + 256u * p[size + 1];
    }
    for (uint32_t flag = 8; flag <= 16; flag *= 2) {
        if (!(flags & flag))
            continue;
        const uint8_t *zero = size < n ? memchr(p + size, 0, n - size) : NULL;
        size = zero ? (size_t)(zero - p) + 1 : n + 1;
        if (size > LS_TOKENS_HEADER)
            return ls_fail(err, LS_ELIMIT, offset, "a header of a gzip member is too long");
    }
    if (flags & 2) {
        if (n >= size + 2 && crc16(d, p, size) != (p[size] | (uint32_t)p[size + 1] << 8))
            return ls_fail(err, LS_EINVALID, offset + size, "wrong CRC of a header");
        size += 2;
    }
    if (n < size)
        return more(d, in, err);
    ls_event *e = event(s, LS_EVENT_HEADER, offset * 8);
    e->size = (uint32_t)size;
    memcpy(s->bytes + s->n_bytes, p, size);
    s->n_bytes += size;
    in->at += size;
    d->crc = 0;
    d->new_member = 1;
    d->member = d->summed = s->size;
    d->flushed = 0;
    d->state = AT_BLOCK;
    return NEXT;
}

/* Code lengths of a dynamic block: MORE, NEXT, or an error. */
static int codes(ls_tokens *d, input *in, ls_header *h, ls_error *err) {
    uint32_t table[1u << CODELEN_ROOT];
    fill(in);
    if (in->n < 14)
        return more(d, in, err);
    h->hlit = take(in, 5) + 257;
    h->hdist = take(in, 5) + 1;
    h->hclen = take(in, 4) + 4;
    if (h->hlit > 286 || h->hdist > 30)
        return ls_fail(err, LS_EINVALID, where(d, in) / 8, "too many symbols");
    memset(h->codelen, 0, sizeof h->codelen);
    for (uint32_t i = 0; i < h->hclen; i++) {
        fill(in);
        if (in->n < 3)
            return more(d, in, err);
        h->codelen[ls_codelen_order[i]] = (uint8_t)take(in, 3);
    }
    if (ls_decode_table(ALPHABET_CODELEN, h->codelen, CODELEN_SYMBOLS, table))
        return ls_fail(err, LS_EINVALID, where(d, in) / 8, "the code of code lengths is invalid");
    uint32_t all = h->hlit + h->hdist, n = 0;
    h->n_runs = 0;
    while (n < all) {
        fill(in);
        uint32_t e = table[in->held & ((1u << CODELEN_ROOT) - 1)], symbol = ENTRY_VALUE(e);
        uint32_t extra = symbol < 16 ? 0 : symbol == 16 ? 2 : symbol == 17 ? 3 : 7;
        if (in->n < ENTRY_BITS(e) + extra)
            return more(d, in, err);
        take(in, ENTRY_BITS(e));
        uint32_t value = extra ? take(in, extra) : 0, times = 1;
        if (symbol >= 16)
            times = (symbol == 18 ? 11 : 3) + value;
        if ((symbol == 16 && !n) || times > all - n)
            return ls_fail(err, LS_EINVALID, where(d, in) / 8,
                           "a repeat of code lengths is invalid");
        h->runs[h->n_runs] = (uint8_t)symbol;
        h->extra[h->n_runs++] = (uint8_t)value;
        uint8_t length = (uint8_t)(symbol < 16 ? symbol : symbol == 16 ? h->lengths[n - 1] : 0);
        memset(h->lengths + n, length, times);
        n += times;
    }
    if (!h->lengths[END_OF_BLOCK])
        return ls_fail(err, LS_EINVALID, where(d, in) / 8, "no code for the end of the block");
    int litlen = ls_decode_table(ALPHABET_LITLEN, h->lengths, h->hlit, d->litlen);
    int dist = ls_decode_table(ALPHABET_DIST, h->lengths + h->hlit, h->hdist, d->dist);
    if (litlen || dist)
        return ls_fail(err, LS_EINVALID, where(d, in) / 8,
                       litlen == CODE_OVER ? "the literal code is over-subscribed"
                       : litlen            ? "the literal code is incomplete"
                       : dist == CODE_OVER ? "the distance code is over-subscribed"
                                           : "the distance code is incomplete");
    return NEXT;
}

static void fixed_tables(ls_tokens *d) {
    uint8_t lengths[LITLEN_SYMBOLS + 2];
    memset(lengths, 8, sizeof lengths);
    memset(lengths + 144, 9, 112);
    memset(lengths + 256, 7, 24);
    ls_decode_table(ALPHABET_LITLEN, lengths, sizeof lengths, d->litlen);
    memset(lengths, 5, 32);
    ls_decode_table(ALPHABET_DIST, lengths, 32, d->dist);
}

/* Whether a span that holds this ends before what begins now. */
static int is_full(const ls_tokens_span *s, size_t wanted) {
    if (s->n_events + 4 > LS_TOKENS_EVENTS ||
        s->n_bytes + HEADER_ROOM + LS_TOKENS_HEADER + 16 > LS_TOKENS_BYTES ||
        s->n_tokens > LS_TOKENS_TOKENS / 2)
        return 2;
    if (s->size >= wanted)
        return 1;
    if (!s->n_events || s->size < wanted / 2)
        return 0;
    const ls_event *e = &s->events[s->n_events - 1];
    return e->kind >= LS_EVENT_TRAILER || (e->kind == LS_EVENT_STORED && !e->size && !e->final);
}

static int block(ls_tokens *d, ls_tokens_span *s, size_t wanted, input *in, ls_error *err) {
    uint64_t bit = where(d, in);
    fill(in);
    if (in->n < 3)
        return more(d, in, err);
    uint32_t final = (uint32_t)in->held & 1, type = (uint32_t)in->held >> 1 & 3;
    int full = is_full(s, wanted);
    if (type == LS_EVENT_STORED) {
        uint32_t padding = (in->n - 3) & 7;
        if (in->n < 3 + padding + 32)
            return more(d, in, err);
        uint32_t v = (uint32_t)(in->held >> (3 + padding)), size = v & 0xffff;
        if (full == 2 || (full && size))
            return LS_TOKENS_SPAN;
        if (size != (~v >> 16))
            return ls_fail(err, LS_EINVALID, (bit + 3 + padding) / 8,
                           "the length of a stored block is damaged");
        ls_event *e = event(s, type, bit);
        take(in, 3);
        e->padding = take(in, padding);
        take(in, 32);
        e->final = d->final = final;
        d->stored = size;
        d->state = IN_STORED;
        return NEXT;
    }
    if (full)
        return LS_TOKENS_SPAN;
    if (type == 3)
        return ls_fail(err, LS_EINVALID, bit / 8, "a block of the reserved type");
    ls_header h;
    take(in, 3);
    if (type == LS_EVENT_DYNAMIC) {
        int result = codes(d, in, &h, err);
        if (result != NEXT)
            return result;
    } else {
        fixed_tables(d);
    }
    ls_event *e = event(s, type, bit);
    if (type == LS_EVENT_DYNAMIC)
        s->n_bytes += ls_header_pack(&h, s->bytes + s->n_bytes);
    e->final = d->final = final;
    d->state = IN_TOKENS;
    return NEXT;
}

static int end_block(ls_tokens *d, ls_tokens_span *s) {
    const ls_event *e = &s->events[s->n_events - 1];
    sum(d, s);
    if (e->kind == LS_EVENT_STORED && !e->size && !e->final)
        d->flushed = member_size(d, s);
    d->state = d->final ? IN_TRAILER : AT_BLOCK;
    return NEXT;
}

static int no_room(const ls_tokens *d, const input *in, ls_error *err) {
    return ls_fail(err, LS_ELIMIT, where(d, in) / 8, "a deflate block is too large for a span");
}

static int stored(ls_tokens *d, ls_tokens_span *s, input *in, ls_error *err) {
    to_bytes(in);
    size_t n = in->size - in->at < d->stored ? in->size - in->at : d->stored;
    if (n > LS_TOKENS_CONTENT - s->size)
        return no_room(d, in, err);
    memcpy(s->content + s->before + s->size, in->data + in->at, n);
    in->at += n;
    s->size += n;
    s->events[s->n_events - 1].size += (uint32_t)n;
    d->stored -= (uint32_t)n;
    if (d->stored)
        return more(d, in, err);
    return end_block(d, s);
}

/* ---- tokens ------------------------------------------------------------------------------------ */

static inline void copy(uint8_t *to, uint32_t dist, uint32_t length) {
    const uint8_t *from = to - dist;
    uint8_t *end = to + length;
    if (dist >= 8) {
        do {
            memcpy(to, from, 8);
            to += 8;
            from += 8;
        } while (to < end);
    } else if (dist == 1) {
        memset(to, *from, length);
    } else {
        do {
            *to++ = *from++;
        } while (to < end);
    }
}

#define INVALID_CODE 1
#define INVALID_DIST 2
#define LONG_FORM 3

static int bad_token(const ls_tokens *d, const input *in, int what, ls_error *err) {
    if (what == LONG_FORM)
        return ls_fail(err, LS_ELIMIT, where(d, in) / 8, "a length of 258 in its longer form");
    return ls_fail(err, LS_EINVALID, where(d, in) / 8,
                   what == INVALID_CODE ? "an invalid code" : "a distance before the start");
}

/* A token of at most 48 bits out of `held`: its entry and how many bits it has; the token of a match. */
static inline uint32_t look(const uint32_t *table, uint32_t root, uint64_t held) {
    uint32_t e = table[held & ((1u << root) - 1)];
    if ((e & (ENTRY_SPECIAL | ENTRY_SUB)) == (ENTRY_SPECIAL | ENTRY_SUB))
        e = table[ENTRY_VALUE(e) + (held >> root & ((1u << ENTRY_BITS(e)) - 1))];
    return e;
}

static int tokens(ls_tokens *d, ls_tokens_span *s, input *in, ls_error *err) {
    const uint32_t *litlen = d->litlen, *dists = d->dist;
    ls_event *e = &s->events[s->n_events - 1];
    uint8_t *start = s->content + s->before, *out = start + s->size;
    uint8_t *room = start + LS_TOKENS_CONTENT;
    /* Where distances must not reach beyond. */
    const uint8_t *first = d->new_member ? start + d->member : s->content;
    ls_token *t = s->tokens + s->n_tokens, *t_room = s->tokens + LS_TOKENS_TOKENS;
    uint32_t *t_first = t;
    uint8_t *out_first = out;
    int result = LS_OK, bad = 0;

    /* Fast: at least 8 bytes of input, room for three literals and a match. */
    if (in->size - in->at >= 16 && room - out >= 300 && t_room - t >= 8) {
        const uint8_t *p = in->data + in->at, *p_end = in->data + in->size - 16;
        uint64_t held = in->held;
        uint32_t n = in->n;
        while (p <= p_end && room - out >= 300 && t_room - t >= 8) {
            held |= ls_load64(p) << n;
            p += (63 - n) >> 3;
            n |= 56;
            uint32_t x = look(litlen, LITLEN_ROOT, held);
            if (x & ENTRY_LITERAL) {
                held >>= ENTRY_BITS(x);
                n -= ENTRY_BITS(x);
                *out++ = (uint8_t)(x >> 9);
                *t++ = x >> 9 & 255;
                x = look(litlen, LITLEN_ROOT, held);
                if (x & ENTRY_LITERAL) {
                    held >>= ENTRY_BITS(x);
                    n -= ENTRY_BITS(x);
                    *out++ = (uint8_t)(x >> 9);
                    *t++ = x >> 9 & 255;
                    x = look(litlen, LITLEN_ROOT, held);
                    if (x & ENTRY_LITERAL) {
                        held >>= ENTRY_BITS(x);
                        n -= ENTRY_BITS(x);
                        *out++ = (uint8_t)(x >> 9);
                        *t++ = x >> 9 & 255;
                        continue;
                    }
                }
                /* At least 26 bits are left, and the entry is looked up again behind 56. */
                held |= ls_load64(p) << n;
                p += (63 - n) >> 3;
                n |= 56;
            }
            if (x & ENTRY_SPECIAL) {
                if (!(x & ENTRY_END)) {
                    bad = INVALID_CODE;
                    break;
                }
                held >>= ENTRY_BITS(x);
                n -= ENTRY_BITS(x);
                result = NEXT;
                break;
            }
            uint64_t v = held >> ENTRY_BITS(x);
            uint32_t extra = ENTRY_EXTRA(x);
            uint32_t length = ENTRY_VALUE(x) + (uint32_t)(v & ((1u << extra) - 1));
            v >>= extra;
            uint32_t y = look(dists, DIST_ROOT, v);
            if (y & ENTRY_SPECIAL) {
                bad = INVALID_CODE;
                break;
            }
            v >>= ENTRY_BITS(y);
            uint32_t far = ENTRY_EXTRA(y);
            uint32_t dist = ENTRY_VALUE(y) + (uint32_t)(v & ((1u << far) - 1));
            if (dist > (size_t)(out - first)) {
                bad = INVALID_DIST;
                break;
            }
            if (length == MAX_MATCH && extra) {
                bad = LONG_FORM;
                break;
            }
            held = v >> far;
            n -= ENTRY_BITS(x) + extra + ENTRY_BITS(y) + far;
            *t++ = dist << 16 | length;
            copy(out, dist, length);
            out += length;
        }
        in->at = (size_t)(p - in->data);
        in->held = held & (((uint64_t)1 << n) - 1);
        in->n = n;
    }
    /* Careful: near an end of something. */
    while (result == LS_OK && !bad) {
        fill(in);
        uint32_t x = look(litlen, LITLEN_ROOT, in->held), bits = ENTRY_BITS(x);
        if ((x & (ENTRY_SPECIAL | ENTRY_END)) == ENTRY_SPECIAL) {
            /* With all its bits there it is wrong, else it may be half a code. */
            if (in->n >= MAX_BITS)
                bad = INVALID_CODE;
            else
                result = more(d, in, err);
            break;
        }
        if (in->n < bits) {
            result = more(d, in, err);
            break;
        }
        if (x & ENTRY_END) {
            take(in, bits);
            result = NEXT;
            break;
        }
        uint32_t length = 1, dist = 0;
        if (!(x & ENTRY_LITERAL)) {
            uint32_t extra = ENTRY_EXTRA(x);
            uint64_t v = in->held >> bits;
            length = ENTRY_VALUE(x) + (uint32_t)(v & ((1u << extra) - 1));
            bits += extra;
            v >>= extra;
            uint32_t y = look(dists, DIST_ROOT, v);
            if (y & ENTRY_SPECIAL) {
                if (in->n >= bits + MAX_BITS)
                    bad = INVALID_CODE;
                else
                    result = more(d, in, err);
                break;
            }
            uint32_t far = ENTRY_EXTRA(y);
            dist = ENTRY_VALUE(y) + (uint32_t)(v >> ENTRY_BITS(y) & ((1u << far) - 1));
            bits += ENTRY_BITS(y) + far;
            if (in->n < bits) {
                result = more(d, in, err);
                break;
            }
            if (dist > (size_t)(out - first)) {
                bad = INVALID_DIST;
                break;
            }
            if (length == MAX_MATCH && extra) {
                bad = LONG_FORM;
                break;
            }
        }
        if (length > (size_t)(room - out) || t == t_room) {
            result = no_room(d, in, err);
            break;
        }
        take(in, bits);
        if (dist) {
            for (uint32_t i = 0; i < length; i++)
                out[i] = out[(ptrdiff_t)i - (ptrdiff_t)dist];
            *t++ = dist << 16 | length;
        } else {
            *out = (uint8_t)(x >> 9);
            *t++ = x >> 9 & 255;
        }
        out += length;
    }
    e->tokens += (uint32_t)(t - t_first);
    e->size += (uint32_t)(out - out_first);
    s->n_tokens += (size_t)(t - t_first);
    s->size += (size_t)(out - out_first);
    if (bad)
        return bad_token(d, in, bad, err);
    return result == NEXT ? end_block(d, s) : result;
}

/* ---- behind the blocks --------------------------------------------------------------------------- */

static int trailer(ls_tokens *d, ls_tokens_span *s, input *in, ls_error *err) {
    uint64_t bit = where(d, in);
    uint32_t padding = in->n & 7;
    fill(in);
    if (in->size - in->at + (in->n - padding) / 8 < 8)
        return more(d, in, err);
    ls_event *e = event(s, LS_EVENT_TRAILER, bit);
    e->padding = take(in, padding);
    to_bytes(in);
    const uint8_t *p = in->data + in->at;
#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    if (ls_load32(p) != d->crc)
        return ls_fail(err, LS_EINVALID, d->base + in->at, "wrong CRC");
    if (ls_load32(p + 4) != (uint32_t)member_size(d, s))
        return ls_fail(err, LS_EINVALID, d->base + in->at + 4, "wrong size in the trailer");
#endif
    e->size = 8;
    memcpy(s->bytes + s->n_bytes, p, 8);
    s->n_bytes += 8;
    in->at += 8;
    d->members = 1;
    d->state = BEHIND;
    return NEXT;
}

/* Zeros, another member, or something else up to the end. */
static int behind(ls_tokens *d, ls_tokens_span *s, size_t wanted, input *in) {
    const uint8_t *p = in->data + in->at;
    size_t n = in->size - in->at, zeros = 0;
    if (!n)
        return LS_TOKENS_MORE;
    if (s->n_events + 2 > LS_TOKENS_EVENTS)
        return LS_TOKENS_SPAN;
    while (zeros < n && !p[zeros] && zeros < 1u << 30)
        zeros++;
    if (zeros) {
        ls_event *e = s->n_events ? &s->events[s->n_events - 1] : NULL;
        if (!e || e->kind != LS_EVENT_ZEROS || e->size > 1u << 30)
            e = event(s, LS_EVENT_ZEROS, (d->base + in->at) * 8);
        e->size += (uint32_t)zeros;
        in->at += zeros;
        return NEXT;
    }
    if (n < 2 && !in->last)
        return LS_TOKENS_MORE;
    if (n >= 2 && p[0] == 0x1f && p[1] == 0x8b) {
        d->state = IN_HEADER;
        return is_full(s, wanted) ? LS_TOKENS_SPAN : NEXT;
    }
    d->state = IN_TRAILING;
    return NEXT;
}

static int trailing(ls_tokens *d, ls_tokens_span *s, input *in, ls_error *err) {
    size_t n = in->size - in->at;
    if (!n)
        return LS_TOKENS_MORE;
    if (n > LS_TOKENS_TRAILING - d->trailing)
        return ls_fail(err, LS_ELIMIT, d->base + in->at, "much lies behind the last member");
    if (s->n_bytes + n > LS_TOKENS_BYTES || s->n_events == LS_TOKENS_EVENTS)
        return s->n_events ? LS_TOKENS_SPAN
                           : ls_fail(err, LS_ELIMIT, d->base + in->at, "trailing bytes");
    ls_event *e = s->n_events ? &s->events[s->n_events - 1] : NULL;
    if (!e || e->kind != LS_EVENT_TRAILING)
        e = event(s, LS_EVENT_TRAILING, (d->base + in->at) * 8);
    memcpy(s->bytes + s->n_bytes, in->data + in->at, n);
    s->n_bytes += n;
    e->size += (uint32_t)n;
    in->at += n;
    d->trailing += n;
    return NEXT;
}

int ls_tokens_feed(ls_tokens *d, ls_tokens_span *s, size_t wanted, const uint8_t *data, size_t size,
                   int last, size_t *used, ls_error *err) {
    *used = 0;
    err->code = LS_OK;
    err->offset = 0;
    err->reason[0] = 0;
    if (d->state == DEAD)
        return ls_fail(err, LS_ESTATE, d->base, "the decoder has failed before");
    if (wanted > LS_TOKENS_CONTENT / 4)
        wanted = LS_TOKENS_CONTENT / 4;
    input in = {.data = data, .size = size, .last = last};
    int result = LS_TOKENS_MORE;
    if (d->bit) {
        if (!size)
            return last ? ls_fail(err, LS_EINVALID, d->base, "truncated") : LS_TOKENS_MORE;
        in.held = (uint64_t)data[0] >> d->bit;
        in.n = 8 - d->bit;
        in.at = 1;
    }
    do {
        /* What must come again, if it is not complete. */
        input before = in;
        uint32_t part = d->state;
        switch (part) {
        case IN_HEADER:
            result = header(d, s, &in, err);
            break;
        case AT_BLOCK:
            result = block(d, s, wanted, &in, err);
            break;
        case IN_STORED:
            result = stored(d, s, &in, err);
            break;
        case IN_TOKENS:
            result = tokens(d, s, &in, err);
            break;
        case IN_TRAILER:
            result = trailer(d, s, &in, err);
            break;
        case BEHIND:
            result = behind(d, s, wanted, &in);
            break;
        default:
            result = trailing(d, s, &in, err);
        }
        if (result < 0) {
            d->state = DEAD;
            return result;
        }
        if (result != NEXT && part != IN_STORED && part != IN_TOKENS)
            in = before;
    } while (result == NEXT);
    if (result == LS_TOKENS_MORE && d->state < BEHIND)
        sum(d, s);
    if (result == LS_TOKENS_MORE && last)
        result = LS_TOKENS_END;
    uint64_t bit = where(d, &in);
    *used = (size_t)(bit / 8 - d->base);
    d->bit = (uint32_t)(bit & 7);
    if (d->bit)
        d->carry = data[*used] & ((1u << d->bit) - 1);
    else
        d->carry = 0;
    d->base += *used;
    s->end_bit = bit;
    return result;
}
