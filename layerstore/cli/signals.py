"""SIGINT and SIGTERM: stop cleanly, at any time.

The first signal raises KeyboardInterrupt in the main thread: every `with` on the way out puts back
what it holds, so nothing half-done stays. Signals within the next second are taken as the same one
(`timeout` and terminals send several). A later one ends the process at once: the store needs no
goodbye, by design.

An exception that a signal raises inside a destructor or a callback of C is lost in CPython; the guard
remembers that a stop was asked for, and progress callbacks raise it again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SAME_STOP = 1.0  # seconds within which a second signal means the first
STOPPING = (signal.SIGINT, signal.SIGTERM)


class Guard:
    """A context in which a signal to stop becomes KeyboardInterrupt.

    With `owns_process` the handlers stay until the process ends, so that no late signal turns into a
    traceback or another exit status; otherwise what was there before comes back."""

    def __init__(self, *, owns_process: bool) -> None:
        self._owns_process = owns_process
        self._before: dict[signal.Signals, Any] = {}
        self._asked: float | None = None
        self._over = False

    @property
    def asked(self) -> bool:
        """Whether a signal to stop has come."""
        return self._asked is not None

    def check(self) -> None:
        """Raises KeyboardInterrupt when a stop was asked for and did not get through."""
        if self._asked is not None and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    def __enter__(self) -> Guard:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup, or a background job of a plain shell: asked not to stop
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        if not self._owns_process:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before.clear()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
            if not self._over:
                raise KeyboardInterrupt
        elif now - self._asked > SAME_STOP:
            os._exit(130)
