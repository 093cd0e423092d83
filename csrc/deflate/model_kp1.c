/* model_kp1.c: klauspost/compress at levels 1 to 3.
 *
 * One table by a hash of 5 bytes: of 2^15 positions (level 1), 2^17 (2), 2^16 pairs of the last two (3).
 * Levels 1 and 2 look at two neighbours, then leave one out, and more the longer nothing is found; level 3
 * looks at every position. A match is extended backwards, and what follows it is tried at once. FORMAT.md,
 * "Models", has it in full. */
#include "kp_impl.h"

#define BITS1 15
#define BITS2 17
#define BITS3 16
#define REACH3 (KP_WINDOW - 4)

INLINE int holds(const uint8_t *b, uint32_t s, uint32_t entry, uint32_t v, uint32_t reach) {
    return ls_reaches(s, entry, reach) && le32(b + (entry - FAR)) == v;
}

INLINE int matched(ls_chunks *c, ls_match *m, uint32_t s, uint32_t entry) {
    uint32_t t = entry - FAR;
    m->at = s;
    m->dist = s - t;
    m->length = 4 + same(c->b, s + 4, t + 4, c->to);
    kp_back(c, m);
    return 1;
}

INLINE int kp12_find(uint32_t *table, ls_chunks *c, ls_match *m, int level) {
    const uint8_t *b = c->b;
    const uint32_t bits = level == 1 ? BITS1 : BITS2;
    if (c->candidate) {
        uint32_t entry = c->candidate;
        c->candidate = 0;
        return matched(c, m, c->s, entry);
    }
    uint32_t s = c->s, next;
    if (s + 2 > c->limit)
        return 0;
    uint64_t v = le64(b + s);
    for (;;) {
        uint32_t h = kp_hash5(v, bits);
        uint32_t entry = table[h];
        next = s + 2 + ((s - c->lit) >> 5);
        if (next > c->limit)
            return 0;
        uint64_t w = le64(b + next);
        table[h] = s + FAR;
        h = kp_hash5(w, bits);
        if (holds(b, s, entry, (uint32_t)v, KP_WINDOW - 1)) {
            table[h] = next + FAR;
            c->next = next;
            return matched(c, m, s, entry);
        }
        v = w;
        s = next++;
        entry = table[h];
        w >>= 8;
        table[h] = s + FAR;
        if (holds(b, s, entry, (uint32_t)v, KP_WINDOW - 1)) {
            if (level == 1)
                table[h] = next + FAR;
            c->next = next;
            return matched(c, m, s, entry);
        }
        v = w;
        s = next;
    }
}

INLINE int kp1_find(void *tables, ls_chunks *c, ls_match *m) {
    return kp12_find(((kp1_tables *)tables)->table, c, m, 1);
}

INLINE int kp2_find(void *tables, ls_chunks *c, ls_match *m) {
    return kp12_find(((kp2_tables *)tables)->table, c, m, 2);
}

INLINE void kp12_after(uint32_t *table, ls_chunks *c, const ls_match *m, int level) {
    const uint8_t *b = c->b;
    const uint32_t bits = level == 1 ? BITS1 : BITS2;
    uint32_t s = kp_behind(c, m), l = m->length;
    if (s >= c->limit) {
        if (s + l + 8 < c->to)
            table[kp_hash5(le64(b + s), bits)] = s + FAR;
        return;
    }
    if (level == 2) {
        for (uint32_t i = s - l + 2; i + 5 < s; i += 7) {
            uint64_t v = le64(b + i);
            table[kp_hash5(v, bits)] = i + FAR;
            table[kp_hash5(v >> 16, bits)] = i + 2 + FAR;
            table[kp_hash5(v >> 32, bits)] = i + 4 + FAR;
        }
    }
    uint64_t v = le64(b + s - 2);
    table[kp_hash5(v, bits)] = s - 2 + FAR;
    if (level == 2)
        table[kp_hash5(v >> 8, bits)] = s - 1 + FAR;
    v >>= 16;
    uint32_t h = kp_hash5(v, bits), entry = table[h];
    table[h] = s + FAR;
    if (holds(b, s, entry, (uint32_t)v, KP_WINDOW))
        c->candidate = entry;
    else
        c->s = s + 1;
}

INLINE void kp1_after(void *tables, ls_chunks *c, const ls_match *m) {
    kp12_after(((kp1_tables *)tables)->table, c, m, 1);
}

