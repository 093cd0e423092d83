/* model_kpgreedy.c: klauspost/compress at levels 5 and 6 up to release 1.8 (pgzip's default until 2019), on
 * x86 with SSE 4.2, where it hashes with that instruction set's CRC.
 *
 * A greedy parse along chains as Go's (model_golazy.c): matches of at least 4 bytes, one of 4 bytes at most
 * 4,096 back, the window's start in a buffer of 64 KiB. The inside of a match enters the chains when it has
 * at most 12 (16) bytes. The more positions without a match, the more bytes behind one are literals that
 * are not looked at: one for each 32 positions since the last match, never beyond the buffer's end. Blocks
 * have 16,384 tokens; where less than a 64th of a block's bytes was saved, its bytes are written as literals
 * instead. A piece (pgzip's) knows the 16,384 bytes before it. */
#include "replay.h"
#include "trees_go.h"

#define HASH_BITS 17
#define CRC_32C 0x82f63b78u /* reflected */
#define LEAST 4u
#define NEAR 4096u
#define AT_ONCE 262u /* bytes left in the buffer below which it moves on */
#define DICTIONARY 16384u
#define HISTORY (5 * WINDOW)
#define AHEAD 1024u
#define BLOCK 16384u
#define NOWHERE INT32_MIN /* in a chain's head: nothing yet */

typedef struct level {
    uint16_t nice, chain;
    uint16_t entered; /* longest match whose inside enters the chains */
} level;

typedef struct state {
    ls_replay r;
    level how;
    int64_t origin;  /* position at which the encoder's buffer began */
    size_t next;     /* positions below are not looked at */
    uint16_t misses; /* positions looked at since the last match; may begin anew at 0 */
    uint32_t crc[4][256];
    uint16_t link[RING];
    int32_t head[1 << HASH_BITS];
} state;

static void make_crc(state *s) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int byte = 3; byte >= 0; byte--) {
            for (int k = 0; k < 8; k++)
                c = c & 1 ? CRC_32C ^ c >> 1 : c >> 1;
            s->crc[byte][i] = c;
        }
    }
}

INLINE void enter(state *s, size_t at) {
    const uint8_t *p = s->r.data + at;
    uint32_t h = s->crc[0][p[0]] ^ s->crc[1][p[1]] ^ s->crc[2][p[2]] ^ s->crc[3][p[3]];
    h &= (1u << HASH_BITS) - 1;
    int64_t d = (int64_t)at - s->head[h];
    s->head[h] = (int32_t)at;
    s->link[at & (RING - 1)] = d < NO_LINK ? (uint16_t)d : NO_LINK;
}

/* Where the buffer begins when a position is looked at: it moves on, if more input is there than it holds. */
INLINE int64_t buffer_at(const state *s, size_t at) {
    int64_t since = (int64_t)at - s->origin, total = (int64_t)s->r.end - s->origin;
    int64_t last = 2 * (int64_t)WINDOW - AT_ONCE, full = 2 * (int64_t)WINDOW;
    int64_t by_place = since > last ? (since - last - 1) / WINDOW + 1 : 0;
    int64_t by_input = total > full ? (total - full - 1) / WINDOW + 1 : 0;
    return s->origin + (by_place < by_input ? by_place : by_input) * WINDOW;
}

INLINE ls_match find(void *state_, size_t at, uint32_t least) {
    state *s = state_;
    const ls_replay *r = &s->r;
    ls_match best = {0, 0};
    size_t rest = r->end - at;
    (void)least;
    if (at < s->next || rest < LEAST)
        return best;
    enter(s, at);
    int64_t low = buffer_at(s, at);
    uint32_t far = at < WINDOW ? (uint32_t)at : WINDOW;
    if (low > 0 && (int64_t)at - low < far)
        far = (uint32_t)((int64_t)at - low);
    const uint16_t *link = s->link;
    uint32_t dist = link[at & (RING - 1)], tries = s->how.chain, length = LEAST - 1;
    uint32_t most = rest < MAX_MATCH ? (uint32_t)rest : MAX_MATCH;
    uint32_t nice = s->how.nice < most ? s->how.nice : most;
    const uint8_t *here = r->data + at;
    for (; dist <= far && tries; tries--) {
        if (here[length] == (here - dist)[length]) {
            uint32_t n = ls_common(here, here - dist, most);
            if (n > length && (n > LEAST || dist <= NEAR)) {
                length = n;
                best.dist = dist;
                if (n >= nice)
                    break;
            }
        }
        dist += link[(at - dist) & (RING - 1)];
    }
    best.length = best.dist ? length : 0;
    return best;
}

INLINE void ready(void *state_) {
    (void)state_;
}

