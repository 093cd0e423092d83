/* runs.c: arithmetic on runs of numbers, their wire form (chunk lists), and bitmaps over them.
 *
 * A run is [first, first + count). Runs come from disk and may be hostile: a run whose end does not
 * fit in 64 bits ends at 2^64 - 1, an empty run is nothing, and no function here walks numbers one
 * by one: the cost depends on how many runs there are, and for bitmaps on their bytes.
 * Nothing is allocated; every output array is the caller's. */
#include "layerstore.h"

#include <string.h>

#define NUMBER_END ((uint64_t)1 << 40) /* numbers of chunks are 40 bits wide */

static uint64_t run_end(const ls_run *r) {
    uint64_t end = r->first + r->count;
    return end < r->first ? UINT64_MAX : end;
}

size_t ls_runs_from_numbers(const uint64_t *numbers, size_t n, ls_run *runs) {
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        if (out && runs[out - 1].first + runs[out - 1].count == numbers[i] && numbers[i])
            runs[out - 1].count++;
        else
            runs[out++] = (ls_run){numbers[i], 1};
    }
    return out;
}

/* ---- chunk lists --------------------------------------------------------------------------- */

static uint8_t *put_varint(uint8_t *out, uint64_t v) {
    for (; v >= 0x80; v >>= 7)
        *out++ = (uint8_t)(v | 0x80);
    *out++ = (uint8_t)v;
    return out;
}

size_t ls_runs_encode(const ls_run *runs, size_t n, uint8_t *out) {
    uint8_t *at = out;
    uint64_t prev = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t delta = runs[i].first - prev;
        at = put_varint(at, delta << 1 ^ (0 - (delta >> 63)));
        at = put_varint(at, runs[i].count);
        prev = runs[i].first + runs[i].count;
    }
    return (size_t)(at - out);
}

/* 1: a value, 0: the data ends in it, -1: more than 64 bits. */
static int get_varint(const uint8_t *data, size_t size, size_t *at, uint64_t *value) {
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (*at == size)
            return 0;
        uint64_t byte = data[(*at)++];
        if (shift == 63 && byte > 1)
            return -1;
        v |= (byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = v;
            return 1;
        }
    }
    return -1;
}

static int refuse(ls_error *err, size_t offset, const char *reason) {
    err->code = LS_EINVALID;
    err->offset = offset;
    strncpy(err->reason, reason, sizeof err->reason - 1);
    err->reason[sizeof err->reason - 1] = 0;
    return LS_EINVALID;
}

int ls_runs_decode(const uint8_t *data, size_t size, int final, ls_run *runs, size_t *n,
                   size_t *used, uint64_t *prev, ls_error *err) {
    size_t room = *n, out = 0, at = 0;
    uint64_t end = *prev;
    *n = *used = 0;
    while (out < room && at < size) {
        size_t begin = at;
        uint64_t zigzag, count = 0;
        int got = get_varint(data, size, &at, &zigzag);
        if (got == 1)
            got = get_varint(data, size, &at, &count);
        if (got == 0) {
            if (final)
                return refuse(err, begin, "chunk list ends inside a number");
            break;
        }
        if (got < 0)
            return refuse(err, begin, "chunk list has a number above 64 bits");
        uint64_t first = end + (zigzag >> 1 ^ (0 - (zigzag & 1)));
        if (count == 0)
            return refuse(err, begin, "chunk list has an empty run");
        if (first >= NUMBER_END || count > NUMBER_END - first)
            return refuse(err, begin, "chunk list has a number above 40 bits");
        end = first + count;
        runs[out++] = (ls_run){first, count};
        *n = out;
        *used = at;
        *prev = end;
    }
    return LS_OK;
}

/* ---- sets ---------------------------------------------------------------------------------- */

static void sift(ls_run *runs, size_t root, size_t n) {
    ls_run moved = runs[root];
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && runs[child + 1].first > runs[child].first)
            child++;
        if (runs[child].first <= moved.first)
            break;
        runs[root] = runs[child];
    }
    runs[root] = moved;
}

