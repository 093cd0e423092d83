/* chunk.c: content-defined chunking with a gear hash, normalised at level 2.
 *
 * What is part of the store's format (a change makes known content unknown):
 * - the table: entry i is the i-th little-endian u64 of the first 2048 bytes of extended output of
 *   BLAKE3 over the ASCII string "layerstore gear table, format 1";
 * - the hash at a position: the gear hash, h = 2h + table[byte], of the 64 bytes that end there.
 *   After 64 shifts nothing else is left of earlier bytes, so that it depends on these alone, and
 *   not on where the chunk began or how the data was fed;
 * - the cut: a chunk ends behind the first byte, from LS_CHUNK_MIN bytes on, where the hash is below
 *   2^(64-18) (below LS_CHUNK_AVG bytes), or 2^(64-14) (from there on); at LS_CHUNK_MAX bytes at
 *   the latest, or with the data. Two bits more and two bits less than the 16 of the average: that
 *   is level 2 of FastCDC's normalisation.
 *
 * Cost: the first LS_CHUNK_MIN bytes of a chunk are not looked at, but for the last 63. One stream of
 * additions is bound by its latency, so STREAMS stretches are hashed side by side; each needs 63
 * bytes of run-up. Nothing is allocated, nothing fails. */
#include "layerstore.h"

#define WINDOW 64
#define EARLY ((uint64_t)1 << (64 - 18))
#define LATE ((uint64_t)1 << (64 - 14))
#define STREAMS 4
#define STRETCH 768

