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

/* Whether the node's content is its own, and read. */
static int has_content(const ls_node *node) {
    const uint32_t without =
        LS_NODE_WHITEOUT | LS_NODE_SKIP | LS_NODE_HARDLINK | LS_NODE_METACOPY;
    return S_ISREG(node->mode) && node->size > 0 && node->root == 0 && !(node->flags & without);
}

size_t ls_seen_collect(const ls_node *nodes, size_t n, int64_t before_sec, uint32_t before_nsec,
                       ls_seen *out, int *racy) {
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
        s->dev_major = node->dev_major;
        s->dev_minor = node->dev_minor;
        s->ino = node->ino;
        s->size = node->size;
        s->mtime_sec = node->mtime_sec;
        s->ctime_sec = node->ctime_sec;
        s->mtime_nsec = node->mtime_nsec;
        s->ctime_nsec = node->ctime_nsec;
        s->data_offset = node->data_offset;
    }
    return found;
}

static int less(const ls_seen *a, const ls_seen *b) {
    if (a->ino != b->ino)
        return a->ino < b->ino;
    if (a->dev_major != b->dev_major)
        return a->dev_major < b->dev_major;
    return a->dev_minor < b->dev_minor;
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

size_t ls_seen_mark(ls_node *nodes, size_t n, const ls_seen *seen, size_t n_seen) {
    size_t marked = 0;
    for (size_t i = 0; i < n; i++) {
        ls_node *node = &nodes[i];
        if (!has_content(node))
            continue;
        ls_seen want = {.dev_major = node->dev_major, .dev_minor = node->dev_minor,
                        .ino = node->ino};
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
        const ls_seen *s = &seen[lo];
        if (s->size != node->size || s->mtime_sec != node->mtime_sec ||
            s->mtime_nsec != node->mtime_nsec || s->ctime_sec != node->ctime_sec ||
            s->ctime_nsec != node->ctime_nsec)
            continue;
        node->flags |= LS_NODE_GIVEN;
        node->given_offset = s->data_offset;
        marked++;
    }
    return marked;
}

void ls_nodes_hash(const ls_node *nodes, size_t n, const uint8_t *arena, ls_blake3 *h) {
    for (size_t i = 0; i < n; i++) {
        ls_node node = nodes[i];
        node.flags = node.root = node.path_off = node.name_off = 0;
        node.link_off = node.link_len = node.xattr_off = node.xattr_len = 0;
        node.data_offset = node.given_offset = 0;
        ls_blake3_update(h, (const uint8_t *)&node, sizeof node);
        ls_blake3_update(h, arena + nodes[i].path_off, node.path_len);
    }
}
