"""Blobs that came compressed become content and a recipe: the same bytes, no file lost unproven."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import stores
from damaged_gzip import DAMAGED, SOUND, flipped

from layerstore.core import recipe as recipes
from layerstore.errors import InvalidInputError, StoreFullError, UnsupportedError
from layerstore.layers import analysis
from layerstore.layers import optimize as room
from layerstore.layers.content import Content
from layerstore.layers.encoders import likely_encoder
from layerstore.layers.optimize import Outcome, optimize
from layerstore.layers.tree import file_content, layer_entries
from layerstore.storage import graph
from layerstore.storage.index import Table
from layerstore.storage.operation import drop_raw
from layerstore.storage.rebuild import rebuild
from layerstore.storage.rows import BlobRow, serial_key
from layerstore.storage.storage import Storage

FILES = {
    "dir/": b"",
    "dir/words": stores.words(1, 2_500_000),
    "dir/noise": stores.noise(2, 400_000),
    "zeros": bytes(1_500_000),
    "small": b"some text\n",
}
LAYER = stores.tar_of(FILES)
BLOB = stores.gzipped(LAYER)
DIGEST = stores.sha256(BLOB)


def run(content: Content, **options: object) -> list[Outcome]:
    outcomes, complete = optimize(content, content.raw_blobs(), **options)  # type: ignore[arg-type]
    assert complete
    return outcomes


def landed(content: Content, data: bytes = BLOB, name: str = "layer") -> str:
    return stores.keep(content, name, data, stores.TAR_GZIP)


def forms(content: Content, digest: str) -> tuple[str, ...]:
    with content.operation() as op:
        info = op.stat(digest)
    assert info is not None
    return info.forms


def row_of(storage: Storage, digest: str) -> tuple[int, BlobRow]:
    with storage.index.read() as snapshot:
        serial = graph.serial_of(snapshot, digest)
        assert serial is not None
        row = graph.blob_row(snapshot, serial)
    assert row is not None
    return serial, row


def test_the_file_goes_and_the_bytes_stay(content: Content, storage: Storage) -> None:
    digest = landed(content)
    assert forms(content, digest) == ("raw",)
    (outcome,) = run(content)
    blob = outcome.blob
    assert (blob.digest, blob.result, blob.bytes, blob.reason) == (digest, "gzip", len(BLOB), "")
    assert blob.encoder.startswith("zlib")
    assert 0 < blob.recipe_bytes < 1024
    assert outcome.freed == len(BLOB)
    assert forms(content, digest) == ("gzip",)
    assert stores.raws(storage.path) == []
    assert stores.get(content, digest) == BLOB
    with content.operation() as op:
        info = op.stat(digest)
        assert info is not None
        assert info.diff_id == stores.sha256(LAYER)
        assert digest in op.have_layer(stores.sha256(LAYER))
    assert run(content) == []
    stores.clean(content)


def test_ranges(content: Content) -> None:
    digest = landed(content)
    run(content)
    source = random.Random(3)
    starts = [0, 1, 9, 10, len(BLOB) - 9, len(BLOB) - 1, len(BLOB), len(BLOB) + 5]
    starts += [source.randrange(len(BLOB)) for _ in range(40)]
    with content.open(digest) as blob:
        for start in starts:
            blob.seek(start)
            size = source.choice((1, 100, 70_000))
            got = b""
            while len(got) < size and (piece := blob.read(size - len(got))):
                got += piece
            assert got == BLOB[start : start + size]


def test_pulled_as_gzip_and_built_here_share_everything(content: Content, storage: Storage) -> None:
    stores.keep(content, "built", LAYER, stores.TAR)
    before = stores.du(storage.path)
    landed(content)
    (outcome,) = run(content)
    assert outcome.blob.result == "gzip"
    assert stores.du(storage.path) - before < 64 << 10
    _, row = row_of(storage, DIGEST)
    assert row.gzip is not None
    assert row.gzip.inner == stores.sha256(LAYER)
    # And the other way round: what came as gzip is known when it is built.
    with content.operation() as op:
        assert op.have(stores.sha256(LAYER)) is not None


def test_files_are_read_from_the_tar(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = landed(content)
    run(content)
    monkeypatch.setattr("layerstore.layers.assemble._gzip_pieces", None)
    found = {f.entry.path.rstrip("/"): f for f in layer_entries(content, digest)}
    assert set(found) == {name.rstrip("/") for name in FILES}
    assert b"".join(file_content(content, found["dir/words"])) == FILES["dir/words"]


MEMBERS = BLOB + gzip.compress(b"more", mtime=5) + gzip.compress(b"", 1, mtime=0)


def named(data: bytes) -> bytes:
    """A member with every field that a header may have (RFC 1952, 2.3)."""
    raw = zlib.compressobj(6, zlib.DEFLATED, -15)
    head = b"\x1f\x8b\x08\x1f" + bytes(4) + b"\x00\x03"
    head += b"\x05\x00extra" + b"a name\0" + b"a comment\0"
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    body = raw.compress(data) + raw.flush()
    return head + body + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"", mtime=0),
        gzip.compress(b"x", 9),
        gzip.compress(stores.noise(1, 300_000), 0),
        gzip.compress(stores.words(5, 300_000), 1),
        MEMBERS,
        MEMBERS + bytes(1000),
        named(LAYER),
    ],
    ids=["empty", "byte", "stored", "fast", "members", "padded", "fields"],
)
def test_odd_but_sound(content: Content, data: bytes) -> None:
    digest = landed(content, data)
    (outcome,) = run(content)
    assert outcome.blob.result == "gzip", outcome
    assert stores.get(content, digest) == data
    stores.clean(content)


def test_what_our_own_encoder_made_elsewhere(content: Content, tmp_path: object) -> None:
    with stores.opened(f"{tmp_path}/other") as other, other.operation() as op:
        made = op.gzip(op.put(LAYER, media_type=stores.TAR).digest, 7, stores.TAR_GZIP).digest
        data = stores.get(other, made)
    digest = landed(content, data)
    (outcome,) = run(content, max_corrections=0.0)
    assert (outcome.blob.result, outcome.blob.encoder) == ("gzip", "layerstore 7")
    assert stores.get(content, digest) == data


# ---- what stays as it is ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_gzip_is_given_back_and_not_tried_again(
    content: Content, storage: Storage, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DAMAGED[kind]
    digest = landed(content, data)
    (outcome,) = run(content)
    assert outcome.blob.result == "raw"
    assert "does not decode" in outcome.blob.reason
    assert "byte" in outcome.blob.reason
    assert stores.get(content, digest) == data
    with pytest.raises(InvalidInputError) as caught:
        list(layer_entries(content, digest))
    assert "byte" in caught.value.message
    monkeypatch.setattr(room, "Analysis", None)
    (again,) = run(content)
    assert again.blob == outcome.blob
    stores.clean(content)


def test_any_bit_turned_over(content: Content) -> None:
    source = random.Random(7)
    wanted = {}
    for n in range(60):
        data = flipped(SOUND, source.randrange(8 * len(SOUND)))
        wanted[landed(content, data, f"n{n}")] = data
        data = SOUND[: source.randrange(2, len(SOUND))]
        wanted[landed(content, data, f"t{n}")] = data
    run(content)
    for digest, data in wanted.items():
        assert stores.get(content, digest) == data


def test_a_bomb_beyond_the_limit_stays_as_it_came(content: Content, storage: Storage) -> None:
    data = gzip.compress(bytes(200 << 20), 9, mtime=0)
    assert len(data) * 900 < 200 << 20
    digest = landed(content, data)
    (outcome,) = run(content, inflate_limit=100 << 20)
    assert outcome.blob.result == "raw"
    assert "inflates to more" in outcome.blob.reason
    assert stores.get(content, digest) == data


def test_corrections_above_the_limit(content: Content) -> None:
    # A window of 512 bytes: no model has that.
    machine = zlib.compressobj(6, zlib.DEFLATED, 16 + 9, 1)
    data = machine.compress(bytes(random.Random(4).choices(b"abcd", k=400_000))) + machine.flush()
    digest = landed(content, data)
    for _ in range(2):
        (outcome,) = run(content, max_corrections=0.0001)
        assert outcome.blob.result == "raw"
        assert "%" in outcome.blob.reason or "no model" in outcome.blob.reason
        assert stores.get(content, digest) == data
    stores.clean(content)


def test_the_limit_decides_and_another_limit_tries_again(
    content: Content, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recipes.analyse
    digest = landed(content)
    # As if the model were far off.
    monkeypatch.setattr(analysis, "SMALL", 0)
    monkeypatch.setattr(recipes, "ENOUGH", 0)
    monkeypatch.setattr(
        recipes,
        "analyse",
        lambda s, f, m, limit: (real(s, f, m, limit) or b"") if limit > 5000 else None,
    )
    (outcome,) = run(content, max_corrections=0.001)
    assert outcome.blob.result == "raw"
    monkeypatch.undo()
    monkeypatch.setattr(room, "Analysis", None)
    (outcome,) = run(content, max_corrections=0.0)
    assert outcome.blob.result == "raw"
    monkeypatch.undo()
    (outcome,) = run(content, max_corrections=1.0)
    assert outcome.blob.result == "gzip"
    assert stores.get(content, digest) == BLOB


def test_zstd_stays_with_its_likely_encoder(content: Content) -> None:
    import zstandard

    plain = zstandard.ZstdCompressor(level=3).compress(LAYER)
    stream_ = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    unsized = stream_.compress(LAYER) + stream_.flush()
    for n, data in enumerate((plain, unsized)):
        digest = stores.keep(content, f"z{n}", data, stores.TAR_ZSTD)
        outcome = next(o for o in run(content) if o.blob.digest == digest)
        assert outcome.blob.result == "raw"
        assert "libzstd" in outcome.blob.encoder
        assert stores.get(content, digest) == data


@pytest.mark.parametrize(
    ("start", "who"),
    [
        # What klauspost/compress 1.18.6 begins with: 12 MB streamed, 1000 and 300,000 bytes at once.
        ("28b52ffd0460020008615400000001540010", "klauspost/compress zstd, fastest"),
        ("28b52ffd0468020010615c00000001540011", "klauspost/compress zstd, default or better"),
        ("28b52ffd0468020010610200106102001061", "klauspost/compress zstd, default or better"),
        ("28b52ffd4400e802431f00612342da2e", "klauspost/compress zstd, small content"),
        ("28b52ffda4e0930400020008615400000001", "libzstd or klauspost/compress"),
        # Debian's zstd of a file at level 9 (as klauspost at once), and Python's zstandard.
        ("28b52ffd8460001bb7004c000008", "libzstd, window of 4096 KiB"),
        ("28b52ffd00604c000008610100fc", "libzstd, window of 4096 KiB"),
        ("28b52ffd04585400001061610100", "libzstd, window of 2048 KiB"),
    ],
)
def test_zstd_encoders_are_told_by_their_frames(start: str, who: str) -> None:
    assert likely_encoder(bytes.fromhex(start)).startswith(who)


@pytest.mark.parametrize("level", [1, 3, 9, 19])
@pytest.mark.parametrize("size", [1000, 300_000, 12_000_000])
def test_libzstd_is_not_taken_for_another(level: int, size: int) -> None:
    """Without a checksum, as a library gives it; with one, a stream of levels 9 and up looks like
    klauspost's, and the report says so."""
    import zstandard

    content = bytes(size)
    for checksum in (False, True):
        machine = zstandard.ZstdCompressor(level=level, write_checksum=checksum)
        stream_ = machine.compressobj()
        for data in (machine.compress(content), stream_.compress(content) + stream_.flush()):
            said = likely_encoder(data[:4096], data[-4096:])
            assert "libzstd" in said or (
                checksum and level >= 9 and f"or zstd -{9 if level == 9 else 17}" in said
            )


