/* model_zlib.c: the decisions of zlib's deflate at levels 1 to 9, and of its relatives.
 *
 * What is the same in all of them: a hash of 3 bytes chains positions, newest first. A search looks at
 * up to `chain` of them (a quarter when a match of `good` or more waits), other bytes with the same hash
 * among them; the first may be 32,506 back, the others less; a longer match wins, one of `nice` bytes
 * ends the search. The first position of a stream is never matched. Levels 4 to 9 parse lazily, and
 * refuse a match of 3 bytes that is over 4,096 back; 1 to 3 parse greedily, and the inside of a match
 * enters the chains only when it has at most `lazy` bytes.
 *
 * Who differs, and how:
 * - pigz compresses pieces of 128 KiB: nothing reaches over the end of one, and with several threads
 *   all that is before one is in the chains. Here that matters at levels 1 to 3 only.
 * - Pieces that stand alone (pigz -i, Z_FULL_FLUSH) know nothing from before the flush.
 * - GNU gzip does not bound `nice` by the end of input, and compares with what its buffer holds behind
 *   it: two zeros, then what was there one window earlier. It looks for nothing in its buffer's last 261
 *   bytes, which it only gets to at the end. Whether its buffer moves on a last time depends on where the
 *   parse first sees fewer than 262 bytes left.
 * - With memLevel 9 the hash has 16 bits and blocks have 32,767 tokens. */
#include "replay.h"
#include "trees_zlib.h"

#define MAX_DIST 32506u
#define TOO_FAR 4096u
#define BITS4 15
#define AT_ONCE 262u /* bytes left below which an encoder reads on, if there is more */
#define PIECE 131072u
#define HISTORY_LAZY (WINDOW + 2 * WARM_UP)
#define HISTORY_GREEDY (PIECE + WINDOW)
#define HISTORY_LONG (12 * WINDOW) /* all that is before the second span of a blob */
#define AHEAD 1024u                /* more than a match */
#define GZIP_SUM 4096u
#define PIGZ_BITS 12u
#define PIGZ_HIT 2047u
#define NOWHERE INT32_MIN /* in a chain's head: nothing yet */

enum kind {
    ZLIB,
    ZLIB_ALONE, /* pieces that know nothing of what was before the flush */
    PIGZ,       /* pieces with a dictionary */
    PIGZ_ONE,   /* pieces, one state throughout */
    GZIP,
    PIGZ_MARKS, /* pieces with a dictionary that end where their content says; levels 4 to 9 */
};

typedef struct level {
    uint16_t good, lazy, nice, chain;
} level;

typedef struct parameters {
    level how;
    uint8_t greedy, kind, hash_bits;
} parameters;

typedef struct state {
    ls_replay r;
    parameters p;
    size_t hashable; /* positions below have 3 bytes that the encoder knew of */
    size_t
        settled; /* GNU gzip: from this token on its buffer does not move; SIZE_MAX: it has settled */
    uint64_t buffer; /* where it began then, in bytes of the stream */
    uint16_t link[RING];
    int32_t head[1 << 16];
    /* Lazy levels: chains of 4 bytes, and each position's place in its chain of 3, modulo 2^16. */
    uint16_t link4[RING], place[RING];
    int32_t head4[1 << BITS4];
    uint16_t places[1 << 16];
} state;

INLINE uint32_t hash(const uint8_t *p, uint32_t bits) {
    uint32_t shift = (bits + 2) / 3;
    return ((uint32_t)p[0] << 2 * shift ^ (uint32_t)p[1] << shift ^ p[2]) & ((1u << bits) - 1);
}

INLINE void enter(state *s, size_t at, uint32_t bits) {
    uint32_t h = hash(s->r.data + at, bits);
    int64_t d = (int64_t)at - s->head[h];
    s->head[h] = (int32_t)at;
    s->link[at & (RING - 1)] = d < NO_LINK ? (uint16_t)d : NO_LINK;
}

INLINE void enter4(state *s, size_t at) {
    uint32_t h = ls_load32(s->r.data + at) * 0x9e3779b1u >> (32 - BITS4);
    int64_t d = (int64_t)at - s->head4[h];
    s->head4[h] = (int32_t)at;
    s->link4[at & (RING - 1)] = d < NO_LINK ? (uint16_t)d : NO_LINK;
}

