/* model_kp.c: the models of klauspost/compress and of Go from 1.27 on: their table, where a span's history
 * begins, and the trees of their blocks. The levels' own rules are in model_kp1.c and so on. */
#include "kp_impl.h"
#include "trees_go.h"

uint32_t ls_kp_begin(ls_chunks *c, const ls_span *span, uint32_t history) {
    memset(c, 0, sizeof *c);
    uint64_t since = span->at - span->flushed;
    c->dictionary = span->flushed >= KP_DICTIONARY ? KP_DICTIONARY : 0;
    uint64_t warm = since % CHUNK + KP_WARM_CHUNKS * CHUNK;
    if (warm >= since)
        warm = since + c->dictionary;
    while (warm > span->before)
        warm = warm > CHUNK ? warm - CHUNK : 0;
    uint32_t kept = (uint32_t)(span->before < history ? span->before : history);
    c->b = span->data - kept;
    c->at = kept - (uint32_t)warm;
    c->size = kept + (uint32_t)span->size;
    c->end = c->size + (uint32_t)(span->after < CHUNK ? span->after : CHUNK);
    c->flush = (int64_t)kept - (int64_t)since;
    return kept;
}

int ls_kp_trees(const ls_model *model, void *state, uint32_t variant, const ls_token *tokens,
                size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit, uint32_t *hdist) {
    (void)model;
    (void)state;
    if (variant > 1)
        return 0;
    uint32_t content = 0;
    size_t i = 0;
    int matches = 0;
    for (; i < n && content < CHUNK; i++) {
        content += tokens[i] < 256 ? 1 : tokens[i] & 0xffff;
        matches |= tokens[i] >= 256;
    }
    ls_counts counts;
    ls_go_count(tokens, i, &counts);
    if (!matches) {
        ls_go_literal_trees(&counts, litlen, dist, hlit, hdist);
        return variant == 0;
    }
    ls_go_trees(&counts, litlen, dist, hlit, hdist);
    if (variant == 1) {
        *hlit = LITLEN_SYMBOLS;
        *hdist = DIST_SYMBOLS;
    }
    return 1;
}

#define KP_MODEL(ID, NAME, LEVEL)                                                                  \
    {                                                                                              \
        .id = ID, .name = NAME, .history = KP_HISTORY, .ahead = CHUNK, .span = 1 << 20,            \
        .block_content = CHUNK, .state = sizeof(LEVEL##_state), .begin = ls_##LEVEL##_begin,       \
        .verify = ls_##LEVEL##_verify, .make = ls_##LEVEL##_make, .skip = ls_##LEVEL##_skip,       \
        .trees = ls_kp_trees, .runs = ls_go_runs, .codelen = ls_go_codelen,                        \
    }

const ls_model ls_models_kp[] = {
    KP_MODEL(301, "kp1", kp1),
    KP_MODEL(302, "kp2", kp2),
    KP_MODEL(303, "kp3", kp3),
    KP_MODEL(304, "kp4", kp4),
    KP_MODEL(305, "kp5", kp5),
    KP_MODEL(306, "kp6", kp6),
    KP_MODEL(315, "kp5-1.10", kp5old),
    {.id = 0},
};
