/* split_join.c: libFuzzer target. Any bytes, split as a tar and joined again, are those bytes; the
 * scanner's events cover its input without a gap; a chunk list that decodes encodes to the same runs.
 *
 * The last byte of the input sets how small the output arrays are, so that every machine is resumed
 * at odd places. `make fuzz` builds and runs it where clang with libFuzzer is installed. */
#include <stdlib.h>
#include <string.h>

#include "layerstore.h"

#define MAX_INPUT (1u << 20)
#define MAX_PIECES (MAX_INPUT / 64)
#define SCRATCH LS_TAR_SCRATCH
#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

static uint8_t scratch[SCRATCH], head[MAX_INPUT], out[MAX_INPUT], arena[SCRATCH + 1024];
static uint8_t marks[20 * MAX_PIECES];
static ls_piece pieces[MAX_PIECES];
static ls_slice slices[MAX_PIECES];

static void *machine(size_t size) {
    void *memory = calloc(1, size);
    CHECK(memory);
    return memory;
}

static void split_and_join(const uint8_t *data, size_t size, size_t room) {
    ls_split *split = machine(ls_split_sizeof());
    ls_join *join = machine(ls_join_sizeof());
    ls_split_out made;
    ls_join_out given;
    ls_error err;
    size_t at = 0, head_len = 0, marks_len = 0, n = 0;
    ls_split_init(split, LS_SIMD_AUTO, scratch, SCRATCH);
    do {
        size_t head_room = sizeof head - head_len,
               max = MAX_PIECES - n < room ? MAX_PIECES - n : room;
        int code = ls_split_feed(split, data + at, size - at, 1, head + head_len, head_room,
                                 marks + marks_len, sizeof marks - marks_len, pieces + n, max,
                                 &made, &err);
        CHECK(code == LS_OK);
        for (size_t i = 0; i < made.n_pieces; i++, n++) {
            CHECK(pieces[n].offset + pieces[n].length <= made.used);
            slices[n].data = data + at + pieces[n].offset;
            slices[n].size = pieces[n].length;
        }
        CHECK(made.used || made.n_pieces || made.head_len || at == size);
        at += made.used;
        head_len += made.head_len;
        marks_len += made.marks_len;
    } while (at < size);

    ls_join_init(join, scratch, SCRATCH);
    size_t head_at = 0, marks_at = 0, slice_at = 0, offset = 0, done = 0;
    while (done < size) {
        size_t left = sizeof out - done, step = left < room * 97 ? left : room * 97;
        int code = ls_join_run(join, head + head_at, head_len - head_at, 1, marks + marks_at,
                               marks_len - marks_at, 1, slices + slice_at, n - slice_at, offset, 1,
                               out + done, step, &given, &err);
        CHECK(code == LS_OK);
        CHECK(given.out_len);
        head_at += given.head_used;
        marks_at += given.marks_used;
        slice_at += given.slices_used;
        offset = given.slice_offset;
        done += given.out_len;
    }
    CHECK(done == size && memcmp(out, data, size) == 0);
    free(join);
    free(split);
}

static void scan(const uint8_t *data, size_t size, size_t room) {
    ls_tar *tar = machine(ls_tar_sizeof());
    ls_tar_event *events = machine((room + 2) * sizeof *events);
    ls_tar_entry *entries = machine(room * sizeof *entries);
    ls_tar_out res;
    ls_error err;
    size_t at = 0;
    ls_tar_init(tar, scratch, SCRATCH);
    while (at < size) {
        int code = ls_tar_feed(tar, data + at, size - at, 1, events, room + 2, entries, room, arena,
                               sizeof arena, &res, &err);
        CHECK(code == LS_OK);
        CHECK(res.used || res.n_events);
        uint64_t covered = 0;
        for (size_t i = 0; i < res.n_events; i++) {
            if (events[i].kind == LS_TAR_ENTRY) {
                const ls_tar_entry *e = &entries[events[i].index];
                CHECK(events[i].index < res.n_entries);
                CHECK((size_t)e->name_off + e->name_len <= res.arena_used);
                CHECK((size_t)e->pax_off + e->pax_len <= res.arena_used);
                CHECK((size_t)e->sparse_off + e->sparse_len <= res.arena_used);
                continue;
            }
            CHECK(events[i].offset == covered);
            covered += events[i].length;
        }
        CHECK(covered == res.used);
        at += res.used;
    }
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
    if (size < 1 || size > MAX_INPUT)
        return 0;
    size--;
    size_t room = 1 + data[size];
    split_and_join(data, size, room);
    scan(data, size, room);
    runs(data, size);
    return 0;
}