INLINE void taken(void *state_, size_t at, ls_token token) {
    state *s = state_;
    if (token < 256) {
        if (at < s->next)
            return;
        s->misses++;
        int64_t end = buffer_at(s, at) + 2 * (int64_t)WINDOW;
        size_t next = at + (s->misses >> 5) + 1;
        s->next = end < (int64_t)next ? (size_t)end : next;
        return;
    }
    uint32_t length = token & 0xffff;
    s->misses = 0;
    s->next = at + length;
    if (length > s->how.entered)
        return;
    size_t to = at + length;
    if (to + LEAST - 1 > s->r.end)
        to = s->r.end < LEAST - 1 ? 0 : s->r.end - (LEAST - 1);
    for (size_t p = at + 1; p < to; p++)
        enter(s, p);
}

static int pass(state *s, size_t size) {
    return ls_replay_skip(&s->r, find, ready, taken, 0, size);
}

static void begin(const ls_model *m, void *state_, const ls_span *span) {
    state *s = state_;
    ls_replay *r = &s->r;
    s->how = *(const level *)m->parameters;
    ls_replay_begin(r, span, m->history);
    make_crc(s);
    s->link[0] = NO_LINK;
    s->misses = 0;
    s->next = 0;
    for (size_t i = 0; i < (size_t)1 << HASH_BITS; i++)
        s->head[i] = NOWHERE;
    uint64_t since = span->at - span->flushed;
    uint64_t dictionary = span->flushed < DICTIONARY ? 0 : DICTIONARY;
    s->origin = (int64_t)r->start - (int64_t)since - (int64_t)dictionary;
    size_t from = since < r->start ? r->start - (size_t)since : 0;
    if (since <= r->start) {
        /* A piece begins here or in the history: what it knows of the one before is in the chains. */
        for (size_t at = s->origin < 0 ? 0 : (size_t)s->origin; at + LEAST <= from; at++)
            enter(s, at);
    }
    r->at = from;
    (void)pass(s, r->start - from);
    r->waits.length = 0;
}

static int only_literals(const ls_asking *a) {
    for (size_t i = 0; i < a->n; i++)
        if (a->tokens[i] >= 256)
            return 0;
    return 1;
}

/* More tokens than a block has: they are the bytes of one, if nothing else is said. (What ends a segment is not
 * told apart by its number, so that does not count.) A block of so many that has matches says so with a
 * correction that corrects nothing. */
static int verify(const ls_model *m, void *state_, ls_asking *a) {
    state *s = state_;
    ls_replay *r = &s->r;
    (void)m;
    int large = a->n > BLOCK;
    if (large && a->n < r->size - r->at && only_literals(a)) {
        for (size_t i = 0; i < a->n; i++)
            if (a->tokens[i] != r->data[r->at + i])
                return LS_EFORMAT;
        return pass(s, a->n);
    }
    if (large && !a->capacity)
        return LS_ELIMIT;
    ls_token first = a->n ? a->tokens[0] : 0;
    size_t had = a->count;
    int result = ls_replay_verify(r, find, ready, taken, 0, a);
    if (result == LS_OK && large && a->count == had) {
        a->corrections[a->count].index = a->index;
        a->corrections[a->count++].actual = first;
    }
    return result;
}

static int make(const ls_model *m, void *state_, ls_asking *a, size_t count, size_t until) {
    state *s = state_;
    ls_replay *r = &s->r;
    (void)m;
    if (count > BLOCK && a->next == a->count) {
        if (count > a->n || count > r->size - r->at)
            return LS_EFORMAT;
        for (size_t i = 0; i < count; i++)
            a->tokens[i] = r->data[r->at + i];
        a->n = count;
        return pass(s, count);
    }
    return ls_replay_make(r, find, ready, taken, 0, a, count, until);
}

static int skip(const ls_model *m, void *state_, size_t size) {
    (void)m;
    return pass(state_, size);
}

static int trees(const ls_model *m, void *state_, uint32_t variant, const ls_token *tokens,
                 size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit, uint32_t *hdist) {
    ls_counts counts;
    int matches = 0;
    (void)m;
    (void)state_;
    if (variant)
        return 0;
    for (size_t i = 0; i < n && !matches; i++)
        matches = tokens[i] >= 256;
    ls_count(tokens, n, &counts);
    if (matches)
        ls_go_trees(&counts, litlen, dist, hlit, hdist);
    else
        ls_go_literal_trees(&counts, litlen, dist, hlit, hdist);
    return 1;
}

static const level by_level[] = {{12, 8, 12}, {24, 16, 16}};

#define MODEL(number, level_)                                                                      \
    {                                                                                              \
        .id = 370 + number,                                                                        \
        .name = "kp" #number "-1.8",                                                               \
        .history = HISTORY,                                                                        \
        .ahead = AHEAD,                                                                            \
        .span = 2u << 20,                                                                          \
        .block_tokens = BLOCK,                                                                     \
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

const ls_model ls_models_kpgreedy[] = {MODEL(5, 0), MODEL(6, 1), {.id = 0}};
