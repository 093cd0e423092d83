/* replay.h: the walk of a model with hash chains through its span; what zlib's and Go's have in common.
 *
 * Positions with the same hash form a chain, newest first. Of each position the distance to the one
 * before it in its chain is kept, 16 bits, in a ring of twice the window: a search adds distances up
 * until they leave the window. Where every position enters its chain whatever the tokens are (the lazy
 * levels), the chains do not depend on them, and are linked in a pass of their own, a step ahead of the
 * search: such a model knows all that its encoder knew from the window alone.
 *
 * A family gives `find`, the best match at a position that is longer than `least`, and the rest is here:
 * the lazy parse, the greedy parse, and both ways of asking. The functions are inlined into each family,
 * so that no call is left in the loops. */
#ifndef LS_DEFLATE_REPLAY_H
#define LS_DEFLATE_REPLAY_H

#include <string.h>

#include "model.h"

#define WINDOW 32768u
#define RING (2 * WINDOW)
#define LINK_STEP 8192u /* positions linked at once; what is ahead and the window fit the ring */
#define NO_LINK 0xffffu /* farther than any window */
#define LOOKS 8         /* at the chain of the end of a match; more cost more than they save */
#define WARM_UP                                                                                    \
    4096u /* bytes before a span that are parsed for the match that waits at its start */
#define INLINE static inline __attribute__((always_inline))

/* A match; length 0 is none. */
typedef struct ls_match {
    uint32_t length, dist;
} ls_match;

/* A span at work. Positions count from `data`, the first byte of the history that is used. */
typedef struct ls_replay {
    const uint8_t *data;
    uint64_t data_at; /* content offset of position 0 */
    size_t before;    /* bytes of the stream in front of position 0 that are there */
    size_t at;        /* of the next token */
    size_t start;     /* of the span */
    size_t size;      /* its end */
    size_t input;     /* all bytes known: behind the last one the encoder's input ended, or ours */
    size_t end;     /* the encoder saw no further when it was here: end of input, or of the piece */
    size_t linked;  /* positions below are in the chains */
    size_t done;    /* tokens of the last run */
    ls_match waits; /* the match at `at`, known because it made the token before it a literal */
} ls_replay;

INLINE uint32_t ls_load32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Whether it is plain, after a few looks, that no match beyond some distance is longer than `length`: its
 * last 4 bytes would be in their own chain, which most often is short where a match ends. It takes
 * chains of 4 bytes that have every position. What a search gives is the same with and without it;
 * it is what makes the lazy levels fast (most of their steps look for something that is not there). */
INLINE int ls_none_longer(const uint16_t *link, const uint8_t *here, size_t at, uint32_t length,
                          uint32_t beyond, uint32_t far) {
    size_t last = at + length - 3;
    uint32_t dist = link[last & (RING - 1)], first = ls_load32(here);
    for (int i = 0; i < LOOKS; i++) {
        if (dist > far)
            return 1;
        if (dist > beyond && ls_load32(here - dist) == first)
            return 0;
        dist += link[(last - dist) & (RING - 1)];
    }
    return 0;
}

/* Whether a token stands for the content at a position; the history bounds its distance. */
static inline int ls_token_fits(const ls_replay *r, size_t at, ls_token token) {
    const uint8_t *here = r->data + at;
    if (token < 256)
        return *here == token;
    uint32_t length = token & 0xffff, dist = token >> 16;
    if (length < MIN_MATCH || length > MAX_MATCH || length > r->size - at || dist == 0 ||
        dist > WINDOW || dist > at + r->before)
        return 0;
    return ls_common(here, here - dist, length) == length;
}

/* Places the span: `history` bytes of what is before it are used, as far as they are there. */
static inline void ls_replay_begin(ls_replay *r, const ls_span *span, size_t history) {
    size_t used = span->before < history ? span->before : history;
    r->data = span->data - used;
    r->data_at = span->at - used;
    r->before = span->before - used;
    r->start = used;
    r->size = used + span->size;
    r->input = r->end = r->size + span->after;
    r->at = 0;
    r->linked = 0;
    r->waits.length = 0;
}

