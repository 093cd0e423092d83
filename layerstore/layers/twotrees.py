"""What one tree has and another has not, as nodes of a layer.

By metadata: type, mode, owner, size, time of modification, device, target, xattrs (C compares them).
By content as well where asked: files that are the same by their metadata are read and compared. A
file whose time alone differs is a change either way: a layer holds times.

Hard links: the layer has a link where two names are one file in the new tree and are not one already
once the layer lies on the old one. So for each file with several names, here or there, it is kept which
file of the old tree stands for it, and under which name it can be linked to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from io import FileIO
from typing import TYPE_CHECKING

from ..core.diff import SAME, changes
from ..core.walk import (
    HARDLINK,
    LINKED,
    RESERVED,
    SKIP,
    SOCKET,
    WHITEOUT,
    Batch,
    Found,
    Looker,
    Node,
    Walk,
    show,
)
from ..errors import InvalidInputError
from .overlay import MAX_NOTES, Inode, inode
from .stated import Stated

if TYPE_CHECKING:
    from .filecache import FileCache

_PIECE = 1 << 20
_SPECIAL = SAME | LINKED | SOCKET | RESERVED


def _same(new: Found, old: Found | None) -> bool:
    """Whether a directory is not in the layer for its own sake."""
    if old is None:
        return False
    a, b = new.node, old.node
    return (a.mode, a.uid, a.gid, a.mtime_sec, a.mtime_nsec, new.xattrs) == (
        *(b.mode, b.uid, b.gid, b.mtime_sec, b.mtime_nsec),
        old.xattrs,
    )


class TwoTrees:
    """The nodes of a layer that makes `old` into `new`."""

    def __init__(
        self,
        old: tuple[int, str],
        new: tuple[int, str],
        *,
        content: bool,
        stated: Stated | None = None,
        cache: FileCache | None = None,
    ) -> None:
        """`cache`: knows which files were compared before."""
        self._cache = cache
        self._old, self._new = old, new
        self._stated = stated
        self._content = content
        self._first: dict[Inode, tuple[bytes, int | None]] = {}
        """By inode of the new tree: a name, and the old inode that it still is, if it is unchanged."""
        self._stands: dict[int, Inode] = {}
        """By inode of the old tree: which file it stands for."""
        self._looker_old, self._looker_new = Looker(*old), Looker(*new)
        self._touched: set[bytes] = set()
        """Directories in which an unchanged file is written. C sees to those that changed files lie in;
        for these it is decided here, so they come at the end."""
        self.notes: list[str] = []

    def roots(self) -> Sequence[tuple[int, str]]:
        return (self._new,)

    def batches(self) -> Iterator[Batch]:
        with Walk(*self._old) as old, Walk(*self._new) as new:
            for batch in changes(old, new, content=self._content):
                for i, flags in enumerate(batch.flags()):
                    if flags & _SPECIAL:
                        self._special(batch, i, flags)
                self._state(batch)
                yield batch
        out = Batch(512, 256 << 10)
        for folder in sorted(self._touched):
            found = self._looker_new.look(folder)
            if found is not None and _same(found, self._looker_old.look(folder)):
                out.add(found.node._replace(flags=0), folder, folder, b"", found.xattrs)
            if out.n == out.capacity:
                self._state(out)
                yield out
                out.clear()
        if out.n:
            self._state(out)
            yield out

    def _state(self, batch: Batch) -> None:
        if self._stated is not None:
            self._stated.apply(batch)

    def _special(self, batch: Batch, i: int, flags: int) -> None:
        node = batch.nodes[i]
        path = batch.path(i)
        where = os.path.join(self._new[1], show(path))
        if flags & RESERVED:
            raise InvalidInputError(
                f"{where}: a layer cannot hold a name that begins with .wh., "
                "which means a removed file",
                path=where,
            )
        if flags & SOCKET:
            if len(self.notes) < MAX_NOTES:
                self.notes.append(f"{where}: a socket, left out")
            node.flags = WHITEOUT if flags & WHITEOUT else SKIP
            return
        same = bool(flags & SAME)
        if (
            same
            and self._content
            and stat.S_ISREG(node.mode)
            and not self._equal(path, batch.node(i))
        ):
            same = False
        node.flags &= ~(SAME | LINKED)
        if not flags & LINKED:
            if same:
                node.flags |= SKIP
            elif flags & SAME:
                self._touched.add(path.rpartition(b"/")[0])
            return
        link, needed = self._linked(inode(batch.node(i)), path, node.data_offset if same else None)
        if link is not None:
            node.flags |= HARDLINK
            node.link_off = batch.add_text(link)
            node.link_len = len(link)
        elif not needed:
            node.flags |= SKIP
            return
        if flags & SAME:
            self._touched.add(path.rpartition(b"/")[0])

    def _linked(self, key: Inode, path: bytes, old: int | None) -> tuple[bytes | None, bool]:
        """For one name of a file: the name that it is to be a link to, if any; else whether the layer
        needs it. `old`: the inode that it is in the old tree, if it is unchanged."""
        first = self._first.get(key)
        if first is not None:
            name, below = first
            return (None, False) if old is not None and below == old else (name, True)
        # One old file cannot stand for two: the second is written anew.
        stands = old is not None and self._stands.setdefault(old, key) == key
        self._first[key] = (path, old if stands else None)
        return None, not stands

    def _equal(self, path: bytes, new: Node) -> bool:
        """Whether a file has the same bytes in both trees."""
        if self._cache is None:
            return self._compare(path)
        found = self._looker_old.look(path)
        if found is None:
            return False
        known = self._cache.compared(found.node, new)
        if known is None:
            known = self._compare(path)
        self._cache.compare(found.node, new, same=known)
        return known

    def _compare(self, path: bytes) -> bool:
        folder, _, name = path.rpartition(b"/")
        with (
            self._open(self._looker_old, folder, name) as a,
            self._open(self._looker_new, folder, name) as b,
        ):
            while True:
                one, two = a.read(_PIECE), b.read(_PIECE)
                if one != two:
                    return False
                if not one:
                    return True

    @staticmethod
    def _open(looker: Looker, folder: bytes, name: bytes) -> FileIO:
        at = looker.open(folder)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return FileIO(os.open(name, flags, dir_fd=at), "rb")
        finally:
            os.close(at)
