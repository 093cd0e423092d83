/* layerstore.h: the whole boundary between the C machines and their callers.
 *
 * Every machine here is sans-I/O: it is fed buffers, it fills arrays that the caller owns, it
 * allocates nothing, opens nothing and keeps no global state. A machine with state is a struct of
 * `ls_<machine>_sizeof()` bytes in memory that the caller provides (any alignment of 8 or more).
 * No function here is called with a lock held that another function here needs: distinct structs
 * may be used by distinct threads at the same time.
 *
 * The cffi definitions are made from this file (layerstore/core/_build.py drops the preprocessor
 * lines that are not plain integer constants), so it keeps to plain declarations.
 *
 * Results: LS_OK, or a negative code and an ls_error that names the offset and the reason.
 */
#ifndef LAYERSTORE_H
#define LAYERSTORE_H

#include <stddef.h>
#include <stdint.h>

/* ---- results ------------------------------------------------------------------------------- */

#define LS_OK 0
#define LS_EINVALID -1 /* the input is not what it claims to be */
#define LS_ELIMIT -2   /* a bound was reached; nothing is wrong with the bytes before it */
#define LS_ESPACE -3   /* an output array is too small to make any progress */
#define LS_ESTATE -4   /* called out of order, or after an error */

typedef struct ls_error {
    int32_t code;
    uint64_t offset;  /* where in the stream, in bytes from its start */
    char reason[120]; /* NUL-terminated, English, no trailing stop */
} ls_error;

/* ---- BLAKE3 (hash mode and keyed mode, 256-bit and extendable output) ----------------------- */

#define LS_SIMD_AUTO 0
#define LS_SIMD_PORTABLE 1
#define LS_SIMD_AVX2 2
#define LS_SIMD_AVX512 3
#define LS_SIMD_NEON 4

#define LS_BLAKE3_LEN 32

typedef struct ls_extent {
    uint64_t offset;
    uint64_t length;
} ls_extent;

typedef struct ls_blake3 ls_blake3;

/* Bit (1 << LS_SIMD_x) is set for every path that this build has and this CPU can run. */
uint32_t ls_simd_supported(void);

size_t ls_blake3_sizeof(void);
/* `simd` is one of LS_SIMD_*; a path that is not supported falls back to the plain one.
 * `key` is NULL or 32 bytes. */
void ls_blake3_init(ls_blake3 *h, int simd, const uint8_t *key);
void ls_blake3_update(ls_blake3 *h, const uint8_t *data, size_t size);
/* Does not change `h`: more may be added after it. */
void ls_blake3_final(const ls_blake3 *h, uint8_t *out, size_t out_size);
void ls_blake3_hash(int simd, const uint8_t *key, const uint8_t *data, size_t size, uint8_t *out32);
/* Hashes `n` extents of `base` one by one; `out` takes 32 bytes for each. */
void ls_blake3_many(int simd, const uint8_t *key, const uint8_t *base, const ls_extent *ext,
                    size_t n, uint8_t *out);

/* ---- content-defined chunking (gear, normalised; the table is part of the store's format) --- */

#define LS_CHUNK_MIN 16384
#define LS_CHUNK_AVG 65536
#define LS_CHUNK_MAX 262144

/* Length of the first chunk of `data`. With `final` zero, at least LS_CHUNK_MAX bytes must be
 * there, or 0 is returned ("need more"); with `final` set the data ends after `size`. */
size_t ls_chunk_next(const uint8_t *data, size_t size, int final);
/* Cuts as many chunks as it can; their lengths go to `lengths`. Returns how many; `*used` is the
 * sum of their lengths. */
size_t ls_chunk_cut(const uint8_t *data, size_t size, int final, uint32_t *lengths, size_t max,
                    size_t *used);

