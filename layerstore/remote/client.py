"""A registry as others see it (distribution-spec 1.1): what `Remote` asks, sends, and believes.

Nothing that comes is believed: documents are verified before they are given out, blobs are as long as
the caller says and are verified by whoever takes them. A request that fails for a reason which may
pass is made again (`retries`); a blob that broke off goes on at the byte where it broke. Redirects are
followed for reading only, a few of them, never out of TLS, and what proves who we are is for the
registry's own host alone.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

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
from . import credentials, names
from .options import RemoteOptions
from .retries import PASSING, Patience, retry_after
from .tokens import MAX_TOKEN, Authority, scope
from .wire import MAX_SMALL, BrokenConnection, Response, Wire

if TYPE_CHECKING:
    from .blobs import RemoteBlob

MAX_MANIFEST = 4 << 20
MAX_LISTING = 4 << 20
MAX_PAGES = 10_000
MAX_REDIRECTS = 5
MAX_CHALLENGES = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
ACCEPT = ", ".join(
    (
        mediatypes.OCI_MANIFEST,
        mediatypes.OCI_INDEX,
        mediatypes.DOCKER_MANIFEST,
        mediatypes.DOCKER_LIST,
        mediatypes.OCI_ARTIFACT,
    )
)
_REDIRECT_PORTS = {"https": 443, "http": 80}


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


class Remote:
    """One registry. Safe to share between threads; `close` ends its connections. `stopped` set:
    whatever waits to try again gives up with CancelledError."""

    def __init__(
        self,
        host: str,
        options: RemoteOptions | None = None,
        *,
        stopped: threading.Event | None = None,
    ) -> None:
        """Nothing is sent yet. Raises InvalidInputError for what is no host, UnsupportedError without
        urllib3."""
        self.host = names.check_host(host)
        self.options = options or RemoteOptions()
        self._stopped = stopped or threading.Event()
        self._wire = Wire(self.host, self.options)
        self._base = ""
        self._start_lock = threading.Lock()
        self._authorities: dict[str, Authority] = {}
        self._lock = threading.Lock()
        self._challenges: list[str] = []

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

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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
        """The index of what refers to a manifest, as it came: from the referrers API, else from the tag
        that stands for it. None where there is nothing of the kind."""
        algorithm, raw = parse_digest(digest)
        path = f"/v2/{repository}/referrers/{digest}"
        with self.call("GET", path, (scope(repository, "pull"),), limit=MAX_LISTING) as got:
            kind = mediatypes.base(got.response.header("Content-Type") or "")
            if got.response.status == 200 and kind == mediatypes.OCI_INDEX:
                if len(got.body) > MAX_LISTING:
                    raise LimitError(f"{self.host}: the referrers of {digest} are too many")
                return got.body
        try:
            found = self.manifest(repository, f"{algorithm}-{raw.hex()[:64]}")
        except (NotFoundError, PermissionDeniedError):
            return None
        return found.data if mediatypes.is_index(found.media_type) else None

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

    # ---- requests -----------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        scopes: tuple[str, ...],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        limit: int | None = None,
        patience: Patience | None = None,
    ) -> Answer:
        """One request to the registry, made again where that may help and `body` can be sent again.
        `limit`: how much of the body is read at once; without it, it is still to come."""
        wait = patience or self.patience()
        once = body is not None and not isinstance(body, bytes)
        while True:
            try:
                base = self._start(wait)
                url = path if "://" in path else base + path
                got = self._redirected(method, url, scopes, dict(headers or {}), body)
                if limit is not None:
                    small = limit if got.status in (200, 201) else MAX_SMALL
                    answer = Answer(got, got.small(small))
                else:
                    answer = Answer(got)
            except BrokenConnection as e:
                if not once and not e.final and wait.again():
                    continue
                raise RemoteError(f"{self.host}: {method} {_shown(path)}: {e}") from e
            if got.status in PASSING and not once:
                wanted = retry_after(got.header("Retry-After"))
                answer.drop()
                if wait.again(wanted):
                    continue
                more = "" if wanted is None else f", and wants {wanted:.0f} s of patience"
                raise RemoteError(
                    f"{self.host} answers {got.status} to {method} {_shown(path)}{more}: "
                    "try again later",
                    status=got.status,
                )
            return answer

    def send(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        headers: Mapping[str, str],
        body: Iterable[bytes] | None,
    ) -> Answer:
        """One request, made once: its body is a stream. Raises BrokenConnection."""
        return Answer(self._authorized(method, url, scopes, dict(headers), body))

    def patience(self) -> Patience:
        """What one request, or one blob, may cost."""
        return Patience(self.options.tries, self._stopped)

    def _redirected(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        headers: dict[str, str],
        body: bytes | Iterable[bytes] | None,
    ) -> Response:
        """The answer of where redirects lead."""
        at = url
        for _ in range(MAX_REDIRECTS + 1):
            got = self._authorized(method, at, scopes, headers, body)
            where = got.header("Location")
            if got.status not in REDIRECTS or where is None or method not in ("GET", "HEAD"):
                return got
            got.drop()
            at = self._redirect(at, where)
        raise RemoteError(
            f"{self.host} redirects {method} {_shown(url)} more than {MAX_REDIRECTS} times"
        )

    def _redirect(self, before: str, where: str) -> str:
        """Where a Location leads: to the web, and never out of TLS."""
        try:
            after = urljoin(before, where)
            parts = urlsplit(after)
            known = parts.scheme in ("https", "http") and bool(parts.hostname)
        except ValueError:
            known = False
        if not known:
            raise RemoteError(f"{self.host} redirects to {where[:200]!r}, which is no web address")
        if parts.scheme == "http" and urlsplit(before).scheme == "https":
            raise RemoteError(f"{self.host} redirects to {after[:200]!r}, out of TLS: not followed")
        return after

    def _authorized(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        headers: dict[str, str],
        body: bytes | Iterable[bytes] | None,
    ) -> Response:
        """One request, again when it was challenged. Who we are goes to the registry's own host
        only."""
        own = self._is_own(url)
        sent = dict(headers)
        if "/manifests/" in url and method in ("GET", "HEAD"):
            sent["Accept"] = ACCEPT
        for n in range(MAX_CHALLENGES + 1):
            authority = self._authority(scopes) if own else None
            used: str | None = None
            if authority is not None:
                plain = self._base.startswith("http:")
                used = authority.header(scopes, plain=plain)
                if used is not None:
                    sent["Authorization"] = used
            got = self._wire.send(method, url, sent, body, own=own)
            if got.status != 401 or authority is None or n == MAX_CHALLENGES:
                return got
            again = authority.challenged(got.headers("WWW-Authenticate"), scopes, used)
            if not again or (body is not None and not isinstance(body, bytes)):
                return got
            got.drop()
        raise AssertionError("unreachable")

    def _authority(self, scopes: tuple[str, ...]) -> Authority:
        """That of a repository: files may name other credentials for each."""
        repository = scopes[0].split(":")[1] if scopes else ""
        with self._lock:
            found = self._authorities.get(repository)
            if found is None:
                found = Authority(self.host, self._finder(repository), self._fetch)
                if self._challenges:
                    found.challenged(self._challenges, (), None)
                self._authorities[repository] = found
            return found

    def _finder(self, repository: str) -> Any:
        """Looks for credentials when they are first needed."""
        known: list[credentials.Credentials | None] = []

        def find() -> credentials.Credentials | None:
            if not known:
                options = self.options
                if options.creds is not None:
                    known.append(credentials.given(options.creds))
                else:
                    known.append(credentials.find(self.host, repository, authfile=options.authfile))
            return known[0]

        return find

    def _fetch(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        """A request to a token server. Its redirects are not followed: they would take a password
        along, or be of no use without."""
        wait = self.patience()
        while True:
            try:
                got = self._wire.send(method, url, headers, body, own=self._is_own(url))
                data = got.small(MAX_TOKEN)
            except BrokenConnection as e:
                if not e.final and wait.again():
                    continue
                raise RemoteError(f"the token server of {self.host}: {e}") from e
            if got.status in PASSING and wait.again(retry_after(got.header("Retry-After"))):
                continue
            return got.status, data

    def _start(self, wait: Patience) -> str:
        """Finds out, once, whether the registry speaks TLS, and what it challenges for; nobody is told
        who we are before that."""
        with self._start_lock:
            if not self._base:
                server = names.server_of(self.host)
                refused: BrokenConnection | None = None
                for scheme in self._schemes():
                    try:
                        got = self._wire.send("GET", f"{scheme}://{server}/v2/", {})
                        got.drop()
                    except BrokenConnection as e:
                        if e.final or (refused is not None and not refused.tls):
                            raise
                        refused = refused or e
                        continue
                    if scheme == "http" and got.status == 400:
                        refused = BrokenConnection("it does not speak plain HTTP")
                        continue
                    self._challenges = got.headers("WWW-Authenticate")
                    self._base = f"{scheme}://{server}"
                    break
                else:
                    raise refused or BrokenConnection("it does not answer", final=True)
            return self._base

    def _schemes(self) -> tuple[str, ...]:
        if names.is_loopback(self.host) and self.options.cert_dir is None:
            return ("http", "https")
        return ("https",) if self.options.tls_verify else ("https", "http")

    def _is_own(self, url: str) -> bool:
        return _origin(url) == _origin(self._base)

    def _own_path(self, url: str) -> str:
        """A URL of the registry's own as a path; another server's is refused."""
        if not self._is_own(url):
            raise RemoteError(f"{self.host} goes on at {url[:200]!r}, which is another server")
        parts = urlsplit(url)
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def upload_url(self, response: Response) -> str:
        """Where an upload goes on: absolute, and never out of TLS."""
        where = response.header("Location")
        if not where:
            raise RemoteError(f"{self.host} does not say where an upload goes on")
        return self._redirect(response.url, where)

    def _manifest_path(self, repository: str, reference: str) -> str:
        if ":" in reference:
            parse_digest(reference)
        return f"/v2/{repository}/manifests/{quote(reference, safe=':')}"

    # ---- answers ------------------------------------------------------------------------------

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

    def expect(
        self, got: Answer, wanted: tuple[int, ...], missing: str, digest: str | None = None
    ) -> None:
        """Raises what an answer means that is none of those that were wanted. `missing`: what to say
        of a 404."""
        status = got.response.status
        if status in wanted:
            return
        said = got.reason()
        more = f": {said}" if said else ""
        if status == 404:
            raise NotFoundError(f"{missing or self.host}{more}", digest=digest)
        if status in (401, 403):
            raise PermissionDeniedError(
                f"{self.host} does not allow this ({status}{more}): log in with skopeo, podman or "
                "docker login, or give --creds or --authfile",
                digest=digest,
            )
        if status == 413:
            raise LimitError(f"{self.host} finds it too large{more}", digest=digest)
        if status in (400, 405, 406, 415, 416, 422):
            raise InvalidInputError(f"{self.host} refuses ({status}{more})", digest=digest)
        raise RemoteError(f"{self.host} answers {status}{more}", status=status, digest=digest)


class Answer:
    """A response, with as much of its body as was read already; as a context it is dropped at its
    end."""

    def __init__(self, response: Response, body: bytes | None = None) -> None:
        self.response = response
        self._body = body

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.drop()

    def drop(self) -> None:
        if self._body is None:
            self._body = b""
            self.response.drop()

    @property
    def body(self) -> bytes:
        assert self._body is not None
        return self._body

    def reason(self) -> str:
        """What an answer says of itself (distribution-spec, "Error Codes"), one line."""
        if self._body is None:
            try:
                self._body = self.response.small(MAX_SMALL)
            except BrokenConnection:
                self._body = b""
        try:
            first = json.loads(self._body[: MAX_SMALL + 1])["errors"][0]
            text = f"{first.get('code', '')} {first.get('message', '')}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return ""
        return " ".join(text.split())[:300]


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


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    return parts.scheme, parts.hostname or "", port or _REDIRECT_PORTS.get(parts.scheme, 0)


def _shown(path: str) -> str:
    """A path for messages, without what may be secret in it."""
    return path.partition("?")[0][:200]
