"""What marks of rootless tools say in place of the filesystem, put into the nodes of a tree.

Without rights, tools write down what they could not do:

- fuse-overlayfs: `.wh.NAME`, an empty file, where it could make no character device 0:0; `.wh..wh..opq`
  in opaque directories; owner, mode and type in `user.fuseoverlayfs.override_stat` or
  `user.containers.override_stat`, as UID:GID:MODE[:TYPE] (octal; containers-storage.conf(5),
  force_mask);
- umoci and `checkout`: owners in `user.rootlesscontainers`, a protobuf message with the uid as field 1
  and the gid as field 2 (rootlesscontainers.proto).

Only where the caller says who made the tree: any user may give files such names and xattrs.
"""

from __future__ import annotations

import os
import re
import stat

from ..core.walk import (
    LINKED,
    OPAQUE,
    RESERVED,
    SKIP,
    SOCKET,
    WHITEOUT,
    Batch,
    Looker,
    Node,
    pack_xattrs,
    parse_xattrs,
    show,
)
from ..errors import InvalidInputError

PREFIX = b".wh."
MARK = b".wh..wh..opq"
MARKS = (MARK, b".wh..opq")
"""fuse-overlayfs makes the second where others look for a whiteout of the first."""
ROOTLESS = b"user.rootlesscontainers"
OVERRIDES = (b"user.fuseoverlayfs.override_stat", b"user.containers.override_stat")

_STAT = re.compile(
    rb"(\d{1,10}):(\d{1,10}):([0-7]{1,7})(?::([a-z]+)(?:-(\d{1,10})-(\d{1,10}))?)?\0?"
)
_TYPES = {
    b"dir": stat.S_IFDIR,
    b"file": stat.S_IFREG,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_SPECIAL = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR)
_ID_MAX = 2**32 - 2


class Stated:
    """`fuse`: names that fuse-overlayfs makes; `overrides`: its xattrs for owner, mode and type;
    `rootless`: owners of umoci."""

    def __init__(
        self,
        root: tuple[int, str],
        *,
        fuse: bool = False,
        overrides: bool = False,
        rootless: bool = False,
    ) -> None:
        self._where = root[1]
        self._looker = Looker(*root)
        self._fuse = fuse
        self._rootless = rootless
        self._names = (*(OVERRIDES if overrides else ()), *((ROOTLESS,) if rootless else ()))

    def apply(self, batch: Batch) -> None:
        """Changes the nodes of a batch. Raises InvalidInputError, naming the file, for a mark that says
        nothing."""
        for i, node in enumerate(list(batch.rows())):
            if self._fuse and node.flags & RESERVED:
                node = self._whiteout(batch, i, node)
            if node.flags & (WHITEOUT | SKIP):
                continue
            if node.xattr_len:
                self._owner(batch, i, node)
            if self._fuse and stat.S_ISDIR(node.mode) and self.opaque(batch.path(i)):
                batch.nodes[i].flags |= OPAQUE

    def opaque(self, directory: bytes) -> bool:
        """Whether fuse-overlayfs marked a directory with a file."""
        path = directory + b"/" + MARK if directory else MARK
        return self._fuse and self._looker.look(path) is not None

    def _whiteout(self, batch: Batch, i: int, node: Node) -> Node:
        path = batch.path(i)
        parent, _, name = path.rpartition(b"/")
        device = bool(node.flags & WHITEOUT)
        if not device and not (stat.S_ISREG(node.mode) and node.size == 0):
            return node
        flags = SKIP
        if name not in MARKS:
            if device or name in (PREFIX, PREFIX + b".", PREFIX + b".."):
                return node
            flags = WHITEOUT
            gone = parent + b"/" + name[len(PREFIX) :] if parent else name[len(PREFIX) :]
            at = batch.add_text(gone)
            batch.nodes[i].name_off = batch.nodes[i].path_off = at
            batch.nodes[i].name_len = batch.nodes[i].path_len = len(gone)
        batch.nodes[i].flags = flags
        return batch.node(i)

    def _owner(self, batch: Batch, i: int, node: Node) -> None:
        xattrs = parse_xattrs(batch.text(node.xattr_off, node.xattr_len))
        found = [name for name in self._names if name in xattrs]
        for name in found:
            value = xattrs.pop(name)
            if name == ROOTLESS:
                owner = _protobuf(value)
                if owner is None:
                    raise self._refused(batch, i, name)
                batch.nodes[i].uid, batch.nodes[i].gid = owner
            elif name == next(n for n in found if n in OVERRIDES):
                self._override(batch, i, name, value)
        if found:
            packed = pack_xattrs(xattrs)
            batch.nodes[i].xattr_off = batch.add_text(packed)
            batch.nodes[i].xattr_len = len(packed)

    def _override(self, batch: Batch, i: int, name: bytes, value: bytes) -> None:
        match = _STAT.fullmatch(value)
        if match is None:
            raise self._refused(batch, i, name)
        uid, gid, mode = int(match[1]), int(match[2]), int(match[3], 8)
        node = batch.nodes[i]
        kind = stat.S_IFMT(node.mode)
        if match[4] is not None:
            said = _TYPES.get(match[4])
            device = said in (stat.S_IFBLK, stat.S_IFCHR)
            if said is None or device != (match[5] is not None):
                raise self._refused(batch, i, name)
            # What is no file or directory may lie there as an empty file.
            if said != kind and not (said in _SPECIAL and stat.S_ISREG(kind) and node.size == 0):
                raise self._refused(batch, i, name)
            kind = said
            if device:
                node.rdev_major, node.rdev_minor = self._device(batch, i, name, match)
        if max(uid, gid) > _ID_MAX:
            raise self._refused(batch, i, name)
        node.uid, node.gid, node.mode = uid, gid, kind | (mode & 0o7777)
        if stat.S_ISSOCK(kind):
            node.flags = (node.flags & ~LINKED) | SOCKET

    def _device(self, batch: Batch, i: int, name: bytes, match: re.Match[bytes]) -> tuple[int, int]:
        major, minor = int(match[5]), int(match[6])
        if max(major, minor) > 2**32 - 1:
            raise self._refused(batch, i, name)
        return major, minor

    def _refused(self, batch: Batch, i: int, name: bytes) -> InvalidInputError:
        where = os.path.join(self._where, show(batch.path(i)))
        return InvalidInputError(f"{where}: its xattr {name.decode()} does not decode", path=where)


def _protobuf(data: bytes) -> tuple[int, int] | None:
    """uid and gid; what is not named is 0. None if it is no such message."""
    ids = {1: 0, 2: 0}
    at = 0
    while at < len(data):
        tag = data[at]
        if tag not in (0x08, 0x10):
            return None
        at += 1
        value = shift = 0
        while True:
            if at == len(data) or shift > 28:
                return None
            value |= (data[at] & 0x7F) << shift
            at += 1
            shift += 7
            if data[at - 1] < 0x80:
                break
        # All ones leave an owner as it is for chown(2): no id.
        if value > _ID_MAX:
            return None
        ids[tag >> 3] = value
    return ids[1], ids[2]
