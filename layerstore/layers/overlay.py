"""What an overlay's upper directory says about the layers below it, as nodes of a layer.

Most of it C sees: character devices 0:0 and files with an overlay.whiteout xattr are whiteouts,
directories with overlay.opaque=y are opaque (overlayfs.rst; image-spec layer.md, whiteouts). Here is
what needs more than one file:

- *hard links*: the first name carries the file, the others name it;
- *redirect*: a directory that was moved names what lies below; the layer gets all of it under its new
  name, as an opaque directory;
- *metacopy*: a file whose content lies below; the layer gets both;
- *index*: a file that was copied up once for all of its names. Names that nobody touched lie below
  only, and are links in the layer.

Links whose other names lie below come last, when all names above are known.

One thing an upper directory does not say: with index=on, a file that was changed and whose changed
names were all removed has its content in the work directory's index, and names below still show it.
Mounts that are to be diffed are better made with index=off, the kernel's default.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..core.walk import (
    HARDLINK,
    INDEXED,
    LINKED,
    METACOPY,
    OPAQUE,
    REDIRECT,
    RESERVED,
    SKIP,
    SOCKET,
    SPECIAL,
    WHITEOUT,
    Batch,
    Found,
    Node,
    Walk,
    found_in,
    show,
)
from ..errors import InvalidInputError
from .lowers import Hit, Place, Stack, is_dir, join, overlay_xattr
from .stated import Stated

MAX_NOTES = 100
_ORIGIN_HEAD = 21  # struct ovl_fb: version, magic, length, flags, type, 16 bytes of uuid
_FRESH = 512

Inode = tuple[int, int, int]


def inode(node: Node) -> Inode:
    return node.dev_major, node.dev_minor, node.ino


def _identity(node: Node) -> dict[str, int]:
    """What says that the content of a file is what it was."""
    return {
        "dev_major": node.dev_major,
        "dev_minor": node.dev_minor,
        "ino": node.ino,
        "ctime_sec": node.ctime_sec,
        "ctime_nsec": node.ctime_nsec,
    }


class Item(NamedTuple):
    """A file for the layer: where it lies, what it is called there, and what to do with it."""

    hit: Hit
    name: bytes
    flags: int
    link: bytes | None = None
    """The name that it is a link to."""
    data: Hit | None = None
    """Where its content lies, if not with it."""


class Shown(NamedTuple):
    """A file of a merged directory: where its topmost part lies, its name, and that with all below."""

    hit: Hit
    name: bytes
    chain: Sequence[Hit]


class Upper:
    """The nodes of an upper directory. `roots`: it, then the lower ones, topmost first. `walked` is
    told of every batch as the walk gave it; `stated` then reads the marks of rootless tools."""

    def __init__(
        self,
        roots: Sequence[tuple[int, str]],
        walked: Callable[[Batch], None] | None = None,
        stated: Stated | None = None,
    ) -> None:
        self._walked = walked
        self._stated = stated
        self._roots = tuple(roots)
        self._stack = Stack(roots)
        self._first: dict[Inode, bytes] = {}
        self._bases: tuple[bytes, list[Place]] = (b"", self._stack.below(0))
        self._indexed: dict[Inode, tuple[bytes, bytes]] = {}
        """Inodes of the upper directory: the first name, the origin's handle."""
        self._move: tuple[Found, bytes] | None = None
        """The directory that was moved, of the batch at hand: its last node."""
        self._late: list[tuple[Hit, bytes, Sequence[Hit]]] = []
        """Files below with several names, which were moved."""
        self.notes: list[str] = []

    def roots(self) -> Sequence[tuple[int, str]]:
        return self._roots

    def batches(self) -> Iterator[Batch]:
        fd, where = self._roots[0]
        out = _Collector()
        with Walk(fd, where, overlay=True, stop=REDIRECT) as walk:
            for batch in walk.ahead():
                if self._walked is not None:
                    self._walked(batch)
                if self._stated is not None:
                    self._stated.apply(batch)
                for i, flags in enumerate(batch.flags()):
                    if flags & SPECIAL:
                        self._special(batch, i, flags)
                yield batch
                if self._move is not None:
                    walk.prune()
                    yield from out.batches(self._moved(*self._move))
                    self._move = None
        yield from out.batches(self._last())

    # ---- one node of the upper directory ------------------------------------------------------

    def _special(self, batch: Batch, i: int, flags: int) -> None:
        node = batch.nodes[i]
        path = batch.path(i)
        if flags & WHITEOUT:
            self._refuse_reserved(0, path, flags)
            return
        if flags & RESERVED:
            self._refuse_reserved(0, path, flags)
        if flags & SOCKET:
            # Left out, but what it replaced is gone all the same.
            node.flags = WHITEOUT if self._replaces(path) else SKIP
            self._note(0, path)
            return
        if flags & REDIRECT and stat.S_ISDIR(node.mode):
            if not flags & OPAQUE:
                self._need_lower(path, "redirect")
                self._move = (found_in(batch, i), path)
                # What lies below under its name is not its own.
                node.flags |= OPAQUE
            return
        if flags & INDEXED and flags & LINKED:
            self._index(found_in(batch, i), path)
        if flags & LINKED:
            first = self._first.setdefault(inode(batch.node(i)), path)
            if first != path:
                node.flags |= HARDLINK
                node.link_off = batch.add_text(first)
                node.link_len = len(first)
                return
        if flags & METACOPY:
            data = self._data_below(found_in(batch, i), path)
            node.root = data.place[0]
            node.path_off = batch.add_text(data.place[1])
            node.path_len = len(data.place[1])
            # Content and what says that it is unchanged are the lower file's.
            node.flags &= ~METACOPY
            for name, value in _identity(data.found.node).items():
                setattr(node, name, value)

    def _replaces(self, path: bytes) -> bool:
        """Whether something lies below a name of the upper layer. A whiteout of nothing is no harm to
        most, but in a directory of its own overlayfs lists it. Without lower directories: it may."""
        parent, _, name = path.rpartition(b"/")
        if len(self._roots) > 1:
            return bool(self._stack.find(self._lower_bases(parent), name))
        while parent:
            found = self._stack.look((0, parent))
            if found is not None and found.node.flags & OPAQUE:
                return False
            if self._stated is not None and self._stated.opaque(parent):
                return False
            parent = parent.rpartition(b"/")[0]
        return True

    def _where(self, layer: int, path: bytes) -> str:
        return f"{self._roots[layer][1]}/{show(path)}"

    def _refuse_reserved(self, layer: int, path: bytes, flags: int) -> None:
        if flags & RESERVED:
            where = self._where(layer, path)
            raise InvalidInputError(
                f"{where}: a layer cannot hold a name that begins with .wh., "
                "which means a removed file (where fuse-overlayfs made it, say so)",
                path=where,
            )

    def _note(self, layer: int, path: bytes) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(f"{self._where(layer, path)}: a socket, left out")

    def _need_lower(self, path: bytes, why: str) -> None:
        if len(self._roots) < 2:
            where = self._where(0, path)
            raise InvalidInputError(
                f"{where}: what it shows lies in a lower directory ({why}): name those too",
                path=where,
            )

    def _lower_bases(self, directory: bytes) -> list[Place]:
        """What lies below a directory of the upper layer; neighbours ask for the same."""
        if self._bases[0] != directory:
            self._bases = (directory, self._stack.lower_bases(directory))
        return self._bases[1]

    def _data_below(self, upper: Found, path: bytes, bases: Sequence[Place] | None = None) -> Hit:
        self._need_lower(path, "metacopy")
        parent, _, name = path.rpartition(b"/")
        if bases is None:
            bases = self._lower_bases(parent)
        return self._content_of(
            self._stack.lower_of(bases, name, upper), upper, self._where(0, path)
        )

    @staticmethod
    def _content_of(hits: Sequence[Hit], top: Found, where: str) -> Hit:
        """The file that has the content of `top`, of the files below it."""
        for hit in hits:
            node = hit.found.node
            if stat.S_ISREG(node.mode) and not node.flags & METACOPY:
                if node.size != top.node.size:
                    break
                return hit
        raise InvalidInputError(
            f"{where}: its content (metacopy) is not in the lower directories that were given",
            path=where,
        )

    # ---- directories that were moved ----------------------------------------------------------

    def _moved(self, upper: Found, path: bytes) -> Iterator[Item]:
        """All that a moved directory shows, except itself."""
        parent, _, name = path.rpartition(b"/")
        below = self._stack.lower_of(self._lower_bases(parent), name, upper)
        for seen in self._shown(path, (0, path), [hit.place for hit in below]):
            yield from self._item(*seen)

    def _shown(self, name: bytes, upper: Place | None, bases: Sequence[Place]) -> Iterator[Shown]:
        """All that lies in the merged directory that the layer calls `name`, at any depth."""
        pending = [self._merged(name, upper, bases)]
        while pending:
            shown = next(pending[-1], None)
            if shown is None:
                pending.pop()
                continue
            yield shown
            hit, called, chain = shown
            if is_dir(hit.found):
                inside = None if hit.place[0] else hit.place
                below = [h.place for h in chain if h.place[0]]
                pending.append(self._merged(called, inside, below))

    def _merged(
        self, directory: bytes, upper: Place | None, bases: Sequence[Place]
    ) -> Iterator[Shown]:
        """What lies in one merged directory, sorted."""
        seen: dict[bytes, Hit] = {}
        for place in (*((upper,) if upper is not None else ()), *bases):
            for name, found in self._stack.children(place).items():
                seen.setdefault(name, Hit((place[0], join(place[1], name)), found))
        for name, hit in sorted(seen.items()):
            if hit.found.node.flags & WHITEOUT:
                continue
            called = join(directory, name)
            if hit.place[0] == 0:
                yield Shown(hit, called, [hit, *self._stack.lower_of(bases, name, hit.found)])
                continue
            chain = self._stack.find(bases, name)
            if chain:
                yield Shown(chain[0], called, chain)

    def _item(self, hit: Hit, name: bytes, chain: Sequence[Hit]) -> Iterator[Item]:
        layer, path = hit.place
        flags = hit.found.node.flags
        self._refuse_reserved(layer, path, flags)
        if flags & SOCKET:
            self._note(layer, path)
            return
        if layer == 0 and flags & INDEXED and flags & LINKED:
            self._index(hit.found, name)
        if flags & LINKED:
            if layer > 0:
                self._late.append((hit, name, chain))
                return
            first = self._first.setdefault(inode(hit.found.node), name)
            if first != name:
                yield Item(hit, name, HARDLINK, first)
                return
        data = None
        if flags & METACOPY:
            data = self._content_of(chain[1:], hit.found, self._where(layer, path))
        # Opaque as a whole: the directory that was moved says it.
        yield Item(hit, name, 0, None, data)

    # ---- names that lie below -----------------------------------------------------------------

    def _index(self, upper: Found, name: bytes) -> None:
        """A file that was copied up for all of its names (index=on)."""
        key = inode(upper.node)
        if key in self._indexed:
            return
        self._need_lower(name, "index")
        origin = overlay_xattr(upper, b"origin") or b""
        self._indexed[key] = (name, origin[4:5] + origin[_ORIGIN_HEAD:])

    def _last(self) -> Iterator[Item]:
        """Files with names below: moved ones, then names that nobody touched."""
        origins = {handle: (key, name) for key, (name, handle) in self._indexed.items() if handle}
        moved: dict[Inode, tuple[bytes, int]] = {}
        for hit, name, chain in self._late:
            layer, path = hit.place
            key = inode(hit.found.node)
            if origins and key not in moved:
                known = origins.get(self._stack.lookers[layer].handle(path) or b"")
                if known is not None:
                    moved[key] = (known[1], 0)
            first, count = moved.get(key, (name, 0))
            moved[key] = (first, count + 1)
            if first != name:
                yield Item(hit, name, HARDLINK, first)
                continue
            data = None
            if hit.found.node.flags & METACOPY:
                data = self._content_of(chain[1:], hit.found, self._where(layer, path))
            yield Item(hit, name, 0, None, data)
        if origins or any(
            moved[inode(hit.found.node)][1] < hit.found.node.nlink for hit, _, _ in self._late
        ):
            yield from self._untouched(origins, moved)

    def _untouched(
        self, origins: dict[bytes, tuple[Inode, bytes]], moved: dict[Inode, tuple[bytes, int]]
    ) -> Iterator[Item]:
        """Names that lie below and are still seen, of files that the layer has under other names. Looks
        at all that the stack shows: they may be anywhere."""
        done = {name for _, name, _ in self._late}
        for hit, name, _ in self._shown(b"", (0, b""), self._stack.below(0)):
            layer, path = hit.place
            if layer == 0 or not hit.found.node.flags & LINKED or name in done:
                continue
            key = inode(hit.found.node)
            first = moved[key][0] if key in moved else None
            if first is None and origins:
                known = origins.get(self._stack.lookers[layer].handle(path) or b"")
                first = known[1] if known is not None else None
            if first is not None:
                done.add(name)
                yield from self._parent(name, done)
                yield Item(hit, name, HARDLINK, first)

    def _parent(self, path: bytes, done: set[bytes]) -> Iterator[Item]:
        """A directory that a link is made anew in, for its times; not when the upper layer has it."""
        parent = path.rpartition(b"/")[0]
        if parent in done or self._stack.look((0, parent)) is not None:
            return
        done.add(parent)
        seen = self._stack.visible(parent)
        if seen is not None:
            yield Item(seen, parent, 0)


class _Collector:
    """Items as batches, in memory of its own."""

    def __init__(self) -> None:
        self._batch = Batch(_FRESH, 256 << 10)

    def batches(self, items: Iterator[Item]) -> Iterator[Batch]:
        batch = self._batch
        batch.clear()
        for item in items:
            self._add(item)
            if batch.n == batch.capacity:
                yield batch
                batch.clear()
        if batch.n:
            yield batch
            batch.clear()

    def _add(self, item: Item) -> None:
        (layer, path), found = item.hit
        node = found.node._replace(root=layer, flags=item.flags)
        if item.data is not None:
            (layer, path), below = item.data
            node = node._replace(root=layer, **_identity(below.node))
        link = item.link if item.link is not None else found.link
        self._batch.add(node, path, item.name, link, found.xattrs)