INLINE void kp2_after(void *tables, ls_chunks *c, const ls_match *m) {
    kp12_after(((kp2_tables *)tables)->table, c, m, 2);
}

INLINE int kp3_find(void *tables, ls_chunks *c, ls_match *m) {
    kp3_tables *k = tables;
    const uint8_t *b = c->b;
    if (c->candidate) {
        uint32_t entry = c->candidate;
        c->candidate = 0;
        return matched(c, m, c->s, entry);
    }
    uint32_t next = c->s, s;
    if (next + 1 > c->limit)
        return 0;
    uint64_t v = le64(b + next);
    for (;;) {
        uint32_t h = kp_hash5(v, BITS3);
        s = next;
        next = s + 1 + ((s - c->lit) >> 7);
        if (next > c->limit)
            return 0;
        ls_pair e = k->table[h];
        uint64_t w = le64(b + next);
        k->table[h] = e << 32 | (s + FAR);
        c->next = next;
        if (ls_reaches(s, kp_now(e), REACH3)) {
            if (le32(b + (kp_now(e) - FAR)) == (uint32_t)v) {
                uint32_t entry = kp_now(e);
                if (holds(b, s, kp_before(e), (uint32_t)v, REACH3) &&
                    same(b, s + 4, kp_before(e) - FAR + 4, c->to) >
                        same(b, s + 4, kp_now(e) - FAR + 4, c->to))
                    entry = kp_before(e);
                return matched(c, m, s, entry);
            }
            if (holds(b, s, kp_before(e), (uint32_t)v, REACH3 - 1))
                return matched(c, m, s, kp_before(e));
        }
        v = w;
    }
}

INLINE void kp3_after(void *tables, ls_chunks *c, const ls_match *m) {
    kp3_tables *k = tables;
    const uint8_t *b = c->b;
    uint32_t s = kp_behind(c, m), l = m->length;
    if (s >= c->limit) {
        uint32_t t = m->at - m->dist + l;
        if (t + 8 < c->to && t > c->low)
            kp_push(&k->table[kp_hash5(le64(b + t), BITS3)], t + FAR);
        return;
    }
    for (uint32_t i = s - l + 2; i + 5 < s; i += 6)
        kp_push(&k->table[kp_hash5(le64(b + i), BITS3)], i + FAR);
    uint64_t v = le64(b + s - 2);
    kp_push(&k->table[kp_hash5(v, BITS3)], s - 2 + FAR);
    kp_push(&k->table[kp_hash5(v >> 8, BITS3)], s - 1 + FAR);
    v >>= 16;
    uint32_t h = kp_hash5(v, BITS3);
    ls_pair e = k->table[h];
    kp_push(&k->table[h], s + FAR);
    c->s = s + 1;
    if (ls_reaches(s, kp_now(e), REACH3 - 1)) {
        if (le32(b + (kp_now(e) - FAR)) == (uint32_t)v)
            c->candidate = kp_now(e);
        else if (holds(b, s, kp_before(e), (uint32_t)v, REACH3 - 1))
            c->candidate = kp_before(e);
        if (c->candidate)
            c->s = s;
    }
}

KP_DEFINE(kp1, SMALL_CHUNK, MAX_MATCH)
KP_DEFINE(kp2, SMALL_CHUNK, MAX_MATCH)
KP_DEFINE(kp3, SMALL_CHUNK, MAX_MATCH)

INLINE int kp1_120_find(void *tables, ls_chunks *c, ls_match *m) {
    return kp1_find(tables, c, m);
}

INLINE void kp1_120_after(void *tables, ls_chunks *c, const ls_match *m) {
    kp1_after(tables, c, m);
}

INLINE int kp2_120_find(void *tables, ls_chunks *c, ls_match *m) {
    return kp2_find(tables, c, m);
}

INLINE void kp2_120_after(void *tables, ls_chunks *c, const ls_match *m) {
    kp2_after(tables, c, m);
}

INLINE int kp3_120_find(void *tables, ls_chunks *c, ls_match *m) {
    return kp3_find(tables, c, m);
}

INLINE void kp3_120_after(void *tables, ls_chunks *c, const ls_match *m) {
    kp3_after(tables, c, m);
}

KP_DEFINE(kp1_120, KP_LEAST_120, MAX_MATCH)
KP_DEFINE(kp2_120, KP_LEAST_120, MAX_MATCH)
KP_DEFINE(kp3_120, KP_LEAST_120, MAX_MATCH)
