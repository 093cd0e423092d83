"""The index: LMDB behind one narrow interface, and the single commit point of the store.

A read sees one snapshot. A write is a function that is given a transaction; it runs under the
writer gate, may run twice (when the map had to grow), and everything it changed in a journalled
table is one record of the metadata pack, synced before LMDB commits. Rows carry a keyed checksum
over table, key and value; tables that keep things alive carry a running multiset hash as well,
so that a lost row cannot make gc delete (rule 19). Chunk rows have neither: a hit is confirmed by
the whole id in the pack, and both they and block rows are made again from the packs.

LMDB's own files are never opened here, not even to look at them: closing any descriptor of the lock
file would drop the process's POSIX locks. One environment per process and directory, shared by all
handles (a registry below), for the same reason.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any, TypeVar

import lmdb
from blake3 import blake3

from ..errors import BusyError, CorruptError, LayerstoreError, StoreFullError, UnsupportedError
from .disk import Disk
from .journal import HEADER_SIZE, Change, Journal, Position
from .locks import Gate

T = TypeVar("T")


class Table(IntEnum):
    """The tables; the numbers are part of the format (they name tables in commit records)."""

    META = 0
    CHUNKS = 1  # id[:16] -> number
    FILES = 2  # whole-file id[:16] -> rest of the id, runs
    BLOCKS = 3  # first number -> place
    PACKS = 4  # pack number -> committed length, sealed
    BLOBS = 5  # blob serial -> how to make it
    DIGESTS = 6  # digest -> blob serial
    LAYERS = 7  # diff_id, blob serial -> nothing
    REFS = 8  # name -> digest
    EDGES = 9  # blob serial -> digests that it names
    SUBJECTS = 10  # subject digest, blob serial -> nothing
    LEASES = 11  # lease id -> kind, times
    HOLDS = 12  # lease id, blob serial -> nothing
    RAWS = 13  # raw serial -> size, checksum of each piece
    DAMAGE = 14  # what was found damaged
    REVIVED = 15  # blob serials un-condemned since the condemned set was written
    SEEN = 16  # directories that were diffed -> the layer, and where files lie in it
    UNPACKED = 17  # chain id -> the directory of an unpacked layer
    SNAPSHOTS = 18  # key of a snapshot -> its directory, and what it keeps
    CACHE = 19  # hash of a key -> a builder's step: digest, last use
    MEMBERS = 20  # repository, digest -> what may be read there


# Not in the journal: made again from the packs (FILES and SEEN are mere short cuts).
UNLOGGED = frozenset((Table.CHUNKS, Table.FILES, Table.BLOCKS, Table.SEEN))
# No checksum per row: see above.
UNSEALED = frozenset((Table.CHUNKS,))
# Younger than format 1: a store that nobody has written to since has none of them, which is as good as
# empty ones.
LATER = frozenset((Table.SEEN, Table.UNPACKED, Table.SNAPSHOTS, Table.CACHE, Table.MEMBERS))
# A row lost here could make gc delete something that is alive.
COUNTED = (
    Table.BLOCKS,
    Table.PACKS,
    Table.BLOBS,
    Table.DIGESTS,
    Table.REFS,
    Table.EDGES,
    Table.SUBJECTS,
    Table.LEASES,
    Table.HOLDS,
    Table.RAWS,
    Table.SNAPSHOTS,
    Table.CACHE,
    Table.MEMBERS,
)
SEAL = 8
MAX_KEYS = 16_384  # keys one transaction may touch (rule 12); callers slice

_SIZES = (1 << 40, 1 << 38, 1 << 36, 1 << 34, 1 << 32, 1 << 30)
_SUM_MASK = (1 << 128) - 1

_K_SEQ = b"journal"
_POSITION = struct.Struct("<QQQ32s")


def seal(secret: bytes, table: Table, key: bytes, value: bytes) -> bytes:
    """The checksum of a row: 8 bytes of BLAKE3 keyed with the store's secret."""
    return blake3(bytes((table, len(key) & 0xFF)) + key + value, key=secret).digest(SEAL)


def _weight(secret: bytes, table: Table, key: bytes, value: bytes) -> int:
    data = b"sum" + bytes((table,)) + len(key).to_bytes(2, "little") + key + value
    return int.from_bytes(blake3(data, key=secret).digest(16), "little")


