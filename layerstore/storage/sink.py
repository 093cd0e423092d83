"""Where new content goes: known chunks become their numbers, new ones become blocks in packs.

One sink serves all threads of an operation. New chunks take consecutive numbers from a range that
was reserved before (rule 2) and fill a block in the order in which they come; full blocks are
compressed in the pool and appended in order. Headers, marks and chunk lists ("metadata") fill
blocks of their own. Content whose stored copy is damaged is written again under its old number
(rule 18). Nothing here is visible before the operation commits the rows.
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future

from ..core.chunking import cut
from ..core.hashing import blake3, blake3_many
from ..errors import LayerstoreError, StoreFullError
from . import blocks
from .condemned import Condemned
from .index import Index, Snapshot
from .known import Known, file_row
from .packs import PackWriter
from .rows import ID_KEY, Place, Runs, Stream, encode_runs, number_key

CHUNK_MAX = 256 * 1024
BUFFER = blocks.BLOCK_SIZE + CHUNK_MAX
PIECE_CHUNK = 1
INLINE_LIST = 1024
"""A chunk list up to this many bytes stays in the blob's row."""
FIRST_RANGE, MAX_RANGE = 1 << 14, 1 << 20
QUEUE = 6
"""Blocks that may wait for the compressors: with the two being filled, about 8 MiB."""

Piece = tuple[int, int, int, bytes]
"""`(offset, length, kind, id)` of one piece in a buffer."""


