"""What a `Store` hands out to be held on to: leases, blobs that are being written, images (floor 5)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from . import values
from .errors import NotFoundError
from .layers.content import Content, Operation

if TYPE_CHECKING:
    from .layers.tree import Tree
    from .oci.images import LayerRef
    from .storage.storage import Storage
    from .storage.uploads import Upload

T = TypeVar("T")


class Lease:
    """Protects what is put while it is in use, and what it held before, until it is dropped or its
    ttl has passed. Use as a context manager; leaving it drops it."""

    def __init__(self, storage: Storage, lease_id: str, drop: Callable[[str], None]) -> None:
        self._storage = storage
        self._drop = drop
        self.id = lease_id

    def __enter__(self) -> Lease:
        self._storage.use_lease(self.id)
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(NotFoundError):
            self.drop()

    def drop(self) -> None:
        """Lets go what it held."""
        self._drop(self.id)


class BlobWriter:
    """A blob that arrives piece by piece: `write`, then `commit`, or `abort`.

    What was written is kept under `id` until then, also when the process ends: `Store.writer(id)`
    goes on at `offset`. An upload that nobody touches for a day is gc's."""

    def __init__(self, content: Content, upload: Upload) -> None:
        self._content = content
        self._upload = upload
        self.id = upload.id

    @property
    def offset(self) -> int:
        """How many bytes there are."""
        return self._upload.offset

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.abort()
        else:
            self.close()

    def write(self, data: bytes) -> int:
        """Appends; returns how many bytes."""
        return self._upload.write(data)

    def commit(
        self, digest: str | None = None, *, media_type: str = "application/octet-stream"
    ) -> values.Descriptor:
        """Stores what was written, and ends the upload. Raises DigestMismatchError; the upload stays
        then, to be aborted or written anew."""
        with os.fdopen(os.dup(self._upload.fd), "rb", buffering=0) as file:
            file.seek(0)
            with self._content.operation() as op:
                info = op.put(
                    file,
                    digest=digest,
                    size=self.offset,
                    media_type=media_type,
                    inspect=False,
                    verify=True,
                )
        self.abort()
        return values.Descriptor(info.digest, info.bytes, info.media_type)

    def close(self) -> None:
        """Lets the upload go, to be resumed by its id."""
        self._upload.close()

    def abort(self) -> None:
        """Drops what was written. Safe to call twice."""
        self._upload.discard()


class Image:
    """One image: its documents, its layers, its files."""

    def __init__(self, content: Content, ref: values.Ref, platform: str | None = None) -> None:
        self._content = content
        self.ref = ref
        self.platform = platform

    def _with(self, work: Callable[[Operation], T]) -> T:
        with self._content.operation() as op:
            return work(op)

    @property
    def info(self) -> values.ImageInfo:
        from .oci import images

        return self._with(lambda op: images.describe(op, self.ref))

    @property
    def manifest_bytes(self) -> bytes:
        """The exact bytes of the manifest or index."""
        from .oci.jsonio import MAX_MANIFEST

        return self._with(lambda op: op.read(self.ref.digest, MAX_MANIFEST))

    @property
    def config_bytes(self) -> bytes:
        """The exact bytes of the config. Raises NotFoundError for an artifact without one."""
        from .oci import images

        return self._with(lambda op: images.config(op, self.ref, self.platform))

    @property
    def history(self) -> list[dict[str, object]]:
        """The config's history, oldest first, each step with its layer where it has one."""
        from .oci import images

        return self._with(lambda op: images.history(op, self.ref, self.platform))

    @property
    def layers(self) -> list[LayerRef]:
        """The layers, lowest first."""
        from .oci import images

        return self._with(lambda op: images.layers(op, self.ref, self.platform))

    def _tree(self, layer: int | None) -> Tree:
        from .layers.tree import Tree

        layers = self.layers
        if layer is not None:
            if not 0 <= layer < len(layers):
                raise NotFoundError(f"{self.ref.name} has {len(layers)} layers, no layer {layer}")
            layers = [layers[layer]]
        return Tree(self._content, [one.digest for one in layers])

    def entries(self, path: str = "", *, layer: int | None = None) -> Iterator[values.Entry]:
        """Files at and below `path`, as a container would see them (whiteouts applied), sorted; with
        `layer` (0 is the lowest) those of one layer, as they stand in it, whiteouts shown."""
        if layer is None:
            for found in self._tree(None).entries(path):
                yield found.entry
            return
        from .layers.tree import clean, layer_entries

        layers = self.layers
        if not 0 <= layer < len(layers):
            raise NotFoundError(f"{self.ref.name} has {len(layers)} layers, no layer {layer}")
        want = clean(path)
        some = want == ""
        for found in layer_entries(self._content, layers[layer].digest, layer):
            at = clean(found.entry.path)
            if want is not None and (not want or at == want or (at or "").startswith(f"{want}/")):
                some = True
                yield found.entry
        if not some:
            raise NotFoundError(f"no such path in layer {layer}: {path}", path=path)

    def open(self, path: str, *, layer: int | None = None) -> Iterator[bytes]:
        """The content of a file, in pieces; links are followed inside the image."""
        from .layers.tree import file_content

        return file_content(self._content, self._tree(layer).resolve(path))
