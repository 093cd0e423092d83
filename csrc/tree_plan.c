/* tree_plan.c: what of a tree is to be made, and in which order.
 *
 * All of it, or what its last layer adds to an overlay over the others: there a file of a layer below
 * that gets another name is copied up with all its names, as the names could not be one file else.
 */
#include <string.h>

#include "tree_impl.h"

#define LISTED LS_TNODE_KNOWN    /* after planning: this directory was given out */
#define COPIED LS_TNODE_NOT_MADE /* while planning: a file, all names of which are made */

#define PLAN_FLAGS ((uint8_t)(LS_TNODE_KNOWN | LS_TNODE_ALIVE | LS_TNODE_EMIT | LS_TNODE_NOT_MADE))

void ls_tree_saw(ls_tree *t, const ls_tree_mem *mem, uint32_t id) {
    mem->seen[t->n_seen++] = id;
}

/* Whether linking has noted it: it is of a layer below, and the last one changed it. */
static int is_changed(const ls_tree *t, const ls_tree_mem *mem, uint32_t id) {
    const ls_tree_node *node = &mem->nodes[id];
    return id < t->first &&
           (node->layer == t->layer || ((node->flags & LS_TNODE_DEAD) && node->died == t->layer));
}

void ls_tree_unplan(ls_tree *t, const ls_tree_mem *mem) {
    if (!t->marked)
        return;
    uint32_t kept = 0;
    for (uint32_t id = t->from; id < t->until; id++)
        mem->nodes[id].flags &= (uint8_t)~PLAN_FLAGS;
    for (uint32_t i = 0; i < t->n_seen; i++) {
        uint32_t id = mem->seen[i];
        mem->nodes[id].flags &= (uint8_t)~PLAN_FLAGS;
        if (is_changed(t, mem, id))
            mem->seen[kept++] = id;
    }
    t->n_seen = kept;
    t->marked = 0;
}

/* The i-th node that the plan has to do with: the range, then those seen, which may become more. */
static uint64_t n_concerned(const ls_tree *t) {
    return (uint64_t)(t->until - t->from) + (t->upper ? t->n_seen : 0);
}

static uint32_t concerned(const ls_tree *t, const ls_tree_mem *mem, uint64_t i) {
    uint32_t n = t->until - t->from;
    return i < n ? t->from + (uint32_t)i : mem->seen[i - n];
}

static void know(ls_tree *t, const ls_tree_mem *mem, uint32_t id, uint8_t flags) {
    if (id < t->from && !(mem->nodes[id].flags & LS_TNODE_KNOWN) && !is_changed(t, mem, id))
        ls_tree_saw(t, mem, id);
    mem->nodes[id].flags |= (uint8_t)(LS_TNODE_KNOWN | flags);
}

/* Whether a node is in the final tree: it and all directories above it live. */
static int is_alive(ls_tree *t, const ls_tree_mem *mem, uint32_t id) {
    uint32_t at = id;
    uint8_t alive = LS_TNODE_ALIVE;
    while (!(mem->nodes[at].flags & LS_TNODE_KNOWN)) {
        const ls_tree_node *node = &mem->nodes[at];
        if ((node->flags & LS_TNODE_DEAD) || !(node->flags & LS_TNODE_LINKED) ||
            node->parent == NONE) {
            know(t, mem, at, 0);
            break;
        }
        at = node->parent;
    }
    alive &= mem->nodes[at].flags;
    for (uint32_t on = id; on != at; on = mem->nodes[on].parent)
        know(t, mem, on, alive);
    return alive != 0;
}

/* A node that lives, and the directories above it. */
static void emit(const ls_tree_mem *mem, uint32_t id) {
    while (id != NONE && !(mem->nodes[id].flags & LS_TNODE_EMIT)) {
        mem->nodes[id].flags |= LS_TNODE_EMIT;
        id = mem->nodes[id].parent;
    }
}

static int opaque_now(const ls_tree *t, const ls_tree_node *node) {
    return (node->flags & LS_TNODE_OPAQUE) && node->died == t->layer;
}

/* Whether a dead node leaves a name that the last layer has to hide. */
static int leaves_whiteout(const ls_tree *t, const ls_tree_mem *mem, const ls_tree_node *node) {
    if (!(node->flags & LS_TNODE_DEAD) || !(node->flags & LS_TNODE_LINKED) ||
        node->died != t->layer || node->born == t->layer || node->parent == NONE)
        return 0;
    const ls_tree_node *parent = &mem->nodes[node->parent];
    if (!(parent->flags & LS_TNODE_ALIVE) || (node->parent != t->root && opaque_now(t, parent)))
        return 0;
    return ls_tree_child(t, mem, node->parent, mem->arena + node->name_off, node->name_len) == NONE;
}

/* Files, links, devices: what may have several names. */
static int has_names(const ls_tree_node *node) {
    return node->type != '1' && node->type != '5' && node->type != 'w' && node->type != '?';
}

