/* walk.c: reads a tree of files, batch by batch.
 *
 * Pre-order, siblings sorted by the bytes of their names. Memory: the names of every directory on the
 * way down lie in the caller's stack memory as frames; nodes are made when their turn comes, so a
 * directory with a million files costs its names. Descriptors: one for each of the upper directories,
 * deeper ones are opened again from there, so that a deep tree does not use them up.
 *
 * A name is resolved against its directory's descriptor only. xattrs are read with listxattrat (Linux
 * 6.13), else through /proc/self/fd/N/NAME; without /proc, by opening files and directories (others
 * have then none).
 *
 * Fails with LS_EOS when a file vanishes or may not be read: a tree that changes has no layer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files_impl.h"

#define KEPT 48        /* depths that keep their descriptor */
#define LIST_MAX 65536 /* XATTR_LIST_MAX, and the largest value */
#define DENTS 32768
#define NAME_MAX_BYTES 255

/* One name of a frame. `key` is its first eight bytes, so that most comparisons touch nothing else. */
typedef struct walk_name {
    uint64_t key;
    uint32_t at; /* in the frame's bytes of names */
    uint32_t len;
} walk_name;

/* A frame of the stack memory: header, sorted names, bytes of names. */
typedef struct walk_frame {
    uint64_t prev;  /* where the frame below begins */
    uint64_t end;   /* first byte behind this frame */
    uint64_t bytes; /* where the bytes of names begin */
    uint32_t n;
    uint32_t next;
    uint32_t path_len; /* of the directory */
    uint32_t reserved;
} walk_frame;

struct ls_walk {
    int root;
    uint32_t options;
    int fds[KEPT]; /* of the directories at depth 0.. */
    int deep;      /* of the directory at hand, when it is deeper */
    uint32_t depth;
    uint64_t top; /* the frame at hand */
    uint8_t started, descend, prune, finished, no_at, no_proc;
    uint32_t path_len;  /* of the node made last */
    uint32_t node_mode; /* of it */
    char path[LS_WALK_PATH];
    char list[LIST_MAX];
    char name[64 + NAME_MAX_BYTES + 1];
    uint8_t dents[DENTS];
};

/* The kernel's record. */
typedef struct walk_dirent {
    uint64_t ino;
    int64_t off;
    uint16_t reclen;
    uint8_t type;
    char name[];
} walk_dirent;

size_t ls_walk_sizeof(void) {
    return sizeof(ls_walk);
}

void ls_walk_init(ls_walk *w, int root_fd, uint32_t options) {
    memset(w, 0, offsetof(ls_walk, path));
    w->root = root_fd;
    w->options = options;
    w->deep = -1;
    for (size_t i = 0; i < KEPT; i++)
        w->fds[i] = -1;
    w->no_at = (options & LS_WALK_NO_AT) != 0;
    w->no_proc = (options & LS_WALK_NO_PROC) || access("/proc/self/fd", X_OK) != 0;
}

void ls_walk_close(ls_walk *w) {
    for (size_t i = 0; i < KEPT; i++) {
        if (w->fds[i] >= 0)
            close(w->fds[i]);
        w->fds[i] = -1;
    }
    if (w->deep >= 0)
        close(w->deep);
    w->deep = -1;
    w->finished = 1;
}

void ls_walk_prune(ls_walk *w) {
    w->prune = 1;
}

/* ---- names ---- */

static uint64_t name_key(const uint8_t *p, size_t n) {
    uint64_t key = 0;
    for (size_t i = 0; i < 8; i++)
        key = key << 8 | (i < n ? p[i] : 0);
    return key;
}

static int name_less(const walk_name *a, const walk_name *b, const uint8_t *bytes) {
    if (a->key != b->key)
        return a->key < b->key;
    uint32_t n = a->len < b->len ? a->len : b->len;
    int c = memcmp(bytes + a->at, bytes + b->at, n);
    return c != 0 ? c < 0 : a->len < b->len;
}

