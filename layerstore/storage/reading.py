"""From chunk numbers to bytes: places, decoded blocks, and streams with read-ahead.

A block is read, its checksum verified, and decompressed once; the last few stay in a cache that all
readers of the handle share. A reader whose block fails looks the place up again, since compaction
may have moved it meanwhile, and reports damage only if it has not moved (rule 14).
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice

from ..errors import CorruptError
from . import blocks
from .index import Index, Snapshot, Table
from .packs import Packs
from .rows import Place, PlaceCache, Runs, Stream, decode_runs, number_key

Slice = tuple[bytes, int, int]
"""`(buffer, offset, length)`: bytes that are not copied."""
Span = tuple[Place, int, int, int, int]
"""`(place, first number, count, offset in the block, bytes)`: a stretch of one block."""


class Chunks:
    """Reads chunks by number."""

    def __init__(
        self,
        index: Index,
        packs: Packs,
        secret: bytes,
        pool: Executor,
        *,
        cache_bytes: int,
        ahead: int,
    ) -> None:
        self._index = index
        self._packs = packs
        self._secret = secret
        self._pool = pool
        self._ahead = ahead
        self._cache: OrderedDict[tuple[int, int], tuple[Future[bytes], int]] = OrderedDict()
        self._limits = [cache_bytes]
        self._cached = 0
        self._lock = threading.Lock()

    # ---- places -------------------------------------------------------------------------------

    def places(self, snapshot: Snapshot, runs: Iterable[tuple[int, int]]) -> Iterator[Place]:
        """The places of the numbers, in order, one for each stretch of a block.

        Raises CorruptError for a number that the index does not know."""
        last: Place | None = None
        for first, count in runs:
            at, end = first, first + count
            while at < end:
                if last is None or not last.first <= at < last.end:
                    last = self.place(snapshot, at)
                    if last is None:
                        raise CorruptError(f"chunk {at} is not in the index", where=f"chunk {at}")
                n = min(end, last.end) - at
                yield last.part(at, n) if (at, n) != (last.first, last.count) else last
                at += n

    def place(self, snapshot: Snapshot, number: int) -> Place | None:
        """The row that covers a number, or None."""
        row = snapshot.floor(Table.BLOCKS, number_key(number))
        if row is None:
            return None
        place = Place.parse(*row)
        return place if number < place.end else None

    # ---- blocks -------------------------------------------------------------------------------

    def load(self, place: Place) -> bytes:
        """The block's uncompressed bytes, verified. Raises CorruptError with the place."""
        data = self._packs.read(place.pack, place.offset, place.disk)
        try:
            view = memoryview(data)
            return blocks.decode(
                self._secret, data[: place.head], view[place.head :], place.raw, place.codec
            )
        except CorruptError as e:
            raise CorruptError(
                f"{e.message} (pack {self._packs.path(place.pack)}, offset {place.offset})",
                where=self._packs.path(place.pack),
                offset=place.offset,
            ) from e

    def _future(self, place: Place) -> Future[bytes]:
        key = (place.pack, place.offset)
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                if not found[0].done() or found[0].exception() is None:
                    self._cache.move_to_end(key)
                    return found[0]
                # What failed once (no descriptor was free, the disk hiccuped) is tried again.
                del self._cache[key]
                self._cached -= place.raw
            made: Future[bytes] = self._pool.submit(self.load, place)
            self._cache[key] = (made, place.raw)
            self._cached += place.raw
            self._shrink()
            return made

    def _shrink(self) -> None:
        while self._cached > min(self._limits) and len(self._cache) > 1:
            _, (_, size) = self._cache.popitem(last=False)
            self._cached -= size

    @contextlib.contextmanager
    def limited(self, cache_bytes: int) -> Iterator[None]:
        """Keeps at most so many bytes of decoded blocks meanwhile: for who reads each block once."""
        with self._lock:
            self._limits.append(cache_bytes)
            self._shrink()
        try:
            yield
        finally:
            with self._lock:
                self._limits.remove(cache_bytes)

    def _drop(self, place: Place) -> None:
        with self._lock:
            if self._cache.pop((place.pack, place.offset), None) is not None:
                self._cached -= place.raw

    def slices(self, runs: Iterable[tuple[int, int]], skip: int = 0) -> Iterator[Slice]:
        """The content of the numbers, in order, without its first `skip` bytes; blocks are read
        ahead and decoded side by side, those that are skipped are not."""
        return self.read_spans(self.spans(runs), skip)

    def read_spans(self, source: Iterator[Span], skip: int = 0) -> Iterator[Slice]:
        """The content of stretches of blocks, as `slices` gives it."""
        queue: deque[Span] = deque()
        ahead: OrderedDict[tuple[int, int], Future[bytes]] = OrderedDict()
        current: tuple[int, int] = (-1, -1)
        data = b""
        done = False
        while True:
            while not done and len(ahead) < self._ahead and len(queue) < 4096:
                span = next(source, None)
                if span is None:
                    done = True
                    break
                if skip:
                    if span[4] <= skip:
                        skip -= span[4]
                        continue
                    cut, skip = skip, 0
                    span = (span[0], span[1], span[2], span[3] + cut, span[4] - cut)
                queue.append(span)
                key = (span[0].pack, span[0].offset)
                if key not in ahead and key != current:
                    ahead[key] = self._future(span[0])
            if not queue:
                return
            place, first, count, offset, size = queue.popleft()
            key = (place.pack, place.offset)
            if key != current:
                future = ahead.pop(key, None)
                try:
                    data = (future if future is not None else self._future(place)).result()
                    current = key
                except CorruptError as e:
                    current = (-1, -1)
                    whole = (
                        place.ends[first + count - place.first] - place.ends[first - place.first]
                    )
                    yield from self._again(place, first, count, whole - size, e)
                    continue
            yield data, offset, size

    def _again(
        self, place: Place, first: int, count: int, skip: int, error: CorruptError
    ) -> Iterator[Slice]:
        """Numbers whose block could not be read: from where they lie now, if that is elsewhere."""
        self._drop(place)
        with self._index.read() as snapshot:
            now = list(self.places(snapshot, [(first, count)]))
        if all((p.pack, p.offset) == (place.pack, place.offset) for p in now):
            raise error
        for part in now:
            data = self._future(part).result()
            cut = min(skip, part.size)
            skip -= cut
            if part.size > cut:
                yield data, part.raw_offset + cut, part.size - cut

    def spans(self, runs: Iterable[tuple[int, int]]) -> Iterator[Span]:
        """Where the numbers lie: stretches of one block each. Looked up in batches, so that no
        snapshot stays open; a block is parsed once."""
        cache = PlaceCache()
        source = iter(runs)
        size = 8
        while True:
            # Few at first: the first byte is waited for.
            batch = list(islice(source, size))
            size = min(512, 2 * size)
            if not batch:
                return
            out: list[Span] = []
            with self._index.read() as snapshot:
                for first, count in batch:
                    end = first + count
                    while first < end:
                        place = cache.find(first)
                        if place is None:
                            place = self.place(snapshot, first)
                            if place is None:
                                raise CorruptError(
                                    f"chunk {first} is not in the index", where=f"chunk {first}"
                                )
                            cache.add(place)
                        ends = place.ends
                        stop = place.end if place.end < end else end
                        at = ends[first - place.first]
                        length = ends[stop - place.first] - at
                        out.append((place, first, stop - first, place.raw_offset + at, length))
                        first = stop
            yield from out

    # ---- streams ------------------------------------------------------------------------------

    def runs_of(self, stream: Stream) -> Runs:
        """The chunk numbers of a stream."""
        if stream.outer:
            return decode_runs(self.read_runs(stream.outer))
        return decode_runs(stream.list)

    def iter_runs(self, stream: Stream) -> Iterator[tuple[int, int]]:
        """The same, one by one."""
        yield from self.runs_of(stream)

    def read_runs(self, runs: Iterable[tuple[int, int]]) -> bytes:
        """All content of some numbers; for metadata, which is small."""
        return b"".join(data[offset : offset + n] for data, offset, n in self.slices(runs))

    def read_stream(self, stream: Stream) -> bytes:
        """All bytes of a stream; for metadata, which is small."""
        return self.read_runs(self.runs_of(stream))

    def close(self) -> None:
        with self._lock:
            self._cache.clear()
            self._cached = 0
