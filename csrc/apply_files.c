/* apply_files.c: regular files, their content straight from where it lies decoded.
 *
 * Each is made with O_EXCL, so it is ours and new; nothing that exists is ever written to. Runs of
 * zeros become holes, and so do those of a sparse map.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "apply_impl.h"

#define HOLE 65536 /* zeros that are worth a hole; below it one costs more than it saves */

static int write_all(int fd, const uint8_t *p, size_t n, uint64_t at) {
    while (n > 0) {
        ssize_t w = pwrite(fd, p, n, (off_t)at);
        if (w < 0) {
            if (errno == EINTR)
                continue;
            return -1;
        }
        p += w;
        n -= (size_t)w;
        at += (uint64_t)w;
    }
    return 0;
}

static int all_zero(const uint8_t *p, size_t n) {
    return p[0] == 0 && p[n / 2] == 0 && p[n - 1] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

/* Writes, but for aligned stretches of zeros. */
static int write_some(ls_apply *a, const uint8_t *p, size_t n, uint64_t at) {
    size_t from = 0, i = (size_t)(-at & (HOLE - 1));
    a->bytes += n;
    for (; i < n && n - i >= HOLE; i += HOLE) {
        if (!all_zero(p + i, HOLE))
            continue;
        if (i > from && write_all(a->file, p + from, i - from, at + from) < 0)
            return -1;
        from = i + HOLE;
    }
    if (n > from) {
        if (write_all(a->file, p + from, n - from, at + from) < 0)
            return -1;
        a->length = at + n;
    }
    return 0;
}

/* The next n bytes of the payload. */
static int put_payload(ls_apply *a, const ls_tree_mem *mem, const ls_tree_node *node,
                       const uint8_t *p, size_t n) {
    uint32_t at = 0, len = 0;
    const uint8_t *map = node->extra_len ? ls_tree_extra(mem, node, EXTRA_MAP, &at, &len) : NULL;
    if (map == NULL) {
        if (write_some(a, p, n, a->taken) < 0)
            return -1;
        a->taken += n;
        return 0;
    }
    /* The scanner has seen that the map is in order, inside the size, and covers the payload. */
    while (n > 0) {
        if (16 * (uint64_t)a->map_at + 16 > len) {
            errno = EINVAL;
            return -1;
        }
        uint64_t offset = tree_get64(map + 16 * a->map_at),
                 length = tree_get64(map + 16 * a->map_at + 8);
        uint64_t left = length - a->map_in;
        size_t c = left < n ? (size_t)left : n;
        if (c > 0 && write_some(a, p, c, offset + a->map_in) < 0)
            return -1;
        a->map_in += c;
        a->taken += c;
        p += c;
        n -= c;
        if (a->map_in == length) {
            a->map_at++;
            a->map_in = 0;
        }
    }
    return 0;
}

int ls_apply_create(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    const ls_tree_node *node = &mem->nodes[id], *name_node = &mem->nodes[node->link];
    char name[256];
    int dir = ls_apply_dir(a, mem, name_node->parent);
    if (dir < 0)
        return -1;
    apply_name(mem, name_node, name);
    /* Who may not set attributes on a file that they cannot write gets it writable first. */
    mode_t mode = ls_apply_has_xattrs(a, mem, node) ? 0600 : node->mode & 0777;
    a->file = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (a->file < 0)
        return -1;
    a->node = id;
    a->taken = a->length = a->map_in = 0;
    a->map_at = 0;
    return 0;
}

static int begin(ls_apply *a, const ls_tree_mem *mem, uint32_t id) {
    const ls_tree_node *node = &mem->nodes[id];
    if (ls_apply_create(a, mem, id) < 0)
        return -1;
    uint32_t at = 0, len = 0;
    const uint8_t *p = node->extra_len ? ls_tree_extra(mem, node, EXTRA_INLINE, &at, &len) : NULL;
    return p == NULL ? 0 : put_payload(a, mem, node, p, len);
}

int ls_apply_end(ls_apply *a, const ls_tree_mem *mem) {
    const ls_tree_node *node = &mem->nodes[a->node];
    mode_t made = node->mode & 0777 & ~(mode_t)a->umask;
    apply_what w = {a->file, 0, node->mode != made || ls_apply_has_xattrs(a, mem, node), a->node};
    if (a->length != node->size && ftruncate(a->file, (off_t)node->size) < 0)
        return -1;
    if (ls_apply_attributes(a, mem, node, w) < 0)
        return -1;
    int fd = a->file;
    a->file = -1;
    /* Over a network, close is where a write can fail. */
    return close(fd);
}

int ls_apply_feed(ls_apply *a, const ls_tree_mem *mem, const uint32_t *ids, size_t n, uint64_t base,
                  const uint8_t *data, size_t size, ls_apply_out *out, ls_error *err) {
    size_t i = 0;
    for (; i < n; i++) {
        const ls_tree_node *node = &mem->nodes[ids[i]];
        uint64_t stored = ls_tree_stored(mem, node);
        uint32_t at = 0, ahead = 0;
        if (node->extra_len && ls_tree_extra(mem, node, EXTRA_INLINE, &at, &ahead) == NULL)
            ahead = 0;
        if (a->file < 0) {
            if (stored > ahead && node->at >= base + size)
                break;
            if (begin(a, mem, ids[i]) < 0)
                return ls_apply_result(a, i, ids[i], errno, out, err);
        } else if (a->node != ids[i]) {
            return ls_tar_fail(err, LS_ESTATE, 0, "another file is half-written");
        }
        uint64_t left = stored - a->taken;
        if (left > 0) {
            uint64_t want = node->at + (a->taken - ahead);
            if (want < base || want > base + size)
                return ls_tar_fail(err, LS_ESTATE, want, "content was left out");
            uint64_t have = base + size - want;
            size_t c = left < have ? (size_t)left : (size_t)have;
            if (c > 0 && put_payload(a, mem, node, data + (want - base), c) < 0)
                return ls_apply_result(a, i, ids[i], errno, out, err);
            if (left > c)
                break;
        }
        if (ls_apply_end(a, mem) < 0)
            return ls_apply_result(a, i, ids[i], errno, out, err);
    }
    return ls_apply_result(a, i, NONE, 0, out, err);
}
