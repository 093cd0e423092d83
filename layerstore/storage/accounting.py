"""What things cost on disk. A chunk's cost is its share of its block, header included, by uncompressed
length; a blob's is that of its chunks and its raw file; an image's is split into what only it holds
and what it shares. What removing it gives back is not a sum of shares: `foresight` works it out.

Everything the directory takes on disk is one of: packs (live shares, and dead), raw files, copies of
popular blobs, unpacked layers and snapshots, and the index (LMDB, the metadata pack, FORMAT, locks, the
reserve, the folders).
Together that is what `du` counts.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING

from ..core.runs import Bitmap, RunArray
from ..digest import to_key
from ..errors import NotFoundError
from ..values import ImageCost, Stats
from . import graph, unpacked
from .foresight import Foresight
from .index import Snapshot, Table
from .mark import Marker, blob_runs, pinned
from .placing import all_places
from .rows import BlobRow, Place, RawRow, Runs, serial_key, to_number

if TYPE_CHECKING:
    from .storage import Storage


class Costs:
    """Cost of chunk numbers and raw files, in one snapshot."""

    def __init__(self, storage: Storage, snapshot: Snapshot) -> None:
        self._storage = storage
        self._snapshot = snapshot
        self.space: Runs = []
        self.costs: list[float] = []
        self.bytes = 0
        self.places: list[Place] = []
        for place in all_places(snapshot):
            self.places.append(place)
            rate = place.disk / max(1, place.raw)
            if self.space and self.space[-1][0] + self.space[-1][1] == place.first:
                self.space[-1] = (self.space[-1][0], self.space[-1][1] + place.count)
            else:
                self.space.append((place.first, place.count))
            for length in place.lengths:
                self.costs.append(length * rate)
                self.bytes += length
        self._starts: dict[int, int] = {}
        at = 0
        self._index: list[tuple[int, int, int]] = []
        for first, count in self.space:
            self._index.append((first, count, at))
            at += count

    def positions(self, runs: Runs) -> list[tuple[int, int]]:
        """Where numbers stand in `costs`: `(start, end)` pairs, unsorted."""
        from bisect import bisect_right

        firsts = self._firsts()
        out = []
        for first, count in runs:
            at = first
            while at < first + count:
                i = bisect_right(firsts, at) - 1
                if i < 0 or at >= self._index[i][0] + self._index[i][1]:
                    at += 1
                    continue
                begin, n, start = self._index[i]
                stop = min(first + count, begin + n)
                out.append((start + at - begin, start + stop - begin))
                at = stop
        return out

    def _firsts(self) -> list[int]:
        made: list[int] | None = getattr(self, "_firsts_made", None)
        if made is None:
            made = [first for first, _, _ in self._index]
            self._firsts_made = made
        return made

    def raw(self, row: BlobRow) -> int:
        """Bytes on disk of a blob's raw file."""
        if row.raw is None:
            return 0
        try:
            return os.stat(self._storage.raws.path(row.raw)).st_blocks * 512
        except FileNotFoundError:
            return 0


def stored_bytes(storage: Storage, digest: str) -> int:
    """A blob's share on disk; of a gzip form that of its recipe alone, since the tar that it is made
    from is a blob of its own. Raises NotFoundError."""
    with storage.index.read() as snapshot:
        serial = graph.serial_of(snapshot, digest)
        row = None if serial is None else graph.blob_row(snapshot, serial)
        if serial is None or row is None:
            raise NotFoundError(f"no blob {digest} in the store", digest=digest)
        runs = RunArray.of(blob_runs(storage, snapshot, serial)).normalise()
        total = float(len(row.inline or b""))
        for place in storage.chunks.places(snapshot, runs):
            total += place.disk * place.size / max(1, place.raw)
        if row.raw is not None:
            value = snapshot.get(Table.RAWS, serial_key(row.raw))
            total += RawRow.parse(value).size if value is not None else 0
        return int(total)


