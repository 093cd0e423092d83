/* tree_hide.c: what a squashed layer has to hide of the layers that remain below it.
 *
 * One tree has all layers. What was there when those below were applied is told by when a node died;
 * each such name is looked for in the final tree, its directory first.
 */
#include <string.h>

#include "tree_impl.h"

#define ASK (NONE - 1)   /* not looked for yet */
#define NEVER (NONE - 2) /* it was not there below */

/* Whether a node had its place when the first `kept` layers were applied, its parents aside. */
static int was_there(const ls_tree_node *node, uint32_t kept) {
    return (node->flags & LS_TNODE_LINKED) &&
           !((node->flags & LS_TNODE_DEAD) && node->died <= kept);
}

/* The final node of the name that `id` is, given what its directory is now. */
static uint32_t now(const ls_tree *t, const ls_tree_mem *mem, uint32_t kept, uint32_t id,
                    uint32_t parent) {
    const ls_tree_node *node = &mem->nodes[id];
    if (parent == NEVER || !was_there(node, kept))
        return NEVER;
    if (parent == NONE || mem->nodes[parent].type != '5')
        return NONE;
    return ls_tree_child(t, mem, parent, mem->arena + node->name_off, node->name_len);
}

static void look_for(const ls_tree *t, const ls_tree_mem *mem, uint32_t kept, uint32_t id,
                     uint32_t *found) {
    uint32_t chain[LS_TREE_DEPTH + 1];
    size_t n = 0;
    while (found[id] == ASK) {
        uint32_t parent = mem->nodes[id].parent;
        if (parent == NONE || n > LS_TREE_DEPTH) {
            found[id] = NEVER;
            break;
        }
        chain[n++] = id;
        id = parent;
    }
    while (n > 0) {
        uint32_t child = chain[--n];
        found[child] = now(t, mem, kept, child, found[id]);
        id = child;
    }
}

/* 0, or how a name is hidden. */
static int has_to_go(const ls_tree *t, const ls_tree_mem *mem, uint32_t id, const uint32_t *found) {
    uint32_t to = found[id], parent = mem->nodes[id].parent;
    if (id == t->root || to == NEVER)
        return 0;
    if (to != NONE)
        /* Else what the layer has in the directory would go through the link that was there. */
        return mem->nodes[to].type == '5' && mem->nodes[id].type != '5';
    return found[parent] != NONE && mem->nodes[found[parent]].type == '5';
}

size_t ls_tree_hidden(const ls_tree *t, const ls_tree_mem *mem, uint32_t kept, uint32_t n_kept,
                      uint32_t *work, uint32_t *out) {
    uint32_t *found = work, *there = work + n_kept, *gone = there + n_kept;
    size_t n = 0;
    for (uint32_t id = 0; id < n_kept; id++)
        found[id] = ASK;
    memset(there, 0, 2 * (size_t)n_kept * sizeof *there);
    found[t->root] = t->root;
    for (uint32_t id = 0; id < n_kept; id++) {
        look_for(t, mem, kept, id, found);
        if (id == t->root || found[id] == NEVER)
            continue;
        there[mem->nodes[id].parent]++;
        gone[mem->nodes[id].parent] += (uint32_t)has_to_go(t, mem, id, found);
    }
    for (uint32_t id = 0; id < n_kept; id++) {
        uint32_t parent = mem->nodes[id].parent;
        if (!has_to_go(t, mem, id, found))
            continue;
        if (parent == t->root || gone[parent] < there[parent] || there[parent] == 1)
            out[n++] = id;
        else if (gone[parent] == there[parent]) {
            out[n++] = parent | (uint32_t)LS_TREE_ALL_OF;
            there[parent] = 0; /* once for all of them */
        }
    }
    return n;
}
