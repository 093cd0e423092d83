"""What packs would take after an aggressive gc, if some chunks were dead: without writing anything.

The shares of accounting say who pays for what; what comes back when an image goes is another thing,
since a block is given back whole or copied, survivors compress anew, and holes have whole pages. So
this does what gc does: the same choice of victims, the same copies (weighed, not kept), the same
pages. Cost: the live bytes of the blocks that would be half dead are decoded and encoded; past `LIMIT`
in all they are estimated by their shares.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import CorruptError
from .compact import Copier, Victim, choose, islands
from .index import Snapshot, Table
from .packs import HEADER_SIZE
from .reclaim import PAGE, TOC_TAIL, toc_offset
from .rows import PackRow, Place, to_number

if TYPE_CHECKING:
    from .storage import Storage

LIMIT = 2 << 30
Key = tuple[int, int]


class _Scale(Copier):
    """Weighs copies."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage, lambda: False)
        self.bytes = 0

    def _append(self, head: bytes, payload: bytes, first: int) -> tuple[int, int]:
        self.bytes += len(head) + len(payload)
        return 0, 0

    def _land(self, moves: list[tuple[Place, Place]]) -> None:
        """Nothing moves."""


class Foresight:
    """`places`: every row of the block table, in order. Positions count their chunks, one behind the
    other; `dead` has a 1 at those that nothing needs already."""

    def __init__(
        self, storage: Storage, snapshot: Snapshot, places: Sequence[Place], dead: bytearray
    ) -> None:
        self._storage = storage
        self._dead = dead
        self._places = places
        self._starts: list[int] = []
        self._blocks: dict[Key, list[int]] = {}
        at = 0
        for i, place in enumerate(places):
            self._starts.append(at)
            at += place.count
            self._blocks.setdefault((place.pack, place.offset), []).append(i)
        self._of_pack: dict[int, list[Key]] = defaultdict(list)
        for key in sorted(self._blocks):
            self._of_pack[key[0]].append(key)
        self._tails = {
            to_number(key): self._tail(to_number(key), PackRow.parse(value))
            for key, value in snapshot.items(Table.PACKS)
        }
        self._weighed = 0
        self._gone: set[Key] = set()
        self._mixed: dict[Key, Victim] = {}
        for key in self._blocks:
            self._judge(key, dead, self._gone, self._mixed)
        self._pages: dict[int, int] = {}
        self._before: int | None = None

    def _tail(self, number: int, row: PackRow) -> tuple[int, int]:
        """The table of contents of a sealed pack: never part of a hole."""
        if not row.sealed:
            return row.length, row.length
        try:
            tail = self._storage.packs.read(number, row.length - TOC_TAIL, TOC_TAIL)
        except CorruptError:
            tail = b""  # check's to report; what was dead or alive in it is gone
        return toc_offset(tail, row.length) if tail else row.length, row.length

    def freed(self, spans: Iterable[tuple[int, int]]) -> int:
        """Bytes that packs give back if the positions of `spans` die, beside what is dead already."""
        dead = bytearray(self._dead)
        touched: set[Key] = set()
        for start, end in spans:
            dead[start:end] = b"\1" * (end - start)
            for i in range(bisect_right(self._starts, start) - 1, len(self._places)):
                if self._starts[i] >= end:
                    break
                touched.add((self._places[i].pack, self._places[i].offset))
        if not touched:
            return 0
        if self._before is None:
            self._before = self._left(self._gone, self._mixed)
        gone = set(self._gone)
        mixed = {key: victim for key, victim in self._mixed.items() if key not in touched}
        for key in touched:
            self._judge(key, dead, gone, mixed)
        return max(0, self._before - self._left(gone, mixed))

    def _judge(self, key: Key, dead: bytearray, gone: set[Key], mixed: dict[Key, Victim]) -> None:
        """Whether a block is wholly dead, or partly, and then what of it is alive."""
        rows = self._blocks[key]
        first = self._places[rows[0]]
        victim = Victim(key[0], key[1], first.disk, first.raw)
        for i in rows:
            place, start = self._places[i], self._starts[i]
            end = start + place.count
            at = start
            while at < end:
                stop = dead.find(1, at, end)
                stop = end if stop < 0 else stop
                if stop > at:
                    part = place.part(place.first + at - start, stop - at)
                    victim.places.append(part)
                    victim.live += part.size
                at = dead.find(0, stop, end)
                at = end if at < 0 else at
        if not victim.places:
            gone.add(key)
        elif victim.live < victim.raw:
            mixed[key] = victim

    def _left(self, gone: set[Key], mixed: dict[Key, Victim]) -> int:
        victims = choose(dict(sorted(mixed.items(), key=_first_number)), aggressive=True)
        without = gone | {(v.pack, v.offset) for v in victims}
        left = (
            (*key, self._places[rows[0]].disk)
            for key, rows in self._blocks.items()
            if key not in without
        )
        for key in islands(left):
            victims.append(self._whole(key))
            without.add(key)
        by_pack: dict[int, set[Key]] = defaultdict(set)
        for key in without:
            by_pack[key[0]].add(key)
        pages = sum(
            self._pages_of(pack, by_pack.get(pack, set()), ends)
            for pack, ends in self._tails.items()
        )
        return pages * PAGE + self._weigh(victims)

    def _whole(self, key: Key) -> Victim:
        places = [self._places[i] for i in self._blocks[key]]
        live = sum(place.size for place in places)
        return Victim(*key, places[0].disk, places[0].raw, places, live)

    def _pages_of(self, pack: int, without: set[Key], ends: tuple[int, int]) -> int:
        if not without and pack in self._pages:
            return self._pages[pack]
        live = [
            (offset, offset + self._places[self._blocks[pack, offset][0]].disk)
            for _, offset in self._of_pack.get(pack, ())
            if (pack, offset) not in without
        ]
        pages = covered_pages([(0, HEADER_SIZE), *live, ends]) if live else 0
        if not without:
            self._pages[pack] = pages
        return pages

    def _weigh(self, victims: Sequence[Victim]) -> int:
        live = sum(victim.live for victim in victims)
        if self._weighed + live > LIMIT:
            return sum(v.disk - v.dead_disk for v in victims)
        self._weighed += live
        scale = _Scale(self._storage)
        scale.run(victims, None)
        return scale.bytes


def _first_number(item: tuple[Key, Victim]) -> int:
    return item[1].places[0].first


def covered_pages(stretches: Sequence[tuple[int, int]]) -> int:
    """Pages that some stretches `(start, end)` of a file touch; they are in order."""
    count = next_page = 0
    for start, end in stretches:
        if end > start:
            first, last = max(start // PAGE, next_page), -(-end // PAGE)
            count += max(0, last - first)
            next_page = max(next_page, last)
    return count
