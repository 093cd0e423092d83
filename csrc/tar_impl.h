/* tar_impl.h: what the tar machines share (scanner, splitter, joiner); not part of the boundary.
 *
 * The scanner is a state machine over bytes. Framing (where headers end and payloads begin) needs
 * nothing but the header blocks and the local pax records, never a name, and never depends on how
 * the input was cut into windows: so splitter and joiner, which run it without entries, always
 * agree. Framing is part of the store's format: a tar that was split under one rule is joined
 * under it. Whatever only entries need (names, maps, times) is kept when entries are wanted.
 */
#ifndef LAYERSTORE_TAR_IMPL_H
#define LAYERSTORE_TAR_IMPL_H

#include "layerstore.h"

#define TAR_BLOCK 512

/* Places in the scratch memory. Only the limit on local pax records is framing: past it the
 * scanner is lost (Go's archive/tar has the same limit and refuses). Past the others the entry
 * is flagged as a problem and what is too much is left out. */
#define TAR_GLOBAL_MAX 65536
#define TAR_LOCAL_MAX 1048576
#define TAR_LONG_MAX 131072
#define TAR_MAP_MAX 65536 /* segments of a sparse map, 16 bytes each */
#define TAR_GLOBAL_AT 0
#define TAR_LOCAL_AT (TAR_GLOBAL_AT + TAR_GLOBAL_MAX)
#define TAR_NAME_AT (TAR_LOCAL_AT + TAR_LOCAL_MAX)
#define TAR_LINK_AT (TAR_NAME_AT + TAR_LONG_MAX)
#define TAR_MAP_AT (TAR_LINK_AT + TAR_LONG_MAX)
#define TAR_SCRATCH_END (TAR_MAP_AT + 16 * TAR_MAP_MAX)

enum tar_state {
    TAR_HEADER,    /* collecting a header block */
    TAR_LOCAL,     /* payload of a pax 'x' header */
    TAR_GLOBAL,    /* payload of a pax 'g' header */
    TAR_NAME,      /* payload of a GNU 'L' header */
    TAR_LINK,      /* payload of a GNU 'K' header */
    TAR_EXTENSION, /* collecting a block that goes on with a GNU sparse map */
    TAR_MAP,       /* pax sparse 1.0: map at the start of the payload */
    TAR_READY,     /* all headers of an entry are read; ls_tar_begin goes on */
    TAR_DATA,      /* stored payload */
    TAR_PADDING,   /* up to the next block boundary */
    TAR_LOST       /* everything is metadata */
};

enum { MAP_COUNT, MAP_NUMBERS, MAP_PADDING }; /* ls_tar.map_stage */

/* Records that pax headers set (bits of tar_pax.have). */
#define PAX_SIZE 1u
#define PAX_PATH 2u
#define PAX_LINK 4u
#define PAX_UNAME 8u
#define PAX_GNAME 16u
#define PAX_UID 32u
#define PAX_GID 64u
#define PAX_MTIME 128u
#define PAX_SPARSE_NAME 256u
#define PAX_SPARSE_SIZE 512u
#define PAX_SPARSE_MAJOR 1024u
#define PAX_SPARSE_MINOR 2048u
#define PAX_SPARSE_MAP 4096u    /* 0.1: the map as one record */
#define PAX_SPARSE_BLOCKS 8192u /* 0.0: the map as many records */
#define PAX_SPARSE_OPEN 16384u  /* 0.0: an offset that has no numbytes yet */
#define PAX_SPARSE_ANY                                                                             \
    (PAX_SPARSE_NAME | PAX_SPARSE_SIZE | PAX_SPARSE_MAJOR | PAX_SPARSE_MINOR | PAX_SPARSE_MAP |    \
     PAX_SPARSE_BLOCKS)

typedef struct tar_span {
    uint32_t at; /* in the scratch memory */
    uint32_t len;
} tar_span;

typedef struct tar_pax {
    uint32_t have;
    uint8_t problem;
    uint64_t size, uid, gid, sparse_size, major, minor, sparse_open;
    int64_t mtime_sec;
    uint32_t mtime_nsec;
    tar_span path, link, uname, gname, sparse_name;
} tar_pax;