def directory_bytes(path: str, skip: Collection[str] = ()) -> int:
    """What `du` counts: allocated blocks of every file and folder, each inode once. `skip`: names of
    folders right below that do not count."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(path):
        if folder == path:
            below[:] = [name for name in below if name not in skip]
        # A symbolic link to a folder is among the folders, and not walked.
        names += [name for name in below if os.path.islink(os.path.join(folder, name))]
        for item in (folder, *(os.path.join(folder, n) for n in names)):
            try:
                found = os.lstat(item)
            except FileNotFoundError:
                continue
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total


def unpacked_bytes(storage: Storage) -> int:
    """What unpacked layers and snapshots take on disk. Layers were counted when they were made, since
    they do not change and have many files."""
    with storage.index.read() as snapshot:
        known = {row.name: row.size for row in unpacked.layers(snapshot)}
    home = os.path.join(storage.path, unpacked.LAYERS)
    total = 0
    if os.path.isdir(home):
        there = set(os.listdir(home))
        total = directory_bytes(home, known)
        total += sum(size for name, size in known.items() if name in there)
    changes = os.path.join(storage.path, unpacked.CHANGES)
    return total + (directory_bytes(changes) if os.path.isdir(changes) else 0)


def used_bytes(storage: Storage, copies: int | None = None) -> int:
    """What the store takes on disk; `copies`: what of it unpacked layers and snapshots do, if known."""
    known = unpacked_bytes(storage) if copies is None else copies
    return known + directory_bytes(storage.path, (unpacked.LAYERS, unpacked.CHANGES))


def stats(storage: Storage, *, per_image: bool) -> Stats:
    """See `Store.stats`."""
    copies = unpacked_bytes(storage)
    total = used_bytes(storage, copies)
    packs = directory_bytes(storage.packs.directory)
    raw = directory_bytes(storage.raws.directory)
    cached = storage.rawcache.directory
    raw_cache = directory_bytes(cached) if os.path.isdir(cached) else 0
    with storage.index.read() as snapshot:
        costs = Costs(storage, snapshot)
        marker = Marker(storage, costs.space)
        marker.mark(snapshot)
        forms = {"plain": 0, "tar": 0, "gzip": 0, "raw": 0}
        blobs = size = layers = tar_bytes = entries = 0
        live_raw = 0
        for serial in marker.seen:
            row = graph.blob_row(snapshot, serial)
            if row is None:
                continue
            blobs += 1
            size += row.size
            for form in row.forms:
                forms[form] += 1
            if row.tar is not None:
                layers += 1
                tar_bytes += row.size
                entries += row.tar.entries
            elif row.inner_size >= 0 and "gzip" not in row.forms:
                # Of a gzip form the tar is a blob of its own, and counted as such.
                layers += 1
                tar_bytes += row.inner_size
            live_raw += costs.raw(row)
        dead = marker.dead()
        dead_chunks = sum(count for _, count in dead)
        dead_content = live_cost = 0.0
        flags = bytearray(len(costs.costs))
        for start, end in costs.positions(dead):
            flags[start:end] = b"\1" * (end - start)
        lengths_dead = 0
        for cost, flag in zip(costs.costs, flags, strict=True):
            if flag:
                dead_content += cost
            else:
                live_cost += cost
        lengths_dead = _bytes_of(snapshot, dead)
        dead_bytes = max(0, packs - int(live_cost)) + max(0, raw - live_raw)
        gone = {to_number(key) for key, _ in snapshot.items(Table.BLOBS)} - marker.seen
        copied = unpacked.Copies(storage, snapshot)
        dead_bytes += sum(copy.size for copy in copied.dead(gone).values())
        images = snapshot.count(Table.REFS)
        per: tuple[ImageCost, ...] = ()
        alone = shared = 0
        if per_image:
            foresight = Foresight(storage, snapshot, costs.places, flags)
            per, alone, shared = _images(storage, snapshot, costs, foresight, copied, gone)
    return Stats(
        images=images,
        blob_count=blobs,
        blob_bytes=size,
        layer_count=layers,
        layer_tar_bytes=tar_bytes,
        layer_entries=entries,
        chunk_count=len(costs.costs) - dead_chunks,
        chunk_bytes=costs.bytes - lengths_dead,
        forms=forms,
        packs=packs,
        raw=raw,
        unpacked=copies,
        index=total - packs - raw - raw_cache - copies,
        total=total,
        dead_bytes=dead_bytes,
        alone=alone,
        shared=shared,
        per_image=per,
        raw_cache=raw_cache,
    )


def _bytes_of(snapshot: Snapshot, runs: Runs) -> int:
    from .placing import place_of

    total = 0
    for first, count in runs:
        at = first
        while at < first + count:
            place = place_of(snapshot, at)
            if place is None:
                at += 1
                continue
            stop = min(place.end, first + count)
            total += sum(place.lengths[at - place.first : stop - place.first])
            at = stop
    return total


def _images(
    storage: Storage,
    snapshot: Snapshot,
    costs: Costs,
    foresight: Foresight,
    copied: unpacked.Copies,
    gone: set[int],
) -> tuple[tuple[ImageCost, ...], int, int]:
    """Per image: alone, shared, freed if removed. And in all: alone, and shared counted once.

    An image is a target; several names of one target share it, and removing one of them frees
    nothing. What leases, snapshots, repositories and cache entries keep stays: it counts as shared,
    also where no image needs it. Unpacked layers count as the layers do that they were made from."""
    names: dict[str, int] = {}
    targets: dict[int, set[int]] = {}
    for key, value in snapshot.items(Table.REFS):
        digest = json.loads(value)["digest"]
        found = snapshot.get(Table.DIGESTS, to_key(digest))
        if found is None:
            continue
        names[key.decode()] = to_number(found)
    for target in set(names.values()):
        targets[target] = graph.closure(snapshot, (target,))
    held = pinned(storage, snapshot)
    # Twice, so that it is shared even if it is nobody else's.
    users: dict[int, int] = defaultdict(int, dict.fromkeys(held, 2))
    for reached in targets.values():
        for serial in reached:
            users[serial] += 1

    def spans_of(serials: set[int]) -> list[tuple[int, int]]:
        bits = Bitmap(RunArray.of(costs.space))
        for serial in serials:
            runs = blob_runs(storage, snapshot, serial)
            if runs:
                bits.mark(RunArray.of(runs))
        return costs.positions(list(bits.runs(1)))

    count = [0] * len(costs.costs)
    for start, end in spans_of(held):
        for i in range(start, end):
            count[i] = 2
    spans: dict[int, list[tuple[int, int]]] = {}
    for target, reached in targets.items():
        spans[target] = spans_of(reached)
        for start, end in spans[target]:
            for i in range(start, end):
                count[i] += 1
    out: dict[int, tuple[float, float]] = {}
    frees: dict[int, int] = {}
    lost = copied.dead(gone)
    copies_alone = 0
    for target, reached in targets.items():
        own = other = 0.0
        mine: list[tuple[int, int]] = []
        for start, end in spans[target]:
            for i in range(start, end):
                if count[i] == 1:
                    own += costs.costs[i]
                    if mine and mine[-1][1] == i:
                        mine[-1] = (mine[-1][0], i + 1)
                    else:
                        mine.append((i, i + 1))
                else:
                    other += costs.costs[i]
        free = foresight.freed(mine)
        for serial in reached:
            row = graph.blob_row(snapshot, serial)
            if row is not None:
                if users[serial] == 1:
                    own += costs.raw(row)
                    free += costs.raw(row)
                else:
                    other += costs.raw(row)
        going = copied.dead(gone | {serial for serial in reached if users[serial] == 1})
        free += sum(row.size for chain, row in going.items() if chain not in lost)
        for chain in copied.of(reached) - lost.keys():
            size = copied.rows[chain].size
            if chain in going:
                own += size
                copies_alone += size
            else:
                other += size
        out[target] = (own, other)
        frees[target] = free
    result = []
    for name, target in sorted(names.items()):
        own, other = out[target]
        several = sum(1 for t in names.values() if t == target) > 1
        free = 0 if several else frees[target]
        document = graph.blob_row(snapshot, target)
        digest = "" if document is None else document.digest
        result.append(ImageCost(name, digest, int(own), int(other), free))
    all_alone = sum(own for own, _ in out.values())
    all_shared = sum(c for c, n in zip(costs.costs, count, strict=True) if n > 1)
    for serial, n in users.items():
        if n > 1:
            row = graph.blob_row(snapshot, serial)
            if row is not None:
                all_shared += costs.raw(row)
    all_shared += sum(row.size for chain, row in copied.rows.items() if chain not in lost)
    all_shared -= copies_alone
    return tuple(result), int(all_alone), int(all_shared)
