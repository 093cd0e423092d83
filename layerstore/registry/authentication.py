"""Who is asking: from the Authorization header to a caller, and what to answer those who may not.

Without credentials one is anybody. Wrong ones are refused, never taken for none (RFC 9110, 11;
Docker's token protocol). A refusal invites to say who one is, where that can help: 401 with a
challenge; otherwise it is 403.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from collections.abc import Iterable, Mapping

from .access import Caller, Policy
from .config import AccessConfig
from .http import Failure, Request
from .logins import Logins
from .passwords import Passwords, TooManyLogins
from .routes import Route
from .tokens import TokenRefused, Tokens

Headers = tuple[tuple[str, str], ...]
NOTHING: Mapping[str, frozenset[str]] = {}
"""The rights of a token that nobody in particular has: what anybody may, and no more."""


class Authentication:
    """How callers of a registry are known. Raises InvalidInputError, UnsupportedError, OSError for a
    configuration that cannot be used."""

    def __init__(self, access: AccessConfig | None, secret: bytes | None = None) -> None:
        self.policy = Policy.of(access)
        self._access = access
        self._anybody = Caller(self.policy)
        self._passwords: Passwords | None = None
        self._tokens: Tokens | None = None
        self.logins: Logins | None = None
        if access is not None and access.htpasswd is not None:
            self._passwords = Passwords(access.htpasswd)
        if access is not None and access.token is not None:
            self._tokens = Tokens(access.token)
        if access is not None and access.login is not None:
            self.logins = Logins(access.login, secret or os.urandom(32))

    @property
    def asks(self) -> bool:
        """Whether there is any way to say who one is."""
        return self._passwords is not None or self._tokens is not None

    def close(self) -> None:
        if self._passwords is not None:
            self._passwords.close()

    async def caller(self, request: Request) -> Caller:
        """Who is asking. Fails with 401 for credentials that are not right."""
        header = request.headers.get("authorization")
        if header is None or not self.asks:
            return self._anybody
        scheme, _, value = header.strip().partition(" ")
        if scheme.lower() == "bearer" and self._tokens is not None:
            try:
                claims = self._tokens.verify(value.strip())
            except TokenRefused as e:
                raise self._unknown(f"the token is refused: {e}", "invalid_token") from e
            return Caller(self.policy, claims.subject, claims.rights)
        if scheme.lower() == "bearer" and self.logins is not None:
            try:
                name = self.logins.verify(value.strip())
            except TokenRefused as e:
                raise self._unknown(f"the token is refused: {e}", "invalid_token") from e
            return Caller(self.policy, name, NOTHING if name is None else None)
        if scheme.lower() == "basic":
            return await self._basic(value.strip())
        raise self._unknown(f"{scheme[:20]!r} is no way to log in here")

    async def _basic(self, value: str) -> Caller:
        try:
            name, colon, password = base64.b64decode(value, validate=True).partition(b":")
            user = name.decode("utf-8")
        except (ValueError, binascii.Error) as e:
            raise self._unknown("the Authorization header cannot be read") from e
        if colon and not user and not password:
            return self._anybody  # what containers/image sends when it has no credentials
        if self._passwords is None:
            raise self._unknown("only tokens are taken here")
        right = self._passwords.remembered(user, password)
        if right is None:
            try:
                right = await asyncio.wrap_future(self._passwords.check(user, password))
            except TooManyLogins as e:
                raise Failure(
                    429,
                    "TOOMANYREQUESTS",
                    "too many log in at once",
                    headers=(("Retry-After", "1"),),
                ) from e
        if not right:
            raise self._unknown("the name or the password is wrong")
        return Caller(self.policy, user)

    def _unknown(self, message: str, error: str | None = None) -> Failure:
        return Failure(401, "UNAUTHORIZED", message, headers=self._challenge((), error))

    def refusal(self, caller: Caller, scopes: Iterable[str] = ()) -> Failure:
        """The answer to a caller without the rights: how to get them, if there is a way."""
        if self.asks and (caller.name is None or caller.token is not None):
            error = "insufficient_scope" if caller.token is not None else None
            return Failure(
                401,
                "UNAUTHORIZED",
                "this needs more rights than there are without logging in"
                if caller.name is None
                else "the token does not allow this",
                headers=self._challenge(scopes, error),
            )
        return Failure(403, "DENIED", "this is not allowed")

    def _challenge(self, scopes: Iterable[str], error: str | None) -> Headers:
        out: list[tuple[str, str]] = []
        access = self._access
        if self.logins is not None:
            # Nothing beside it: who has no password would give up at a challenge for one.
            return (_bearer(self.logins.url, self.logins.service, scopes, error),)
        if self._tokens is not None and access is not None and access.token is not None:
            out.append(_bearer(access.token.realm, access.token.service, scopes, error))
        if self._passwords is not None and access is not None:
            out.append(("WWW-Authenticate", f'Basic realm="{access.realm}", charset="UTF-8"'))
        return tuple(out)


def _bearer(realm: str, service: str, scopes: Iterable[str], error: str | None) -> tuple[str, str]:
    parts = [f'realm="{realm}"', f'service="{service}"']
    wanted = " ".join(scopes)
    if wanted:
        parts.append(f'scope="{wanted}"')
    if error is not None:
        parts.append(f'error="{error}"')
    return "WWW-Authenticate", f"Bearer {','.join(parts)}"


def scopes(route: Route, rights: Iterable[str], source: str | None = None) -> list[str]:
    """What a token must allow for a request, as Docker's token protocol writes it."""
    if route.kind == "catalog":
        return ["registry:catalog:*"]
    if not route.name:
        return []
    wanted = set(rights)
    actions = "pull,push" if wanted & {"create", "overwrite"} else ",".join(sorted(wanted))
    out = [f"repository:{route.name}:{actions}"]
    if source is not None:
        out.append(f"repository:{source}:pull")
    return out
