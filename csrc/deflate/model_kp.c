/* model_kp.c: the models of klauspost/compress and of Go from 1.27 on: their table, where a span's history
 * begins, and the trees of their blocks. The levels' own rules are in model_kp1.c and so on. */
#include "kp_impl.h"
#include "trees_go.h"

uint32_t ls_kp_begin(const ls_model *model, ls_chunks *c, const ls_span *span) {
    memset(c, 0, sizeof *c);
    uint64_t since = span->at - span->flushed;
    int dictionary = span->flushed >= KP_DICTIONARY && !(model->flags & LS_MODEL_ALONE);
    c->dictionary = dictionary ? KP_DICTIONARY : 0;
    uint64_t warm = since % CHUNK + KP_WARM_CHUNKS * CHUNK;
    if (warm >= since)
        warm = since + c->dictionary;
    while (warm > span->before)
        warm = warm > CHUNK ? warm - CHUNK : 0;
    uint32_t history = model->history,
             kept = (uint32_t)(span->before < history ? span->before : history);
    c->b = span->data - kept;
    c->at = kept - (uint32_t)warm;
    c->size = kept + (uint32_t)span->size;
    c->end = c->size + (uint32_t)(span->after < CHUNK ? span->after : CHUNK);
    c->flush = (int64_t)kept - (int64_t)since;
    return kept;
}

/* Only the tokens of the first part that was written count: a chunk's, or so many. The encoder may go on
 * with the same trees over further ones, which the block's decision was then. */
static int trees_by(ls_go_coder coder, const ls_model *model, uint32_t variant,
                    const ls_token *tokens, size_t n, ls_code *litlen, ls_code *dist,
                    uint32_t *hlit, uint32_t *hdist) {
    if (variant > 2)
        return 0;
    uint32_t content = 0;
    size_t i = 0;
    int matches = 0;
    size_t most = model->block_tokens ? model->block_tokens : n;
    for (; i < n && i < most && (model->block_tokens || content < CHUNK); i++) {
        content += tokens[i] < 256 ? 1 : tokens[i] & 0xffff;
        matches |= tokens[i] >= 256;
    }
    ls_counts counts;
    ls_count(tokens, i, &counts);
    matches |= model->block_tokens != 0;
    if (variant == 2) {
        /* Up to 1.13.6: a code for every symbol, so that the next chunk can use it. */
        for (uint32_t k = 0; k < (matches ? LITLEN_SYMBOLS : END_OF_BLOCK); k++)
            counts.litlen[k] += !counts.litlen[k];
        for (uint32_t k = 0; k < DIST_SYMBOLS; k++)
            counts.dist[k] += !counts.dist[k];
    }
    if (!matches) {
        ls_go_literal_trees_by(coder, &counts, litlen, dist, hlit, hdist);
        return variant != 1;
    }
    ls_go_trees_by(coder, &counts, litlen, dist, hlit, hdist);
    if (variant) {
        *hlit = LITLEN_SYMBOLS;
        *hdist = DIST_SYMBOLS;
    }
    return 1;
}

static int trees(const ls_model *model, void *state, uint32_t variant, const ls_token *tokens,
                 size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit, uint32_t *hdist) {
    (void)state;
    return trees_by(ls_go_code, model, variant, tokens, n, litlen, dist, hlit, hdist);
}

static int trees_120(const ls_model *model, void *state, uint32_t variant, const ls_token *tokens,
                     size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit, uint32_t *hdist) {
    (void)state;
    return trees_by(ls_go_code_120, model, variant, tokens, n, litlen, dist, hlit, hdist);
}

/* Longer spans where the tables take long to become what they would be from the stream's start on: what
 * they lack costs corrections at each span's beginning. */
#define KP_MODEL(ID, NAME, LEVEL, SPAN, TREES, CODELEN)                                            \
    KP_FLAGGED(ID, NAME, LEVEL, SPAN, TREES, CODELEN, 0)

