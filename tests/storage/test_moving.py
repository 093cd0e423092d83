"""Blocks that move, reads that fail once, and bytes that only look like a block: who shares and who
reads goes on, and nothing is kept twice or given up for it."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
import stores

from layerstore.core.hashing import blake3
from layerstore.errors import CorruptError
from layerstore.storage import blocks, gc
from layerstore.storage.index import Table
from layerstore.storage.journal import Journal, Position
from layerstore.storage.packs import HEADER_SIZE, Packs
from layerstore.storage.rows import PackRow

MIB = 1 << 20


def piece(data: bytes) -> list[tuple[int, int, int, bytes]]:
    return [(0, len(data), 1, blake3(data))]


def test_what_compaction_moves_is_still_known(where: str) -> None:
    """A long import has looked up where content lies; a collector moves it; what the import brings of
    it afterwards is found at its new place, and not stored again."""
    files = {f"f{i}": stores.noise(i, 60_000) for i in range(48)}
    kept = {n: d for i, (n, d) in enumerate(files.items()) if i % 8 == 0}
    with stores.opened(where) as content, stores.opened(where) as importer:
        stores.keep(content, "all", stores.tar_of(files), stores.TAR)
        stores.keep(content, "kept", stores.tar_of(kept), stores.TAR)
        stores.untag(content, "all")
        # Deleted, and not copied out yet.
        gc.collect(content.storage, max_repack_size=0)
        with importer.storage.operation() as op:
            known = [op.sink.add(memoryview(d), piece(d)) for d in kept.values()]
            number = known[0][0][0]
            with importer.storage.index.read() as snapshot:
                before = importer.storage.chunks.place(snapshot, number)
            gc.collect(content.storage, aggressive=True)
            with importer.storage.index.read() as snapshot:
                after = importer.storage.chunks.place(snapshot, number)
            assert before is not None
            assert after is not None
            assert (before.pack, before.offset) != (after.pack, after.offset)
            # An import that is long enough has thrown these away by now.
            op.sink._known._tables.clear()
            assert [op.sink.add(memoryview(d), piece(d)) for d in kept.values()] == known


def test_a_read_that_failed_is_tried_again(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that passes (no descriptor was free) does not stick to the block for as long as the
    handle lives."""
    data = stores.words(1, 300_000)
    with stores.opened(where) as content:
        digest = stores.keep(content, "a", data)
    with stores.opened(where) as content:
        with monkeypatch.context() as patch:

            def none_free(*_: object) -> bytes:
                raise OSError(errno.EMFILE, "Too many open files")

            patch.setattr(Packs, "read", none_free)
            with pytest.raises(OSError, match="Too many"):
                stores.get(content, digest)
        assert stores.get(content, digest) == data


def _forged(size: int) -> bytes:
    """Incompressible content that ends in what looks like a block's header, of the longest kind."""
    head = struct.pack("<4sBBHIIII", b"LSB1", 0, 0, 0, 4096, 4096, MIB, MIB)
    assert blocks.header_size(head) is not None
    return stores.noise(1, size - 200) + head + stores.noise(2, 200 - len(head))


def test_content_that_looks_like_a_header_stops_no_writer(fast_path: Path) -> None:
    """It lies at the edge of a hole, near the end of a pack that is to be sealed; the scan for the
    table of contents must pass over it, not read behind the end."""
    path = str(fast_path / "s")
    with stores.opened(path, pack_size=MIB) as content:
        stores.keep(content, "kept", stores.noise(9, 100_000))
        # Two that die: the header of the second one goes with the hole, so that its end is searched.
        stores.keep(content, "dead", stores.noise(8, 100_000))
        stores.keep(content, "forged", _forged(700_000))
        stores.keep(content, "behind", b"small" * 1000)
        stores.untag(content, "dead", "forged")
        stores.gc(content.storage)
        (pack,) = stores.packs(path)
        with open(pack, "rb") as f:
            left = f.read()
        assert left.count(b"LSB1") > 2, "the forged header is gone with the hole"
        assert left[HEADER_SIZE : HEADER_SIZE + 4] == b"LSB1"
    with stores.opened(path, pack_size=MIB) as content:
        with content.operation() as op:
            # The first still fits into the pack, the second does not: it is sealed.
            op.put(stores.noise(3, 5_000))
            op.put(stores.noise(4, 900_000))
        assert len(stores.packs(path)) == 2
        stores.clean(content)
        with content.storage.index.read() as snapshot:
            sealed = [PackRow.parse(value).sealed for _, value in snapshot.items(Table.PACKS)]
        assert sealed == [True, False]


@pytest.mark.parametrize("cut", [False, True])
def test_opening_while_others_commit_and_cut(
    where: str, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """Who opens sees the index's position, and then a metadata pack that others have gone on with, or
    have cut: that is no old index. (An old one is refused: test_check_damage.py.)"""
    turns: list[int] = []
    beyond = Journal.beyond

    def late(self: Journal, at: Position) -> int:
        turns.append(at.sequence)
        if len(turns) == 1:
            for n in range(3):
                stores.keep(content, f"n{n}", b"%d" % n)
            if cut:
                gc.checkpoint(content.storage)
        return beyond(self, at)

    with stores.opened(where) as content:
        stores.keep(content, "a", b"1")
        monkeypatch.setattr(Journal, "beyond", late)
        with stores.opened(where) as other, other.operation() as op:
            assert op.ref("n2") is not None
        assert len(turns) == 2


def test_a_reader_with_an_error_of_the_disk_says_which(where: str) -> None:
    data = stores.noise(1, 60_000)
    with stores.opened(where) as content:
        digest = stores.keep(content, "a", data)
    (pack,) = stores.packs(where)
    os.truncate(pack, 2000)
    with stores.opened(where) as content, pytest.raises(CorruptError) as caught:
        stores.get(content, digest)
    assert caught.value.where == pack