INLINE void enter_all(state *s, size_t from, size_t to, uint32_t bits) {
    for (size_t at = from; at < to; at++)
        enter(s, at, bits);
}

/* Into both kinds of chains, with its place in that of 3 bytes. */
INLINE void enter_placed(state *s, size_t from, size_t to, uint32_t bits) {
    for (size_t at = from; at < to; at++) {
        enter(s, at, bits);
        s->place[at & (RING - 1)] = ++s->places[hash(s->r.data + at, bits)];
    }
    for (size_t at = from; at < to; at++)
        enter4(s, at);
}

/* GNU gzip's buffer is of two windows, and moves on by one when it is full up to the last byte but one. It
 * asks for more input where it has fewer than AT_ONCE bytes left, at the position that it looks at then: a
 * token's first, or, lazily, its second. Only if that lies in the buffer's last AT_ONCE bytes, the buffer
 * moves; at the end of input, where nothing more comes, this is the last time. */
static void settle(state *s) {
    const ls_replay *r = &s->r;
    uint64_t total = r->data_at + r->input, full = 2 * WINDOW - 1;
    size_t looked = r->at + AT_ONCE > r->input ? r->at : r->at + 1;
    s->buffer = total < full ? 0 : WINDOW * ((total - full) / WINDOW + 1);
    if (r->data_at + looked - s->buffer >= 2 * WINDOW - AT_ONCE)
        s->buffer += WINDOW;
    s->settled = SIZE_MAX;
}

/* Its byte at a position: behind the content two zeros, then what was there before the buffer moved. */
static uint32_t gzip_byte(const state *s, size_t at) {
    if (at < s->r.input)
        return s->r.data[at];
    return at < s->r.input + 2 || !s->buffer ? 0 : s->r.data[at - WINDOW];
}

static ls_match gzip_find_at_end(state *s, size_t at, uint32_t least, uint32_t tries,
                                 uint32_t most_dist) {
    const ls_replay *r = &s->r;
    ls_match best = {0, 0};
    uint32_t rest = (uint32_t)(r->input - at), length = least;
    uint32_t dist = s->link[at & (RING - 1)], limit = most_dist + (most_dist == MAX_DIST - 1);
    if (r->data_at + at - s->buffer > 2 * WINDOW - AT_ONCE)
        return best;
    for (; dist <= limit && tries; tries--, limit = most_dist) {
        uint32_t n = 0;
        while (n < MAX_MATCH && gzip_byte(s, at + n) == gzip_byte(s, at + n - dist))
            n++;
        if (n > length) {
            length = n;
            best.length = n < rest ? n : rest;
            best.dist = dist;
            if (n >= s->p.how.nice)
                break;
        }
        dist += s->link[(at - dist) & (RING - 1)];
    }
    if (best.length <= least)
        best.length = 0;
    return best;
}

/* How far back a candidate may be; one more for the first, if that is the window's bound. */
INLINE uint32_t farthest(size_t at) {
    /* Position 0 of a stream, or of a piece that stands alone, is no candidate. */
    return at - 1 < MAX_DIST ? (uint32_t)(at - 1) : MAX_DIST - 1;
}

INLINE uint32_t tries_of(const state *s, uint32_t least) {
    return least >= s->p.how.good ? s->p.how.chain >> 2 : s->p.how.chain;
}

/* Along the chain of 3 bytes, as the encoders go. */
INLINE ls_match search3(const state *s, size_t at, uint32_t least, uint32_t most, uint32_t far) {
    const uint8_t *here = s->r.data + at;
    const uint16_t *link = s->link;
    ls_match best = {0, 0};
    uint32_t dist = link[at & (RING - 1)], tries = tries_of(s, least), length = least;
    uint32_t nice = s->p.how.nice < most ? s->p.how.nice : most;
    if (dist > far + (far == MAX_DIST - 1))
        return best;
    /* The last bytes of a match that would be longer, 4 where there are so many. */
    uint32_t mask = 0xffffff, tail = ls_load32(here) & mask;
    const uint8_t *probe = here;
    if (length >= MIN_MATCH) {
        mask = 0xffffffff;
        probe = here + length - 3;
        tail = ls_load32(probe);
    }
    do {
        if (((ls_load32(probe - dist) ^ tail) & mask) == 0) {
            uint32_t n = ls_common(here, here - dist, most);
            if (n > length) {
                length = n;
                best.dist = dist;
                if (n >= nice)
                    break;
                mask = 0xffffffff;
                probe = here + length - 3;
                tail = ls_load32(probe);
            }
        }
        dist += link[(at - dist) & (RING - 1)];
    } while (dist <= far && --tries);
    best.length = best.dist ? length : 0;
    return best;
}

