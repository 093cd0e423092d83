/* kp_impl.h: what the models of klauspost/compress's levels share: hashes, how their history begins, and how
 * the files of the levels become members of ls_model. */
#ifndef LS_DEFLATE_KP_IMPL_H
#define LS_DEFLATE_KP_IMPL_H

#include "chunks.h"

#define KP_MARGIN 11u
#define KP_DICTIONARY 16384u
#define KP_BUFFER (5 * CHUNK)
#define KP_WARM_CHUNKS 4u
#define KP_HISTORY (KP_BUFFER)
#define KP_WINDOW 32768u
#define KP_PIECE_OLD (MAX_MATCH - MIN_MATCH) /* before 1.15 */
#define KP_LEAST_120 13u                     /* from 1.20.1 on */

/* Two positions + FAR: the last one, and above it the one before. One number, so that it is read and written
 * at once. */
typedef uint64_t ls_pair;

INLINE uint32_t kp_now(ls_pair p) {
    return (uint32_t)p;
}

INLINE uint32_t kp_before(ls_pair p) {
    return (uint32_t)(p >> 32);
}

INLINE uint32_t kp_hash4(uint64_t v, uint32_t bits) {
    return (uint32_t)v * 2654435761u >> (32 - bits);
}

INLINE uint32_t kp_hash5(uint64_t v, uint32_t bits) {
    return (uint32_t)((v << 24) * UINT64_C(889523592379) >> (64 - bits));
}

INLINE uint32_t kp_hash7(uint64_t v, uint32_t bits) {
    return (uint32_t)((v << 8) * UINT64_C(58295818150454627) >> (64 - bits));
}

INLINE void kp_push(ls_pair *p, uint32_t entry) {
    *p = *p << 32 | entry;
}

/* Extends a match backwards, over literals that are not written yet. */
INLINE void kp_back(const ls_chunks *c, ls_match *m) {
    uint32_t s = m->at, t = s - m->dist, least = c->lit > c->at ? c->lit : c->at;
    while (t > c->low && s > least && c->b[t - 1] == c->b[s - 1]) {
        s--;
        t--;
    }
    m->length += m->at - s;
    m->at = s;
}

/* Where the search goes on behind a match: not before what was looked at already. */
INLINE uint32_t kp_behind(ls_chunks *c, const ls_match *m) {
    uint32_t s = m->at + m->length;
    c->lit = s;
    if (c->next >= s)
        s = c->next + 1;
    c->s = s;
    return s;
}

/* The encoder keeps five chunks; when the next one does not fit, the last 32 KiB move to the front, and what
 * was before can not be reached any more. */
INLINE void kp_enter(void *tables, ls_chunks *c) {
    (void)tables;
    int64_t start = c->flush - (int64_t)c->dictionary, low = start;
    if ((int64_t)c->from >= c->flush) {
        int64_t k = ((int64_t)c->from - c->flush) / CHUNK, first = c->dictionary ? 4 : 5;
        if (k >= first) {
            int64_t moved = first + (k - first) / 4 * 4;
            int64_t room = moved > first || !c->dictionary ? KP_WINDOW : KP_DICTIONARY;
            /* A last chunk that is short may still fit. */
            if (moved == k) {
                int64_t held = moved == first ? (int64_t)c->dictionary + first * CHUNK
                                              : room + 4 * (int64_t)CHUNK;
                if (held + (int64_t)(c->to - c->from) <= (int64_t)KP_BUFFER)
                    moved = moved == first ? 0 : moved - 4;
            }
            if (moved)
                low = c->flush + moved * CHUNK - (int64_t)KP_WINDOW;
        }
    }
    c->low = low < 0 ? 0 : (uint32_t)low;
}

/* Begins a span: how much history is encoded again. */
uint32_t ls_kp_begin(const ls_model *model, ls_chunks *c, const ls_span *span);

/* What a level has besides its walk. */
typedef struct kp1_tables {
    uint32_t table[1 << 15];
} kp1_tables;

typedef struct kp1_19_tables {
    uint32_t table[1 << 16];
} kp1_19_tables;

typedef struct kp2_tables {
    uint32_t table[1 << 17];
} kp2_tables;

typedef struct kp2_19_tables {
    uint32_t table[1 << 18];
} kp2_19_tables;

typedef struct kp3_tables {
    ls_pair table[1 << 16];
} kp3_tables;

typedef struct kp4_tables {
    uint32_t near[1 << 15], far[1 << 15];
} kp4_tables;

