"""Repositories of a store: what a registry needs, `Store.repository(name)`.

A repository decides what may be read under its name: blobs and manifests that were put, or mounted,
into it. Content is kept once for the whole store all the same; what another repository has is, here,
not there. Names of tags are `NAME:TAG` among the store's images.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import mediatypes, values
from .digest import parse as parse_digest
from .errors import InvalidInputError, LimitError, NotFoundError
from .oci import jsonio, references
from .oci import repository as rules
from .oci.model import Manifest, parse_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .layers.assemble import BlobFile
    from .layers.content import Content
    from .layers.landing import Hashes, Landing
    from .storage.storage import Storage


@dataclass(frozen=True, slots=True)
class ManifestInfo:
    """A manifest as a repository has it."""

    digest: str
    size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that refers to another, as the referrers list describes it."""

    digest: str
    size: int
    media_type: str
    artifact_type: str | None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RepositoryLimits:
    """What a repository may take; None: no limit. `repository_bytes`: of all that it has, each digest
    once. `open_uploads`: in the whole store."""

    upload_bytes: int | None = None
    repository_bytes: int | None = None
    open_uploads: int | None = None


class RepositoryUpload:
    """A blob on its way into a repository: `write`, then `commit`, or `abort`; `close` lets it be taken
    up later, under `id`, by the same repository."""

    def __init__(self, repository: Repository, landing: Landing, upload_id: str) -> None:
        self._repository = repository
        self._landing = landing
        self.id = upload_id

    @property
    def offset(self) -> int:
        """Bytes that have come."""
        return self._landing.offset

    def write(self, data: bytes | memoryview) -> int:
        """Appends; `data` must not change before the next call. Raises StoreFullError, and LimitError
        before it takes more than the limits say."""
        self.check_room(len(data))
        return self._landing.write(data)

    def check_room(self, size: int) -> None:
        """Raises LimitError where `size` bytes more are more than the limits say."""
        limits = self._repository.limits
        for limit, what in (
            (limits.upload_bytes, "an upload"),
            (limits.repository_bytes, "a repository"),
        ):
            if limit is not None and self.offset + size > limit:
                raise LimitError(f"{what} may have {limit} bytes")

    def reader(self) -> int:
        """A descriptor of what has been written, for reading beside the writer, by position; it stays
        good after `commit` and `abort`, and is the caller's to close. Nothing of it was verified."""
        # Opened anew: a copy of the descriptor would share its lock.
        return os.open(f"/proc/self/fd/{self._landing.upload.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def commit(self, digest: str | None = None) -> values.Descriptor:
        """Stores what was written; durable, and readable in the repository, when it returns. Raises
        DigestMismatchError; the upload stays then, to be aborted."""
        return self._repository._land(self._landing, digest)

    def close(self) -> Hashes | None:
        """Lets it go. What comes back makes `resume` in the same process cheaper."""
        return self._landing.close()

    def abort(self) -> None:
        """Drops what was written."""
        self._landing.abort()


class Repository:
    """One repository. Made by `Store.repository`; safe to share between threads."""

    def __init__(
        self, content: Content, name: str, idle: float, limits: RepositoryLimits, lent: bool = False
    ) -> None:
        if not references.is_name(name):
            raise InvalidInputError(f"not a name of a repository: {name[:300]!r}")
        self._content = content
        self.name = name
        self.idle = idle
        self.limits = limits
        self.lent = lent

    @property
    def _storage(self) -> Storage:
        return self._content.storage

    def exists(self) -> bool:
        """Whether it has any blob, manifest or tag."""
        with self._content.operation() as op:
            return rules.exists(op, self.name)

    # ---- blobs --------------------------------------------------------------------------------

    def blob_size(self, digest: str) -> int | None:
        """Bytes of a blob that may be read here; it is kept for `idle` seconds from now on. None if it
        is absent, or only in other repositories."""
        found = rules.blob(self._storage, self.name, digest, self.idle, lent=self.lent)
        return None if found is None else found.size

    def blob_size_at_once(self, digest: str) -> int | None:
        """The same, as far as reading the index tells: it never waits for a commit. None also for what
        has to be asked with `blob_size`."""
        found = rules.look(self._storage, self.name, digest)
        if found is None or not found.fresh or (found.lent and not self.lent):
            return None
        return found.size

    def open_blob(self, digest: str) -> BlobFile:
        """A blob, or manifest, that may be read here. Raises NotFoundError alike for what is absent and
        what is not in this repository."""
        if rules.blob(self._storage, self.name, digest, self.idle, lent=self.lent) is None:
            raise NotFoundError(f"no blob {digest} in repository {self.name}", digest=digest)
        return self._content.open(digest, rules.may_read(self.name, digest))

    def upload(self) -> RepositoryUpload:
        """A new upload, kept for `idle` seconds after its last use. Raises LimitError for a repository
        that is full, BusyError where more uploads are open than may be."""
        from .layers.landing import Landing
        from .storage import uploads

        rules.check_bytes(self._storage, self.name, self.limits.repository_bytes)
        upload = uploads.begin(self._storage, self.idle, self.limits.open_uploads)
        landing = Landing(self._storage, upload)
        return RepositoryUpload(self, landing, upload.id + self._mark(upload.id))

    def reader(self, upload_id: str) -> int:
        """A descriptor of what somebody, perhaps another process, is writing to an upload of this
        repository: as `RepositoryUpload.reader`. Raises NotFoundError."""
        from .storage import uploads

        inner = self._inner(upload_id)
        path = uploads.path_of(self._storage, inner)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as e:
            raise NotFoundError(f"no upload {upload_id[:80]!r}") from e

    def upload_size(self, upload_id: str) -> int:
        """Bytes that have come of an upload of this repository, whoever is writing it; it is kept for
        `idle` seconds from now on. Raises NotFoundError."""
        from .storage import uploads

        return uploads.size(self._storage, self._inner(upload_id))

    def resume(self, upload_id: str, hashes: Hashes | None = None) -> RepositoryUpload:
        """One that was begun in this repository. Raises NotFoundError for any other id, BusyError while
        somebody writes to it."""
        from .layers.landing import Landing
        from .storage import uploads

        upload = uploads.resume(self._storage, self._inner(upload_id))
        return RepositoryUpload(self, Landing(self._storage, upload, hashes), upload_id)

    def _inner(self, upload_id: str) -> str:
        """The store's own id of an upload. Raises NotFoundError for one that is made up, or another
        repository's."""
        from .storage import uploads

        inner, mark = upload_id[:16], upload_id[16:]
        if not uploads.is_id(inner) or not hmac.compare_digest(
            mark.encode(), self._mark(inner).encode()
        ):
            raise NotFoundError(f"no upload {upload_id[:80]!r}")
        return inner

    def _mark(self, upload_id: str) -> str:
        """Binds an upload's id to the repository: without it the id is made up."""
        message = f"upload\0{self.name}\0{upload_id}".encode()
        return hmac.new(self._storage.secret, message, hashlib.sha256).hexdigest()[:32]

    def _land(self, landing: Landing, digest: str | None) -> values.Descriptor:
        with self._content.operation() as op:
            admit = rules.admit(
                self._storage,
                self.name,
                self.idle,
                self.limits.repository_bytes,
                lent=self.lent,
            )
            info = op.land(landing, digest, mediatypes.OCTETS, admit)
        return values.Descriptor(info.digest, info.bytes, info.media_type)

    def put_blob(self, data: bytes, digest: str | None = None) -> values.Descriptor:
        """A small blob at once. Raises DigestMismatchError."""
        upload = self.upload()
        try:
            upload.write(data)
            return upload.commit(digest)
        except BaseException:
            upload.abort()
            raise

    def mount(self, digest: str, source: Repository) -> int | None:
        """Makes a blob of another repository readable here; its size, or None if it is not there."""
        with self._content.operation() as op:
            return rules.mount(
                op,
                self.name,
                source.name,
                digest,
                self.idle,
                self.limits.repository_bytes,
                lent=self.lent,
            )

    def mount_any(self, digest: str, may_pull: Callable[[str], bool]) -> int | None:
        """The same from a repository near by, of a bounded number, that has it and that `may_pull`
        (asked with its name) allows."""
        with self._content.operation() as op:
            return rules.mount_any(
                op,
                self.name,
                digest,
                may_pull,
                self.idle,
                self.limits.repository_bytes,
                lent=self.lent,
            )

    def remove_blob(self, digest: str) -> None:
        """Takes a blob out; gc frees it when nothing needs it. Raises NotFoundError."""
        with self._content.operation() as op:
            if not rules.remove_blob(op, self.name, digest):
                raise NotFoundError(f"no blob {digest} in repository {self.name}", digest=digest)

    # ---- manifests ----------------------------------------------------------------------------

    def put_manifest(
        self,
        data: bytes,
        media_type: str,
        *,
        tags: Iterable[str] = (),
        digest: str | None = None,
        sparse: bool = False,
        create: bool = True,
        overwrite: bool = True,
        keep: float | None = None,
    ) -> tuple[ManifestInfo, str | None]:
        """Stores a manifest and names it; also the digest of its subject. `sparse`: its blobs need not
        be there. Without `create` it must be known here, and its tags be taken; without `overwrite`
        they must be free, or name it already. `keep`: seconds after which gc lets it go, and the tags
        that nobody else has set, when it was not asked for; None: it stays. Raises
        PermissionDeniedError, MissingBlobsError, DigestMismatchError, InvalidInputError, LimitError,
        UnsupportedError."""
        wanted = tuple(tags)
        for tag in wanted:
            if not references.is_tag(tag):
                raise InvalidInputError(f"not a tag: {tag[:160]!r}", reason="tag")
        with self._content.operation() as op:
            put = rules.put_manifest(
                op,
                self.name,
                data,
                media_type,
                wanted,
                digest,
                rules.Terms(
                    self.idle, self.limits.repository_bytes, sparse, create, overwrite, keep
                ),
            )
        d = put.descriptor
        return ManifestInfo(d.digest, d.size, d.media_type), put.subject

    def manifest(self, reference: str) -> ManifestInfo:
        """The manifest that a tag or digest means here. Raises NotFoundError."""
        with self._content.operation() as op:
            found = rules.resolve(op, self.name, reference)
        if found is None:
            raise NotFoundError(f"no manifest {reference[:160]} in repository {self.name}")
        return ManifestInfo(found.digest, found.size, found.media_type)

    def manifest_at_once(self, reference: str) -> ManifestInfo | None:
        """The same, as far as reading the index tells: it never waits for a commit. None also for what
        has to be asked with `manifest`."""
        found = rules.look_up(self._storage, self.name, reference)
        if found is None or not (found.fresh or self._storage.readonly):
            return None
        return ManifestInfo(found.digest, found.size, found.media_type)

    def manifest_bytes(self, digest: str) -> bytes:
        """The exact bytes of one of its manifests. Raises NotFoundError."""
        parse_digest(digest)
        return self._content.read(
            digest, jsonio.MAX_MANIFEST, rules.may_read(self.name, digest, manifest=True)
        )

    def remove_manifest(self, digest: str) -> None:
        """Removes a manifest and its tags. Raises NotFoundError."""
        with self._content.operation() as op:
            if not rules.remove_manifest(op, self.name, digest):
                raise NotFoundError(f"no manifest {digest} in repository {self.name}")

    def referrers(self, digest: str) -> list[Referrer]:
        """The manifests here whose subject is `digest` (distribution-spec, "Listing Referrers")."""
        return self.referrers_page(digest)[0]

    def referrers_page(
        self,
        digest: str,
        *,
        after: str = "",
        limit: int | None = None,
        max_bytes: int | None = None,
        artifact_type: str | None = None,
    ) -> tuple[list[Referrer], bool]:
        """Those behind the digest `after`, of one type if so asked: at most `limit`, and no more once
        their manifests have `max_bytes` together; and whether there are more."""
        out: list[Referrer] = []
        size = 0
        with self._content.operation() as op:
            for member, data in rules.referrers(op, self.name, digest, after):
                document = parse_document(data, member.media_type, member.digest)
                kind = document.artifact_type
                if kind is None and isinstance(document, Manifest) and document.config is not None:
                    kind = document.config.media_type
                if artifact_type is not None and kind != artifact_type:
                    continue
                if len(out) == limit or (max_bytes is not None and size >= max_bytes):
                    return out, True
                size += member.size
                out.append(
                    Referrer(
                        member.digest, member.size, member.media_type, kind, document.annotations
                    )
                )
        return out, False

    # ---- tags ---------------------------------------------------------------------------------

    def tags(self, after: str = "", limit: int | None = None) -> list[str]:
        """Tags behind `after`, in lexical order, at most `limit`."""
        with self._content.operation() as op:
            return rules.tags(op, self.name, after, limit)

    def remove_tag(self, tag: str) -> None:
        """Removes a tag; the manifest stays. Raises NotFoundError."""
        with self._content.operation() as op:
            if rules.resolve(op, self.name, tag) is None:
                raise NotFoundError(f"no tag {tag[:160]} in repository {self.name}")
            op.commit_refs({}, [rules.ref_name(self.name, tag)])