/* The same for a match of over 3 bytes, along the chain of 4: all that could be one is there, in the same
 * order. An encoder gives up after so many candidates of 3 bytes; a candidate's place tells how many came
 * before it. A place means something only where the bytes are the same, not just their hash. */
INLINE ls_match search4(const state *s, size_t at, uint32_t least, uint32_t most, uint32_t far) {
    const uint8_t *here = s->r.data + at;
    const uint16_t *link = s->link4, *place = s->place;
    ls_match best = {0, 0};
    uint32_t dist = link[at & (RING - 1)], tries = tries_of(s, least);
    uint32_t length = least < MIN_MATCH ? MIN_MATCH : least, own = place[at & (RING - 1)];
    uint32_t nice = s->p.how.nice < most ? s->p.how.nice : most;
    uint32_t bound = far + (far == MAX_DIST - 1), first = ls_load32(here);
    const uint8_t *probe = here + length - 3;
    uint32_t tail = ls_load32(probe);
    if (dist > bound || (least > MIN_MATCH && ls_none_longer(link, here, at, length, 0, bound)))
        return best;
    do {
        uint32_t n, before = (own - place[(at - dist) & (RING - 1)]) & 0xffff;
        if (before > tries || (dist > far && before > 1)) {
            if (ls_load32(here - dist) == first)
                break;
        } else if (ls_load32(probe - dist) == tail &&
                   (n = ls_common(here, here - dist, most)) > length) {
            length = n;
            best.dist = dist;
            if (n >= nice || ls_none_longer(link, here, at, length, dist, far))
                break;
            probe = here + length - 3;
            tail = ls_load32(probe);
        }
        dist += link[(at - dist) & (RING - 1)];
    } while (dist <= bound);
    best.length = best.dist ? length : 0;
    return best;
}

INLINE ls_match find(void *state_, size_t at, uint32_t least) {
    state *s = state_;
    ls_match best = {0, 0};
    size_t rest = s->r.end - at;
    uint32_t far = farthest(at);
    if (rest < MIN_MATCH || least >= rest)
        return best;
    if (s->p.kind == GZIP && rest < AT_ONCE) {
        best = gzip_find_at_end(s, at, least, tries_of(s, least), far);
    } else {
        uint32_t most = rest < MAX_MATCH ? (uint32_t)rest : MAX_MATCH;
        if (most > MIN_MATCH)
            best = search4(s, at, least, most, far);
        if (!best.length && least < MIN_MATCH)
            best = search3(s, at, least, MIN_MATCH, far < TOO_FAR ? far : TOO_FAR);
    }
    if (best.length == MIN_MATCH && best.dist > TOO_FAR)
        best.length = 0;
    return best;
}

/* Greedy levels: a position enters its chain when it is looked at. */
INLINE ls_match find_greedy(void *state_, size_t at, uint32_t least) {
    state *s = state_;
    ls_match best = {0, 0};
    size_t rest = s->r.end - at;
    if (rest < MIN_MATCH)
        return best;
    enter(s, at, s->p.hash_bits);
    if (least >= rest)
        return best;
    if (s->p.kind == GZIP && rest < AT_ONCE)
        return gzip_find_at_end(s, at, least, tries_of(s, least), farthest(at));
    return search3(s, at, least, rest < MAX_MATCH ? (uint32_t)rest : MAX_MATCH, farthest(at));
}

/* ---- what happens at each token --------------------------------------------------------------- */

/* `--rsyncable`: a block ends by its content, so that a change has no effect beyond. GNU gzip ends one where
 * the sum of the last 4,096 bytes is a multiple of 4,096. */
