/* tree_apply.c: libFuzzer target. Any bytes, taken as one to three layers (as tars, or as header streams
 * with marks), are a tree or are refused; every node that is listed has its directories; what is made
 * of it lies below the root, and what lies beside that stays as it was.
 *
 * The last three bytes of the input choose how many layers there are, windows, and how the tree is
 * planned. It works in a directory below TMPDIR, as `nobody` where it is started as root. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "layerstore.h"

#define MOST_BYTES (1u << 18)
#define MAX_NODES (1u << 16)
#define DEEP 100 /* directories; a target that is removed by descriptors cannot be deeper */
#define LISTED_AT_ONCE (LS_TREE_DEPTH + 2)
#define NOBODY 65534
#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static uint8_t scratch[LS_TREE_SCRATCH];
static char world[256];
static int outside = -1;
static struct stat was;
static uint32_t state;

static size_t below(size_t n) {
    state = state * 1664525u + 1013904223u;
    return (size_t)(state >> 8) % n;
}

static void *memory(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    CHECK(p);
    return p;
}

static void leave(void) {
    if (getuid() == 0)
        CHECK(seteuid(0) == 0);
    rmdir(world);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *base = getenv("TMPDIR");
    (void)argc;
    (void)argv;
    snprintf(world, sizeof world, "%s/layerstore-fuzz-XXXXXX", base ? base : "/tmp");
    CHECK(mkdtemp(world));
    if (geteuid() == 0) {
        CHECK(chown(world, NOBODY, NOBODY) == 0 && setegid(NOBODY) == 0 && seteuid(NOBODY) == 0);
    }
    /* Whoever has changed its user cannot be looked at by the leak checker any more. */
    CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
    atexit(leave);
    return 0;
}

static void wipe(int dir, const char *name) {
    if (unlinkat(dir, name, 0) == 0 || errno == ENOENT)
        return;
    fchmodat(dir, name, 0700, 0);
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    CHECK(fd >= 0);
    DIR *entries = fdopendir(dup(fd));
    CHECK(entries);
    for (struct dirent *e; (e = readdir(entries)) != NULL;)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            wipe(fd, e->d_name);
    closedir(entries);
    close(fd);
    CHECK(unlinkat(dir, name, AT_REMOVEDIR) == 0);
}

typedef struct forest {
    ls_tree *tree;
    ls_tree_mem mem;
    ls_tree_out out;
    ls_error err;
} forest;

static void more(forest *f) {
    if (f->out.need_nodes > f->mem.max_nodes) {
        ls_tree_node *nodes = memory(f->out.need_nodes, sizeof *nodes);
        memcpy(nodes, f->mem.nodes, f->mem.max_nodes * sizeof *nodes);
        free(f->mem.nodes);
        f->mem.nodes = nodes;
        uint32_t *seen = memory(f->out.need_nodes, sizeof *seen);
        memcpy(seen, f->mem.seen, f->mem.max_nodes * sizeof *seen);
        free(f->mem.seen);
        f->mem.seen = seen;
        f->mem.max_nodes = f->out.need_nodes;
    }
    if (f->out.need_arena > f->mem.arena_size) {
        uint8_t *arena = memory(f->out.need_arena, 1);
        memcpy(arena, f->mem.arena, f->mem.arena_size);
        free(f->mem.arena);
        f->mem.arena = arena;
        f->mem.arena_size = f->out.need_arena;
    }
    if (f->mem.max_nodes > f->mem.table_size) {
        free(f->mem.table);
        f->mem.table_size *= 4;
        f->mem.table = memory(f->mem.table_size, sizeof *f->mem.table);
        ls_tree_rehash(f->tree, &f->mem);
    }
}

/* Whether the layer is in the tree. */
static int add(forest *f, const uint8_t *data, size_t size, int split, const uint8_t *marks,
               size_t marks_size) {
    size_t at = 0;
    int code;
    CHECK(ls_tree_layer(f->tree, split, marks, marks_size, 1u << 20, &f->err) == LS_OK);
    for (;;) {
        size_t window = at == size ? 0 : 1 + below(size - at < 5000 ? size - at : 5000);
        uint8_t *copy = memory(window, 1);
        memcpy(copy, data + at, window);
        code = ls_tree_feed(f->tree, &f->mem, copy, window, window == 0, &f->out, &f->err);
        CHECK(f->out.used <= window);
        at += f->out.used;
        free(copy);
        if (code == LS_ESPACE)
            more(f);
        else if (code != LS_OK || window == 0)
            break;
    }
    while (code == LS_OK || code == LS_ESPACE) {
        code = ls_tree_apply(f->tree, &f->mem, &f->out, &f->err);
        if (code == LS_OK)
            return 1;
        if (code == LS_ESPACE)
            more(f);
        if (f->mem.max_nodes > MAX_NODES)
            return 0;
    }
    CHECK((code == LS_EINVALID || code == LS_ELIMIT) && f->err.reason[0]);
    uint8_t path[LS_TREE_PATH];
    CHECK(ls_tree_bad(f->tree, path, sizeof path) <= sizeof path);
    return 0;
}

static size_t list(forest *f, int kind, uint32_t *ids) {
    uint64_t cursor = 0;
    size_t n = 0, got;
    static uint32_t batch[LISTED_AT_ONCE];
    while ((got = ls_tree_list(f->tree, &f->mem, kind, &cursor, batch, LISTED_AT_ONCE)) > 0) {
        memcpy(ids + n, batch, got * sizeof *ids);
        n += got;
    }
    return n;
}

