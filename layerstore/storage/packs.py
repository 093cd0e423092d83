"""Packs: files of blocks. Knows where blocks lie and who may append; nothing of what is in them.

`packs/NNNNNNNN.pack`: 64 bytes of header (`LSPACK\\x01\\n`, the store's uuid, u64 pack number), blocks
one behind the other, and once the pack has reached its size a table of contents: for each block u64
offset, u32 length, u64 first number; then `LSTOC\\x01\\0\\n`, u32 blocks, u64 offset of the table, and
16 bytes of keyed BLAKE3 of all that. A pack has one writer, which holds its lock from before it
reads the committed length until its session commits (rule 10); bytes past the committed length are
nobody's and are overwritten.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait

from ..core.hashing import blake3
from ..errors import CorruptError, LayerstoreError
from .blocks import MAGIC as BLOCK_MAGIC
from .blocks import MAX_RAW, header_size
from .blocks import parse as parse_block
from .disk import BEHIND, Disk, start_writeback
from .index import Index, Table, Write
from .locks import FileLock
from .rows import PackRow, pack_key

MAGIC = b"LSPACK\x01\n"
TOC_MAGIC = b"LSTOC\x01\x00\n"
HEADER_SIZE = 64
PACK_SIZE = 256 << 20
WRITES = 4
"""Blocks on their way to a file."""
SMALL = 64 << 10
"""Bytes that are written faster than they are handed over."""
_TOC_ROW = struct.Struct("<QIQ")
_TOC_END = struct.Struct("<8sIQ16s")


def header(uuid: bytes, number: int) -> bytes:
    return (MAGIC + uuid + number.to_bytes(8, "little")).ljust(HEADER_SIZE, b"\0")


def encode_toc(secret: bytes, offset: int, blocks: list[tuple[int, int, int]]) -> bytes:
    """The table of contents that begins at `offset`."""
    body = b"".join(_TOC_ROW.pack(*row) for row in blocks)
    head = body + TOC_MAGIC + struct.pack("<IQ", len(blocks), offset)
    return head + blake3(head, secret)[:16]


def decode_toc(secret: bytes, data: bytes, length: int) -> list[tuple[int, int, int]] | None:
    """The blocks of a sealed pack from the bytes at its end (`length`: of the whole pack), or None."""
    if len(data) < _TOC_END.size:
        return None
    magic, count, offset, check = _TOC_END.unpack(data[-_TOC_END.size :])
    size = count * _TOC_ROW.size + _TOC_END.size
    if magic != TOC_MAGIC or offset + size != length or len(data) < size:
        return None
    whole = data[-size:]
    if blake3(whole[:-16], secret)[:16] != check:
        return None
    return [
        (o, n, first) for o, n, first in struct.iter_unpack("<QIQ", whole[: count * _TOC_ROW.size])
    ]


class Packs:
    """The pack files of a store, for reading."""

    OPEN_FILES = 128

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, number: int) -> str:
        return os.path.join(self.directory, f"{number:08d}.pack")

    def _dup(self, number: int) -> int:
        """A descriptor of our own, so that another thread's eviction cannot close it beneath us."""
        with self._lock:
            fd = self._open.get(number)
            if fd is None:
                fd = os.open(self.path(number), os.O_RDONLY | os.O_CLOEXEC)
                self._open[number] = fd
                while len(self._open) > self.OPEN_FILES:
                    os.close(self._open.popitem(last=False)[1])
            else:
                self._open.move_to_end(number)
            return os.dup(fd)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of a pack. Raises CorruptError when the file is gone or too short."""
        try:
            fd = self._dup(number)
        except FileNotFoundError as e:
            raise CorruptError(
                f"pack {self.path(number)} is missing", where=self.path(number), offset=offset
            ) from e
        try:
            data = os.pread(fd, length, offset)
            while len(data) < length:
                more = os.pread(fd, length - len(data), offset + len(data))
                if not more:
                    raise CorruptError(
                        f"pack {self.path(number)} ends at {offset + len(data)}, "
                        f"inside a block at {offset}",
                        where=self.path(number),
                        offset=offset,
                    )
                data += more
            return data
        finally:
            os.close(fd)

    def forget(self, number: int) -> None:
        """Closes a pack that is to be unlinked."""
        with self._lock:
            fd = self._open.pop(number, None)
            if fd is not None:
                os.close(fd)

    def numbers(self) -> list[int]:
        """The packs that there are as files."""
        out = []
        for name in os.listdir(self.directory):
            stem, dot = os.path.splitext(name)
            if dot == ".pack" and stem.isdigit():
                out.append(int(stem))
        return sorted(out)

    def close(self) -> None:
        with self._lock:
            for fd in self._open.values():
                os.close(fd)
            self._open.clear()


class PackWriter:
    """Appends blocks to packs that it holds the locks of. One for each operation that writes.

    With a `pool` large blocks are written by its threads, a few at a time: `settle` waits for them."""

    def __init__(
        self,
        packs: Packs,
        index: Index,
        disk: Disk,
        uuid: bytes,
        secret: bytes,
        pack_size: int,
        pool: Executor | None = None,
    ) -> None:
        self._packs = packs
        self._index = index
        self._disk = disk
        self._uuid = uuid
        self._secret = secret
        self._size = pack_size
        self._held: list[_Held] = []
        self._dirty: list[_Held] = []
        self._pool = pool
        self._writing: deque[Future[object]] = deque()

    def append(self, head: bytes, payload: bytes, first: int) -> tuple[int, int]:
        """Writes a block; returns `(pack, offset)`. It is durable only after `sync`; without `settle`
        before, another one may raise what writing this one raised."""
        size = len(head) + len(payload)
        while self._writing and (len(self._writing) >= WRITES or self._writing[0].done()):
            self._writing.popleft().result()
        held = self._current(size)
        offset = held.length
        if size < SMALL:
            self._disk.writev_at(held.fd, (head, payload), offset, held.path)
        else:
            self._hand(self._disk.writev_at, held.fd, (head, payload), offset, held.path)
        held.length += size
        if held.length - held.behind >= BEHIND + WRITES * MAX_RAW:
            # What may still be on its way to the file waits for the next time.
            end = held.length - WRITES * MAX_RAW
            self._hand(start_writeback, held.fd, held.behind, end - held.behind)
            held.behind = end
        held.blocks.append((offset, size, first))
        if held not in self._dirty:
            self._dirty.append(held)
        return held.number, offset

    def _hand(self, work: Callable[..., object], *args: object) -> None:
        """Work for the pool, if there is one."""
        if self._pool is None:
            work(*args)
        else:
            self._writing.append(self._pool.submit(work, *args))

    def _current(self, size: int) -> _Held:
        if self._held and not self._held[-1].sealed:
            held = self._held[-1]
            if held.length + size <= self._size or held.length == HEADER_SIZE:
                return held
            self._seal(held)
        self._held.append(self._acquire(size))
        return self._held[-1]

    def _seal(self, held: _Held) -> None:
        """Ends a pack with its table of contents. Blocks that other writers put there before are
        read from the index."""
        rows: dict[int, tuple[int, int, int]] = {b[0]: b for b in held.blocks}
        at = HEADER_SIZE
        while at < held.start:
            found = _block_at(self._packs, self._secret, held.number, at, held.start)
            if found is None:
                # A punched hole: the table lists what can be found from here on by the scan.
                at = next_block(held.fd, at + 1, held.start)
                continue
            rows[at] = (at, found[0], found[1])
            at += found[0]
        toc = encode_toc(self._secret, held.length, [rows[o] for o in sorted(rows)])
        self._disk.write_at(held.fd, toc, held.length, held.path)
        held.length += len(toc)
        held.sealed = True
        if held not in self._dirty:
            self._dirty.append(held)

    def _acquire(self, size: int) -> _Held:
        with self._index.read() as snapshot:
            candidates = [
                int.from_bytes(key, "big")
                for key, value in snapshot.items(Table.PACKS)
                if not PackRow.parse(value).sealed
            ]
        for number in reversed(candidates):
            path = self._packs.path(number)
            lock = FileLock(path)
            if not lock.try_acquire(create=False):
                continue
            with self._index.read() as snapshot:
                value = snapshot.get(Table.PACKS, pack_key(number))
            row = None if value is None else PackRow.parse(value)
            if row is None or row.sealed or row.length + size > self._size:
                lock.release()
                continue
            return _Held(number, path, lock, row.length)
        number = self._index.update(lambda tx: tx.draw(b"next_pack"))
        path = self._packs.path(number)
        lock = FileLock(path)
        # A collector that looks at unknown files may hold it for a moment.
        lock.acquire(10.0, f"the new pack {path}")
        try:
            self._disk.write_at(lock.fd, header(self._uuid, number), 0, path)
            self._disk.sync(lock.fd, path)
            self._disk.sync_dir(self._packs.directory)
        except BaseException:
            with contextlib.suppress(OSError):
                self._disk.unlink(path)
            lock.release()
            raise
        return _Held(number, path, lock, HEADER_SIZE)

    def settle(self) -> None:
        """Until every block is in its file. Raises what writing one raised."""
        while self._writing:
            self._writing.popleft().result()

    def sync(self) -> None:
        """Makes all that was appended durable. Call it before the rows are committed."""
        self.settle()
        for held in self._dirty:
            self._disk.sync(held.fd, held.path)

    def rows(self, write: Write) -> None:
        """Puts the new committed lengths."""
        for held in self._dirty:
            write.put(
                Table.PACKS, pack_key(held.number), PackRow(held.length, held.sealed).to_bytes()
            )

    def committed(self) -> None:
        """After the commit: what is sealed is let go."""
        self._dirty.clear()
        for held in self._held:
            held.start = held.length
            if held.sealed:
                held.lock.release()
        self._held = [h for h in self._held if not h.sealed]

    def close(self) -> None:
        """Lets all packs go. What was not committed is past their committed length, and given back:
        on a full disk it may be all that there was."""
        while self._writing:
            wait([self._writing.popleft()])
        for held in self._held:
            try:
                # As after a crash: if this fails, gc does it.
                with contextlib.suppress(LayerstoreError, OSError):
                    if os.fstat(held.fd).st_size > held.start:
                        self._give_back(held)
            finally:
                held.lock.release()
        self._held.clear()
        self._dirty.clear()

    def _give_back(self, held: _Held) -> None:
        """Cuts a pack to what the index says of it: an interrupt may have come between the commit and
        our notice of it."""
        with self._index.read() as snapshot:
            value = snapshot.get(Table.PACKS, pack_key(held.number))
        if value is None:
            self._packs.forget(held.number)
            self._disk.unlink(held.path)
            return
        length = PackRow.parse(value).length
        if os.fstat(held.fd).st_size > length:
            self._disk.truncate(held.fd, length, held.path)


class _Held:
    """A pack whose lock we hold."""

    __slots__ = ("behind", "blocks", "length", "lock", "number", "path", "sealed", "start")

    def __init__(self, number: int, path: str, lock: FileLock, length: int) -> None:
        self.number = number
        self.path = path
        self.lock = lock
        self.length = length
        self.behind = length
        self.start = length
        self.sealed = False
        self.blocks: list[tuple[int, int, int]] = []

    @property
    def fd(self) -> int:
        return self.lock.fd


def _block_at(
    packs: Packs, secret: bytes, number: int, offset: int, end: int
) -> tuple[int, int] | None:
    """`(length, first number)` of the block whose header begins at `offset`, or None. What is left of
    a dead block at the edges of a hole may look like a header, and like one that ends behind `end`."""
    if offset + 24 > end:
        return None
    size = header_size(packs.read(number, offset, 24))
    if size is None or offset + size > end:
        return None
    head = parse_block(secret, packs.read(number, offset, size))
    return None if head is None else (head.size + head.payload, head.runs[0][0])


def next_block(fd: int, offset: int, end: int) -> int:
    """Where the next block magic stands, skipping holes; `end` if there is none."""
    while offset < end:
        try:
            offset = max(offset, os.lseek(fd, offset, os.SEEK_DATA))
        except OSError:
            return end
        if offset >= end:
            return end
        data = os.pread(fd, min(1 << 20, end - offset), offset)
        at = data.find(BLOCK_MAGIC)
        if at >= 0:
            return offset + at
        if len(data) <= 3:
            return end
        offset += max(1, len(data) - 3)
    return end
