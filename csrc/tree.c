/* tree.c: pending nodes of a layer get their places in the tree.
 *
 * Cost: a look-up for each part of a path, one node for each entry. Names are moved down in the arena
 * as they lose their directories, so that a million files keep a million base names. A call that
 * ends for want of memory goes on where it stopped: what it did before is not done twice.
 */
#include <string.h>

#include "tree_impl.h"

static uint32_t slot_of(const ls_tree *t, const ls_tree_mem *mem, uint32_t parent,
                        const uint8_t *name, size_t len) {
    const uint64_t k = 0x9e3779b97f4a7c15u;
    uint64_t h = (t->seed ^ parent) * k, word;
    while (len >= 8) {
        memcpy(&word, name, 8);
        h = (h ^ word) * k;
        h ^= h >> 32;
        name += 8;
        len -= 8;
    }
    word = len;
    for (size_t i = 0; i < len; i++)
        word = word << 8 | name[i];
    h = (h ^ word ^ t->seed) * k;
    h ^= h >> 29;
    h *= k;
    return (uint32_t)(h >> 32) & (uint32_t)(mem->table_size - 1);
}

static int is_named(const ls_tree_mem *mem, const ls_tree_node *node, uint32_t parent,
                    const uint8_t *name, size_t len) {
    return node->parent == parent && node->name_len == len &&
           memcmp(mem->arena + node->name_off, name, len) == 0;
}

uint32_t ls_tree_child(const ls_tree *t, const ls_tree_mem *mem, uint32_t parent,
                       const uint8_t *name, size_t len) {
    uint32_t id = mem->table[slot_of(t, mem, parent, name, len)];
    for (; id != NONE; id = mem->nodes[id].next) {
        const ls_tree_node *node = &mem->nodes[id];
        if (!(node->flags & LS_TNODE_DEAD) && is_named(mem, node, parent, name, len))
            return id;
    }
    return NONE;
}

/* Whether this layer took a directory of the layers below away there. */
static int hid_directory(const ls_tree *t, const ls_tree_mem *mem, uint32_t parent,
                         const uint8_t *name, size_t len) {
    uint32_t id = mem->table[slot_of(t, mem, parent, name, len)];
    for (; id != NONE; id = mem->nodes[id].next) {
        const ls_tree_node *node = &mem->nodes[id];
        if ((node->flags & LS_TNODE_DEAD) && node->died == t->layer && node->type == '5' &&
            is_named(mem, node, parent, name, len))
            return 1;
    }
    return 0;
}

static void link_in(const ls_tree *t, const ls_tree_mem *mem, uint32_t id) {
    ls_tree_node *node = &mem->nodes[id];
    uint32_t *slot =
        &mem->table[slot_of(t, mem, node->parent, mem->arena + node->name_off, node->name_len)];
    node->next = *slot;
    node->flags |= LS_TNODE_LINKED;
    *slot = id;
}

void ls_tree_rehash(ls_tree *t, const ls_tree_mem *mem) {
    for (uint64_t i = 0; i < mem->table_size; i++)
        mem->table[i] = NONE;
    for (uint32_t id = 1; id < t->n; id++)
        if (mem->nodes[id].flags & LS_TNODE_LINKED &&
            !((mem->nodes[id].flags & LS_TNODE_DEAD) && mem->nodes[id].died == mem->nodes[id].born))
            link_in(t, mem, id);
}

/* Takes a node out. One that this layer made itself is forgotten; one of the layers below stays to be
 * found by hid_directory. */
static void take_out(ls_tree *t, const ls_tree_mem *mem, uint32_t id) {
    ls_tree_node *node = &mem->nodes[id];
    if (id < t->first && node->layer != t->layer)
        ls_tree_saw(t, mem, id);
    node->flags |= LS_TNODE_DEAD;
    node->died = t->layer;
    if (node->born != t->layer)
        return;
    uint32_t *at =
        &mem->table[slot_of(t, mem, node->parent, mem->arena + node->name_off, node->name_len)];
    while (*at != id)
        at = &mem->nodes[*at].next;
    *at = node->next;
}

