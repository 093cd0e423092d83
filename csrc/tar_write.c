/* tar_write.c: nodes of a tree become a tar.
 *
 * The bytes depend on the nodes and the contents alone: ustar headers with numbers, no names of users
 * or groups; a pax header (POSIX.1-2017, pax) only in front of entries that ustar cannot say: times
 * with nanoseconds or outside 33 bits, names and link targets that do not fit, owners above 2097151,
 * sizes from 8 GiB on, xattrs (SCHILY.xattr.NAME, values as they are). A pax keyword ends at its first
 * '=', so an xattr with one in its name is said as libarchive says all (LIBARCHIVE.xattr.NAME, the name
 * percent-encoded, the value in base64): who does not know that leaves it out, where GNU tar's own
 * encoding in SCHILY.xattr gives everybody else a wrong name.
 *
 * Contents go from the file straight into the output. A file is looked at once before and once after
 * it was read: it must be the one that its node describes. The descriptor of the directory that was
 * used last is kept, since neighbours follow each other.
 *
 * Memory: one entry's headers lie in the caller's scratch memory until they are written.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files_impl.h"

#define BLOCK 512
#define OCTAL7 2097151u      /* largest number of seven octal digits */
#define OCTAL11 8589934591ll /* of eleven */
#define KEY_MAX 800          /* a name of 255 bytes, percent-encoded */
/* Places in the scratch memory: headers and records (of an entry, and of the opaque marker behind
 * it), a name with its suffix, a name that was made up. */
#define NAME_ROOM (LS_WALK_PATH + 512)
#define NAME_AT (LS_PACK_PAX + 98304)
#define MADE_AT (NAME_AT + NAME_ROOM)
_Static_assert(MADE_AT + NAME_ROOM <= LS_PACK_SCRATCH, "the scratch memory is too small");
#define CAP_V2 20
#define CAP_V3 24

enum pack_state { PACK_NODE, PACK_HEAD, PACK_OPEN, PACK_DATA, PACK_GIVEN, PACK_PAD, PACK_FAILED };

struct ls_pack {
    uint8_t *scratch;
    int64_t clamp;
    const ls_idmap *uids, *gids;
    size_t n_uids, n_gids;
    uint64_t offset; /* in the tar */
    uint64_t entries;
    uint64_t left; /* of the content at hand */
    size_t head_at, head_len;
    uint32_t pad;
    int fd;  /* file being read */
    int dir; /* directory used last */
    uint32_t dir_root;
    uint32_t dir_len;
    uint8_t state, no_noatime;
    char dir_path[4096];
};

size_t ls_pack_sizeof(void) {
    return sizeof(ls_pack);
}

void ls_pack_init(ls_pack *p, uint8_t *scratch, int64_t clamp, const ls_idmap *uids, size_t n_uids,
                  const ls_idmap *gids, size_t n_gids) {
    memset(p, 0, sizeof *p);
    p->scratch = scratch;
    p->clamp = clamp;
    p->uids = uids;
    p->n_uids = n_uids;
    p->gids = gids;
    p->n_gids = n_gids;
    p->fd = p->dir = -1;
}

void ls_pack_close(ls_pack *p) {
    if (p->fd >= 0)
        close(p->fd);
    if (p->dir >= 0)
        close(p->dir);
    p->fd = p->dir = -1;
}

/* ---- headers ---- */

/* The names and values of one entry. */
typedef struct fields {
    char type;
    const uint8_t *name, *link;
    size_t name_len, link_len;
    const char *suffix; /* behind the name: "/", or nothing */
    uint32_t mode, uid, gid, major, minor;
    uint64_t size;
    int64_t sec;
    uint32_t nsec;
} fields;

/* The builder: header bytes at scratch[0, len). Pax records are collected behind room for their
 * own header. */
typedef struct builder {
    uint8_t *at;
    size_t len;
    size_t pax; /* bytes of records, at `at` + len + BLOCK */
    int over;   /* there are too many */
} builder;

static void octal(uint8_t *field, size_t digits, uint64_t v) {
    for (size_t i = digits; i-- > 0; v >>= 3)
        field[i] = (uint8_t)('0' + (v & 7));
}

