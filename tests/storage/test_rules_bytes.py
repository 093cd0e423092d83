"""One test for each of the rules 13 to 25: bytes on disk, commit records, damage, a full disk."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import lmdb
import pytest
import stores

from layerstore.core.hashing import blake3
from layerstore.core.split import SplitBatch, Splitter
from layerstore.digest import digest_of
from layerstore.errors import (
    BusyError,
    CorruptError,
    LayerstoreError,
    NotFoundError,
    StoreFullError,
)
from layerstore.layers.content import Content
from layerstore.layers.tree import scan_layer
from layerstore.storage import blocks, compact, gc, graph, placing, reclaim, reserve
from layerstore.storage.disk import Disk
from layerstore.storage.index import Table
from layerstore.storage.journal import Journal
from layerstore.storage.locks import FileLock
from layerstore.storage.rebuild import rebuild, replay
from layerstore.storage.rows import PIECE, Runs, decode_runs, number_key
from layerstore.storage.sink import Sink
from layerstore.storage.storage import Storage, open_storage
from layerstore.values import Edge, Ref

MIB = 1 << 20


def runs_of(storage: Storage, digest: str) -> Runs:
    with storage.index.read() as snapshot:
        serial = graph.serial_of(snapshot, digest)
        assert serial is not None
        row = graph.blob_row(snapshot, serial)
    assert row is not None
    stream = row.plain if row.plain is not None else row.tar and row.tar.content
    assert stream
    return storage.chunks.runs_of(stream) if stream.outer else decode_runs(stream.list)


def place_of(storage: Storage, number: int) -> tuple[int, int, int]:
    """Pack, offset, and where the payload begins."""
    with storage.index.read() as snapshot:
        place = placing.place_of(snapshot, number)
    assert place is not None
    return place.pack, place.offset, place.offset + place.head


def refs(content: Content) -> list[str]:
    with content.operation() as op:
        return [r.name for r in op.refs()]


def test_rule_13_space_is_freed_after_a_crash_between_rows_and_bytes(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows go first; a crash before the punch leaks nothing, and neighbours' edges go with a hole."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> int:
        raise Killed

    with stores.opened(where) as content:
        stores.keep(content, "kept", stores.noise(1, 50_000))
        for n in range(6):
            stores.keep(content, f"n{n}", stores.noise(10 + n, 700_001))
        stores.keep(content, "last", stores.noise(2, 50_000))
        full = stores.du(os.path.join(where, "packs"))
    with stores.opened(where) as content:
        stores.untag(content, "n0", "n2", "n4")
        with monkeypatch.context() as patch:
            patch.setattr(reclaim, "reclaim_packs", killed)
            with pytest.raises(Killed):
                stores.gc(content.storage)
        assert stores.du(os.path.join(where, "packs")) == full
        stores.gc(content.storage)
        assert full - stores.du(os.path.join(where, "packs")) >= 3 * 700_001 - 3 * 8192
        # The gaps between grow together: not a page of the six is left over.
        stores.untag(content, "n1", "n3", "n5")
        stores.gc(content.storage)
        assert full - stores.du(os.path.join(where, "packs")) >= 6 * 700_001 - 8192
        stores.clean(content)


def test_rule_14_a_reader_looks_again(where: str) -> None:
    """A block that was moved beneath a reader is found at its new place; one that was not is damage."""
    files = {f"f{i}": stores.noise(i, 60_000) for i in range(240)}
    some = stores.tar_of({n: d for i, (n, d) in enumerate(files.items()) if i % 8 == 0})
    with stores.opened(where) as content, stores.opened(where) as reader:
        stores.keep(content, "all", stores.tar_of(files), stores.TAR)
        stores.keep(content, "some", some, stores.TAR)
        chunks = reader.storage.chunks
        runs = runs_of(reader.storage, stores.sha256(some))

        def places() -> set[tuple[int, int]]:
            with reader.storage.index.read() as snapshot:
                return {(p.pack, p.offset) for p in chunks.places(snapshot, runs)}

        before = places()
        slices = chunks.slices(runs)
        # It knows all places now, and has the first blocks; then everything moves.
        data, offset, size = next(slices)
        got = bytearray(data[offset : offset + size])
        stores.untag(content, "all")
        stores.gc(content.storage, aggressive=True)
        assert places().isdisjoint(before)
        for data, offset, size in slices:
            got += data[offset : offset + size]
        assert got == b"".join(files[f"f{i}"] for i in range(0, 240, 8))
    with stores.opened(where) as content:
        pack, offset, payload = place_of(content.storage, runs[0][0])
        stores.flip(content.storage.packs.path(pack), payload + 5)
        with pytest.raises(CorruptError) as caught:
            next(content.storage.chunks.slices(runs))
        assert caught.value.offset == offset


def test_rule_14_compaction_moves_nothing_damaged(where: str) -> None:
    """Every survivor's BLAKE3 is checked before it moves: also when the block's own checksum holds."""
    one, two = stores.noise(1, 100_000), stores.noise(2, 100_000)
    with stores.opened(where) as content:
        with content.operation() as op:
            tar = stores.tar_of({"one": one, "two": two})
            op.put(tar, digest=stores.sha256(tar), media_type=stores.TAR)
            small = stores.tar_of({"one": one})
            op.put(small, digest=stores.sha256(small), media_type=stores.TAR)
            op.commit_refs({"s": Ref("s", stores.sha256(small), len(small), stores.TAR)})
        ((number, _),) = runs_of(content.storage, stores.sha256(small))
        with content.storage.index.read() as snapshot:
            place = placing.place_of(snapshot, number)
        assert place is not None
        path = content.storage.packs.path(place.pack)
        with open(path, "r+b") as f:
            f.seek(place.offset)
            header = blocks.parse(content.storage.secret, f.read(place.head))
            assert header is not None
            raw = bytearray(content.storage.chunks.load(place))
            raw[place.raw_offset + 7] ^= 1
            made, payload = blocks.encode(
                content.storage.secret, raw, header.runs, header.lengths, header.ids, header.kind
            )
            assert len(made) + len(payload) == place.disk
            f.seek(place.offset)
            f.write(made + payload)
    with stores.opened(where) as content:
        was = place_of(content.storage, number)
        stores.gc(content.storage, aggressive=True)
        assert place_of(content.storage, number) == was
        with pytest.raises(CorruptError):
            stores.get(content, stores.sha256(small))


def test_rule_14_compaction_moves_only_what_lies_where_it_was_read(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that was found damaged, and healed elsewhere between the collector's read and its
    commit, keeps its new place."""
    one, two = stores.noise(1, 100_000), stores.noise(2, 150_000)
    small = stores.tar_of({"one": one})
    with stores.opened(where) as content, stores.opened(where) as other:
        stores.keep(content, "both", stores.tar_of({"one": one, "two": two}), stores.TAR)
        stores.keep(content, "small", small, stores.TAR)
        ((number, _),) = runs_of(content.storage, stores.sha256(small))
        was = place_of(content.storage, number)
        stores.untag(content, "both")
        seal = compact.Compactor._seal
        healed: list[tuple[int, int, int]] = []

        def late(self: compact.Compactor, copy: compact._Copy) -> None:
            if any(p.first <= number < p.end for p in copy.sources):
                with other.storage.operation() as op:
                    op.storage.index.update(
                        lambda tx: tx.put(Table.DAMAGE, b"n" + number_key(number), b'{"reason":""}')
                    )
                    op.sink.add(memoryview(one), [(0, len(one), 1, blake3(one))])
                    op.commit(())
                healed.append(place_of(other.storage, number))
            seal(self, copy)

        monkeypatch.setattr(compact.Compactor, "_seal", late)
        stores.gc(content.storage)
        assert healed
        assert healed[0] != was
        assert place_of(content.storage, number) == healed[0]
        assert stores.get(content, stores.sha256(small)) == small
        stores.clean(content)


