/* chunks.h: the walk shared by the models of encoders that work in chunks of 65,535 bytes: Go's level 1,
 * klauspost/compress's levels 1 to 6.
 *
 * Such an encoder takes a chunk of content, finds all its matches, and then decides how to write it:
 * where fewer than one byte in 16 was saved, as literals alone. Chunks are counted from the last flush. A
 * model gives two functions, inlined here: `find` gives the next match of the chunk, `after` enters it into
 * the tables. This file makes tokens of them, compares them or has them overruled.
 *
 * A wrong prediction: the search goes on behind the token that was taken. A chunk with a correction in it
 * is never turned into literals by the rule of 16; so a correction that corrects nothing (the first token of
 * the chunk, as predicted) says that the rule does not hold. A call that ends within a chunk, which these
 * encoders never do, makes the search begin anew there.
 *
 * Positions count from the first byte of the history in use; table entries are positions plus FAR, so that
 * a cleared table is out of reach. The whole stretch must stay below 2 GiB. */
#ifndef LS_DEFLATE_CHUNKS_H
#define LS_DEFLATE_CHUNKS_H

#include <string.h>

#include "model.h"

#if !defined(LS_PORTABLE_ONLY) && defined(__SSE2__) && defined(__GNUC__)
#include <emmintrin.h>
#define LS_DEFLATE_SSE2 1
#endif

#define CHUNK 65535u
#define FAR 65536u
#define SMALL_CHUNK 128u
#define INLINE static inline __attribute__((always_inline))

typedef struct ls_chunks {
    const uint8_t *b;      /* position 0 */
    uint32_t at;           /* the next byte to become part of a token */
    uint32_t size;         /* end of the span */
    uint32_t end;          /* of what is there */
    int64_t flush;         /* position of the last flush: may be before position 0 */
    uint32_t dictionary;   /* bytes before the flush that are encoded first and thrown away */
    uint32_t from, to;     /* the chunk */
    uint32_t low;          /* nothing before it can be reached */
    uint32_t limit;        /* no search behind it; 0: none at all */
    uint32_t lit;          /* literals since */
    uint32_t s, next;      /* where the search goes on; how far it had looked */
    uint32_t repeat;       /* distance of the last match, 1 at the chunk's start */
    uint32_t candidate;    /* a match at s, found by `after`: entry, or 0 */
    uint32_t within;       /* `at` is inside the chunk, the search has begun */
    uint32_t forced;       /* a correction was used in the chunk */
    uint32_t whole;        /* the chunk began in this call */
    uint32_t first, saved; /* its first token's index, and its tokens as predicted */
} ls_chunks;

typedef struct ls_match {
    uint32_t at, length, dist;
} ls_match;

enum ls_way { LS_WARM, LS_VERIFY, LS_MAKE };

INLINE uint32_t le32(const uint8_t *p) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
#else
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
#endif
}

INLINE uint64_t le64(const uint8_t *p) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
#else
    return (uint64_t)le32(p) | (uint64_t)le32(p + 4) << 32;
#endif
}

/* Whether an entry lies 1 to `most` bytes before s. Behind a correction it may be at s, or beyond. */
INLINE int ls_reaches(uint32_t s, uint32_t entry, uint32_t most) {
    return s + FAR - entry - 1 < most;
}

#ifdef LS_DEFLATE_SSE2
/* Which of 32 bytes from s and t on are equal: a bit each, the first one's the lowest. */
INLINE uint32_t equal_of_32(const uint8_t *b, uint32_t s, uint32_t t) {
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)(b + s));
    __m128i y = _mm_loadu_si128((const __m128i *)(const void *)(b + t));
    __m128i x2 = _mm_loadu_si128((const __m128i *)(const void *)(b + s + 16));
    __m128i y2 = _mm_loadu_si128((const __m128i *)(const void *)(b + t + 16));
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(x, y)) |
           (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(x2, y2)) << 16;
}
#endif

/* How many bytes from s and t on are equal, s + so many at most `end`. */
INLINE uint32_t same(const uint8_t *b, uint32_t s, uint32_t t, uint32_t end) {
    uint32_t n = s;
#ifdef LS_DEFLATE_SSE2
    /* Where most matches end, at one look: of how many bytes they are is nothing to be guessed. */
    if (n + 32 <= end) {
        uint32_t equal = equal_of_32(b, n, t);
        if (equal != 0xffffffff)
            return (uint32_t)__builtin_ctz(~equal);
        n += 32;
        t += 32;
    }
#endif
    while (n + 8 <= end) {
        uint64_t x = le64(b + n) ^ le64(b + t);
        if (x)
            return n - s + (uint32_t)__builtin_ctzll(x) / 8;
        n += 8;
        t += 8;
    }
    while (n < end && b[n] == b[t]) {
        n++;
        t++;
    }
    return n - s;
}

