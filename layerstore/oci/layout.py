"""An OCI image layout directory, read (image-spec image-layout.md).

A blob's path is made from a parsed digest, never from text of a document. Links inside the directory
are followed, as others do (the user named the directory), but only regular files are read.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from ..digest import parse as parse_digest
from ..errors import InvalidInputError, NotFoundError
from . import jsonio
from .model import check_layout_version, parse_layout_index
from .sources import Root, choose, missing
from .transports import Transport

INDEX = "index.json"
VERSION = "oci-layout"
BLOBS = "blobs"


def blob_path(root: str, digest: str) -> str:
    """Where a layout keeps a blob. Raises InvalidInputError for what is no digest."""
    algorithm, raw = parse_digest(digest)
    return os.path.join(root, BLOBS, algorithm, raw.hex())


def read_small(path: str, limit: int, what: str) -> bytes:
    """A file of at most `limit` bytes. Raises LimitError, OSError."""
    with open_regular(path) as f:
        jsonio.check_size(os.fstat(f.fileno()).st_size, limit, what)
        data = f.read(limit + 1)
    jsonio.check_size(len(data), limit, what)
    return data


def open_regular(path: str) -> BinaryIO:
    """A regular file, unbuffered. A fifo or device in its place is refused rather than waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidInputError(f"{path} is no regular file", path=path)
        return open(fd, "rb", buffering=0)
    except BaseException:
        os.close(fd)
        raise


class LayoutSource:
    """Reads a layout directory. Raises NotFoundError where there is none."""

    waits = False

    def __init__(self, path: str) -> None:
        self._path = path
        self.where = f"layout {path}"
        if not os.path.isdir(path):
            raise NotFoundError(f"there is no directory {path}", path=path)
        for name in (VERSION, INDEX):
            if not os.path.lexists(os.path.join(path, name)):
                raise NotFoundError(f"{path} is no OCI layout: it has no {name}", path=path)
        version = os.path.join(path, VERSION)
        check_layout_version(read_small(version, 4096, version), version)
        index = os.path.join(path, INDEX)
        entries = parse_layout_index(read_small(index, jsonio.MAX_LAYOUT_INDEX, index), index)
        self.roots = [
            Root(e.descriptor, e.tag, () if e.full_name is None else (e.full_name,))
            for e in entries
        ]

    def size(self, digest: str) -> int | None:
        try:
            found = os.stat(blob_path(self._path, digest))
        except FileNotFoundError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def open(self, digest: str) -> BinaryIO:
        try:
            return open_regular(blob_path(self._path, digest))
        except FileNotFoundError as e:
            raise missing(self, digest, "which was there a moment ago") from e

    def pick(self, transport: Transport) -> list[Root]:
        return choose(self.where, self.roots, transport)

    def untagged(self) -> list[Root]:
        return [root for root in self.roots if not root.labels()]

    def close(self) -> None:
        """Nothing is held open."""
