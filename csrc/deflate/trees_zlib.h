/* trees_zlib.h: the trees of a dynamic block as zlib and its relatives make them.
 *
 * Frozen, as every model is: what these functions give is part of what a recipe means (FORMAT.md, "Models").
 * They fit the members `runs` and `codelen` of ls_model, and serve its `trees`. */
#ifndef LS_DEFLATE_TREES_ZLIB_H
#define LS_DEFLATE_TREES_ZLIB_H

#include "deflate_impl.h"

/* Lengths of at most `limit` bits for n symbols with these counts, and their canonical codes. Fewer than two
 * symbols in use are filled up from the front. Gives the number of symbols up to the last one with a code. */
uint32_t ls_zlib_code(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code);

/* Both trees of a block with these tokens. */
void ls_zlib_trees(const ls_token *tokens, size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit,
                   uint32_t *hdist);

/* The run-length symbols of the lengths, each tree for itself. Gives their count. */
uint32_t ls_zlib_runs(const uint8_t *lengths, uint32_t hlit, uint32_t hdist, uint8_t *symbols,
                      uint8_t *extra);

/* The code of the run-length symbols. */
void ls_zlib_codelen(const uint32_t *counts, ls_code *codelen);

#endif
