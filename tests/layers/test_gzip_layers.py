"""Layers kept as a recipe over their tar: the same bytes for ever, and never counted before proven."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import zlib
from collections.abc import Iterator

import pytest
import stores

from layerstore.core.deflate import PIECE
from layerstore.core.hashing import blake3
from layerstore.errors import CorruptError, InvalidInputError, NotFoundError, UnsupportedError
from layerstore.layers import compress
from layerstore.layers.content import Content
from layerstore.layers.tree import file_content, layer_entries
from layerstore.storage import graph
from layerstore.storage.index import Table
from layerstore.storage.operation import prove, visible
from layerstore.storage.rebuild import rebuild
from layerstore.storage.rows import BlobRow, serial_key, to_number
from layerstore.storage.storage import Storage

FILES = {
    "dir/": b"",
    "dir/words": stores.words(1, 900_000),
    "dir/noise": stores.noise(2, 300_000),
    "zeros": bytes(2_000_000),
    "small": b"some text\n",
}
LAYER = stores.tar_of(FILES)
assert len(LAYER) > 3 * PIECE


def made(content: Content, data: bytes, level: int = 6, *, prove: bool = True) -> str:
    """The digest of a tar as gzip; read once, unless it is not to be proven."""
    with content.operation() as op:
        digest = op.gzip(op.put(data, media_type=stores.TAR).digest, level, stores.TAR_GZIP).digest
        if prove:
            with op.open(digest) as blob:
                for _ in blob.chunks():
                    pass
        return digest


def row_of(storage: Storage, digest: str) -> tuple[int, BlobRow]:
    with storage.index.read() as snapshot:
        found = visible(storage, snapshot, digest, damaged=True)
    assert found is not None
    return found


@pytest.mark.parametrize("level", [1, 6, 9])
def test_gnu_gzip_takes_what_comes_out(content: Content, level: int) -> None:
    digest = made(content, LAYER, level)
    data = stores.get(content, digest)
    assert stores.sha256(data) == digest
    assert subprocess.run(["gzip", "-t"], input=data, check=False).returncode == 0
    assert subprocess.run(["gzip", "-dc"], input=data, capture_output=True).stdout == LAYER
    # One member, no name, no time; size and CRC-32 of the content at its end.
    assert data[:8] == b"\x1f\x8b\x08" + bytes(5)
    assert (data[8], data[9]) == ({1: 4, 9: 2}.get(level, 0), 255)
    assert data[-8:] == zlib.crc32(LAYER).to_bytes(4, "little") + len(LAYER).to_bytes(4, "little")


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_tars_around_the_size_of_a_piece(content: Content, extra: int) -> None:
    tar = stores.tar_of({"f": stores.words(3, PIECE)})[: PIECE + extra]
    assert zlib.decompress(stores.get(content, made(content, tar)), 31) == tar


def test_a_tar_of_nothing_and_blobs_that_are_no_tar(content: Content) -> None:
    for data in (b"", b"x", stores.noise(4, 5000), bytes(1024)):
        assert zlib.decompress(stores.get(content, made(content, data)), 31) == data


def test_only_a_recipe_is_kept(content: Content, storage: Storage) -> None:
    tar = stores.put(content, LAYER, stores.TAR)
    before = stores.du(storage.path)
    digest = made(content, LAYER)
    assert not stores.raws(storage.path)
    assert stores.du(storage.path) - before < 100_000
    with content.operation() as op:
        info = op.stat(digest)
    assert info is not None
    assert (info.forms, info.diff_id) == (("gzip",), tar)
    from layerstore.storage.accounting import stats, stored_bytes

    assert stored_bytes(storage, digest) < 200
    found = stats(storage, per_image=False)
    assert (found.forms["gzip"], found.forms["tar"], found.layer_count) == (1, 1, 1)


def test_ranges(content: Content) -> None:
    digest = made(content, LAYER)
    data = stores.get(content, digest)
    source = random.Random(6)
    starts = [0, 1, 9, 10, 11, len(data) - 9, len(data) - 8, len(data) - 1, len(data)]
    starts += [source.randrange(len(data)) for _ in range(40)]
    with content.open(digest) as blob:
        for start in starts:
            blob.seek(start)
            size = source.choice((1, 100, 70_000))
            got = b""
            while len(got) < size and (piece := blob.read(size - len(got))):
                got += piece
            assert got == data[start : start + size]
        blob.seek(5)
        assert blob.readall() == data[5:]


def test_two_stores_make_the_same_bytes(content: Content, tmp_path: object) -> None:
    with stores.opened(f"{tmp_path}/other") as other:
        stores.put(other, stores.noise(7, 100_000))
        assert made(other, LAYER) == made(content, LAYER)


def test_making_it_again_reads_nothing(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = made(content, LAYER)
    monkeypatch.setattr("layerstore.layers.content.gzipped", None)
    with content.operation() as op:
        assert op.gzip(stores.sha256(LAYER), 6, stores.TAR_GZIP).digest == digest


def test_a_recipe_counts_only_after_a_whole_read(content: Content, storage: Storage) -> None:
    digest = made(content, LAYER, prove=False)
    with content.operation() as op:
        assert op.have(digest) is None
        assert digest not in op.have_layer(stores.sha256(LAYER))
        info = op.stat(digest)
        assert info is not None
        assert info.forms == ()
        with op.open(digest) as blob:
            blob.seek(100)
            blob.readall()
        assert op.have(digest) is None
        with op.open(digest) as blob:
            blob.readall()
        assert op.have(digest) is not None
        assert digest in op.have_layer(stores.sha256(LAYER))
    stores.clean(content)


def test_bytes_that_come_before_the_proof_are_kept(content: Content, storage: Storage) -> None:
    digest = made(content, LAYER, prove=False)
    data = b"".join(stores_raw(content, digest))
    serial, row = row_of(storage, digest)
    form = row.gzip
    assert form is not None
    with content.operation() as op:
        assert op.put(data, digest=digest, media_type=stores.TAR_GZIP).forms == ("raw",)
    prove(storage, serial, form)
    assert row_of(storage, digest)[1].forms == ("raw",)
    assert stores.get(content, digest) == data
    stores.clean(content)


def stores_raw(content: Content, digest: str) -> Iterator[bytes]:
    """The bytes without the end of a whole read, which would prove them."""
    with content.open(digest) as blob:
        blob.seek(1)
        yield b"\x1f"
        yield blob.readall()


def test_a_wrong_recipe_is_never_proven(content: Content, storage: Storage) -> None:
    digest = made(content, LAYER, prove=False)
    serial, row = row_of(storage, digest)
    assert row.gzip is not None
    from dataclasses import replace

    row.gzip = replace(row.gzip, level=5)
    storage.index.update(lambda tx: tx.put(Table.BLOBS, serial_key(serial), row.to_bytes()))
    with pytest.raises(CorruptError):
        stores.get(content, digest)
    with content.operation() as op:
        assert op.have(digest) is None


@pytest.mark.parametrize("change", [{"encoder": "ls-deflate 2"}, {"level": 10}, {"piece": 4096}])
def test_a_recipe_of_a_newer_version_says_so(
    content: Content, storage: Storage, change: dict[str, object]
) -> None:
    from dataclasses import replace

    digest = made(content, LAYER)
    serial, row = row_of(storage, digest)
    assert row.gzip is not None
    row.gzip = replace(row.gzip, **change)  # type: ignore[arg-type]
    storage.index.update(lambda tx: tx.put(Table.BLOBS, serial_key(serial), row.to_bytes()))
    with pytest.raises(UnsupportedError, match="newer layerstore"):
        stores.get(content, digest)


def test_files_are_listed_and_read_from_the_tar(content: Content) -> None:
    digest = made(content, LAYER)
    found = {f.entry.path.rstrip("/"): f for f in layer_entries(content, digest)}
    assert set(found) == {name.rstrip("/") for name in FILES}
    assert b"".join(file_content(content, found["dir/words"])) == FILES["dir/words"]


# ---- life and death ---------------------------------------------------------------------------


def image(content: Content, name: str) -> str:
    """An image whose only layer is a gzip form; its tar has no name of its own."""
    digest = made(content, LAYER)
    data = stores.get(content, digest)
    stores.put_image(content, name, [(data, stores.TAR_GZIP)])
    return digest


def test_the_tar_lives_as_long_as_the_layer(where: str) -> None:
    with stores.opened(where) as content:
        digest = image(content, "app")
    with stores.opened(where) as content:
        stores.gc(content.storage, aggressive=True)
        assert stores.sha256(stores.get(content, digest)) == digest
        stores.clean(content)
        stores.untag(content, "app")
        stores.gc(content.storage, aggressive=True)
        for gone in (digest, stores.sha256(LAYER)):
            with pytest.raises(NotFoundError):
                stores.get(content, gone)
        stores.clean(content)


def test_a_mark_that_misses_the_tar_deletes_nothing(where: str) -> None:
    with stores.opened(where) as content:
        image(content, "app")
        stores.keep(content, "doomed", stores.noise(8, 5000))
    with stores.opened(where) as content:
        storage = content.storage
        with storage.index.read() as snapshot:
            serial = graph.serial_of(snapshot, stores.sha256(LAYER))
            assert serial is not None
            row = graph.blob_row(snapshot, serial)
            assert row is not None
        storage.index.update(lambda tx: graph.remove_blob(tx, serial, row))
        stores.untag(content, "doomed")
        with pytest.raises(CorruptError, match="is made from"):
            stores.gc(storage)
        report = stores.full_check(content)
        assert any("is missing" in damage.reason for damage in report.damaged)


def test_holding_the_layer_brings_a_condemned_tar_back(where: str) -> None:
    with stores.opened(where) as content:
        digest = image(content, "app")
    with stores.opened(where) as content, stores.opened(where) as other:
        with other.operation():
            stores.untag(content, "app")
            assert stores.gc(content.storage).pending_bytes > 0
        with content.operation() as op:
            with pytest.raises(NotFoundError):
                op.open(digest)
            info = op.put(b"", digest=digest)
            assert info.forms == ("gzip",)
        stores.gc(content.storage)
        assert stores.sha256(stores.get(content, digest)) == digest
        stores.clean(content)


def test_an_index_made_anew_has_the_recipes(where: str) -> None:
    with stores.opened(where) as content:
        digest = image(content, "app")
    shutil.rmtree(os.path.join(where, "index"))
    assert rebuild(where).ok
    with stores.opened(where) as content:
        assert stores.sha256(stores.get(content, digest)) == digest
        stores.clean(content)


def damage(storage: Storage, data: bytes) -> None:
    """One bit of a chunk turned over."""
    with storage.index.read() as snapshot:
        number = to_number(dict(snapshot.items(Table.CHUNKS))[blake3(data)[:16]])
        place = storage.chunks.place(snapshot, number)
    assert place is not None
    stores.flip(storage.packs.path(place.pack), place.offset + place.head + 50)
    storage.chunks.close()


def test_damage_of_the_tar_is_damage_of_the_layer(content: Content, storage: Storage) -> None:
    digest = image(content, "app")
    damage(storage, FILES["small"])
    report = stores.full_check(content)
    named = {d.digest: d for d in report.damaged}
    assert set(named) == {digest, stores.sha256(LAYER)}
    found = named[digest]
    assert (found.form, found.refs) == ("gzip", ("app",))
    assert "small" in found.paths
    with pytest.raises(CorruptError):
        stores.get(content, digest)
    with content.operation() as op:
        assert op.have(digest) is None
    # The tar put again heals both; nothing is left on record.
    with content.operation() as op:
        op.put(LAYER, digest=stores.sha256(LAYER), media_type=stores.TAR)
        assert op.have(digest) is not None
    assert stores.sha256(stores.get(content, digest)) == digest
    stores.clean(content)


def test_the_layer_put_again_does_without_its_tar(content: Content, storage: Storage) -> None:
    digest = image(content, "app")
    data = stores.get(content, digest)
    damage(storage, FILES["small"])
    assert not stores.full_check(content).ok
    with content.operation() as op:
        assert op.put(data, digest=digest, media_type=stores.TAR_GZIP).forms == ("raw",)
    assert stores.get(content, digest) == data


def test_a_rebuild_tells_a_layer_whose_tar_is_gone(where: str) -> None:
    with stores.opened(where) as content:
        digest = image(content, "app")
    for path in stores.packs(where):
        with open(path, "r+b") as f:
            f.truncate(100)
    shutil.rmtree(os.path.join(where, "index"))
    report = rebuild(where)
    assert digest in {d.digest for d in report.damaged}


# ---- what is refused --------------------------------------------------------------------------


def test_levels_that_are_none(content: Content) -> None:
    stores.put(content, LAYER, stores.TAR)
    with content.operation() as op:
        for level in (0, 10):
            with pytest.raises(InvalidInputError, match="level"):
                op.gzip(stores.sha256(LAYER), level, stores.TAR_GZIP)
        with pytest.raises(NotFoundError):
            op.gzip("sha256:" + "0" * 64, 6, stores.TAR_GZIP)


def test_progress_can_stop_it(content: Content, storage: Storage) -> None:
    stores.put(content, LAYER, stores.TAR)
    before = storage.index.update(lambda tx: tx.sequence)

    def stop(size: int) -> None:
        raise KeyboardInterrupt

    with content.operation() as op, pytest.raises(KeyboardInterrupt):
        op.gzip(stores.sha256(LAYER), 6, stores.TAR_GZIP, stop)
    with storage.index.read() as snapshot:
        assert snapshot.sequence <= before + 1
    stores.clean(content)


# ---- zstd -------------------------------------------------------------------------------------


def test_a_zstd_layer_is_kept_raw_and_made_once(
    content: Content, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    diff_id = stores.put(content, LAYER, stores.TAR)
    with content.operation() as op:
        info = op.zstd([LAYER], diff_id, 3, stores.TAR_ZSTD)
        assert (info.forms, info.diff_id) == (("raw",), diff_id)
        monkeypatch.setattr("layerstore.layers.content.ingest", None)
        assert op.zstd([], diff_id, 3, stores.TAR_ZSTD).digest == info.digest
    assert row_of(storage, info.digest)[1].made == compress.zstd_maker(3)
    done = subprocess.run(
        ["zstd", "-dc"], input=stores.get(content, info.digest), capture_output=True
    )
    assert done.stdout == LAYER


@pytest.mark.parametrize("level", [1, 3, 9])
def test_zstd_bytes_do_not_depend_on_how_the_tar_comes(level: int) -> None:
    whole = b"".join(compress.zstd_compressed([LAYER], level))
    source = random.Random(level)
    pieces, at = [], 0
    while at < len(LAYER):
        pieces.append(LAYER[at : at + source.randrange(1, 300_000)])
        at += len(pieces[-1])
    assert b"".join(compress.zstd_compressed(pieces, level)) == whole


def test_a_tar_that_is_not_what_the_config_says_is_not_compressed(content: Content) -> None:
    with content.operation() as op, pytest.raises(InvalidInputError):
        op.zstd([LAYER], "sha256:" + "0" * 64, 3, stores.TAR_ZSTD)
