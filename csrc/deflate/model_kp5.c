/* model_kp5.c: klauspost/compress at levels 5 (pgzip's default: skopeo, podman, buildah, umoci, apko) and 6
 * (Go 1.27's default).
 *
 * Two tables of 2^15: the last position of 4 bytes, the last two of 7 bytes. At each position the newer long
 * candidate, the older one, then the short one; a short match at s is given up for a longer long match at
 * the next position (level 6: first for the last distance at s + 1). A match is then compared with one that
 * ends alike, found by what follows it, and extended backwards. Both levels search every position until
 * nothing was found for 64 (128) bytes, then wider and wider. FORMAT.md, "Models", has it in full. */
#include "kp_impl.h"

#define BITS 15
#define BITS_19 16
#define REACH KP_WINDOW

#ifdef __GNUC__
#define COLD __attribute__((noinline, cold))
#else
#define COLD
#endif

/* Both tables, whatever their size. */
typedef struct kp5_view {
    uint32_t *near;
    ls_pair *far;
} kp5_view;

INLINE kp5_view view_of(void *tables, uint32_t bits) {
    kp5_view v = {tables, (ls_pair *)((uint32_t *)tables + ((size_t)1 << bits))};
    return v;
}

/* Whether an entry is in reach of s, and the same 4 bytes stand there. */
INLINE int holds(const uint8_t *b, uint32_t s, uint32_t entry, uint32_t v) {
    return ls_reaches(s, entry, REACH - 1) && le32(b + (entry - FAR)) == v;
}

/* The same without a branch: where the entry is out of reach, s is looked at instead. */
INLINE uint32_t holds_flat(const uint8_t *b, uint32_t s, uint32_t entry, uint32_t v) {
    uint32_t back = s + FAR - entry, in = back - 1 < REACH - 1;
    uint32_t at = s - (back & (0u - in));
    return in & (uint32_t)(le32(b + at) == v);
}

/* How long a match is, of which 4 bytes are known: up to 258, to the chunk's end. */
INLINE uint32_t length_of(const ls_chunks *c, uint32_t s, uint32_t t) {
    uint32_t end = s + MAX_MATCH < c->to ? s + MAX_MATCH : c->to;
    return 4 + same(c->b, s + 4, t + 4, end);
}

/* A match that begins `skipped` bytes later than at s0 and ends where this one does, by the long hash there. */
INLINE void by_end(const ls_chunks *c, uint32_t entry, uint32_t s0, uint32_t skipped, uint32_t *s,
                   uint32_t *t, uint32_t *l) {
    int64_t other = (int64_t)entry - FAR - *l + skipped;
    int64_t dist = (int64_t)(s0 + skipped) - other;
    if (other < (int64_t)c->low || dist <= 0 || dist >= REACH)
        return;
    uint32_t longer = same(c->b, s0 + skipped, (uint32_t)other, c->to);
    if (longer > *l) {
        *l = longer;
        *s = s0 + skipped;
        *t = (uint32_t)other;
    }
}

/* How many of 32 bytes are equal, counted from the first: what both have must be there. */
INLINE uint32_t of_32(const uint8_t *b, uint32_t s, uint32_t t) {
#ifdef LS_DEFLATE_SSE2
    return (uint32_t)__builtin_ctzll(~(uint64_t)equal_of_32(b, s, t));
#else
    return same(b, s, t, s + 32);
#endif
}

/* Where a match comes from, and how long it is. */
typedef struct kp5_source {
    uint32_t t, l;
} kp5_source;

/* The longer of two matches at s, of which 4 bytes are known: the first one unless the second is longer within
 * 258 bytes; t1 == s: there is no second. Apart from the search, which seldom comes here and is faster without. */
static COLD kp5_source longest(const uint8_t *b, uint32_t to, uint32_t s, uint32_t t0,
                               uint32_t t1) {
    uint32_t end = s + MAX_MATCH < to ? s + MAX_MATCH : to;
    kp5_source x = {t0, 0};
    if (t1 != s && same(b, s + 4, t1 + 4, end) > same(b, s + 4, t0 + 4, end))
        x.t = t1;
    x.l = 4 + same(b, s + 4, x.t + 4, to);
    return x;
}

/* `level` is 5 or 6. `ends`: whether matches are compared with those that end alike, and how many bytes are
 * left out at their beginning; negative: not at all. */