class _Environment:
    """One LMDB environment of this process, counted by its handles."""

    registry: dict[tuple[int, int], _Environment] = {}  # noqa: RUF012 (LMDB wants it process-wide)
    guard = threading.Lock()

    def __init__(self, path: str, readonly: bool, map_size: int | None) -> None:
        self.pid = os.getpid()
        self.readonly = readonly
        self.handles = 0
        self._cond = threading.Condition()
        self._local = threading.local()
        self._active = 0
        self._resizing = False
        self.env = self._open(path, readonly, map_size)
        self.path = path
        self._check_length(path)
        self.tables: dict[Table, Any] = {}

    @staticmethod
    def _open(path: str, readonly: bool, map_size: int | None) -> Any:
        deadline = time.monotonic() + 10.0
        sizes = (map_size,) if map_size is not None else _SIZES
        at = 0
        while True:
            try:
                return lmdb.open(
                    path,
                    map_size=sizes[at],
                    max_dbs=len(Table) + 2,
                    max_readers=1024,
                    max_spare_txns=0,
                    readonly=readonly,
                    lock=not readonly or os.access(os.path.join(path, "lock.mdb"), os.W_OK),
                    mode=0o600,
                    lib_version=0,
                )
            except lmdb.MemoryError:
                # An address space limit: reserve less; the map grows when it is needed.
                at += 1
                if at == len(sizes):
                    raise
            except lmdb.Error as e:
                text = str(e)
                if "Resource temporarily unavailable" in text:
                    raise same_pid_error(path) from e
                if isinstance(e, lmdb.DiskError) or "No space" in text:
                    raise StoreFullError(
                        f"no space left to open the index {path}", path=path
                    ) from e
                if isinstance(
                    e, lmdb.VersionMismatchError | lmdb.InvalidError | lmdb.CorruptedError
                ):
                    raise CorruptError(
                        f"the index {path} is damaged ({text}): "
                        "run `layerstore check --rebuild-index`",
                        where=path,
                    ) from e
                # Opening races with another process that creates or closes the environment.
                if time.monotonic() >= deadline or "No such file" in text or "denied" in text:
                    raise
                time.sleep(0.02)

    def abandon(self) -> None:
        """In a forked child: closes what it inherited, so that it can open the index itself. LMDB lets
        the parent's reader slots alone then, except those of transactions that the child would abort:
        so none may run at the fork, and none are kept for later."""
        if self._active:
            raise LayerstoreError(
                f"this process was forked while {self.path} was being read or written: "
                "start it anew (spawn, exec) to use the store",
                path=self.path,
            )
        self.env.close()

    def _check_length(self, path: str) -> None:
        need = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
        have = os.stat(os.path.join(path, "data.mdb")).st_size
        if self.env.info()["last_txnid"] and have < need:
            self.env.close()
            raise CorruptError(
                f"the index {path} was cut short ({have} of {need} bytes): "
                "restore it, or run `layerstore check --rebuild-index`",
                where=path,
            )

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Held around every transaction: the map is never moved beneath one."""
        depth: int = getattr(self._local, "depth", 0)
        with self._cond:
            # A transaction within one of the same thread must not wait for whom that one holds up.
            while self._resizing and not depth:
                self._cond.wait()
            self._active += 1
        self._local.depth = depth + 1
        try:
            yield
        finally:
            self._local.depth = depth
            with self._cond:
                self._active -= 1
                self._cond.notify_all()

    def resize(self, size: int) -> None:
        """Sets the map (0: as large as another process made it), once no transaction runs."""
        if getattr(self._local, "depth", 0):
            raise BusyError("the index has grown in the middle of a transaction: try again")
        with self._cond:
            while self._resizing:
                self._cond.wait()
            self._resizing = True
            while self._active:
                self._cond.wait()
            try:
                self.env.set_mapsize(size)
            finally:
                self._resizing = False
                self._cond.notify_all()


def same_pid_error(path: str) -> BusyError:
    """LMDB knows readers by pid: two pid namespaces with the same pid collide (rule 24)."""
    error = BusyError(
        f"cannot open the index {path}: a process with the same pid, in another pid namespace "
        "(another container), has the store open. Start this process so that it gets another pid "
        "(for instance from a child process, or with --pid=host), or wait until the other closes",
        path=path,
    )
    error.same_pid = True  # type: ignore[attr-defined]
    return error


class Snapshot:
    """A read transaction: `get`, `items`, `floor`. Values come without their checksum, verified."""

    def __init__(self, index: Index, txn: Any) -> None:
        self._index = index
        self._txn = txn
        self._db = index.dbs

    def get(self, table: Table, key: bytes) -> bytes | None:
        if table not in self._db:
            return None
        value = self._txn.get(key, db=self._db[table])
        return None if value is None else self._index.unseal(table, key, value)

    def many(self, table: Table, keys: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
        """`(key, value)` of those that are there. Only for tables without checksums."""
        with self._txn.cursor(self._db[table]) as cursor:
            found: list[tuple[bytes, bytes]] = cursor.getmulti(keys)
            return found

    def items(
        self, table: Table, prefix: bytes = b"", start: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows in key order, from `start` on, as long as the key begins with `prefix`."""
        if table not in self._db:
            return
        with self._txn.cursor(self._db[table]) as cursor:
            if not cursor.set_range(start if start is not None else prefix):
                return
            for key, value in cursor.iternext(keys=True, values=True):
                if not key.startswith(prefix):
                    return
                yield key, self._index.unseal(table, key, value)

    def floor(self, table: Table, key: bytes) -> tuple[bytes, bytes] | None:
        """The row with the greatest key that is not above `key`."""
        with self._txn.cursor(self._db[table]) as cursor:
            if cursor.set_range(key):
                if cursor.key() != key and not cursor.prev():
                    return None
            elif not cursor.last():
                return None
            k, v = cursor.item()
            return k, self._index.unseal(table, k, v)

    def count(self, table: Table) -> int:
        if table not in self._db:
            return 0
        return int(self._txn.stat(self._db[table])["entries"])

    def logged_rows(self) -> Iterator[Change]:
        """Every row of the journalled tables, for a checkpoint."""
        for table in Table:
            if table in UNLOGGED:
                continue
            for key, value in self.items(table):
                if table != Table.META or (key != _K_SEQ and not key.startswith(b"sum:")):
                    yield table, key, value

    def meta(self, name: bytes, default: int = 0) -> int:
        """A number of the META table."""
        value = self.get(Table.META, name)
        return default if value is None else int.from_bytes(value, "little")

    @property
    def position(self) -> Position:
        """Where the metadata pack stands in this snapshot."""
        value = self.get(Table.META, _K_SEQ)
        if value is None:
            raise CorruptError(
                "the index has no journal position: run `layerstore check --rebuild-index`"
            )
        return Position(*_POSITION.unpack(value))

    @property
    def sequence(self) -> int:
        """How many commits this snapshot has seen."""
        return self.position.sequence


