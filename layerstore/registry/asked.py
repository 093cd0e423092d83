"""When the upstream was last asked for a thing, known to all workers of a mirror.

A table of fixed size in memory that they share, without locks: each slot holds a moment, and the key's
hash mixed with it. A slot that is written by two at once fits no key any more, and one that another key
has taken fits only that: what is lost so is asked for once more, and never believed for longer.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
import time

SLOTS = 65536
_SLOT = struct.Struct("<QQ")
_BITS = struct.Struct("<d")


class Asked:
    """The table of one directory, or of this process alone. Moments are those of a clock that all
    processes of a machine share."""

    def __init__(self, directory: str | None = None) -> None:
        size = SLOTS * _SLOT.size
        if directory is None:
            self._table = mmap.mmap(-1, size)
            return
        path = os.path.join(directory, "asked")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            self._table = mmap.mmap(fd, size)
        finally:
            os.close(fd)

    def note(self, *key: str) -> None:
        """It was asked for now."""
        at, word = _place(key)
        (bits,) = struct.unpack("<Q", _BITS.pack(time.monotonic()))
        self._table[at : at + _SLOT.size] = _SLOT.pack(word ^ bits, bits)

    def age(self, *key: str) -> float:
        """Seconds since then; infinite where that is not known."""
        at, word = _place(key)
        mixed, bits = _SLOT.unpack_from(self._table, at)
        if mixed ^ bits != word or not bits:
            return math.inf
        moment: float = _BITS.unpack(struct.pack("<Q", bits))[0]
        return max(0.0, time.monotonic() - moment)

    def close(self) -> None:
        self._table.close()


def _place(key: tuple[str, ...]) -> tuple[int, int]:
    """The slot of a key, and what tells it from the others of that slot."""
    name = "\0".join(key).encode()
    slot, word = struct.unpack("<QQ", hashlib.blake2b(name, digest_size=16).digest())
    return slot % SLOTS * _SLOT.size, word
