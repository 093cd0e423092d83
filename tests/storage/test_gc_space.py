"""Garbage goes, space comes back, and nothing that is reachable is ever touched."""

from __future__ import annotations

import os

import pytest
import stores

from layerstore.errors import BusyError, CorruptError, NotFoundError
from layerstore.layers.content import Content
from layerstore.storage import compact, gc
from layerstore.storage.gc import collect
from layerstore.storage.index import Table
from layerstore.storage.locks import FileLock
from layerstore.storage.storage import Storage, open_storage
from layerstore.values import Edge, Ref

MIB = 1 << 20


def _bytes(path: str) -> int:
    return stores.du(os.path.join(path, "packs")) + stores.du(os.path.join(path, "raw"))


def _mixed(content: Content, count: int = 6) -> dict[str, bytes]:
    """Images of which each has own and shared content, in packs and raw files."""
    base = stores.tar_of({f"base/{i}": stores.words(i, 40_000) for i in range(40)})
    out = {}
    for n in range(count):
        own = stores.tar_of({f"own/{n}/{i}": stores.words(1000 * n + i, 30_000) for i in range(20)})
        packed = stores.gzipped(stores.tar_of({f"p/{n}": stores.noise(n, 400_000)}))
        layers = [(base, stores.TAR), (own, stores.TAR), (packed, stores.TAR_GZIP)]
        stores.put_image(content, f"image{n}", layers, note=str(n))
        for data, _ in layers:
            out[stores.sha256(data)] = data
    return out


def test_nothing_is_dead_in_a_tagged_store(content: Content, storage: Storage) -> None:
    _mixed(content, 3)
    before = _bytes(storage.path)
    report = stores.gc(storage, aggressive=True)
    assert (report.condemned_chunks, report.removed_blobs, report.pending_bytes) == (0, 0, 0)
    assert _bytes(storage.path) == before
    stores.clean(content)


def test_space_comes_back(content: Content, storage: Storage) -> None:
    _mixed(content)
    stores.gc(storage, aggressive=True)
    full = _bytes(storage.path)
    dead = [f"image{n}" for n in (0, 2, 4)]
    stores.untag(content, *dead)
    estimate = collect(storage, dry_run=True)
    assert estimate.dry_run
    assert _bytes(storage.path) == full
    report = stores.gc(storage)
    got = full - _bytes(storage.path)
    assert got >= 0.85 * estimate.freed_bytes
    assert abs(report.freed_bytes - got) <= 16384
    assert report.removed_blobs == estimate.removed_blobs == 3 * 4
    stores.clean(content)
    stores.gc(storage, aggressive=True)
    assert full - _bytes(storage.path) >= 0.99 * estimate.freed_bytes - 8192
    for n in (1, 3, 5):
        with content.operation() as op:
            assert op.ref(f"image{n}") is not None
    stores.clean(content)
    stores.untag(content, "image1", "image3", "image5")
    stores.gc(storage)
    assert stores.packs(storage.path) == []
    assert stores.raws(storage.path) == []
    stores.clean(content)


def test_survivors_of_a_mostly_dead_pack_move_and_read_the_same(
    content: Content, storage: Storage
) -> None:
    # One chunk in eight lives: every block is a victim.
    files = {f"f{i}": stores.words(i, 60_000) for i in range(160)}
    stores.put_image(content, "all", [(stores.tar_of(files), stores.TAR)])
    some = stores.tar_of({n: d for i, (n, d) in enumerate(files.items()) if i % 8 == 0})
    stores.put_image(content, "some", [(some, stores.TAR)])
    full = _bytes(storage.path)
    stores.untag(content, "all")
    reader = content.open(stores.sha256(some))
    first = reader.read(70_000)
    stores.gc(storage)
    reader.close()
    stores.gc(storage)
    assert _bytes(storage.path) < 0.25 * full
    assert stores.get(content, stores.sha256(some)) == some
    assert some.startswith(first)
    stores.clean(content)
    # What was moved is still known: put again, it costs nothing.
    with content.operation() as op:
        info = op.put(stores.tar_of({"x": files["f0"], "y": files["f8"]}), media_type=stores.TAR)
    assert info.new_bytes < 4096