/* Merge sort, bottom up; `spare` has room for n. Returns where the result is. */
static walk_name *sort_names(walk_name *a, walk_name *spare, size_t n, const uint8_t *bytes) {
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = lo + width < n ? lo + width : n;
            size_t hi = lo + 2 * width < n ? lo + 2 * width : n;
            size_t i = lo, j = mid, k = lo;
            while (i < mid && j < hi)
                spare[k++] = name_less(&a[j], &a[i], bytes) ? a[j++] : a[i++];
            while (i < mid)
                spare[k++] = a[i++];
            while (j < hi)
                spare[k++] = a[j++];
        }
        walk_name *t = a;
        a = spare;
        spare = t;
    }
    return a;
}

static uint64_t aligned(uint64_t n) {
    return (n + 7) & ~(uint64_t)7;
}

/* Reads the directory `fd` into a new frame. While it is read, bytes grow from the bottom and names
 * wait at the top; then the names are sorted in between. */
static int read_frame(ls_walk *w, int fd, uint8_t *stack, size_t size, ls_walk_out *out,
                      ls_error *err) {
    uint64_t begin = w->started ? ((walk_frame *)(void *)(stack + w->top))->end : 0;
    uint64_t bytes_at = begin + sizeof(walk_frame);
    uint64_t limit = size & ~(uint64_t)7;
    uint64_t used = 0, n = 0;
    if (lseek(fd, 0, SEEK_SET) < 0)
        return ls_files_fail(err, LS_EOS, errno, "lseek");
    for (;;) {
        long got = syscall(SYS_getdents64, fd, w->dents, sizeof w->dents);
        if (got < 0)
            return ls_files_fail(err, LS_EOS, errno, "getdents64");
        if (got == 0)
            break;
        for (long at = 0; at < got;) {
            const walk_dirent *d = (const walk_dirent *)(const void *)(w->dents + at);
            at += d->reclen;
            size_t len = strlen(d->name);
            if (len == 0 || (d->name[0] == '.' && (len == 1 || (len == 2 && d->name[1] == '.'))))
                continue;
            /* Bytes below, then room to sort: two arrays of names. */
            uint64_t want = bytes_at + aligned(used + len) + 2 * (n + 1) * sizeof(walk_name);
            if (want > limit || used + len > UINT32_MAX || n == UINT32_MAX) {
                out->need = (size_t)(2 * want);
                return ls_files_fail(err, LS_ESPACE, 0, "the stack is too small for a directory");
            }
            memcpy(stack + bytes_at + used, d->name, len);
            n++;
            walk_name *name = (walk_name *)(void *)(stack + limit) - n;
            name->key = name_key((const uint8_t *)d->name, len);
            name->at = (uint32_t)used;
            name->len = (uint32_t)len;
            used += len;
        }
    }
    const uint8_t *bytes = stack + bytes_at;
    walk_name *names = (walk_name *)(void *)(stack + limit) - n;
    walk_name *place = (walk_name *)(void *)(stack + bytes_at + aligned(used));
    const walk_name *sorted = sort_names(names, place, (size_t)n, bytes);
    if (sorted != place && n > 0)
        memcpy(place, sorted, (size_t)n * sizeof *place);
    walk_frame *f = (walk_frame *)(void *)(stack + begin);
    f->prev = w->top;
    f->bytes = bytes_at;
    f->end = bytes_at + aligned(used) + n * sizeof(walk_name);
    f->n = (uint32_t)n;
    f->next = 0;
    f->path_len = w->path_len;
    f->reserved = 0;
    w->top = begin;
    return LS_OK;
}

/* ---- descriptors ---- */

