"""Verification of what is stored, as far as it needs no knowledge of tar or images.

Quick: the index agrees with itself and with the lengths and tables of contents of the files. Blocks:
every checksum of every block and raw piece, at the disk's speed. Full adds every chunk's BLAKE3 (and,
one floor up, every blob's digest). Files are taken oldest checked first, so that a check with a time
limit goes on where the last one stopped. What is found is recorded, so that look-ups pass over it
and putting the content again heals it (rule 18).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.hashing import blake3
from ..digest import to_key
from ..errors import CorruptError
from . import blocks, graph, packs
from .condemned import is_hidden
from .index import Snapshot, Table, Write
from .journal import HEADER_SIZE, Position
from .locks import FileLock
from .mark import blob_runs
from .placing import all_places
from .rows import (
    PIECE,
    BlobRow,
    PackRow,
    Place,
    RawRow,
    dump,
    number_key,
    pack_key,
    serial_key,
    to_number,
)

if TYPE_CHECKING:
    from .storage import Storage

ROUND = b"check_round"


@dataclass(slots=True)
class Findings:
    """What is wrong: chunk numbers, raw serials, blob serials, each with the reason; and what is wrong
    with the index itself, which no putting again can heal."""

    numbers: dict[int, str] = field(default_factory=dict)
    raws: dict[int, str] = field(default_factory=dict)
    blobs: dict[int, str] = field(default_factory=dict)
    index: list[str] = field(default_factory=list)
    checked_bytes: int = 0
    complete: bool = True


def quick(storage: Storage, found: Findings) -> None:
    """Index, lengths, tables of contents."""
    with storage.index.read() as snapshot:
        wrong = storage.index.sums_match(snapshot)
        if wrong is not None:
            found.index.append(f"table {wrong.name.lower()} has lost or gained rows")
        _check_graph(storage, snapshot, found)
        lengths = _check_packs(storage, snapshot, found)
        for place in all_places(snapshot):
            if place.offset + place.disk > lengths.get(place.pack, 0):
                for number in range(place.first, place.end):
                    found.numbers[number] = (
                        f"its block at {place.offset} lies behind the end of "
                        f"{storage.packs.path(place.pack)}"
                    )
        for key, value in snapshot.items(Table.BLOBS):
            serial = to_number(key)
            row = BlobRow.parse(value)
            _check_blob(storage, snapshot, serial, row, found)
        for key, value in snapshot.items(Table.RAWS):
            serial, raw = to_number(key), RawRow.parse(value)
            try:
                size = os.stat(storage.raws.path(serial)).st_size
            except FileNotFoundError:
                found.raws[serial] = f"raw file {storage.raws.path(serial)} is missing"
                continue
            if size < raw.size:
                found.raws[serial] = (
                    f"raw file {storage.raws.path(serial)} has {size} of {raw.size} bytes"
                )


def _check_graph(storage: Storage, snapshot: Snapshot, found: Findings) -> None:
    hidden = None
    try:
        hidden = storage.condemned(snapshot, strict=True)
    except CorruptError as e:
        found.index.append(e.message)
    for name, value in snapshot.items(Table.REFS):
        digest = json.loads(value)["digest"]
        if snapshot.get(Table.DIGESTS, to_key(digest)) is None:
            found.index.append(f"image {name.decode()} names {digest}, which is missing")
    for key, value in snapshot.items(Table.DIGESTS):
        if snapshot.get(Table.BLOBS, value) is None:
            found.index.append(f"digest {key.hex()} names a blob without a row")
    for key, _ in snapshot.items(Table.EDGES):
        for edge in graph.edges_of(snapshot, to_number(key)):
            # A collector deletes what is condemned in slices, each a commit.
            if (
                edge.kind == "child"
                and graph.serial_of(snapshot, edge.digest) is None
                and not is_hidden(snapshot, hidden, to_number(key))
            ):
                row = graph.blob_row(snapshot, to_number(key))
                found.index.append(
                    f"manifest {row.digest if row else key.hex()} needs {edge.digest}"
                )


def metadata_pack(storage: Storage, found: Findings) -> None:
    """The chain of commit records, from the checkpoint to the last commit. The index is whole without
    it, so what is damaged is written anew, as a checkpoint."""
    for _ in range(3):
        with storage.index.read() as snapshot:
            at, first = snapshot.position, snapshot.meta(b"checkpoint")
        reason = _broken_chain(storage, at, first)
        if reason is None:
            return
        with storage.index.read() as snapshot:
            if snapshot.meta(b"checkpoint") == first:
                break
    else:
        return
    found.index.append(reason)
    if storage.readonly:
        return
    from .gc import checkpoint

    lock = FileLock(os.path.join(storage.path, "gc", "lock"))
    if lock.try_acquire():
        try:
            checkpoint(storage)
        finally:
            lock.release()


def _broken_chain(storage: Storage, at: Position, first: int) -> str | None:
    """Why the index could not be made anew from the metadata pack up to `at`; None if it could."""
    pack = storage.journal
    try:
        if first:
            last = None
            for record in pack.records(first, checkpoint=True):
                last = record
            if last is None or last.changes:
                return (
                    f"the checkpoint {pack.checkpoint_path(first)} of the metadata pack is damaged"
                )
        sequence = None
        for number in pack.files():
            if not first <= number <= at.file:
                continue
            for record in pack.records(number):
                if sequence is not None and record.sequence != sequence + 1:
                    return f"the metadata pack {pack.path(number)} lacks commits"
                sequence = record.sequence
                if record.sequence == at.sequence:
                    return None
        if at.offset == HEADER_SIZE and sequence in (None, at.sequence):
            return None
    except (CorruptError, FileNotFoundError) as e:
        return f"the metadata pack is damaged: {e}"
    return f"the metadata pack {pack.path(at.file)} is damaged"


def _check_packs(storage: Storage, snapshot: Snapshot, found: Findings) -> dict[int, int]:
    """The usable length of each pack."""
    out: dict[int, int] = {}
    for key, value in snapshot.items(Table.PACKS):
        number, row = to_number(key), PackRow.parse(value)
        path = storage.packs.path(number)
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            continue
        out[number] = min(size, row.length)
        if size < row.length:
            continue
        start = storage.packs.read(number, 0, packs.HEADER_SIZE)
        if start != packs.header(storage.format.uuid, number):
            found.index.append(f"{path} has a wrong header")
        if row.sealed:
            tail = min(row.length, 36 + 20 * 70_000)
            data = storage.packs.read(number, row.length - tail, tail)
            if packs.decode_toc(storage.secret, data, row.length) is None:
                found.index.append(f"the table of contents of {path} is damaged")
    return out


def _check_blob(
    storage: Storage, snapshot: Snapshot, serial: int, row: BlobRow, found: Findings
) -> None:
    if not row.forms and row.gzip is None:
        found.blobs[serial] = "it has no form"
    if beside_raw(row):
        # What is wrong with the other form is not wrong with the blob: see `spoilt`.
        if snapshot.get(Table.RAWS, serial_key(row.raw or 0)) is None:
            found.blobs[serial] = "its raw file has no row"
        return
    if (
        row.gzip is not None
        and graph.serial_of(snapshot, row.gzip.inner) is None
        # A collector deletes what is condemned in slices, each a commit.
        and not is_hidden(snapshot, storage.condemned(snapshot), serial)
    ):
        found.blobs[serial] = f"it is made from {row.gzip.inner}, which is missing"
    if row.raw is not None and snapshot.get(Table.RAWS, serial_key(row.raw)) is None:
        found.blobs[serial] = "its raw file has no row"
    try:
        for place in storage.chunks.places(snapshot, blob_runs(storage, snapshot, serial)):
            if place.first in found.numbers:
                return
    except CorruptError as e:
        found.blobs[serial] = e.message


class Rounds:
    """Which unit was checked when: a counter, not a clock."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._done: list[bytes] = []
        if storage.readonly:
            self.number = 1
        else:
            self.number = storage.index.update(lambda tx: tx.draw(ROUND))

    def order(self, keys: list[bytes]) -> list[bytes]:
        """Oldest checked first; never checked before all, and blobs after what they lie in."""
        with self._storage.index.read() as snapshot:
            last = {k: snapshot.meta(graph.CHECKED + k, 0) for k in keys}
        return sorted(keys, key=lambda k: (last[k], k[:1] == b"b", k))

    def done(self, key: bytes) -> None:
        self._done.append(key)
        if len(self._done) >= 256:
            self.save()

    def save(self) -> None:
        """Writes down what was done."""
        done, self._done = self._done, []
        if not done or self._storage.readonly:
            return

        def work(tx: Write) -> None:
            for key in done:
                tx.set_meta(graph.CHECKED + key, self.number)

        self._storage.index.update(work)


