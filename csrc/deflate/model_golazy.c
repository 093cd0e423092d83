/* model_golazy.c: the decisions of Go's compress/flate at levels 2 to 9, up to Go 1.26.
 *
 * Matches have at least 4 bytes. A hash of 4 bytes chains positions, newest first; a search looks at up to
 * `chain` of them, other bytes with the same hash among them; a longer match wins, but one of 4 bytes only
 * when it is at most 4,096 back; one of `nice` bytes ends the search. Distances go up to 32,768, but never
 * behind the start of the encoder's buffer of 65,536 bytes, which moves on by 32,768 when the parse looks
 * at a position that has fewer than 262 bytes of it left, and more input is there.
 *
 * Levels 4 to 9 parse lazily, and every position enters its chain; levels 2 and 3 parse greedily, and
 * the inside of a match enters the chains only when it has at most 5 or 6 bytes. The last three positions
 * before a flush never enter. A stored block ran the parse like any other. */
#include "replay.h"
#include "trees_go.h"

#define HASH_BITS 17
#define HASH_MULTIPLIER 0x1e35a7bdu
#define LEAST 4u     /* bytes of a match */
#define NEAR 4096u   /* farthest match of 4 bytes */
#define AT_ONCE 262u /* bytes left in the buffer below which it moves on */
#define HISTORY_LAZY (WINDOW + 2 * WARM_UP)
#define HISTORY_GREEDY (5 * WINDOW)
#define AHEAD 1024u       /* more than a match, and what decides when the buffer moves */
#define NOWHERE INT32_MIN /* in a chain's head: nothing yet */

typedef struct level {
    uint16_t lazy; /* 0: greedy */
    uint16_t nice, chain;
    uint16_t entered; /* greedy: longest match whose inside enters the chains */
} level;

typedef struct state {
    ls_replay r;
    level how;
    size_t hashable; /* positions below have 4 bytes */
    size_t gap;      /* below, some of the window's positions may be in no chain */
    uint16_t link[RING];
    int32_t head[1 << HASH_BITS];
} state;

INLINE void enter(state *s, size_t at) {
    const uint8_t *p = s->r.data + at;
    uint32_t v = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    uint32_t h = v * HASH_MULTIPLIER >> (32 - HASH_BITS);
    int64_t d = (int64_t)at - s->head[h];
    s->head[h] = (int32_t)at;
    s->link[at & (RING - 1)] = d < NO_LINK ? (uint16_t)d : NO_LINK;
}

/* The farthest distance at a position: the window, the start of the stream, or that of the buffer. */
INLINE uint32_t farthest(const ls_replay *r, size_t at) {
    uint32_t far = at < WINDOW ? (uint32_t)at : WINDOW;
    uint64_t here = r->data_at + at;
    uint32_t into = (uint32_t)(here + AT_ONCE - 1) & (WINDOW - 1);
    if (into < AT_ONCE - 1 && here + AT_ONCE - 1 >= 2 * WINDOW &&
        r->end - at > AT_ONCE - 1 - into && far > WINDOW - (AT_ONCE - 1) + into)
        far = WINDOW - (AT_ONCE - 1) + into;
    return far;
}

/* `quick`: leave off where it is plain that nothing longer follows. */
INLINE ls_match search(state *s, size_t at, uint32_t least, int quick) {
    const ls_replay *r = &s->r;
    ls_match best = {0, 0};
    size_t rest = r->end - at;
    if (rest < LEAST || least >= rest)
        return best;
    const uint16_t *link = s->link;
    uint32_t dist = link[at & (RING - 1)], far = farthest(r, at);
    if (dist > far)
        return best;
    uint32_t most = rest < MAX_MATCH ? (uint32_t)rest : MAX_MATCH;
    uint32_t nice = s->how.nice < most ? s->how.nice : most;
    uint32_t length = least < LEAST - 1 ? LEAST - 1 : least, tries = s->how.chain;
    const uint8_t *here = r->data + at, *probe = here + length - 3;
    uint32_t tail = ls_load32(probe);
    if (quick && least >= LEAST && ls_none_longer(link, here, at, length, 0, far))
        return best;
    do {
        if (ls_load32(probe - dist) == tail) {
            uint32_t n = ls_common(here, here - dist, most);
            if (n > length && (n > LEAST || dist <= NEAR)) {
                length = n;
                best.dist = dist;
                if (n >= nice || (quick && ls_none_longer(link, here, at, length, dist, far)))
                    break;
                probe = here + length - 3;
                tail = ls_load32(probe);
            }
        }
        dist += link[(at - dist) & (RING - 1)];
    } while (dist <= far && --tries);
    best.length = best.dist ? length : 0;
    return best;
}

/* Lazily, what is found only counts when it is longer than what waits: it is looked for from there on. */
INLINE ls_match find(void *state_, size_t at, uint32_t least) {
    state *s = state_;
    return at < s->gap ? search(s, at, least, 0) : search(s, at, least, 1);
}

INLINE ls_match find_greedy(void *state_, size_t at, uint32_t least) {
    state *s = state_;
    if (s->r.end - at >= LEAST)
        enter(s, at);
    return search(s, at, least, 0);
}

