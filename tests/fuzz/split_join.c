/* split_join.c: libFuzzer target. Any bytes, split as a tar and joined again, are those bytes,
 * whatever the windows and the sizes of the output arrays; the scanner's events cover its input
 * without a gap; a join of parts that do not belong together ends; a chunk list that decodes
 * encodes to the same runs.
 *
 * The last two bytes of the input choose windows and array sizes, and whether the checksums of all
 * blocks are made right first, so that changed fields get past them. Every window is a block of
 * memory of its own, so that ASan sees one byte too far. `make fuzz` builds and runs it where clang
 * with libFuzzer is installed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layerstore.h"

#define MAX_INPUT (1u << 20)
#define MAX_PIECES (MAX_INPUT / 64)
#define ARENA (LS_TAR_SCRATCH + 1024)
#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint8_t scratch[LS_TAR_SCRATCH], arena[ARENA];
static uint8_t input[MAX_INPUT], head[MAX_INPUT], content[MAX_INPUT], out[MAX_INPUT];
static uint8_t marks[20 * MAX_PIECES];
static size_t head_len, marks_len, content_len;

static uint32_t state; /* of a small generator: the same input always does the same */

static size_t below(size_t n) {
    state = state * 1664525u + 1013904223u;
    return (size_t)(state >> 8) % n;
}

static void *machine(size_t size) {
    void *memory = calloc(1, size);
    CHECK(memory);
    return memory;
}