static void seal(uint8_t *h) {
    uint32_t sum = 0;
    memset(h + 148, ' ', 8);
    for (size_t i = 0; i < BLOCK; i++)
        sum += h[i];
    octal(h + 148, 6, sum);
    h[154] = 0;
}

static void plain_header(uint8_t *h, char type, uint64_t size) {
    memset(h, 0, BLOCK);
    octal(h + 100, 7, 0);
    octal(h + 108, 7, 0);
    octal(h + 116, 7, 0);
    octal(h + 124, 11, size);
    octal(h + 136, 11, 0);
    h[156] = (uint8_t)type;
    memcpy(h + 257,
           "ustar\0"
           "00",
           8);
}

static size_t digits_of(size_t n) {
    size_t d = 1;
    for (; n >= 10; n /= 10)
        d++;
    return d;
}

/* "LEN KEY=VALUE\n", where LEN counts itself: all but the value, of `size` bytes, whose place it gives;
 * NULL: there is no room. */
static uint8_t *record_head(builder *b, const char *key, size_t size) {
    size_t body = 1 + strlen(key) + 1 + size + 1, total = body + digits_of(body);
    if (body + digits_of(total) != total)
        total = body + digits_of(total);
    if (b->over || total > LS_PACK_PAX - b->pax) {
        b->over = 1;
        return NULL;
    }
    uint8_t *at = b->at + b->len + BLOCK + b->pax;
    int n = snprintf((char *)at, 32 + KEY_MAX, "%zu %s=", total, key);
    at[total - 1] = '\n';
    b->pax += total;
    return at + n;
}

static void record(builder *b, const char *key, const uint8_t *value, size_t size) {
    uint8_t *at = record_head(b, key, size);
    if (at && size > 0)
        memcpy(at, value, size);
}

static void number_record(builder *b, const char *key, uint64_t v) {
    char text[24];
    int n = snprintf(text, sizeof text, "%llu", (unsigned long long)v);
    record(b, key, (const uint8_t *)text, (size_t)n);
}

static void time_record(builder *b, int64_t sec, uint32_t nsec) {
    char text[40];
    int n;
    const char *sign = "";
    uint64_t whole = (uint64_t)sec;
    if (sec < 0) {
        /* The number as a whole is negative: -1 s + 0.25 s is -0.75. */
        sign = "-";
        whole = nsec ? (uint64_t)(-(sec + 1)) : (uint64_t)(-sec);
        nsec = nsec ? 1000000000u - nsec : 0;
    }
    n = snprintf(text, sizeof text, "%s%llu", sign, (unsigned long long)whole);
    if (nsec) {
        n += snprintf(text + n, sizeof text - (size_t)n, ".%09u", nsec);
        while (text[n - 1] == '0')
            n--;
    }
    record(b, "mtime", (const uint8_t *)text, (size_t)n);
}

/* Puts a name into the header; 0 if it does not fit. */
static int put_name(uint8_t *h, const uint8_t *name, size_t len) {
    if (len <= 100) {
        memcpy(h, name, len);
        return 1;
    }
    if (len > 256)
        return 0;
    /* The longest prefix that leaves something behind its slash. */
    for (size_t cut = len - 2 < 155 ? len - 2 : 155; cut > 0 && len - cut - 1 <= 100; cut--)
        if (name[cut] == '/') {
            memcpy(h + 345, name, cut);
            memcpy(h, name + cut + 1, len - cut - 1);
            return 1;
        }
    return 0;
}

