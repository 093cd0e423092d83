"""Damage is found, named, and healed by putting the content again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence

import pytest
import stores

from layerstore.errors import CorruptError
from layerstore.layers import checking
from layerstore.layers.content import Content
from layerstore.storage import compact, gc
from layerstore.storage.index import UNLOGGED, Table
from layerstore.storage.rebuild import rebuild
from layerstore.storage.rows import BlobRow
from layerstore.storage.storage import Storage, open_storage

FILES = {f"dir/file{i}": stores.words(i, 20_000 + i) for i in range(50)}
LAYER = stores.tar_of(FILES)
PACKED = stores.gzipped(stores.tar_of({"packed": stores.noise(1, 900_000)}))
LOOSE = stores.words(77, 300_000)


def _fill(content: Content) -> None:
    stores.put_image(content, "image", [(LAYER, stores.TAR), (PACKED, stores.TAR_GZIP)])
    stores.keep(content, "loose", LOOSE)


def _live(storage: Storage) -> list[tuple[str, int, int]]:
    """`(path, start, end)` of all bytes that something relies on."""
    out = []
    with storage.index.read() as snapshot:
        from layerstore.storage.placing import all_places
        from layerstore.storage.rows import RawRow, to_number

        for place in all_places(snapshot):
            out.append((storage.packs.path(place.pack), place.offset, place.offset + place.disk))
        for key, value in snapshot.items(Table.RAWS):
            path = storage.raws.path(to_number(key))
            out.append((path, 0, RawRow.parse(value).size))
    return out


@pytest.mark.parametrize("full", [False, True])
def test_every_flipped_bit_is_found(where: str, full: bool) -> None:
    with stores.opened(where) as content:
        _fill(content)
        stores.clean(content)
        places = _live(content.storage)
    source = random.Random(5)
    for _ in range(60):
        path, start, end = source.choice(places)
        at, bit = source.randrange(start, end), source.randrange(8)
        stores.flip(path, at, bit)
        with stores.opened(where) as content:
            report = stores.full_check(content, full=full)
            assert not report.ok, (path, at - start, bit)
            assert all(d.digest and d.reason for d in report.damaged)
            stores.flip(path, at, bit)
            # The file is whole again, and the next full check says so.
            assert stores.full_check(content, full=True).ok


def test_damage_is_named(content: Content, storage: Storage) -> None:
    _fill(content)
    with storage.index.read() as snapshot:
        ids = dict(snapshot.items(Table.CHUNKS))
    from layerstore.core.hashing import blake3
    from layerstore.storage.rows import to_number

    number = to_number(ids[blake3(FILES["dir/file9"])[:16]])
    with storage.index.read() as snapshot:
        place = storage.chunks.place(snapshot, number)
        assert place is not None
    stores.flip(storage.packs.path(place.pack), place.offset + place.head + 100)
    storage.chunks.close()
    report = stores.full_check(content)
    assert not report.ok
    named = {d.digest: d for d in report.damaged}
    assert stores.sha256(LAYER) in named
    found = named[stores.sha256(LAYER)]
    assert found.refs == ("image",)
    assert "dir/file9" in found.paths
    assert 0 < len(found.paths) <= len(FILES)
    assert found.form == "tar"
    # Reading it says so, too, before its end.
    with pytest.raises(CorruptError):
        stores.get(content, stores.sha256(LAYER))
    # Known means whole: it is not "already stored" any more.
    with content.operation() as op:
        assert op.have(stores.sha256(LAYER)) is None


@pytest.mark.parametrize("place", ["payload", "header", "pack gone", "pack short", "list"])
@pytest.mark.parametrize("healer", ["same", "other layer", "plain"])
def test_putting_again_heals(content: Content, storage: Storage, place: str, healer: str) -> None:
    _fill(content)
    pack = stores.packs(storage.path)[0]
    with storage.index.read() as snapshot:
        from layerstore.storage.placing import all_places

        blocks = sorted({(p.offset, p.head, p.disk) for p in all_places(snapshot) if p.kind == 0})
    offset, head, disk = blocks[0]
    if place == "payload":
        stores.flip(pack, offset + head + disk // 3)
    elif place == "header":
        stores.flip(pack, offset + 30)
    elif place == "pack gone":
        os.unlink(pack)
    elif place == "pack short":
        os.truncate(pack, offset + disk - 5)
    else:
        stores.flip(pack, os.path.getsize(pack) - 20)
    storage.chunks.close()
    storage.packs.close()
    report = stores.full_check(content)
    assert not report.ok
    damaged = {d.digest for d in report.damaged}
    with content.operation() as op:
        if healer == "same" or place in ("pack gone", "pack short", "list"):
            for data, kind in ((LAYER, stores.TAR), (LOOSE, "text/plain")):
                if stores.sha256(data) in damaged:
                    op.put(data, digest=stores.sha256(data), media_type=kind)
        elif healer == "other layer":
            other = stores.tar_of({f"other/{n}": d for n, d in FILES.items()} | {"l": LOOSE})
            op.put(other, media_type=stores.TAR)
        else:
            for data in FILES.values():
                op.put(data)
            op.put(LOOSE)
    for data in (LAYER, LOOSE):
        assert stores.get(content, stores.sha256(data)) == data
    report = stores.full_check(content)
    assert report.ok, report.damaged
    stores.gc(storage, aggressive=True)
    stores.clean(content)
    for data in (LAYER, LOOSE, PACKED):
        assert stores.get(content, stores.sha256(data)) == data


def test_a_damaged_raw_file_heals(content: Content, storage: Storage) -> None:
    _fill(content)
    path = stores.raws(storage.path)[0]
    stores.flip(path, 500_000)
    with pytest.raises(CorruptError):
        stores.get(content, stores.sha256(PACKED))
    report = stores.full_check(content, full=False)
    assert [(d.digest, d.form, d.refs) for d in report.damaged] == [
        (stores.sha256(PACKED), "raw", ("image",))
    ]
    with content.operation() as op:
        op.put(PACKED, digest=stores.sha256(PACKED), media_type=stores.TAR_GZIP)
    assert stores.get(content, stores.sha256(PACKED)) == PACKED
    stores.gc(storage)
    assert len(stores.raws(storage.path)) == 1
    stores.clean(content)


def test_quick_check(content: Content, storage: Storage) -> None:
    _fill(content)

    def quick() -> bool:
        return stores.full_check(content, blocks=False, full=False).ok

    assert quick()
    raw, pack = stores.raws(storage.path)[0], stores.packs(storage.path)[0]
    for path in (raw, pack):
        os.rename(path, path + "x")
        assert not quick()
        os.rename(path + "x", path)
        with open(path, "rb") as f:
            data = f.read()
        os.truncate(path, len(data) - 1)
        assert not quick()
        with open(path, "wb") as f:
            f.write(data)
        assert stores.full_check(content).ok
        assert quick()
    stores.flip(pack, 3)
    assert not quick()


def test_repair(content: Content, storage: Storage) -> None:
    _fill(content)
    whole = {stores.sha256(d): d for d in (LAYER, PACKED, LOOSE)}
    for path in stores.packs(storage.path) + stores.raws(storage.path):
        stores.flip(path, os.path.getsize(path) // 2)
    storage.chunks.close()

    def again(where: Content, rows: Sequence[BlobRow]) -> None:
        with where.operation() as op:
            for row in rows:
                if row.digest in whole:
                    op.put(whole[row.digest], digest=row.digest, media_type=row.media_type)

    report = checking.check(
        content,
        blocks=True,
        full=True,
        max_time=None,
        repair=again,
        progress=None,
    )
    assert report.ok
    assert report.damaged
    assert set(report.repaired) == {d.digest for d in report.damaged}
    stores.clean(content)


def test_time_limit_goes_on(
    content: Content, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(content)
    for n in range(5):
        stores.keep(content, f"r{n}", stores.gzipped(stores.noise(n, 1000)))
    stores.flip(sorted(stores.raws(storage.path))[-1], 50)
    found = complete = False
    for _ in range(30):
        looks = iter([False])
        monkeypatch.setattr(compact, "deadline", lambda _, looks=looks: lambda: next(looks, True))
        report = checking.check(
            content, blocks=True, full=False, max_time=1, repair=None, progress=None
        )
        complete |= report.complete
        found |= not report.ok
        if found:
            break
    assert found
    assert not complete


def test_a_short_time_comes_to_every_digest(
    content: Content, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short the time, and however long packs take: digests get their turn, too."""
    _fill(content)
    read: list[str] = []
    before = checking._read_all
    monkeypatch.setattr(checking, "_read_all", lambda c, d, t: (read.append(d), before(c, d, t))[1])
    monkeypatch.setattr(compact, "deadline", lambda _: lambda: True)
    with content.operation() as op:
        digests = {blob.digest for blob in op.blobs()}
    units = len(stores.packs(storage.path)) + len(stores.raws(storage.path)) + len(digests)
    for _ in range(units):
        report = checking.check(
            content, blocks=True, full=True, max_time=1, repair=None, progress=None
        )
        assert report.ok
        assert not report.complete
    assert set(read) == digests