/* What a call has done so far, and how far it may go. */
typedef struct ls_course {
    ls_asking *a;
    size_t i;       /* tokens of this call so far */
    size_t room;    /* tokens at most */
    uint32_t until; /* position where the call ends at the latest */
} ls_course;

/* The correction for the next token, or NULL. */
INLINE const ls_correction *ls_course_due(const ls_course *k) {
    const ls_asking *a = k->a;
    if (a->next < a->count && a->corrections[a->next].index == a->index + k->i)
        return &a->corrections[a->next];
    return NULL;
}

/* Tokens until the next correction. */
INLINE size_t ls_course_clear(const ls_course *k) {
    const ls_asking *a = k->a;
    if (a->next >= a->count)
        return SIZE_MAX;
    uint64_t now = (uint64_t)a->index + k->i;
    return a->corrections[a->next].index < now ? 0 : (size_t)(a->corrections[a->next].index - now);
}

static inline int ls_course_note(ls_course *k, uint32_t index, ls_token actual) {
    ls_asking *a = k->a;
    if (a->count >= a->capacity)
        return LS_ELIMIT;
    a->corrections[a->count].index = index;
    a->corrections[a->count++].actual = actual;
    return LS_OK;
}

/* Whether a token may stand at `at`: its bytes are the content's. */
static inline int ls_chunks_fits(const ls_chunks *c, ls_token t, uint32_t until) {
    if (t < 256)
        return c->at < until && c->b[c->at] == t;
    uint32_t length = t & 0xffff, dist = t >> 16;
    return length >= MIN_MATCH && length <= MAX_MATCH && dist >= 1 && dist <= 32768 &&
           dist <= c->at && until - c->at >= length &&
           memcmp(c->b + c->at, c->b + c->at - dist, length) == 0;
}

/* What a model gives: the next match from c->s on (0: none in this chunk); a match enters the tables, and
 * c->s, c->lit become what the search begins with; a chunk begins. `tables` is of `bytes`. */
typedef struct ls_matcher {
    int (*find)(void *tables, ls_chunks *c, ls_match *m);
    void (*after)(void *tables, ls_chunks *c, const ls_match *m);
    void (*enter)(void *tables, ls_chunks *c);
    size_t bytes;
    uint32_t margin; /* of a chunk's last bytes that are not searched */
    uint32_t least;  /* bytes of a chunk that is searched at all */
    uint32_t
        piece; /* what a match of more than 258 bytes is cut into: 258 unless that leaves too little for
                        the rest, else 255; or always 255 */
} ls_matcher;

/* Finds the chunk that `at` lies in, and begins the search there. */
INLINE void ls_chunks_enter(const ls_matcher *how, ls_chunks *c, void *tables) {
    int64_t at = c->at;
    if (at < c->flush) {
        c->from = (uint32_t)(c->flush - (int64_t)c->dictionary);
        c->to = (uint32_t)c->flush;
    } else {
        int64_t from = c->flush + (at - c->flush) / CHUNK * CHUNK;
        int64_t to = from + CHUNK;
        c->from = from < 0 ? 0 : (uint32_t)from;
        c->to = to > (int64_t)c->end ? c->end : (uint32_t)to;
    }
    c->limit = c->to - c->from < how->least ? 0 : c->to - how->margin;
    c->lit = c->s = c->next = c->at;
    c->repeat = 1;
    c->candidate = 0;
    c->forced = 0;
    c->saved = 0;
    c->within = 1;
    how->enter(tables, c);
}

/* Takes a token that was not predicted, and lets the search go on behind it. */
INLINE void ls_chunks_deviate(const ls_matcher *how, ls_chunks *c, void *tables, ls_token t) {
    c->forced = 1;
    c->candidate = 0;
    if (t < 256) {
        c->at++;
        c->s = c->at;
        return;
    }
    ls_match m = {c->at, t & 0xffff, t >> 16};
    c->at += m.length;
    c->next = m.at + 1;
    if (c->at < c->to)
        how->after(tables, c, &m);
}

/* Literals as tokens. Most runs are short: up to 8 go at once, where there is room for them. */
INLINE void ls_chunks_copy(ls_token *out, const uint8_t *p, uint32_t n, size_t room) {
    uint32_t i = 0;
#ifdef LS_DEFLATE_SSE2
    const __m128i zero = _mm_setzero_si128();
    for (; i < n && room - i >= 8; i += 8) {
        __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(p + i));
        __m128i words = _mm_unpacklo_epi8(bytes, zero);
        _mm_storeu_si128((__m128i *)(void *)(out + i), _mm_unpacklo_epi16(words, zero));
        _mm_storeu_si128((__m128i *)(void *)(out + i + 4), _mm_unpackhi_epi16(words, zero));
    }
