"""The typed face of the tree walk: batches of nodes, one C call for thousands of files.

A node is a C struct (`ls_node`); what most callers do with a batch is hand it on to the tar writer,
so nodes become Python objects only where somebody asks. The GIL is free during every call.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from ..errors import InvalidInputError, LayerstoreError, LimitError
from ._layerstore import ffi, lib
from .tar import raw_new

WHITEOUT: int = lib.LS_NODE_WHITEOUT
OPAQUE: int = lib.LS_NODE_OPAQUE
LINKED: int = lib.LS_NODE_LINKED
SOCKET: int = lib.LS_NODE_SOCKET
RESERVED: int = lib.LS_NODE_RESERVED
REDIRECT: int = lib.LS_NODE_REDIRECT
METACOPY: int = lib.LS_NODE_METACOPY
INDEXED: int = lib.LS_NODE_INDEXED
SKIP: int = lib.LS_NODE_SKIP
HARDLINK: int = lib.LS_NODE_HARDLINK
GIVEN: int = lib.LS_NODE_GIVEN
SPECIAL: int = LINKED | SOCKET | RESERVED | REDIRECT | METACOPY | INDEXED
"""Flags that say that a node is not simply what it seems."""

PATH_MAX: int = lib.LS_WALK_PATH

_BATCH = 4096
_ARENA = 2 << 20
_ARENA_MAX = 1 << 30
_STACK = 1 << 20
_STACK_MAX = 1 << 36

_NODE = struct.Struct("=QQqqQQ22I")
assert ffi.sizeof("ls_node") == _NODE.size
_SIZE = _NODE.size
_FLAGS_AT = int(ffi.offsetof("ls_node", "flags"))


class Node(NamedTuple):
    """One file, as its struct says; strings are places in the batch's arena. Sizes in bytes, times in
    seconds and nanoseconds; `mode` is `st_mode`."""

    ino: int
    size: int
    mtime_sec: int
    ctime_sec: int
    data_offset: int
    given_offset: int
    mtime_nsec: int
    ctime_nsec: int
    mode: int
    uid: int
    gid: int
    nlink: int
    dev_major: int
    dev_minor: int
    rdev_major: int
    rdev_minor: int
    flags: int
    depth: int
    root: int
    path_off: int
    path_len: int
    name_off: int
    name_len: int
    link_off: int
    link_len: int
    xattr_off: int
    xattr_len: int
    reserved: int


class Batch:
    """Nodes and the arena of their strings. A walk uses the same memory again for its next batch."""

    __slots__ = ("_made", "arena", "arena_size", "capacity", "n", "nodes", "used")

    def __init__(self, capacity: int = _BATCH, arena: int = _ARENA) -> None:
        self.capacity = capacity
        self.nodes: Any = raw_new("ls_node[]", capacity)
        self.arena_size = arena
        self.arena: Any = raw_new("uint8_t[]", arena)
        self.n = 0
        self.used = 0
        """Bytes of the arena that are taken."""

    def grow_arena(self, size: int) -> None:
        """A larger arena with the same strings."""
        old = self.arena
        self.arena = raw_new("uint8_t[]", size)
        ffi.memmove(self.arena, old, self.used)
        self.arena_size = size

    def flags(self) -> memoryview:
        """The flags of each node (u32)."""
        view = memoryview(ffi.buffer(self.nodes, self.n * _SIZE)).cast("I")
        return view[_FLAGS_AT // 4 :: _SIZE // 4]

    def raw(self) -> tuple[memoryview, memoryview]:
        """All of it: the structs, the arena."""
        return (
            memoryview(ffi.buffer(self.nodes, self.n * _SIZE)),
            memoryview(ffi.buffer(self.arena, self.used)),
        )

    def node(self, i: int) -> Node:
        return Node._make(_NODE.unpack_from(ffi.buffer(self.nodes, self.n * _SIZE), i * _SIZE))

    def rows(self) -> Iterator[Node]:
        """All nodes."""
        return map(Node._make, _NODE.iter_unpack(ffi.buffer(self.nodes, self.n * _SIZE)))

    def text(self, offset: int, length: int) -> bytes:
        """A string of the arena."""
        return bytes(ffi.buffer(self.arena + offset, length))

    def path(self, i: int) -> bytes:
        node = self.nodes[i]
        return self.text(node.path_off, node.path_len)

    def directories(self) -> list[bytes]:
        """Paths of the directories, but the root of the walk."""
        return [
            self.text(node.path_off, node.path_len)
            for node in self.rows()
            if stat.S_ISDIR(node.mode) and node.path_len
        ]

    def xattrs(self, i: int) -> dict[bytes, bytes]:
        node = self.nodes[i]
        return parse_xattrs(self.text(node.xattr_off, node.xattr_len))

    def add_text(self, text: bytes) -> int:
        """Appends to the arena; returns where it lies."""
        if self.used + len(text) > self.arena_size:
            self.grow_arena(2 * self.arena_size + len(text))
        at = self.used
        ffi.memmove(self.arena + at, text, len(text))
        self.used += len(text)
        return at

    def add(self, node: Node, path: bytes, name: bytes, link: bytes, xattrs: bytes) -> None:
        """Appends a node with these strings. The batch must have room (`capacity`)."""
        path_off = self.add_text(path)
        name_off = path_off if name == path else self.add_text(name)
        made = node._replace(
            path_off=path_off,
            path_len=len(path),
            name_off=name_off,
            name_len=len(name),
            link_off=self.add_text(link),
            link_len=len(link),
            xattr_off=self.add_text(xattrs),
            xattr_len=len(xattrs),
        )
        _NODE.pack_into(ffi.buffer(self.nodes, self.capacity * _SIZE), self.n * _SIZE, *made)
        self.n += 1

    def clear(self) -> None:
        self.n = self.used = 0


def parse_xattrs(data: bytes) -> dict[bytes, bytes]:
    """The records of a node's xattrs."""
    out: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        n, v = struct.unpack_from("=II", data, at)
        at += 8
        out[data[at : at + n]] = data[at + n : at + n + v]
        at += n + v
    return out