void ls_tree_init(ls_tree *t, const ls_tree_mem *mem, uint8_t *scratch, uint64_t seed) {
    memset(t, 0, sizeof *t);
    ls_tar_init(&t->tar, scratch, LS_TAR_SCRATCH);
    t->emit = scratch + LS_TAR_SCRATCH;
    t->work[0] = t->emit + TREE_EMIT_SIZE;
    t->work[1] = t->work[0] + TREE_WORK;
    t->seed = seed;
    t->n = 1;
    ls_tree_node *root = &mem->nodes[0];
    memset(root, 0, sizeof *root);
    root->type = '5';
    root->mode = 0755;
    root->flags = LS_TNODE_IMPLICIT | LS_TNODE_LINKED;
    root->parent = root->next = root->link = root->names = NONE;
    root->layer = root->born = 0;
    for (uint64_t i = 0; i < mem->table_size; i++)
        mem->table[i] = NONE;
}

uint32_t ls_tree_root(const ls_tree *t) {
    return t->root;
}

const uint8_t *ls_tree_extra(const ls_tree_mem *mem, const ls_tree_node *node, uint8_t tag,
                             uint32_t *at, uint32_t *len) {
    const uint8_t *p = mem->arena + node->extra_off;
    while (*at + EXTRA_HEAD <= node->extra_len) {
        const uint8_t *head = p + *at;
        *len = tree_get32(head + 1);
        *at += EXTRA_HEAD + *len;
        if (*head == tag)
            return head + EXTRA_HEAD;
    }
    return NULL;
}

uint64_t ls_tree_stored(const ls_tree_mem *mem, const ls_tree_node *node) {
    uint32_t at = 0, len = 0;
    const uint8_t *map = node->extra_len ? ls_tree_extra(mem, node, EXTRA_MAP, &at, &len) : NULL;
    if (map == NULL)
        return node->size;
    uint64_t sum = 0;
    /* The scanner has seen that the lengths add up to the payload. */
    for (uint32_t i = 0; i + 16 <= len; i += 16)
        sum += tree_get64(map + i + 8);
    return sum;
}

/* One part of a path at p: its length; *skip is where the next begins. */
static size_t part_of(const uint8_t *p, size_t n, size_t *skip) {
    const uint8_t *slash = n ? memchr(p, '/', n) : NULL;
    size_t len = slash == NULL ? n : (size_t)(slash - p);
    *skip = len == n ? n : len + 1;
    return len;
}

/* A path without empty parts and dots at `out` (which may be `p`). */
static size_t normalise(const uint8_t *p, size_t n, uint8_t *out, int *up) {
    size_t m = 0, skip;
    for (; n > 0; p += skip, n -= skip) {
        size_t len = part_of(p, n, &skip);
        if (len == 0 || (len == 1 && p[0] == '.'))
            continue;
        if (len == 2 && p[0] == '.' && p[1] == '.')
            *up = 1;
        if (m > 0)
            out[m++] = '/';
        memmove(out + m, p, len);
        m += len;
    }
    return m;
}

typedef struct walk {
    ls_tree *t;
    const ls_tree_mem *mem;
    ls_tree_out *out;
    ls_error *err;
    uint32_t node; /* the entry at hand */
    int create;
    uint32_t parent; /* what was found, or NONE */
    const uint8_t *name;
    size_t len;
    int links; /* symbolic links on the way */
} walk;

static int refuse(walk *w, const char *why) {
    const ls_tree_node *node = &w->mem->nodes[w->node];
    return ls_tree_refuse(w->t, w->err, node->header, w->mem->arena + node->name_off,
                          node->name_len, why);
}

