/* apply_attr.c: owner, extended attributes, mode and times of what was just made, by its descriptor.
 *
 * In this order: a change of owner takes away set-id bits and capabilities, and an attribute of the
 * owner can be set only as long as the mode lets them write.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "apply_impl.h"

#define NAME_MAX_XATTR 255
#define CAPABILITY "security.capability"
#define ACL_MAX 8192 /* 1,023 entries; ext4 takes 500 */
#define OVERLAY_TRUSTED "trusted.overlay."
#define OVERLAY_USER "user.overlay."
#define ROOTLESS "user.rootlesscontainers"

int ls_apply_note(ls_apply *a, int what, uint32_t id, int error) {
    if (!(a->flags & (LS_APPLY_TRY | LS_APPLY_ROOTLESS)) && what != LS_NOTE_OVERLAY &&
        what != LS_NOTE_ACL)
        return -1;
    if (a->notes[what]++ == 0) {
        a->first[what] = id;
        a->why[what] = error;
    }
    return 0;
}

/* Not allowed, or not known there; but nothing like a full disk. */
static int may_note(int error) {
    return error == EPERM || error == EACCES || error == EOPNOTSUPP || error == EINVAL ||
           error == ENOSYS;
}

static int note_or_fail(ls_apply *a, int what, uint32_t id) {
    int error = errno;
    if (may_note(error) && ls_apply_note(a, what, id, error) == 0)
        return 0;
    errno = error;
    return -1;
}

static int map_id(const ls_apply_idmap *maps, size_t n, uint32_t id, uint32_t *out) {
    *out = id;
    if (n == 0)
        return 1;
    for (size_t i = 0; i < n; i++)
        if (id >= maps[i].inside && id - maps[i].inside < maps[i].count) {
            *out = maps[i].outside + (id - maps[i].inside);
            return 1;
        }
    return 0;
}

static int set_xattr(const apply_what *w, const char *name, const void *value, size_t size) {
    if (!w->path)
        return fsetxattr(w->fd, name, value, size, 0);
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", w->fd);
    return setxattr(path, name, value, size, 0);
}

/* user.rootlesscontainers holds a protobuf message: field 1 the uid, field 2 the gid, as varints. */
static size_t put_field(uint8_t *out, uint8_t tag, uint32_t value) {
    size_t n = 0;
    if (value == 0)
        return 0;
    out[n++] = tag;
    for (; value >= 0x80; value >>= 7)
        out[n++] = (uint8_t)(value | 0x80);
    out[n++] = (uint8_t)value;
    return n;
}

static int set_rootless(ls_apply *a, const ls_tree_node *node, const apply_what *w) {
    uint8_t value[12];
    if (node->uid == 0 && node->gid == 0)
        return 0;
    if (node->type != '0' && node->type != '5') { /* user. attributes are for these alone */
        ls_apply_note(a, LS_NOTE_OWNER, w->id, EPERM);
        return 0;
    }
    size_t n = put_field(value, 0x08, node->uid);
    n += put_field(value + n, 0x10, node->gid);
    return set_xattr(w, ROOTLESS, value, n) == 0 ? 0 : note_or_fail(a, LS_NOTE_OWNER, w->id);
}

/* *own: the owner is the one that the layer names. */
static int set_owner(ls_apply *a, const ls_tree_node *node, const apply_what *w, int *own,
                     int *changed) {
    uint32_t uid, gid;
    *own = 1;
    if (a->flags & LS_APPLY_ROOTLESS)
        return set_rootless(a, node, w);
    int known =
        map_id(a->uids, a->n_uids, node->uid, &uid) && map_id(a->gids, a->n_gids, node->gid, &gid);
    if (!known) {
        *own = 0;
        errno = EINVAL;
        return note_or_fail(a, LS_NOTE_UNMAPPED, w->id);
    }
    if (uid == a->uid && gid == a->gid)
        return 0;
    *changed = 1;
    if (fchownat(w->fd, "", uid, gid, AT_EMPTY_PATH) == 0)
        return 0;
    *own = 0;
    int error = errno;
    /* As far as it goes: a group of ours is allowed. */
    if (a->flags & LS_APPLY_TRY)
        (void)!fchownat(w->fd, "", (uid_t)-1, gid, AT_EMPTY_PATH);
    errno = error;
    return note_or_fail(a, LS_NOTE_OWNER, w->id);
}

