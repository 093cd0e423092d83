"""Keeping within limits: which images of a mirror and cache entries go so that a store takes less, or
its disk has more room.

Least recently used first, and no more of them than is needed; images that a mirror can fetch again
(`lending`) before entries. What the first k entries give back in
all is what nothing but them needs, so one pass over their blobs, newest first, counts each chunk for
the newest entry that needs it. These are shares of blocks, an estimate: gc drops what should do,
collects, measures, and asks again for what is still lacking. What refs, leases and snapshots need is
marked before all entries, and is not among it. Unpacked layers that no snapshot stands on go before any
entry: they are copies of what is kept.

Cost: one mark and one pass over the block table for each round; rounds are few, since each asks for
what is still lacking, times a factor that doubles.
"""

from __future__ import annotations

import functools
import heapq
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from ..core.runs import RunArray
from ..digest import to_key
from . import accounting, cache, graph, lending, unpacked
from .index import MAX_KEYS, Snapshot, Table, Write
from .mark import Marker, blob_runs
from .placing import all_places
from .rows import Runs, to_number

if TYPE_CHECKING:
    from .storage import Storage


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_used`: bytes that the directory may take; `min_free`: bytes that are to be free on its
    filesystem for who is not root. None: no such limit."""

    max_used: int | None = None
    min_free: int | None = None

    def lacking(self, storage: Storage) -> int:
        """Bytes that have to go so that both hold, 0 if they do."""
        out = 0
        if self.max_used is not None:
            out = accounting.used_bytes(storage) - self.max_used
        if self.min_free is not None:
            disk = os.statvfs(storage.path)
            out = max(out, self.min_free - disk.f_bavail * disk.f_frsize)
        return max(0, out)


@dataclass(frozen=True, slots=True)
class Victim:
    """A cache entry, or an image that a mirror holds (`lent`), that may go: `freed` bytes come back
    once those before it are gone, too. `used` tells whether an entry was used since."""

    key: bytes
    used: int
    freed: float
    lent: lending.Lent | None = None


def victims(storage: Storage, snapshot: Snapshot) -> list[Victim]:
    """All images that a mirror holds for a time, then every cache entry, each least recently used
    first."""
    rows = sorted(cache.entries(snapshot), key=lambda item: item[1].used, reverse=True)
    lent = lending.images(snapshot)
    costs = accounting.Costs(storage, snapshot)
    total = [0.0, *accumulate(costs.costs)]
    marker = Marker(storage, costs.space)
    marker.mark(
        snapshot,
        without=frozenset(key for key, _ in rows),
        unlent=frozenset(key for one in lent for key in one.rows()),
    )
    counted = bytearray(b"\1" * len(costs.costs))
    for start, end in costs.positions(marker.dead()):
        counted[start:end] = bytes(end - start)

    def worth(digests: Iterable[str]) -> float:
        freed = 0.0
        found = (graph.serial_of(snapshot, digest) for digest in digests)
        serials = tuple(serial for serial in found if serial is not None)
        for one in graph.closure(snapshot, serials, seen=marker.seen):
            blob = graph.blob_row(snapshot, one)
            if blob is None:
                continue
            freed += costs.raw(blob)
            runs = RunArray.of(blob_runs(storage, snapshot, one)).normalise()
            for start, end in costs.positions(list(runs)):
                freed += _count(counted, total, start, end)
        return freed

    out = [Victim(key, row.used, worth((row.digest,))) for key, row in rows]
    out += [Victim(b"", 0, worth(one.digests()), one) for one in lent]
    return out[::-1]


def _count(counted: bytearray, total: Sequence[float], start: int, end: int) -> float:
    """The cost of those positions that were not counted before."""
    out = 0.0
    at = counted.find(0, start, end)
    while at >= 0:
        stop = counted.find(1, at, end)
        stop = end if stop < 0 else stop
        out += total[stop] - total[at]
        counted[at:stop] = b"\1" * (stop - at)
        at = counted.find(0, stop, end)
    return out


def choose(found: Sequence[Victim], lacking: float) -> list[Victim]:
    """The least recently used ones that give back what is lacking; all if that is not enough. What
    gives nothing back by itself goes with the one behind it."""
    out: list[Victim] = []
    for victim in found:
        if lacking <= 0:
            break
        out.append(victim)
        lacking -= victim.freed
    if lacking > 0:
        # The rest gives nothing, or not enough: entries at the end that free nothing stay.
        while out and out[-1].freed < 1:
            out.pop()
    return out


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What would go: entries, images of a mirror, the chunks and blobs that nothing would need then,
    and what they and unpacked layers take, in bytes."""

    entries: int
    images: int
    runs: Runs
    blobs: set[int]
    bytes: int


def foresee(storage: Storage, snapshot: Snapshot, lacking: int, going: Collection[str]) -> Foreseen:
    """What a gc would let go to give back `lacking` bytes beside what is dead already. `going`: chains
    of unpacked layers that go in any case."""
    spare = spare_copies(storage, snapshot, lacking, going)
    sizes = {row.chain: row.size for row in unpacked.layers(snapshot)}
    freed: float = sum(sizes[chain] for chain in spare)
    chosen = choose(victims(storage, snapshot), lacking - freed)
    gone = {victim.key for victim in chosen if victim.lent is None}
    lent = [victim.lent for victim in chosen if victim.lent is not None]
    marker = Marker(storage, ((place.first, place.count) for place in all_places(snapshot)))
    marker.mark(snapshot, without=gone, unlent={key for one in lent for key in one.rows()})
    blobs = {to_number(key) for key, _ in snapshot.items(Table.BLOBS)} - marker.seen
    freed += sum(victim.freed for victim in chosen)
    return Foreseen(len(gone), len(lent), marker.dead(), blobs, int(freed))


def drop(storage: Storage, chosen: Sequence[Victim]) -> tuple[int, int]:
    """Removes entries and images, but those that were used or put anew since. Returns how many of each
    went."""
    lent = [victim.lent for victim in chosen if victim.lent is not None]
    entries = [victim for victim in chosen if victim.lent is None]
    images = gone = 0
    for one in lent:
        images += storage.index.update(functools.partial(lending.let_go, lent=one))
    for at in range(0, len(entries), MAX_KEYS // 4):
        gone += storage.index.update(functools.partial(_drop, entries[at : at + MAX_KEYS // 4]))
    return gone, images


def _drop(part: Sequence[Victim], tx: Write) -> int:
    count = 0
    for victim in part:
        row = cache.find(tx, victim.key)
        if row is not None and row.used == victim.used:
            count += tx.delete(Table.CACHE, victim.key)
    return count


def spare_copies(
    storage: Storage, snapshot: Snapshot, lacking: float, going: Collection[str] = ()
) -> list[str]:
    """Chains of unpacked layers that no snapshot stands on, oldest first, those on top of others before
    these, until what is lacking is reached; `going` are gone."""
    # What stands on one that nothing needs is not needed either: all of its children are here.
    spare = unpacked.Copies(storage, snapshot).dead(aggressive=True)
    rows = {chain: row for chain, row in spare.items() if chain not in going}
    above = Counter(row.parent for row in rows.values())
    tops = [(row.serial, chain) for chain, row in rows.items() if not above[chain]]
    heapq.heapify(tops)
    out: list[str] = []
    while tops and lacking > 0:
        row = rows[heapq.heappop(tops)[1]]
        out.append(row.chain)
        lacking -= row.size
        above[row.parent] -= 1
        if row.parent in rows and not above[row.parent]:
            heapq.heappush(tops, (rows[row.parent].serial, row.parent))
    return out


def drop_copies(storage: Storage, chains: Sequence[str]) -> int:
    """Forgets unpacked layers that are still not needed; `unpacked.reclaim` removes their directories.
    Returns the bytes that they take."""
    wanted = set(chains)

    def work(tx: Write) -> int:
        gone = 0
        for chain, row in unpacked.Copies(storage, tx).dead(aggressive=True).items():
            if chain in wanted:
                tx.delete(Table.UNPACKED, to_key(chain))
                gone += row.size
        return gone

    return storage.index.update(work) if wanted else 0
