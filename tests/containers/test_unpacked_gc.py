"""What gc keeps and frees of unpacked layers and snapshots, and how they are counted."""

from __future__ import annotations

import os
from pathlib import Path

import making
import pytest
import stores
from making import image, mounted, tree

import layerstore
from layerstore.storage import unpacked as rows


def layers(store: layerstore.Store) -> list[str]:
    home = f"{store.path}/unpacked"
    return sorted(n for n in os.listdir(home) if n != "empty") if os.path.isdir(home) else []


def test_a_snapshot_keeps_its_image(store, tmp_path):
    image(store)
    store.checkout("app:1", tmp_path / "want")
    store.snapshots.prepare("k", "app:1")
    store.untag("app:1")
    reopened = store.path
    store.close()
    with layerstore.open(reopened) as store:
        for _ in range(3):
            assert store.gc(aggressive=True).removed_blobs == 0
        assert len(layers(store)) == 3
        with mounted(store, "k", tmp_path / "m") as root:
            assert tree(root) == tree(tmp_path / "want")
            (root / "new").write_text("new")
        store.snapshots.commit("k", "back:1")
        store.checkout("back:1", tmp_path / "back")
        store.untag("back:1")
        store.snapshots.remove("k")
    with layerstore.open(reopened) as store:
        assert store.gc().removed_blobs > 0
        assert layers(store) == []
        assert list(store.blobs()) == []


def test_unpacked_layers_live_as_long_as_their_image_or_a_snapshot(store):
    image(store, "app:1")
    image(store, "app:2", [*making.LAYERS[:2], [making.member("other", b"other")]])
    store.snapshots.prepare("a", "app:1")
    store.snapshots.prepare("b", "app:2")
    assert len(layers(store)) == 4
    store.snapshots.remove("b")
    store.gc()
    assert len(layers(store)) == 4, "the image is there: the next container starts at once"
    store.gc(aggressive=True)
    assert len(layers(store)) == 3, "nothing but a copy made for speed"
    store.snapshots.remove("a")
    store.gc(aggressive=True)
    assert layers(store) == []
    store.snapshots.prepare("again", "app:1")
    assert len(layers(store)) == 3


def test_a_dry_run_says_what_would_go_and_leaves_it(store, path):
    image(store)
    store.snapshots.prepare("k", "app:1")
    size = sum(stores.du(f"{path}/unpacked/{n}") for n in layers(store))
    store.snapshots.remove("k")
    store.untag("app:1")
    store.close()
    with layerstore.open(path) as store:
        report = store.gc(dry_run=True)
        assert report.freed_bytes >= size
        assert len(layers(store)) == 3
        assert store.stats().dead_bytes >= size
        done = store.gc()
        assert layers(store) == []
        assert done.freed_bytes >= size


def test_what_is_being_made_is_left_alone(store):
    image(store)
    storage = store._storage
    with (
        rows.Making(storage, rows.LAYERS, 77) as one,
        rows.Making(storage, rows.CHANGES, 78) as two,
    ):
        open(os.path.join(one.path, "file"), "w").close()
        two.keep()
        store.gc(aggressive=True)
        assert os.path.exists(os.path.join(one.path, "file"))
        assert os.path.exists(two.final)
    assert not os.path.exists(one.path)
    store.gc(aggressive=True)
    assert not os.path.exists(two.final), "its maker ended without a row"


def test_what_a_stray_mount_may_stand_on_stays(store, tmp_path):
    image(store)
    store.snapshots.prepare("k", "app:1")
    store.snapshots.mount("k", tmp_path / "m")
    storage = store._storage

    def forget(tx):
        tx.delete(rows.Table.SNAPSHOTS, b"k")

    storage.index.update(forget)
    assert store.snapshots.strays() == [str(tmp_path / "m")]
    store.gc(aggressive=True)
    assert (tmp_path / "m/etc/motd").read_text() == "hello"
    making.run("umount", tmp_path / "m")
    assert store.snapshots.strays() == []
    store.gc(aggressive=True)
    assert layers(store) == []
    assert os.listdir(f"{store.path}/snapshots") == []


