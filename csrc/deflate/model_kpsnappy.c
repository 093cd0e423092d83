/* model_kpsnappy.c: klauspost/compress at levels 1 to 4 up to release 1.8, whose search is Snappy's.
 *
 * A table of 2^14 by a hash of 4 bytes; the step between searches grows by one with each 32 bytes searched in
 * vain; no match is extended backwards, or beyond 258 bytes or its chunk. Level 1 begins each chunk with a
 * table that says the chunk's start everywhere; level 2 keeps it; levels 3 and 4 hold pairs of the last two
 * positions. FORMAT.md, "Models", has it in full. pgzip's pieces know nothing of each other. */
#include "kp_impl.h"

#define TABLE_BITS 14
#define STEP_AFTER 32u
#define GOOD 12u /* level 4: where a match is shorter, the older candidate is tried as well */

INLINE uint32_t hash(uint32_t v) {
    return v * 0x1e35a7bdu >> (32 - TABLE_BITS);
}

INLINE int equal(const uint8_t *b, uint32_t entry, uint32_t v) {
    return entry && le32(b + (entry - FAR)) == v;
}

/* The length of a match at s, 4 bytes of which are known to be equal. */
INLINE uint32_t length_of(const ls_chunks *c, uint32_t s, uint32_t entry) {
    uint32_t t = entry - FAR, end = s + MAX_MATCH < c->to ? s + MAX_MATCH : c->to;
    return t < c->low ? 4 : 4 + same(c->b, s + 4, t + 4, end);
}

INLINE int matched(const ls_chunks *c, ls_match *m, uint32_t s, uint32_t entry) {
    m->at = s;
    m->dist = s + FAR - entry;
    m->length = length_of(c, s, entry);
    return 1;
}

/* Takes what `after` found. */
INLINE int found_before(ls_chunks *c, ls_match *m) {
    if (!c->candidate)
        return 0;
    uint32_t entry = c->candidate;
    c->candidate = 0;
    return matched(c, m, c->s, entry);
}

/* The next position to search, unless the chunk ends before the one behind it. */
INLINE int step_on(const ls_chunks *c, uint32_t *next, uint32_t *skip, uint32_t *s) {
    *s = *next;
    *next += *skip >> 5;
    *skip += *skip >> 5;
    return *next <= c->limit;
}

/* Levels 1 and 2: one position. A table of level 1 is of offsets in the chunk, 0 where nothing was entered. */
INLINE uint32_t kp1_18_entry(const ls_chunks *c, uint32_t offset) {
    return c->from + offset + FAR;
}

INLINE int kp1_18_find(void *tables, ls_chunks *c, ls_match *m) {
    uint16_t *table = ((kp1_18_tables *)tables)->table;
    const uint8_t *b = c->b;
    if (found_before(c, m))
        return 1;
    /* The first byte of a chunk is always a literal. */
    uint32_t next = c->s > c->from ? c->s : c->from + 1, skip = STEP_AFTER;
    if (next + 1 > c->limit)
        return 0;
    for (uint32_t s; step_on(c, &next, &skip, &s);) {
        uint32_t v = le32(b + s), h = hash(v);
        uint32_t entry = kp1_18_entry(c, table[h]);
        table[h] = (uint16_t)(s - c->from);
        if (ls_reaches(s, entry, KP_WINDOW) && equal(b, entry, v))
            return matched(c, m, s, entry);
    }
    return 0;
}

INLINE void kp1_18_after(void *tables, ls_chunks *c, const ls_match *m) {
    uint16_t *table = ((kp1_18_tables *)tables)->table;
    const uint8_t *b = c->b;
    uint32_t s = m->at + m->length;
    c->s = c->lit = s;
    if (s >= c->limit)
        return;
    uint32_t v = le32(b + s), h = hash(v);
    table[hash(le32(b + s - 1))] = (uint16_t)(s - 1 - c->from);
    uint32_t entry = kp1_18_entry(c, table[h]);
    table[h] = (uint16_t)(s - c->from);
    if (ls_reaches(s, entry, KP_WINDOW) && equal(b, entry, v))
        c->candidate = entry;
    else
        c->s = s + 1;
}

INLINE void kp1_18_enter(void *tables, ls_chunks *c) {
    memset(tables, 0, sizeof(kp1_18_tables));
    c->low = c->from;
}

INLINE int kp2_18_find(void *tables, ls_chunks *c, ls_match *m) {
    uint32_t *table = ((kp2_18_tables *)tables)->table;
    const uint8_t *b = c->b;
    if (found_before(c, m))
        return 1;
    uint32_t next = c->s, skip = STEP_AFTER;
    if (next + 1 > c->limit)
        return 0;
    for (uint32_t s; step_on(c, &next, &skip, &s);) {
        uint32_t v = le32(b + s), h = hash(v);
        uint32_t entry = table[h];
        table[h] = s + FAR;
        if (ls_reaches(s, entry, KP_WINDOW) && equal(b, entry, v))
            return matched(c, m, s, entry);
    }
    return 0;
}