#else
    (void)room;
#endif
    for (; i < n; i++)
        out[i] = p[i];
}

/* Goes on from `at` to the end of the chunk or of the call, whichever is first. What differs between the
 * three ways is decided at compile time. */
INLINE int ls_chunks_run_on(const ls_matcher *how, ls_chunks *c, void *tables, ls_course *k,
                            enum ls_way way) {
    const uint8_t *b = c->b;
    while (c->at < c->to && c->at < k->until && (way == LS_WARM || k->i < k->room)) {
        ls_match m;
        int found = how->find(tables, c, &m);
        uint32_t start = found ? m.at : c->to;
        int deviated = 0;
        if (c->at < start) {
            uint32_t n = start - c->at;
            if (n > k->until - c->at)
                n = k->until - c->at;
            if (way == LS_WARM) {
                c->at += n;
                c->saved += n;
            } else if (way == LS_VERIFY) {
                if (n > k->room - k->i)
                    n = (uint32_t)(k->room - k->i);
                const ls_token *actual = k->a->tokens + k->i;
                const uint8_t *p = b + c->at;
                uint32_t j = 0;
                while (j < n && actual[j] == p[j])
                    j++;
                c->at += j;
                c->saved += j;
                k->i += j;
                if (j < n)
                    deviated = 1;
            } else {
                if (n > k->room - k->i)
                    n = (uint32_t)(k->room - k->i);
                size_t clear = ls_course_clear(k);
                uint32_t take = n < clear ? n : (uint32_t)clear;
                ls_chunks_copy(k->a->tokens + k->i, b + c->at, take, k->room - k->i);
                c->at += take;
                c->saved += take;
                k->i += take;
                if (take < n)
                    deviated = 1;
            }
            if (!deviated && c->at < start)
                break; /* the call ends here */
        }
        uint32_t rest = found && !deviated ? m.length : 0;
        while (rest) {
            uint32_t piece = rest;
            if (rest > MAX_MATCH)
                piece = rest > MAX_MATCH + MIN_MATCH ? how->piece : MAX_MATCH - MIN_MATCH;
            if (way == LS_WARM) {
                c->saved++;
                c->at += piece;
            } else {
                if (k->i >= k->room || c->at >= k->until)
                    return LS_OK;
                ls_token token = m.dist << 16 | piece;
                if (way == LS_VERIFY) {
                    deviated = k->a->tokens[k->i] != token;
                } else {
                    deviated = ls_course_due(k) != NULL;
                    if (!deviated) {
                        if (piece > k->until - c->at)
                            return LS_EFORMAT;
                        k->a->tokens[k->i] = token;
                    }
                }
                if (deviated)
                    break;
                c->saved++;
                c->at += piece;
                k->i++;
            }
            rest -= piece;
        }
        if (way != LS_WARM && deviated) {
            ls_token t;
            if (way == LS_VERIFY) {
                t = k->a->tokens[k->i];
                int error = ls_course_note(k, (uint32_t)(k->a->index + k->i), t);
                if (error)
                    return error;
            } else {
                const ls_correction *due = ls_course_due(k);
                if (!due)
                    return LS_EFORMAT;
                t = due->actual < 256 ? c->b[c->at] : due->actual;
                k->a->tokens[k->i] = t;
                k->a->next++;
            }
            if (!ls_chunks_fits(c, t, k->until))
                return LS_EFORMAT;
            k->i++;
            c->saved++;
            ls_chunks_deviate(how, c, tables, t);
        } else if (found) {
            how->after(tables, c, &m);
        }
    }
    return LS_OK;
}

/* The same, on a copy that nothing else points to, so that it can be held in registers. */
INLINE int ls_chunks_run(const ls_matcher *how, ls_chunks *c, void *tables, ls_course *k,
                         enum ls_way way) {
    ls_chunks copy = *c;
    ls_course course = *k;
    int result = ls_chunks_run_on(how, &copy, tables, &course, way);
    *c = copy;
    *k = course;
    return result;
}

/* To the chunk's end, all as the model has it: nothing to look up on the way. Returns how many tokens. */
INLINE size_t ls_chunks_plain(const ls_matcher *how, ls_chunks *chunks, void *tables,
                              ls_token *tokens) {
    ls_chunks copy = *chunks, *c = &copy;
    ls_token *out = tokens;
    while (c->at < c->to) {
        ls_match m;
        int found = how->find(tables, c, &m);
        uint32_t n = (found ? m.at : c->to) - c->at;
        ls_chunks_copy(out, c->b + c->at, n, SIZE_MAX);
        out += n;
        c->at += n;
        if (!found)
            break;
        uint32_t rest = m.length;
        c->at += rest;
        for (; rest > MAX_MATCH; rest -= *out++ & 0xffff)
            *out =
                m.dist << 16 | (rest > MAX_MATCH + MIN_MATCH ? how->piece : MAX_MATCH - MIN_MATCH);
        *out++ = m.dist << 16 | rest;
        how->after(tables, c, &m);
    }
    c->saved = (uint32_t)(out - tokens);
    *chunks = copy;
    return (size_t)(out - tokens);
}

