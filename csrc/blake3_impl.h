/* blake3_impl.h: what the files of BLAKE3 share; private to them.
 *
 * Section numbers are those of the BLAKE3 paper (O'Connor, Aumasson, Neves, Wilcox-O'Hearn).
 * blake3.c knows the tree and nothing of instruction sets; a path (plain, AVX2, AVX-512, NEON) knows
 * how to compress and nothing of the tree. */
#ifndef LS_BLAKE3_IMPL_H
#define LS_BLAKE3_IMPL_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "layerstore.h"

#define LS_B3_BLOCK 64
#define LS_B3_CHUNK 1024
#define LS_B3_CHUNK_BLOCKS 16
#define LS_B3_MAX_LANES 16

/* Flags (paper, table 3). */
#define LS_B3_CHUNK_START 1u
#define LS_B3_CHUNK_END 2u
#define LS_B3_PARENT 4u
#define LS_B3_ROOT 8u
#define LS_B3_KEYED 16u

#if !defined(LS_PORTABLE_ONLY) && defined(__x86_64__) && defined(__GNUC__)
#define LS_B3_X86 1
#elif !defined(LS_PORTABLE_ONLY) && defined(__aarch64__) && defined(__ARM_NEON) &&                 \
    defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LS_B3_NEON 1
#endif

/* The initial values: those of SHA-256 (paper, table 1). */
#define LS_B3_IV                                                                                   \
    {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,                                           \
     0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u}

/* Which message word goes where in each of the seven rounds: row 0 is the identity, each further row
 * is the one before through the permutation of table 2. Constant, so that unrolled rounds use it at
 * compile time. */
static const uint8_t ls_b3_order[7][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
    {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
    {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

static inline uint32_t ls_b3_load(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void ls_b3_store(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    p[2] = (uint8_t)(v >> 16);
    p[3] = (uint8_t)(v >> 24);
}

/* `n` inputs of `blocks` whole blocks each, compressed side by side. */
typedef struct ls_b3_job {
    const uint8_t *in[LS_B3_MAX_LANES];
    uint64_t counter[LS_B3_MAX_LANES];
    size_t n; /* 1 to the path's lanes; the last input may have fewer blocks, see below */
    size_t blocks;
    const uint32_t *key; /* 8 words: what the chaining value starts as */
    uint32_t flags;      /* of every block */
    uint32_t first;      /* further flags of the first block */
    uint32_t last;       /* further flags of the last block */
    /* The chaining value of the last input after `tap` blocks goes to `tapped`; 0: none is wanted.
     * That is how a chunk that is not whole shares the work of whole ones. */
    size_t tap;
    uint32_t tapped[8];
} ls_b3_job;

typedef struct ls_b3_path {
    /* One block, `length` bytes of it used, into `cv`. */
    void (*block)(uint32_t cv[8], const uint8_t *in, uint32_t length, uint64_t counter,
                  uint32_t flags);
    /* `n` whole blocks one after the other into `cv`; `first` are further flags of the first. */
    void (*blocks)(uint32_t cv[8], const uint8_t *in, size_t n, uint64_t counter, uint32_t flags,
                   uint32_t first);
    /* Runs a job; 32 bytes for each input go to `out`. */
    void (*lanes)(ls_b3_job *job, uint8_t *out);
    size_t max_lanes;
    /* How many whole blocks a chunk that is not whole needs to have to go along with `i` whole ones,
     * instead of alone behind them; 0: never. Measured: high where one more takes a wider vector. */
    uint8_t min_tap[LS_B3_MAX_LANES];
} ls_b3_path;

extern const ls_b3_path ls_b3_portable;
#ifdef LS_B3_X86
extern const ls_b3_path ls_b3_avx2;
extern const ls_b3_path ls_b3_avx512;
#endif
#ifdef LS_B3_NEON
extern const ls_b3_path ls_b3_neon;
#endif

/* The whole 64 bytes of one compression (paper, 2.2), for extended output. */
void ls_b3_output(const uint32_t cv[8], const uint8_t *in, uint32_t length, uint64_t counter,
                  uint32_t flags, uint8_t out[64]);

#endif