class Numbers:
    """Chunk numbers of one handle, drawn from the store in growing ranges. Thread-safe."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._free: list[tuple[int, int]] = []
        self._size = FIRST_RANGE

    def take(self, count: int) -> tuple[int, int]:
        """A range `(first, end)` of at least one and at most `count` numbers."""
        with self._lock:
            if not self._free:
                size = self._size
                first = self._index.update(lambda tx: tx.draw(b"next_chunk", size))
                self._free.append((first, first + size))
                self._size = min(MAX_RANGE, size * 4)
            first, end = self._free.pop()
            if end - first > count:
                self._free.append((first + count, end))
                end = first + count
            return first, end

    def give_back(self, first: int, end: int) -> None:
        """Numbers that were never written."""
        if first < end:
            with self._lock:
                self._free.append((first, end))


class Batch:
    """Rows of blocks that lie in packs, to be committed once the packs are synced."""

    __slots__ = ("healed", "ids", "place")

    def __init__(self, place: Place, ids: bytes, healed: bool) -> None:
        self.place = place
        self.ids = ids
        self.healed = healed


class _Builder:
    """A block being filled."""

    def __init__(self, kind: int, healing: bool = False) -> None:
        self.kind = kind
        self.healing = healing
        self.data = bytearray(BUFFER)
        self.used = 0
        self.lengths = array("I")
        self.ids: list[bytes] = []
        self.runs: list[list[int]] = []
        self.next = 0
        self.end = 0

    def reset(self, data: bytearray) -> None:
        """Begins anew, in that memory."""
        self.data = data
        self.used = 0
        self.lengths = array("I")
        self.ids = []
        self.runs = []

    def add(self, number: int, content: bytes | memoryview, chunk_id: bytes) -> None:
        n = len(content)
        self.data[self.used : self.used + n] = content
        self.used += n
        self.lengths.append(n)
        self.ids.append(chunk_id)
        if self.runs and self.runs[-1][0] + self.runs[-1][1] == number:
            self.runs[-1][1] += 1
        else:
            self.runs.append([number, 1])

    def full(self, n: int) -> bool:
        return bool(self.lengths) and (
            self.used + n > blocks.BLOCK_SIZE or len(self.lengths) >= blocks.MAX_CHUNKS
        )


class Sink:
    """The way of new chunks into packs, for one operation."""

    def __init__(
        self,
        index: Index,
        secret: bytes,
        known: Known,
        numbers: Numbers,
        writer: PackWriter,
        pool: Executor,
        condemned: Callable[[Snapshot], Condemned | None],
        count: Callable[[int], None],
    ) -> None:
        self._index = index
        self._secret = secret
        self._known = known
        self._numbers = numbers
        self.writer = writer
        self._pool = pool
        self._condemned = condemned
        self._count = count
        self.lock = threading.RLock()
        self._content = _Builder(blocks.KIND_CONTENT)
        self._meta = _Builder(blocks.KIND_META)
        self._heal = _Builder(blocks.KIND_CONTENT, healing=True)
        self._queue: deque[tuple[Future[tuple[bytes, bytes]], _Sealed]] = deque()
        self._spare: list[bytearray] = []
        self._pending: dict[bytes, int] = {}
        self._pending_files: dict[bytes, Runs] = {}
        self._healing: dict[bytes, int] = {}
        self._ready: list[Batch] = []
        self._files: list[tuple[bytes, bytes]] = []
        self._failed: BaseException | None = None

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """After a failed write nobody can say which of the pending numbers have bytes: whoever shares
        this sink fails from then on, and nothing dangling is committed."""
        self.check()
        try:
            yield
        except BaseException as e:
            self._failed = e
            raise

    def check(self) -> None:
        """Raises if an earlier write of this sink failed; StoreFullError again if it was that."""
        if self._failed is not None:
            kind = StoreFullError if isinstance(self._failed, StoreFullError) else LayerstoreError
            raise kind(
                f"an earlier write of this operation failed ({self._failed}): begin a new one"
            ) from self._failed

    # ---- in -----------------------------------------------------------------------------------

    def add(self, view: memoryview, pieces: Sequence[Piece], meta: bool = False) -> Runs:
        """Takes pieces of a buffer; returns their numbers as runs, in order. The buffer may be
        used again when it returns."""
        out: Runs = []
        with self.lock, self._whole():
            resolved = self._resolve(pieces)
            unknown = [p for p, got in zip(pieces, resolved, strict=True) if got is None]
            extra = self._cut_files(view, unknown)
            at = 0
            builder = self._meta if meta else self._content
            for piece, got in zip(pieces, resolved, strict=True):
                if got is not None:
                    for run in got:
                        _append(out, *run)
                    continue
                offset, length, kind, piece_id = piece
                if kind == PIECE_CHUNK:
                    number = self._pending.get(piece_id)
                    if number is None:
                        number = self._new(builder, view[offset : offset + length], piece_id)
                    _append(out, number, 1)
                    continue
                runs = self._pending_files.get(piece_id)
                if runs is None:
                    runs = []
                    chunks = extra[at]
                    numbers = self._resolve(chunks)
                    for chunk, number_runs in zip(chunks, numbers, strict=True):
                        o, n, _, chunk_id = chunk
                        if number_runs is not None:
                            _append(runs, *number_runs[0])
                        else:
                            number = self._pending.get(chunk_id)
                            if number is None:
                                number = self._new(builder, view[o : o + n], chunk_id)
                            _append(runs, number, 1)
                    self._pending_files[piece_id] = runs
                    self._files.append(file_row(piece_id, runs))
                at += 1
                for run in runs:
                    _append(out, *run)
        return out

    def _resolve(self, pieces: Sequence[Piece]) -> list[Runs | None]:
        """What is known of the pieces: their numbers, or None."""
        pending = self._pending
        out: list[Runs | None] = [None] * len(pieces)
        ask: list[bytes] = []
        where: list[int] = []
        files: list[int] = []
        for i, (_, _, kind, piece_id) in enumerate(pieces):
            if kind == PIECE_CHUNK:
                number = pending.get(piece_id)
                if number is None:
                    ask.append(piece_id)
                    where.append(i)
                else:
                    out[i] = [(number, 1)]
            else:
                found = self._pending_files.get(piece_id)
                if found is None:
                    files.append(i)
                else:
                    out[i] = found
        if not ask and not files:
            return out
        with self._index.read() as snapshot:
            condemned = self._condemned(snapshot)
            if ask:
                numbers, damaged = self._known.find(snapshot, ask, condemned)
                for i, number in zip(where, numbers, strict=True):
                    if number >= 0 and number not in damaged:
                        out[i] = [(number, 1)]
                if damaged:
                    self._note_damaged(pieces, where, numbers, damaged)
            for i in files:
                out[i] = self._known.find_file(snapshot, pieces[i][3], condemned)
        return out

    def _note_damaged(
        self, pieces: Sequence[Piece], where: list[int], numbers: list[int], damaged: set[int]
    ) -> None:
        for i, number in zip(where, numbers, strict=True):
            if number in damaged:
                self._healing[pieces[i][3]] = number

    @staticmethod
    def _cut_files(view: memoryview, pieces: Iterable[Piece]) -> list[list[Piece]]:
        """The chunks of whole files that are not known."""
        out: list[list[Piece]] = []
        for offset, length, kind, _ in pieces:
            if kind == PIECE_CHUNK:
                continue
            lengths = cut(view[offset : offset + length])
            extents: list[tuple[int, int]] = []
            at = offset
            for n in lengths:
                extents.append((at, n))
                at += n
            ids = blake3_many(view, extents)
            out.append(
                [(o, n, PIECE_CHUNK, ids[32 * i : 32 * i + 32]) for i, (o, n) in enumerate(extents)]
            )
        return out

    def add_bytes(self, data: bytes | memoryview) -> Runs:
        """Metadata: pieces of at most 256 KiB in blocks of their own."""
        view = memoryview(data)
        pieces: list[Piece] = []
        for at in range(0, len(view), CHUNK_MAX):
            part = view[at : at + CHUNK_MAX]
            pieces.append((at, len(part), PIECE_CHUNK, blake3(part)))
        return self.add(view, pieces, meta=True)

    def stream(self, runs: Runs, size: int) -> Stream:
        """The row's form of a list of numbers: inline when short, else in chunks of its own."""
        encoded = encode_runs(runs)
        if len(encoded) <= INLINE_LIST:
            return Stream(size, encoded)
        return Stream(size, b"", tuple(self.add_bytes(encoded)), len(encoded))

    def _new(self, builder: _Builder, content: memoryview, chunk_id: bytes) -> int:
        old = self._healing.get(chunk_id)
        if old is not None:
            if self._heal.full(len(content)):
                self._seal(self._heal)
            self._heal.add(old, content, chunk_id)
            self._pending[chunk_id] = old
            return old
        if builder.full(len(content)):
            self._seal(builder)
        if builder.next == builder.end:
            if builder.lengths:
                self._seal(builder)
            builder.next, builder.end = self._numbers.take(MAX_RANGE if builder.kind == 0 else 64)
        number = builder.next
        builder.next += 1
        builder.add(number, content, chunk_id)
        self._pending[chunk_id] = number
        return number

    # ---- blocks -------------------------------------------------------------------------------

    def _seal(self, builder: _Builder) -> None:
        sealed = _Sealed(builder)
        future = self._pool.submit(
            blocks.encode,
            self._secret,
            sealed.data,
            sealed.runs,
            sealed.lengths,
            sealed.ids,
            sealed.kind,
        )
        self._queue.append((future, sealed))
        builder.reset(self._spare.pop() if self._spare else bytearray(BUFFER))
        while self._queue and (len(self._queue) > QUEUE or self._queue[0][0].done()):
            self._append_oldest()

    def _append_oldest(self) -> None:
        future, sealed = self._queue.popleft()
        head, payload = future.result()
        self._spare.append(sealed.buffer)
        pack, offset = self.writer.append(head, payload, sealed.runs[0][0])
        disk = len(head) + len(payload)
        self._count(disk)
        raw_offset = index = 0
        for first, count in sealed.runs:
            lengths = sealed.lengths[index : index + count]
            place = Place(
                first,
                pack,
                offset,
                len(head),
                disk,
                sealed.raw,
                raw_offset,
                index,
                head[4],
                head[5],
                lengths,
            )
            ids = sealed.ids[32 * index : 32 * (index + count)]
            self._ready.append(Batch(place, ids, sealed.healing))
            raw_offset += sum(lengths)
            index += count

    def flush(self) -> None:
        """Closes the blocks being filled and appends everything."""
        with self.lock, self._whole():
            for builder in (self._content, self._meta, self._heal):
                if builder.lengths:
                    self._seal(builder)
            while self._queue:
                self._append_oldest()
            self.writer.settle()
            self._spare.clear()

    # ---- out ----------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Chunks that are new and have no committed row yet."""
        return len(self._pending)

    def take(self) -> tuple[list[Batch], list[tuple[bytes, bytes]]]:
        """The rows to commit; call it under the lock, after `flush` and the packs' sync."""
        ready, self._ready = self._ready, []
        files, self._files = self._files, []
        return ready, files

    def give_back(self, ready: list[Batch], files: list[tuple[bytes, bytes]]) -> None:
        """Rows that were taken and whose commit failed: the next commit puts them (again)."""
        self._ready[:0] = ready
        self._files[:0] = files

    def committed(self) -> None:
        """The rows are in the index: look-ups find them there from now on."""
        self._pending.clear()
        self._pending_files.clear()
        self._healing.clear()

    def close(self) -> None:
        """Drops what was not committed and lets the packs go."""
        with self.lock:
            for future, _ in self._queue:
                future.cancel()
            self._queue.clear()
            for builder in (self._content, self._meta):
                if not builder.lengths:
                    self._numbers.give_back(builder.next, builder.end)
                builder.next = builder.end = 0
            self.writer.close()


class _Sealed:
    """A full block on its way through the compressors."""

    __slots__ = ("buffer", "data", "healing", "ids", "kind", "lengths", "raw", "runs")

    def __init__(self, builder: _Builder) -> None:
        self.buffer = builder.data
        self.data = memoryview(builder.data)[: builder.used]
        self.raw = builder.used
        self.runs = [(first, count) for first, count in builder.runs]
        self.lengths = builder.lengths
        self.ids = b"".join(builder.ids)
        self.kind = builder.kind
        self.healing = builder.healing


def _append(runs: Runs, first: int, count: int) -> None:
    if runs:
        last, n = runs[-1]
        if last + n == first:
            runs[-1] = (last, n + count)
            return
    runs.append((first, count))


def append_runs(out: Runs, more: Runs) -> None:
    """Adds runs to the end of a list, joining where they touch."""
    for first, count in more:
        _append(out, first, count)


def chunk_rows(batch: Batch) -> list[tuple[bytes, bytes]]:
    """The chunk rows of a batch: first 16 bytes of the id to the number."""
    ids, first = batch.ids, batch.place.first
    return [
        (ids[32 * i : 32 * i + ID_KEY], number_key(first + i)) for i in range(batch.place.count)
    ]
