/* tar_header.c: the fields of a tar header block (POSIX.1-2017 pax, ustar Interchange Format; GNU
 * tar's manual, "Basic Tar Format"), and the entry that headers and pax records make together. */
#include <string.h>

#include "tar_impl.h"

int ls_tar_number(const uint8_t *p, size_t n, int64_t *value) {
    int odd = 0;
    *value = 0;
    if (p[0] & 0x80) { /* base-256: two's complement, big endian, below a marking bit */
        uint64_t v = (p[0] & 0x40) ? UINT64_MAX : 0;
        uint64_t sign = v;
        for (size_t i = 0; i < n; i++) {
            uint8_t byte = p[i];
            if (i == 0)
                byte = (uint8_t)((byte & 0x7f) | (sign & 0x80));
            if ((v >> 55) != (sign >> 55)) /* the next shift would lose bits or change the sign */
                return -1;
            v = v << 8 | byte;
        }
        /* Python knows only 0x80 and 0xff as the first byte. */
        if (p[0] != 0x80 && p[0] != 0xff)
            odd = 1;
        *value = (int64_t)v;
        return odd;
    }
    size_t i = 0;
    uint64_t v = 0;
    while (i < n && (p[i] == ' ' || p[i] == 0)) {
        odd |= p[i] == 0; /* some stop at the first NUL */
        i++;
    }
    if (i == n)
        return 0; /* empty is 0 */
    for (; i < n && p[i] >= '0' && p[i] <= '7'; i++)
        v = v << 3 | (uint64_t)(p[i] - '0'); /* at most 12 digits: 36 bits */
    while (i < n && p[i] == ' ')
        i++;
    if (i < n && p[i] != 0)
        return -1;
    *value = (int64_t)v;
    return odd;
}

int ls_tar_is_zero(const uint8_t *block) {
    uint64_t all = 0, word;
    memcpy(&word, block, 8);
    if (word != 0)
        return 0;
    for (size_t i = 8; i < TAR_BLOCK; i += 8) {
        memcpy(&word, block + i, 8);
        all |= word;
    }
    return all == 0;
}

int ls_tar_checksum_ok(const uint8_t *block) {
    int64_t want;
    uint32_t sum = 8 * ' ';
    int32_t high = 0;
    if ((block[148] & 0x80) || ls_tar_number(block + 148, 8, &want) < 0)
        return 0;
    for (size_t i = 0; i < TAR_BLOCK; i++)
        sum += block[i];
    for (size_t i = 148; i < 156; i++)
        sum -= block[i];
    if (want == (int64_t)sum)
        return 1;
    /* Old writers summed signed bytes. */
    for (size_t i = 0; i < TAR_BLOCK; i++)
        if (i < 148 || i >= 156)
            high += block[i] >> 7;
    return want == (int64_t)sum - 256 * (int64_t)high;
}

size_t ls_tar_strnlen(const uint8_t *p, size_t n) {
    const uint8_t *end = memchr(p, 0, n);
    return end == NULL ? n : (size_t)(end - p);
}

/* Where a string of the entry comes from. `prefix` is joined before it with a slash. */
typedef struct text {
    const uint8_t *prefix, *p;
    size_t prefix_len, len;
    int in_pax; /* p is in the pax records, which go to the arena anyway */
    uint32_t pax_at;
} text;

enum dialect { V7, USTAR, STAR, GNU };

static enum dialect dialect_of(const uint8_t *b) {
    if (memcmp(b + 257, "ustar\0", 6) == 0)
        return memcmp(b + 508, "tar\0", 4) == 0 ? STAR : USTAR;
    return memcmp(b + 257, "ustar  \0", 8) == 0 ? GNU : V7;
}

static text field(const uint8_t *b, size_t at, size_t n) {
    text r = {NULL, b + at, 0, ls_tar_strnlen(b + at, n), 0, 0};
    return r;
}

