"""The tar around an archive of images: its members in order, and the same written.

Not for layers: those are floor 1's and 3's, exact to the byte. This reads containers that skopeo,
podman, docker, umoci and tar write: v7, ustar, pax and GNU names and sizes. Sparse members are not
read. Every length is bounded before anything is read, and nothing is ever written under a member's
name.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ..errors import InvalidInputError, LimitError

BLOCK = 512
MAX_META = 1 << 20
"""Bytes of a long name or of pax records."""
MAX_NAME = 4096
MAX_SIZE = 1 << 62
WRITE = 1 << 20


class Stream(Protocol):
    """Bytes in order, from the start."""

    offset: int

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""

    def readinto(self, buffer: memoryview) -> int:
        """The same into a buffer."""

    def skip(self, size: int) -> int:
        """Passes over bytes; returns how many there were."""


class Pieces:
    """A stream over an iterator of bytes: a pipe, or what a decompressor gives."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self.offset = 0

    def _more(self) -> bool:
        while not len(self._rest):
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._rest = memoryview(piece)
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not len(buffer) or not self._more():
            return 0
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        self.offset += n
        return n

    def read(self, size: int) -> bytes:
        if not size or not self._more():
            return b""
        out = bytes(self._rest[:size])
        self._rest = self._rest[len(out) :]
        self.offset += len(out)
        return out

    def skip(self, size: int) -> int:
        left = size
        while left and self._more():
            n = min(left, len(self._rest))
            self._rest = self._rest[n:]
            self.offset += n
            left -= n
        return size - left


class FileStream:
    """A stream over a seekable file, by position: whoever else reads the file does not matter."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self.offset = 0

    def read(self, size: int) -> bytes:
        out = os.pread(self._fd, size, self.offset)
        self.offset += len(out)
        return out

    def readinto(self, buffer: memoryview) -> int:
        n = os.preadv(self._fd, [buffer], self.offset)
        self.offset += n
        return n

    def skip(self, size: int) -> int:
        n = min(size, max(0, self._size - self.offset))
        self.offset += n
        return n


class Window(io.RawIOBase):
    """A part of a seekable file as a file of its own; several may be read at once."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd = fd
        self._at = offset
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")[: self._left]  # type: ignore[arg-type]
        if not len(view):
            return 0
        n = os.preadv(self._fd, [view], self._at)
        self._at += n
        self._left -= n
        return n


@dataclass(frozen=True, slots=True)
class Member:
    """A member: `kind` one of file, dir, symlink, hardlink, other; `offset` of its content."""

    name: str
    kind: str
    size: int
    offset: int
    link: str = ""


class Body(io.RawIOBase):
    """The content of the member that a reader stands at. A stream that ends early is an error."""

    def __init__(self, stream: Stream, member: Member) -> None:
        super().__init__()
        self._stream = stream
        self._member = member
        self._peeked = memoryview(b"")
        self.left = member.size
        """Bytes that were not taken from the stream yet."""

    def readable(self) -> bool:
        return True

    def peek(self, size: int) -> bytes:
        """The first bytes (fewer at the end), which the next read gives again."""
        out = bytearray(self._peeked)
        while len(out) < size and self.left:
            piece = self._stream.read(min(size - len(out), self.left))
            if not piece:
                raise self._cut()
            self.left -= len(piece)
            out += piece
        self._peeked = memoryview(bytes(out))
        return bytes(out[:size])

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if len(self._peeked):
            n = min(len(view), len(self._peeked))
            view[:n] = self._peeked[:n]
            self._peeked = self._peeked[n:]
            return n
        view = view[: self.left]
        if not len(view):
            return 0
        n = self._stream.readinto(view)
        if not n:
            raise self._cut()
        self.left -= n
        return n

    def drain(self) -> None:
        """Passes over what is left."""
        if self._stream.skip(self.left) != self.left:
            raise self._cut()
        self.left = 0

    def _cut(self) -> InvalidInputError:
        return InvalidInputError(
            f"the archive ends at byte {self._stream.offset}, inside {self._member.name!r}",
            offset=self._stream.offset,
            reason="truncated",
        )


