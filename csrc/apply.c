/* apply.c: directories, links, devices and whiteouts of a tree, in batches of nodes.
 *
 * What is not a file or directory is made by name, then opened (O_PATH, O_NOFOLLOW) and looked at
 * before its owner changes: with one name only, and of the kind that was made, it is ours, and not a
 * link to something that somebody put in its place.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "apply_impl.h"

size_t ls_apply_sizeof(void) {
    return sizeof(ls_apply);
}

void ls_apply_init(ls_apply *a, const ls_tree *tree, int root_fd, uint32_t flags, uint32_t umask,
                   uint32_t uid, uint32_t gid, const ls_apply_idmap *uids, size_t n_uids,
                   const ls_apply_idmap *gids, size_t n_gids) {
    memset(a, 0, sizeof *a);
    a->root = root_fd;
    a->root_id = tree->root;
    a->layer = tree->layer;
    a->flags = flags;
    a->umask = umask;
    a->uid = uid;
    a->gid = gid;
    a->uids = uids;
    a->n_uids = n_uids;
    a->gids = gids;
    a->n_gids = n_gids;
    a->file = a->held = -1;
    for (int i = 0; i < APPLY_SLOTS; i++)
        a->ids[i] = NONE;
    for (int i = 0; i < LS_NOTES; i++)
        a->first[i] = NONE;
}

void ls_apply_close(ls_apply *a) {
    for (int i = 0; i < APPLY_SLOTS; i++) {
        if (a->ids[i] != NONE)
            close(a->fds[i]);
        a->ids[i] = NONE;
    }
    if (a->file >= 0)
        close(a->file);
    if (a->held >= 0)
        close(a->held);
    a->file = a->held = -1;
}

int ls_apply_result(const ls_apply *a, size_t done, uint32_t node, int error, ls_apply_out *out,
                    ls_error *err) {
    memset(out, 0, sizeof *out);
    out->done = done;
    out->bytes = a->bytes;
    out->node = node;
    out->system = error;
    memcpy(out->notes, a->notes, sizeof a->notes);
    memcpy(out->first, a->first, sizeof a->first);
    memcpy(out->why, a->why, sizeof a->why);
    if (error == 0)
        return LS_OK;
    return ls_tar_fail(err, LS_ESYSTEM, (uint64_t)error, "a system call failed");
}

static int make_dir(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    char name[256];
    const ls_tree_node *node = &mem->nodes[id];
    if (id == a->root_id)
        return 0;
    int dir = ls_apply_dir(a, mem, node->parent);
    if (dir < 0)
        return -1;
    apply_name(mem, node, name);
    return mkdirat(dir, name, 0700);
}

static int finish_dir(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    char name[256];
    const ls_tree_node *node = &mem->nodes[id];
    int fd = a->root;
    if (id != a->root_id) {
        int dir = ls_apply_dir(a, mem, node->parent);
        if (dir < 0)
            return -1;
        apply_name(mem, node, name);
        fd = ls_apply_open_dir(a, dir, name, O_RDONLY);
        if (fd < 0)
            return -1;
    }
    apply_what w = {fd, 0, 1, id};
    int result = 0;
    if ((a->flags & LS_APPLY_UPPER) && id != a->root_id && (node->flags & LS_TNODE_OPAQUE) &&
        node->died == a->layer)
        result = ls_apply_opaque(a, fd);
    if (result == 0)
        result = ls_apply_attributes(a, mem, node, w);
    int error = errno;
    if (fd != a->root)
        close(fd);
    errno = error;
    return result;
}

/* Opens what was just made there, if it still is that. */
static int open_made(int dir, const char *name, mode_t kind, dev_t device) {
    struct stat st;
    int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == kind && st.st_nlink == 1 &&
        (kind == S_IFLNK || kind == S_IFIFO || st.st_rdev == device))
        return fd;
    close(fd);
    errno = ESTALE;
    return -1;
}

