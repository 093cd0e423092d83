"""What an overlay's upper directory says about the layers below it, as nodes of a layer.

Most of it C sees: character devices 0:0 and files with an overlay.whiteout xattr are whiteouts,
directories with overlay.opaque=y are opaque (overlayfs.rst; image-spec layer.md, whiteouts). Here is
what needs more than one file: hard links.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..core.walk import (
    HARDLINK,
    INDEXED,
    LINKED,
    METACOPY,
    REDIRECT,
    RESERVED,
    SKIP,
    SOCKET,
    SPECIAL,
    Batch,
    Walk,
    show,
)
from ..errors import InvalidInputError

MAX_NOTES = 100


class Links:
    """The first name of every file that has several, by device and inode."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int, int], bytes] = {}

    def seen(self, batch: Batch, i: int) -> bytes | None:
        """The name that this file was given before; None if this is its first."""
        node = batch.nodes[i]
        name = batch.text(node.name_off, node.name_len)
        key = (node.dev_major, node.dev_minor, node.ino)
        first = self._first.setdefault(key, name)
        return None if first == name else first


class Upper:
    """The nodes of an upper directory."""

    def __init__(self, upper: tuple[int, str], lower: Sequence[tuple[int, str]] = ()) -> None:
        self._upper = upper
        self._lower = tuple(lower)
        self._links = Links()
        self.notes: list[str] = []

    def roots(self) -> Sequence[tuple[int, str]]:
        return (self._upper, *self._lower)

    def batches(self) -> Iterator[Batch]:
        fd, where = self._upper
        with Walk(fd, where, overlay=True, stop=REDIRECT) as walk:
            while (batch := walk.next()) is not None:
                for i, flags in enumerate(batch.flags()):
                    if flags & SPECIAL:
                        self._special(batch, i, flags)
                yield batch

    def _special(self, batch: Batch, i: int, flags: int) -> None:
        node = batch.nodes[i]
        where = f"{self._upper[1]}/{show(batch.path(i))}"
        if flags & RESERVED:
            raise InvalidInputError(
                f"{where}: a layer cannot hold a name that begins with .wh., it means a removed file",
                path=where,
            )
        if flags & (REDIRECT | METACOPY | INDEXED):
            raise InvalidInputError(
                f"{where}: its content lies in a lower directory: name those (--lower)", path=where
            )
        if flags & SOCKET:
            node.flags |= SKIP
            self.notes.append(f"{where}: a socket, left out")
        elif flags & LINKED:
            first = self._links.seen(batch, i)
            if first is not None:
                node.flags |= HARDLINK
                node.link_off = batch.add_text(first)
                node.link_len = len(first)