static size_t gzip_mark(const uint8_t *data, size_t before, uint64_t at_, size_t size) {
    (void)at_;
    uint32_t sum = 0;
    size_t from = before < GZIP_SUM ? GZIP_SUM - before : 0;
    if (from >= size)
        return SIZE_MAX;
    for (const uint8_t *p = data + from - GZIP_SUM, *end = data + from; p < end; p++)
        sum += *p;
    for (size_t at = from; at < size; at++) {
        sum += data[at];
        sum -= *(data + at - GZIP_SUM);
        if (sum % GZIP_SUM == 0)
            return at + 1;
    }
    return SIZE_MAX;
}

/* pigz ends its input for a moment behind each hit of a hash of 12 bits, which knows 12 bytes. */
static size_t pigz_mark(const uint8_t *data, size_t before, uint64_t at_, size_t size) {
    (void)at_;
    uint32_t hash = PIGZ_HIT;
    size_t known = before < PIGZ_BITS ? before : PIGZ_BITS;
    for (const uint8_t *p = data - known; p < data; p++)
        hash = hash << 1 ^ *p;
    for (size_t at = 0; at < size; at++) {
        hash = (hash << 1 ^ data[at]) & ((1u << PIGZ_BITS) - 1);
        if (hash == PIGZ_HIT)
            return at + 1;
    }
    return SIZE_MAX;
}

/* Without `--rsyncable` it does so every 128 KiB. */
static size_t piece_mark(const uint8_t *data, size_t before, uint64_t at, size_t size) {
    size_t left = PIECE - (size_t)(at % PIECE);
    (void)data;
    (void)before;
    return left <= size ? left : SIZE_MAX;
}

/* Where the piece that holds `at` ends. */
static size_t piece_end(const state *s, size_t at) {
    const ls_replay *r = &s->r;
    if (s->p.kind == PIGZ_MARKS) {
        size_t n = pigz_mark(r->data + at, r->before + at, 0, r->input - at);
        return n == SIZE_MAX ? r->input : at + n;
    }
    size_t rest = PIECE - (size_t)((r->data_at + at) % PIECE);
    return rest < r->input - at ? at + rest : r->input;
}

INLINE void ready_lazy(void *state_) {
    state *s = state_;
    ls_replay *r = &s->r;
    if (r->at + 2 + MAX_MATCH > r->linked && r->linked < s->hashable) {
        size_t to = r->linked + LINK_STEP;
        to = to < s->hashable ? to : s->hashable;
        if (s->p.hash_bits == 15)
            enter_placed(s, r->linked, to, 15);
        else
            enter_placed(s, r->linked, to, 16);
        r->linked = to;
    }
    if (r->at >= r->end && r->end < r->input)
        r->end = piece_end(s, r->at);
    if (r->at >= s->settled)
        settle(s);
}

static void clear(state *s) {
    size_t n = (size_t)1 << s->p.hash_bits;
    for (size_t i = 0; i < n; i++)
        s->head[i] = NOWHERE;
}

/* After a flush: the last positions before it, whose bytes were not all there, enter now. */
static void enter_late(state *s, size_t flush) {
    for (size_t at = flush < 2 ? 0 : flush - 2; at < flush && at < s->hashable; at++)
        enter(s, at, s->p.hash_bits);
}

/* A piece begins: its dictionary is all in the chains. */
static void enter_dictionary(state *s, size_t at) {
    clear(s);
    enter_all(s, at < WINDOW ? 0 : at - WINDOW, at < s->hashable ? at : s->hashable,
              s->p.hash_bits);
}

INLINE void ready_greedy(void *state_) {
    state *s = state_;
    ls_replay *r = &s->r;
    if (r->at >= r->end && r->end < r->input) {
        if (s->p.kind == PIGZ)
            enter_dictionary(s, r->at);
        else
            enter_late(s, r->at);
        r->end = s->p.kind == PIGZ || s->p.kind == PIGZ_ONE ? piece_end(s, r->at) : r->input;
    }
    if (r->at >= s->settled)
        settle(s);
}

INLINE void taken_greedy(void *state_, size_t at, ls_token token) {
    state *s = state_;
    uint32_t length = token & 0xffff;
    if (token < 256 || length > s->p.how.lazy || s->r.end < at + length + MIN_MATCH)
        return;
    for (size_t p = at + 1; p < at + length; p++)
        enter(s, p, s->p.hash_bits);
}

/* ---- the face ---------------------------------------------------------------------------------- */

