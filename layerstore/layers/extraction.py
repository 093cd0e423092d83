"""One extraction: a planned tree is written below a directory, in phases, each on all workers.

Directories come first, then everything that is no file; files that an earlier checkout has are cloned
(`layers/seeds.py`), the others written from decoded blocks, or from what layers inflate to: that was
kept (`layers/spool.py`), or else one thread inflates a layer, and the workers write. Further names
follow, and attributes of directories last.
"""

from __future__ import annotations

import os
import queue
import threading
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from ..core import apply as core_apply
from ..core.apply import Applier, ApplyError, IdMap, Note, pin
from ..core.tree import DIRS, FILES, LINKS, OTHERS, SKIPPED, WHITEOUTS, LayerTree, Segment
from ..errors import CancelledError, CorruptError, LayerstoreError, StoreFullError
from ..storage.disk import translate
from ..storage.reading import Span
from ..storage.rows import BlobRow
from ..storage.storage import Storage
from ..values import Progress, ProgressCallback
from .content import Operation
from .merged import Source
from .piecepipe import PiecePipe
from .seeds import Seeds
from .seeds import Source as SeedSource
from .spool import Spool
from .target import Target
from .tree import tar_bytes

SEGMENT = 8 << 20
GAP = 1 << 20
"""Content that nobody wants is read over where it is less than a block."""
BATCH = 4096
CLONES = 512
WORKERS = 4
TELL = 0.2
"""Seconds between two reports while a layer is inflated."""


def _umask() -> int:
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777  # every mode is set then


