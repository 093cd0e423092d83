"""Changes to where numbers lie: moved, healed, deleted. One row covers a run of numbers; taking a
part out splits it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .index import Snapshot, Table, Write
from .rows import ID_KEY, Place, Runs, number_key, to_number

if TYPE_CHECKING:
    from .storage import Storage


def all_places(snapshot: Snapshot) -> Iterator[Place]:
    """Every row of the block table, in number order."""
    for key, value in snapshot.items(Table.BLOCKS):
        yield Place.parse(key, value)


def place_of(snapshot: Snapshot, number: int) -> Place | None:
    """The row that covers a number, or None."""
    row = snapshot.floor(Table.BLOCKS, number_key(number))
    if row is None:
        return None
    place = Place.parse(*row)
    return place if number < place.end else None


def all_there(snapshot: Snapshot, runs: Runs) -> bool:
    """Whether every number has a place."""
    for first, count in runs:
        at, end = first, first + count
        while at < end:
            place = place_of(snapshot, at)
            if place is None:
                return False
            at = place.end
    return True


def carve(tx: Write, first: int, count: int) -> list[Place]:
    """Takes the place from a run of numbers; what is left of split rows stays. Returns the parts
    that were taken out, in order."""
    out: list[Place] = []
    at, end = first, first + count
    while at < end:
        place = place_of(tx, at)
        if place is None:
            row = next(iter(tx.items(Table.BLOCKS, start=number_key(at))), None)
            if row is None or to_number(row[0]) >= end:
                break
            at = to_number(row[0])
            continue
        stop = min(end, place.end)
        tx.delete(Table.BLOCKS, number_key(place.first))
        if place.first < at:
            tx.put(Table.BLOCKS, *place.part(place.first, at - place.first).pack_row())
        if stop < place.end:
            tx.put(Table.BLOCKS, *place.part(stop, place.end - stop).pack_row())
        out.append(place.part(at, stop - at))
        at = stop
    return out


def replace(tx: Write, place: Place) -> None:
    """Gives a run of numbers a new place."""
    carve(tx, place.first, place.count)
    tx.put(Table.BLOCKS, *place.pack_row())


def heal(tx: Write, place: Place) -> None:
    """The numbers are whole again: the damage on record goes, also that of blobs now whole."""
    healed = set()
    for number in range(place.first, place.end):
        if tx.delete(Table.DAMAGE, b"n" + number_key(number)):
            healed.add(number)
    if not healed:
        return
    for key, value in list(tx.items(Table.DAMAGE, b"b")):
        record = json.loads(value)
        if record.get("raw"):
            continue
        left = [n for n in record["numbers"] if n not in healed]
        if not left:
            tx.delete(Table.DAMAGE, key)
        elif len(left) != len(record["numbers"]):
            record["numbers"] = left
            tx.put(Table.DAMAGE, key, json.dumps(record).encode())


def settle(tx: Write, storage: Storage, rows: list[tuple[bytes, bytes]]) -> None:
    """Some ids were taken already (another writer was first, or what was there is condemned or
    gone): the row stays if its number is good, else the new number takes it over."""
    condemned = storage.condemned(tx)
    taken = dict(tx.many(Table.CHUNKS, [key for key, _ in rows]))
    for key, value in rows:
        old = taken.get(key[:ID_KEY])
        if old is None or old == value:
            continue
        number = to_number(old)
        gone = place_of(tx, number) is None
        if gone or (condemned is not None and condemned.has_number(number)):
            tx.put(Table.CHUNKS, key, value)
