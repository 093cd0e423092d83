"""The typed face of csrc/mount.c: overlay and bind mounts, ids mapped where asked for.

Everything here needs CAP_SYS_ADMIN where it acts. Errors are OSError with the kernel's own reason."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ._layerstore import ffi, lib

USERXATTR: int = lib.LS_OVERLAY_USERXATTR
OLD: int = lib.LS_OVERLAY_OLD

MAX_LOWER: int = lib.LS_OVERLAY_MAX
"""Layers that the kernel stacks at most."""
_LOG = 256

IdMap = Sequence[tuple[int, int, int]]
"""`(id inside, id outside, count)` each, as in /proc/PID/uid_map."""


def _raise(code: int, path: str, said: str = "") -> int:
    if code < 0:
        reason = os.strerror(-code)
        raise OSError(-code, f"{reason} ({said})" if said else reason, path)
    return code


def overlay(
    target: int,
    path: str,
    *,
    source: str,
    base: int,
    lower: Sequence[str],
    upper: str | None,
    userns: int = -1,
    scratch: int = -1,
    flags: int = 0,
) -> None:
    """Mounts an overlay on the directory `target`; `path` names it in errors. The other arguments are
    those of `ls_overlay` in csrc/layerstore.h. Raises OSError."""
    held = [ffi.new("char[]", name.encode()) for name in lower]
    names = ffi.new("const char *[]", held)
    said = ffi.new("char[]", _LOG)
    shown = ffi.new("char[]", source.encode())
    above = ffi.NULL if upper is None else ffi.new("char[]", upper.encode())
    spec = ffi.new(
        "ls_overlay *",
        {
            "source": shown,
            "base": base,
            "scratch": scratch,
            "userns": userns,
            "flags": flags,
            "lower": names,
            "n_lower": len(held),
            "upper": above,
        },
    )
    code = lib.ls_mount_overlay(spec, target, said, _LOG)
    _raise(code, path, ffi.string(said).decode(errors="replace"))


def bind(source: int, target: int, path: str, *, userns: int = -1, readonly: bool = False) -> None:
    """Mounts one directory on another. Raises OSError."""
    _raise(lib.ls_mount_bind(source, target, userns, readonly), path)


def unmount(path: str, *, lazy: bool = False) -> None:
    """Takes the topmost mount away. Raises OSError (EBUSY while it is in use, unless `lazy`)."""
    _raise(lib.ls_umount(os.fsencode(path), lazy), path)


def user_namespace(uids: IdMap, gids: IdMap) -> int:
    """A descriptor of a user namespace with these maps, to be closed by the caller. Raises OSError."""

    def text(rows: IdMap) -> bytes:
        return "".join(f"{a} {b} {n}\n" for a, b, n in rows).encode()

    return _raise(lib.ls_userns_open(text(uids), text(gids)), "user namespace")