/* At a chunk's end the end of the match's source enters instead, if that is within the chunk. */
INLINE int source_enters(const ls_chunks *c, const ls_match *m, uint32_t *t) {
    *t = m->at - m->dist + m->length;
    return *t > c->from && *t + 4 < c->to;
}

INLINE void kp2_18_after(void *tables, ls_chunks *c, const ls_match *m) {
    uint32_t *table = ((kp2_18_tables *)tables)->table;
    const uint8_t *b = c->b;
    uint32_t s = m->at + m->length, t;
    c->s = c->lit = s;
    if (s >= c->limit) {
        if (source_enters(c, m, &t))
            table[hash(le32(b + t))] = t + FAR;
        return;
    }
    uint32_t v = le32(b + s), h = hash(v);
    table[hash(le32(b + s - 1))] = s - 1 + FAR;
    uint32_t entry = table[h];
    table[h] = s + FAR;
    if (ls_reaches(s, entry, KP_WINDOW) && equal(b, entry, v))
        c->candidate = entry;
    else
        c->s = s + 1;
}

/* Which of a pair is a match at s; 0: none. The older one counts where the newer one differs. Level 4 takes
 * it, too, where both are equal, the newer one's match is short and the older one's longer. */
INLINE uint32_t of_pair(const ls_chunks *c, ls_pair e, uint32_t s, uint32_t v, uint32_t reach,
                        int level) {
    uint32_t now = kp_now(e), before = kp_before(e);
    if (!equal(c->b, now, v))
        return ls_reaches(s, before, reach) && equal(c->b, before, v) ? before : 0;
    if (!ls_reaches(s, now, reach))
        return 0;
    if (level == 4 && ls_reaches(s, before, reach) && equal(c->b, before, v)) {
        uint32_t length = length_of(c, s, now);
        if (length < GOOD && length_of(c, s, before) > length)
            return before;
    }
    return now;
}

INLINE int kp34_18_find(ls_pair *table, ls_chunks *c, ls_match *m, int level) {
    const uint8_t *b = c->b;
    const uint32_t reach = level == 4 ? KP_WINDOW - 1 : KP_WINDOW;
    if (found_before(c, m))
        return 1;
    uint32_t next = c->s, skip = STEP_AFTER;
    if (next + 1 > c->limit)
        return 0;
    for (uint32_t s; step_on(c, &next, &skip, &s);) {
        uint32_t v = le32(b + s), h = hash(v);
        ls_pair e = table[h];
        table[h] = e << 32 | (s + FAR);
        uint32_t entry = of_pair(c, e, s, v, reach, level);
        if (entry)
            return matched(c, m, s, entry);
    }
    return 0;
}

INLINE void kp34_18_after(ls_pair *table, ls_chunks *c, const ls_match *m, int level) {
    const uint8_t *b = c->b;
    uint32_t s = m->at + m->length, t;
    c->s = c->lit = s;
    if (s >= c->limit) {
        if (source_enters(c, m, &t))
            kp_push(&table[hash(le32(b + t))], t + FAR);
        return;
    }
    for (uint32_t i = 3; i; i--)
        kp_push(&table[hash(le32(b + s - i))], s - i + FAR);
    uint32_t v = le32(b + s), h = hash(v);
    ls_pair e = table[h];
    kp_push(&table[h], s + FAR);
    c->candidate = of_pair(c, e, s, v, KP_WINDOW, level);
    if (!c->candidate)
        c->s = s + 1;
}

#define LEVEL34(NAME, N)                                                                           \
    INLINE int NAME##_find(void *tables, ls_chunks *c, ls_match *m) {                              \
        return kp34_18_find(((kp3_18_tables *)tables)->table, c, m, N);                            \
    }                                                                                              \
    INLINE void NAME##_after(void *tables, ls_chunks *c, const ls_match *m) {                      \
        kp34_18_after(((kp3_18_tables *)tables)->table, c, m, N);                                  \
    }

LEVEL34(kp3_18, 3)
LEVEL34(kp4_18, 4)

KP_DEFINE_ENTER(kp1_18, SMALL_CHUNK, MAX_MATCH, 15, kp1_18_enter)
KP_DEFINE_MARGIN(kp2_18, SMALL_CHUNK, MAX_MATCH, 7)
KP_DEFINE_MARGIN(kp3_18, SMALL_CHUNK, MAX_MATCH, 7)
KP_DEFINE_MARGIN(kp4_18, SMALL_CHUNK, MAX_MATCH, 5)