/* The descriptor of the directory at depth `d`, which is on the path; -1 and errno otherwise. */
static int directory(ls_walk *w, uint32_t d, uint32_t path_len) {
    if (d == 0)
        return w->root;
    if (d < KEPT && w->fds[d] >= 0)
        return w->fds[d];
    if (d >= KEPT && w->deep >= 0)
        return w->deep;
    /* From the deepest directory that is open. */
    uint32_t from = d < KEPT ? d - 1 : KEPT - 1;
    while (from > 0 && w->fds[from] < 0)
        from--;
    size_t skip = 0;
    for (uint32_t i = 0; i < from; i++) {
        while (w->path[skip] != '/')
            skip++;
        skip++;
    }
    int base = from == 0 ? w->root : w->fds[from];
    int fd = ls_files_open_at(base, w->path + skip, path_len - skip,
                              O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -1;
    if (d < KEPT)
        w->fds[d] = fd;
    else
        w->deep = fd;
    return fd;
}

static void leave(ls_walk *w, uint32_t d) {
    int *fd = d < KEPT ? &w->fds[d] : &w->deep;
    if (d > 0 && *fd >= 0)
        close(*fd);
    if (d > 0)
        *fd = -1;
}

/* ---- xattrs ---- */

/* What overlayfs (trusted, or user with "userxattr") and fuse-overlayfs note on files. A value of "x"
 * for opaque says that whiteouts may be xattrs, not that the directory is opaque. */
static uint32_t mark_of(const char *name, const uint8_t *value, size_t n, uint32_t mode) {
    static const char *const prefixes[] = {"trusted.overlay.", "user.overlay.",
                                           "user.fuseoverlayfs."};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        size_t len = strlen(prefixes[i]);
        if (strncmp(name, prefixes[i], len) != 0)
            continue;
        const char *what = name + len;
        if (strcmp(what, "opaque") == 0)
            return S_ISDIR(mode) && n == 1 && value[0] == 'y' ? LS_NODE_OPAQUE : 0;
        if (strcmp(what, "redirect") == 0)
            return LS_NODE_REDIRECT;
        if (strcmp(what, "metacopy") == 0)
            return S_ISREG(mode) ? LS_NODE_METACOPY : 0;
        if (strcmp(what, "nlink") == 0)
            return S_ISDIR(mode) ? 0 : LS_NODE_INDEXED;
        if (strcmp(what, "whiteout") == 0)
            return S_ISREG(mode) ? LS_NODE_WHITEOUT : 0;
        return 0;
    }
    return 0;
}

/* How the xattrs of the node at hand are reached. */
typedef struct source {
    const char *path; /* through /proc, or NULL */
    const char *name; /* in the directory `fd`, or NULL */
    int fd;           /* else this */
} source;

/* The same numbers on every machine, and younger than most headers. */
#define NR_GETXATTRAT 464
#define NR_LISTXATTRAT 465

/* As in linux/xattr.h. */
struct xattr_value {
    uint64_t value;
    uint32_t size;
    uint32_t flags;
};

static ssize_t list_of(const source *s, char *list, size_t size) {
    if (s->name)
        return (ssize_t)syscall(NR_LISTXATTRAT, s->fd, s->name, AT_SYMLINK_NOFOLLOW, list, size);
    return s->path ? llistxattr(s->path, list, size) : flistxattr(s->fd, list, size);
}

static ssize_t value_of(const source *s, const char *name, void *value, size_t size) {
    if (s->name) {
        struct xattr_value v = {(uint64_t)(uintptr_t)value,
                                (uint32_t)(size < LIST_MAX ? size : LIST_MAX), 0};
        return (ssize_t)syscall(NR_GETXATTRAT, s->fd, s->name, AT_SYMLINK_NOFOLLOW, name, &v,
                                sizeof v);
    }
    return s->path ? lgetxattr(s->path, name, value, size) : fgetxattr(s->fd, name, value, size);
}