/* The name that a file is made under: its own, or the first of those that live. */
static void choose_name(ls_tree *t, const ls_tree_mem *mem, uint32_t file) {
    ls_tree_node *node = &mem->nodes[file];
    node->link = is_alive(t, mem, file) ? file : NONE;
    if (node->link != NONE)
        return;
    for (uint32_t name = node->names; name != NONE; name = mem->nodes[name].names)
        if (is_alive(t, mem, name) && name < node->link)
            node->link = name;
}

static void plan_all(ls_tree *t, const ls_tree_mem *mem) {
    for (uint32_t id = t->from; id < t->until; id++)
        if (is_alive(t, mem, id))
            mem->nodes[id].flags |= LS_TNODE_EMIT;
    for (uint32_t id = t->from; id < t->until; id++)
        if (has_names(&mem->nodes[id]))
            choose_name(t, mem, id);
}

static void emit_names(ls_tree *t, const ls_tree_mem *mem, uint32_t file) {
    choose_name(t, mem, file);
    if (is_alive(t, mem, file))
        emit(mem, file);
    for (uint32_t id = mem->nodes[file].names; id != NONE; id = mem->nodes[id].names)
        if (is_alive(t, mem, id))
            emit(mem, id);
}

/* What the last layer adds: costs what it has, not what there is below. */
static void plan_upper(ls_tree *t, const ls_tree_mem *mem) {
    for (uint64_t i = 0; i < n_concerned(t); i++) {
        uint32_t id = concerned(t, mem, i);
        ls_tree_node *node = &mem->nodes[id];
        if (has_names(node))
            node->link = NONE;
        if (is_alive(t, mem, id)) {
            if (node->type == '5' && (node->layer == t->layer || opaque_now(t, node)))
                emit(mem, id);
            uint32_t file = node->type == '1' ? node->link : id;
            if (node->layer == t->layer && has_names(&mem->nodes[file])) {
                is_alive(t, mem, file); /* it is one of those seen now */
                mem->nodes[file].flags |= COPIED;
            }
        } else if (node->parent != NONE && is_alive(t, mem, node->parent) &&
                   leaves_whiteout(t, mem, node)) {
            emit(mem, id);
        }
    }
    for (uint64_t i = 0; i < n_concerned(t); i++) {
        uint32_t id = concerned(t, mem, i);
        if (mem->nodes[id].flags & COPIED) {
            mem->nodes[id].flags &= (uint8_t)~COPIED;
            emit_names(t, mem, id);
        }
    }
}

/* Whether a node is a file (or link, device, fifo) that is made, under the name `link`. */
static int is_made(const ls_tree_mem *mem, const ls_tree_node *node) {
    return has_names(node) && node->link != NONE && (mem->nodes[node->link].flags & LS_TNODE_EMIT);
}

static int is_other_name(const ls_tree_mem *mem, uint32_t id) {
    const ls_tree_node *node = &mem->nodes[id];
    return node->type == '1' && (node->flags & LS_TNODE_ALIVE) && (node->flags & LS_TNODE_EMIT) &&
           mem->nodes[node->link].link != id;
}

static void sift(uint32_t *a, size_t at, size_t n) {
    uint32_t value = a[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && a[child + 1] > a[child])
            child++;
        if (a[child] <= value)
            break;
        a[at] = a[child];
    }
    a[at] = value;
}

/* Ascending, in place: heapsort. */
static void sort(uint32_t *a, size_t n) {
    for (size_t i = n / 2; i > 0; i--)
        sift(a, i - 1, n);
    for (size_t end = n; end > 1; end--) {
        uint32_t top = a[0];
        a[0] = a[end - 1];
        a[end - 1] = top;
        sift(a, 0, end - 1);
    }
}

int ls_tree_finish(ls_tree *t, const ls_tree_mem *mem, int upper, ls_tree_plan *plan) {
    memset(plan, 0, sizeof *plan);
    if (t->stage != TREE_IDLE && t->stage != TREE_PLANNED)
        return LS_ESTATE;
    ls_tree_unplan(t, mem);
    t->stage = TREE_PLANNED;
    t->upper = upper != 0;
    t->marked = 1;
    t->from = upper ? t->first : 0;
    t->until = t->n;
    know(t, mem, t->root, LS_TNODE_ALIVE);
    mem->nodes[t->root].flags |= LS_TNODE_EMIT;
    if (upper)
        plan_upper(t, mem);
    else
        plan_all(t, mem);
    for (uint64_t i = 0; i < n_concerned(t); i++) {
        ls_tree_node *node = &mem->nodes[concerned(t, mem, i)];
        node->flags &= (uint8_t)~LISTED;
        if ((node->flags & LS_TNODE_ALIVE) && (node->flags & LS_TNODE_EMIT))
            plan->entries++;
        else if (upper && leaves_whiteout(t, mem, node))
            plan->entries++;
        if (node->type == '0' && is_made(mem, node)) {
            plan->bytes += node->size;
            plan->stored += ls_tree_stored(mem, node);
        }
    }
    if (upper)
        sort(mem->seen, t->n_seen);
    return LS_OK;
}

