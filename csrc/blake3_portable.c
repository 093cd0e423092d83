/* blake3_portable.c: the compression function in plain C (BLAKE3 paper, section 2.2).
 *
 * The reference that the other paths are tested against, and what runs where they do not. */
#include "blake3_impl.h"

static inline uint32_t rotate(uint32_t x, unsigned n) {
    return x >> n | x << (32 - n);
}

#define MIX(a, b, c, d, x, y)                                                                      \
    do {                                                                                           \
        v[a] += v[b] + (x);                                                                        \
        v[d] = rotate(v[d] ^ v[a], 16);                                                            \
        v[c] += v[d];                                                                              \
        v[b] = rotate(v[b] ^ v[c], 12);                                                            \
        v[a] += v[b] + (y);                                                                        \
        v[d] = rotate(v[d] ^ v[a], 8);                                                             \
        v[c] += v[d];                                                                              \
        v[b] = rotate(v[b] ^ v[c], 7);                                                             \
    } while (0)

/* Columns, then diagonals. */
#define ROUND(r)                                                                                   \
    do {                                                                                           \
        const uint8_t *o = ls_b3_order[r];                                                         \
        MIX(0, 4, 8, 12, m[o[0]], m[o[1]]);                                                        \
        MIX(1, 5, 9, 13, m[o[2]], m[o[3]]);                                                        \
        MIX(2, 6, 10, 14, m[o[4]], m[o[5]]);                                                       \
        MIX(3, 7, 11, 15, m[o[6]], m[o[7]]);                                                       \
        MIX(0, 5, 10, 15, m[o[8]], m[o[9]]);                                                       \
        MIX(1, 6, 11, 12, m[o[10]], m[o[11]]);                                                     \
        MIX(2, 7, 8, 13, m[o[12]], m[o[13]]);                                                      \
        MIX(3, 4, 9, 14, m[o[14]], m[o[15]]);                                                      \
    } while (0)

static inline void compress(uint32_t v[16], const uint32_t cv[8], const uint8_t *in,
                            uint32_t length, uint64_t counter, uint32_t flags) {
    static const uint32_t iv[8] = LS_B3_IV;
    uint32_t m[16];
    for (size_t i = 0; i < 16; i++)
        m[i] = ls_b3_load(in + 4 * i);
    for (size_t i = 0; i < 8; i++)
        v[i] = cv[i];
    for (size_t i = 0; i < 4; i++)
        v[8 + i] = iv[i];
    v[12] = (uint32_t)counter;
    v[13] = (uint32_t)(counter >> 32);
    v[14] = length;
    v[15] = flags;
    ROUND(0);
    ROUND(1);
    ROUND(2);
    ROUND(3);
    ROUND(4);
    ROUND(5);
    ROUND(6);
}

static void one_block(uint32_t cv[8], const uint8_t *in, uint32_t length, uint64_t counter,
                      uint32_t flags) {
    uint32_t v[16];
    compress(v, cv, in, length, counter, flags);
    for (size_t i = 0; i < 8; i++)
        cv[i] = v[i] ^ v[i + 8];
}

static void many_blocks(uint32_t cv[8], const uint8_t *in, size_t n, uint64_t counter,
                        uint32_t flags, uint32_t first) {
    for (size_t i = 0; i < n; i++)
        one_block(cv, in + i * LS_B3_BLOCK, LS_B3_BLOCK, counter, i ? flags : flags | first);
}

static void one_lane(ls_b3_job *job, uint8_t *out) {
    uint32_t cv[8];
    memcpy(cv, job->key, sizeof cv);
    for (size_t i = 0; i < job->blocks; i++) {
        uint32_t flags = job->flags | (i ? 0 : job->first);
        flags |= i + 1 == job->blocks ? job->last : 0;
        one_block(cv, job->in[0] + i * LS_B3_BLOCK, LS_B3_BLOCK, job->counter[0], flags);
    }
    for (size_t i = 0; i < 8; i++)
        ls_b3_store(out + 4 * i, cv[i]);
}

const ls_b3_path ls_b3_portable = {one_block, many_blocks, one_lane, 1, {0}};

void ls_b3_output(const uint32_t cv[8], const uint8_t *in, uint32_t length, uint64_t counter,
                  uint32_t flags, uint8_t out[64]) {
    uint32_t v[16];
    compress(v, cv, in, length, counter, flags);
    for (size_t i = 0; i < 8; i++) {
        ls_b3_store(out + 4 * i, v[i] ^ v[i + 8]);
        ls_b3_store(out + 32 + 4 * i, v[i + 8] ^ cv[i]);
    }
}
