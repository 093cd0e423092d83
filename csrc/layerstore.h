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
#define LS_EOS -5      /* the system refused: ls_error.offset is the errno, the reason the call */
#define LS_ECHANGED -6 /* a file is not what it was when it was looked at */
#define LS_ESYSTEM -7  /* a system call failed */
#define LS_EFORMAT -8  /* what belongs together does not fit together */

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
 * tar where the original was cut. `out` may be NULL: `out_size` bytes are stepped over, and slices need
 * no data. Returns LS_EINVALID if head, marks and content do not fit. */
int ls_join_run(ls_join *j, const uint8_t *head, size_t head_size, int head_final,
                const uint8_t *marks, size_t marks_size, int marks_final, const ls_slice *slices,
                size_t n_slices, size_t first_offset, int slices_final, uint8_t *out,
                size_t out_size, ls_join_out *res, ls_error *err);

/* ---- walk: a tree of files, read through a directory descriptor ------------------------------ */
/* Every directory is opened relative to its parent's descriptor, without following links; entries
 * come in pre-order, those of a directory sorted by the bytes of their names. */

#define LS_NODE_WHITEOUT 1 /* hides a name of the layers below */
#define LS_NODE_OPAQUE 2   /* directory: hides all that lies in it below */
#define LS_NODE_LINKED 4   /* no directory, and has more than one link */
#define LS_NODE_SOCKET 8
#define LS_NODE_RESERVED 16 /* its name begins with ".wh." */
#define LS_NODE_REDIRECT 32 /* overlayfs: what lies below it has another name */
#define LS_NODE_METACOPY 64 /* overlayfs: its content lies below */
#define LS_NODE_INDEXED 128 /* overlayfs: may have more links below */
/* Set by the caller, for the writer. */
#define LS_NODE_SKIP 256
#define LS_NODE_HARDLINK 1024 /* a link to the name at link_off */
#define LS_NODE_GIVEN 2048    /* the caller writes the content himself */

/* Strings lie in the arena, not NUL-terminated. An xattr is a u32 length of its name, a u32 length
 * of its value, name, value; sorted by name. */
typedef struct ls_node {
    uint64_t ino;
    uint64_t size;
    int64_t mtime_sec;
    int64_t ctime_sec;
    uint64_t data_offset;  /* set by the writer: where in the tar the content begins */
    uint64_t given_offset; /* LS_NODE_GIVEN: the caller's own, see ls_seen */
    uint32_t mtime_nsec;
    uint32_t ctime_nsec;
    uint32_t mode; /* st_mode: type and permissions */
    uint32_t uid;
    uint32_t gid;
    uint32_t nlink;
    uint32_t dev_major;
    uint32_t dev_minor;
    uint32_t rdev_major;
    uint32_t rdev_minor;
    uint32_t flags;
    uint32_t depth;
    uint32_t root;               /* which of the writer's descriptors `path` is relative to */
    uint32_t path_off, path_len; /* where the file lies; the root itself has an empty path */
    uint32_t name_off, name_len; /* what it is called in the tar */
    uint32_t link_off, link_len;
    uint32_t xattr_off, xattr_len;
    uint32_t reserved;
} ls_node;

#define LS_WALK_OVERLAY 1 /* marks of overlayfs are understood: they set the flags above */
#define LS_WALK_FLAT 2    /* the root and what lies in it, not deeper */
#define LS_WALK_NO_PROC 4 /* as if /proc were not mounted: with NO_AT, symlinks lose their xattrs */
#define LS_WALK_BARE 8    /* no targets, no xattrs: what ls_nodes_hash needs */
#define LS_WALK_NO_AT 16  /* as if the kernel had no listxattrat */
#define LS_WALK_PATH 65536 /* the longest path */

typedef struct ls_walk ls_walk;

typedef struct ls_walk_out {
    size_t n_nodes;
    size_t arena_used;
    size_t need; /* LS_ESPACE: bytes of stack that would do */
    uint32_t done;
    uint32_t path_off, path_len; /* LS_EOS, LS_ELIMIT: the file it is about */
} ls_walk_out;

