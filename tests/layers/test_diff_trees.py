"""The layer of two trees, applied to the old one, is the new one."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from changes import Changes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import apply, disk, tree

from layerstore.layers.diff import diff_trees

EXAMPLES = int(os.environ.get("LAYERSTORE_SWEEP", "200"))
NEEDED = (
    *("xattr", "capability", "sparse", "odd name", "hard link", "fifo", "char", "symlink"),
    *("made anew", "type change", "swapped", "directory replaced", "written through a link"),
    *("directory moved", "file moved", "removed", "moved over", "socket"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with disk(tmp_path_factory.mktemp("trees"), 128) as where:
        yield where


def layer(old: Path, new: Path, **options: bool) -> bytes:
    out = io.BytesIO()
    diff_trees(None, str(old), str(new), tar=out, **options)  # type: ignore[arg-type]
    return out.getvalue()


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def test_random_trees(place: Path) -> None:
    count: Counter[str] = Counter()

    def one(seed: int, changes: int) -> None:
        old, new = place / "old", place / "new"
        try:
            source = random.Random(seed)
            old.mkdir()
            Changes(old, source, count).base(18)
            subprocess.run(["cp", "-a", old, new], check=True)
            assert names(layer(old, new, content=True)) == []
            Changes(new, source, count).run(changes)
            data = layer(old, new)
            (place / "layer.tar").write_bytes(data)
            apply(place / "layer.tar", old)
            assert tree(old) == tree(new)
            # What a layer makes is what it was made for: nothing is left to say.
            assert all(n.split("/")[-1].startswith(".wh.") for n in names(layer(old, new)))
        finally:
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(new, ignore_errors=True)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**63), changes=st.integers(5, 40))
    def run(seed: int, changes: int) -> None:
        one(seed, changes)

    run()
    print(dict(sorted(count.items())))
    assert {name: count[name] for name in NEEDED if count[name] < 100} == {}
