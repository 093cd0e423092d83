"""Layers of an image as they go into the merged tree: headers only, content stays where it is.

A layer that the store has cut into chunks gives its header stream. One that is made from a tar (form
`gzip`), or whose tar lies in the store as a layer of its own, counts as that tar: nothing is encoded or
inflated for it. What is left is inflated, and can be kept for who wants the content, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..core.tree import LayerTree
from ..errors import InvalidInputError, NotFoundError
from ..storage.reading import Chunks
from ..storage.rows import BlobRow
from ..storage.storage import Storage
from .assemble import BlobFile, inner_of
from .content import Operation
from .hashpipe import HashPipe
from .inflate import compression_of
from .spool import Spool
from .tree import tar_bytes


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer by its blob's digest; `diff_id` as the image's config says, where it does."""

    digest: str
    diff_id: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a layer's content comes from: `tar`, a blob of that form, else `spool`, or by inflating
    the layer again."""

    digest: str
    row: BlobRow
    tar: BlobRow | None
    spool: Spool | None = None

    @property
    def name(self) -> str:
        """The digest of the layer's tar where it is known, else the layer's: the same name, the same
        entries at the same offsets."""
        if self.tar is not None:
            return self.tar.digest
        return self.row.diff_id or self.digest

    def close(self) -> None:
        """Lets go what was kept of the layer; it can be read still."""
        if self.spool is not None:
            self.spool.close()


def add_layer(
    storage: Storage, op: Operation, layer: Layer, tree: LayerTree, *, keep: bool = False
) -> Source:
    """Adds the next layer to a tree. `keep`: what has to be inflated is kept until the source is
    closed. Raises InvalidInputError for a layer with a recorded problem, and
    as LayerTree does, with the layer's digest; NotFoundError."""
    with op.open(layer.digest) as blob:
        row = blob.row
        problem = _problem(row, layer)
        if problem is not None:
            raise InvalidInputError(
                f"layer {layer.digest}: {problem}", digest=layer.digest, reason=problem
            )
        tar = _tar_of(storage, op, row)
        spool = Spool(storage.path) if keep and tar is None and _is_compressed(blob) else None
        source = Source(layer.digest, row, tar, spool)
        try:
            _add(storage, blob, layer, source, tree)
        except BaseException as e:
            source.close()
            if not isinstance(e, InvalidInputError):
                raise
            raise InvalidInputError(
                f"layer {layer.digest}: {e.message}",
                digest=layer.digest,
                path=e.path,
                offset=e.offset,
                reason=e.reason,
            ) from e
    return source


def _is_compressed(blob: BlobFile) -> bool:
    kind = compression_of(blob.read(8) or b"")
    blob.seek(0)
    return kind is not None


def _problem(row: BlobRow, layer: Layer) -> str | None:
    """Why a layer is refused. What counts is what this image's config says, where both are known."""
    if layer.diff_id is None or row.diff_id is None:
        return row.problem
    if row.diff_id == layer.diff_id:
        return None
    return f"the layer's diff_id is {row.diff_id}, the config says {layer.diff_id}"


def _tar_of(storage: Storage, op: Operation, row: BlobRow) -> BlobRow | None:
    """The row of form `tar` with the bytes of a layer's tar, if there is one."""
    if row.tar is not None:
        return row
    if row.gzip is not None and (row.gzip.proven or row.raw is None):
        inner = inner_of(storage, row)[1]
        return inner if inner.tar is not None else None
    if row.diff_id is None or row.diff_id in row.digests:
        return None
    try:
        with op.open(row.diff_id) as blob:
            return blob.row if blob.row.tar is not None else None
    except NotFoundError:
        return None


def _add(storage: Storage, blob: BlobFile, layer: Layer, source: Source, tree: LayerTree) -> None:
    if source.tar is not None and source.tar.tar is not None:
        tar, chunks = source.tar.tar, storage.chunks
        head = _views(chunks, chunks.iter_runs(tar.head))
        tree.add_split(head, chunks.read_stream(tar.marks), tar.content.size)
        return
    # Not looked into yet (import --defer): whether it is what the config says shows now.
    unknown = layer.diff_id is not None and blob.row.diff_id is None
    names = [layer.diff_id.partition(":")[0]] if unknown and layer.diff_id else []
    pieces = tar_bytes(blob)
    if source.spool is not None:
        pieces = source.spool.keep(pieces)
    with HashPipe(names) as hashes:
        tree.add_tar(_hashed(pieces, hashes) if names else pieces)
        if names and (got := hashes.digests()[names[0]]) != layer.diff_id:
            reason = f"the layer's diff_id is {got}, the config says {layer.diff_id}"
            raise InvalidInputError(reason, reason=reason)


def _hashed(pieces: Iterable[bytes | memoryview], hashes: HashPipe) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        done = hashes.feed(piece)
        yield piece
        if done is not None:
            done.result()


def _views(chunks: Chunks, runs: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
    for data, offset, size in chunks.slices(runs):
        yield memoryview(data)[offset : offset + size]
