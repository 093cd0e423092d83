"""Several processes on one store: workers that serve, and one at a time that optimizes or collects.

The supervisor opens nothing of the store. Workers share the listening socket, so the kernel hands each
connection to one that waits; one that dies is started again, and uploads go on in any of them.
schedule.py says when what maintains (upkeep.py) is to run, and to stop.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from types import FrameType
from typing import TYPE_CHECKING

from .metrics import Metrics
from .schedule import Schedule
from .upkeep import maintain

if TYPE_CHECKING:
    from .config import Config
    from .server import Options

TICK = 0.2
RESTART = 1.0
"""Seconds that a worker stays down at least: one that cannot start must not use up the machine."""
STOP = 30.0
"""Seconds that a process which was told to end has beyond the time of grace, before it is killed."""

_CONTEXT = multiprocessing.get_context("spawn")


def supervise(
    path: str,
    listening: socket.socket,
    config: Config,
    options: Options,
    ready: Callable[[str], None] | None,
) -> None:
    """Serves the store at `path` until a signal stops it."""
    with tempfile.TemporaryDirectory(prefix="layerstore-serve-") as directory:
        Supervisor(path, listening, config, options, directory).run(ready)


class Supervisor:
    """Starts, watches and ends the processes."""

    def __init__(
        self,
        path: str,
        listening: socket.socket,
        config: Config,
        options: Options,
        directory: str,
    ) -> None:
        self._path = path
        self._listening = listening
        self._config = config
        self._options = options
        self._directory = directory
        self._metrics = Metrics(directory)
        self._last: Synchronized[float] = _CONTEXT.Value("d", time.monotonic(), lock=True)
        self._workers: list[tuple[SpawnProcess, float]] = []
        self._job: tuple[str, SpawnProcess, float, str] | None = None
        self._schedule = Schedule(config, time.monotonic())
        self._stop = False
        self._secret = os.urandom(32)

    def run(self, ready: Callable[[str], None] | None) -> None:
        from .server import url_of

        def stop(number: int, frame: FrameType | None) -> None:
            self._stop = True

        before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._workers = [self._start() for _ in range(self._config.server.workers)]
            self._await_first()
            if ready is not None and not self._stop:
                ready(url_of(self._listening, tls=self._config.server.tls is not None))
            while not self._stop:
                self._revive()
                self._maintain()
                time.sleep(TICK)
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---- workers ------------------------------------------------------------------------------

    def _start(self) -> tuple[SpawnProcess, float]:
        process = _CONTEXT.Process(
            target=_work,
            args=(
                self._path,
                self._listening,
                self._config,
                self._options,
                self._directory,
                self._last,
                self._secret,
            ),
        )
        process.start()
        return process, time.monotonic()

    def _await_first(self) -> None:
        """Until every worker is up, each of which says so by its counts."""
        while not self._stop:
            up = {name for name in os.listdir(self._directory) if name.endswith(".json")}
            if all(f"{process.pid}.json" in up for process, _ in self._workers):
                return
            if any(process.exitcode is not None for process, _ in self._workers):
                raise RuntimeError("a worker of the registry ended as it began: see above")
            time.sleep(0.02)

    def _revive(self) -> None:
        for number, (process, since) in enumerate(self._workers):
            if process.exitcode is None or time.monotonic() - since < RESTART:
                continue
            self._bury(process)
            self._metrics.add("workers_restarted_total")
            self._metrics.save(now=True)
            self._workers[number] = self._start()

    def _bury(self, process: SpawnProcess) -> None:
        """What a worker has counted stays; what it was doing is over."""
        path = os.path.join(self._directory, f"{process.pid}.json")
        with contextlib.suppress(OSError, ValueError):
            with open(path, encoding="utf-8") as f:
                counts = [row for row in json.load(f) if row[0] != "requests_in_flight"]
            with open(f"{path}.new", "w", encoding="utf-8") as f:
                json.dump(counts, f)
            os.replace(f"{path}.new", path)
        process.join()
        process.close()

    # ---- maintenance --------------------------------------------------------------------------

    def _maintain(self) -> None:
        now, last = time.monotonic(), self._last.value
        if self._job is not None:
            self._watch(now, last)
            return
        what = self._schedule.next(now, last)
        if what is None:
            return
        report = os.path.join(self._directory, f"{what}.report")
        process = _CONTEXT.Process(
            target=maintain,
            args=(
                self._path,
                self._options,
                self._config.maintenance,
                what,
                report,
                self._last,
            ),
        )
        process.start()
        self._job = (what, process, now, report)

    def _watch(self, now: float, last: float) -> None:
        if self._job is None:
            return
        what, process, since, report = self._job
        if process.exitcode is None:
            if self._schedule.stops(what, now, last) and process.pid is not None:
                process.terminate()
            return
        code = process.exitcode
        process.close()
        self._job = None
        result = {0: "done", -signal.SIGTERM: "interrupted", 130: "interrupted"}.get(code, "failed")
        self._schedule.ended(what, since, now, result)
        self._metrics.add("maintenance_runs_total", "what", what, "result", result)
        self._metrics.add("maintenance_seconds_total", "what", what, by=now - since)
        with contextlib.suppress(OSError, ValueError):
            with open(report, encoding="utf-8") as f:
                said = json.load(f)
            os.unlink(report)
            self._metrics.add(
                "maintenance_freed_bytes_total", "what", what, by=float(said["freed_bytes"])
            )
            if "pending_bytes" in said:
                self._metrics.put("maintenance_pending_bytes", float(said["pending_bytes"]))
                self._schedule.held_back(said["pending_bytes"] > 0)
        self._metrics.save(now=True)

    # ---- the end ------------------------------------------------------------------------------

    def _end(self) -> None:
        processes = [process for process, _ in self._workers]
        if self._job is not None:
            processes.append(self._job[1])
        for process in processes:
            if process.exitcode is None:
                process.terminate()
        deadline = time.monotonic() + self._config.server.grace + STOP
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()


def _work(
    path: str,
    listening: socket.socket,
    config: Config,
    options: Options,
    directory: str,
    last: Synchronized[float],
    secret: bytes,
) -> None:
    """A worker, in its process."""
    import layerstore

    from .server import run

    def busy() -> None:
        last.get_obj().value = time.monotonic()

    metrics = Metrics(directory)
    with layerstore.open(path, timeout=options.timeout, raw_cache=options.raw_cache) as store:
        run(
            store,
            listening,
            config,
            options,
            lambda url: metrics.save(now=True),
            metrics=metrics,
            busy=busy,
            shared=directory,
            secret=secret,
        )
