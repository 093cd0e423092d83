/* tree_plan.c: what of a tree is to be made, and in which order.
 *
 * All of it, or what its last layer adds to an overlay over the others: there a file of a layer below
 * that gets another name is copied up with all its names, as the names could not be one file else.
 */
#include <string.h>

#include "tree_impl.h"

#define LISTED LS_TNODE_KNOWN /* after planning: this directory was given out */

/* Decides whether a node is in the final tree: it and all directories above it live. */
static void decide(const ls_tree *t, const ls_tree_mem *mem, uint32_t id) {
    const uint8_t out = LS_TNODE_DEAD;
    uint32_t at = id;
    int alive = 1;
    while (at != t->root && !(mem->nodes[at].flags & LS_TNODE_KNOWN)) {
        const ls_tree_node *node = &mem->nodes[at];
        if ((node->flags & out) || !(node->flags & LS_TNODE_LINKED) || node->parent == NONE) {
            alive = 0;
            break;
        }
        at = node->parent;
    }
    uint32_t stop = at;
    if (alive && at != t->root)
        alive = (mem->nodes[at].flags & LS_TNODE_ALIVE) != 0;
    for (at = id; at != stop; at = mem->nodes[at].parent)
        mem->nodes[at].flags |= (uint8_t)(LS_TNODE_KNOWN | (alive ? LS_TNODE_ALIVE : 0));
    if (!alive)
        mem->nodes[stop].flags |= LS_TNODE_KNOWN;
}

/* A node and the directories above it. */
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

static void plan_upper(const ls_tree *t, const ls_tree_mem *mem) {
    for (uint32_t id = 0; id < t->n; id++) {
        ls_tree_node *node = &mem->nodes[id];
        if (node->flags & LS_TNODE_ALIVE) {
            if (node->layer == t->layer || (node->type == '5' && opaque_now(t, node)))
                emit(mem, id);
            if (node->type == '1' && node->layer == t->layer)
                mem->nodes[node->link].flags |= LS_TNODE_EMIT;
        } else if (leaves_whiteout(t, mem, node)) {
            emit(mem, id);
        }
    }
    /* All names of what was copied up. */
    for (uint32_t id = 0; id < t->n; id++) {
        ls_tree_node *node = &mem->nodes[id];
        if (!(node->flags & LS_TNODE_ALIVE))
            continue;
        uint32_t file = node->type == '1' ? node->link : id;
        if (node->type != '5' && (mem->nodes[file].flags & LS_TNODE_EMIT)) {
            node->flags &= (uint8_t)~LS_TNODE_EMIT;
            emit(mem, id);
        }
    }
    mem->nodes[t->root].flags |= LS_TNODE_EMIT;
}

/* Whether a node is a file (or link, device, fifo) that is made, under the name `link`. */
static int is_made(const ls_tree_mem *mem, const ls_tree_node *node) {
    return node->type != '1' && node->type != '5' && node->type != 'w' && node->type != '?' &&
           node->link != NONE && (mem->nodes[node->link].flags & LS_TNODE_EMIT);
}

static int is_other_name(const ls_tree_mem *mem, uint32_t id) {
    const ls_tree_node *node = &mem->nodes[id];
    return node->type == '1' && (node->flags & LS_TNODE_ALIVE) && (node->flags & LS_TNODE_EMIT) &&
           mem->nodes[node->link].link != id;
}

int ls_tree_finish(ls_tree *t, const ls_tree_mem *mem, int upper, ls_tree_plan *plan) {
    memset(plan, 0, sizeof *plan);
    if (t->stage != TREE_IDLE && t->stage != TREE_PLANNED)
        return LS_ESTATE;
    t->stage = TREE_PLANNED;
    t->upper = upper != 0;
    for (uint32_t id = 0; id < t->n; id++)
        mem->nodes[id].flags &=
            (uint8_t)~(LS_TNODE_KNOWN | LS_TNODE_ALIVE | LS_TNODE_EMIT | LS_TNODE_NOT_MADE);
    mem->nodes[t->root].flags |= LS_TNODE_KNOWN | LS_TNODE_ALIVE;
    for (uint32_t id = 0; id < t->n; id++) {
        ls_tree_node *node = &mem->nodes[id];
        if (!(node->flags & LS_TNODE_KNOWN))
            decide(t, mem, id);
        if (node->type != '1')
            node->link = node->flags & LS_TNODE_ALIVE ? id : NONE;
    }
    for (uint32_t id = 0; id < t->n; id++) {
        ls_tree_node *node = &mem->nodes[id];
        if (node->type == '1' && (node->flags & LS_TNODE_ALIVE) &&
            mem->nodes[node->link].link == NONE)
            mem->nodes[node->link].link = id;
    }
    if (upper)
        plan_upper(t, mem);
    else
        for (uint32_t id = 0; id < t->n; id++)
            if (mem->nodes[id].flags & LS_TNODE_ALIVE)
                mem->nodes[id].flags |= LS_TNODE_EMIT;
    for (uint32_t id = 0; id < t->n; id++) {
        ls_tree_node *node = &mem->nodes[id];
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
    switch (kind) {
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

/* Directories: those above one that come before it go out first. */
static size_t list_dirs(const ls_tree *t, const ls_tree_mem *mem, uint64_t *cursor, uint32_t *out,
                        size_t max) {
    uint32_t chain[LS_TREE_DEPTH + 1];
    size_t n = 0;
    if (*cursor == 0 && max > 0) {
        mem->nodes[t->root].flags |= LISTED;
        out[n++] = t->root;
    }
    for (; *cursor < t->n; *cursor += 1) {
        uint32_t id = (uint32_t)*cursor;
        size_t depth = 0;
        const uint8_t want = LS_TNODE_ALIVE | LS_TNODE_EMIT;
        if (mem->nodes[id].type != '5' || (mem->nodes[id].flags & want) != want)
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
    for (; *cursor < t->n && n < max; *cursor += 1)
        if (is_listed(t, mem, kind, (uint32_t)*cursor))
            out[n++] = (uint32_t)*cursor;
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
