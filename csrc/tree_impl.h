/* tree_impl.h: what the rooms of the tree share (feed, tree, plan, and apply, which reads it).
 *
 * A layer is taken in two steps. Feeding adds a pending node for each entry, its whole path as its
 * name. Applying first takes away what the layer's whiteouts hide, whatever their place in it (they
 * mean the layers below only), then gives each pending node its place, in order, so that the last of
 * a name wins. A node that is replaced stays, dead: its children cannot be found any more, since
 * they name it as their parent and nothing leads there.
 */
#ifndef LAYERSTORE_TREE_IMPL_H
#define LAYERSTORE_TREE_IMPL_H

#include "layerstore.h"
#include "tar_impl.h"

#define NONE ((uint32_t)LS_TREE_NONE)

/* Tags in a node's extra bytes. */
#define EXTRA_LINK 'L'   /* target of a link */
#define EXTRA_INLINE 'I' /* the first bytes of the payload, which are not in the content stream */
#define EXTRA_XATTR 'X'  /* u16 length of the name, name, value */
#define EXTRA_MAP 'S'    /* sparse map: pairs of u64 (offset, length) */
#define EXTRA_LOST 'A'   /* an access control list that could not be taken; empty */
#define EXTRA_HEAD 5

#define TREE_XATTR_ACCESS "system.posix_acl_access"
#define TREE_XATTR_DEFAULT "system.posix_acl_default"
#define TREE_ACL_ROOM 128 /* two lists are at most so much longer than twice their text */
#define TREE_EMIT_SIZE (LS_TAR_SCRATCH + 1024)
#define TREE_WORK (2 * LS_TREE_PATH)
#define TREE_TARGET 4095 /* bytes of a symbolic link: the kernel's limit */
#define TREE_MAX_LAYERS 4096
#define TREE_INLINE_MAX 65536

enum tree_stage { TREE_IDLE, TREE_FEEDING, TREE_FED, TREE_PLANNED };
/* Whiteouts whose path leads through a symbolic link wait until it is known which links the layer has a
 * directory for: it hides nothing behind these. */
enum tree_step {
    STEP_WHITEOUTS,
    STEP_REPLACED,
    STEP_THROUGH,
    STEP_PLACES,
    STEP_DEFERRED,
    STEP_OVER
};

#define TREE_MOVED 1    /* ls_tree_node.moved */
#define TREE_REPLACED 2 /* a symbolic link that the layer at hand has a directory for */

struct ls_tree {
    ls_tar tar;
    uint8_t *emit;    /* strings of the entry at hand */
    uint8_t *work[2]; /* paths being resolved */
    const uint8_t *marks;
    size_t marks_size;
    size_t marks_used;
    uint64_t mark_gap;
    uint64_t mark_bytes;
    uint64_t content;    /* bytes of the content stream */
    uint64_t content_at; /* of it, so far */
    uint64_t inline_left;
    uint64_t inline_at; /* where in the arena the next goes; UINT64_MAX: nowhere */
    uint64_t seed;
    uint64_t arena_used;
    uint64_t compact; /* linking: where names of this layer go */
    uint32_t n;
    uint32_t root;
    uint32_t first;  /* pending nodes: from here */
    uint32_t last;   /* to here */
    uint32_t cursor; /* linking */
    uint32_t deferred;
    uint32_t n_seen;  /* nodes of layers below that the last layer concerns */
    uint32_t from;    /* planned: nodes from here */
    uint32_t until;   /* to here, and those seen, are what the plan has to do with */
    uint32_t emptied; /* the root has nothing that came before this node */
    uint32_t bad_len;
    uint16_t layer; /* counts from 1: 0 is "never" */
    uint8_t stage;
    uint8_t step;
    uint8_t split;
    uint8_t have_mark;
    uint8_t asked;
    uint8_t ended; /* a zero block was seen */
    uint8_t upper;
    uint8_t marked; /* nodes have flags of a plan */
    uint8_t rounds;
    uint8_t through; /* some whiteouts wait */
};

static inline uint32_t tree_get32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t tree_get64(const uint8_t *p) {
    return (uint64_t)tree_get32(p) | (uint64_t)tree_get32(p + 4) << 32;
}

static inline void tree_put32(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    p[2] = (uint8_t)(v >> 16);
    p[3] = (uint8_t)(v >> 24);
}

/* The next of a node's extras with this tag, from *at (0 at the start) on: its bytes, or NULL. */
const uint8_t *ls_tree_extra(const ls_tree_mem *mem, const ls_tree_node *node, uint8_t tag,
                             uint32_t *at, uint32_t *len);
/* Tags in a list of system.posix_acl_* (acl(5), linux/posix_acl.h). */
#define TREE_ACL_USER_OBJ 0x01
#define TREE_ACL_USER 0x02
#define TREE_ACL_GROUP_OBJ 0x04
#define TREE_ACL_GROUP 0x08
#define TREE_ACL_MASK 0x10
#define TREE_ACL_OTHER 0x20

/* A list in words as the value of the xattr: its length, 0 if it is not understood or none. `out` needs
 * 4 + 8 bytes for each 6 of the text. *group: what the file's own group may at most (7: not said). */
size_t ls_tree_acl(const uint8_t *text, size_t n, uint8_t *out, uint32_t *group);
/* Bytes of a file's payload, those in the extras too: less than its size if it is sparse. */
uint64_t ls_tree_stored(const ls_tree_mem *mem, const ls_tree_node *node);
/* The live node of that name in a directory, or NONE. */
uint32_t ls_tree_child(const ls_tree *t, const ls_tree_mem *mem, uint32_t parent,
                       const uint8_t *name, size_t len);
/* LS_EINVALID about a path. */
int ls_tree_refuse(ls_tree *t, ls_error *err, uint64_t header, const uint8_t *path, size_t len,
                   const char *why);
/* The last layer changes a node of the layers below: to be called once for each. */
void ls_tree_saw(ls_tree *t, const ls_tree_mem *mem, uint32_t id);
/* Takes back what the last plan left in the nodes. */
void ls_tree_unplan(ls_tree *t, const ls_tree_mem *mem);
int ls_tree_more(ls_tree_out *out, uint64_t nodes, uint64_t arena, ls_error *err);

#endif
