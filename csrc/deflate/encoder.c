/* encoder.c: "ls-deflate 1", a deflate encoder that never changes (RFC 1951).
 *
 * Content is encoded in pieces that know nothing of each other but the LS_DEFLATE_WINDOW bytes of
 * content before them, so that any of them can be made again alone, and all of them at once. A piece
 * ends on a byte: with its final block if it is the last, else with an empty stored block. Which bytes
 * come out depends on content and level alone: there is one path for every CPU, and no clock, no
 * address and no number of threads has a say. All of it is part of the store's format: FORMAT.md,
 * section 15, describes it well enough to write it again, and vectors in the tests hold it.
 *
 * Theory of operation. Tokens are found with two tables: positions by the hash of their next 4 bytes,
 * as chains, newest first; and, from level 4 on, the newest position by the hash of 3 bytes. The
 * parse is greedy up to level 3, lazy above: a match waits for the next position (the next two from
 * level 8 on) to do better. Every SEGMENT tokens an estimate of their entropy says whether they go on
 * with the block or begin a new one.
 *
 * Cost: `sizeof(ls_deflate)` (0.6 MB) of the caller's memory; a call is bounded by the level's chain
 * length times the size. Nothing is allocated. */
#include <string.h>

#include "deflate_impl.h"

#define NEAR_BITS 14
#define CHAIN_BITS 15
#define SEGMENT 2048
#define BLOCK_TOKENS 65536
#define HEADER_COST 800
#define BORING 256
#define MOST_UNSEEN 15
#define MAX_DISTANCE (LS_DEFLATE_WINDOW - 1)
#define NOWHERE ((int32_t)0x80808080) /* before any window, and what memset can write */
#define MULTIPLIER 0x9e3779b1u

struct ls_deflate {
    int32_t head[1 << CHAIN_BITS];
    int32_t next[LS_DEFLATE_WINDOW];
    int32_t near[1 << NEAR_BITS];
    ls_token tokens[BLOCK_TOKENS + MOST_UNSEEN + 1];
    ls_counts block, segment;
    ls_block_work work;
};

typedef struct level {
    uint16_t chain; /* positions looked at for one match */
    uint16_t nice;  /* a match of this length is taken at once */
    uint16_t lazy;  /* a match of this length does not wait */
    uint16_t waits; /* 0: greedy; 1 or 2: positions that a match waits for */
} level;

static const level levels[10] = {
    {0, 0, 0, 0},    {1, 32, 0, 0},    {4, 32, 0, 0},     {16, 64, 0, 0},     {8, 32, 16, 1},
    {16, 64, 32, 1}, {32, 128, 64, 1}, {80, 258, 128, 1}, {160, 258, 258, 2}, {600, 258, 258, 2},
};

typedef struct match {
    uint32_t length; /* 0: none */
    uint32_t dist;
} match;

/* One piece at work: what `data` holds from `before` bytes ahead of the piece to its end. */
typedef struct piece {
    ls_deflate *s;
    const uint8_t *data;
    int32_t size;   /* of `data` */
    int32_t last;   /* behind the last position with 4 bytes to hash */
    int32_t filled; /* positions below are in the tables */
    level how;
    uint32_t n, n_segment;        /* tokens of the block, the segment's behind them */
    int32_t block_at, segment_at; /* where their content begins */
    int32_t at;                   /* content that has become tokens */
    uint32_t misses;              /* literals since the last match */
    uint64_t block_cost;
    ls_bits bits;
    const uint8_t *end;
} piece;

static uint32_t load32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t hash4(uint32_t v) {
    return v * MULTIPLIER >> (32 - CHAIN_BITS);
}

static uint32_t hash3(uint32_t v) {
    return (v << 8) * MULTIPLIER >> (32 - NEAR_BITS);
}

/* ---- finding matches ------------------------------------------------------------------------- */

/* Puts positions up to `end` into the tables. */
static void fill(piece *p, int32_t end) {
    ls_deflate *s = p->s;
    int32_t at = p->filled;
    if (at >= end)
        return;
    p->filled = end;
    if (end > p->last)
        end = p->last;
    if (p->how.waits) {
        for (; at < end; at++) {
            uint32_t v = load32(p->data + at), h = hash4(v);
            s->next[at & (LS_DEFLATE_WINDOW - 1)] = s->head[h];
            s->head[h] = at;
            s->near[hash3(v)] = at;
        }
    } else {
        for (; at < end; at++) {
            uint32_t h = hash4(load32(p->data + at));
            s->next[at & (LS_DEFLATE_WINDOW - 1)] = s->head[h];
            s->head[h] = at;
        }
    }
}

