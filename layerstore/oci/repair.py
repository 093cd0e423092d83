"""Where `check --repair-from` takes bytes from: any transport, by digest.

A damaged blob is looked for under its digests, and by its diff_id: an uncompressed layer is also to be
had from a compressed one that decodes to it. What a source gives is verified as any put is; a source
that is damaged itself heals what it can.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, BinaryIO, Protocol

from ..errors import DigestMismatchError, InvalidInputError, LayerstoreError, NotFoundError
from ..layers.inflate import compression_of, inflate
from ..remote.options import RemoteOptions
from ..storage.rows import BlobRow
from ..values import Descriptor
from . import jsonio
from .archive import INDEX, LISTING, OciArchive, docker_listing
from .docker import saved
from .images import diff_ids
from .layout import LayoutSource
from .members import Members, normal, open_indexed
from .model import Manifest, parse_config, parse_document
from .plan import MAX_NESTING, read_exactly
from .registry_repair import RegistryGiver
from .sources import Root
from .transports import OCI, Transport, parse

if TYPE_CHECKING:
    from ..layers.content import Content, Operation

READ = 1 << 20
Packed = Callable[[], dict[str, list[str]]]
"""Compressed layers by the diff_id that they decode to."""


class Giver(Protocol):
    """Blobs by digest, unverified."""

    def size(self, digest: str) -> int | None: ...

    def open(self, digest: str) -> BinaryIO: ...

    def close(self) -> None: ...


def repair_source(
    transport: str, remote: RemoteOptions | None = None
) -> Callable[[Content, Sequence[BlobRow]], None]:
    """A function that puts those of the given blobs again whose bytes the transport has. `remote`: how
    a registry is spoken to.

    An archive that is compressed, or comes from a pipe, is copied to a temporary file first. Raises
    InvalidInputError and UnsupportedError for what is no transport, NotFoundError for one that is not
    there: now, and not after a check of hours."""
    where = parse(transport)
    _look(where, remote)

    def repair(content: Content, damaged: Sequence[BlobRow]) -> None:
        giver, roots = _open(where, remote)
        with closing(giver), content.operation() as op:
            # Looked at only once a digest was not to be had by itself: a registry has many tags.
            packed = functools.cache(lambda: _by_diff_id(giver, roots()))
            for row in damaged:
                _one(op, giver, row, packed)

    return repair


def _look(where: Transport, remote: RemoteOptions | None) -> None:
    if where.kind == OCI:
        LayoutSource(where.path)
    elif where.place is not None:
        with closing(RegistryGiver(where.place, remote)) as giver:
            giver.look()
    elif not where.pipe and not os.path.exists(where.path):
        raise NotFoundError(f"there is no archive {where.path}", path=where.path)


def _open(
    where: Transport, remote: RemoteOptions | None
) -> tuple[Giver, Callable[[], Sequence[Root]]]:
    if where.place is not None:
        registry = RegistryGiver(where.place, remote)
        return registry, registry.roots
    if where.kind == OCI:
        layout = LayoutSource(where.path)
        return layout, lambda: layout.roots
    members = open_indexed(where.path)
    try:
        if members.size(INDEX) is None:
            return _DockerBlobs(members), tuple
        archive = OciArchive(members)
        return archive, lambda: archive.roots
    except BaseException:
        members.close()
        raise


def _one(op: Operation, giver: Giver, row: BlobRow, packed: Packed) -> None:
    edges = op.edges(row.digest)
    for pieces in _offers(giver, row, packed):
        try:
            op.put(
                pieces,
                digest=row.digest,
                size=row.size,
                media_type=row.media_type,
                edges=edges,
                inspect=False,
            )
            return
        except (DigestMismatchError, InvalidInputError, NotFoundError):
            # The source is damaged here, too: there may be another place.
            continue


def _offers(giver: Giver, row: BlobRow, packed: Packed) -> Iterator[Iterable[bytes]]:
    """The bytes that a row needs, from each place that may have them."""
    with ExitStack() as stack:
        for digest in row.digests:
            if giver.size(digest) == row.size:
                yield _pieces(stack.enter_context(giver.open(digest)))
        for digest in row.digests:
            for layer in packed().get(digest, ()):
                with giver.open(layer) as f:
                    kind = compression_of(f.read(8))
                if kind is not None:
                    yield inflate(_pieces(stack.enter_context(giver.open(layer))), kind)


def _pieces(f: BinaryIO) -> Iterator[bytes]:
    while piece := f.read(READ):
        yield piece


def _by_diff_id(giver: Giver, roots: Iterable[Root]) -> dict[str, list[str]]:
    """The layers of a source's images by what their configs say that they decode to."""
    out: dict[str, list[str]] = {}
    seen: set[str] = set()
    todo = [(root.descriptor, 0) for root in roots]
    while todo:
        descriptor, depth = todo.pop()
        if descriptor.digest in seen or depth > MAX_NESTING:
            continue
        seen.add(descriptor.digest)
        try:
            data = _small(giver, descriptor, jsonio.MAX_MANIFEST)
            document = parse_document(data, descriptor.media_type, descriptor.digest)
            if not isinstance(document, Manifest):
                todo += [(child, depth + 1) for child in document.manifests]
                continue
            if document.config is None or not document.is_image:
                continue
            config = parse_config(_small(giver, document.config, jsonio.MAX_CONFIG))
        except LayerstoreError:
            # Incomplete or damaged: then its layers are found by their own digests only.
            continue
        for layer, diff_id in zip(document.layers, diff_ids(document, config), strict=True):
            if diff_id is not None and giver.size(layer.digest) is not None:
                out.setdefault(diff_id, []).append(layer.digest)
    return out


def _small(giver: Giver, descriptor: Descriptor, limit: int) -> bytes:
    jsonio.check_size(descriptor.size, limit, f"blob {descriptor.digest}", descriptor.digest)
    with giver.open(descriptor.digest) as f:
        return read_exactly(f, descriptor.size, descriptor.digest)


class _DockerBlobs:
    """Configs and layers of docker's own archive format by the digests of what is there."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._paths: dict[str, str] = {}
        paths = {path for one in saved(members) for path in one.layers}
        if members.size(LISTING) is not None:
            paths |= {normal(str(item["Config"])) for item in docker_listing(members)}
        for path in sorted(paths):
            if members.size(path) is None:
                continue
            h = hashlib.sha256()
            with members.open(path) as f:
                for piece in _pieces(f):
                    h.update(piece)
            self._paths[f"sha256:{h.hexdigest()}"] = path

    def size(self, digest: str) -> int | None:
        path = self._paths.get(digest)
        return None if path is None else self._members.size(path)

    def open(self, digest: str) -> BinaryIO:
        return self._members.open(self._paths[digest])

    def close(self) -> None:
        self._members.close()
