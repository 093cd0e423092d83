"""Stores that earlier versions made stay readable and usable; tests/golden/make.py tells their life.

The golden stores are never made again once their format is released: a change that fails here breaks
the stores of users.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import reader
import stores

import layerstore
from layerstore.layers.content import Content
from layerstore.storage.condemned import CondemnedFiles
from layerstore.storage.storage import Storage, open_storage

GOLDEN = Path(__file__).parent.parent / "golden"
WANT: dict[str, Any] = json.loads((GOLDEN / "store-1.json").read_text())
LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A copy of the golden store of format 1."""
    with tarfile.open(GOLDEN / "store-1.tar.xz") as archive:
        stores.extract(archive, tmp_path)
    return str(tmp_path / "store")


def freeze(path: str) -> None:
    """Takes the right to write away, from root too."""
    for folder, _, names in os.walk(path):
        for name in names:
            os.chmod(os.path.join(folder, name), 0o400)
        os.chmod(folder, 0o500)


def same(digest: str, data: bytes) -> bool:
    name, _, want = digest.partition(":")
    if name == "blake3":
        return reader.blake3(data).hexdigest() == want
    return hashlib.new(name, data).hexdigest() == want


def read_everything(store: layerstore.Store, but: Collection[str] = ()) -> None:
    found = {info.digest: info for info in store.blobs()}
    assert {d: {"size": i.bytes, "forms": list(i.forms)} for d, i in found.items()} == {
        digest: value for digest, value in WANT["blobs"].items() if digest not in but
    }
    for digest in [*found, *WANT["aliases"]]:
        with store.open_blob(digest) as blob:
            assert same(digest, b"".join(blob.chunks()))
            blob.seek(blob.size // 2)
            half = blob.readall()
            assert len(half) == blob.size - blob.size // 2


def images(store: layerstore.Store) -> dict[str, str]:
    return {info.name: info.digest for info in store.images()}


def test_it_is_what_it_should_be(path: str) -> None:
    """The golden store has everything that the format knows: else it would prove little."""
    store = reader.Store(path)
    store.check_sums()
    empty = {table for table in reader.TABLES if next(store.rows(table), None) is None}
    assert empty == {"damage", *reader.LATER}
    forms = {form for value in WANT["blobs"].values() for form in value["forms"]}
    assert forms == {"plain", "tar", "raw"}
    packs = [int.from_bytes(key, "big") for key, _ in store.rows("packs")]
    assert {store.toc(pack) is None for pack in packs} == {True, False}
    tars = [json.loads(v)["tar"] for _, v in store.rows("blobs") if b'"tar":' in v]
    assert any("outer" in t["content"] for t in tars)
    assert any(t["marks"]["size"] for t in tars)
    assert any(name.endswith(".ckpt") for name in os.listdir(os.path.join(path, "meta")))
    assert store.condemned_blobs
    assert os.listdir(os.path.join(path, "sessions"))
    store.close()


def test_the_independent_reader_reads_it(path: str) -> None:
    store = reader.Store(path)
    for digest, value in WANT["blobs"].items():
        blob = store.blob(digest)
        assert blob is not None
        for form in ("inline", "plain", "tar", "raw"):
            if form in blob:
                assert len(store.verified(blob, form)) == value["size"]
    for digest in WANT["hidden"]:
        assert store.blob(digest) is None
    assert {name: ref["digest"] for name, ref in store.refs().items()} == WANT["refs"]
    store.close()


@pytest.mark.parametrize("readonly", [False, True])
def test_everything_is_read(path: str, readonly: bool) -> None:
    if readonly:
        freeze(path)
    with layerstore.open(path, create=False, readonly=readonly) as store:
        read_everything(store)
        assert images(store) == WANT["refs"]
        assert [entry.path for entry in store.image("golden/one:1").entries()] == WANT["files"]
        for digest, referrers in WANT["referrers"].items():
            assert store.referrers(digest) == referrers
        assert sorted([i.id, i.ttl, list(i.digests)] for i in store.leases()) == WANT["leases"]
        for digest in WANT["hidden"]:
            with pytest.raises(layerstore.NotFoundError):
                store.open_blob(digest)


def test_nothing_of_it_is_damaged(path: str) -> None:
    with layerstore.open(path) as store:
        assert store.check(full=True).ok


def test_its_upload_goes_on(path: str) -> None:
    with open(os.path.join(path, "uploads", WANT["upload"]["id"]), "rb") as f:
        assert len(f.read()) == WANT["upload"]["bytes"]


def layout(folder: Path, layer: bytes) -> str:
    """An OCI layout with one image of one layer."""
    (folder / "blobs" / "sha256").mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    diff_id = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(layer, LAYER)],
    }
    top = blob(json.dumps(manifest).encode(), manifest["mediaType"])  # type: ignore[arg-type]
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    return f"oci:{folder}"


