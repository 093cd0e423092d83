"""Images for the tests of snapshots, commit and bundle, and trees as they can be compared."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import layerstore

LAYER = "application/vnd.oci.image.layer.v1.tar"
EPOCH = 1_000_000_000


def member(name: str, data: bytes | None = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    """One entry. A name that ends in a slash is a directory."""
    info = tarfile.TarInfo(name.rstrip("/"))
    info.mtime = EPOCH
    info.mode = 0o755 if name.endswith("/") else 0o644
    info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    for key, value in more.items():
        setattr(info, key, value)
    body = data or b""
    info.size = len(body) if info.type == tarfile.REGTYPE else 0
    return info, body


def link(
    name: str, target: str, *, hard: bool = False, **more: Any
) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic link; or a hard one, whose header says what its file's does: some tools go by it."""
    kind, mode = (tarfile.LNKTYPE, 0o644) if hard else (tarfile.SYMTYPE, 0o777)
    return member(name, type=kind, linkname=target, mode=mode, **more)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for info, body in members:
            file.addfile(info, io.BytesIO(body))
    return out.getvalue()


def put(store: layerstore.Store, *members: tuple[tarfile.TarInfo, bytes]) -> str:
    """A layer in the store; its digest."""
    return store.put(tar(*members), media_type=LAYER).digest


BASE = (
    member("etc/"),
    member("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nbob:x:1000:100::/home/bob:/bin/sh\n"),
    member("etc/group", b"root:x:0:\nusers:x:100:\nwheel:x:10:root,bob\n"),
    member("d/", mode=0o1777),
    member("d/one", b"one", uid=7, gid=8),
    member("d/two", b"two", mode=0o4755),
    member("gone/"),
    member("gone/a", b"a"),
    link("sym", "d/one"),
    link("hard", "d/one", hard=True, uid=7, gid=8),
    member("xattr", b"x", pax_headers={"SCHILY.xattr.user.note": "yes"}),
)
MIDDLE = (
    member("d/.wh.two"),
    member("gone/.wh..wh..opq"),
    member("gone/new", b"new"),
    member("d/three", b"three"),
    link("alias", "d/three", hard=True),
)
TOP = (
    member(".wh.hard"),
    member("late/"),
    member("late/file", os.urandom(300_000)),
    member("etc/motd", b"hello"),
)
LAYERS = (BASE, MIDDLE, TOP)


def image(
    store: layerstore.Store, name: str = "app:1", layers: Any = LAYERS, **changes: Any
) -> str:
    """An image of these layers; its digest."""
    digests = [put(store, *one) for one in layers]
    changes.setdefault("cmd", ["/prog"])
    made = store.commit("scratch", name, layers=digests, source_date_epoch=EPOCH, **changes)
    return made.digest


def facts(path: str) -> dict[str, Any]:
    """All that can be seen of one file."""
    found = os.lstat(path)
    out: dict[str, Any] = {
        "type": stat.S_IFMT(found.st_mode),
        "mode": stat.S_IMODE(found.st_mode),
        "owner": (found.st_uid, found.st_gid),
    }
    if stat.S_ISREG(found.st_mode):
        out["inode"] = found.st_ino
        with open(path, "rb") as f:
            out["content"] = hashlib.sha256(f.read()).hexdigest()
    if stat.S_ISLNK(found.st_mode):
        out["target"] = os.readlink(path)
    else:
        out["mtime"] = found.st_mtime_ns
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        out["device"] = found.st_rdev
    out["xattrs"] = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if ".overlay." not in name and not name.startswith("user.fuseoverlayfs.")
    }
    return out


def tree(root: str | os.PathLike[str], *, mtimes: bool = True) -> dict[str, Any]:
    """Everything below a directory (the directory too), by path."""
    top = os.fspath(root)
    out = {".": facts(top)}
    for folder, below, names in os.walk(top):
        for name in (*below, *names):
            path = os.path.join(folder, name)
            out[os.path.relpath(path, top)] = facts(path)
    # Which names are one file; not the count of links, in which overlayfs counts hidden names.
    files: dict[int, list[str]] = {}
    for name in sorted(out):
        if "inode" in out[name]:
            files.setdefault(out[name]["inode"], []).append(name)
    for name in out:
        if "inode" in out[name]:
            out[name]["names"] = files[out[name].pop("inode")]
    if not mtimes:
        for one in out.values():
            one.pop("mtime", None)
    # What nobody has given a time has the time when it was made.
    out["."].pop("mtime", None)
    return out


@contextlib.contextmanager
def mounted(store: layerstore.Store, key: str, target: Path, **options: Any) -> Iterator[Path]:
    """A snapshot shown at a directory, and hidden again whatever happens."""
    store.snapshots.mount(key, target, **options)
    try:
        yield target
    finally:
        store.snapshots.unmount(key, lazy=True)


def run(*command: str | Path, **options: Any) -> str:
    """What a tool printed; it must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def mounts_of(store: layerstore.Store) -> list[str]:
    return [place for one in store.snapshots.list() for place in one.mounts]


def clear(store: layerstore.Store, keys: Iterable[str] | None = None) -> None:
    for one in store.snapshots.list():
        if keys is None or one.key in keys:
            store.snapshots.unmount(one.key, lazy=True)
            store.snapshots.remove(one.key)


def unmount_all(below: Path) -> None:
    """Whatever a test left mounted below its directory, topmost first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        places = [line.split()[4] for line in f]
    for place in reversed(places):
        if place.startswith(f"{below}/"):
            subprocess.run(["umount", "-l", place], check=True)