size_t ls_tree_path(const ls_tree *t, const ls_tree_mem *mem, uint32_t id, uint8_t *out,
                    size_t size) {
    uint32_t chain[LS_TREE_DEPTH + 1];
    size_t n = 0, used = 0;
    (void)t;
    for (; id != NONE && n <= LS_TREE_DEPTH; id = mem->nodes[id].parent)
        chain[n++] = id;
    while (n > 0) {
        const ls_tree_node *node = &mem->nodes[chain[--n]];
        size_t len = node->name_len;
        if (used > 0 && used < size)
            out[used++] = '/';
        if (len > size - used)
            len = size - used;
        memcpy(out + used, mem->arena + node->name_off, len);
        used += len;
    }
    return used;
}

static int is_listed(const ls_tree *t, const ls_tree_mem *mem, int kind, uint32_t id) {
    const ls_tree_node *node = &mem->nodes[id];
    const uint8_t want = LS_TNODE_ALIVE | LS_TNODE_EMIT;
    switch (kind) {
    case LS_LIST_DIRS:
        return node->type == '5' && (node->flags & want) == want;
    case LS_LIST_FILES:
        return node->type == '0' && is_made(mem, node);
    case LS_LIST_OTHERS:
        return node->type != '0' && is_made(mem, node);
    case LS_LIST_LINKS:
        return is_other_name(mem, id);
    case LS_LIST_WHITEOUTS:
        return t->upper && leaves_whiteout(t, mem, node);
    default:
        return node->type == '?';
    }
}

/* The i-th node that the lists may have, ascending. */
static uint32_t listed(const ls_tree *t, const ls_tree_mem *mem, uint64_t i) {
    uint32_t n = t->upper ? t->n_seen : 0;
    return i < n ? mem->seen[i] : t->from + (uint32_t)(i - n);
}

/* Directories: those above one that come before it go out first. */
static size_t list_dirs(const ls_tree *t, const ls_tree_mem *mem, uint64_t *cursor, uint32_t *out,
                        size_t max) {
    uint32_t chain[LS_TREE_DEPTH + 1];
    size_t n = 0;
    if (*cursor == 0 && max > 0) {
        mem->nodes[t->root].flags |= LISTED;
        out[n++] = t->root;
    }
    for (; *cursor < n_concerned(t); *cursor += 1) {
        uint32_t id = listed(t, mem, *cursor);
        size_t depth = 0;
        if (!is_listed(t, mem, LS_LIST_DIRS, id))
            continue;
        for (uint32_t at = id; !(mem->nodes[at].flags & LISTED); at = mem->nodes[at].parent)
            chain[depth++] = at;
        if (depth > max - n)
            return n;
        while (depth > 0) {
            mem->nodes[chain[--depth]].flags |= LISTED;
            out[n++] = chain[depth];
        }
    }
    return n;
}

size_t ls_tree_list(ls_tree *t, const ls_tree_mem *mem, int kind, uint64_t *cursor, uint32_t *out,
                    size_t max) {
    size_t n = 0;
    if (t->stage != TREE_PLANNED)
        return 0;
    if (kind == LS_LIST_DIRS)
        return list_dirs(t, mem, cursor, out, max);
    for (; *cursor < n_concerned(t) && n < max; *cursor += 1) {
        uint32_t id = listed(t, mem, *cursor);
        if (is_listed(t, mem, kind, id))
            out[n++] = id;
    }
    return n;
}

#define SEGMENT_FILES 4096 /* so that a stretch of empty files ends, too */

size_t ls_tree_segments(const ls_tree *t, const ls_tree_mem *mem, const uint32_t *ids, size_t n,
                        uint64_t size, uint64_t gap, uint64_t *cursor, ls_segment *out,
                        size_t max) {
    size_t made = 0;
    (void)t;
    while (*cursor < n && made < max) {
        ls_segment *s = &out[made++];
        const ls_tree_node *node = &mem->nodes[ids[*cursor]];
        *s = (ls_segment){node->at, node->at, (uint32_t)*cursor, 0, node->layer - 1u, 0};
        for (; *cursor < n; *cursor += 1) {
            uint32_t at = 0, ahead = 0;
            node = &mem->nodes[ids[*cursor]];
            if (node->extra_len && ls_tree_extra(mem, node, EXTRA_INLINE, &at, &ahead) == NULL)
                ahead = 0;
            if (s->count > 0 && (node->layer - 1u != s->layer || node->at > s->end + gap ||
                                 s->end - s->start >= size || s->count == SEGMENT_FILES))
                break;
            s->end = node->at + (ls_tree_stored(mem, node) - ahead);
            s->count++;
        }
    }
    return made;
}