# ---- the index anew ----------------------------------------------------------------------------


def _rows(storage: Storage) -> dict[tuple[str, bytes], bytes]:
    with storage.index.read() as snapshot:
        return {
            (table.name, key): value
            for table in Table
            for key, value in snapshot.items(table)
            if table not in (Table.META, Table.FILES, Table.BLOCKS, Table.LEASES, Table.HOLDS)
        }


def _where(storage: Storage) -> dict[int, tuple[int, int, int]]:
    from layerstore.storage.placing import all_places

    out = {}
    with storage.index.read() as snapshot:
        for place in all_places(snapshot):
            for i in range(place.count):
                out[place.first + i] = (place.pack, place.offset, place.index + i)
    return out


def test_rebuild_gives_everything_back(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "CHECKPOINT_AT", 1000)
    assert Table.FILES in UNLOGGED
    with stores.opened(where) as content:
        _fill(content)
        lease = content.storage.create_lease(3600.0)
        content.storage.use_lease(lease)
        held = stores.put(content, stores.noise(5, 30_000))
        content.storage.leave_lease(lease)
        for n in range(8):
            stores.keep(content, f"n{n}", stores.words(100 + n, 150_000))
    for step in range(4):
        with stores.opened(where) as content:
            if step:
                stores.untag(content, f"n{step}", f"n{step + 4}")
                stores.keep(content, f"new{step}", stores.words(200 + step, 150_000))
            if step > 1:
                stores.gc(content.storage, aggressive=step == 3)
        with stores.opened(where) as content:
            rows, places = _rows(content.storage), _where(content.storage)
        shutil.rmtree(os.path.join(where, "index"))
        with pytest.raises(CorruptError, match="rebuild-index"):
            open_storage(where)
        shutil.rmtree(os.path.join(where, "index"), ignore_errors=True)
        report = rebuild(where)
        assert report.ok, report.damaged
        with stores.opened(where) as content:
            found = _rows(content.storage)
            # Dead chunks in blocks that still live in part come back, for the next gc.
            extra = found.keys() - rows.keys()
            assert {table for table, _ in extra} <= {"CHUNKS"}
            assert {k: found[k] for k in rows} == rows
            now = _where(content.storage)
            assert {n: now[n] for n in places} == places
            stores.clean(content)
            for data in (LAYER, PACKED, LOOSE):
                assert stores.get(content, stores.sha256(data)) == data
            assert stores.get(content, held) == stores.noise(5, 30_000)
            # Nothing is stored twice after a rebuild.
            with content.operation() as op:
                info = op.put(stores.tar_of({"x": FILES["dir/file3"]}), media_type=stores.TAR)
                assert info.new_bytes < 3000
            # And the numbers go on where they were: nothing is named twice.
            stores.keep(content, "later", stores.noise(1000 + step, 10_000))
            stores.gc(content.storage)
            stores.clean(content)


