"""Walk, tar writer, comparison, files read before: whatever memory they are given, the same."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerstore.core.diff import SAME, changes
from layerstore.core.pack import END, Packer
from layerstore.core.seen import Collector, Fingerprint, mark
from layerstore.core.walk import GIVEN, WHITEOUT, Batch, Looker, Walk, pack_xattrs, parse_xattrs
from layerstore.errors import LimitError


@contextmanager
def directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    source = random.Random(1)
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("a", "a-b", "a/b", "a/b/c", "z", "a/é"):
        (root / name).mkdir()
    for i in range(60):
        folder = source.choice(("a", "a-b", "a/b", "a/b/c", "z", "a/é"))
        (root / folder / f"f{i}").write_bytes(
            source.randbytes(source.choice((0, 1, 511, 512, 1500)))
        )
    os.symlink("target", root / "z" / "link")
    os.mkfifo(root / "z" / "fifo")
    (root / "z" / ("long" * 40)).write_bytes(b"x")
    return root


def paths(root: Path, **options: object) -> list[bytes]:
    with directory(root) as fd, Walk(fd, str(root), **options) as walk:  # type: ignore[arg-type]
        out: list[bytes] = []
        while (batch := walk.next()) is not None:
            out += [batch.path(i) for i in range(batch.n)]
        return out


def pack(root: Path, room: int, capacity: int = 4096) -> bytes:
    """The tar of a tree, written through a window of `room` bytes."""
    out = bytearray()
    window = memoryview(bytearray(room))
    with directory(root) as fd, Walk(fd, str(root), capacity=capacity) as walk:
        packer = Packer([(fd, str(root))])
        while (batch := walk.next()) is not None:
            at = 0
            while at < batch.n:
                done = packer.feed(batch, at, window)
                out += window[: done.size]
                at += done.used
        packer.close()
    return bytes(out) + bytes(END)


def test_the_order_is_that_of_names_within_a_directory(tree: Path) -> None:
    found = paths(tree)
    assert found == sorted(found, key=lambda p: p.split(b"/"))
    want = {os.fsencode(p.relative_to(tree)) for p in tree.rglob("*")}
    assert set(found) == {b"", *want} - {b"."}


@pytest.mark.parametrize("capacity", [1, 2, 3, 17])
def test_batches_of_any_size_say_the_same(tree: Path, capacity: int) -> None:
    assert paths(tree, capacity=capacity) == paths(tree)
    assert pack(tree, 65536, capacity) == pack(tree, 65536)


@pytest.mark.parametrize("room", [1, 7, 511, 512, 513, 5000])
def test_windows_of_any_size_give_the_same_tar(tree: Path, room: int) -> None:
    data = pack(tree, room)
    assert data == pack(tree, 1 << 20)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            path = tree / member.name
            assert path.lstat().st_mtime_ns // 10**9 == int(member.mtime)
            if member.isreg():
                content = tar.extractfile(member)
                assert content is not None
                assert content.read() == path.read_bytes()


def test_a_directory_that_is_pruned_is_not_entered(tree: Path) -> None:
    with directory(tree) as fd, Walk(fd, "t", capacity=1) as walk:
        found = []
        while (batch := walk.next()) is not None:
            found.append(batch.path(0))
            if batch.path(0) == b"a":
                walk.prune()
    assert b"a" in found
    assert not any(p.startswith(b"a/") for p in found)
    assert b"a-b" in found


def test_a_flat_walk_stays_in_the_directory(tree: Path) -> None:
    assert paths(tree, flat=True) == [b"", b"a", b"a-b", b"z"]


def test_names_that_fill_the_stack(tmp_path: Path) -> None:
    for i in range(9000):
        (tmp_path / f"{i:05}{'n' * 180}").touch()
    found = paths(tmp_path, capacity=64)
    assert len(found) == 9001
    assert found == sorted(found)


def test_a_path_that_is_too_long_says_where(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(330):
        os.mkdir("d" * 200, dir_fd=at)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    with pytest.raises(LimitError, match="too long"):
        paths(tmp_path)
    os.system(f"rm -rf {tmp_path}/d*")


def test_looking_at_single_files(tree: Path) -> None:
    with directory(tree) as fd:
        looker = Looker(fd, "t")
        link = looker.look(b"z/link")
        assert link is not None
        assert link.link == b"target"
        assert looker.look(b"z/none") is None
        assert looker.look(b"z/link/below") is None
        assert sorted(looker.children(b"")) == [b"a", b"a-b", b"z"]
        assert looker.look(b"") is not None


def test_more_pax_records_than_a_reader_takes(tree: Path) -> None:
    batch = Batch()
    with directory(tree) as fd:
        found = Looker(fd, "t").look(b"z/fifo")
        assert found is not None
        xattrs = {b"user.%d" % i: bytes(65536) for i in range(17)}
        assert parse_xattrs(pack_xattrs(xattrs)) == xattrs
        batch.add(found.node, b"z/fifo", b"z/fifo", b"", pack_xattrs(xattrs))
        with pytest.raises(LimitError, match=r"z/fifo.*1 MiB"):
            Packer([(fd, "t")]).feed(batch, 0, memoryview(bytearray(4096)))


def _changes(old: Path, new: Path, capacity: int, content: bool = False) -> list[tuple[bytes, int]]:
    with (
        directory(old) as a,
        directory(new) as b,
        Walk(a, "old", capacity=capacity) as left,
        Walk(b, "new", capacity=capacity + 1) as right,
    ):
        return [
            (batch.path(i), batch.nodes[i].flags)
            for batch in changes(left, right, content=content)
            for i in range(batch.n)
        ]


@pytest.mark.parametrize("capacity", [1, 2, 50])
def test_what_two_trees_differ_in(tree: Path, tmp_path: Path, capacity: int) -> None:
    other = tmp_path / "other"
    assert os.system(f"cp -a {tree} {other}") == 0
    assert _changes(tree, other, capacity) == []
    same = _changes(tree, other, capacity, content=True)
    assert same
    assert all(flags & SAME for _, flags in same)
    os.utime(other / "a" / "b", (1, 1))
    os.unlink(other / "z" / "link")
    assert os.system(f"rm -rf {other}/a-b") == 0
    (other / "new").touch()
    assert _changes(tree, other, capacity) == [
        (b"", 0),
        (b"a", 0),
        (b"a/b", 0),
        (b"a-b", WHITEOUT),
        (b"new", 0),
        (b"z", 0),
        (b"z/link", WHITEOUT),
    ]


KEY = bytes(range(32))


def test_files_are_known_again_until_they_change(tree: Path) -> None:
    collector = Collector(1 << 62, KEY)
    tick = Collector(0, KEY)
    with directory(tree) as fd, Walk(fd, "t", capacity=5) as walk:
        while (batch := walk.next()) is not None:
            collector.add(batch)
            tick.add(batch)
    table = collector.table()
    assert not collector.racy
    assert tick.racy
    assert len(tick.table()) == 0
    (tree / "z" / ("long" * 40)).write_bytes(b"y")
    unknown = []
    with directory(tree) as fd, Walk(fd, "t") as walk:
        while (batch := walk.next()) is not None:
            mark(batch, table, KEY)
            unknown += [
                batch.path(i)
                for i, node in enumerate(batch.rows())
                if node.size and not node.flags & GIVEN
            ]
    assert unknown == [b"z/" + b"long" * 40]


def test_a_fingerprint_knows_no_order_and_every_change(tree: Path) -> None:
    def of(**options: object) -> bytes:
        made = Fingerprint(bytes(32))
        with directory(tree) as fd, Walk(fd, "t", **options) as walk:  # type: ignore[arg-type]
            while (batch := walk.next()) is not None:
                made.add(batch)
        return made.digest()

    before = of()
    assert of(capacity=3) == of(bare=True) == before
    os.chmod(tree / "z" / "fifo", 0o600)
    after = of()
    assert after != before
    os.rename(tree / "z" / "fifo", tree / "z" / "fifo2")
    assert of() not in (before, after)