size_t ls_walk_sizeof(void);
/* `root_fd` (a directory, open for reading) stays the caller's and must stay open. */
void ls_walk_init(ls_walk *w, int root_fd, uint32_t options);
/* Closes what the machine has open; safe to call twice. */
void ls_walk_close(ls_walk *w);
/* Fills `nodes` and `arena` as far as they go; `done` is set with the last. `stack` holds the names
 * of the directories that are open: the same bytes at every call (they may have moved, and grown).
 * LS_ESPACE: the stack is too small for a directory (`need`), or the arena for one node; nothing is
 * lost, call again with more. A batch ends behind a node that has one of the flags `stop`. */
int ls_walk_next(ls_walk *w, uint8_t *stack, size_t stack_size, uint32_t stop, ls_node *nodes,
                 size_t max_nodes, uint8_t *arena, size_t arena_size, ls_walk_out *out,
                 ls_error *err);
/* Does not go down into the directory that was the last node of the last call. */
void ls_walk_prune(ls_walk *w);
/* Makes the node of the one file at `path` (empty: the root). Not between two calls of a walk. */
int ls_walk_look(ls_walk *w, const char *path, size_t len, ls_node *node, uint8_t *arena,
                 size_t arena_size, ls_walk_out *out, ls_error *err);
/* Opens the directory at `path` below `root_fd` for reading, following no link; negative: -errno. */
int ls_open_beneath(int root_fd, const char *path, size_t len);
/* The file handle (name_to_handle_at) of the file at `path`: one byte of type, then its bytes, to
 * `out`. Returns how many bytes; 0 if there is none. */
size_t ls_file_handle(int root_fd, const char *path, size_t len, uint8_t *out, size_t size);

/* ---- tar writer: nodes to a tar that depends on nothing but them ----------------------------- */
/* ustar, with pax records only where ustar cannot say it: nanoseconds, long or large values, xattrs.
 * No names of users or groups. Contents are read straight into the output; a file that is not what
 * its node says, before or after it was read, is LS_ECHANGED. */

#define LS_PACK_SCRATCH 1310720
#define LS_PACK_PAX 1048576 /* the most bytes of pax records of one entry */

typedef struct ls_idmap {
    uint32_t outside;
    uint32_t inside;
    uint32_t count;
} ls_idmap;

typedef struct ls_pack ls_pack;

typedef struct ls_pack_out {
    size_t used; /* nodes that are wholly written */
    size_t out_len;
    uint64_t
        given; /* the caller writes this many bytes, then goes on: the content of nodes[used] */
    uint64_t entries; /* in all */
    uint64_t offset;  /* in the tar, behind what was written (and given) */
} ls_pack_out;

size_t ls_pack_sizeof(void);
/* `scratch`: LS_PACK_SCRATCH bytes; `clamp`: times after it become it (negative: none). Maps without
 * elements are the identity. Scratch and maps must stay valid as long as the machine. */
void ls_pack_init(ls_pack *p, uint8_t *scratch, int64_t clamp, const ls_idmap *uids, size_t n_uids,
                  const ls_idmap *gids, size_t n_gids);
void ls_pack_close(ls_pack *p);
/* Writes nodes until `out` is full, all are taken, or content is to be given. `roots`: descriptors
 * of directories. LS_EOS, LS_ECHANGED, LS_ELIMIT, LS_EINVALID are about nodes[used]. */
int ls_pack_feed(ls_pack *p, const int *roots, size_t n_roots, ls_node *nodes, size_t n,
                 const uint8_t *arena, size_t arena_size, uint8_t *out, size_t out_size,
                 ls_pack_out *res, ls_error *err);
/* The end of the tar: 1024 bytes. */
#define LS_PACK_END 1024

/* ---- files that were read before ------------------------------------------------------------ */

/* Where the content of a file lies in a tar that was written. A million of them are held and kept, so
 * what the file was is a hash: half a BLAKE3 under a key that others do not know. */
typedef struct ls_seen {
    uint64_t hash[2];
    uint64_t data_offset;
} ls_seen;

/* Those of `n` written nodes that can be known again: regular, with content of their own, changed
 * before this time (2 s before it where the filesystem keeps whole seconds). `out` needs room for n.
 * `*racy` is set when some node, of any kind, changed after it. `key`: 32 bytes. */
