"""Authorization: what a registry challenges us for, and the token that answers it.

RFC 7235 challenges; Basic (RFC 7617); Docker's token protocol: `Bearer realm, service, scope`, a GET
of the realm with Basic, or a POST with an identity token (OAuth 2, as distribution's docs/spec/auth
has them). A token is kept until shortly before it expires, for each set of scopes. A password goes to
a realm over TLS only, or where the registry itself is spoken to without.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from ..errors import InvalidInputError, PermissionDeniedError, RemoteError
from .credentials import Credentials
from .names import is_loopback

MAX_TOKEN = 1 << 20
DEFAULT_LIFE = 60.0
MARGIN = 5.0
"""Seconds before its end that a token is not used any more."""
CLIENT = "layerstore"

_SCHEME = re.compile(r"\s*,?\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s+|\Z)")
_PARAMETER = re.compile(
    r"""\s*,?\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))"""
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """`scheme` in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(values: list[str]) -> list[Challenge]:
    """What WWW-Authenticate headers ask for; what cannot be read is left out."""
    found: list[Challenge] = []
    for value in values:
        at = 0
        while match := _SCHEME.match(value, at):
            at = match.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(value, at):
                at = parameter.end()
                text = parameter[2] if parameter[2] is not None else parameter[3]
                parameters.setdefault(parameter[1].lower(), re.sub(r"\\(.)", r"\1", text))
            found.append(Challenge(match[1].lower(), parameters))
    return found


Fetch = Callable[[str, str, dict[str, str], bytes | None], tuple[int, bytes]]
"""Method, URL, headers, body to status and the body's beginning; it tries again by itself."""


class Authority:
    """What is known about a registry's wishes, and the tokens for them. Thread-safe."""

    def __init__(
        self, host: str, credentials: Callable[[], Credentials | None], fetch: Fetch
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._fetch = fetch
        self._lock = threading.Lock()
        self._basic = False
        self._bearer: dict[str, str] | None = None
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self._wider: dict[tuple[str, ...], str] = {}

    def header(self, scopes: tuple[str, ...], *, plain: bool) -> str | None:
        """The value of Authorization for a request; None for nothing. `plain`: the registry is spoken
        to without TLS. Raises PermissionDeniedError, RemoteError."""
        with self._lock:
            if self._bearer is not None:
                return "Bearer " + self._token(scopes, plain)
            if self._basic:
                found = self._credentials()
                return None if found is None or not found.user else found.basic
        return None

    def challenged(self, values: list[str], scopes: tuple[str, ...], used: str | None) -> bool:
        """Takes in what came with a 401; whether it is worth another try, of which the caller makes
        few. `used`: the header that was not enough."""
        challenges = parse_challenges(values)
        with self._lock:
            for one in challenges:
                if one.scheme == "bearer" and one.parameters.get("realm"):
                    self._bearer = one.parameters
                    kept = self._tokens.get(scopes)
                    if kept is not None and used == "Bearer " + kept[0]:
                        del self._tokens[scopes]
                    wanted = one.parameters.get("scope", "")
                    if used is not None and wanted and wanted != " ".join(scopes):
                        self._wider[scopes] = wanted
                    return True
            for one in challenges:
                if one.scheme == "basic":
                    self._basic = True
                    found = self._credentials()
                    return found is not None and bool(found.user) and used != found.basic
        return False

    def _token(self, scopes: tuple[str, ...], plain: bool) -> str:
        kept = self._tokens.get(scopes)
        if kept is not None and time.monotonic() < kept[1]:
            return kept[0]
        credentials = self._credentials()
        if credentials is not None and credentials.registry_token:
            return credentials.registry_token
        assert self._bearer is not None
        realm, service = self._bearer["realm"], self._bearer.get("service", "")
        try:
            secure = urlsplit(realm)
        except ValueError:
            secure = urlsplit("")
        if secure.scheme not in ("https", "http") or not secure.hostname:
            raise RemoteError(f"{self._host} names no URL for tokens: {realm[:200]!r}")
        if secure.scheme == "http" and not (plain or is_loopback(secure.netloc)):
            raise PermissionDeniedError(
                f"{self._host} wants credentials sent to {realm[:200]!r} without TLS: refused"
            )
        wanted = self._wider.get(scopes)
        listed = [wanted] if wanted else list(scopes)
        if credentials is not None and credentials.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", credentials.identity_token),
                ("service", service),
                ("client_id", CLIENT),
                ("scope", " ".join(listed)),
            ]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            status, data = self._fetch("POST", realm, headers, urlencode(form).encode())
        else:
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in listed]
            headers = {}
            if credentials is not None and credentials.user:
                query.append(("account", credentials.user))
                headers["Authorization"] = credentials.basic
            joint = "&" if secure.query else "?"
            url = f"{realm}{joint}{urlencode(query)}" if query else realm
            status, data = self._fetch("GET", url, headers, None)
        if status in (400, 401, 403):
            who = "without credentials" if credentials is None else "with these credentials"
            raise PermissionDeniedError(
                f"{self._host} gives no token for {' '.join(listed) or 'anything'} {who}: log in "
                "with skopeo, podman or docker login, or give --creds or --authfile"
            )
        if status != 200:
            raise RemoteError(f"the token server of {self._host} answers {status}", status=status)
        token, life = _answer(data, self._host)
        self._tokens[scopes] = (token, time.monotonic() + max(life - MARGIN, life / 2))
        return token


def _answer(data: bytes, host: str) -> tuple[str, float]:
    if len(data) > MAX_TOKEN:
        raise RemoteError(f"the token server of {host} answers with more than {MAX_TOKEN} bytes")
    try:
        value = json.loads(data)
        token = value.get("token") or value.get("access_token")
        life = value.get("expires_in") or DEFAULT_LIFE
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ValueError("no token in it")
        if isinstance(life, bool) or not isinstance(life, int | float):
            raise ValueError("expires_in is no number")
    except (ValueError, AttributeError, RecursionError) as e:
        raise RemoteError(f"the token server of {host} gives no token: {e}") from e
    return token, min(max(float(life), 1.0), 86400.0)


def scope(repository: str, actions: str) -> str:
    """A scope of the token protocol."""
    if any(c.isspace() for c in repository):
        raise InvalidInputError(f"not a repository: {repository!r}")
    return f"repository:{repository}:{actions}"