/* The best match at `at` that is longer than `least`, within `chain` positions; it enters `at` into the
 * tables. */
static match find(piece *p, int32_t at, uint32_t least, uint32_t chain) {
    match best = {0, 0};
    fill(p, at);
    if (at >= p->last)
        return best;
    ls_deflate *s = p->s;
    const uint8_t *here = p->data + at;
    uint32_t v = load32(here), h = hash4(v);
    int32_t c = s->head[h], oldest = at - MAX_DISTANCE;
    s->next[at & (LS_DEFLATE_WINDOW - 1)] = c;
    s->head[h] = at;
    p->filled = at + 1;
    uint32_t most = p->size - at < MAX_MATCH ? (uint32_t)(p->size - at) : MAX_MATCH;
    if (p->how.waits) {
        uint32_t h3 = hash3(v);
        int32_t near = s->near[h3];
        s->near[h3] = at;
        if (least < MIN_MATCH && near >= at - 4096 && near >= oldest &&
            ((load32(p->data + near) ^ v) & 0xffffff) == 0) {
            best.length = MIN_MATCH;
            best.dist = (uint32_t)(at - near);
        }
    }
    uint32_t length = least > MIN_MATCH ? least : MIN_MATCH;
    if (length >= most)
        return best;
    uint32_t nice = p->how.nice < most ? p->how.nice : most;
    /* The last 4 bytes of a match that would be longer: they decide soonest. */
    uint32_t tail = load32(here + length - 3);
    for (; c >= oldest && chain; chain--, c = s->next[c & (LS_DEFLATE_WINDOW - 1)]) {
        const uint8_t *there = p->data + c;
        if (load32(there + length - 3) != tail || load32(there) != v)
            continue;
        uint32_t n = 4 + ls_common(here + 4, there + 4, most - 4);
        if (n > length) {
            length = n;
            best.length = n;
            best.dist = (uint32_t)(at - c);
            if (n >= nice)
                break;
            tail = load32(here + length - 3);
        }
    }
    return best;
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* About 256 log2(x), for x of at least 1. */
static uint32_t log2_of(uint32_t x) {
    uint32_t k = ls_log2_floor(x);
    uint32_t f = (k >= 8 ? x >> (k - 8) : x << (8 - k)) & 255;
    return 256 * k + f + (88 * f * (256 - f) >> 16);
}

/* Bits by 256 that the counts of one or two rows together need at least, about. */
static uint64_t entropy(const uint32_t *a, const uint32_t *b, uint32_t n) {
    uint64_t sum = 0, all = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t c = a[i] + (b ? b[i] : 0);
        if (c) {
            all += c;
            sum += (uint64_t)c * log2_of(c);
        }
    }
    return all ? all * log2_of((uint32_t)all) - sum : 0;
}

static uint64_t cost(const ls_counts *a, const ls_counts *b) {
    return entropy(a->litlen, b ? b->litlen : NULL, LITLEN_SYMBOLS) +
           entropy(a->dist, b ? b->dist : NULL, DIST_SYMBOLS);
}

static int write_block(piece *p, int final) {
    ls_deflate *s = p->s;
    int result = ls_block_write(&s->work, s->tokens, p->n, &s->block, p->data + p->block_at,
                                (size_t)(p->segment_at - p->block_at), final, &p->bits, p->end);
    memmove(s->tokens, s->tokens + p->n, p->n_segment * sizeof *s->tokens);
    memset(&s->block, 0, sizeof s->block);
    p->n = 0;
    p->block_at = p->segment_at;
    return result;
}

/* The segment is full, or the piece ends: it joins the block, or the block ends before it. */
static int end_segment(piece *p) {
    ls_deflate *s = p->s;
    int result = LS_OK;
    uint64_t alone = cost(&s->segment, NULL), both = p->n ? cost(&s->block, &s->segment) : alone;
    if (p->n && (p->n + p->n_segment > BLOCK_TOKENS - SEGMENT ||
                 both > p->block_cost + alone + 256 * HEADER_COST)) {
        result = write_block(p, 0);
        both = alone;
    }
    p->block_cost = both;
    for (uint32_t i = 0; i < LITLEN_SYMBOLS; i++)
        s->block.litlen[i] += s->segment.litlen[i];
    for (uint32_t i = 0; i < DIST_SYMBOLS; i++)
        s->block.dist[i] += s->segment.dist[i];
    memset(&s->segment, 0, sizeof s->segment);
    p->n += p->n_segment;
    p->n_segment = 0;
    p->segment_at = p->at;
    return result;
}

