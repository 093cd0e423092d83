"""A client of the registry without a network: one request is one call of the application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json()["errors"][0]["code"]


class Client:
    """`pieces` of a body come as messages of their own; after them, `cut` ends the connection, and
    `silent` says nothing more of a body that goes on."""

    def __init__(self, application) -> None:
        self.application = application

    def __call__(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        pieces: Iterable[bytes] | None = None,
        cut: bool = False,
        silent: bool = False,
    ) -> Answer | None:
        target, _, query = path.partition("?")
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if pieces is None:
            sent.setdefault("content-length", str(len(body)))
        scope = {
            "type": "http",
            "method": method,
            "path": target,
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "headers": [(n.encode(), v.encode()) for n, v in sent.items()],
        }
        waiting = list(pieces) if pieces is not None else [body]
        status: list[int] = []
        got: dict[str, str] = {}
        out = bytearray()

        async def receive():
            if waiting:
                piece = waiting.pop(0)
                return {
                    "type": "http.request",
                    "body": piece,
                    "more_body": bool(waiting) or cut or silent,
                }
            if not cut:
                await asyncio.Event().wait()  # a client that is there says nothing more
            return {"type": "http.disconnect"}

        async def send(message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
                got.update((n.decode(), v.decode()) for n, v in message["headers"])
            else:
                out.extend(message.get("body", b""))

        asyncio.run(self.application(scope, receive, send))
        return Answer(status[0], got, bytes(out)) if status else None