/* A span of the scratch as the arena will hold it: global records, then local ones. */
static text pax_text(const ls_tar *t, tar_span s) {
    text r = {NULL, t->scratch + s.at, 0, s.len, 1, s.at};
    if (s.at >= TAR_LOCAL_AT)
        r.pax_at = s.at - TAR_LOCAL_AT + t->global_len;
    return r;
}

static text long_text(const ls_tar *t, uint32_t at, uint32_t len) {
    text r = {NULL, t->scratch + at, 0, ls_tar_strnlen(t->scratch + at, len), 0, 0};
    return r;
}

static int same(text a, text b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.p, b.p, a.len) == 0);
}

static text name_of(const ls_tar *t, const uint8_t *b, enum dialect d, uint8_t *problem) {
    uint32_t have = t->pax.have;
    text own = field(b, 0, 100);
    if (d == USTAR || d == STAR) {
        own.prefix = b + 345;
        own.prefix_len = ls_tar_strnlen(b + 345, d == STAR ? 131 : 155);
    }
    text r = own;
    if (t->have_name)
        r = long_text(t, TAR_NAME_AT, t->name_len);
    if (have & PAX_PATH) {
        text path = pax_text(t, t->pax.path);
        if (t->have_name && !same(path, r))
            *problem = 1; /* Go takes the GNU name, Python whichever came first */
        r = path;
    }
    if ((have & PAX_SPARSE_NAME) && t->sparse >= 2)
        r = pax_text(t, t->pax.sparse_name);
    return r;
}

static text link_of(const ls_tar *t, const uint8_t *b, uint8_t *problem) {
    text r = field(b, 157, 100);
    if (t->have_link)
        r = long_text(t, TAR_LINK_AT, t->link_len);
    if (t->pax.have & PAX_LINK) {
        text path = pax_text(t, t->pax.link);
        if (t->have_link && !same(path, r))
            *problem = 1;
        r = path;
    }
    return r;
}

static size_t text_need(text x) {
    return x.in_pax ? 0 : x.len + (x.prefix_len ? x.prefix_len + 1 : 0);
}

/* Puts a string at arena[*at], or finds it in the records that are there already. */
static void put(text x, uint8_t *arena, size_t *at, uint32_t pax_off, uint32_t *off,
                uint32_t *len) {
    if (x.in_pax) {
        *off = pax_off + x.pax_at;
        *len = (uint32_t)x.len;
        return;
    }
    *off = (uint32_t)*at;
    if (x.prefix_len) {
        memcpy(arena + *at, x.prefix, x.prefix_len);
        arena[*at + x.prefix_len] = '/';
        *at += x.prefix_len + 1;
    }
    if (x.len)
        memcpy(arena + *at, x.p, x.len);
    *at += x.len;
    *len = (uint32_t)*at - *off;
}

static int64_t number(const uint8_t *b, size_t at, size_t n, uint8_t *problem) {
    int64_t v;
    if (ls_tar_number(b + at, n, &v) != 0)
        *problem = 1;
    return v;
}

static void numbers(const ls_tar *t, const uint8_t *b, enum dialect d, ls_tar_entry *e) {
    const tar_pax *x = &t->pax;
    int64_t uid = number(b, 108, 8, &e->problem);
    int64_t gid = number(b, 116, 8, &e->problem);
    e->mode = (uint32_t)number(b, 100, 8, &e->problem) & 07777;
    e->mtime_sec = number(b, 136, 12, &e->problem);
    if ((uid < 0 && !(x->have & PAX_UID)) || (gid < 0 && !(x->have & PAX_GID)))
        e->problem = 1;
    e->uid = x->have & PAX_UID ? x->uid : (uint64_t)uid;
    e->gid = x->have & PAX_GID ? x->gid : (uint64_t)gid;
    if (x->have & PAX_MTIME) {
        e->mtime_sec = x->mtime_sec;
        e->mtime_nsec = x->mtime_nsec;
    }
    if (d != V7 && (e->type == '3' || e->type == '4')) {
        int64_t major = number(b, 329, 8, &e->problem), minor = number(b, 337, 8, &e->problem);
        if (major < 0 || major > UINT32_MAX || minor < 0 || minor > UINT32_MAX)
            e->problem = 1;
        e->devmajor = (uint32_t)major;
        e->devminor = (uint32_t)minor;
    }
}

