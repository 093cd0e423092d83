"""One handle on one store directory: opens it, holds its locks, and hands out operations.

`FORMAT` names the version, the uuid, the secret of the keyed checksums, and what the format pins.
Every handle holds a shared lock on the store (rule 17) and a session; a handle may be shared by
threads, not by a forked child.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import (
    CorruptError,
    LayerstoreError,
    NotFoundError,
    PermissionDeniedError,
    StoreFullError,
    UnsupportedError,
)
from . import leases, mounts, rawcache, reserve
from .condemned import KEY as CONDEMNED
from .condemned import Condemned, CondemnedFiles, Overtaken, is_hidden
from .disk import Disk
from .index import Index, Snapshot, Table, Write
from .journal import FIRST_SIZE, GENESIS, HEADER_SIZE, Journal, Position
from .known import Known
from .locks import ByteLock, FileLock, Gate
from .operation import Operation
from .packs import PACK_SIZE, Packs, PackWriter
from .rawcache import RawCache
from .raws import RawFiles
from .reading import Chunks
from .rows import serial_key
from .sessions import Session
from .sink import Numbers, Sink
from .uploads import Spares

VERSION = 1
CHUNKER = "gear-nc2-16k-64k-256k-v1"
FOLDERS = ("packs", "raw", "meta", "sessions", "gc", "uploads")
CACHE_BYTES = 48 << 20


class Format:
    """What the file FORMAT says."""

    def __init__(self, uuid: bytes, secret: bytes, pack_size: int) -> None:
        self.uuid = uuid
        self.secret = secret
        self.pack_size = pack_size

    def to_bytes(self) -> bytes:
        value = {
            "format": "layerstore",
            "version": VERSION,
            "uuid": self.uuid.hex(),
            "secret": self.secret.hex(),
            "chunker": CHUNKER,
            "index": "lmdb-0.9",
            "pack_size": self.pack_size,
        }
        return json.dumps(value, indent=1).encode() + b"\n"

    @staticmethod
    def parse(data: bytes, path: str) -> Format:
        """Raises UnsupportedError for a newer format, CorruptError for what is none."""
        try:
            value = json.loads(data)
            name, version = value["format"], value["version"]
        except (ValueError, KeyError, TypeError) as e:
            raise CorruptError(f"{path} is not the FORMAT file of a store", where=path) from e
        if name != "layerstore" or not isinstance(version, int):
            raise CorruptError(f"{path} is not the FORMAT file of a store", where=path)
        if version > VERSION:
            raise UnsupportedError(
                f"the store has format {version}, this layerstore knows up to {VERSION}: "
                "use a newer layerstore",
                path=path,
            )
        try:
            if value["chunker"] != CHUNKER or value["index"] != "lmdb-0.9":
                raise UnsupportedError(
                    f"the store uses {value['chunker']} and {value['index']}, which this layerstore "
                    "does not know: use a newer one",
                    path=path,
                )
            return Format(
                bytes.fromhex(value["uuid"]),
                bytes.fromhex(value["secret"]),
                int(value["pack_size"]),
            )
        except (KeyError, ValueError, TypeError) as e:
            raise CorruptError(f"{path} is damaged ({e})", where=path) from e


def exists(path: str) -> bool:
    """Whether a store lies there. Raises PermissionDeniedError where that may not be seen."""
    where = os.path.join(path, "FORMAT")
    try:
        os.stat(where)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as e:
        raise PermissionDeniedError(f"you may not look into {path}", path=path) from e
    return True


class Storage:
    """An open store. Use `open_storage`."""

    def __init__(
        self,
        path: str,
        *,
        readonly: bool,
        exclusive: bool = False,
        timeout: float | None = None,
        disk: Disk | None = None,
        map_size: int | None = None,
        raw_cache: int = 0,
    ) -> None:
        self.path = os.path.abspath(path)
        self.readonly = readonly
        self.timeout = timeout
        self.disk = disk if disk is not None else Disk()
        self._pid = os.getpid()
        self._closed = False
        self.emergency = False
        self._lease_lock = threading.Lock()
        self._leases: list[bytes] = []
        self.cache_uses: dict[bytes, float] = {}
        self._appended = 0
        self._raw_cache = raw_cache
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self._open(undo, exclusive, map_size)
            self._closing = undo.pop_all()

    def _open(self, undo: contextlib.ExitStack, exclusive: bool, map_size: int | None) -> None:
        join = os.path.join
        path = join(self.path, "FORMAT")
        try:
            with open(path, "rb") as f:
                self.format = Format.parse(f.read(65536), path)
        except FileNotFoundError as e:
            raise NotFoundError(f"no store at {self.path}", path=self.path) from e
        except PermissionError as e:
            raise PermissionDeniedError(
                f"the store at {self.path} is not yours to read", path=path
            ) from e
        self.secret = self.format.secret
        if not self.readonly:
            lock = FileLock(join(self.path, "lock"))
            if exclusive:
                lock.acquire(self.timeout or 0.0, "the store (its handles)")
            else:
                lock.acquire(self.timeout, "the store (a rebuild or upgrade)", shared=True)
            undo.callback(lock.release)
        self.gate = Gate(join(self.path, "gate"), self.timeout)
        self.journal = Journal(join(self.path, "meta"), self.secret, self.format.uuid, self.disk)
        undo.callback(self.journal.close)
        self.index = Index(
            join(self.path, "index"),
            self.secret,
            self.journal,
            self.gate,
            self.disk,
            readonly=self.readonly,
            map_size=map_size,
        )
        undo.callback(self.index.close)
        if not self.readonly:
            self._start()
            self._check_journal()
        self.packs = Packs(join(self.path, "packs"))
        undo.callback(self.packs.close)
        self.raws = RawFiles(join(self.path, "raw"), self.disk)
        self.rawcache = RawCache(
            join(self.path, rawcache.FOLDER),
            self.secret,
            self.disk,
            0 if self.readonly else self._raw_cache,
        )
        undo.callback(self.rawcache.save)
        self.condemned_files = CondemnedFiles(join(self.path, "gc"), self.secret, self.disk)
        workers = self.workers = max(2, os.cpu_count() or 2)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="layerstore")
        undo.callback(self.pool.shutdown, wait=True, cancel_futures=True)
        self.chunks = Chunks(
            self.index,
            self.packs,
            self.secret,
            self.pool,
            cache_bytes=CACHE_BYTES,
            ahead=workers + 2,
        )
        self.numbers = Numbers(self.index)
        self.put_lock = ByteLock(join(self.path, "puts"))
        self.session: Any = ReaderSession()
        if not self.readonly:
            self.session = self._begin_session()
            undo.callback(self.session.close)
            undo.callback(self._end_session)
            self.spares = Spares(self)
            undo.callback(self._drop_spares)

    def _begin_session(self) -> Session:
        while True:
            try:
                return Session(os.path.join(self.path, "sessions"), self.disk)
            except StoreFullError:
                if not reserve.nibble(self.path):
                    raise

    def _start(self) -> None:
        """Writes the first rows of a new index."""

        def work(tx: Write) -> None:
            if tx.get(Table.META, b"journal") is None:
                self.journal.create(1, 0)
                tx.move_journal(Position(1, HEADER_SIZE, 0, GENESIS))

        with self.index.read() as snapshot:
            if snapshot.get(Table.META, b"journal") is not None:
                return
        # The very first commit, cut short, leaves a file with one empty record at most.
        files = self.journal.files()
        if self.journal.checkpoints() or any(
            number > 1 or os.path.getsize(self.journal.path(number)) > FIRST_SIZE
            for number in files
        ):
            raise CorruptError(
                f"the index of {self.path} is empty, but its packs are not: "
                "run `layerstore check --rebuild-index`",
                where=os.path.join(self.path, "index"),
            )
        self.index.update(work)
        reserve.ensure(self)

    def _check_journal(self) -> None:
        """Refuses an index that is older than its packs (rule 15)."""
        with contextlib.suppress(CorruptError):
            if self._is_young():
                return
        # Others may have committed, or cut the metadata pack, while we looked: not under the gate.
        with self.gate():
            if self._is_young():
                return
        raise CorruptError(
            f"the index of {self.path} is older than its packs (a restored copy?): nothing was "
            "written; run `layerstore check --rebuild-index`",
            where=os.path.join(self.path, "index"),
        )

    def _is_young(self) -> bool:
        """Whether at most one record lies beyond the index. Raises CorruptError for a file that is
        missing."""
        with self.index.read() as snapshot:
            at = snapshot.position
        return self.journal.beyond(at) < 2

    # ---- the handle ---------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raises LayerstoreError after close, or in a forked child."""
        if self._closed:
            raise LayerstoreError(f"the store at {self.path} is closed")
        if os.getpid() != self._pid:
            raise LayerstoreError(
                "this handle was opened before a fork: open the store again in the child"
            )

    def close(self) -> None:
        """Ends the session: what only it held is let go. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            # The parent owns the locks and the session; the descriptors went at the fork.
            return
        self._closing.close()

    def _end_session(self) -> None:
        lease = bytes.fromhex(self.session.id)
        with self.index.read() as snapshot:
            if snapshot.get(Table.LEASES, lease) is None:
                return
        # A store that cannot be written now (full, poisoned) keeps the rows; the next gc takes them.
        with contextlib.suppress(LayerstoreError, OSError):
            while not self.index.update(lambda tx: leases.drop(tx, lease, limit=8192)):
                pass

    def _drop_spares(self) -> None:
        # What cannot be dropped now (full, poisoned) expires.
        with contextlib.suppress(LayerstoreError, OSError):
            self.spares.close()

    def operation(self) -> Operation:
        """A new operation; its epoch is published when this returns."""
        self.check_usable()
        return Operation(self)

    def make_sink(self) -> Sink:
        """Where an operation's new chunks go."""
        if self.readonly:
            raise UnsupportedError(f"the store at {self.path} is open for reading only")
        self.disk.check()
        reserve.refuse_writers(self)
        writer = PackWriter(
            self.packs,
            self.index,
            self.disk,
            self.format.uuid,
            self.secret,
            self.format.pack_size,
            self.pool,
        )
        return Sink(
            self.index,
            self.secret,
            Known(self.chunks, self.packs, self.secret),
            self.numbers,
            writer,
            self.pool,
            self.condemned,
            self.count_appended,
        )

    def condemned(self, snapshot: Snapshot, *, strict: bool = False) -> Condemned | None:
        """What is condemned in a snapshot. A set whose file is lost or damaged condemns nothing: blobs
        go before their chunks, so what has a row is whole. With `strict` it raises CorruptError."""
        try:
            return self.condemned_files.load(snapshot)
        except CorruptError:
            named = snapshot.get(Table.META, CONDEMNED)
            with self.index.read() as now:
                if named is None or now.get(Table.META, CONDEMNED) == named:
                    if strict:
                        raise
                    return None
            # Deleted and unlinked while this snapshot was open.
            number, sequence = CondemnedFiles.named(named)
            return Overtaken(number, sequence, self._has_blob, self._has_numbers)

    def _has_blob(self, serial: int) -> bool:
        with self.index.read() as now:
            later = self.condemned(now)
            there = now.get(Table.BLOBS, serial_key(serial)) is not None
            return there and not is_hidden(now, later, serial)

    def _has_numbers(self, first: int, count: int) -> bool:
        with self.index.read() as now:
            later = self.condemned(now)
            if later is not None and later.overlaps(first, count):
                return False
            at = first
            while at < first + count:
                place = self.chunks.place(now, at)
                if place is None:
                    return False
                at = place.end
            return True

    # ---- leases -------------------------------------------------------------------------------

    def holders(self, tx: Write) -> list[bytes]:
        """The leases that hold what is put now: the session's own, and those in use."""
        own = bytes.fromhex(self.session.id)
        leases.create_session(tx, own)
        out = [own]
        with self._lease_lock:
            used = list(self._leases)
        for lease in used:
            if not leases.touch(tx, lease):
                raise NotFoundError(f"lease {lease.hex()} is gone or has expired: create a new one")
            out.append(lease)
        return out

    def is_held(self, snapshot: Snapshot, serial: int) -> bool:
        """Whether rows of the session and of the leases in use hold a blob already."""
        with self._lease_lock:
            wanted = [bytes.fromhex(self.session.id), *self._leases]
        return all(
            snapshot.get(Table.HOLDS, lease + serial_key(serial)) is not None for lease in wanted
        )

    def create_lease(self, ttl: float | None) -> str:
        """A lease; with a ttl it outlives this process. Durable when this returns."""
        lease = secrets.token_bytes(8)
        self.index.update(lambda tx: leases.create(tx, lease, ttl, self.session.id))
        return lease.hex()

    def use_lease(self, lease_id: str) -> None:
        """Everything put from now on is held by it, too. Raises NotFoundError."""
        lease = lease_key(lease_id)
        if not self.index.update(lambda tx: leases.touch(tx, lease)):
            raise NotFoundError(f"no lease {lease_id}, or it has expired")
        with self._lease_lock:
            if lease not in self._leases:
                self._leases.append(lease)

    def leave_lease(self, lease_id: str) -> None:
        """What is put from now on is not held by it any more."""
        lease = lease_key(lease_id)
        with self._lease_lock:
            if lease in self._leases:
                self._leases.remove(lease)

    def drop_lease(self, lease_id: str) -> None:
        """Lets go what it held. Raises NotFoundError."""
        lease = lease_key(lease_id)
        self.leave_lease(lease_id)
        with self.index.read() as snapshot:
            if snapshot.get(Table.LEASES, lease) is None:
                raise NotFoundError(f"no lease {lease_id}")
        while not self.index.update(lambda tx: leases.drop(tx, lease, limit=8192)):
            pass

    # ---- what was written ---------------------------------------------------------------------

    def count_appended(self, size: int) -> None:
        """Counts bytes that went into packs, for the reports of puts."""
        with self._lease_lock:
            self._appended += size

    def take_appended(self) -> int:
        """The bytes since the last call: each is counted for one put only."""
        with self._lease_lock:
            out, self._appended = self._appended, 0
            return out

    # ---- raw files ----------------------------------------------------------------------------

    def draw_raw(self) -> int:
        """A serial for a new raw file, never used before."""
        reserve.refuse_writers(self)
        return self.index.update(lambda tx: tx.draw(b"next_raw"))


