/* trees_go.c: the trees of a dynamic block as Go's encoders make them (compress/flate and its relatives).
 *
 * Lengths come from package-merge, as in trees.c, with these rules of their own: symbols are sorted by
 * count, equal ones by number; where a package and a symbol weigh the same, the package goes first; the
 * limit is at most one less than the number of symbols; one or two symbols get a length of 1. The lengths
 * of both trees are run-length coded as one row.
 *
 * Cost: n log n for the sort, 2 n a level. */
#include "trees_go.h"

#include <string.h>

#define MAX_ITEMS (2 * LITLEN_SYMBOLS)

/* Lengths of n >= 3 sorted symbols. */
static void package_merge(const uint64_t *keys, uint32_t n, uint32_t limit, uint8_t *lengths) {
    uint8_t is_symbol[MAX_BITS][MAX_ITEMS];
    uint64_t lists[2][MAX_ITEMS];
    uint32_t size = 0;
    if (limit > n - 1)
        limit = n - 1;
    for (uint32_t level = 0; level < limit; level++) {
        uint64_t *now = lists[level & 1], *before = lists[(level & 1) ^ 1];
        uint32_t packages = size / 2, s = 0, p = 0, out = 0;
        while (s < n || p < packages) {
            uint64_t package = p < packages ? before[2 * p] + before[2 * p + 1] : 0;
            if (s < n && (p == packages || keys[s] >> 16 < package)) {
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

/* Lengths of n >= 3 sorted symbols without a limit; 0 where one would be longer than `limit`. */
static int huffman(const uint64_t *keys, uint32_t n, uint32_t limit, uint8_t *lengths) {
    uint64_t weights[LITLEN_SYMBOLS];
    uint16_t parents[2 * LITLEN_SYMBOLS];
    uint32_t depths[LITLEN_SYMBOLS], leaf = 0, node = 0;
    for (uint32_t k = 0; k < n - 1; k++) {
        weights[k] = 0;
        for (int two = 0; two < 2; two++) {
            if (leaf < n && (node >= k || keys[leaf] >> 16 <= weights[node])) {
                weights[k] += keys[leaf] >> 16;
                parents[leaf++] = (uint16_t)k;
            } else {
                weights[k] += weights[node];
                parents[n + node++] = (uint16_t)k;
            }
        }
    }
    depths[n - 2] = 0;
    for (uint32_t k = n - 2; k-- > 0;)
        depths[k] = depths[parents[n + k]] + 1;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t length = depths[parents[i]] + 1;
        if (length > limit)
            return 0;
        lengths[i] = (uint8_t)length;
    }
    /* The encoder keeps how many there are of each length, and gives the longest to the first. */
    uint32_t counted[MAX_BITS + 1] = {0}, i = 0;
    for (uint32_t k = 0; k < n; k++)
        counted[lengths[k]]++;
    for (uint32_t length = limit; length > 0; length--)
        for (uint32_t k = 0; k < counted[length]; k++)
            lengths[i++] = (uint8_t)length;
    return 1;
}

static void make(const uint32_t *counts, uint32_t n, uint32_t limit, int unlimited, ls_code *code) {
    uint64_t keys[LITLEN_SYMBOLS];
    uint8_t lengths[LITLEN_SYMBOLS];
    uint32_t used = 0;
    memset(code, 0, sizeof *code);
    for (uint32_t i = 0; i < n; i++)
        if (counts[i])
            keys[used++] = (uint64_t)counts[i] << 16 | i;
    if (used > 2) {
        ls_code_sort(keys, used);
        if (!unlimited || !huffman(keys, used, limit, lengths))
            package_merge(keys, used, limit, lengths);
    } else {
        memset(lengths, 1, sizeof lengths);
    }
    for (uint32_t i = 0; i < used; i++)
        code->lengths[keys[i] & 0xffff] = lengths[i];
    ls_code_assign(code, n);
}

void ls_go_code(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code) {
    make(counts, n, limit, 0, code);
}

void ls_go_code_120(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code) {
    make(counts, n, limit, 1, code);
}

void ls_go_trees_by(ls_go_coder coder, const ls_counts *counts, ls_code *litlen, ls_code *dist,
                    uint32_t *hlit, uint32_t *hdist) {
    ls_counts c = *counts;
    uint32_t n = LITLEN_SYMBOLS, d = DIST_SYMBOLS;
    c.litlen[END_OF_BLOCK] = 1;
    while (!c.litlen[n - 1])
        n--;
    while (d && !c.dist[d - 1])
        d--;
    if (!d)
        c.dist[d++] = 1;
    coder(c.litlen, LITLEN_SYMBOLS, MAX_BITS, litlen);
    coder(c.dist, DIST_SYMBOLS, MAX_BITS, dist);
    *hlit = n;
    *hdist = d;
}

void ls_go_literal_trees_by(ls_go_coder coder, const ls_counts *counts, ls_code *litlen,
                            ls_code *dist, uint32_t *hlit, uint32_t *hdist) {
    ls_counts c = *counts;
    c.litlen[END_OF_BLOCK] = 1;
    coder(c.litlen, END_OF_BLOCK + 1, MAX_BITS, litlen);
    memset(dist, 0, sizeof *dist);
    dist->lengths[0] = 1;
    ls_code_assign(dist, DIST_SYMBOLS);
    *hlit = END_OF_BLOCK + 1;
    *hdist = 1;
}

void ls_go_trees(const ls_counts *counts, ls_code *litlen, ls_code *dist, uint32_t *hlit,
                 uint32_t *hdist) {
    ls_go_trees_by(ls_go_code, counts, litlen, dist, hlit, hdist);
}

void ls_go_literal_trees(const ls_counts *counts, ls_code *litlen, ls_code *dist, uint32_t *hlit,
                         uint32_t *hdist) {
    ls_go_literal_trees_by(ls_go_code, counts, litlen, dist, hlit, hdist);
}

uint32_t ls_go_runs(const uint8_t *lengths, uint32_t hlit, uint32_t hdist, uint8_t *symbols,
                    uint8_t *extra) {
    uint32_t total = hlit + hdist, out = 0;
    for (uint32_t i = 0; i < total;) {
        uint8_t length = lengths[i];
        uint32_t count = 1;
        while (i + count < total && lengths[i + count] == length)
            count++;
        i += count;
        if (length) {
            symbols[out] = length;
            extra[out++] = 0;
            for (count--; count >= 3;) {
                uint32_t n = count < 6 ? count : 6;
                symbols[out] = 16;
                extra[out++] = (uint8_t)(n - 3);
                count -= n;
            }
        } else {
            while (count >= 11) {
                uint32_t n = count < 138 ? count : 138;
                symbols[out] = 18;
                extra[out++] = (uint8_t)(n - 11);
                count -= n;
            }
            if (count >= 3) {
                symbols[out] = 17;
                extra[out++] = (uint8_t)(count - 3);
                count = 0;
            }
        }
        for (; count; count--) {
            symbols[out] = length;
            extra[out++] = 0;
        }
    }
    return out;
}

void ls_go_codelen(const uint32_t *counts, ls_code *codelen) {
    ls_go_code(counts, CODELEN_SYMBOLS, MAX_CODELEN_BITS, codelen);
}

void ls_go_codelen_120(const uint32_t *counts, ls_code *codelen) {
    ls_go_code_120(counts, CODELEN_SYMBOLS, MAX_CODELEN_BITS, codelen);
}
