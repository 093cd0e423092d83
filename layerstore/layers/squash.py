"""Several layers merged into one: what they are together over the layers that remain below.

The layers' headers go into one tree (`core/tree.py`), which says what is there in the end exactly as a
checkout has it: replaced and hidden names, entries of one name in one layer, links. Out of it come, in
memory of a few bytes a name, which entries of which layer are left and what of the layers below has to
be hidden; then the tree is let go, and the layers are read once more and written: whiteouts first,
directories that no layer names, then entries in the order of their layers, headers as they are.

A file whose own name is gone and that lives on under a hard link gets a new header; further names
follow it at once as hard links. A hard link to a file of the layers below leads to a name that this has
there in the end; if it has none, the file is written anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.tar import TarEntry, expand_sparse
from ..core.tree import DEAD, DIRS, FILES, IMPLICIT, LINKS, MOVED, OTHERS, SKIPPED, LayerTree
from ..errors import InvalidInputError
from .headers import BLOCK, header, raw
from .inflate import DEFAULT_LIMIT, compression_of, inflate
from .tree import OPAQUE, PREFIX, clean, scan_layer, tar_of, tar_pieces, text

if TYPE_CHECKING:
    from .content import Content


@dataclass(slots=True)
class _Left:
    """What is left of one layer, by the first byte of an entry's headers."""

    headers: array[int] = field(default_factory=lambda: array("Q"))
    """Ascending."""
    names: dict[int, str] = field(default_factory=dict)
    """Names that are not as the entry says: a symbolic link was on the way, or another name is left."""
    further: dict[int, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Plan:
    whiteouts: list[str] = field(default_factory=list)
    implied: list[str] = field(default_factory=list)
    """Directories that no layer names, and that are not those of the layers below."""
    left: list[_Left] = field(default_factory=list)
    """Of each layer, those below too."""
    outside: dict[str, str] = field(default_factory=dict)
    """Hard links to names of the layers below."""


def squash(content: Content, digests: Sequence[str], below: Sequence[str] = ()) -> Iterator[bytes]:
    """The tar of the merged layer. `digests` (lowest first) are merged; `below` (lowest first) remain
    beneath it. Raises NotFoundError, InvalidInputError for a layer that does not decode or cannot be
    extracted."""
    plan = _decide(content, digests, below)
    for path in sorted(plan.whiteouts, key=raw):
        yield header(raw(path), b"0")
    for path in sorted(plan.implied, key=raw):
        yield header(raw(path) + b"/", b"5", mode=0o755)
    for digest, left in zip((*below, *digests), plan.left, strict=True):
        if left.headers:
            yield from _write(content, digest, left)
    for path in sorted(plan.outside, key=raw):
        yield header(raw(path), b"1", link=raw(plan.outside[path]))
    yield bytes(2 * BLOCK)


# ---- deciding ---------------------------------------------------------------------------------


def _decide(content: Content, digests: Sequence[str], below: Sequence[str]) -> _Plan:
    tree = LayerTree()
    try:
        for digest in below:
            _add(content, digest, tree)
        n_kept = tree.count
        for digest in digests:
            _add(content, digest, tree)
        tree.plan()
        plan = _Plan(left=[_Left() for _ in range(len(below) + len(digests))])
        _sources(tree, len(below), plan)
        _links(tree, len(below), plan)
        for node, whole in tree.hidden(len(below), n_kept):
            path = tree.path(node)
            folder, _, base = (path, "", "") if whole else path.rpartition("/")
            name = OPAQUE if whole else PREFIX + base
            plan.whiteouts.append(f"{folder}/{name}" if folder else name)
    finally:
        tree.close()
    for left in plan.left:
        left.headers = array("Q", sorted(left.headers))
    return plan


def _add(content: Content, digest: str, tree: LayerTree) -> None:
    tar = tar_of(content, digest)
    with content.open(tar) as blob:
        row = blob.row
    try:
        tree.add_tar(tar_pieces(content, tar, row, DEFAULT_LIMIT))
    except InvalidInputError as e:
        raise InvalidInputError(
            f"layer {digest}: {e.message}",
            digest=digest,
            path=e.path,
            offset=e.offset,
            reason=e.reason,
        ) from e


def _sources(tree: LayerTree, kept: int, plan: _Plan) -> None:
    """Entries that have a header in the merged layer."""
    nodes = tree.columns()
    for node in (n for batch in tree.listing(DIRS) for n in batch):
        layer = nodes.layer[node]
        if layer <= kept:
            continue
        if nodes.flags[node] & IMPLICIT:
            plan.implied.append(tree.path(node))
            continue
        left = plan.left[layer - 1]
        left.headers.append(nodes.header[node])
        if nodes.moved[node] & MOVED:
            left.names[nodes.header[node]] = tree.path(node)
    for node in (n for kind in (FILES, OTHERS) for batch in tree.listing(kind) for n in batch):
        layer, name = nodes.layer[node], nodes.link[node]
        if layer <= kept and nodes.layer[name] <= kept:
            continue
        # Of the layers below: no name that they gave it is left, so it is written anew.
        left = plan.left[layer - 1]
        left.headers.append(nodes.header[node])
        if name != node or nodes.moved[node] & MOVED or layer <= kept:
            left.names[nodes.header[node]] = tree.path(name)
    for node in (n for batch in tree.listing(SKIPPED) for n in batch):
        if nodes.layer[node] > kept and not nodes.flags[node] & DEAD:
            plan.left[nodes.layer[node] - 1].headers.append(nodes.header[node])


def _links(tree: LayerTree, kept: int, plan: _Plan) -> None:
    """Further names."""
    nodes = tree.columns()
    for node in (n for batch in tree.listing(LINKS) for n in batch):
        file = nodes.link[node]
        name = nodes.link[file]
        if nodes.layer[file] > kept or nodes.layer[name] > kept:
            left = plan.left[nodes.layer[file] - 1]
            left.further.setdefault(nodes.header[file], []).append(tree.path(node))
        elif nodes.layer[node] > kept:
            plan.outside[tree.path(node)] = tree.path(name)


# ---- writing ----------------------------------------------------------------------------------


class _Stream:
    """The uncompressed tar of a layer, taken front to back."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self.offset = 0

    def take(self, size: int) -> Iterator[bytes]:
        """The next bytes, in pieces. Raises InvalidInputError if the tar ends before."""
        while size:
            if not len(self._rest):
                piece = next(self._pieces, None)
                if piece is None:
                    raise InvalidInputError("the layer ends inside a file", offset=self.offset)
                self._rest = memoryview(piece)
                continue
            part = self._rest[:size]
            self._rest = self._rest[size:]
            size -= len(part)
            self.offset += len(part)
            yield bytes(part)

    def skip_to(self, offset: int) -> None:
        for _ in self.take(offset - self.offset):
            pass


def _write(content: Content, digest: str, left: _Left) -> Iterator[bytes]:
    """What of one layer is left."""
    wanted = iter(left.headers)
    at = next(wanted, None)
    with content.open(digest) as blob:
        start = blob.read(8) or b""
        blob.seek(0)
        kind = None if blob.row.tar is not None else compression_of(start)
        stream = _Stream(blob.chunks() if kind is None else inflate(blob.chunks(), kind))
        for entry in scan_layer(content, digest):
            if entry.header_offset != at:
                continue
            name = left.names.get(at)
            further = left.further.get(at, ())
            at = next(wanted, None)
            said = clean(text(entry.name)) or ""
            if said.rpartition("/")[2].startswith(PREFIX):
                continue  # aufs' own notes
            first = said if name is None else name
            stream.skip_to(entry.header_offset)
            yield from _entry(stream, entry, first, renamed=first != said)
            for other in sorted(further, key=raw):
                yield header(raw(other), b"1", link=raw(first), like=entry)


def _entry(stream: _Stream, entry: TarEntry, name: str, *, renamed: bool) -> Iterator[bytes]:
    padding = -entry.stored_size % BLOCK
    if not renamed and not entry.pax_global:
        yield from stream.take(
            entry.data_offset - entry.header_offset + entry.stored_size + padding
        )
        return
    stream.skip_to(entry.data_offset)
    size = entry.size if entry.type in "07\0S" else 0
    kind = b"0" if entry.type in "7\0S" else entry.type.encode("latin-1")
    yield header(raw(name), kind, size=size, link=entry.linkname, like=entry)
    stored = stream.take(entry.stored_size)
    if entry.sparse_map is not None:
        yield from expand_sparse(entry.sparse_map, entry.size, stored)
    else:
        yield from stored
    yield bytes(-size % BLOCK)
    for _ in stream.take(padding):
        pass
