"""Requests and responses: what the handlers see of HTTP, over ASGI.

Headers and bodies come from outside: a body is read piece by piece, documents up to a limit, and paths
are taken as they were sent, so that no encoding hides anything.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from .access import Caller

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = "application/json"


class Disconnected(Exception):
    """The client is gone, in the middle of its request."""


@dataclass(frozen=True, slots=True)
class Failure(Exception):
    """A request that ends with an error of the specification (distribution-spec, "Error Codes")."""

    status: int
    code: str
    message: str
    detail: object = None
    headers: tuple[tuple[str, str], ...] = ()

    def response(self) -> Response:
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        return document({"errors": [error]}, status=self.status, headers=self.headers)


@dataclass(slots=True)
class Response:
    """Status, headers, and a body: bytes, or pieces as they are made."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    pieces: AsyncIterator[bytes | memoryview] | None = None
    length: int | None = None

    def add(self, name: str, value: str) -> None:
        self.headers.append((name, value))


def document(
    value: object, *, status: int = 200, headers: tuple[tuple[str, str], ...] = (), kind: str = JSON
) -> Response:
    """A JSON answer."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return Response(status, [("Content-Type", kind), *headers], body)


def empty(status: int, *headers: tuple[str, str]) -> Response:
    return Response(status, list(headers))


ONCE = frozenset(
    (
        "authorization", "content-length", "content-range", "content-type", "host", "if-range",
        "range", "transfer-encoding",
    )
)  # fmt: skip
"""Headers that mean one thing: two of them are refused, lest two readers take one each."""

CLOSE = (("Connection", "close"),)
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class Request:
    """One request. `path` is as it was sent, but for `%3A`, which clients use in digests. `patience`:
    seconds that a client may be silent in the middle of its body."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        *,
        header_bytes: int = 1 << 20,
        patience: float | None = None,
    ) -> None:
        self.caller: Caller  # set before any handler sees the request
        self._receive = receive
        self._patience = patience
        self.method: str = scope["method"]
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        if not raw.startswith(b"/"):
            raw = _ABSOLUTE.sub(b"", raw)  # RFC 9112, 3.2.2: as a proxy is asked
        self.path = raw.decode("latin-1").replace("%3A", ":").replace("%3a", ":")
        query: bytes = scope.get("query_string", b"")
        if len(raw) + len(query) + sum(len(n) + len(v) for n, v in scope["headers"]) > header_bytes:
            raise Failure(431, "UNSUPPORTED", f"more than {header_bytes} bytes of headers")
        self.headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1").lower()
            if key in ONCE and key in self.headers:
                raise Failure(400, "UNSUPPORTED", f"{key} is there twice", headers=CLOSE)
            self.headers.setdefault(key, value.decode("latin-1"))
        if "transfer-encoding" in self.headers:
            # RFC 9112, 6.1: what a proxy in between took for the end of this request is not known.
            if "content-length" in self.headers:
                raise Failure(400, "UNSUPPORTED", "two lengths of one body", headers=CLOSE)
            if scope.get("http_version") == "1.0":
                raise Failure(400, "UNSUPPORTED", "HTTP/1.0 knows no chunks", headers=CLOSE)
        try:
            self.query = parse_qs(
                query.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(query),
                max_num_fields=64,
                errors="strict",
            )
        except ValueError as e:
            raise Failure(400, "UNSUPPORTED", f"the query cannot be read: {e}") from e
        self._ended = False

    def one(self, name: str) -> str | None:
        """A query parameter that may come once."""
        values = self.query.get(name, [])
        if len(values) > 1:
            raise Failure(400, "UNSUPPORTED", f"{name} is given {len(values)} times")
        return values[0] if values else None

    @property
    def length(self) -> int | None:
        """Content-Length, where it was sent."""
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise Failure(400, "SIZE_INVALID", f"Content-Length is no number: {text[:40]!r}")
        return int(text)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Disconnected; fails with 408 for a client that is silent."""
        while not self._ended:
            try:
                async with asyncio.timeout(self._patience):
                    message = await self._receive()
            except TimeoutError as e:
                raise Failure(
                    408,
                    "BLOB_UPLOAD_INVALID",
                    f"nothing came for {self._patience} seconds",
                    headers=CLOSE,
                ) from e
            if message["type"] == "http.disconnect":
                raise Disconnected
            self._ended = not message.get("more_body", False)
            body = message.get("body", b"")
            if body:
                yield body

    @property
    def ended(self) -> bool:
        """Whether all of the body was read."""
        return self._ended

    async def gone(self) -> None:
        """Returns when the client is gone, once its body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def body(self, limit: int) -> bytes:
        """The whole body. Fails with 413 past `limit` bytes."""
        length = self.length
        if length is not None and length > limit:
            raise Failure(413, "SIZE_INVALID", f"more than {limit} bytes are not taken here")
        out = bytearray()
        async for piece in self.pieces():
            out += piece
            if len(out) > limit:
                raise Failure(413, "SIZE_INVALID", f"more than {limit} bytes are not taken here")
        return bytes(out)
