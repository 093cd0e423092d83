"""Dedup look-ups: which chunks are already here, certain to the last bit of their id.

The index keys chunks by the first 16 bytes of their id. A hit counts only when the whole id stands
in the header of the block that holds it, when it is not condemned (it may be deleted soon), and
when it is not known to be damaged (content put again then heals it, under its old number).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import CorruptError
from . import blocks
from .condemned import Condemned
from .index import Snapshot, Table
from .packs import Packs
from .reading import Chunks
from .rows import ID_KEY, Place, PlaceCache, Runs, decode_runs, encode_runs, number_key


class Known:
    """The look-ups of one operation. Caches places and id tables: numbers are never used twice, and
    nothing that its operation has seen is deleted before its epoch ends."""

    TABLES = 512

    def __init__(self, chunks: Chunks, packs: Packs, secret: bytes) -> None:
        self._chunks = chunks
        self._packs = packs
        self._secret = secret
        self._places = PlaceCache()
        self._tables: dict[tuple[int, int], bytes] = {}

    def find(
        self, snapshot: Snapshot, ids: Sequence[bytes], condemned: Condemned | None
    ) -> tuple[list[int], set[int]]:
        """A number for each id, or -1; and those of the numbers that are damaged."""
        rows = dict(snapshot.many(Table.CHUNKS, {i[:ID_KEY] for i in ids}))
        out: list[int] = []
        damaged: set[int] = set()
        watch = snapshot.count(Table.DAMAGE) > 0
        place: Place | None = None
        table = b""
        for i in ids:
            value = rows.get(i[:ID_KEY])
            if value is None:
                out.append(-1)
                continue
            number = int.from_bytes(value, "big")
            if place is None or not place.first <= number < place.end:
                place, table = self._look(snapshot, number)
            if place is None:
                out.append(-1)
                continue
            if (
                not table
                and watch
                and snapshot.get(Table.DAMAGE, b"n" + number_key(number)) is not None
            ):
                # The header that would confirm the id is damaged too: known by its first half.
                damaged.add(number)
                out.append(number)
                continue
            at = 32 * (place.index + number - place.first)
            if table[at : at + 32] != i or (condemned is not None and condemned.has_number(number)):
                out.append(-1)
                continue
            if watch and snapshot.get(Table.DAMAGE, b"n" + number_key(number)) is not None:
                damaged.add(number)
            out.append(number)
        return out, damaged

    def find_file(
        self, snapshot: Snapshot, file_id: bytes, condemned: Condemned | None
    ) -> Runs | None:
        """The chunks of a whole file that was cut before, or None."""
        value = snapshot.get(Table.FILES, file_id[:ID_KEY])
        if value is None or value[:ID_KEY] != file_id[ID_KEY:]:
            return None
        runs = decode_runs(value[ID_KEY:])
        watch = snapshot.count(Table.DAMAGE) > 0
        for first, count in runs:
            at = first
            while at < first + count:
                place = self._place(snapshot, at)
                if place is None:
                    return None
                stop = min(place.end, first + count)
                if condemned is not None and condemned.overlaps(at, stop - at):
                    return None
                if watch and any(
                    snapshot.get(Table.DAMAGE, b"n" + number_key(n)) is not None
                    for n in range(at, stop)
                ):
                    return None
                at = stop
        return runs

    def _look(self, snapshot: Snapshot, number: int) -> tuple[Place | None, bytes]:
        """Where a number lies, and the ids of its block. What was seen before is looked up again when
        no header stands there: compaction may have moved it (rule 14)."""
        place = self._place(snapshot, number)
        table = b"" if place is None else self._ids(place)
        if place is not None and not table:
            now = self._chunks.place(snapshot, number)
            if now is None or (now.pack, now.offset) != (place.pack, place.offset):
                self._places = PlaceCache()
                place = now
                table = b"" if now is None else self._ids(now)
        return place, table

    def _place(self, snapshot: Snapshot, number: int) -> Place | None:
        place = self._places.find(number)
        if place is None:
            place = self._chunks.place(snapshot, number)
            if place is not None:
                self._places.add(place)
        return place

    def _ids(self, place: Place) -> bytes:
        """The id table of a block; empty when its header is damaged (then nothing is a hit)."""
        key = (place.pack, place.offset)
        found = self._tables.get(key)
        if found is None:
            try:
                head = blocks.parse(
                    self._secret, self._packs.read(place.pack, place.offset, place.head)
                )
            except CorruptError:
                head = None
            found = b"" if head is None else head.ids
            if len(self._tables) >= self.TABLES:
                self._tables.clear()
            self._tables[key] = found
        return found


def file_row(file_id: bytes, runs: Runs) -> tuple[bytes, bytes]:
    """The row of a whole-file id."""
    return file_id[:ID_KEY], file_id[ID_KEY:] + encode_runs(runs)
