"""What the registry counts, as Prometheus reads it (text format 0.0.4).

Each worker counts for itself in memory and writes its counts, now and then, to a file of its own in a
directory that the workers share; whoever is asked adds them up, so that it does not matter which
worker is asked. Names of repositories are no labels: a client must not make the answer grow.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable

from .. import Stats, Store

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper ends of the latencies' buckets, in seconds."""
SAVE_EVERY = 1.0
STATS_EVERY = 60.0
"""Seconds, at least, that the sizes of the store are believed: to count them takes a walk over it."""
STATS_SHARE = 0.005
"""Of the time, at most, that such walks take: they slow down what else this process answers."""
KIND = "text/plain; version=0.0.4; charset=utf-8"

Key = tuple[str, ...]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

HELP = {
    "requests_total": ("counter", "Requests that were answered, or cut."),
    "request_seconds": ("histogram", "From the headers of a request to the end of its answer."),
    "received_bytes_total": ("counter", "Bytes of bodies that came."),
    "sent_bytes_total": ("counter", "Bytes of bodies that went."),
    "requests_in_flight": ("gauge", "Requests that are being answered."),
    "uploads_total": ("counter", "Uploads that were begun, finished, cancelled, or mounts."),
    "damaged_total": ("counter", "Answers that were cut because what is stored is damaged."),
    "workers_restarted_total": ("counter", "Workers that died and were started again."),
    "maintenance_runs_total": ("counter", "Runs of gc and optimize that this server began."),
    "maintenance_seconds_total": ("counter", "Seconds that they took."),
    "maintenance_freed_bytes_total": ("counter", "Bytes that they gave back."),
    "maintenance_pending_bytes": ("gauge", "Bytes that the last gc left to the next."),
}
UPLOADS = {
    ("uploads", "POST", 202): "begun",
    ("uploads", "POST", 201): "at once",
    ("upload", "PUT", 201): "finished",
    ("upload", "DELETE", 204): "cancelled",
}


class Metrics:
    """The counts of one worker. `directory`: where those of all are, None for a single one."""

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory
        self._counts: dict[Key, float] = {}
        self._saved = 0.0
        self._changed = False
        self._counting = threading.Lock()
        self._sizes: list[str] = []
        self._believed = -math.inf
        self.in_flight = 0

    def add(self, name: str, *labels: str, by: float = 1.0) -> None:
        """`labels`: names and values in turn."""
        key = (name, *labels)
        self._counts[key] = self._counts.get(key, 0.0) + by

    def put(self, name: str, value: float, *labels: str) -> None:
        """Sets what is no count."""
        self._counts[(name, *labels)] = value

    def observe(
        self, kind: str, method: str, status: int, seconds: float, received: int, sent: int
    ) -> None:
        """One request. `status` 0: the client was gone, or the answer was cut."""
        if method not in METHODS:
            method = "other"
        self.add("requests_total", "endpoint", kind, "method", method, "code", str(status))
        place = bisect.bisect_left(BOUNDS, seconds)
        bound = repr(BOUNDS[place]) if place < len(BOUNDS) else "+Inf"
        self.add("request_seconds_bucket", "endpoint", kind, "le", bound)
        self.add("request_seconds_sum", "endpoint", kind, by=seconds)
        if received:
            self.add("received_bytes_total", by=received)
        if sent:
            self.add("sent_bytes_total", by=sent)
        done = UPLOADS.get((kind, method, status))
        if done is not None:
            self.add("uploads_total", "result", done)
        self._changed = True

    def save(self, *, now: bool = False) -> None:
        """Lets the other workers see it, at most once a second, to be called again and again. A full
        disk makes counts old, and nothing else wrong."""
        if self._directory is None or (not now and not self._changed):
            return
        if not now and time.monotonic() - self._saved < SAVE_EVERY:
            return
        self._saved, self._changed = time.monotonic(), False
        counts = [[*key, value] for key, value in self._counts.items()]
        counts.append(["requests_in_flight", float(self.in_flight)])
        path = os.path.join(self._directory, f"{os.getpid()}.json")
        with contextlib.suppress(OSError):
            with open(f"{path}.new", "w", encoding="utf-8") as f:
                json.dump(counts, f)
            os.replace(f"{path}.new", path)

    def _all(self) -> dict[Key, float]:
        total = dict(self._counts)
        total[("requests_in_flight",)] = float(self.in_flight)
        if self._directory is None:
            return total
        for name in os.listdir(self._directory):
            if not name.endswith(".json") or name == f"{os.getpid()}.json":
                continue
            with contextlib.suppress(OSError, ValueError):
                with open(os.path.join(self._directory, name), encoding="utf-8") as f:
                    for *labels, value in json.load(f):
                        key = tuple(labels)
                        total[key] = total.get(key, 0.0) + value
        return total

    def text(self, store: Store) -> str:
        """All of it, with the sizes of the store. Reads the store, so not in the event loop."""
        total = self._all()
        lines: list[str] = []
        for name, (kind, words) in HELP.items():
            lines += [f"# HELP layerstore_{name} {words}", f"# TYPE layerstore_{name} {kind}"]
            if kind == "histogram":
                lines += _histogram(name, total)
                continue
            lines += sorted(_line(key, value) for key, value in total.items() if key[0] == name)
        return "\n".join([*lines, *self._sizes_of(store)]) + "\n"

    def _sizes_of(self, store: Store) -> list[str]:
        """The store's sizes, as they are or lately were. Whoever asks meanwhile gets the old ones."""
        if not self._counting.acquire(blocking=not self._sizes):
            return self._sizes
        try:
            began = time.monotonic()
            if began >= self._believed:
                self._sizes = list(_sizes(store))
                took = time.monotonic() - began
                self._believed = began + max(STATS_EVERY, took / STATS_SHARE)
            return self._sizes
        finally:
            self._counting.release()