struct ls_tar {
    uint8_t *scratch;
    size_t scratch_size;
    uint64_t pos;  /* stream offset of the next byte */
    uint64_t left; /* bytes left of the payload or padding at hand */
    /* the entry whose headers are being read, or are all read */
    uint64_t header_offset;
    uint64_t stored;
    uint32_t pad;       /* bytes from the end of its payload to the block boundary */
    uint32_t local_len; /* bytes of local pax records in scratch */
    uint32_t name_len;
    uint32_t link_len;
    uint32_t map_n;
    uint32_t global_len;
    uint32_t fill;      /* bytes in `part` */
    uint32_t zero_run;  /* zero blocks in a row */
    uint64_t map_left;  /* pax sparse 1.0: numbers still to come after the count */
    uint64_t map_value; /* the number being read */
    uint64_t map_open;  /* offset that waits for its length */
    uint32_t map_pos;   /* offset in its block of the map's next byte */
    uint8_t map_stage;
    uint8_t map_digits;
    uint8_t map_broken;
    uint8_t state;
    uint8_t keep; /* entries are wanted */
    uint8_t fed;
    uint8_t begun;      /* a meta header of the entry to come was seen */
    uint8_t have_local; /* a pax header of it */
    uint8_t have_name;
    uint8_t have_link;
    uint8_t header_only;
    uint8_t sparse;
    uint8_t problem;
    uint8_t global_problem;
    uint8_t zero_seen;
    uint8_t end_seen; /* two zero blocks in a row */
    uint8_t end_clean;
    uint64_t lost_at;
    const char *lost_why;
    tar_pax pax;        /* global records under local ones */
    tar_pax global_pax; /* global records alone */
    uint8_t part[TAR_BLOCK];
    uint8_t head[TAR_BLOCK];
};

/* tar.c: for splitter and joiner. */

/* Takes metadata from p[0, n): all of it, or up to where an entry's headers end (TAR_READY) or
 * a payload begins. Returns the bytes taken. */
size_t ls_tar_take(ls_tar *t, const uint8_t *p, size_t n);
/* Leaves TAR_READY: for TAR_DATA with t->left > 0, or for what follows an entry without payload. */
void ls_tar_begin(ls_tar *t);
/* n <= t->left bytes of payload went by. */
void ls_tar_skip(ls_tar *t, uint64_t n);
/* The stream ends here. */
void ls_tar_end(ls_tar *t);
void ls_tar_lose(ls_tar *t, uint64_t at, const char *why);

/* tar_header.c: the fields of one header block, and an entry made of them. */

/* Octal or base-256. 0: fine, 1: readers disagree about it, -1: no number. */
int ls_tar_number(const uint8_t *p, size_t n, int64_t *value);
int ls_tar_is_zero(const uint8_t *block);
int ls_tar_checksum_ok(const uint8_t *block);
size_t ls_tar_strnlen(const uint8_t *p, size_t n);
/* Fills `e` and the arena from the entry at hand; 0 if the arena has no room for it. */
int ls_tar_emit(const ls_tar *t, ls_tar_entry *e, uint8_t *arena, size_t arena_size, size_t *used);

/* tar_pax.c: applies records at scratch[at, at + len) to `pax`. */
void ls_tar_pax_apply(ls_tar *t, tar_pax *pax, uint32_t at, uint32_t len, int global);
/* Decimal digits only, below 2^63. */
int ls_tar_decimal(const uint8_t *p, size_t n, uint64_t *value);

/* tar_sparse.c */
void ls_tar_map_add(ls_tar *t, uint64_t offset, uint64_t length);
/* The map in the header block of type 'S', or in an extension block. */
void ls_tar_map_block(ls_tar *t, const uint8_t *at, int slots);
void ls_tar_map_start(ls_tar *t);
/* Pax 1.0: takes bytes of the map from the payload; *done when it and its padding are over. */
size_t ls_tar_map_take(ls_tar *t, const uint8_t *p, size_t n, int *done);
/* 1 if the map is in order, inside `size`, and covers `stored` bytes. */
int ls_tar_map_ok(const ls_tar *t, uint64_t size, uint64_t stored);

/* join.c: one varint at p[*at]: 1 and *at behind it; 0: it goes on behind the end; -1: above 64 bits. */
int ls_tar_varint(const uint8_t *p, size_t n, size_t *at, uint64_t *value);

/* Results and errors. */
int ls_tar_fail(ls_error *err, int code, uint64_t offset, const char *reason);

#endif