size_t ls_seen_collect(const ls_node *nodes, size_t n, int64_t before_sec, uint32_t before_nsec,
                       const uint8_t *key, ls_seen *out, int *racy);
/* Sorts in place, for ls_seen_mark. */
void ls_seen_sort(ls_seen *seen, size_t n);
/* Marks the nodes that are in `seen` unchanged LS_NODE_GIVEN, with their given_offset; returns how
 * many. */
size_t ls_seen_mark(ls_node *nodes, size_t n, const uint8_t *key, const ls_seen *seen,
                    size_t n_seen);
/* Adds what tells whether a tree has changed to a sum of hashes (four numbers, modulo 2^64 each),
 * whatever the order and the batches the nodes come in: the last part of each name, inodes and all that
 * stat says. Paths, targets and xattrs need not be looked at: a change of them is a change of an inode,
 * or of the ctime of one. The root of a walk, which has no path, is passed over unless `with_root`.
 * `key`: 32 bytes that others do not know. */
void ls_nodes_sum(const ls_node *nodes, size_t n, const uint8_t *arena, int with_root,
                  const uint8_t *key, uint64_t *sum);

/* ---- two trees: what the new one has and the old one has not --------------------------------- */
/* Takes the nodes of two walks and gives those of a layer: new and changed files, and whiteouts for
 * what is gone (one for a whole directory). Compared are type, mode, owner, size, mtime, device,
 * target and xattrs. */

/* Nothing changed by its metadata; data_offset holds the old inode. Files with several names, here
 * or there, and with LS_DIFF_CONTENT all files with content: the caller decides. */
#define LS_NODE_SAME 4096

#define LS_DIFF_CONTENT 1

typedef struct ls_diff ls_diff;

typedef struct ls_diff_out {
    size_t old_used;
    size_t new_used;
    size_t n_nodes;
    size_t arena_used;
} ls_diff_out;

size_t ls_diff_sizeof(void);
void ls_diff_init(ls_diff *d, uint32_t options);
/* Goes on until one side is used up (and not `done`: nothing follows), or `out` is full. LS_ESPACE:
 * the arena has no room for one node. */
int ls_diff_feed(ls_diff *d, const ls_node *old_nodes, size_t n_old, const uint8_t *old_arena,
                 int old_done, const ls_node *new_nodes, size_t n_new, const uint8_t *new_arena,
                 int new_done, ls_node *out, size_t max_out, uint8_t *arena, size_t arena_size,
                 ls_diff_out *res, ls_error *err);

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

/* ---- tree: the final tree of a stack of layers ------------------------------------------------- */
/* Fed with the headers of layers, lowest first, it keeps one node for each name and works out what
 * is there in the end (image-spec layer.md): whiteouts, opaque directories, hard links across
 * layers, duplicates, files that become directories and back. A parent that is a symbolic link is
 * followed inside the root. What is ambiguous or leads outside is LS_EINVALID, before anything is
 * written. Nodes are named by index; the memory is the caller's, may be moved, and grows when
 * LS_ESPACE asks for it: then give more (see ls_tree_out) and make the same call again. */

#define LS_TREE_NONE 4294967295
#define LS_TREE_DEPTH 2048 /* directories in directories */
#define LS_TREE_PATH 16384 /* bytes of a name in a tar, as it stands there */
#define LS_TREE_LINKS 255  /* symbolic links on the way to one name */
#define LS_TREE_SCRATCH 4980736

#define LS_TNODE_DEAD 1       /* replaced or hidden */
#define LS_TNODE_IMPLICIT 2   /* a directory that no layer has an entry for */
#define LS_TNODE_OPAQUE 4     /* hides what lower layers have in it (of the layer `died`) */
#define LS_TNODE_LINKED 8     /* has a place in the tree */
#define LS_TNODE_KNOWN 16     /* planning: ALIVE is decided */
#define LS_TNODE_ALIVE 32     /* planning: part of the final tree */
#define LS_TNODE_EMIT 64      /* planning: to be made */
#define LS_TNODE_NOT_MADE 128 /* making: left out, with a note */

