"""Digests of a stream, computed beside the thread that moves the bytes.

SHA-256 is the slowest step that must see every byte in order, so it gets a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from ..digest import Hasher, hasher

SMALL = 64 * 1024


class HashPipe:
    """Feeds one or several digests. A buffer that was handed over must not change before the
    future that `feed` returned is done. Use as a context manager."""

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._hashers: dict[str, Hasher] = {
            name: hasher(name) for name in dict.fromkeys(algorithms)
        }
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def __enter__(self) -> HashPipe:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def feed(self, data: bytes | memoryview) -> Future[None] | None:
        """Adds bytes. None when they are hashed already (small pieces are not worth a hand-over)."""
        if self._pool is None:
            if len(data) <= SMALL:
                self._update(data)
                return None
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="layerstore-hash")
        self._last = self._pool.submit(self._update, data)
        return self._last

    def _update(self, data: bytes | memoryview) -> None:
        for h in self._hashers.values():
            h.update(data)

    def digests(self) -> dict[str, str]:
        """`{algorithm: digest}` of everything that was fed."""
        if self._last is not None:
            self._last.result()
        return {name: f"{name}:{h.hexdigest()}" for name, h in self._hashers.items()}
