/* apply_impl.h: what the rooms of apply share (directories, attributes, files, everything else). */
#ifndef LAYERSTORE_APPLY_IMPL_H
#define LAYERSTORE_APPLY_IMPL_H

#include "tree_impl.h"

#define APPLY_SLOTS 64

struct ls_apply {
    int root;
    uint32_t root_id;
    uint32_t flags;
    uint32_t umask;
    uint32_t uid, gid; /* what is made has these */
    uint16_t layer;    /* the last one */
    const ls_apply_idmap *uids, *gids;
    size_t n_uids, n_gids;
    uint64_t bytes;
    /* descriptors of directories, by node */
    int fds[APPLY_SLOTS];
    uint32_t ids[APPLY_SLOTS];
    int held; /* one that must outlive the next look-up */
    /* the file being written */
    int file;
    uint32_t node;
    uint64_t taken;  /* bytes of its payload so far */
    uint64_t length; /* how long it is on disk */
    uint32_t map_at; /* sparse: the segment at hand */
    uint64_t map_in; /* bytes of it */
    uint64_t notes[LS_NOTES];
    uint32_t first[LS_NOTES];
    int why[LS_NOTES];
};

/* apply_dirs.c: the descriptor (O_PATH) of a directory of the tree, below the root, or -1 and errno.
 * It stays open until another look-up; the one named before it does not. */
int ls_apply_dir(ls_apply *a, const ls_tree_mem *mem, uint32_t id);
/* Opens one name in a directory that must be a directory. */
int ls_apply_open_dir(ls_apply *a, int at, const char *name, int flags);

/* apply_attr.c. Each gives 0, or -1 and errno for what may not become a note. */
typedef struct apply_what {
    int fd;       /* of the file; O_PATH if `path` is set */
    int path;     /* xattrs and mode go through /proc/self/fd */
    int set_mode; /* it may have another than it was made with */
    uint32_t id;  /* for notes */
} apply_what;

/* Owner, xattrs, mode, times, in this order. */
int ls_apply_attributes(ls_apply *a, const ls_tree_mem *mem, const ls_tree_node *node,
                        apply_what w);
int ls_apply_opaque(ls_apply *a, int fd);
/* Whether it has xattrs of its own, or gets them. */
int ls_apply_has_xattrs(const ls_apply *a, const ls_tree_mem *mem, const ls_tree_node *node);
/* Counts a note if errors of this kind may become one (0), or says -1. */
int ls_apply_note(ls_apply *a, int what, uint32_t id, int error);

static inline void apply_name(const ls_tree_mem *mem, const ls_tree_node *node, char *out) {
    /* Names of nodes in the tree have at most 255 bytes and no NUL. */
    uint16_t n = node->name_len < 255 ? node->name_len : 255;
    for (uint16_t i = 0; i < n; i++)
        out[i] = (char)mem->arena[node->name_off + i];
    out[n] = 0;
}

/* apply_files.c: makes the file of a node, empty, as a->file; gives it its attributes and closes it.
 * 0, or -1 and errno. */
int ls_apply_create(ls_apply *a, const ls_tree_mem *mem, uint32_t id);
int ls_apply_end(ls_apply *a, const ls_tree_mem *mem);

/* apply.c */
int ls_apply_result(const ls_apply *a, size_t done, uint32_t node, int error, ls_apply_out *out,
                    ls_error *err);

#endif
