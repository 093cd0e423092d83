"""When a server optimizes and collects: at once, when it is idle, or when that was long ago.

Pure: it is asked with the time and the moment of the last request, and told how jobs ended. A job that
waits for idleness is stopped as soon as requests come back; both lose nothing by that. But a server
that is never idle must not grow for ever: what has not come to its end for `overdue` goes on beside
requests (upkeep.py keeps it out of their way), and to collect then goes before to optimize.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config

JOBS = ("optimize", "gc")
GC_EVERY = 60.0
"""Seconds, at most, between two runs; at least, after one that failed."""
OVER_EVERY = 3600.0
"""Seconds, at most, until what has run out without a request is looked for."""


class Schedule:
    """Moments are seconds of one clock; `start`: when the server began, `last`: when a request came."""

    def __init__(self, config: Config, start: float) -> None:
        upkeep, proxy = config.maintenance, config.proxy
        self._when = {"optimize": upkeep.optimize, "gc": upkeep.gc}
        self._quiet = upkeep.quiet
        self._overdue = upkeep.overdue
        self._longest = max(upkeep.idle, (proxy.idle or 0.0) if proxy is not None else 0.0)
        self._done = dict.fromkeys(JOBS, -math.inf)
        """When the last run began, if it came to its end."""
        self._whole = dict.fromkeys(JOBS, start)
        """When the last run that came to its end began."""
        self._failed = dict.fromkeys(JOBS, -math.inf)
        """When a run failed."""
        self._pending = False

    def next(self, now: float, last: float) -> str | None:
        """The job that is to begin, if any; asked while none runs."""
        if self._late("gc", now, last):
            return "gc"
        for what in JOBS:
            idle = self._when[what] == "now" or now - last >= self._quiet
            if (idle and self._wanted(what, now, last)) or self._late(what, now, last):
                return what
        return None

    def stops(self, what: str, now: float, last: float) -> bool:
        """Whether a job that runs is to stop."""
        # One that fails each time would never let the other come to its end.
        sound = self._failed["gc"] < self._whole["gc"]
        if what == "optimize" and sound and self._late("gc", now, last):
            return True
        waits = self._when[what] == "idle" and now - self._whole[what] < self._overdue
        return waits and now - last < min(1.0, self._quiet)

    def ended(self, what: str, began: float, now: float, result: str) -> None:
        """A job has ended: `done`, `interrupted` or `failed`."""
        self._done[what] = -math.inf
        if result == "done":
            self._done[what] = self._whole[what] = began
        elif result == "failed":
            self._failed[what] = now

    def held_back(self, pending: bool) -> None:
        """Whether the last collecting left something to the next."""
        self._pending = pending

    def _late(self, what: str, now: float, last: float) -> bool:
        """Whether it goes on beside requests."""
        late = now - self._whole[what] >= self._overdue
        return late and self._wanted(what, now, last)

    def _wanted(self, what: str, now: float, last: float) -> bool:
        """Whether there may be something for it to do by now."""
        done = self._done[what]
        if self._when[what] == "off" or now - self._failed[what] < GC_EVERY:
            return False
        if now - done < min(GC_EVERY, self._quiet):
            return False
        # Nothing came since the last time: nothing is to be done, but what time does.
        return last >= done or (what == "gc" and self._runs_out(now, last))

    def _runs_out(self, now: float, last: float) -> bool:
        """Whether something may have run out since a gc began that was done: uploads, blobs that no
        manifest names, what a mirror was to keep for a time; or was held back then."""
        done = self._done["gc"]
        if now - done < min(OVER_EVERY, self._longest / 8):
            return False
        # One more begins when all has run out that was asked for last.
        return self._pending or done <= last + self._longest + 1.0