/* Makes a directory that no layer has an entry for. */
static int make_implicit(walk *w, uint32_t parent, const uint8_t *name, size_t len,
                         uint32_t *made) {
    ls_tree *t = w->t;
    const ls_tree_mem *mem = w->mem;
    uint64_t at = t->compact;
    int inside = t->step == STEP_PLACES && at + len <= mem->nodes[w->node].name_off;
    if (!inside)
        at = t->arena_used;
    if (at + len > UINT32_MAX || t->n == UINT32_MAX - 1)
        return ls_tar_fail(w->err, LS_ELIMIT, 0, "more names than can be counted");
    if (t->n >= mem->max_nodes || at + len > mem->arena_size)
        return ls_tree_more(w->out, (uint64_t)t->n + 1, at + len, w->err);
    uint32_t old = ls_tree_child(t, mem, parent, name, len);
    if (old != NONE)
        take_out(t, mem, old);
    ls_tree_node *node = &mem->nodes[t->n];
    memset(node, 0, sizeof *node);
    node->type = '5';
    node->mode = 0755;
    node->flags = LS_TNODE_IMPLICIT;
    node->parent = parent;
    node->link = node->names = NONE;
    node->layer = node->born = t->layer;
    node->depth = (uint16_t)(mem->nodes[parent].depth + 1);
    node->name_off = node->extra_off = (uint32_t)at;
    node->name_len = (uint16_t)len;
    if (hid_directory(t, mem, parent, name, len)) {
        node->flags |= LS_TNODE_OPAQUE;
        node->died = t->layer;
    }
    memcpy(mem->arena + at, name, len);
    if (inside)
        t->compact += len;
    else
        t->arena_used += len;
    link_in(t, mem, t->n);
    *made = t->n++;
    return LS_OK;
}

/* The directory in which a path's last part lies; links on the way are followed inside the root.
 * Without `create`, w->parent is NONE if there is none. An empty path gives an empty name. */
static int resolve(walk *w, const uint8_t *path, size_t n) {
    ls_tree *t = w->t;
    const ls_tree_mem *mem = w->mem;
    uint8_t *work = t->work[0];
    int turn = 0, up = 0;
    w->links = 0;
    n = normalise(path, n, work, &up);
    if (up)
        return refuse(w, "a name with .. in it");
    uint32_t at = t->root;
    const uint8_t *p = work;
    w->parent = NONE;
    for (;;) {
        size_t skip, len = part_of(p, n, &skip);
        if (len > 255)
            return refuse(w, "a name of more than 255 bytes");
        if (len == n) {
            w->parent = at;
            w->name = p;
            w->len = len;
            return mem->nodes[at].depth >= LS_TREE_DEPTH
                       ? refuse(w, "more than 2048 directories in directories")
                       : LS_OK;
        }
        if (len == 2 && p[0] == '.' && p[1] == '.') {
            if (at != t->root)
                at = mem->nodes[at].parent;
            p += skip;
            n -= skip;
            continue;
        }
        if (len >= 4 && memcmp(p, ".wh.", 4) == 0)
            return refuse(w, "a whiteout as a directory");
        uint32_t next = ls_tree_child(t, mem, at, p, len);
        const ls_tree_node *found = next == NONE ? NULL : &mem->nodes[next];
        if (found != NULL && found->type == '1')
            found = &mem->nodes[found->link];
        if (found != NULL && found->type == '2') {
            uint32_t extra = 0, size = 0;
            const uint8_t *target = ls_tree_extra(mem, found, EXTRA_LINK, &extra, &size);
            w->links++;
            if (t->step == STEP_WHITEOUTS)
                return LS_OK;
            if (t->step == STEP_THROUGH && (mem->nodes[next].moved & TREE_REPLACED))
                return LS_OK;
            if (w->links > LS_TREE_LINKS)
                return refuse(w, "too many symbolic links on the way");
            turn = !turn;
            uint8_t *out = t->work[turn];
            if (target == NULL || size + 1 + (n - skip) > TREE_WORK)
                return refuse(w, "symbolic links make its path too long");
            int absolute = size > 0 && target[0] == '/';
            size_t m = normalise(target, size, out, &up);
            if (m > 0)
                out[m++] = '/';
            memcpy(out + m, p + skip, n - skip);
            p = out;
            n = m + n - skip;
            if (absolute)
                at = t->root;
            continue;
        }
        if (found == NULL || found->type != '5') {
            if (!w->create)
                return LS_OK;
            if (mem->nodes[at].depth >= LS_TREE_DEPTH)
                return refuse(w, "more than 2048 directories in directories");
            int code = make_implicit(w, at, p, len, &next);
            if (code != LS_OK)
                return code;
        }
        at = next;
        p += skip;
        n -= skip;
    }
}

