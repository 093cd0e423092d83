"""The metadata pack: a chain of commit records from which the index can be made anew (rules 15, 16).

A record holds the row changes of one index transaction. It is written and synced inside that
transaction, before it commits, at the offset that the index calls committed: so the order of
records is the order of commits, and at most one complete record may lie beyond the index's last.
A record names its sequence and the hash of the one before; its own hash is keyed with the store's
secret, so that no content can pass for a record.

File: 64 bytes of header, then records. Record: `LSJR`, u32 length of the payload, u64 sequence,
32 bytes hash of the record before, payload, 32 bytes keyed BLAKE3 of all before it. Payload: for
each change u8 table, u16 key length, u32 value length (0xFFFFFFFF: deleted), key, value.
All integers are little endian. A checkpoint is a file of the same shape that holds every row.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from ..errors import CorruptError
from .disk import Disk

MAGIC = b"LSJR"
HEADER = struct.Struct("<8s16sQQ24x")
FILE_MAGIC = b"LSMETA\x01\n"
HEADER_SIZE = 64
_HEAD = struct.Struct("<4sIQ32s")
_OP = struct.Struct("<BHI")
DELETED = 0xFFFFFFFF
HASH = 32
GENESIS = bytes(32)
FIRST_SIZE = HEADER_SIZE + _HEAD.size + HASH
# A record larger than this is no record: bounds what a reader of a damaged file allocates.
MAX_PAYLOAD = 1 << 30

Change = tuple[int, bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class Position:
    """Where the next record goes, and what it follows."""

    file: int
    offset: int
    sequence: int
    previous: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One commit: its changes in order. `end` is the offset behind it, `hash` its own hash."""

    sequence: int
    changes: list[Change]
    end: int
    hash: bytes


def encode_changes(changes: Iterable[Change]) -> bytes:
    """The payload of a record."""
    parts: list[bytes] = []
    for table, key, value in changes:
        length = DELETED if value is None else len(value)
        parts.append(_OP.pack(table, len(key), length))
        parts.append(key)
        if value is not None:
            parts.append(value)
    return b"".join(parts)


def decode_changes(payload: bytes) -> list[Change]:
    """The inverse. Raises CorruptError on anything that `encode_changes` does not make."""
    out: list[Change] = []
    at = 0
    while at < len(payload):
        if at + _OP.size > len(payload):
            raise CorruptError("a commit record ends inside a change", offset=at)
        table, key_len, value_len = _OP.unpack_from(payload, at)
        at += _OP.size
        size = 0 if value_len == DELETED else value_len
        if at + key_len + size > len(payload):
            raise CorruptError("a commit record ends inside a row", offset=at)
        key = payload[at : at + key_len]
        at += key_len
        out.append((table, key, None if value_len == DELETED else payload[at : at + size]))
        at += size
    return out


def encode_record(
    secret: bytes, sequence: int, previous: bytes, payload: bytes
) -> tuple[bytes, bytes]:
    """`(bytes of the record, its hash)`."""
    body = _HEAD.pack(MAGIC, len(payload), sequence, previous) + payload
    digest = blake3(body, key=secret).digest()
    return body + digest, digest


def read_record(fd: int, secret: bytes, offset: int, previous: bytes | None) -> Record | None:
    """The complete record at `offset` that follows `previous` (None: any), or None."""
    head = os.pread(fd, _HEAD.size, offset)
    if len(head) < _HEAD.size:
        return None
    magic, length, sequence, before = _HEAD.unpack(head)
    if magic != MAGIC or length > MAX_PAYLOAD or (previous is not None and before != previous):
        return None
    if offset + _HEAD.size + length + HASH > os.fstat(fd).st_size:
        return None
    rest = os.pread(fd, length + HASH, offset + _HEAD.size)
    if len(rest) < length + HASH:
        return None
    payload, digest = rest[:length], rest[length:]
    if blake3(head + payload, key=secret).digest() != digest:
        return None
    end = offset + _HEAD.size + length + HASH
    return Record(sequence, decode_changes(payload), end, digest)


