/* deflate.c: libFuzzer target. Any content, encoded at any level in pieces with any window before
 * them, is decoded to that content by a small inflater of its own; twice encoded is the same; no
 * encoder writes or reads past what it was given.
 *
 * The last three bytes of the input choose the level, the size of a piece, and how often the content is
 * repeated (with a change in it), so that matches get long and blocks many. Every piece is a block of
 * memory of its own, so that ASan sees one byte too far. `make fuzz` builds and runs it where clang with
 * libFuzzer is installed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layerstore.h"

#define MAX_CONTENT (1u << 16)
#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint8_t content[MAX_CONTENT], decoded[MAX_CONTENT], encoded[2 * MAX_CONTENT];

/* ---- an inflater: canonical codes, walked bit by bit ------------------------------------------ */

typedef struct input {
    const uint8_t *data;
    size_t size, at;
    unsigned n, held;
} input;

typedef struct tree {
    uint16_t count[16], symbols[320];
} tree;

static unsigned take(input *in, unsigned n) {
    unsigned value = 0;
    for (unsigned i = 0; i < n; i++) {
        if (!in->n) {
            CHECK(in->at < in->size);
            in->held = in->data[in->at++];
            in->n = 8;
        }
        value |= (in->held & 1) << i;
        in->held >>= 1;
        in->n--;
    }
    return value;
}

static void grow(tree *t, const uint8_t *lengths, unsigned n, int may_lack) {
    uint16_t at[16];
    unsigned left = 1;
    memset(t, 0, sizeof *t);
    for (unsigned i = 0; i < n; i++)
        t->count[lengths[i]]++;
    t->count[0] = 0;
    at[1] = 0;
    for (unsigned bits = 1; bits < 16; bits++) {
        left = 2 * left;
        CHECK(left >= t->count[bits]);
        left -= t->count[bits];
        if (bits < 15)
            at[bits + 1] = (uint16_t)(at[bits] + t->count[bits]);
    }
    /* Complete, or the one code that may be alone. */
    CHECK(!left || (may_lack && t->count[1] == 1));
    for (unsigned i = 0; i < n; i++)
        if (lengths[i])
            t->symbols[at[lengths[i]]++] = (uint16_t)i;
}

static unsigned symbol(input *in, const tree *t) {
    int code = 0, first = 0, index = 0;
    for (unsigned bits = 1; bits < 16; bits++) {
        code |= (int)take(in, 1);
        int count = t->count[bits];
        if (code - first < count)
            return t->symbols[index + code - first];
        index += count;
        first = (first + count) << 1;
        code <<= 1;
    }
    CHECK(!"a code of more than 15 bits");
    return 0;
}

static void read_codes(input *in, tree *litlen, tree *dist) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                      11, 4,  12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[320] = {0};
    unsigned n_litlen = take(in, 5) + 257, n_dist = take(in, 5) + 1, n = take(in, 4) + 4;
    CHECK(n_litlen <= 286 && n_dist <= 30);
    for (unsigned i = 0; i < n; i++)
        lengths[order[i]] = (uint8_t)take(in, 3);
    tree codelen;
    grow(&codelen, lengths, 19, 0);
    memset(lengths, 0, sizeof lengths);
    for (unsigned i = 0; i < n_litlen + n_dist;) {
        unsigned s = symbol(in, &codelen), value = 0, times = 1;
        if (s < 16)
            value = s;
        else if (s == 16) {
            CHECK(i);
            value = lengths[i - 1];
            times = 3 + take(in, 2);
        } else
            times = s == 17 ? 3 + take(in, 3) : 11 + take(in, 7);
        CHECK(i + times <= n_litlen + n_dist);
        while (times--)
            lengths[i++] = (uint8_t)value;
    }
    grow(litlen, lengths, n_litlen, 0);
    grow(dist, lengths + n_litlen, n_dist, 1);
}