/* ---- tar scanner ---------------------------------------------------------------------------- */
/* Knows v7, ustar, pax (local and global), GNU (long names, base-256, old and pax sparse).
 * It never fails on bytes: what it cannot understand makes it "lost", and all that follows is
 * metadata kept literally. Whatever it calls data is exactly the stored payload of an entry, so
 * that a stream cut into metadata and data can be joined again from the metadata alone. */

#define LS_TAR_META 1 /* header blocks, pax and long-name payloads, sparse maps, padding, trailer */
#define LS_TAR_DATA 2 /* stored payload of the current entry */
#define LS_TAR_ENTRY 3 /* `index` in the entries array: an entry whose headers are all read */

typedef struct ls_tar_event {
    uint32_t kind;
    uint32_t index;  /* LS_TAR_ENTRY: which element of `entries` */
    uint64_t offset; /* META, DATA: offset in the buffer that was fed */
    uint64_t length; /* META, DATA: bytes; adjacent runs of one kind may be split over events */
} ls_tar_event;

/* Strings live in the arena, at [x_off, x_off + x_len), not NUL-terminated, bytes as they came. */
typedef struct ls_tar_entry {
    uint64_t header_offset; /* in the stream: first byte of the first header block of this entry */
    uint64_t data_offset;   /* in the stream: first byte of the stored payload */
    uint64_t stored_size;   /* bytes of payload in the tar */
    uint64_t size;          /* size of the file: differs from stored_size when sparse */
    int64_t mtime_sec;
    uint32_t mtime_nsec;
    uint32_t mode; /* permission bits, 07777 */
    uint64_t uid;
    uint64_t gid;
    uint32_t devmajor;
    uint32_t devminor;
    uint8_t type;    /* '0' regular, '1' hard link, '2' symlink, '3' char, '4' block, '5' dir,
                     '6' fifo, '7' contiguous (regular); others as they came */
    uint8_t sparse;  /* 0 no, 1 GNU old, 2 pax 0.0, 3 pax 0.1, 4 pax 1.0 */
    uint8_t problem; /* 0, or 1: contradicting or odd headers, readers that extract should refuse */
    uint8_t after_end; /* 1: behind a zero block, where other readers have stopped */
    uint32_t name_off, name_len;
    uint32_t link_off, link_len;
    uint32_t uname_off, uname_len;
    uint32_t gname_off, gname_len;
    uint32_t pax_off, pax_len;       /* effective pax records (global, then local), raw:
                                        "len key=value\n"...; xattrs are read from there */
    uint32_t sparse_off, sparse_len; /* map: pairs of u64 little endian (offset, length) */
    uint32_t global_len;             /* bytes at pax_off that are global records */
} ls_tar_entry;

typedef struct ls_tar ls_tar;

size_t ls_tar_sizeof(void);
/* `scratch` holds the metadata of one entry (names, pax records, sparse map) and must stay valid as
 * long as the machine. With less than LS_TAR_SCRATCH bytes every feed returns LS_ESPACE: what the
 * scanner understands must not depend on the memory it was given. */
#define LS_TAR_SCRATCH 2424832

void ls_tar_init(ls_tar *t, uint8_t *scratch, size_t scratch_size);

typedef struct ls_tar_out {
    size_t used; /* bytes of the input taken */
    size_t n_events;
    size_t n_entries;
    size_t arena_used;
} ls_tar_out;

/* Takes as much of `data` as the output arrays allow: call again with the rest (also after all of
 * `data` was taken, when an array was full: an entry may wait). With `entries` NULL no entries are
 * made (and `arena` may be NULL). An arena of LS_TAR_SCRATCH + 1024 bytes takes any entry.
 * `final`: the stream ends after `data`. */
int ls_tar_feed(ls_tar *t, const uint8_t *data, size_t size, int final, ls_tar_event *events,
                size_t max_events, ls_tar_entry *entries, size_t max_entries, uint8_t *arena,
                size_t arena_size, ls_tar_out *out, ls_error *err);
