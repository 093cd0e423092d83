"""Bytes into the store: which form a blob takes, and the pipeline that takes it there.

A tar is split into header stream, marks and content; other compressed data is kept `raw`; the rest
becomes chunks. Reading, hashing, splitting and compressing run side by side: this thread reads and
splits (outside the GIL), a thread of its own hashes, the store's pool compresses.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, cast

from ..core.chunking import cut
from ..core.hashing import blake3_many
from ..core.split import Prover, SplitBatch, Splitter
from ..core.tar import looks_like_tar
from ..errors import DigestMismatchError, InvalidInputError, LayerstoreError, LimitError
from ..storage.operation import Operation, Staged
from ..storage.rows import BlobRow, Runs, Stream, TarForm
from ..storage.sink import Piece, append_runs
from .hashpipe import HashPipe
from .inflate import compression_of, inflate

WINDOW = 8 << 20
READ = 4 << 20
HEAD_PIECE = 256 * 1024
INLINE = 2048
"""A blob up to this size lies in the index itself: manifests, mostly."""


class Reader(Protocol):
    """What is read from: like `RawIOBase.readinto`; 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


class IterReader:
    """Pieces of bytes as a reader. The iterator is the caller's: never run it under a lock."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest: memoryview = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        while not len(self._rest):
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece).cast("B")
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


class ReadReader:
    """A file that has only `read`."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file

    def readinto(self, buffer: memoryview) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def reader_of(source: object) -> Reader:
    """A reader for bytes, a binary file, or an iterable of bytes."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if hasattr(source, "readinto"):
        return cast(Reader, source)
    if hasattr(source, "read"):
        return ReadReader(cast(io.BufferedIOBase, source))
    if isinstance(source, Iterable):
        return IterReader(source)
    raise InvalidInputError(f"cannot read from a {type(source).__name__}")


@dataclass(slots=True)
class Wanted:
    """What a blob should turn out to be."""

    digest: str | None = None
    size: int | None = None
    media_type: str = "application/octet-stream"
    diff_id: str | None = None
    aliases: tuple[str, ...] = ()
    inspect: bool = True
    strict: bool = False
    layer: bool = False
    limit: int = 1 << 40
    algorithms: tuple[str, ...] = field(default=())
    split: bool = True
    """Whether a tar may be cut at its file boundaries; else it is kept as any bytes are."""
    later: bool = False
    """gzip data is decoded soon after, when it is optimized: no look inside before."""

    def looks(self, kind: str | None) -> bool:
        """Whether a compressed layer is looked into as it comes."""
        if not self.layer:
            return False
        return self.strict or (self.inspect and not (self.later and kind == "gzip"))


class Intake:
    """Reads a source to its end, exactly once: bounds the size, feeds the digests, tells progress."""

    def __init__(
        self, reader: Reader, wanted: Wanted, progress: Callable[[int], None] | None
    ) -> None:
        self._reader = reader
        self._wanted = wanted
        self._progress = progress
        self.size = 0
        self.ended = False
        self.digests: dict[str, str] = {}
        names = list(wanted.algorithms)
        self.hashes = HashPipe(names)

    def fill(self, view: memoryview) -> int:
        """Fills the view as far as the source goes; returns how much. Does not hash."""
        got = 0
        while got < len(view) and not self.ended:
            n = self._reader.readinto(view[got:])
            if not n:
                self.ended = True
                break
            got += n
        self.size += got
        if self._wanted.size is not None and self.size > self._wanted.size:
            raise DigestMismatchError(
                f"the blob is longer than the {self._wanted.size} bytes that were announced",
                expected=self._wanted.digest or f"{self._wanted.size} bytes",
                got=f"more than {self._wanted.size} bytes",
            )
        if got and self._progress is not None:
            self._progress(got)
        return got

    def finish(self) -> dict[str, str]:
        """The digests; raises DigestMismatchError unless size and digests are the wanted ones."""
        wanted = self._wanted
        if wanted.size is not None and self.size != wanted.size:
            raise DigestMismatchError(
                f"the blob has {self.size} bytes where {wanted.size} were announced",
                expected=wanted.digest or f"{wanted.size} bytes",
                got=f"{self.size} bytes",
            )
        digests = self.digests = self.hashes.digests()
        for expected in (wanted.digest, *wanted.aliases):
            if expected is None:
                continue
            got = digests[expected.partition(":")[0]]
            if got != expected:
                raise DigestMismatchError(
                    f"the blob has digest {got}, not {expected}", expected=expected, got=got
                )
        return digests


def ingest(
    op: Operation,
    source: object,
    wanted: Wanted,
    progress: Callable[[int], None] | None,
) -> Staged:
    """Reads a blob and writes its bytes into packs or a raw file; nothing of it is visible yet."""
    # sha256 always: by it the same content is known again, whatever digest it came under.
    asked = (wanted.digest, *wanted.aliases, wanted.diff_id)
    names = [name.partition(":")[0] for name in asked if name is not None]
    wanted.algorithms = tuple(dict.fromkeys(("sha256", *names)))
    intake = Intake(reader_of(source), wanted, progress)
    with intake.hashes:
        size = WINDOW if wanted.size is None else min(WINDOW, max(wanted.size + 1, 4096))
        first = memoryview(bytearray(size))
        got = intake.fill(first[: min(size, READ)])
        kind = compression_of(first[:got])
        if kind is not None:
            return _raw(op, intake, first, got, wanted, kind)
        if wanted.split and (looks_like_tar(first[:got]) or (wanted.layer and got >= 512)):
            return _tar(op, intake, first, got, wanted)
        return _plain(op, intake, first, got, wanted)


def compare(source: object, wanted: Wanted, progress: Callable[[int], None] | None) -> None:
    """Reads a source for its digests and size alone. Raises DigestMismatchError."""
    names = [d.partition(":")[0] for d in (wanted.digest, *wanted.aliases) if d is not None]
    wanted.algorithms = tuple(dict.fromkeys(names))
    intake = Intake(reader_of(source), wanted, progress)
    buffers = [memoryview(bytearray(READ)) for _ in range(2)]
    busy: list[Future[None] | None] = [None, None]
    with intake.hashes:
        turn = 0
        while not intake.ended:
            waiting = busy[turn]
            if waiting is not None:
                waiting.result()
            got = intake.fill(buffers[turn])
            busy[turn] = intake.hashes.feed(buffers[turn][:got])
            turn = 1 - turn
        intake.finish()


def _row(intake: Intake, wanted: Wanted) -> BlobRow:
    digests = intake.finish()
    digest = wanted.digest if wanted.digest is not None else digests["sha256"]
    names = dict.fromkeys((digest, *wanted.aliases, digests["sha256"]))
    return BlobRow(digest, intake.size, wanted.media_type, aliases=tuple(names)[1:])


class _Windows:
    """Two buffers in turn: while one is hashed, the other is filled behind what was left over."""

    def __init__(self, intake: Intake, first: memoryview, got: int) -> None:
        self._intake = intake
        self._buffers = [first]
        self._busy: list[Future[None] | None] = [None, None]
        self._at = 0
        self.view = first
        self.filled = got
        self._busy[0] = intake.hashes.feed(first[:got])

    def top_up(self) -> None:
        """Reads behind what is there, to the end of the buffer; hashes what came."""
        start = self.filled
        got = self._intake.fill(self.view[start:])
        if got:
            self.filled += got
            self._busy[self._at] = self._intake.hashes.feed(self.view[start : self.filled])

    def turn(self, used: int) -> None:
        """Goes on with the other buffer, which begins with what was not used."""
        rest = self.view[used : self.filled]
        if not len(rest) and self._intake.ended:
            self.filled = 0
            return
        if len(self._buffers) == 1:
            self._buffers.append(memoryview(bytearray(WINDOW)))
            if len(self._buffers[0]) < WINDOW:
                self._buffers[0] = memoryview(bytearray(WINDOW))
        other = 1 - self._at
        waiting = self._busy[other]
        if waiting is not None:
            waiting.result()
        target = self._buffers[other]
        target[: len(rest)] = rest
        self._at = other
        self.view = target
        self.filled = len(rest)
        # Not to its end: a smaller read lets hashing and splitting overlap.
        self._read_some()

    def _read_some(self) -> None:
        start = self.filled
        end = min(len(self.view), start + READ)
        if end == start:
            return
        got = self._intake.fill(self.view[start:end])
        if got:
            self.filled += got
            self._busy[self._at] = self._intake.hashes.feed(self.view[start : self.filled])


def _tar(op: Operation, intake: Intake, first: memoryview, got: int, wanted: Wanted) -> Staged:
    """Header stream, marks and content."""
    splitter, prover = Splitter(), Prover()
    windows = _Windows(intake, first, got)
    head = MetaStream(op)
    marks = MetaStream(op)
    content: Runs = []
    payload = entries = 0
    while True:
        if not intake.ended and windows.filled < WINDOW:
            windows.top_up()
        final = intake.ended
        at = 0
        while True:
            batch = splitter.feed(windows.view[at : windows.filled], final)
            _prove(prover, windows.view[at : windows.filled], batch)
            if batch.n:
                rows = batch.rows()
                runs = op.sink.add(windows.view[at : windows.filled], rows)
                append_runs(content, runs)
                payload += sum(row[1] for row in rows)
            head.write(batch.head)
            marks.write(batch.marks)
            entries = batch.entries
            at += batch.used
            op.relieve()
            if not batch.used or at >= windows.filled:
                break
        if final and at < windows.filled:
            raise LayerstoreError(f"the tar splitter stopped at byte {at} of its last window")
        if final and at >= windows.filled:
            break
        windows.turn(at)
    row = _row(intake, wanted)
    head_stream, head_runs = head.finish()
    marks_stream, marks_runs = marks.finish()
    content_stream = op.sink.stream(content, payload)
    row.tar = TarForm(head_stream, marks_stream, content_stream, entries)
    row.inspected = True
    algorithm = "sha256" if wanted.diff_id is None else wanted.diff_id.partition(":")[0]
    row.diff_id = intake.digests[algorithm]
    if wanted.diff_id not in (None, row.diff_id):
        row.problem = f"the layer's diff_id is {row.diff_id}, the config says {wanted.diff_id}"
        if wanted.strict:
            raise DigestMismatchError(row.problem, expected=str(wanted.diff_id), got=row.diff_id)
    runs = [*head_runs, *marks_runs, *content]
    for stream in (head_stream, marks_stream, content_stream):
        runs += list(stream.outer)
    return Staged(row, runs)


class UnprovenError(LayerstoreError):
    """A split that would not give the tar back: the blob is to be kept without one."""

    kind = "unproven"


def _prove(prover: Prover, window: memoryview, batch: SplitBatch) -> None:
    """Rule 20: a split is proven as it flows, before anything of it is kept."""
    try:
        prover.feed(window, batch)
    except InvalidInputError as e:
        raise UnprovenError(
            f"the split of this tar would not give it back ({e.message}): nothing was kept; "
            "please report it",
            offset=e.offset,
        ) from e


class MetaStream:
    """A stream of metadata that goes out in pieces, so that it never lies in memory whole."""

    def __init__(self, op: Operation) -> None:
        self._op = op
        self._pending = bytearray()
        self._runs: Runs = []
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._pending += data
        self._size += len(data)
        whole = len(self._pending) // HEAD_PIECE * HEAD_PIECE
        if whole:
            append_runs(self._runs, self._op.sink.add_bytes(bytes(self._pending[:whole])))
            del self._pending[:whole]

    def finish(self) -> tuple[Stream, Runs]:
        if self._pending:
            append_runs(self._runs, self._op.sink.add_bytes(bytes(self._pending)))
        return self._op.sink.stream(self._runs, self._size), self._runs


def _plain(op: Operation, intake: Intake, first: memoryview, got: int, wanted: Wanted) -> Staged:
    """Content-defined chunks of the whole blob, or the bytes themselves when they are few."""
    if not intake.ended and got < READ:
        got += intake.fill(first[got:])
    if intake.ended and got <= INLINE:
        intake.hashes.feed(first[:got])
        row = _row(intake, wanted)
        row.inline = bytes(first[:got])
        _no_layer(row, wanted)
        return Staged(row)
    windows = _Windows(intake, first, got)
    content: Runs = []
    while True:
        if not intake.ended and windows.filled < READ:
            windows.top_up()
        final = intake.ended
        view = windows.view[: windows.filled]
        lengths = cut(view, final)
        extents: list[tuple[int, int]] = []
        at = 0
        for n in lengths:
            extents.append((at, n))
            at += n
        ids = blake3_many(view, extents)
        pieces: list[Piece] = [
            (o, n, 1, ids[32 * i : 32 * i + 32]) for i, (o, n) in enumerate(extents)
        ]
        append_runs(content, op.sink.add(view, pieces))
        op.relieve()
        if final and at >= windows.filled:
            break
        windows.turn(at)
    row = _row(intake, wanted)
    row.plain = op.sink.stream(content, intake.size)
    _no_layer(row, wanted)
    return Staged(row, [*content, *row.plain.outer])


def _no_layer(row: BlobRow, wanted: Wanted) -> None:
    """What came as a layer and is neither a tar nor compressed does not decode."""
    if not wanted.split:
        row.inspected = True
        name = "sha256" if wanted.diff_id is None else wanted.diff_id.partition(":")[0]
        row.diff_id = next(d for d in row.digests if d.startswith(f"{name}:"))
    elif wanted.layer:
        row.inspected = True
        row.problem = "the layer does not decode: it is neither a tar nor gzip nor zstd data"
        if wanted.strict:
            raise InvalidInputError(row.problem, digest=row.digest, offset=0)


def _raw(
    op: Operation, intake: Intake, first: memoryview, got: int, wanted: Wanted, kind: str
) -> Staged:
    """One file, as it came; a look inside tells whether it decodes and what its diff_id is."""
    storage = op.storage
    serial = storage.draw_raw()
    writer = storage.raws.create(serial)
    look = _Look(wanted, kind) if wanted.looks(kind) else None
    try:
        buffers = [first, memoryview(bytearray(len(first) if intake.ended else WINDOW))]
        busy: list[list[Future[object] | Future[None]]] = [[], []]
        at, filled = 0, got
        while filled:
            view = buffers[at][:filled]
            hashing = intake.hashes.feed(view)
            busy[at] = [f for f in (hashing, look.feed(view) if look else None) if f is not None]
            writer.write(view)
            at = 1 - at
            for waiting in busy[at]:
                waiting.result()
            filled = 0 if intake.ended else intake.fill(buffers[at][:READ])
        row = _row(intake, wanted)
        row.raw = serial
        if look is not None:
            look.finish(row)
        raw = writer.finish()
    except BaseException:
        writer.discard()
        raise
    finally:
        if look is not None:
            look.close()
    return Staged(row, raw=raw, writer=writer)


def look_inside(pieces: Iterable[memoryview], row: BlobRow, wanted: Wanted) -> None:
    """Decodes a stored layer and fills in what its row lacks: diff_id and inner size, or why not."""
    look: _Look | None = None
    try:
        for piece in pieces:
            if look is None:
                kind = compression_of(piece)
                if kind is None:
                    return
                look = _Look(replace(wanted, strict=False), kind)
            look.feed(piece).result()
        if look is not None:
            look.finish(row)
    finally:
        if look is not None:
            look.close()


class _Look:
    """Decodes a compressed layer beside the pipeline, for its diff_id. Damage is a finding, not an
    error: the blob is kept as it came (promise 5), unless `strict`."""

    def __init__(self, wanted: Wanted, kind: str) -> None:
        self._wanted = wanted
        self._kind = kind
        # Bounded by the two buffers of its feeder. Not a `Queue`: an interrupt in the middle of its
        # `notify` loses a wake-up for good.
        self._queue: SimpleQueue[tuple[memoryview, Future[None]] | None] = SimpleQueue()
        self._error: LayerstoreError | None = None
        self._crash: Exception | None = None
        self._digest = ""
        self._size = 0
        algorithm = "sha256" if wanted.diff_id is None else wanted.diff_id.partition(":")[0]
        self._hash = HashPipe([algorithm])
        self._algorithm = algorithm
        self._thread = Thread(target=self._run, name="layerstore-inflate", daemon=True)
        self._thread.start()
        self._closed = False

    def feed(self, view: memoryview) -> Future[None]:
        done: Future[None] = Future()
        self._queue.put((view, done))
        return done

    def _pieces(self) -> Iterator[memoryview]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            view, done = item
            try:
                yield view
            finally:
                done.set_result(None)

    def _run(self) -> None:
        pieces = self._pieces()
        last: Future[None] | None = None
        with self._hash:
            try:
                for data in inflate(pieces, self._kind, self._wanted.limit):
                    self._size += len(data)
                    # One piece is hashed while the next is inflated: bounded, and side by side.
                    if last is not None:
                        last.result()
                    last = self._hash.feed(data)
                self._digest = self._hash.digests()[self._algorithm]
            except (InvalidInputError, LimitError) as e:
                self._error = e
            except Exception as e:
                self._crash = e
            for _ in pieces:
                pass

    def finish(self, row: BlobRow) -> None:
        """Waits for the end and writes down what was found. Raises it if `strict`."""
        self.close()
        if self._crash is not None:
            raise self._crash
        row.inspected = True
        if self._error is not None:
            row.problem = f"the layer does not decode: {self._error.message}"
            if self._wanted.strict:
                raise self._error
            return
        row.inner_size = self._size
        row.diff_id = self._digest
        if self._wanted.diff_id not in (None, self._digest):
            row.problem = (
                f"the layer's diff_id is {self._digest}, the config says {self._wanted.diff_id}"
            )
            if self._wanted.strict:
                raise DigestMismatchError(
                    row.problem, expected=str(self._wanted.diff_id), got=self._digest
                )

    def close(self) -> None:
        if not self._closed:
            self._queue.put(None)
            self._closed = True
            self._thread.join()


def is_layer(media_type: str) -> bool:
    """Whether a media type is that of a filesystem layer."""
    base = media_type.partition(";")[0]
    return (
        ".image.layer." in base
        or base.startswith("application/vnd.docker.image.rootfs.")
        or base in ("application/x-tar", "application/tar", "application/x-gtar")
    )
