/* trees_go.h: the trees of a dynamic block as Go's encoders make them (compress/flate and its relatives).
 *
 * Frozen, as every model is: what these functions give is part of what a recipe means (FORMAT.md, "Models").
 * They fit the members `runs` and `codelen` of ls_model, and serve its `trees`. */
#ifndef LS_DEFLATE_TREES_GO_H
#define LS_DEFLATE_TREES_GO_H

#include "deflate_impl.h"

/* Optimal lengths of at most `limit` bits for n <= LITLEN_SYMBOLS symbols with these counts, and their
 * canonical codes. One or two used symbols get a length of 1. */
void ls_go_code(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code);

/* The same as klauspost/compress does it from 1.20.1 on: a Huffman tree without a limit, a symbol before a
 * node of equal weight; where that is too deep, as above. */
void ls_go_code_120(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code);

typedef void (*ls_go_coder)(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code);

/* Both trees for these counts, the end of the block counted once. Without any distance, symbol 0 counts as
 * one. *hlit and *hdist become the numbers of symbols up to the last one in use. */
void ls_go_trees_by(ls_go_coder coder, const ls_counts *counts, ls_code *litlen, ls_code *dist,
                    uint32_t *hlit, uint32_t *hdist);

/* Both trees of a block of literals alone: 257 and 1 symbols, distance 0 with a length of 1. */
void ls_go_literal_trees_by(ls_go_coder coder, const ls_counts *counts, ls_code *litlen,
                            ls_code *dist, uint32_t *hlit, uint32_t *hdist);

/* The same with ls_go_code. */
void ls_go_trees(const ls_counts *counts, ls_code *litlen, ls_code *dist, uint32_t *hlit,
                 uint32_t *hdist);
void ls_go_literal_trees(const ls_counts *counts, ls_code *litlen, ls_code *dist, uint32_t *hlit,
                         uint32_t *hdist);

/* The run-length symbols of hlit + hdist lengths, joined in one row: a run may begin in the one tree and
 * end in the other. Gives their count. */
uint32_t ls_go_runs(const uint8_t *lengths, uint32_t hlit, uint32_t hdist, uint8_t *symbols,
                    uint8_t *extra);

/* The code of the run-length symbols. */
void ls_go_codelen(const uint32_t *counts, ls_code *codelen);
void ls_go_codelen_120(const uint32_t *counts, ls_code *codelen);

#endif