/* Heapsort: in place without a stack, n log n whatever the input (qsort of libc may allocate). */
static void sort(ls_run *runs, size_t n) {
    size_t i = 1;
    while (i < n && runs[i - 1].first <= runs[i].first)
        i++;
    if (i >= n)
        return; /* in order already, as most lists are */
    for (i = n / 2; i-- > 0;)
        sift(runs, i, n);
    for (i = n - 1; i > 0; i--) {
        ls_run largest = runs[0];
        runs[0] = runs[i];
        runs[i] = largest;
        sift(runs, 0, i);
    }
}

/* Appends [first, end) to normalised runs, merging it with the last of them. */
static size_t append(ls_run *runs, size_t n, uint64_t first, uint64_t end) {
    if (first >= end)
        return n;
    if (n && run_end(&runs[n - 1]) >= first) {
        if (end > run_end(&runs[n - 1]))
            runs[n - 1].count = end - runs[n - 1].first;
        return n;
    }
    runs[n] = (ls_run){first, end - first};
    return n + 1;
}

size_t ls_runs_normalise(ls_run *runs, size_t n) {
    size_t out = 0;
    sort(runs, n);
    for (size_t i = 0; i < n; i++) {
        ls_run r = runs[i]; /* a copy: append may write to this very place */
        out = append(runs, out, r.first, run_end(&r));
    }
    return out;
}

size_t ls_runs_subtract(const ls_run *a, size_t na, const ls_run *b, size_t nb, ls_run *out) {
    size_t n = 0, j = 0;
    for (size_t i = 0; i < na; i++) {
        uint64_t at = a[i].first, end = run_end(&a[i]);
        while (j < nb && run_end(&b[j]) <= at)
            j++;
        /* b[j] may reach into the next run of a too, so it is left behind only when passed. */
        for (size_t k = j; k < nb && b[k].first < end; k++) {
            n = append(out, n, at, b[k].first);
            at = run_end(&b[k]);
            j = k;
        }
        n = append(out, n, at, end);
    }
    return n;
}

size_t ls_runs_intersect(const ls_run *a, size_t na, const ls_run *b, size_t nb, ls_run *out) {
    size_t n = 0, i = 0, j = 0;
    while (i < na && j < nb) {
        uint64_t a_end = run_end(&a[i]), b_end = run_end(&b[j]);
        uint64_t first = a[i].first > b[j].first ? a[i].first : b[j].first;
        n = append(out, n, first, a_end < b_end ? a_end : b_end);
        if (a_end < b_end)
            i++;
        else
            j++;
    }
    return n;
}

/* How many of the runs begin at or before `number`. */
static size_t runs_up_to(const ls_run *runs, size_t n, uint64_t number) {
    size_t low = 0;
    while (n) {
        size_t half = n / 2;
        if (runs[low + half].first <= number) {
            low += half + 1;
            n -= half + 1;
        } else
            n = half;
    }
    return low;
}

int ls_runs_contain(const ls_run *runs, size_t n, uint64_t number) {
    size_t i = runs_up_to(runs, n, number);
    return i && number < run_end(&runs[i - 1]);
}

/* ---- bitmaps ------------------------------------------------------------------------------- */

