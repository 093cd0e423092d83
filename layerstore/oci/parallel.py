"""Several blobs at once: threads, one progress, and one way to stop them all.

Progress callbacks come from one thread at a time. When one raises, or any task fails, or the caller is
interrupted, the others stop at their next piece, all threads are waited for, and the first error goes
up: nothing runs on behind the caller's back.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from ..errors import CancelledError
from ..values import Progress, ProgressCallback

T = TypeVar("T")
TICK = 256 * 1024
"""Bytes between two calls of progress."""


class Meter:
    """Counts bytes for one stage and tells the callback; also the brake of all its threads."""

    def __init__(self, callback: ProgressCallback | None, stage: str, total: int = 0) -> None:
        self._callback = callback
        self._stage = stage
        self._lock = threading.Lock()
        self._told = 0
        self.done = 0
        self.total = total
        self.stopped = threading.Event()
        self._parts: dict[str, list[int]] = {}
        self._mine = threading.local()

    @contextlib.contextmanager
    def part(self, digest: str, size: int) -> Iterator[None]:
        """While it is entered, what this thread counts belongs to one blob, told of by its digest."""
        mine = [0, size]
        with self._lock:
            self._parts[digest] = mine
        self._mine.part = mine
        try:
            yield
        finally:
            self._mine.part = None
            with self._lock:
                self._parts.pop(digest, None)

    def add(self, size: int) -> None:
        """Counts bytes. Raises CancelledError once the work was stopped, and whatever the callback
        raises."""
        if self.stopped.is_set():
            raise CancelledError("cancelled: other work of the same call failed or was stopped")
        part = getattr(self._mine, "part", None)
        with self._lock:
            self.done += size
            if part is not None:
                part[0] = min(part[0] + size, part[1])
            if self._callback is None or (
                self.done - self._told < TICK and not (self.done == self.total and size)
            ):
                return
            self._told = self.done
            self._tell()

    def expect(self, size: int) -> None:
        """Announces how many bytes are still to come, and tells the callback, so that even a tiny
        work can be cancelled."""
        with self._lock:
            self.total = self.done + size
            if self._callback is not None:
                self._tell()

    def _tell(self) -> None:
        assert self._callback is not None
        try:
            parts = tuple((digest, done, size) for digest, (done, size) in self._parts.items())
            self._callback(Progress(self._stage, self.done, self.total, parts=parts))
        except BaseException:
            self.stopped.set()
            raise


MAX_WORKERS = 4
"""Each put holds some 25 MiB of windows, and keeps more than one core busy."""


def workers(jobs: int | None) -> int:
    """How many threads: what was asked for, else the cores that this process may use, up to 4."""
    if jobs is not None:
        return max(1, jobs)
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0))))


def run(tasks: Sequence[Callable[[], T]], jobs: int | None, meter: Meter) -> list[T]:
    """Runs the tasks, results in their order. The first failure stops the rest and is raised."""
    count = min(workers(jobs), len(tasks))
    if count <= 1:
        return [task() for task in tasks]
    pool = ThreadPoolExecutor(count, thread_name_prefix="layerstore-oci")
    try:
        futures = [pool.submit(task) for task in tasks]
        wait(futures, return_when=FIRST_EXCEPTION)
        if _first_error(futures) is None:
            return [future.result() for future in futures]
        meter.stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
        # The first to fail may have been told to stop by the one that failed for a reason.
        failed = _first_error(futures)
        assert failed is not None
        raise failed
    except BaseException:
        meter.stopped.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _first_error(futures: Sequence[Future[T]]) -> BaseException | None:
    """The error that is a reason, rather than its consequence."""
    errors = [
        e for f in futures if f.done() and not f.cancelled() and (e := f.exception()) is not None
    ]
    return next(
        (e for e in errors if not isinstance(e, CancelledError)), errors[0] if errors else None
    )