/* Appends the xattrs to the arena, sorted by name. LS_ESPACE: no room. */
static int add_xattrs(ls_walk *w, const source *s, ls_node *node, uint8_t *arena, size_t size,
                      size_t *used, ls_error *err) {
    ssize_t got = list_of(s, w->list, sizeof w->list);
    if (got < 0 && (errno == ENOTSUP || errno == ENODATA))
        got = 0;
    if (got < 0)
        return ls_files_fail(err, LS_EOS, errno, "listxattr");
    if (got == 0)
        return LS_OK;
    node->xattr_off = (uint32_t)*used;
    const char *last = NULL, *end = w->list + got;
    for (;;) {
        /* The smallest name above the last one: lists are short. */
        const char *name = NULL;
        for (const char *p = w->list; p < end; p += strlen(p) + 1)
            if ((!last || strcmp(p, last) > 0) && (!name || strcmp(p, name) < 0))
                name = p;
        if (!name)
            break;
        last = name;
        size_t n = strlen(name);
        if (size - *used < 8 + n)
            return LS_ESPACE;
        uint8_t *at = arena + *used;
        size_t room = size - *used - 8 - n;
        ssize_t v = value_of(s, name, at + 8 + n, room);
        if (v == 0 && room == 0)
            v = value_of(s, name, NULL, 0) == 0 ? 0 : -2;
        if (v == -2 || (v < 0 && errno == ERANGE))
            return LS_ESPACE;
        if (v < 0 && errno == ENODATA)
            return ls_files_fail(err, LS_ECHANGED, 0, "its xattrs changed while they were read");
        if (v < 0)
            return ls_files_fail(err, LS_EOS, errno, "getxattr");
        uint32_t lengths[2] = {(uint32_t)n, (uint32_t)v};
        memcpy(at, lengths, 8);
        memcpy(at + 8, name, n);
        if (w->options & LS_WALK_OVERLAY)
            node->flags |= mark_of(name, at + 8 + n, (size_t)v, node->mode);
        *used += 8 + n + (size_t)v;
    }
    node->xattr_len = (uint32_t)*used - node->xattr_off;
    return LS_OK;
}

/* ---- nodes ---- */

static int xattrs(ls_walk *w, int dir, const char *name, ls_node *node, uint8_t *arena, size_t size,
                  size_t *used, ls_error *err) {
    source s = {NULL, NULL, dir};
    int opened = -1;
    if (name && !w->no_at) {
        s.name = name;
        int code = add_xattrs(w, &s, node, arena, size, used, err);
        if (code != LS_EOS || (err->offset != ENOSYS && err->offset != EPERM))
            return code;
        /* An older kernel, or a filter of system calls that is older. */
        w->no_at = 1;
        s.name = NULL;
    }
    if (name && !w->no_proc) {
        s.path = ls_files_proc(w->name, dir, name);
    } else if (name) {
        if (!S_ISREG(node->mode) && !S_ISDIR(node->mode))
            return LS_OK;
        opened = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        if (opened < 0)
            return ls_files_fail(err, LS_EOS, errno, "open");
        s.fd = opened;
    }
    int code = add_xattrs(w, &s, node, arena, size, used, err);
    if (opened >= 0)
        close(opened);
    return code;
}

/* Makes the node of `name` in `dir` (NULL: `dir` itself). w->path holds its path. */
static int make_node(ls_walk *w, int dir, const char *name, size_t name_len, uint32_t depth,
                     ls_node *node, uint8_t *arena, size_t size, size_t *used, ls_error *err) {
    struct statx st;
    memset(node, 0, sizeof *node);
    if (size - *used < w->path_len)
        return LS_ESPACE;
    if (statx(dir, name ? name : "",
              AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (name ? 0 : AT_EMPTY_PATH), STATX_BASIC_STATS,
              &st) != 0)
        return ls_files_fail(err, LS_EOS, errno, "stat");
    node->path_off = node->name_off = (uint32_t)*used;
    node->path_len = node->name_len = w->path_len;
    memcpy(arena + *used, w->path, w->path_len);
    *used += w->path_len;
    node->ino = st.stx_ino;
    node->size = S_ISREG(st.stx_mode) ? st.stx_size : 0;
    node->mtime_sec = st.stx_mtime.tv_sec;
    node->mtime_nsec = st.stx_mtime.tv_nsec;
    node->ctime_sec = st.stx_ctime.tv_sec;
    node->ctime_nsec = st.stx_ctime.tv_nsec;
    node->mode = st.stx_mode;
    node->uid = st.stx_uid;
    node->gid = st.stx_gid;
    node->nlink = st.stx_nlink;
    node->dev_major = st.stx_dev_major;
    node->dev_minor = st.stx_dev_minor;
    node->depth = depth;
    if (S_ISCHR(st.stx_mode) || S_ISBLK(st.stx_mode)) {
        node->rdev_major = st.stx_rdev_major;
        node->rdev_minor = st.stx_rdev_minor;
    }
    if (!S_ISDIR(st.stx_mode) && st.stx_nlink > 1)
        node->flags |= LS_NODE_LINKED;
    if (S_ISSOCK(st.stx_mode))
        node->flags |= LS_NODE_SOCKET;
    if (name_len >= 4 && memcmp(name, ".wh.", 4) == 0)
        node->flags |= LS_NODE_RESERVED;
    if (w->options & LS_WALK_BARE)
        return LS_OK;
    if (S_ISLNK(st.stx_mode)) {
        size_t room = size - *used;
        if (room < LIST_MAX)
            return LS_ESPACE;
        ssize_t n = readlinkat(dir, name, (char *)arena + *used, room);
        if (n < 0)
            return ls_files_fail(err, LS_EOS, errno, "readlink");
        node->link_off = (uint32_t)*used;
        node->link_len = (uint32_t)n;
        *used += (size_t)n;
    }
    int overlay = (w->options & LS_WALK_OVERLAY) != 0;
    if (overlay && S_ISCHR(st.stx_mode) && st.stx_rdev_major == 0 && st.stx_rdev_minor == 0) {
        /* Whatever else it carries: nobody sees it. A whiteout may have many links. */
        node->flags = (node->flags & LS_NODE_RESERVED) | LS_NODE_WHITEOUT;
        return LS_OK;
    }
    int code = xattrs(w, dir, name, node, arena, size, used, err);
    if (code != LS_OK)
        return code;
    if (node->flags & LS_NODE_WHITEOUT)
        node->flags = st.stx_size == 0 ? (node->flags & LS_NODE_RESERVED) | LS_NODE_WHITEOUT
                                       : node->flags & ~(uint32_t)LS_NODE_WHITEOUT;
    return LS_OK;
}