def blocks_and_raws(
    storage: Storage,
    found: Findings,
    rounds: Rounds,
    stop: Callable[[], bool],
    tell: Callable[[int], None],
    *,
    chunks: bool,
    blobs: Callable[[int], None] | None = None,
) -> None:
    """Every checksum; with `chunks` every chunk's BLAKE3, too. With `blobs` it is told the serial of
    each blob, whose digest it looks at: in the same order, so that a short time comes to them, too.

    One unit at least is looked at, however short the time: rounds of a moment come to an end, too."""
    by_pack: dict[int, list[Place]] = {}
    with storage.index.read() as snapshot:
        for place in all_places(snapshot):
            by_pack.setdefault(place.pack, []).append(place)
        raws = {to_number(k): RawRow.parse(v) for k, v in snapshot.items(Table.RAWS)}
        serials = [] if blobs is None else [to_number(k) for k, _ in snapshot.items(Table.BLOBS)]
    keys = [b"p" + pack_key(n) for n in by_pack] + [b"r" + serial_key(s) for s in raws]
    keys += [b"b" + serial_key(s) for s in serials]
    for n, key in enumerate(rounds.order(keys)):
        if n and stop():
            found.complete = False
            return
        if key[:1] == b"p":
            _check_pack_blocks(storage, by_pack[to_number(key[1:])], found, tell, chunks)
        elif blobs is not None and key[:1] == b"b":
            blobs(to_number(key[1:]))
        else:
            serial = to_number(key[1:])
            _check_raw(storage, serial, raws[serial], found, tell)
        rounds.done(key)


