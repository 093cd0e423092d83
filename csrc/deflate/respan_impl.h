/* respan_impl.h: what the files that take gzip apart and put it together again share.
 *
 * tokens.c decodes, codes.c makes its tables; respan.c says what a model mispredicted in a span
 * (corrections.c codes that) and makes a span again (writer.c writes its bits). */
#ifndef LS_RESPAN_IMPL_H
#define LS_RESPAN_IMPL_H

#include <string.h>

#include "model.h"

#define MAX_LENGTHS 316 /* of a dynamic block: 286 + 30 */

static inline uint64_t ls_load64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline void ls_store64(uint8_t *p, uint64_t v) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    memcpy(p, &v, 8);
}

static inline uint32_t ls_load32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

int ls_fail(ls_error *err, int code, uint64_t offset, const char *reason);

/* ---- CRC-32 ---------------------------------------------------------------------------------- */

typedef struct ls_crc_table {
    uint32_t t[8][256];
} ls_crc_table;

void ls_crc_make(ls_crc_table *t);
uint32_t ls_crc_update(const ls_crc_table *t, uint32_t crc, const uint8_t *p, size_t n);

/* ---- the header of a dynamic block, as it was transmitted --------------------------------------- */

typedef struct ls_header {
    uint32_t hlit, hdist, hclen;      /* how many lengths: 257-286, 1-30, 4-19 */
    uint32_t n_runs;                  /* symbols of the code-length code */
    uint8_t codelen[CODELEN_SYMBOLS]; /* its lengths, by symbol */
    uint8_t runs[MAX_LENGTHS];
    uint8_t extra[MAX_LENGTHS];   /* their extra bits' values */
    uint8_t lengths[MAX_LENGTHS]; /* what they stand for: hlit, then hdist lengths */
} ls_header;

/* In ls_tokens_span.bytes: hlit - 257, hdist - 1, hclen - 4, n_runs (2, little-endian), codelen, runs, extra. */
#define HEADER_ROOM (5 + CODELEN_SYMBOLS + 2 * MAX_LENGTHS)
size_t ls_header_pack(const ls_header *h, uint8_t *out);
void ls_header_unpack(const uint8_t *in, ls_header *h);
/* Lengths out of runs. 0 if they do not come out even. */
int ls_header_expand(ls_header *h);
/* The fewest code lengths that can be transmitted. */
uint32_t ls_header_least(const uint8_t *codelen);

/* ---- decoding tables --------------------------------------------------------------------------- */

#define LITLEN_ROOT 11
#define DIST_ROOT 9
#define CODELEN_ROOT 7
#define LITLEN_ENTRIES (2048 + 144 * 16)
#define DIST_ENTRIES (512 + 16 * 64)

/* An entry: bits of the code (0-4), extra bits (5-8), value (9-24), what it is. */
#define ENTRY_BITS(e) ((e) & 31)
#define ENTRY_EXTRA(e) ((e) >> 5 & 15)
#define ENTRY_VALUE(e) ((e) >> 9 & 0xffff)
#define ENTRY_LITERAL 0x80000000u
#define ENTRY_SPECIAL 0x40000000u /* none of the others: not a code */
#define ENTRY_END 0x20000000u     /* with SPECIAL: the end of the block */
#define ENTRY_SUB 0x10000000u     /* with SPECIAL: a second table at VALUE, BITS wide */

/* What may be wrong with a code. */
#define CODE_OK 0
#define CODE_OVER 1  /* more codes than there is room */
#define CODE_UNDER 2 /* fewer */

enum ls_alphabet { ALPHABET_CODELEN, ALPHABET_LITLEN, ALPHABET_DIST };

/* A table for these lengths. Valid is what zlib takes: complete codes, a single code of one bit (but for code
 * lengths), no distance at all. */
int ls_decode_table(enum ls_alphabet alphabet, const uint8_t *lengths, uint32_t n, uint32_t *table);

/* ---- bits -------------------------------------------------------------------------------------- */

/* Codes with their extra bits, ready to be written, by ls_token_slot: the value, and how many bits above bit 24.
 * By ls_token_dist: code, mask of the extra bits (above bit 16), bits of the code (above 32), of both (40);
 * all of it 0 for no distance. */
typedef struct ls_bits_table {
    uint32_t slots[LS_SLOTS];
    uint64_t dist[LS_DIST_SLOTS];
    uint32_t end; /* of the block */
} ls_bits_table;

void ls_bits_table_make(ls_bits_table *t, const ls_code *litlen, const ls_code *dist);
/* The three header bits, and of a dynamic block the header, whose code-length code is made here. */
void ls_bits_header(ls_bits *b, uint32_t final, uint32_t type, const ls_header *h);
/* Tokens and the end of the block. LS_ESPACE when `end` is near. */
int ls_bits_body(ls_bits *b, const uint8_t *end, const ls_bits_table *t, const ls_token *tokens,
                 size_t n);

/* ---- corrections --------------------------------------------------------------------------------- */

/* Probability that the next bit is 0, in 65536ths, and how many bits it has seen (up to a few). */
typedef struct ls_corr_bit {
    uint16_t p;
    uint16_t seen;
} ls_corr_bit;

typedef struct ls_corr_number {
    ls_corr_bit width[64];
    ls_corr_bit bits[33][32];
} ls_corr_number;

/* A coder that either writes or reads; each function takes the value (of no meaning in reading) and
 * returns it, so that there is one description of the format. */
typedef struct ls_corr {
    int reading;
    uint32_t range;
    /* writing */
    uint64_t low;
    uint64_t
        pending; /* bytes that a carry may still change: one, and this many of 0xff behind it */
    uint8_t held;
    int started;
    uint8_t *out;
    size_t n, room;
    int full;
    /* reading */
    uint32_t code;
    const uint8_t *in;
    size_t at, size;
} ls_corr;

void ls_corr_write(ls_corr *c, uint8_t *out, size_t room);
void ls_corr_read(ls_corr *c, const uint8_t *in, size_t size);
/* Ends writing; how many bytes there are. */
size_t ls_corr_finish(ls_corr *c);

/* `likely` of 65536: how probable a 0 is thought to be. */
void ls_corr_expect(ls_corr_bit *bits, size_t n, uint32_t likely);
uint32_t ls_corr_code(ls_corr *c, ls_corr_bit *context, uint32_t bit);
/* `n` bits, each as probable as the other. */
uint32_t ls_corr_raw(ls_corr *c, uint32_t value, uint32_t n);
/* A number of `n` bits, the highest first, each in the context of those before; 1 << n contexts. */
uint32_t ls_corr_tree(ls_corr *c, ls_corr_bit *contexts, uint32_t value, uint32_t n);
uint32_t ls_corr_number_code(ls_corr *c, ls_corr_number *contexts, uint32_t value);

#endif