INLINE int pass(state *s, size_t to) {
    return s->p.greedy ? ls_replay_skip(&s->r, find_greedy, ready_greedy, taken_greedy, 0, to)
                       : ls_replay_skip(&s->r, find, ready_lazy, NULL, s->p.how.lazy, to);
}

static void begin(const ls_model *m, void *state_, const ls_span *span) {
    state *s = state_;
    ls_replay *r = &s->r;
    s->p = *(const parameters *)m->parameters;
    int pieces = s->p.kind == PIGZ || s->p.kind == PIGZ_ONE, marks = s->p.kind == PIGZ_MARKS;
    uint64_t since = span->at - span->flushed;
    size_t history = m->history;
    if (s->p.kind == ZLIB_ALONE && since < history)
        history = (size_t)since;
    if (s->p.kind == PIGZ && s->p.greedy)
        history = WINDOW + (size_t)(span->at % PIECE);
    ls_replay_begin(r, span, history);
    s->hashable = r->input < 2 ? 0 : r->input - 2;
    s->link[0] = NO_LINK;
    clear(s);
    s->buffer = 0;
    s->settled = SIZE_MAX;
    if (s->p.kind == GZIP) {
        size_t seen_late = AT_ONCE - (s->p.greedy ? 1 : 0);
        s->settled = r->input < seen_late ? 0 : r->input - seen_late;
    }
    size_t flushed = since < r->start ? r->start - (size_t)since : 0;
    size_t from = flushed;
    if (pieces && span->at % PIECE < r->start - from)
        from = r->start - (size_t)(span->at % PIECE);
    if (s->p.greedy) {
        /* What is in the chains depends on the tokens: those of the history are found again. */
        if (s->p.kind == PIGZ) {
            enter_dictionary(s, from);
            r->at = from;
            r->end = piece_end(s, from);
        } else if (pieces) {
            r->end = piece_end(s, 0);
        } else {
            r->end = from;
            (void)pass(s, from);
            enter_late(s, from);
            r->end = r->input;
        }
    } else {
        if (from + WARM_UP < r->start)
            from = r->start - WARM_UP;
        for (size_t next = from; marks && next <= r->start && next < r->input; from = next) {
            /* To the last end of a piece that is not behind the span's start. */
            size_t n = pigz_mark(r->data + next, r->before + next, 0, r->start - next);
            if (n == SIZE_MAX)
                break;
            next += n;
        }
        r->linked = from < s->hashable ? from : s->hashable;
        for (size_t i = 0; i < (size_t)1 << BITS4; i++)
            s->head4[i] = NOWHERE;
        memset(s->places, 0, sizeof s->places);
        enter_placed(s, 0, r->linked, s->p.hash_bits);
        r->at = from;
        if (pieces || marks)
            r->end = piece_end(s, from);
    }
    (void)pass(s, r->start - r->at);
}

static int verify(const ls_model *m, void *state_, ls_asking *a) {
    state *s = state_;
    (void)m;
    return s->p.greedy ? ls_replay_verify(&s->r, find_greedy, ready_greedy, taken_greedy, 0, a)
                       : ls_replay_verify(&s->r, find, ready_lazy, NULL, s->p.how.lazy, a);
}

static int make(const ls_model *m, void *state_, ls_asking *a, size_t count, size_t until) {
    state *s = state_;
    (void)m;
    return s->p.greedy
               ? ls_replay_make(&s->r, find_greedy, ready_greedy, taken_greedy, 0, a, count, until)
               : ls_replay_make(&s->r, find, ready_lazy, NULL, s->p.how.lazy, a, count, until);
}

static int skip(const ls_model *m, void *state_, size_t size) {
    (void)m;
    return pass(state_, size);
}

static int trees(const ls_model *m, void *state_, uint32_t variant, const ls_token *tokens,
                 size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit, uint32_t *hdist) {
    (void)m;
    (void)state_;
    if (variant)
        return 0;
    ls_zlib_trees(tokens, n, litlen, dist, hlit, hdist);
    return 1;
}

