"""Root filesystems out of the store: a stack of layers as a directory.

First all layers' headers are merged to the final tree (`core/tree.py`): nothing is written if one of
them is not sound. Then only what that tree needs is read, straight from the chunks, each block decoded
once, and written below the target (`core/apply.py`). Directories come first and get their attributes
last. Work runs on all cores, in stretches of 8 MiB of content; memory holds the tree, about 150 bytes
an entry, and a few stretches.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..core import apply as core_apply
from ..core.apply import Applier, ApplyError, IdMap, Note, pin
from ..core.tree import DIRS, FILES, LINKS, OTHERS, SKIPPED, WHITEOUTS, LayerTree, Segment
from ..errors import (
    CancelledError,
    CorruptError,
    InvalidInputError,
    LayerstoreError,
    StoreFullError,
)
from ..storage.disk import translate
from ..storage.reading import Span
from ..storage.rows import BlobRow
from ..storage.storage import Storage
from ..values import CheckoutReport, Progress, ProgressCallback
from .assemble import BlobFile
from .content import Content, Operation
from .hashpipe import HashPipe
from .target import MARK, Target
from .tree import tar_bytes

SEGMENT = 8 << 20
GAP = 1 << 20
"""Content that nobody wants is read over where it is less than a block."""
BATCH = 4096
WORKERS = 4
OWNERSHIP = ("exact", "try", "rootless")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer by its blob's digest; `diff_id` as the image's config says, where it does."""

    digest: str
    diff_id: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How owners are kept.

    `ownership`: `exact` (everything as the layers say, or an error), `try` (as far as it goes: what is
    not permitted or supported becomes a note), `rootless` (owners in the xattr
    user.rootlesscontainers, the rest as `try`); None is `exact` for root outside of user namespaces,
    else `try`. The maps give ids of layers ids of the system: `(inside, outside, count)`."""

    ownership: str | None = None
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    openat2: bool = True


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
    return _write(content, layers, target, options or Options(), progress, upper=False)


def unpack_layer(
    content: Content,
    digests: Sequence[str],
    target: str,
    *,
    options: Options | None = None,
    progress: ProgressCallback | None = None,
) -> CheckoutReport:
    """Writes the last of some layers into an empty directory in the form of an overlay's upper
    directory, so that the directories of all layers, stacked by overlayfs, are the merged tree.

    Whiteouts are character devices 0:0, opaque directories have `trusted.overlay.opaque` (without
    root `user.overlay.opaque`). A hard link to a file of a layer below brings that file along with all
    its names. Directories that the layer does not carry have the attributes that they have below.
    The target is not marked and not synced: who calls makes it known when it is whole. Raises as
    `checkout`."""
    layers = [Layer(digest) for digest in digests]
    return _write(content, layers, target, options or Options(), progress, upper=True)


def merged(
    content: Content, op: Operation, layers: Sequence[Layer], tree: LayerTree
) -> list[BlobRow]:
    """Merges layers into a tree that is new; gives their rows. Raises InvalidInputError for a layer
    with a recorded problem, and as LayerTree does, with the layer's digest."""
    rows = []
    for layer in layers:
        with op.open(layer.digest) as blob:
            row = blob.row
            problem = _problem(row, layer)
            if problem is not None:
                raise InvalidInputError(
                    f"layer {layer.digest}: {problem}", digest=layer.digest, reason=problem
                )
            try:
                _add(content.storage, blob, layer, tree)
            except InvalidInputError as e:
                raise InvalidInputError(
                    f"layer {layer.digest}: {e.message}",
                    digest=layer.digest,
                    path=e.path,
                    offset=e.offset,
                    reason=e.reason,
                ) from e
        rows.append(row)
    return rows


def _problem(row: BlobRow, layer: Layer) -> str | None:
    """Why a layer is refused. What counts is what this image's config says, where both are known."""
    if layer.diff_id is None or row.diff_id is None:
        return row.problem
    if row.diff_id == layer.diff_id:
        return None
    return f"the layer's diff_id is {row.diff_id}, the config says {layer.diff_id}"


def _add(storage: Storage, blob: BlobFile, layer: Layer, tree: LayerTree) -> None:
    tar = blob.row.tar
    if tar is not None:
        tree.add_split(
            _views(storage, storage.chunks.iter_runs(tar.head)),
            storage.chunks.read_stream(tar.marks),
            tar.content.size,
        )
        return
    # Not looked into yet (import --defer): whether it is what the config says shows now.
    unknown = layer.diff_id is not None and blob.row.diff_id is None
    names = [layer.diff_id.partition(":")[0]] if unknown and layer.diff_id else []
    with HashPipe(names) as hashes:
        tree.add_tar(_hashed(tar_bytes(blob), hashes) if names else tar_bytes(blob))
        if names and (got := hashes.digests()[names[0]]) != layer.diff_id:
            reason = f"the layer's diff_id is {got}, the config says {layer.diff_id}"
            raise InvalidInputError(reason, reason=reason)


def _hashed(pieces: Iterable[bytes | memoryview], hashes: HashPipe) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        done = hashes.feed(piece)
        yield piece
        if done is not None:
            done.result()