def pack_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """The inverse, sorted by name."""
    return b"".join(
        struct.pack("=II", len(name), len(value)) + name + value
        for name, value in sorted(xattrs.items())
    )


class Found(NamedTuple):
    """One file: its node, and its strings."""

    node: Node
    link: bytes
    xattrs: bytes
    """Records as `parse_xattrs` reads them."""


class Looker:
    """Single files and directories below an open directory, marks of overlayfs understood."""

    def __init__(self, fd: int, where: str) -> None:
        self.fd = fd
        self.where = where
        self._state = raw_new("char[]", lib.ls_walk_sizeof())
        self._walk: Any = ffi.cast("ls_walk *", self._state)
        lib.ls_walk_init(self._walk, fd, lib.LS_WALK_OVERLAY)
        self._batch = Batch(1, 256 << 10)
        self._out = ffi.new("ls_walk_out *")
        self._err = ffi.new("ls_error *")

    def look(self, path: bytes) -> Found | None:
        """The file at `path`; None if there is none, or no directory on the way."""
        batch = self._batch
        while True:
            code = lib.ls_walk_look(
                self._walk,
                path,
                len(path),
                batch.nodes,
                batch.arena,
                batch.arena_size,
                self._out,
                self._err,
            )
            if code == lib.LS_OK:
                batch.n, batch.used = 1, self._out.arena_used
                return found_in(batch, 0)
            if code == lib.LS_ESPACE and batch.arena_size < _ARENA_MAX:
                batch.used = 0
                batch.grow_arena(2 * batch.arena_size)
                continue
            if code == lib.LS_EOS and self._err.offset in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise file_error(self._err, self.where, path)

    def children(self, path: bytes) -> dict[bytes, Found]:
        """What lies in a directory, by name."""
        fd = self.open(path)
        try:
            out: dict[bytes, Found] = {}
            with Walk(fd, os.path.join(self.where, show(path)), overlay=True, flat=True) as walk:
                while (batch := walk.next()) is not None:
                    for i in range(batch.n):
                        if batch.nodes[i].path_len:
                            out[batch.path(i)] = found_in(batch, i)
            return out
        finally:
            os.close(fd)

    def open(self, path: bytes) -> int:
        """A descriptor of the directory at `path`, reached without following links."""
        fd = int(lib.ls_open_beneath(self.fd, path, len(path)))
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), os.path.join(self.where, show(path)))
        return fd

    def handle(self, path: bytes) -> bytes | None:
        """The file handle of a file: its type as one byte, then its bytes; None where the filesystem
        has none."""
        buffer = ffi.new("uint8_t[]", 256)
        n = lib.ls_file_handle(self.fd, path, len(path), buffer, 256)
        return bytes(ffi.buffer(buffer, n)) if n > 0 else None


def found_in(batch: Batch, i: int) -> Found:
    """A node of a batch with its strings."""
    node = batch.node(i)
    return Found(
        node,
        batch.text(node.link_off, node.link_len),
        batch.text(node.xattr_off, node.xattr_len),
    )


def show(path: bytes) -> str:
    """A path for a message."""
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode() or "."