class Write(Snapshot):
    """A write transaction. Changes are collected for the journal; nothing is visible before commit."""

    def __init__(self, index: Index, txn: Any) -> None:
        super().__init__(index, txn)
        self.changes: list[Change] = []
        self.dirty = False
        self._sums: dict[Table, int] = {}
        self._rotate: int | None = None

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self.dirty = True
        index = self._index
        if table in COUNTED:
            old = self.get(table, key)
            delta = _weight(index.secret, table, key, value)
            if old is not None:
                delta -= _weight(index.secret, table, key, old)
            self._add(table, delta)
        stored = value if table in UNSEALED else value + seal(index.secret, table, key, value)
        self._txn.put(key, stored, db=self._db[table])
        if table not in UNLOGGED:
            self.changes.append((table, key, value))

    def put_new(self, table: Table, rows: list[tuple[bytes, bytes]]) -> bool:
        """Puts rows of a table without checksums where the key is free. False: some keys were taken."""
        self.dirty = True
        with self._txn.cursor(self._db[table]) as cursor:
            consumed, added = cursor.putmulti(rows, overwrite=False)
        return bool(consumed == added)

    def delete(self, table: Table, key: bytes) -> bool:
        """False if there was none."""
        if table in COUNTED:
            old = self.get(table, key)
            if old is None:
                return False
            self._add(table, -_weight(self._index.secret, table, key, old))
        gone = bool(self._txn.delete(key, db=self._db[table]))
        if gone:
            self.dirty = True
            if table not in UNLOGGED:
                self.changes.append((table, key, None))
        return gone

    def set_meta(self, name: bytes, value: int) -> None:
        self.put(Table.META, name, value.to_bytes(8, "little"))

    def draw(self, name: bytes, count: int = 1) -> int:
        """Takes `count` numbers of a counter that never goes back; returns the first."""
        first = self.meta(name, 1)
        self.set_meta(name, first + count)
        return first

    def _add(self, table: Table, delta: int) -> None:
        self._sums[table] = self._sums.get(table, 0) + delta

    def finish(self, journal: Journal | None) -> None:
        """Writes the commit record (unless a rebuild seeds rows that have theirs); what is left is
        LMDB's commit."""
        index = self._index
        for table, delta in self._sums.items():
            name = b"sum:%d" % table
            old = self.get(Table.META, name)
            total = (int.from_bytes(old or b"", "little") + delta) & _SUM_MASK
            value = total.to_bytes(16, "little")
            self._txn.put(
                name, value + seal(index.secret, Table.META, name, value), db=self._db[Table.META]
            )
        if journal is None:
            return
        after = journal.append(self.position, self.changes)
        if self._rotate is not None:
            # This record is the old file's last; the next one goes to the new file.
            after = Position(self._rotate, HEADER_SIZE, after.sequence, after.previous)
        self._write_position(after)

    def _write_position(self, at: Position) -> None:
        value = _POSITION.pack(at.file, at.offset, at.sequence, at.previous)
        stored = value + seal(self._index.secret, Table.META, _K_SEQ, value)
        self._txn.put(_K_SEQ, stored, db=self._db[Table.META])

    def rotate_to(self, file: int) -> None:
        """After this commit, records go to another file of the metadata pack, which is there."""
        self.dirty = True
        self._rotate = file

    def move_journal(self, at: Position) -> None:
        """Lets the next record go to another file (gc's checkpoint, rebuild)."""
        self.dirty = True
        self._write_position(at)