@pytest.mark.parametrize("mount", [False, True])
def test_stats_count_what_du_counts(store, tmp_path, mount):
    files = [making.member(f"big/{n}", os.urandom(9000)) for n in range(200)]
    image(store, layers=[[making.member("big/"), *files], *making.LAYERS])
    before = store.stats()
    assert before.unpacked == 0
    store.snapshots.prepare("k", "app:1")
    with mounted(store, "k", tmp_path / "m") as root:
        (root / "new").write_bytes(os.urandom(3_000_000))
        os.sync()
        if mount:
            check(store)
    check(store)
    assert store.stats().unpacked > 5_000_000
    store.snapshots.remove("k")
    store.gc(aggressive=True)
    check(store)
    assert store.stats().unpacked < 50_000


def check(store: layerstore.Store) -> None:
    found = store.stats()
    assert abs(found.total - stores.du(store.path)) <= 0.01 * found.total
    assert found.total == found.packs + found.raw + found.unpacked + found.index


def test_a_tree_that_its_owner_may_not_enter_is_removed(store):
    image(store, layers=[[making.member("shut/", mode=0), making.member("shut/in", b"x", mode=0)]])
    store.snapshots.prepare("k", "app:1")
    store.snapshots.remove("k")
    store.gc(aggressive=True)
    assert layers(store) == []


def test_a_store_without_the_tables_opens_for_reading_only_and_has_no_snapshots(tmp_path):
    import tarfile
    from pathlib import Path

    golden = Path(__file__).parents[1] / "golden/store-1.tar.xz"
    with tarfile.open(golden) as archive:
        stores.extract(archive, tmp_path)
    with layerstore.open(tmp_path / "store", readonly=True) as store:
        assert store.snapshots.list() == []
        assert store.images()
        assert store.stats().unpacked == 0
        with pytest.raises(layerstore.NotFoundError):
            store.snapshots.usage("k")
    with layerstore.open(tmp_path / "store") as store:
        assert store.snapshots.list() == []
        assert store.gc().complete


def costly(store: layerstore.Store) -> None:
    """Three images over one base, all unpacked; a snapshot stands on one of them."""
    base = [
        making.member("big/"),
        *(making.member(f"big/{n}", os.urandom(9000)) for n in range(200)),
    ]
    for n in range(3):
        own = [
            making.member(f"own{n}", os.urandom(900_000 * (n + 1))),
            making.member(f"f{n}", b"x"),
        ]
        image(store, f"app:{n}", [base, own, making.BASE])
        store.snapshots.prepare(f"k{n}", f"app:{n}")
    image(store, "alone:1", [[making.member("only", os.urandom(700_000))]])
    for key in ("k0", "k1"):
        store.snapshots.remove(key)


NAMES = ["app:0", "app:1", "app:2", "alone:1"]


@pytest.mark.parametrize("name", NAMES)
def test_what_removing_an_image_gives_back_was_said_before(path, name):
    """Within 2 %: unpacked layers go with the image that they were made for, but not those that another
    image has as well, nor those that a snapshot stands on."""
    with layerstore.open(path) as store:
        costly(store)
    with layerstore.open(path) as store:
        store.gc()
        said = {one.name: one for one in store.stats(images=True).per_image}[name]
        parts = [f"{path}/unpacked", f"{path}/packs", f"{path}/raw"]
        before = sum(stores.du(part) for part in parts)
        store.untag(name)
        # A gc that is aggressive would take the others' unpacked layers, too.
        store.gc()
        copies = stores.du(parts[0])
        store.gc(aggressive=True)
        got = before - copies - sum(stores.du(part) for part in parts[1:])
    assert abs(said.freed_if_removed - got) <= 0.02 * max(got, said.freed_if_removed) + 12 * 1024
    assert (got < 12 * 1024) == (name == "app:2"), "a snapshot keeps its image"