def test_rule_15_commit_records(where: str, tmp_path: Path) -> None:
    """One record beyond the index is a crash and is overwritten; more is an old index, refused before
    anything is written; and content that looks like a record is none."""
    old = str(tmp_path / "old")
    with stores.opened(where) as content:
        stores.keep(content, "a", b"1")
        journal = content.storage.journal
        with content.storage.index.read() as snapshot:
            at = snapshot.position
        # A commit that died after its record was synced.
        journal.append(at, [(int(Table.REFS), b"never", b"{}")])
    with stores.opened(where) as content:
        assert refs(content) == ["a"]
        with open(journal.path(at.file), "rb") as f:
            forged = f.read()
        stores.keep(content, "forged", forged)
        with content.storage.index.read() as snapshot:
            assert snapshot.position.sequence > at.sequence
    shutil.copytree(os.path.join(where, "index"), old)
    with stores.opened(where) as content:
        stores.keep(content, "b", b"2")
        stores.untag(content, "a")
    shutil.rmtree(os.path.join(where, "index"))
    shutil.copytree(old, os.path.join(where, "index"))
    before = [os.path.getsize(p) for p in (journal.path(at.file), *stores.packs(where))]
    with pytest.raises(CorruptError, match="older than its packs"):
        open_storage(where)
    assert [os.path.getsize(p) for p in (journal.path(at.file), *stores.packs(where))] == before
    assert rebuild(where).ok
    with stores.opened(where) as content:
        assert refs(content) == ["b", "forged"]
        stores.clean(content)


