"""Blobs into one operation: each once, in threads, counted, and checked against what configs say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import RawIOBase
from typing import TYPE_CHECKING, BinaryIO

from .. import mediatypes
from ..digest import algorithm_of
from ..errors import (
    BusyError,
    DigestMismatchError,
    InvalidInputError,
    LayerstoreError,
    StoreFullError,
)
from ..layers.inflate import DEFAULT_LIMIT
from ..values import BlobInfo, Descriptor, Edge, ProgressCallback
from .parallel import Meter

if TYPE_CHECKING:
    from ..layers.content import Content, Operation

Opener = Callable[[], AbstractContextManager[BinaryIO]]


def layer_problem(info: BlobInfo, diff_id: str | None) -> str | None:
    """What is wrong with a layer for a config that says `diff_id`; None if it is sound, or was not
    decoded yet. Another config may have said something else of the same blob, so what is on record is
    only taken where the comparison cannot be made."""
    if (
        info.diff_id is not None
        and diff_id is not None
        and algorithm_of(diff_id) == algorithm_of(info.diff_id)
    ):
        if info.diff_id == diff_id:
            return None
        return f"the layer's diff_id is {info.diff_id}, the config says {diff_id}"
    return info.problem


class Puts:
    """All puts of one import. Thread-safe. `new_bytes`: what each blob added to the store."""

    def __init__(
        self,
        op: Operation,
        meter: Meter,
        *,
        strict: bool = False,
        defer: bool = False,
        inflate_limit: int | None = None,
    ) -> None:
        self.op = op
        self.meter = meter
        self.strict = strict
        self._defer = defer
        self._limit = DEFAULT_LIMIT if inflate_limit is None else inflate_limit
        self._lock = threading.Lock()
        self.new_bytes: dict[str, int] = {}
        self._raw: dict[str, tuple[BlobInfo, str | None]] = {}

    def _note(self, info: BlobInfo, diff_id: str | None = None) -> BlobInfo:
        with self._lock:
            self.new_bytes[info.digest] = self.new_bytes.get(info.digest, 0) + info.new_bytes
            if "raw" in info.forms:
                self._raw[info.digest] = (info, diff_id)
        return info

    def optimize(self, content: Content, progress: ProgressCallback | None) -> str | None:
        """Optimizes what this import has put and is kept as it came, unless that was deferred. What it
        could not go on for, if it could not: the images are there all the same."""
        if self._defer or not self._raw:
            return None
        diff_ids = {digest: diff_id for digest, (_, diff_id) in self._raw.items() if diff_id}
        blobs = sorted((info for info, _ in self._raw.values()), key=lambda info: -info.bytes)
        try:
            outcomes = content.optimize(
                blobs, inflate_limit=self._limit, diff_ids=diff_ids, progress=progress
            )
        except (BusyError, StoreFullError) as e:
            return f"not optimized, run `layerstore optimize` later: {e.message}"
        for outcome in outcomes:
            self.new_bytes[outcome.blob.digest] += outcome.written - outcome.freed
        return None

    def blob(self, descriptor: Descriptor, diff_id: str | None, opener: Opener) -> BlobInfo:
        """Puts what a descriptor names; nothing is read when it is there already.

        Raises DigestMismatchError; with `strict` InvalidInputError for a layer that is not sound."""
        info = self.op.have(descriptor.digest)
        if info is not None:
            self.meter.add(info.bytes)
        else:
            info = self._put(descriptor, diff_id, opener)
        if info.bytes != descriptor.size:
            raise DigestMismatchError(
                f"blob {descriptor.digest} has {info.bytes} bytes, a descriptor says "
                f"{descriptor.size}",
                expected=descriptor.digest,
                got=f"{info.bytes} bytes",
            )
        if self.strict and mediatypes.is_layer(descriptor.media_type):
            problem = layer_problem(info, diff_id)
            if problem is not None:
                raise InvalidInputError(
                    f"layer {descriptor.digest}: {problem}",
                    digest=descriptor.digest,
                    reason=problem,
                )
        return info

    def _put(self, descriptor: Descriptor, diff_id: str | None, opener: Opener) -> BlobInfo:
        digest = descriptor.digest
        other = self._same_content(descriptor, diff_id)
        if other is not None:
            # Already here under a digest of another algorithm: read once to verify both, kept once.
            found = self._alias(descriptor, diff_id, opener, other, digest)
            if found is not None:
                return found
        elif (
            diff_id is not None
            and algorithm_of(diff_id) != algorithm_of(digest)
            and mediatypes.is_uncompressed(descriptor.media_type)
        ):
            # Its diff_id is another digest of the same bytes.
            found = self._alias(descriptor, diff_id, opener, digest, diff_id)
            if found is not None:
                return found
        return self._one(descriptor, diff_id, opener, digest=digest)

    def _alias(
        self,
        descriptor: Descriptor,
        diff_id: str | None,
        opener: Opener,
        digest: str,
        alias: str,
    ) -> BlobInfo | None:
        """Puts content under two digests; None if it is not the same content after all."""
        try:
            self._one(descriptor, diff_id, opener, digest=digest, alias=alias)
        except DigestMismatchError as e:
            if e.expected == descriptor.digest:
                raise
            return None
        return self.op.have(descriptor.digest)

    def _same_content(self, descriptor: Descriptor, diff_id: str | None) -> str | None:
        """A stored blob that may well have the same bytes, under another algorithm's digest."""
        if diff_id is None:
            return None
        algorithm = algorithm_of(descriptor.digest)
        for digest in self.op.have_layer(diff_id):
            if algorithm_of(digest) == algorithm:
                continue
            info = self.op.have(digest)
            if info is not None and info.bytes == descriptor.size:
                return digest
        return None

    def _one(
        self,
        descriptor: Descriptor,
        diff_id: str | None,
        opener: Opener,
        *,
        digest: str,
        alias: str | None = None,
    ) -> BlobInfo:
        with opener() as f:
            return self._note(
                self.op.put(
                    f,
                    digest=digest,
                    size=descriptor.size,
                    media_type=descriptor.media_type or mediatypes.OCTETS,
                    diff_id=diff_id,
                    inspect=not self._defer,
                    strict=self.strict,
                    aliases=() if alias is None else (alias,),
                    progress=self.meter.add,
                    limit=self._limit,
                    later=not self._defer,
                ),
                diff_id,
            )

    def document(
        self, data: bytes, digest: str, media_type: str, edges: Sequence[Edge]
    ) -> BlobInfo:
        """Puts a manifest or index, after all that it names."""
        info = self._note(
            self.op.put(
                data,
                digest=digest,
                size=len(data),
                media_type=media_type,
                edges=edges,
                inspect=False,
            )
        )
        named = {edge.digest for edge in self.op.edges(digest)}
        if not named >= {edge.digest for edge in edges}:
            # Without its edges the next gc would take what it names.
            raise LayerstoreError(
                f"manifest {digest} is stored, but not what it names: nothing was given a name",
                digest=digest,
            )
        self.meter.add(len(data))
        return info

    def streamed(
        self,
        f: BinaryIO | RawIOBase,
        size: int,
        media_type: str,
        digest: str | None = None,
        diff_id: str | None = None,
    ) -> BlobInfo:
        """Puts content of which little is known yet; `digest` None: nobody has told it."""
        return self._note(
            self.op.put(
                f,
                digest=digest,
                size=size,
                media_type=media_type,
                diff_id=diff_id,
                inspect=not self._defer,
                strict=self.strict and diff_id is not None,
                progress=self.meter.add,
                limit=self._limit,
            ),
            diff_id,
        )


def in_memory(data: bytes) -> Opener:
    """Bytes as something to open."""
    import io

    return lambda: nullcontext(io.BytesIO(data))
