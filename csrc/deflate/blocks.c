/* blocks.c: one deflate block out of tokens (RFC 1951, 3.2).
 *
 * Part of the format: the shortest of the three kinds is taken, a dynamic block before a fixed before a
 * stored one of equal length, the bits up to the next byte boundary counted as those of a stored block.
 * A dynamic header names as few symbols as possible (at least 257 and 1, at least 4 code lengths). Its
 * lengths, those of both alphabets as one row, are written in runs from the front: of zeros the longest
 * possible of 11 to 138 (symbol 18), else of 3 to 10 (17); of another length, behind one of it, the
 * longest possible of 3 to 6 repeats (16); else one by one. When no distance is used, distance 0 gets
 * a length of 1. Of a stored block longer than 65,535 bytes the first parts are 65,535 long.
 *
 * Nothing fails but for room, which is checked before the first bit. */
#include <string.h>

#include "deflate_impl.h"

// clang-format off
const uint16_t ls_length_base[29] = {
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
};
const uint8_t ls_length_extra[29] = {
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
};
const uint16_t ls_dist_base[DIST_SYMBOLS] = {
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049,
    3073, 4097, 6145, 8193, 12289, 16385, 24577,
};
const uint8_t ls_dist_extra[DIST_SYMBOLS] = {
    0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13,
};
const uint8_t ls_length_symbol[MAX_MATCH + 1] = {
    0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 12, 13,
    13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15, 16, 16, 16, 16, 16, 16, 16, 16, 17, 17, 17, 17, 17,
    17, 17, 17, 18, 18, 18, 18, 18, 18, 18, 18, 19, 19, 19, 19, 19, 19, 19, 19, 20, 20, 20, 20, 20,
    20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21, 21,
    21, 21, 21, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 22, 23, 23, 23, 23, 23,
    23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 23, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24,
    24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 25, 25, 25, 25, 25,
    25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25, 25,
    25, 25, 25, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26,
    26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 26, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27,
    27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 27, 28,
};
#define TIMES4(x) x, x, x, x
#define TIMES16(x) TIMES4(x), TIMES4(x), TIMES4(x), TIMES4(x)
#define TIMES64(x) TIMES16(x), TIMES16(x), TIMES16(x), TIMES16(x)
const uint8_t ls_dist_slots[768] = {
    /* distance - 1 below 256 */
    0, 1, 2, 3, 4, 4, 5, 5, TIMES4(6), TIMES4(7), TIMES4(8), TIMES4(8), TIMES4(9), TIMES4(9),
    TIMES16(10), TIMES16(11), TIMES16(12), TIMES16(12), TIMES16(13), TIMES16(13), TIMES64(14),
    TIMES64(15),
    /* (distance - 1) / 128 */
    0, 0, 16, 17, 18, 18, 19, 19, TIMES4(20), TIMES4(21), TIMES4(22), TIMES4(22), TIMES4(23),
    TIMES4(23), TIMES16(24), TIMES16(25), TIMES16(26), TIMES16(26), TIMES16(27), TIMES16(27),
    TIMES64(28), TIMES64(29),
    /* none */
    TIMES64(31), TIMES64(31), TIMES64(31), TIMES64(31),
};
const uint8_t ls_codelen_order[CODELEN_SYMBOLS] = {
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
};
// clang-format on

static const uint8_t codelen_extra[CODELEN_SYMBOLS] = {[16] = 2, [17] = 3, [18] = 7};

static uint32_t last_used(const uint8_t *lengths, uint32_t n, uint32_t least) {
    while (n > least && !lengths[n - 1])
        n--;
    return n;
}

uint32_t ls_run_lengths(const uint8_t *lengths, uint32_t n, uint8_t *runs, uint8_t *extra) {
    uint32_t out = 0;
    for (uint32_t i = 0; i < n;) {
        uint8_t length = lengths[i];
        uint32_t run = 1;
        while (i + run < n && lengths[i + run] == length)
            run++;
        i += run;
        if (length) {
            runs[out] = length;
            extra[out++] = 0;
            run--;
        }
        while (run >= 3) {
            uint32_t most = length ? 6 : 138, take = run < most ? run : most;
            uint8_t symbol = length ? 16 : take >= 11 ? 18 : 17;
            runs[out] = symbol;
            extra[out++] = (uint8_t)(take - (symbol == 18 ? 11 : 3));
            run -= take;
        }
        for (; run; run--) {
            runs[out] = length;
            extra[out++] = 0;
        }
    }
    return out;
}

