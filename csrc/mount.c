/* mount.c: overlay, bind and idmapped mounts, and the user namespace that an idmapped mount wants.
 *
 * The new mount API takes every layer as a descriptor: no path is looked up twice, and nothing limits
 * how long the names are. Where the kernel lacks a part of it (lowerdir+ came with Linux 6.5, its
 * descriptors with 6.13), mount(2) does the work with names relative to one directory, in a child
 * process, since the working directory belongs to all threads. Children are made by a raw clone: they
 * make system calls only, touch no lock of the C library, and run no hook of the caller.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "layerstore.h"

/* From linux/mount.h, which cannot be included beside sys/mount.h in every C library. */
enum {
    SET_FLAG = 0,
    SET_STRING = 1,
    SET_FD = 5,
    CMD_CREATE = 6,
    OPEN_CLOEXEC = 1,
    FROM_EMPTY = 0x04,
    TO_EMPTY = 0x40,
    ATTR_RDONLY = 0x01,
};
#define ATTR_IDMAP 0x00100000u
#define TREE_CLONE 1u

struct attributes { /* struct mount_attr */
    uint64_t set, clear, propagation, userns;
};

/* The numbers are the same on every architecture (since Linux 5.2 and 5.12). */
static int open_tree_(int dir, const char *name, unsigned flags) {
    return (int)syscall(428, dir, name, flags);
}

static int move_mount_(int from, int to) {
    return (int)syscall(429, from, "", to, "", FROM_EMPTY | TO_EMPTY);
}

static int fsconfig_(int fs, unsigned command, const char *key, const void *value, int aux) {
    return (int)syscall(431, fs, command, key, value, aux);
}

static int setattr_(int mount, struct attributes *attr) {
    return (int)syscall(442, mount, "", (unsigned)AT_EMPTY_PATH, attr, sizeof *attr);
}

static void say(char *log, size_t size, const char *text) {
    if (size) {
        (void)snprintf(log, size, "%s", text);
    }
}

/* The kernel's own words about what it refused; the last line wins. */
static void hear(int fs, char *log, size_t size) {
    char line[256];
    ssize_t n;
    while ((n = read(fs, line, sizeof line - 1)) > 0) {
        while (n > 0 && line[n - 1] == '\n') {
            n--;
        }
        line[n] = '\0';
        say(log, size, line);
    }
}

static int fail(int code, int fd) {
    if (fd >= 0) {
        close(fd);
    }
    return code;
}

/* ---- user namespaces ------------------------------------------------------------------------- */

static int write_map(pid_t pid, const char *file, const char *map) {
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    size_t size = strlen(map);
    ssize_t n = write(fd, map, size);
    return fail(n == (ssize_t)size ? 0 : n < 0 ? -errno : -EIO, fd);
}

static int reap(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, __WALL) < 0) {
        if (errno != EINTR) {
            return -errno;
        }
    }
    return status;
}

int ls_userns_open(const char *uid_map, const char *gid_map) {
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC) != 0) {
        return -errno;
    }
    /* No signal at its end: the caller's handlers of SIGCHLD have nothing to do with it. */
    pid_t pid = (pid_t)syscall(SYS_clone, (unsigned long)CLONE_NEWUSER, 0, 0, 0, 0);
    if (pid < 0) {
        int code = -errno;
        close(pipes[0]);
        return fail(code, pipes[1]);
    }
    if (pid == 0) {
        char byte;
        close(pipes[1]);
        /* Ends when the parent has what it wants, or is gone. */
        ssize_t n = read(pipes[0], &byte, 1);
        _exit(n != 0);
    }
    close(pipes[0]);
    int out = write_map(pid, "uid_map", uid_map);
    if (out == 0) {
        out = write_map(pid, "gid_map", gid_map);
    }
    if (out == 0) {
        char path[64];
        (void)snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
        out = open(path, O_RDONLY | O_CLOEXEC);
        out = out < 0 ? -errno : out;
    }
    close(pipes[1]);
    (void)reap(pid);
    return out;
}

/* ---- trees ----------------------------------------------------------------------------------- */

/* A private copy of the mount that holds a directory, its root there; with `userns` its ids mapped. */
static int tree_of(int dir, const char *name, int userns, unsigned attr) {
    unsigned empty = name[0] ? 0 : (unsigned)AT_EMPTY_PATH;
    int tree = open_tree_(dir, name, TREE_CLONE | (unsigned)O_CLOEXEC | empty);
    if (tree < 0) {
        return -errno;
    }
    struct attributes wanted = {attr, 0, 0, 0};
    if (userns >= 0) {
        wanted.set |= ATTR_IDMAP;
        wanted.userns = (uint64_t)userns;
    }
    if (wanted.set && setattr_(tree, &wanted) != 0) {
        return fail(-errno, tree);
    }
    return tree;
}