// clang-format off
static const uint64_t gear[256] = {
    0x476d1f47b7987bbau, 0xda7399263b622dd3u, 0xf95b34c46db86f63u, 0x0fd2df4ba8b24372u,
    0x5e39700a32517fc3u, 0x026671b03b06a333u, 0xb122163ff4318724u, 0xab316c329a4ee4b2u,
    0xc2f3c82afaa02ed7u, 0x7a0b678fa1cbb7a5u, 0x07f329f7906367e2u, 0xb4ca6b8d593627e1u,
    0xcbfc0729ef6e464bu, 0x1fc83329c06b4de5u, 0xc9863c46b96672c0u, 0xdd55eab605d2f030u,
    0xba897f68435839e8u, 0x02682ddfb32dffeau, 0x7279b684b2f37c63u, 0xbd44e652ca383ac3u,
    0x14330104441faddfu, 0x65f4da2ee4b2404eu, 0xfbfe75d539bebfa8u, 0x8591eabd51a26a7cu,
    0xaff5c85d3f904870u, 0xfbc2a95e7a9de0c2u, 0xf067cac42ba98d95u, 0x68aa0c9476e0cca0u,
    0x6cc865fd96f5798bu, 0xa29a40de70ac428cu, 0xaa97bc5e9a746d8du, 0xc265e405c30b5c42u,
    0x684523596b54cfa7u, 0xcacee8cee7bfc0f4u, 0x28d226909e109e0du, 0x71950242eeb22f2au,
    0x99036ae20d2fa583u, 0xae208469285d0ae3u, 0xd2ea043e86a2f6f7u, 0xb13f9dc7f60c0480u,
    0xdc1bdd90f631b99eu, 0x2522433b033c3f9au, 0x066c80017ef73370u, 0x289c08664fe622e6u,
    0x7870a07b0e469068u, 0xcf5d33039ae308efu, 0xf96e7a89bb5620e0u, 0x52ed2f3353d1907bu,
    0x055987c9b20437d9u, 0x11d961bb76bd6be7u, 0xe2d7b87dadd85213u, 0x48961423284e3f0du,
    0xeffbc651ea7e2d31u, 0xd6f0088d9678354bu, 0x02bae6af69781322u, 0x4ab4954de61fde92u,
    0x53af7adff8f7360au, 0x5d42d211c0eb0ce6u, 0x5fb322d11fbb331bu, 0xa221105611fc148bu,
    0x1c972d0dcbbd3018u, 0x7386120e1830206bu, 0x858389fb2c08d83eu, 0x449c5d15037b20a2u,
    0x3e7ac982b2e5c727u, 0x2c062f74696b35b9u, 0x11a543981c6c8da0u, 0x16455ad93a39cc5eu,
    0x0308b8e596b182c0u, 0xb8fe11a885be826fu, 0x98e793919e7bb33au, 0x9dabde05953f8c47u,
    0xfbe5f65b4d52e28fu, 0xedb691a5a4c48daau, 0x9c7494527d763b2du, 0x0419a797a0f56b4bu,
    0xb4d2b55304f94fa6u, 0x176097dd9842351fu, 0xf303e5797d98fc8du, 0x9c009b28c9fea089u,
    0x2644f8fe311ee2f9u, 0x9c284ee4a89a5402u, 0x8cb0dd934741020fu, 0x0edfcc9c4401519au,
    0x997583d8ef7a6bb1u, 0x0c05b8f6df5e631cu, 0x40a93a17d57fd8b0u, 0x2cb299afc0c11e2eu,
    0xe12fcae4a5e8968eu, 0x3a205ea7b71769eeu, 0xd37d34d7e6fc7d46u, 0xee6d15cba270310fu,
    0xd7c8dec98dd0a595u, 0xf8f5805e057c87e9u, 0xcad66a3981cf5601u, 0x308c8e73baa754bbu,
    0x235da58c7930a559u, 0xbf4ea9a93ab256a4u, 0x0edd3339b80c4c25u, 0xdaade94d616a289bu,
    0x34f68a61b5f16383u, 0xdac49f7fbcac62efu, 0x2ded6f38f063ce0au, 0x7c57ffe7a20a2c04u,
    0xe2018809edca0bbeu, 0x7300dbb130e7e25eu, 0x2d13eda5c6be6e20u, 0xf729440049339933u,
    0xcea2ab11a022a109u, 0x3ca1de123e0040cbu, 0x8fdf0ea3bdcfe311u, 0xcd2a854b12c3b3fau,
    0xdabfe5cd0543031fu, 0x489d075d0a17ef3bu, 0xd76ce6f2b43cc29bu, 0xf1d4bf1937ee6b1fu,
    0x4417692d013fcee2u, 0xbbd6e9233da585a0u, 0x9556b85dbea06f82u, 0x0d89b018c1264c25u,
    0xd5ca765055104b21u, 0x5a5755de9170348bu, 0xc5925755c881ff29u, 0xc8f0d6296534cbceu,
    0x869eac0dbcf47055u, 0xa333d5ae9fcaa092u, 0x8a1a5825d716792cu, 0x70aab1db599de0ceu,
    0xdbc6f5754880f907u, 0x889fee912159dc06u, 0xa135030fc05b0b73u, 0xfb76c4e30f8376ffu,
    0xded3b618e6c160d8u, 0xcb8a4c4915f1bc43u, 0x5ff49f5dbbbd12a2u, 0x2fecd654813ae0a4u,
    0xa51c27ad9e42ce2cu, 0x817c96e33bf1e8ceu, 0x061c5c39cbf01040u, 0x5458abe4bda39197u,
    0xb45f3f5dc1a2ecebu, 0x9ec019b55da24a63u, 0xc6486308030f6173u, 0x61d04bebd42476f4u,
    0x31944243609629acu, 0x3b2377429020e49du, 0xef240d1d3fcc8f34u, 0x28ca94cb78fc97a3u,
    0x760537cc00384d2cu, 0xce92f9374e6eb056u, 0x9528c8a0e3a045f6u, 0xeb112729b9406fb3u,
    0xe2327b52fa5259a9u, 0xce044f53e75cdabbu, 0x69db3a966f75f88bu, 0x9ef1eca8125821ecu,
    0x150aead923133c5cu, 0xfe41066584a82879u, 0x0a7556f944384741u, 0x1209024e01f06a80u,
    0xe4143afbde84524cu, 0x68188513933ca7fau, 0xfe86beb2a3f2daa7u, 0xc386fc3edb15f6f9u,
    0x253c0526c39d9fcfu, 0xcc7d35a3663309c4u, 0x3a502348aafbb07bu, 0xe2979947304f9cd5u,
    0xff87fe90715262c7u, 0x142b2cf5f9fe37d7u, 0x9079ea38912197c3u, 0x598a0b610ce73afdu,
    0x2f81814309bbed2cu, 0x5ecfc9994002bcbau, 0x2c1875b22e32c271u, 0xfec7488d585c3a2cu,
    0x6b16b562d235ec01u, 0x3239afb6152d25a9u, 0x5779c9b7974d39b8u, 0x0021601c3c9a7174u,
    0x5ce1ebee3f0727bau, 0xfb8837a55a7d72aeu, 0x57a2cf278943b68du, 0xee2c21e7c2e7e911u,
    0x568c1cb95004dce5u, 0x0049c269689757c1u, 0x1dd0d064b0f164e8u, 0x651f196530180651u,
    0x39a9a5c196e2f2c4u, 0x118ba910f896be35u, 0x940876a38fa706e8u, 0x7ebb188ea14167c8u,
    0xd310b70a08368844u, 0x69371b3847957b59u, 0x2bca78a565e1825bu, 0xcb4d98d8a937f02bu,
    0x4d27735fa5db5cc7u, 0xba26a8621ec4b5d8u, 0xd9162c9eab06e832u, 0x1f2fb0d8c4399c27u,
    0x5c79f71ec53b85beu, 0x692be5d7f7ea143au, 0x7ea7af0779e9f7c8u, 0xae4e3e9e3c0e7d65u,
    0xa3f513056b4566e8u, 0xd495f83a24b7f900u, 0x8b695af6c2c8c8eau, 0x49309e6b98efc713u,
    0xf2cc60395fdb6005u, 0xabaad2f9af0aa476u, 0xd36ad2b8d040bc63u, 0x07b7242c2c9bf066u,
    0x249efb9b4d0ce217u, 0x02375f0108e0cc9cu, 0x6e7cc0b071d57a8fu, 0xfe75c70f18ddbdf9u,
    0x749d9f72098a130eu, 0x49750aca655f08e0u, 0x036182d18aecf064u, 0x9396053f5a0d65c3u,
    0xc42dfb31626cc3afu, 0xae05d5a1ff499412u, 0xb6fe59c44d6c5041u, 0x9d61dd0d2846b876u,
    0xc5c8774e8b8b4074u, 0x38daea59977cb724u, 0xe762a7f98a289a7cu, 0xd8a3456330329c4eu,
    0x4680e66d7d309017u, 0xb28fa9a8f6454268u, 0x243be6d16fc00b10u, 0x293373428b2f7f8au,
    0xdb97f40178c8c4a8u, 0x43320bdc29456758u, 0x1ce091ae89298883u, 0x246f5456108a7f28u,
    0xeade9f0cdf5868d1u, 0x12446691205b11ddu, 0x3fb5e7d5c274197au, 0x355f60e37f5d9d8bu,
    0x6e2c39c7714e4e74u, 0x28e11262ef1ba78eu, 0x608630cca2b5f763u, 0xd134fe2902fd2352u,
    0xf0a0bcbecc8bc766u, 0x18c982b2e795d98eu, 0x8e60b17c2ebc89c2u, 0xb3352c565536081au,
    0x67c5dfb23064f784u, 0x295e524f45d6e307u, 0xf35755598264816du, 0xbb5d0abb37fc4c47u,
    0x944249ec6913cf55u, 0x94a1d0ed2019df9fu, 0x3a5ceb26f6631942u, 0x71fe412c3cab9761u,
};
// clang-format on

