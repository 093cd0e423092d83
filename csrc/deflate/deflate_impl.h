/* deflate_impl.h: what the files of csrc/deflate/ share (RFC 1951).
 *
 * Alphabets, tokens, the bit writer, and the two halves of a block: codes out of counts (trees.c), a
 * block out of tokens (blocks.c). Who finds the tokens is above them: encoder.c. What these files write
 * is part of the store's format (FORMAT.md, section 15): no change may alter a bit of it. */
#ifndef LS_DEFLATE_IMPL_H
#define LS_DEFLATE_IMPL_H

#include <string.h>

#include "layerstore.h"

#define MIN_MATCH 3
#define MAX_MATCH 258
#define LITLEN_SYMBOLS 286
#define DIST_SYMBOLS 30
#define CODELEN_SYMBOLS 19
#define END_OF_BLOCK 256
#define MAX_BITS 15
#define MAX_CODELEN_BITS 7

/* A token: a literal byte (below 256), or distance << 16 | length. */
typedef uint32_t ls_token;

/* Counts of the symbols of some tokens; END_OF_BLOCK is not counted in them. */
typedef struct ls_counts {
    uint32_t litlen[LITLEN_SYMBOLS];
    uint32_t dist[DIST_SYMBOLS];
} ls_counts;

/* One prefix code; `codes` are bit-reversed, as they are written. */
typedef struct ls_code {
    uint16_t codes[LITLEN_SYMBOLS];
    uint8_t lengths[LITLEN_SYMBOLS];
} ls_code;

/* Writes bits, lowest first. The room is checked for a whole block before it begins. */
typedef struct ls_bits {
    uint64_t held;
    uint32_t n;
    uint8_t *at;
} ls_bits;

static inline uint32_t ls_log2_floor(uint32_t x) {
    return 31u - (uint32_t)__builtin_clz(x);
}

static inline void ls_bits_put(ls_bits *b, uint64_t value, uint32_t n) {
    b->held |= value << b->n;
    b->n += n;
}

/* Leaves fewer than 8 bits; stores 8 bytes, so that much must be there. */
static inline void ls_bits_flush(ls_bits *b) {
    uint64_t v = b->held;
    for (int i = 0; i < 8; i++)
        b->at[i] = (uint8_t)(v >> (8 * i));
    uint32_t whole = b->n >> 3;
    b->at += whole;
    b->held = whole == 8 ? 0 : v >> (8 * whole);
    b->n &= 7;
}

static inline void ls_bits_align(ls_bits *b) {
    if (b->n & 7)
        b->n = (b->n | 7) + 1;
    ls_bits_flush(b);
}

/* How many bytes are equal, up to `most`. */
static inline uint32_t ls_common(const uint8_t *a, const uint8_t *b, uint32_t most) {
    uint32_t n = 0;
    while (n + 8 <= most) {
        uint64_t x, y;
        memcpy(&x, a + n, 8);
        memcpy(&y, b + n, 8);
        if (x != y) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            return n + (uint32_t)__builtin_clzll(x ^ y) / 8;
#else
            return n + (uint32_t)__builtin_ctzll(x ^ y) / 8;
#endif
        }
        n += 8;
    }
    while (n < most && a[n] == b[n])
        n++;
    return n;
}

/* Symbol of a length (3 to 258) and of a distance (1 to 32768), and their extra bits. */
extern const uint8_t ls_length_symbol[MAX_MATCH + 1]; /* symbol - 257 */
extern const uint16_t ls_length_base[29];
extern const uint8_t ls_length_extra[29];
extern const uint16_t ls_dist_base[DIST_SYMBOLS];
extern const uint8_t ls_dist_extra[DIST_SYMBOLS];

static inline uint32_t ls_dist_symbol(uint32_t dist) {
    uint32_t d = dist - 1;
    if (d < 4)
        return d;
    uint32_t k = ls_log2_floor(d);
    return 2 * k + (d >> (k - 1) & 1);
}

/* A token's place in a table of all literals and lengths, and its distance's symbol, or LS_NO_DIST for a
 * literal: without a branch, since which of them comes next can not be guessed. */
#define LS_SLOTS 1024u
#define LS_LENGTH_SLOT 512u /* of length 0 */
#define LS_NO_DIST 31u
#define LS_DIST_SLOTS 32u
extern const uint8_t ls_dist_slots[768];

static inline uint32_t ls_token_slot(ls_token token) {
    return (token & 511) | (((token >> 16) + 0xffff) >> 7 & 512);
}

static inline uint32_t ls_token_dist(ls_token token) {
    uint32_t d = ((token >> 16) - 1) & 0xffff, far = (255 - d) >> 31;
    return ls_dist_slots[(d >> 7 * far) + (far << 8)];
}

/* Counts the symbols of tokens; END_OF_BLOCK is none of them. */
void ls_count(const ls_token *tokens, size_t n, ls_counts *counts);

extern const uint8_t ls_codelen_order[CODELEN_SYMBOLS]; /* as their lengths are transmitted */

/* Lengths as runs, from the front, the longest possible; returns how many (FORMAT.md, 15.5). */
uint32_t ls_run_lengths(const uint8_t *lengths, uint32_t n, uint8_t *runs, uint8_t *extra);
void ls_fixed_codes(ls_code *litlen, ls_code *dist);

/* Optimal lengths of at most `limit` bits for symbols with these counts, and their canonical codes.
 * A symbol with count 0 gets none; a single one gets a length of 1. */
void ls_code_make(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code);
/* Sorts counts with their symbols below them (both in one number): by count, then by symbol. */
void ls_code_sort(uint64_t *keys, uint32_t n);
/* The codes for lengths that are there already. */
void ls_code_assign(ls_code *code, uint32_t n);

/* Scratch of ls_block_write. */
typedef struct ls_block_work {
    ls_code litlen, dist, codelen;
    uint32_t counts[LITLEN_SYMBOLS];
    uint8_t runs[LITLEN_SYMBOLS + DIST_SYMBOLS];      /* code-length symbols */
    uint8_t run_extra[LITLEN_SYMBOLS + DIST_SYMBOLS]; /* and their extra bits' value */
} ls_block_work;

/* Writes one block: dynamic, fixed or stored, whichever is shortest, in this order of preference.
 * `data` is what the tokens stand for. Returns LS_ESPACE when `end - b->at` is too small. */
int ls_block_write(ls_block_work *work, const ls_token *tokens, size_t n, const ls_counts *counts,
                   const uint8_t *data, size_t size, int final, ls_bits *b, const uint8_t *end);

#endif
