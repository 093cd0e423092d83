"""The typed face of the tree: what is there in the end when layers lie on each other.

Fed with the headers of layers, lowest first. All memory is in three maps that grow without being
copied: about 90 bytes a name, the name itself, and its link target and extended attributes. A
machine serves one thread until it is planned; then several may read it.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from ..errors import InvalidInputError, LimitError
from ._layerstore import ffi, lib
from .tar import Buffer, raw_new

DIRS: int = lib.LS_LIST_DIRS
FILES: int = lib.LS_LIST_FILES
OTHERS: int = lib.LS_LIST_OTHERS
LINKS: int = lib.LS_LIST_LINKS
WHITEOUTS: int = lib.LS_LIST_WHITEOUTS
SKIPPED: int = lib.LS_LIST_SKIPPED

MAX_ENTRIES = 1 << 24
"""Names of all layers together: what an image can make us remember (about 3 GiB)."""
MAX_NAMES = (1 << 32) - 1
_BATCH = 65536
_NODE = ffi.sizeof("ls_tree_node")
_NONE: int = lib.LS_TREE_NONE
_ALL_OF: int = lib.LS_TREE_ALL_OF
_Code = Literal["Q", "I", "H", "B"]
_COLUMNS: tuple[tuple[str, _Code], ...] = (
    ("header", "Q"),
    ("layer", "H"),
    ("link", "I"),
    ("flags", "B"),
    ("moved", "B"),
)
IMPLICIT: int = lib.LS_TNODE_IMPLICIT
DEAD: int = lib.LS_TNODE_DEAD
MOVED = 1


class Columns(NamedTuple):
    """Of every node: the first byte of its headers, the layer that it is from (from 1), for a further
    name its file's node, for what is made the node of its name; flags; and whether its path in its
    layer leads through symbolic links."""

    header: memoryview[int]
    layer: memoryview[int]
    link: memoryview[int]
    flags: memoryview[int]
    moved: memoryview[int]


class Plan(NamedTuple):
    """What is to be made: entries, bytes of files, bytes of payload that are read for them."""

    entries: int
    bytes: int
    stored: int


class Segment(NamedTuple):
    """A stretch of a layer's content (its content stream, or its tar), and the files in it."""

    start: int
    end: int
    first: int
    n: int
    layer: int


