"""Requests and responses: what the handlers see of HTTP, over ASGI.

Headers and bodies come from outside: a body is read piece by piece, documents up to a limit, and paths
are taken as they were sent, so that no encoding hides anything.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

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


class Request:
    """One request. `path` is as it was sent, but for `%3A`, which clients use in digests."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self.method: str = scope["method"]
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        self.path = raw.decode("latin-1").replace("%3A", ":").replace("%3a", ":")
        self.headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        try:
            self.query = parse_qs(
                scope.get("query_string", b"").decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(scope.get("query_string")),
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
        """The body as it comes. Raises Disconnected."""
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            self._ended = not message.get("more_body", False)
            body = message.get("body", b"")
            if body:
                yield body

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
