"""The same changes through other builders give the same tree, and other tools make it of our layers.

Witnesses: `umoci repack`, `buildah commit`; `umoci unpack`, podman, GNU tar and bsdtar apply layers.
What a witness is known not to keep is named beside it, and nothing else is let pass.

LAYERSTORE_SWEEP sets how many sequences of changes each test tries.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stores
from grove import Grove, clean_environment, compare, plan, same_but
from test_diff_kernel import ALWAYS, FULL, NEEDED, count_marks
from trees import apply, disk, overlay, remove, tree

from layerstore.layers import checkout
from layerstore.layers.diff import diff_trees, diff_upper

SEQUENCES = int(os.environ.get("LAYERSTORE_SWEEP", "240"))
AT_ONCE = 240
KINDS = ("plain", "metacopy")
"""Mounts without redirect_dir and metacopy, and with both."""
COMMON = (
    *ALWAYS,
    *("opaque", "whiteout", "made anew", "type change", "swapped", "directory replaced"),
    *("written through a link", "file moved", "removed", "moved over", "dir", "block"),
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path, 2048) as where:
        yield where


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def batches() -> Iterator[tuple[int, int]]:
    """A seed, and how many trees: new ones at every run, as hypothesis would."""
    seed = random.SystemRandom().getrandbits(63)
    print("seed", seed)
    source = random.Random(seed)
    for begin in range(0, SEQUENCES, AT_ONCE):
        yield source.getrandbits(63), min(AT_ONCE, SEQUENCES - begin)


def often_enough(count: Counter[str], *more: str) -> None:
    print(dict(sorted(count.items())))
    assert {name: count[name] for name in (*COMMON, *more) if count[name] < 100} == {}


class Images:
    """An image layout, by umoci."""

    def __init__(self, place: Path) -> None:
        self.layout = place / "layout"
        self.env = clean_environment(place)
        run("umoci", "init", "--layout", self.layout)

    def make(self, tag: str, *layers: Path) -> str:
        image = f"{self.layout}:{tag}"
        run("umoci", "new", "--image", image)
        for layer in layers:
            run("umoci", "raw", "add-layer", "--image", image, layer, env=self.env)
        return image

    def unpack(self, image: str, bundle: Path) -> Path:
        run("umoci", "unpack", "--keep-dirlinks=false", "--image", image, bundle, env=self.env)
        return bundle / "rootfs"

    def last_layer(self, tag: str, target: Path) -> Path:
        """The topmost layer of an image, as a tar."""

        def blob(digest: str) -> Path:
            return Path(self.layout, "blobs", *digest.split(":"))

        index = json.loads((self.layout / "index.json").read_bytes())
        name = "org.opencontainers.image.ref.name"
        found = [x["digest"] for x in index["manifests"] if x["annotations"][name] == tag]
        manifest = json.loads(blob(found[-1]).read_bytes())
        with open(blob(manifest["layers"][-1]["digest"]), "rb") as packed, open(target, "wb") as f:
            subprocess.run(["gzip", "-dc"], stdin=packed, stdout=f, check=True)
        return target


def layer_of(target: Path, old: Path, new: Path) -> Path:
    with open(target, "wb") as f:
        diff_trees(None, str(old), str(new), tar=f)
    return target


# What the witnesses do not keep.


def _no_empty(one: dict[str, Any]) -> dict[str, bytes]:
    """Go's tar takes an empty pax record for none, as POSIX has it."""
    return {name: value for name, value in one["xattrs"].items() if value}


def _by_name(one: dict[str, Any]) -> str:
    """Who compares trees writes the names that changed: the other names of such a file become files of
    their own."""
    return ""


def _no_directory_times(one: dict[str, Any]) -> int:
    """umoci writes no directory for the sake of what changed in it, so who applies it changes times."""
    return 0 if one["type"] == stat.S_IFDIR else _seconds(one)


def _no_directory_time(one: dict[str, Any]) -> int:
    """bsdtar, and tar at times, leave those of a directory that is there already."""
    return 0 if one["type"] == stat.S_IFDIR else int(one["mtime"])


def _no_directory_group(one: dict[str, Any]) -> int:
    """tar at times leaves the setgid bit of a directory that is there already."""
    return int(one["mode"]) & ~(stat.S_ISGID if one["type"] == stat.S_IFDIR else 0)


