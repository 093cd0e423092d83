/* blake3_rows.h: BLAKE3 of one input, the 4 x 4 state in four vectors (x86 only).
 *
 * A template like blake3_lanes.h; it needs LS_TARGET and, on __m128i, ROT16, ROT12, ROT8 and ROT7,
 * and PICK(lo, hi, order): the words of the block (lo: 0 to 7, hi: 8 to 15) that the eight entries
 * of the __m256i `order` name.
 *
 * For the diagonals the rows turn so that row b, whose value comes last, stays where it is: the
 * turning of the others costs no time then. Lane j works on diagonal j - 1. */

/* Where the words of a round go: x and y of the columns, then x and y of the turned diagonals. */
#define LS_ORDER_COLUMNS(o) _mm256_setr_epi32(o[0], o[2], o[4], o[6], o[1], o[3], o[5], o[7])
#define LS_ORDER_DIAGONALS(o)                                                                      \
    _mm256_setr_epi32(o[14], o[8], o[10], o[12], o[15], o[9], o[11], o[13])

#define LS_G(x, y)                                                                                 \
    do {                                                                                           \
        a = _mm_add_epi32(_mm_add_epi32(a, x), b);                                                 \
        d = ROT16(_mm_xor_si128(d, a));                                                            \
        c = _mm_add_epi32(c, d);                                                                   \
        b = ROT12(_mm_xor_si128(b, c));                                                            \
        a = _mm_add_epi32(_mm_add_epi32(a, y), b);                                                 \
        d = ROT8(_mm_xor_si128(d, a));                                                             \
        c = _mm_add_epi32(c, d);                                                                   \
        b = ROT7(_mm_xor_si128(b, c));                                                             \
    } while (0)

#define LS_ROUND(r)                                                                                \
    do {                                                                                           \
        const uint8_t *o = ls_b3_order[r];                                                         \
        __m256i xy = PICK(lo, hi, LS_ORDER_COLUMNS(o));                                            \
        LS_G(_mm256_castsi256_si128(xy), _mm256_extracti128_si256(xy, 1));                         \
        a = _mm_shuffle_epi32(a, 0x93);                                                            \
        c = _mm_shuffle_epi32(c, 0x39);                                                            \
        d = _mm_shuffle_epi32(d, 0x4e);                                                            \
        xy = PICK(lo, hi, LS_ORDER_DIAGONALS(o));                                                  \
        LS_G(_mm256_castsi256_si128(xy), _mm256_extracti128_si256(xy, 1));                         \
        a = _mm_shuffle_epi32(a, 0x39);                                                            \
        c = _mm_shuffle_epi32(c, 0x93);                                                            \
        d = _mm_shuffle_epi32(d, 0x4e);                                                            \
    } while (0)

LS_TARGET static inline void row_block(__m128i *h0, __m128i *h1, const uint8_t *in, uint32_t length,
                                       uint64_t counter, uint32_t flags) {
    static const uint32_t iv[8] = LS_B3_IV;
    __m256i lo = _mm256_loadu_si256((const __m256i *)(const void *)in);
    __m256i hi = _mm256_loadu_si256((const __m256i *)(const void *)(in + 32));
    __m128i a = *h0, b = *h1, c = _mm_loadu_si128((const __m128i *)(const void *)iv);
    __m128i d = _mm_setr_epi32((int)(uint32_t)counter, (int)(uint32_t)(counter >> 32), (int)length,
                               (int)flags);
    LS_ROUND(0);
    LS_ROUND(1);
    LS_ROUND(2);
    LS_ROUND(3);
    LS_ROUND(4);
    LS_ROUND(5);
    LS_ROUND(6);
    *h0 = _mm_xor_si128(a, c);
    *h1 = _mm_xor_si128(b, d);
}

LS_TARGET static void one_block(uint32_t cv[8], const uint8_t *in, uint32_t length,
                                uint64_t counter, uint32_t flags) {
    __m128i *p = (__m128i *)(void *)cv;
    __m128i h0 = _mm_loadu_si128(p), h1 = _mm_loadu_si128(p + 1);
    row_block(&h0, &h1, in, length, counter, flags);
    _mm_storeu_si128(p, h0);
    _mm_storeu_si128(p + 1, h1);
}

LS_TARGET static void many_blocks(uint32_t cv[8], const uint8_t *in, size_t n, uint64_t counter,
                                  uint32_t flags, uint32_t first) {
    __m128i *p = (__m128i *)(void *)cv;
    __m128i h0 = _mm_loadu_si128(p), h1 = _mm_loadu_si128(p + 1);
    for (size_t i = 0; i < n; i++)
        row_block(&h0, &h1, in + i * LS_B3_BLOCK, LS_B3_BLOCK, counter, i ? flags : flags | first);
    _mm_storeu_si128(p, h0);
    _mm_storeu_si128(p + 1, h1);
}

#undef LS_ORDER_COLUMNS
#undef LS_ORDER_DIAGONALS
#undef LS_G
#undef LS_ROUND
#undef ROT16
#undef ROT12
#undef ROT8
#undef ROT7
#undef PICK