/* One entry, with the pax records that were collected for it in front. */
static void entry(builder *b, fields *f) {
    uint8_t h[BLOCK];
    uint8_t *name = b->at + NAME_AT;
    size_t suffix = strlen(f->suffix), n = f->name_len + suffix;
    plain_header(h, f->type, f->size <= OCTAL11 ? f->size : 0);
    if (n > NAME_ROOM) {
        b->over = 1;
        return;
    }
    memcpy(name, f->name, f->name_len);
    memcpy(name + f->name_len, f->suffix, suffix);
    if (!put_name(h, name, n)) {
        record(b, "path", name, n);
        memcpy(h, name, 100);
    }
    if (f->link_len > 0) {
        if (f->link_len > 100)
            record(b, "linkpath", f->link, f->link_len);
        memcpy(h + 157, f->link, f->link_len < 100 ? f->link_len : 100);
    }
    octal(h + 100, 7, f->mode);
    if (f->uid > OCTAL7)
        number_record(b, "uid", f->uid);
    octal(h + 108, 7, f->uid > OCTAL7 ? 0 : f->uid);
    if (f->gid > OCTAL7)
        number_record(b, "gid", f->gid);
    octal(h + 116, 7, f->gid > OCTAL7 ? 0 : f->gid);
    if (f->size > (uint64_t)OCTAL11)
        number_record(b, "size", f->size);
    if (f->nsec || f->sec < 0 || f->sec > OCTAL11)
        time_record(b, f->sec, f->nsec);
    if (f->sec >= 0 && f->sec <= OCTAL11)
        octal(h + 136, 11, (uint64_t)f->sec);
    if (f->type == '3' || f->type == '4') {
        octal(h + 329, 7, f->major);
        octal(h + 337, 7, f->minor);
    }
    seal(h);
    if (b->over)
        return;
    if (b->pax > 0) {
        uint8_t *x = b->at + b->len;
        plain_header(x, 'x', b->pax);
        memcpy(x, "././@PaxHeader", 14);
        octal(x + 100, 7, 0644);
        seal(x);
        size_t pad = (BLOCK - b->pax % BLOCK) % BLOCK;
        memset(x + BLOCK + b->pax, 0, pad);
        b->len += BLOCK + b->pax + pad;
        b->pax = 0;
    }
    memcpy(b->at + b->len, h, BLOCK);
    b->len += BLOCK;
}

/* ---- nodes ---- */

static int mapped(const ls_idmap *map, size_t n, uint32_t id, uint32_t *out) {
    *out = id;
    if (n == 0)
        return 1;
    for (size_t i = 0; i < n; i++)
        if (id >= map[i].outside && id - map[i].outside < map[i].count) {
            *out = map[i].inside + (id - map[i].outside);
            return 1;
        }
    return 0;
}

/* A file capability of revision 3 names the root of the user namespace in which it was given: the
 * builder's. In the layer it is revision 2: of whatever namespace the layer is used in. */
static size_t capability(const uint8_t *value, size_t n, uint8_t *out) {
    if (n != CAP_V3 || value[3] != 3)
        return 0;
    memcpy(out, value, CAP_V2);
    out[3] = 2;
    return CAP_V2;
}

/* An xattr whose name no SCHILY.xattr record can hold. */
static void libarchive_record(builder *b, const uint8_t *name, size_t len, const uint8_t *value,
                              size_t size) {
    static const char hex[] = "0123456789ABCDEF";
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static const char prefix[] = "LIBARCHIVE.xattr.";
    char key[KEY_MAX];
    size_t n = sizeof prefix - 1, text = (size * 4 + 2) / 3;
    memcpy(key, prefix, n);
    for (size_t i = 0; i < len; i++) {
        uint8_t c = name[i];
        if (c > 32 && c < 127 && c != '%' && c != '=') {
            key[n++] = (char)c;
            continue;
        }
        key[n++] = '%';
        key[n++] = hex[c >> 4];
        key[n++] = hex[c & 15];
    }
    key[n] = 0;
    uint8_t *out = record_head(b, key, text);
    if (!out)
        return;
    for (size_t i = 0; i < size; i += 3) {
        size_t left = size - i;
        uint32_t v = (uint32_t)value[i] << 16;
        v |= left > 1 ? (uint32_t)value[i + 1] << 8 : 0;
        v |= left > 2 ? (uint32_t)value[i + 2] : 0;
        for (size_t k = 0; k < (left > 2 ? 4 : left + 1); k++)
            *out++ = (uint8_t)digits[v >> (18 - 6 * k) & 63];
    }
}

