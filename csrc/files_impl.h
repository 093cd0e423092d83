/* files_impl.h: what the machines share that reach files through directory descriptors. */
#ifndef LAYERSTORE_FILES_IMPL_H
#define LAYERSTORE_FILES_IMPL_H

#include "layerstore.h"

/* Fills `err` and returns `code`; with LS_EOS the offset is the errno. */
int ls_files_fail(ls_error *err, int code, int number, const char *reason);

/* Opens `path` (of `len` bytes, relative, no "." or "..") beneath `base`, following no link; -1 and
 * errno. Of any length: a path that the kernel does not take is walked in steps. */
int ls_files_open_at(int base, const char *path, size_t len, int flags);

/* Writes "/proc/self/fd/DIR/NAME" to `out`, which has room for 64 bytes more than the name. */
const char *ls_files_proc(char *out, int dir, const char *name);

/* Whether an xattr says something about this machine or this mount, not about the file: overlayfs's
 * own, SELinux labels (the policy sets them), EVM's hash (keyed by the machine). */
int ls_files_stays_here(const uint8_t *name, size_t n);

#endif
