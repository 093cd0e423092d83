/* crc32.c: the CRC-32 of gzip's trailers (RFC 1952, 8), eight bytes at a step.
 *
 * The tables are made at need, into the caller's memory: 8 KiB, a few microseconds. */
#include <string.h>

#include "respan_impl.h"

void ls_crc_make(ls_crc_table *t) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        t->t[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            t->t[k][i] = t->t[k - 1][i] >> 8 ^ t->t[0][t->t[k - 1][i] & 255];
}

uint32_t ls_crc_update(const ls_crc_table *t, uint32_t crc, const uint8_t *p, size_t n) {
    uint32_t c = ~crc;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t v = ls_load64(p) ^ c;
        c = t->t[7][v & 255] ^ t->t[6][v >> 8 & 255] ^ t->t[5][v >> 16 & 255] ^
            t->t[4][v >> 24 & 255] ^ t->t[3][v >> 32 & 255] ^ t->t[2][v >> 40 & 255] ^
            t->t[1][v >> 48 & 255] ^ t->t[0][v >> 56];
    }
    for (; n; n--)
        c = c >> 8 ^ t->t[0][(c ^ *p++) & 255];
    return ~c;
}
