"""One request as an operator sees it: how long, how much, and how it ended; to metrics and access log.

It stands between server and application, and sees what really went over the wire.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .http import Message, Receive, Scope, Send

if TYPE_CHECKING:
    from .app import Registry


class Watch:
    """Wraps `receive` and `send` of one request; `kind` is set by who knows what it is for."""

    def __init__(self, registry: Registry, scope: Scope, receive: Receive, send: Send) -> None:
        self._registry = registry
        self._scope = scope
        self._receive = receive
        self._send = send
        self._began = time.perf_counter()
        self._received = self._sent = self._status = 0
        self._ended = False
        self.kind = "none"
        registry.metrics.in_flight += 1

    def _busy(self) -> None:
        # Who looks after the server does not keep it from being idle.
        if self.kind not in ("none", "health", "ready", "metrics"):
            self._registry.busy()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._busy()
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self._status = message["status"]
        else:
            self._sent += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            self._busy()

    def end(self) -> None:
        """The request is over."""
        registry, scope = self._registry, self._scope
        registry.metrics.in_flight -= 1
        self._busy()
        seconds = time.perf_counter() - self._began
        status = self._status if self._ended else 0
        method = scope["method"]
        registry.metrics.observe(self.kind, method, status, seconds, self._received, self._sent)
        if not registry.log.enabled:
            return
        client = scope.get("client") or ("", 0)
        query = scope.get("query_string", b"").decode("latin-1")
        path = scope["path"] + (f"?{query}" if query else "")
        agent = dict(scope["headers"]).get(b"user-agent", b"").decode("latin-1")
        cut = None
        if not self._ended:
            cut = "stop" if registry.stopping else "connection"
        registry.log.request(
            str(client[0]), method, path, status, seconds, self._received, self._sent, agent, cut
        )