static int xattr_records(builder *b, const ls_node *node, const uint8_t *arena, size_t arena_size,
                         ls_error *err) {
    size_t at = node->xattr_off, end = at + node->xattr_len;
    if (end > arena_size)
        return ls_files_fail(err, LS_ESTATE, 0, "xattrs outside the arena");
    while (end - at >= 8) {
        uint32_t lengths[2];
        char key[KEY_MAX];
        uint8_t cap[CAP_V2];
        memcpy(lengths, arena + at, 8);
        const uint8_t *name = arena + at + 8, *value = name + lengths[0];
        if (lengths[0] > 255 || end - at - 8 < lengths[0] || end - at - 8 - lengths[0] < lengths[1])
            return ls_files_fail(err, LS_ESTATE, 0, "xattrs outside the arena");
        at += 8 + lengths[0] + lengths[1];
        if (ls_files_stays_here(name, lengths[0]))
            continue;
        if (memchr(name, '=', lengths[0])) {
            libarchive_record(b, name, lengths[0], value, lengths[1]);
            continue;
        }
        memcpy(key, "SCHILY.xattr.", 13);
        memcpy(key + 13, name, lengths[0]);
        key[13 + lengths[0]] = 0;
        size_t n = lengths[1];
        if (strcmp(key + 13, "security.capability") == 0) {
            size_t less = capability(value, n, cap);
            if (less) {
                value = cap;
                n = less;
            }
        }
        record(b, key, value, n);
    }
    return LS_OK;
}

/* ".wh." in front of the last component of a name, at `out`. */
static size_t whiteout_name(const uint8_t *name, size_t n, uint8_t *out) {
    size_t cut = n;
    while (cut > 0 && name[cut - 1] != '/')
        cut--;
    memcpy(out, name, cut);
    memcpy(out + cut, ".wh.", 4);
    memcpy(out + cut + 4, name + cut, n - cut);
    return n + 4;
}

static int in_arena(uint32_t off, uint32_t len, size_t size) {
    return off <= size && len <= size - off;
}

/* Writes the headers of a node to the scratch memory. */
static int node_head(ls_pack *p, const ls_node *node, const uint8_t *arena, size_t arena_size,
                     ls_error *err) {
    builder b = {p->scratch, 0, 0, 0};
    fields f;
    memset(&f, 0, sizeof f);
    f.suffix = "";
    p->left = 0;
    if (!in_arena(node->name_off, node->name_len, arena_size) ||
        !in_arena(node->link_off, node->link_len, arena_size))
        return ls_files_fail(err, LS_ESTATE, 0, "names outside the arena");
    f.name = arena + node->name_off;
    f.name_len = node->name_len;
    if (node->name_len > LS_WALK_PATH)
        return ls_files_fail(err, LS_ELIMIT, 0, "its path is too long");
    uint8_t *made = p->scratch + MADE_AT;
    if (node->flags & LS_NODE_WHITEOUT) {
        f.type = '0';
        f.name_len = whiteout_name(f.name, f.name_len, made);
        f.name = made;
        entry(&b, &f);
        p->head_len = b.len;
        p->head_at = 0;
        p->entries++;
        return LS_OK;
    }
    if (!mapped(p->uids, p->n_uids, node->uid, &f.uid) ||
        !mapped(p->gids, p->n_gids, node->gid, &f.gid))
        return ls_files_fail(err, LS_EINVALID, 0, "its owner is outside the uid and gid maps");
    f.mode = node->mode & 07777;
    f.sec = node->mtime_sec;
    f.nsec = node->mtime_nsec;
    if (p->clamp >= 0 && f.sec >= p->clamp) {
        f.sec = p->clamp;
        f.nsec = 0;
    }
    if (node->flags & LS_NODE_HARDLINK) {
        f.type = '1';
        f.link = arena + node->link_off;
        f.link_len = node->link_len;
    } else if (S_ISREG(node->mode)) {
        f.type = '0';
        f.size = node->size;
    } else if (S_ISDIR(node->mode)) {
        f.type = '5';
        f.suffix = "/";
        if (f.name_len == 0) {
            f.name = (const uint8_t *)".";
            f.name_len = 1;
        }
    } else if (S_ISLNK(node->mode)) {
        f.type = '2';
        f.link = arena + node->link_off;
        f.link_len = node->link_len;
        f.mode = 0777;
    } else if (S_ISCHR(node->mode) || S_ISBLK(node->mode)) {
        f.type = S_ISCHR(node->mode) ? '3' : '4';
        f.major = node->rdev_major;
        f.minor = node->rdev_minor;
    } else if (S_ISFIFO(node->mode)) {
        f.type = '6';
    } else {
        return ls_files_fail(err, LS_EINVALID, 0, "a tar has no such type of file");
    }
    if (f.type != '1') {
        int code = xattr_records(&b, node, arena, arena_size, err);
        if (code != LS_OK)
            return code;
    }
    entry(&b, &f);
    p->entries++;
    if (S_ISDIR(node->mode) && (node->flags & LS_NODE_OPAQUE)) {
        static const char opaque[] = ".wh..wh..opq";
        size_t n = node->name_len;
        memcpy(made, arena + node->name_off, n);
        if (n > 0)
            made[n++] = '/';
        memcpy(made + n, opaque, sizeof opaque - 1);
        fields o;
        memset(&o, 0, sizeof o);
        o.type = '0';
        o.suffix = "";
        o.name = made;
        o.name_len = n + sizeof opaque - 1;
        entry(&b, &o);
        p->entries++;
    }
    if (b.over)
        return ls_files_fail(err, LS_ELIMIT, 0, "its xattrs and names are more than 1 MiB");
    p->head_len = b.len;
    p->head_at = 0;
    if (f.type == '0')
        p->left = node->size;
    return LS_OK;
}