/* Few bytes were saved: the encoder writes literals. */
INLINE int ls_chunks_poor(const ls_chunks *c) {
    uint32_t n = c->to - c->from;
    return c->saved > n - (n >> 4);
}

/* A whole chunk of literals, as far as its tokens show: is that what the encoder would have done? The
 * tables are left as they were if it is not. */
INLINE int ls_chunks_literals(const ls_matcher *how, ls_chunks *c, void *tables, void *spare,
                              ls_course *k) {
    size_t n = c->to - c->from;
    const ls_token *actual = k->a->tokens + k->i;
    if (n > k->room - k->i)
        return 0;
    for (size_t j = 0; j < n; j++)
        if (actual[j] != c->b[c->at + j])
            return 0;
    if (c->limit) {
        ls_chunks before = *c;
        ls_course alone = {.until = c->to};
        memcpy(spare, tables, how->bytes);
        (void)ls_chunks_run(how, c, tables, &alone, LS_WARM);
        if (!ls_chunks_poor(c)) {
            memcpy(tables, spare, how->bytes);
            *c = before;
            return 0;
        }
    } else {
        c->at = c->to;
    }
    k->i += n;
    return 1;
}

/* Chunk by chunk to the end of the call. */
INLINE int ls_chunks_go(const ls_matcher *how, ls_chunks *c, void *tables, void *spare,
                        ls_course *k, enum ls_way way) {
    while (c->at < k->until && (way == LS_WARM || k->i < k->room)) {
        ls_chunks_enter(how, c, tables);
        int whole = c->at == c->from;
        size_t first = k->i;
        if (way == LS_VERIFY && whole && ls_chunks_literals(how, c, tables, spare, k))
            continue;
        int error = LS_OK;
        if (way == LS_MAKE && whole && c->to <= k->until && ls_course_clear(k) >= c->to - c->at &&
            k->room - k->i >= (size_t)(c->to - c->at) + 8)
            k->i += ls_chunks_plain(how, c, tables, k->a->tokens + k->i);
        else
            error = ls_chunks_run(how, c, tables, k, way);
        if (error)
            return error;
        if (way == LS_WARM || !whole || c->forced || c->at < c->to || !ls_chunks_poor(c))
            continue;
        uint32_t n = c->to - c->from;
        if (way == LS_VERIFY) {
            if (c->saved < n)
                error = ls_course_note(k, (uint32_t)(k->a->index + first), k->a->tokens[first]);
        } else if (n <= k->room - first) {
            for (uint32_t j = 0; j < n; j++)
                k->a->tokens[first + j] = c->b[c->from + j];
            k->i = first + n;
        }
        if (error)
            return error;
    }
    return LS_OK;
}

/* The members of ls_model, but for the matcher. */
INLINE int ls_chunks_verify(const ls_matcher *how, ls_chunks *c, void *tables, void *spare,
                            ls_asking *a) {
    ls_course k = {.a = a, .room = a->n, .until = c->size};
    int error = ls_chunks_go(how, c, tables, spare, &k, LS_VERIFY);
    return error ? error : k.i == a->n ? LS_OK : LS_EFORMAT;
}

INLINE int ls_chunks_make(const ls_matcher *how, ls_chunks *c, void *tables, ls_asking *a,
                          size_t count, size_t until, uint32_t span_at) {
    ls_course k = {.a = a, .room = count ? count : a->n, .until = c->size};
    if (count > a->n)
        return LS_ESPACE;
    if (!count) {
        if (until > c->size - span_at || until + span_at < c->at)
            return LS_EFORMAT;
        k.until = span_at + (uint32_t)until;
    }
    int error = ls_chunks_go(how, c, tables, NULL, &k, LS_MAKE);
    a->n = k.i;
    if (error)
        return error;
    if (count)
        return k.i == count ? LS_OK : LS_EFORMAT;
    return c->at == k.until ? LS_OK : k.i == k.room ? LS_ESPACE : LS_EFORMAT;
}

INLINE int ls_chunks_skip(const ls_matcher *how, ls_chunks *c, void *tables, uint32_t until) {
    ls_course k = {.until = until};
    int error = ls_chunks_go(how, c, tables, NULL, &k, LS_WARM);
    c->at = until;
    return error;
}

#endif
