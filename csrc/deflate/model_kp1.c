/* model_kp1.c: klauspost/compress at levels 1 to 3.
 *
 * One table by a hash of 5 bytes (4 up to 1.15.10): of 2^15 positions (level 1), 2^17 (2), 2^16 pairs of the
 * last two (3). Levels 1 and 2 look at two neighbours, then leave one out, and more the longer nothing is
 * found; level 3 looks at every position. A match is extended backwards, and what follows it is tried at
 * once. FORMAT.md, "Models", has it in full. */
#include "kp_impl.h"

#define REACH3 (KP_WINDOW - 4)
#define KP_MARGIN_3_OLD 7u

enum hash { HASH5, HASH4, HASH4_SNAPPY };

/* Level 3 of a release, newest first: since 1.15.11; 1.14.4; 1.10; 1.9. */
enum third { THIRD_115, THIRD_114, THIRD_110, THIRD_19 };

INLINE uint32_t hashed(uint64_t v, enum hash hash, uint32_t bits) {
    if (hash == HASH5)
        return kp_hash5(v, bits);
    return hash == HASH4 ? kp_hash4(v, bits) : (uint32_t)v * 0x1e35a7bdu >> (32 - bits);
}

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

INLINE int kp12_find(uint32_t *table, ls_chunks *c, ls_match *m, int level, enum hash hash,
                     uint32_t bits) {
    const uint8_t *b = c->b;
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
        uint32_t h = hashed(v, hash, bits);
        uint32_t entry = table[h];
        next = s + 2 + ((s - c->lit) >> 5);
        if (next > c->limit)
            return 0;
        uint64_t w = le64(b + next);
        table[h] = s + FAR;
        h = hashed(w, hash, bits);
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

INLINE void kp12_after(uint32_t *table, ls_chunks *c, const ls_match *m, int level, enum hash hash,
                       uint32_t bits) {
    const uint8_t *b = c->b;
    uint32_t s = kp_behind(c, m), l = m->length;
    if (s >= c->limit) {
        if (s + l + (hash == HASH5 ? 8 : 4) < c->to)
            table[hashed(le64(b + s), hash, bits)] = s + FAR;
        return;
    }
    if (level == 2) {
        for (uint32_t i = s - l + 2; i + 5 < s; i += 7) {
            uint64_t v = le64(b + i);
            table[hashed(v, hash, bits)] = i + FAR;
            table[hashed(v >> 16, hash, bits)] = i + 2 + FAR;
            table[hashed(v >> 32, hash, bits)] = i + 4 + FAR;
        }
    }
    uint64_t v = le64(b + s - 2);
    table[hashed(v, hash, bits)] = s - 2 + FAR;
    if (level == 2)
        table[hashed(v >> 8, hash, bits)] = s - 1 + FAR;
    v >>= 16;
    uint32_t h = hashed(v, hash, bits), entry = table[h];
    table[h] = s + FAR;
    if (holds(b, s, entry, (uint32_t)v, KP_WINDOW))
        c->candidate = entry;
    else
        c->s = s + 1;
}

INLINE int kp3_find_by(ls_pair *table, ls_chunks *c, ls_match *m, enum third third, enum hash hash,
                       uint32_t bits) {
    const uint8_t *b = c->b;
    const uint32_t reach = third == THIRD_19 ? KP_WINDOW : REACH3;
    const uint32_t older = third == THIRD_19 ? KP_WINDOW : REACH3 - 1;
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
        uint32_t h = hashed(v, hash, bits);
        s = next;
        next = s + 1 + ((s - c->lit) >> (third == THIRD_115 ? 7 : 6));
        if (next > c->limit)
            return 0;
        ls_pair e = table[h];
        uint64_t w = le64(b + next);
        table[h] = e << 32 | (s + FAR);
        c->next = next;
        if (ls_reaches(s, kp_now(e), reach)) {
            if (le32(b + (kp_now(e) - FAR)) == (uint32_t)v) {
                uint32_t entry = kp_now(e);
                if (holds(b, s, kp_before(e), (uint32_t)v, reach) &&
                    same(b, s + 4, kp_before(e) - FAR + 4, c->to) >
                        same(b, s + 4, kp_now(e) - FAR + 4, c->to))
                    entry = kp_before(e);
                return matched(c, m, s, entry);
            }
            if (holds(b, s, kp_before(e), (uint32_t)v, older))
                return matched(c, m, s, kp_before(e));
        }
        v = w;
    }
}