class _Map:
    """Memory that grows in place (mremap): pages that are not touched cost nothing."""

    def __init__(self, kind: str, size: int) -> None:
        self._kind = kind
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view: Any = None
        self._take()

    def _take(self) -> None:
        self.size = len(self._map)
        self._held: Any = ffi.from_buffer(self._map)
        self.view = ffi.cast(self._kind, self._held)

    def grow(self, size: int) -> None:
        ffi.release(self._held)
        self._map.resize((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE)
        self._take()

    def trim(self, used: int) -> None:
        """Gives back the pages behind what is in use."""
        start = (used + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < self.size:
            self._map.madvise(mmap.MADV_DONTNEED, start, self.size - start)

    def close(self) -> None:
        ffi.release(self._held)
        self._map.close()


class LayerTree:
    """The merged tree. `add_split` or `add_tar` for each layer, `plan` once, then the lists."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._limit = max_entries
        self._state = raw_new("char[]", lib.ls_tree_sizeof())
        self._scratch: Any = raw_new("uint8_t[]", lib.LS_TREE_SCRATCH)
        self.handle: Any = ffi.cast("ls_tree *", self._state)
        self._nodes = _Map("ls_tree_node *", 4096 * _NODE)
        self._arena = _Map("uint8_t *", 1 << 20)
        self._table = _Map("uint32_t *", 4 << 14)
        self._seen = _Map("uint32_t *", 4 * 4096)
        self.memory: Any = ffi.new("ls_tree_mem *")
        self._point()
        self._out = ffi.new("ls_tree_out *")
        self._err = ffi.new("ls_error *")
        self._marks: Any = None
        seed = int.from_bytes(os.urandom(8), "little")
        lib.ls_tree_init(self.handle, self.memory, self._scratch, seed)

    def _point(self) -> None:
        memory = self.memory
        memory.nodes, memory.max_nodes = self._nodes.view, self._nodes.size // _NODE
        memory.arena, memory.arena_size = self._arena.view, self._arena.size
        memory.table, memory.table_size = self._table.view, self._table.size // 4
        memory.seen = self._seen.view

    def _grow(self) -> None:
        """As the last call asked, and more."""
        nodes, arena = self._out.need_nodes, self._out.need_arena
        if nodes > self._limit:
            raise LimitError(f"the layers have more than {self._limit} entries")
        if nodes > self.memory.max_nodes:
            self._nodes.grow(2 * nodes * _NODE)
            self._seen.grow(4 * (self._nodes.size // _NODE))
        if arena > self._arena.size:
            self._arena.grow(min(max(2 * self._arena.size, arena + (1 << 20)), MAX_NAMES + 1))
        rehash = self.memory.max_nodes > self._table.size // 4
        if rehash:
            self._table.grow(2 * self._table.size)
        self._point()
        if rehash:
            lib.ls_tree_rehash(self.handle, self.memory)

    def _call(self, code: int) -> bool:
        """Whether a call is to be made again, with more memory. Raises for what is wrong."""
        if code == lib.LS_OK:
            return False
        if code == lib.LS_ESPACE:
            self._grow()
            return True
        reason = ffi.string(self._err.reason).decode()
        if code == lib.LS_ELIMIT:
            raise LimitError(f"the layers cannot be merged: {reason}")
        name = self._bad()
        offset = self._err.offset
        where = f"{name!r}, " if name else ""
        raise InvalidInputError(
            f"{where}at byte {offset}: {reason}", path=name or None, offset=offset, reason=reason
        )

    def _bad(self) -> str:
        buffer = ffi.new("uint8_t[]", lib.LS_TREE_PATH)
        n = lib.ls_tree_bad(self.handle, buffer, lib.LS_TREE_PATH)
        return bytes(ffi.buffer(buffer, n)).decode("utf-8", "surrogateescape")

    # ---- layers -------------------------------------------------------------------------------

    def add_split(self, head: Iterable[Buffer], marks: Buffer, content: int) -> None:
        """A layer as header stream and marks; its content stream has `content` bytes.

        Raises InvalidInputError with path, offset and reason for what cannot be extracted safely and
        in one way only, LimitError for too many entries."""
        self._marks = ffi.from_buffer("uint8_t[]", marks)
        self._add(head, True, content)

    def add_tar(self, pieces: Iterable[Buffer]) -> None:
        """A layer as its tar. Raises as `add_split`."""
        self._marks = ffi.from_buffer("uint8_t[]", b"")
        self._add(pieces, False, 0)

    def _add(self, pieces: Iterable[Buffer], split: bool, content: int) -> None:
        marks = self._marks
        self._call(lib.ls_tree_layer(self.handle, split, marks, len(marks), content, self._err))
        for piece in pieces:
            self._feed(piece, False)
        self._feed(b"", True)
        while self._call(lib.ls_tree_apply(self.handle, self.memory, self._out, self._err)):
            pass
        # Names have lost their directories: half of it or more is free again.
        self._arena.trim(self._out.n_arena)

    def _feed(self, data: Buffer, final: bool) -> None:
        source = ffi.from_buffer("uint8_t[]", data)
        size = len(source)
        at = 0
        while True:
            code = lib.ls_tree_feed(
                self.handle, self.memory, source + at, size - at, final, self._out, self._err
            )
            at += self._out.used
            if not self._call(code):
                return

    # ---- what is there ------------------------------------------------------------------------

    def plan(self, *, upper: bool = False) -> Plan:
        """Decides what is to be made: all, or with `upper` what the last layer adds to an overlay
        over the others. What it decided holds until a layer is added."""
        plan = ffi.new("ls_tree_plan *")
        self._call(lib.ls_tree_finish(self.handle, self.memory, upper, plan))
        return Plan(plan.entries, plan.bytes, plan.stored)

    def listing(self, kind: int) -> Iterator[array[int]]:
        """The nodes of one kind in batches."""
        cursor = ffi.new("uint64_t *")
        out = raw_new("uint32_t[]", _BATCH)
        while n := lib.ls_tree_list(self.handle, self.memory, kind, cursor, out, _BATCH):
            batch = array("I")
            batch.frombytes(ffi.buffer(out, 4 * n))
            yield batch

    def all(self, kind: int) -> array[int]:
        """The nodes of one kind."""
        out = array("I")
        for batch in self.listing(kind):
            out += batch
        return out

    def segments(self, files: array[int], size: int, gap: int) -> Iterator[Segment]:
        """Stretches of about `size` bytes of content, with the files of the list in each."""
        ids = ffi.from_buffer("uint32_t[]", files)
        cursor = ffi.new("uint64_t *")
        out = ffi.new("ls_segment[]", 1024)
        while n := lib.ls_tree_segments(
            self.handle, self.memory, ids, len(files), size, gap, cursor, out, 1024
        ):
            for i in range(n):
                s = out[i]
                yield Segment(s.start, s.end, s.first, s.count, s.layer)

    def path(self, node: int) -> str:
        """A node's path below the root, bytes that are no UTF-8 as surrogate escapes."""
        size = 256 * (lib.LS_TREE_DEPTH + 1)
        buffer = raw_new("uint8_t[]", size)
        n = lib.ls_tree_path(self.handle, self.memory, node, buffer, size)
        return bytes(ffi.buffer(buffer, n)).decode("utf-8", "surrogateescape")

    def find(self, path: bytes) -> int | None:
        """The node at a path, no link followed; None if there is none."""
        node: int = lib.ls_tree_find(self.handle, self.memory, path, len(path))
        return None if node == _NONE else node

    @property
    def count(self) -> int:
        """Nodes so far."""
        return int(self._out.n_nodes) or 1

    def columns(self) -> Columns:
        """Of each node, by its number, what tells where it is from. Good until a layer is added."""
        raw = memoryview(ffi.buffer(self._nodes.view, self.count * _NODE))

        def of(field: str, code: _Code) -> memoryview[int]:
            size = struct.calcsize(code)
            column: Any = raw.cast(code)[
                ffi.offsetof("ls_tree_node", field) // size :: _NODE // size
            ]
            return column  # type: ignore[no-any-return]

        return Columns(*(of(field, code) for field, code in _COLUMNS))

    def hidden(self, kept: int, n_kept: int) -> Iterator[tuple[int, bool]]:
        """What a layer that stands for all above the first `kept` has to hide, when these had `n_kept`
        nodes together: nodes, and whether all that is in one is meant, or its name."""
        work, out = raw_new("uint32_t[]", 3 * n_kept), raw_new("uint32_t[]", n_kept)
        n = lib.ls_tree_hidden(self.handle, self.memory, kept, n_kept, work, out)
        for node in memoryview(ffi.buffer(out, 4 * n)).cast("I") if n else ():
            yield node & ~_ALL_OF, bool(node & _ALL_OF)

    def origin(self, node: int) -> tuple[int, int]:
        """The layer (from 0) that a node is from, and the offset of its headers in the tar."""
        row = self.memory.nodes[node]
        return max(0, row.layer - 1), row.header

    def close(self) -> None:
        """Gives the memory back."""
        for one in (self._nodes, self._arena, self._table, self._seen):
            one.close()