#define KP_FLAGGED(ID, NAME, LEVEL, SPAN, TREES, CODELEN, FLAGS)                                   \
    {                                                                                              \
        .id = ID,                                                                                  \
        .name = NAME,                                                                              \
        .history = KP_HISTORY,                                                                     \
        .ahead = CHUNK,                                                                            \
        .span = SPAN << 20,                                                                        \
        .block_content = CHUNK,                                                                    \
        .state = sizeof(LEVEL##_state),                                                            \
        .flags = FLAGS,                                                                            \
        .begin = ls_##LEVEL##_begin,                                                               \
        .verify = ls_##LEVEL##_verify,                                                             \
        .make = ls_##LEVEL##_make,                                                                 \
        .skip = ls_##LEVEL##_skip,                                                                 \
        .trees = TREES,                                                                            \
        .runs = ls_go_runs,                                                                        \
        .codelen = CODELEN,                                                                        \
    }

#define KP7_MODEL(ID, NAME, PARAMETERS, TREES, CODELEN)                                            \
    KP7_TOKENS(ID, NAME, PARAMETERS, TREES, CODELEN, KP7_BLOCK_TOKENS)

#define KP7_TOKENS(ID, NAME, PARAMETERS, TREES, CODELEN, TOKENS)                                   \
    {                                                                                              \
        .id = ID,                                                                                  \
        .name = NAME,                                                                              \
        .history = 4 * KP_WINDOW,                                                                  \
        .ahead = 3 * KP_WINDOW,                                                                    \
        .span = 2 << 20,                                                                           \
        .block_tokens = TOKENS,                                                                    \
        .state = sizeof(ls_kp7),                                                                   \
        .begin = ls_kp7_begin,                                                                     \
        .verify = ls_kp7_verify,                                                                   \
        .make = ls_kp7_make,                                                                       \
        .skip = ls_kp7_skip,                                                                       \
        .trees = TREES,                                                                            \
        .runs = ls_go_runs,                                                                        \
        .codelen = CODELEN,                                                                        \
        .parameters = &PARAMETERS,                                                                 \
    }

/* Numbers: the last digit is the level, the one before it stands for the releases. The likeliest come first:
 * where several predict alike, as of a span of stored blocks, the first is taken. */
const ls_model ls_models_kp[] = {
    KP_MODEL(305, "kp5", kp5, 4, trees, ls_go_codelen),
    KP_MODEL(306, "kp6", kp6, 4, trees, ls_go_codelen),
    KP_MODEL(355, "kp5-1.20.1", kp5_120, 4, trees_120, ls_go_codelen_120),
    KP_MODEL(356, "kp6-1.20.1", kp6_120, 4, trees_120, ls_go_codelen_120),
    KP_MODEL(301, "kp1", kp1, 8, trees, ls_go_codelen),
    KP_MODEL(302, "kp2", kp2, 4, trees, ls_go_codelen),
    KP_MODEL(303, "kp3", kp3, 4, trees, ls_go_codelen),
    KP_MODEL(304, "kp4", kp4, 4, trees, ls_go_codelen),
    KP7_MODEL(307, "kp7", ls_kp7_level7, trees, ls_go_codelen),
    KP7_MODEL(308, "kp8", ls_kp7_level8, trees, ls_go_codelen),
    KP7_MODEL(309, "kp9", ls_kp7_level9, trees, ls_go_codelen),
    /* pgzip over 1.9 gives dictionaries, which that release forgets. */
    KP_FLAGGED(345, "kp5-1.9 pieces", kp5_19, 4, trees, ls_go_codelen, LS_MODEL_ALONE),
    KP_FLAGGED(346, "kp6-1.9 pieces", kp6_19, 4, trees, ls_go_codelen, LS_MODEL_ALONE),
    KP_MODEL(365, "kp5-1.9", kp5_19, 4, trees, ls_go_codelen),
    KP_MODEL(366, "kp6-1.9", kp6_19, 4, trees, ls_go_codelen),
    KP_MODEL(315, "kp5-1.10", kp5_110, 4, trees, ls_go_codelen),
    KP_MODEL(316, "kp6-1.10", kp6_110, 4, trees, ls_go_codelen),
    KP_MODEL(325, "kp5-1.12", kp5_112, 4, trees, ls_go_codelen),
    KP_MODEL(326, "kp6-1.12", kp6_112, 4, trees, ls_go_codelen),
    KP_MODEL(335, "kp5-1.15.0", kp5_115, 4, trees, ls_go_codelen),
    KP_MODEL(336, "kp6-1.15.0", kp6_115, 4, trees, ls_go_codelen),
    KP7_MODEL(349, "kp9-1.15.10", ls_kp7_level9_whole, trees, ls_go_codelen),
    KP_MODEL(351, "kp1-1.20.1", kp1_120, 8, trees_120, ls_go_codelen_120),
    KP_MODEL(352, "kp2-1.20.1", kp2_120, 4, trees_120, ls_go_codelen_120),
    KP_MODEL(353, "kp3-1.20.1", kp3_120, 4, trees_120, ls_go_codelen_120),
    KP_MODEL(354, "kp4-1.20.1", kp4_120, 4, trees_120, ls_go_codelen_120),
    KP7_MODEL(357, "kp7-1.20.1", ls_kp7_level7, trees_120, ls_go_codelen_120),
    KP7_MODEL(358, "kp8-1.20.1", ls_kp7_level8, trees_120, ls_go_codelen_120),
    KP7_MODEL(359, "kp9-1.20.1", ls_kp7_level9_120, trees_120, ls_go_codelen_120),
    /* Older ones at the other levels, newest first. */
    KP_MODEL(334, "kp4-1.15.0", kp4_115, 4, trees, ls_go_codelen),
    KP_MODEL(331, "kp1-1.15.0", kp1_115, 8, trees, ls_go_codelen),
    KP_MODEL(332, "kp2-1.15.0", kp2_115, 4, trees, ls_go_codelen),
    KP_MODEL(333, "kp3-1.15.0", kp3_115, 4, trees, ls_go_codelen),
    KP7_MODEL(337, "kp7-1.14.4", ls_kp7_level7_114, trees, ls_go_codelen),
    KP7_MODEL(338, "kp8-1.14.4", ls_kp7_level8_114, trees, ls_go_codelen),
    KP7_MODEL(339, "kp9-1.14.4", ls_kp7_level9_114, trees, ls_go_codelen),
    KP_MODEL(323, "kp3-1.14.4", kp3_114, 4, trees, ls_go_codelen),
    KP_MODEL(314, "kp4-1.10", kp4_110, 4, trees, ls_go_codelen),
    KP_MODEL(311, "kp1-1.10", kp1_110, 8, trees, ls_go_codelen),
    KP_MODEL(312, "kp2-1.10", kp2_110, 4, trees, ls_go_codelen),
    KP_MODEL(313, "kp3-1.10", kp3_110, 4, trees, ls_go_codelen),
    KP7_TOKENS(367, "kp7-1.9", ls_kp7_level7_19, trees, ls_go_codelen, KP7_BLOCK_TOKENS_19),
    KP7_TOKENS(368, "kp8-1.9", ls_kp7_level8_19, trees, ls_go_codelen, KP7_BLOCK_TOKENS_19),
    KP7_TOKENS(369, "kp9-1.9", ls_kp7_level9_19, trees, ls_go_codelen, KP7_BLOCK_TOKENS_19),
    KP_MODEL(364, "kp4-1.9", kp4_19, 4, trees, ls_go_codelen),
    KP_MODEL(361, "kp1-1.9", kp1_19, 8, trees, ls_go_codelen),
    KP_MODEL(362, "kp2-1.9", kp2_19, 4, trees, ls_go_codelen),
    KP_MODEL(363, "kp3-1.9", kp3_19, 4, trees, ls_go_codelen),
    KP7_TOKENS(377, "kp7-1.8", ls_kp7_level7_18, trees, ls_go_codelen, KP7_BLOCK_TOKENS_19),
    KP7_TOKENS(378, "kp8-1.8", ls_kp7_level8_18, trees, ls_go_codelen, KP7_BLOCK_TOKENS_19),
    KP7_TOKENS(379, "kp9-1.8", ls_kp7_level9_18, trees, ls_go_codelen, KP7_BLOCK_TOKENS_19),
    KP_FLAGGED(371, "kp1-1.8", kp1_18, 4, trees, ls_go_codelen, LS_MODEL_ALONE),
    KP_FLAGGED(372, "kp2-1.8", kp2_18, 4, trees, ls_go_codelen, LS_MODEL_ALONE),
    KP_FLAGGED(373, "kp3-1.8", kp3_18, 4, trees, ls_go_codelen, LS_MODEL_ALONE),
    KP_FLAGGED(374, "kp4-1.8", kp4_18, 4, trees, ls_go_codelen, LS_MODEL_ALONE),
    KP7_MODEL(327, "kp7-1.14.0", ls_kp7_level7_1140, trees, ls_go_codelen),
    KP7_MODEL(328, "kp8-1.14.0", ls_kp7_level8_1140, trees, ls_go_codelen),
    KP7_MODEL(329, "kp9-1.14.0", ls_kp7_level9_1140, trees, ls_go_codelen),
    {.id = 0},
};