/* The 64 bits at `bit`, which is a multiple of 8. */
static uint64_t load_bits(const uint8_t *bits, uint64_t bit) {
    const uint8_t *p = bits + bit / 8;
    uint64_t v = 0;
    for (unsigned i = 0; i < 8; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static unsigned mark_byte(uint8_t *byte, unsigned mask, int value) {
    unsigned old = *byte, now = value ? old | mask : old & ~mask;
    *byte = (uint8_t)now;
    return (unsigned)__builtin_popcount((old ^ now) & 0xffu);
}

static uint64_t mark_range(uint8_t *bits, uint64_t first, uint64_t end, int value) {
    uint64_t changed = 0;
    while (first < end) {
        if (first % 8 == 0 && end - first >= 64) {
            uint64_t ones = (uint64_t)__builtin_popcountll(load_bits(bits, first));
            changed += value ? 64 - ones : ones;
            memset(bits + first / 8, value ? 0xff : 0, 8);
            first += 64;
            continue;
        }
        unsigned low = first % 8, high = end - first < 8 - low ? low + (unsigned)(end - first) : 8;
        changed += mark_byte(bits + first / 8, (0xffu << low) & (0xffu >> (8 - high)), value);
        first += high - low;
    }
    return changed;
}

uint64_t ls_bits_mark(uint8_t *bits, const ls_run *space, const uint64_t *cumulative,
                      size_t n_space, const ls_run *runs, size_t n, int value) {
    uint64_t changed = 0;
    size_t i = 0; /* where the run before ended: the next one is mostly there too */
    for (size_t k = 0; k < n; k++) {
        uint64_t first = runs[k].first, end = run_end(&runs[k]);
        int near = i < n_space && space[i].first <= first &&
                   (i + 1 == n_space || first < space[i + 1].first);
        if (!near) {
            i = runs_up_to(space, n_space, first);
            i -= i > 0;
        }
        while (i < n_space && space[i].first < end) {
            uint64_t from = first > space[i].first ? first : space[i].first;
            uint64_t space_end = run_end(&space[i]), to = end < space_end ? end : space_end;
            if (from < to) {
                uint64_t bit = cumulative[i] + (from - space[i].first);
                changed += mark_range(bits, bit, bit + (to - from), value);
            }
            if (end <= space_end)
                break;
            i++;
        }
    }
    return changed;
}

/* The first bit in [bit, end) that equals `value`, or `end`. */
static uint64_t find_bit(const uint8_t *bits, uint64_t bit, uint64_t end, int value) {
    while (bit < end) {
        if (bit % 8 == 0 && end - bit >= 64) {
            uint64_t word = load_bits(bits, bit);
            word = value ? word : ~word;
            if (word)
                return bit + (uint64_t)__builtin_ctzll(word);
            bit += 64;
            continue;
        }
        if ((bits[bit / 8] >> bit % 8 & 1) == value)
            return bit;
        bit++;
    }
    return end;
}

size_t ls_bits_runs(const uint8_t *bits, const ls_run *space, const uint64_t *cumulative,
                    size_t n_space, int value, ls_run *out, size_t max, size_t *cursor) {
    size_t n = 0, low = 0, high = n_space;
    uint64_t bit = *cursor;
    value = value != 0;
    while (low < high) { /* the last run of the space that begins at or before the cursor */
        size_t middle = low + (high - low) / 2;
        if (cumulative[middle] <= bit)
            low = middle + 1;
        else
            high = middle;
    }
    for (size_t i = low ? low - 1 : 0; i < n_space; i++) {
        uint64_t base = cumulative[i], end = base + space[i].count;
        bit = bit > base ? bit : base;
        while ((bit = find_bit(bits, bit, end, value)) < end) {
            uint64_t stop = find_bit(bits, bit, end, !value);
            uint64_t first = space[i].first + (bit - base);
            if (n == max && !(n && run_end(&out[n - 1]) == first)) {
                *cursor = (size_t)bit;
                return n;
            }
            n = append(out, n, first, first + (stop - bit));
            bit = stop;
        }
    }
    *cursor = (size_t)bit;
    return n;
}

uint64_t ls_bits_count(const uint8_t *bits, uint64_t n) {
    uint64_t ones = 0, bit = 0;
    for (; n - bit >= 64; bit += 64)
        ones += (uint64_t)__builtin_popcountll(load_bits(bits, bit));
    for (; bit < n; bit++)
        ones += bits[bit / 8] >> bit % 8 & 1;
    return ones;
}
