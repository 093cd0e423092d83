/* tar.c: the scanner's state machine: which bytes of a tar are metadata, which are payload.
 *
 * Memory: the caller's struct and scratch. Nothing here fails on bytes: see TAR_LOST.
 * Cost: one checksum over each header block; payload is never touched.
 *
 * Decisions where readers differ (the container runtimes read with Go's archive/tar, so its view
 * wins where POSIX leaves room; `problem` is set where another reader would frame differently):
 *  - types 1 to 6 have no payload, whatever their size field says (Go, Python; GNU tar for 1);
 *  - a type NUL whose name field ends in '/' is a directory (v7), without payload;
 *  - a local pax size wins over the header's, for the next entry that is no L, K, x or g;
 *  - a global pax size, path, linkpath or GNU.sparse record is not applied;
 *  - zero blocks do not end the scan, but the entries after one are marked `after_end`.
 */
#include <string.h>

#include "tar_impl.h"

static size_t smaller(uint64_t a, size_t b) {
    return a < b ? (size_t)a : b;
}

int ls_tar_fail(ls_error *err, int code, uint64_t offset, const char *reason) {
    if (err != NULL) {
        size_t n = strlen(reason);
        if (n > sizeof err->reason - 1)
            n = sizeof err->reason - 1;
        err->code = code;
        err->offset = offset;
        memcpy(err->reason, reason, n);
        err->reason[n] = 0;
    }
    return code;
}

size_t ls_tar_sizeof(void) {
    return sizeof(ls_tar);
}

void ls_tar_init(ls_tar *t, uint8_t *scratch, size_t scratch_size) {
    memset(t, 0, sizeof *t);
    t->scratch = scratch;
    t->scratch_size = scratch_size;
    t->state = TAR_HEADER;
}

void ls_tar_lose(ls_tar *t, uint64_t at, const char *why) {
    t->state = TAR_LOST;
    t->lost_at = at;
    t->lost_why = why;
}

/* Forgets the entry that is over; global records stay. */
static void reset_entry(ls_tar *t) {
    if (t->have_local)
        t->pax = t->global_pax;
    t->local_len = t->name_len = t->link_len = t->map_n = 0;
    t->begun = t->have_local = t->have_name = t->have_link = 0;
    t->header_only = t->sparse = t->problem = 0;
}

static void to_padding(ls_tar *t) {
    t->left = t->pad;
    t->state = t->pad != 0 ? TAR_PADDING : TAR_HEADER;
}

/* The payload of an x, g, L or K header is all there. */
static void meta_done(ls_tar *t) {
    if (t->state == TAR_LOCAL) {
        /* A record of an earlier 'x' for the same entry is overridden, which not all readers do. */
        ls_tar_pax_apply(t, &t->pax, TAR_LOCAL_AT + t->local_len, (uint32_t)t->stored, 0);
        t->local_len += (uint32_t)t->stored;
    } else if (t->state == TAR_GLOBAL && t->keep && !t->global_problem) {
        ls_tar_pax_apply(t, &t->global_pax, TAR_GLOBAL_AT + t->global_len, (uint32_t)t->stored, 1);
        t->global_len += (uint32_t)t->stored;
        if (!t->have_local)
            t->pax = t->global_pax;
        else
            t->problem = 1; /* a global header between a local one and its entry */
    }
    to_padding(t);
}

/* Begins the payload of an x, g, L or K header. */
static void meta_begin(ls_tar *t, uint8_t type, uint64_t size) {
    t->stored = size;
    t->left = size;
    t->pad = (uint32_t)(-size & (TAR_BLOCK - 1));
    switch (type) {
    case 'x':
    case 'X':
        if (size > TAR_LOCAL_MAX - t->local_len) {
            ls_tar_lose(t, t->pos - TAR_BLOCK, "pax records of one entry above 1 MiB");
            return;
        }
        if (t->have_local)
            t->problem = 1;
        t->have_local = 1;
        t->state = TAR_LOCAL;
        break;
    case 'g':
        if (size > TAR_GLOBAL_MAX - t->global_len)
            t->global_problem = 1;
        t->state = TAR_GLOBAL;
        break;
    case 'L':
        t->problem |= t->have_name | (size > TAR_LONG_MAX);
        t->have_name = 1;
        t->name_len = 0;
        t->state = TAR_NAME;
        break;
    default:
        t->problem |= t->have_link | (size > TAR_LONG_MAX);
        t->have_link = 1;
        t->link_len = 0;
        t->state = TAR_LINK;
        break;
    }
    if (size == 0)
        meta_done(t);
}

static void keep_long(uint8_t *to, uint32_t *len, const uint8_t *p, size_t n) {
    size_t c = smaller(TAR_LONG_MAX - *len, n);
    memcpy(to + *len, p, c);
    *len += (uint32_t)c;
}

