"""Layers as tars, with no store (floor 5): nothing of one is loaded, so first bytes come sooner."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

from . import values
from .layers.diff import diff_trees, diff_upper


def write_upper(
    tar: BinaryIO,
    upper: str | os.PathLike[str],
    lower: Sequence[str | os.PathLike[str]] = (),
    *,
    source_date_epoch: int | None = None,
    uids: Sequence[tuple[int, int, int]] = (),
    gids: Sequence[tuple[int, int, int]] = (),
    hashed: bool = True,
    fuse_overlayfs: bool = False,
    rootless: bool = False,
    progress: values.ProgressCallback | None = None,
) -> values.LayerInfo:
    """The tar that `Store.diff_upper` would store, written to a binary file; no store is needed.
    Without `hashed` nobody computes its digest (empty then)."""
    return diff_upper(
        None,
        upper,
        lower,
        source_date_epoch=source_date_epoch,
        uids=uids,
        gids=gids,
        fuse_overlayfs=fuse_overlayfs,
        rootless=rootless,
        progress=progress,
        tar=tar,
        hashed=hashed,
    )


def write_trees(
    tar: BinaryIO,
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    content: bool = False,
    source_date_epoch: int | None = None,
    uids: Sequence[tuple[int, int, int]] = (),
    gids: Sequence[tuple[int, int, int]] = (),
    hashed: bool = True,
    rootless: bool = False,
    progress: values.ProgressCallback | None = None,
) -> values.LayerInfo:
    """The tar that `Store.diff_trees` would store; as `write_upper`."""
    return diff_trees(
        None,
        old,
        new,
        content=content,
        source_date_epoch=source_date_epoch,
        uids=uids,
        gids=gids,
        rootless=rootless,
        progress=progress,
        tar=tar,
        hashed=hashed,
    )
