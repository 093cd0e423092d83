"""Bytes out of the store: a blob as a binary file, made from whatever form it is kept in.

Blocks and pieces are verified by their checksums before a byte goes out; a read from beginning to
end is also verified by the blob's own digest, and raises before its last bytes if they do not match
(promise 5). Blocks are decoded ahead in the store's pool, the digest is computed beside.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import BinaryIO, cast

from ..core.deflate import WINDOW
from ..core.recipe import Recipe
from ..core.split import Joiner
from ..errors import BusyError, CorruptError, InvalidInputError, NotFoundError, StoreFullError
from ..storage import graph
from ..storage.index import Snapshot, Table
from ..storage.operation import Operation, present, prove, visible
from ..storage.rawcache import Filler
from ..storage.reading import Slice
from ..storage.rows import PIECE, BlobRow, RawRow, Stream, serial_key
from ..storage.storage import Storage
from . import regenerate
from .hashpipe import HashPipe

OUT = 2 << 20
SENT = 512 << 10
"""Bytes of a raw file that are held at once for somebody who may take them slowly."""
RENEW = 64 << 20
FIRST = 512 << 10
"""Bytes of the first piece of a tar."""
LOW = 128 << 10
"""Header stream or marks below which more is fetched: what is left over then is copied."""
_ZEROS = bytes(OUT)
RING = 4
"""Buffers that `chunks` fills in turn: one with the caller, the others being hashed or filled."""


class BlobFile(io.RawIOBase):
    """A blob as a binary file: `read`, `readinto`, `seek`, `tell`, `size`, `chunks`.

    Reading in order from the start verifies the digest too. It has an operation of its own until it is
    closed, whose epoch a long reader renews (rule 3); or reads within `op`, which must outlive it."""

    def __init__(
        self,
        storage: Storage,
        digest: str,
        op: Operation | None = None,
        may_read: Callable[[Snapshot], bool] | None = None,
        *,
        remade: bool = False,
    ) -> None:
        """`remade`: from its gzip form, proven or not, whatever else it is kept as."""
        super().__init__()
        self._storage = storage
        self._op: Operation | None = None
        if op is None:
            self._op = storage.operation()
        try:
            with storage.index.read() as snapshot:
                if op is None:
                    found = visible(storage, snapshot, digest, damaged=True)
                else:
                    # What an operation has found stays until it ends, condemned or not.
                    found = present(op, snapshot, digest)
                if may_read is not None and not may_read(snapshot):
                    found = None
            if found is None:
                raise NotFoundError(f"no blob {digest} in the store", digest=digest)
        except BaseException:
            if self._op is not None:
                self._op.close()
            raise
        self.digest = digest
        self._serial, self.row = found
        self._copies = None if remade else storage.rawcache
        if remade:
            self.row.inline = self.row.plain = self.row.tar = self.row.raw = None
        self.size = self.row.size
        self._at = 0
        self._source: Iterator[memoryview] | None = None
        self._source_at = 0
        self._rest: memoryview = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise InvalidInputError(f"cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def _check_open(self) -> None:
        """What a closed file would read, nothing holds any more."""
        if self.closed:
            raise ValueError("I/O operation on a closed blob")

    def readinto(self, buffer: object) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if not len(view) or self._at >= self.size:
            return 0
        if self._source is None or self._at != self._source_at:
            self._restart()
        while not len(self._rest):
            piece = next(self._source, None)  # type: ignore[arg-type]
            if piece is None:
                return 0
            self._rest = piece
        n = min(len(view), len(self._rest))
        view[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        self._at += n
        self._source_at = self._at
        return n

    def readall(self) -> bytes:
        self._check_open()
        if self._at == 0:
            data = b"".join(bytes(piece) for piece in self.chunks())
            self._at = self.size
            return data
        return super().readall() or b""

    def _restart(self) -> None:
        self._rest = memoryview(b"")
        self._source_at = self._at
        if self._at == 0:
            self._source = self._verified()
        else:
            self._source = self._from_copy(self._at) or pieces_from(
                self._storage, self.row, self._at
            )

    def chunks(self) -> Iterator[memoryview]:
        """The whole blob in pieces of up to 2 MiB, digest verified before the last one is given.
        A piece is good only until the next one is asked for."""
        self._check_open()
        yield from self._verified()

    def pieces(self, offset: int = 0) -> Iterator[bytes | memoryview]:
        """The blob from `offset` on, to be sent: in pieces that stay as they are, each verified.
        What is a file (raw, or a copy) goes by the checksums of its pieces; what is made of others by
        those of its blocks, and from its start by its digest too, before the last piece.
        Raises CorruptError."""
        self._check_open()
        sent = 0
        for piece in self._sent(offset):
            yield piece
            sent += len(piece)
            if sent >= RENEW:
                sent = 0
                self._renew()

    def _sent(self, offset: int) -> Iterator[bytes | memoryview]:
        copy = self._from_copy(offset)
        if copy is not None:
            yield from copy
        elif self.row.forms == ("raw",):
            yield from _raw(self._storage, self.row, offset, SENT)
        elif offset:
            yield from map(bytes, pieces_from(self._storage, self.row, offset))
        else:
            yield from map(bytes, self._verified())

    def _verified(self) -> Iterator[memoryview]:
        algorithm = self.digest.partition(":")[0]
        done = 0
        with contextlib.ExitStack() as stack:
            hashes = stack.enter_context(HashPipe([algorithm]))
            held: memoryview | None = None
            busy: list[Future[None]] = []
            source = self._from_copy(0)
            filler = None if source is not None else self._filler()
            if source is None:
                source = assemble(self._storage, self._serial, self.row, busy)
            if filler is not None:
                stack.callback(filler.close)
            for piece in source:
                if filler is not None:
                    filler.write(piece)
                if held is not None:
                    yield held
                    held = None
                future = hashes.feed(piece)
                if future is not None:
                    busy.append(future)
                done += len(piece)
                # Only what may be the last is held back.
                if done < self.size:
                    yield piece
                else:
                    held = piece
                if done & ((1 << 28) - 1) < len(piece):
                    self._renew()
            got = hashes.digests()[algorithm]
            if done != self.size or got != self.digest:
                raise CorruptError(
                    f"blob {self.digest} reads as {got} ({done} of {self.size} bytes): it is damaged; "
                    "run `layerstore check --full`, or put the same content again",
                    digest=self.digest,
                )
            if filler is not None:
                filler.finish()
            form = self.row.gzip
            if form is not None and not self.row.forms and not self._storage.readonly:
                # A reader is not to fail for it: without room or turn the recipe stays unproven.
                with contextlib.suppress(BusyError, StoreFullError):
                    prove(self._storage, self._serial, form)
            if held is not None:
                yield held

    def _from_copy(self, offset: int) -> Iterator[memoryview] | None:
        """The bytes from `offset` on out of a copy, if there is one and making them is work."""
        if self._copies is None or self.row.forms != ("gzip",):
            return None
        copy = self._copies.open(self._serial, self.size)
        if copy is None:
            return None

        def pieces() -> Iterator[memoryview]:
            at = offset
            with contextlib.closing(copy):
                try:
                    for piece in copy.pieces(offset):
                        yield piece
                        at += len(piece)
                    return
                except CorruptError:
                    self._storage.rawcache.drop(self._serial)
            yield from pieces_from(self._storage, self.row, at)

        return pieces()

    def _filler(self) -> Filler | None:
        if self._copies is None or self.row.forms != ("gzip",):
            return None
        return self._copies.begin(self._serial, self.size)

    def _renew(self) -> None:
        if self._op is None:
            return
        with self._storage.index.read() as snapshot:
            found = visible(self._storage, snapshot, self.digest, damaged=True)
            if found is not None and found[0] == self._serial:
                self._op.renew(snapshot.sequence)

    def close(self) -> None:
        if self._op is not None:
            self._op.close()
            self._op = None
        self._source = None
        super().close()


def assemble(
    storage: Storage, serial: int, row: BlobRow, busy: list[Future[None]]
) -> Iterator[memoryview]:
    """The bytes of a blob in order. Buffers are used again in a ring of `RING`; `busy` collects the
    futures of whoever still reads them (oldest first)."""
    if row.inline is not None:
        yield memoryview(row.inline)
    elif row.tar is not None:
        yield from _tar_pieces(storage, row, busy)
    elif row.plain is not None:
        for data, offset, size in storage.chunks.slices(storage.chunks.iter_runs(row.plain)):
            yield memoryview(data)[offset : offset + size]
    elif row.raw is not None:
        yield from _raw(storage, row, 0)
    elif row.gzip is not None:
        yield from _gzip_pieces(storage, row)
    else:
        raise CorruptError(f"blob {row.digest} has no form", digest=row.digest)


def pieces_from(storage: Storage, row: BlobRow, offset: int) -> Iterator[memoryview]:
    """The bytes of a blob from `offset` on; their digest is not verified."""
    if row.inline is not None:
        yield memoryview(row.inline)[offset:]
    elif row.tar is not None:
        yield from _tar_pieces(storage, row, [], offset)
    elif row.plain is not None:
        runs = storage.chunks.iter_runs(row.plain)
        for data, start, size in storage.chunks.slices(runs, offset):
            yield memoryview(data)[start : start + size]
    elif row.raw is not None:
        yield from _raw(storage, row, offset)
    elif row.gzip is not None:
        yield from _gzip_pieces(storage, row, offset)
    else:
        raise CorruptError(f"blob {row.digest} has no form", digest=row.digest)


def inner_of(storage: Storage, row: BlobRow) -> tuple[int, BlobRow]:
    """The blob that a gzip form is made from, hidden or not: it lives as long as this one."""
    form = row.gzip
    if form is None:
        raise CorruptError(f"blob {row.digest} has no gzip form", digest=row.digest)
    with storage.index.read() as snapshot:
        serial = graph.serial_of(snapshot, form.inner)
        inner = None if serial is None else graph.blob_row(snapshot, serial)
    if serial is None or inner is None or (inner.gzip is not None and not inner.forms):
        raise CorruptError(
            f"blob {row.digest} is made from {form.inner}, which is missing: put {row.digest} again",
            digest=row.digest,
        )
    return serial, inner


def _gzip_pieces(storage: Storage, row: BlobRow, offset: int = 0) -> Iterator[memoryview]:
    """A gzip blob made again, from `offset` on: at most one piece more is encoded than is given."""
    form = row.gzip
    if form is None:
        raise CorruptError(f"blob {row.digest} has no gzip form", digest=row.digest)
    regenerate.check_form(form)
    serial, inner = inner_of(storage, row)

    def source(start: int) -> Iterator[memoryview]:
        if start:
            return pieces_from(storage, inner, start)
        return assemble(storage, serial, inner, [])

    if form.recipe is not None:
        data = storage.chunks.read_stream(form.recipe)
        try:
            recipe = Recipe.from_bytes(data, inner.size, row.size)
        except CorruptError as e:
            raise CorruptError(f"blob {row.digest}: {e.message}", digest=row.digest) from e
        if offset >= row.size:
            return
        first = recipe.find(offset)
        at = recipe.extent(first).blob_start
        made = regenerate.followed(storage.pool, storage.workers, recipe, source, first)
        yield from _from(made, at, offset)
        return
    first, at = 0, regenerate.HEADER_SIZE
    start = 0
    if offset:
        first, at = regenerate.begin(row, storage.chunks.read_stream(form.points), offset)
        start = max(0, first * form.piece - WINDOW)
    if offset < regenerate.HEADER_SIZE:
        yield memoryview(regenerate.header(form.level))[offset:]
    made = regenerate.deflated(
        storage.pool, storage.workers, source(start), inner.size, form.level, first
    )
    yield from _from(made, at, offset)
    tail = regenerate.trailer(form.crc, inner.size)
    yield memoryview(tail)[max(0, offset - (row.size - len(tail))) :]


def _from(pieces: Iterator[bytes], at: int, offset: int) -> Iterator[memoryview]:
    """Pieces that begin at `at`, from `offset` on."""
    for piece in pieces:
        skip = max(0, offset - at)
        at += len(piece)
        if skip < len(piece):
            yield memoryview(piece)[skip:]


def _raw(storage: Storage, row: BlobRow, offset: int, step: int = OUT) -> Iterator[memoryview]:
    """A blob from its raw file; from another form if that was dropped since the row was read."""
    file = open_raw(storage, row)
    if file is None:
        with storage.index.read() as snapshot:
            serial = graph.serial_of(snapshot, row.digest)
            now = None if serial is None else graph.blob_row(snapshot, serial)
        if now is None or now.raw == row.raw:
            where = storage.raws.path(row.raw or 0)
            raise CorruptError(f"raw file {where} is missing", digest=row.digest, where=where)
        yield from pieces_from(storage, now, offset)
        return
    raw, opened, path = file
    with opened:
        yield from raw_pieces(storage, raw, opened, path, offset, step)


def open_raw(storage: Storage, row: BlobRow) -> tuple[RawRow, BinaryIO, str] | None:
    """The raw file of a blob, to be closed by the caller; None if file or row are gone."""
    if row.raw is None:
        return None
    with storage.index.read() as snapshot:
        value = snapshot.get(Table.RAWS, serial_key(row.raw))
    if value is None:
        return None
    path = storage.raws.path(row.raw)
    try:
        return RawRow.parse(value), cast(BinaryIO, open(path, "rb", buffering=0)), path
    except FileNotFoundError:
        return None


def raw_pieces(
    storage: Storage, raw: RawRow, file: BinaryIO, path: str, offset: int, step: int = OUT
) -> Iterator[memoryview]:
    """A raw file from `offset` on, each piece verified; `step` bytes are read at once."""
    at = offset // PIECE * PIECE
    file.seek(at)
    while at < raw.size:
        data = file.read(step)
        if not data:
            raise CorruptError(
                f"raw file {path} ends at {at} of {raw.size} bytes", where=path, offset=at
            )
        view = memoryview(data)
        while len(view) % PIECE and at + len(view) < raw.size:
            more = file.read(PIECE - len(view) % PIECE)
            if not more:
                break
            data += more
            view = memoryview(data)
        for start in range(0, len(view), PIECE):
            storage.raws.verify(raw, (at + start) // PIECE, view[start : start + PIECE], path)
        skip = max(0, offset - at)
        at += len(view)
        yield view[skip:]


class _Slices:
    """Slices of content for the joiner, refilled as they are taken."""

    def __init__(self, source: Iterator[Slice]) -> None:
        self._source = source
        self.ready: list[Slice] = []
        self.first_offset = 0
        self.ended = False
        self.left = 0

    def fill(self, want: int) -> None:
        """At least `want` bytes, if there are that many."""
        while self.left < want and not self.ended:
            item = next(self._source, None)
            if item is None:
                self.ended = True
                return
            self.ready.append(item)
            self.left += item[2]

    def take(self, whole: int, offset: int) -> None:
        self.left += self.first_offset - offset - sum(size for _, _, size in self.ready[:whole])
        del self.ready[:whole]
        self.first_offset = offset


def _tar_pieces(
    storage: Storage,
    row: BlobRow,
    busy: list[Future[None]],
    offset: int = 0,
    *,
    blank: bool = False,
) -> Iterator[memoryview]:
    """A tar from `offset` on. Content before it is stepped over, so that nothing of it is decoded; with
    `blank` zeros stand in for all of it."""
    tar = row.tar
    if tar is None:
        raise CorruptError(f"blob {row.digest} has no tar form", digest=row.digest)
    joiner = Joiner()
    heads = _bytes_of(storage, tar.head)
    marks = _bytes_of(storage, tar.marks)
    content = tar.content.size
    slices = _Slices(iter(())) if offset else _content_of(storage, tar.content, 0, blank)
    taken = 0
    passed = 0
    """Bytes of the tar that were stepped over."""
    first = True
    # Anonymous maps: page-aligned, so that a writer can hand them to the disk as they are.
    ring = [memoryview(mmap.mmap(-1, OUT)) for _ in range(RING)]
    turn = filled = 0
    head, head_final = memoryview(b""), False
    mark, mark_final = memoryview(b""), False
    while True:
        while not head_final and len(head) < LOW:
            more = next(heads, None)
            head_final = more is None
            if more:
                head = memoryview(bytes(head) + more)
        while not mark_final and len(mark) < LOW:
            more = next(marks, None)
            mark_final = more is None
            if more:
                mark = memoryview(bytes(mark) + more)
        if passed < offset:
            result = joiner.skip(
                head, head_final, mark, mark_final, content - taken, offset - passed
            )
            head = head[result.head_used :]
            mark = mark[result.marks_used :]
            taken = content if result.slices_used else taken + result.slice_offset
            passed += result.out_len
            if head_final and mark_final and not result.out_len:
                return
            if passed == offset:
                slices = _content_of(storage, tar.content, taken, blank)
            continue
        # Less at first: the first byte is waited for.
        full = FIRST if first else OUT
        slices.fill(full)
        out = ring[turn]
        if not filled and len(busy) >= RING - 1:
            busy.pop(0).result()
        result = joiner.run(
            head,
            head_final,
            mark,
            mark_final,
            slices.ready,
            slices.first_offset,
            slices.ended,
            out[filled:full],
        )
        head = head[result.head_used :]
        mark = mark[result.marks_used :]
        slices.take(result.slices_used, result.slice_offset)
        filled += result.out_len
        over = head_final and mark_final and slices.ended and not result.out_len
        if filled >= full or (over and filled):
            first = False
            turn = (turn + 1) % RING
            yield out[:filled]
            filled = 0
        elif over:
            if len(head) or len(mark) or slices.ready:
                raise CorruptError(
                    f"blob {row.digest}: its header stream, marks and content do not fit",
                    digest=row.digest,
                )
            return


def headers_only(storage: Storage, row: BlobRow) -> Iterator[memoryview]:
    """A tar with zeros for content: what a scanner needs, without decoding any content."""
    return _tar_pieces(storage, row, [], blank=True)


def _content_of(storage: Storage, stream: Stream, skip: int, blank: bool) -> _Slices:
    if blank:
        return _Slices(_blank(stream.size - skip))
    return _Slices(storage.chunks.slices(storage.chunks.iter_runs(stream), skip))


def _blank(size: int) -> Iterator[Slice]:
    while size > 0:
        n = min(size, len(_ZEROS))
        yield _ZEROS, 0, n
        size -= n


def _bytes_of(storage: Storage, stream: Stream) -> Iterator[bytes]:
    """A stream's bytes in pieces of about 1 MiB at most."""
    for data, offset, size in storage.chunks.slices(storage.chunks.iter_runs(stream)):
        yield data[offset : offset + size]


Opener = Callable[[str], BlobFile]
