"""Compaction: what is alive in mostly dead blocks is copied into new ones; a number keeps its name.

Victims go by cost and benefit: dead bytes won for live bytes copied. Every survivor's BLAKE3 is
verified against the id in its block's header before it moves, and the commit moves only what still
lies where it was read (rule 14).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.hashing import blake3
from ..errors import CorruptError
from . import blocks, placing
from .index import MAX_KEYS, Write
from .packs import HEADER_SIZE, PackWriter
from .placing import all_places
from .rows import Place

if TYPE_CHECKING:
    from .storage import Storage


@dataclass(slots=True)
class Victim:
    """A physical block, its live runs, and its live raw bytes."""

    pack: int
    offset: int
    disk: int
    raw: int
    places: list[Place] = field(default_factory=list)
    live: int = 0

    @property
    def dead_disk(self) -> int:
        return self.disk - self.disk * self.live // max(1, self.raw)


def survey(storage: Storage) -> dict[tuple[int, int], Victim]:
    """Every physical block that has a row, with what of it is alive."""
    out: dict[tuple[int, int], Victim] = {}
    with storage.index.read() as snapshot:
        for place in all_places(snapshot):
            key = (place.pack, place.offset)
            victim = out.get(key)
            if victim is None:
                victim = out[key] = Victim(place.pack, place.offset, place.disk, place.raw)
            victim.places.append(place)
            victim.live += place.size
    return out


def choose(all_blocks: dict[tuple[int, int], Victim], *, aggressive: bool) -> list[Victim]:
    """The blocks to copy out, best first. Normally those at most half alive; aggressively all that
    have dead bytes, until what would be left dead is under half a percent of what was."""
    dead = [v for v in all_blocks.values() if v.live < v.raw]
    dead.sort(key=lambda v: (v.raw - v.live) / (v.raw + v.live), reverse=True)
    if not aggressive:
        return [v for v in dead if v.live * 2 <= v.raw]
    total = sum(v.dead_disk for v in dead)
    out: list[Victim] = []
    won = 0
    for victim in dead:
        if total - won <= total // 200:
            break
        out.append(victim)
        won += victim.dead_disk
    return out


ISLAND = 1 << 20
"""Live bytes between two gaps that an aggressive run moves away: a gap has two broken pages at its
ends that no hole can take, about 4 KiB, and two gaps that become one have two less."""


def islands(blocks_left: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The blocks, by pack and offset, that stand between two gaps with at most ISLAND bytes of others.
    `blocks_left`: pack, offset and length of what stays."""
    out: list[tuple[int, int]] = []
    pack = end = -1
    run: list[tuple[int, int]] = []
    size = 0
    begun = False
    for number, offset, length in sorted(blocks_left):
        if number != pack:
            pack, end, run, size, begun = number, HEADER_SIZE, [], 0, False
        if offset > end:
            if begun and size <= ISLAND:
                out += run
            run, size, begun = [], 0, True
        run.append((number, offset))
        size += length
        end = offset + length
    return out


def stranded(all_blocks: dict[tuple[int, int], Victim], victims: Sequence[Victim]) -> list[Victim]:
    """The islands that are left once the victims are gone."""
    gone = {(v.pack, v.offset) for v in victims}
    left = ((*key, v.disk) for key, v in all_blocks.items() if key not in gone)
    return [all_blocks[key] for key in islands(left)]