/* Bits of the tokens, END_OF_BLOCK among them. */
static uint64_t body_bits(const ls_counts *counts, const ls_code *litlen, const ls_code *dist) {
    uint64_t bits = litlen->lengths[END_OF_BLOCK];
    for (uint32_t i = 0; i < LITLEN_SYMBOLS; i++)
        bits += (uint64_t)counts->litlen[i] *
                (litlen->lengths[i] + (i > END_OF_BLOCK ? ls_length_extra[i - 257] : 0u));
    for (uint32_t i = 0; i < DIST_SYMBOLS; i++)
        bits += (uint64_t)counts->dist[i] * (dist->lengths[i] + (uint32_t)ls_dist_extra[i]);
    return bits;
}

void ls_fixed_codes(ls_code *litlen, ls_code *dist) {
    /* Symbols 286 and 287 take part in the code (3.2.6); they are behind all others of 8 bits. */
    memset(litlen, 0, sizeof *litlen);
    memset(dist, 0, sizeof *dist);
    for (uint32_t i = 0; i < LITLEN_SYMBOLS; i++)
        litlen->lengths[i] = (uint8_t)(i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8);
    for (uint32_t i = 0; i < LITLEN_SYMBOLS; i++) {
        uint32_t code = i < 144   ? 0x30 + i
                        : i < 256 ? 0x190 + i - 144
                        : i < 280 ? i - 256
                                  : 0xc0 + i - 280;
        uint32_t bits = litlen->lengths[i], out = 0;
        for (uint32_t k = 0; k < bits; k++)
            out |= (code >> k & 1) << (bits - 1 - k);
        litlen->codes[i] = (uint16_t)out;
    }
    for (uint32_t i = 0; i < DIST_SYMBOLS; i++)
        dist->lengths[i] = 5;
    ls_code_assign(dist, DIST_SYMBOLS);
}

static void write_body(ls_bits *b, const ls_token *tokens, size_t n, const ls_code *litlen,
                       const ls_code *dist) {
    /* At most 7 bits are held, and a match has at most 48. */
    for (size_t i = 0; i < n; i++) {
        ls_token token = tokens[i];
        if (token < 256) {
            ls_bits_put(b, litlen->codes[token], litlen->lengths[token]);
            if (b->n >= 48)
                ls_bits_flush(b);
            continue;
        }
        uint32_t length = token & 0xffff, d = token >> 16;
        uint32_t l = ls_length_symbol[length], s = ls_dist_symbol(d);
        if (b->n >= 16)
            ls_bits_flush(b);
        ls_bits_put(b, litlen->codes[257 + l], litlen->lengths[257 + l]);
        ls_bits_put(b, length - ls_length_base[l], ls_length_extra[l]);
        ls_bits_put(b, dist->codes[s], dist->lengths[s]);
        ls_bits_put(b, d - ls_dist_base[s], ls_dist_extra[s]);
    }
    ls_bits_flush(b);
    ls_bits_put(b, litlen->codes[END_OF_BLOCK], litlen->lengths[END_OF_BLOCK]);
    ls_bits_flush(b);
}

static void write_stored(ls_bits *b, const uint8_t *data, size_t size, int final) {
    do {
        uint32_t part = size < 65535 ? (uint32_t)size : 65535;
        size -= part;
        ls_bits_put(b, final && !size, 1);
        ls_bits_put(b, 0, 2);
        ls_bits_align(b);
        ls_bits_put(b, part | (uint64_t)(part ^ 0xffff) << 16, 32);
        ls_bits_flush(b);
        if (part)
            memcpy(b->at, data, part);
        b->at += part;
        data += part;
    } while (size);
}