static uint64_t roll(uint64_t h, uint8_t byte) {
    return (h << 1) + gear[byte];
}

/* The hash at the position before `p`: of what the window holds but for its next byte. */
static uint64_t run_up(const uint8_t *p) {
    uint64_t h = 0;
    for (size_t i = 0; i < WINDOW - 1; i++)
        h = roll(h, *(p - (WINDOW - 1) + i));
    return h;
}

/* The first position in [at, end) whose hash is below `bound`, or `end`; `h` is the hash before it. */
static size_t scan(const uint8_t *data, size_t at, size_t end, uint64_t bound, uint64_t h) {
    for (; at < end; at++) {
        h = roll(h, data[at]);
        if (h < bound)
            break;
    }
    return at;
}

/* The same without a hash to begin with; at least WINDOW - 1 bytes lie before `at`. */
static size_t find_cut(const uint8_t *data, size_t at, size_t end, uint64_t bound) {
    uint64_t h = run_up(data + at);
    while (end - at >= STREAMS * STRETCH) {
        const uint8_t *p = data + at;
        uint64_t h1 = run_up(p + STRETCH), h2 = run_up(p + 2 * STRETCH),
                 h3 = run_up(p + 3 * STRETCH);
        for (size_t i = 0; i < STRETCH; i++) {
            h = roll(h, p[i]);
            h1 = roll(h1, p[i + STRETCH]);
            h2 = roll(h2, p[i + 2 * STRETCH]);
            h3 = roll(h3, p[i + 3 * STRETCH]);
            if (h < bound || h1 < bound || h2 < bound || h3 < bound)
                /* A cut is near, but the first one counts: byte by byte from here. */
                return scan(data, at + i, at + STREAMS * STRETCH, bound, run_up(p + i));
        }
        h = h3;
        at += STREAMS * STRETCH;
    }
    return scan(data, at, end, bound, h);
}

size_t ls_chunk_next(const uint8_t *data, size_t size, int final) {
    if (size < LS_CHUNK_MAX && !final)
        return 0;
    if (size <= LS_CHUNK_MIN)
        return size;
    size_t end = size < LS_CHUNK_MAX ? size : LS_CHUNK_MAX;
    size_t middle = end < LS_CHUNK_AVG ? end : LS_CHUNK_AVG;
    /* The hash at byte i decides on a chunk of i + 1 bytes. */
    size_t at = find_cut(data, LS_CHUNK_MIN - 1, middle - 1, EARLY);
    if (at < middle - 1)
        return at + 1;
    if (end == middle)
        return end;
    at = find_cut(data, middle - 1, end - 1, LATE);
    return at + 1;
}

size_t ls_chunk_cut(const uint8_t *data, size_t size, int final, uint32_t *lengths, size_t max,
                    size_t *used) {
    size_t n = 0;
    *used = 0;
    while (n < max && *used < size) {
        size_t length = ls_chunk_next(data + *used, size - *used, final);
        if (!length)
            break;
        lengths[n++] = (uint32_t)length;
        *used += length;
    }
    return n;
}
