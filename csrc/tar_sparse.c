/* tar_sparse.c: maps of sparse files: GNU's old ones in header blocks, pax 1.0 at the start of the
 * payload (GNU tar's manual, "Storing Sparse Files"); the 0.x maps are pax records (tar_pax.c). */
#include <string.h>

#include "tar_impl.h"

static void put_le64(uint8_t *p, uint64_t v) {
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get_le64(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

void ls_tar_map_add(ls_tar *t, uint64_t offset, uint64_t length) {
    if (t->map_n == TAR_MAP_MAX) {
        t->problem = 1;
        return;
    }
    uint8_t *at = t->scratch + TAR_MAP_AT + 16 * (size_t)t->map_n++;
    put_le64(at, offset);
    put_le64(at + 8, length);
}

void ls_tar_map_block(ls_tar *t, const uint8_t *at, int slots) {
    for (int i = 0; i < slots; i++, at += 24) {
        int64_t offset, length;
        if (at[0] == 0 || at[12] == 0)
            return;
        if (ls_tar_number(at, 12, &offset) != 0 || ls_tar_number(at + 12, 12, &length) != 0 ||
            offset < 0 || length < 0) {
            t->problem = 1;
            return;
        }
        ls_tar_map_add(t, (uint64_t)offset, (uint64_t)length);
    }
}

void ls_tar_map_start(ls_tar *t) {
    t->map_n = 0;
    t->map_stage = MAP_COUNT;
    t->map_left = t->map_value = t->map_open = 0;
    t->map_pos = 0;
    t->map_digits = 0;
    t->map_broken = 1; /* until its last number is read */
}

/* A number of the map is over. */
static void map_number(ls_tar *t) {
    if (t->map_stage == MAP_COUNT) {
        t->map_left = 2 * t->map_value; /* values are below 2^63 */
        t->map_stage = MAP_NUMBERS;
    } else {
        t->map_left--;
        if (t->map_left & 1)
            t->map_open = t->map_value;
        else if (t->keep)
            ls_tar_map_add(t, t->map_open, t->map_value);
    }
    t->map_value = 0;
    t->map_digits = 0;
    if (t->map_left == 0) {
        t->map_stage = MAP_PADDING;
        t->map_broken = 0;
    }
}

size_t ls_tar_map_take(ls_tar *t, const uint8_t *p, size_t n, int *done) {
    size_t i = 0;
    for (; i < n && t->map_stage != MAP_PADDING; i++) {
        uint8_t c = p[i];
        if (c >= '0' && c <= '9' && t->map_value <= (INT64_MAX - 9) / 10 && t->map_digits < 20) {
            t->map_value = t->map_value * 10 + (uint64_t)(c - '0');
            t->map_digits++;
        } else if (c == '\n' && t->map_digits > 0) {
            map_number(t);
        } else {
            t->map_stage = MAP_PADDING; /* broken: what follows this block is payload */
        }
    }
    t->map_pos = (uint32_t)((t->map_pos + i) % TAR_BLOCK);
    if (t->map_stage == MAP_PADDING) {
        size_t rest = (TAR_BLOCK - t->map_pos) % TAR_BLOCK;
        if (rest > n - i)
            rest = n - i;
        i += rest;
        t->map_pos = (uint32_t)((t->map_pos + rest) % TAR_BLOCK);
        *done = t->map_pos == 0;
    }
    return i;
}

int ls_tar_map_ok(const ls_tar *t, uint64_t size, uint64_t stored) {
    uint64_t end = 0, sum = 0;
    for (uint32_t i = 0; i < t->map_n; i++) {
        const uint8_t *at = t->scratch + TAR_MAP_AT + 16 * (size_t)i;
        uint64_t offset = get_le64(at), length = get_le64(at + 8);
        if (offset < end || length > size || offset > size - length)
            return 0;
        end = offset + length;
        sum += length; /* segments are disjoint and inside size: no overflow */
    }
    return sum == stored;
}
