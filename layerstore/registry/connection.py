"""A connection: uvicorn's, but with an end to patience and to headers.

uvicorn waits for ever for the first request, and for the rest of one that began. Here the headers of a
request are there within a time, and within a size, or the connection ends: 408, 431. A body that
nobody reads any more, because its request was answered already, is taken in for the same time, so that
the client gets to read its answer. Silence in a body that is wanted, and a client that takes nothing,
are the application's to notice; it finds what cuts the connection at once as `abort` in the scope's
state, and how many bytes the client has not taken as `unsent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .config import LimitsConfig

GOODBYE = 2.0
"""Seconds that a TLS client has to end its side when the server stops."""
_LINE = {408: b"408 Request Timeout", 431: b"431 Request Header Fields Too Large"}


def _unsent(transport: asyncio.Transport) -> int:
    """Bytes of answers that the client has not taken: here, and in the kernel's hands."""
    size = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
            size += int.from_bytes(answer, sys.byteorder)
    return size


def connection(limits: LimitsConfig) -> type[H11Protocol]:
    """The class of connections under these limits, as uvicorn wants it."""

    class Connection(H11Protocol):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self._timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.app_state = {
                **self.app_state,
                "abort": transport.abort,
                "unsent": lambda: _unsent(transport),
            }
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            begun = self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]
            if self._unattended and begun:
                # What was answered is not all there yet, or the next header has begun behind it.
                self._unset_keepalive_if_required()
            self._watch()

        def shutdown(self) -> None:
            """The server stops. A TLS client that says no good-bye is not waited for."""
            super().shutdown()
            if self.transport.is_closing():
                self.loop.call_later(GOODBYE, self.transport.abort)

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                # Whoever is at work on it finds the client gone, and does not answer a second time.
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if len(self.conn.trailing_data[0]) > limits.header_bytes:
                self._end(431)
            elif self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:
                self.transport.close()

        @property
        def _unattended(self) -> bool:
            """Whether nobody is at work on what comes in: it is a header, or an unwanted body."""
            answered = self.cycle is None or self.cycle.response_complete
            return answered and not self.transport.is_closing()

        def _watch(self) -> None:
            """From the first byte of a header on, time runs; so it does before the first request, and
            while an unwanted body comes. Between two requests it is uvicorn's to end the connection."""
            if not self._unattended:
                self._unwatch()
            elif self._timer is None and self.timeout_keep_alive_task is None:
                self._timer = self.loop.call_later(limits.header_time, self._over)

        def _unwatch(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _over(self) -> None:
            self._timer = None
            if self._unattended:
                self._end(408)

        def _end(self, status: int) -> None:
            """Ends the connection, with an answer where one is due."""
            if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.IDLE:
                self.transport.write(
                    b"HTTP/1.1 "
                    + _LINE[status]
                    + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                )
            self.transport.close()

    return Connection
