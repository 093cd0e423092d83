"""The typed face of the tar writer: nodes of a tree to the bytes of a tar, contents read by C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ._layerstore import ffi, lib
from .tar import raw_new
from .walk import Batch, file_error

END: int = lib.LS_PACK_END
"""Zero bytes that end a tar."""

IdMap = tuple[int, int, int]
"""First id outside, first id inside, how many."""


class Packed(NamedTuple):
    """What one call did."""

    used: int
    """Nodes that are wholly written."""
    size: int
    """Bytes written."""
    given: int
    """The caller writes so many bytes next: the content of node `used` of those that were fed."""
    entries: int
    """Entries so far."""
    offset: int
    """Bytes of the tar so far, `given` among them."""


class Packer:
    """Writes nodes, batch after batch. `roots`: descriptors of directories, and what messages call
    them; a node's `root` counts in them. `clamp`: no time is later (seconds)."""

    def __init__(
        self,
        roots: Sequence[tuple[int, str]],
        *,
        clamp: int | None = None,
        uids: Sequence[IdMap] = (),
        gids: Sequence[IdMap] = (),
    ) -> None:
        self._state = raw_new("char[]", lib.ls_pack_sizeof())
        self._scratch = raw_new("uint8_t[]", lib.LS_PACK_SCRATCH)
        self._pack: Any = ffi.cast("ls_pack *", self._state)
        self._uids = ffi.new("ls_idmap[]", [tuple(m) for m in uids])
        self._gids = ffi.new("ls_idmap[]", [tuple(m) for m in gids])
        lib.ls_pack_init(
            self._pack,
            self._scratch,
            -1 if clamp is None else clamp,
            self._uids,
            len(uids),
            self._gids,
            len(gids),
        )
        self._roots = ffi.new("int[]", [fd for fd, _ in roots])
        self._names = [name for _, name in roots]
        self._out = ffi.new("ls_pack_out *")
        self._err = ffi.new("ls_error *")

    def close(self) -> None:
        """Closes what is open; safe to call twice."""
        lib.ls_pack_close(self._pack)

    def feed(self, batch: Batch, start: int, out: memoryview) -> Packed:
        """Writes nodes from `start` on until `out` is full or all are written.

        Raises InvalidInputError (vanished, changed, not to be said in a tar), OSError, LimitError;
        each names the file."""
        target = ffi.from_buffer("uint8_t[]", out, require_writable=True)
        res = self._out
        code = lib.ls_pack_feed(
            self._pack,
            self._roots,
            len(self._roots),
            batch.nodes + start,
            batch.n - start,
            batch.arena,
            batch.used,
            target,
            len(target),
            res,
            self._err,
        )
        if code != lib.LS_OK:
            at = start + res.used
            raise file_error(self._err, self._names[batch.nodes[at].root], batch.path(at))
        return Packed(res.used, res.out_len, res.given, res.entries, res.offset)