def _check_pack_blocks(
    storage: Storage,
    places: list[Place],
    found: Findings,
    tell: Callable[[int], None],
    chunks: bool,
) -> None:
    """The blocks of one pack, several at once in the pool."""
    groups: dict[int, list[Place]] = {}
    for place in places:
        groups.setdefault(place.offset, []).append(place)
    pending = []
    for offset in sorted(groups):
        pending.append((offset, storage.pool.submit(_check_block, storage, groups[offset], chunks)))
        if len(pending) > 8:
            _settle(storage, pending.pop(0), groups, found, tell)
    for item in pending:
        _settle(storage, item, groups, found, tell)


def _settle(
    storage: Storage,
    item: tuple[int, object],
    groups: dict[int, list[Place]],
    found: Findings,
    tell: Callable[[int], None],
) -> None:
    offset, future = item
    bad: dict[int, str] = future.result()  # type: ignore[attr-defined]
    if bad:
        with storage.index.read() as snapshot:
            for number, reason in bad.items():
                now = storage.chunks.place(snapshot, number)
                # Moved or deleted while we looked: what we saw is not what is kept.
                if now is not None and now.offset == offset:
                    found.numbers[number] = reason
    size = groups[offset][0].disk
    found.checked_bytes += size
    tell(size)


def _check_block(storage: Storage, places: list[Place], chunks: bool) -> dict[int, str]:
    """The numbers of a block that are damaged."""
    first = places[0]
    where = f"{storage.packs.path(first.pack)}, offset {first.offset}"
    everything = [n for p in places for n in range(p.first, p.end)]
    try:
        data = storage.packs.read(first.pack, first.offset, first.disk)
    except CorruptError as e:
        return dict.fromkeys(everything, e.message)
    except OSError as e:
        return dict.fromkeys(everything, f"{where}: {e.strerror}")
    head = blocks.parse(storage.secret, data[: first.head])
    if head is None:
        return dict.fromkeys(everything, f"the block header at {where} has a wrong checksum")
    payload = memoryview(data)[first.head :]
    if not chunks:
        if blake3(payload, storage.secret)[:16] != head.payload_check:
            return dict.fromkeys(everything, f"the block at {where} has a wrong checksum")
        return {}
    try:
        raw = blocks.decode(storage.secret, data[: first.head], payload, head.raw, head.codec)
    except CorruptError as e:
        return dict.fromkeys(everything, f"{e.message} ({where})")
    out: dict[int, str] = {}
    for place in places:
        at = place.raw_offset
        for i, length in enumerate(place.lengths):
            want = head.ids[32 * (place.index + i) : 32 * (place.index + i + 1)]
            if blake3(raw[at : at + length]) != want:
                out[place.first + i] = f"chunk {place.first + i} in the block at {where} is damaged"
            at += length
    return out


