/* blake3_neon.c: BLAKE3 with NEON: four inputs side by side. One alone goes the plain way, which is
 * as quick there: vectors have no short way to turn rows. */
#include "blake3_impl.h"

#ifdef LS_B3_NEON
#include <arm_neon.h>

static inline uint32x4_t turn16(uint32x4_t x) {
    return vreinterpretq_u32_u16(vrev32q_u16(vreinterpretq_u16_u32(x)));
}
#define TURN(x, n) vsriq_n_u32(vshlq_n_u32(x, 32 - n), x, n)
#define ZIP64(zip, a, b)                                                                           \
    vreinterpretq_u32_u64(zip(vreinterpretq_u64_u32(a), vreinterpretq_u64_u32(b)))

#define LS_TARGET
#define LS_LANES four
#define W 4
#define V uint32x4_t
#define ADD vaddq_u32
#define XOR veorq_u32
#define ROT16 turn16
#define ROT12(x) TURN(x, 12)
#define ROT8(x) TURN(x, 8)
#define ROT7(x) TURN(x, 7)
#define SET vdupq_n_u32
#define LOAD vld1q_u32
#define ZIP_LO32 vzip1q_u32
#define ZIP_HI32 vzip2q_u32
#define ZIP_LO64(a, b) ZIP64(vzip1q_u64, a, b)
#define ZIP_HI64(a, b) ZIP64(vzip2q_u64, a, b)
#define QUADS(p, at) vreinterpretq_u32_u8(vld1q_u8((p)[0] + (at)))
#define PUT_QUAD(out, v, j) vst1q_u8(out, vreinterpretq_u8_u32(v))
#include "blake3_lanes.h"

static void one_block(uint32_t cv[8], const uint8_t *in, uint32_t length, uint64_t counter,
                      uint32_t flags) {
    ls_b3_portable.block(cv, in, length, counter, flags);
}

static void many_blocks(uint32_t cv[8], const uint8_t *in, size_t n, uint64_t counter,
                        uint32_t flags, uint32_t first) {
    ls_b3_portable.blocks(cv, in, n, counter, flags, first);
}

const ls_b3_path ls_b3_neon = {one_block, many_blocks, four, 4, {0, 8, 2, 2}};
#else
typedef int ls_b3_no_neon; /* C11 wants something in every file */
#endif
