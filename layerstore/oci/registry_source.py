"""A registry as a source of an import.

Documents are asked for as the plan meets them, each verified and kept in memory, as the plan does, too;
what the store has already is taken from there, so a tag that has not moved costs one HEAD. Of blobs
only those are fetched that the store does not have. With a platform an index gives the images for it
and what attests to them; the index itself stays as it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from .. import mediatypes
from ..digest import digest_of
from ..digest import parse as parse_digest
from ..errors import (
    DigestMismatchError,
    InvalidInputError,
    LayerstoreError,
    LimitError,
    NotFoundError,
)
from ..remote.blobs import RemoteBlob
from ..remote.client import Remote
from ..remote.names import Place
from ..remote.options import RemoteOptions
from ..values import Descriptor
from . import jsonio
from .images import fits
from .model import Index, Manifest, parse_document, platform_of
from .sources import Root, missing
from .transports import Transport

if TYPE_CHECKING:
    from ..layers.content import Operation

T = TypeVar("T")
ASKERS = 4
"""Questions to the registry at the same time, where many are due."""
MAX_HELD = 64 << 20
"""Bytes of configs that are kept between the plan and the put."""
REFERENCE_DIGEST = "vnd.docker.reference.digest"


class RegistrySource:
    """One repository. Raises what `Remote` does, from any method."""

    waits = True

    def __init__(
        self,
        transport: Transport,
        op: Operation,
        *,
        platform: str | None = None,
        options: RemoteOptions | None = None,
        stopped: Event | None = None,
    ) -> None:
        assert transport.place is not None
        self._place: Place = transport.place
        self._op = op
        self._platform = platform
        self._remote = Remote(self._place.host, options, stopped=stopped)
        self._documents: dict[str, bytes | None] = {}
        self._named: dict[str, Descriptor] = {}
        self._configs: set[str] = set()
        self._held: dict[str, bytes] = {}
        self._roots: list[Root] | None = None

    @property
    def where(self) -> str:
        return f"registry {self._place.name}"

    # ---- images -------------------------------------------------------------------------------

    @property
    def roots(self) -> Sequence[Root]:
        """Every tag of the repository; of one that was named with a tag or digest, that."""
        if self._place.tag is not None or self._place.digest is not None:
            return self.pick(Transport("docker", self._place.name, place=self._place))
        if self._roots is None:
            tags = self._remote.tags(self._place.repository)
            self._roots = self._of_each(self._root, sorted(set(tags)))
        return self._roots

    def pick(self, transport: Transport) -> list[Root]:
        place = self._place
        reference = place.reference
        root = self._root(reference)
        if place.digest is not None:
            tag = place.tag
            root = replace(
                root, tag=tag, full_names=() if tag is None else (f"{place.name}:{tag}",)
            )
        return [root]

    def _of_each(self, question: Callable[[str], T], things: Sequence[str]) -> list[T]:
        """The answers to one question about each of several things, in their order."""
        with ThreadPoolExecutor(ASKERS, thread_name_prefix="layerstore-remote") as pool:
            try:
                return list(pool.map(question, things))
            except BaseException:
                self._remote.stop()  # else the pool would wait for answers that nobody wants
                raise

    def _root(self, reference: str) -> Root:
        """An entry, by a HEAD alone where the store has the document."""
        repository = self._place.repository
        if ":" in reference:
            digest, data = reference, self._local(reference)
            kind = "" if data is None else self._kind_of(reference)
        else:
            head = self._remote.resolve(repository, reference)
            digest = head.digest or ""
            data = self._local(digest) if digest else None
            kind = head.media_type if data is not None else ""
        if data is None:
            got = self._remote.manifest(repository, reference)
            digest, data, kind = got.digest, got.data, got.media_type
        self._documents[digest] = data
        kind = kind if mediatypes.is_document(kind) else ""
        names = () if ":" in reference else (f"{self._place.name}:{reference}",)
        tag = None if ":" in reference else reference
        descriptor = Descriptor(digest, len(data), kind)
        self._named.setdefault(digest, descriptor)
        return Root(descriptor, tag, names)

    def _local(self, digest: str) -> bytes | None:
        """A document that the store has."""
        if self._op.have(digest) is None:
            return None
        try:
            return self._op.read(digest, jsonio.MAX_MANIFEST)
        except LayerstoreError:
            # Damaged, perhaps: the registry has it, too.
            return None

    def _kind_of(self, digest: str) -> str:
        info = self._op.stat(digest)
        return "" if info is None else info.media_type

    # ---- what refers to them ------------------------------------------------------------------

    def untagged(self) -> Sequence[Root]:
        """Signatures, attestations and other artifacts whose subject was given out, and theirs."""
        found: dict[str, Root] = {}
        todo = [d for d, data in self._documents.items() if data is not None]
        asked: set[str] = set()
        while todo:
            asked.update(todo)
            lists = self._of_each(self._referrers, todo)
            todo = []
            for descriptor in (one for listed in lists for one in listed):
                digest = descriptor.digest
                if digest not in found and digest not in asked:
                    found[digest] = Root(descriptor)
                    self._named.setdefault(digest, descriptor)
                    todo.append(digest)
        return list(found.values())

    def _referrers(self, digest: str) -> list[Descriptor]:
        try:
            data = self._remote.referrers(self._place.repository, digest)
        except InvalidInputError:
            # A registry that does not know the question.
            return []
        if data is None:
            return []
        what = f"{self.where}: the referrers of {digest}"
        document = parse_document(data, mediatypes.OCI_INDEX, None)
        if not isinstance(document, Index):
            raise InvalidInputError(f"{what} are no index", digest=digest)
        return [d for d in document.manifests if mediatypes.is_document(d.media_type)]

    # ---- blobs --------------------------------------------------------------------------------

    def size(self, digest: str) -> int | None:
        descriptor = self._named.get(digest)
        if descriptor is None:
            return None
        if digest in self._documents or mediatypes.is_document(descriptor.media_type):
            data = self._document(digest)
            return None if data is None else len(data)
        if mediatypes.is_foreign(descriptor.media_type) and self._op.have(digest) is None:
            found = self._remote.blob_size(self._place.repository, digest)
            return None if found is None else descriptor.size
        return descriptor.size

    def open(self, digest: str) -> BinaryIO:
        descriptor = self._named.get(digest)
        if descriptor is None:
            raise missing(self, digest, "which was not asked for")
        data = self._held.get(digest)
        if data is None and (
            digest in self._documents or mediatypes.is_document(descriptor.media_type)
        ):
            data = self._document(digest)
            if data is None:
                raise missing(self, digest, "which an index names")
            self._learn(digest, data)
        if data is None and digest in self._configs:
            data = self._config(descriptor)
        if data is not None:
            return io.BytesIO(data)
        blob = RemoteBlob(self._remote, self._place.repository, digest, descriptor.size)
        return cast(BinaryIO, blob)

    def _document(self, digest: str) -> bytes | None:
        """A manifest, verified; None if the registry does not have it."""
        if digest not in self._documents:
            data = self._local(digest)
            if data is None:
                try:
                    data = self._remote.manifest(self._place.repository, digest).data
                except NotFoundError:
                    data = None
            self._documents[digest] = data
        return self._documents[digest]

    def _learn(self, digest: str, data: bytes) -> None:
        """Takes in what a document names, and where an index was asked for a platform, only that."""
        document = parse_document(data, self._named[digest].media_type, digest)
        children = document.children()
        if isinstance(document, Manifest):
            if document.config is not None:
                self._configs.add(document.config.digest)
        elif self._platform is not None:
            children = tuple(self._for_platform(document))
        for child in children:
            if not child.media_type and isinstance(document, Index):
                child = replace(child, media_type=mediatypes.OCI_MANIFEST)
            self._named.setdefault(child.digest, child)

    def _for_platform(self, index: Index) -> list[Descriptor]:
        assert self._platform is not None
        chosen: list[Descriptor] = []
        there: list[str] = []
        for one in index.manifests:
            stated = platform_of(one)
            if mediatypes.is_index(one.media_type) and stated is None:
                chosen.append(one)
            elif stated is not None:
                there.append(stated)
                if fits(stated, self._platform):
                    chosen.append(one)
        if not chosen:
            listed = ", ".join(sorted(set(there))) or "none that says for what"
            raise NotFoundError(
                f"{self.where} has no image for {self._platform}; there is: {listed}"
            )
        digests = {one.digest for one in chosen}
        chosen += [
            one for one in index.manifests if one.annotations.get(REFERENCE_DIGEST) in digests
        ]
        return chosen

    def _config(self, descriptor: Descriptor) -> bytes | None:
        """A config is asked for twice, by the plan and by the put: it is fetched once."""
        digest = descriptor.digest
        if descriptor.size > jsonio.MAX_CONFIG:
            return None
        if self._op.have(digest) is not None:
            return self._op.read(digest, jsonio.MAX_CONFIG)
        with RemoteBlob(self._remote, self._place.repository, digest, descriptor.size) as f:
            data = f.readall()
        got = digest_of(data, parse_digest(digest)[0])
        if got != digest:
            raise DigestMismatchError(
                f"{self.where}: blob {digest} has digest {got}", expected=digest, got=got
            )
        if sum(map(len, self._held.values())) + len(data) > MAX_HELD:
            raise LimitError(f"{self.where}: its configs have more than {MAX_HELD} bytes")
        self._held[digest] = data
        return data

    def close(self) -> None:
        self._remote.close()