int ls_block_write(ls_block_work *work, const ls_token *tokens, size_t n, const ls_counts *counts,
                   const uint8_t *data, size_t size, int final, ls_bits *b, const uint8_t *end) {
    ls_code *litlen = &work->litlen, *dist = &work->dist;
    memcpy(work->counts, counts->litlen, sizeof counts->litlen);
    work->counts[END_OF_BLOCK] = 1;
    ls_code_make(work->counts, LITLEN_SYMBOLS, MAX_BITS, litlen);
    ls_code_make(counts->dist, DIST_SYMBOLS, MAX_BITS, dist);
    uint32_t n_litlen = last_used(litlen->lengths, LITLEN_SYMBOLS, 257);
    uint32_t n_dist = last_used(dist->lengths, DIST_SYMBOLS, 1);
    if (!dist->lengths[n_dist - 1])
        dist->lengths[0] = 1;
    uint8_t lengths[LITLEN_SYMBOLS + DIST_SYMBOLS];
    memcpy(lengths, litlen->lengths, n_litlen);
    memcpy(lengths + n_litlen, dist->lengths, n_dist);
    uint32_t n_runs = ls_run_lengths(lengths, n_litlen + n_dist, work->runs, work->run_extra);
    memset(work->counts, 0, CODELEN_SYMBOLS * sizeof *work->counts);
    for (uint32_t i = 0; i < n_runs; i++)
        work->counts[work->runs[i]]++;
    ls_code_make(work->counts, CODELEN_SYMBOLS, MAX_CODELEN_BITS, &work->codelen);
    uint32_t n_codelen = CODELEN_SYMBOLS;
    while (n_codelen > 4 && !work->codelen.lengths[ls_codelen_order[n_codelen - 1]])
        n_codelen--;
    uint64_t dynamic = 3 + 5 + 5 + 4 + 3 * n_codelen + body_bits(counts, litlen, dist);
    for (uint32_t i = 0; i < n_runs; i++)
        dynamic += work->codelen.lengths[work->runs[i]] + (uint32_t)codelen_extra[work->runs[i]];

    uint64_t parts = size ? (size + 65534) / 65535 : 1;
    uint64_t stored = 3 + (8 - (b->n + 3) % 8) % 8 + 40 * (parts - 1) + 32 + 8 * (uint64_t)size;

    /* The bits of the fixed code follow from the counts alone. */
    uint64_t fixed = 3 + 7;
    for (uint32_t i = 0; i < LITLEN_SYMBOLS; i++)
        fixed += (uint64_t)counts->litlen[i] * ((i < 144   ? 8u
                                                 : i < 256 ? 9u
                                                 : i < 280 ? 7u
                                                           : 8u) +
                                                (i > END_OF_BLOCK ? ls_length_extra[i - 257] : 0u));
    for (uint32_t i = 0; i < DIST_SYMBOLS; i++)
        fixed += (uint64_t)counts->dist[i] * (5u + ls_dist_extra[i]);

    uint64_t least = dynamic < fixed ? dynamic : fixed;
    least = least < stored ? least : stored;
    if ((least + b->n) / 8 + 16 > (uint64_t)(end - b->at))
        return LS_ESPACE;
    if (least == dynamic) {
        ls_bits_put(b, (uint64_t)(final != 0), 1);
        ls_bits_put(b, 2, 2);
        ls_bits_put(b, n_litlen - 257, 5);
        ls_bits_put(b, n_dist - 1, 5);
        ls_bits_put(b, n_codelen - 4, 4);
        for (uint32_t i = 0; i < n_codelen; i++) {
            ls_bits_flush(b);
            ls_bits_put(b, work->codelen.lengths[ls_codelen_order[i]], 3);
        }
        for (uint32_t i = 0; i < n_runs; i++) {
            uint8_t symbol = work->runs[i];
            ls_bits_flush(b);
            ls_bits_put(b, work->codelen.codes[symbol], work->codelen.lengths[symbol]);
            ls_bits_put(b, work->run_extra[i], codelen_extra[symbol]);
        }
        ls_bits_flush(b);
        write_body(b, tokens, n, litlen, dist);
    } else if (least == fixed) {
        ls_fixed_codes(litlen, dist);
        ls_bits_put(b, (uint64_t)(final != 0), 1);
        ls_bits_put(b, 1, 2);
        ls_bits_flush(b);
        write_body(b, tokens, n, litlen, dist);
    } else {
        write_stored(b, data, size, final);
    }
    return LS_OK;
}
