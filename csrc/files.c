/* files.c: opening below a directory descriptor, whatever lies on the way.
 *
 * openat2 (Linux 5.6) resolves a whole path beneath the descriptor and follows no link; where it is
 * missing (ENOSYS, or EPERM of an old seccomp filter), and for paths that are too long for one call,
 * each component is opened with O_NOFOLLOW.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files_impl.h"

#define SHORT 4000 /* below PATH_MAX */

/* As in linux/openat2.h, which old headers lack. */
struct how {
    uint64_t flags;
    uint64_t mode;
    uint64_t resolve;
};
#define HOW_NO_MAGICLINKS 0x02
#define HOW_NO_SYMLINKS 0x04
#define HOW_BENEATH 0x08

int ls_files_fail(ls_error *err, int code, int number, const char *reason) {
    if (err) {
        memset(err, 0, sizeof *err);
        err->code = code;
        err->offset = (uint64_t)number;
        snprintf(err->reason, sizeof err->reason, "%s", reason);
    }
    return code;
}

const char *ls_files_proc(char *out, int dir, const char *name) {
    int n = snprintf(out, 64, "/proc/self/fd/%d/", dir);
    memcpy(out + n, name, strlen(name) + 1);
    return out;
}

static int step_by_step(int base, const char *path, size_t len, int flags) {
    int at = base;
    size_t begin = 0;
    while (begin < len) {
        size_t end = begin;
        char name[256];
        while (end < len && path[end] != '/')
            end++;
        if (end - begin >= sizeof name || end == begin) {
            errno = end == begin ? EINVAL : ENAMETOOLONG;
            goto fail;
        }
        memcpy(name, path + begin, end - begin);
        name[end - begin] = 0;
        int last = end == len;
        int fd = openat(at, name, (last ? flags : O_PATH | O_DIRECTORY | O_CLOEXEC) | O_NOFOLLOW);
        if (fd < 0)
            goto fail;
        if (at != base)
            close(at);
        if (last)
            return fd;
        at = fd;
        begin = end + 1;
    }
    errno = ENOENT;
fail:
    if (at != base) {
        int keep = errno;
        close(at);
        errno = keep;
    }
    return -1;
}

int ls_files_open_at(int base, const char *path, size_t len, int flags) {
    if (len < SHORT) {
        char text[SHORT];
        memcpy(text, path, len);
        text[len] = 0;
        struct how how = {(uint64_t)(flags | O_NOFOLLOW), 0,
                          HOW_BENEATH | HOW_NO_SYMLINKS | HOW_NO_MAGICLINKS};
        long fd = syscall(SYS_openat2, base, text, &how, sizeof how);
        if (fd >= 0)
            return (int)fd;
        if (errno != ENOSYS && errno != EPERM)
            return -1;
    }
    return step_by_step(base, path, len, flags);
}

int ls_files_stays_here(const uint8_t *name, size_t n) {
    static const char *const prefixes[] = {"trusted.overlay.", "user.overlay.",
                                           "user.fuseoverlayfs."};
    static const char *const names[] = {"security.selinux", "security.evm"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (n >= strlen(prefixes[i]) && memcmp(name, prefixes[i], strlen(prefixes[i])) == 0)
            return 1;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (n == strlen(names[i]) && memcmp(name, names[i], n) == 0)
            return 1;
    return 0;
}

int ls_open_beneath(int root_fd, const char *path, size_t len) {
    int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK;
    int fd = len > 0 ? ls_files_open_at(root_fd, path, len, flags) : openat(root_fd, ".", flags);
    return fd < 0 ? -errno : fd;
}

size_t ls_file_handle(int root_fd, const char *path, size_t len, uint8_t *out, size_t size) {
    union {
        struct file_handle handle;
        uint8_t room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } u;
    int mount = 0;
    int fd = ls_files_open_at(root_fd, path, len, O_PATH | O_CLOEXEC);
    if (fd < 0)
        return 0;
    u.handle.handle_bytes = MAX_HANDLE_SZ;
    int failed = name_to_handle_at(fd, "", &u.handle, &mount, AT_EMPTY_PATH);
    close(fd);
    size_t n = u.handle.handle_bytes;
    if (failed || n + 1 > size || u.handle.handle_type < 0 || u.handle.handle_type > 255)
        return 0;
    out[0] = (uint8_t)u.handle.handle_type;
    memcpy(out + 1, u.handle.f_handle, n);
    return n + 1;
}
