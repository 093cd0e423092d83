"""Tokens of this server's own: who has said who they are, or that they are nobody, for a short while.

Docker, without a login, gives up where a password is asked for, though anybody may read the thing;
where tokens are given out it fetches one, with a login or without (Docker's token protocol). Such a
token says who asks, never what is allowed: that is looked up at each request, as with a password. It is
signed with a secret of the running server, which its workers share, and counts on the clock since the
machine's start.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .http import Failure, Request, Response, document
from .routes import Route
from .tokens import TokenRefused

if TYPE_CHECKING:
    from .app import Registry

LIFE = 300
"""Seconds."""
MAX_TOKEN = 4096


class Logins:
    """Gives out tokens and knows them again. `url`: where clients get them."""

    def __init__(self, url: str, secret: bytes) -> None:
        self.url = url
        self.service = urlsplit(url).netloc
        self._secret = secret

    def issue(self, name: str | None) -> str:
        """One for a user, or for nobody."""
        body = json.dumps([name, time.monotonic() + LIFE]).encode()
        return f"{_text(body)}.{_text(self._sign(body))}"

    def verify(self, token: str) -> str | None:
        """Whose it is. Raises TokenRefused."""
        try:
            if len(token) > MAX_TOKEN:
                raise ValueError
            body, signature = (_bytes(part) for part in token.split("."))
        except (ValueError, binascii.Error) as e:
            raise TokenRefused("it is none of ours") from e
        if not hmac.compare_digest(signature, self._sign(body)):
            raise TokenRefused("it is none of ours")
        name, until = json.loads(body)
        if time.monotonic() >= until:
            raise TokenRefused("it has expired")
        return None if name is None else str(name)

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, b"login\0" + body, hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    if not text.isascii():
        raise ValueError
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


async def give(registry: Registry, route: Route, request: Request) -> Response:
    """GET of a token: for whom a password says, or for nobody."""
    logins = registry.authentication.logins
    if logins is None:
        raise Failure(404, "UNSUPPORTED", "there is nothing at this path")
    caller = request.caller
    if request.headers.get("authorization", "").strip()[:6].lower() == "bearer":
        # Else whoever had a password once could go on for good.
        raise Failure(401, "UNAUTHORIZED", "no token for a token: a name and a password")
    token = logins.issue(caller.name)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    value = {"token": token, "access_token": token, "expires_in": LIFE, "issued_at": now}
    return document(value, headers=(("Cache-Control", "no-store"),))
