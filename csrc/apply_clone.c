/* apply_clone.c: files whose content an earlier checkout of the same entry has on this filesystem.
 *
 * The earlier file is somebody's by now, who may change it at any time. It is opened below its root as
 * every name here is, must be the one that was remembered (inode, size, mtime, ctime), and must be that
 * still when its content has been taken. What is not goes the usual way. Attributes are never taken.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "apply_impl.h"

#define WHOLE_SECONDS 2 /* what a filesystem that keeps no nanoseconds may round */

/* f_type of filesystems whose server copies (linux/magic.h; fs/smb, fs/nfs, fs/ceph). */
#define NFS_MAGIC 0x6969
#define CIFS_MAGIC 0xff534d42u
#define SMB2_MAGIC 0xfe534d42u
#define CEPH_MAGIC 0x00c36400

int ls_clone_way(int dir_fd) {
    struct statfs fs;
    if (fstatfs(dir_fd, &fs) < 0)
        return LS_CLONE_NONE;
    uint32_t type = (uint32_t)fs.f_type;
    if (type == NFS_MAGIC || type == CIFS_MAGIC || type == SMB2_MAGIC || type == CEPH_MAGIC)
        return LS_CLONE_COPY;
    int from = openat(dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (from < 0)
        return LS_CLONE_NONE;
    int way = LS_CLONE_NONE, to = openat(dir_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (to >= 0) {
        if (ioctl(to, FICLONE, from) == 0)
            way = LS_CLONE_SHARE;
        close(to);
    }
    close(from);
    return way;
}

static const ls_seed *find(const ls_seed *seeds, size_t n, uint64_t header) {
    size_t low = 0;
    while (low < n) {
        size_t middle = low + (n - low) / 2;
        if (seeds[middle].header < header)
            low = middle + 1;
        else
            n = middle;
    }
    return seeds + low;
}

static int is_same(int fd, const ls_seed *seed, uint64_t size) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_ino == seed->ino &&
           st.st_size >= 0 && (uint64_t)st.st_size == size &&
           st.st_mtim.tv_sec == seed->mtime_sec && st.st_mtim.tv_nsec == (long)seed->mtime_nsec &&
           st.st_ctim.tv_sec == seed->ctime_sec && st.st_ctim.tv_nsec == (long)seed->ctime_nsec;
}

/* The file of a node as it lies below a's root, if it does. */
static int open_earlier(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    char name[256];
    const ls_tree_node *named = &mem->nodes[mem->nodes[id].link];
    int dir = ls_apply_dir(a, mem, named->parent);
    if (dir < 0)
        return -1;
    apply_name(mem, named, name);
    /* What waits there may be anything by now: nothing that would block, nothing that is followed. */
    return openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

static int copy_all(int from, int to, uint64_t size) {
    off64_t in = 0, out = 0;
    while (size > 0) {
        ssize_t n = copy_file_range(from, &in, to, &out, size < 1u << 30 ? size : 1u << 30, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        size -= (uint64_t)n;
    }
    return 0;
}

/* 1: it is made; 0: it must be made the usual way; -1 and errno. */
static int clone_one(ls_apply *a, ls_apply *from, const ls_tree_mem *mem, int way,
                     const ls_seed *seed, uint32_t id) {
    char name[256];
    const ls_tree_node *node = &mem->nodes[id], *named = &mem->nodes[node->link];
    int made = 0, earlier = open_earlier(from, mem, id);
    if (earlier < 0)
        return 0;
    if (!is_same(earlier, seed, node->size))
        goto out;
    if (ls_apply_create(a, mem, id) < 0) {
        made = -1;
        goto out;
    }
    int taken = way == LS_CLONE_SHARE ? ioctl(a->file, FICLONE, earlier)
                                      : copy_all(earlier, a->file, node->size);
    if (taken == 0 && is_same(earlier, seed, node->size)) {
        a->taken = ls_tree_stored(mem, node);
        a->length = node->size;
        a->bytes += a->taken;
        made = ls_apply_end(a, mem) < 0 ? -1 : 1;
        goto out;
    }
    close(a->file);
    a->file = -1;
    int dir = ls_apply_dir(a, mem, named->parent);
    apply_name(mem, named, name);
    if (dir < 0 || unlinkat(dir, name, 0) < 0)
        made = -1;
    int error;
out:
    error = errno;
    close(earlier);
    errno = error;
    return made;
}

int ls_apply_clone(ls_apply *a, ls_apply *from, const ls_tree_mem *mem, int way,
                   const ls_seed *seeds, size_t n_seeds, const uint32_t *ids, size_t n,
                   uint32_t *left, ls_apply_out *out, ls_error *err) {
    size_t n_left = 0;
    const ls_seed *end = seeds + n_seeds;
    for (size_t i = 0; i < n; i++) {
        uint64_t header = mem->nodes[ids[i]].header;
        seeds = find(seeds, (size_t)(end - seeds), header);
        int made = 0;
        if (seeds < end && seeds->header == header)
            made = clone_one(a, from, mem, way, seeds, ids[i]);
        if (made < 0)
            return ls_apply_result(a, n_left, ids[i], errno, out, err);
        if (made == 0)
            left[n_left++] = ids[i];
    }
    return ls_apply_result(a, n_left, NONE, 0, out, err);
}

size_t ls_apply_seeds(ls_apply *a, const ls_tree_mem *mem, const uint32_t *ids, size_t n,
                      uint64_t smallest, int64_t before_sec, uint32_t before_nsec, ls_seed *out) {
    size_t made = 0;
    for (size_t i = 0; i < n; i++) {
        const ls_tree_node *node = &mem->nodes[ids[i]], *named = &mem->nodes[node->link];
        char name[256];
        struct stat st;
        if (node->size < smallest)
            continue;
        int dir = ls_apply_dir(a, mem, named->parent);
        if (dir < 0)
            continue;
        apply_name(mem, named, name);
        if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode) ||
            (uint64_t)st.st_size != node->size)
            continue;
        int64_t changed = st.st_ctim.tv_sec + (st.st_ctim.tv_nsec == 0 ? WHOLE_SECONDS : 0);
        if (changed > before_sec ||
            (changed == before_sec && st.st_ctim.tv_nsec >= (long)before_nsec))
            continue;
        out[made++] = (ls_seed){
            node->header,      (uint64_t)st.st_ino,          st.st_mtim.tv_sec,
            st.st_ctim.tv_sec, (uint32_t)st.st_mtim.tv_nsec, (uint32_t)st.st_ctim.tv_nsec};
    }
    return made;
}
