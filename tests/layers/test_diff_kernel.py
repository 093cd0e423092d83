"""A layer made of an overlay's upper directory, applied to the lower one, is what the kernel shows.

Random trees, changed at random through a mount of the kernel's overlayfs. Set LAYERSTORE_SWEEP to a
number to try that many (the tests then take about 0.1 s each).
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from changes import Changes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import apply, disk, overlay, tree

from layerstore.layers.diff import diff_upper

EXAMPLES = int(os.environ.get("LAYERSTORE_SWEEP", "260"))
FULL = {
    "plain": "redirect_dir=off,index=off,metacopy=off",
    "redirect": "redirect_dir=on,index=off,metacopy=off",
    "metacopy": "redirect_dir=on,index=off,metacopy=on",
    "index": "redirect_dir=on,index=on,metacopy=off",
    "all": "redirect_dir=on,index=on,metacopy=on",
    "userxattr": "userxattr",
}
NEEDED = {
    "plain": ("opaque", "whiteout", "made anew", "type change", "swapped", "directory replaced"),
    "redirect": ("redirect", "swapped"),
    "metacopy": ("metacopy", "redirect"),
    "index": ("index", "redirect", "written through a link"),
    "all": ("index", "redirect", "metacopy"),
    "userxattr": ("opaque", "whiteout"),
}
ALWAYS = (
    "xattr",
    "capability",
    "sparse",
    "odd name",
    "hard link",
    "fifo",
    "char",
    "symlink",
    "socket",
)
MARKS = {"opaque": "opaque", "redirect": "redirect", "metacopy": "metacopy", "nlink": "index"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with disk(tmp_path_factory.mktemp("kernel")) as where:
        yield where


def count_marks(upper: Path, count: Counter[str]) -> None:
    for folder, folders, files in os.walk(upper):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            found = os.lstat(path)
            if found.st_rdev == 0 and found.st_mode & 0o170000 == 0o020000:
                count["whiteout"] += 1
            for x in os.listxattr(path, follow_symlinks=False):
                mark = x.rpartition(".")[2]
                if ".overlay." in x and mark in MARKS:
                    count[MARKS[mark]] += 1


def index_only(index: Path) -> bool:
    """Whether names below show a file that only the work directory's index has: an upper directory
    does not say it (layers/overlay.py)."""
    if not index.is_dir():
        return False
    found = [os.lstat(p) for p in index.iterdir()]
    found = [s for s in found if not (stat.S_ISCHR(s.st_mode) and s.st_rdev == 0)]
    return any(s.st_nlink == 1 and not stat.S_ISDIR(s.st_mode) for s in found)


def one(place: Path, seed: int, changes: int, options: str, count: Counter[str]) -> None:
    here = place / "one"
    here.mkdir()
    try:
        source = random.Random(seed)
        lower, upper, target = here / "lower", here / "upper", here / "target"
        lowers = [lower]
        lower.mkdir()
        upper.mkdir()
        Changes(lower, source, count).base(18)
        if source.random() < 0.4:
            # A second layer below, whose marks the first one's upper directory has.
            second = here / "second"
            second.mkdir()
            with overlay([lower], second, here / "work2", here / "m2", f"{options},volatile") as m:
                Changes(m, source, count).run(8)
            lowers.insert(0, second)
            count["lower layers with marks"] += 1
        if len(lowers) == 1:
            subprocess.run(["cp", "-a", lower, target], check=True)
        else:
            with overlay(lowers, None, here, here / "m3", _reading(options)) as m:
                subprocess.run(["cp", "-a", m, target], check=True)
        with overlay(lowers, upper, here / "work", here / "m", f"{options},volatile") as m:
            Changes(m, source, count).run(changes)
        # Mounted anew: what the kernel remembers of names that are no links any more is gone.
        with overlay(lowers, upper, here / "work", here / "m", f"{options},volatile") as m:
            want = tree(m)
        count_marks(upper, count)
        if index_only(here / "work" / "index"):
            count["in the index only"] += 1
            return
        with open(here / "layer.tar", "wb") as f:
            diff_upper(None, str(upper), [str(p) for p in lowers], tar=f)
        apply(here / "layer.tar", target)
        got = tree(target)
        assert sorted(got) == sorted(want)
        for name, what in want.items():
            assert (name, got[name]) == (name, what)
        count["trees"] += 1
    finally:
        shutil.rmtree(here)


def _reading(options: str) -> str:
    """Without an upper directory, redirects are followed and nothing else matters."""
    if "userxattr" in options:
        return options
    return options.replace("redirect_dir=on", "redirect_dir=follow").replace(
        "index=on", "index=off"
    )


@pytest.mark.parametrize("kind", FULL)
def test_a_random_upper_directory(place: Path, kind: str) -> None:
    count: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**63), changes=st.integers(10, 40))
    def run(seed: int, changes: int) -> None:
        one(place, seed, changes, FULL[kind], count)

    run()
    print(kind, dict(sorted(count.items())))
    wanted = (*NEEDED[kind], *ALWAYS)
    assert {name: count[name] for name in wanted if count[name] < 100} == {}