static int make_link(const ls_tree_mem *mem, const ls_tree_node *node, int dir, const char *name) {
    char target[TREE_TARGET + 1];
    uint32_t at = 0, len = 0;
    const uint8_t *p = ls_tree_extra(mem, node, EXTRA_LINK, &at, &len);
    if (p == NULL || len > TREE_TARGET) {
        errno = EINVAL;
        return -1;
    }
    memcpy(target, p, len);
    target[len] = 0;
    return symlinkat(target, dir, name);
}

static int make_other(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    char name[256];
    ls_tree_node *node = &mem->nodes[id];
    const ls_tree_node *name_node = &mem->nodes[node->link];
    int dir = ls_apply_dir(a, mem, name_node->parent);
    if (dir < 0)
        return -1;
    apply_name(mem, name_node, name);
    mode_t kind = S_IFLNK, mode = node->mode & 0777;
    dev_t device = 0;
    if (node->type == '2') {
        if (make_link(mem, node, dir, name) < 0)
            return -1;
    } else {
        kind = node->type == '3' ? S_IFCHR : node->type == '4' ? S_IFBLK : S_IFIFO;
        if (kind != S_IFIFO)
            device = makedev((uint32_t)(node->at >> 32), (uint32_t)node->at);
        if (mknodat(dir, name, kind | mode, device) < 0) {
            int error = errno;
            if ((error == EPERM || error == EACCES) && kind != S_IFIFO &&
                ls_apply_note(a, LS_NOTE_DEVICE, id, error) == 0) {
                node->flags |= LS_TNODE_NOT_MADE;
                return 0;
            }
            errno = error;
            return -1;
        }
    }
    int fd = open_made(dir, name, kind, device);
    if (fd < 0)
        return -1;
    apply_what w = {fd, 1, node->mode != (mode & ~(mode_t)a->umask), id};
    int result = ls_apply_attributes(a, mem, node, w);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

static int make_name(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    char from[256], to[256];
    const ls_tree_node *node = &mem->nodes[id], *file = &mem->nodes[node->link];
    const ls_tree_node *first = &mem->nodes[file->link];
    if (file->flags & LS_TNODE_NOT_MADE)
        return ls_apply_note(a, LS_NOTE_LINK, id, EPERM);
    int dir = ls_apply_dir(a, mem, first->parent);
    if (dir < 0)
        return -1;
    if (dir != a->root) {
        dir = a->held = fcntl(dir, F_DUPFD_CLOEXEC, 0);
        if (dir < 0)
            return -1;
    }
    int result = -1, there = ls_apply_dir(a, mem, node->parent);
    if (there >= 0) {
        apply_name(mem, first, from);
        apply_name(mem, node, to);
        result = linkat(dir, from, there, to, 0);
    }
    int error = errno;
    if (a->held >= 0)
        close(a->held);
    a->held = -1;
    errno = error;
    return result;
}

static int make_whiteout(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    char name[256];
    const ls_tree_node *node = &mem->nodes[id];
    int dir = ls_apply_dir(a, mem, node->parent);
    if (dir < 0)
        return -1;
    apply_name(mem, node, name);
    return mknodat(dir, name, S_IFCHR, makedev(0, 0));
}

int ls_apply_run(ls_apply *a, const ls_tree_mem *mem, int what, const uint32_t *ids, size_t n,
                 ls_apply_out *out, ls_error *err) {
    for (size_t i = 0; i < n; i++) {
        int result;
        switch (what) {
        case LS_MAKE_DIRS:
            result = make_dir(a, mem, ids[i]);
            break;
        case LS_MAKE_OTHERS:
            result = make_other(a, mem, ids[i]);
            break;
        case LS_MAKE_LINKS:
            result = make_name(a, mem, ids[i]);
            break;
        case LS_MAKE_WHITEOUTS:
            result = make_whiteout(a, mem, ids[i]);
            break;
        case LS_FINISH_DIRS:
            result = finish_dir(a, mem, ids[i]);
            break;
        default:
            return ls_tar_fail(err, LS_EINVALID, 0, "no such work");
        }
        if (result < 0)
            return ls_apply_result(a, i, ids[i], errno, out, err);
    }
    return ls_apply_result(a, n, NONE, 0, out, err);
}
