"""Garbage collection, online: mark, condemn, delete, compact, give space back (RULES 3 to 7, 12 to 14).

Mark at a snapshot; condemn in one transaction that marks again what has become reachable since; delete
when every running operation began at or after that transaction, in slices that each mark again. Nothing
waits: what a running operation holds back is `pending_bytes`, and the next run goes on from the same
condemned set, also after a crash. One collector at a time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence

from ..core.runs import RunArray
from ..errors import BusyError, CorruptError, StoreFullError, UnsupportedError
from ..values import GCReport, Progress, ProgressCallback
from . import (
    blocks,
    compact,
    graph,
    placing,
    prune,
    reclaim,
    repositories,
    reserve,
    seeds,
    sessions,
    unpacked,
    uploads,
)
from .condemned import Condemned, CondemnedFiles
from .graph import remove_blob
from .index import Snapshot, Table, Write
from .journal import HEADER_SIZE
from .leases import drop_some, expired, of_older_boot, restart, session_of
from .locks import FileLock
from .mark import Marker, session_alive
from .operation import LAST_DELETE
from .placing import all_places
from .rows import (
    ID_KEY,
    BlobRow,
    Place,
    RawRow,
    Runs,
    decode_runs,
    number_key,
    serial_key,
    to_number,
)
from .storage import Storage

BLOB_SLICE = 500
NUMBER_SLICE = 4096
LEASE_SLICE = 128
"""Rows of one commit: all writers wait for it, so it takes milliseconds."""
NO_LIMITS = prune.Limits()
CHECKPOINT_AT = 1 << 20
"""The metadata pack is cut when it has grown by this much, and by half of what it holds."""


def collect(
    storage: Storage,
    *,
    dry_run: bool = False,
    max_time: float | None = None,
    max_repack_size: int | None = None,
    aggressive: bool = False,
    limits: prune.Limits = NO_LIMITS,
    progress: ProgressCallback | None = None,
) -> GCReport:
    """Runs a collector; see `Store.gc`. Raises BusyError when another one runs, CorruptError (and
    deletes nothing) when the mark meets something missing."""
    storage.check_usable()
    if storage.readonly and not dry_run:
        raise UnsupportedError(f"the store at {storage.path} is open for reading only")
    started = time.monotonic()
    stop = compact.deadline(max_time)
    run = _Run(storage, stop, progress)
    if dry_run:
        return run.estimate(started, aggressive, limits)
    lock = FileLock(os.path.join(storage.path, "gc", "lock"))
    if not lock.try_acquire():
        lock.acquire(
            0.0 if storage.timeout is None else storage.timeout,
            "the collector's lock (another gc runs)",
        )
    try:
        try:
            complete = run.everything(max_repack_size, aggressive)
            complete, lacking = _shrink(run, limits, complete, max_repack_size)
        except StoreFullError:
            # The disk is full: open the reserve, delete first, copy nothing (rule 23).
            storage.rawcache.shrink(0)
            with reserve.opened(storage):
                complete = run.everything(0, False)
                complete, lacking = _shrink(run, limits, complete, 0)
        reserve.ensure(storage)
    finally:
        lock.release()
    return GCReport(
        False,
        run.condemned_chunks,
        run.freed,
        run.pending,
        run.removed_blobs,
        time.monotonic() - started,
        complete,
        run.dropped,
        lacking <= 0,
        run.dropped_images,
    )


def _shrink(
    run: _Run, limits: prune.Limits, complete: bool, budget: int | None
) -> tuple[bool, int]:
    """Drops copies in the raw cache, then what `prune` chooses, until the limits hold, or nothing is
    left to drop, or the time is over. Returns whether it came to its end, and the bytes that are still
    too many."""
    lacking = limits.lacking(run.storage)
    # What is dead already goes first, to the last byte.
    if lacking > 0 and complete:
        complete = run.everything(budget, True, copies=False)
        lacking = limits.lacking(run.storage)
    # Copies of blobs are made again by whoever reads them: they go before what is lost for good.
    while lacking > 0 and complete and run.let_copies_go(lacking):
        lacking = limits.lacking(run.storage)
    factor = 1
    # While an older operation holds deletion back, more entries would only be lost for nothing.
    while lacking > 0 and complete and not run.waiting and run.let_go(lacking * factor):
        complete = run.everything(budget, True, copies=False)
        lacking = limits.lacking(run.storage)
        factor *= 2
    return complete, lacking


def _restart(keys: Sequence[bytes], tx: Write) -> None:
    for key in keys:
        restart(tx, key)


class _Run:
    """One run of the collector."""

    def __init__(
        self, storage: Storage, stop: Callable[[], bool], progress: ProgressCallback | None
    ) -> None:
        self.storage = storage
        self._stop = stop
        self._began = False
        self._progress = progress
        self._last: Progress | None = None
        self.condemned_chunks = 0
        self.removed_blobs = 0
        self.freed = 0
        self.pending = 0
        self.dropped = self.dropped_images = 0
        self.waiting = False

    def _tell(self, stage: str, done: int, total: int, unit: str = "blobs") -> None:
        self._last = Progress(stage, done, total, unit)
        self._say()

    def _say(self) -> None:
        """Says again where the run is: whoever listens may make it give way, so this comes between all
        pieces of work, and never while the gate is held, or a snapshot: an old one keeps the index from
        using again what others free meanwhile."""
        if self._progress is not None and self._last is not None:
            self._progress(self._last)

    def _over(self) -> bool:
        """Asked before each piece of work: whether time is over. Never before the first, so that runs
        that are shorter than a mark get further, too."""
        self._say()
        began, self._began = self._began, True
        return began and self._stop()

    def let_copies_go(self, lacking: int) -> bool:
        """Takes that many bytes of copies of blobs away, the coldest first. False if none
        went."""
        cache = self.storage.rawcache
        freed = cache.shrink(max(0, cache.used() - lacking))
        self.freed += freed
        return freed > 0

    def let_go(self, lacking: int) -> bool:
        """Lets unpacked layers, images of a mirror and cache entries go that are estimated to be worth
        so many bytes; False if there was nothing."""
        storage = self.storage
        with storage.index.read() as snapshot:
            chains = prune.spare_copies(storage, snapshot, lacking)
        freed = prune.drop_copies(storage, chains)
        self.freed += freed
        with storage.index.read() as snapshot:
            found = prune.choose(prune.victims(storage, snapshot), lacking - freed)
        gone, images = prune.drop(storage, found)
        self.dropped += gone
        self.dropped_images += images
        return bool(freed or gone or images)

    def everything(self, budget: int | None, aggressive: bool, *, copies: bool = True) -> bool:
        """All phases; False when time or the budget ended it early. Unless `copies`, unpacked layers
        go only with what they were made from, aggressive or not."""
        storage = self.storage
        storage.index.clear_readers()
        self._bury_dead()
        # Twice at most: an older condemned set that was waiting goes first, then what is dead now.
        for _ in range(2):
            try:
                with storage.index.read() as snapshot:
                    waiting = storage.condemned(snapshot, strict=True)
            except CorruptError:
                # A set that is lost condemns nothing any more. Blobs go before chunks, so what has
                # a row is whole, and what is dead will be condemned anew.
                storage.index.update(CondemnedFiles.clear)
                waiting = None
            if waiting is not None and not self._delete(waiting):
                break
            if not self._condemn():
                break
        with storage.index.read() as snapshot:
            waiting = storage.condemned(snapshot)
        if waiting is not None:
            self._delete(waiting)
        done = not (self._began and self._stop())
        if done and budget != 0:
            found = compact.survey(storage)
            victims = compact.choose(found, aggressive=aggressive)
            if aggressive:
                victims += compact.stranded(found, victims)
            with contextlib.closing(compact.Compactor(storage, self._over)) as mover:
                done = mover.run(victims, budget)
        before = self._allocated()
        self._tell("reclaim", 0, 1)
        reclaim.reclaim_raws(storage)
        swept = storage.rawcache.sweep(storage)
        reclaim.reclaim_packs(storage)
        uploads.reclaim(storage)
        unpacked_bytes = unpacked.reclaim(storage, aggressive=aggressive and copies)
        seeds.prune(storage)
        self._sweep()
        self.freed += (
            max(0, self.start_bytes - self._allocated())
            if done
            else max(0, before - self._allocated())
        ) + (unpacked_bytes + swept)
        self.pending = 0
        with storage.index.read() as snapshot:
            waiting = storage.condemned(snapshot)
            self.waiting = waiting is not None
            if waiting is not None:
                self.pending = self._cost(snapshot, waiting.runs, waiting.blobs)
        self._checkpoint()
        return done

    def _allocated(self) -> int:
        """What packs and raw files take on disk."""
        storage = self.storage
        total = 0
        for root in (storage.packs.directory, storage.raws.directory):
            for folder, _, names in os.walk(root):
                for name in names:
                    try:
                        total += os.stat(os.path.join(folder, name)).st_blocks * 512
                    except FileNotFoundError:
                        continue
        return total

    # ---- what is dead -------------------------------------------------------------------------

    def _bury_dead(self) -> None:
        """Deletes the rows of sessions whose process is gone, and of leases that have expired."""
        storage = self.storage
        self.start_bytes = self._allocated()
        folder = os.path.join(storage.path, "sessions")
        _, dead = sessions.live(folder)
        for name in dead:
            with sessions.bury(folder, name, storage.disk) as ours:
                if ours:
                    self._drop_leases([bytes.fromhex(name)])
        with storage.index.read() as snapshot:
            over = [
                key
                for key, value in snapshot.items(Table.LEASES)
                if expired(value) or not self._owner_lives(key, value)
            ]
            older = [key for key, value in snapshot.items(Table.LEASES) if of_older_boot(value)]
        self._tell("leases", 0, len(over), "leases")
        self._drop_leases(over, self._say)
        for at in range(0, len(older), LEASE_SLICE):
            storage.index.update(functools.partial(_restart, older[at : at + LEASE_SLICE]))
        repositories.expire(storage)

    def _owner_lives(self, lease: bytes, value: bytes) -> bool:
        session = session_of(lease, value)
        return session is None or session_alive(self.storage, session)

    def _drop_leases(self, keys: Sequence[bytes], say: Callable[[], None] = lambda: None) -> None:
        """Many in a commit: a server whose clients vanish has one for each of them."""
        left = keys
        while left:
            part = left[:LEASE_SLICE]
            gone = self.storage.index.update(
                lambda tx, part=part: drop_some(tx, part, LEASE_SLICE)  # type: ignore[misc]
            )
            left = left[gone:]
            say()

    def _candidates(self, snapshot: Snapshot) -> tuple[Runs, set[int]]:
        """Committed numbers and blobs of a snapshot: all that may be condemned (rule 2)."""
        numbers: Runs = []
        for place in all_places(snapshot):
            if numbers and numbers[-1][0] + numbers[-1][1] == place.first:
                numbers[-1] = (numbers[-1][0], numbers[-1][1] + place.count)
            else:
                numbers.append((place.first, place.count))
        return numbers, {to_number(key) for key, _ in snapshot.items(Table.BLOBS)}

    def _condemn(self) -> bool:
        """Marks and condemns; False if nothing is dead."""
        storage = self.storage
        with storage.index.read() as snapshot:
            count = snapshot.count(Table.BLOBS)
        self._tell("mark", 0, count)
        with storage.index.read() as snapshot:
            self._verify_sums(snapshot)
            numbers, blobs = self._candidates(snapshot)
            marker = Marker(storage, numbers)
            marker.mark(snapshot)

        def work(tx: Write) -> int | None:
            if tx.get(Table.META, b"condemned") is not None:
                raise BusyError("another collector has condemned meanwhile")
            marker.mark(tx)
            runs = marker.dead()
            dead = blobs - marker.seen
            if not runs and not dead:
                return None
            number = tx.draw(b"next_condemned")
            storage.condemned_files.write(number, dead, runs)
            CondemnedFiles.name(tx, number, tx.sequence + 1)
            return sum(count for _, count in runs)

        condemned = storage.index.update(work)
        if condemned is None:
            return False
        self.condemned_chunks += condemned
        return True

    def _verify_sums(self, snapshot: Snapshot) -> None:
        wrong = self.storage.index.sums_match(snapshot)
        if wrong is not None:
            raise CorruptError(
                f"the index table {wrong.name.lower()} has lost or gained rows: nothing is deleted; "
                "run `layerstore check --rebuild-index`",
                where=self.storage.index.path,
            )

    # ---- deleting -----------------------------------------------------------------------------

    def _delete(self, condemned: Condemned) -> bool:
        """Deletes what is still condemned; False if an older operation or the time holds it back."""
        storage = self.storage
        epochs, _ = sessions.live(os.path.join(storage.path, "sessions"))
        if min(epochs.values(), default=sessions.IDLE) < condemned.sequence:
            return False
        marker = Marker(storage, condemned.runs)
        with storage.index.read() as snapshot:
            self._verify_sums(snapshot)
            marker.mark(snapshot, condemned.blobs)
            # What an earlier run did not come to. Manifests before what they name.
            numbers, blobs = self._candidates(snapshot)
        dead = sorted(condemned.blobs & blobs, reverse=True)
        left = RunArray.of(condemned.runs).intersect(RunArray.of(numbers))
        for at in range(0, len(dead), BLOB_SLICE):
            if self._over():
                return False
            part = dead[at : at + BLOB_SLICE]
            self.removed_blobs += storage.index.update(
                lambda tx, part=part: self._delete_blobs(tx, marker, condemned, part)  # type: ignore[misc]
            )
            self._tell("delete", at, len(dead))
        self._delete_files(condemned)
        for run in _slices(list(left), NUMBER_SLICE):
            if self._over():
                return False
            storage.index.update(
                lambda tx, run=run: self._delete_numbers(tx, marker, condemned, run)  # type: ignore[misc]
            )
        storage.index.update(CondemnedFiles.clear)
        storage.condemned_files.remove(condemned.number)
        return True

    def _fence(self, tx: Write) -> None:
        """Lets every commit of an operation that began before know that something was deleted."""
        tx.set_meta(LAST_DELETE, tx.sequence + 1)

    def _delete_blobs(
        self, tx: Write, marker: Marker, condemned: Condemned, serials: list[int]
    ) -> int:
        marker.mark(tx, condemned.blobs)
        gone = 0
        for serial in serials:
            key = serial_key(serial)
            value = tx.get(Table.BLOBS, key)
            if serial in marker.seen or value is None:
                continue
            remove_blob(tx, serial, BlobRow.parse(value))
            gone += 1
        if gone:
            self._fence(tx)
        return gone

    def _delete_files(self, condemned: Condemned) -> None:
        """File rows that name a condemned number."""
        storage = self.storage
        start = b""
        while True:
            doomed: list[bytes] = []
            with storage.index.read() as snapshot:
                looked = 0
                for key, value in snapshot.items(Table.FILES, start=start):
                    looked += 1
                    start = key + b"\0"
                    if any(condemned.overlaps(*run) for run in decode_runs(value[ID_KEY:])):
                        doomed.append(key)
                    if looked == 4096:
                        break
            if doomed:

                def work(tx: Write, doomed: list[bytes] = doomed) -> None:
                    for key in doomed:
                        tx.delete(Table.FILES, key)

                storage.index.update(work)
            if looked < 4096:
                return

    def _delete_numbers(
        self, tx: Write, marker: Marker, condemned: Condemned, run: tuple[int, int]
    ) -> None:
        marker.mark(tx, condemned.blobs)
        for first, count in marker.dead_within(run):
            for place in placing.carve(tx, first, count):
                self._delete_chunk_rows(tx, place)
                for number in range(place.first, place.end):
                    tx.delete(Table.DAMAGE, b"n" + number_key(number))
            self._fence(tx)

    def _delete_chunk_rows(self, tx: Write, place: Place) -> None:
        """The ids stand in the block's header; where that is damaged the rows stay, and are passed
        over by look-ups since their number has no place."""
        storage = self.storage
        try:
            head = blocks.parse(
                storage.secret, storage.packs.read(place.pack, place.offset, place.head)
            )
        except CorruptError:
            return
        if head is None:
            return
        for i in range(place.count):
            at = 32 * (place.index + i)
            key = head.ids[at : at + ID_KEY]
            if tx.get(Table.CHUNKS, key) == number_key(place.first + i):
                tx.delete(Table.CHUNKS, key)

    def _sweep(self) -> None:
        """Unlinks what crashed collectors left: condemned sets that no row names, files that were
        never finished. Only a collector makes such files, and we hold its lock."""
        storage = self.storage
        with storage.index.read() as snapshot:
            named = storage.condemned(snapshot)
        keep = "" if named is None else os.path.basename(storage.condemned_files.path(named.number))
        for folder, endings in (("gc", (".condemned", ".new")), ("meta", (".new",))):
            for name in os.listdir(os.path.join(storage.path, folder)):
                if name.endswith(endings) and name != keep:
                    storage.disk.unlink(os.path.join(storage.path, folder, name))

    # ---- figures ------------------------------------------------------------------------------

    def _cost(self, snapshot: Snapshot, runs: Runs, blobs: frozenset[int] | set[int]) -> int:
        """What some numbers and blobs take on disk: shares of their blocks, and raw files."""
        total = 0.0
        for first, count in runs:
            at = first
            while at < first + count:
                place = placing.place_of(snapshot, at)
                if place is None:
                    at += 1
                    continue
                stop = min(place.end, first + count)
                share = sum(place.lengths[at - place.first : stop - place.first])
                total += place.disk * share / max(1, place.raw)
                at = stop
        for serial in blobs:
            row = graph.blob_row(snapshot, serial)
            if row is not None and row.raw is not None:
                value = snapshot.get(Table.RAWS, serial_key(row.raw))
                total += RawRow.parse(value).size if value is not None else 0
        return int(total)

    def estimate(self, started: float, aggressive: bool, limits: prune.Limits) -> GCReport:
        """What a run would do, without doing any of it."""
        storage = self.storage
        with storage.index.read() as snapshot:
            numbers, blobs = self._candidates(snapshot)
            marker = Marker(storage, numbers)
            marker.mark(snapshot)
            runs, dead = marker.dead(), blobs - marker.seen
            cost = self._cost(snapshot, runs, dead)
            cost += reclaim.leftovers(storage, snapshot)
            copies = unpacked.Copies(storage, snapshot).dead(dead, aggressive=aggressive).values()
            cost += sum(row.size for row in copies)
            lacking = limits.lacking(storage) - cost
            dropped = dropped_images = 0
            if lacking > 0:
                spare = min(lacking, storage.rawcache.used())
                cost += spare
                lacking -= spare
            if lacking > 0:
                goes = prune.foresee(storage, snapshot, lacking, {row.chain for row in copies})
                dropped, dropped_images = goes.entries, goes.images
                runs, dead = goes.runs, goes.blobs
                cost += goes.bytes
                lacking -= goes.bytes
        return GCReport(
            True,
            sum(count for _, count in runs),
            cost,
            0,
            len(dead),
            time.monotonic() - started,
            True,
            dropped,
            lacking <= 0,
            dropped_images,
        )

    # ---- the metadata pack --------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Starts a new metadata pack, writes all rows up to here into a checkpoint, names it, and
        only then unlinks what is older (rule 16)."""
        storage = self.storage
        with storage.index.read() as snapshot:
            at = snapshot.position
            kept = snapshot.meta(b"checkpoint_bytes")
        if at.offset - HEADER_SIZE < max(CHECKPOINT_AT, kept // 2):
            return
        checkpoint(storage)


def checkpoint(storage: Storage) -> None:
    """See `_checkpoint`; without the question whether it is due."""
    journal = storage.journal

    def rotate(tx: Write) -> int:
        at = tx.position
        journal.create(at.file + 1, at.sequence)
        tx.rotate_to(at.file + 1)
        return at.file + 1

    number = storage.index.update(rotate)
    with storage.index.read() as snapshot:
        # At least all up to the end of the old file; what is younger stands in the new file too,
        # and replaying it over the checkpoint gives the same rows.
        journal.write_checkpoint(number, snapshot.sequence, snapshot.logged_rows())
        size = os.path.getsize(journal.checkpoint_path(number))

    def name(tx: Write) -> None:
        tx.set_meta(b"checkpoint", number)
        tx.set_meta(b"checkpoint_bytes", size)

    storage.index.update(name)
    for old in journal.files():
        if old < number:
            storage.disk.unlink(journal.path(old))
    for old in journal.checkpoints():
        if old < number:
            storage.disk.unlink(journal.checkpoint_path(old))


def _slices(runs: Runs, size: int) -> list[tuple[int, int]]:
    """Runs cut into parts of at most `size` numbers."""
    out = []
    for first, count in runs:
        for at in range(0, count, size):
            out.append((first + at, min(size, count - at)))
    return out
