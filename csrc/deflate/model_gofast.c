/* model_gofast.c: Go's compress/flate at level 1, from Go 1.8 or so to 1.26 (crane, ko, kaniko, buildpacks).
 *
 * One table of 2^14 entries, by a hash of 4 bytes: the value and the position last seen with it. Found when
 * the value is equal and the distance at most 32,768; the step between searches grows by one with each 32
 * bytes searched in vain. A match reaches back to the chunk before at most, is not extended backwards, and
 * ends with its chunk; then the position before its end and the end itself are entered, and the end is
 * tried at once. The last 15 bytes of a chunk are not searched. FORMAT.md, "Models", has it in full. */
#include "chunks.h"
#include "trees_go.h"

#define TABLE_BITS 14
#define MARGIN 15
#define WARM_CHUNKS 4

typedef struct ls_gofast_tables {
    _Alignas(64) uint64_t table[1 << TABLE_BITS]; /* value, and above it position + FAR */
} ls_gofast_tables;

typedef struct ls_gofast {
    ls_chunks c;
    uint32_t span_at;
    ls_gofast_tables tables, spare;
} ls_gofast;

INLINE uint32_t hash(uint32_t v) {
    return v * 0x1e35a7bdu >> (32 - TABLE_BITS);
}

INLINE uint64_t entry_of(uint32_t value, uint32_t s) {
    return (uint64_t)(s + FAR) << 32 | value;
}

INLINE int find(void *tables, ls_chunks *c, ls_match *m) {
    ls_gofast_tables *t = tables;
    const uint8_t *b = c->b;
    uint32_t s, entry;
    if (c->candidate) {
        s = c->s;
        entry = c->candidate;
        c->candidate = 0;
    } else {
        uint32_t next = c->s, skip = 32;
        if (next + 1 > c->limit)
            return 0;
        uint32_t v = le32(b + next);
        for (;;) {
            s = next;
            uint32_t step = skip >> 5;
            next = s + step;
            skip += step;
            if (next > c->limit)
                return 0;
            uint32_t h = hash(v);
            uint64_t e = t->table[h];
            t->table[h] = entry_of(v, s);
            entry = (uint32_t)(e >> 32);
            if ((uint32_t)e == v && ls_reaches(s, entry, 32768))
                break;
            v = le32(b + next);
        }
    }
    m->at = s;
    m->dist = s + FAR - entry;
    m->length = 4;
    uint32_t end = s + MAX_MATCH < c->to ? s + MAX_MATCH : c->to;
    if (m->dist <= s && s - m->dist + 4 >= c->low)
        m->length += same(b, s + 4, s + 4 - m->dist, end);
    return 1;
}

INLINE void after(void *tables, ls_chunks *c, const ls_match *m) {
    ls_gofast_tables *t = tables;
    uint32_t s = m->at + m->length;
    c->s = c->lit = s;
    if (s >= c->limit)
        return;
    uint64_t x = le64(c->b + s - 1);
    uint32_t before = (uint32_t)x, here = (uint32_t)(x >> 8);
    uint32_t h = hash(here);
    t->table[hash(before)] = entry_of(before, s - 1);
    uint64_t e = t->table[h];
    t->table[h] = entry_of(here, s);
    if ((uint32_t)e == here && ls_reaches(s, (uint32_t)(e >> 32), 32768))
        c->candidate = (uint32_t)(e >> 32);
    else
        c->s = s + 1;
}

INLINE void enter(void *tables, ls_chunks *c) {
    (void)tables;
    c->low = c->from < CHUNK ? 0 : c->from - CHUNK;
}

static const ls_matcher matcher = {
    .find = find,
    .after = after,
    .enter = enter,
    .bytes = sizeof(ls_gofast_tables),
    .margin = MARGIN,
    .least = SMALL_CHUNK,
    .piece = MAX_MATCH,
};

static void begin(const ls_model *model, void *state, const ls_span *span) {
    (void)model;
    ls_gofast *g = state;
    memset(&g->c, 0, sizeof g->c);
    memset(&g->tables, 0, sizeof g->tables);
    uint64_t since = span->at - span->flushed;
    uint64_t warm = since % CHUNK + WARM_CHUNKS * CHUNK;
    if (warm > since)
        warm = since;
    while (warm > span->before)
        warm = warm > CHUNK ? warm - CHUNK : 0;
    uint32_t kept = (uint32_t)(span->before < model->history ? span->before : model->history);
    g->c.b = span->data - kept;
    g->c.at = kept - (uint32_t)warm;
    g->c.size = kept + (uint32_t)span->size;
    g->c.end = g->c.size + (uint32_t)(span->after < CHUNK ? span->after : CHUNK);
    g->c.flush = (int64_t)kept - (int64_t)since;
    g->span_at = kept;
    (void)ls_chunks_skip(&matcher, &g->c, &g->tables, kept);
}

static int verify(const ls_model *model, void *state, ls_asking *a) {
    (void)model;
    ls_gofast *g = state;
    return ls_chunks_verify(&matcher, &g->c, &g->tables, &g->spare, a);
}

static int make(const ls_model *model, void *state, ls_asking *a, size_t count, size_t until) {
    (void)model;
    ls_gofast *g = state;
    return ls_chunks_make(&matcher, &g->c, &g->tables, a, count, until, g->span_at);
}

static int skip(const ls_model *model, void *state, size_t size) {
    (void)model;
    ls_gofast *g = state;
    if (size > g->c.size - g->c.at)
        return LS_EFORMAT;
    return ls_chunks_skip(&matcher, &g->c, &g->tables, g->c.at + (uint32_t)size);
}

static int trees(const ls_model *model, void *state, uint32_t variant, const ls_token *tokens,
                 size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit, uint32_t *hdist) {
    (void)model;
    (void)state;
    if (variant)
        return 0;
    ls_counts counts;
    ls_count(tokens, n, &counts);
    ls_go_trees(&counts, litlen, dist, hlit, hdist);
    return 1;
}

const ls_model ls_models_gofast[] = {
    {
        .id = 221,
        .name = "go-fast1",
        .history = (WARM_CHUNKS + 1) * CHUNK,
        .ahead = CHUNK,
        .span = 64 * CHUNK,
        .block_content = CHUNK,
        .state = sizeof(ls_gofast),
        .begin = begin,
        .verify = verify,
        .make = make,
        .skip = skip,
        .trees = trees,
        .runs = ls_go_runs,
        .codelen = ls_go_codelen,
    },
    {.id = 0},
};