class ReaderSession:
    """The session of a handle that may not write: it protects nothing, so reads are verified and
    look again, and report what was deleted beneath them."""

    id = "0" * 16

    def begin(self, sequence: int) -> int:
        return sequence

    def epoch(self, token: int) -> int:
        return token

    def renew(self, token: int, sequence: int) -> None:
        """Nothing is published, so nothing moves."""

    def end(self, token: int) -> None:
        """Nothing was published."""


def lease_key(lease_id: str) -> bytes:
    """The row key of a lease's id. Raises NotFoundError for what is no id."""
    try:
        key = bytes.fromhex(lease_id)
    except ValueError as e:
        raise NotFoundError(f"no lease {lease_id!r}") from e
    if len(key) != 8:
        raise NotFoundError(f"no lease {lease_id!r}")
    return key


def create(path: str, *, pack_size: int = PACK_SIZE, disk: Disk | None = None) -> None:
    """Makes an empty store. Does nothing if there is one. Raises UnsupportedError on a remote
    filesystem, InvalidInputError if the directory holds something else."""
    path = os.path.abspath(path)
    disk = disk if disk is not None else Disk()
    disk.mkdir(path)
    mounts.refuse_remote(path)
    if exists(path):
        return
    _refuse_foreign(path)
    lock = FileLock(os.path.join(path, "lock"))
    lock.acquire(30.0, "the new store", shared=False)
    try:
        if exists(path):
            return
        for folder in FOLDERS:
            disk.mkdir(os.path.join(path, folder))
        disk.sync_dir(path)
        made = Format(secrets.token_bytes(16), secrets.token_bytes(32), pack_size)
        disk.write_file(os.path.join(path, "FORMAT"), made.to_bytes())
        disk.sync_dir(os.path.dirname(path))
    finally:
        lock.release()


