/* blake3_avx2.c: BLAKE3 with AVX2: eight or four inputs side by side, or one in rows. */
#include "blake3_impl.h"

#ifdef LS_B3_X86
#include <immintrin.h>

#define LS_TARGET __attribute__((target("avx2")))
#define AT(p) ((const __m128i *)(const void *)(p))

/* ---- one input ------------------------------------------------------------------------------ */

#define BYTES16 _mm_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define BYTES8 _mm_setr_epi8(1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12)
#define SHIFTS(x, n) _mm_or_si128(_mm_srli_epi32(x, n), _mm_slli_epi32(x, 32 - n))

LS_TARGET static inline __m128i turn16(__m128i x) {
    return _mm_shuffle_epi8(x, BYTES16);
}
LS_TARGET static inline __m128i turn12(__m128i x) {
    return SHIFTS(x, 12);
}
LS_TARGET static inline __m128i turn8(__m128i x) {
    return _mm_shuffle_epi8(x, BYTES8);
}
LS_TARGET static inline __m128i turn7(__m128i x) {
    return SHIFTS(x, 7);
}

/* The permutation looks at three bits of each index; the fourth, made the sign, chooses the half. */
LS_TARGET static inline __m256i pick(__m256i lo, __m256i hi, __m256i order) {
    __m256 from_lo = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(lo, order));
    __m256 from_hi = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(hi, order));
    __m256 half = _mm256_castsi256_ps(_mm256_slli_epi32(order, 28));
    return _mm256_castps_si256(_mm256_blendv_ps(from_lo, from_hi, half));
}

#define ROT16 turn16
#define ROT12 turn12
#define ROT8 turn8
#define ROT7 turn7
#define PICK pick
#include "blake3_rows.h"

/* ---- four ----------------------------------------------------------------------------------- */

#define LS_LANES four
#define W 4
#define V __m128i
#define ADD _mm_add_epi32
#define XOR _mm_xor_si128
#define ROT16 turn16
#define ROT12 turn12
#define ROT8 turn8
#define ROT7 turn7
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

#define SHIFTS8(x, n) _mm256_or_si256(_mm256_srli_epi32(x, n), _mm256_slli_epi32(x, 32 - n))

LS_TARGET static inline __m256i turn16_8(__m256i x) {
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(BYTES16));
}
LS_TARGET static inline __m256i turn12_8(__m256i x) {
    return SHIFTS8(x, 12);
}
LS_TARGET static inline __m256i turn8_8(__m256i x) {
    return _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(BYTES8));
}
LS_TARGET static inline __m256i turn7_8(__m256i x) {
    return SHIFTS8(x, 7);
}
LS_TARGET static inline __m256i quads(const uint8_t *const *p, size_t at) {
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128(AT(p[0] + at)));
    return _mm256_inserti128_si256(low, _mm_loadu_si128(AT(p[4] + at)), 1);
}
LS_TARGET static inline void put_quad(uint8_t *out, __m256i v, size_t j) {
    __m128i part = j ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v);
    _mm_storeu_si128((__m128i *)(void *)out, part);
}

#define LS_LANES eight
#define W 8
#define V __m256i
#define ADD _mm256_add_epi32
#define XOR _mm256_xor_si256
#define ROT16 turn16_8
#define ROT12 turn12_8
#define ROT8 turn8_8
#define ROT7 turn7_8
#define SET(x) _mm256_set1_epi32((int)(x))
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define ZIP_LO32 _mm256_unpacklo_epi32
#define ZIP_HI32 _mm256_unpackhi_epi32
#define ZIP_LO64 _mm256_unpacklo_epi64
#define ZIP_HI64 _mm256_unpackhi_epi64
#define QUADS quads
#define PUT_QUAD put_quad
#include "blake3_lanes.h"

static void any(ls_b3_job *job, uint8_t *out) {
    if (job->n <= 4)
        four(job, out);
    else
        eight(job, out);
}

const ls_b3_path ls_b3_avx2 = {one_block, many_blocks, any, 8, {0, 0, 2, 2, 2, 2, 2, 2}};
#else
typedef int ls_b3_no_avx2; /* C11 wants something in every file */
#endif
