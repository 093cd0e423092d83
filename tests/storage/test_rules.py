"""One test for each of the rules 1 to 12, at the place where the rule is easiest to break. Whole
stories are told in the other files of this folder; the interleavings in `tests/model`."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stores

from layerstore.core.hashing import blake3
from layerstore.errors import BusyError, DigestMismatchError, NotFoundError
from layerstore.storage import clock, gc, graph, leases, placing, sessions
from layerstore.storage.index import MAX_KEYS, Table, Write
from layerstore.storage.leases import hold_key
from layerstore.storage.locks import FileLock
from layerstore.storage.mark import session_alive
from layerstore.storage.operation import Fenced, Operation, Staged, visible
from layerstore.storage.rows import BlobRow, Runs, decode_runs, to_number
from layerstore.storage.storage import Storage
from layerstore.values import Ref


def staged(op: Operation, data: bytes) -> Staged:
    """A blob of one chunk, its bytes on their way into a pack."""
    runs = op.sink.add(memoryview(data), [(0, len(data), 1, blake3(data))])
    row = BlobRow(stores.sha256(data), len(data), "text/plain")
    row.plain = op.sink.stream(runs, len(data))
    return Staged(row, runs)


def numbers_of(storage: Storage, digest: str) -> Runs:
    with storage.index.read() as snapshot:
        serial = graph.serial_of(snapshot, digest)
        assert serial is not None
        row = graph.blob_row(snapshot, serial)
    assert row is not None
    assert row.plain is not None
    return decode_runs(row.plain.list)


def held(storage: Storage, session: str, digest: str) -> bool:
    with storage.index.read() as snapshot:
        serial = graph.serial_of(snapshot, digest)
        key = hold_key(bytes.fromhex(session), serial or 0)
        return snapshot.get(Table.HOLDS, key) is not None


def name(data: bytes, ref: str = "a") -> dict[str, Ref]:
    return {ref: Ref(ref, stores.sha256(data), len(data), "text/plain")}


def between_mark_and_condemn(
    monkeypatch: pytest.MonkeyPatch, storage: Storage, others: Callable[[], None]
) -> None:
    """Lets others work after the collector's mark at S, before its transaction T."""
    update = storage.index.update

    def late(work: Callable[[Write], Any]) -> Any:
        if "condemned_files" in getattr(work, "__code__", late.__code__).co_names:
            monkeypatch.undo()
            others()
        return update(work)

    monkeypatch.setattr(storage.index, "update", late)


def test_rule_01_nothing_is_named_twice(where: str) -> None:
    """Numbers, raw serials, packs and offsets of what was deleted or given up never come again."""
    plain, raw = stores.noise(1, 50_000), stores.gzipped(stores.tar_of({"x": stores.noise(2, 900)}))
    seen_numbers: set[int] = set()
    seen_raws: set[str] = set()
    seen_places: set[tuple[int, int]] = set()
    for turn in range(3):
        with stores.opened(where) as content:
            storage = content.storage
            stores.keep(content, "kept", stores.noise(99, 50_000))
            stores.keep(content, "p", plain)
            stores.keep(content, "r", raw, stores.TAR_GZIP)
            numbers = {
                n for f, c in numbers_of(storage, stores.sha256(plain)) for n in range(f, f + c)
            }
            raws = set(stores.raws(where))
            with storage.index.read() as snapshot:
                found = [placing.place_of(snapshot, n) for n in numbers]
            places = {(p.pack, p.offset) for p in found if p is not None}
            assert numbers
            assert len(raws) == 1
            assert places
            assert not numbers & seen_numbers
            assert not raws & seen_raws
            assert not places & seen_places
            seen_numbers |= numbers
            seen_raws |= raws
            seen_places |= places
            # A raw file that was begun and given up: its serial is gone, too.
            given_up = storage.raws.create(storage.draw_raw())
            given_up.write(b"half")
            seen_raws.add(given_up.path)
            given_up.discard()
            stores.untag(content, "p", "r")
        if turn == 1:
            with stores.opened(where) as content:
                stores.gc(content.storage, aggressive=True)
        else:
            with stores.opened(where) as content:
                stores.gc(content.storage)