static size_t meta_take(ls_tar *t, const uint8_t *p, size_t n) {
    size_t c = smaller(t->left, n);
    uint64_t had = t->stored - t->left;
    if (t->state == TAR_LOCAL)
        memcpy(t->scratch + TAR_LOCAL_AT + t->local_len + had, p, c);
    else if (!t->keep)
        ;
    else if (t->state == TAR_GLOBAL && !t->global_problem)
        memcpy(t->scratch + TAR_GLOBAL_AT + t->global_len + had, p, c);
    else if (t->state == TAR_NAME)
        keep_long(t->scratch + TAR_NAME_AT, &t->name_len, p, c);
    else if (t->state == TAR_LINK)
        keep_long(t->scratch + TAR_LINK_AT, &t->link_len, p, c);
    t->left -= c;
    t->pos += c;
    if (t->left == 0)
        meta_done(t);
    return c;
}

static int is_header_only(const uint8_t *b) {
    uint8_t type = b[156];
    if (type >= '1' && type <= '6')
        return 1;
    if (type != 0)
        return 0;
    size_t n = ls_tar_strnlen(b, 100);
    return n > 0 && b[n - 1] == '/';
}

/* The local pax size beside the header's: writers put 0 or the largest octal number, or base-256,
 * where the octal field is too small for it; anything else makes readers step differently. */
static int sizes_agree(uint64_t pax, uint64_t header) {
    const uint64_t octal_end = (uint64_t)1 << 33;
    return pax == header || (pax >= octal_end && (header == 0 || header == octal_end - 1));
}

static void entry_header(ls_tar *t, const uint8_t *b, uint64_t size) {
    uint8_t type = b[156];
    uint32_t have = t->pax.have;
    int regular = type == 0 || type == '0' || type == '7';

    t->header_only = (uint8_t)is_header_only(b);
    if (have & PAX_SIZE) {
        if (!sizes_agree(t->pax.size, size) || (t->header_only && t->pax.size != 0))
            t->problem = 1;
        size = t->pax.size;
    }
    if (t->header_only) {
        if (type == 0 && size != 0)
            t->problem = 1;
        size = 0;
    }
    t->stored = size;
    t->pad = (uint32_t)(-size & (TAR_BLOCK - 1));
    if (t->keep)
        memcpy(t->head, b, TAR_BLOCK);
    t->state = TAR_READY;

    if (type == 'S') {
        t->sparse = 1;
        if (have & PAX_SPARSE_ANY)
            t->problem = 1;
        t->map_n = 0;
        if (t->keep)
            ls_tar_map_block(t, b + 386, 4);
        if (b[482] != 0)
            t->state = TAR_EXTENSION;
    } else if (regular && !t->header_only && (have & PAX_SPARSE_ANY)) {
        uint32_t version = have & (PAX_SPARSE_MAJOR | PAX_SPARSE_MINOR);
        if (version == (PAX_SPARSE_MAJOR | PAX_SPARSE_MINOR) && t->pax.major == 1 &&
            t->pax.minor == 0) {
            t->sparse = 4;
            ls_tar_map_start(t);
            t->left = size;
            if (size != 0)
                t->state = TAR_MAP;
        } else if (version != 0 && t->pax.major != 0) {
            t->problem = 1; /* a version nobody wrote: a regular file, as Go reads it */
        } else if (have & PAX_SPARSE_MAP) {
            t->sparse = 3;
        } else if (have & PAX_SPARSE_BLOCKS) {
            t->sparse = 2;
        } else {
            t->problem = 1;
        }
    }
}

static void header_block(ls_tar *t, const uint8_t *b) {
    uint64_t at = t->pos - TAR_BLOCK;
    if (ls_tar_is_zero(b)) {
        reset_entry(t);
        t->zero_seen = 1;
        if (++t->zero_run >= 2) {
            t->zero_run = 2;
            t->end_seen = 1;
        }
        return;
    }
    t->zero_run = 0;
    if (!ls_tar_checksum_ok(b)) {
        ls_tar_lose(t, at, "no tar header: wrong checksum");
        return;
    }
    int64_t size;
    int odd = ls_tar_number(b + 124, 12, &size);
    if (odd < 0 || size < 0) {
        ls_tar_lose(t, at, "tar header with an invalid size");
        return;
    }
    if (!t->begun)
        t->header_offset = at;
    t->begun = 1;
    if (odd)
        t->problem = 1;
    switch (b[156]) {
    case 'x':
    case 'X':
    case 'g':
    case 'L':
    case 'K':
        meta_begin(t, b[156], (uint64_t)size);
        break;
    default:
        entry_header(t, b, (uint64_t)size);
        break;
    }
}

/* Collects one block; NULL until it is whole. */
static const uint8_t *next_block(ls_tar *t, const uint8_t *p, size_t n, size_t *used) {
    if (t->fill == 0 && n >= TAR_BLOCK) {
        *used = TAR_BLOCK;
        t->pos += TAR_BLOCK;
        return p;
    }
    size_t c = smaller(TAR_BLOCK - t->fill, n);
    memcpy(t->part + t->fill, p, c);
    t->fill += (uint32_t)c;
    t->pos += c;
    *used = c;
    if (t->fill < TAR_BLOCK)
        return NULL;
    t->fill = 0;
    return t->part;
}