static void make(forest *f, const uint8_t *data, size_t size, uint32_t *ids, int upper) {
    int root = openat(AT_FDCWD, world, O_RDONLY | O_DIRECTORY);
    CHECK(root >= 0 && mkdirat(root, "out", 0700) == 0 && mkdirat(root, "beside", 0755) == 0);
    outside = openat(root, "beside", O_RDONLY | O_DIRECTORY);
    int target = openat(root, "out", O_RDONLY | O_DIRECTORY);
    CHECK(outside >= 0 && target >= 0 && fstat(outside, &was) == 0);
    ls_apply *a = memory(1, ls_apply_sizeof());
    ls_apply_out out;
    uint32_t flags = LS_APPLY_TRY | (state & 1 ? LS_APPLY_NO_OPENAT2 : 0) |
                     (upper ? LS_APPLY_UPPER | LS_APPLY_USER_XATTR : 0);
    ls_apply_init(a, f->tree, target, flags, 022, geteuid(), getegid(), NULL, 0, NULL, 0);
    size_t n = list(f, LS_LIST_DIRS, ids);
    CHECK(n > 0 && ids[0] == ls_tree_root(f->tree));
    int code = ls_apply_run(a, &f->mem, LS_MAKE_DIRS, ids, n, &out, &f->err);
    static const int kinds[][2] = {{LS_LIST_OTHERS, LS_MAKE_OTHERS},
                                   {LS_LIST_LINKS, LS_MAKE_LINKS}};
    for (int i = 0; i < 2 && code == LS_OK; i++) {
        n = list(f, LS_LIST_FILES, ids);
        if (i == 1 && n > 0)
            code = ls_apply_feed(a, &f->mem, ids, n, 0, data, size, &out, &f->err);
        n = list(f, kinds[i][0], ids);
        if (code == LS_OK)
            code = ls_apply_run(a, &f->mem, kinds[i][1], ids, n, &out, &f->err);
    }
    n = list(f, LS_LIST_FILES, ids);
    ls_seed *seeds = memory(n, sizeof *seeds);
    CHECK(ls_apply_seeds(a, &f->mem, ids, n, 1, INT64_MAX / 2, 0, seeds) <= n);
    free(seeds);
    CHECK(code == LS_OK || code == LS_ESYSTEM || code == LS_ESTATE);
    ls_apply_close(a);
    free(a);
    struct stat now;
    CHECK(fstat(outside, &now) == 0 && now.st_nlink == was.st_nlink && now.st_mode == was.st_mode &&
          now.st_ctim.tv_sec == was.st_ctim.tv_sec && now.st_ctim.tv_nsec == was.st_ctim.tv_nsec);
    size_t beside = 0;
    DIR *entries = fdopendir(dup(root));
    CHECK(entries);
    while (readdir(entries) != NULL)
        beside++;
    closedir(entries);
    CHECK(beside == 4); /* out, beside, and two dots */
    close(outside);
    close(target);
    wipe(root, "out");
    wipe(root, "beside");
    close(root);
}

static void look(forest *f, uint32_t *ids, int *deepest) {
    static uint8_t path[256 * (LS_TREE_DEPTH + 1)];
    for (int kind = LS_LIST_DIRS; kind <= LS_LIST_WHITEOUTS; kind++) {
        size_t n = list(f, kind, ids);
        for (size_t i = 0; i < n; i++) {
            const ls_tree_node *node = &f->mem.nodes[ids[i]];
            CHECK(node->name_len <= 255 && node->depth <= LS_TREE_DEPTH);
            if (node->depth > *deepest)
                *deepest = node->depth;
            size_t len = ls_tree_path(f->tree, &f->mem, ids[i], path, sizeof path);
            CHECK(len < sizeof path && memchr(path, 0, len) == NULL);
            if (kind != LS_LIST_WHITEOUTS)
                CHECK(ls_tree_find(f->tree, &f->mem, path, len) == ids[i]);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 3 || size > MOST_BYTES)
        return 0;
    unsigned layers = 1 + data[size - 1] % 3, how = data[size - 2];
    state = data[size - 3];
    size -= 3;
    forest f = {memory(1, ls_tree_sizeof()), {0}, {0}, {0}};
    f.mem.max_nodes = 1;
    f.mem.table_size = 4;
    f.mem.arena_size = 1;
    f.mem.nodes = memory(1, sizeof *f.mem.nodes);
    f.mem.arena = memory(1, 1);
    f.mem.table = memory(4, sizeof *f.mem.table);
    f.mem.seen = memory(1, sizeof *f.mem.seen);
    ls_tree_init(f.tree, &f.mem, scratch, 7);
    int sound = 1, split = how & 1, upper = how >> 1 & 1, deepest = 0;
    for (unsigned i = 0; i < layers && sound; i++) {
        size_t part = size / layers / 512 * 512, from = i * part;
        size_t len = i + 1 == layers ? size - from : part;
        sound = add(&f, data + from, len, split, data, split ? size / 3 : 0);
        ls_tree_plan plan;
        if (sound && f.mem.max_nodes <= MAX_NODES) {
            uint32_t *ids = memory(f.mem.max_nodes + LISTED_AT_ONCE, sizeof *ids);
            CHECK(ls_tree_finish(f.tree, &f.mem, upper, &plan) == LS_OK);
            look(&f, ids, &deepest);
            if (!split && i + 1 == layers && deepest < DEEP && plan.entries < 500)
                make(&f, data + from, len, ids, upper);
            free(ids);
        }
    }
    free(f.mem.nodes);
    free(f.mem.arena);
    free(f.mem.table);
    free(f.mem.seen);
    free(f.tree);
    return 0;
}