def test_rule_02_numbers_are_drawn_before_they_are_written(where: str) -> None:
    """What a dead writer wrote is a gap, and no candidate of a collector."""
    dead, alive = stores.noise(1, 40_000), stores.noise(2, 40_000)
    with stores.opened(where) as one, stores.opened(where) as two:
        with one.storage.operation() as op:
            blob = staged(op, dead)
            ((first, count),) = blob.runs
            op.sink.flush()
            with two.storage.index.read() as snapshot:
                assert snapshot.meta(b"next_chunk") >= first + count
            collector = gc._Run(two.storage, lambda: False, None)
            with two.storage.index.read() as snapshot:
                numbers, _ = collector._candidates(snapshot)
            assert not any(f <= first < f + c for f, c in numbers)
            # Collected while it was on its way, and committed after that.
            stores.gc(two.storage)
            op.commit((blob,))
        assert stores.get(two, stores.sha256(dead)) == dead
        with one.storage.operation() as op:
            lost = staged(op, stores.noise(3, 40_000)).runs
            op.sink.flush()
        stores.keep(two, "b", alive)
        assert not set(lost) & set(numbers_of(two.storage, stores.sha256(alive)))


def test_rule_03_epochs(where: str) -> None:
    """Published before the snapshot, withdrawn at the end, renewed only to where it was seen live."""
    data = stores.noise(1, 50_000)
    with stores.opened(where) as one, stores.opened(where) as two:
        stores.keep(one, "a", data)
        path = os.path.join(where, "sessions", one.storage.session.id)
        assert sessions.read_epoch(path) == sessions.IDLE
        seen: list[int] = []
        read = one.storage.index.read

        def watched() -> Any:
            seen.append(sessions.read_epoch(path))
            return read()

        one.storage.index.read = watched  # type: ignore[method-assign]
        with one.open(stores.sha256(data)) as blob:
            # The first read is for the sequence; every later one is protected.
            assert seen[0] == sessions.IDLE
            assert len(seen) > 1
            assert all(e != sessions.IDLE for e in seen[1:])
            begun = sessions.read_epoch(path)
            with two.storage.index.read() as snapshot:
                assert snapshot.sequence == begun
            stores.keep(two, "b", b"another")
            blob._renew()
            with two.storage.index.read() as snapshot:
                assert begun < sessions.read_epoch(path) == snapshot.sequence
            renewed = sessions.read_epoch(path)
            stores.untag(two, "a")
            stores.gc(two.storage)
            # Condemned: looking does not find it, so nothing is renewed, and it stays.
            blob._renew()
            assert sessions.read_epoch(path) == renewed
            stores.gc(two.storage)
            assert blob.read() == data
        assert sessions.read_epoch(path) == sessions.IDLE
        assert stores.gc(two.storage).removed_blobs == 1


def test_rule_03_a_reader_within_an_operation(where: str) -> None:
    """It opens what it could have found, and nothing that was condemned before it began."""
    data = stores.noise(1, 50_000)
    digest = stores.sha256(data)
    with stores.opened(where) as one, stores.opened(where) as two, stores.opened(where) as three:
        stores.keep(one, "a", data)
        with two.operation() as old:
            assert old.stat(digest) is not None
            stores.untag(one, "a")
            stores.gc(one.storage)
            with old.open(digest) as blob:
                assert blob.read() == data
            with three.operation() as young, pytest.raises(NotFoundError):
                young.open(digest)


