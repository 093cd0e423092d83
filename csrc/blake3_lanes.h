/* blake3_lanes.h: BLAKE3 of several inputs side by side, one in each 32-bit lane (paper, 5.3).
 *
 * A template, without a guard: a path includes it for every width that it has. What has to be there:
 *   LS_LANES, LS_TARGET              the name of the function to make, and its attribute
 *   W, V                             4, 8 or 16, and the type of a vector of W words
 *   ADD XOR ROT16 ROT12 ROT8 ROT7    on each word
 *   SET(x), LOAD(p)                  x in every lane; W words from memory
 *   ZIP_LO32 ZIP_HI32 ZIP_LO64 ZIP_HI64   interleave the halves of each 16 bytes
 *   QUADS(p, at)                     the 16 bytes at p[0] + at, p[4] + at, ..., side by side
 *   PUT_QUAD(out, v, j)              stores the j-th 16 bytes of v
 *
 * Words are transposed in squares of 4 x 4: QUADS brings lanes q, q + 4, q + 8, ... into the 16-byte
 * parts of one vector, so that no shuffle has to cross them, and half of the work is loads. */

#define LS_SQUARE(a, b, c, d)                                                                      \
    do {                                                                                           \
        V ab_lo = ZIP_LO32(a, b), ab_hi = ZIP_HI32(a, b);                                          \
        V cd_lo = ZIP_LO32(c, d), cd_hi = ZIP_HI32(c, d);                                          \
        a = ZIP_LO64(ab_lo, cd_lo);                                                                \
        b = ZIP_HI64(ab_lo, cd_lo);                                                                \
        c = ZIP_LO64(ab_hi, cd_hi);                                                                \
        d = ZIP_HI64(ab_hi, cd_hi);                                                                \
    } while (0)

/* Words i to i + 3 of the block of each lane. Not a loop: gcc would keep one, and m in memory. */
#define LS_WORDS(i)                                                                                \
    do {                                                                                           \
        m[i] = QUADS(in, at + 4 * (i));                                                            \
        m[i + 1] = QUADS(in + 1, at + 4 * (i));                                                    \
        m[i + 2] = QUADS(in + 2, at + 4 * (i));                                                    \
        m[i + 3] = QUADS(in + 3, at + 4 * (i));                                                    \
        LS_SQUARE(m[i], m[i + 1], m[i + 2], m[i + 3]);                                             \
    } while (0)

/* Half of four Gs, step by step: each G alone would wait for its own results. */
#define LS_STEP(a, b, c, d, x, ROT_D, ROT_B)                                                       \
    do {                                                                                           \
        v[a] = ADD(ADD(v[a], m[x]), v[b]);                                                         \
        v[d] = ROT_D(XOR(v[d], v[a]));                                                             \
        v[c] = ADD(v[c], v[d]);                                                                    \
        v[b] = ROT_B(XOR(v[b], v[c]));                                                             \
    } while (0)
#define LS_COLUMNS(x0, x1, x2, x3, ROT_D, ROT_B)                                                   \
    do {                                                                                           \
        LS_STEP(0, 4, 8, 12, x0, ROT_D, ROT_B);                                                    \
        LS_STEP(1, 5, 9, 13, x1, ROT_D, ROT_B);                                                    \
        LS_STEP(2, 6, 10, 14, x2, ROT_D, ROT_B);                                                   \
        LS_STEP(3, 7, 11, 15, x3, ROT_D, ROT_B);                                                   \
    } while (0)
#define LS_DIAGONALS(x0, x1, x2, x3, ROT_D, ROT_B)                                                 \
    do {                                                                                           \
        LS_STEP(0, 5, 10, 15, x0, ROT_D, ROT_B);                                                   \
        LS_STEP(1, 6, 11, 12, x1, ROT_D, ROT_B);                                                   \
        LS_STEP(2, 7, 8, 13, x2, ROT_D, ROT_B);                                                    \
        LS_STEP(3, 4, 9, 14, x3, ROT_D, ROT_B);                                                    \
    } while (0)
