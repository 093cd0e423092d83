/* seen.c: which files of a tree were read before, and where their bytes lie since.
 *
 * A file whose device, inode, size, mtime and ctime are the same has the same content, unless it was
 * changed within one tick of the filesystem's clock after it was read. So a file that had changed only
 * just before is not remembered: nobody could tell the next change from that one.
 */
#include <string.h>
#include <sys/stat.h>

#include "layerstore.h"

#define WHOLE_SECONDS 2 /* what a filesystem that keeps no nanoseconds may round */

static int earlier(int64_t sec, uint32_t nsec, int64_t than_sec, uint32_t than_nsec) {
    return sec < than_sec || (sec == than_sec && nsec < than_nsec);
}

/* Whether the node's content is read, here or in a directory below: what the node says of the inode is of
 * the file that has the content. */
static int has_content(const ls_node *node) {
    const uint32_t without = LS_NODE_WHITEOUT | LS_NODE_SKIP | LS_NODE_HARDLINK | LS_NODE_METACOPY;
    return S_ISREG(node->mode) && node->size > 0 && !(node->flags & without);
}

/* What says that a file is the one it was. */
static void hash_of(const ls_node *node, const uint8_t *key, uint64_t *out) {
    const uint64_t said[8] = {((uint64_t)node->dev_major << 32) | node->dev_minor,
                              node->ino,
                              node->size,
                              (uint64_t)node->mtime_sec,
                              node->mtime_nsec,
                              (uint64_t)node->ctime_sec,
                              node->ctime_nsec,
                              0};
    uint8_t hash[32];
    ls_blake3_hash(LS_SIMD_AUTO, key, (const uint8_t *)said, sizeof said, hash);
    memcpy(out, hash, 16);
}

size_t ls_seen_collect(const ls_node *nodes, size_t n, int64_t before_sec, uint32_t before_nsec,
                       const uint8_t *key, ls_seen *out, int *racy) {
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        const ls_node *node = &nodes[i];
        int64_t sec = node->ctime_sec + (node->ctime_nsec == 0 ? WHOLE_SECONDS : 0);
        if (!earlier(sec, node->ctime_nsec, before_sec, before_nsec)) {
            *racy = 1;
            continue;
        }
        if (!has_content(node))
            continue;
        ls_seen *s = &out[found++];
        hash_of(node, key, s->hash);
        s->data_offset = node->data_offset;
    }
    return found;
}

static int less(const ls_seen *a, const ls_seen *b) {
    return a->hash[0] != b->hash[0] ? a->hash[0] < b->hash[0] : a->hash[1] < b->hash[1];
}

static void sift(ls_seen *seen, size_t at, size_t n) {
    ls_seen moving = seen[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && less(&seen[child], &seen[child + 1]))
            child++;
        if (!less(&moving, &seen[child]))
            break;
        seen[at] = seen[child];
    }
    seen[at] = moving;
}

void ls_seen_sort(ls_seen *seen, size_t n) {
    for (size_t i = n / 2; i-- > 0;)
        sift(seen, i, n);
    for (size_t end = n; end-- > 1;) {
        ls_seen last = seen[end];
        seen[end] = seen[0];
        seen[0] = last;
        sift(seen, 0, end);
    }
}

size_t ls_seen_mark(ls_node *nodes, size_t n, const uint8_t *key, const ls_seen *seen,
                    size_t n_seen) {
    size_t marked = 0;
    for (size_t i = 0; i < n; i++) {
        ls_node *node = &nodes[i];
        if (!has_content(node))
            continue;
        ls_seen want = {{0, 0}, 0};
        hash_of(node, key, want.hash);
        size_t lo = 0, hi = n_seen;
        while (lo < hi) {
            size_t mid = lo + (hi - lo) / 2;
            if (less(&seen[mid], &want))
                lo = mid + 1;
            else
                hi = mid;
        }
        if (lo == n_seen || less(&want, &seen[lo]))
            continue;
        node->flags |= LS_NODE_GIVEN;
        node->given_offset = seen[lo].data_offset;
        marked++;
    }
    return marked;
}

void ls_nodes_sum(const ls_node *nodes, size_t n, const uint8_t *arena, int with_root,
                  const uint8_t *key, uint64_t *sum) {
    for (size_t i = 0; i < n; i++) {
        const ls_node *node = &nodes[i];
        struct {
            uint64_t ino, size, mtime_sec, ctime_sec;
            uint32_t mtime_nsec, ctime_nsec, mode, uid, gid, nlink;
            uint32_t dev_major, dev_minor, rdev_major, rdev_minor;
            uint8_t name[256];
        } said;
        uint8_t hash[32];
        uint64_t parts[4];
        size_t len = node->path_len, cut = len;
        if (len == 0 && !with_root)
            continue;
        const uint8_t *path = arena + node->path_off;
        while (cut > 0 && path[cut - 1] != '/')
            cut--;
        size_t name = len - cut < sizeof said.name ? len - cut : sizeof said.name;
        said.ino = node->ino;
        said.size = node->size;
        said.mtime_sec = (uint64_t)node->mtime_sec;
        said.ctime_sec = (uint64_t)node->ctime_sec;
        said.mtime_nsec = node->mtime_nsec;
        said.ctime_nsec = node->ctime_nsec;
        said.mode = node->mode;
        said.uid = node->uid;
        said.gid = node->gid;
        said.nlink = node->nlink;
        said.dev_major = node->dev_major;
        said.dev_minor = node->dev_minor;
        said.rdev_major = node->rdev_major;
        said.rdev_minor = node->rdev_minor;
        memcpy(said.name, path + cut, name);
        ls_blake3_hash(LS_SIMD_AUTO, key, (const uint8_t *)&said,
                       sizeof said - sizeof said.name + name, hash);
        memcpy(parts, hash, sizeof parts);
        for (size_t k = 0; k < 4; k++)
            sum[k] += parts[k];
    }
}
