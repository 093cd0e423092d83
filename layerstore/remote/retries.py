"""When to try again: waits that grow, what a server asks for, and the end of patience.

429 and 5xx, and connections that cannot be made or break, may pass; all else is an answer. Retry-After
(RFC 9110, section 10.2.3) is heeded up to `LONGEST`; a server that wants more is given up at once, with
its wish in the message.
"""

from __future__ import annotations

import random
import threading
import time
from email.utils import parsedate_to_datetime

from ..errors import CancelledError

FIRST = 0.5
"""Seconds before the second try; twice as long before each further one."""
LONGEST = 120.0
_STOPPED = "cancelled: other work of the same call failed or was stopped"
PASSING = frozenset({408, 429, 500, 502, 503, 504})


class Patience:
    """Of one request, or one blob: how often it failed without getting anywhere."""

    def __init__(self, tries: int, stopped: threading.Event) -> None:
        self._tries = max(1, tries)
        self._stopped = stopped
        self._failed = 0

    def progressed(self) -> None:
        """Something came: the count begins anew."""
        self._failed = 0

    def again(self, wanted: float | None = None) -> bool:
        """Waits and says True, or False when it is enough. `wanted`: what the server asked for.
        Raises CancelledError when the work was stopped meanwhile."""
        if self._stopped.is_set():
            raise CancelledError(_STOPPED)  # it failed because of that
        self._failed += 1
        if self._failed >= self._tries or (wanted is not None and wanted > LONGEST):
            return False
        wait = FIRST * 2 ** (self._failed - 1) * random.uniform(0.75, 1.25)
        wait = max(min(wait, LONGEST / 4), wanted or 0.0)
        if self._stopped.wait(wait):
            raise CancelledError(_STOPPED)
        return True


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, as a number or a date; None for nothing that can be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
