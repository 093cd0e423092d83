"""Progress on stderr: bytes, rate, time left.

On a terminal one line that is drawn again at most four times a second, and only for what takes more
than half a second; `plain` writes a line every few seconds, for logs. The meter is fed by the library's
callback, from any thread; it draws when it is fed and has no thread of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from .output import human, human_seconds, printable

if TYPE_CHECKING:
    import layerstore

PATIENCE = 0.5  # seconds of work before anything is shown
REDRAW = 0.25  # seconds between two drawings on a terminal
PLAIN_EVERY = 3.0  # seconds between two plain lines
PARTS = 4  # blobs on their way that are shown one by one
WINDOW = 5.0  # seconds over which the rate is measured: steady to look at, quick to follow


class Meter:
    """What a verb shows of its progress: `meter(progress)` is the library's callback."""

    def __init__(
        self,
        mode: str,
        stream: TextIO,
        *,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mode` is line, plain or none (see `choose`); `check` raises when the user wants to stop."""
        self._mode = mode
        self._stream = stream
        self._check = check
        self._clock = clock
        self._lock = threading.Lock()
        self._begin = clock()
        self._next = self._begin + (PLAIN_EVERY if mode == "plain" else PATIENCE)
        self._stage = ""
        self._seen: deque[tuple[float, int]] = deque()
        self._drawn = False

    def __call__(self, progress: layerstore.Progress) -> None:
        """Takes a step. Raises KeyboardInterrupt when a stop was asked for."""
        self._check()
        if self._mode == "none":
            return
        with self._lock:
            now = self._clock()
            self._remember(now, progress)
            if now < self._next:
                return
            self._next = now + (PLAIN_EVERY if self._mode == "plain" else REDRAW)
            self._draw(describe(progress, self._rate(now, progress.done)))

    def clear(self) -> None:
        """Takes the line off the terminal, so that a message can stand there."""
        with self._lock:
            if self._drawn:
                self._write("\r\x1b[K")
                self._drawn = False

    def _remember(self, now: float, progress: layerstore.Progress) -> None:
        if progress.stage != self._stage or (self._seen and progress.done < self._seen[-1][1]):
            self._stage = progress.stage  # or the same stage of the next thing
            self._seen.clear()
        if not self._seen or now - self._seen[-1][0] >= REDRAW:
            self._seen.append((now, progress.done))
        while now - self._seen[0][0] > WINDOW and len(self._seen) > 1:
            self._seen.popleft()

    def _rate(self, now: float, done: int) -> float:
        since, before = self._seen[0]
        return (done - before) / (now - since) if now > since else 0.0

    def _draw(self, text: str) -> None:
        if self._mode == "plain":
            self._write(text + "\n")
            return
        width = shutil.get_terminal_size().columns
        self._write(f"\r{text[: max(width - 1, 1)]}\x1b[K")
        self._drawn = True

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # stderr is gone: work goes on without an audience
            self._mode = "none"


def describe(progress: layerstore.Progress, rate: float) -> str:
    """One line: stage, done of total, rate per second, time left."""
    counts = progress.unit != "bytes"
    amount = str(progress.done) if counts else human(progress.done)
    if progress.total > 0:
        share = min(100 * progress.done // progress.total, 100)
        total = str(progress.total) if counts else human(progress.total)
        amount = f"{amount} of {total} ({share} %)"
    parts = [f"{amount} {progress.unit}" if counts else amount]
    if rate > 0:
        parts.append(f"{rate:.0f}/s" if counts else f"{human(int(rate))}/s")
        if progress.total > progress.done:
            parts.append(f"{human_seconds((progress.total - progress.done) / rate)} left")
    for digest, done, size in progress.parts[:PARTS]:
        short = printable(digest.partition(":")[2][:8])
        parts.append(f"{short} {min(100 * done // size, 100) if size else 100} %")
    return f"{printable(progress.stage)}: {', '.join(parts)}"


def choose(option: str, *, quiet: bool, stream: TextIO) -> str:
    """The meter's mode for `--progress`: `auto` is a line on a terminal, else nothing."""
    if option != "auto":
        return option
    if quiet or not stream.isatty():
        return "none"
    return "plain" if os.environ.get("TERM", "dumb") == "dumb" else "line"


def meter(option: str, *, quiet: bool, check: Callable[[], None]) -> Meter:
    """The meter of a command, on stderr."""
    return Meter(choose(option, quiet=quiet, stream=sys.stderr), sys.stderr, check=check)
