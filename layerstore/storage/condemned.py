"""The condemned set: what gc has found dead and will delete, as one file that one index row names.

While it stands, dedup look-ups and reads by digest pass over what is in it; reading a number does
not (rule 5). Swapping it is one row, whatever its size (rule 12). File: `LSCOND\\x01\\n`, u64 blobs,
u64 runs, the blob serials (u64), the runs of chunk numbers (u64 first, u64 count), 32 bytes of
keyed BLAKE3.
"""

from __future__ import annotations

import os
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable

from ..core.hashing import blake3
from ..errors import CorruptError
from .disk import Disk
from .index import Snapshot, Table, Write
from .rows import Runs, serial_key

MAGIC = b"LSCOND\x01\n"
_HEAD = struct.Struct("<8sQQ")
_ROW = struct.Struct("<QQ")
KEY = b"condemned"


class Condemned:
    """The set in memory. `sequence` is that of the transaction T which condemned it."""

    def __init__(self, number: int, sequence: int, blobs: frozenset[int], runs: Runs) -> None:
        self.number = number
        self.sequence = sequence
        self.blobs = blobs
        self.runs = runs
        self._firsts = [first for first, _ in runs]

    def has_blob(self, serial: int) -> bool:
        return serial in self.blobs

    def has_number(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number < self.runs[at][0] + self.runs[at][1]

    def overlaps(self, first: int, count: int) -> bool:
        at = bisect_right(self._firsts, first + count - 1) - 1
        return at >= 0 and first < self.runs[at][0] + self.runs[at][1]


class Overtaken(Condemned):
    """What is condemned, for a snapshot whose set was deleted while it was open: a blob or number that
    the snapshot has and the index has no more was in it. Asks a young snapshot for each."""

    def __init__(
        self,
        number: int,
        sequence: int,
        has_blob: Callable[[int], bool],
        has_numbers: Callable[[int, int], bool],
    ) -> None:
        super().__init__(number, sequence, frozenset(), [])
        self._has_blob = has_blob
        self._has_numbers = has_numbers

    def has_blob(self, serial: int) -> bool:
        return not self._has_blob(serial)

    def has_number(self, number: int) -> bool:
        return not self._has_numbers(number, 1)

    def overlaps(self, first: int, count: int) -> bool:
        return not self._has_numbers(first, count)


class CondemnedFiles:
    """Reads and writes the files; remembers the last one read."""

    def __init__(self, directory: str, secret: bytes, disk: Disk) -> None:
        self.directory = directory
        self._secret = secret
        self._disk = disk
        self._lock = threading.Lock()
        self._last: Condemned | None = None

    def path(self, number: int) -> str:
        return os.path.join(self.directory, f"{number:08d}.condemned")

    def write(self, number: int, blobs: Iterable[int], runs: Runs) -> None:
        """A synced file; it counts once a row names it."""
        ordered = sorted(blobs)
        body = b"".join(
            (
                _HEAD.pack(MAGIC, len(ordered), len(runs)),
                b"".join(b.to_bytes(8, "little") for b in ordered),
                b"".join(_ROW.pack(*run) for run in runs),
            )
        )
        self._disk.write_file(self.path(number), body + blake3(body, self._secret))

    def load(self, snapshot: Snapshot) -> Condemned | None:
        """The set that a snapshot names. Raises CorruptError if its file is damaged or missing."""
        value = snapshot.get(Table.META, KEY)
        if value is None:
            return None
        number, sequence = self.named(value)
        with self._lock:
            if self._last is not None and self._last.number == number:
                return self._last
            made = self._read(number, sequence)
            self._last = made
            return made

    @staticmethod
    def named(value: bytes) -> tuple[int, int]:
        """Number and sequence of the set that a row names."""
        number, sequence = _ROW.unpack(value)
        return number, sequence

    def _read(self, number: int, sequence: int) -> Condemned:
        path = self.path(number)
        try:
            with open(path, "rb") as f:
                data = f.read()
        except FileNotFoundError as e:
            raise CorruptError(
                f"the condemned set {path} is missing: run `layerstore gc`", where=path
            ) from e
        body = data[:-32]
        if len(data) < _HEAD.size + 32 or blake3(body, self._secret) != data[-32:]:
            raise CorruptError(
                f"the condemned set {path} has a wrong checksum: run `layerstore gc`", where=path
            )
        _, n_blobs, n_runs = _HEAD.unpack_from(body)
        at = _HEAD.size + 8 * n_blobs
        blobs = frozenset(v for (v,) in struct.iter_unpack("<Q", body[_HEAD.size : at]))
        runs = list(struct.iter_unpack("<QQ", body[at : at + 16 * n_runs]))
        return Condemned(number, sequence, blobs, runs)

    @staticmethod
    def name(write: Write, number: int, sequence: int) -> None:
        write.put(Table.META, KEY, _ROW.pack(number, sequence))

    @staticmethod
    def clear(write: Write) -> None:
        """The set is done with: its row and everything un-condemned since go."""
        write.delete(Table.META, KEY)
        for key, _ in list(write.items(Table.REVIVED)):
            write.delete(Table.REVIVED, key)

    def remove(self, number: int) -> None:
        """Unlinks a file that no row names any more."""
        path = self.path(number)
        if os.path.exists(path):
            self._disk.unlink(path)


def is_hidden(snapshot: Snapshot, condemned: Condemned | None, serial: int) -> bool:
    """Whether a blob is condemned and was not named by a commit since."""
    return (
        condemned is not None
        and condemned.has_blob(serial)
        and snapshot.get(Table.REVIVED, serial_key(serial)) is None
    )
