"""Images whose layers are compressed in another way: new layers and manifests, the same configs.

The new blobs and documents go into the store, held by the session: a gzip layer as a recipe over its
tar, a zstd layer raw. Writers then take them as they take any image. Of a manifest only the
descriptors of its layers change (media type, digest, size, and annotations that describe compressed
bytes); of an index the entries whose manifests have changed. What names the old digests from outside
(signatures, attestations) cannot be changed, and is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from .. import mediatypes
from ..digest import digest_of
from ..errors import DigestMismatchError, InvalidInputError, UnsupportedError
from ..layers.inflate import compression_of, inflate
from ..values import Descriptor, Edge, ProgressCallback, Ref
from . import images, jsonio, parallel
from .compression import Compression
from .model import Document, Index, Manifest, parse_document

if TYPE_CHECKING:
    from ..layers.content import Operation

REFERENCE = "vnd.docker.reference.digest"
"""An attestation's entry names the manifest that it is about, in the same index."""
_OF_BYTES = (
    "containerd.io/snapshot/stargz/",
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
)
"""Annotations of a layer that hold for its compressed bytes alone."""


@dataclass(slots=True)
class Recompressed:
    """The images as they are to be written."""

    refs: list[Ref] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    """By digest of the image that is written."""
    made: list[str] = field(default_factory=list)
    """gzip layers that were made just now."""

    def prove(self, op: Operation) -> None:
        """Reads what was made and not written (it was there already), so that its recipe counts."""
        for digest in self.made:
            if op.have(digest) is None:
                with op.open(digest) as blob:
                    for _ in blob.chunks():
                        pass


@dataclass(slots=True)
class _Layer:
    descriptor: Descriptor
    diff_id: str
    new: Descriptor | None = None


def recompress(
    op: Operation,
    refs: list[Ref],
    wanted: Compression,
    progress: ProgressCallback | None,
    jobs: int | None,
) -> Recompressed:
    """Makes the layers, several at once, and then the documents that name them.

    Raises InvalidInputError for a layer that does not decode or does not match its diff_id, and
    UnsupportedError for zstd in an image of docker's media types."""
    return _Work(op, wanted).run(refs, progress, jobs)