INLINE void kp3_after_by(ls_pair *table, ls_chunks *c, const ls_match *m, enum third third,
                         enum hash hash, uint32_t bits) {
    const uint8_t *b = c->b;
    const uint32_t reach = third == THIRD_19 ? KP_WINDOW : REACH3 - 1;
    uint32_t s = kp_behind(c, m), l = m->length;
    if (s >= c->limit) {
        uint32_t t = m->at - m->dist + l;
        if (t + (hash == HASH5 ? 8 : 4) < c->to && t > c->low)
            kp_push(&table[hashed(le64(b + t), hash, bits)], t + FAR);
        return;
    }
    if (third >= THIRD_110)
        kp_push(&table[hashed(le64(b + s - 3), hash, bits)], s - 3 + FAR);
    else
        for (uint32_t i = s - l + 2; i + 5 < s; i += third == THIRD_115 ? 6 : 5)
            kp_push(&table[hashed(le64(b + i), hash, bits)], i + FAR);
    uint64_t v = le64(b + s - 2);
    kp_push(&table[hashed(v, hash, bits)], s - 2 + FAR);
    kp_push(&table[hashed(v >> 8, hash, bits)], s - 1 + FAR);
    v >>= 16;
    uint32_t h = hashed(v, hash, bits);
    ls_pair e = table[h];
    kp_push(&table[h], s + FAR);
    c->s = s + 1;
    if (ls_reaches(s, kp_now(e), reach)) {
        if (le32(b + (kp_now(e) - FAR)) == (uint32_t)v)
            /* One generation passes over this one. */
            c->candidate = third == THIRD_110 ? 0 : kp_now(e);
        else if (holds(b, s, kp_before(e), (uint32_t)v, reach))
            c->candidate = kp_before(e);
        if (c->candidate)
            c->s = s;
    }
}

#define LEVEL(NAME, FIND, AFTER, TYPE, RULE, HASH, BITS, LEAST, PIECE, MARGIN)                     \
    INLINE int NAME##_find(void *tables, ls_chunks *c, ls_match *m) {                              \
        return FIND(((TYPE *)tables)->table, c, m, RULE, HASH, BITS);                              \
    }                                                                                              \
    INLINE void NAME##_after(void *tables, ls_chunks *c, const ls_match *m) {                      \
        AFTER(((TYPE *)tables)->table, c, m, RULE, HASH, BITS);                                    \
    }                                                                                              \
    KP_DEFINE_MARGIN(NAME, LEAST, PIECE, MARGIN)

#define LEVEL12(NAME, TYPE, N, HASH, BITS, LEAST, PIECE)                                           \
    LEVEL(NAME, kp12_find, kp12_after, TYPE, N, HASH, BITS, LEAST, PIECE, KP_MARGIN)
#define LEVEL3(NAME, THIRD, HASH, BITS, LEAST, PIECE, MARGIN)                                      \
    LEVEL(NAME, kp3_find_by, kp3_after_by, kp3_tables, THIRD, HASH, BITS, LEAST, PIECE, MARGIN)

LEVEL12(kp1, kp1_tables, 1, HASH5, 15, SMALL_CHUNK, MAX_MATCH)
LEVEL12(kp2, kp2_tables, 2, HASH5, 17, SMALL_CHUNK, MAX_MATCH)
LEVEL3(kp3, THIRD_115, HASH5, 16, SMALL_CHUNK, MAX_MATCH, KP_MARGIN)
LEVEL12(kp1_120, kp1_tables, 1, HASH5, 15, KP_LEAST_120, MAX_MATCH)
LEVEL12(kp2_120, kp2_tables, 2, HASH5, 17, KP_LEAST_120, MAX_MATCH)
LEVEL3(kp3_120, THIRD_115, HASH5, 16, KP_LEAST_120, MAX_MATCH, KP_MARGIN)
LEVEL12(kp1_115, kp1_tables, 1, HASH4_SNAPPY, 15, SMALL_CHUNK, MAX_MATCH)
LEVEL12(kp2_115, kp2_tables, 2, HASH4, 17, SMALL_CHUNK, MAX_MATCH)
LEVEL3(kp3_115, THIRD_114, HASH4, 16, SMALL_CHUNK, MAX_MATCH, KP_MARGIN_3_OLD)
LEVEL3(kp3_114, THIRD_114, HASH4, 16, SMALL_CHUNK, KP_PIECE_OLD, KP_MARGIN_3_OLD)
LEVEL12(kp1_110, kp1_tables, 1, HASH4_SNAPPY, 15, SMALL_CHUNK, KP_PIECE_OLD)
LEVEL12(kp2_110, kp2_tables, 2, HASH4, 17, SMALL_CHUNK, KP_PIECE_OLD)
LEVEL3(kp3_110, THIRD_110, HASH4_SNAPPY, 15, SMALL_CHUNK, KP_PIECE_OLD, KP_MARGIN_3_OLD)
LEVEL12(kp1_19, kp1_19_tables, 1, HASH4_SNAPPY, 16, SMALL_CHUNK, KP_PIECE_OLD)
LEVEL12(kp2_19, kp2_19_tables, 2, HASH4, 18, SMALL_CHUNK, KP_PIECE_OLD)
LEVEL3(kp3_19, THIRD_19, HASH4_SNAPPY, 16, SMALL_CHUNK, KP_PIECE_OLD, KP_MARGIN_3_OLD)
