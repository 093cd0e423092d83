"""What the tests of checkout share: tars made entry by entry, and a tree on disk as a value.

`snapshot` reads everything that a user can see of a tree: names, types, modes, owners, times, xattrs,
content, link targets, device numbers, and which names are one file.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stores import TAR, put

from layerstore.layers import checkout as rooms
from layerstore.layers.content import Content
from layerstore.values import CheckoutReport

FILE, LINK, SYMLINK, CHAR, BLOCK, DIR, FIFO = (bytes([c]) for c in b"0123456")


class Item(NamedTuple):
    """One entry of a tar."""

    name: str
    type: bytes = FILE
    data: bytes = b""
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_700_000_000
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = {}  # noqa: RUF012 (never changed)

    def info(self) -> tarfile.TarInfo:
        info = tarfile.TarInfo(self.name)
        info.type = self.type
        info.size = len(self.data)
        info.linkname = self.link
        info.mode, info.uid, info.gid, info.mtime = self.mode, self.uid, self.gid, self.mtime
        info.devmajor, info.devminor = self.device
        info.pax_headers = dict(self.pax)
        return info


def tar(items: Iterable[Item]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8",
        errors="surrogateescape",
    ) as archive:  # fmt: skip
        for item in items:
            archive.addfile(item.info(), io.BytesIO(item.data))
    return out.getvalue()


def put_layers(content: Content, layers: Iterable[bytes]) -> list[str]:
    return [put(content, layer, TAR) for layer in layers]


def checkout(
    content: Content, digests: Sequence[str], target: Path | str, **options: Any
) -> CheckoutReport:
    layers = [rooms.Layer(digest) for digest in digests]
    return rooms.checkout(content, layers, str(target), options=rooms.Options(**options))


def unpack_all(
    content: Content, digests: Sequence[str], folder: Path, *, together: bool = True
) -> list[Path]:
    """Every layer as an overlay directory, lowest first; all out of one tree, or each out of one of
    its own."""
    out = [folder / f"upper{n}" for n in range(len(digests))]
    for target in out:
        target.mkdir(parents=True)
    if together:
        with content.operation() as op, rooms.Unpacker(content, op) as unpacker:
            for digest, target in zip(digests, out, strict=True):
                unpacker.unpack(digest, str(target))
    else:
        for n, target in enumerate(out):
            rooms.unpack_layer(content, digests[: n + 1], str(target))
    return out


class Seen(NamedTuple):
    """One name on disk; `same` is the least name of the same file."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    same: str


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _content(path: bytes, st: os.stat_result, kind: str) -> str:
    if kind == "file":
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    if kind == "symlink":
        return os.fsdecode(os.readlink(path))
    if kind in ("char", "block"):
        return f"{os.major(st.st_rdev)}:{os.minor(st.st_rdev)}"
    return ""


def snapshot(root: Path | str, *, times: bool = True, inodes: bool = False) -> dict[str, Seen]:
    """Everything below (and at) a directory. With `inodes` numbers too: nothing was made anew."""
    base = os.fsencode(root)
    found: dict[str, Seen] = {}
    first: dict[tuple[int, int], str] = {}
    todo = [b""]
    while todo:
        rel = todo.pop()
        path = os.path.join(base, rel) if rel else base
        st = os.lstat(path)
        kind = _KINDS[stat.S_IFMT(st.st_mode)]
        if kind == "dir":
            todo += sorted((os.path.join(rel, n) for n in os.listdir(path)), reverse=True)
        name = os.fsdecode(rel)
        key = (st.st_dev, st.st_ino)
        if kind != "dir":
            first[key] = min(name, first.get(key, name))
        xattrs = tuple(
            sorted(
                (n, os.getxattr(path, n, follow_symlinks=False))
                for n in os.listxattr(path, follow_symlinks=False)
            )
        )
        same = str(st.st_ino) if inodes else repr(key)
        found[name] = Seen(
            kind,
            stat.S_IMODE(st.st_mode) if kind != "symlink" else 0,
            st.st_uid,
            st.st_gid,
            st.st_mtime_ns if times else 0,
            _content(path, st, kind),
            xattrs,
            same,
        )
    if inodes:
        return found
    names = {repr(key): name for key, name in first.items()}
    return {n: s._replace(same=names.get(s.same, "")) for n, s in found.items()}