class _Work:
    def __init__(self, op: Operation, wanted: Compression) -> None:
        self._op = op
        self._wanted = wanted
        self._documents: dict[str, tuple[bytes, Document]] = {}
        self._layers: dict[str, _Layer] = {}
        self._new: dict[str, Descriptor] = {}
        """What became of each document."""
        self._out = Recompressed()
        self._notes: list[str] = []

    def run(
        self, refs: list[Ref], progress: ProgressCallback | None, jobs: int | None
    ) -> Recompressed:
        for ref in refs:
            self._look(ref.digest, ref.media_type)
        meter = parallel.Meter(progress, "compress")
        meter.expect(sum(layer.descriptor.size for layer in self._layers.values()))
        largest_first = sorted(self._layers.values(), key=lambda one: -one.descriptor.size)
        parallel.run([self._task(layer, meter) for layer in largest_first], jobs, meter)
        for ref in refs:
            new = self._rewrite(ref.digest)
            self._out.refs.append(Ref(ref.name, new.digest, new.size, new.media_type))
            warnings = self._out.warnings.setdefault(new.digest, [])
            warnings += [w for w in self._warnings(ref, new) if w not in warnings]
        return self._out

    def _warnings(self, ref: Ref, new: Descriptor) -> Iterator[str]:
        todo, seen = [ref.digest], set()
        while todo:
            digest = todo.pop()
            if digest in seen or digest not in self._documents:
                continue
            seen.add(digest)
            document = self._documents[digest][1]
            if isinstance(document, Index):
                todo += [child.digest for child in document.manifests]
                if any(REFERENCE in child.annotations for child in document.manifests):
                    yield (
                        f"the attestations in {digest} are about layers and manifests as they were"
                    )
            count = len(self._op.referrers(digest)) if self._new[digest].digest != digest else 0
            if count:
                yield (
                    f"{count} signatures or other artifacts refer to {digest}: they do not fit "
                    f"{self._new[digest].digest}, and are left out"
                )

    # ---- looking ------------------------------------------------------------------------------

    def _look(self, digest: str, media_type: str) -> None:
        """Collects the documents, and the layers that are to change."""
        todo = [(digest, media_type)]
        while todo:
            digest, media_type = todo.pop()
            if digest in self._documents:
                continue
            data = self._op.read(digest, jsonio.MAX_MANIFEST)
            document = parse_document(data, media_type, digest)
            self._documents[digest] = data, document
            if isinstance(document, Manifest):
                self._look_at_layers(digest, document)
                continue
            todo += [
                (child.digest, child.media_type)
                for child in document.manifests
                if (mediatypes.is_document(child.media_type) or not child.media_type)
                and self._op.stat(child.digest) is not None
            ]

    def _look_at_layers(self, digest: str, manifest: Manifest) -> None:
        if not manifest.is_image:
            return
        for layer in images.layers(self._op, Ref("", digest, 0, manifest.media_type)):
            info = self._op.stat(layer.digest)
            if (
                info is None
                or layer.digest in self._layers
                or mediatypes.compressed_as(layer.media_type, "none") is None
            ):
                continue
            kind = self._kind(layer.digest, info.forms)
            if kind == self._wanted.kind:
                continue
            diff_id = layer.diff_id or info.diff_id
            if diff_id is None:
                raise InvalidInputError(
                    f"layer {layer.digest} of {digest} has no diff_id: it cannot be compressed anew; "
                    "leave --compression out",
                    digest=layer.digest,
                )
            if mediatypes.compressed_as(layer.media_type, self._wanted.kind) is None:
                raise UnsupportedError(
                    f"{digest} is an image in docker's media types, which have no "
                    f"{self._wanted.kind}: take gzip or none",
                    digest=digest,
                )
            descriptor = Descriptor(layer.digest, layer.size, layer.media_type)
            self._layers[layer.digest] = _Layer(descriptor, diff_id)

    def _kind(self, digest: str, forms: tuple[str, ...]) -> str:
        if "tar" in forms:
            return "none"
        if "gzip" in forms:
            return "gzip"
        with self._op.open(digest) as blob:
            return compression_of(blob.read(8) or b"") or "none"

    # ---- layers -------------------------------------------------------------------------------

    def _task(self, layer: _Layer, meter: parallel.Meter) -> Callable[[], None]:
        def work() -> None:
            try:
                layer.new = self._make(layer, meter)
            except DigestMismatchError as e:
                raise InvalidInputError(
                    f"layer {layer.descriptor.digest} does not match its diff_id {layer.diff_id} "
                    f"({e.got}): it cannot be compressed anew; leave --compression out",
                    digest=layer.descriptor.digest,
                    reason="diff_id",
                ) from e

        return work

    def _make(self, layer: _Layer, meter: parallel.Meter) -> Descriptor:
        op, wanted, old = self._op, self._wanted, layer.descriptor
        media_type = mediatypes.compressed_as(old.media_type, wanted.kind)
        assert media_type is not None
        counted = 0

        def tell(size: int) -> None:
            nonlocal counted
            size = min(size, old.size - counted)
            counted += size
            meter.add(size)

        if wanted.kind == "zstd":
            made = op.zstd(self._tar(layer, tell), layer.diff_id, wanted.level, media_type)
        else:
            tar = op.have(layer.diff_id)
            if tar is None:
                tar = op.put(
                    (bytes(piece) for piece in self._tar(layer, tell)),
                    digest=layer.diff_id,
                    media_type=mediatypes.OCI_LAYER,
                    diff_id=layer.diff_id,
                )
            made = tar
            if wanted.kind == "gzip":
                made = op.gzip(tar.digest, wanted.level, media_type, tell)
                self._out.made.append(made.digest)
        tell(old.size)
        digest = layer.diff_id if wanted.kind == "none" else made.digest
        return Descriptor(digest, made.bytes, media_type)

    def _tar(self, layer: _Layer, tell: Callable[[int], None]) -> Iterator[bytes | memoryview]:
        """The uncompressed layer, which is compared with its diff_id by whoever takes it."""
        known = self._op.have(layer.diff_id)
        digest = layer.descriptor.digest if known is None else layer.diff_id
        with self._op.open(digest) as blob:
            kind = compression_of(blob.read(8) or b"")
            blob.seek(0)

            def pieces() -> Iterator[memoryview]:
                for piece in blob.chunks():
                    yield piece
                    tell(len(piece))

            yield from pieces() if kind is None else inflate(pieces(), kind)

    # ---- documents ----------------------------------------------------------------------------

    def _rewrite(self, digest: str) -> Descriptor:
        """A document with what has become of its children; itself if nothing has."""
        if digest in self._new:
            return self._new[digest]
        data, document = self._documents[digest]
        self._new[digest] = Descriptor(digest, len(data), document.media_type)
        value = jsonio.parse(data, f"manifest {digest}", digest=digest)
        changed: dict[str, Descriptor] = {}
        for child in document.children():
            if child.digest in self._layers and isinstance(document, Manifest):
                new = self._layers[child.digest].new
                assert new is not None
            elif child.digest in self._documents and isinstance(document, Index):
                new = self._rewrite(child.digest)
            else:
                continue
            if new.digest != child.digest:
                changed[child.digest] = new
        if not changed:
            return self._new[digest]
        key = "manifests" if isinstance(document, Index) else "layers"
        listed = cast("list[dict[str, object]]", value[key])
        value[key] = [_replaced(item, changed, key == "layers") for item in listed]
        out = jsonio.dump(value)
        new = Descriptor(digest_of(out), len(out), document.media_type)
        edges = tuple(
            Edge(
                changed[e.digest].digest,
                e.kind,
                changed[e.digest].size,
                changed[e.digest].media_type,
            )
            if e.digest in changed and e.kind != "subject"
            else e
            for e in self._op.edges(digest)
        )
        self._op.put(
            out,
            digest=new.digest,
            size=new.size,
            media_type=new.media_type,
            edges=edges,
            inspect=False,
        )
        self._new[digest] = new
        return new


def _replaced(
    item: dict[str, object], changed: dict[str, Descriptor], layer: bool
) -> dict[str, object]:
    """A descriptor as it has become; all that it says beside stays."""
    out = dict(item)
    annotations = item.get("annotations")
    if isinstance(annotations, dict):
        about = annotations.get(REFERENCE)
        if about in changed:
            out["annotations"] = {**annotations, REFERENCE: changed[about].digest}
    new = changed.get(str(item.get("digest")))
    if new is None:
        return out
    out["digest"], out["size"] = new.digest, new.size
    out.pop("data", None)
    if layer:
        out["mediaType"] = new.media_type
        if isinstance(annotations, dict):
            out["annotations"] = {
                k: v for k, v in annotations.items() if not str(k).startswith(_OF_BYTES)
            }
    return out