static int starts(const char *name, const char *prefix) {
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

int ls_apply_has_xattrs(const ls_apply *a, const ls_tree_mem *mem, const ls_tree_node *node) {
    uint32_t at = 0, len;
    if ((a->flags & LS_APPLY_ROOTLESS) && (node->uid || node->gid))
        return 1;
    return node->extra_len != 0 && ls_tree_extra(mem, node, EXTRA_XATTR, &at, &len) != NULL;
}

/* Version 3 of file capabilities holds the uid of the root that may use them: an owner like others
 * (capabilities(7); struct vfs_ns_cap_data, little endian: u32 magic, 4 u32, u32 root). */
static int map_capability(const ls_apply *a, uint8_t *value, uint32_t size) {
    uint32_t root;
    if (size != 24 || tree_get32(value) >> 24 != 3)
        return 0;
    if (!map_id(a->uids, a->n_uids, tree_get32(value + 20), &root)) {
        errno = EINVAL;
        return -1;
    }
    tree_put32(value + 20, root);
    return 0;
}

static int set_mode(const apply_what *w, mode_t mode) {
    if (!w->path)
        return fchmod(w->fd, mode);
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", w->fd);
    return chmod(path, mode);
}

/* Users and groups in an access control list are owners, too. */
static int map_acl(const ls_apply *a, const uint8_t *value, uint32_t size, uint8_t *out) {
    memcpy(out, value, size);
    for (uint32_t at = 4; at + 8 <= size; at += 8) {
        uint32_t id;
        int user = out[at] == TREE_ACL_USER, known = 1;
        if (user || out[at] == TREE_ACL_GROUP) {
            known = map_id(user ? a->uids : a->gids, user ? a->n_uids : a->n_gids,
                           tree_get32(out + at + 4), &id);
            if (known)
                tree_put32(out + at + 4, id);
        }
        if (!known)
            return 0;
    }
    return 1;
}

static int set_acl(const ls_apply *a, const apply_what *w, const char *name, const uint8_t *value,
                   uint32_t size) {
    uint8_t mapped[ACL_MAX];
    if (a->n_uids == 0 && a->n_gids == 0)
        return set_xattr(w, name, value, size);
    if (size > sizeof mapped) {
        errno = ERANGE;
        return -1;
    }
    if (!map_acl(a, value, size, mapped)) {
        errno = EINVAL;
        return -1;
    }
    return set_xattr(w, name, mapped, size);
}

/* What a list gives the file's own group, where the mode may show the mask. */
static mode_t without_acl(mode_t mode, const uint8_t *value, uint32_t size) {
    for (uint32_t at = 4; at + 8 <= size; at += 8)
        if (value[at] == TREE_ACL_GROUP_OBJ)
            mode &= ~(mode_t)((~(unsigned)value[at + 2] & 7u) << 3);
    return mode;
}

/* The access control list, after the mode, which would change its mask. */
static int set_access(ls_apply *a, const ls_tree_mem *mem, const ls_tree_node *node,
                      const apply_what *w, mode_t mode) {
    uint32_t at = 0, len, size = 0;
    const uint8_t *p, *value = NULL;
    while ((p = ls_tree_extra(mem, node, EXTRA_XATTR, &at, &len)) != NULL) {
        uint32_t name_len = (uint32_t)p[0] | (uint32_t)p[1] << 8;
        if (name_len == sizeof TREE_XATTR_ACCESS - 1 &&
            memcmp(p + 2, TREE_XATTR_ACCESS, name_len) == 0) {
            value = p + 2 + name_len;
            size = len - 2 - name_len;
        }
    }
    if (value == NULL || set_acl(a, w, TREE_XATTR_ACCESS, value, size) == 0)
        return 0;
    if (note_or_fail(a, LS_NOTE_XATTR, w->id) < 0)
        return -1;
    return set_mode(w, without_acl(mode, value, size)) == 0 ? 0
                                                            : note_or_fail(a, LS_NOTE_MODE, w->id);
}

static int set_xattrs(ls_apply *a, const ls_tree_mem *mem, const ls_tree_node *node,
                      const apply_what *w) {
    uint32_t at = 0, len;
    const uint8_t *p;
    if (ls_tree_extra(mem, node, EXTRA_LOST, &at, &len) != NULL)
        ls_apply_note(a, LS_NOTE_ACL, w->id, 0);
    at = 0;
    while ((p = ls_tree_extra(mem, node, EXTRA_XATTR, &at, &len)) != NULL) {
        char name[NAME_MAX_XATTR + 1];
        uint8_t capability[24];
        uint32_t name_len = (uint32_t)p[0] | (uint32_t)p[1] << 8;
        const uint8_t *value = p + 2 + name_len;
        uint32_t size = len - 2 - name_len;
        if (name_len > NAME_MAX_XATTR) {
            errno = ERANGE;
            return -1;
        }
        memcpy(name, p + 2, name_len);
        name[name_len] = 0;
        if ((a->flags & LS_APPLY_UPPER) &&
            (starts(name, OVERLAY_TRUSTED) || starts(name, OVERLAY_USER))) {
            ls_apply_note(a, LS_NOTE_OVERLAY, w->id, 0);
            continue;
        }
        if (a->n_uids && size == sizeof capability && strcmp(name, CAPABILITY) == 0) {
            memcpy(capability, value, sizeof capability);
            /* As it stands it would be a right of whoever has that number here. */
            if (map_capability(a, capability, size) < 0) {
                if (note_or_fail(a, LS_NOTE_XATTR, w->id) < 0)
                    return -1;
                continue;
            }
            value = capability;
        }
        if (strcmp(name, TREE_XATTR_ACCESS) == 0)
            continue;
        if (strcmp(name, TREE_XATTR_DEFAULT) == 0) {
            if (set_acl(a, w, name, value, size) < 0 && note_or_fail(a, LS_NOTE_XATTR, w->id) < 0)
                return -1;
            continue;
        }
        if (set_xattr(w, name, value, size) < 0 && note_or_fail(a, LS_NOTE_XATTR, w->id) < 0)
            return -1;
    }
    return 0;
}

int ls_apply_opaque(ls_apply *a, int fd) {
    const char *name =
        a->flags & LS_APPLY_USER_XATTR ? "user.overlay.opaque" : "trusted.overlay.opaque";
    return fsetxattr(fd, name, "y", 1, 0);
}

int ls_apply_attributes(ls_apply *a, const ls_tree_mem *mem, const ls_tree_node *node,
                        apply_what w) {
    int own = 1, changed = 0;
    if (set_owner(a, node, &w, &own, &changed) < 0)
        return -1;
    if (node->extra_len && set_xattrs(a, mem, node, &w) < 0)
        return -1;
    mode_t mode = node->mode;
    if (!own && (mode & (S_ISUID | S_ISGID)) && node->type != '2') {
        /* Set-id for another owner than the layer means would be a right that nobody gave. */
        ls_apply_note(a, LS_NOTE_SETID, w.id, 0);
        mode &= (mode_t) ~(S_ISUID | S_ISGID);
    }
    if (node->type != '2' && (w.set_mode || (changed && (mode & (S_ISUID | S_ISGID)))) &&
        set_mode(&w, mode) < 0 && note_or_fail(a, LS_NOTE_MODE, w.id) < 0)
        return -1;
    if (node->extra_len && set_access(a, mem, node, &w, mode) < 0)
        return -1;
    struct timespec times[2] = {{(time_t)node->mtime_sec, (long)node->mtime_nsec},
                                {(time_t)node->mtime_sec, (long)node->mtime_nsec}};
    int done = w.path ? utimensat(w.fd, "", times, AT_EMPTY_PATH) : futimens(w.fd, times);
    return done == 0 ? 0 : note_or_fail(a, LS_NOTE_TIMES, w.id);
}