typedef struct kp4_19_tables {
    uint32_t near[1 << 16], far[1 << 16];
} kp4_19_tables;

typedef struct kp5_tables {
    uint32_t near[1 << 15];
    ls_pair far[1 << 15];
} kp5_tables;

typedef struct kp5_19_tables {
    uint32_t near[1 << 16];
    ls_pair far[1 << 16];
} kp5_19_tables;

/* Up to 1.8. */
typedef struct kp1_18_tables {
    uint16_t table[1 << 14];
} kp1_18_tables;

typedef struct kp2_18_tables {
    uint32_t table[1 << 14];
} kp2_18_tables;

typedef struct kp3_18_tables {
    ls_pair table[1 << 14];
} kp3_18_tables;

/* What a level's file gives to the table of models. */
#define KP_DECLARE(NAME, TABLES)                                                                   \
    typedef struct NAME##_state {                                                                  \
        ls_chunks c;                                                                               \
        uint32_t span_at;                                                                          \
        TABLES tables, spare;                                                                      \
    } NAME##_state;                                                                                \
    void ls_##NAME##_begin(const ls_model *model, void *state, const ls_span *span);               \
    int ls_##NAME##_verify(const ls_model *model, void *state, ls_asking *a);                      \
    int ls_##NAME##_make(const ls_model *model, void *state, ls_asking *a, size_t count,           \
                         size_t until);                                                            \
    int ls_##NAME##_skip(const ls_model *model, void *state, size_t size)

KP_DECLARE(kp1, kp1_tables);
KP_DECLARE(kp2, kp2_tables);
KP_DECLARE(kp3, kp3_tables);
KP_DECLARE(kp4, kp4_tables);
KP_DECLARE(kp5, kp5_tables);
KP_DECLARE(kp6, kp5_tables);
KP_DECLARE(kp5_19, kp5_19_tables);
KP_DECLARE(kp6_19, kp5_19_tables);
KP_DECLARE(kp5_110, kp5_tables);
KP_DECLARE(kp6_110, kp5_tables);
KP_DECLARE(kp5_112, kp5_tables);
KP_DECLARE(kp6_112, kp5_tables);
KP_DECLARE(kp1_19, kp1_19_tables);
KP_DECLARE(kp2_19, kp2_19_tables);
KP_DECLARE(kp3_19, kp3_tables);
KP_DECLARE(kp1_110, kp1_tables);
KP_DECLARE(kp2_110, kp2_tables);
KP_DECLARE(kp3_110, kp3_tables);
KP_DECLARE(kp3_114, kp3_tables);
KP_DECLARE(kp1_115, kp1_tables);
KP_DECLARE(kp2_115, kp2_tables);
KP_DECLARE(kp3_115, kp3_tables);
KP_DECLARE(kp4_19, kp4_19_tables);
KP_DECLARE(kp4_110, kp4_tables);
KP_DECLARE(kp4_115, kp4_tables);
KP_DECLARE(kp5_115, kp5_tables);
KP_DECLARE(kp6_115, kp5_tables);
KP_DECLARE(kp1_120, kp1_tables);
KP_DECLARE(kp2_120, kp2_tables);
KP_DECLARE(kp3_120, kp3_tables);
KP_DECLARE(kp4_120, kp4_tables);
KP_DECLARE(kp5_120, kp5_tables);
KP_DECLARE(kp6_120, kp5_tables);
KP_DECLARE(kp1_18, kp1_18_tables);
KP_DECLARE(kp2_18, kp2_18_tables);
KP_DECLARE(kp3_18, kp3_18_tables);
KP_DECLARE(kp4_18, kp3_18_tables);

/* Its functions, out of its find and after. */
#define KP_DEFINE(NAME, LEAST, PIECE) KP_DEFINE_MARGIN(NAME, LEAST, PIECE, KP_MARGIN)

#define KP_DEFINE_MARGIN(NAME, LEAST, PIECE, MARGIN)                                               \
    KP_DEFINE_ENTER(NAME, LEAST, PIECE, MARGIN, kp_enter)

