"""The typed face of the tar scanner: what is in a tar, without unpacking it.

Understands v7, ustar, pax and GNU tars (csrc/tar.c says how, and what is decided where readers
differ). One C call per piece of input, the GIL free meanwhile; memory does not grow with the tar.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..errors import InvalidInputError
from ._layerstore import ffi, lib

Buffer = bytes | bytearray | memoryview

META: int = lib.LS_TAR_META
DATA: int = lib.LS_TAR_DATA
ENTRY: int = lib.LS_TAR_ENTRY

READ = 1 << 20
_EVENTS = 8192
_ENTRIES = 2048
_ARENA = lib.LS_TAR_SCRATCH + (1 << 20)
"""Takes any single entry (LS_TAR_SCRATCH and a little), and the entries of a usual MiB."""

_EVENT = struct.Struct("=IIQQ")
_ENTRY = struct.Struct("=4Qq2I2Q2I4B13I")
assert ffi.sizeof("ls_tar_entry") == _ENTRY.size
assert ffi.sizeof("ls_tar_event") == _EVENT.size

raw_new = ffi.new_allocator(should_clear_after_alloc=False)
"""Like ffi.new, but the memory is not touched: pages that are never used cost nothing."""


@runtime_checkable
class Readable(Protocol):
    """A binary file, as far as scanning needs it."""

    def read(self, size: int, /) -> bytes: ...


class Lost(NamedTuple):
    """Where the scanner stopped to understand a tar (bytes from its start), and why."""

    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry as its headers say, names as raw bytes. Offsets count from the start of the tar.

    `type`: `0` regular, `1` hard link, `2` symbolic link, `3` character device, `4` block device,
    `5` directory, `6` fifo, `7` contiguous (regular); others as they came. `size` is the file's,
    `stored_size` that of its payload in the tar: they differ for sparse files, whose `sparse_map`
    is a tuple of (offset, length). `problem`: headers that contradict each other, so that readers
    may see different things; who extracts should refuse. `after_end`: behind a zero block, where
    other readers have stopped."""

    header_offset: int
    data_offset: int
    stored_size: int
    size: int
    mtime_sec: int
    mtime_nsec: int
    mode: int
    uid: int
    gid: int
    devmajor: int
    devminor: int
    type: str
    problem: bool
    after_end: bool
    name: bytes
    linkname: bytes
    uname: bytes
    gname: bytes
    pax_global: bytes
    pax: bytes
    sparse_map: tuple[tuple[int, int], ...] | None

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return self.mtime_sec * 1_000_000_000 + self.mtime_nsec

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Pax records (key, value) in order, global ones first; what is malformed ends them."""
        yield from _records(self.pax_global)
        yield from _records(self.pax)

    @property
    def xattrs(self) -> dict[str, bytes]:
        """Extended attributes from SCHILY.xattr.* (GNU tar, Go, star) and LIBARCHIVE.xattr.*
        records (name percent-encoded, value in base64); SCHILY's win. Names that are no UTF-8 hold
        surrogate escapes."""
        if not self.pax and not self.pax_global:
            return {}
        schily: dict[str, bytes] = {}
        libarchive: dict[str, bytes] = {}
        for key, value in self.records():
            if key.startswith(b"SCHILY.xattr."):
                schily[_text(key[13:])] = value
            elif key.startswith(b"LIBARCHIVE.xattr."):
                decoded = _base64(value)
                if decoded is not None:
                    from urllib.parse import unquote_to_bytes

                    libarchive[_text(unquote_to_bytes(key[17:]))] = decoded
        return {**libarchive, **schily} if libarchive else schily


TarEvent = tuple[int, int, int, TarEntry | None]
"""Kind (META, DATA or ENTRY), offset in what was fed, length, the entry of an ENTRY."""


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _base64(value: bytes) -> bytes | None:
    """Libarchive leaves the padding out. None for what is no base64: an attribute that cannot be
    told is no attribute."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        return None


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 11)
        if blank < 0 or not data[at:blank].isdigit():
            return
        end = at + int(data[at:blank])
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if end > len(data) or not equals or data[end - 1 : end] != b"\n":
            return
        yield key, value
        at = end


