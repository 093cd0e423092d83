"""The tree of a stack of layers is the one that the layers mean: random stacks against a plain model,
and against the kernel's overlayfs over the same layers unpacked one by one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores
from checkout_trees import DIR, SYMLINK, Item, checkout, put_layers, snapshot, tar, unpack_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_stacks import Maker

from layerstore.core.tree import LayerTree
from layerstore.layers.tree import Tree

EXAMPLES = int(os.environ.get("LAYERSTORE_STACKS", "300"))
COUNTS: Counter[str] = Counter()
FEATURES = (
    "whiteout", "whiteout at the end", "opaque", "opaque root", "link in a layer",
    "link across layers", "file to directory", "directory to file", "directory again", "duplicate",
    "implicit directory", "through a symlink", "symlink", "device", "fifo", "sparse", "pyc",
    "empty file", "set-id", "fraction of a second", "odd name", "type change", "xattr",
    "xattr of bsdtar", "gzip",
)  # fmt: skip


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with stores.opened(str(tmp_path_factory.mktemp("stacks") / "store")) as opened:
        yield opened


@contextlib.contextmanager
def overlay(layers: list[Path], folder: Path) -> Iterator[Path]:
    """The kernel's overlay of directories, lowest first."""
    empty, merged = folder / "empty", folder / "merged"
    empty.mkdir()
    merged.mkdir()
    lower = ":".join(str(p.relative_to(folder)) for p in [*reversed(layers), empty])
    options = f"lowerdir={lower}"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, "merged"], cwd=folder, check=True
    )
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(seed=st.integers(0, 1 << 60), depth=st.integers(1, 5))
def test_random_stacks_are_the_tree_that_they_mean(content, tmp_path_factory, seed, depth):
    folder = tmp_path_factory.mktemp("tree")
    maker = Maker(seed)
    digests = []
    for n in range(depth):
        data = tar(maker.layer())
        if (seed + n) % 4 == 0:
            digests.append(stores.put(content, stores.gzipped(data), stores.TAR_GZIP))
            COUNTS["gzip"] += 1
        else:
            digests += put_layers(content, [data])
    COUNTS.update(maker.model.counts)
    expected = maker.model.expected()

    report = checkout(content, digests, folder / "out", openat2=seed % 2 == 0)
    found = snapshot(folder / "out")
    assert found == expected
    assert report.entries == len(found)
    assert report.notes == ()

    uppers = unpack_all(content, digests, folder, together=seed % 3 != 0)
    with overlay(uppers, folder) as merged:
        assert snapshot(merged) == expected
    subprocess.run(["rm", "-rf", folder], check=True)


def test_every_feature_came_up_a_hundred_times():
    print(dict(sorted(COUNTS.items())))
    few = {name: COUNTS[name] for name in FEATURES if COUNTS[name] < 100}
    assert few == {}


@pytest.mark.parametrize("first", ["directory", "whiteout"])
def test_a_directory_in_the_place_of_a_link_hides_nothing_behind_it(content, tmp_path, first):
    """`lib` was a link to usr/lib and is now a directory, opaque as in overlayfs: usr/lib stays."""
    below = [Item("usr/lib/a", data=b"a"), Item("lib", SYMLINK, link="usr/lib")]
    marks = [Item("lib/.wh..wh..opq"), Item("lib/.wh.a")]
    own = [Item("lib", DIR, mode=0o711), Item("lib/own", data=b"o")]
    above = [*own, *marks] if first == "directory" else [*marks, *own]
    digests = put_layers(content, [tar(below), tar(above)])
    checkout(content, digests, tmp_path / "out")
    found = snapshot(tmp_path / "out")
    assert set(found) == {"", "usr", "usr/lib", "usr/lib/a", "lib", "lib/own"}
    assert found["lib"].mode == 0o711
    assert _listed(content, digests) == set(found) - {"", "usr", "usr/lib"}
    # Without a directory of its own the layer means what is behind the link.
    digests = put_layers(content, [tar(below), tar(marks[1:])])
    checkout(content, digests, tmp_path / "through")
    assert set(snapshot(tmp_path / "through")) == {"", "usr", "usr/lib", "lib"}
    assert _listed(content, digests) == {"lib"}


def _listed(content, digests):
    """What a listing says is there; directories that no layer names are not."""
    return {found.entry.path for found in Tree(content, digests).entries()}


def test_an_opaque_root_costs_what_came_since_the_last_one():
    """Many layers that empty the root over many names: names are walked over once, not each time."""

    def seconds(names: int) -> float:
        tree = LayerTree()
        try:
            tree.add_tar([tar(Item(f"d{n}", DIR) for n in range(names))])
            again = tar([Item(".wh..wh..opq"), Item("x", data=b"x")])
            start = time.process_time()
            for _ in range(3000):
                tree.add_tar([again])
            assert tree.plan().entries == 2
            return time.process_time() - start
        finally:
            tree.close()

    few = min(seconds(10) for _ in range(3))
    assert seconds(30_000) < 3 * few
