"""The access log: a line for each request, when it is over, on standard error; text or JSON.

A client chooses much of what stands in a line: it is bounded, and quoted as JSON does it, so that a
line is a line.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO

MAX_TEXT = 1024


class AccessLog:
    """`form`: `text` or `json`; `enabled=False` writes nothing."""

    def __init__(
        self, form: str = "text", *, enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self._json = form == "json"
        self.enabled = enabled
        self._stream = stream

    def request(
        self,
        client: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        received: int,
        sent: int,
        agent: str,
        cut: str | None = None,
    ) -> None:
        """One request that is over. `status` 0: it was cut; `cut` says by what: `stop` of the server at
        the end of its grace, or `connection`, by the client or for damage."""
        if not self.enabled:
            return
        what: dict[str, object] = {} if cut is None else {"cut": cut}
        self._write(
            {
                "event": "request",
                "client": client[:MAX_TEXT],
                "method": method[:MAX_TEXT],
                "path": path[:MAX_TEXT],
                "status": status,
                "seconds": round(seconds, 6),
                "received": received,
                "sent": sent,
                "agent": agent[:MAX_TEXT],
                **what,
            }
        )

    def event(self, event: str, **what: object) -> None:
        """Something else that an operator wants to know of, whether requests are logged or not."""
        self._write({"event": event, **what})

    def _write(self, what: dict[str, object]) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = json.dumps({"time": when, **what})
        else:
            words = (
                f"{name}={json.dumps(value)}" for name, value in what.items() if name != "event"
            )
            line = f"{when} {what['event']} {' '.join(words)}"
        print(line, file=self._stream or sys.stderr, flush=True)