INLINE void ready_lazy(void *state_) {
    state *s = state_;
    ls_replay *r = &s->r;
    if (r->at + 2 + MAX_MATCH > r->linked && r->linked < s->hashable) {
        size_t to = r->linked + LINK_STEP;
        to = to < s->hashable ? to : s->hashable;
        for (size_t at = r->linked; at < to; at++)
            enter(s, at);
        r->linked = to;
    }
}

INLINE void ready_greedy(void *state_) {
    (void)state_;
}

INLINE void taken_greedy(void *state_, size_t at, ls_token token) {
    state *s = state_;
    uint32_t length = token & 0xffff;
    if (token < 256 || length > s->how.entered)
        return;
    size_t to = at + length;
    if (to + LEAST - 1 > s->r.end)
        to = s->r.end - (LEAST - 1);
    for (size_t p = at + 1; p < to; p++)
        enter(s, p);
}

INLINE int pass(state *s, size_t size) {
    return s->how.lazy ? ls_replay_skip(&s->r, find, ready_lazy, NULL, s->how.lazy, size)
                       : ls_replay_skip(&s->r, find_greedy, ready_greedy, taken_greedy, 0, size);
}

static void begin(const ls_model *m, void *state_, const ls_span *span) {
    state *s = state_;
    ls_replay *r = &s->r;
    s->how = *(const level *)m->parameters;
    ls_replay_begin(r, span, m->history);
    s->hashable = r->input < LEAST ? 0 : r->input - (LEAST - 1);
    s->link[0] = NO_LINK;
    for (size_t i = 0; i < (size_t)1 << HASH_BITS; i++)
        s->head[i] = NOWHERE;
    s->gap = 0;
    uint64_t since = span->at - span->flushed;
    size_t from = since < r->start ? r->start - (size_t)since : 0;
    if (!s->how.lazy) {
        r->end = from;
        (void)pass(s, from);
        r->end = r->input;
    } else {
        for (size_t at = 0; at + LEAST <= from; at++)
            enter(s, at);
        s->gap = from ? from + WINDOW + MAX_MATCH : 0;
        if (from + WARM_UP < r->start) {
            for (size_t at = from; at < r->start - WARM_UP && at < s->hashable; at++)
                enter(s, at);
            from = r->start - WARM_UP;
        }
        r->at = r->linked = from;
    }
    (void)pass(s, r->start - r->at);
}

static int verify(const ls_model *m, void *state_, ls_asking *a) {
    state *s = state_;
    (void)m;
    return s->how.lazy ? ls_replay_verify(&s->r, find, ready_lazy, NULL, s->how.lazy, a)
                       : ls_replay_verify(&s->r, find_greedy, ready_greedy, taken_greedy, 0, a);
}

static int make(const ls_model *m, void *state_, ls_asking *a, size_t count, size_t until) {
    state *s = state_;
    (void)m;
    return s->how.lazy
               ? ls_replay_make(&s->r, find, ready_lazy, NULL, s->how.lazy, a, count, until)
               : ls_replay_make(&s->r, find_greedy, ready_greedy, taken_greedy, 0, a, count, until);
}

static int skip(const ls_model *m, void *state_, size_t size) {
    (void)m;
    return pass(state_, size);
}

static int trees(const ls_model *m, void *state_, uint32_t variant, const ls_token *tokens,
                 size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit, uint32_t *hdist) {
    ls_counts counts;
    (void)m;
    (void)state_;
    if (variant)
        return 0;
    ls_count(tokens, n, &counts);
    ls_go_trees(&counts, litlen, dist, hlit, hdist);
    return 1;
}

/* By level: lazy, nice, chain, entered. (Go names a `good` length for each; its search never meets it.) */
static const level by_level[] = {
    {0, 16, 8, 5},     {0, 32, 32, 6},    {4, 16, 16, 0},      {16, 32, 32, 0},
    {16, 128, 128, 0}, {32, 128, 256, 0}, {128, 258, 1024, 0}, {258, 258, 4096, 0},
};

#define MODEL(number, level_, past)                                                                \
    {                                                                                              \
        .id = 200 + number,                                                                        \
        .name = "Go " #number,                                                                     \
        .history = past,                                                                           \
        .ahead = AHEAD,                                                                            \
        .span = 2u << 20,                                                                          \
        .block_tokens = 16384,                                                                     \
        .state = sizeof(state),                                                                    \
        .begin = begin,                                                                            \
        .verify = verify,                                                                          \
        .make = make,                                                                              \
        .skip = skip,                                                                              \
        .trees = trees,                                                                            \
        .runs = ls_go_runs,                                                                        \
        .codelen = ls_go_codelen,                                                                  \
        .parameters = &by_level[level_],                                                           \
    }

const ls_model ls_models_golazy[] = {
    MODEL(2, 0, HISTORY_GREEDY), MODEL(3, 1, HISTORY_GREEDY), MODEL(4, 2, HISTORY_LAZY),
    MODEL(5, 3, HISTORY_LAZY),   MODEL(6, 4, HISTORY_LAZY),   MODEL(7, 5, HISTORY_LAZY),
    MODEL(8, 6, HISTORY_LAZY),   MODEL(9, 7, HISTORY_LAZY),   {.id = 0},
};
