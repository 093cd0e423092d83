"""The typed face of apply: makes what a tree says, below a directory, and nothing outside of it.

Calls take thousands of nodes each, the GIL free meanwhile. An `Applier` serves one thread at a time;
several may work on one planned tree. What is not permitted is an OSError, or a note where notes are
asked for; both name the node.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import LayerstoreError
from ._layerstore import ffi, lib
from .tar import Buffer, raw_new
from .tree import LayerTree

MAKE_DIRS: int = lib.LS_MAKE_DIRS
MAKE_OTHERS: int = lib.LS_MAKE_OTHERS
MAKE_LINKS: int = lib.LS_MAKE_LINKS
MAKE_WHITEOUTS: int = lib.LS_MAKE_WHITEOUTS
FINISH_DIRS: int = lib.LS_FINISH_DIRS

TRY: int = lib.LS_APPLY_TRY
ROOTLESS: int = lib.LS_APPLY_ROOTLESS
UPPER: int = lib.LS_APPLY_UPPER
USER_XATTR: int = lib.LS_APPLY_USER_XATTR
NO_OPENAT2: int = lib.LS_APPLY_NO_OPENAT2

CLONE_NONE: int = lib.LS_CLONE_NONE
CLONE_SHARE: int = lib.LS_CLONE_SHARE
CLONE_COPY: int = lib.LS_CLONE_COPY
SEED: int = ffi.sizeof("ls_seed")
"""Bytes that one file of an earlier checkout takes in a record."""

NOTES = (
    "owner not kept",
    "owner outside of the map",
    "mode not kept",
    "set-id bits left out, since the owner is another",
    "extended attributes not kept",
    "device not made",
    "times not kept",
    "overlayfs' own attributes left out",
    "further name of what was not made",
    "access control list that names users without their numbers left out",
)

IdMap = tuple[int, int, int]
"""`(inside, outside, count)`: ids of layers to ids of the system."""


class Note(NamedTuple):
    """What could not be kept, how often, and the first: its node and errno (0: none)."""

    what: str
    n: int
    node: int
    errno: int


class ApplyError(LayerstoreError):
    """A node could not be made; `node` and `errno` say which and why."""

    def __init__(self, node: int, number: int) -> None:
        super().__init__(os.strerror(number))
        self.node = node
        self.errno = number


class Applier:
    """Makes nodes of a planned tree below `root_fd`, which stays the caller's. `flags`: TRY and
    others; `umask`, `uid`, `gid`: of what this process makes there; no map means identity."""

    def __init__(
        self,
        tree: LayerTree,
        root_fd: int,
        *,
        flags: int,
        umask: int,
        uid: int,
        gid: int,
        uid_map: Sequence[IdMap] = (),
        gid_map: Sequence[IdMap] = (),
    ) -> None:
        self._tree = tree
        self._uids, self._gids = _maps(uid_map), _maps(gid_map)
        self._state = raw_new("char[]", lib.ls_apply_sizeof())
        self._handle: Any = ffi.cast("ls_apply *", self._state)
        self._out = ffi.new("ls_apply_out *")
        self._err = ffi.new("ls_error *")
        lib.ls_apply_init(
            self._handle, tree.handle, root_fd, flags, umask, uid, gid,
            self._uids, len(uid_map), self._gids, len(gid_map),
        )  # fmt: skip

    def run(self, what: int, nodes: array[int]) -> None:
        """Makes or finishes nodes. Raises ApplyError."""
        ids = ffi.from_buffer("uint32_t[]", nodes)
        self._check(
            lib.ls_apply_run(
                self._handle, self._tree.memory, what, ids, len(nodes), self._out, self._err
            )
        )

    def feed(self, files: Any, first: int, count: int, base: int, data: Buffer) -> int:
        """Content from `base` on for `count` files of the list (`pin(list)`) from `first` on: how many
        of them are finished now. Raises ApplyError."""
        source = ffi.from_buffer("uint8_t[]", data)
        return self.feed_at(files, first, count, base, source, 0, len(source))

    def feed_at(
        self, files: Any, first: int, count: int, base: int, source: Any, offset: int, size: int
    ) -> int:
        """The same with a part of memory that is pinned already."""
        self._check(
            lib.ls_apply_feed(
                self._handle, self._tree.memory, files + first, count, base, source + offset, size,
                self._out, self._err,
            )
        )  # fmt: skip
        done: int = self._out.done
        return done

    def clone(
        self, earlier: Applier, way: int, seeds: bytes | memoryview, nodes: array[int]
    ) -> array[int]:
        """Makes files of one layer with the content that `seeds` (of that layer) has of them below the
        root of `earlier`, by `way` (CLONE_SHARE or CLONE_COPY); gives those that are not made. Raises
        ApplyError."""
        ids, known = ffi.from_buffer("uint32_t[]", nodes), ffi.from_buffer("uint8_t[]", seeds)
        left = raw_new("uint32_t[]", len(nodes))
        self._check(
            lib.ls_apply_clone(
                self._handle, earlier._handle, self._tree.memory, way,
                ffi.cast("ls_seed *", known), len(known) // SEED, ids, len(nodes), left,
                self._out, self._err,
            )
        )  # fmt: skip
        out = array("I")
        out.frombytes(ffi.buffer(left, 4 * self._out.done))
        return out

    def seeds(self, nodes: array[int], smallest: int, before: int) -> bytes:
        """Files of one layer as they are now, for a later `clone`: those of at least `smallest` bytes
        that had not changed at `before` (nanoseconds since 1970) or after it."""
        out = raw_new("ls_seed[]", len(nodes))
        ids = ffi.from_buffer("uint32_t[]", nodes)
        n = lib.ls_apply_seeds(
            self._handle, self._tree.memory, ids, len(nodes), smallest, *divmod(before, 10**9), out
        )
        return bytes(ffi.buffer(out, n * SEED))

    def _check(self, code: int) -> None:
        if code == lib.LS_OK:
            return
        if code == lib.LS_ESYSTEM:
            raise ApplyError(self._out.node, self._out.system)
        raise LayerstoreError(f"extraction: {ffi.string(self._err.reason).decode()}")

    @property
    def bytes(self) -> int:
        """Bytes of files written so far."""
        written: int = self._out.bytes
        return written

    def notes(self) -> list[Note]:
        """What was left out so far."""
        out = self._out
        return [
            Note(NOTES[i], out.notes[i], out.first[i], out.why[i])
            for i in range(len(NOTES))
            if out.notes[i]
        ]

    def close(self) -> None:
        """Closes its descriptors."""
        lib.ls_apply_close(self._handle)


def clone_way(fd: int) -> int:
    """How files on the filesystem of a directory can share their content: one of CLONE_*."""
    way: int = lib.ls_clone_way(fd)
    return way


def pin(data: Buffer | array[int], kind: str = "uint32_t[]") -> Any:
    """Memory that C may read as long as this lives."""
    return ffi.from_buffer(kind, data)


def _maps(maps: Sequence[IdMap]) -> Any:
    out = ffi.new("ls_apply_idmap[]", max(1, len(maps)))
    for i, (inside, outside, count) in enumerate(maps):
        out[i] = (inside, outside, count)
    return out