/* Types are those of tar ('0', '1', ...), 'w' a whiteout, '?' one that is skipped. */
typedef struct ls_tree_node {
    uint64_t at;   /* file: where its payload begins, in the content stream or the tar; device: its
                        major and minor number, 32 bits each */
    uint64_t size; /* file: its bytes; of a sparse one, with its holes */
    uint64_t header; /* first byte of its headers in its layer's tar */
    int64_t mtime_sec;
    uint32_t mtime_nsec;
    uint32_t uid;
    uint32_t gid;
    uint32_t parent;
    uint32_t next;  /* in a chain of the table */
    uint32_t link;  /* '1': the node of its file. Others, planned: the name they are made under */
    uint32_t names; /* '1': the next name of its file. Others: the last one that was given */
    uint32_t name_off;  /* in the arena */
    uint32_t extra_off; /* in the arena: u8 tag, u32 length, bytes; see csrc/tree_impl.h */
    uint32_t extra_len;
    uint16_t name_len;
    uint16_t mode;
    uint16_t layer; /* the one that it is from */
    uint16_t born;  /* the one that first had it */
    uint16_t died;  /* dead: the one that took it away */
    uint16_t depth;
    uint8_t type;
    uint8_t flags;
    uint8_t moved; /* bit 0: its path in its layer leads through symbolic links */
} ls_tree_node;

typedef struct ls_tree_mem {
    ls_tree_node *nodes;
    uint8_t *arena;
    uint32_t *table; /* `table_size` is a power of two; all LS_TREE_NONE at first */
    uint32_t *seen;  /* room for `max_nodes` */
    uint64_t max_nodes;
    uint64_t arena_size;
    uint64_t table_size;
} ls_tree_mem;

typedef struct ls_tree_out {
    size_t used;      /* bytes of the input taken */
    uint64_t n_nodes; /* in use */
    uint64_t n_arena; /* ls_tree_apply: bytes in use; what is behind them is not needed any more */
    uint64_t need_nodes; /* LS_ESPACE: what is needed at least */
    uint64_t need_arena;
} ls_tree_out;

typedef struct ls_tree ls_tree;

size_t ls_tree_sizeof(void);
/* `seed` makes the table's order unpredictable. `mem` needs room for a node. */
void ls_tree_init(ls_tree *t, const ls_tree_mem *mem, uint8_t *scratch, uint64_t seed);
/* After the table was exchanged for one of another size: fills it. */
void ls_tree_rehash(ls_tree *t, const ls_tree_mem *mem);
/* Begins the next layer. `split`: it comes as a header stream with `marks` (all of them; they must
 * stay valid), whose payloads lie in a content stream of `content` bytes; else as a tar. */
int ls_tree_layer(ls_tree *t, int split, const uint8_t *marks, size_t marks_size, uint64_t content,
                  ls_error *err);
int ls_tree_feed(ls_tree *t, const ls_tree_mem *mem, const uint8_t *data, size_t size, int final,
                 ls_tree_out *out, ls_error *err);
/* All of the layer was fed: applies it to the tree. */
int ls_tree_apply(ls_tree *t, const ls_tree_mem *mem, ls_tree_out *out, ls_error *err);
/* The name at fault after LS_EINVALID, or a node's path. Returns its length, at most `size`. */
size_t ls_tree_bad(const ls_tree *t, uint8_t *out, size_t size);
size_t ls_tree_path(const ls_tree *t, const ls_tree_mem *mem, uint32_t node, uint8_t *out,
                    size_t size);
/* The node at a path below the root ("" is the root), no link followed; or LS_TREE_NONE. */
uint32_t ls_tree_find(const ls_tree *t, const ls_tree_mem *mem, const uint8_t *path, size_t size);
uint32_t ls_tree_root(const ls_tree *t);

typedef struct ls_tree_plan {
    uint64_t entries; /* that will be made */
    uint64_t bytes;   /* of content that will be written */
    uint64_t stored;  /* of payload that will be read */
} ls_tree_plan;

/* Decides what is to be made: all, or with `upper` only what the last layer adds to an overlay over
 * the layers below it. Another layer may follow, and then another plan. */