def _views(storage: Storage, runs: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
    for data, offset, size in storage.chunks.slices(runs):
        yield memoryview(data)[offset : offset + size]


def _write(
    content: Content,
    layers: Sequence[Layer],
    target: str,
    options: Options,
    progress: ProgressCallback | None,
    *,
    upper: bool,
) -> CheckoutReport:
    start = time.monotonic()
    flags = _flags(options, upper)
    tree = LayerTree()
    try:
        with content.operation() as op:
            rows = merged(content, op, layers, tree)
            plan = tree.plan(upper=upper)
            if not upper and tree.find(MARK.encode()) is not None:
                raise InvalidInputError(
                    f"the image has a file {MARK}, which would make it look unfinished", path=MARK
                )
            place = Target(target, marked=not upper)
            try:
                work = _Work(content, op, tree, rows, place, flags, options, plan.bytes, progress)
                try:
                    work.run(upper)
                    notes = work.notes()
                finally:
                    work.close()
            except Exception:
                place.undo()
                raise
            finally:
                place.close()
        if place.found:
            notes.insert(0, f"{target} held an unfinished checkout: it was removed first")
        return CheckoutReport(plan.entries, plan.bytes, time.monotonic() - start, tuple(notes))
    finally:
        tree.close()


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


def _umask() -> int:
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777  # every mode is set then


class _Work:
    """One checkout: phases in order, each on all workers."""

    def __init__(
        self,
        content: Content,
        op: Operation,
        tree: LayerTree,
        rows: Sequence[BlobRow],
        target: Target,
        flags: int,
        options: Options,
        total: int,
        progress: ProgressCallback | None,
    ) -> None:
        self._storage = content.storage
        self._op = op
        self._tree = tree
        self._rows = rows
        self._target = target
        self._total = total
        self._progress = progress
        self._exact = not flags & core_apply.TRY
        self._stop = threading.Event()
        n = max(1, min(WORKERS, os.cpu_count() or 1))
        umask = _umask()
        self._appliers = [
            Applier(
                tree,
                target.fd,
                flags=flags,
                umask=umask,
                uid=target.uid,
                gid=target.gid,
                uid_map=options.uid_map,
                gid_map=options.gid_map,
            )
            for _ in range(n)
        ]
        self._idle: queue.SimpleQueue[Applier] = queue.SimpleQueue()
        for one in self._appliers:
            self._idle.put(one)
        self._pool = ThreadPoolExecutor(n, thread_name_prefix="layerstore-checkout")
        self._running: deque[Future[None]] = deque()

    def run(self, upper: bool) -> None:
        tree = self._tree
        dirs = tree.all(DIRS)
        self._in_order(core_apply.MAKE_DIRS, dirs)
        if upper:
            self._side_by_side(core_apply.MAKE_WHITEOUTS, tree.listing(WHITEOUTS))
        self._side_by_side(core_apply.MAKE_OTHERS, tree.listing(OTHERS))
        self._files()
        self._drain()
        self._side_by_side(core_apply.MAKE_LINKS, tree.listing(LINKS))
        self._drain()
        dirs.reverse()
        if self._exact:
            self._side_by_side(core_apply.FINISH_DIRS, [dirs[:-1]])
            self._drain()
        else:
            # Who is not root cannot get into a directory any more that was closed.
            self._in_order(core_apply.FINISH_DIRS, dirs[:-1])
        self._target.finish()
        self._in_order(core_apply.FINISH_DIRS, dirs[-1:])
        self._tell()

    def notes(self) -> list[str]:
        """What was left out, in words."""
        found: dict[str, Note] = {}
        for one in self._appliers:
            for note in one.notes():
                old = found.get(note.what)
                if old is not None:
                    note = old._replace(n=old.n + note.n)
                found[note.what] = note
        out = []
        for note in found.values():
            why = f" ({os.strerror(note.errno)})" if note.errno else ""
            out.append(f"{note.what}{why}: {self._counted(note.n, note.node)}")
        skipped = self._tree.all(SKIPPED)
        if skipped:
            out.append(
                f"of a type that is not extracted: {self._counted(len(skipped), skipped[0])}"
            )
        return out

    def _counted(self, count: int, node: int) -> str:
        path = self._tree.path(node)
        return path if count == 1 else f"{count} entries, the first is {path}"

    # ---- who does it --------------------------------------------------------------------------

    def _in_order(self, what: int, nodes: array[int]) -> None:
        applier = self._appliers[0]
        for at in range(0, len(nodes), BATCH):
            self._tell()
            self._safely(lambda at=at: applier.run(what, nodes[at : at + BATCH]))  # type: ignore[misc]

    def _side_by_side(self, what: int, batches: Iterable[array[int]]) -> None:
        for batch in batches:
            for at in range(0, len(batch), BATCH):
                part = batch[at : at + BATCH]
                self._submit(lambda applier, part=part: applier.run(what, part))  # type: ignore[misc]

    def _submit(self, work: Callable[[Applier], None]) -> None:
        while len(self._running) > 2 * len(self._appliers):
            self._wait_one()
        self._running.append(self._pool.submit(self._with_applier, work))

    def _with_applier(self, work: Callable[[Applier], None]) -> None:
        if self._stop.is_set():
            raise CancelledError("the checkout was cancelled")
        applier = self._idle.get()
        try:
            self._safely(lambda: work(applier))
        finally:
            self._idle.put(applier)

    def _wait_one(self) -> None:
        self._running.popleft().result()
        self._tell()

    def _drain(self) -> None:
        while self._running:
            self._wait_one()

    def _tell(self) -> None:
        if self._progress is not None:
            done = sum(one.bytes for one in self._appliers)
            self._progress(Progress("checkout", min(done, self._total), self._total, "bytes"))

    def _safely(self, work: Callable[[], object]) -> None:
        """Runs work; an error of the system gets the name of its entry."""
        try:
            work()
        except ApplyError as e:
            path = self._tree.path(e.node) or "."
            layer, offset = self._tree.origin(e.node)
            digest = self._rows[layer].digest
            full = os.path.join(self._target.path, path)
            error = translate(OSError(e.errno, os.strerror(e.errno), full), full)
            if isinstance(error, StoreFullError):
                raise StoreFullError(
                    f"no space left for {full}, {self._total} bytes in all", path=full
                ) from e
            error.add_note(f"layer {digest}, entry {path} at byte {offset}")
            raise error from e

    # ---- files --------------------------------------------------------------------------------

    def _files(self) -> None:
        files = self._tree.all(FILES)
        if not files:
            return
        self._list = files
        self._pinned = pin(files)
        sources: dict[int, _Content] = {}
        begun: tuple[int, int, int] | None = None
        for segment in self._tree.segments(files, SEGMENT, GAP):
            if self._rows[segment.layer].tar is None:
                # It comes as one stream: all of its files in one go.
                if begun is not None and begun[0] == segment.layer:
                    begun = (begun[0], begun[1], begun[2] + segment.n)
                    continue
                self._stream(begun)
                begun = (segment.layer, segment.first, segment.n)
                continue
            if segment.layer not in sources:
                sources.clear()
                sources[segment.layer] = _Content(self._storage, self._rows[segment.layer])
            self._segment(segment, *sources[segment.layer].between(segment.start, segment.end))
        self._stream(begun)

    def _segment(self, segment: Segment, base: int, spans: list[Span]) -> None:
        self._submit(lambda applier: self._write_segment(applier, segment, base, spans))

    def _write_segment(
        self, applier: Applier, segment: Segment, base: int, spans: list[Span]
    ) -> None:
        first, left = segment.first, segment.n
        last: bytes | None = None
        source: Any = None
        for data, offset, size in self._storage.chunks.read_spans(iter(spans)):
            if self._stop.is_set():
                raise CancelledError("the checkout was cancelled")
            if data is not last:
                last, source = data, pin(data, "uint8_t[]")
            done = applier.feed_at(self._pinned, first, left, base, source, offset, size)
            base += size
            first += done
            left -= done
        if left:
            left -= applier.feed(self._pinned, first, left, base, b"")
        if left:
            digest = self._rows[segment.layer].digest
            raise CorruptError(f"layer {digest}: its content ends early", digest=digest)

    def _stream(self, files: tuple[int, int, int] | None) -> None:
        if files is not None:
            layer, first, count = files
            self._submit(lambda applier: self._write_stream(applier, layer, first, count))

    def _write_stream(self, applier: Applier, layer: int, first: int, left: int) -> None:
        base = 0
        digest = self._rows[layer].digest
        with self._op.open(digest) as blob:
            for piece in tar_bytes(blob):
                if self._stop.is_set():
                    raise CancelledError("the checkout was cancelled")
                done = applier.feed(self._pinned, first, left, base, piece)
                base += len(piece)
                first += done
                left -= done
                if not left:
                    return
        raise CorruptError(f"layer {digest}: its content ends early", digest=digest)

    def close(self) -> None:
        """Stops what runs, and closes all descriptors."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for one in self._appliers:
            one.close()


class _Content:
    """The content stream of a layer, stretch by stretch, going forward only."""

    def __init__(self, storage: Storage, row: BlobRow) -> None:
        if row.tar is None:
            raise LayerstoreError(f"blob {row.digest} has no tar form", digest=row.digest)
        stream = row.tar.content
        self._source = storage.chunks.spans(storage.chunks.iter_runs(stream))
        self._at = 0
        self._kept: deque[tuple[int, Span]] = deque()

    def between(self, start: int, end: int) -> tuple[int, list[Span]]:
        """Where the stretches begin that cover `start` to `end`, and these. The next call's start is
        not before this one's."""
        kept = self._kept
        while kept and kept[0][0] + kept[0][1][4] <= start:
            kept.popleft()
        while self._at < end:
            span = next(self._source, None)
            if span is None:
                break
            if self._at + span[4] > start:
                kept.append((self._at, span))
            self._at += span[4]
        chosen = [(at, span) for at, span in kept if at < end]
        if start == end or not chosen:
            return end, []
        return chosen[0][0], [span for _, span in chosen]


__all__ = ["Layer", "Options", "checkout", "merged", "unpack_layer"]