/* ---- contents ---- */

static int same_file(const ls_node *node, const struct stat *st) {
    /* No change of content, or of times, leaves the time of change alone. */
    return st->st_ino == node->ino && (uint64_t)st->st_size == node->size && S_ISREG(st->st_mode) &&
           st->st_ctim.tv_sec == node->ctime_sec && st->st_ctim.tv_nsec == node->ctime_nsec;
}

static int parent_of(ls_pack *p, const int *roots, uint32_t root, const char *path, size_t cut) {
    if (cut == 0)
        return roots[root];
    if (p->dir >= 0 && p->dir_root == root && p->dir_len == cut &&
        memcmp(p->dir_path, path, cut) == 0)
        return p->dir;
    if (p->dir >= 0)
        close(p->dir);
    p->dir = ls_files_open_at(roots[root], path, cut, O_PATH | O_DIRECTORY | O_CLOEXEC);
    p->dir_root = root;
    p->dir_len = 0;
    if (p->dir >= 0 && cut <= sizeof p->dir_path) {
        memcpy(p->dir_path, path, cut);
        p->dir_len = (uint32_t)cut;
    }
    return p->dir;
}

static int open_content(ls_pack *p, const int *roots, size_t n_roots, const ls_node *node,
                        const uint8_t *arena, size_t arena_size, ls_error *err) {
    if (node->root >= n_roots || !in_arena(node->path_off, node->path_len, arena_size))
        return ls_files_fail(err, LS_ESTATE, 0, "a path outside the arena");
    const char *path = (const char *)arena + node->path_off;
    size_t len = node->path_len, cut = len;
    char name[256];
    while (cut > 0 && path[cut - 1] != '/')
        cut--;
    if (len - cut >= sizeof name || len == cut)
        return ls_files_fail(err, LS_ESTATE, 0, "a path without a name");
    memcpy(name, path + cut, len - cut);
    name[len - cut] = 0;
    int dir = parent_of(p, roots, node->root, path, cut > 0 ? cut - 1 : 0);
    if (dir < 0)
        return ls_files_fail(err, LS_EOS, errno, "open");
    int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
    /* Reading does not change the tree, not even times of access, where that is ours to ask. */
    p->fd = openat(dir, name, p->no_noatime ? flags : flags | O_NOATIME);
    if (p->fd < 0 && errno == EPERM && !p->no_noatime) {
        p->fd = openat(dir, name, flags);
        p->no_noatime = p->fd >= 0;
    }
    if (p->fd < 0 && errno == ELOOP)
        return ls_files_fail(err, LS_ECHANGED, 0, "it became a symbolic link");
    if (p->fd < 0)
        return ls_files_fail(err, LS_EOS, errno, "open");
    struct stat st;
    if (fstat(p->fd, &st) != 0)
        return ls_files_fail(err, LS_EOS, errno, "stat");
    if (!same_file(node, &st))
        return ls_files_fail(err, LS_ECHANGED, 0, "it changed before it was read");
    return LS_OK;
}