def test_new_content_goes_in_and_knows_the_old(path: str, tmp_path: Path) -> None:
    """The chunker cuts where it did, and ids and look-ups are what they were: else a store would
    slowly fill with the same content twice."""
    with layerstore.open(path) as store:
        book = b"".join(store.image("golden/one:1").open("data/book.txt"))
        shifted = io.BytesIO()
        with tarfile.open(fileobj=shifted, mode="w") as archive:
            for name, data in (("same", book), ("shifted", b"a few bytes before " + book)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        before = store.stats()
        info = store.import_image(layout(tmp_path / "layout", shifted.getvalue()), "new:1")
        after = store.stats()
        # Header stream and chunk list, and of the content only the chunk with the new beginning.
        assert 0 < after.chunk_count - before.chunk_count <= 3
        assert after.chunk_bytes - before.chunk_bytes < len(book) // 2
        assert images(store) == {**WANT["refs"], "new:1": info.digest}
        layer = store.image("new:1").layers[0].digest
        with store.open_blob(layer) as blob:
            assert b"".join(blob.chunks()) == shifted.getvalue()
        assert set(WANT["blobs"]) | {layer, info.digest} <= {b.digest for b in store.blobs()}


def test_garbage_goes_and_nothing_else(path: str) -> None:
    """What the dead session held goes; what refs and leases reach stays. The condemned set that
    waited is finished."""
    with layerstore.open(path) as store:
        report = store.gc(aggressive=True)
        assert report.complete
        assert report.pending_bytes == 0
        read_everything(store, but=WANT["until_gc"])
        assert images(store) == WANT["refs"]
        store.untag("golden/one:1")
        store.untag("golden/again:1")
        store.gc(aggressive=True)
        assert WANT["refs"]["golden/one:1"] not in {info.digest for info in store.blobs()}
        assert store.check(full=True).ok
    names = os.listdir(os.path.join(path, "gc"))
    assert not [name for name in names if name.endswith(".condemned")]


def without_index(path: str) -> None:
    shutil.rmtree(os.path.join(path, "index"))


def with_old_index(path: str) -> None:
    """An index from before the last commits, as a careless restore would bring it."""
    old = f"{path}.index"
    shutil.copytree(os.path.join(path, "index"), old)
    with layerstore.open(path) as store:
        store.tag("golden/one:1", "late:1")
        store.tag("golden/one:1", "late:2")
        store.untag("late:1")
        store.untag("late:2")
    shutil.rmtree(os.path.join(path, "index"))
    shutil.move(old, os.path.join(path, "index"))
    with pytest.raises(layerstore.CorruptError, match="rebuild-index"):
        layerstore.open(path)


@pytest.mark.parametrize("spoil", [without_index, with_old_index])
def test_the_index_is_made_anew_from_the_packs(path: str, spoil: Callable[[str], None]) -> None:
    spoil(path)
    assert layerstore.rebuild_index(path).ok
    with layerstore.open(path) as store:
        assert images(store) == WANT["refs"]
        found = {info.digest for info in store.blobs()}
        # No condemned set is left after a rebuild: what it hid is there again until the next gc.
        assert found == set(WANT["blobs"]) | set(WANT["hidden"])
        assert store.check(full=True).ok
        assert sorted([i.id, i.ttl, list(i.digests)] for i in store.leases()) == WANT["leases"]
        store.gc()
        assert store.check(full=True).ok
        read_everything(store, but=WANT["until_gc"])


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_lost_condemned_set_condemns_nothing(path: str, how: str) -> None:
    for name in os.listdir(os.path.join(path, "gc")):
        if name.endswith(".condemned"):
            if how == "lost":
                os.unlink(os.path.join(path, "gc", name))
            else:
                os.truncate(os.path.join(path, "gc", name), 30)
    independent = reader.Store(path)
    assert all(independent.blob(digest) is not None for digest in WANT["hidden"])
    independent.close()
    for readonly in (True, False):
        with layerstore.open(path, readonly=readonly) as store:
            for digest in (*WANT["blobs"], *WANT["hidden"]):
                with store.open_blob(digest) as blob:
                    assert same(digest, blob.read())
            report = store.check(blocks=True)
            assert [d.form for d in report.damaged] == ["index"]
            assert "condemned" in report.damaged[0].reason
    with layerstore.open(path) as store:
        store.put(b"put meanwhile, and let go")
    with layerstore.open(path) as store:
        assert store.gc().complete
        read_everything(store, but=WANT["until_gc"])
        assert store.check(full=True).ok


def test_it_is_written_as_it_was(path: str) -> None:
    """What this version writes is format 1 still: the independent reader reads it."""
    storage: Storage = open_storage(path)
    content = Content(storage)
    with storage.index.read() as snapshot:
        condemned = storage.condemned(snapshot)
        assert condemned is not None
        CondemnedFiles(os.path.join(path, "gc"), storage.secret, storage.disk).write(
            condemned.number, condemned.blobs, condemned.runs
        )
    with content.operation() as op:
        new = op.put(bytes(range(256)) * 300)
        copy = f"{path}.copy"
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("lock.mdb"))
    storage.close()
    store = reader.Store(copy)
    blob = store.blob(new.digest)
    assert blob is not None
    assert store.verified(blob, "plain") == bytes(range(256)) * 300
    assert store.condemned_blobs == set(condemned.blobs)
    store.replay()
    store.check_sums()
    store.close()
