/* blake3_paths.c: prints the hashes of an input by one path, for tests of paths that this machine's own
 * extension does not have (test_hashing.py builds it for another machine, and runs it emulated).
 *
 * blake3_paths PATH FILE SIZE...: for each size, the hash of that many bytes of FILE, the keyed hash,
 * and 131 bytes of output of both halves fed one after the other; in hex, one a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layerstore.h"

static const uint8_t key[] = "whats the Elvish word for friend";

static void print(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        printf("%02x", bytes[i]);
    putchar('\n');
}

int main(int argc, char **argv) {
    int path = argc > 3 ? atoi(argv[1]) : -1;
    FILE *file = argc > 3 ? fopen(argv[2], "rb") : NULL;
    if (file == NULL || !(ls_simd_supported() >> path & 1))
        return 1;
    size_t room = 1 << 22;
    uint8_t *data = malloc(room), out[131];
    ls_blake3 *h = malloc(ls_blake3_sizeof());
    if (data == NULL || h == NULL)
        return 1;
    size_t have = fread(data, 1, room, file);
    for (int i = 3; i < argc; i++) {
        size_t size = (size_t)atol(argv[i]);
        if (size > have)
            return 1;
        ls_blake3_hash(path, NULL, data, size, out);
        print(out, LS_BLAKE3_LEN);
        ls_blake3_hash(path, key, data, size, out);
        print(out, LS_BLAKE3_LEN);
        ls_blake3_init(h, path, NULL);
        ls_blake3_update(h, data, size / 2);
        ls_blake3_update(h, data + size / 2, size - size / 2);
        ls_blake3_final(h, out, sizeof out);
        print(out, sizeof out);
    }
    free(h);
    free(data);
    fclose(file);
    return 0;
}
