"""What an export has to write: all documents and blobs of images, and what refers to them.

Documents are read from the store (verified) and parsed, so that nothing depends on how they came in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import mediatypes
from ..errors import CorruptError
from ..values import Descriptor, Ref
from . import jsonio
from .model import Document, Index, parse_document

if TYPE_CHECKING:
    from ..layers.content import Operation


@dataclass(slots=True)
class Written:
    """A document of the closure: its bytes, and what they say."""

    data: bytes
    document: Document


@dataclass(slots=True)
class Closure:
    """Everything that a set of images needs, each digest once."""

    documents: dict[str, Written] = field(default_factory=dict)
    blobs: dict[str, int] = field(default_factory=dict)
    """Sizes of the blobs that are no documents."""
    referrers: list[Descriptor] = field(default_factory=list)
    """Documents that came along because their subject is here."""

    @property
    def bytes(self) -> int:
        return sum(self.blobs.values()) + sum(len(w.data) for w in self.documents.values())


def collect(op: Operation, refs: list[Ref], *, referrers: bool) -> Closure:
    """The closure of images. What an index or a manifest names and the store never had is left out.

    Raises CorruptError for a blob that should be there."""
    found = Closure()
    for ref in refs:
        _walk(op, ref.digest, ref.media_type, found)
    if referrers:
        todo = list(found.documents)
        while todo:
            for digest in op.referrers(todo.pop()):
                if digest in found.documents:
                    continue
                before = set(found.documents)
                _walk(op, digest, "", found)
                written = found.documents[digest]
                found.referrers.append(referrer_of(digest, written))
                todo += [d for d in found.documents if d not in before]
    return found


def _walk(op: Operation, digest: str, media_type: str, found: Closure) -> None:
    todo = [(digest, media_type)]
    while todo:
        digest, media_type = todo.pop()
        if digest in found.documents:
            continue
        data = op.read(digest, jsonio.MAX_MANIFEST)
        document = parse_document(data, media_type, digest)
        found.documents[digest] = Written(data, document)
        absent = {edge.digest for edge in op.edges(digest) if edge.kind == "absent"}
        for child in document.children():
            info = op.stat(child.digest)
            if info is None:
                if child.digest in absent:
                    continue
                raise CorruptError(
                    f"{digest} needs {child.digest}, which is not in the store: import it again",
                    digest=child.digest,
                )
            if isinstance(document, Index) and (
                mediatypes.is_document(child.media_type) or not child.media_type
            ):
                todo.append((child.digest, child.media_type))
            else:
                found.blobs[child.digest] = info.bytes


def referrer_of(digest: str, written: Written) -> Descriptor:
    """As a list of referrers describes one (distribution-spec): artifactType and annotations of the
    manifest itself."""
    document = written.document
    kind = document.artifact_type
    if kind is None and not isinstance(document, Index) and document.config is not None:
        kind = document.config.media_type
    return Descriptor(digest, len(written.data), document.media_type, document.annotations, kind)
