"""Connections whose waits end soon after the work was stopped: for a name, a server, TLS, bytes.

A read that waits in the kernel for a silent server sees nothing of a stop that another thread asked
for. Here all waiting is for at most `SLICE` seconds, then it is looked whether there is still reason to
wait; how long a connection may be silent is the socket's timeout, as everywhere. A server that says a
byte now and then would hold a thread for ever: what comes, while it is waited for, comes at a rate, or
the connection counts as silent. Looking up a name cannot be broken off at all: it is left alone in a
thread of its own.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

T = TypeVar("T")
SLICE = 0.25
Addresses = list[tuple[int, int, int, str, Any]]


class _Patient:
    """What the sockets of plain and of TLS connections have in common."""

    stopped: threading.Event
    slowest: int
    """Bytes a second that have to come while they are waited for, looked at each time that as long was
    waited as the socket's timeout; 0: any."""

    _waited = 0.0
    _came = 0

    if TYPE_CHECKING:  # of the socket

        def gettimeout(self) -> float | None: ...
        def settimeout(self, value: float | None, /) -> None: ...
        def fileno(self) -> int: ...

    def _patiently(self, step: Callable[[], T], otherwise: int) -> T:
        """Takes a step once it can be taken without waiting. `otherwise`: what it waits for, if it does
        not say so itself. Raises TimeoutError, ConnectionAbortedError once stopped."""
        timeout = self.gettimeout()
        end = None if timeout is None else time.monotonic() + timeout
        if timeout == 0:
            return step()
        self.settimeout(0)
        try:
            while True:
                if self.stopped.is_set():
                    raise ConnectionAbortedError(errno.ECANCELED, "the work was stopped")
                try:
                    return step()
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                except BlockingIOError:
                    wanted = otherwise
                began = time.monotonic()
                self._wait(wanted, end)
                if wanted == select.POLLIN:
                    self._judge(time.monotonic() - began, timeout)
        finally:
            self.settimeout(timeout)

    def _judge(self, waited: float, window: float | None) -> None:
        """Raises TimeoutError for a server that was waited for long, and sent little."""
        self._waited += waited
        if not self.slowest or window is None or self._waited < window:
            return
        if self._came < self.slowest * self._waited:
            raise TimeoutError(f"fewer than {self.slowest} bytes a second came")
        self._waited, self._came = 0.0, 0

    def _arrived(self, size: int) -> int:
        if not self._came:
            # How long an answer takes to begin says nothing of its rate; the timeout bounds it.
            self._waited = 0.0
        self._came += size
        return size

    def _asked(self, size: int) -> int:
        """What is sent is a new question: its answer may take its time again."""
        self._waited, self._came = 0.0, 0
        return size

    def _wait(self, wanted: int, end: float | None) -> None:
        poll = select.poll()
        poll.register(self.fileno(), wanted)
        while not self.stopped.is_set():
            left = SLICE if end is None else min(SLICE, end - time.monotonic())
            if left <= 0:
                raise TimeoutError("timed out")
            if poll.poll(left * 1000):
                return


class PatientSocket(_Patient, socket.socket):
    """A TCP connection."""

    def reach(self, address: Any) -> None:
        """Connects."""

        def step() -> None:
            code = self.connect_ex(address)
            if code in (errno.EINPROGRESS, errno.EALREADY):
                raise BlockingIOError(code, "not yet")
            if code not in (0, errno.EISCONN):
                raise OSError(code, os.strerror(code))

        self._patiently(step, select.POLLOUT)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        receive = super().recv_into
        return self._arrived(self._patiently(lambda: receive(buffer, nbytes, flags), select.POLLIN))

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        send = super().send
        return self._asked(self._patiently(lambda: send(data, flags), select.POLLOUT))

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        with memoryview(data) as view, view.cast("B") as octets:
            at = 0
            while at < len(octets):
                at += self.send(octets[at:], flags)


class PatientTLS(_Patient, ssl.SSLSocket):
    """The same under TLS."""

    def do_handshake(self, block: bool = False) -> None:
        shake = super().do_handshake
        self._patiently(shake, select.POLLIN)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        receive = super().recv_into
        return self._arrived(self._patiently(lambda: receive(buffer, nbytes, flags), select.POLLIN))

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        send = super().send
        return self._asked(self._patiently(lambda: send(data, flags), select.POLLOUT))


def watching(context: ssl.SSLContext, stopped: threading.Event, slowest: int = 0) -> ssl.SSLContext:
    """The context, of whose connections no wait outlives a stop."""
    bound = {"stopped": stopped, "slowest": slowest}
    context.sslsocket_class = type("Bound", (PatientTLS,), bound)
    return context


def connect(
    host: str,
    port: int,
    timeout: float | None,
    stopped: threading.Event,
    slowest: int = 0,
) -> socket.socket:
    """A TCP connection to the first address of a name that has one. Raises gaierror, TimeoutError,
    OSError."""
    bound = {"stopped": stopped, "slowest": slowest}
    kind: type[PatientSocket] = type("Bound", (PatientSocket,), bound)
    failed = OSError(errno.EHOSTUNREACH, "the name has no address")
    for family, what, protocol, _, address in _look_up(host, port, stopped):
        made = kind(family, what, protocol)
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(timeout)
            made.reach(address)
            return made
        except OSError as e:
            failed = e
        except BaseException:
            made.close()
            raise
        made.close()
        if stopped.is_set():
            break
    raise failed


def _look_up(host: str, port: int, stopped: threading.Event) -> Addresses:
    """The addresses of a name."""
    found: list[Addresses] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))  # type: ignore[arg-type]
        except BaseException as e:
            failed.append(e)
        done.set()

    threading.Thread(target=ask, name="layerstore-name", daemon=True).start()
    while not done.wait(SLICE):
        if stopped.is_set():
            raise ConnectionAbortedError(errno.ECANCELED, "the work was stopped")
    if failed:
        raise failed[0]
    return found[0]
