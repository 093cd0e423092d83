"""A repository of a registry as a giver of bytes for `check --repair-from`: any of its blobs and
manifests, by digest. Nothing of it is believed: what is put with it is verified as always."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO, cast

from ..errors import DigestMismatchError, InvalidInputError, LayerstoreError, NotFoundError
from ..remote.blobs import RemoteBlob
from ..remote.client import Remote, RemoteManifest
from ..remote.names import Place
from ..remote.options import RemoteOptions
from ..values import Descriptor
from .sources import Root


class RegistryGiver:
    """One repository. Raises what `Remote` does, from any method."""

    def __init__(self, place: Place, options: RemoteOptions | None = None) -> None:
        self._place = place
        self._remote = Remote(place.host, options)
        self._sizes: dict[str, int | None] = {}
        self._manifests: dict[str, bytes] = {}

    def look(self) -> None:
        """Raises NotFoundError for what is not there, now."""
        if self._place.tag is None and self._place.digest is None:
            self._remote.tags(self._place.repository)
        else:
            self._remote.resolve(self._place.repository, self._place.reference)

    def roots(self) -> Sequence[Root]:
        """What was named; else every tag that there is."""
        repository = self._place.repository
        if self._place.tag is None and self._place.digest is None:
            references = self._remote.tags(repository)
        else:
            references = [self._place.reference]
        found = []
        for reference in references:
            try:
                got = self._remote.manifest(repository, reference)
            except LayerstoreError:
                continue  # damaged there, or gone: what else there is may do
            self._keep(got)
            found.append(Root(Descriptor(got.digest, len(got.data), got.media_type)))
        return found

    def _keep(self, got: RemoteManifest) -> None:
        self._manifests[got.digest] = got.data

    def size(self, digest: str) -> int | None:
        if digest not in self._sizes:
            self._sizes[digest] = self._size(digest)
        return self._sizes[digest]

    def _size(self, digest: str) -> int | None:
        if digest in self._manifests:
            return len(self._manifests[digest])
        size = self._remote.blob_size(self._place.repository, digest)
        if size is not None and size >= 0:
            return size
        try:
            self._keep(self._remote.manifest(self._place.repository, digest))
        except (NotFoundError, DigestMismatchError, InvalidInputError):
            return None
        return len(self._manifests[digest])

    def open(self, digest: str) -> BinaryIO:
        size = self.size(digest)
        if digest in self._manifests:
            return io.BytesIO(self._manifests[digest])
        if size is None:
            raise NotFoundError(f"{self._place.name} has no blob {digest}", digest=digest)
        blob = RemoteBlob(self._remote, self._place.repository, digest, size)
        return cast(BinaryIO, blob)

    def close(self) -> None:
        self._remote.close()