class TarScanner:
    """A tar as it streams by: feed it in pieces of any size, in order, to the end.

    Its memory is bounded: about 2.4 MiB for the largest metadata that one entry may have, and the
    arrays that a call fills."""

    def __init__(self) -> None:
        self._state = raw_new("char[]", lib.ls_tar_sizeof())
        self._scratch = raw_new("uint8_t[]", lib.LS_TAR_SCRATCH)
        self._tar: Any = ffi.cast("ls_tar *", self._state)
        lib.ls_tar_init(self._tar, self._scratch, lib.LS_TAR_SCRATCH)
        self._events = raw_new("ls_tar_event[]", _EVENTS)
        self._entries = raw_new("ls_tar_entry[]", _ENTRIES)
        self._arena = raw_new("uint8_t[]", _ARENA)
        self._out = ffi.new("ls_tar_out *")
        self._err = ffi.new("ls_error *")
        self._global = b""

    def feed(self, data: Buffer, final: bool = False) -> list[TarEntry]:
        """The entries whose headers end in `data`. `final`: the tar ends after it."""
        entries: list[TarEntry] = []
        for _ in self._calls(data, final):
            entries += self._made()
        return entries

    def feed_events(self, data: Buffer, final: bool = False) -> list[TarEvent]:
        """All that is in `data`, in order: runs of metadata, of payload, and entries."""
        events: list[TarEvent] = []
        for start in self._calls(data, final):
            entries = self._made()
            view = ffi.buffer(self._events, self._out.n_events * _EVENT.size)
            for kind, index, offset, length in _EVENT.iter_unpack(view):
                if kind == ENTRY:
                    events.append((kind, 0, 0, entries[index]))
                else:
                    events.append((kind, start + offset, length, None))
        return events

    @property
    def lost(self) -> Lost | None:
        """Where and why the scanner understood no more, or None."""
        if not lib.ls_tar_lost(self._tar, self._err):
            return None
        return Lost(self._err.offset, ffi.string(self._err.reason).decode())

    @property
    def complete(self) -> bool:
        """The end (two zero blocks) was seen, or the tar ended where an entry does."""
        return bool(lib.ls_tar_complete(self._tar))

    def _calls(self, data: Buffer, final: bool) -> Iterator[int]:
        """Calls C until all is taken; gives where in `data` each call's part begins."""
        source = ffi.from_buffer("uint8_t[]", data)
        size = len(source)
        at = 0
        out = self._out
        while True:
            code = lib.ls_tar_feed(
                self._tar,
                source + at,
                size - at,
                final,
                self._events,
                _EVENTS,
                self._entries,
                _ENTRIES,
                self._arena,
                _ARENA,
                out,
                self._err,
            )
            if code != lib.LS_OK:
                raise InvalidInputError(
                    f"the tar scanner refused: {ffi.string(self._err.reason).decode()}",
                    offset=self._err.offset,
                )
            yield at
            at += out.used
            # An entry may wait when the arrays were full: then a call gives less than nothing new.
            if at == size and not (out.n_entries or out.n_events):
                return

    def _made(self) -> list[TarEntry]:
        """The entries that the last call filled."""
        n = self._out.n_entries
        if not n:
            return []
        arena = memoryview(ffi.buffer(self._arena, self._out.arena_used)).tobytes()
        made = []
        for (
            header, data, stored, size, sec, nsec, mode, uid, gid, major, minor,
            kind, sparse, problem, after_end,
            name, name_n, link, link_n, uname, uname_n, gname, gname_n, pax, pax_n,
            holes, holes_n, global_n,
        ) in _ENTRY.iter_unpack(ffi.buffer(self._entries, n * _ENTRY.size)):  # fmt: skip
            split = pax + global_n
            # One object for all entries: a hostile tar has many entries under large records.
            if arena[pax:split] != self._global:
                self._global = arena[pax:split]
            made.append(
                TarEntry(
                    header, data, stored, size, sec, nsec, mode, uid, gid, major, minor,
                    chr(kind), problem != 0, after_end != 0,
                    arena[name : name + name_n], arena[link : link + link_n],
                    arena[uname : uname + uname_n], arena[gname : gname + gname_n],
                    self._global, arena[split : pax + pax_n],
                    _map(arena[holes : holes + holes_n]) if sparse else None,
                )
            )  # fmt: skip
        return made


def _map(data: bytes) -> tuple[tuple[int, int], ...]:
    return tuple(struct.iter_unpack("<QQ", data))


def _pieces(source: Readable | Iterable[Buffer]) -> Iterator[Buffer]:
    if isinstance(source, Readable):
        while data := source.read(READ):
            yield data
    else:
        yield from source


def scan(
    source: Readable | Iterable[Buffer], *, beyond_end: bool = False, strict: bool = True
) -> Iterator[TarEntry]:
    """The entries of a tar, in order, from a binary file or pieces of bytes.

    Ends where other readers do, at the first zero block, unless `beyond_end`. Raises
    InvalidInputError with offset and reason, after the entries before it, where the tar is not
    understood any more or is cut off; not if `strict` is off."""
    scanner = TarScanner()
    size = 0
    for piece in _pieces(source):
        size += len(piece)
        for entry in scanner.feed(piece):
            if entry.after_end and not beyond_end:
                return
            yield entry
    scanner.feed(b"", final=True)
    if not strict or scanner.complete:
        return
    lost = scanner.lost or Lost(size, "the tar is cut off")
    raise InvalidInputError(
        f"not a whole tar, at byte {lost.offset}: {lost.reason}",
        offset=lost.offset,
        reason=lost.reason,
    )


def looks_like_tar(start: Buffer) -> bool:
    """Whether the first 512 bytes are a tar header (by checksum)."""
    block = bytes(start[:512])
    if len(block) < 512 or not any(block):
        return False
    scanner = TarScanner()
    scanner.feed(block)
    return scanner.lost is None


_HOLE = bytes(1 << 18)


def expand_sparse(
    sparse_map: Sequence[tuple[int, int]], size: int, stored: Iterable[Buffer]
) -> Iterator[bytes]:
    """The content of a sparse file from its stored payload, holes as zeros, in pieces of at most
    256 KiB or of the payload's. Raises InvalidInputError where map, size and payload do not fit."""
    pieces = iter(stored)
    rest = memoryview(b"")
    at = 0
    for offset, length in [*sparse_map, (size, 0)]:
        if offset < at or offset + length > size:
            raise InvalidInputError("a sparse file's map is out of order", offset=at)
        yield from _zeros(offset - at)
        at = offset + length
        while length:
            if not len(rest):
                piece = next(pieces, None)
                if piece is None:
                    raise InvalidInputError("a sparse file's payload ends early", offset=offset)
                rest = memoryview(piece)
                continue
            part = rest[:length]
            rest = rest[length:]
            length -= len(part)
            yield bytes(part)
    if len(rest) or next((p for p in pieces if len(p)), None) is not None:
        raise InvalidInputError("a sparse file's payload is longer than its map", offset=size)


def _zeros(n: int) -> Iterator[bytes]:
    while n > 0:
        yield _HOLE if n >= len(_HOLE) else _HOLE[:n]
        n -= len(_HOLE)
