"""Compressed layers that are made again from their content instead of being kept.

A recipe names an encoder whose source is frozen in this project: our own, by level and piece size, or a
model of another one, with corrections (FORMAT.md, section 8.1). Content is encoded in pieces or spans
side by side in the store's pool, and comes out in order; from the middle too, from the piece or span in
which an offset lies. What comes out is not verified here: its reader compares the digest.

Memory: about 4 MiB for each core at work (spans of models: up to 16), whatever the size of the layer.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future

from ..core import recipe as recipes
from ..core.deflate import ENCODER, LEVELS, PIECE, WINDOW, Encoder
from ..errors import CorruptError, UnsupportedError
from ..storage.rows import BlobRow, GzipForm

RECIPE = "recipe 1"
"""What a form with a recipe names as its encoder."""
HEADER_SIZE = 10
TRAILER_SIZE = 8


def header(level: int) -> bytes:
    """A member's header (RFC 1952): no name, no time, no system; XFL tells fastest and best."""
    extra = 2 if level == 9 else 4 if level == 1 else 0
    return bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, extra, 255))


def trailer(crc: int, size: int) -> bytes:
    """CRC-32 of the content, and its size modulo 2^32."""
    return crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


class _Buffers:
    """Pieces of a stream as the encoder wants them: each behind the end of the one before."""

    def __init__(self, source: Iterable[bytes | memoryview]) -> None:
        self._source = iter(source)
        self._rest: memoryview = memoryview(b"")
        self._free: list[bytearray] = []

    def make(self, last: memoryview | None, window: int, size: int) -> memoryview:
        """A buffer with the last `window` bytes of `last`, or of the source, then `size` bytes of the
        source. Raises CorruptError if it ends before."""
        buffer = memoryview(self._free.pop() if self._free else bytearray(WINDOW + PIECE))
        at = 0
        if last is not None and window:
            buffer[:window] = last[-window:]
            at = window
        while at < window + size:
            if not len(self._rest):
                piece = next(self._source, None)
                if piece is None:
                    raise CorruptError("a tar ends before a layer that is made from it")
                self._rest = memoryview(piece)
            n = min(window + size - at, len(self._rest))
            buffer[at : at + n] = self._rest[:n]
            self._rest = self._rest[n:]
            at += n
        return buffer[: window + size]

    def give_back(self, buffer: memoryview) -> None:
        whole = buffer.obj
        assert isinstance(whole, bytearray)
        self._free.append(whole)

    def finish(self) -> None:
        """Reads the source to its end: what verifies it does so there."""
        if len(self._rest) or any(len(piece) for piece in self._source):
            raise CorruptError("a tar goes on behind a layer that is made from it")