static void sizes(const ls_tar *t, const uint8_t *b, enum dialect d, ls_tar_entry *e) {
    e->stored_size = t->stored;
    e->size = t->stored;
    e->sparse = t->sparse;
    if (t->sparse == 0)
        return;
    if (t->sparse == 1) {
        int64_t real = number(b, 483, 12, &e->problem);
        if (real < 0 || d != GNU)
            e->problem = 1;
        else
            e->size = (uint64_t)real;
        e->type = '0';
    } else if (t->pax.have & PAX_SPARSE_SIZE) {
        e->size = t->pax.sparse_size;
    } else {
        e->problem = 1;
    }
    if ((t->pax.have & PAX_SPARSE_OPEN) || (t->sparse == 4 && t->map_broken) ||
        !ls_tar_map_ok(t, e->size, t->stored))
        e->problem = 1;
}

int ls_tar_emit(const ls_tar *t, ls_tar_entry *e, uint8_t *arena, size_t arena_size, size_t *used) {
    const uint8_t *b = t->head;
    enum dialect d = dialect_of(b);
    text none = {NULL, NULL, 0, 0, 0, 0}, uname = none, gname = none;

    memset(e, 0, sizeof *e);
    e->problem = t->problem | t->pax.problem | t->global_problem;
    text name = name_of(t, b, d, &e->problem);
    text link = link_of(t, b, &e->problem);
    if (t->pax.have & PAX_UNAME)
        uname = pax_text(t, t->pax.uname);
    else if (d != V7)
        uname = field(b, 265, 32);
    if (t->pax.have & PAX_GNAME)
        gname = pax_text(t, t->pax.gname);
    else if (d != V7)
        gname = field(b, 297, 32);

    uint32_t pax_len = t->have_local || t->global_len ? t->global_len + t->local_len : 0;
    size_t map_len = t->sparse ? 16 * (size_t)t->map_n : 0;
    size_t need =
        pax_len + map_len + text_need(name) + text_need(link) + text_need(uname) + text_need(gname);
    if (arena_size > UINT32_MAX)
        arena_size = UINT32_MAX; /* offsets in it are 32 bits */
    if (need > arena_size || *used > arena_size - need)
        return 0;

    size_t at = *used;
    e->pax_off = (uint32_t)at;
    e->pax_len = pax_len;
    e->global_len = pax_len ? t->global_len : 0;
    if (pax_len) {
        memcpy(arena + at, t->scratch + TAR_GLOBAL_AT, t->global_len);
        memcpy(arena + at + t->global_len, t->scratch + TAR_LOCAL_AT, t->local_len);
        at += pax_len;
    }
    put(name, arena, &at, e->pax_off, &e->name_off, &e->name_len);
    put(link, arena, &at, e->pax_off, &e->link_off, &e->link_len);
    put(uname, arena, &at, e->pax_off, &e->uname_off, &e->uname_len);
    put(gname, arena, &at, e->pax_off, &e->gname_off, &e->gname_len);
    e->sparse_off = (uint32_t)at;
    e->sparse_len = (uint32_t)map_len;
    if (map_len)
        memcpy(arena + at, t->scratch + TAR_MAP_AT, map_len);
    *used = at + map_len;

    e->header_offset = t->header_offset;
    e->data_offset = t->pos;
    e->type = b[156];
    e->after_end = t->zero_seen;
    int slash = e->name_len > 0 && arena[e->name_off + e->name_len - 1] == '/';
    if (e->type == 0)
        e->type = t->header_only || (slash && t->stored == 0) ? '5' : '0';
    /* A regular file with a directory's name: GNU tar makes a directory of it, Go a file. */
    if (slash && (e->type == '0' || e->type == '7'))
        e->problem = 1;
    numbers(t, b, d, e);
    sizes(t, b, d, e);
    return 1;
}