/* The root stays the root: overlayfs knows no opaque one, so its names are hidden one by one. */
static void empty_root(ls_tree *t, const ls_tree_mem *mem) {
    ls_tree_node *root = &mem->nodes[t->root];
    if ((root->flags & LS_TNODE_OPAQUE) && root->died == t->layer)
        return;
    root->flags |= LS_TNODE_OPAQUE;
    root->died = t->layer;
    /* Whiteouts come first: what has a place yet is of the layers below, and what came before the last
     * time was taken out then. So all layers together cost one walk, not one each. */
    for (uint32_t id = t->emptied; id < t->n; id++) {
        const ls_tree_node *node = &mem->nodes[id];
        if (node->parent == t->root && (node->flags & LS_TNODE_LINKED) &&
            !(node->flags & LS_TNODE_DEAD))
            take_out(t, mem, id);
    }
    t->emptied = t->first;
}

/* A directory that hides all that the layers below have in it: a new node, so that nothing leads to
 * the old one's children. */
static int make_opaque(walk *w, uint32_t old) {
    ls_tree *t = w->t;
    const ls_tree_mem *mem = w->mem;
    if (old == t->root) {
        empty_root(t, mem);
        return LS_OK;
    }
    if (t->n == UINT32_MAX - 1)
        return ls_tar_fail(w->err, LS_ELIMIT, 0, "more entries than can be counted");
    if (t->n >= mem->max_nodes)
        return ls_tree_more(w->out, (uint64_t)t->n + 1, 0, w->err);
    ls_tree_node *node = &mem->nodes[t->n];
    take_out(t, mem, old);
    *node = mem->nodes[old];
    node->flags = (uint8_t)((node->flags & ~LS_TNODE_DEAD) | LS_TNODE_OPAQUE);
    node->born = node->died = t->layer;
    link_in(t, mem, t->n);
    t->n++;
    return LS_OK;
}