INLINE int kp56_find(void *tables, ls_chunks *c, ls_match *m, int level, int ends, uint32_t bits) {
    const kp5_view view = view_of(tables, bits), *k = &view;
    const uint8_t *b = c->b;
    const uint32_t skip_log = level == 5 ? 6 : 7;
    uint32_t next = c->s, s, t, l = 0;
    if (next + 1 > c->limit)
        return 0;
    uint64_t v = le64(b + next);
    uint32_t near = kp_hash4(v, bits), far = kp_hash7(v, bits);
    for (;;) {
        s = next;
        next = s + 1 + ((s - c->lit) >> skip_log);
        if (next > c->limit)
            return 0;
        uint32_t short_entry = k->near[near];
        ls_pair long_entry = k->far[far];
        uint64_t w = le64(b + next);
        k->near[near] = s + FAR;
        k->far[far] = long_entry << 32 | (s + FAR);
        near = kp_hash4(w, bits);
        far = kp_hash7(w, bits);
        /* Most positions have nothing, for one of many reasons: one branch for all of them. */
        uint32_t back0 = s + FAR - kp_now(long_entry), back1 = s + FAR - kp_before(long_entry);
        uint32_t in0 = back0 - 1 < REACH - 1, in1 = back1 - 1 < REACH - 1;
        uint32_t t0 = s - (back0 & (0u - in0)), t1 = s - (back1 & (0u - in1));
        uint32_t has0 = in0 & (uint32_t)(le32(b + t0) == (uint32_t)v);
        uint32_t has1 = in0 & in1 & (uint32_t)(le32(b + t1) == (uint32_t)v);
        uint32_t has = has0 | has1;
        if (!(has | holds_flat(b, s, short_entry, (uint32_t)v))) {
            v = w;
            continue;
        }
        if (has) {
            k->near[near] = next + FAR;
            kp_push(&k->far[far], next + FAR);
            if (s + 32 <= c->to) {
                uint32_t l0 = of_32(b, s, t0) & (0u - has0), l1 = of_32(b, s, t1) & (0u - has1);
                t = l1 > l0 ? t1 : t0;
                l = l1 > l0 ? l1 : l0;
                if (l < 32)
                    break;
            }
            kp5_source long_one = longest(b, c->to, s, has0 ? t0 : t1, has0 & has1 ? t1 : s);
            t = long_one.t;
            l = long_one.l;
            break;
        }
        t = short_entry - FAR;
        l = length_of(c, s, t);
        long_entry = k->far[far];
        k->near[near] = next + FAR;
        kp_push(&k->far[far], next + FAR);
        if (level == 6) {
            uint32_t again = s + 1 - c->repeat;
            if (le32(b + again) == (uint32_t)(v >> 8)) {
                uint32_t other = length_of(c, s + 1, again);
                if (other > l) {
                    t = again;
                    s++;
                    l = other;
                    break;
                }
            }
        }
        if (ls_reaches(next, kp_now(long_entry), REACH - 1)) {
            if (le32(b + (kp_now(long_entry) - FAR)) == (uint32_t)w) {
                uint32_t other = length_of(c, next, kp_now(long_entry) - FAR);
                if (other > l) {
                    t = kp_now(long_entry) - FAR;
                    s = next;
                    l = other;
                    if (level == 5)
                        break;
                }
            }
            if (holds(b, next, kp_before(long_entry), (uint32_t)w)) {
                uint32_t other = length_of(c, next, kp_before(long_entry) - FAR);
                if (other > l) {
                    t = kp_before(long_entry) - FAR;
                    s = next;
                    l = other;
                }
            }
        }
        break;
    }
    c->next = next;
    if (l == MAX_MATCH)
        l += same(b, s + l, t + l, c->to);
    if (ends >= 0 && s + l < c->limit && (level == 6 || l < 30)) {
        const ls_pair e = k->far[kp_hash7(le64(b + s + l), bits)];
        uint32_t s0 = s, skipped = (uint32_t)ends;
        if (level == 5 && s0 + skipped + 32 <= c->to) {
            uint32_t back = s0 + l + FAR - kp_now(e);
            uint32_t in = (back - 1 < REACH - 1) & (back <= s0 + skipped - c->low);
            uint32_t other = s0 + skipped - (back & (0u - in));
            /* As `by_end` finds it; seldom longer, and a look at all 32 bytes leaves nothing else to be guessed. */
            if ((of_32(b, s0 + skipped, other) & (0u - in)) > l)
                by_end(c, kp_now(e), s0, skipped, &s, &t, &l);
        } else {
            int near_enough = (int64_t)s0 + l + FAR - kp_now(e) < (int64_t)REACH;
            by_end(c, kp_now(e), s0, skipped, &s, &t, &l);
            if (level == 6 && near_enough)
                by_end(c, kp_before(e), s0, skipped, &s, &t, &l);
        }
    }
    m->at = s;
    m->dist = s - t;
    m->length = l;
    kp_back(c, m);
    return 1;
}

