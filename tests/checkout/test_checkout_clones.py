"""Files that an earlier checkout has are cloned: only while they are what they were, whatever somebody
does to them, and only where the filesystem can."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores
from checkout_trees import DIR, LINK, Item, checkout, put_layers, snapshot, tar

from layerstore.core.apply import CLONE_COPY, CLONE_NONE, CLONE_SHARE, clone_way
from layerstore.layers import checkout as rooms
from layerstore.layers import seeds
from layerstore.layers.seeds import Seeds
from layerstore.storage import seeds as rows
from layerstore.storage.index import Table

BASE = [
    Item("d", DIR, mode=0o750, uid=7),
    *(Item(f"d/f{n}", data=os.urandom(10 + 2000 * n), uid=n, mode=0o4755) for n in range(60)),
    Item("d/again", LINK, link="d/f3"),
    Item("module.pyc", data=b"\xcb\x0d\x0d\x0a" + bytes(12) + os.urandom(9000)),
    Item("zeros", data=b"head" + bytes(1 << 20) + b"tail"),
    Item("empty"),
]
UPPER = [
    Item("d/.wh.f1"),
    Item("d/f2", data=os.urandom(7000)),
    Item("new", data=os.urandom(70_000)),
]


@contextlib.contextmanager
def filesystem(folder: Path, *make: str) -> Iterator[Path]:
    image, where = folder / "image", folder / "mounted"
    with image.open("wb") as f:
        f.truncate(400 << 20)
    subprocess.run([*make, image], check=True, capture_output=True)
    where.mkdir()
    subprocess.run(["mount", "-o", "loop", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
        image.unlink()


@pytest.fixture(
    params=[
        pytest.param(["mkfs.btrfs", "-q"], marks=pytest.mark.needs("mkfs.btrfs"), id="btrfs"),
        pytest.param(["mkfs.xfs", "-q"], marks=pytest.mark.needs("mkfs.xfs"), id="xfs"),
    ]
)
def sharing(request, tmp_path):
    """A filesystem whose files can share blocks."""
    with filesystem(tmp_path, *request.param) as where:
        assert fd_way(where) == CLONE_SHARE
        yield where


@pytest.fixture
def content(tmp_path):
    with stores.opened(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def layers(content):
    return put_layers(content, [tar(BASE), tar(UPPER)])


def fd_way(where: Path) -> int:
    fd = os.open(where, os.O_RDONLY)
    try:
        return clone_way(fd)
    finally:
        os.close(fd)


def records(content) -> list[rows.Record]:
    with content.storage.index.read() as found:
        return rows.records(found)


@contextlib.contextmanager
def loads(content) -> Iterator[list[int]]:
    """Bytes of the blocks that are decoded meanwhile, nothing in the cache."""
    chunks = content.storage.chunks
    chunks.close()
    real, seen = chunks.load, []
    chunks.load = lambda place: seen.append(place.raw) or real(place)
    try:
        yield seen
    finally:
        chunks.load = real


def test_a_second_checkout_decodes_no_content_and_shares_the_blocks(content, layers, sharing):
    checkout(content, layers, sharing / "first")
    os.sync()
    free = os.statvfs(sharing).f_bavail
    with loads(content) as seen:
        report = checkout(content, layers, sharing / "second")
    os.sync()
    assert sum(seen) < 100_000  # header streams
    assert report.bytes > 3_000_000
    taken = (free - os.statvfs(sharing).f_bavail) * os.statvfs(sharing).f_frsize
    assert taken < 1_500_000
    assert snapshot(sharing / "second") == snapshot(sharing / "first")
    (sharing / "second/new").write_bytes(b"changed")
    assert (sharing / "first/new").stat().st_size == 70_000


def test_layers_that_another_image_has_are_cloned_and_the_others_written(content, layers, sharing):
    checkout(content, layers, sharing / "first")
    other = put_layers(content, [tar([Item("d/f5", data=b"another"), Item("x", data=b"y" * 99)])])
    stack = [layers[0], *other]
    with loads(content) as seen:
        checkout(content, stack, sharing / "second")
    assert sum(seen) < 1_200_000  # the block with d/f1 and d/f2, which the first did not have
    checkout(content, stack, sharing / "written", reflink=False)
    assert snapshot(sharing / "second") == snapshot(sharing / "written")


def test_unpacked_layers_of_the_store_are_cloned_from(tmp_path, sharing):
    with stores.opened(str(sharing / "store")) as content:
        digests = put_layers(content, [tar(BASE), tar(UPPER)])
        from layerstore.layers import unpacked

        with content.operation() as op:
            unpacked.ensure(content, op, digests, [None, None])
        assert {Path(r.path).parent for r in records(content)} == {sharing / "store/unpacked"}
        with loads(content) as seen:
            checkout(content, digests, sharing / "out")
        assert sum(seen) < 100_000
        checkout(content, digests, tmp_path / "out")
        assert snapshot(sharing / "out") == snapshot(tmp_path / "out")


def spoil(first: Path) -> None:
    """All that somebody may do to files of theirs, and hide as well as they can."""
    for n, what in enumerate(
        ("content", "append", "replace", "symlink", "fifo", "directory", "missing", "mmap")
    ):
        path = first / f"d/f{10 + n}"
        was = path.stat()
        other = os.urandom(was.st_size)
        if what == "content":
            path.write_bytes(other)
        elif what == "append":
            with path.open("ab") as f:
                f.write(b"x")
            os.truncate(path, was.st_size)
        elif what == "mmap":
            import mmap

            with path.open("r+b") as f, mmap.mmap(f.fileno(), 0) as view:
                view[:] = other
        else:
            path.unlink()
            if what == "replace":
                path.write_bytes(other)
            elif what == "symlink":
                path.symlink_to("f40")
            elif what == "fifo":
                os.mkfifo(path)
            elif what == "directory":
                path.mkdir()
        if path.is_file() and not path.is_symlink():
            os.chmod(path, was.st_mode & 0o7777)
            os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def test_what_was_changed_since_is_written_anew(content, layers, sharing):
    checkout(content, layers, sharing / "first")
    before = snapshot(sharing / "first")
    spoil(sharing / "first")
    with loads(content) as seen:
        checkout(content, layers, sharing / "second")
    assert sum(seen) > 100_000
    assert snapshot(sharing / "second") == before


def test_a_directory_that_became_a_symlink_is_not_followed(content, layers, sharing):
    checkout(content, layers, sharing / "first")
    before = snapshot(sharing / "first")
    os.rename(sharing / "first/d", sharing / "elsewhere")
    os.symlink(sharing / "elsewhere", sharing / "first/d")
    checkout(content, layers, sharing / "second")
    assert snapshot(sharing / "second") == before
    # The root itself may not be another one, either.
    os.rename(sharing / "second", sharing / "moved")
    os.mkdir(sharing / "second")
    checkout(content, layers, sharing / "third")
    assert snapshot(sharing / "third") == before


def test_what_changes_while_it_is_cloned_is_written_anew(content, layers, sharing):
    checkout(content, layers, sharing / "first")
    before = snapshot(sharing / "first")
    stop = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        while not stop.is_set():
            for n in range(60):
                path = sharing / f"first/d/f{n}"
                with contextlib.suppress(FileNotFoundError):
                    was = path.stat()
                    with path.open("r+b") as f:
                        f.write(b"evil bytes")
                    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
                    changes += 1

    for _ in range(6):
        stop.clear()
        thread = threading.Thread(target=change)
        thread.start()
        try:
            checkout(content, layers, sharing / "second")
        finally:
            stop.set()
            thread.join()
        assert snapshot(sharing / "second") == before
        # The next one is cloned from a sound checkout again, which then becomes the changed one.
        shutil.rmtree(sharing / "first")
        os.rename(sharing / "second", sharing / "first")
        checkout(content, layers, sharing / "again")
        shutil.rmtree(sharing / "first")
        checkout(content, layers, sharing / "first")
        shutil.rmtree(sharing / "again")
    assert changes > 100


def test_a_server_that_copies_gives_the_same(content, layers, tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "clone_way", lambda fd: CLONE_COPY)
    checkout(content, layers, tmp_path / "first")
    with loads(content) as seen:
        checkout(content, layers, tmp_path / "second")
    assert sum(seen) < 100_000
    assert snapshot(tmp_path / "second") == snapshot(tmp_path / "first")


def test_it_can_be_switched_off(content, layers, sharing):
    checkout(content, layers, sharing / "first", reflink=False)
    assert records(content) == []
    checkout(content, layers, sharing / "second")
    assert len(records(content)) == 1
    with loads(content) as seen:
        checkout(content, layers, sharing / "third", reflink=False)
    assert sum(seen) > 3_000_000


@pytest.mark.needs("mkfs.xfs")
def test_what_is_not_older_than_the_clock_is_not_recorded(content, layers, tmp_path, monkeypatch):
    """A change in the same tick could not be told from what was written."""
    with filesystem(tmp_path, "mkfs.xfs", "-q") as where:
        with monkeypatch.context() as still:
            still.setattr(Seeds, "_stamp", lambda seeds: 1_000_000_000)
            checkout(content, layers, where / "first")
        assert records(content) == []
        checkout(content, layers, where / "second")
        assert len(records(content)) == 1


def test_a_filesystem_that_cannot_gets_no_record(content, layers, tmp_path):
    where = tmp_path / "tmpfs"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", where], check=True)
    try:
        assert fd_way(where) == CLONE_NONE
        checkout(content, layers, where / "first")
        assert records(content) == []
    finally:
        subprocess.run(["umount", where], check=True)


def test_records_are_few_small_and_go_with_what_they_are_about(
    content, layers, sharing, monkeypatch
):
    monkeypatch.setattr(rows, "RECORDS", 3)
    for n in range(5):
        checkout(content, layers, sharing / f"out{n}")
    assert [Path(r.path).name for r in records(content)] == ["out4", "out3", "out2"]
    shutil.rmtree(sharing / "out4")
    checkout(content, layers, sharing / "out4")
    assert [Path(r.path).name for r in records(content)] == ["out4", "out3", "out2"]

    shutil.rmtree(sharing / "out3")
    monkeypatch.setattr(rows, "this_boot", lambda: "another")
    assert rows.prune(content.storage) == 3
    monkeypatch.undo()
    checkout(content, layers, sharing / "last")
    assert rows.prune(content.storage) == 0
    monkeypatch.setattr(rows, "RECORD_MAX", 400)
    checkout(content, layers, sharing / "small")
    assert records(content)[0].files == 10
    monkeypatch.setattr(rows, "ALL_MAX", 800)
    checkout(content, layers, sharing / "smaller")
    assert len(records(content)) == 2
    assert rows.prune(content.storage) == 0
    with content.operation() as op:
        assert op.have(layers[0])
    shutil.rmtree(sharing / "small")
    assert rows.prune(content.storage) == 1


def test_a_record_that_lies_harms_nothing(content, layers, sharing):
    """Rows that name wrong inodes, offsets or a wrong directory, or whose files are lost."""
    checkout(content, layers, sharing / "first")
    before = snapshot(sharing / "first")
    (record,) = records(content)
    with content.storage.index.read() as found:
        files = rows.files_of(found, record)
    key = b"r" + record.number.to_bytes(8, "big")
    value = {"path": str(sharing), "dev": record.dev, "ino": sharing.stat().st_ino,
             "boot": record.boot, "layers": record.layers}  # fmt: skip
    for path, ino, table in (
        (str(sharing), sharing.stat().st_ino, files),
        (record.path, record.ino, files[:41]),
        (record.path, record.ino, files[8:] + files[:8]),
        (record.path, record.ino, os.urandom(len(files))),
        (record.path, record.ino, None),
    ):

        def work(tx, path=path, ino=ino, table=table):  # type: ignore[no-untyped-def]
            tx.put(Table.SEEDS, key, json.dumps({**value, "path": path, "ino": ino}).encode())
            tx.delete(Table.SEEDS, b"t" + key[1:])
            if table is not None:
                tx.put(Table.SEEDS, b"t" + key[1:], table)

        content.storage.index.seed(work)
        report = rooms.checkout(content, [rooms.Layer(d) for d in layers], str(sharing / "second"))
        assert report.notes == ()
        assert snapshot(sharing / "second") == before
        shutil.rmtree(sharing / "second")
        for other in records(content):
            if other.number != record.number:
                content.storage.index.seed(lambda tx, one=other: rows._drop(tx, one))