static int hide(walk *w) {
    static const char opaque[] = ".wh..wh..opq";
    ls_tree *t = w->t;
    ls_tree_node *node = &w->mem->nodes[w->node];
    w->create = 0;
    int code = resolve(w, w->mem->arena + node->name_off, node->name_len);
    if (code != LS_OK)
        return code;
    if (t->step == STEP_WHITEOUTS && w->links > 0) {
        t->through = 1;
        return LS_OK;
    }
    /* The last part as it stands there: the directory may be missing. */
    const uint8_t *path = w->mem->arena + node->name_off;
    size_t n = node->name_len;
    while (path[n - 1] == '/')
        n--;
    size_t start = n;
    while (start > 0 && path[start - 1] != '/')
        start--;
    const uint8_t *name = path + start + 4;
    size_t len = n - start - 4;
    if (len + 4 == sizeof opaque - 1 && memcmp(path + start, opaque, sizeof opaque - 1) == 0) {
        code = w->parent == NONE ? LS_OK : make_opaque(w, w->parent);
        if (code == LS_OK)
            w->mem->nodes[w->node].flags |= LS_TNODE_DEAD;
        return code;
    }
    if (len >= 4 && memcmp(name, ".wh.", 4) == 0) {
        node->type = '?'; /* aufs' own notes (.wh..wh.plnk and others) */
        return LS_OK;
    }
    if (len == 0 || (len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.'))
        return refuse(w, "a whiteout of nothing that has a name");
    node->flags |= LS_TNODE_DEAD;
    if (w->parent == NONE)
        return LS_OK;
    uint32_t victim = ls_tree_child(t, w->mem, w->parent, name, len);
    if (victim != NONE)
        take_out(t, w->mem, victim);
    return LS_OK;
}

/* A directory of the layer where there is a symbolic link below: what the layer hides in it would be
 * looked for behind the link else, where it hides nothing. */
static void mark_replaced(walk *w) {
    const ls_tree_mem *mem = w->mem;
    const ls_tree_node *node = &mem->nodes[w->node];
    w->create = 0;
    if (resolve(w, mem->arena + node->name_off, node->name_len) != LS_OK || w->parent == NONE ||
        w->links > 0 || w->len == 0)
        return;
    uint32_t found = ls_tree_child(w->t, mem, w->parent, w->name, w->len);
    if (found != NONE)
        mem->nodes[found].moved |= TREE_REPLACED;
}

/* Moves a node's name (`len` bytes at `name`, part of its path) and its extras to where they stay. */
static void settle(ls_tree *t, const ls_tree_mem *mem, ls_tree_node *node, const uint8_t *name,
                   size_t len) {
    uint8_t *arena = mem->arena;
    if (t->step != STEP_PLACES) { /* it was moved before, as a whole */
        memmove(arena + node->name_off, name, len);
        node->name_len = (uint16_t)len;
        return;
    }
    memmove(arena + t->compact, name, len);
    node->name_off = (uint32_t)t->compact;
    node->name_len = (uint16_t)len;
    t->compact += len;
    memmove(arena + t->compact, arena + node->extra_off, node->extra_len);
    node->extra_off = (uint32_t)t->compact;
    t->compact += node->extra_len;
}

static void settle_whole(ls_tree *t, const ls_tree_mem *mem, ls_tree_node *node) {
    if (t->step == STEP_PLACES)
        settle(t, mem, node, mem->arena + node->name_off, node->name_len);
}

/* An entry for a directory that is there: its attributes are the new ones. */
static void merge(ls_tree *t, const ls_tree_mem *mem, uint32_t into, ls_tree_node *from) {
    ls_tree_node *node = &mem->nodes[into];
    if (into < t->first && node->layer != t->layer)
        ls_tree_saw(t, mem, into);
    settle(t, mem, from, mem->arena + from->name_off, 0);
    node->header = from->header;
    node->mtime_sec = from->mtime_sec;
    node->mtime_nsec = from->mtime_nsec;
    node->uid = from->uid;
    node->gid = from->gid;
    node->mode = from->mode;
    node->extra_off = from->extra_off;
    node->extra_len = from->extra_len;
    node->layer = t->layer;
    node->moved = from->moved;
    node->flags &= (uint8_t)~LS_TNODE_IMPLICIT;
    from->flags |= LS_TNODE_DEAD;
}

/* The file that a hard link means, or NONE if it is not there (yet). */
static int link_target(walk *w, uint32_t *target) {
    const ls_tree_mem *mem = w->mem;
    uint32_t at = 0, len = 0;
    const uint8_t *path = ls_tree_extra(mem, &mem->nodes[w->node], EXTRA_LINK, &at, &len);
    *target = NONE;
    w->create = 0;
    int code = resolve(w, path, len);
    if (code != LS_OK || w->parent == NONE)
        return code;
    if (w->len == 0)
        return refuse(w, "a hard link to a directory");
    uint32_t found = ls_tree_child(w->t, mem, w->parent, w->name, w->len);
    if (found == NONE)
        return LS_OK;
    if (mem->nodes[found].type == '1')
        found = mem->nodes[found].link;
    if (mem->nodes[found].type == '5')
        return refuse(w, "a hard link to a directory");
    *target = found;
    return LS_OK;
}

/* *waits: a hard link to what is not there yet. */
static int place(walk *w, int *waits) {
    ls_tree *t = w->t;
    const ls_tree_mem *mem = w->mem;
    ls_tree_node *node = &mem->nodes[w->node];
    uint32_t target = NONE;
    *waits = 0;
    if (node->flags & LS_TNODE_DEAD)
        return LS_OK;
    if (node->type == '?') {
        settle_whole(t, mem, node);
        return LS_OK;
    }
    if (node->type == '1') {
        int code = link_target(w, &target);
        if (code != LS_OK)
            return code;
        if (target == NONE) {
            settle_whole(t, mem, node);
            *waits = 1;
            return LS_OK;
        }
    }
    w->create = 1;
    int code = resolve(w, mem->arena + node->name_off, node->name_len);
    if (code != LS_OK)
        return code;
    node->moved = w->links > 0 ? TREE_MOVED : 0;
    if (w->len == 0) {
        if (node->type != '5')
            return refuse(w, "the root is no directory");
        merge(t, mem, t->root, node);
        return LS_OK;
    }
    uint32_t old = ls_tree_child(t, mem, w->parent, w->name, w->len);
    if (old != NONE) {
        const ls_tree_node *was = &mem->nodes[old];
        if (was->type == '5' && node->type == '5') {
            merge(t, mem, old, node);
            return LS_OK;
        }
        if (node->type == '1' && (old == target || (was->type == '1' && was->link == target))) {
            node->flags |= LS_TNODE_DEAD; /* it is that file already */
            settle_whole(t, mem, node);
            return LS_OK;
        }
        take_out(t, mem, old);
    }
    if (node->type == '5' && hid_directory(t, mem, w->parent, w->name, w->len)) {
        node->flags |= LS_TNODE_OPAQUE;
        node->died = t->layer;
    }
    node->parent = w->parent;
    node->depth = (uint16_t)(mem->nodes[w->parent].depth + 1);
    if (node->type == '1') {
        node->link = target;
        node->names = mem->nodes[target].names;
        mem->nodes[target].names = w->node;
    }
    settle(t, mem, node, w->name, w->len);
    link_in(t, mem, w->node);
    return LS_OK;
}

static int is_waiting(const ls_tree_node *node) {
    return node->type == '1' && !(node->flags & (LS_TNODE_DEAD | LS_TNODE_LINKED));
}

int ls_tree_apply(ls_tree *t, const ls_tree_mem *mem, ls_tree_out *out, ls_error *err) {
    walk w = {t, mem, out, err, 0, 0, NONE, NULL, 0, 0};
    memset(out, 0, sizeof *out);
    if (t->stage != TREE_FED)
        return ls_tar_fail(err, LS_ESTATE, 0, "no layer was fed to its end");
    while (t->step != STEP_OVER) {
        int code = LS_OK, waits = 0;
        if (t->cursor == t->last) {
            t->cursor = t->first;
            if (t->step == STEP_WHITEOUTS) {
                t->step = t->through ? STEP_REPLACED : STEP_PLACES;
            } else if (t->step == STEP_REPLACED || t->step == STEP_THROUGH) {
                t->step = (uint8_t)(t->step + 1);
            } else if (t->step == STEP_PLACES && t->deferred == 0) {
                t->step = STEP_OVER;
            } else if (t->step == STEP_PLACES) {
                t->step = STEP_DEFERRED;
            } else {
                uint32_t left = 0, first = NONE;
                for (uint32_t id = t->first; id < t->last; id++)
                    if (is_waiting(&mem->nodes[id]) && left++ == 0)
                        first = id;
                w.node = first;
                if (left > 0 && (left == t->deferred || ++t->rounds == 16))
                    return refuse(&w, "a hard link to what is not there");
                t->deferred = left;
                if (left == 0)
                    t->step = STEP_OVER;
            }
            continue;
        }
        w.node = t->cursor;
        ls_tree_node *node = &mem->nodes[t->cursor];
        if (t->step == STEP_REPLACED) {
            if (node->type == '5')
                mark_replaced(&w);
        } else if (t->step == STEP_WHITEOUTS || t->step == STEP_THROUGH)
            code = node->type == 'w' && !(node->flags & LS_TNODE_DEAD) ? hide(&w) : LS_OK;
        else if (t->step == STEP_PLACES || is_waiting(node))
            code = place(&w, &waits);
        if (code != LS_OK) {
            out->n_nodes = t->n;
            return code;
        }
        if (t->step == STEP_PLACES)
            t->deferred += (uint32_t)waits;
        t->cursor++;
    }
    /* Whole if no implicit name had to go behind the pending ones. */
    uint64_t end = t->compact;
    for (uint32_t id = t->last; id < t->n; id++) {
        const ls_tree_node *node = &mem->nodes[id];
        uint64_t name_end = (uint64_t)node->name_off + node->name_len;
        if (name_end > end)
            end = name_end;
    }
    t->arena_used = end;
    t->through = 0;
    t->stage = TREE_IDLE;
    out->n_nodes = t->n;
    out->n_arena = end;
    return LS_OK;
}

uint32_t ls_tree_find(const ls_tree *t, const ls_tree_mem *mem, const uint8_t *path, size_t size) {
    uint32_t at = t->root;
    size_t skip;
    for (; size > 0 && at != NONE; path += skip, size -= skip) {
        size_t len = part_of(path, size, &skip);
        if (len > 0)
            at = ls_tree_child(t, mem, at, path, len);
    }
    return at;
}