/* 1 if the scanner is lost; then `err` says where and why. */
int ls_tar_lost(const ls_tar *t, ls_error *err);
/* 1 if a proper end (two zero blocks) was seen, or the stream ended at an entry's end. */
int ls_tar_complete(const ls_tar *t);

/* ---- split: a tar into header stream, marks and pieces of content; join: the inverse -------- */
/* Header stream: all metadata, in order. Marks: varint pairs (gap in data entries, n): the first
 * n bytes of that entry's payload are in the header stream too (a .pyc's 16-byte header). Pieces
 * are the payloads, each with its BLAKE3. */

/* One chunk of at most LS_CHUNK_MAX bytes. */
#define LS_PIECE_CHUNK 1
/* A whole payload above LS_CHUNK_MAX that lay in the window: look up the id of all of it, and cut
 * it with ls_chunk_cut if it is not known. */
#define LS_PIECE_FILE 2

#define LS_SPLIT_WINDOW 4194304 /* payloads up to this size are seen whole */

typedef struct ls_piece {
    uint64_t offset; /* in the buffer that was fed */
    uint32_t length;
    uint32_t kind;
    uint8_t id[32];
} ls_piece;

typedef struct ls_split ls_split;

typedef struct ls_split_out {
    size_t used; /* bytes of the input taken; feed the rest again, followed by more */
    size_t n_pieces;
    size_t head_len;
    size_t marks_len;
    uint64_t entries; /* entries begun so far in the stream */
} ls_split_out;

size_t ls_split_sizeof(void);
void ls_split_init(ls_split *s, int simd, uint8_t *scratch, size_t scratch_size);
/* Feed a window of at least 2 * LS_SPLIT_WINDOW bytes, or `final`. Takes as much as the output
 * arrays and the look-ahead allow; with `final` and enough room it takes all. `head` needs as much
 * room as the window, `marks` 20 bytes for each piece. */
int ls_split_feed(ls_split *s, const uint8_t *data, size_t size, int final, uint8_t *head,
                  size_t head_size, uint8_t *marks, size_t marks_size, ls_piece *pieces,
                  size_t max_pieces, ls_split_out *out, ls_error *err);
int ls_split_lost(const ls_split *s, ls_error *err);
/* As ls_tar_complete. */
int ls_split_complete(const ls_split *s);

typedef struct ls_prove ls_prove;

size_t ls_prove_sizeof(void);
void ls_prove_init(ls_prove *p, uint8_t *scratch, size_t scratch_size);
/* Whether what a call of ls_split_feed gave joins to the `size` bytes that it took: LS_OK, or
 * LS_EINVALID with where and why not. To be asked about every call, in order. */
int ls_prove_feed(ls_prove *p, const uint8_t *data, size_t size, const uint8_t *head,
                  size_t head_size, const uint8_t *marks, size_t marks_size, const ls_piece *pieces,
                  size_t n_pieces, ls_error *err);

typedef struct ls_slice {
    const uint8_t *data;
    size_t size;
} ls_slice;

typedef struct ls_join ls_join;

typedef struct ls_join_out {
    size_t head_used;
    size_t marks_used;
    size_t slices_used;  /* slices wholly taken */
    size_t slice_offset; /* bytes taken of the next one */
    size_t out_len;
} ls_join_out;

size_t ls_join_sizeof(void);
void ls_join_init(ls_join *j, uint8_t *scratch, size_t scratch_size);
/* Writes the tar to `out` until it is full or an input is used up. `first_offset`: bytes of
 * slices[0] that were taken before. `*_final`: nothing follows. Content that ends early ends the
 * tar where the original was cut. Returns LS_EINVALID if head, marks and content do not fit. */
int ls_join_run(ls_join *j, const uint8_t *head, size_t head_size, int head_final,
                const uint8_t *marks, size_t marks_size, int marks_final, const ls_slice *slices,
                size_t n_slices, size_t first_offset, int slices_final, uint8_t *out,
                size_t out_size, ls_join_out *res, ls_error *err);