class Extraction:
    """One extraction. `sources`: the layers of the tree; `total`: bytes that will be written."""

    def __init__(
        self,
        storage: Storage,
        op: Operation,
        tree: LayerTree,
        sources: Sequence[Source],
        target: Target,
        seeds: Seeds,
        *,
        flags: int,
        uid_map: Sequence[IdMap],
        gid_map: Sequence[IdMap],
        total: int,
        progress: ProgressCallback | None,
    ) -> None:
        self._storage = storage
        self._op = op
        self._tree = tree
        self._sources = sources
        self._target = target
        self._seeds = seeds
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
                uid_map=uid_map,
                gid_map=gid_map,
            )
            for _ in range(n)
        ]
        self._umask = umask
        self._idle: queue.SimpleQueue[Applier] = queue.SimpleQueue()
        for one in self._appliers:
            self._idle.put(one)
        self._pool = ThreadPoolExecutor(n, thread_name_prefix="layerstore-checkout")
        self._inflaters = ThreadPoolExecutor(n, thread_name_prefix="layerstore-inflate")
        self._running: deque[Future[None]] = deque()
        self._all = array("I")

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
            digest = self._sources[layer].digest
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
        files = self._all = self._tree.all(FILES)
        if self._seeds.way != core_apply.CLONE_NONE:
            files = self._clone(files)
        if not files:
            return
        self._list = files
        self._pinned = pin(files)
        inflated: dict[int, list[Segment]] = {}
        stream: _Content | None = None
        at = -1
        for segment in self._tree.segments(files, SEGMENT, GAP):
            source = self._sources[segment.layer]
            row = source.tar
            if source.spool is not None and source.spool.whole:
                self._spooled(segment, source.spool)
                continue
            if row is None:
                inflated.setdefault(segment.layer, []).append(segment)
                continue
            if stream is None or segment.layer != at:
                stream, at = _Content(self._storage, row), segment.layer
            self._segment(segment, *stream.between(segment.start, segment.end))
        self._inflate_all(inflated)

    def _segment(self, segment: Segment, base: int, spans: list[Span]) -> None:
        self._submit(
            lambda applier: self._write(
                applier, segment, base, self._storage.chunks.read_spans(iter(spans))
            )
        )

    def _spooled(self, segment: Segment, spool: Spool) -> None:
        self._submit(
            lambda applier: self._write(
                applier, segment, segment.start, spool.between(segment.start, segment.end)
            )
        )

    def _write(
        self,
        applier: Applier,
        segment: Segment,
        base: int,
        content: Iterable[tuple[bytes | memoryview, int, int]],
    ) -> None:
        """Writes the files of a segment out of content that begins at `base`."""
        first, left = segment.first, segment.n
        last: bytes | memoryview | None = None
        source: Any = None
        for data, offset, size in content:
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
            digest = self._sources[segment.layer].digest
            raise CorruptError(f"layer {digest}: its content ends early", digest=digest)

    # ---- files of layers that are inflated ------------------------------------------------------

    def _inflate_all(self, layers: dict[int, list[Segment]]) -> None:
        """Several layers at once, each inflated by a thread of its own and written by the workers."""
        running: set[Future[None]] = set()
        for layer, segments in layers.items():
            running.add(self._inflaters.submit(self._inflate, layer, segments))
        while running:
            done, running = wait(running, TELL, FIRST_COMPLETED)
            for one in done:
                one.result()
            self._tell()

    def _inflate(self, layer: int, segments: list[Segment]) -> None:
        writers: deque[Future[None]] = deque()
        with self._op.open(self._sources[layer].digest) as blob:
            pieces = _Cutter(tar_bytes(blob))
            for segment in segments:
                while len(writers) > 2:
                    writers.popleft().result()
                with PiecePipe(self._stop) as pipe:
                    writers.append(
                        self._pool.submit(self._with_applier, self._writer(segment, pipe))
                    )
                    for piece in pieces.between(segment.start, segment.end):
                        if not pipe.put(piece):
                            break
        for writer in writers:
            writer.result()

    def _writer(self, segment: Segment, pipe: PiecePipe) -> Callable[[Applier], None]:
        def write(applier: Applier) -> None:
            with pipe.reading() as pieces:
                self._write(applier, segment, segment.start, pieces)

        return write

    # ---- files that are there already -----------------------------------------------------------

    def _by_layer(self, files: array[int]) -> Iterator[tuple[int, array[int]]]:
        """Files in their order, layer by layer."""
        first = 0
        while first < len(files):
            layer = self._layer_of(files[first])
            end = bisect_right(files, layer, lo=first, key=self._layer_of)
            yield layer, files[first:end]
            first = end

    def _layer_of(self, node: int) -> int:
        return self._tree.origin(node)[0]

    def _clone(self, files: array[int]) -> array[int]:
        """Clones what can be; gives the rest."""
        parts: list[array[int]] = []
        for layer, nodes in self._by_layer(files):
            source = self._seeds.of(layer)
            if source is None:
                parts.append(nodes)
                continue
            for at in range(0, len(nodes), CLONES):
                parts.append(array("I"))
                self._clone_some(source, nodes[at : at + CLONES], parts[-1])
        self._drain()
        out = array("I")
        for part in parts:
            out += part
        return out

    def _clone_some(self, source: SeedSource, nodes: array[int], left: array[int]) -> None:
        def work(applier: Applier) -> None:
            earlier = Applier(self._tree, source.fd, flags=0, umask=self._umask, uid=0, gid=0)
            try:
                left.extend(applier.clone(earlier, self._seeds.way, source.seeds, nodes))
            finally:
                earlier.close()

        self._submit(work)

    def remember(self, path: str, *, synced: bool) -> None:
        """Leaves a record of what was written (see `Seeds.keep`)."""
        files = list(self._by_layer(self._all))
        self._seeds.keep(path, files, self._appliers[0].seeds, synced=synced)

    def close(self) -> None:
        """Stops what runs, and closes all descriptors."""
        self._stop.set()
        self._inflaters.shutdown(wait=True, cancel_futures=True)
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


class _Cutter:
    """Stretches of a stream, one behind the other."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._at = 0

    def between(self, start: int, end: int) -> Iterator[memoryview]:
        """The bytes from `start` to `end`, as far as there are any; the next start is not before this
        one's end."""
        while self._at < end:
            if not self._piece:
                data = next(self._pieces, None)
                if data is None:
                    return
                self._piece = memoryview(data)
            size = len(self._piece)
            take = min(size, (start if self._at < start else end) - self._at)
            part, self._piece = self._piece[:take], self._piece[take:]
            self._at += take
            if self._at > start:
                yield part
