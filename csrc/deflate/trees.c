/* trees.c: prefix codes of bounded length out of counts, by package-merge.
 *
 * Part of the format: which of several optimal codes is taken. Symbols are sorted by count, equal ones
 * by number. The list of level 1 is the symbols; that of level k + 1 is the symbols merged with the
 * packages of level k (neighbours in pairs, from the front; an odd one at the end is dropped), a symbol
 * before a package of equal weight. Of level `limit` the first 2 n - 2 items are taken, and so on
 * downward: a symbol's length is how many times it was taken. Codes are canonical (RFC 1951, 3.2.2).
 *
 * Cost: n log n for the sort, 2 n a level. */
#include <string.h>

#include "deflate_impl.h"

#define MAX_ITEMS (2 * LITLEN_SYMBOLS)
#define FEW_KEYS 32 /* sorted by insertion */

/* Two rows of bins each, so that equal tokens in turn need not wait for each other. */
void ls_count(const ls_token *tokens, size_t n, ls_counts *counts) {
    uint32_t bins[2][LS_SLOTS], dists[2][LS_DIST_SLOTS];
    memset(bins, 0, sizeof bins);
    memset(dists, 0, sizeof dists);
    size_t i = 0;
    for (; i + 2 <= n; i += 2) {
        ls_token a = tokens[i], b = tokens[i + 1];
        bins[0][ls_token_slot(a)]++;
        dists[0][ls_token_dist(a)]++;
        bins[1][ls_token_slot(b)]++;
        dists[1][ls_token_dist(b)]++;
    }
    if (i < n) {
        bins[0][ls_token_slot(tokens[i])]++;
        dists[0][ls_token_dist(tokens[i])]++;
    }
    memset(counts, 0, sizeof *counts);
    for (uint32_t k = 0; k < END_OF_BLOCK; k++)
        counts->litlen[k] = bins[0][k] + bins[1][k];
    for (uint32_t k = MIN_MATCH; k <= MAX_MATCH; k++)
        counts->litlen[257 + ls_length_symbol[k]] +=
            bins[0][LS_LENGTH_SLOT + k] + bins[1][LS_LENGTH_SLOT + k];
    for (uint32_t k = 0; k < DIST_SYMBOLS; k++)
        counts->dist[k] = dists[0][k] + dists[1][k];
}

/* By byte of the count, the lowest first; the symbols are in order already. */
void ls_code_sort(uint64_t *keys, uint32_t n) {
    uint64_t other[LITLEN_SYMBOLS], *from = keys, *to = other, all = 0;
    if (n <= FEW_KEYS) {
        for (uint32_t i = 1; i < n; i++) {
            uint64_t key = keys[i];
            uint32_t j = i;
            for (; j && keys[j - 1] > key; j--)
                keys[j] = keys[j - 1];
            keys[j] = key;
        }
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        all |= keys[i];
    for (uint32_t shift = 16; shift < 64 && all >> shift; shift += 8) {
        uint32_t at[256] = {0}, sum = 0;
        for (uint32_t i = 0; i < n; i++)
            at[from[i] >> shift & 255]++;
        for (uint32_t k = 0; k < 256; k++) {
            uint32_t count = at[k];
            at[k] = sum;
            sum += count;
        }
        for (uint32_t i = 0; i < n; i++)
            to[at[from[i] >> shift & 255]++] = from[i];
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys)
        memcpy(keys, from, n * sizeof *keys);
}

/* Lengths of n >= 2 sorted symbols. */
static void package_merge(const uint64_t *keys, uint32_t n, uint32_t limit, uint8_t *lengths) {
    uint8_t is_symbol[MAX_BITS][MAX_ITEMS];
    uint64_t lists[2][MAX_ITEMS];
    uint32_t size = 0;
    for (uint32_t level = 0; level < limit; level++) {
        uint64_t *now = lists[level & 1], *before = lists[(level & 1) ^ 1];
        uint32_t packages = size / 2, s = 0, p = 0, out = 0;
        while (s < n || p < packages) {
            uint64_t package = p < packages ? before[2 * p] + before[2 * p + 1] : 0;
            if (s < n && (p == packages || keys[s] >> 16 <= package)) {
                is_symbol[level][out] = 1;
                now[out++] = keys[s++] >> 16;
            } else {
                is_symbol[level][out] = 0;
                now[out++] = package;
                p++;
            }
        }
        size = out;
    }
    memset(lengths, 0, n);
    uint32_t take = 2 * n - 2;
    for (uint32_t level = limit; level-- > 0 && take;) {
        uint32_t symbols = 0;
        for (uint32_t i = 0; i < take; i++)
            symbols += is_symbol[level][i];
        for (uint32_t i = 0; i < symbols; i++)
            lengths[i]++;
        take = 2 * (take - symbols);
    }
}

static uint16_t reversed(uint32_t code, uint32_t bits) {
    code = (code & 0x5555) << 1 | (code >> 1 & 0x5555);
    code = (code & 0x3333) << 2 | (code >> 2 & 0x3333);
    code = (code & 0x0f0f) << 4 | (code >> 4 & 0x0f0f);
    code = (code & 0x00ff) << 8 | (code >> 8 & 0x00ff);
    return (uint16_t)(code >> (16 - bits));
}

void ls_code_assign(ls_code *code, uint32_t n) {
    uint32_t count[MAX_BITS + 1] = {0}, next[MAX_BITS + 1];
    for (uint32_t i = 0; i < n; i++)
        count[code->lengths[i]]++;
    count[0] = 0;
    uint32_t value = 0;
    for (uint32_t bits = 1; bits <= MAX_BITS; bits++) {
        value = (value + count[bits - 1]) << 1;
        next[bits] = value;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits = code->lengths[i];
        code->codes[i] = bits ? reversed(next[bits]++, bits) : 0;
    }
}

void ls_code_make(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code) {
    uint64_t keys[LITLEN_SYMBOLS];
    uint8_t lengths[LITLEN_SYMBOLS];
    uint32_t used = 0;
    memset(code, 0, sizeof *code);
    for (uint32_t i = 0; i < n; i++)
        if (counts[i])
            keys[used++] = (uint64_t)counts[i] << 16 | i;
    if (used == 1) {
        code->lengths[keys[0] & 0xffff] = 1;
    } else if (used > 1) {
        ls_code_sort(keys, used);
        package_merge(keys, used, limit, lengths);
        for (uint32_t i = 0; i < used; i++)
            code->lengths[keys[i] & 0xffff] = lengths[i];
    }
    ls_code_assign(code, n);
}