int ls_tree_finish(ls_tree *t, const ls_tree_mem *mem, int upper, ls_tree_plan *plan);

#define LS_LIST_DIRS 0      /* parents before children; the root is the first */
#define LS_LIST_FILES 1     /* in the order of layers and of their content */
#define LS_LIST_OTHERS 2    /* symbolic links, devices, fifos */
#define LS_LIST_LINKS 3     /* further names of files */
#define LS_LIST_WHITEOUTS 4 /* with `upper`: names to hide */
#define LS_LIST_SKIPPED 5   /* entries that are not understood; paths are those of the tar */

/* Nodes of one kind, from `*cursor` (0 at the start) on; 0 means that all were seen. `max` is at
 * least LS_TREE_DEPTH + 2. */
size_t ls_tree_list(ls_tree *t, const ls_tree_mem *mem, int kind, uint64_t *cursor, uint32_t *out,
                    size_t max);

#define LS_TREE_ALL_OF 2147483648

/* What a layer has to hide that stands for all layers above the first `kept`, over those: names that
 * are gone, and names of files that are directories now. `n_kept`: nodes there were when the first
 * `kept` were applied; what has to be hidden is among them. A directory of which nothing is left is
 * named itself, with LS_TREE_ALL_OF. `work` needs room for 3 * n_kept, `out` for
 * n_kept; gives how many. */
size_t ls_tree_hidden(const ls_tree *t, const ls_tree_mem *mem, uint32_t kept, uint32_t n_kept,
                      uint32_t *work, uint32_t *out);

/* A stretch of a layer's content, and the files in a list that lie in it. */
typedef struct ls_segment {
    uint64_t start; /* in the content stream, or the tar */
    uint64_t end;
    uint32_t first; /* in the list */
    uint32_t count;
    uint32_t layer; /* counts from 0 */
    uint32_t zero;
} ls_segment;

/* Cuts a list of files into stretches of about `size` bytes of one layer; what is not wanted between
 * them is left out where it is more than `gap` bytes. Goes on at `*cursor`; 0 means that all were
 * seen. */
size_t ls_tree_segments(const ls_tree *t, const ls_tree_mem *mem, const uint32_t *ids, size_t n,
                        uint64_t size, uint64_t gap, uint64_t *cursor, ls_segment *out, size_t max);

/* ---- apply: makes what a tree says, below a directory ------------------------------------------ */
/* Every step is relative to a descriptor; symbolic links and mounts are never followed, nothing that
 * exists is opened for writing. Owners, modes and times go on through the descriptor of what was
 * made. One struct serves one thread; several may work on one tree. Directories are made before
 * what is in them, with mode 0700, and get their own attributes at the end. */

#define LS_APPLY_TRY 1         /* what is not permitted or supported becomes a note */
#define LS_APPLY_ROOTLESS 2    /* owners go to the xattr user.rootlesscontainers */
#define LS_APPLY_UPPER 4       /* an overlay's upper directory: overlay's xattrs are ours alone */
#define LS_APPLY_USER_XATTR 8  /* user.overlay. instead of trusted.overlay. */
#define LS_APPLY_NO_OPENAT2 16 /* walk with O_NOFOLLOW, as on kernels below 5.6 */

typedef struct ls_apply_idmap {
    uint32_t inside; /* in the layer */
    uint32_t outside;
    uint32_t count;
} ls_apply_idmap;

#define LS_NOTE_OWNER 0
#define LS_NOTE_UNMAPPED 1
#define LS_NOTE_MODE 2
#define LS_NOTE_SETID 3 /* left out, since the owner is another */
#define LS_NOTE_XATTR 4
#define LS_NOTE_DEVICE 5
#define LS_NOTE_TIMES 6
#define LS_NOTE_OVERLAY 7 /* an xattr of overlayfs in a layer, left out */
#define LS_NOTE_LINK 8    /* a further name of what was left out */
#define LS_NOTE_ACL 9 /* an access control list that names somebody without a number, left out */
#define LS_NOTES 10