def test_rebuild_over_a_whole_index(where: str) -> None:
    with stores.opened(where) as content:
        _fill(content)
        rows = _rows(content.storage)
    assert rebuild(where).ok
    assert rebuild(where).ok
    with stores.opened(where) as content:
        assert _rows(content.storage) == rows
        stores.clean(content)


def test_an_old_index_is_refused(where: str, tmp_path: object) -> None:
    copy = os.path.join(str(tmp_path), "old")
    with stores.opened(where) as content:
        stores.keep(content, "a", b"1")
    shutil.copytree(os.path.join(where, "index"), copy)
    with stores.opened(where) as content:
        for n in range(3):
            stores.keep(content, f"b{n}", stores.noise(n, 10_000))
    shutil.rmtree(os.path.join(where, "index"))
    shutil.copytree(copy, os.path.join(where, "index"))
    before = stores.du(where)
    with pytest.raises(CorruptError, match="rebuild-index"):
        open_storage(where)
    assert abs(stores.du(where) - before) <= 8192
    assert rebuild(where).ok
    with stores.opened(where) as content:
        with content.operation() as op:
            assert [r.name for r in op.refs()] == ["a", "b0", "b1", "b2"]
        stores.clean(content)


def test_an_old_index_is_refused_after_a_checkpoint(where: str, tmp_path: object) -> None:
    copy = os.path.join(str(tmp_path), "old")
    with stores.opened(where) as content:
        stores.keep(content, "a", b"1")
    shutil.copytree(os.path.join(where, "index"), copy)
    with stores.opened(where) as content:
        stores.keep(content, "b", stores.noise(2, 10_000))
        gc.checkpoint(content.storage)
    shutil.rmtree(os.path.join(where, "index"))
    shutil.copytree(copy, os.path.join(where, "index"))
    with pytest.raises(CorruptError, match="rebuild-index"):
        open_storage(where)
    assert rebuild(where).ok
    with stores.opened(where) as content:
        stores.clean(content)


