"""The index made anew from the packs alone, names included (rules 15 to 17).

Rows of the journalled tables come from the newest whole checkpoint of the metadata pack and the
records behind it; places and chunk rows from a scan of the packs. A number that lies in two places is
taken from the one whose checksum holds. A blob that cannot be made whole is dropped if nothing refers
to it, and reported if something does.
"""

from __future__ import annotations

import os
import shutil
import time

from ..core.hashing import blake3
from ..errors import CorruptError, NotFoundError
from ..values import CheckReport, Damage
from . import blocks, cache, graph, mounts, placing, unpacked
from .check import Findings, affected, beside_raw, forget_forms, record, refs_to, spoilt
from .disk import Disk
from .index import MAX_KEYS, UNLOGGED, Index, Table, Write
from .journal import GENESIS, HEADER_SIZE, Change, Journal, Position
from .locks import FileLock, Gate
from .mark import blob_runs, pinned
from .packs import HEADER_SIZE as PACK_HEADER
from .packs import Packs, next_block
from .rows import ID_KEY, BlobRow, PackRow, Place, number_key, pack_key, serial_key, to_number
from .storage import Format, Storage, exists


def rebuild(path: str, *, timeout: float | None = None) -> CheckReport:
    """See `layerstore.rebuild_index`."""
    started = time.monotonic()
    path = os.path.abspath(path)
    disk = Disk()
    if not exists(path):
        raise NotFoundError(f"no store at {path}", path=path)
    mounts.refuse_remote(path)
    with open(os.path.join(path, "FORMAT"), "rb") as f:
        made = Format.parse(f.read(65536), os.path.join(path, "FORMAT"))
    lock = FileLock(os.path.join(path, "lock"))
    lock.acquire(0.0 if timeout is None else timeout, "the store (all its handles)")
    try:
        journal = Journal(os.path.join(path, "meta"), made.secret, made.uuid, disk)
        rows, position = replay(journal)
        fresh = os.path.join(path, "index.new")
        shutil.rmtree(fresh, ignore_errors=True)
        checked = _fill(path, fresh, made, journal, disk, rows, position)
        old = os.path.join(path, "index.old")
        shutil.rmtree(old, ignore_errors=True)
        if os.path.exists(os.path.join(path, "index")):
            disk.rename(os.path.join(path, "index"), old)
        disk.rename(fresh, os.path.join(path, "index"))
        disk.sync_dir(path)
        shutil.rmtree(old, ignore_errors=True)
        journal.close()
    finally:
        lock.release()
    return _settle(path, started, checked, timeout)


def replay(journal: Journal) -> tuple[dict[tuple[int, bytes], bytes], Position]:
    """All rows of the journalled tables, and where the next record goes."""
    state: dict[tuple[int, bytes], bytes] = {}
    start = 0
    sequence = 0
    for number in reversed(journal.checkpoints()):
        loaded: dict[tuple[int, bytes], bytes] = {}
        whole = False
        for record_ in journal.records(number, checkpoint=True):
            whole = not record_.changes
            _apply(loaded, record_.changes)
            sequence = record_.sequence
        if whole:
            state, start = loaded, number
            break
    files = [n for n in journal.files() if n >= start]
    if not files:
        raise CorruptError(
            f"{journal.directory} holds no metadata pack: the index cannot be made anew",
            where=journal.directory,
        )
    previous = GENESIS
    last = files[-1]
    offset = HEADER_SIZE
    for i, number in enumerate(files):
        offset = HEADER_SIZE
        for j, record_ in enumerate(journal.records(number)):
            if j == 0 and i > 0 and not journal.follows(number, sequence, previous):
                raise CorruptError(
                    f"{journal.path(number)} does not follow the file before it",
                    where=journal.path(number),
                )
            _apply(state, record_.changes)
            sequence, previous, offset = record_.sequence, record_.hash, record_.end
        last = number
    return state, Position(last, offset, sequence, previous)


def _apply(state: dict[tuple[int, bytes], bytes], changes: list[Change]) -> None:
    for table, key, value in changes:
        if value is None:
            state.pop((table, key), None)
        else:
            state[(table, key)] = value