class Index:
    """The tables of one store, for one handle."""

    def __init__(
        self,
        path: str,
        secret: bytes,
        journal: Journal,
        gate: Gate,
        disk: Disk,
        *,
        readonly: bool = False,
        map_size: int | None = None,
    ) -> None:
        self.path = path
        self.secret = secret
        self.journal = journal
        self._gate = gate
        self._disk = disk
        self.readonly = readonly
        if not readonly:
            disk.mkdir(path)
        there = os.stat(path)
        self._key = (there.st_dev, there.st_ino)
        with _Environment.guard:
            shared = _Environment.registry.get(self._key)
            if shared is not None and shared.pid != os.getpid():
                shared.abandon()
                shared = None
            if shared is None:
                shared = _Environment(path, readonly, map_size)
                _Environment.registry[self._key] = shared
            if shared.readonly and not readonly:
                raise BusyError(
                    f"this process has {path} open for reading only: close that handle first",
                    path=path,
                )
            shared.handles += 1
            self._shared = shared
            try:
                if not shared.tables:
                    self._open_tables(shared)
            except BaseException:
                self._drop()
                raise
        self.dbs = shared.tables

    def _open_tables(self, shared: _Environment) -> None:
        try:
            if self.readonly:
                opened = {}
                for t in Table:
                    try:
                        opened[t] = shared.env.open_db(t.name.lower().encode(), create=False)
                    except lmdb.NotFoundError:
                        if t not in LATER:
                            raise
                shared.tables.update(opened)
                return
            with self._gate():
                shared.env.reader_check()
                with shared.env.begin(write=True) as txn:
                    opened = {
                        t: shared.env.open_db(t.name.lower().encode(), txn=txn) for t in Table
                    }
                shared.tables.update(opened)
        except lmdb.NotFoundError as e:
            shared.tables.clear()
            raise CorruptError(
                f"the index {self.path} lacks a table: run `layerstore check --rebuild-index`",
                where=self.path,
            ) from e
        except lmdb.Error as e:
            shared.tables.clear()
            raise self._translate(e) from e

    def _drop(self) -> None:
        self._shared.handles -= 1
        if self._shared.handles == 0:
            _Environment.registry.pop(self._key, None)
            if self._shared.pid == os.getpid():
                self._shared.env.close()

    def close(self) -> None:
        """Lets the environment go; the last handle of the process closes it."""
        with _Environment.guard:
            self._drop()

    def unseal(self, table: Table, key: bytes, stored: bytes) -> bytes:
        """The value of a row, its checksum verified. Raises CorruptError."""
        if table in UNSEALED:
            return stored
        value, check = stored[:-SEAL], stored[-SEAL:]
        if seal(self.secret, table, key, value) != check:
            raise CorruptError(
                f"the index row {table.name.lower()}/{key.hex()} has a wrong checksum: "
                "run `layerstore check --rebuild-index`",
                where=f"{self.path}: {table.name.lower()}/{key.hex()}",
            )
        return value

    def _translate(self, error: Any) -> Exception:
        text = str(error)
        if "Resource temporarily unavailable" in text:
            return same_pid_error(self.path)
        if "No space" in text or isinstance(error, lmdb.DiskError):
            return StoreFullError(
                f"no space left while writing the index {self.path}; nothing half-done was kept: "
                "free space (for instance with `layerstore gc`) and try again",
                path=self.path,
            )
        if isinstance(error, lmdb.ReadersFullError):
            return BusyError(
                f"the index {self.path} has no free reader slot: too many processes read it"
            )
        if isinstance(
            error,
            lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError | lmdb.PanicError,
        ):
            return CorruptError(
                f"the index {self.path} is damaged ({text}): run `layerstore check --rebuild-index`",
                where=self.path,
            )
        failed = LayerstoreError(f"the index {self.path} failed: {text}", path=self.path)
        return failed

    @contextlib.contextmanager
    def read(self) -> Iterator[Snapshot]:
        """One snapshot. Keep it short: pages that it sees cannot be reused."""
        tries = 0
        while True:
            with self._shared.using():
                try:
                    txn = self._shared.env.begin(buffers=False)
                except lmdb.MapResizedError:
                    txn = None
                except lmdb.Error as e:
                    raise self._translate(e) from e
                if txn is not None:
                    with txn:
                        try:
                            yield Snapshot(self, txn)
                        except lmdb.Error as e:
                            raise self._translate(e) from e
                    return
            self._shared.resize(0)
            tries += 1
            if tries > 100:
                raise BusyError(f"the index {self.path} keeps growing in another process")

    def update(self, work: Callable[[Write], T]) -> T:
        """Runs `work` in a write transaction and commits; returns what it returned.

        `work` must be able to run again. Nothing of it stays when it raises. A commit record is
        written only if it changed something."""
        return self._run(work, self.journal)

    def seed(self, work: Callable[[Write], T]) -> T:
        """The same for a new index, of rows whose commit records are there already."""
        return self._run(work, None)

    def _run(self, work: Callable[[Write], T], journal: Journal | None) -> T:
        if self.readonly:
            raise UnsupportedError(
                f"the store at {os.path.dirname(self.path)} is open for reading only"
            )
        while True:
            with self._gate():
                self._disk.check()
                done, result = self._attempt(work, journal)
            if done:
                return result  # type: ignore[return-value]
            self.grow()

    def _attempt(
        self, work: Callable[[Write], T], journal: Journal | None
    ) -> tuple[bool, T | None]:
        with self._shared.using():
            try:
                txn = self._shared.env.begin(write=True)
            except lmdb.MapResizedError:
                txn = None
            except lmdb.MapFullError:
                return False, None
            except lmdb.Error as e:
                raise self._translate(e) from e
            if txn is not None:
                write = Write(self, txn)
                try:
                    result = work(write)
                    if not write.dirty:
                        txn.abort()
                        return True, result
                    write.finish(journal)
                except lmdb.MapFullError:
                    txn.abort()
                    return False, None
                except lmdb.Error as e:
                    txn.abort()
                    raise self._translate(e) from e
                except BaseException:
                    txn.abort()
                    raise
                try:
                    txn.commit()
                except lmdb.MapFullError:
                    return False, None
                except lmdb.Error as e:
                    translated = self._translate(e)
                    if not isinstance(translated, StoreFullError):
                        self._disk.poison = f"a commit of the index {self.path} failed ({e})"
                    raise translated from e
                return True, result
        self._shared.resize(0)
        return self._attempt(work, journal)

    def grow(self) -> None:
        """Doubles the map."""
        self._shared.resize(0)
        size = self._shared.env.info()["map_size"]
        self._shared.resize(size * 2)

    def clear_readers(self) -> None:
        """Frees the slots of readers that died."""
        self._shared.env.reader_check()

    def sums_match(self, snapshot: Snapshot) -> Table | None:
        """None if every counted table has the hash that commits have kept; else the first that
        has not. Costs a walk over those tables."""
        for table in COUNTED:
            total = 0
            for key, value in snapshot.items(table):
                total += _weight(self.secret, table, key, value)
            kept = snapshot.get(Table.META, b"sum:%d" % table) or b""
            if (total & _SUM_MASK) != int.from_bytes(kept, "little"):
                return table
        return None

    def used_bytes(self) -> int:
        """Bytes on disk of the index's files, without opening them."""
        total = 0
        for name in ("data.mdb", "lock.mdb"):
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(self.path, name)).st_blocks * 512
        return total