def test_one_record_too_many_is_a_crash(where: str, tmp_path: object) -> None:
    """The record of a commit that LMDB never saw is overwritten, whatever its length."""
    copy = os.path.join(str(tmp_path), "old")
    with stores.opened(where) as content:
        stores.keep(content, "a", b"1")
        index = content.storage.index
        with index.read() as snapshot:
            at = snapshot.position
        index.journal.append(at, [(int(Table.REFS), b"never", b"{}" * 5000)])
    del copy
    with stores.opened(where) as content:
        with content.operation() as op:
            assert [r.name for r in op.refs()] == ["a"]
        stores.keep(content, "b", b"2")
    assert rebuild(where).ok
    with stores.opened(where) as content:
        with content.operation() as op:
            assert [r.name for r in op.refs()] == ["a", "b"]
        stores.clean(content)


def test_damage_in_the_metadata_pack(where: str) -> None:
    """The index does not need it, until it is lost; then what comes behind the damage is lost too,
    and said so rather than made up."""
    with stores.opened(where) as content:
        for n in range(5):
            stores.keep(content, f"a{n}", stores.noise(n, 10_000))
    path = os.path.join(where, "meta", "00000001.log")
    stores.flip(path, os.path.getsize(path) // 2)
    with stores.opened(where) as content:
        report = stores.full_check(content)
        assert not report.ok
        assert any(d.form == "index" and "meta" in d.reason for d in report.damaged)
        # A checkpoint writes everything anew.
        gc.checkpoint(content.storage)
        stores.clean(content)
    assert rebuild(where).ok
    with stores.opened(where) as content:
        with content.operation() as op:
            assert len(op.refs()) == 5
        stores.clean(content)


@pytest.mark.parametrize("cut", [0, 1, 4096, 20_000])
def test_a_cut_index_is_refused(where: str, cut: int) -> None:
    with stores.opened(where) as content:
        _fill(content)
    path = os.path.join(where, "index", "data.mdb")
    os.truncate(path, min(cut, os.path.getsize(path)))
    with pytest.raises(CorruptError, match="rebuild-index"):
        open_storage(where)
    assert rebuild(where).ok
    with stores.opened(where) as content:
        stores.clean(content)
        assert stores.get(content, stores.sha256(LAYER)) == LAYER


def test_a_missing_metadata_pack(where: str) -> None:
    with stores.opened(where) as content:
        stores.keep(content, "a", b"1")
    os.unlink(os.path.join(where, "meta", "00000001.log"))
    with pytest.raises(CorruptError, match="metadata pack"):
        open_storage(where)


def test_a_flipped_row_is_seen(where: str) -> None:
    with stores.opened(where) as content:
        digest = stores.keep(content, "a", b"inline content here")
        index = content.storage.index
        with index._shared.env.begin(write=True) as txn:
            with txn.cursor(index.dbs[Table.BLOBS]) as cursor:
                cursor.first()
                key, value = cursor.item()
            bad = bytearray(value)
            bad[len(bad) // 2] ^= 1
            txn.put(key, bytes(bad), db=index.dbs[Table.BLOBS])
        with pytest.raises(CorruptError, match="rebuild-index"):
            stores.get(content, digest)
        report = stores.full_check(content)
        assert not report.ok
    assert rebuild(where).ok
    with stores.opened(where) as content:
        assert stores.get(content, digest) == b"inline content here"
        stores.clean(content)
