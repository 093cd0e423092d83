"""`layers.content.Content` in memory: the same promises, simply kept.

The rooms of `oci` are tested against it where a test wants to see every put, to fail one, or to be
fast; the tests of whole imports and exports run against the real one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from layerstore.digest import algorithm_of, digest_of
from layerstore.errors import (
    DigestMismatchError,
    InvalidInputError,
    LimitError,
    NotFoundError,
)
from layerstore.values import BlobInfo, Edge, Ref


class FakeFile(io.BytesIO):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = len(data)

    def chunks(self) -> Iterator[memoryview]:
        data = self.getvalue()
        for at in range(0, len(data), 65536):
            yield memoryview(data)[at : at + 65536]


class FakeContent:
    """Blobs in a dict. `reads` counts the sources that were read, by digest."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.data: dict[str, bytes] = {}
        self.info: dict[str, BlobInfo] = {}
        self.edge: dict[str, tuple[Edge, ...]] = {}
        self.names: dict[str, Ref] = {}
        self.reads: list[str] = []
        self.before_read: Callable[[str | None], None] = lambda digest: None
        self.fail_on: str | None = None

    def optimize(self, blobs: Sequence[BlobInfo], **options: Any) -> list[Any]:
        """In memory nothing is kept in another form."""
        return []

    @contextmanager
    def operation(self) -> Iterator[Any]:
        yield FakeOperation(self)


class FakeOperation:
    def __init__(self, content: FakeContent) -> None:
        self.c = content

    def have(self, digest: str) -> BlobInfo | None:
        return self.c.info.get(digest)

    stat = have

    def have_layer(self, diff_id: str) -> tuple[str, ...]:
        return tuple(d for d, i in self.c.info.items() if i.diff_id == diff_id)

    def edges(self, digest: str) -> tuple[Edge, ...]:
        if digest not in self.c.info:
            raise NotFoundError(f"no blob {digest}", digest=digest)
        return self.c.edge.get(digest, ())

    def referrers(self, digest: str) -> list[str]:
        wanted = (digest, "subject")
        return sorted(
            d for d, es in self.c.edge.items() if any((e.digest, e.kind) == wanted for e in es)
        )

    def put(
        self,
        source: Any,
        *,
        digest: str | None = None,
        size: int | None = None,
        media_type: str = "application/octet-stream",
        diff_id: str | None = None,
        edges: Sequence[Edge] = (),
        inspect: bool = True,
        strict: bool = False,
        aliases: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
        limit: int = 1 << 40,
        later: bool = False,
    ) -> BlobInfo:
        c = self.c
        if digest is not None and digest in c.info and not aliases:
            if edges:
                c.edge[digest] = tuple(edges)
            return c.info[digest]
        c.before_read(digest)
        data = _read(source, size, progress)
        if c.fail_on is not None and digest == c.fail_on:
            raise OSError(5, "the disk is gone")
        if size is not None and len(data) != size:
            raise DigestMismatchError("size", expected=digest or str(size), got=str(len(data)))
        for name in (digest, *aliases):
            if name is not None and digest_of(data, algorithm_of(name)) != name:
                raise DigestMismatchError(f"digest is not {name}", expected=name, got="other")
        for edge in edges:
            if edge.kind == "child" and edge.digest not in c.info:
                raise InvalidInputError(f"{digest} names {edge.digest}", digest=edge.digest)
        name = digest or digest_of(data)
        found, problem = _inspect(data, diff_id, inspect)
        if problem and strict:
            raise InvalidInputError(problem)
        with c.lock:
            c.reads.append(name)
            new = 0 if name in c.data else len(data)
            info = BlobInfo(name, len(data), media_type, ("raw",), 0, new, found, problem)
            for one in (name, *aliases):
                c.data[one], c.info[one] = data, info
            if edges:
                c.edge[name] = tuple(edges)
        return info

    def open(self, digest: str) -> FakeFile:
        if digest not in self.c.data:
            raise NotFoundError(f"no blob {digest}", digest=digest)
        return FakeFile(self.c.data[digest])

    def read(self, digest: str, limit: int) -> bytes:
        data = self.open(digest).getvalue()
        if len(data) > limit:
            raise LimitError("too large", digest=digest)
        return data

    def commit_refs(self, set: Mapping[str, Ref], remove: Iterable[str] = ()) -> None:
        for ref in set.values():
            if ref.digest not in self.c.info:
                raise NotFoundError(f"no blob {ref.digest}", digest=ref.digest)
        self.c.names.update(set)
        for name in remove:
            del self.c.names[name]

    def ref(self, name: str) -> Ref | None:
        return self.c.names.get(name)

    def refs(self) -> list[Ref]:
        return [self.c.names[name] for name in sorted(self.c.names)]


def _read(source: Any, size: int | None, progress: Callable[[int], None] | None) -> bytes:
    if isinstance(source, bytes):
        return source
    parts = []
    pieces = iter(lambda: source.read(65536), b"") if hasattr(source, "read") else source
    for piece in pieces:
        parts.append(bytes(piece))
        if progress is not None:
            progress(len(piece))
        if size is not None and sum(map(len, parts)) > size:
            raise DigestMismatchError("longer", expected=str(size), got="more")
    return b"".join(parts)


def _inspect(data: bytes, diff_id: str | None, inspect: bool) -> tuple[str | None, str | None]:
    plain: bytes | None = data
    if data[:2] == b"\x1f\x8b":
        if not inspect:
            return None, None
        try:
            plain = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as e:
            return None, f"the layer does not decode: {e}"
    elif diff_id is None:
        return None, None
    assert plain is not None
    found = "sha256:" + hashlib.sha256(plain).hexdigest()
    if diff_id not in (None, found) and str(diff_id).startswith("sha256:"):
        return found, f"the layer's diff_id is {found}, the config says {diff_id}"
    return found, None