def _seconds(one: dict[str, Any]) -> int:
    """Go's tar rounds where it is not told to write pax."""
    return (one["mtime"] + 5 * 10**8) // 10**9


def _no_trusted(one: dict[str, Any]) -> dict[str, bytes]:
    """containers/storage keeps user.* and capabilities."""
    return {name: value for name, value in _no_empty(one).items() if name[:8] != "trusted."}


def _whole_seconds(one: dict[str, Any]) -> int:
    """containers/storage cuts off."""
    return int(one["mtime"] // 10**9)


def _no_root(found: dict[str, Any]) -> dict[str, Any]:
    """Tools differ about the root itself."""
    return {name: one for name, one in found.items() if name != "."}


# ---- builders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.needs("root", "umoci", "mkfs.ext4")
def test_umoci_repack_says_the_same(place: Path, kind: str) -> None:
    """umoci compares trees, so it gets what the mount shows; its layer and ours, on the same base, have
    to make that tree."""
    count: Counter[str] = Counter()
    for seed, trees in batches():
        with _changed(place, seed, trees, count, kind) as (base, upper, merged, here):
            want = tree(merged)
            images = Images(here)
            image = images.make("base", layer_of(here / "base.tar", _empty(here), base))
            rootfs = images.unpack(image, here / "bundle")
            shutil.rmtree(rootfs)
            run("cp", "-a", merged, rootfs)
            _drop_sockets(rootfs)
            run(
                "umoci",
                "repack",
                "--image",
                f"{images.layout}:new",
                here / "bundle",
                env=images.env,
            )
            theirs = images.last_layer("new", here / "theirs.tar")
            with open(here / "ours.tar", "wb") as f:
                diff_upper(None, str(upper), [str(base)], tar=f)
            run("cp", "-a", base, here / "one")
            run("cp", "-a", base, here / "two")
            apply(here / "ours.tar", here / "one")
            apply(theirs, here / "two", stale=True)
            compare(tree(here / "one"), want)
            theirs_tree = _nearly(tree(here / "two"), want)
            compare(*(_by_umoci(x) for x in (theirs_tree, want)))
    often_enough(count, *NEEDED[kind])


def _drop_sockets(root: Path) -> None:
    """umoci stops at a socket; we leave it out."""
    for folder, _, files in os.walk(root):
        was = os.lstat(folder)
        for name in files:
            path = os.path.join(folder, name)
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
                os.utime(folder, ns=(was.st_atime_ns, was.st_mtime_ns))


def _nearly(found: dict[str, Any], want: dict[str, Any]) -> dict[str, Any]:
    """umoci does not see that a file's time went by less than a second into the next one, nor another
    device's numbers within one: what was there before is let pass for that alone."""
    out = {}
    for name, seen in found.items():
        other = want.get(name, {})
        if abs(seen["mtime"] - other.get("mtime", 0)) <= 10**9:
            seen = seen | {key: other[key] for key in ("mtime", "device") if key in other}
        out[name] = seen
    return out


def _by_umoci(found: dict[str, Any]) -> dict[str, Any]:
    return _no_root(same_but(found, xattrs=_no_empty, mtime=_no_directory_times, first=_by_name))


def _empty(here: Path) -> Path:
    made = here / "empty"
    made.mkdir(exist_ok=True)
    return made


@contextmanager
def _changed(
    place: Path, seed: int, trees: int, count: Counter[str], kind: str
) -> Iterator[tuple[Path, Path, Path, Path]]:
    """A base, the upper directory over it, what the mount shows, and where all that lies."""
    here = place / "here"
    here.mkdir()
    base, upper = here / "base", here / "upper"
    base.mkdir()
    upper.mkdir()
    grove = Grove(plan(seed, trees), count)
    grove.grow(base)
    options = f"{FULL[kind]},volatile"
    try:
        with overlay([base], upper, here / "work", here / "m", options) as m:
            grove.change(m)
        with overlay([base], upper, here / "work", here / "m", options) as m:
            count_marks(upper, count)
            yield base, upper, m, here
    finally:
        shutil.rmtree(here)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.needs("root", "buildah", "umoci", "mkfs.ext4")
def test_buildah_commit_says_the_same(place: Path, kind: str) -> None:
    """The changes are made in buildah's own mount; it commits the very directory that we diff."""
    count: Counter[str] = Counter()
    for seed, trees in batches():
        here = place / "here"
        here.mkdir()
        try:
            _buildah(here, Grove(plan(seed, trees), count), count, kind)
        finally:
            shutil.rmtree(here)
    often_enough(count, *NEEDED[kind])


def _buildah(here: Path, grove: Grove, count: Counter[str], kind: str) -> None:
    images = Images(here)
    base = here / "base"
    base.mkdir()
    grove.grow(base)
    image = images.make("base", layer_of(here / "base.tar", _empty(here), base))
    buildah = ["buildah", "--root", here / "storage", "--runroot", here / "run"]
    buildah += ["--storage-driver", "overlay"]
    # Quoted: it takes a list apart at commas.
    mount = FULL[kind].replace(",index=off", "")
    buildah += ["--storage-opt", f'"overlay.mountopt={mount}"']
    name = run(*buildah, "from", f"oci:{image}", env=images.env).split()[-1]
    mounted = Path(run(*buildah, "mount", name, env=images.env).strip())
    try:
        grove.change(mounted)
        # Mounted anew, for what the kernel remembers of names that are no links any more.
        run(*buildah, "umount", name, env=images.env)
        run(*buildah, "mount", name, env=images.env)
        want = tree(mounted, sockets=True)
        upper, lower = _directories(mounted)
        count_marks(upper, count)
        run(
            *(*buildah, "commit", "-q", "--disable-compression=false", name),
            f"oci:{images.layout}:new",
            env=images.env,
        )
        with open(here / "ours.tar", "wb") as f:
            diff_upper(None, str(upper), [str(p) for p in lower], tar=f)
    finally:
        run(*buildah, "umount", name, env=images.env)
        run(*buildah, "rm", name, env=images.env)
    theirs = images.last_layer("new", here / "theirs.tar")
    for target in (here / "one", here / "two"):
        run("cp", "-a", base, target)
    apply(here / "ours.tar", here / "one")
    left_out = _left_out(base, here / "two", want)
    if kind != "plain":
        left_out |= _looks_the_same(base, want)
    apply(theirs, here / "two")
    kept = {name: one for name, one in want.items() if one["type"] != stat.S_IFSOCK}
    compare(*(_in_mount(x) for x in (tree(here / "one"), kept)))
    count["compared"] += compare(
        *(_by_buildah(x, kind) for x in (tree(here / "two"), kept)), without=left_out
    )
    count["wrong in buildah's layer"] += len(left_out)


def _left_out(base: Path, target: Path, want: dict[str, Any]) -> set[str]:
    """The trees that buildah's layer gets wrong. What a socket took the place of is still there. And a
    directory that took the place of a symbolic link to itself is not, though what lies in it is: the
    link is made one, so that the layer can be applied."""
    out = set()
    for name, one in want.items():
        path = os.path.join(base, name)
        if one["type"] == stat.S_IFSOCK and os.path.lexists(path):
            out.add(name.split("/")[1])
        if one["type"] != stat.S_IFDIR or not os.path.islink(path):
            continue
        try:
            os.stat(path)
        except OSError as e:
            if e.errno == errno.ELOOP:
                out.add(name.split("/")[1])
                os.unlink(target / name)
                os.mkdir(target / name)
    return out


def _looks_the_same(base: Path, want: dict[str, Any]) -> set[str]:
    """The trees with a file that changed and looks to buildah as it did before: where it compares what
    is mounted, other content in the same second, as long as it was, is no change."""
    out = set()
    for name, one in want.items():
        path = base / name
        if one["type"] == stat.S_IFREG and not path.is_symlink() and path.is_file():
            was = path.read_bytes()
            same_second = path.stat().st_mtime_ns // 10**9 == one["mtime"] // 10**9
            same = same_second and len(was) == one["size"]
            if same and hashlib.sha256(was).hexdigest() != one["content"]:
                out.add(name.split("/")[1])
    return out


def _in_mount(found: dict[str, Any]) -> dict[str, Any]:
    return _no_root(same_but(found, xattrs=_no_empty))


def _by_buildah(found: dict[str, Any], kind: str) -> dict[str, Any]:
    """With redirect_dir or metacopy it compares what is mounted, name by name: further names of a file
    become files of their own, and it does not write all that changed in its time alone."""
    if kind == "plain":
        return _no_root(same_but(found, xattrs=_no_trusted, mtime=_whole_seconds))
    return _no_root(same_but(found, xattrs=_no_trusted, mtime=_no_time, first=_by_name))


def _no_time(one: dict[str, Any]) -> int:
    return 0


def _directories(mounted: Path) -> tuple[Path, list[Path]]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if where == str(mounted) and kind == "overlay":
            found = dict(o.partition("=")[::2] for o in options.split(","))
            root = mounted.parents[1]
            return root / found["upperdir"], [root / p for p in found["lowerdir"].split(":")]
    raise AssertionError(f"{mounted} is no overlay mount")


# ---- appliers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.needs("root", "umoci", "podman", "bsdtar", "mkfs.ext4")
def test_other_tools_make_our_tree_of_our_layers(place: Path, kind: str) -> None:
    count: Counter[str] = Counter()
    for seed, trees in batches():
        with _changed(place, seed, trees, count, kind) as (base, upper, merged, here):
            layers = [layer_of(here / "base.tar", _empty(here), base), here / "upper.tar"]
            with open(layers[1], "wb") as f:
                diff_upper(None, str(upper), [str(base)], tar=f)
            want = tree(merged)
            compare(_in_mount(tree(_checked_out(here, layers))), _in_mount(want))
            images = Images(here)
            image = images.make("both", *layers)
            by_umoci = tree(images.unpack(image, here / "bundle"))
            compare(_in_mount(by_umoci), _in_mount(want))
            with _podman(here, image, images.env) as shown:
                compare(_in_mount(tree(shown)), _in_mount(want))
            for name, command in EXTRACT.items():
                target = here / name
                target.mkdir()
                for layer in layers:
                    make_room(layer, target)
                    run(*command, "-f", layer, "-C", target)
                found = (_no_root(x) for x in (tree(target), want))
                known = {"mtime": _no_directory_time, "mode": _no_directory_group}
                compare(*(same_but(x, **known) for x in found), what=name)
    often_enough(count, *NEEDED[kind])


def _checked_out(here: Path, layers: list[Path]) -> Path:
    """Our own checkout, which has to make what the others make."""
    with stores.opened(str(here / "store")) as content:
        digests = [stores.put(content, layer.read_bytes(), stores.TAR) for layer in layers]
        stack = [checkout.Layer(digest) for digest in digests]
        checkout.checkout(content, stack, str(here / "ours"), options=checkout.Options())
    return here / "ours"


EXTRACT = {
    "bsdtar": ["bsdtar", "-xp", "--exclude", "*.wh.*"],
    "tar": ["tar", "-xp", "--xattrs", "--xattrs-include=*", "--exclude=.wh.*", "--same-owner"],
}


@contextmanager
def _podman(here: Path, image: str, env: dict[str, str]) -> Iterator[Path]:
    # podman takes no long path for it.
    state = tempfile.mkdtemp(prefix="ls-", dir="/tmp")
    podman = ["podman", "--root", here / "storage", "--runroot", state]
    podman += ["--storage-driver", "overlay", "--events-backend", "none"]
    pulled = run(*podman, "pull", "-q", f"oci:{image}", env=env).strip()
    mounted = Path(run(*podman, "image", "mount", pulled, env=env).strip())
    try:
        yield mounted
    finally:
        run(*podman, "image", "umount", "-f", pulled, env=env)
        run(*podman, "rmi", "-f", pulled, env=env)
        shutil.rmtree(state)


def make_room(layer: Path, root: Path) -> None:
    """For tools that know no whiteouts: removes what the layer removes, and what it has as another
    type, and xattrs of directories, which they only add to."""
    with tarfile.open(layer) as tar:
        members = tar.getmembers()
    for member in members:
        folder, name = os.path.split(os.path.normpath(member.name))
        if name == ".wh..wh..opq":
            if not os.path.isdir(root / folder):
                continue
            for child in os.listdir(root / folder):
                remove(os.path.join(root, folder, child))
        elif name.startswith(".wh."):
            gone = os.path.join(root, folder, name[4:])
            if os.path.lexists(gone):
                remove(gone)
        else:
            path = os.path.join(root, folder, name)
            if not os.path.lexists(path):
                continue
            directory = stat.S_ISDIR(os.lstat(path).st_mode)
            if directory != member.isdir():
                remove(path)
            elif directory:
                for x in os.listxattr(path):
                    os.removexattr(path, x)
