/* model_kp4.c: klauspost/compress at level 4.
 *
 * Two tables of 2^15 positions: by 4 bytes, by 7 bytes. A long candidate is taken at once; a short one is
 * given up for a longer long one at the next position. Every third position of a match is entered. FORMAT.md,
 * "Models", has it in full. Up to 1.17 the two are compared as they should be; since 1.18 the encoder errs. */
#include "kp_impl.h"

/* Up to 1.9 the tables are of 2^16. Their places are all that differs, so they are given as such. */
typedef struct kp4_places {
    uint32_t *near, *far, bits;
} kp4_places;

#define PLACES(TYPE, BITS) ((kp4_places){((TYPE *)tables)->near, ((TYPE *)tables)->far, BITS})

INLINE int holds(const uint8_t *b, uint32_t s, uint32_t entry, uint32_t v) {
    return ls_reaches(s, entry, KP_WINDOW - 1) && le32(b + (entry - FAR)) == v;
}

INLINE int search(kp4_places k, ls_chunks *c, ls_match *m, int errs) {
    const uint8_t *b = c->b;
    uint32_t next = c->s, s, t;
    if (next + 1 > c->limit)
        return 0;
    uint64_t v = le64(b + next);
    for (;;) {
        uint32_t near = kp_hash4(v, k.bits), far = kp_hash7(v, k.bits);
        s = next;
        next = s + 1 + ((s - c->lit) >> 6);
        if (next > c->limit)
            return 0;
        uint32_t short_entry = k.near[near], long_entry = k.far[far];
        uint64_t w = le64(b + next);
        k.near[near] = k.far[far] = s + FAR;
        if (holds(b, s, long_entry, (uint32_t)v)) {
            t = long_entry - FAR;
            break;
        }
        if (holds(b, s, short_entry, (uint32_t)v)) {
            t = short_entry - FAR;
            long_entry = k.far[kp_hash7(w, k.bits)];
            if (holds(b, next, long_entry, (uint32_t)w)) {
                /* Since 1.18 the encoder means the long candidate, but reads as far behind its buffer's
                 * start as that is before `next`: which of them wins rests on what lies there. */
                uint32_t from = errs ? c->low + (next + FAR - long_entry) : long_entry - FAR;
                if (same(b, next + 4, from + 4, c->to) > same(b, s + 4, t + 4, c->to)) {
                    s = next;
                    t = long_entry - FAR;
                }
            }
            break;
        }
        v = w;
    }
    c->next = next;
    m->at = s;
    m->dist = s - t;
    m->length = 4 + same(b, s + 4, t + 4, c->to);
    kp_back(c, m);
    return 1;
}

INLINE void enter(kp4_places k, ls_chunks *c, const ls_match *m) {
    const uint8_t *b = c->b;
    uint32_t i = c->next, s = kp_behind(c, m);
    if (s >= c->limit) {
        if (s + 8 < c->to) {
            uint64_t v = le64(b + s);
            k.near[kp_hash4(v, k.bits)] = k.far[kp_hash7(v, k.bits)] = s + FAR;
        }
        return;
    }
    for (; i < s - 1; i += 3) {
        uint64_t v = le64(b + i);
        k.far[kp_hash7(v, k.bits)] = i + FAR;
        k.far[kp_hash7(v >> 8, k.bits)] = i + 1 + FAR;
        k.near[kp_hash4(v >> 8, k.bits)] = i + 1 + FAR;
    }
    uint64_t v = le64(b + s - 1);
    k.near[kp_hash4(v, k.bits)] = k.far[kp_hash7(v, k.bits)] = s - 1 + FAR;
}

#define LEVEL(NAME, TYPE, BITS, ERRS, LEAST, PIECE)                                                \
    INLINE int NAME##_find(void *tables, ls_chunks *c, ls_match *m) {                              \
        return search(PLACES(TYPE, BITS), c, m, ERRS);                                             \
    }                                                                                              \
    INLINE void NAME##_after(void *tables, ls_chunks *c, const ls_match *m) {                      \
        enter(PLACES(TYPE, BITS), c, m);                                                           \
    }                                                                                              \
    KP_DEFINE(NAME, LEAST, PIECE)

LEVEL(kp4, kp4_tables, 15, 1, SMALL_CHUNK, MAX_MATCH)
LEVEL(kp4_120, kp4_tables, 15, 1, KP_LEAST_120, MAX_MATCH)
LEVEL(kp4_115, kp4_tables, 15, 0, SMALL_CHUNK, MAX_MATCH)
LEVEL(kp4_110, kp4_tables, 15, 0, SMALL_CHUNK, KP_PIECE_OLD)
LEVEL(kp4_19, kp4_19_tables, 16, 0, SMALL_CHUNK, KP_PIECE_OLD)