typedef struct ls_apply_out {
    size_t done;    /* nodes that are finished */
    uint64_t bytes; /* written, in all calls */
    uint32_t node;  /* LS_ESYSTEM: the one that could not be made */
    int32_t system; /* LS_ESYSTEM: errno */
    uint64_t notes[LS_NOTES];
    uint32_t first[LS_NOTES];
    int32_t why[LS_NOTES]; /* errno of the first */
} ls_apply_out;

typedef struct ls_apply ls_apply;

size_t ls_apply_sizeof(void);
/* `root_fd` (readable, not O_PATH) stays the caller's. `uid`, `gid`: what a file has that this
 * process makes there. The maps must stay valid; none means identity. */
void ls_apply_init(ls_apply *a, const ls_tree *tree, int root_fd, uint32_t flags, uint32_t umask,
                   uint32_t uid, uint32_t gid, const ls_apply_idmap *uids, size_t n_uids,
                   const ls_apply_idmap *gids, size_t n_gids);
void ls_apply_close(ls_apply *a);

#define LS_MAKE_DIRS 0
#define LS_MAKE_OTHERS 1
#define LS_MAKE_LINKS 2
#define LS_MAKE_WHITEOUTS 3
#define LS_FINISH_DIRS 4 /* children before parents: give the list of directories from its end */

/* LS_OK, or LS_ESYSTEM with `out`, LS_EINVALID if somebody interferes. */
int ls_apply_run(ls_apply *a, const ls_tree_mem *mem, int what, const uint32_t *ids, size_t n,
                 ls_apply_out *out, ls_error *err);
/* `data` is content from `base` on. Makes those of the files `ids` (in order) that it reaches to the
 * end of; `out->done` of them are finished, the next may be half-written and goes on with the next
 * call, which must follow. */
int ls_apply_feed(ls_apply *a, const ls_tree_mem *mem, const uint32_t *ids, size_t n, uint64_t base,
                  const uint8_t *data, size_t size, ls_apply_out *out, ls_error *err);

/* ---- clones: content that an earlier checkout has written is shared with it ---------------------- */

/* A file of an earlier checkout: the entry that it was made from, and what it was like when its content
 * was known. As long as that is the same, so is its content; what had changed only just before it was
 * looked at is not remembered, as nobody could tell the next change from that one. */
typedef struct ls_seed {
    uint64_t header; /* of the entry, in its layer's tar */
    uint64_t ino;
    int64_t mtime_sec;
    int64_t ctime_sec;
    uint32_t mtime_nsec;
    uint32_t ctime_nsec;
} ls_seed;

/* Whether files of the directory's filesystem can share their content: LS_CLONE_NONE, or one of the
 * ways of ls_apply_clone. Makes two files without a name. */
#define LS_CLONE_NONE 0
#define LS_CLONE_SHARE 1 /* FICLONE: blocks are shared until one of the two is written to */
#define LS_CLONE_COPY 2  /* copy_file_range: a server copies */
int ls_clone_way(int dir_fd);

/* Makes those of the files `ids` (all of one layer, in its order) that `seeds` (of that layer, by
 * header) know, with the content of the earlier file below `from`'s root, where it has the same path.
 * The others go to `left` (room for n), their number to `out->done`. An earlier file that is not what
 * it was, before or after, counts for nothing. LS_OK, or LS_ESYSTEM with `out`: the new file could not
 * be made. */
int ls_apply_clone(ls_apply *a, ls_apply *from, const ls_tree_mem *mem, int way,
                   const ls_seed *seeds, size_t n_seeds, const uint32_t *ids, size_t n,
                   uint32_t *left, ls_apply_out *out, ls_error *err);
/* What is there now of the files `ids` (in order) of at least `smallest` bytes, unless changed at or
 * after `before`: the number of seeds written to `out` (room for n). */
size_t ls_apply_seeds(ls_apply *a, const ls_tree_mem *mem, const uint32_t *ids, size_t n,
                      uint64_t smallest, int64_t before_sec, uint32_t before_nsec, ls_seed *out);
/* ---- gzip members as spans of tokens ------------------------------------------------------------ */
/* A decoder of gzip (RFC 1952, any number of members) that keeps what an encoder decided: tokens,
 * blocks, codes as they were transmitted. Its output is cut into *spans* where blocks or members begin,
 * so that memory is bounded; a span's arrays are the caller's. As strict as zlib about what is valid. */