typedef ls_match ls_find(void *state, size_t at, uint32_t least);
/* Called at each token: links positions ahead, and sees to the ends of pieces. */
typedef void ls_ready(void *state);
/* A greedy model's: `token` was taken at `at`. */
typedef void ls_taken(void *state, size_t at, ls_token token);

typedef enum ls_way { LS_VERIFY, LS_MAKE, LS_PASS } ls_way;

/* The parse. A match shorter than `lazy` waits for the next position to have a longer one; 0: greedy.
 * Tokens up to `until` or `count` of them, whichever comes first; LS_PASS keeps none of them, and its
 * last one is cut at `until`. */
INLINE int ls_replay_run(ls_replay *r, ls_find *find, ls_ready *ready, ls_taken *taken,
                         uint32_t lazy, ls_way way, ls_asking *a, size_t count, size_t until) {
    const uint8_t *data = r->data;
    size_t at = r->at, n = 0, next = a ? a->next : 0;
    ls_match m = r->waits;
    uint64_t special = way == LS_MAKE && next < a->count ? a->corrections[next].index : UINT64_MAX;
    int result = LS_OK;
    for (; n < count && at < until; n++) {
        r->at = at;
        ready(r);
        ls_match better = {0, 0};
        if (!m.length)
            m = find(r, at, MIN_MATCH - 1);
        if (m.length && m.length < lazy)
            better = find(r, at + 1, m.length);
        ls_token token = m.length && !better.length ? m.dist << 16 | m.length : data[at];
        if (way == LS_MAKE) {
            if (a->index + n == special) {
                ls_token actual = a->corrections[next++].actual;
                special = next < a->count ? a->corrections[next].index : UINT64_MAX;
                if (actual < 256) {
                    actual = data[at];
                } else if (!ls_token_fits(r, at, actual)) {
                    result = LS_EFORMAT;
                    break;
                }
                token = actual;
                better.length = 0;
            }
            a->tokens[n] = token;
        } else if (way == LS_VERIFY) {
            ls_token actual = a->tokens[n];
            if (actual != token) {
                if (!ls_token_fits(r, at, actual)) {
                    result = LS_EFORMAT;
                    break;
                }
                if (a->count == a->capacity) {
                    result = LS_ELIMIT;
                    break;
                }
                a->corrections[a->count].index = a->index + (uint32_t)n;
                a->corrections[a->count++].actual = token = actual;
                better.length = 0;
            }
        }
        if (taken)
            taken(r, at, token);
        at += token < 256 ? 1 : token & 0xffff;
        m = better;
    }
    if (way == LS_PASS && at > until)
        at = until, m.length = 0;
    r->at = at;
    r->waits = m;
    r->done = n;
    if (way == LS_MAKE)
        a->next = next;
    return result;
}

/* The three calls of a model, given its parts. */
INLINE int ls_replay_verify(ls_replay *r, ls_find *find, ls_ready *ready, ls_taken *taken,
                            uint32_t lazy, ls_asking *a) {
    int result = ls_replay_run(r, find, ready, taken, lazy, LS_VERIFY, a, a->n, r->size);
    return result == LS_OK && (r->done != a->n || r->at > r->size) ? LS_EFORMAT : result;
}

INLINE int ls_replay_make(ls_replay *r, ls_find *find, ls_ready *ready, ls_taken *taken,
                          uint32_t lazy, ls_asking *a, size_t count, size_t until) {
    size_t end = count ? r->size : r->start + until;
    if (end > r->size || count > a->n)
        return LS_EINVALID;
    int result = ls_replay_run(r, find, ready, taken, lazy, LS_MAKE, a, count ? count : a->n, end);
    a->n = r->done;
    if (result == LS_OK && a->over && r->at <= r->size)
        return LS_OK;
    return result == LS_OK && (count ? r->done != count || r->at > end : r->at != end) ? LS_EFORMAT
                                                                                       : result;
}

INLINE int ls_replay_skip(ls_replay *r, ls_find *find, ls_ready *ready, ls_taken *taken,
                          uint32_t lazy, size_t size) {
    if (size > r->size - r->at)
        return LS_EFORMAT;
    return ls_replay_run(r, find, ready, taken, lazy, LS_PASS, NULL, SIZE_MAX, r->at + size);
}

#endif