def test_rule_15_a_record_is_synced_before_lmdb_commits(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the record cannot be synced nothing is committed."""
    with stores.opened(where) as content:
        stores.keep(content, "a", b"1")

        def failed(self: Disk, fd: int, path: str) -> None:
            if path.endswith(".log"):
                raise OSError(5, "injected")
            os.fdatasync(fd)

        with monkeypatch.context() as patch:
            patch.setattr(Disk, "sync", failed)
            with pytest.raises(OSError, match="injected"):
                stores.keep(content, "b", b"2")
    with stores.opened(where) as content:
        assert refs(content) == ["a"]


def test_rule_16_records_are_cut_oldest_first(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only behind a synced checkpoint that a row names; what was untagged does not come back; and a
    crash at any unlink leaves a chain that gives everything."""

    class Killed(BaseException):
        pass

    states = []
    for stop in range(4):
        path = f"{where}{stop}"
        with stores.opened(path) as content:
            for n in range(4):
                stores.keep(content, f"n{n}", stores.noise(n, 5000))
            gc.checkpoint(content.storage)
            stores.untag(content, "n0", "n2")
            left = [stop]

            def unlink(
                self: Disk, path: str, left: list[int] = left, real: object = Disk.unlink
            ) -> None:
                if path.endswith((".log", ".ckpt")):
                    if not left[0]:
                        raise Killed
                    left[0] -= 1
                real(self, path)  # type: ignore[operator]

            with monkeypatch.context() as patch:
                patch.setattr(Disk, "unlink", unlink)
                try:
                    gc.checkpoint(content.storage)
                except Killed:
                    states.append(stop)
            journal = content.storage.journal
            with content.storage.index.read() as snapshot:
                assert snapshot.meta(b"checkpoint") in journal.checkpoints()
            stores.keep(content, "late", b"1")
            rows, position = replay(
                Journal(journal.directory, content.storage.secret, b"", content.storage.disk)
            )
            with content.storage.index.read() as snapshot:
                assert position.sequence == snapshot.sequence
                kept = {(t, k): v for t, k, v in snapshot.logged_rows()}
            assert rows == kept
        shutil.rmtree(os.path.join(path, "index"))
        assert rebuild(path).ok
        with stores.opened(path) as content:
            assert refs(content) == ["late", "n1", "n3"]
            stores.clean(content)
    assert states == [0, 1]


def test_rule_17_every_handle_holds_the_store(where: str) -> None:
    """A rebuild needs it for itself; and keeps others out while it runs."""
    with stores.opened(where) as content:
        stores.keep(content, "a", b"1")
        with pytest.raises(BusyError):
            rebuild(where, timeout=0.1)
        assert refs(content) == ["a"]
    lock = FileLock(os.path.join(where, "lock"))
    assert lock.try_acquire()
    with pytest.raises(BusyError):
        open_storage(where, timeout=0.1)
    lock.release()
    assert rebuild(where, timeout=0.1).ok


def test_rule_18_known_means_whole(where: str) -> None:
    """Damage on record is absent to look-ups; put again, content takes its old number elsewhere."""
    data = stores.noise(1, 100_000)
    digest = stores.sha256(data)
    shares = stores.tar_of({"f": stores.noise(3, 90_000)})
    with stores.opened(where) as content:
        stores.keep(content, "a", data)
        stores.keep(content, "t", shares, stores.TAR)
        runs = runs_of(content.storage, digest)
        pack, offset, payload = place_of(content.storage, runs[0][0])
        stores.flip(content.storage.packs.path(pack), payload + 10)
    with stores.opened(where) as content:
        assert not stores.full_check(content).ok
        with content.operation() as op:
            assert op.have(digest) is None
            info = op.put(data, digest=digest)
            assert info.new_bytes > len(data) * 0.9
            assert op.have(digest) is not None
        assert runs_of(content.storage, digest) == runs
        assert place_of(content.storage, runs[0][0])[:2] != (pack, offset)
        assert stores.get(content, digest) == data
        assert refs(content) == ["a", "t"]
        stores.clean(content)


def test_rule_19_what_is_read_is_what_was_asked_for(where: str) -> None:
    """A row that stands under another key, or is lost, is noticed; a raw piece is checked before a
    byte of it goes out."""
    one, two = stores.noise(1, 60_000), stores.noise(2, 60_000)
    raw = stores.gzipped(stores.tar_of({"x": stores.noise(4, 3 * PIECE)}))
    with stores.opened(where) as content:
        stores.keep(content, "one", one)
        stores.keep(content, "two", two)
        stores.keep(content, "raw", raw, stores.TAR_GZIP)
    (path,) = stores.raws(where)
    stores.flip(path, PIECE + 100)
    with stores.opened(where) as content:
        with content.open(stores.sha256(raw)) as blob:
            got: list[bytes] = []

            def drain() -> None:
                while piece := blob.read(4096):
                    got.append(piece)

            with pytest.raises(CorruptError):
                drain()
            assert raw[:PIECE].startswith(b"".join(got))
        with content.open(stores.sha256(raw)) as blob:
            blob.seek(PIECE + 50)
            with pytest.raises(CorruptError, match="damaged at bytes"):
                blob.read(10)
            blob.seek(2 * PIECE)
            assert blob.read(1000) == raw[2 * PIECE : 2 * PIECE + 1000]
    stores.flip(path, PIECE + 100)

    def change(table: Table, work: object) -> None:
        env = lmdb.open(os.path.join(where, "index"), max_dbs=40, map_size=1 << 30, lib_version=0)
        with env.begin(write=True) as txn:
            work(txn, env.open_db(table.name.lower().encode(), txn=txn))  # type: ignore[operator]
        env.close()

    with stores.opened(where) as content:
        keys = [number_key(runs_of(content.storage, stores.sha256(d))[0][0]) for d in (one, two)]

    def swap(txn: object, db: object) -> None:
        txn.put(keys[0], txn.get(keys[1], db=db), db=db)  # type: ignore[attr-defined]

    saved = os.path.join(os.path.dirname(where), "saved")
    shutil.copytree(os.path.join(where, "index"), saved)
    change(Table.BLOCKS, swap)
    with stores.opened(where) as content, pytest.raises(CorruptError, match="checksum"):
        stores.get(content, stores.sha256(one))
    shutil.rmtree(os.path.join(where, "index"))
    shutil.copytree(saved, os.path.join(where, "index"))
    change(Table.REFS, lambda txn, db: txn.delete(b"one", db=db))
    with stores.opened(where) as content:
        with pytest.raises(CorruptError, match="lost or gained"):
            stores.gc(content.storage)
        assert stores.get(content, stores.sha256(one)) == one


def test_rule_20_a_split_gives_back_what_came(where: str) -> None:
    """Read by the ordinary reader from committed rows: tars of every kind, and tars broken anywhere.
    A raw file stays as long as it is the only form."""
    source = random.Random(20)
    whole = stores.tar_of({f"d/{'n' * 120}{i}": stores.noise(i, 700 * i) for i in range(30)})
    raw = stores.gzipped(whole)
    with stores.opened(where) as content:
        broken = [whole, whole + b"\1" * 777, whole[:-700], whole[:9000], b"\0" * 2048 + whole]
        for _ in range(25):
            data = bytearray(whole)
            for _ in range(source.randrange(1, 6)):
                data[source.randrange(len(data))] ^= 1 << source.randrange(8)
            broken.append(bytes(data))
        for data in broken:
            with content.operation() as op:
                op.put(data, digest=stores.sha256(data), media_type=stores.TAR)
            assert stores.get(content, stores.sha256(data)) == data
        stores.keep(content, "raw", raw, stores.TAR_GZIP)
        stores.gc(content.storage, aggressive=True)
        assert stores.get(content, stores.sha256(raw)) == raw
        with content.operation() as op:
            info = op.stat(stores.sha256(raw))
        assert info is not None
        assert info.forms == ("raw",)


@pytest.mark.parametrize("kind", ["bytes", "file", "pipe"])
def test_rule_20_a_split_is_proven_as_it_flows(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """A splitter that goes wrong in the second window: the tar is kept literally where it can be read
    again, and refused where it cannot; never kept in a way that does not give it back."""
    data = stores.tar_of({f"f{i}": stores.noise(i, 900_000) for i in range(24)})
    feed = Splitter.feed
    calls: list[int] = []
    spoilt: list[bool] = []

    def wrong(self: Splitter, window: memoryview, final: bool = False) -> SplitBatch:
        batch = feed(self, window, final)
        calls.append(batch.used)
        if len(calls) > 1 and len(batch.head) and not spoilt:
            batch.head[0] ^= 1
            spoilt.append(True)
        return batch

    monkeypatch.setattr(Splitter, "feed", wrong)
    path = tmp_path / "layer.tar"
    path.write_bytes(data)
    with stores.opened(where) as content:
        with content.operation() as op, open(path, "rb") as f:
            pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
            source = {"bytes": data, "file": f, "pipe": pieces}[kind]
            digest = stores.sha256(data)
            if kind == "pipe":
                with pytest.raises(LayerstoreError, match="would not give it back"):
                    op.put(source, digest=digest, media_type=stores.TAR, diff_id=digest)
                assert op.stat(digest) is None
            else:
                info = op.put(source, digest=digest, media_type=stores.TAR, diff_id=digest)
                assert (info.forms, info.problem, info.diff_id) == (("plain",), None, digest)
                assert stores.get(content, digest) == data
                assert op.have_layer(digest) == (digest,)
                assert len(list(scan_layer(content, digest))) == 24
        assert spoilt
        stores.clean(content)


def test_rule_21_mark_follows(where: str) -> None:
    """Manifests downward, referrers backward from each of a subject's digests; and a chunk's id is no
    digest of a blob."""
    layer = stores.tar_of({"f": stores.noise(1, 30_000)})
    with stores.opened(where) as content:
        image = stores.put_image(content, "a", [(layer, stores.TAR)])
        subject = stores.noise(2, 5000)
        other_name = digest_of(subject, "sha512")
        with content.operation() as op:
            op.put(subject, digest=stores.sha256(subject), aliases=[other_name])
            op.commit_refs({"b": Ref("b", stores.sha256(subject), len(subject), "text/plain")})
        signatures = []
        for target in (image, other_name):
            signature = b'{"of": "%s"}' % target.encode()
            with content.operation() as op:
                signatures.append(
                    op.put(
                        signature,
                        digest=stores.sha256(signature),
                        media_type=stores.MANIFEST,
                        edges=[Edge(target, "subject")],
                    ).digest
                )
    with stores.opened(where) as content:
        assert stores.gc(content.storage).removed_blobs == 0
        assert [stores.get(content, s) for s in signatures]
        with content.operation() as op:
            chunk = blake3(stores.noise(1, 30_000)).hex()
            assert op.stat(f"blake3:{chunk}") is None
            assert op.have(f"blake3:{chunk}") is None
        stores.untag(content, "a")
        # Manifest, config, layer, and the signature of the image.
        assert stores.gc(content.storage).removed_blobs == 4
        stores.untag(content, "b")
        assert stores.gc(content.storage).removed_blobs == 2


def test_rule_22_the_look_ahead(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file up to 4 MiB is known as a whole; a longer one is cut as it streams, and shared all the
    same. Header streams go out in pieces."""
    small, large = stores.noise(1, 3 * MIB), stores.noise(2, 9 * MIB)
    with stores.opened(where) as content:
        stores.keep(content, "s", stores.tar_of({"f": small}), stores.TAR)
        with content.storage.index.read() as snapshot:
            assert snapshot.count(Table.FILES) == 1
        stores.keep(content, "l", stores.tar_of({"f": large}), stores.TAR)
        with content.storage.index.read() as snapshot:
            assert snapshot.count(Table.FILES) == 1
        with content.operation() as op:
            again = stores.tar_of({"a/": b"", "a/g": large, "a/h": small})
            info = op.put(again, digest=stores.sha256(again), media_type=stores.TAR)
            assert info.new_bytes < MIB
        headers = io.BytesIO()
        with tarfile.open(fileobj=headers, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for i in range(3000):
                tar.addfile(tarfile.TarInfo(f"directory/{i:05}"))
        many = headers.getvalue()
        gone: list[int] = []
        add_bytes = Sink.add_bytes

        def watched(self: Sink, data: bytes | memoryview) -> Runs:
            gone.append(len(data))
            return add_bytes(self, data)

        monkeypatch.setattr(Sink, "add_bytes", watched)
        stores.keep(content, "h", many, stores.TAR)
        # All but less than a piece went while it came.
        assert gone[0] > MIB
        assert 0 < gone[1] < 256 * 1024
        with content.storage.index.read() as snapshot:
            serial = graph.serial_of(snapshot, stores.sha256(many))
            assert serial is not None
            row = graph.blob_row(snapshot, serial)
        assert row is not None
        assert row.tar is not None
        assert row.tar.head.size > MIB
        pieces = sum(count for _, count in content.storage.chunks.runs_of(row.tar.head))
        assert pieces >= row.tar.head.size // (256 * 1024)
        assert stores.get(content, stores.sha256(many)) == many


class _Full(Disk):
    """A disk that is full for as long as the reserve is there."""

    def __init__(self) -> None:
        super().__init__()
        self.reserve = ""
        self.refused = 0

    def _full(self) -> None:
        if self.reserve and os.path.exists(self.reserve):
            self.refused += 1
            raise StoreFullError("no space left (simulated)")

    def write_at(
        self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: str
    ) -> None:
        if "sessions" not in path:
            self._full()
        super().write_at(fd, data, offset, path)


def test_rule_23_a_full_disk(where: str) -> None:
    """gc gives the reserve up, refuses writers while it works, and makes it again."""
    disk = _Full()
    storage = open_storage(where, timeout=5.0, disk=disk)
    content = Content(storage)
    stores.keep(content, "a", stores.noise(1, 3 * MIB))
    stores.gc(storage)
    path = reserve.path_of(storage)
    assert os.stat(path).st_blocks * 512 >= reserve.SMALLEST
    stores.untag(content, "a")
    disk.reserve = path
    with pytest.raises(StoreFullError):
        stores.keep(content, "b", stores.noise(2, 10_000))
    refused = disk.refused
    seen: list[str] = []
    unlink = disk.unlink

    def watched(name: str) -> None:
        unlink(name)
        if name == path:
            with stores.opened(where) as other, pytest.raises(StoreFullError, match="gc"):
                stores.keep(other, "c", stores.noise(3, 10_000))
            seen.append(name)

    disk.unlink = watched  # type: ignore[method-assign]
    report = stores.gc(storage)
    assert disk.refused > refused
    assert seen == [path]
    assert report.removed_blobs == 1
    assert stores.packs(where) == []
    assert os.stat(path).st_blocks * 512 >= reserve.SMALLEST
    disk.reserve = ""
    stores.keep(content, "b", stores.noise(2, 10_000))
    stores.clean(content)
    storage.close()


def test_rule_23_whole_files_go_first(fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole may need room on a full disk; an unlinked file gives some."""
    path = str(fast_path / "s")
    calls: list[str] = []
    unlink, punch = Disk.unlink, Disk.punch

    def noted_unlink(self: Disk, path: str) -> None:
        calls.extend(["unlink"] * path.endswith(".pack"))
        unlink(self, path)

    def noted_punch(self: Disk, fd: int, offset: int, length: int, path: str) -> bool:
        calls.append("punch")
        return punch(self, fd, offset, length, path)

    monkeypatch.setattr(Disk, "unlink", noted_unlink)
    monkeypatch.setattr(Disk, "punch", noted_punch)
    with stores.opened(path, pack_size=2 * MIB) as content:
        for n in range(12):
            stores.keep(content, f"n{n}", stores.noise(n, 700_000))
        assert len(stores.packs(path)) >= 5
        # Of the first pack a part dies, of later ones all.
        stores.untag(content, "n0", *(f"n{n}" for n in range(4, 12)))
        stores.gc(content.storage)
        assert calls.count("unlink") >= 2
        assert "punch" in calls
        assert calls == sorted(calls, key="unlink punch".index)
        stores.clean(content)


def test_rule_24_lmdb(where: str) -> None:
    """A cut data file is refused, not a SIGBUS; another namespace's pid is said to be the cause."""
    with stores.opened(where) as content:
        stores.keep(content, "a", stores.noise(1, 50_000))
        error = content.storage.index._translate(
            lmdb.Error("mdb_txn_begin: Resource temporarily unavailable")
        )
        assert isinstance(error, BusyError)
        assert "pid namespace" in str(error)
        assert "child process" in str(error)
    data = os.path.join(where, "index", "data.mdb")
    os.truncate(data, os.path.getsize(data) // 8192 * 4096)
    with pytest.raises(CorruptError, match="cut short"):
        open_storage(where)
    with pytest.raises(CorruptError, match="cut short"):
        open_storage(where, readonly=True)
    assert rebuild(where).ok
    with stores.opened(where) as content:
        stores.clean(content)


def test_rule_25_what_returned_is_there(fast_path: Path) -> None:
    """And what did not is there wholly or not at all: a process that dies between any two calls of
    the disk. (Power cuts and random kills: tests/faults.)"""
    path = str(fast_path / "s")
    first, second = stores.noise(1, 30_000), stores.tar_of({"f": stores.noise(2, 30_000)})
    code = (
        "import os, sys, stores\n"
        "from layerstore.storage.disk import Disk\n"
        "path, left = sys.argv[1], int(sys.argv[2])\n"
        "opened = stores.opened(path)\n"
        "content = opened.__enter__()\n"
        "stores.keep(content, 'first', stores.noise(1, 30_000))\n"
        "print('first', flush=True)\n"
        "def wrap(name):\n"
        "    real = getattr(Disk, name)\n"
        "    def call(self, *arguments):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os._exit(9)\n"
        "        return real(self, *arguments)\n"
        "    setattr(Disk, name, call)\n"
        "for name in ('write_at', 'writev_at', 'sync', 'sync_dir', 'rename', 'unlink'):\n"
        "    wrap(name)\n"
        "data = stores.tar_of({'f': stores.noise(2, 30_000)})\n"
        "stores.keep(content, 'second', data, stores.TAR)\n"
        "print('second', flush=True)\n"
        "os._exit(9)\n"
    )
    import layerstore

    root = os.path.dirname(os.path.dirname(os.path.abspath(layerstore.__file__)))
    tests = os.path.dirname(os.path.abspath(stores.__file__))
    environment = {**os.environ, "PYTHONPATH": f"{root}:{tests}"}
    acknowledged = False
    for calls in range(0, 40, 2):
        where = f"{path}{calls}"
        done = subprocess.run(
            [sys.executable, "-c", code, where, str(calls)],
            stdout=subprocess.PIPE,
            env=environment,
            check=False,
            text=True,
        )
        said = done.stdout.split()
        assert said[:1] == ["first"]
        with stores.opened(where) as content:
            found = refs(content)
            assert "first" in found
            assert set(said) <= set(found)
            assert stores.get(content, stores.sha256(first)) == first
            if "second" in found:
                assert stores.get(content, stores.sha256(second)) == second
            else:
                stores.gc(content.storage)
                with pytest.raises(NotFoundError):
                    content.open(stores.sha256(second))
            stores.clean(content)
        if "second" in said:
            acknowledged = True
            break
    assert acknowledged