#define LS_TOKENS_CONTENT 16777216 /* most bytes of content of a span */
#define LS_TOKENS_TOKENS 4194304   /* most tokens */
#define LS_TOKENS_EVENTS 16384     /* most blocks and what lies between them */
#define LS_TOKENS_BYTES 4194304    /* most bytes of trees, headers, trailing bytes */
#define LS_TOKENS_HEADER 262144    /* longest header of a member that is taken */
#define LS_TOKENS_TRAILING 1048576 /* most bytes behind the last member */
#define LS_TOKENS_SLACK 64         /* bytes that may be touched behind content */

#define LS_EVENT_STORED 0 /* blocks, as the format numbers them */
#define LS_EVENT_FIXED 1
#define LS_EVENT_DYNAMIC 2
#define LS_EVENT_HEADER 3   /* of a member */
#define LS_EVENT_TRAILER 4  /* of a member: CRC and size, 8 bytes */
#define LS_EVENT_ZEROS 5    /* behind a member: zeros */
#define LS_EVENT_TRAILING 6 /* behind the last member: something else */

typedef struct ls_event {
    uint64_t bit;    /* where it begins, in bits from the start of the blob */
    uint32_t kind;   /* LS_EVENT_* */
    uint32_t tokens; /* of a block; stored: 0 */
    uint32_t size;   /* of a block: bytes of content; else: bytes in the blob */
    uint32_t bytes;  /* where its own bytes begin in ls_tokens_span.bytes: header, trailer, trailing
                        bytes; of a dynamic block the tree, as respan_impl.h lays it out */
    uint32_t final;
    uint32_t padding; /* stored block, trailer: the bits before the byte boundary that lead to it */
} ls_event;

typedef struct ls_tokens_span {
    uint8_t *content; /* `before` bytes of history, then the span's; room for `content_room` */
    uint32_t *tokens; /* a literal, or distance << 16 | length; room for LS_TOKENS_TOKENS */
    ls_event *events; /* room for LS_TOKENS_EVENTS */
    uint8_t *bytes;   /* room for LS_TOKENS_BYTES */
    size_t
        content_room; /* at least history + LS_TOKENS_CONTENT + what models want behind + slack */
    size_t before;    /* history: of the member that it begins in */
    size_t size, n_tokens, n_events, n_bytes;
    uint64_t offset;  /* content in the blob before it */
    uint64_t at;      /* content of the member before it */
    uint64_t flushed; /* content of the member before the last flush (empty stored block) */
    uint64_t bit, end_bit;
    uint32_t inside; /* it begins inside a member */
    uint32_t carry;  /* the bits before `bit` in its byte */
} ls_tokens_span;

typedef struct ls_tokens ls_tokens;

size_t ls_tokens_sizeof(void);
void ls_tokens_init(ls_tokens *d);
/* Begins a span in these arrays; its history (at most `history` bytes, at least 32 KiB if there are so
 * many) is taken from `last`, the span before (NULL for the first). */
void ls_tokens_begin(ls_tokens *d, ls_tokens_span *span, const ls_tokens_span *last,
                     size_t history);

#define LS_TOKENS_MORE 0 /* all was looked at; what was not used comes again, with more behind it */
#define LS_TOKENS_SPAN 1 /* the span is complete: begin another, and come again with the rest */
#define LS_TOKENS_END 2  /* `last` and all is decoded; the span is complete, if it has events */

/* Decodes; `*used` bytes of `data` are done with. `wanted`: bytes of content at which a span ends (a
 * flush or a member's end counts from half of it). `last`: nothing comes behind `data`. LS_EINVALID: not
 * valid; LS_ELIMIT: valid, but more than a span holds; then the decoder is dead. */
int ls_tokens_feed(ls_tokens *d, ls_tokens_span *span, size_t wanted, const uint8_t *data,
                   size_t size, int last, size_t *used, ls_error *err);

/* ---- spans as what a model of their encoder mispredicts ------------------------------------------ */