def _fill(
    path: str,
    fresh: str,
    made: Format,
    journal: Journal,
    disk: Disk,
    rows: dict[tuple[int, bytes], bytes],
    position: Position,
) -> int:
    """Writes the new index; returns the bytes that were scanned."""
    # Records go to a new file: the old one may hold a torn record where the next would begin.
    file = max(journal.files()) + 1
    journal.create(file, position.sequence)
    index = Index(fresh, made.secret, journal, Gate(os.path.join(path, "gate"), None), disk)
    try:
        at = Position(file, HEADER_SIZE, position.sequence, position.previous)

        def begin(tx: Write) -> None:
            tx.move_journal(at)

        index.seed(begin)
        packs = Packs(os.path.join(path, "packs"))
        places, scanned = scan_packs(packs, made, rows)
        rows = {k: v for k, v in rows.items() if k != (Table.META, b"condemned")}
        rows = {k: v for k, v in rows.items() if k[0] != Table.REVIVED}
        _raise_counters(path, rows, places, packs)
        items = list(rows.items())
        for start in range(0, len(items), MAX_KEYS):
            part = items[start : start + MAX_KEYS]

            def put(tx: Write, part: list[tuple[tuple[int, bytes], bytes]] = part) -> None:
                for (table, key), value in part:
                    if Table(table) not in UNLOGGED:
                        tx.put(Table(table), key, value)

            index.seed(put)
        _put_places(index, places)
        packs.close()
        return scanned
    finally:
        index.close()


def _raise_counters(
    path: str,
    rows: dict[tuple[int, bytes], bytes],
    places: list[tuple[Place, bytes, bool]],
    packs: Packs,
) -> None:
    """No number is ever used twice, also when the last records were lost."""

    def least(name: bytes, value: int) -> None:
        key = (int(Table.META), name)
        now = int.from_bytes(rows.get(key, b""), "little")
        rows[key] = max(now, value).to_bytes(8, "little")

    least(b"next_chunk", max((p.end for p, _, _ in places), default=0) + 1)
    least(b"next_pack", max(packs.numbers(), default=0) + 1)
    raws = [
        int(name, 16)
        for folder in os.listdir(os.path.join(path, "raw"))
        for name in os.listdir(os.path.join(path, "raw", folder))
        if len(name) == 12
    ]
    least(b"next_raw", max(raws, default=0) + 1)
    home = os.path.join(path, unpacked.LAYERS)
    bases = [name.partition(".")[0] for name in os.listdir(home)] if os.path.isdir(home) else []
    copies = [int(base, 16) for base in bases if base != unpacked.EMPTY]
    least(unpacked.NEXT_UNPACKED, max(copies, default=0) + 1)
    blobs = [to_number(key) for table, key in rows if table == Table.BLOBS]
    least(b"next_blob", max(blobs, default=0) + 1)