def file_error(err: Any, where: str, path: bytes) -> Exception:
    """What went wrong with a file, as an exception that names it."""
    reason = ffi.string(err.reason).decode()
    full = os.path.join(where, show(path)) if path else where
    if err.code == lib.LS_EOS:
        number = int(err.offset)
        if number in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
            return InvalidInputError(
                f"{full} vanished while the tree was read: nothing may change it meanwhile",
                path=full,
                reason="vanished",
            )
        return OSError(number, os.strerror(number), full)
    if err.code == lib.LS_ECHANGED:
        return InvalidInputError(
            f"{full}: {reason}; nothing may change the tree while it is read",
            path=full,
            reason="changed",
        )
    if err.code == lib.LS_ELIMIT:
        return LimitError(f"{full}: {reason}", path=full)
    if err.code == lib.LS_EINVALID:
        return InvalidInputError(f"{full}: {reason}", path=full, reason=reason)
    return LayerstoreError(f"{full}: {reason}", path=full)


class Walk:
    """Reads a tree below an open directory. Use as a context manager.

    `where` is what messages call the directory. With `overlay`, the marks of overlayfs set flags
    (whiteouts, opaque directories, redirects); `flat`: the directory and what lies in it, not deeper;
    `bare`: without targets and xattrs; `stop`: flags behind which a batch ends, so that `prune` can
    still keep the walk out. `no_at`, `no_proc`: as if the kernel had no listxattrat, and /proc were
    not mounted (with both, symlinks and devices lose their xattrs)."""

    def __init__(
        self,
        fd: int,
        where: str,
        *,
        overlay: bool = False,
        flat: bool = False,
        no_at: bool = False,
        no_proc: bool = False,
        bare: bool = False,
        stop: int = 0,
        capacity: int = _BATCH,
    ) -> None:
        self._fd = fd
        self._where = where
        self._stop = stop
        self._state = raw_new("char[]", lib.ls_walk_sizeof())
        self._walk: Any = ffi.cast("ls_walk *", self._state)
        options = (lib.LS_WALK_OVERLAY if overlay else 0) | (lib.LS_WALK_FLAT if flat else 0)
        options |= lib.LS_WALK_BARE if bare else 0
        options |= lib.LS_WALK_NO_AT if no_at else 0
        options |= lib.LS_WALK_NO_PROC if no_proc else 0
        lib.ls_walk_init(self._walk, fd, options)
        # Private and anonymous: pages that no name reaches cost nothing, and growing moves them.
        self._stack = mmap.mmap(-1, _STACK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._out = ffi.new("ls_walk_out *")
        self._err = ffi.new("ls_error *")
        self.batch = Batch(capacity)
        self.done = False

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        lib.ls_walk_close(self._walk)
        self._stack.close()
        self.done = True

    def prune(self) -> None:
        """Does not go down into the directory that was the last node of the last batch."""
        lib.ls_walk_prune(self._walk)

    def next(self) -> Batch | None:
        """The next batch, in the memory of the one before; None at the end.

        Raises InvalidInputError (a file vanished), OSError (not readable), LimitError (path too
        long); each names the file."""
        batch, out = self.batch, self._out
        while not self.done:
            stack = ffi.from_buffer("uint8_t[]", self._stack)
            code = lib.ls_walk_next(
                self._walk,
                stack,
                len(stack),
                self._stop,
                batch.nodes,
                batch.capacity,
                batch.arena,
                batch.arena_size,
                out,
                self._err,
            )
            ffi.release(stack)
            if code == lib.LS_OK:
                batch.n, batch.used = out.n_nodes, out.arena_used
                self.done = bool(out.done)
                if batch.n:
                    return batch
                if not self.done:
                    self._more()
                continue
            if code == lib.LS_ESPACE:
                self._more()
                continue
            path = batch.text(out.path_off, out.path_len)
            raise file_error(self._err, self._where, path)
        return None

    def ahead(self) -> Iterator[Batch]:
        """All batches, each made by a thread while the one before is worked on; a batch is good until
        the next is asked for. Behind a node that has a `stop` flag the walk waits: `prune` is heard."""
        spare = Batch(self.batch.capacity, self.batch.arena_size)
        with ThreadPoolExecutor(1, thread_name_prefix="layerstore-walk") as pool:
            batch = self.next()
            while batch is not None:
                self.batch, spare = spare, batch
                if batch.nodes[batch.n - 1].flags & self._stop:
                    yield batch
                    batch = self.next()
                    continue
                following = pool.submit(self.next)
                try:
                    yield batch
                finally:
                    # Also when nobody asks for more: the walk must not be closed in its midst.
                    wait((following,))
                batch = following.result()

    def _more(self) -> None:
        """More room for a directory's names, or for one node's xattrs."""
        need = self._out.need
        if need > len(self._stack):
            if need > _STACK_MAX:
                raise LimitError(f"a directory of {self._where} has too many files")
            self._stack.resize(-(-need // mmap.PAGESIZE) * mmap.PAGESIZE)
            return
        size = 2 * self.batch.arena_size
        if size > _ARENA_MAX:
            raise LimitError(f"a file of {self._where} has too many xattrs")
        self.batch.used = 0
        self.batch.grow_arena(size)