size_t ls_tar_take(ls_tar *t, const uint8_t *p, size_t n) {
    size_t used = 0;
    while (used < n && t->state != TAR_READY && t->state != TAR_DATA) {
        const uint8_t *block;
        size_t c = 0;
        int done = 0;
        switch (t->state) {
        case TAR_HEADER:
            block = next_block(t, p + used, n - used, &c);
            if (block != NULL)
                header_block(t, block);
            break;
        case TAR_EXTENSION:
            block = next_block(t, p + used, n - used, &c);
            if (block != NULL) {
                if (t->keep)
                    ls_tar_map_block(t, block, 21);
                if (block[504] == 0)
                    t->state = TAR_READY;
            }
            break;
        case TAR_MAP:
            c = ls_tar_map_take(t, p + used, smaller(t->left, n - used), &done);
            t->left -= c;
            t->pos += c;
            if (done || t->left == 0) {
                t->stored = t->left;
                t->state = TAR_READY;
            }
            break;
        case TAR_PADDING:
            c = smaller(t->left, n - used);
            t->left -= c;
            t->pos += c;
            if (t->left == 0)
                t->state = TAR_HEADER;
            break;
        case TAR_LOST:
            c = n - used;
            t->pos += c;
            break;
        default:
            c = meta_take(t, p + used, n - used);
            break;
        }
        used += c;
    }
    return used;
}

void ls_tar_begin(ls_tar *t) {
    reset_entry(t);
    t->left = t->stored;
    if (t->left != 0)
        t->state = TAR_DATA;
    else
        to_padding(t);
}

void ls_tar_skip(ls_tar *t, uint64_t n) {
    t->left -= n;
    t->pos += n;
    if (t->left == 0)
        to_padding(t);
}

void ls_tar_end(ls_tar *t) {
    /* Missing padding after the last payload loses nothing (and Go takes it). */
    if (!t->begun)
        t->end_clean = t->state == TAR_PADDING || (t->state == TAR_HEADER && t->fill == 0);
}

int ls_tar_lost(const ls_tar *t, ls_error *err) {
    if (t->state != TAR_LOST)
        return 0;
    ls_tar_fail(err, LS_EINVALID, t->lost_at, t->lost_why);
    return 1;
}

int ls_tar_complete(const ls_tar *t) {
    return t->end_seen || t->end_clean;
}

/* Adds a run to the events; 0 if there is no room. */
static int add_run(ls_tar_event *events, size_t max, size_t *n, uint32_t kind, size_t at,
                   size_t len) {
    if (*n > 0) {
        ls_tar_event *last = &events[*n - 1];
        if (last->kind == kind && last->offset + last->length == at) {
            last->length += len;
            return 1;
        }
    }
    if (*n == max)
        return 0;
    events[*n] = (ls_tar_event){kind, 0, at, len};
    *n += 1;
    return 1;
}

int ls_tar_feed(ls_tar *t, const uint8_t *data, size_t size, int final, ls_tar_event *events,
                size_t max_events, ls_tar_entry *entries, size_t max_entries, uint8_t *arena,
                size_t arena_size, ls_tar_out *out, ls_error *err) {
    memset(out, 0, sizeof *out);
    if (t->scratch_size < LS_TAR_SCRATCH)
        return ls_tar_fail(err, LS_ESPACE, t->pos, "the scratch memory is too small");
    if (t->fed && t->keep != (entries != NULL))
        return ls_tar_fail(err, LS_ESTATE, t->pos, "entries are wanted always or never");
    t->keep = entries != NULL;
    t->fed = 1;
    int full = 0;
    for (;;) {
        if (t->state == TAR_READY) {
            if (t->keep) {
                if (out->n_events == max_events || out->n_entries == max_entries ||
                    !ls_tar_emit(t, &entries[out->n_entries], arena, arena_size,
                                 &out->arena_used)) {
                    full = 1;
                    break;
                }
                events[out->n_events++] =
                    (ls_tar_event){LS_TAR_ENTRY, (uint32_t)out->n_entries, 0, 0};
                out->n_entries++;
            }
            ls_tar_begin(t);
            continue;
        }
        if (out->used == size)
            break;
        size_t rest = size - out->used, n = rest;
        uint32_t kind = t->state == TAR_DATA ? LS_TAR_DATA : LS_TAR_META;
        /* Room is claimed first: what was taken must be told. */
        if (!add_run(events, max_events, &out->n_events, kind, out->used, 0)) {
            full = 1;
            break;
        }
        if (kind == LS_TAR_DATA) {
            n = smaller(t->left, rest);
            ls_tar_skip(t, n);
        } else {
            n = ls_tar_take(t, data + out->used, rest);
        }
        events[out->n_events - 1].length += n;
        out->used += n;
    }
    if (full && out->used == 0 && out->n_events == 0)
        return ls_tar_fail(err, LS_ESPACE, t->pos, "the output arrays are too small");
    if (final && out->used == size && !full)
        ls_tar_end(t);
    return LS_OK;
}
