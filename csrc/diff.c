/* diff.c: two walks side by side.
 *
 * Both come in the order of ls_walk: a name before what lies below it, siblings by bytes; so one pass
 * over each is enough and nothing is kept but the path of a directory that is gone, whose contents
 * need no whiteouts of their own (image-spec layer.md).
 */
#include <string.h>
#include <sys/stat.h>

#include "files_impl.h"

#define DEPTHS 512
#define STASH 131072

/* A directory on the way down that is the same in both trees. Once something in it is written, it is
 * written too: whoever applies the layer changes its times otherwise. */
typedef struct parent {
    ls_node node;
    uint32_t at; /* of its xattrs, in the stash */
    uint32_t written;
} parent;

struct ls_diff {
    uint32_t options;
    uint32_t n_parents;
    uint32_t stash_used;
    parent parents[DEPTHS];
    uint8_t stash[STASH];
    uint32_t gone_len; /* what lies below this path of the old tree is gone with it */
    uint8_t gone[LS_WALK_PATH];
};

size_t ls_diff_sizeof(void) {
    return sizeof(ls_diff);
}

void ls_diff_init(ls_diff *d, uint32_t options) {
    d->options = options;
    d->gone_len = d->n_parents = d->stash_used = 0;
}

/* The order of the walk: '/' sorts before every other byte, and the end before it. */
static int compare_paths(const uint8_t *a, size_t na, const uint8_t *b, size_t nb) {
    size_t n = na < nb ? na : nb, i = 0;
    while (i < n && a[i] == b[i])
        i++;
    if (i == n)
        return na == nb ? 0 : na < nb ? -1 : 1;
    int x = a[i] == '/' ? 0 : a[i], y = b[i] == '/' ? 0 : b[i];
    return x < y ? -1 : 1;
}

/* The next xattr that a layer would have; 0 at the end. */
static size_t next_xattr(const uint8_t *arena, size_t at, size_t end, size_t *size) {
    while (end - at >= 8) {
        uint32_t lengths[2];
        memcpy(lengths, arena + at, 8);
        *size = 8 + (size_t)lengths[0] + lengths[1];
        if (*size > end - at)
            return 0;
        if (!ls_files_stays_here(arena + at + 8, lengths[0]))
            return at + 1;
        at += *size;
    }
    return 0;
}

static int same_xattrs(const ls_node *a, const uint8_t *arena_a, const ls_node *b,
                       const uint8_t *arena_b) {
    size_t i = a->xattr_off, end_i = i + a->xattr_len, j = b->xattr_off, end_j = j + b->xattr_len;
    if (a->xattr_len == b->xattr_len && memcmp(arena_a + i, arena_b + j, a->xattr_len) == 0)
        return 1;
    for (;;) {
        size_t n = 0, m = 0;
        size_t x = next_xattr(arena_a, i, end_i, &n), y = next_xattr(arena_b, j, end_j, &m);
        if (x == 0 || y == 0)
            return x == y;
        if (n != m || memcmp(arena_a + x - 1, arena_b + y - 1, n) != 0)
            return 0;
        i = x - 1 + n;
        j = y - 1 + m;
    }
}

static int same(const ls_node *a, const uint8_t *arena_a, const ls_node *b,
                const uint8_t *arena_b) {
    return a->mode == b->mode && a->uid == b->uid && a->gid == b->gid && a->size == b->size &&
           a->mtime_sec == b->mtime_sec && a->mtime_nsec == b->mtime_nsec &&
           a->rdev_major == b->rdev_major && a->rdev_minor == b->rdev_minor &&
           a->link_len == b->link_len &&
           memcmp(arena_a + a->link_off, arena_b + b->link_off, a->link_len) == 0 &&
           same_xattrs(a, arena_a, b, arena_b);
}

/* Copies a string; the caller made sure of the room. */
static uint32_t copy(uint8_t *arena, size_t *used, const uint8_t *from, uint32_t len) {
    uint32_t at = (uint32_t)*used;
    memcpy(arena + at, from, len);
    *used += len;
    return at;
}

/* A node with its strings into the output; 0 if there is no room. */
static int put(ls_diff_out *res, ls_node *out, uint8_t *arena, size_t size, const ls_node *node,
               const uint8_t *from, uint32_t flags, int bare) {
    size_t need = node->path_len;
    if (!bare)
        need += (size_t)node->link_len + node->xattr_len;
    if (size - res->arena_used < need)
        return 0;
    ls_node *to = &out[res->n_nodes++];
    *to = *node;
    to->flags = flags;
    to->path_off = to->name_off =
        copy(arena, &res->arena_used, from + node->path_off, node->path_len);
    if (bare) {
        to->link_off = to->link_len = to->xattr_off = to->xattr_len = 0;
        return 1;
    }
    to->link_off = copy(arena, &res->arena_used, from + node->link_off, node->link_len);
    to->xattr_off = copy(arena, &res->arena_used, from + node->xattr_off, node->xattr_len);
    return 1;
}

/* Forgets the directories that a node at `depth` is not in. */
static void climb(ls_diff *d, uint32_t depth) {
    while (d->n_parents > 0 && d->parents[d->n_parents - 1].node.depth >= depth)
        d->stash_used = d->parents[--d->n_parents].at;
}

