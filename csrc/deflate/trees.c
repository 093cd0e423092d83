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

void ls_code_sort(uint64_t *keys, uint32_t n) {
    static const uint32_t gaps[] = {132, 57, 23, 10, 4, 1};
    for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++) {
        uint32_t gap = gaps[g];
        for (uint32_t i = gap; i < n; i++) {
            uint64_t key = keys[i];
            uint32_t j = i;
            for (; j >= gap && keys[j - gap] > key; j -= gap)
                keys[j] = keys[j - gap];
            keys[j] = key;
        }
    }
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
    uint32_t out = 0;
    for (uint32_t i = 0; i < bits; i++)
        out |= (code >> i & 1) << (bits - 1 - i);
    return (uint16_t)out;
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