/* By level: good, lazy, nice, chain. */
static const parameters by_level[6][9] = {
#define LEVELS(kind, bits)                                                                         \
    {                                                                                              \
        {{4, 4, 8, 4}, 1, kind, bits},         {{4, 5, 16, 8}, 1, kind, bits},                     \
        {{4, 6, 32, 32}, 1, kind, bits},       {{4, 4, 16, 16}, 0, kind, bits},                    \
        {{8, 16, 32, 32}, 0, kind, bits},      {{8, 16, 128, 128}, 0, kind, bits},                 \
        {{8, 32, 128, 256}, 0, kind, bits},    {{32, 128, 258, 1024}, 0, kind, bits},              \
        {{32, 258, 258, 4096}, 0, kind, bits},                                                     \
    }
    LEVELS(ZLIB, 15), LEVELS(PIGZ, 15),       LEVELS(GZIP, 15),
    LEVELS(ZLIB, 16), LEVELS(ZLIB_ALONE, 15), LEVELS(PIGZ_MARKS, 15),
};
static const parameters one_thread[3] = {{{4, 4, 8, 4}, 1, PIGZ_ONE, 15},
                                         {{4, 5, 16, 8}, 1, PIGZ_ONE, 15},
                                         {{4, 6, 32, 32}, 1, PIGZ_ONE, 15}};

#define SPAN                                                                                       \
    (2u << 20) /* of content that suits a model; where each mark is a flush, half of it does */
#define MODEL(number, named, past, tokens_, flags_, how)                                           \
    MARKING(number, named, past, SPAN, tokens_, flags_, how, NULL)

#define MARKING(number, named, past, span_, tokens_, flags_, how, marks)                           \
    {                                                                                              \
        .id = number,                                                                              \
        .name = named,                                                                             \
        .history = past,                                                                           \
        .ahead = AHEAD,                                                                            \
        .span = span_,                                                                             \
        .block_tokens = tokens_,                                                                   \
        .flags = flags_,                                                                           \
        .state = sizeof(state),                                                                    \
        .begin = begin,                                                                            \
        .verify = verify,                                                                          \
        .make = make,                                                                              \
        .skip = skip,                                                                              \
        .trees = trees,                                                                            \
        .runs = ls_zlib_runs,                                                                      \
        .codelen = ls_zlib_codelen,                                                                \
        .mark = marks,                                                                             \
        .parameters = how,                                                                         \
    }
#define FAMILY(base, named, kind, tokens_, flags_)                                                 \
    MODEL(base + 1, named " 1", HISTORY_GREEDY, tokens_, flags_, &by_level[kind][0]),              \
        MODEL(base + 2, named " 2", HISTORY_GREEDY, tokens_, flags_, &by_level[kind][1]),          \
        MODEL(base + 3, named " 3", HISTORY_GREEDY, tokens_, flags_, &by_level[kind][2]),          \
        MODEL(base + 4, named " 4", HISTORY_LAZY, tokens_, flags_, &by_level[kind][3]),            \
        MODEL(base + 5, named " 5", HISTORY_LAZY, tokens_, flags_, &by_level[kind][4]),            \
        MODEL(base + 6, named " 6", HISTORY_LAZY, tokens_, flags_, &by_level[kind][5]),            \
        MODEL(base + 7, named " 7", HISTORY_LAZY, tokens_, flags_, &by_level[kind][6]),            \
        MODEL(base + 8, named " 8", HISTORY_LAZY, tokens_, flags_, &by_level[kind][7]),            \
        MODEL(base + 9, named " 9", HISTORY_LAZY, tokens_, flags_, &by_level[kind][8])

#define PIGZ_FLAGS (LS_MODEL_UNFLUSHED | LS_MODEL_FILLS | LS_MODEL_FILLS_FIXED)
#define PIGZ_PIECES(level, past)                                                                   \
    MARKING(180 + level, "pigz " #level, past, SPAN, 16383, PIGZ_FLAGS, &by_level[1][level - 1],   \
            piece_mark)
#define PIGZ_ALONE(level)                                                                          \
    MARKING(190 + level, "pigz -p1 " #level, HISTORY_LONG, SPAN, 16383, PIGZ_FLAGS,                \
            &one_thread[level - 1], piece_mark)
#define PIGZ_RSYNCABLE(base, named, level, span_, flags_)                                          \
    MARKING(base + level, named " " #level, HISTORY_LAZY, span_, 16383, PIGZ_FLAGS | flags_,       \
            &by_level[5][level - 1], pigz_mark)