#define KP_DEFINE_ENTER(NAME, LEAST, PIECE, MARGIN, ENTER)                                         \
    static const ls_matcher NAME##_matcher = {                                                     \
        NAME##_find, NAME##_after, ENTER, sizeof(((NAME##_state *)0)->tables),                     \
        MARGIN,      LEAST,        PIECE};                                                         \
    void ls_##NAME##_begin(const ls_model *model, void *state, const ls_span *span) {              \
        NAME##_state *k = state;                                                                   \
        memset(&k->tables, 0, sizeof k->tables);                                                   \
        k->span_at = ls_kp_begin(model, &k->c, span);                                              \
        (void)ls_chunks_skip(&NAME##_matcher, &k->c, &k->tables, k->span_at);                      \
    }                                                                                              \
    int ls_##NAME##_verify(const ls_model *model, void *state, ls_asking *a) {                     \
        (void)model;                                                                               \
        NAME##_state *k = state;                                                                   \
        return ls_chunks_verify(&NAME##_matcher, &k->c, &k->tables, &k->spare, a);                 \
    }                                                                                              \
    int ls_##NAME##_make(const ls_model *model, void *state, ls_asking *a, size_t count,           \
                         size_t until) {                                                           \
        (void)model;                                                                               \
        NAME##_state *k = state;                                                                   \
        return ls_chunks_make(&NAME##_matcher, &k->c, &k->tables, a, count, until, k->span_at);    \
    }                                                                                              \
    int ls_##NAME##_skip(const ls_model *model, void *state, size_t size) {                        \
        (void)model;                                                                               \
        NAME##_state *k = state;                                                                   \
        if (size > k->c.size - k->c.at)                                                            \
            return LS_EFORMAT;                                                                     \
        return ls_chunks_skip(&NAME##_matcher, &k->c, &k->tables, k->c.at + (uint32_t)size);       \
    }

/* Levels 7 to 9, which do not work in chunks. */
#define KP7_HASH_BITS 17
#define KP7_QUEUE 2100
#define KP7_BLOCK_TOKENS 32768u
#define KP7_BLOCK_TOKENS_19 16384u

/* What differs between releases, newest first: since 1.15.15; since 1.14.4; since 1.9; before. */
enum ls_kp7_age { KP7_SINCE_115_15, KP7_SINCE_114_4, KP7_SINCE_19, KP7_UNTIL_18 };

#define KP7_BY_ENTROPY 2 /* 1.14.0: in bits that a byte takes on average */

typedef struct ls_kp7_parameters {
    uint16_t lazy, nice, chain;
    uint8_t weighs;      /* level 9: matches are weighed in bits; or KP7_BY_ENTROPY */
    uint8_t unlimited;   /* ls_go_code_120 makes that code */
    uint32_t sample;     /* bytes of the window that the code for it is made of */
    uint8_t cost, least; /* bits that a match costs at least, and that it has to save beyond that */
    uint8_t age;         /* ls_kp7_age */
} ls_kp7_parameters;

typedef struct ls_kp7 {
    const uint8_t *b;
    uint32_t at;   /* the next byte to become part of a token */
    uint32_t size; /* end of the span */
    uint32_t end;  /* of what is there */
    uint32_t span_at;
    int64_t origin; /* position of the window's first start */
    int64_t base;   /* and of its start now; may be before position 0 */
    uint32_t window_end, insert_end;
    uint32_t index;  /* of the loop */
    uint32_t filled; /* positions below are in the chains */
    int64_t head;    /* of the chain at index */
    uint32_t length, dist;
    uint16_t misses;
    uint8_t waiting; /* the byte before index is no token yet */
    uint8_t weights[256];
    uint32_t bits; /* KP7_BY_ENTROPY: of a byte */
    uint32_t queued, taken;
    ls_token queue[KP7_QUEUE];
    uint32_t crc[4][256];               /* up to 1.8: of a byte and so many behind it */
    uint32_t heads[1 << KP7_HASH_BITS]; /* positions + 1, 0: none */
    uint32_t chain[KP_WINDOW];
} ls_kp7;

void ls_kp7_begin(const ls_model *model, void *state, const ls_span *span);
int ls_kp7_verify(const ls_model *model, void *state, ls_asking *a);
int ls_kp7_make(const ls_model *model, void *state, ls_asking *a, size_t count, size_t until);
int ls_kp7_skip(const ls_model *model, void *state, size_t size);

extern const ls_kp7_parameters ls_kp7_level7, ls_kp7_level8, ls_kp7_level9, ls_kp7_level9_whole,
    ls_kp7_level9_120, ls_kp7_level7_114, ls_kp7_level8_114, ls_kp7_level9_114, ls_kp7_level7_1140,
    ls_kp7_level8_1140, ls_kp7_level9_1140, ls_kp7_level7_19, ls_kp7_level8_19, ls_kp7_level9_19,
    ls_kp7_level7_18, ls_kp7_level8_18, ls_kp7_level9_18;

#endif