/* Facts of a model (csrc/deflate/model.h). */
typedef struct ls_model_facts {
    uint32_t id;
    uint32_t history; /* bytes wanted in front of a span, and behind it */
    uint32_t ahead;
    uint32_t span;       /* bytes of content of a span that suit it */
    uint32_t superseded; /* not 0: not for new recipes */
    const char *name;
} ls_model_facts;

#define LS_MODEL_MAX_HISTORY 1048576
#define LS_MODEL_MAX_AHEAD 262144

#define LS_RECIPE_VERSION 3 /* of new recipes; what 1 and 2 say is made as ever */

/* The n-th model there is; 0 when there are no more. */
int ls_respan_model(uint32_t n, ls_model_facts *facts);
/* Memory for the two calls below; 0: no such model. Aligned to 64 bytes. */
size_t ls_respan_sizeof(uint32_t model);

/* Corrections of a span, as recipes of this version have them; `following` is the span behind it, NULL for the last. What the model wants
 * behind the content is copied there. `room` bounds the corrections: LS_ELIMIT when that is too little.
 * `scratch` takes 2 * LS_TOKENS_TOKENS numbers. */
int ls_respan_analyse(void *work, uint32_t version, uint32_t model, ls_tokens_span *span,
                      const ls_tokens_span *following, uint32_t *scratch, uint8_t *out, size_t room,
                      size_t *out_len, ls_error *err);

typedef struct ls_respan {
    const uint8_t *content; /* the span's; `before` bytes lie in front, `after` + slack behind */
    size_t before, size, after;
    uint64_t offset;       /* content in the blob before it */
    uint64_t bit, end_bit; /* where its bits begin and end in the blob */
    const uint8_t *corrections;
    size_t corrections_size;
} ls_respan;

#define LS_RESPAN_ROOM 16384 /* bytes of output wanted beyond what will come out */

/* The blob's bytes from bit / 8 to end_bit / 8. `tokens` takes LS_TOKENS_TOKENS numbers, `scratch` twice
 * as many. LS_EFORMAT when the parts do not fit. */
int ls_respan_make(void *work, uint32_t version, uint32_t model, const ls_respan *r,
                   uint32_t *tokens, uint32_t *scratch, uint8_t *out, size_t room, size_t *out_len,
                   ls_error *err);
/* Tokens that the model mispredicted in the span which the last call took with this memory. */
size_t ls_respan_mispredicted(const void *work);

/* ---- mounts -------------------------------------------------------------------------------------- */
/* These do system calls, and need the rights for them (CAP_SYS_ADMIN in the namespaces concerned).
 * Each returns 0 or a descriptor (close-on-exec, the caller's), or a negated errno. None blocks for
 * longer than the kernel takes; at most one child process is made and waited for. */

#define LS_OVERLAY_MAX 500     /* lower layers that the kernel stacks */
#define LS_OVERLAY_USERXATTR 1 /* whiteouts and opaque marks are in user.overlay.* */
#define LS_OVERLAY_OLD 2       /* mount(2), as on kernels before Linux 6.5; for tests */

/* Names are relative to `base` and hold neither a comma nor a colon nor a backslash. */
typedef struct ls_overlay {
    const char *source; /* what mountinfo shows as the source */
    int32_t base;       /* a directory; on the same filesystem as all layers */
    int32_t scratch;    /* an empty directory for a moment's mounts; used with `userns` only */
    int32_t userns; /* the lower layers' ids as this user namespace maps them; -1: as they are */
    uint32_t flags;
    const char *const *lower; /* topmost first, at least one (two without an upper one) */
    size_t n_lower;
    const char
        *upper; /* holds `fs` and `work`, the upper and the work directory; NULL: read-only */
} ls_overlay;

/* Mounts an overlay on the directory `target`. `log` takes what the kernel said when it refused,
 * NUL-terminated. */
int ls_mount_overlay(const ls_overlay *o, int target, char *log, size_t size);
/* Mounts the directory `from` on `target`; `userns` as above. */
int ls_mount_bind(int from, int target, int userns, int readonly);
/* The topmost mount at a path whose last part is not followed. `lazy`: also while it is in use. */
int ls_umount(const char *path, int lazy);
/* A user namespace with these maps, in the form of /proc/PID/uid_map. */
int ls_userns_open(const char *uid_map, const char *gid_map);

#endif
