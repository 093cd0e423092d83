"""One job of upkeep, optimizing or collecting, in a process of its own that gives way to requests.

A process that wakes on a core that is in use waits now and then until the next tick, some milliseconds,
whatever the scheduler's classes are. So while requests come the job has one core, and a share of its
time, in bursts; when none came for a while it has all of them. It is nicer than others, and not of the
class that gets only what is left over: where the cores are full it would not come to the end of a
commit, for which all writers wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from typing import TYPE_CHECKING

from .. import Progress

if TYPE_CHECKING:
    from .config import MaintenanceConfig
    from .server import Options

SHARE = 0.15
"""Of one core, while requests come."""
NICE = 10
BURST = 0.2
"""Seconds of a core that are used before the job waits: many short turns disturb more than few long
ones."""
QUIET = 1.0
"""Seconds without a request after which all is the job's."""
NAP = 0.2
"""Seconds: at most so much later the job notices that it need not wait."""


class Pace:
    """Called between pieces of work: waits until the job has had no more than its share.

    `busy` says whether requests come. What was used before they came counts for nothing."""

    def __init__(
        self,
        busy: Callable[[], bool],
        *,
        used: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.monotonic,
        nap: Callable[[float], None] = time.sleep,
    ) -> None:
        self._busy = busy
        self._used = used
        self._now = now
        self._nap = nap
        self._since: tuple[float, float] | None = None
        self._all = sorted(os.sched_getaffinity(0))

    def __call__(self, progress: Progress | None = None) -> None:
        if not self._busy():
            if self._since is not None:
                self._since = None
                _on(self._all)
            return
        if self._since is None:
            self._since = self._used(), self._now()
            _on(self._all[-1:])
        used, at = self._since
        spent = self._used() - used
        if spent < BURST:
            return
        until = at + spent / SHARE
        while self._busy() and (left := until - self._now()) > 0:
            self._nap(min(left, NAP))
        # Each turn is paid for by itself: what was waited for elsewhere is no credit.
        self._since = self._used(), self._now()


def _on(cores: list[int]) -> None:
    """All threads of this process run there. What has ended meanwhile, or may not, stays as it is."""
    for name in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(name), cores)


def maintain(
    path: str,
    options: Options,
    upkeep: MaintenanceConfig,
    what: str,
    report: str,
    last: Synchronized[float],
) -> None:
    """One job, in its process; it may be interrupted at any moment. `last`: when a request came, by the
    monotonic clock."""
    # A terminal sends it to all; the supervisor decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        pace = Pace(lambda: time.monotonic() - last.get_obj().value < QUIET)
        pace()
        import layerstore

        with layerstore.open(path, timeout=options.timeout) as store:
            said: dict[str, int] = {}
            if what == "gc":
                collected = store.gc(
                    max_used_space=upkeep.max_used_space,
                    min_free_space=upkeep.min_free_space,
                    progress=pace,
                )
                said = {
                    "freed_bytes": collected.freed_bytes,
                    "pending_bytes": collected.pending_bytes,
                }
            else:
                said = {"freed_bytes": store.optimize(progress=pace).freed_bytes}
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    with open(report, "w", encoding="utf-8") as f:
        json.dump(said, f)