/* The path of the node that cannot be made, into the arena (its start, if it has to be). */
static void name_it(const ls_walk *w, uint8_t *arena, size_t size, ls_walk_out *out) {
    size_t at = size - out->arena_used >= w->path_len ? out->arena_used : 0;
    size_t n = w->path_len < size - at ? w->path_len : size - at;
    memcpy(arena + at, w->path, n);
    out->path_off = (uint32_t)at;
    out->path_len = (uint32_t)n;
}

static int root_node(ls_walk *w, ls_node *nodes, uint8_t *arena, size_t size, ls_walk_out *out,
                     ls_error *err) {
    int code = make_node(w, w->root, NULL, 0, 0, &nodes[0], arena, size, &out->arena_used, err);
    if (code != LS_OK)
        return code;
    if (!S_ISDIR(nodes[0].mode))
        return ls_files_fail(err, LS_EOS, ENOTDIR, "walk");
    w->node_mode = nodes[0].mode;
    w->descend = 1;
    out->n_nodes = 1;
    return LS_OK;
}

/* Goes down into the node made last, if it is a directory. */
static int go_down(ls_walk *w, uint8_t *stack, size_t size, ls_walk_out *out, ls_error *err) {
    uint32_t depth = w->started ? w->depth + 1 : 0;
    if (w->started && depth > KEPT)
        leave(w, w->depth);
    int fd = directory(w, depth, w->path_len);
    if (fd < 0)
        return ls_files_fail(err, LS_EOS, errno, "open");
    int code = read_frame(w, fd, stack, size, out, err);
    if (code != LS_OK) {
        leave(w, depth);
        return code;
    }
    w->descend = 0;
    w->started = 1;
    w->depth = depth;
    return LS_OK;
}

