/* trees_zlib.c: Huffman codes out of counts as zlib, GNU gzip, pigz and zlib-ng make them.
 *
 * Which of several optimal trees is built follows from a binary heap. Nodes are ordered by count, then by
 * depth (of a leaf 0, of an inner node one more than its deeper child's); what is equal in both is taken
 * as the heap has it. The leaves go in by number and are heaped up from the last parent to the root. Two at
 * a time the least node is taken out (the last of the heap takes its place and sinks) and then the next
 * one, which the new node replaces in the root, and sinks. A node that sinks goes on while a child is less
 * than or equal to it; of two children the right one is preferred only when it is less or equal.
 *
 * Lengths are given in the reverse order of being taken out. One that would be over the limit is the limit
 * itself; for each two such nodes the deepest leaf above the limit moves one down and gets one of them for
 * a brother. Then the lengths are dealt anew: the longest to the leaves that were taken out first.
 *
 * Cost: n log n, all on the stack. */
#include <string.h>

#include "trees_zlib.h"

#define MAX_NODES (2 * LITLEN_SYMBOLS)

typedef struct heap {
    uint32_t count[MAX_NODES];
    uint16_t parent[MAX_NODES];
    uint8_t depth[MAX_NODES];
    uint16_t nodes[LITLEN_SYMBOLS + 1]; /* [1] is the root */
    uint32_t size;
} heap;

/* Whether a goes before b, or is no different. */
static int before(const heap *h, uint32_t a, uint32_t b) {
    return h->count[a] < h->count[b] || (h->count[a] == h->count[b] && h->depth[a] <= h->depth[b]);
}

static void sink(heap *h, uint32_t at) {
    uint16_t node = h->nodes[at];
    for (uint32_t child; (child = 2 * at) <= h->size; at = child) {
        if (child < h->size && before(h, h->nodes[child + 1], h->nodes[child]))
            child++;
        if (before(h, node, h->nodes[child]))
            break;
        h->nodes[at] = h->nodes[child];
    }
    h->nodes[at] = node;
}

uint32_t ls_zlib_code(const uint32_t *counts, uint32_t n, uint32_t limit, ls_code *code) {
    heap h;
    uint16_t taken[MAX_NODES]; /* in the order of being taken out; the root last */
    uint32_t n_taken = 0, last = 0, used = 0;
    h.size = 0;
    for (uint32_t i = 0; i < n; i++) {
        h.count[i] = counts[i];
        h.depth[i] = 0;
        if (counts[i]) {
            h.nodes[++h.size] = (uint16_t)i;
            last = i + 1;
        }
    }
    while (h.size < 2) {
        uint32_t extra = last < 3 ? last++ : 0;
        h.count[extra] = 1;
        h.nodes[++h.size] = (uint16_t)extra;
    }
    used = h.size;
    for (uint32_t i = h.size / 2; i; i--)
        sink(&h, i);
    uint32_t inner = n;
    while (h.size >= 2) {
        uint32_t a = h.nodes[1];
        h.nodes[1] = h.nodes[h.size--];
        sink(&h, 1);
        uint32_t b = h.nodes[1];
        taken[n_taken++] = (uint16_t)a;
        taken[n_taken++] = (uint16_t)b;
        h.count[inner] = h.count[a] + h.count[b];
        h.depth[inner] = (uint8_t)((h.depth[a] > h.depth[b] ? h.depth[a] : h.depth[b]) + 1);
        h.parent[a] = h.parent[b] = (uint16_t)inner;
        h.nodes[1] = (uint16_t)inner++;
        sink(&h, 1);
    }

    uint32_t of_length[MAX_BITS + 1] = {0}, over = 0;
    uint8_t length[MAX_NODES];
    length[inner - 1] = 0;
    memset(code, 0, sizeof *code);
    for (uint32_t i = n_taken; i-- > 0;) {
        uint32_t node = taken[i], bits = length[h.parent[node]] + 1u;
        if (bits > limit) {
            bits = limit;
            over++;
        }
        length[node] = (uint8_t)bits;
        if (node < n) {
            of_length[bits]++;
            code->lengths[node] = (uint8_t)bits;
        }
    }
    if (over) {
        for (int32_t left = (int32_t)over; left > 0; left -= 2) {
            uint32_t bits = limit - 1;
            while (!of_length[bits])
                bits--;
            of_length[bits]--;
            of_length[bits + 1] += 2;
            of_length[limit]--;
        }
        uint32_t bits = limit;
        for (uint32_t i = 0, left = used; left; i++) {
            if (taken[i] >= n)
                continue;
            while (!of_length[bits])
                bits--;
            of_length[bits]--;
            code->lengths[taken[i]] = (uint8_t)bits;
            left--;
        }
    }
    ls_code_assign(code, n);
    return last;
}

void ls_zlib_trees(const ls_token *tokens, size_t n, ls_code *litlen, ls_code *dist, uint32_t *hlit,
                   uint32_t *hdist) {
    ls_counts counts;
    ls_count(tokens, n, &counts);
    counts.litlen[END_OF_BLOCK] = 1;
    *hlit = ls_zlib_code(counts.litlen, LITLEN_SYMBOLS, MAX_BITS, litlen);
    *hdist = ls_zlib_code(counts.dist, DIST_SYMBOLS, MAX_BITS, dist);
}

uint32_t ls_zlib_runs(const uint8_t *lengths, uint32_t hlit, uint32_t hdist, uint8_t *symbols,
                      uint8_t *extra) {
    uint32_t n = ls_run_lengths(lengths, hlit, symbols, extra);
    return n + ls_run_lengths(lengths + hlit, hdist, symbols + n, extra + n);
}

void ls_zlib_codelen(const uint32_t *counts, ls_code *codelen) {
    (void)ls_zlib_code(counts, CODELEN_SYMBOLS, MAX_CODELEN_BITS, codelen);
}