/* A whole stream, which must end where its bytes do; returns the bytes of content. */
static size_t inflate_all(const uint8_t *data, size_t size, uint8_t *out, size_t room) {
    input in = {.data = data, .size = size};
    size_t done = 0;
    unsigned last;
    do {
        last = take(&in, 1);
        unsigned kind = take(&in, 2);
        CHECK(kind < 3);
        if (!kind) {
            in.n = 0;
            unsigned length = take(&in, 16);
            CHECK((take(&in, 16) ^ length) == 0xffff);
            CHECK(length <= room - done && length <= in.size - in.at);
            memcpy(out + done, in.data + in.at, length);
            in.at += length;
            done += length;
            continue;
        }
        tree litlen, dist;
        if (kind == 1) {
            uint8_t lengths[288];
            memset(lengths, 8, sizeof lengths);
            memset(lengths + 144, 9, 112);
            memset(lengths + 256, 7, 24);
            grow(&litlen, lengths, 288, 0);
            memset(lengths, 5, 32);
            grow(&dist, lengths, 32, 0);
        } else {
            read_codes(&in, &litlen, &dist);
        }
        for (unsigned s; (s = symbol(&in, &litlen)) != 256;) {
            if (s < 256) {
                CHECK(done < room);
                out[done++] = (uint8_t)s;
                continue;
            }
            CHECK(s < 286);
            unsigned length = s - 257 + 3, extra = s < 265 || s == 285 ? 0 : (s - 261) / 4;
            if (s == 285)
                length = 258;
            else if (extra)
                length = ((4 + (s - 265) % 4) << extra) + 3 + take(&in, extra);
            unsigned d = symbol(&in, &dist), far = d + 1;
            CHECK(d < 30);
            if (d > 3)
                far = ((2 + d % 2) << (d / 2 - 1)) + 1 + take(&in, d / 2 - 1);
            CHECK(far <= done && length <= room - done);
            for (; length; length--, done++)
                out[done] = out[done - far];
        }
    } while (!last);
    CHECK(in.at == in.size);
    return done;
}

/* ---- the target ------------------------------------------------------------------------------ */

static void *block(size_t size) {
    void *memory = malloc(size ? size : 1);
    CHECK(memory);
    return memory;
}

static size_t encode(ls_deflate *s, int level, size_t size, size_t piece) {
    size_t total = 0;
    for (size_t at = 0; at < size || !at; at += piece) {
        size_t before = at < LS_DEFLATE_WINDOW ? at : LS_DEFLATE_WINDOW;
        size_t n = size - at < piece ? size - at : piece, room = ls_deflate_bound(n), length;
        uint8_t *data = block(before + n), *out = block(room);
        ls_error err;
        memcpy(data, content + at - before, before + n);
        CHECK(
            !ls_deflate_piece(s, level, data, before, n, at + n == size, out, room, &length, &err));
        CHECK(length <= room && total + length <= sizeof encoded);
        memcpy(encoded + total, out, length);
        total += length;
        free(data);
        free(out);
    }
    return total;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t first[sizeof encoded];
    if (size < 3)
        return 0;
    int level = data[size - 1] % 9 + 1;
    size_t piece = (size_t)16 << data[size - 2] % 14, times = data[size - 3] % 12 + 1u;
    size -= 3;
    size_t total = 0;
    for (size_t i = 0; i < times && total + size <= MAX_CONTENT / 2 && size; i++) {
        memcpy(content + total, data, size);
        content[total + (i * 7919) % size] ^= (uint8_t)i;
        total += size;
    }
    if (total / piece > 12)
        piece = total / 12 + 1;
    ls_deflate *s = block(ls_deflate_sizeof());
    memset(s, 0xa5, ls_deflate_sizeof());
    size_t length = encode(s, level, total, piece);
    memcpy(first, encoded, length);
    CHECK(inflate_all(encoded, length, decoded, sizeof decoded) == total);
    CHECK(!memcmp(decoded, content, total));
    memset(s, 0x5a, ls_deflate_sizeof());
    CHECK(encode(s, level, total, piece) == length && !memcmp(encoded, first, length));
    free(s);
    return 0;
}