class _Copy:
    """A new block of survivors being filled."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.data = bytearray()
        self.lengths = array("I")
        self.ids: list[bytes] = []
        self.runs: list[tuple[int, int]] = []
        self.sources: list[Place] = []

    def add(self, place: Place, content: bytes, ids: bytes) -> None:
        self.data += content
        self.lengths.extend(place.lengths)
        self.ids.append(ids)
        self.runs.append((place.first, place.count))
        self.sources.append(place)


class Copier(ABC):
    """Copies the survivors of victims into new blocks; subclasses say where these go. `stop` is asked
    between blocks."""

    def __init__(self, storage: Storage, stop: Callable[[], bool]) -> None:
        self._storage = storage
        self._stop = stop
        self._copies = {k: _Copy(k) for k in (blocks.KIND_CONTENT, blocks.KIND_META)}
        self._moves: list[tuple[Place, Place]] = []
        self._keys = 0
        self.copied = 0

    @abstractmethod
    def _append(self, head: bytes, payload: bytes, first: int) -> tuple[int, int]:
        """Takes a new block; its pack and offset."""

    @abstractmethod
    def _land(self, moves: list[tuple[Place, Place]]) -> None:
        """Makes the new places of numbers known."""

    def run(self, victims: Iterable[Victim], budget: int | None) -> bool:
        """True if all were copied; False if time or the budget (live bytes) ended it."""
        for victim in victims:
            if self._stop() or (budget is not None and self.copied + victim.live > budget):
                self._commit()
                return False
            self._copy(victim)
            if self._keys > MAX_KEYS // 4:
                self._commit()
        self._commit()
        return True

    def _copy(self, victim: Victim) -> None:
        storage = self._storage
        first = victim.places[0]
        try:
            head = blocks.parse(
                storage.secret, storage.packs.read(first.pack, first.offset, first.head)
            )
            data = storage.chunks.load(first)
        except CorruptError:
            # Damage is check's to report; a damaged block stays where it is.
            return
        if head is None:
            return
        for place in victim.places:
            at = place.raw_offset
            content = data[at : at + place.size]
            ids = head.ids[32 * place.index : 32 * (place.index + place.count)]
            if not _verified(content, place, ids):
                return
            copy = self._copies[place.kind]
            if copy.lengths and (
                len(copy.data) + len(content) > blocks.BLOCK_SIZE
                or len(copy.lengths) + place.count > blocks.MAX_CHUNKS
            ):
                self._seal(copy)
                copy = self._copies[place.kind]
            copy.add(place, content, ids)
        self.copied += victim.live

    def _seal(self, copy: _Copy) -> None:
        head, payload = blocks.encode(
            self._storage.secret,
            copy.data,
            copy.runs,
            copy.lengths,
            b"".join(copy.ids),
            copy.kind,
        )
        pack, offset = self._append(head, payload, copy.runs[0][0])
        raw_offset = index = 0
        for source in copy.sources:
            place = Place(
                source.first,
                pack,
                offset,
                len(head),
                len(head) + len(payload),
                len(copy.data),
                raw_offset,
                index,
                head[4],
                head[5],
                source.lengths,
            )
            self._moves.append((source, place))
            self._keys += 2
            raw_offset += source.size
            index += source.count
        self._copies[copy.kind] = _Copy(copy.kind)

    def _commit(self) -> None:
        for copy in list(self._copies.values()):
            if copy.lengths:
                self._seal(copy)
        if self._moves:
            moves, self._moves, self._keys = self._moves, [], 0
            self._land(moves)


class Compactor(Copier):
    """Copies into packs. Close it: it holds their locks."""

    def __init__(self, storage: Storage, stop: Callable[[], bool]) -> None:
        super().__init__(storage, stop)
        self._writer = PackWriter(
            storage.packs,
            storage.index,
            storage.disk,
            storage.format.uuid,
            storage.secret,
            storage.format.pack_size,
        )

    def close(self) -> None:
        """Lets the packs go."""
        self._writer.close()

    def _append(self, head: bytes, payload: bytes, first: int) -> tuple[int, int]:
        return self._writer.append(head, payload, first)

    def _land(self, moves: list[tuple[Place, Place]]) -> None:
        self._writer.sync()

        def work(tx: Write) -> None:
            self._writer.rows(tx)
            for source, place in moves:
                _move(tx, source, place)

        self._storage.index.update(work)
        self._writer.committed()


def _move(tx: Write, source: Place, place: Place) -> None:
    """Gives the numbers their new place where they still lie at the old one."""
    at = source.first
    while at < source.end:
        now = placing.place_of(tx, at)
        if now is None:
            at += 1
            continue
        stop = min(now.end, source.end)
        if (now.pack, now.offset) == (source.pack, source.offset):
            placing.replace(tx, place.part(at, stop - at))
        at = stop


def _verified(content: bytes, place: Place, ids: bytes) -> bool:
    at = 0
    for i, length in enumerate(place.lengths):
        if blake3(content[at : at + length]) != ids[32 * i : 32 * i + 32]:
            return False
        at += length
    return True


def deadline(seconds: float | None) -> Callable[[], bool]:
    """A function that tells when the time is over."""
    if seconds is None:
        return lambda: False
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
