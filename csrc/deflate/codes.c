/* codes.c: decoding tables of prefix codes, and the header of a dynamic block in its parts (RFC 1951, 3.2.7).
 *
 * A table has an entry for every pattern of its root bits; longer codes go on in second tables behind
 * it, all as wide as the longest code needs. A complete code has at least two codes behind each root
 * pattern that has a second table, so there are at most half as many as symbols. */
#include "respan_impl.h"

int ls_fail(ls_error *err, int code, uint64_t offset, const char *reason) {
    size_t n = strlen(reason);
    if (n >= sizeof err->reason)
        n = sizeof err->reason - 1;
    err->code = code;
    err->offset = offset;
    memcpy(err->reason, reason, n);
    err->reason[n] = 0;
    return code;
}

static uint32_t entry_of(enum ls_alphabet alphabet, uint32_t symbol) {
    if (alphabet == ALPHABET_CODELEN)
        return symbol << 9;
    if (alphabet == ALPHABET_DIST)
        return symbol < DIST_SYMBOLS
                   ? (uint32_t)ls_dist_base[symbol] << 9 | (uint32_t)ls_dist_extra[symbol] << 5
                   : ENTRY_SPECIAL;
    if (symbol < END_OF_BLOCK)
        return ENTRY_LITERAL | symbol << 9;
    if (symbol == END_OF_BLOCK)
        return ENTRY_SPECIAL | ENTRY_END;
    if (symbol >= LITLEN_SYMBOLS)
        return ENTRY_SPECIAL;
    return (uint32_t)ls_length_base[symbol - 257] << 9 | (uint32_t)ls_length_extra[symbol - 257]
                                                             << 5;
}

int ls_decode_table(enum ls_alphabet alphabet, const uint8_t *lengths, uint32_t n,
                    uint32_t *table) {
    uint32_t root = alphabet == ALPHABET_LITLEN ? LITLEN_ROOT
                    : alphabet == ALPHABET_DIST ? DIST_ROOT
                                                : CODELEN_ROOT;
    uint32_t count[MAX_BITS + 1] = {0}, at[MAX_BITS + 2], longest = 0;
    uint16_t sorted[LITLEN_SYMBOLS + 2];
    for (uint32_t i = 0; i < n; i++)
        count[lengths[i]]++;
    count[0] = 0;
    int32_t left = 1;
    for (uint32_t bits = 1; bits <= MAX_BITS; bits++) {
        left = 2 * left - (int32_t)count[bits];
        if (left < 0)
            return CODE_OVER;
        if (count[bits])
            longest = bits;
    }
    if (left > 0 && !(alphabet == ALPHABET_DIST && !longest) &&
        (alphabet == ALPHABET_CODELEN || longest != 1))
        return CODE_UNDER;
    at[1] = 0;
    for (uint32_t bits = 1; bits <= MAX_BITS; bits++)
        at[bits + 1] = at[bits] + count[bits];
    for (uint32_t i = 0; i < n; i++)
        if (lengths[i])
            sorted[at[lengths[i]]++] = (uint16_t)i;
    uint32_t size = 1u << root;
    if (left > 0)
        for (uint32_t i = 0; i < size; i++)
            table[i] = ENTRY_SPECIAL;
    /* Codes in order, kept bit-reversed: the next one flips bits from the top down. */
    uint32_t code = 0, k = 0, sub = 0, sub_bits = longest > root ? longest - root : 0, next = size;
    uint32_t sub_of = ~0u;
    for (uint32_t bits = 1; bits <= longest; bits++) {
        for (uint32_t c = count[bits]; c; c--, k++) {
            uint32_t entry = entry_of(alphabet, sorted[k]);
            if (bits <= root) {
                for (uint32_t i = code; i < size; i += 1u << bits)
                    table[i] = entry | bits;
            } else {
                uint32_t low = code & (size - 1);
                if (low != sub_of) {
                    sub_of = low;
                    sub = next;
                    next += 1u << sub_bits;
                    table[low] = ENTRY_SPECIAL | ENTRY_SUB | sub << 9 | sub_bits;
                }
                for (uint32_t i = code >> root; i < 1u << sub_bits; i += 1u << (bits - root))
                    table[sub + i] = entry | bits;
            }
            uint32_t flip = 1u << (bits - 1);
            while (code & flip)
                flip >>= 1;
            code = flip ? (code & (flip - 1)) | flip : 0;
        }
    }
    return CODE_OK;
}

size_t ls_header_pack(const ls_header *h, uint8_t *out) {
    out[0] = (uint8_t)(h->hlit - 257);
    out[1] = (uint8_t)(h->hdist - 1);
    out[2] = (uint8_t)(h->hclen - 4);
    out[3] = (uint8_t)h->n_runs;
    out[4] = (uint8_t)(h->n_runs >> 8);
    memcpy(out + 5, h->codelen, CODELEN_SYMBOLS);
    memcpy(out + 5 + CODELEN_SYMBOLS, h->runs, h->n_runs);
    memcpy(out + 5 + CODELEN_SYMBOLS + h->n_runs, h->extra, h->n_runs);
    return 5 + CODELEN_SYMBOLS + 2 * (size_t)h->n_runs;
}

void ls_header_unpack(const uint8_t *in, ls_header *h) {
    h->hlit = in[0] + 257u;
    h->hdist = in[1] + 1u;
    h->hclen = in[2] + 4u;
    h->n_runs = in[3] | (uint32_t)in[4] << 8;
    memcpy(h->codelen, in + 5, CODELEN_SYMBOLS);
    memcpy(h->runs, in + 5 + CODELEN_SYMBOLS, h->n_runs);
    memcpy(h->extra, in + 5 + CODELEN_SYMBOLS + h->n_runs, h->n_runs);
    ls_header_expand(h);
}

int ls_header_expand(ls_header *h) {
    uint32_t n = 0, all = h->hlit + h->hdist;
    for (uint32_t i = 0; i < h->n_runs; i++) {
        uint32_t symbol = h->runs[i], value = symbol, times = 1;
        if (symbol == 16) {
            if (!n)
                return 0;
            value = h->lengths[n - 1];
            times = 3u + h->extra[i];
        } else if (symbol > 16) {
            value = 0;
            times = (symbol == 17 ? 3u : 11u) + h->extra[i];
        }
        if (times > all - n)
            return 0;
        memset(h->lengths + n, (int)value, times);
        n += times;
    }
    return n == all;
}

uint32_t ls_header_least(const uint8_t *codelen) {
    uint32_t n = CODELEN_SYMBOLS;
    while (n > 4 && !codelen[ls_codelen_order[n - 1]])
        n--;
    return n;
}