/* ---- deflate: an encoder of our own that never changes ("ls-deflate 1", FORMAT.md section 15) ---- */

#define LS_DEFLATE_WINDOW 32768  /* content before a piece that it may refer to */
#define LS_DEFLATE_PIECE 1048576 /* content of one piece, at most */

typedef struct ls_deflate ls_deflate;

size_t ls_deflate_sizeof(void);
/* Room that any piece of this many bytes fits into, and that a call asks for. */
size_t ls_deflate_bound(size_t size);
/* Encodes one piece of raw deflate data (RFC 1951). `data` holds `before` bytes of content before the
 * piece (at most LS_DEFLATE_WINDOW; all that there are, for the bytes to be those of the format), then
 * the piece's `size` bytes. A `final` piece ends the stream; another ends with an empty stored block,
 * on a byte, so that the next one can be put behind it. `level` is 1 to 9. Nothing is kept in `s` between
 * calls. LS_EINVALID: an argument out of range; LS_ESPACE: less room than the bound. */
int ls_deflate_piece(ls_deflate *s, int level, const uint8_t *data, size_t before, size_t size,
                     int final, uint8_t *out, size_t out_size, size_t *out_len, ls_error *err);

/* ---- runs of numbers, bitmaps ------------------------------------------------------------------ */

typedef struct ls_run {
    uint64_t first;
    uint64_t count;
} ls_run;

/* Joins consecutive numbers to runs; returns how many runs (at most n). */
size_t ls_runs_from_numbers(const uint64_t *numbers, size_t n, ls_run *runs);
/* Chunk list: for each run two unsigned LEB128 varints: zigzag(first - end of the run before) and
 * count. `out` needs 20 bytes a run. Returns the bytes written. */
size_t ls_runs_encode(const ls_run *runs, size_t n, uint8_t *out);
/* `*n` in: room, out: runs written; `*used`: bytes taken (a part of a list is taken up to the room);
 * `*prev`: end of the run before, 0 at the start. LS_EINVALID: truncated varint at the very end
 * when `final`, count 0, or a number outside 40 bits. */
int ls_runs_decode(const uint8_t *data, size_t size, int final, ls_run *runs, size_t *n,
                   size_t *used, uint64_t *prev, ls_error *err);
/* Sorts in place and merges touching and overlapping runs; returns the new count. */
size_t ls_runs_normalise(ls_run *runs, size_t n);
/* a minus b, both normalised; `out` needs na + nb runs. Returns the count. */
size_t ls_runs_subtract(const ls_run *a, size_t na, const ls_run *b, size_t nb, ls_run *out);
/* Intersection, both normalised; `out` needs na + nb runs. */
size_t ls_runs_intersect(const ls_run *a, size_t na, const ls_run *b, size_t nb, ls_run *out);
/* 1 if `number` is in the normalised runs. */
int ls_runs_contain(const ls_run *runs, size_t n, uint64_t number);
/* Bitmap over the numbers of `space` (normalised runs; bit i is the i-th number of them).
 * `cumulative[i]` is the count of numbers before space[i]. Sets (value 1) or clears (0) the bits of
 * all numbers of `runs` that are in the space. Returns how many bits changed. */
uint64_t ls_bits_mark(uint8_t *bits, const ls_run *space, const uint64_t *cumulative,
                      size_t n_space, const ls_run *runs, size_t n, int value);
/* The numbers whose bit is `value`, as normalised runs. `*cursor` (a bit; 0 at the start) is where to
 * go on; returns the count written, at most max: less than max means that all was seen. */
size_t ls_bits_runs(const uint8_t *bits, const ls_run *space, const uint64_t *cumulative,
                    size_t n_space, int value, ls_run *out, size_t max, size_t *cursor);
uint64_t ls_bits_count(const uint8_t *bits, uint64_t n);

#endif