/* Positions of a match from i on, up to its last but one. */
INLINE void kp5_enter_match(const kp5_view *k, const ls_chunks *c, uint32_t i, uint32_t s,
                            uint32_t bits) {
    const uint8_t *b = c->b;
    if (i < s - 1) {
        uint64_t v = le64(b + i);
        k->near[kp_hash4(v, bits)] = i + FAR;
        kp_push(&k->far[kp_hash7(v, bits)], i + FAR);
        kp_push(&k->far[kp_hash7(v >> 8, bits)], i + 1 + FAR);
        k->near[kp_hash4(v >> 16, bits)] = i + 2 + FAR;
        for (i += 4; i < s - 1; i += 3) {
            v = le64(b + i);
            kp_push(&k->far[kp_hash7(v, bits)], i + FAR);
            k->near[kp_hash4(v >> 8, bits)] = i + 1 + FAR;
        }
    }
}

/* Every third position of a match, about, and the one before the next search. */
INLINE void kp5_enter_all(const kp5_view *k, ls_chunks *c, const ls_match *m, uint32_t bits) {
    uint32_t s = kp_behind(c, m);
    if (s >= c->limit)
        return;
    kp5_enter_match(k, c, s - m->length + 1, s, bits);
    uint64_t v = le64(c->b + s - 1);
    k->near[kp_hash4(v, bits)] = s - 1 + FAR;
    kp_push(&k->far[kp_hash7(v, bits)], s - 1 + FAR);
}

/* From behind what the search looked at, every second short hash and every long one; at a chunk's end, up to
 * the end. */
INLINE void kp6_enter_all(const kp5_view *k, ls_chunks *c, const ls_match *m, uint32_t bits) {
    const uint8_t *b = c->b;
    uint32_t i = c->next + 1, s = kp_behind(c, m);
    c->repeat = m->dist;
    if (s >= c->limit) {
        for (; i + 8 < c->to; i += 2) {
            uint64_t v = le64(b + i);
            k->near[kp_hash4(v, bits)] = i + FAR;
            kp_push(&k->far[kp_hash7(v, bits)], i + FAR);
        }
        return;
    }
    for (; i < s - 1; i += 2) {
        uint64_t v = le64(b + i);
        ls_pair *e = &k->far[kp_hash7(v, bits)];
        ls_pair *f = &k->far[kp_hash7(v >> 8, bits)];
        k->near[kp_hash4(v, bits)] = i + FAR;
        kp_push(e, i + FAR);
        kp_push(f, i + 1 + FAR);
    }
}

INLINE void kp56_after(void *tables, ls_chunks *c, const ls_match *m, int level, uint32_t bits) {
    const kp5_view k = view_of(tables, bits);
    if (level == 5)
        kp5_enter_all(&k, c, m, bits);
    else
        kp6_enter_all(&k, c, m, bits);
}

#define KP56(NAME, LEVEL, ENDS, LEAST, PIECE, SIZE)                                                \
    INLINE int NAME##_find(void *tables, ls_chunks *c, ls_match *m) {                              \
        return kp56_find(tables, c, m, LEVEL, ENDS, SIZE);                                         \
    }                                                                                              \
    INLINE void NAME##_after(void *tables, ls_chunks *c, const ls_match *m) {                      \
        kp56_after(tables, c, m, LEVEL, SIZE);                                                     \
    }                                                                                              \
    KP_DEFINE(NAME, LEAST, PIECE)

KP56(kp5, 5, 2, SMALL_CHUNK, MAX_MATCH, BITS)
KP56(kp6, 6, 2, SMALL_CHUNK, MAX_MATCH, BITS)
KP56(kp5_19, 5, -1, SMALL_CHUNK, KP_PIECE_OLD, BITS_19)
KP56(kp6_19, 6, -1, SMALL_CHUNK, KP_PIECE_OLD, BITS_19)
KP56(kp5_110, 5, -1, SMALL_CHUNK, KP_PIECE_OLD, BITS)
KP56(kp6_110, 6, -1, SMALL_CHUNK, KP_PIECE_OLD, BITS)
KP56(kp5_112, 5, 0, SMALL_CHUNK, KP_PIECE_OLD, BITS)
KP56(kp6_112, 6, 0, SMALL_CHUNK, KP_PIECE_OLD, BITS)
KP56(kp5_115, 5, 0, SMALL_CHUNK, MAX_MATCH, BITS)
KP56(kp6_115, 6, 0, SMALL_CHUNK, MAX_MATCH, BITS)
KP56(kp5_120, 5, 2, KP_LEAST_120, MAX_MATCH, BITS)
KP56(kp6_120, 6, 2, KP_LEAST_120, MAX_MATCH, BITS)