def test_gzip_in_gzip_stays(content: Content) -> None:
    data = gzip.compress(BLOB, mtime=0)
    digest = landed(content, data)
    (outcome,) = run(content)
    assert (outcome.blob.result, outcome.blob.reason) == (
        "raw",
        "its content is compressed once more",
    )
    assert len(stores.raws(content.storage.path)) == 1
    assert stores.get(content, digest) == data


# ---- models that are wrong --------------------------------------------------------------------


def test_a_model_that_makes_something_else_is_found_out(
    content: Content, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = landed(content)
    real = recipes.make_span

    def wrong(recipe: recipes.Recipe, number: int, *parts: object) -> bytes:
        out = real(recipe, number, *parts)  # type: ignore[arg-type]
        return flipped(out, 4 * len(out)) if number == 1 else out

    monkeypatch.setattr(recipes, "make_span", wrong)
    (outcome,) = run(content)
    assert outcome.blob.result == "raw"
    assert "does not give it back" in outcome.blob.reason
    assert forms(content, digest) == ("raw",)
    assert stores.get(content, digest) == BLOB
    monkeypatch.undo()
    assert stores.get(content, digest) == BLOB
    # It is on record, so that the same models do not try again.
    assert run(content)[0].blob.reason == outcome.blob.reason
    stores.clean(content)


def test_a_model_that_goes_wrong_behind_the_probe_costs_corrections(content: Content) -> None:
    # Another level behind the first MiB or two: the model of the first is wrong there.
    one = zlib.compressobj(6, zlib.DEFLATED, 31)
    data = one.compress(FILES["dir/words"]) + one.flush()
    two = zlib.compressobj(1, zlib.DEFLATED, 31)
    data += two.compress(stores.words(8, 2_000_000)) + two.flush()
    digest = landed(content, data)
    (outcome,) = run(content, max_corrections=0.9)
    assert outcome.blob.result in ("gzip", "raw")
    if outcome.blob.result == "gzip":
        assert outcome.blob.recipe_bytes > 1000
    assert stores.get(content, digest) == data
    stores.clean(content)


def change(storage: Storage, digest: str, how: Callable[[BlobRow], None]) -> None:
    serial, row = row_of(storage, digest)
    how(row)
    storage.index.update(lambda tx: tx.put(Table.BLOBS, serial_key(serial), row.to_bytes()))


def test_a_recipe_of_a_newer_version_says_so(content: Content, storage: Storage) -> None:
    digest = landed(content)
    run(content)

    def newer(row: BlobRow) -> None:
        assert row.gzip is not None
        row.gzip = replace(row.gzip, encoder="recipe 2")

    change(storage, digest, newer)
    with pytest.raises(UnsupportedError, match="newer layerstore"):
        stores.get(content, digest)


@pytest.mark.parametrize("version", range(1, recipes.VERSION + 1))
def test_recipes_of_every_version_are_read(
    content: Content, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """As one that an older build wrote is: proven, read whole and from the middle."""
    monkeypatch.setattr(recipes, "VERSION", version)
    monkeypatch.setattr(recipes.Recipe.__init__, "__defaults__", (version,))
    digest = landed(content)
    (outcome,) = run(content)
    assert outcome.blob.result == "gzip"
    monkeypatch.undo()
    assert stores.get(content, digest) == BLOB
    with content.open(digest) as blob:
        blob.seek(len(BLOB) // 2)
        assert blob.read(1000) == BLOB[len(BLOB) // 2 : len(BLOB) // 2 + 1000]
    stores.clean(content)


def test_an_unproven_form_never_lets_the_file_go(content: Content, storage: Storage) -> None:
    digest = landed(content)
    serial, _ = row_of(storage, digest)
    assert drop_raw(storage, serial) == 0

    def stop(self: object, form: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room._Work, "_prove", stop)
        with pytest.raises(KeyboardInterrupt):
            run(content)
    _, row = row_of(storage, digest)
    assert row.gzip is not None
    assert not row.gzip.proven
    assert row.forms == ("raw",)
    assert drop_raw(storage, serial) == 0
    assert stores.get(content, digest) == BLOB
    stores.clean(content)
    (outcome,) = run(content)
    assert outcome.blob.result == "gzip"
    stores.clean(content)


# ---- stopping, and others meanwhile -----------------------------------------------------------


def test_a_time_limit_stops_it_and_the_next_goes_on(content: Content) -> None:
    digests = [landed(content, stores.gzipped(LAYER + bytes([n])), f"n{n}") for n in range(3)]
    outcomes, complete = optimize(content, content.raw_blobs(), max_time=0.0001)
    assert not complete
    assert outcomes == []
    assert {forms(content, digest) for digest in digests} == {("raw",)}
    assert len(run(content)) == 3


def test_progress_goes_up_to_its_total_and_can_stop_it(content: Content) -> None:
    digest = landed(content)
    seen: list[tuple[int, int]] = []

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(content, progress=stop)
    assert forms(content, digest) == ("raw",)
    run(content, progress=lambda p: seen.append((p.done, p.total)))  # type: ignore[attr-defined]
    assert seen == sorted(seen)
    assert seen[-1] == (2 * len(BLOB), 2 * len(BLOB))


def test_a_full_disk_leaves_all_as_it_was(content: Content, storage: Storage) -> None:
    digest = landed(content)
    disk, count = storage.disk, 0
    real = disk.writev_at

    def full(*args: object) -> int:
        nonlocal count
        count += 1
        if count > 1:
            raise StoreFullError("no space left")
        return real(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "writev_at", full)
        with pytest.raises(StoreFullError):
            run(content)
    assert forms(content, digest) == ("raw",)
    assert stores.get(content, digest) == BLOB
    (outcome,) = run(content)
    assert outcome.blob.result == "gzip"
    stores.gc(storage)
    stores.clean(content)


def test_readers_gc_and_optimize_side_by_side(where: str) -> None:
    tars = [stores.tar_of({"words": stores.words(n, 700_000)}) for n in range(6)]
    blobs = {stores.sha256(data): data for data in map(stores.gzipped, tars)}
    errors: list[BaseException] = []
    over = threading.Event()

    with stores.opened(where) as content:
        for n, data in enumerate(blobs.values()):
            landed(content, data, f"n{n}")

        def read() -> None:
            source = random.Random(1)
            try:
                with stores.opened(where) as mine:
                    while not over.is_set():
                        digest = source.choice(list(blobs))
                        with mine.open(digest) as blob:
                            if source.random() < 0.5:
                                assert blob.readall() == blobs[digest]
                            else:
                                start = source.randrange(blob.size)
                                blob.seek(start)
                                assert blob.readall() == blobs[digest][start:]
            except BaseException as e:
                errors.append(e)

        def collect() -> None:
            try:
                with stores.opened(where) as mine:
                    while not over.is_set():
                        stores.gc(mine.storage, aggressive=True)
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=f) for f in (read, read, collect)]
        for thread in threads:
            thread.start()
        try:
            outcomes = run(content)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert errors == []
        assert {o.blob.result for o in outcomes} == {"gzip"}
        for digest, data in blobs.items():
            assert stores.get(content, digest) == data
        stores.clean(content)


def test_a_reader_that_was_about_to_open_the_file_takes_the_other_form(content: Content) -> None:
    digest = landed(content)
    with content.open(digest) as whole, content.open(digest) as part, content.open(digest) as begun:
        pieces = begun.chunks()
        start = bytes(next(pieces))
        run(content)
        assert start + b"".join(bytes(p) for p in pieces) == BLOB
        assert whole.readall() == BLOB
        part.seek(100_000)
        assert part.readall() == BLOB[100_000:]


def test_two_that_optimize_the_same(where: str) -> None:
    with stores.opened(where) as one, stores.opened(where) as two:
        landed(one)
        out: list[list[Outcome]] = [[], []]

        def work(n: int, content: Content) -> None:
            out[n] = run(content)

        threads = [threading.Thread(target=work, args=(n, c)) for n, c in enumerate((one, two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(len(o) for o in out) >= 1
        assert forms(one, DIGEST) == ("gzip",)
        assert stores.get(two, DIGEST) == BLOB
        stores.clean(one)


# ---- life and death ---------------------------------------------------------------------------


def test_content_lives_as_long_as_the_layer(where: str) -> None:
    with stores.opened(where) as content:
        digest = landed(content)
        run(content)
    with stores.opened(where) as content:
        stores.gc(content.storage, aggressive=True)
        assert stores.get(content, digest) == BLOB
        stores.untag(content, "layer")
        stores.gc(content.storage, aggressive=True)
        assert stores.packs(where) == []
        stores.clean(content)


def test_an_index_made_anew_has_the_recipes_and_what_is_known(where: str) -> None:
    with stores.opened(where) as content:
        digest = landed(content)
        bad = landed(content, DAMAGED["crc"], "bad")
        run(content)
    shutil.rmtree(os.path.join(where, "index"))
    assert rebuild(where).ok
    with stores.opened(where) as content:
        assert stores.get(content, digest) == BLOB
        assert stores.get(content, bad) == DAMAGED["crc"]
        assert [o.blob.result for o in run(content)] == ["raw"]
        stores.clean(content)


# ---- damage of what is beside the file --------------------------------------------------------


def cut_off(content: Content, *, proven: bool) -> str:
    """A blob with its file and, from an optimizing that was stopped, a gzip form beside it."""
    digest = landed(content)
    with pytest.MonkeyPatch.context() as patch:
        if proven:
            patch.setattr(room, "drop_raw", lambda storage, serial: 0)
            run(content)
        else:
            patch.setattr(
                room._Work, "_prove", lambda self, form: (_ for _ in ()).throw(room.Stopped)
            )
            assert not optimize(content, content.raw_blobs())[1]
    assert forms(content, digest) == (("gzip", "raw") if proven else ("raw",))
    return digest


def spoil(storage: Storage, digest: str, what: str) -> None:
    """One bit of the content's words, or of the recipe, turned over."""
    _, row = row_of(storage, digest)
    assert row.gzip is not None
    with storage.index.read() as snapshot:
        if what == "recipe":
            assert row.gzip.recipe is not None
            runs = storage.chunks.runs_of(row.gzip.recipe)
        else:
            _, inner = row_of(storage, row.gzip.inner)
            assert inner.tar is not None
            runs = storage.chunks.runs_of(inner.tar.content)
        place = next(iter(storage.chunks.places(snapshot, runs)))
    stores.flip(storage.packs.path(place.pack), place.offset + place.head + place.disk // 2)
    storage.chunks.close()


@pytest.mark.parametrize("proven", [False, True], ids=["unproven", "proven"])
@pytest.mark.parametrize("what", ["content", "recipe"])
def test_damage_beside_the_file_is_not_the_blobs(
    content: Content, storage: Storage, what: str, proven: bool
) -> None:
    digest = cut_off(content, proven=proven)
    spoil(storage, digest, what)
    report = stores.full_check(content)
    assert digest not in {d.digest for d in report.damaged}
    assert forms(content, digest) == ("raw",)
    with content.operation() as op:
        assert op.have(digest) is not None
    assert stores.get(content, digest) == BLOB
    # Nothing relies on what is damaged: the next one makes it anew.
    (outcome,) = run(content)
    assert outcome.blob.result == "gzip"
    assert stores.get(content, digest) == BLOB
    stores.gc(storage, aggressive=True)
    stores.clean(content)


@pytest.mark.parametrize("proven", [False, True], ids=["unproven", "proven"])
def test_a_rebuild_keeps_a_file_whose_other_form_is_gone(where: str, proven: bool) -> None:
    with stores.opened(where) as content:
        digest = cut_off(content, proven=proven)
    with stores.opened(where) as content:
        spoil(content.storage, digest, "content")
    shutil.rmtree(os.path.join(where, "index"))
    report = rebuild(where)
    assert digest not in {d.digest for d in report.damaged}
    with stores.opened(where) as content:
        assert stores.get(content, digest) == BLOB
        stores.full_check(content)
        (outcome,) = run(content)
        assert outcome.blob.result == "gzip"
        assert stores.get(content, digest) == BLOB
        stores.gc(content.storage, aggressive=True)
        stores.clean(content)
