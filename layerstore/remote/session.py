"""Requests to one registry: how it is reached, who asks, what may be asked again, where redirects lead.

A request that fails for a reason which may pass is made again (`retries`). Redirects are followed for
reading only, a few of them, never out of TLS, and what proves who we are is for the registry's own
host alone. `client` says what is asked; what an answer means that was not wanted is said here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

from .. import mediatypes
from ..errors import (
    InvalidInputError,
    LayerstoreError,
    LimitError,
    NotFoundError,
    PermissionDeniedError,
    RemoteError,
)
from . import credentials, names
from .options import RemoteOptions
from .retries import PASSING, Patience, retry_after
from .tokens import MAX_TOKEN, Authority
from .wire import MAX_SMALL, BrokenConnection, Response, Wire

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


class Session:
    """One registry, as far as every request to it is alike. Safe to share between threads; `close` ends
    its connections. `stopped` set: whatever waits, for an answer or to try again, gives up with
    CancelledError."""

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
        self._wire = Wire(self.host, self.options, self._stopped)
        self._base = ""
        self._start_lock = threading.Lock()
        self._authorities: dict[str, Authority] = {}
        self._lock = threading.Lock()
        self._challenges: list[str] = []

    def close(self) -> None:
        self._wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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

    def stop(self) -> None:
        """Ends what other threads wait for, for good."""
        self._stopped.set()

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
        if kind is None or issubclass(kind, LayerstoreError):
            self.drop()
        else:  # interrupted: what is still to come is not waited for
            self.response.close()

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