def _refuse_foreign(path: str) -> None:
    """Raises LayerstoreError for a directory that holds something else; nothing was written there."""
    ours = (*FOLDERS, "lock", "FORMAT.new", "lost+found")
    foreign = sorted(n for n in os.listdir(path) if n not in ours)
    # Asked again, since another process may have made it meanwhile.
    if foreign and not exists(path):
        raise LayerstoreError(
            f"{path} is no store and is not empty (it holds {foreign[0]!r}): "
            "give an empty or new directory",
            path=path,
        )


def open_storage(
    path: str,
    *,
    create_missing: bool = True,
    readonly: bool = False,
    exclusive: bool = False,
    timeout: float | None = None,
    disk: Disk | None = None,
    map_size: int | None = None,
    pack_size: int = PACK_SIZE,
    raw_cache: int = 0,
) -> Storage:
    """Opens a store. `timeout` in seconds bounds every wait for another process (None: for ever);
    `raw_cache` (bytes) what copies of popular blobs may take.

    Raises NotFoundError (no store), UnsupportedError (newer format, remote filesystem), CorruptError,
    BusyError, PermissionDeniedError."""
    path = os.path.abspath(path)
    if not exists(path):
        if readonly or not create_missing:
            raise NotFoundError(f"no store at {path}", path=path)
        try:
            create(path, pack_size=pack_size, disk=disk)
        except PermissionError as e:
            raise PermissionDeniedError(
                f"cannot make a store at {path}: {e.strerror}", path=path
            ) from e
    mounts.refuse_remote(path)
    if not readonly and not _writable(path):
        raise PermissionDeniedError(
            f"the store at {path} is not yours to write (verbs that read still work)", path=path
        )
    return Storage(
        path,
        readonly=readonly,
        exclusive=exclusive,
        timeout=timeout,
        disk=disk,
        map_size=map_size,
        raw_cache=raw_cache,
    )


def _writable(path: str) -> bool:
    inside = [path, os.path.join(path, "index"), os.path.join(path, "sessions")]
    if any(os.path.exists(p) and not os.access(p, os.W_OK) for p in inside):
        return False
    return not os.statvfs(path).f_flag & os.ST_RDONLY