int ls_mount_bind(int from, int target, int userns, int readonly) {
    int tree = tree_of(from, "", userns, readonly ? ATTR_RDONLY : 0);
    if (tree < 0) {
        return tree;
    }
    return fail(move_mount_(tree, target) == 0 ? 0 : -errno, tree);
}

int ls_umount(const char *path, int lazy) {
    return umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0 ? 0 : -errno;
}

/* ---- overlay, new API ------------------------------------------------------------------------ */

static int set_layer(int fs, const char *key, int fd) {
    if (fsconfig_(fs, SET_FD, key, NULL, fd) == 0) {
        return 0;
    }
    if (errno != EINVAL) {
        return -errno;
    }
    char path[32];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return fsconfig_(fs, SET_STRING, key, path, 0) == 0 ? 0 : -errno;
}

static int open_directory(int base, const char *name) {
    int fd = openat(base, name, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? -errno : fd;
}

/* A lower layer of an idmapped overlay is a private mount of its own. It lasts as long as its
 * descriptor, so that is kept until the overlay has been made. */
static int add_lower(int fs, const ls_overlay *o, const char *name, int *kept) {
    *kept = o->userns >= 0 ? tree_of(o->base, name, o->userns, 0) : open_directory(o->base, name);
    return *kept < 0 ? *kept : set_layer(fs, "lowerdir+", *kept);
}

static int add_upper(int fs, const ls_overlay *o) {
    static const char *const parts[][2] = {{"upperdir", "fs"}, {"workdir", "work"}};
    int parent = open_directory(o->base, o->upper);
    int code = parent < 0 ? parent : 0;
    for (size_t i = 0; code == 0 && i < 2; i++) {
        int fd = open_directory(parent, parts[i][1]);
        code = fd < 0 ? fd : fail(set_layer(fs, parts[i][0], fd), fd);
    }
    return fail(code, parent);
}

static int set_options(int fs, const ls_overlay *o) {
    /* What only some mounts have must not change what a layer looks like: no layer of an image can
     * redirect a name, or be a file without content. */
    static const char *const options[][2] = {
        {"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}};
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
        if (fsconfig_(fs, SET_STRING, options[i][0], options[i][1], 0) != 0) {
            return -errno;
        }
    }
    if ((o->flags & LS_OVERLAY_USERXATTR) && fsconfig_(fs, SET_FLAG, "userxattr", NULL, 0) != 0) {
        return -errno;
    }
    return fsconfig_(fs, SET_STRING, "source", o->source, 0) == 0 ? 0 : -errno;
}

static int create(int fs, const ls_overlay *o) {
    int kept[LS_OVERLAY_MAX];
    size_t n = 0;
    int code = set_options(fs, o);
    while (code == 0 && n < o->n_lower) {
        code = add_lower(fs, o, o->lower[n], &kept[n]);
        n++;
    }
    if (code == 0 && o->upper) {
        code = add_upper(fs, o);
    }
    if (code == 0 && fsconfig_(fs, CMD_CREATE, NULL, NULL, 0) != 0) {
        code = -errno;
    }
    while (n > 0) {
        code = fail(code, kept[--n]);
    }
    return code;
}

static int mount_new(const ls_overlay *o, int target, char *log, size_t size) {
    int fs = (int)syscall(430, "overlay", OPEN_CLOEXEC);
    if (fs < 0) {
        return -errno;
    }
    int code = create(fs, o);
    if (code != 0) {
        hear(fs, log, size);
        return fail(code, fs);
    }
    int mount = (int)syscall(432, fs, OPEN_CLOEXEC, o->upper ? 0 : ATTR_RDONLY);
    code = mount < 0 ? -errno : 0;
    close(fs);
    if (code != 0) {
        return code;
    }
    return fail(move_mount_(mount, target) == 0 ? 0 : -errno, mount);
}

/* ---- overlay, mount(2) ----------------------------------------------------------------------- */

/* In a child: its working directory is its own. */
static int mount_there(int base, const char *source, int target, unsigned long flags,
                       const char *data) {
    pid_t pid = (pid_t)syscall(SYS_clone, 0ul, 0, 0, 0, 0);
    if (pid < 0) {
        return -errno;
    }
    if (pid == 0) {
        char path[32];
        (void)snprintf(path, sizeof path, "/proc/self/fd/%d", target);
        if (fchdir(base) != 0 || mount(source, path, "overlay", flags, data) != 0) {
            _exit(errno & 0xff ? errno & 0xff : EIO);
        }
        _exit(0);
    }
    int status = reap(pid);
    if (status < 0) {
        return status;
    }
    return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}

/* One page of options, as mount(2) takes them. */
struct page {
    char text[4096];
    size_t used;
    int full;
};

static void add(struct page *p, const char *text) {
    size_t n = strlen(text);
    if (n >= sizeof p->text - p->used) {
        p->full = 1;
        return;
    }
    memcpy(p->text + p->used, text, n + 1);
    p->used += n;
}

static int options_of(const ls_overlay *o, struct page *p) {
    int mapped = o->userns >= 0;
    char name[64];
    add(p, "redirect_dir=nofollow,metacopy=off,index=off");
    add(p, (o->flags & LS_OVERLAY_USERXATTR) ? ",userxattr" : "");
    for (size_t i = 0; i < o->n_lower; i++) {
        add(p, i ? ":" : ",lowerdir=");
        (void)snprintf(name, sizeof name, "%zu", i);
        add(p, mapped ? name : o->lower[i]);
    }
    if (o->upper) {
        /* The layers of a mapped one are named relative to the scratch directory. */
        (void)snprintf(name, sizeof name, "/proc/self/fd/%d/", o->base);
        const char *prefix = mapped ? name : "";
        add(p, ",upperdir=");
        add(p, prefix);
        add(p, o->upper);
        add(p, "/fs,workdir=");
        add(p, prefix);
        add(p, o->upper);
        add(p, "/work");
    }
    return p->full ? -ENAMETOOLONG : 0;
}

/* Mounts a private copy of `name`, ids mapped, at `at` below the scratch directory. */
static int attach(const ls_overlay *o, const char *name, const char *at) {
    int tree = tree_of(o->base, name, o->userns, 0);
    if (tree < 0) {
        return tree;
    }
    if (mkdirat(o->scratch, at, 0700) != 0 && errno != EEXIST) {
        return fail(-errno, tree);
    }
    int to = openat(o->scratch, at, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (to < 0) {
        return fail(-errno, tree);
    }
    int code = move_mount_(tree, to) == 0 ? 0 : -errno;
    close(to);
    return fail(code, tree);
}

static void detach(const ls_overlay *o, const char *at) {
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d/%s", o->scratch, at);
    (void)umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
    (void)unlinkat(o->scratch, at, AT_REMOVEDIR);
}

/* Before Linux 6.13 a layer must be a mount that is attached somewhere: for a moment it is. The
 * overlay keeps copies of its own. */
static int mount_old_mapped(const ls_overlay *o, int target, struct page *p) {
    char name[24];
    size_t made = 0;
    int code = 0;
    for (; code == 0 && made < o->n_lower; made++) {
        (void)snprintf(name, sizeof name, "%zu", made);
        code = attach(o, o->lower[made], name);
    }
    if (code == 0) {
        code = mount_there(o->scratch, o->source, target, o->upper ? 0 : MS_RDONLY, p->text);
    }
    for (size_t i = 0; i < made; i++) {
        (void)snprintf(name, sizeof name, "%zu", i);
        detach(o, name);
    }
    return code;
}

static int mount_old(const ls_overlay *o, int target) {
    struct page p = {{0}, 0, 0};
    int code = options_of(o, &p);
    if (code != 0) {
        return code;
    }
    if (o->userns >= 0) {
        return mount_old_mapped(o, target, &p);
    }
    return mount_there(o->base, o->source, target, o->upper ? 0 : MS_RDONLY, p.text);
}

int ls_mount_overlay(const ls_overlay *o, int target, char *log, size_t size) {
    say(log, size, "");
    if (o->n_lower > LS_OVERLAY_MAX) {
        return -E2BIG;
    }
    int code = -ENOSYS;
    if (!(o->flags & LS_OVERLAY_OLD)) {
        code = mount_new(o, target, log, size);
    }
    /* ENOSYS: no new API. EINVAL: no lowerdir+, or no layers that are private mounts; a real mistake
     * is said again by the old way. */
    if (code == -ENOSYS || code == -EINVAL) {
        int again = mount_old(o, target);
        return again == 0 || code == -ENOSYS ? again : code;
    }
    return code;
}