def test_alone_and_shared_count_unpacked_layers(path):
    with layerstore.open(path) as store:
        costly(store)
    with layerstore.open(path) as store:
        found = store.stats(images=True)
        by_name = {one.name: one for one in found.per_image}
        changes = stores.du(f"{path}/snapshots")
        parts = found.alone + found.shared + found.index + found.dead_bytes + changes
        assert abs(parts - found.total) <= 0.01 * found.total
        size = {row.diff_id: row.size for row in unpacked_rows(store)}
        for name in NAMES[:2]:
            top = size[str(store.image(name).layers[1].diff_id)]
            assert top < by_name[name].alone < 3 * top
        assert by_name["app:2"].alone < 12 * 1024
        base = size[str(store.image("app:0").layers[0].diff_id)]
        assert all(by_name[name].shared > base for name in NAMES[:3])


def unpacked_rows(store: layerstore.Store) -> list[rows.UnpackedRow]:
    with store._storage.index.read() as snapshot:
        return list(rows.layers(snapshot))


def test_spare_copies_go_before_any_entry_and_what_a_snapshot_uses_stays(path):
    """Within `max_used_space`: unpacked layers first, those on top before those below them and no more
    than is lacking; then entries of the cache; never what a snapshot stands on."""
    with layerstore.open(path) as store:
        costly(store)
        for n in range(2):
            store.cache.put(f"step{n}", store.put(stores.noise(50 + n, 400_000)))
    with layerstore.open(path) as store:
        # What is dead goes first: it is gone before anything is measured.
        store.gc()
        size = {row.diff_id: row.size for row in unpacked_rows(store)}
        tops = [[str(d.diff_id) for d in store.image(f"app:{n}").layers] for n in range(3)]
        kept = set(tops[2])
        spare = [row for row in unpacked_rows(store) if row.diff_id not in kept]
        before = len(unpacked_rows(store))
        assert (len(spare), len(kept)) == (2, 3)
        assert before == 7, "three images of three layers, of which they share the lowest"

        # A bit of what the oldest ones take: its two upper layers, and nothing of the second image.
        limit = store.stats().total - size[tops[0][1]] // 2
        foreseen = store.gc(dry_run=True, max_used_space=limit)
        assert (foreseen.dropped_entries, foreseen.within_limits) == (0, True)
        assert len(unpacked_rows(store)) == before
        report = store.gc(max_used_space=limit)
        assert (report.dropped_entries, report.within_limits) == (0, True)
        left = {row.diff_id for row in unpacked_rows(store)}
        assert tops[0][1] not in left
        assert left == {*tops[1], *kept}
        assert len(unpacked_rows(store)) == before - 2
        assert len(store.cache.list()) == 2

        # More than the copies give: all that no snapshot stands on, and one entry.
        limit = store.stats().total - size[tops[1][1]] - 250_000
        report = store.gc(max_used_space=limit)
        assert (report.dropped_entries, report.within_limits) == (1, True)
        assert {row.diff_id for row in unpacked_rows(store)} == kept
        assert len(unpacked_rows(store)) == len(layers(store)) == 3

        # Less than there can be: the snapshot and what it stands on stay.
        report = store.gc(max_used_space=0)
        assert (report.dropped_entries, report.within_limits) == (1, False)
        assert store.cache.list() == []
        assert len(unpacked_rows(store)) == len(layers(store)) == 3
        assert [one.key for one in store.snapshots.list()] == ["k2"]
        with mounted(store, "k2", Path(f"{path}-m")) as root:
            assert (root / "f2").read_bytes() == b"x"
            assert (root / "big/7").stat().st_size == 9000
        # The copies are made again from what stayed.
        store.snapshots.prepare("again", "app:0")
        assert len(unpacked_rows(store)) == 5
        assert store.check(full=True).ok
