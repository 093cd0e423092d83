"""A registry as others see it (distribution-spec 1.1): what `Remote` asks, sends, and believes.

Nothing that comes is believed: documents are verified before they are given out, blobs are as long as
the caller says and are verified by whoever takes them; one that broke off goes on at the byte where it
broke. How a request gets there and back is `session`'s.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .. import mediatypes
from ..digest import digest_of
from ..digest import parse as parse_digest
from ..errors import (
    DigestMismatchError,
    InvalidInputError,
    LimitError,
    NotFoundError,
    PermissionDeniedError,
    RemoteError,
)
from . import names
from .options import RemoteOptions
from .retries import Patience
from .session import Answer, Session
from .tokens import scope
from .wire import Response

if TYPE_CHECKING:
    from .blobs import RemoteBlob

MAX_MANIFEST = 4 << 20
MAX_LISTING = 4 << 20
MAX_PAGES = 10_000


@dataclass(frozen=True, slots=True)
class RemoteManifest:
    """A manifest or index, verified: its exact bytes, what it is, its digest."""

    data: bytes
    media_type: str
    digest: str


@dataclass(frozen=True, slots=True)
class RemoteTag:
    """What a tag or digest means now. `digest` or `size` None: the registry does not say."""

    digest: str | None
    size: int | None
    media_type: str


class Remote(Session):
    """One registry: what it has, and what it is to have."""

    @classmethod
    def of(
        cls,
        text: str,
        options: RemoteOptions | None = None,
        *,
        stopped: threading.Event | None = None,
    ) -> tuple[Remote, str]:
        """The registry of `docker://HOST[:PORT][/PREFIX]`, and what its repositories begin with."""
        host, prefix = names.parse_registry(text)
        return cls(host, options, stopped=stopped), prefix

    # ---- reading ------------------------------------------------------------------------------

    def resolve(self, repository: str, reference: str) -> RemoteTag:
        """What a tag or digest is, without its bytes. Raises NotFoundError, PermissionDeniedError,
        RemoteError, as all that follow do."""
        with self.call(
            "HEAD", self._manifest_path(repository, reference), (scope(repository, "pull"),)
        ) as got:
            self.expect(got, (200,), f"{self.host}/{repository} has no manifest {reference}")
            digest = _stated_digest(got.response)
            kind = mediatypes.base(got.response.header("Content-Type") or "")
            return RemoteTag(digest, got.response.length, kind)

    def manifest(self, repository: str, reference: str) -> RemoteManifest:
        """A manifest by tag or digest, at most 4 MiB. Raises DigestMismatchError, LimitError, too."""
        what = f"{self.host}/{repository}: manifest {reference}"
        path = self._manifest_path(repository, reference)
        with self.call("GET", path, (scope(repository, "pull"),), limit=MAX_MANIFEST) as got:
            self.expect(got, (200,), f"{self.host}/{repository} has no manifest {reference}")
            data = got.body
            if len(data) > MAX_MANIFEST:
                raise LimitError(f"{what} has more than {MAX_MANIFEST} bytes")
            kind = mediatypes.base(got.response.header("Content-Type") or "")
            wanted = reference if ":" in reference else _stated_digest(got.response)
        digest = digest_of(data, "sha256" if wanted is None else parse_digest(wanted)[0])
        if wanted is not None and digest != wanted:
            raise DigestMismatchError(
                f"{what} came with digest {digest} instead of {wanted}",
                expected=wanted,
                got=digest,
            )
        return RemoteManifest(data, kind if mediatypes.is_document(kind) else "", digest)

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Bytes of a blob, or None if it is not there. -1 where the registry does not say."""
        parse_digest(digest)
        with self.call(
            "HEAD", f"/v2/{repository}/blobs/{digest}", (scope(repository, "pull"),)
        ) as got:
            if got.response.status == 404:
                return None
            self.expect(got, (200,), "")
            length = got.response.length
            return -1 if length is None else length

    def open_blob(self, repository: str, digest: str, size: int) -> RemoteBlob:
        """A blob of `size` bytes as a file to be read once, which mends its connection. Whoever reads
        it checks its digest."""
        from .blobs import RemoteBlob

        return RemoteBlob(self, repository, digest, size)

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository. Raises NotFoundError."""
        path = f"/v2/{repository}/tags/list?n=1000"
        found: list[str] = []
        for _ in range(MAX_PAGES):
            with self.call("GET", path, (scope(repository, "pull"),), limit=MAX_LISTING) as got:
                self.expect(got, (200,), f"{self.host} has no repository {repository}")
                value = self._json(got, "the list of tags")
                listed = value.get("tags") or []
                if not isinstance(listed, list) or not all(isinstance(t, str) for t in listed):
                    raise RemoteError(f"{self.host}: the list of tags holds no tags")
                found += listed
                link = _next_link(got.response)
            if link is None or not listed:
                return found
            path = self._own_path(self._redirect(got.response.url, link))
        raise LimitError(f"{self.host}/{repository} has more than {MAX_PAGES} pages of tags")

    def referrers(self, repository: str, digest: str) -> bytes | None:
        """The index of what refers to a manifest: from the referrers API, as it came or all its pages
        as one, else from the tag that stands for it. None where there is nothing of the kind."""
        algorithm, raw = parse_digest(digest)
        path = f"/v2/{repository}/referrers/{digest}"
        pages: list[bytes] = []
        for _ in range(MAX_PAGES):
            with self.call("GET", path, (scope(repository, "pull"),), limit=MAX_LISTING) as got:
                kind = mediatypes.base(got.response.header("Content-Type") or "")
                if got.response.status != 200 or kind != mediatypes.OCI_INDEX:
                    if pages:
                        self.expect(got, (200,), f"{self.host}/{repository}: a page is missing")
                        raise RemoteError(f"{self.host}: a page of referrers is {kind[:100]!r}")
                    break
                pages.append(got.body)
                if sum(map(len, pages)) > MAX_LISTING:
                    raise LimitError(f"{self.host}: the referrers of {digest} are too many")
                link = _next_link(got.response)
            if link is None:
                return pages[0] if len(pages) == 1 else self._joined(pages)
            path = self._own_path(self._redirect(got.response.url, link))
        if pages:
            raise LimitError(f"{self.host}: the referrers of {digest} have too many pages")
        try:
            found = self.manifest(repository, f"{algorithm}-{raw.hex()[:64]}")
        except (NotFoundError, PermissionDeniedError):
            return None
        return found.data if mediatypes.is_index(found.media_type) else None

    def _joined(self, pages: list[bytes]) -> bytes:
        """Pages of one index as one."""
        try:
            first, *rest = (json.loads(page) for page in pages)
            for one in rest:
                first["manifests"] += one["manifests"]
            return json.dumps(first).encode()
        except (ValueError, LookupError, TypeError, RecursionError) as e:
            raise RemoteError(f"{self.host}: a page of referrers cannot be read: {e}") from e

    def stream(self, repository: str, digest: str, offset: int, patience: Patience) -> Response:
        """The bytes of a blob from `offset` on; the answer is a 200 or a 206. Fails for good only."""
        parse_digest(digest)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        got = self.call(
            "GET",
            f"/v2/{repository}/blobs/{digest}",
            (scope(repository, "pull"),),
            headers=headers,
            patience=patience,
        )
        try:
            self.expect(got, (200, 206), f"{self.host}/{repository} has no blob {digest}", digest)
        except BaseException:
            got.response.close()
            raise
        return got.response

    # ---- writing ------------------------------------------------------------------------------

    def put_manifest(self, repository: str, reference: str, data: bytes, media_type: str) -> bool:
        """Puts a document under a tag or digest. Whether the registry keeps referrers by itself."""
        digest = digest_of(data)
        with self.call(
            "PUT",
            self._manifest_path(repository, reference),
            (scope(repository, "pull,push"),),
            headers={"Content-Type": media_type, "Content-Length": str(len(data))},
            body=data,
        ) as got:
            self.expect(got, (200, 201), f"{self.host}/{repository} does not take {digest}")
            stated = _stated_digest(got.response)
            if stated is not None and stated.startswith("sha256:") and stated != digest:
                raise DigestMismatchError(
                    f"{self.host}/{repository} stored {stated} instead of {digest}",
                    expected=digest,
                    got=stated,
                )
            return got.response.header("OCI-Subject") is not None

    # ---- helpers -------------------------------------------------------------------------------

    def _manifest_path(self, repository: str, reference: str) -> str:
        if ":" in reference:
            parse_digest(reference)
        return f"/v2/{repository}/manifests/{quote(reference, safe=':')}"

    def _json(self, got: Answer, what: str) -> dict[str, Any]:
        try:
            if len(got.body) > MAX_LISTING:
                raise ValueError(f"more than {MAX_LISTING} bytes")
            value = json.loads(got.body)
            if not isinstance(value, dict):
                raise ValueError("it is no object")
            return value
        except (ValueError, RecursionError) as e:
            raise RemoteError(f"{self.host}: {what} cannot be read: {e}") from e


def _stated_digest(response: Response) -> str | None:
    """Docker-Content-Digest, if it is a digest."""
    text = response.header("Docker-Content-Digest")
    if text is None:
        return None
    try:
        parse_digest(text)
    except InvalidInputError:
        return None
    return text


def _next_link(response: Response) -> str | None:
    """The next page (RFC 8288), or None."""
    for value in response.headers("Link"):
        match = re.match(r"\s*<([^>]*)>\s*;.*\brel=\"?next\"?", value)
        if match:
            return match[1]
    return None