/* A copy that ends where the memory does. */
static uint8_t *alone(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    CHECK(copy);
    if (size)
        memcpy(copy, data, size);
    return copy;
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

static void repair(uint8_t *data, size_t size) {
    for (size_t at = 0; at + 512 <= size; at += 512) {
        unsigned sum = 8 * ' ', any = 0;
        char text[16];
        for (size_t i = 0; i < 512; i++) {
            any |= data[at + i];
            if (i < 148 || i >= 156)
                sum += data[at + i];
        }
        if (any) {
            snprintf(text, sizeof text, "%06o", sum);
            memcpy(data + at + 148, text, 7);
            data[at + 155] = ' ';
        }
    }
}

static void take_apart(const uint8_t *data, size_t size, size_t room) {
    ls_split *split = machine(ls_split_sizeof());
    ls_piece *pieces = machine(room * sizeof *pieces);
    uint8_t *heads = machine(room * 16), *some = machine(room * 20);
    ls_split_out made;
    ls_error err;
    size_t at = 0, window = 0;
    head_len = marks_len = content_len = 0;
    ls_split_init(split, LS_SIMD_AUTO, scratch, LS_TAR_SCRATCH);
    do {
        window = least(size - at, window + 1 + below(room * 40));
        uint8_t *copy = alone(data + at, window);
        int final = at + window == size;
        CHECK(ls_split_feed(split, copy, window, final, heads, room * 16, some, room * 20, pieces,
                            room, &made, &err) == LS_OK);
        CHECK(made.used <= window && made.head_len <= room * 16 && made.n_pieces <= room);
        CHECK(made.used || !final || at == size);
        memcpy(head + head_len, heads, made.head_len);
        memcpy(marks + marks_len, some, made.marks_len);
        head_len += made.head_len;
        marks_len += made.marks_len;
        for (size_t i = 0; i < made.n_pieces; i++) {
            CHECK(pieces[i].length && pieces[i].offset + pieces[i].length <= made.used);
            memcpy(content + content_len, copy + pieces[i].offset, pieces[i].length);
            content_len += pieces[i].length;
        }
        free(copy);
        at += made.used;
        window -= made.used;
    } while (at < size);
    CHECK(head_len + content_len == size);
    free(some);
    free(heads);
    free(pieces);
    free(split);
}

/* Joins head, marks and content; returns the bytes written to `out`, or -1 if they do not fit. */
static long put_together(size_t room) {
    ls_join *join = machine(ls_join_sizeof());
    ls_join_out res;
    ls_error err;
    size_t head_at = 0, marks_at = 0, content_at = 0, done = 0;
    size_t head_n = 0, marks_n = 0, content_n = 0;
    long result = -1;
    ls_join_init(join, scratch, LS_TAR_SCRATCH);
    for (;;) {
        head_n = least(head_len - head_at, head_n + 1 + below(room * 30));
        marks_n = least(marks_len - marks_at, marks_n + 1 + below(room));
        content_n = least(content_len - content_at, content_n + 1 + below(room * 30));
        size_t first = content_n ? below(content_n) : 0;
        int ends[3] = {head_at + head_n == head_len, marks_at + marks_n == marks_len,
                       content_at + content_n == content_len};
        uint8_t *h = alone(head + head_at, head_n), *m = alone(marks + marks_at, marks_n);
        uint8_t *c = alone(content + content_at, content_n);
        ls_slice slices[3] = {{c, first}, {c, 0}, {c + first, content_n - first}};
        size_t step = below(room * 50);
        uint8_t *o = alone(out, step);
        int code = ls_join_run(join, h, head_n, ends[0], m, marks_n, ends[1], slices, 3, 0, ends[2],
                               o, step, &res, &err);
        if (code == LS_OK) {
            CHECK(res.out_len <= step && done + res.out_len <= MAX_INPUT);
            memcpy(out + done, o, res.out_len);
            size_t used = res.slice_offset;
            for (size_t i = 0; i < res.slices_used; i++)
                used += slices[i].size;
            CHECK(res.head_used <= head_n && res.marks_used <= marks_n && used <= content_n);
            CHECK(res.out_len == res.head_used + used);
            done += res.out_len;
            head_at += res.head_used;
            head_n -= res.head_used;
            marks_at += res.marks_used;
            marks_n -= res.marks_used;
            content_at += used;
            content_n -= used;
        }
        free(o);
        free(c);
        free(m);
        free(h);
        if (code != LS_OK) {
            CHECK(code == LS_EINVALID && err.reason[0]);
            break;
        }
        if (step && !res.out_len && ends[0] && ends[1] && ends[2]) {
            CHECK(head_at == head_len && marks_at == marks_len && content_at == content_len);
            result = (long)done;
            break;
        }
    }
    free(join);
    return result;
}

static void scan(const uint8_t *data, size_t size, size_t room) {
    ls_tar *tar = machine(ls_tar_sizeof());
    ls_tar_event *events = machine((room + 2) * sizeof *events);
    ls_tar_entry *entries = machine(room * sizeof *entries);
    ls_tar_out res;
    ls_error err;
    size_t at = 0, payload = 0;
    ls_tar_init(tar, scratch, LS_TAR_SCRATCH);
    do {
        size_t window = least(size - at, 1 + below(room * 40));
        uint8_t *copy = alone(data + at, window);
        CHECK(ls_tar_feed(tar, copy, window, at + window == size, events, room + 2, entries, room,
                          arena, ARENA, &res, &err) == LS_OK);
        CHECK(res.used || res.n_events || at == size);
        uint64_t covered = 0;
        for (size_t i = 0; i < res.n_events; i++) {
            if (events[i].kind == LS_TAR_ENTRY) {
                const ls_tar_entry *e = &entries[events[i].index];
                CHECK(events[i].index < res.n_entries);
                CHECK((size_t)e->name_off + e->name_len <= res.arena_used);
                CHECK((size_t)e->link_off + e->link_len <= res.arena_used);
                CHECK((size_t)e->uname_off + e->uname_len <= res.arena_used);
                CHECK((size_t)e->gname_off + e->gname_len <= res.arena_used);
                CHECK((size_t)e->pax_off + e->pax_len <= res.arena_used);
                CHECK((size_t)e->sparse_off + e->sparse_len <= res.arena_used);
                CHECK(e->global_len <= e->pax_len && e->sparse_len % 16 == 0);
                CHECK(e->data_offset == at + covered && e->header_offset < e->data_offset);
                continue;
            }
            CHECK(events[i].offset == covered && events[i].length);
            covered += events[i].length;
            if (events[i].kind == LS_TAR_DATA)
                payload += events[i].length;
        }
        CHECK(covered == res.used);
        free(copy);
        at += res.used;
    } while (at < size || res.n_events);
    /* The splitter, which makes no entries, sees the same payloads; marks move 16 bytes of some. */
    CHECK(payload >= content_len);
    free(entries);
    free(events);
    free(tar);
}

static void runs(const uint8_t *data, size_t size) {
    static ls_run first[4096], again[4096];
    static uint8_t coded[20 * 4096];
    size_t n = 4096, used = 0, m = 4096, used_again = 0;
    uint64_t prev = 0, prev_again = 0;
    ls_error err;
    if (ls_runs_decode(data, size, 1, first, &n, &used, &prev, &err) != LS_OK)
        return;
    size_t len = ls_runs_encode(first, n, coded);
    CHECK(ls_runs_decode(coded, len, 1, again, &m, &used_again, &prev_again, &err) == LS_OK);
    CHECK(m == n && used_again == len && memcmp(first, again, n * sizeof *first) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2 || size > MAX_INPUT)
        return 0;
    size -= 2;
    size_t room = 3 + data[size] % 64;
    state = data[size + 1];
    memcpy(input, data, size);
    if (data[size + 1] & 1)
        repair(input, size);
    take_apart(input, size, room);
    scan(input, size, room);
    CHECK(put_together(room) == (long)size && memcmp(out, input, size) == 0);
    /* Parts that do not belong together: the input itself as header stream. */
    head_len = size / 2;
    memcpy(head, input, head_len);
    content_len = least(size - head_len, below(size + 1));
    memcpy(content, input + head_len, content_len);
    marks_len = below(least(size, 30) + 1);
    memcpy(marks, data, marks_len);
    put_together(room);
    runs(input, size);
    return 0;
}
