"""The members of an archive by path: read by position, or streamed into the store as they come.

A plain tar in a file is indexed once, and blobs are then read in parallel, by offset. A pipe, or a
compressed archive, is read once from beginning to end: blobs may come before the index that names them,
so they go into the store right away, verified by the digest in their name, and JSON documents into a
temporary file until it is known what they are.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from .. import mediatypes
from ..digest import parse as parse_digest
from ..errors import InvalidInputError, LimitError, NotFoundError
from ..layers.inflate import compression_of, inflate
from . import jsonio
from .puts import Puts
from .tario import Body, FileStream, Member, Pieces, TarReader, Window

if TYPE_CHECKING:
    from ..layers.content import Operation

MAX_MEMBERS = 200_000
MAX_SPOOL = 256 << 20
READ = 1 << 20
MAX_LINKS = 10
DOCUMENTS = frozenset({"index.json", "oci-layout", "manifest.json", "repositories"})
_BLOB = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)\Z")
_LAYER = re.compile(r"(?:.+/)?[^/]+\.tar(?:\.gz|\.zst)?\Z")
_JSON = re.compile(r"[^/]+\.json\Z|[^/]+/json\Z")


class Members(Protocol):
    """What both kinds of archive answer. Paths are those in the tar, without a leading `./`."""

    where: str

    def size(self, path: str) -> int | None:
        """Bytes of a regular file (links followed), or None."""

    def digest(self, path: str) -> str | None:
        """Its digest, where it went into the store already."""

    def open(self, path: str) -> BinaryIO: ...

    def read(self, path: str, limit: int) -> bytes:
        """A small file whole. Raises NotFoundError, LimitError."""

    def close(self) -> None: ...


def normal(name: str) -> str:
    """A member's name without `./`; empty for one that leads outside or nowhere."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    if name.startswith("/") or "\0" in name:
        return ""
    clean = posixpath.normpath(name) if name else ""
    return "" if clean.startswith("..") or clean == "." else clean