#define LS_ROUND(r)                                                                                \
    do {                                                                                           \
        const uint8_t *o = ls_b3_order[r];                                                         \
        LS_COLUMNS(o[0], o[2], o[4], o[6], ROT16, ROT12);                                          \
        LS_COLUMNS(o[1], o[3], o[5], o[7], ROT8, ROT7);                                            \
        LS_DIAGONALS(o[8], o[10], o[12], o[14], ROT16, ROT12);                                     \
        LS_DIAGONALS(o[9], o[11], o[13], o[15], ROT8, ROT7);                                       \
    } while (0)

LS_TARGET static void LS_LANES(ls_b3_job *job, uint8_t *out) {
    static const uint32_t iv[8] = LS_B3_IV;
    const uint8_t *in[W];
    uint32_t low[W], high[W];
    V h[8], v[16], m[16];
    for (size_t i = 0; i < W; i++) { /* lanes without an input do the last one again */
        size_t k = i < job->n ? i : job->n - 1;
        in[i] = job->in[k];
        low[i] = (uint32_t)job->counter[k];
        high[i] = (uint32_t)(job->counter[k] >> 32);
    }
    for (size_t i = 0; i < 8; i++)
        h[i] = SET(job->key[i]);
    for (size_t block = 0; block < job->blocks; block++) {
        size_t at = block * LS_B3_BLOCK;
        uint32_t flags = job->flags | (block ? 0 : job->first);
        flags |= block + 1 == job->blocks ? job->last : 0;
        LS_WORDS(0);
        LS_WORDS(4);
        LS_WORDS(8);
        LS_WORDS(12);
        for (size_t i = 0; i < 8; i++)
            v[i] = h[i];
        for (size_t i = 0; i < 4; i++)
            v[8 + i] = SET(iv[i]);
        v[12] = LOAD(low);
        v[13] = LOAD(high);
        v[14] = SET(LS_B3_BLOCK);
        v[15] = SET(flags);
        LS_ROUND(0);
        LS_ROUND(1);
        LS_ROUND(2);
        LS_ROUND(3);
        LS_ROUND(4);
        LS_ROUND(5);
        LS_ROUND(6);
        for (size_t i = 0; i < 8; i++)
            h[i] = XOR(v[i], v[8 + i]);
        if (block + 1 == job->tap) {
            uint8_t words[8][4 * W];
            for (size_t i = 0; i < 8; i++) {
                for (size_t j = 0; j < W / 4; j++)
                    PUT_QUAD(words[i] + 16 * j, h[i], j);
                memcpy(&job->tapped[i], words[i] + 4 * (job->n - 1), 4);
            }
        }
    }
    LS_SQUARE(h[0], h[1], h[2], h[3]);
    LS_SQUARE(h[4], h[5], h[6], h[7]);
    for (size_t j = 0; j < W / 4; j++) {
        for (size_t i = 0; i < 4; i++) {
            size_t lane = 4 * j + i;
            if (lane < job->n) {
                PUT_QUAD(out + LS_BLAKE3_LEN * lane, h[i], j);
                PUT_QUAD(out + LS_BLAKE3_LEN * lane + 16, h[4 + i], j);
            }
        }
    }
}

#undef LS_SQUARE
#undef LS_WORDS
#undef LS_STEP
#undef LS_COLUMNS
#undef LS_DIAGONALS
#undef LS_ROUND
#undef LS_LANES
#undef W
#undef V
#undef ADD
#undef XOR
#undef ROT16
#undef ROT12
#undef ROT8
#undef ROT7
#undef SET
#undef LOAD
#undef ZIP_LO32
#undef ZIP_HI32
#undef ZIP_LO64
#undef ZIP_HI64
#undef QUADS
#undef PUT_QUAD