def _check_raw(
    storage: Storage, serial: int, row: RawRow, found: Findings, tell: Callable[[int], None]
) -> None:
    for piece in range((row.size + PIECE - 1) // PIECE):
        try:
            data = storage.raws.read(serial, row, piece)
        except (CorruptError, OSError) as e:
            with storage.index.read() as snapshot:
                if snapshot.get(Table.RAWS, serial_key(serial)) is not None:
                    found.raws[serial] = str(e)
            return
        found.checked_bytes += len(data)
        tell(len(data))


# ---- what the findings mean -------------------------------------------------------------------


def beside_raw(row: BlobRow) -> bool:
    """Whether a blob has its file, and a gzip form as the only other one: optimizing was cut off."""
    return row.raw is not None and row.gzip is not None and row.tar is None and row.plain is None


def spoilt(
    storage: Storage, snapshot: Snapshot, numbers: Container[int], blobs: Container[int]
) -> list[int]:
    """The blobs with their file whose gzip form beside it is damaged: its recipe by one of the numbers,
    or its content by one of the blobs, or that is missing. The blob itself is whole."""
    out = []
    for key, value in snapshot.items(Table.BLOBS):
        serial, row = to_number(key), BlobRow.parse(value)
        if row.gzip is None or not beside_raw(row):
            continue
        inner = graph.serial_of(snapshot, row.gzip.inner)
        bad = inner is None or inner in blobs
        try:
            runs = blob_runs(storage, snapshot, serial)
            if not bad:
                for place in storage.chunks.places(snapshot, runs):
                    bad = bad or any(n in numbers for n in range(place.first, place.end))
        except CorruptError:
            bad = True
        if bad:
            out.append(serial)
    return out


def forget_forms(storage: Storage, serials: Sequence[int]) -> None:
    """Takes the gzip form from blobs that have their file, so that none relies on what is damaged, and
    the next `optimize` begins anew."""

    def work(tx: Write) -> None:
        for serial in serials:
            row = graph.blob_row(tx, serial)
            if row is not None and beside_raw(row):
                row.gzip = None
                tx.put(Table.BLOBS, serial_key(serial), row.to_bytes())

    if serials and not storage.readonly:
        storage.index.update(work)


def affected(storage: Storage, found: Findings) -> dict[int, tuple[BlobRow, str, list[int]]]:
    """The blobs that are damaged: row, reason, and the damaged numbers that they need."""
    out: dict[int, tuple[BlobRow, str, list[int]]] = {}
    bad = found.numbers
    with storage.index.read() as snapshot:
        for key, value in snapshot.items(Table.BLOBS):
            serial, row = to_number(key), BlobRow.parse(value)
            if serial in found.blobs:
                out[serial] = (row, found.blobs[serial], [])
            if row.raw is not None and row.raw in found.raws:
                out[serial] = (row, found.raws[row.raw], [])
            if bad and row.streams() and not beside_raw(row):
                try:
                    runs = blob_runs(storage, snapshot, serial)
                except CorruptError as e:
                    # Its chunk list itself cannot be read.
                    lists = [
                        n
                        for s in row.streams()
                        for f, c in s.outer
                        for n in range(f, f + c)
                        if n in bad
                    ]
                    out[serial] = (row, e.message, lists)
                    continue
                hit = _hit(runs, bad)
                if hit:
                    out[serial] = (row, bad[hit[0]], hit)
    return out


def derived(
    storage: Storage, hit: dict[int, tuple[BlobRow, str, list[int]]]
) -> dict[int, tuple[BlobRow, int]]:
    """The blobs that can only be made from one that is damaged: row, and serial of that one. They are
    damaged as long as it is, so that nothing needs to be on record for them."""
    out: dict[int, tuple[BlobRow, int]] = {}
    if hit:
        with storage.index.read() as snapshot:
            for key, value in snapshot.items(Table.BLOBS):
                row = BlobRow.parse(value)
                if row.gzip is not None and row.forms in (("gzip",), ()):
                    inner = graph.serial_of(snapshot, row.gzip.inner)
                    if inner is not None and inner in hit:
                        out[to_number(key)] = (row, inner)
    return out


def _hit(runs: list[tuple[int, int]], bad: dict[int, str]) -> list[int]:
    if len(bad) < 64:
        return [n for n in sorted(bad) if any(f <= n < f + c for f, c in runs)]
    return [n for f, c in runs for n in range(f, f + c) if n in bad]


def record(
    storage: Storage,
    hit: dict[int, tuple[BlobRow, str, list[int]]],
    found: Findings,
    *,
    everything: bool = False,
) -> None:
    """Writes the damage down. When `everything` was looked at, what an earlier check found and is
    whole now (a file came back, say) is taken back."""
    if storage.readonly:
        return
    wrong = {b"n" + number_key(n) for n in found.numbers} | {b"b" + serial_key(s) for s in hit}
    with storage.index.read() as snapshot:
        before = dict(snapshot.items(Table.DAMAGE))

    def work(tx: Write) -> None:
        if everything:
            for key, value in before.items():
                if key not in wrong and tx.get(Table.DAMAGE, key) == value:
                    tx.delete(Table.DAMAGE, key)
        for number, reason in found.numbers.items():
            if storage.chunks.place(tx, number) is not None:
                tx.put(Table.DAMAGE, b"n" + number_key(number), dump({"reason": reason}))
        for serial, (row, reason, numbers) in hit.items():
            if tx.get(Table.BLOBS, serial_key(serial)) is None:
                continue
            why = {
                "reason": reason,
                "numbers": numbers,
                "raw": row.raw is not None and row.raw in found.raws,
            }
            tx.put(Table.DAMAGE, b"b" + serial_key(serial), dump(why))

    if hit or found.numbers or (everything and before):
        storage.index.update(work)


def refs_to(storage: Storage, serials: set[int]) -> dict[int, list[str]]:
    """For each blob the images that need it."""
    out: dict[int, list[str]] = {s: [] for s in serials}
    with storage.index.read() as snapshot:
        for name, value in snapshot.items(Table.REFS):
            target = graph.serial_of(snapshot, json.loads(value)["digest"])
            if target is None:
                continue
            for serial in graph.closure(snapshot, (target,)) & serials:
                out[serial].append(name.decode())
    return out


def recorded(storage: Storage) -> Iterator[tuple[int, dict[str, object]]]:
    """The blobs whose damage is on record."""
    with storage.index.read() as snapshot:
        for key, value in snapshot.items(Table.DAMAGE, b"b"):
            yield to_number(key[1:]), json.loads(value)