class Journal:
    """The files of the metadata pack in one directory."""

    def __init__(self, directory: str, secret: bytes, uuid: bytes, disk: Disk) -> None:
        self.directory = directory
        self._secret = secret
        self._uuid = uuid
        self._disk = disk
        self._fd = -1
        self._file = -1

    def path(self, number: int) -> str:
        return os.path.join(self.directory, f"{number:08d}.log")

    def checkpoint_path(self, number: int) -> str:
        return os.path.join(self.directory, f"{number:08d}.ckpt")

    def create(self, number: int, sequence: int) -> None:
        """A new, empty, synced file for the records behind `sequence`."""
        path = self.path(number)
        fd = self._disk.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            head = HEADER.pack(FILE_MAGIC, self._uuid, number, sequence)
            self._disk.write_at(fd, head, 0, path)
            self._disk.sync(fd, path)
        finally:
            os.close(fd)
        self._disk.sync_dir(self.directory)

    def _open(self, number: int) -> int:
        if self._file != number:
            self.close()
            self._fd = self._disk.open(self.path(number), os.O_RDWR)
            self._file = number
        return self._fd

    def append(self, at: Position, changes: Iterable[Change]) -> Position:
        """Writes and syncs one record; returns where the next one goes. The caller holds the gate."""
        fd = self._open(at.file)
        sequence = at.sequence + 1
        data, digest = encode_record(self._secret, sequence, at.previous, encode_changes(changes))
        self._disk.write_at(fd, data, at.offset, self.path(at.file))
        self._disk.sync(fd, self.path(at.file))
        return Position(at.file, at.offset + len(data), sequence, digest)

    def beyond(self, at: Position) -> int:
        """How many complete records lie beyond `at`: 0, 1 (a commit cut short) or 2 ("more")."""
        try:
            fd = os.open(self.path(at.file), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as e:
            raise CorruptError(
                f"the metadata pack {self.path(at.file)} is missing: "
                "restore it, or run `layerstore check --rebuild-index`",
                where=self.path(at.file),
            ) from e
        try:
            if os.fstat(fd).st_size < at.offset:
                raise CorruptError(
                    f"the metadata pack {self.path(at.file)} is shorter than the index says "
                    f"({at.offset} bytes): restore it, or run `layerstore check --rebuild-index`",
                    where=self.path(at.file),
                )
            first = read_record(fd, self._secret, at.offset, at.previous)
            if first is None:
                found = 0
            else:
                found = 1 if read_record(fd, self._secret, first.end, first.hash) is None else 2
        finally:
            os.close(fd)
        for number in self.files():
            if number > at.file and os.path.getsize(self.path(number)) > HEADER_SIZE:
                return 2
        return found

    def files(self) -> list[int]:
        """The numbers of the record files there are, ascending."""
        return self._numbers(".log")

    def checkpoints(self) -> list[int]:
        """The numbers of the checkpoints there are, ascending."""
        return self._numbers(".ckpt")

    def _numbers(self, suffix: str) -> list[int]:
        out = []
        for name in os.listdir(self.directory):
            stem, dot = os.path.splitext(name)
            if dot == suffix and stem.isdigit():
                out.append(int(stem))
        return sorted(out)

    def records(self, number: int, *, checkpoint: bool = False) -> Iterator[Record]:
        """Every complete record of one file, in order, as far as the chain holds."""
        path = self.checkpoint_path(number) if checkpoint else self.path(number)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(fd, HEADER.size, 0)
            if len(head) < HEADER.size and not checkpoint:
                # Made by a commit that was cut short before anything else was written.
                return
            if len(head) < HEADER.size or head[:8] != FILE_MAGIC:
                raise CorruptError(f"{path} is no metadata pack", where=path)
            at, previous = HEADER_SIZE, None
            while True:
                record = read_record(fd, self._secret, at, previous)
                if record is None:
                    return
                yield record
                at, previous = record.end, record.hash
        finally:
            os.close(fd)

    def follows(self, number: int, sequence: int, previous: bytes) -> bool:
        """Whether a file's first record comes right behind the given one."""
        fd = os.open(self.path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            first = read_record(fd, self._secret, HEADER_SIZE, previous)
            return first is not None and first.sequence == sequence + 1
        finally:
            os.close(fd)

    def write_checkpoint(self, number: int, sequence: int, rows: Iterable[Change]) -> None:
        """A synced file with every row, all state up to `sequence`; the last record is empty."""
        path = self.checkpoint_path(number)
        temporary = f"{path}.new"
        fd = self._disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            head = HEADER.pack(FILE_MAGIC, self._uuid, number, sequence)
            self._disk.write_at(fd, head, 0, temporary)
            at, previous = HEADER_SIZE, GENESIS
            batch: list[Change] = []
            size = 0

            def flush() -> None:
                nonlocal at, previous, batch, size
                data, previous = encode_record(
                    self._secret, sequence, previous, encode_changes(batch)
                )
                self._disk.write_at(fd, data, at, temporary)
                at += len(data)
                batch, size = [], 0

            for row in rows:
                batch.append(row)
                size += len(row[1]) + len(row[2] or b"")
                if size >= 1 << 20:
                    flush()
            if batch:
                flush()
            flush()
            self._disk.sync(fd, temporary)
        finally:
            os.close(fd)
        self._disk.rename(temporary, path)
        self._disk.sync_dir(self.directory)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._file = -1, -1
