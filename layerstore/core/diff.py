"""The typed face of the tree comparison: batches of two walks in, the nodes of a layer out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import LimitError
from ._layerstore import ffi, lib
from .tar import raw_new
from .walk import Batch, Walk

SAME: int = lib.LS_NODE_SAME
"""Nothing of the metadata changed; `data_offset` is the old inode. The caller decides."""

_ARENA_MAX = 1 << 30


def changes(old: Walk, new: Walk, *, content: bool = False) -> Iterator[Batch]:
    """What `new` has and `old` has not, in order, with whiteouts for what is gone; a batch is good
    until the next. Files that have several names, and with `content` all that are the same by their
    metadata, come too, marked SAME. Raises what the walks raise."""
    state = raw_new("char[]", lib.ls_diff_sizeof())
    machine: Any = ffi.cast("ls_diff *", state)
    lib.ls_diff_init(machine, lib.LS_DIFF_CONTENT if content else 0)
    res = ffi.new("ls_diff_out *")
    err = ffi.new("ls_error *")
    out = Batch()
    left, right = old.next(), new.next()
    old_at = new_at = 0
    while left is not None or right is not None:
        code = lib.ls_diff_feed(
            machine,
            ffi.NULL if left is None else left.nodes + old_at,
            0 if left is None else left.n - old_at,
            ffi.NULL if left is None else left.arena,
            old.done,
            ffi.NULL if right is None else right.nodes + new_at,
            0 if right is None else right.n - new_at,
            ffi.NULL if right is None else right.arena,
            new.done,
            out.nodes,
            out.capacity,
            out.arena,
            out.arena_size,
            res,
            err,
        )
        if code == lib.LS_ESPACE and out.arena_size < _ARENA_MAX:
            out.used = 0
            out.grow_arena(2 * out.arena_size)
            continue
        if code != lib.LS_OK:
            raise LimitError(f"two trees: {ffi.string(err.reason).decode()}")
        old_at += res.old_used
        new_at += res.new_used
        out.n, out.used = res.n_nodes, res.arena_used
        if out.n:
            yield out
        if left is not None and old_at >= left.n:
            left, old_at = old.next(), 0
        if right is not None and new_at >= right.n:
            right, new_at = new.next(), 0