def deflated(
    pool: Executor,
    workers: int,
    source: Iterable[bytes | memoryview],
    size: int,
    level: int,
    first: int = 0,
) -> Iterator[bytes]:
    """The compressed pieces of a content of `size` bytes, in order, from piece `first` on.

    `source` begins WINDOW bytes before that piece (at the start, for the first)."""
    buffers = _Buffers(source)
    encoders: list[Encoder] = []
    busy: deque[tuple[memoryview, Future[bytes]]] = deque()

    def encode(buffer: memoryview, window: int, final: bool) -> bytes:
        encoder = encoders.pop() if encoders else Encoder(level)
        try:
            return encoder.piece(buffer, window, final)
        finally:
            encoders.append(encoder)

    def done() -> bytes:
        buffer, future = busy.popleft()
        out = future.result()
        buffers.give_back(buffer)
        return out

    last: memoryview | None = None
    count = max(1, -(-size // PIECE))
    for number in range(first, count):
        start = number * PIECE
        window = min(WINDOW, start)
        final = number == count - 1
        # The window is copied before the buffer that it is in can be given back.
        buffer = buffers.make(last, window, min(PIECE, size - start))
        busy.append((buffer, pool.submit(encode, buffer, window, final)))
        last = buffer
        if final:
            buffers.finish()
        elif len(busy) > workers + 1:
            yield done()
    while busy:
        yield done()


class _Stretches:
    """Stretches of a stream that overlap: each with what lies before and behind."""

    def __init__(self, source: Iterable[bytes | memoryview], at: int) -> None:
        self._source = iter(source)
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._end = at

    def take(self, start: int, end: int) -> list[memoryview]:
        """The bytes from `start` to `end`, in parts that are not changed any more; starts never go
        back. Raises CorruptError if there are not so many."""
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= start:
            self._pieces.popleft()
        while self._end < end:
            piece = next(self._source, None)
            if piece is None:
                raise CorruptError("a tar ends before a layer that is made from it")
            if self._end + len(piece) > start:
                self._pieces.append((self._end, bytes(piece)))
            self._end += len(piece)
        out = []
        for at, piece in self._pieces:
            first, last = max(at, start), min(at + len(piece), end)
            if first < last:
                out.append(memoryview(piece)[first - at : last - at])
        return out

    def finish(self) -> None:
        """Reads the source to its end: what verifies it does so there."""
        for piece in self._source:
            if len(piece):
                raise CorruptError("a tar goes on behind a layer that is made from it")


def followed(
    pool: Executor,
    workers: int,
    recipe: recipes.Recipe,
    source: Callable[[int], Iterable[bytes | memoryview]],
    first: int = 0,
) -> Iterator[bytes]:
    """The bytes that a recipe gives, in order, from span `first` on. `source` opens the content from an
    offset on. Raises CorruptError when recipe and content do not fit."""
    busy: deque[Future[bytes]] = deque()

    def make(number: int, stretch: list[memoryview]) -> bytes:
        return recipes.make_span(recipe, number, *stretch)

    extent = recipe.extent(first)
    start = extent.content_start - extent.before
    stretches = _Stretches(source(start), start)
    count = len(recipe)
    try:
        for number in range(first, count):
            extent = recipe.extent(number)
            stretch = stretches.take(
                extent.content_start - extent.before, extent.content_end + extent.ahead
            )
            busy.append(pool.submit(make, number, stretch))
            # Nobody waits for the second span to see the first, nor longer than it takes.
            while number + 1 < count and (
                number == first or len(busy) > workers + 1 or (busy and busy[0].done())
            ):
                yield busy.popleft().result()
                if not busy:
                    break
        while len(busy) > 1:
            yield busy.popleft().result()
        # The content is verified before the last bytes are given.
        stretches.finish()
        yield busy.popleft().result()
    finally:
        for waiting in busy:
            waiting.cancel()


def check_form(form: GzipForm) -> None:
    """Raises UnsupportedError for a recipe that this version cannot follow."""
    if form.recipe is not None:
        if form.encoder != RECIPE:
            raise UnsupportedError(
                f"a recipe of the kind {form.encoder!r} is of a newer layerstore: read this store "
                "with that"
            )
        return
    if form.encoder != ENCODER or form.level not in LEVELS or form.piece != PIECE:
        raise UnsupportedError(
            f"a recipe for encoder {form.encoder!r}, level {form.level}, in pieces of {form.piece} "
            "bytes is of a newer layerstore: read this store with that"
        )


def begin(row: BlobRow, points: bytes, offset: int) -> tuple[int, int]:
    """Where to begin for what lies at `offset` of the blob: the piece, and the offset of its first
    compressed byte. Raises CorruptError when the points do not add up."""
    lengths = array("I")
    lengths.frombytes(points[: len(points) // 4 * 4])
    if sum(lengths) + HEADER_SIZE + TRAILER_SIZE != row.size:
        raise CorruptError(f"blob {row.digest}: its recipe is damaged", digest=row.digest)
    at = HEADER_SIZE
    number = 0
    while number + 1 < len(lengths) and at + lengths[number] <= offset:
        at += lengths[number]
        number += 1
    return number, at