class _Table:
    """Names, links, and what is refused: two documents of one name, too many members."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.links: dict[str, str] = {}
        self.seen: set[str] = set()
        self._count = 0

    def enter(self, member: Member) -> str:
        """The path under which a regular file counts; empty for all else."""
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise LimitError(f"{self.where} has more than {MAX_MEMBERS} members")
        path = normal(member.name)
        if not path:
            return ""
        if member.kind == "symlink":
            self.links[path] = normal(posixpath.join(posixpath.dirname(path), member.link))
        elif member.kind == "hardlink":
            self.links[path] = normal(member.link)
        elif member.kind == "file":
            if path in DOCUMENTS:
                if path in self.seen:
                    raise InvalidInputError(
                        f"{self.where} holds two members {path}", reason="same name", path=path
                    )
                self.seen.add(path)
            return path
        return ""

    def target(self, path: str) -> str:
        """Where the links of a path lead."""
        for _ in range(MAX_LINKS):
            if path not in self.links:
                break
            path = self.links[path]
        return path


class IndexedTar:
    """A plain tar in a seekable file. Takes over the descriptor."""

    def __init__(self, fd: int, where: str) -> None:
        self.where = where
        self._fd = fd
        self._table = _Table(where)
        self._places: dict[str, tuple[int, int]] = {}
        try:
            for member, _ in TarReader(FileStream(fd), where):
                path = self._table.enter(member)
                if path:
                    self._places[path] = (member.offset, member.size)
        except BaseException:
            os.close(fd)
            raise

    def _place(self, path: str) -> tuple[int, int] | None:
        return self._places.get(self._table.target(path))

    def size(self, path: str) -> int | None:
        place = self._place(path)
        return None if place is None else place[1]

    def digest(self, path: str) -> str | None:
        return None

    def open(self, path: str) -> BinaryIO:
        place = self._place(path)
        if place is None:
            raise not_there(self, path)
        return Window(self._fd, *place)  # type: ignore[return-value]

    def read(self, path: str, limit: int) -> bytes:
        return read_member(self, path, limit)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class _Stored:
    digest: str
    size: int


class StreamedTar:
    """An archive that can be read only once; when it is made, it was read to its end."""

    def __init__(self, pieces: Iterator[bytes], where: str, puts: Puts) -> None:
        self.where = where
        self._puts = puts
        self._op: Operation = puts.op
        self._table = _Table(where)
        self._stored: dict[str, _Stored] = {}
        self._spooled: dict[str, tuple[int, int]] = {}
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._spool_size = 0
        try:
            for member, body in TarReader(Pieces(pieces), where):
                path = self._table.enter(member)
                if path:
                    self._take(path, member, body)
            for _ in pieces:
                # To the end, so that whoever writes the pipe does not die of it.
                pass
        except BaseException:
            self.close()
            raise

    def _take(self, path: str, member: Member, body: Body) -> None:
        match = _BLOB.match(path)
        if match is not None:
            digest = f"{match.group(1)}:{match.group(2)}"
            try:
                parse_digest(digest)
            except InvalidInputError:
                # Some other tool's file: nothing that a manifest could name.
                return
            small = member.size <= min(jsonio.MAX_MANIFEST, MAX_SPOOL - self._spool_size)
            if small and body.peek(1) == b"{":
                self._keep(path, member, body)
                return
            self._put(path, member, body, digest)
        elif path in DOCUMENTS:
            jsonio.check_size(member.size, jsonio.MAX_LAYOUT_INDEX, f"{self.where}: {path}")
            self._keep(path, member, body)
        elif _JSON.match(path):
            jsonio.check_size(member.size, jsonio.MAX_CONFIG, f"{self.where}: {path}")
            self._keep(path, member, body)
        elif _LAYER.match(path):
            self._put(path, member, body, None)

    def _keep(self, path: str, member: Member, body: Body) -> None:
        start = self._spool_size
        if start + member.size > 2 * MAX_SPOOL:
            raise LimitError(f"{self.where} holds more than {2 * MAX_SPOOL} bytes of JSON")
        while piece := body.read(READ):
            self._spool.write(piece)
            self._spool_size += len(piece)
        self._spooled[path] = (start, member.size)

    def _put(self, path: str, member: Member, body: Body, digest: str | None) -> None:
        known = None if digest is None else self._op.have(digest)
        if known is not None and known.bytes == member.size:
            self._puts.meter.add(member.size)
            self._stored[path] = _Stored(known.digest, known.bytes)
            return
        # The media type is not known yet; a layer is looked into only if it says that it is one.
        media_type = guess_layer(body.peek(8)) if member.size else mediatypes.OCTETS
        info = self._puts.streamed(body, member.size, media_type, digest)
        self._stored[path] = _Stored(info.digest, info.bytes)

    def size(self, path: str) -> int | None:
        path = self._table.target(path)
        if path in self._stored:
            return self._stored[path].size
        return self._spooled[path][1] if path in self._spooled else None

    def digest(self, path: str) -> str | None:
        found = self._stored.get(self._table.target(path))
        return None if found is None else found.digest

    def open(self, path: str) -> BinaryIO:
        path = self._table.target(path)
        if path in self._stored:
            return self._op.open(self._stored[path].digest)  # type: ignore[return-value]
        if path not in self._spooled:
            raise not_there(self, path)
        offset, size = self._spooled[path]
        self._spool.flush()
        return Window(self._spool.fileno(), offset, size)  # type: ignore[return-value]

    def read(self, path: str, limit: int) -> bytes:
        return read_member(self, path, limit)

    def close(self) -> None:
        self._spool.close()


def guess_layer(start: bytes) -> str:
    """A media type for a blob of which only the first bytes are known."""
    kind = compression_of(start)
    if kind == "gzip":
        return mediatypes.OCI_LAYER_GZIP
    return mediatypes.OCI_LAYER_ZSTD if kind == "zstd" else mediatypes.OCTETS


def not_there(members: Members, path: str) -> NotFoundError:
    return NotFoundError(f"{members.where} has no member {path}", path=path)


def read_member(members: Members, path: str, limit: int) -> bytes:
    """A member whole, bounded."""
    size = members.size(path)
    if size is None:
        raise not_there(members, path)
    jsonio.check_size(size, limit, f"{members.where}: {path}")
    with members.open(path) as f:
        parts = []
        while piece := f.read(READ):
            parts.append(bytes(piece))
    data = b"".join(parts)
    if len(data) != size:
        raise InvalidInputError(
            f"{members.where} ends inside {path}", path=path, reason="truncated"
        )
    return data


# ---- opening ----------------------------------------------------------------------------------


def open_members(path: str, puts: Puts) -> Members:
    """The archive in a file, or in standard input for `-`. Raises NotFoundError, InvalidInputError."""
    where = "the archive from standard input" if path == "-" else f"archive {path}"
    fd = _open_fd(path)
    if _is_plain_file(fd):
        return IndexedTar(fd, where)
    try:
        with open(fd, "rb", buffering=0, closefd=False) as f:
            return StreamedTar(pieces_of(f, where), where, puts)
    finally:
        os.close(fd)


def open_indexed(path: str) -> IndexedTar:
    """The same by position always: what cannot be is copied to a temporary file first."""
    where = "the archive from standard input" if path == "-" else f"archive {path}"
    fd = _open_fd(path)
    if _is_plain_file(fd):
        return IndexedTar(fd, where)
    try:
        with (
            open(fd, "rb", buffering=0, closefd=False) as f,
            tempfile.TemporaryFile(buffering=0) as copy,
        ):
            for piece in pieces_of(f, where):
                _write(copy.fileno(), piece)
            return IndexedTar(os.dup(copy.fileno()), where)
    finally:
        os.close(fd)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _open_fd(path: str) -> int:
    if path == "-":
        return os.dup(0)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise NotFoundError(f"there is no archive {path}", path=path) from e
    except IsADirectoryError as e:
        raise InvalidInputError(f"{path} is a directory, not an archive", path=path) from e


def _is_plain_file(fd: int) -> bool:
    """Whether it can be read by position, and begins as an uncompressed tar does."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        os.close(fd)
        raise InvalidInputError("this is a directory, not an archive; for a layout take oci:DIR")
    if not stat.S_ISREG(mode):
        return False
    with contextlib.suppress(OSError):
        if os.lseek(fd, 0, os.SEEK_CUR) != 0:
            # Handed over by a shell that read some of it.
            return False
    return compression_of(os.pread(fd, 8, 0)) is None


def pieces_of(f: BinaryIO, where: str) -> Iterator[bytes]:
    """The uncompressed bytes of an archive."""
    first = b""
    while len(first) < 8 and (piece := f.read(8 - len(first))):
        first += piece
    if not first:
        raise InvalidInputError(f"{where} is empty", offset=0, reason="truncated")
    kind = compression_of(first)
    pieces = _pieces(first, f)
    if kind is None:
        return pieces
    return inflate(pieces, kind)


def _pieces(first: bytes, f: BinaryIO) -> Iterator[bytes]:
    yield first
    while piece := f.read(READ):
        yield piece
