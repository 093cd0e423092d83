"""Copy: from any transport to any other, and nothing keeps a name here.

From registry to registry bytes stream through, verified on the way, and only those that the target does
not have; the store is written to by no byte, but gives what it has. Everything else goes through the
store, held until the handle is closed, and is written out as an export is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING

from ..digest import Hasher, hasher
from ..digest import parse as parse_digest
from ..errors import DigestMismatchError, InvalidInputError
from ..remote.blobs import READ, RemoteBlob, Stored
from ..remote.options import RemoteOptions
from ..values import Descriptor, ImageInfo, ProgressCallback, Ref
from . import exporting, importing, parallel, references, registry_writer
from .closure import Closure, Written, referrer_of
from .plan import Node, Plan
from .registry_source import RegistrySource
from .sources import Root
from .transports import DOCKER, Transport

if TYPE_CHECKING:
    from ..layers.content import Content, Operation


def copy_images(
    content: Content,
    source: Transport,
    target: Transport,
    *,
    all: bool = False,
    platform: str | None = None,
    referrers: bool = False,
    source_remote: RemoteOptions | None = None,
    target_remote: RemoteOptions | None = None,
    progress: ProgressCallback | None = None,
    jobs: int | None = None,
) -> list[ImageInfo]:
    """Copies one image, or with `all` every one, with its bytes and digests. Each keeps its tag, unless
    the target names one. `platform` as for an import, `referrers` as for an export.

    Raises what an import and an export do."""
    if target.position is not None:
        raise InvalidInputError(f"{target}: a position is for reading; give a tag to write")
    meter = parallel.Meter(progress, "copy")
    with content.operation() as op:
        if source.kind == DOCKER and target.kind == DOCKER:
            with closing(
                RegistrySource(
                    source,
                    op,
                    platform=platform,
                    options=source_remote,
                    stopped=meter.stopped,
                )
            ) as registry:
                return _through(
                    op, registry, source, target, meter, target_remote, all, referrers, jobs
                )
        taken = importing.take(
            content,
            op,
            source,
            all=all,
            platform=platform,
            remote=source_remote,
            referrers=referrers,
            meter=meter,
            jobs=jobs,
        )
        _check(taken, target)
        refs = [_ref(root, node, target) for root, node in taken]
        how = exporting.Writing(content.storage.timeout, referrers, progress, jobs, target_remote)
        exporting.write_images(op, refs, target, how, [root.tag for root, _ in taken])
        return [
            _info(ref, root, _closure([node]))
            for ref, (root, node) in zip(refs, taken, strict=True)
        ]


def _check(taken: list[tuple[Root, Node]], target: Transport) -> None:
    if target.selector is not None and len({node.digest for _, node in taken}) > 1:
        raise InvalidInputError(
            f"{len(taken)} images cannot all be {target.selector!r}: leave the tag out, and each "
            "keeps its own"
        )


def _through(
    op: Operation,
    source: RegistrySource,
    where: Transport,
    target: Transport,
    meter: parallel.Meter,
    remote: RemoteOptions | None,
    all: bool,
    referrers: bool,
    jobs: int | None,
) -> list[ImageInfo]:
    """Registry to registry."""
    assert where.place is not None
    assert target.place is not None
    plan = Plan(op, source)
    roots = importing.chosen(plan, source, where, all=all)
    taken = [(root, plan.add(root.descriptor)) for root in roots]
    _check(taken, target)
    before = set(plan.nodes)
    if referrers:
        importing.take_referrers(plan, source.untagged())
    closure = _closure(list(plan.nodes.values()))
    closure.blobs = {d: blob.descriptor.size for d, blob in plan.blobs.items()}
    closure.referrers = [_described(node) for d, node in plan.nodes.items() if d not in before]
    refs = [_ref(root, node, target) for root, node in taken]
    mounts: dict[str, list[str]] = {}
    if where.place.host == target.place.host:
        mounts = {digest: [where.place.repository] for digest in closure.blobs}
    meter.expect(closure.bytes)

    def opener(digest: str) -> AbstractContextManager[Stored]:
        if op.have(digest) is not None:
            return op.open(digest)
        return _Passing(source, digest)

    registry_writer.write(op, refs, closure, target, meter, jobs, remote, mounts, opener)
    return [
        _info(ref, root, _closure([node])) for ref, (root, node) in zip(refs, taken, strict=True)
    ]


class _Passing:
    """A blob on its way through: its last piece is given out only when the digest is right."""

    def __init__(self, source: RegistrySource, digest: str) -> None:
        self._source = source
        self._digest = digest
        self._blob = source.open(digest)
        self._hash: Hasher | None = hasher(parse_digest(digest)[0])

    def __enter__(self) -> _Passing:
        return self

    def __exit__(self, *exc: object) -> None:
        self._blob.close()

    def chunks(self) -> Iterator[memoryview]:
        held = b""
        while piece := self._blob.read(4 * READ):
            if held:
                yield memoryview(held)
            held = piece
            assert self._hash is not None
            self._hash.update(piece)
        assert self._hash is not None
        got = f"{parse_digest(self._digest)[0]}:{self._hash.hexdigest()}"
        if got != self._digest:
            raise DigestMismatchError(
                f"{self._source.where}: blob {self._digest} has digest {got}",
                expected=self._digest,
                got=got,
            )
        yield memoryview(held)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """For an upload that goes on: what came before was hashed by its first reader, and the target
        compares the whole."""
        assert whence == 0
        if isinstance(self._blob, RemoteBlob):
            return self._blob.start(offset)
        return self._blob.seek(offset)

    def read(self, size: int = -1, /) -> bytes | None:
        return self._blob.read(size)


def _ref(root: Root, node: Node, target: Transport) -> Ref:
    """What a copied image is called on its way: as it was, or nothing but a tag."""
    name = next(iter(root.full_names), "")
    if not name and root.tag is not None and target.kind == DOCKER and target.place is not None:
        name = f"{target.place.name}:{root.tag}"
    elif not name and root.tag is not None and target.kind not in ("oci", "oci-archive"):
        name = references.full_name(root.tag)
    return Ref(name, node.digest, len(node.data), node.media_type)


def _closure(nodes: list[Node]) -> Closure:
    """Documents below some, and the sizes of their blobs."""
    found = Closure()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        found.documents[node.digest] = Written(node.data, node.document)
        documents = {child.digest for child in node.children}
        for edge in node.edges:
            if edge.kind == "child" and edge.digest not in documents:
                found.blobs[edge.digest] = edge.size
        todo += [child for child in node.children if child.digest not in found.documents]
    return found


def _described(node: Node) -> Descriptor:
    return referrer_of(node.digest, Written(node.data, node.document))


def _info(ref: Ref, root: Root, closure: Closure) -> ImageInfo:
    name = ref.name or root.tag or ref.digest
    return ImageInfo(name, ref.digest, ref.media_type, closure.bytes, blobs=len(closure.blobs))