/* 0: there is no room to remember it. */
static int remember(ls_diff *d, const ls_node *node, const uint8_t *arena) {
    if (d->n_parents == DEPTHS || node->xattr_len > STASH - d->stash_used)
        return 0;
    parent *p = &d->parents[d->n_parents++];
    p->node = *node;
    p->at = d->stash_used;
    p->written = 0;
    memcpy(d->stash + p->at, arena + node->xattr_off, node->xattr_len);
    d->stash_used += node->xattr_len;
    return 1;
}

/* The directory that has to be written before a node at `depth`, if there is one. */
static parent *waiting(ls_diff *d, uint32_t depth) {
    climb(d, depth);
    parent *p = d->n_parents > 0 ? &d->parents[d->n_parents - 1] : NULL;
    return p && !p->written && p->node.depth + 1 == depth ? p : NULL;
}

/* Its path is the beginning of `path`. */
static int put_parent(const ls_diff *d, parent *p, const uint8_t *path, ls_diff_out *res,
                      ls_node *out, uint8_t *arena, size_t size) {
    if (size - res->arena_used < (size_t)p->node.path_len + p->node.xattr_len)
        return 0;
    ls_node *to = &out[res->n_nodes++];
    *to = p->node;
    to->flags = to->link_off = to->link_len = 0;
    to->path_off = to->name_off = copy(arena, &res->arena_used, path, p->node.path_len);
    to->xattr_off = copy(arena, &res->arena_used, d->stash + p->at, p->node.xattr_len);
    p->written = 1;
    return 1;
}

static int below_gone(const ls_diff *d, const uint8_t *path, size_t n) {
    return d->gone_len > 0 && n > d->gone_len && path[d->gone_len] == '/' &&
           memcmp(path, d->gone, d->gone_len) == 0;
}

static void is_gone(ls_diff *d, const ls_node *node, const uint8_t *path) {
    d->gone_len = 0;
    if (S_ISDIR(node->mode) && node->path_len <= LS_WALK_PATH) {
        memcpy(d->gone, path, node->path_len);
        d->gone_len = node->path_len;
    }
}

int ls_diff_feed(ls_diff *d, const ls_node *old_nodes, size_t n_old, const uint8_t *old_arena,
                 int old_done, const ls_node *new_nodes, size_t n_new, const uint8_t *new_arena,
                 int new_done, ls_node *out, size_t max_out, uint8_t *arena, size_t arena_size,
                 ls_diff_out *res, ls_error *err) {
    int room = 1;
    memset(res, 0, sizeof *res);
    while (room && res->n_nodes < max_out) {
        const ls_node *a = res->old_used < n_old ? &old_nodes[res->old_used] : NULL;
        const ls_node *b = res->new_used < n_new ? &new_nodes[res->new_used] : NULL;
        const uint8_t *path = a ? old_arena + a->path_off : NULL;
        if (a && below_gone(d, path, a->path_len)) {
            res->old_used++;
            continue;
        }
        if ((!a && !old_done) || (!b && !new_done) || (!a && !b))
            break;
        int order = !a   ? 1
                    : !b ? -1
                         : compare_paths(path, a->path_len, new_arena + b->name_off, b->name_len);
        if (order < 0) {
            /* A socket was in no layer. */
            int whiteout = !(a->flags & LS_NODE_SOCKET);
            parent *up = whiteout ? waiting(d, a->depth) : NULL;
            if (up) {
                room = put_parent(d, up, path, res, out, arena, arena_size);
                continue;
            }
            if (whiteout)
                room = put(res, out, arena, arena_size, a, old_arena,
                           LS_NODE_WHITEOUT | (a->flags & LS_NODE_RESERVED), 1);
            if (room) {
                is_gone(d, a, path);
                res->old_used++;
            }
            continue;
        }
        uint32_t flags = b->flags;
        int wanted = 1;
        climb(d, b->depth);
        if (order == 0 && same(a, old_arena, b, new_arena)) {
            int kept = S_ISDIR(b->mode) && remember(d, b, new_arena);
            wanted = (S_ISDIR(b->mode) && !kept) || ((a->flags | flags) & LS_NODE_LINKED) ||
                     ((d->options & LS_DIFF_CONTENT) && S_ISREG(b->mode) && b->size > 0);
            if (!S_ISDIR(b->mode))
                flags |= LS_NODE_SAME | (a->flags & LS_NODE_LINKED);
        } else if (order == 0 && (flags & LS_NODE_SOCKET)) {
            flags |= LS_NODE_WHITEOUT; /* what it took the place of is gone */
        }
        parent *up =
            wanted && !(flags & (LS_NODE_SAME | LS_NODE_SOCKET)) ? waiting(d, b->depth) : NULL;
        if (up) {
            room = put_parent(d, up, new_arena + b->name_off, res, out, arena, arena_size);
            continue;
        }
        if (wanted && !(flags & LS_NODE_SAME && flags & LS_NODE_SOCKET)) {
            room = put(res, out, arena, arena_size, b, new_arena, flags, 0);
            if (room && flags & LS_NODE_SAME)
                out[res->n_nodes - 1].data_offset = a->ino;
        }
        if (room) {
            if (order == 0) {
                if (!S_ISDIR(b->mode))
                    is_gone(d, a, path);
                res->old_used++;
            }
            res->new_used++;
        }
    }
    if (!room && res->n_nodes == 0)
        return ls_files_fail(err, LS_ESPACE, 0, "the arena is too small for a node");
    return LS_OK;
}
