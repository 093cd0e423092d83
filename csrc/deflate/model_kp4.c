/* model_kp4.c: klauspost/compress at level 4.
 *
 * Two tables of 2^15 positions: by 4 bytes, by 7 bytes. A long candidate is taken at once; a short one is
 * given up for a longer long one at the next position. Every third position of a match is entered. FORMAT.md,
 * "Models", has it in full. */
#include "kp_impl.h"

#define TABLE_BITS 15

INLINE int holds(const uint8_t *b, uint32_t s, uint32_t entry, uint32_t v) {
    return ls_reaches(s, entry, KP_WINDOW - 1) && le32(b + (entry - FAR)) == v;
}

INLINE int kp4_find(void *tables, ls_chunks *c, ls_match *m) {
    kp4_tables *k = tables;
    const uint8_t *b = c->b;
    uint32_t next = c->s, s, t;
    if (next + 1 > c->limit)
        return 0;
    uint64_t v = le64(b + next);
    for (;;) {
        uint32_t near = kp_hash4(v, TABLE_BITS), far = kp_hash7(v, TABLE_BITS);
        s = next;
        next = s + 1 + ((s - c->lit) >> 6);
        if (next > c->limit)
            return 0;
        uint32_t short_entry = k->near[near], long_entry = k->far[far];
        uint64_t w = le64(b + next);
        k->near[near] = k->far[far] = s + FAR;
        if (holds(b, s, long_entry, (uint32_t)v)) {
            t = long_entry - FAR;
            break;
        }
        if (holds(b, s, short_entry, (uint32_t)v)) {
            t = short_entry - FAR;
            long_entry = k->far[kp_hash7(w, TABLE_BITS)];
            /* The encoder means the long candidate, but reads as far behind its buffer's start as that
             * is before `next`: which of them wins rests on what lies there. */
            if (holds(b, next, long_entry, (uint32_t)w) &&
                same(b, next + 4, c->low + (next + FAR - long_entry) + 4, c->to) >
                    same(b, s + 4, t + 4, c->to)) {
                s = next;
                t = long_entry - FAR;
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

INLINE void kp4_after(void *tables, ls_chunks *c, const ls_match *m) {
    kp4_tables *k = tables;
    const uint8_t *b = c->b;
    uint32_t i = c->next, s = kp_behind(c, m);
    if (s >= c->limit) {
        if (s + 8 < c->to) {
            uint64_t v = le64(b + s);
            k->near[kp_hash4(v, TABLE_BITS)] = k->far[kp_hash7(v, TABLE_BITS)] = s + FAR;
        }
        return;
    }
    for (; i < s - 1; i += 3) {
        uint64_t v = le64(b + i);
        k->far[kp_hash7(v, TABLE_BITS)] = i + FAR;
        k->far[kp_hash7(v >> 8, TABLE_BITS)] = i + 1 + FAR;
        k->near[kp_hash4(v >> 8, TABLE_BITS)] = i + 1 + FAR;
    }
    uint64_t v = le64(b + s - 1);
    k->near[kp_hash4(v, TABLE_BITS)] = k->far[kp_hash7(v, TABLE_BITS)] = s - 1 + FAR;
}

INLINE int kp4_120_find(void *tables, ls_chunks *c, ls_match *m) {
    return kp4_find(tables, c, m);
}

INLINE void kp4_120_after(void *tables, ls_chunks *c, const ls_match *m) {
    kp4_after(tables, c, m);
}

KP_DEFINE(kp4, SMALL_CHUNK, MAX_MATCH)
KP_DEFINE(kp4_120, KP_LEAST_120, MAX_MATCH)