/* Reads into out[*used, size); LS_OK also when the output is full and content is left. */
static int read_content(ls_pack *p, const ls_node *node, uint8_t *out, size_t size, size_t *used,
                        ls_error *err) {
    while (p->left > 0 && *used < size) {
        size_t room = size - *used;
        ssize_t n = read(p->fd, out + *used, room < p->left ? room : (size_t)p->left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ls_files_fail(err, LS_EOS, errno, "read");
        if (n == 0)
            return ls_files_fail(err, LS_ECHANGED, 0, "it became shorter while it was read");
        *used += (size_t)n;
        p->left -= (uint64_t)n;
    }
    if (p->left > 0)
        return LS_OK;
    struct stat st;
    if (fstat(p->fd, &st) != 0)
        return ls_files_fail(err, LS_EOS, errno, "stat");
    close(p->fd);
    p->fd = -1;
    if (!same_file(node, &st))
        return ls_files_fail(err, LS_ECHANGED, 0, "it changed while it was read");
    return LS_OK;
}

int ls_pack_feed(ls_pack *p, const int *roots, size_t n_roots, ls_node *nodes, size_t n,
                 const uint8_t *arena, size_t arena_size, uint8_t *out, size_t out_size,
                 ls_pack_out *res, ls_error *err) {
    int code = LS_OK;
    size_t at = 0;
    memset(res, 0, sizeof *res);
    if (p->state == PACK_FAILED)
        return ls_files_fail(err, LS_ESTATE, 0, "called again after an error");
    uint64_t start = p->offset;
    while (code == LS_OK) {
        ls_node *node = res->used < n ? &nodes[res->used] : NULL;
        if (!node)
            break;
        if (p->state == PACK_NODE) {
            if (node->flags & LS_NODE_SKIP) {
                res->used++;
                continue;
            }
            code = node_head(p, node, arena, arena_size, err);
            node->data_offset = start + at + p->head_len;
            p->state = PACK_HEAD;
        } else if (p->state == PACK_HEAD) {
            size_t some = p->head_len - p->head_at;
            if (some > out_size - at)
                some = out_size - at;
            memcpy(out + at, p->scratch + p->head_at, some);
            p->head_at += some;
            at += some;
            if (p->head_at < p->head_len)
                break;
            p->pad = (uint32_t)((BLOCK - p->left % BLOCK) % BLOCK);
            if (p->left == 0)
                p->state = PACK_PAD;
            else
                p->state = node->flags & LS_NODE_GIVEN ? PACK_GIVEN : PACK_OPEN;
        } else if (p->state == PACK_OPEN) {
            code = open_content(p, roots, n_roots, node, arena, arena_size, err);
            p->state = PACK_DATA;
        } else if (p->state == PACK_DATA) {
            code = read_content(p, node, out, out_size, &at, err);
            if (p->left > 0)
                break;
            p->state = PACK_PAD;
        } else if (p->state == PACK_GIVEN) {
            res->given = p->left;
            p->left = 0;
            p->state = PACK_PAD;
            break;
        } else {
            size_t some = p->pad < out_size - at ? p->pad : out_size - at;
            memset(out + at, 0, some);
            at += some;
            p->pad -= (uint32_t)some;
            if (p->pad > 0)
                break;
            p->state = PACK_NODE;
            res->used++;
        }
    }
    res->out_len = at;
    p->offset = start + at + res->given;
    res->offset = p->offset;
    res->entries = p->entries;
    if (code != LS_OK) {
        p->state = PACK_FAILED;
        ls_pack_close(p);
    }
    return code;
}