def test_dry_run_changes_nothing(content: Content, storage: Storage) -> None:
    _mixed(content, 2)
    stores.untag(content, "image0")
    before = {
        (f, n): os.stat(os.path.join(f, n)).st_mtime_ns
        for f, _, names in os.walk(storage.path)
        for n in names
        if n != "lock.mdb" and "sessions" not in f
    }
    with storage.index.read() as snapshot:
        sequence = snapshot.sequence
    report = collect(storage, dry_run=True)
    assert report.freed_bytes > 0
    after = {
        (f, n): os.stat(os.path.join(f, n)).st_mtime_ns
        for f, _, names in os.walk(storage.path)
        for n in names
        if n != "lock.mdb" and "sessions" not in f
    }
    assert before == after
    with storage.index.read() as snapshot:
        assert snapshot.sequence == sequence


def test_time_limit_and_resume(
    content: Content, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _mixed(content, 4)
    stores.untag(content, "image0", "image1", "image2")
    monkeypatch.setattr(gc, "BLOB_SLICE", 2)
    monkeypatch.setattr(gc, "NUMBER_SLICE", 7)
    # The clock says "over" after a few looks: each run gets a little further.
    runs = 0
    while True:
        looks = iter([False] * 3)
        with monkeypatch.context() as clock:
            clock.setattr(compact, "deadline", lambda _, looks=looks: lambda: next(looks, True))
            report = collect(storage, max_time=1.0)
        runs += 1
        if report.complete:
            break
        assert runs < 200
        stores.clean(content)
    assert runs > 3
    monkeypatch.undo()
    stores.gc(storage)
    stores.clean(content)
    with content.operation() as op:
        left = {b.digest for b in op.blobs()}
    assert len(left) == 5
    for digest in left & set(kept):
        assert stores.get(content, digest) == kept[digest]


def test_runs_that_are_shorter_than_a_mark_get_further(
    content: Content, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time that is over before the first deletion, run after run: each does one piece of work."""
    kept = _mixed(content, 4)
    stores.untag(content, "image0", "image1", "image2")
    monkeypatch.setattr(compact, "deadline", lambda _: lambda: True)
    monkeypatch.setattr(gc, "BLOB_SLICE", 2)
    for _ in range(60):
        if collect(storage, max_time=0.001, aggressive=True).complete:
            break
    else:
        raise AssertionError("60 runs did not finish")
    monkeypatch.undo()
    with content.operation() as op:
        left = {b.digest for b in op.blobs()}
    assert len(left) == 5
    for digest in left & set(kept):
        assert stores.get(content, digest) == kept[digest]
    stores.clean(content)


def test_repack_budget(content: Content, storage: Storage) -> None:
    files = {f"f{i}": stores.noise(i, 60_000) for i in range(160)}
    stores.put_image(content, "all", [(stores.tar_of(files), stores.TAR)])
    some = stores.tar_of({n: d for i, (n, d) in enumerate(files.items()) if i % 8 == 0})
    stores.put_image(content, "some", [(some, stores.TAR)])
    stores.untag(content, "all")
    report = collect(storage, max_repack_size=0)
    assert not report.complete or _bytes(storage.path) > 8 * MIB
    sizes = [_bytes(storage.path)]
    for _ in range(20):
        report = collect(storage, max_repack_size=300_000)
        sizes.append(_bytes(storage.path))
        if report.complete:
            break
    assert sizes == sorted(sizes, reverse=True)
    assert report.complete
    assert sizes[-1] < 2.2 * MIB
    stores.clean(content)


def test_a_running_operation_holds_back(where: str) -> None:
    data = stores.noise(1, 2 * MIB)
    with stores.opened(where) as one, stores.opened(where) as other:
        stores.keep(one, "a", data)
        old = other.operation()
        with old as op:
            assert op.stat(stores.sha256(data)) is not None
            stores.untag(one, "a")
            report = stores.gc(one.storage)
            assert report.freed_bytes == 0
            assert abs(report.pending_bytes - len(data)) < 0.01 * len(data)
            assert report.condemned_chunks > 0
            assert _bytes(where) > 2 * MIB
        report = stores.gc(one.storage)
        assert report.pending_bytes == 0
        assert report.freed_bytes > 0.99 * len(data)
        with one.operation() as op:
            assert op.stat(stores.sha256(data)) is None


def test_an_open_reader_goes_on(where: str) -> None:
    data = stores.words(1, 30 * MIB)
    with stores.opened(where) as one, stores.opened(where) as other:
        stores.keep(one, "a", data)
        with other.open(stores.sha256(data)) as blob:
            got = bytearray(blob.read(1000))
            stores.untag(one, "a")
            assert stores.gc(one.storage, aggressive=True).freed_bytes == 0
            got += blob.read()
            while len(got) < len(data):
                got += blob.read(MIB)
        assert bytes(got) == data
        assert stores.gc(one.storage).freed_bytes > 0
        with pytest.raises(NotFoundError):
            other.open(stores.sha256(data))


def test_condemned_is_hidden_and_put_again_lives(where: str) -> None:
    data = stores.noise(2, MIB)
    digest = stores.sha256(data)
    with stores.opened(where) as one, stores.opened(where) as other, stores.opened(where) as third:
        stores.keep(one, "a", data)
        stores.untag(one, "a")
        with other.operation() as old:
            old.refs()
            stores.gc(one.storage)
            # Hidden from who comes later ...
            with one.operation() as op:
                assert op.stat(digest) is None
                assert op.have(digest) is None
                assert digest not in {b.digest for b in op.blobs()}
            with pytest.raises(NotFoundError):
                one.open(digest)
            # ... until somebody puts it, without any bytes being read.
            with third.operation() as op:
                assert op.put(iter(()), digest=digest).bytes == MIB
                op.commit_refs({"b": Ref("b", digest, MIB, "text/plain")})
        report = stores.gc(one.storage)
        assert report.removed_blobs == 0
        assert stores.get(one, digest) == data
        stores.clean(one)


def test_chunks_of_condemned_blobs_are_not_shared(where: str) -> None:
    """Content that is condemned may be deleted before who found it commits."""
    file = stores.noise(3, 200_000)
    one_tar = stores.tar_of({"a": file})
    other_tar = stores.tar_of({"b/": b"", "b/c": file})
    with stores.opened(where) as one, stores.opened(where) as other:
        stores.keep(one, "a", one_tar, stores.TAR)
        stores.untag(one, "a")
        with other.operation() as old:
            old.refs()
            stores.gc(one.storage)
            stores.keep(one, "b", other_tar, stores.TAR)
        stores.gc(one.storage)
        assert stores.get(one, stores.sha256(other_tar)) == other_tar
        stores.clean(one)


def test_second_collector_is_busy(where: str) -> None:
    with stores.opened(where, timeout=0.2) as content:
        lock = FileLock(os.path.join(where, "gc", "lock"))
        assert lock.try_acquire()
        with pytest.raises(BusyError):
            stores.gc(content.storage)
        lock.release()
        stores.gc(content.storage)


def test_missing_blob_stops_the_collector(where: str) -> None:
    """A mark that is not sure never deletes."""
    with stores.opened(where) as content:
        stores.put_image(content, "a", [(stores.tar_of({"f": b"x" * 9999}), stores.TAR)])
        layer = stores.sha256(stores.tar_of({"f": b"x" * 9999}))
        stores.put(content, stores.noise(1, 100_000))
        content.storage.index.update(lambda tx: tx.delete(Table.DIGESTS, _key(layer)))
    before = stores.du(os.path.join(where, "packs"))
    with stores.opened(where) as content:
        with pytest.raises(CorruptError, match=layer):
            stores.gc(content.storage)
        assert stores.du(os.path.join(where, "packs")) == before
        assert not stores.full_check(content, blocks=False, full=False).ok


def _key(digest: str) -> bytes:
    from layerstore.digest import to_key

    return to_key(digest)


def test_lost_ref_stops_the_collector(where: str) -> None:
    """A row that vanished without a commit is noticed before anything is deleted (rule 19)."""
    with stores.opened(where) as content:
        stores.keep(content, "a", stores.noise(1, 100_000))
        index = content.storage.index
        with index._shared.env.begin(write=True) as txn:
            assert txn.delete(b"a", db=index.dbs[Table.REFS])
        with pytest.raises(CorruptError, match="refs"):
            stores.gc(content.storage)
        assert stores.packs(where) != []
        assert not stores.full_check(content, blocks=False, full=False).ok


def test_referrers_live_as_long_as_their_subject(content: Content, storage: Storage) -> None:
    stores.put_image(content, "a", [(stores.tar_of({"f": b"1"}), stores.TAR)])
    with content.operation() as op:
        subject = op.ref("a")
        assert subject is not None
        chain = subject.digest
        signatures = []
        for n in range(3):
            body = b'{"signature": %d}' % n
            payload = op.put(stores.noise(n, 5000))
            edges = [Edge(payload.digest), Edge(chain, "subject")]
            signature = op.put(body, media_type=stores.MANIFEST, edges=edges)
            chain = signature.digest
            signatures += [signature.digest, payload.digest]
        assert op.referrers(subject.digest) == [signatures[0]]
    path = storage.path
    storage.close()
    with stores.opened(path) as again:
        assert stores.gc(again.storage).removed_blobs == 0
        for digest in signatures:
            stores.get(again, digest)
        stores.untag(again, "a")
        assert stores.gc(again.storage).removed_blobs == 3 + 6
        stores.clean(again)


def test_leases(where: str) -> None:
    data, other = stores.noise(1, 50_000), stores.noise(2, 50_000)
    with stores.opened(where) as content:
        lease = content.storage.create_lease(3600.0)
        content.storage.use_lease(lease)
        held = stores.put(content, data)
        content.storage.leave_lease(lease)
        loose = stores.put(content, other)
        stores.gc(content.storage)
        stores.get(content, loose)
    with stores.opened(where) as content:
        stores.gc(content.storage)
        assert stores.get(content, held) == data
        with pytest.raises(NotFoundError):
            content.open(loose)
        content.storage.drop_lease(lease)
        with pytest.raises(NotFoundError):
            content.storage.drop_lease(lease)
        with pytest.raises(NotFoundError):
            content.storage.use_lease("zz")
        stores.gc(content.storage)
        with pytest.raises(NotFoundError):
            content.open(held)
        stores.clean(content)


def test_have_is_a_promise(where: str) -> None:
    data = stores.noise(1, 50_000)
    with stores.opened(where) as one:
        stores.keep(one, "a", data)
        with stores.opened(where) as other:
            with other.operation() as op:
                assert op.have(stores.sha256(data)) is not None
            stores.untag(one, "a")
            stores.gc(one.storage)
            assert stores.get(other, stores.sha256(data)) == data
        assert stores.gc(one.storage).removed_blobs == 1


def test_checkpoint_keeps_the_metadata_pack_small(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "CHECKPOINT_AT", 20_000)
    data = stores.noise(1, 1000)
    for _ in range(3):
        with stores.opened(where) as content:
            for n in range(60):
                stores.keep(content, f"t{n % 7}", data + bytes((n % 7,)))
            stores.gc(content.storage)
            stores.clean(content)
    meta = os.listdir(os.path.join(where, "meta"))
    assert len(meta) == 2
    assert sum(os.stat(os.path.join(where, "meta", n)).st_size for n in meta) < 60_000
    with stores.opened(where) as content:
        with content.operation() as op:
            assert [r.name for r in op.refs()] == [f"t{n}" for n in range(7)]


def test_leftovers_of_dead_writers_go(where: str) -> None:
    """Files that nobody names and nobody writes: raw files, packs, temporary files, sessions."""
    with stores.opened(where) as content:
        stores.keep(content, "a", stores.noise(1, 100_000))
        stores.keep(content, "z", stores.gzipped(stores.noise(2, 1000)))
        before = set(_names(where))
        os.makedirs(os.path.join(where, "raw", "77"), exist_ok=True)
        for name in (
            "raw/77/000000000077",
            "packs/00000900.pack",
            "gc/00000009.condemned",
            "gc/00000009.condemned.new",
            "meta/00000004.ckpt.new",
            "sessions/0123456789abcdef",
        ):
            with open(os.path.join(where, name), "wb") as f:
                f.write(b"left behind")
        with open(stores.packs(where)[0], "ab") as f:
            f.write(b"torn block" * 1000)
        stores.gc(content.storage)
        assert set(_names(where)) - before <= {"reserve", "gc/lock"}
        stores.clean(content)


def _names(path: str) -> list[str]:
    return [
        os.path.relpath(os.path.join(folder, name), path)
        for folder, _, names in os.walk(path)
        for name in names
    ]


def test_two_handles_of_one_process(where: str) -> None:
    one = open_storage(where)
    other = open_storage(where)
    try:
        stores.keep(Content(one), "a", b"1" * 5000)
        assert stores.get(Content(other), stores.sha256(b"1" * 5000)) == b"1" * 5000
    finally:
        one.close()
    stores.clean(Content(other))
    other.close()
    other.close()
