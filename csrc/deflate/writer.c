/* writer.c: the bits of a block whose every decision is made: header, tokens, end (RFC 1951, 3.2).
 *
 * A length and its extra bits are one entry of a table made for the block; so is the code of a distance.
 * With fewer than 8 bits held, a match has at most 48 more: one store a token, and no branch: literals and matches go the same way.
 * Cost: 1,000 table entries a block, about 2 ns a token. */
#include "respan_impl.h"

#define GROUP 1024

void ls_bits_table_make(ls_bits_table *t, const ls_code *litlen, const ls_code *dist) {
    for (uint32_t i = 0; i < END_OF_BLOCK; i++)
        t->slots[i] = litlen->codes[i] | (uint32_t)litlen->lengths[i] << 24;
    t->end = litlen->codes[END_OF_BLOCK] | (uint32_t)litlen->lengths[END_OF_BLOCK] << 24;
    memset(t->slots + END_OF_BLOCK, 0, sizeof t->slots - END_OF_BLOCK * sizeof *t->slots);
    for (uint32_t i = MIN_MATCH; i <= MAX_MATCH; i++) {
        uint32_t k = ls_length_symbol[i], bits = litlen->lengths[257 + k];
        t->slots[LS_LENGTH_SLOT + i] = litlen->codes[257 + k] | (i - ls_length_base[k]) << bits |
                                       (bits + ls_length_extra[k]) << 24;
    }
    memset(t->dist, 0, sizeof t->dist);
    for (uint32_t i = 0; i < DIST_SYMBOLS; i++) {
        uint64_t bits = dist->lengths[i], extra = ls_dist_extra[i];
        t->dist[i] =
            dist->codes[i] | ((UINT64_C(1) << extra) - 1) << 16 | bits << 32 | (bits + extra) << 40;
    }
}

void ls_bits_header(ls_bits *b, uint32_t final, uint32_t type, const ls_header *h) {
    ls_bits_put(b, final | type << 1, 3);
    if (type == 2) {
        ls_code codelen;
        ls_bits_put(b, h->hlit - 257, 5);
        ls_bits_put(b, h->hdist - 1, 5);
        ls_bits_put(b, h->hclen - 4, 4);
        ls_bits_flush(b);
        for (uint32_t i = 0; i < h->hclen; i++) {
            ls_bits_put(b, h->codelen[ls_codelen_order[i]], 3);
            ls_bits_flush(b);
        }
        memset(&codelen, 0, sizeof codelen);
        memcpy(codelen.lengths, h->codelen, CODELEN_SYMBOLS);
        ls_code_assign(&codelen, CODELEN_SYMBOLS);
        for (uint32_t i = 0; i < h->n_runs; i++) {
            uint32_t symbol = h->runs[i];
            ls_bits_put(b, codelen.codes[symbol], codelen.lengths[symbol]);
            if (symbol >= 16)
                ls_bits_put(b, h->extra[i], symbol == 16 ? 2 : symbol == 17 ? 3 : 7);
            ls_bits_flush(b);
        }
    }
    ls_bits_flush(b);
}

int ls_bits_body(ls_bits *b, const uint8_t *end, const ls_bits_table *t, const ls_token *tokens,
                 size_t n) {
    ls_bits w = *b;
    while (n) {
        size_t group = n < GROUP ? n : GROUP;
        if ((size_t)(end - w.at) < 7 * GROUP + 16)
            return LS_ESPACE;
        uint64_t held = w.held;
        uint32_t bits = w.n;
        uint8_t *at = w.at;
        for (size_t i = 0; i < group; i++) {
            ls_token token = tokens[i];
            uint32_t v = t->slots[ls_token_slot(token)];
            uint64_t d = t->dist[ls_token_dist(token)];
            /* A distance less one has its extra bits lowest. */
            uint64_t extra = (token - 65536) >> 16 & d >> 16 & 0xffff;
            uint64_t pair = (d & 0xffff) | extra << (d >> 32 & 15);
            held |= ((v & 0xffffff) | pair << (v >> 24)) << bits;
            bits += (v >> 24) + (uint32_t)(d >> 40);
            ls_store64(at, held);
            at += bits >> 3;
            held >>= bits & 56;
            bits &= 7;
        }
        w.held = held;
        w.n = bits;
        w.at = at;
        tokens += group;
        n -= group;
    }
    uint32_t v = t->end;
    ls_bits_put(&w, v & 0xffff, v >> 24);
    ls_bits_flush(&w);
    *b = w;
    return LS_OK;
}