class TarReader:
    """Members one after another; `where` names the archive in errors."""

    def __init__(self, stream: Stream, where: str) -> None:
        self._stream = stream
        self._where = where
        self._global: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[Member, Body]]:
        """Each member with its content; what the caller leaves of it is passed over.

        Raises InvalidInputError with the offset."""
        while True:
            member = self._next()
            if member is None:
                return
            body = Body(self._stream, member)
            yield member, body
            body.drain()
            # A missing padding at the very end hurts nobody.
            self._stream.skip(-member.size % BLOCK)

    def _error(self, message: str, offset: int) -> InvalidInputError:
        return InvalidInputError(
            f"{self._where}: {message} at byte {offset}", offset=offset, reason=message
        )

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            piece = self._stream.read(left)
            if not piece:
                break
            parts.append(piece)
            left -= len(piece)
        return b"".join(parts)

    def _next(self) -> Member | None:
        local: dict[str, str] = {}
        name: str | None = None
        link: str | None = None
        metas = 0
        while True:
            at = self._stream.offset
            header = self._exactly(BLOCK)
            if not header or header.count(0) == len(header):
                # Two zero blocks end a tar; one does for everybody who reads such archives.
                return None
            if len(header) < BLOCK:
                raise self._error("the archive ends inside a header", at)
            self._check(header, at)
            kind = header[156:157]
            size = _number(header[124:136])
            if size is None or size > MAX_SIZE:
                raise self._error("a member has no valid size", at)
            if kind in b"xgLKX":
                metas += 1
                if metas > 8:
                    raise self._error("too many headers before one member", at)
                data = self._meta(size, at)
                if kind in b"xX":
                    local.update(self._pax(data, at))
                elif kind == b"g":
                    self._global.update(self._pax(data, at))
                elif kind == b"L":
                    name = self._text(data.partition(b"\0")[0], at)
                else:
                    link = self._text(data.partition(b"\0")[0], at)
                continue
            return self._member(header, kind, size, {**self._global, **local}, name, link)

    def _member(
        self,
        header: bytes,
        kind: bytes,
        size: int,
        pax: dict[str, str],
        name: str | None,
        link: str | None,
    ) -> Member:
        at = self._stream.offset
        if "size" in pax:
            if not (pax["size"].isascii() and pax["size"].isdigit() and len(pax["size"]) < 20):
                raise self._error("a pax size is no number", at)
            size = int(pax["size"])
        if name is None:
            plain = header[:100].partition(b"\0")[0]
            if header[257:263] == b"ustar\0":
                prefix = header[345:500].partition(b"\0")[0]
                plain = prefix + b"/" + plain if prefix else plain
            name = self._text(plain, at)
        name = pax.get("path", name)
        if link is None:
            link = self._text(header[157:257].partition(b"\0")[0], at)
        link = pax.get("linkpath", link)
        if len(name) > MAX_NAME or len(link) > MAX_NAME:
            # Longer than any path could be: none of ours, and not worth keeping.
            name, link = "", ""
        sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in pax)
        what = {b"1": "hardlink", b"2": "symlink", b"5": "dir"}.get(kind, "other")
        if kind in (b"0", b"\0", b"7") and not sparse:
            what = "dir" if name.endswith("/") else "file"
        if what in ("dir", "symlink", "hardlink") and kind != b"0":
            size = 0
        return Member(name, what, size, at, link)

    def _check(self, header: bytes, at: int) -> None:
        told = _number(header[148:156])
        blank = header[:148] + b" " * 8 + header[156:]
        signed = sum(b - 256 if b > 127 else b for b in blank)
        if told not in (sum(blank), signed):
            raise self._error("this is no tar header (its checksum is wrong)", at)

    def _meta(self, size: int, at: int) -> bytes:
        if size > MAX_META:
            raise LimitError(
                f"{self._where}: a name or pax header of {size} bytes at byte {at}, more than the "
                f"{MAX_META} that are read",
                offset=at,
            )
        data = self._exactly(size)
        if len(data) != size:
            raise self._error("the archive ends inside a name or pax header", at)
        self._stream.skip(-size % BLOCK)
        return data

    def _text(self, data: bytes, at: int) -> str:
        return data.decode("utf-8", "surrogateescape")

    def _pax(self, data: bytes, at: int) -> dict[str, str]:
        """Records `LENGTH KEY=VALUE\\n` (POSIX pax)."""
        out: dict[str, str] = {}
        rest = 0
        while rest < len(data):
            space = data.find(b" ", rest, rest + 20)
            digits = data[rest:space] if space > 0 else b""
            if not digits.isdigit():
                raise self._error("a pax record has no length", at)
            end = rest + int(digits)
            record = data[space + 1 : end]
            key, equals, value = record.partition(b"=")
            if end > len(data) or not record.endswith(b"\n") or not equals:
                raise self._error("a pax record is damaged", at)
            out[self._text(key, at)] = self._text(value[:-1], at)
            rest = end
        return out


def _number(field: bytes) -> int | None:
    """Octal, or GNU's base-256; None for neither."""
    if field[0] & 0x80:
        if field[0] not in (0x80, 0xFF):
            return None
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    text = field.strip(b" \0")
    if not text:
        return 0
    if text.strip(b"01234567"):
        return None
    return int(text, 8)


# ---- writing ----------------------------------------------------------------------------------


class Sink(Protocol):
    """Where a tar is written to."""

    def write(self, data: bytes | memoryview) -> object: ...


class TarWriter:
    """A tar of regular files, GNU format, the same bytes for the same input."""

    def __init__(self, sink: Sink, *, mtime: int = 0) -> None:
        self._sink = sink
        self._mtime = mtime
        self.size = 0

    def _write(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self.size += len(data)

    def header(self, name: str, size: int) -> bytes:
        """The header blocks of a file; as many for any size."""
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o644, self._mtime
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")

    def add(self, name: str, size: int, pieces: Iterable[bytes | memoryview]) -> None:
        """A file whose size is known. Raises InvalidInputError if it turns out to be another."""
        self._write(self.header(name, size))
        written = self._pieces(pieces)
        if written != size:
            raise InvalidInputError(f"{name} has {written} bytes, {size} were announced")

    def add_unsized(self, name: str, pieces: Iterable[bytes | memoryview], file: BinaryIO) -> int:
        """A file whose size is known only at its end: its header is written over in `file`, the
        seekable file that the sink writes to. Returns the size."""
        start = self.size
        self._write(self.header(name, 0))
        written = self._pieces(pieces)
        os.pwrite(file.fileno(), self.header(name, written), start)
        return written

    def _pieces(self, pieces: Iterable[bytes | memoryview]) -> int:
        written = 0
        for piece in pieces:
            self._write(piece)
            written += len(piece)
        self._write(bytes(-written % BLOCK))
        return written

    def finish(self) -> None:
        """The end of the archive, padded as tar does."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))