static int next_node(ls_walk *w, uint8_t *stack, ls_node *node, uint8_t *arena, size_t size,
                     size_t *used, ls_error *err) {
    walk_frame *f = (walk_frame *)(void *)(stack + w->top);
    const walk_name *names = (const walk_name *)(const void *)(stack + f->end) - f->n;
    const walk_name *name = &names[f->next];
    char text[NAME_MAX_BYTES + 1];
    uint32_t before = f->path_len;
    if (name->len > NAME_MAX_BYTES || before + 1 + name->len > LS_WALK_PATH) {
        w->path_len = before;
        return ls_files_fail(err, LS_ELIMIT, 0, "a path below it is too long");
    }
    memcpy(text, stack + f->bytes + name->at, name->len);
    text[name->len] = 0;
    w->path_len = before;
    if (before > 0)
        w->path[w->path_len++] = '/';
    memcpy(w->path + w->path_len, text, name->len);
    w->path_len += name->len;
    int dir = directory(w, w->depth, before);
    if (dir < 0)
        return ls_files_fail(err, LS_EOS, errno, "open");
    size_t start = *used;
    int code = make_node(w, dir, text, name->len, w->depth + 1, node, arena, size, used, err);
    if (code != LS_OK) {
        *used = start;
        return code;
    }
    f->next++;
    w->node_mode = node->mode;
    w->descend = S_ISDIR(node->mode) && !(w->options & LS_WALK_FLAT);
    return LS_OK;
}

int ls_walk_next(ls_walk *w, uint8_t *stack, size_t stack_size, uint32_t stop, ls_node *nodes,
                 size_t max_nodes, uint8_t *arena, size_t arena_size, ls_walk_out *out,
                 ls_error *err) {
    int code = LS_OK;
    memset(out, 0, sizeof *out);
    if (max_nodes == 0 || arena_size > UINT32_MAX)
        return ls_files_fail(err, LS_ESTATE, 0, "no room for nodes, or too much");
    if (!w->started && !w->descend && !w->finished) {
        code = root_node(w, nodes, arena, arena_size, out, err);
        if (code == LS_OK && (nodes[0].flags & stop))
            return LS_OK;
    }
    if (w->prune && w->started)
        w->descend = 0;
    w->prune = 0;
    while (code == LS_OK && !w->finished && out->n_nodes < max_nodes) {
        if (w->descend) {
            code = go_down(w, stack, stack_size, out, err);
            continue;
        }
        walk_frame *f = (walk_frame *)(void *)(stack + w->top);
        if (f->next == f->n) {
            leave(w, w->depth);
            if (w->depth == 0) {
                w->finished = 1;
                break;
            }
            w->depth--;
            w->top = f->prev;
            continue;
        }
        code = next_node(w, stack, &nodes[out->n_nodes], arena, arena_size, &out->arena_used, err);
        if (code == LS_OK && (nodes[out->n_nodes++].flags & stop))
            break;
    }
    out->done = w->finished;
    if (code == LS_ESPACE && out->n_nodes > 0)
        code = LS_OK; /* what there is goes out first */
    else if (code == LS_ESPACE && out->need == 0)
        ls_files_fail(err, LS_ESPACE, 0, "the arena is too small for a node");
    if (code == LS_EOS || code == LS_ELIMIT || code == LS_ECHANGED)
        name_it(w, arena, arena_size, out);
    return code;
}

int ls_walk_look(ls_walk *w, const char *path, size_t len, ls_node *node, uint8_t *arena,
                 size_t arena_size, ls_walk_out *out, ls_error *err) {
    char name[NAME_MAX_BYTES + 1];
    size_t cut = len;
    memset(out, 0, sizeof *out);
    if (len > LS_WALK_PATH || arena_size > UINT32_MAX)
        return ls_files_fail(err, LS_ELIMIT, 0, "its path is too long");
    memcpy(w->path, path, len);
    w->path_len = (uint32_t)len;
    while (cut > 0 && path[cut - 1] != '/')
        cut--;
    if (len - cut > NAME_MAX_BYTES)
        return ls_files_fail(err, LS_EOS, ENAMETOOLONG, "stat");
    memcpy(name, path + cut, len - cut);
    name[len - cut] = 0;
    int dir = w->root;
    if (cut > 0)
        dir = ls_files_open_at(w->root, path, cut - 1, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return ls_files_fail(err, LS_EOS, errno == ELOOP ? ENOTDIR : errno, "open");
    int code = make_node(w, dir, len > 0 ? name : NULL, len - cut, 0, node, arena, arena_size,
                         &out->arena_used, err);
    if (dir != w->root)
        close(dir);
    if (code == LS_ESPACE)
        ls_files_fail(err, LS_ESPACE, 0, "the arena is too small for a node");
    return code;
}
