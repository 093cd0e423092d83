/* blake3_avx512.c: BLAKE3 with AVX-512: sixteen, eight or four inputs side by side, or one in rows.
 *
 * What it has over AVX2, at any width: a rotation in one instruction, twice the registers, and a
 * permutation that picks from two of them. Width 16 is used for 9 and more inputs only. */
#include "blake3_impl.h"

#ifdef LS_B3_X86
#include <immintrin.h>

#define LS_TARGET __attribute__((target("avx2,avx512f,avx512vl")))
#define AT(p) ((const __m128i *)(const void *)(p))

/* ---- one input ------------------------------------------------------------------------------ */

#define ROT16(x) _mm_ror_epi32(x, 16)
#define ROT12(x) _mm_ror_epi32(x, 12)
#define ROT8(x) _mm_ror_epi32(x, 8)
#define ROT7(x) _mm_ror_epi32(x, 7)
#define PICK(lo, hi, order) _mm256_permutex2var_epi32(lo, order, hi)
#include "blake3_rows.h"

/* ---- four ----------------------------------------------------------------------------------- */

#define LS_LANES four
#define W 4
#define V __m128i
#define ADD _mm_add_epi32
#define XOR _mm_xor_si128
#define ROT16(x) _mm_ror_epi32(x, 16)
#define ROT12(x) _mm_ror_epi32(x, 12)
#define ROT8(x) _mm_ror_epi32(x, 8)
#define ROT7(x) _mm_ror_epi32(x, 7)
#define SET(x) _mm_set1_epi32((int)(x))
#define LOAD(p) _mm_loadu_si128(AT(p))
#define ZIP_LO32 _mm_unpacklo_epi32
#define ZIP_HI32 _mm_unpackhi_epi32
#define ZIP_LO64 _mm_unpacklo_epi64
#define ZIP_HI64 _mm_unpackhi_epi64
#define QUADS(p, at) _mm_loadu_si128(AT((p)[0] + (at)))
#define PUT_QUAD(out, v, j) _mm_storeu_si128((__m128i *)(void *)(out), v)
#include "blake3_lanes.h"

/* ---- eight ---------------------------------------------------------------------------------- */

LS_TARGET static inline __m256i quads8(const uint8_t *const *p, size_t at) {
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128(AT(p[0] + at)));
    return _mm256_inserti128_si256(low, _mm_loadu_si128(AT(p[4] + at)), 1);
}
LS_TARGET static inline void put_quad8(uint8_t *out, __m256i v, size_t j) {
    __m128i part = j ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v);
    _mm_storeu_si128((__m128i *)(void *)out, part);
}

#define LS_LANES eight
#define W 8
#define V __m256i
#define ADD _mm256_add_epi32
#define XOR _mm256_xor_si256
#define ROT16(x) _mm256_ror_epi32(x, 16)
#define ROT12(x) _mm256_ror_epi32(x, 12)
#define ROT8(x) _mm256_ror_epi32(x, 8)
#define ROT7(x) _mm256_ror_epi32(x, 7)
#define SET(x) _mm256_set1_epi32((int)(x))
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define ZIP_LO32 _mm256_unpacklo_epi32
#define ZIP_HI32 _mm256_unpackhi_epi32
#define ZIP_LO64 _mm256_unpacklo_epi64
#define ZIP_HI64 _mm256_unpackhi_epi64
#define QUADS quads8
#define PUT_QUAD put_quad8
#include "blake3_lanes.h"

/* ---- sixteen -------------------------------------------------------------------------------- */

LS_TARGET static inline __m512i quads16(const uint8_t *const *p, size_t at) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128(AT(p[0] + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128(AT(p[4] + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128(AT(p[8] + at)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128(AT(p[12] + at)), 3);
}
LS_TARGET static inline void put_quad16(uint8_t *out, __m512i v, size_t j) {
    __m128i part = j == 0   ? _mm512_castsi512_si128(v)
                   : j == 1 ? _mm512_extracti32x4_epi32(v, 1)
                   : j == 2 ? _mm512_extracti32x4_epi32(v, 2)
                            : _mm512_extracti32x4_epi32(v, 3);
    _mm_storeu_si128((__m128i *)(void *)out, part);
}

#define LS_LANES sixteen
#define W 16
#define V __m512i
#define ADD _mm512_add_epi32
#define XOR _mm512_xor_si512
#define ROT16(x) _mm512_ror_epi32(x, 16)
#define ROT12(x) _mm512_ror_epi32(x, 12)
#define ROT8(x) _mm512_ror_epi32(x, 8)
#define ROT7(x) _mm512_ror_epi32(x, 7)
#define SET(x) _mm512_set1_epi32((int)(x))
#define LOAD(p) _mm512_loadu_si512(p)
#define ZIP_LO32 _mm512_unpacklo_epi32
#define ZIP_HI32 _mm512_unpackhi_epi32
#define ZIP_LO64 _mm512_unpacklo_epi64
#define ZIP_HI64 _mm512_unpackhi_epi64
#define QUADS quads16
#define PUT_QUAD put_quad16
#include "blake3_lanes.h"

static void any(ls_b3_job *job, uint8_t *out) {
    if (job->n <= 4)
        four(job, out);
    else if (job->n <= 8)
        eight(job, out);
    else
        sixteen(job, out);
}

const ls_b3_path ls_b3_avx512 = {
    one_block, many_blocks, any, 16, {0, 6, 2, 2, 2, 2, 2, 2, 14, 2, 2, 2, 2, 2, 2, 2}};
#else
typedef int ls_b3_no_avx512; /* C11 wants something in every file */
#endif