def test_rule_04_a_crashed_collection_goes_on(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its phase, with what was named meanwhile taken out; and one collector at a time."""
    kept, gone = stores.noise(1, 50_000), stores.noise(2, 50_000)

    class Killed(BaseException):
        pass

    with stores.opened(where) as content:
        stores.keep(content, "a", kept)
        stores.keep(content, "b", gone)
        stores.untag(content, "a", "b")

    def killed(*_: object) -> bool:
        raise Killed

    with stores.opened(where, timeout=0.1) as content:
        with monkeypatch.context() as patch:
            patch.setattr(gc._Run, "_delete", killed)
            with pytest.raises(Killed):
                stores.gc(content.storage)
        with content.storage.index.read() as snapshot:
            waiting = content.storage.condemned(snapshot)
        assert waiting is not None
        assert len(waiting.blobs) == 2
        stores.keep(content, "c", kept)
        lock = FileLock(os.path.join(where, "gc", "lock"))
        assert lock.try_acquire()
        with pytest.raises(BusyError):
            stores.gc(content.storage)
        lock.release()
        assert stores.gc(content.storage).removed_blobs == 1
        assert stores.get(content, stores.sha256(kept)) == kept
        with pytest.raises(NotFoundError):
            content.open(stores.sha256(gone))
        stores.clean(content)


def test_rule_04_what_is_found_is_whole(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob is committed between mark and T, shares a dead chunk, and is then held by nobody: who
    finds it after T is told that it is there, so its chunk must not go with the set."""
    shared = stores.noise(1, 40_000)
    young = shared + b"and more"
    cut = [(0, len(shared), 1, blake3(shared)), (len(shared), 8, 1, blake3(b"and more"))]

    def put_and_go() -> None:
        with stores.opened(where) as other, other.storage.operation() as op:
            runs = op.sink.add(memoryview(young), cut)
            assert dead[0] in runs
            row = BlobRow(stores.sha256(young), len(young), "text/plain")
            row.plain = op.sink.stream(runs, len(young))
            op.commit((Staged(row, runs),))

    with stores.opened(where) as content:
        with content.storage.operation() as op:
            op.commit((staged(op, shared),), refs={})
        dead = numbers_of(content.storage, stores.sha256(shared))
    with stores.opened(where) as content:
        between_mark_and_condemn(monkeypatch, content.storage, put_and_go)
        collector = gc._Run(content.storage, lambda: False, None)
        assert collector._condemn()
        with content.storage.index.read() as snapshot:
            waiting = content.storage.condemned(snapshot)
        assert waiting is not None
        with content.operation() as finder:
            assert finder.stat(stores.sha256(young)) is not None
            assert collector._delete(waiting)
            assert finder.have(stores.sha256(young)) is not None
            finder.commit_refs(name(young))
        assert stores.get(content, stores.sha256(young)) == young
        stores.clean(content)


def test_rule_04_what_lives_again_is_not_cut(where: str) -> None:
    """Un-condemned by a put, found by a reader that began after T, and let go by who put it: it is
    dead anew, but not condemned, and the set that named it must not take it from the reader."""
    data = stores.noise(1, 16_000_000)
    digest = stores.sha256(data)
    with stores.opened(where) as content, stores.opened(where) as reader:
        # Beside something that lives: holes are punched, which an open file feels, too.
        stores.keep(content, "b", stores.noise(2, 50_000))
        stores.keep(content, "a", data)
        stores.untag(content, "a")
        with stores.opened(where) as slow:
            with slow.operation():
                stores.gc(content.storage)
                with stores.opened(where) as other, other.operation() as op:
                    assert op.put(iter(()), digest=digest).bytes == len(data)
                    blob = reader.open(digest)
                    assert len(blob.read(1000)) == 1000
        stores.gc(content.storage)
        assert data[:1000] + blob.read() == data
        blob.close()
        stores.clean(content)


def test_rule_05_condemned_hides_and_commits_unhide(where: str) -> None:
    """From look-ups and reads by digest, never from reading a number; any commit brings it back."""
    data = stores.noise(1, 50_000)
    digest = stores.sha256(data)
    with stores.opened(where) as one, stores.opened(where) as two:
        stores.keep(one, "a", data)
        numbers = numbers_of(one.storage, digest)
        stores.untag(one, "a")
        with two.storage.operation() as old:
            stores.gc(one.storage)
            with one.storage.operation() as young:
                assert young.find(digest) is None
                assert staged(young, data).runs != numbers
                assert one.storage.chunks.read_runs(numbers) == data
                # A ref by digest, by a session that began after T.
                young.commit((), refs=name(data))
            with one.storage.operation() as young:
                assert young.find(digest) is not None
            assert old.find(digest) is not None
        assert stores.gc(one.storage).removed_blobs == 0
        assert stores.get(one, digest) == data


def test_rule_05_also_in_a_snapshot_that_the_collector_has_overtaken(where: str) -> None:
    """Between its begin and the look at the condemned set, a snapshot may see that set deleted."""
    data = stores.noise(1, 50_000)
    with stores.opened(where) as one, stores.opened(where) as two:
        stores.keep(one, "a", data)
        with two.storage.operation():
            stores.untag(one, "a")
            stores.gc(one.storage)
        with two.storage.operation(), two.storage.index.read() as snapshot:
            assert snapshot.get(Table.META, b"condemned") is not None
            assert stores.gc(one.storage).removed_blobs == 1
            assert visible(two.storage, snapshot, stores.sha256(data)) is None


def test_rule_06_fence(where: str) -> None:
    """A lost lock never becomes a dangling reference."""
    data = stores.noise(1, 50_000)
    with stores.opened(where) as one, stores.opened(where) as two:
        with one.storage.operation() as op:
            op.commit((staged(op, data),))
        numbers = numbers_of(one.storage, stores.sha256(data))
    with stores.opened(where) as one, stores.opened(where) as two:
        with two.storage.operation() as op:
            blob = staged(op, data)
            assert blob.runs == numbers
            fcntl.flock(two.storage.session._lock.fd, fcntl.LOCK_UN)
            stores.gc(one.storage)
            with pytest.raises(Fenced):
                op.commit((blob,))
            with pytest.raises(NotFoundError):
                op.commit((), refs=name(data))
        stores.clean(one)
        # Put again it is there.
        stores.keep(two, "b", data)
        assert stores.get(one, stores.sha256(data)) == data


def test_rule_07_promises_are_rows(where: str) -> None:
    """What was put and what was said to be there; not what was listed or read."""
    put, said, read = (stores.noise(n, 30_000) for n in (1, 2, 3))
    with stores.opened(where) as one:
        for n, data in enumerate((said, read)):
            stores.keep(one, f"n{n}", data)
        with stores.opened(where) as two:
            own = two.storage.session.id
            stores.put(two, put)
            with two.operation() as op:
                assert op.have(stores.sha256(said)) is not None
                assert op.stat(stores.sha256(read)) is not None
                assert len(op.refs()) == 2
                assert len(list(op.blobs())) == 3
            assert stores.get(two, stores.sha256(read)) == read
            assert held(one.storage, own, stores.sha256(put))
            assert held(one.storage, own, stores.sha256(said))
            assert not held(one.storage, own, stores.sha256(read))
            # The row goes with the ref that reaches what it holds, in the same commit.
            with two.operation() as op:
                op.commit_refs(name(put, "mine"))
            assert not held(one.storage, own, stores.sha256(put))
            stores.untag(two, "mine")
            stores.untag(one, "n0", "n1")
            assert stores.gc(one.storage).removed_blobs == 2
            assert stores.get(two, stores.sha256(said)) == said
        assert not held(one.storage, own, stores.sha256(said))
        assert stores.gc(one.storage).removed_blobs == 1


def test_rule_07_a_dead_session_holds_nothing(where: str) -> None:
    code = (
        "import os, sys, stores\n"
        "opened = stores.opened(sys.argv[1])\n"
        "content = opened.__enter__()\n"
        "stores.put(content, stores.noise(1, 50_000))\n"
        "print(content.storage.session.id, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    session = subprocess.run(
        [sys.executable, "-c", code, where], stdout=subprocess.PIPE, env=_paths(), check=False
    ).stdout.decode()
    digest = stores.sha256(stores.noise(1, 50_000))
    with stores.opened(where) as content:
        assert held(content.storage, session.strip(), digest)
        assert stores.gc(content.storage).removed_blobs == 1
        with content.storage.index.read() as snapshot:
            assert snapshot.count(Table.HOLDS) == 0
            assert snapshot.get(Table.LEASES, bytes.fromhex(session.strip())) is None
        assert not os.path.exists(os.path.join(where, "sessions", session.strip()))


def _paths() -> dict[str, str]:
    import layerstore

    root = os.path.dirname(os.path.dirname(os.path.abspath(layerstore.__file__)))
    tests = os.path.dirname(os.path.abspath(stores.__file__))
    return {**os.environ, "PYTHONPATH": f"{root}:{tests}"}


def test_rule_08_lease_time(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The boot clock counts; the wall clock does not; a reboot starts it anew, once."""
    data = stores.noise(1, 50_000)
    now: dict[str, Any] = {"boot": "first", "time": 1000.0}
    monkeypatch.setattr(leases, "boot_id", lambda: now["boot"])
    monkeypatch.setattr(leases, "boot_time", lambda: now["time"])
    with stores.opened(where) as content:
        lease = content.storage.create_lease(60.0)
        content.storage.use_lease(lease)
        digest = stores.put(content, data)
    with stores.opened(where) as content:
        monkeypatch.setattr(time, "time", lambda: 9e9)
        now["time"] += 59
        assert stores.gc(content.storage).removed_blobs == 0
        # Use renews it.
        content.storage.use_lease(lease)
        now["time"] += 59
        assert stores.gc(content.storage).removed_blobs == 0
        # A reboot: the clock begins again (and may have come further than it was before anybody
        # looks), and so does the lease, at what it had.
        now.update(boot="second", time=50_000.0)
        assert stores.gc(content.storage).removed_blobs == 0
        now["time"] += 59
        assert stores.gc(content.storage).removed_blobs == 0
        assert stores.get(content, digest) == data
        now["time"] += 2
        assert stores.gc(content.storage).removed_blobs == 1
        with pytest.raises(NotFoundError):
            content.storage.use_lease(lease)


def test_rule_08_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the boot's, which nobody can set; and it is known which boot."""
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: 9e9)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= clock.boot_time() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert clock.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


_opened: list[str] = []
_watching = threading.Event()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watching.is_set() and isinstance(arguments[0], str):
        _opened.append(arguments[0])


def test_rule_09_locks(where: str) -> None:
    """A close of the same file elsewhere in the process drops nothing; a fork keeps nothing; LMDB's
    files are never opened by us; a file that is no longer at its path is not locked."""
    sys.addaudithook(_audit)
    _opened.clear()
    _watching.set()
    try:
        with stores.opened(where) as content:
            stores.keep(content, "a", stores.noise(1, 50_000))
            content.storage.index.used_bytes()
            stores.gc(content.storage, aggressive=True)
            stores.clean(content)
            assert any(p.endswith(".pack") for p in _opened)
            assert not [p for p in _opened if p.endswith(".mdb")]
            session = content.storage.session.id
            with open(os.path.join(where, "sessions", session), "rb"):
                pass
            assert session_alive(content.storage, bytes.fromhex(session))
    finally:
        _watching.clear()
    path = os.path.join(where, "some-lock")
    lock = FileLock(path)
    assert lock.try_acquire()
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        other = FileLock(path)
        assert not other.try_acquire()
        lock.release()
        deadline = time.monotonic() + 5
        while not (got := other.try_acquire()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert got
        # Its holder unlinks it: who waits gets the new file, not the old one.
        os.unlink(path)
        third = FileLock(path)
        assert third.try_acquire()
        assert os.fstat(third.fd).st_ino != os.fstat(other.fd).st_ino
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize("made_anew", [False, True])
def test_rule_09_a_lock_on_what_was_unlinked_is_none(
    where: str, monkeypatch: pytest.MonkeyPatch, made_anew: bool
) -> None:
    """Between a waiter's open and its lock the holder unlinks the file and lets go: the lock that the
    waiter gets is on nothing that others see, so it takes that of the new file."""
    os.makedirs(where)
    path = os.path.join(where, "some-lock")
    flock = fcntl.flock
    turns = [0]

    def late(fd: int, how: int) -> None:
        turns[0] += 1
        if turns[0] == 1:
            os.unlink(path)
            if made_anew:
                Path(path).touch()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    waiter = FileLock(path)
    assert waiter.try_acquire()
    assert turns == [2]
    assert os.path.samestat(os.fstat(waiter.fd), os.stat(path))
    assert not FileLock(path).try_acquire()
    waiter.release()
    turns[0] = 0
    assert FileLock(path).try_acquire(create=False) == made_anew


def test_rule_09_a_forked_child_keeps_no_put_waiting(where: str) -> None:
    """The lock of a put is over with the put, also where a child that was forked meanwhile lives on."""
    data = stores.noise(1, 50_000)
    digest = stores.sha256(data)
    child = 0

    def pieces() -> Iterator[bytes]:
        nonlocal child
        yield data[:10_000]
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        yield data[10_000:-1] + b"!"

    with stores.opened(where) as one, stores.opened(where, timeout=2.0) as two:
        try:
            with one.operation() as op, pytest.raises(DigestMismatchError):
                op.put(pieces(), digest=digest)
            with two.operation() as op:
                assert op.put(data, digest=digest).bytes == len(data)
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


def test_rule_10_a_pack_has_one_writer(where: str) -> None:
    """Others write elsewhere; a collector leaves the tail of who still writes, and cuts it after."""
    with stores.opened(where) as one, stores.opened(where) as two:
        stores.keep(two, "first", stores.noise(1, 50_000))
        with one.storage.operation() as op:
            blob = staged(op, stores.noise(2, 300_000))
            op.sink.flush()
            stores.keep(two, "second", stores.noise(3, 300_000))
            assert len(stores.packs(where)) == 2
            sizes = [os.path.getsize(p) for p in stores.packs(where)]
            stores.gc(two.storage)
            assert [os.path.getsize(p) for p in stores.packs(where)] == sizes
            op.commit((blob,))
        assert stores.get(two, blob.row.digest) == stores.noise(2, 300_000)
        with one.storage.operation() as op:
            staged(op, stores.noise(4, 300_000))
            op.sink.flush()
            grown = sum(os.path.getsize(p) for p in stores.packs(where))
        assert grown >= sum(sizes) + 300_000
        stores.gc(two.storage)
        assert sum(os.path.getsize(p) for p in stores.packs(where)) == sum(sizes)
        stores.clean(two)


def test_rule_11_one_gate(where: str) -> None:
    """It has a timeout; nothing of the caller's runs while it is held."""
    with stores.opened(where, timeout=0.2) as content:
        held_by_other = FileLock(os.path.join(where, "gate"))
        assert held_by_other.try_acquire()
        started = time.monotonic()
        with pytest.raises(BusyError):
            stores.put(content, stores.noise(1, 5000))
        assert time.monotonic() - started < 5
        held_by_other.release()
        wanted = stores.noise(2, 200_000)

        def pieces() -> Iterator[bytes]:
            for at in range(0, len(wanted), 10_000):
                # While it is asked for bytes, a caller may write to the same store.
                stores.keep(content, f"n{at}", b"note %d" % at)
                yield wanted[at : at + 10_000]

        with content.operation() as op:
            info = op.put(
                pieces(), digest=stores.sha256(wanted), progress=lambda _: op.refs() and None
            )
            op.commit_refs(name(wanted))
        assert info.bytes == len(wanted)
        assert stores.get(content, info.digest) == wanted


@pytest.mark.parametrize("relieved", [True, False])
def test_rule_12_short_transactions(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch, relieved: bool
) -> None:
    """A layer of many files is committed in slices, while it comes, and what is left of it in the end
    (when it was not relieved) too; so is its deletion; condemning it is one row."""
    waiting: list[int] = []
    relieve = Operation.relieve

    def watched(self: Operation) -> None:
        if relieved:
            relieve(self)
        waiting.append(self.sink.waiting())

    monkeypatch.setattr(Operation, "relieve", watched)
    path = str(fast_path / "s")
    count = 40_000
    tar = stores.tar_of({f"{i % 200}/{i}": b"%d" % i for i in range(count)})
    keys: list[int] = []
    finish = Write.finish
    put, put_new, delete = Write.put, Write.put_new, Write.delete
    now = [0]

    def counted_put(self: Write, table: Table, key: bytes, value: bytes) -> None:
        now[0] += 1
        put(self, table, key, value)

    def counted_put_new(self: Write, table: Table, rows: list[tuple[bytes, bytes]]) -> bool:
        now[0] += len(rows)
        return put_new(self, table, rows)

    def counted_delete(self: Write, table: Table, key: bytes) -> bool:
        gone = delete(self, table, key)
        now[0] += gone
        return gone

    def counted_finish(self: Write, journal: Any) -> None:
        finish(self, journal)
        keys.append(now[0])
        now[0] = 0

    monkeypatch.setattr(Write, "put", counted_put)
    monkeypatch.setattr(Write, "put_new", counted_put_new)
    monkeypatch.setattr(Write, "delete", counted_delete)
    monkeypatch.setattr(Write, "finish", counted_finish)
    with stores.opened(path) as content:
        stores.keep(content, "a", tar, stores.TAR)
        assert (max(waiting) < MAX_KEYS) == relieved
        assert sum(keys) >= count
        assert max(keys) <= MAX_KEYS
        stores.untag(content, "a")
        keys.clear()
        collector = gc._Run(content.storage, lambda: False, None)
        assert collector._condemn()
        # The set's number, its row: nothing for each of the chunks.
        assert collector.condemned_chunks >= count
        assert keys == [2]
        keys.clear()
        stores.gc(content.storage)
        assert sum(keys) >= count
        assert max(keys) <= MAX_KEYS
        with content.storage.index.read() as snapshot:
            assert snapshot.count(Table.CHUNKS) == snapshot.count(Table.BLOCKS) == 0
        stores.clean(content)


def test_rule_12_top_down(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion that stops half-way leaves no manifest that lacks what it names."""
    layer = stores.tar_of({"f": stores.noise(1, 30_000)})
    with stores.opened(where) as content:
        digest = stores.put_image(content, "a", [(layer, stores.TAR)])
        stores.untag(content, "a")
        monkeypatch.setattr(gc, "BLOB_SLICE", 1)
        stops = iter([False, True])
        for _ in range(3):
            stops = iter([False])
            collector = gc._Run(content.storage, lambda left=stops: next(left, True), None)
            with content.storage.index.read() as snapshot:
                waiting = content.storage.condemned(snapshot)
            if waiting is None:
                assert collector._condemn()
                with content.storage.index.read() as snapshot:
                    waiting = content.storage.condemned(snapshot)
            assert waiting is not None
            assert not collector._delete(waiting)
            with content.storage.index.read() as snapshot:
                for key, _ in snapshot.items(Table.BLOBS):
                    for edge in graph.edges_of(snapshot, to_number(key)):
                        assert graph.serial_of(snapshot, edge.digest) is not None
            with content.operation() as op:
                assert op.stat(digest) is None
        stores.gc(content.storage)
        with content.storage.index.read() as snapshot:
            assert snapshot.count(Table.BLOBS) == 0