static void literal(piece *p) {
    uint8_t byte = p->data[p->at++];
    p->s->tokens[p->n + p->n_segment++] = byte;
    p->s->segment.litlen[byte]++;
}

/* A literal where nothing was found. Where nothing has been found for long, more follow unlooked. */
static void miss(piece *p) {
    literal(p);
    uint32_t more = p->misses++ / BORING;
    for (more = more < MOST_UNSEEN ? more : MOST_UNSEEN; more && p->at < p->size; more--)
        literal(p);
}

static void copy(piece *p, match m) {
    p->misses = 0;
    p->at += (int32_t)m.length;
    p->s->tokens[p->n + p->n_segment++] = m.dist << 16 | m.length;
    p->s->segment.litlen[257 + ls_length_symbol[m.length]]++;
    p->s->segment.dist[ls_dist_symbol(m.dist)]++;
}

/* ---- parsing --------------------------------------------------------------------------------- */

static int greedy(piece *p) {
    int result = LS_OK;
    while (p->at < p->size && result == LS_OK) {
        match m = find(p, p->at, MIN_MATCH, p->how.chain);
        if (m.length)
            copy(p, m);
        else
            miss(p);
        if (p->n_segment >= SEGMENT)
            result = end_segment(p);
    }
    return result;
}

/* What a match saves, in quarters of a literal or so. */
static int32_t worth(match m) {
    return 4 * (int32_t)m.length - (int32_t)ls_log2_floor(m.dist);
}

static int lazy(piece *p) {
    int result = LS_OK;
    while (p->at < p->size && result == LS_OK) {
        match m = find(p, p->at, 2, p->how.chain);
        while (m.length && m.length < p->how.lazy) {
            /* A literal, and then something that is worth more than the literal costs? */
            match later = find(p, p->at + 1, m.length - 1, p->how.chain / 2);
            if (later.length && worth(later) > worth(m) + 2) {
                literal(p);
                m = later;
                continue;
            }
            if (p->how.waits < 2)
                break;
            later = find(p, p->at + 2, m.length, p->how.chain / 4);
            if (!later.length || worth(later) <= worth(m) + 6)
                break;
            literal(p);
            literal(p);
            m = later;
        }
        if (m.length)
            copy(p, m);
        else
            miss(p);
        if (p->n_segment >= SEGMENT)
            result = end_segment(p);
    }
    return result;
}

/* ---- the face -------------------------------------------------------------------------------- */

size_t ls_deflate_sizeof(void) {
    return sizeof(ls_deflate);
}

size_t ls_deflate_bound(size_t size) {
    /* Stored, with a block a segment, and what is written past the end of a word. */
    return size + 6 * (size / SEGMENT + size / 65535 + 2) + 32;
}

int ls_deflate_piece(ls_deflate *s, int how, const uint8_t *data, size_t before, size_t size,
                     int final, uint8_t *out, size_t out_size, size_t *out_len, ls_error *err) {
    *out_len = 0;
    err->code = LS_OK;
    err->offset = 0;
    err->reason[0] = 0;
    if (how < 1 || how > 9 || before > LS_DEFLATE_WINDOW || size > LS_DEFLATE_PIECE ||
        out_size < ls_deflate_bound(size)) {
        err->code = out_size < ls_deflate_bound(size) ? LS_ESPACE : LS_EINVALID;
        memcpy(err->reason, "level, piece or room out of range",
               sizeof "level, piece or room out of range");
        return err->code;
    }
    memset(s->head, 0x80, sizeof s->head);
    memset(s->near, 0x80, sizeof s->near);
    memset(&s->block, 0, sizeof s->block);
    memset(&s->segment, 0, sizeof s->segment);
    piece p = {.s = s, .data = data, .size = (int32_t)(before + size), .how = levels[how]};
    p.last = p.size < 4 ? 0 : p.size - 3;
    p.at = p.block_at = p.segment_at = (int32_t)before;
    p.bits.at = out;
    p.end = out + out_size;
    int result = p.how.waits ? lazy(&p) : greedy(&p);
    if (result == LS_OK)
        result = end_segment(&p);
    if (result == LS_OK && (p.n || final))
        result = write_block(&p, final);
    if (result != LS_OK) {
        err->code = result;
        err->offset = (uint64_t)p.at;
        return result;
    }
    if (!final) {
        ls_bits_put(&p.bits, 0, 3);
        ls_bits_align(&p.bits);
        ls_bits_put(&p.bits, 0xffff0000u, 32);
    }
    ls_bits_align(&p.bits);
    *out_len = (size_t)(p.bits.at - out);
    return LS_OK;
}
