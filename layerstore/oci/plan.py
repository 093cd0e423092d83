"""What an import has to take: the documents of an image, children first, and the blobs they name.

Documents are read and verified before they are parsed, each once, bounded in depth and in bytes
altogether. What a source does not have is looked for in the store; where it is not there either, the
rules are: a manifest that is itself there needs its blobs, except non-distributable layers; an index
needs one of its manifests, not all (`docker save` writes one platform of many). Inside an index a
manifest whose blobs are not all there counts as not there, unless nothing else is. What is absent is
marked in the edges and said as a warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import mediatypes
from ..digest import digest_of
from ..digest import parse as parse_digest
from ..errors import (
    DigestMismatchError,
    InvalidInputError,
    LayerstoreError,
    LimitError,
)
from ..values import Descriptor, Edge
from . import jsonio
from .model import Config, Document, Index, Manifest, first_line, parse_config, parse_document
from .sources import Source, missing

if TYPE_CHECKING:
    from ..layers.content import Operation

MAX_NESTING = 16
"""Indexes inside indexes."""
MAX_DOCUMENT_BYTES = 64 << 20
"""All documents of one import together: they are held in memory."""


@dataclass(slots=True)
class Layer:
    """A blob of a manifest, and what the config says that it decodes to."""

    descriptor: Descriptor
    diff_id: str | None = None


@dataclass(slots=True)
class Node:
    """A document, with what it was found to name."""

    digest: str
    media_type: str
    data: bytes
    document: Document
    edges: tuple[Edge, ...] = ()
    layers: list[Layer] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    """Blobs that it needs and that are nowhere."""


@dataclass(slots=True)
class Blob:
    """A blob to be put."""

    descriptor: Descriptor
    diff_id: str | None = None
    data: bytes | None = None


class Plan:
    """Walks documents; `nodes` come children first, `blobs` in the order they were met."""

    def __init__(self, op: Operation, source: Source, *, strict: bool = False) -> None:
        self._op = op
        self._source = source
        self._strict = strict
        self._held = 0
        self._path: list[str] = []
        self._embedded: dict[str, bytes] = {}
        self._configs: dict[str, Config | None] = {}
        self.nodes: dict[str, Node] = {}
        self.blobs: dict[str, Blob] = {}
        self.warnings: list[str] = []

    def add(self, root: Descriptor) -> Node:
        """Takes in one root and all below it.

        Raises NotFoundError for what is missing, DigestMismatchError, InvalidInputError, LimitError,
        UnsupportedError."""
        node = self._walk(root)
        if node is None:
            raise missing(self._source, root.digest, "which an entry names")
        if node.lacks:
            raise missing(self._source, node.lacks[0], f"which {node.digest} needs")
        return node

    def subject_of(self, root: Descriptor) -> str | None:
        """The subject of a document that is there and readable, else None."""
        if root.digest in self.nodes:
            return None
        try:
            data = self._bytes(root, jsonio.MAX_MANIFEST)
            if data is None:
                return None
            subject = parse_document(data, root.media_type, root.digest).subject
        except LayerstoreError:
            # Nobody asked for this entry: if it is damaged, it is not taken, and that is all.
            return None
        return None if subject is None else subject.digest

    # ---- documents ----------------------------------------------------------------------------

    def _walk(self, descriptor: Descriptor) -> Node | None:
        digest = descriptor.digest
        parse_digest(digest)
        if digest in self._path:
            raise InvalidInputError(
                f"manifest {digest} names itself, by way of {' -> '.join(self._path[-3:])}",
                digest=digest,
                reason="cycle",
            )
        if len(self._path) >= MAX_NESTING:
            raise InvalidInputError(
                f"index {self._path[0]} nests indexes deeper than {MAX_NESTING}",
                digest=self._path[0],
                reason="nesting",
            )
        if digest in self.nodes:
            return self.nodes[digest]
        data = self._bytes(descriptor, jsonio.MAX_MANIFEST)
        if data is None:
            return None
        self._held += len(data)
        if self._held > MAX_DOCUMENT_BYTES:
            raise LimitError(
                f"the manifests of {self._source.where} have more than {MAX_DOCUMENT_BYTES} bytes "
                "altogether",
                digest=digest,
            )
        document = parse_document(data, descriptor.media_type, digest)
        self._embedded.update(document.embedded)
        node = Node(digest, document.media_type, data, document)
        self._path.append(digest)
        try:
            if isinstance(document, Index):
                self._index(node, document)
            else:
                self._manifest(node, document)
        finally:
            self._path.pop()
        self.nodes[digest] = node
        return node

    def _index(self, node: Node, index: Index) -> None:
        edges: list[Edge] = []
        whole = 0
        lacking: list[str] = []
        for child in index.manifests:
            kind = "child"
            opaque = bool(child.media_type) and not mediatypes.is_document(child.media_type)
            if opaque:
                if self._blob(child):
                    whole += 1
                else:
                    kind = "absent"
            else:
                below = self._walk(child)
                if below is None:
                    kind = "absent"
                else:
                    node.children.append(below)
                    lacking += below.lacks
                    whole += not below.lacks
            edges.append(Edge(child.digest, kind, child.size, child.media_type))
        if index.manifests and not whole:
            node.lacks = lacking or [index.manifests[0].digest]
        elif lacking and self._strict:
            raise missing(self._source, lacking[0], f"which a manifest of {node.digest} needs")
        node.edges = _distinct(edges, index.subject)

    def _manifest(self, node: Node, manifest: Manifest) -> None:
        edges: list[Edge] = []
        if manifest.config is not None:
            edges.append(self._needed(node, manifest.config, None))
        diff_ids = self._diff_ids(manifest)
        for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
            edges.append(self._needed(node, layer, diff_id))
        node.edges = _distinct(edges, manifest.subject)

    def _needed(self, node: Node, blob: Descriptor, diff_id: str | None) -> Edge:
        kind = "child"
        if self._blob(blob, diff_id):
            node.layers.append(Layer(blob, diff_id))
        else:
            kind = "absent"
            if not mediatypes.is_foreign(blob.media_type):
                node.lacks.append(blob.digest)
        return Edge(blob.digest, kind, blob.size, blob.media_type)

    # ---- blobs --------------------------------------------------------------------------------

    def _blob(self, descriptor: Descriptor, diff_id: str | None = None) -> bool:
        """Notes a blob to be put; False if it is nowhere."""
        digest = descriptor.digest
        known = self.blobs.get(digest)
        if known is not None:
            if known.descriptor.size != descriptor.size:
                raise DigestMismatchError(
                    f"blob {digest} is given two sizes: {known.descriptor.size} and "
                    f"{descriptor.size} bytes",
                    expected=digest,
                    got=f"{descriptor.size} bytes",
                )
            if known.diff_id is None:
                known.diff_id = diff_id
            return True
        size = self._source.size(digest)
        data: bytes | None = None
        if size is None:
            info = self._op.have(digest)
            if info is not None:
                size = info.bytes
            elif digest in self._embedded:
                data = self._embedded[digest]
                size = len(data)
            else:
                return False
        _check_size(descriptor, size, self._source)
        self.blobs[digest] = Blob(descriptor, diff_id, data)
        return True

    def _bytes(self, descriptor: Descriptor, limit: int) -> bytes | None:
        """A small blob, verified; None if it is nowhere."""
        digest = descriptor.digest
        size = self._source.size(digest)
        if size is None:
            if self._op.have(digest) is None:
                data = self._embedded.get(digest)
                if data is None:
                    return None
            else:
                data = self._op.read(digest, limit)
        else:
            jsonio.check_size(size, limit, f"blob {digest}", digest)
            _check_size(descriptor, size, self._source)
            with self._source.open(digest) as f:
                data = read_exactly(f, size, digest)
        got = digest_of(data, parse_digest(digest)[0])
        if got != digest:
            raise DigestMismatchError(
                f"{self._source.where}: blob {digest} has digest {got}", expected=digest, got=got
            )
        _check_size(descriptor, len(data), self._source)
        return data

    def _diff_ids(self, manifest: Manifest) -> list[str | None]:
        """For each layer what the config says; None where it says nothing that can be used."""
        none: list[str | None] = [None] * len(manifest.layers)
        if manifest.config is None or not manifest.is_image:
            return none
        config = self._config(manifest.config)
        if config is None or not manifest.layers:
            return none
        if len(config.diff_ids) != len(manifest.layers):
            self._odd(
                f"config {manifest.config.digest} has {len(config.diff_ids)} diff_ids for "
                f"{len(manifest.layers)} layers",
                manifest.config.digest,
            )
            return none
        return [
            diff_id if mediatypes.is_layer(layer.media_type) else None
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        ]

    def _config(self, descriptor: Descriptor) -> Config | None:
        """The config, if it is there and can be read; what is wrong with it is a warning."""
        digest = descriptor.digest
        if digest not in self._configs:
            self._configs[digest] = None
            try:
                data = self._bytes(descriptor, jsonio.MAX_CONFIG)
                if data is not None:
                    self._configs[digest] = parse_config(data, digest)
            except DigestMismatchError:
                raise
            except (InvalidInputError, LimitError) as e:
                self._odd(first_line(e), digest)
        return self._configs[digest]

    def _odd(self, message: str, digest: str) -> None:
        """What is kept as it is and said, or refused with `strict`."""
        if self._strict:
            raise InvalidInputError(message, digest=digest)
        self.warnings.append(message)


def read_exactly(f: object, size: int, digest: str) -> bytes:
    """`size` bytes of an unbuffered file that is no longer than that, or DigestMismatchError."""
    parts: list[bytes] = []
    left = size + 1
    while left:
        piece = f.read(left)  # type: ignore[attr-defined]
        if not piece:
            break
        parts.append(bytes(piece))
        left -= len(piece)
    data = b"".join(parts)
    if len(data) != size:
        raise DigestMismatchError(
            f"blob {digest} has {'more' if len(data) > size else len(data)} bytes where {size} were "
            "expected",
            expected=digest,
            got=f"{len(data)} bytes",
        )
    return data


def _check_size(descriptor: Descriptor, size: int, source: Source) -> None:
    if size != descriptor.size:
        raise DigestMismatchError(
            f"{source.where}: blob {descriptor.digest} has {size} bytes, its descriptor says "
            f"{descriptor.size}",
            expected=descriptor.digest,
            got=f"{size} bytes",
        )


def _distinct(edges: Iterable[Edge], subject: Descriptor | None) -> tuple[Edge, ...]:
    """Each digest once, in order, and the subject at the end."""
    out: dict[str, Edge] = {}
    for edge in edges:
        out.setdefault(edge.digest, edge)
    listed = list(out.values())
    if subject is not None:
        listed.append(Edge(subject.digest, "subject", subject.size, subject.media_type))
    return tuple(listed)
