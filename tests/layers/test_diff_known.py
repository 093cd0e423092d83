"""Content that lies below, or was compared, is not read again either; and a change within a tick of the
clock is seen, whichever directory the file lies in."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_diff import age, bytes_of, fill, opened_by, two
from trees import disk, overlay

import layerstore
from layerstore.layers import filecache
from layerstore.layers.diff import diff_trees, diff_upper
from layerstore.layers.filecache import FileCache

OPTIONS = "redirect_dir=on,index=off,metacopy=on"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with disk(tmp_path_factory.mktemp("known")) as where:
        yield where


@pytest.fixture
def place(volume: Path) -> Iterator[Path]:
    made = volume / "one"
    made.mkdir()
    yield made
    subprocess.run(["rm", "-rf", made], check=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[layerstore.Store]:
    with layerstore.open(tmp_path / "store") as made:
        yield made


def changed(place: Path) -> tuple[Path, Path]:
    """An upper directory whose content lies below: a directory that was moved, files of which only the
    attributes changed."""
    lower, upper = place / "lower", place / "upper"
    lower.mkdir()
    upper.mkdir()
    fill(lower)
    with overlay([lower], upper, place / "work", place / "m", OPTIONS) as m:
        os.rename(m / "d1", m / "moved")
        os.chmod(m / "big", 0o600)
        os.chmod(m / "d2" / "f2", 0o640)
    assert b"trusted.overlay.metacopy" in os.fsencode(",".join(os.listxattr(upper / "big")))
    return lower, upper


def plain(lower: Path, upper: Path) -> bytes:
    out = io.BytesIO()
    diff_upper(None, str(upper), [str(lower)], tar=out)
    return out.getvalue()


def test_what_lies_below_is_not_read_again(place: Path, store: layerstore.Store) -> None:
    lower, upper = changed(place)
    age(place)
    want = plain(lower, upper)
    verb = ("diff", "--upper", str(upper), "--lower", str(lower))
    digest, found = opened_by(place, store, *verb)
    assert {"big", "f5"} <= found
    assert bytes_of(store, store.diff_upper(upper, [lower])) == want
    assert opened_by(place, store, *verb) == (digest, set())
    (lower / "d1" / "f5").write_bytes(b"changed below")
    age(place)
    digest, found = opened_by(place, store, *verb)
    assert found == {"f5"}
    again = store.diff_upper(upper, [lower], cache=False)
    assert again.digest == digest
    assert bytes_of(store, again) == plain(lower, upper) != want


def test_a_change_below_within_a_tick_is_seen(place: Path, store: layerstore.Store) -> None:
    lower, upper = changed(place)
    at = lower / "d1" / "f5"
    for i in range(30):
        at.write_bytes(b"%05d" % i)
        info = store.diff_upper(upper, [lower])
        assert bytes_of(store, info) == plain(lower, upper)


def compared(old: Path, new: Path) -> bytes:
    out = io.BytesIO()
    diff_trees(None, str(old), str(new), content=True, tar=out)
    return out.getvalue()


def test_what_was_compared_is_not_read_again(place: Path, store: layerstore.Store) -> None:
    old, new = two(place)
    age(place)
    verb = ("diff", "--content", str(old), str(new))
    digest, found = opened_by(place, store, *verb)
    assert {"big", "f5"} <= found
    assert opened_by(place, store, *verb) == (digest, set())
    for tree in (old, new):  # either side
        was = os.lstat(tree / "d1" / "f5")
        (tree / "d1" / "f5").write_bytes(os.urandom(was.st_size))
        os.utime(tree / "d1" / "f5", ns=(was.st_atime_ns, was.st_mtime_ns))
        age(place)
        digest, found = opened_by(place, store, *verb)
        assert found == {"f5"}
        info = store.diff_trees(old, new, content=True, cache=False)
        assert info.digest == digest
        assert bytes_of(store, info) == compared(old, new)


def test_a_change_on_either_side_within_a_tick_is_seen(
    place: Path, store: layerstore.Store
) -> None:
    old, new = two(place)
    for i in range(40):
        # The same size and time of modification: content alone tells.
        for tree in (old, new):
            (tree / "f").write_bytes(b"%05d" % (i // (2 if tree == old else 3)))
            os.utime(tree / "f", ns=(1, 1))
        info = store.diff_trees(old, new, content=True)
        assert bytes_of(store, info) == compared(old, new)


@pytest.mark.parametrize("tick", [10**13, None], ids=["too new", "old enough"])
def test_what_changed_within_the_guard_is_not_trusted(
    place: Path, store: layerstore.Store, monkeypatch: pytest.MonkeyPatch, tick: int | None
) -> None:
    """A machine is rarely so fast that a change comes within one tick: with a guard of hours all has
    changed too late to be known, in the upper directory, below it, and when two trees are compared."""
    lower, upper = changed(place)
    (upper / "own").write_bytes(b"own")
    old, new = two(place)
    age(place)
    assert filecache.TICK >= 10_000_000  # a tick of the slowest kernel
    if tick is not None:
        monkeypatch.setattr(filecache, "TICK", tick)
    marked: list[int] = []
    whole: list[object] = []
    pairs: list[bool | None] = []
    mark, same, compared = filecache.mark, FileCache.same, FileCache.compared

    def noted(into: list, real: Callable) -> Callable:
        def call(*words: object) -> object:
            into.append(real(*words))
            return into[-1]

        return call

    monkeypatch.setattr(filecache, "mark", noted(marked, mark))
    monkeypatch.setattr(FileCache, "same", noted(whole, same))
    monkeypatch.setattr(FileCache, "compared", noted(pairs, compared))
    for _ in range(2):
        store.diff_upper(upper, [lower])
        store.diff_upper(lower)
        store.diff_trees(old, new, content=True)
    if tick is None:
        assert sum(marked) > 10  # a moved directory, files without content, the one that differs
        assert whole[-1] is not None
        assert {True, False} <= set(pairs[len(pairs) // 2 :])
        return
    assert sum(marked) == 0
    assert set(whole) == {None}
    assert set(pairs) == {None}