def _line(key: Key, value: float) -> str:
    name, *labels = key
    pairs = ",".join(
        f'{label}="{text}"' for label, text in zip(labels[::2], labels[1::2], strict=True)
    )
    return (
        f"layerstore_{name}{{{pairs}}} {value:.16g}" if pairs else f"layerstore_{name} {value:.16g}"
    )


def _histogram(name: str, total: dict[Key, float]) -> Iterable[str]:
    for endpoint in sorted({key[2] for key in total if key[0] == f"{name}_bucket"}):
        seen = 0.0
        for bound in (*map(repr, BOUNDS), "+Inf"):
            seen += total.get((f"{name}_bucket", "endpoint", endpoint, "le", bound), 0.0)
            yield _line((f"{name}_bucket", "endpoint", endpoint, "le", bound), seen)
        yield _line((f"{name}_count", "endpoint", endpoint), seen)
        yield _line(
            (f"{name}_sum", "endpoint", endpoint), total[(f"{name}_sum", "endpoint", endpoint)]
        )


def _sizes(store: Store) -> Iterable[str]:
    stats = store.stats()
    gauges: dict[str, tuple[str, list[tuple[Key, int]]]] = {
        "store_images": ("Names of images.", [((), stats.images)]),
        "store_blobs": ("Blobs.", [((), stats.blob_count)]),
        "store_blob_bytes": ("Bytes of blobs as they came.", [((), stats.blob_bytes)]),
        "store_stored_bytes": (
            "Bytes on the disk.",
            [(("part", part), size) for part, size in _parts(stats).items()],
        ),
        "store_dead_bytes": ("Bytes that gc has yet to free.", [((), stats.dead_bytes)]),
    }
    for name, (words, rows) in gauges.items():
        yield f"# HELP layerstore_{name} {words}"
        yield f"# TYPE layerstore_{name} gauge"
        for labels, value in rows:
            yield _line((name, *labels), float(value))


def _parts(stats: Stats) -> dict[str, int]:
    return {
        "packs": stats.packs,
        "raw": stats.raw,
        "unpacked": stats.unpacked,
        "index": stats.index,
        "raw-cache": stats.raw_cache,
    }