def scan_packs(
    packs: Packs, made: Format, rows: dict[tuple[int, bytes], bytes]
) -> tuple[list[tuple[Place, bytes, bool]], int]:
    """Every block that the committed part of every pack holds: places with their ids."""
    out: list[tuple[Place, bytes, bool]] = []
    scanned = 0
    for number in packs.numbers():
        value = rows.get((int(Table.PACKS), pack_key(number)))
        if value is None:
            continue
        end = min(PackRow.parse(value).length, os.path.getsize(packs.path(number)))
        fd = os.open(packs.path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = PACK_HEADER
            while at < end:
                found = _block(fd, made.secret, number, at, end)
                if found is None:
                    at = next_block(fd, at + 1, end)
                    continue
                parts, size, good = found
                scanned += size
                out += [(place, ids, good) for place, ids in parts]
                at += size
        finally:
            os.close(fd)
    return out, scanned


def _block(
    fd: int, secret: bytes, number: int, at: int, end: int
) -> tuple[list[tuple[Place, bytes]], int, bool] | None:
    size = blocks.header_size(os.pread(fd, 32, at))
    if size is None or at + size > end:
        return None
    head = blocks.parse(secret, os.pread(fd, size, at))
    if head is None or at + size + head.payload > end:
        return None
    payload = os.pread(fd, head.payload, at + size)
    good = blake3(payload, secret)[:16] == head.payload_check
    out: list[tuple[Place, bytes]] = []
    raw_offset = index = 0
    for first, count in head.runs:
        lengths = head.lengths[index : index + count]
        place = Place(
            first,
            number,
            at,
            size,
            size + head.payload,
            head.raw,
            raw_offset,
            index,
            head.codec,
            head.kind,
            lengths,
        )
        out.append((place, head.ids[32 * index : 32 * (index + count)]))
        raw_offset += sum(lengths)
        index += count
    return out, size + head.payload, good


def _put_places(index: Index, found: list[tuple[Place, bytes, bool]]) -> None:
    """Gives every number its place. A number may lie in several (compaction moved it and the old
    block was not punched yet): those that do not verify go first, so that one that does wins."""
    found.sort(key=lambda item: item[2])
    for start in range(0, len(found), 64):
        part = found[start : start + 64]

        def work(tx: Write, part: list[tuple[Place, bytes, bool]] = part) -> None:
            for place, ids, _ in part:
                placing.replace(tx, place)
                for i in range(place.count):
                    key = ids[32 * i : 32 * i + ID_KEY]
                    tx.put(Table.CHUNKS, key, number_key(place.first + i))

        index.seed(work)


def _settle(path: str, started: float, checked: int, timeout: float | None) -> CheckReport:
    """Drops blobs that cannot be made whole and that nothing needs; reports the others."""
    storage = Storage(path, readonly=False, timeout=timeout)
    try:
        found = Findings(checked_bytes=checked)
        with storage.index.read() as snapshot:
            for key, _ in snapshot.items(Table.BLOBS):
                serial = to_number(key)
                row = graph.blob_row(snapshot, serial)
                if row is None:
                    continue
                if beside_raw(row) and os.path.exists(storage.raws.path(row.raw or 0)):
                    continue
                try:
                    for _place in storage.chunks.places(
                        snapshot, blob_runs(storage, snapshot, serial)
                    ):
                        pass
                    if row.raw is not None and not os.path.exists(storage.raws.path(row.raw)):
                        raise CorruptError(f"raw file {storage.raws.path(row.raw)} is missing")
                    if row.gzip is not None and graph.serial_of(snapshot, row.gzip.inner) is None:
                        raise CorruptError(f"it is made from {row.gzip.inner}, which is missing")
                except CorruptError as e:
                    found.blobs[serial] = e.message
            for key, value in snapshot.items(Table.BLOBS):
                row = BlobRow.parse(value)
                gzip = row.gzip
                if beside_raw(row) or gzip is None:
                    continue
                if graph.serial_of(snapshot, gzip.inner) in found.blobs:
                    found.blobs.setdefault(to_number(key), f"its tar {gzip.inner} is damaged")
            forms = spoilt(storage, snapshot, (), found.blobs)
        forget_forms(storage, [serial for serial in forms if serial not in found.blobs])
        refs = refs_to(storage, set(found.blobs))
        with storage.index.read() as snapshot:
            needed = pinned(storage, snapshot, cached=False)
        loose = [s for s, names in refs.items() if not names and s not in needed]

        def drop(tx: Write) -> None:
            held: dict[bytes, list[bytes]] = {}
            for key, _ in tx.items(Table.HOLDS):
                held.setdefault(key[8:], []).append(key)
            for serial in loose:
                row = graph.blob_row(tx, serial)
                if row is not None:
                    graph.remove_blob(tx, serial, row)
                for key in held.get(serial_key(serial), ()):
                    tx.delete(Table.HOLDS, key)

        if found.blobs:
            # What a step made can be made again: no entry is kept for something that is not whole.
            storage.index.update(lambda tx: cache.drop_unusable(tx, set(found.blobs)))
        if loose:
            storage.index.update(drop)
            for serial in loose:
                del found.blobs[serial]
        hit = affected(storage, found)
        record(storage, hit, found)
        damaged = tuple(
            Damage(row.digest, row.forms[0] if row.forms else "none", reason, tuple(refs[s]), ())
            for s, (row, reason, _) in sorted(hit.items())
        )
        return CheckReport(not damaged, damaged, (), checked, time.monotonic() - started)
    finally:
        storage.close()
