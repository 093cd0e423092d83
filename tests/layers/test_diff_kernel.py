"""A layer made of an overlay's upper directory, applied to the lower one, is what the kernel shows.

Random trees, changed at random through a mount of the kernel's overlayfs: many side by side in one
mount. Set LAYERSTORE_SWEEP to a number to try about that many for each kind of mount.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from grove import Grove, Plan, compare, plans
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import apply, disk, overlay, tree

from layerstore.layers.diff import diff_upper

SEQUENCES = int(os.environ.get("LAYERSTORE_SWEEP", "320"))
AT_ONCE = 40
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


def index_only(index: Path, lowers: Sequence[Path]) -> set[str]:
    """The trees in which names below show a file that only the work directory's index has: an upper
    directory does not say it (layers/overlay.py). Its origin says which inode it was below."""
    if not index.is_dir():
        return set()
    inodes = set()
    for entry in index.iterdir():
        found = os.lstat(entry)
        whiteout = stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
        if found.st_nlink == 1 and not stat.S_ISDIR(found.st_mode) and not whiteout:
            # ext4's handle, behind struct ovl_fb: inode and generation.
            origin = os.getxattr(entry, "trusted.overlay.origin", follow_symlinks=False)
            inodes.add(int.from_bytes(origin[21:25], "little"))
    out = set()
    for lower in lowers:
        for folder, _, files in os.walk(lower):
            for name in files:
                if os.lstat(os.path.join(folder, name)).st_ino in inodes:
                    out.add(os.path.relpath(folder, lower).split("/")[0])
    assert bool(out) == bool(inodes)
    return out


def one(place: Path, plan: Plan, marked: int, options: str, count: Counter[str]) -> None:
    """`marked`: how many of the lower layers are upper directories of earlier mounts."""
    here = place / "one"
    here.mkdir()
    try:
        grove = Grove(plan, count)
        lower, upper, target = here / "lower", here / "upper", here / "target"
        lowers = [lower]
        lower.mkdir()
        upper.mkdir()
        grove.grow(lower)
        for i in range(marked):
            above = here / f"marked{i}"
            above.mkdir()
            work = here / f"work{i}"
            with overlay(lowers, above, work, here / f"m{i}", f"{options},volatile") as m:
                grove.change(m, 8)
            lowers.insert(0, above)
            count["lower layers with marks"] += len(plan)
        if len(lowers) == 1:
            subprocess.run(["cp", "-a", lower, target], check=True)
        else:
            with overlay(lowers, None, here, here / "merged", _reading(options)) as m:
                subprocess.run(["cp", "-a", m, target], check=True)
        with overlay(lowers, upper, here / "work", here / "m", f"{options},volatile") as m:
            grove.change(m)
        # Mounted anew: what the kernel remembers of names that are no links any more is gone.
        with overlay(lowers, upper, here / "work", here / "m", f"{options},volatile") as m:
            want = tree(m)
        count_marks(upper, count)
        hidden = index_only(here / "work" / "index", lowers)
        count["in the index only"] += len(hidden)
        with open(here / "layer.tar", "wb") as f:
            diff_upper(None, str(upper), [str(p) for p in lowers], tar=f)
        apply(here / "layer.tar", target)
        count["trees"] += compare(tree(target), want, without=hidden)
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
        max_examples=max(1, SEQUENCES // AT_ONCE),
        deadline=None,
        database=None,
        derandomize="LAYERSTORE_SWEEP" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(plan=plans(AT_ONCE), marked=st.integers(0, 3))
    def run(plan: Plan, marked: int) -> None:
        one(place, plan, marked, FULL[kind], count)

    run()
    print(kind, dict(sorted(count.items())))
    wanted = (*NEEDED[kind], *ALWAYS)
    assert {name: count[name] for name in wanted if count[name] < 100} == {}


@pytest.mark.parametrize("kind", ["redirect", "metacopy", "all"])
def test_a_redirect_leads_out_of_an_opaque_directory(place: Path, kind: str) -> None:
    """A directory moved into one made anew, in a lower layer: what the upper layer moved out of
    it lies below still, though the new directory hides all that was below its own name."""
    here = place / "one"
    here.mkdir()
    lower, above, upper, target = (here / n for n in ("lower", "above", "upper", "target"))
    try:
        for made in (lower, above, upper, lower / "moved", lower / "moved/inner", lower / "new"):
            made.mkdir()
        for name in ("moved/file", "moved/inner/file", "new/hidden"):
            (lower / name).write_bytes(name.encode())
        options = f"{FULL[kind]},volatile"
        with overlay([lower], above, here / "work0", here / "m0", options) as m:
            shutil.rmtree(m / "new")
            (m / "new").mkdir()
            (m / "moved").rename(m / "new/moved")
        lowers = [above, lower]
        with overlay(lowers, None, here, here / "merged", _reading(options)) as m:
            subprocess.run(["cp", "-a", m, target], check=True)
        with overlay(lowers, upper, here / "work", here / "m", options) as m:
            (m / "new/moved/file").rename(m / "file")
            (m / "new/moved/inner").rename(m / "inner")
        with overlay(lowers, upper, here / "work", here / "m", options) as m:
            want = tree(m)
        count: Counter[str] = Counter()
        for marked in (above, upper):
            count_marks(marked, count)
        assert count["opaque"] > 0
        assert count["redirect"] >= 2
        assert (count["metacopy"] > 0) == ("metacopy=on" in options)
        with open(here / "layer.tar", "wb") as f:
            diff_upper(None, str(upper), [str(p) for p in lowers], tar=f)
        apply(here / "layer.tar", target)
        assert sorted(want) == [
            *(".", "./file", "./inner", "./inner/file", "./new", "./new/moved"),
        ]
        compare(tree(target), want)
    finally:
        shutil.rmtree(here)