#define GZIP_RSYNCABLE(base, named, level, past, span_, flags_)                                    \
    MARKING(base + level, named " " #level, past, span_, 32767,                                    \
            LS_MODEL_UNFLUSHED | LS_MODEL_FILLS | flags_, &by_level[2][level - 1], gzip_mark)
/* Once as at first, and once with the kinds of their blocks. */
#define OLD LS_MODEL_SUPERSEDED
#define GZIP_OLD(level, past)                                                                      \
    GZIP_RSYNCABLE(160, "GNU gzip --rsyncable (old)", level, past, SPAN, OLD)
#define GZIP_TYPED(level, past)                                                                    \
    GZIP_RSYNCABLE(460, "GNU gzip --rsyncable", level, past, 2 * SPAN, LS_MODEL_TYPES)
#define PIGZ_OLD(level) PIGZ_RSYNCABLE(170, "pigz --rsyncable (old)", level, SPAN, OLD)
#define PIGZ_TYPED(level) PIGZ_RSYNCABLE(470, "pigz --rsyncable", level, 2 * SPAN, LS_MODEL_TYPES)

const ls_model ls_models_zlib[] = {
    FAMILY(100, "zlib", 0, 16383, 0),
    FAMILY(110, "pigz (old)", 1, 16383, LS_MODEL_SUPERSEDED),
    FAMILY(120, "GNU gzip", 2, 32767, LS_MODEL_UNFLUSHED),
    FAMILY(130, "zlib memLevel 9", 3, 32767, 0),
    FAMILY(140, "zlib independent pieces", 4, 16383, 0),
    MODEL(151, "pigz -p1 (old) 1", HISTORY_GREEDY, 16383, LS_MODEL_SUPERSEDED, &one_thread[0]),
    MODEL(152, "pigz -p1 (old) 2", HISTORY_GREEDY, 16383, LS_MODEL_SUPERSEDED, &one_thread[1]),
    MODEL(153, "pigz -p1 (old) 3", HISTORY_GREEDY, 16383, LS_MODEL_SUPERSEDED, &one_thread[2]),
    PIGZ_PIECES(1, HISTORY_GREEDY),
    PIGZ_PIECES(2, HISTORY_GREEDY),
    PIGZ_PIECES(3, HISTORY_GREEDY),
    PIGZ_PIECES(4, HISTORY_LAZY),
    PIGZ_PIECES(5, HISTORY_LAZY),
    PIGZ_PIECES(6, HISTORY_LAZY),
    PIGZ_PIECES(7, HISTORY_LAZY),
    PIGZ_PIECES(8, HISTORY_LAZY),
    PIGZ_PIECES(9, HISTORY_LAZY),
    PIGZ_ALONE(1),
    PIGZ_ALONE(2),
    PIGZ_ALONE(3),
    GZIP_OLD(1, HISTORY_LONG),
    GZIP_OLD(2, HISTORY_LONG),
    GZIP_OLD(3, HISTORY_LONG),
    GZIP_OLD(4, HISTORY_LAZY),
    GZIP_OLD(5, HISTORY_LAZY),
    GZIP_OLD(6, HISTORY_LAZY),
    GZIP_OLD(7, HISTORY_LAZY),
    GZIP_OLD(8, HISTORY_LAZY),
    GZIP_OLD(9, HISTORY_LAZY),
    PIGZ_OLD(4),
    PIGZ_OLD(5),
    PIGZ_OLD(6),
    PIGZ_OLD(7),
    PIGZ_OLD(8),
    PIGZ_OLD(9),
    GZIP_TYPED(1, HISTORY_LONG),
    GZIP_TYPED(2, HISTORY_LONG),
    GZIP_TYPED(3, HISTORY_LONG),
    GZIP_TYPED(4, HISTORY_LAZY),
    GZIP_TYPED(5, HISTORY_LAZY),
    GZIP_TYPED(6, HISTORY_LAZY),
    GZIP_TYPED(7, HISTORY_LAZY),
    GZIP_TYPED(8, HISTORY_LAZY),
    GZIP_TYPED(9, HISTORY_LAZY),
    PIGZ_TYPED(4),
    PIGZ_TYPED(5),
    PIGZ_TYPED(6),
    PIGZ_TYPED(7),
    PIGZ_TYPED(8),
    PIGZ_TYPED(9),
    {.id = 0},
};
