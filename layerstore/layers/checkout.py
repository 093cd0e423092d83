"""Root filesystems out of the store: a stack of layers as a directory.

First all layers' headers are merged to the final tree (`core/tree.py`): nothing is written if one of
them is not sound. Then only what that tree needs is read, straight from the chunks, each block decoded
once, and written below the target (`layers/extraction.py`). What an earlier checkout has there is
cloned (`layers/seeds.py`). Work runs on all cores, in stretches of 8 MiB of content; memory holds the
tree, about 130 bytes an entry, and a few stretches.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..core import apply as core_apply
from ..core.apply import IdMap
from ..core.tree import LayerTree
from ..errors import InvalidInputError, LayerstoreError
from ..values import CheckoutReport, ProgressCallback
from .content import Content, Operation
from .extraction import Extraction
from .merged import Layer, Source, add_layer
from .seeds import Seeds
from .target import MARK, Target

CACHE_BYTES = 8 << 20
"""Each block is wanted by one stretch, or by two neighbours."""
OWNERSHIP = ("exact", "try", "rootless")


@dataclass(frozen=True, slots=True)
class Options:
    """How owners are kept.

    `ownership`: `exact` (everything as the layers say, or an error), `try` (as far as it goes: what is
    not permitted or supported becomes a note), `rootless` (owners in the xattr
    user.rootlesscontainers, the rest as `try`); None is `exact` for root outside of user namespaces,
    else `try`. The maps give ids of layers ids of the system: `(inside, outside, count)`. `reflink`:
    files that an earlier checkout has on the target's filesystem share its blocks, where that can be
    done."""

    ownership: str | None = None
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    openat2: bool = True
    reflink: bool = True


def checkout(
    content: Content,
    layers: Sequence[Layer],
    target: str,
    *,
    options: Options | None = None,
    progress: ProgressCallback | None = None,
) -> CheckoutReport:
    """Writes the merged tree of layers (lowest first) into a directory that is empty, or not there.

    Raises InvalidInputError for a layer that does not decode, is not what its diff_id says or cannot
    be extracted safely, with layer, entry and offset, before anything is written; StoreFullError and
    OSError from the target: then what was written is removed."""
    start = time.monotonic()
    options = options or Options()
    flags = _flags(options, False)
    tree = LayerTree()
    try:
        with content.operation() as op, contextlib.ExitStack() as held:
            sources = []
            for layer in layers:
                sources.append(add_layer(content.storage, op, layer, tree, keep=True))
                held.callback(sources[-1].close)
            plan = tree.plan()
            if tree.find(MARK.encode()) is not None:
                raise InvalidInputError(
                    f"the image has a file {MARK}, which would make it look unfinished", path=MARK
                )
            place = Target(target)
            notes = _fill(
                content, op, tree, sources, place, options, flags, plan.bytes, progress, target
            )
        if place.found:
            notes.insert(0, f"{target} held an unfinished checkout: it was removed first")
        return CheckoutReport(plan.entries, plan.bytes, time.monotonic() - start, tuple(notes))
    finally:
        tree.close()


def _fill(
    content: Content,
    op: Operation,
    tree: LayerTree,
    sources: Sequence[Source],
    place: Target,
    options: Options,
    flags: int,
    total: int,
    progress: ProgressCallback | None,
    later: str,
) -> list[str]:
    """Writes a planned tree into an open target and closes that; gives the notes. `later`: where the
    target's directory is to be found by then."""
    upper = bool(flags & core_apply.UPPER)
    names = [source.name for source in sources]
    try:
        seeds = Seeds(content.storage, place.fd, names, used=options.reflink)
        try:
            work = Extraction(
                content.storage,
                op,
                tree,
                sources,
                place,
                seeds,
                flags=flags,
                uid_map=options.uid_map,
                gid_map=options.gid_map,
                total=total,
                progress=progress,
            )
            try:
                with content.storage.chunks.limited(CACHE_BYTES):
                    work.run(upper)
                work.remember(later, synced=upper)
                return work.notes()
            finally:
                work.close()
        finally:
            seeds.close()
    except Exception:
        place.undo()
        raise
    finally:
        place.close()


class Unpacker:
    """Layers of one stack, lowest first, each written in the form of an overlay's upper directory, so
    that the directories of all layers, stacked by overlayfs, are the merged tree. The tree grows layer
    by layer: the work is that of all layers' headers once. Use as a context manager.

    Whiteouts are character devices 0:0, opaque directories have `trusted.overlay.opaque` (without root
    `user.overlay.opaque`). A hard link to a file of a layer below brings that file along with all its
    names. Directories that a layer does not carry have the attributes that they have below."""

    def __init__(
        self,
        content: Content,
        op: Operation,
        *,
        options: Options | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self._content = content
        self._op = op
        self._options = options or Options()
        self._flags = _flags(self._options, True)
        self._progress = progress
        self._tree = LayerTree()
        self._sources: list[Source] = []

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._tree.close()

    def skip(self, digest: str) -> None:
        """The next layer, which nobody wants written. Raises as `checkout`."""
        self._add(digest, keep=False)

    def _add(self, digest: str, *, keep: bool) -> Source:
        source = add_layer(self._content.storage, self._op, Layer(digest), self._tree, keep=keep)
        self._sources.append(source)
        return source

    def unpack(self, digest: str, target: str, later: str | None = None) -> CheckoutReport:
        """The next layer, into an empty directory, which is not marked and not synced: who calls makes
        it known when it is whole, at the place `later`. Raises as `checkout`."""
        start = time.monotonic()
        with contextlib.closing(self._add(digest, keep=True)):
            plan = self._tree.plan(upper=True)
            notes = _fill(
                self._content,
                self._op,
                self._tree,
                self._sources,
                Target(target, marked=False),
                self._options,
                self._flags,
                plan.bytes,
                self._progress,
                later or target,
            )
        return CheckoutReport(plan.entries, plan.bytes, time.monotonic() - start, tuple(notes))


def unpack_layer(
    content: Content,
    digests: Sequence[str],
    target: str,
    *,
    options: Options | None = None,
    progress: ProgressCallback | None = None,
) -> CheckoutReport:
    """The last of some layers as `Unpacker` writes it; who wants several of one stack uses that."""
    if not digests:
        raise LayerstoreError("no layer to unpack")
    with (
        content.operation() as op,
        Unpacker(content, op, options=options, progress=progress) as unpacker,
    ):
        for digest in digests[:-1]:
            unpacker.skip(digest)
        return unpacker.unpack(digests[-1], target)


def _flags(options: Options, upper: bool) -> int:
    ownership = options.ownership
    if ownership is None:
        ownership = "exact" if os.geteuid() == 0 and _all_ids() else "try"
    if ownership not in OWNERSHIP:
        raise InvalidInputError(f"ownership is one of {', '.join(OWNERSHIP)}, not {ownership}")
    flags = {"exact": 0, "try": core_apply.TRY, "rootless": core_apply.TRY | core_apply.ROOTLESS}[
        ownership
    ]
    if upper:
        flags |= core_apply.UPPER
        if os.geteuid() != 0 or not _all_ids():
            flags |= core_apply.USER_XATTR
    if not options.openat2:
        flags |= core_apply.NO_OPENAT2
    return flags


def _all_ids() -> bool:
    """Whether this is the first user namespace, where root may everything."""
    try:
        with open("/proc/self/uid_map") as f:
            return f.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return False


__all__ = ["Layer", "Options", "Unpacker", "checkout", "unpack_layer"]
