/* apply_dirs.c: directories of the target by descriptor, so that nothing outside can be reached.
 *
 * openat2(2) with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_XDEV walks several parts in one
 * call and refuses every link, mount and way up. Where the kernel lacks it (below 5.6, or filtered),
 * one openat with O_NOFOLLOW for each part does the same but for mounts. A directory that somebody
 * moves away is followed to where they moved it; what they put in its place is never entered unless
 * it is a directory below the root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "apply_impl.h"

#ifndef SYS_openat2
#define SYS_openat2 437
#endif

/* struct open_how and its RESOLVE_ flags, of linux/openat2.h, which older headers lack. */
typedef struct how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
} how;
#define NO_XDEV 0x01
#define NO_MAGICLINKS 0x02
#define NO_SYMLINKS 0x04
#define BENEATH 0x08

#define SEGMENT 4000 /* bytes of a path in one call; PATH_MAX is 4096 */

static int walk_plain(int at, char *path, int flags) {
    int fd = at;
    while (*path != 0) {
        char *slash = strchr(path, '/');
        if (slash != NULL)
            *slash = 0;
        int next = openat(fd, path, O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC | flags);
        int error = errno;
        if (fd != at)
            close(fd);
        if (next < 0) {
            errno = error;
            return -1;
        }
        fd = next;
        if (slash == NULL)
            break;
        path = slash + 1;
    }
    return fd;
}

static int open_below(ls_apply *a, int at, char *path, int flags) {
    if (!(a->flags & LS_APPLY_NO_OPENAT2)) {
        how h = {(uint64_t)(O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC | flags), 0,
                 NO_XDEV | NO_MAGICLINKS | NO_SYMLINKS | BENEATH};
        long fd = syscall(SYS_openat2, at, path, &h, sizeof h);
        if (fd >= 0)
            return (int)fd;
        /* Filters answer EPERM for calls that they do not know. */
        if (errno != ENOSYS && errno != EPERM)
            return -1;
        a->flags |= LS_APPLY_NO_OPENAT2;
    }
    return walk_plain(at, path, flags);
}

int ls_apply_open_dir(ls_apply *a, int at, const char *name, int flags) {
    char path[256];
    size_t n = strlen(name);
    memcpy(path, name, n + 1);
    return open_below(a, at, path, flags);
}

int ls_apply_dir(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    uint32_t chain[LS_TREE_DEPTH + 1];
    char path[SEGMENT + 258];
    size_t n = 0;
    int fd = a->root, own = 0;
    for (uint32_t at = id; at != a->root_id; at = mem->nodes[at].parent) {
        if (at == NONE || n > LS_TREE_DEPTH) {
            errno = ELOOP;
            return -1;
        }
        if (a->ids[at % APPLY_SLOTS] == at) {
            fd = a->fds[at % APPLY_SLOTS];
            break;
        }
        chain[n++] = at;
    }
    if (n == 0)
        return fd;
    while (n > 0) {
        size_t used = 0;
        while (n > 0 && used < SEGMENT - 256) {
            const ls_tree_node *node = &mem->nodes[chain[--n]];
            if (used > 0)
                path[used++] = '/';
            apply_name(mem, node, path + used);
            used += node->name_len;
        }
        path[used] = 0;
        int next = open_below(a, fd, path, O_PATH);
        int error = errno;
        if (own)
            close(fd);
        if (next < 0) {
            errno = error;
            return -1;
        }
        fd = next;
        own = 1;
    }
    uint32_t slot = id % APPLY_SLOTS;
    if (a->ids[slot] != NONE)
        close(a->fds[slot]);
    a->ids[slot] = id;
    a->fds[slot] = fd;
    return fd;
}
