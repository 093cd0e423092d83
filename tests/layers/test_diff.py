"""Layers out of directories: what is in the tar, what goes wrong, what the store keeps of it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from changes import CAP, Changes
from trees import apply, disk, mtime_ns, tree

import layerstore
from layerstore.core.walk import Walk
from layerstore.layers.diff import diff_trees, diff_upper

BIG = 5 << 20


@pytest.fixture(scope="module")
def disk_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with disk(tmp_path_factory.mktemp("diff"), 256) as where:
        yield where


@pytest.fixture
def place(disk_path: Path) -> Iterator[Path]:
    """An empty directory where xattrs of all kinds work."""
    made = disk_path / "place"
    made.mkdir()
    yield made
    shutil.rmtree(made)


def tar_of(upper: Path, **options: Any) -> bytes:
    out = io.BytesIO()
    diff_upper(None, str(upper), tar=out, **options)
    return out.getvalue()


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {m.name: m for m in tar}


def old(path: Path, when: int = 1_600_000_000) -> None:
    """Whole seconds, so that no pax record is needed for them."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in (*folders, *files, "."):
            os.utime(os.path.join(folder, name), (when, when), follow_symlinks=False)


# ---- the tar -------------------------------------------------------------------------------------


def test_the_same_tree_gives_the_same_bytes(place: Path) -> None:
    one, two = place / "one", place / "two"
    one.mkdir()
    Changes(one, random.Random(7), Changes.counter()).base(60)
    old(one)
    # Other inodes, another name, and another order in the directories.
    subprocess.run(["cp", "-a", one, two], check=True)
    for name in os.listdir(two):
        os.rename(two / name, two / (name + "~"))
    for name in sorted(os.listdir(two), reverse=True):
        os.rename(two / name, two / name[:-1])
    old(two)
    assert tree(one) == tree(two)
    assert tar_of(one) == tar_of(two)


FILESYSTEMS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "xfs": ["mkfs.xfs", "-q"],
    "tmpfs": None,
}


@contextlib.contextmanager
def filesystem(kind: str, path: Path) -> Iterator[Path]:
    """An empty filesystem of that kind."""
    where = path / kind
    where.mkdir()
    make = FILESYSTEMS[kind]
    command = ["mount", "-t", kind, "tmpfs"]
    if make is not None:
        image = path / f"{kind}.img"
        with open(image, "wb") as f:
            f.truncate(512 << 20)
        subprocess.run([*make, image], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image)]
    subprocess.run([*command, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.needs("root", "mkfs.ext4", "mkfs.btrfs", "mkfs.xfs")
def test_the_digest_is_that_of_the_tree_wherever_it_lies(place: Path, tmp_path: Path) -> None:
    """Other filesystems (other inodes, other orders of names, other sizes of directories), umask,
    locale, time zone, working directory, and root of a user namespace of its own."""
    one = place / "one"
    one.mkdir()
    fill(one)
    os.symlink("big", one / "späße\nlink")
    os.link(one / "big", one / "a-link")
    for n in range(300):  # names that hashed directories give in another order
        (one / "d2" / f"name-{n * 7919 % 1000}").touch()
    old(one)
    os.chmod(one, 0o755)
    want = tar_of(one)
    home = Path(layerstore.__file__).parents[1]
    mapped = ["unshare", "--user", "--map-root-user"]
    ways: list[tuple[list[str], dict[str, str], int, Path]] = [
        ([], {}, 0o022, home),
        ([], {"LC_ALL": "C", "TZ": "Asia/Tokyo"}, 0o077, Path("/")),
        (mapped, {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONUTF8": "0"}, 0, tmp_path),
    ]
    orders = set()
    for kind in FILESYSTEMS:
        with filesystem(kind, tmp_path) as root:
            two = root / "two"
            subprocess.run(["cp", "-a", one, two], check=True)
            orders.add(tuple(os.listdir(two / "d2")))
            for before, environment, mask, directory in ways:
                done = subprocess.run(
                    [
                        *(*before, sys.executable, "-m", "layerstore"),
                        *("diff", "--upper", os.path.relpath(two, directory), "--tar", "-"),
                    ],
                    capture_output=True,
                    umask=mask,
                    env={**os.environ, **environment, "PYTHONPATH": str(home)},
                    cwd=directory,
                )
                assert done.returncode == 0, done.stderr
                assert done.stdout == want, (kind, before, environment)
    assert len(orders) > 1, "no filesystem gave the names in another order"


def test_plain_files_need_no_pax(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").write_bytes(b"x")
    (place / ("n" * 90)).mkdir()
    (place / ("n" * 90) / ("m" * 100)).write_bytes(b"")
    os.symlink("t" * 100, place / "l")
    old(place)
    data = tar_of(place)
    assert b"PaxHeader" not in data
    found = members(data)
    assert all(m.uname == m.gname == "" for m in found.values())
    assert list(found) == sorted(found, key=lambda n: n.split("/") if n != "." else [])
    assert data[257:265] == b"ustar\x0000"


@pytest.mark.parametrize(
    "change",
    [
        lambda p: os.utime(p, ns=(0, 1_600_000_000_000_000_001)),
        lambda p: os.utime(p, ns=(0, -1)),
        lambda p: os.utime(p, ns=(0, -1_500_000_000)),
        lambda p: os.utime(p, (0, 0o77777777777 + 1)),
        lambda p: os.chown(p, 2_097_152, 2_097_151),
        lambda p: os.chown(p, 0, 4_000_000_000),
        lambda p: os.setxattr(p, "user.x", b""),
        lambda p: os.setxattr(p, "user.bin", bytes(range(256))),
        lambda p: os.rename(p, p.parent / ("n" * 255)),
        lambda p: os.symlink("t" * 101, p.parent / "l"),
        lambda p: os.symlink("t" * 1000, p.parent / "l"),
    ],
)
def test_what_ustar_cannot_say(place: Path, change: Callable[[Path], None]) -> None:
    (place / "f").write_bytes(b"content")
    old(place)
    change(place / "f")
    upper = tree(place)
    data = tar_of(place)
    target = place.parent / "target"
    target.mkdir()
    try:
        (place.parent / "t.tar").write_bytes(data)
        apply(place.parent / "t.tar", target)
        assert tree(target) == upper
        shutil.rmtree(target)
        target.mkdir()
        subprocess.run(
            ["tar", "-xpf", place.parent / "t.tar", "--xattrs", "--xattrs-include=*", "-C", target],
            check=True,
        )
        assert tree(target) == upper
    finally:
        shutil.rmtree(target)


def test_long_paths(place: Path) -> None:
    """Deeper than descriptors go and longer than a path may be."""
    name = "d" * 200
    at = os.open(place, os.O_RDONLY)
    for _ in range(60):
        os.mkdir(name, dir_fd=at)
        inner = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    with open(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at), "wb") as f:
        f.write(b"deep")
    os.mkdir("z", dir_fd=at)
    os.close(at)
    data = tar_of(place)
    found = members(data)
    path = "/".join([name] * 60)
    assert len(found) == 63
    assert f"{path}/z" in found
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        content = tar.extractfile(f"{path}/f")
        assert content is not None
        assert content.read() == b"deep"
    subprocess.run(["rm", "-rf", place / name], check=True)


def test_a_directory_with_many_files_and_a_file_with_large_xattrs(tmp_path: Path) -> None:
    for i in range(30_000):
        (tmp_path / f"file-{i:06}-with-a-longish-name").touch()
    fd = os.open(tmp_path, os.O_RDONLY)
    with Walk(fd, "t", capacity=7) as walk:
        names = []
        while (batch := walk.next()) is not None:
            names += [batch.path(i) for i in range(batch.n)]
    os.close(fd)
    assert len(names) == 30_001
    assert names == sorted(names)


@pytest.mark.parametrize(
    "missing", [{}, {"no_at": True}, {"no_proc": True}, {"no_at": True, "no_proc": True}]
)
def test_xattrs_come_whatever_the_kernel_has(place: Path, missing: dict[str, bool]) -> None:
    (place / "f").write_bytes(b"")
    os.symlink("f", place / "l")
    os.mkfifo(place / "p")
    os.mkdir(place / "d")
    for name in ("f", "d"):
        os.setxattr(place / name, "user.one", b"1")
        os.setxattr(place / name, "user.none", b"")
        os.setxattr(place / name, "user.two", b"2" * 500)
    for name in ("l", "p"):
        os.setxattr(place / name, "trusted.three", b"3", follow_symlinks=False)
    fd = os.open(place, os.O_RDONLY)
    with Walk(fd, "t", **missing) as walk:
        batch = walk.next()
        assert batch is not None
        found = {batch.path(i): batch.xattrs(i) for i in range(batch.n)}
    os.close(fd)
    user = {b"user.none": b"", b"user.one": b"1", b"user.two": b"2" * 500}
    special = {} if len(missing) == 2 else {b"trusted.three": b"3"}
    assert found == {b"": {}, b"d": user, b"f": user, b"l": special, b"p": special}


def test_times_are_clamped(place: Path) -> None:
    for name, when in (("before", 999), ("at", 1000), ("after", 2000)):
        (place / name).touch()
        os.utime(place / name, (when, when))
    os.utime(place / "at", ns=(0, 1000 * 10**9 + 5))
    found = members(tar_of(place, source_date_epoch=1000))
    times = {name: mtime_ns(m) // 10**9 for name, m in found.items()}
    assert times == {".": 1000, "before": 999, "at": 1000, "after": 1000}
    assert mtime_ns(found["at"]) == 1000 * 10**9


def test_owners_are_mapped(place: Path) -> None:
    (place / "f").touch()
    os.chown(place, 100_000, 200_000)
    os.chown(place / "f", 100_005, 200_007)
    found = members(tar_of(place, uids=[(100_000, 0, 65536)], gids=[(200_000, 0, 65536)]))
    assert [(m.uid, m.gid) for m in found.values()] == [(0, 0), (5, 7)]
    os.chown(place / "f", 7, 200_000)
    with pytest.raises(layerstore.InvalidInputError, match="/f: its owner is outside"):
        tar_of(place, uids=[(100_000, 0, 65536)], gids=[(200_000, 0, 65536)])


def test_a_capability_does_not_name_the_builders_root(place: Path) -> None:
    (place / "f").touch()
    version_3 = CAP[:3] + b"\x03" + CAP[4:] + (100_000).to_bytes(4, "little")
    os.setxattr(place / "f", "security.capability", version_3)
    pax = members(tar_of(place))["f"].pax_headers["SCHILY.xattr.security.capability"]
    assert pax.encode("utf-8", "surrogateescape") == CAP[:3] + b"\x02" + CAP[4:]


def test_xattrs_whose_names_have_an_equals_sign(place: Path, tmp_path: Path) -> None:
    """A pax keyword ends at its first one. libarchive's records can say them; we read those, too, and
    nobody takes them for something else."""
    (place / "f").touch()
    names = ("user.a=b", "user.=", "user.%3D=%", "user.späße=", "user.plain")
    for i, name in enumerate(names):
        os.setxattr(place / "f", name, bytes(range(i * 7)))
    want = {name: os.getxattr(place / "f", name) for name in names}
    data = tar_of(place)
    (tmp_path / "t.tar").write_bytes(data)
    keys = members(data)["f"].pax_headers
    assert [k for k in keys if k.startswith("SCHILY.")] == ["SCHILY.xattr.user.plain"]
    target = place.parent / "target"
    target.mkdir()
    subprocess.run(["bsdtar", "-xpf", tmp_path / "t.tar", "-C", target], check=True)
    found = {name: os.getxattr(target / "f", name) for name in os.listxattr(target / "f")}
    shutil.rmtree(target)
    assert found == want
    with layerstore.open(tmp_path / "s") as store:
        layer = store.diff_upper(place)
        store.commit("scratch", "app:1", layers=[layer.digest])
        store.checkout("app:1", target)
    found = {name: os.getxattr(target / "f", name) for name in os.listxattr(target / "f")}
    shutil.rmtree(target)
    assert found == want


def test_marks_of_overlayfs(place: Path) -> None:
    """As xattrs, too: where device nodes cannot be made. None of them gets out."""
    for name in ("gone", "kept"):
        (place / name).touch()
    (place / "full").write_bytes(b"content")
    for kind in ("trusted", "user"):
        os.setxattr(place / "gone", f"{kind}.overlay.whiteout", b"")
        os.setxattr(place / "full", f"{kind}.overlay.whiteout", b"")
        os.setxattr(place / "kept", f"{kind}.overlay.origin", b"anything")
        (place / f"opaque-{kind}").mkdir()
        os.setxattr(place / f"opaque-{kind}", f"{kind}.overlay.opaque", b"y")
        (place / f"not-{kind}").mkdir()
        os.setxattr(place / f"not-{kind}", f"{kind}.overlay.opaque", b"x")
    os.mknod(place / "device", 0o020000, 0)
    data = tar_of(place)
    assert b"overlay." not in data
    assert sorted(members(data)) == [
        *(".", ".wh.device", ".wh.gone", "full", "kept", "not-trusted", "not-user"),
        *("opaque-trusted", "opaque-trusted/.wh..wh..opq"),
        *("opaque-user", "opaque-user/.wh..wh..opq"),
    ]


def test_what_lies_below_has_to_be_named(place: Path) -> None:
    (place / "moved").mkdir()
    os.setxattr(place / "moved", "trusted.overlay.redirect", b"/from")
    with pytest.raises(layerstore.InvalidInputError, match=r"/moved: .*lower directory"):
        tar_of(place)


def test_umoci_and_bsdtar_make_the_same_tree_of_it(place: Path) -> None:
    base, upper, target = place / "base", place / "new", place / "target"
    base.mkdir()
    Changes(base, random.Random(11), Changes.counter()).base(60)
    subprocess.run(["cp", "-a", base, upper], check=True)
    Changes(upper, random.Random(12), Changes.counter()).run(60)
    want = tree(upper)
    empty = place / "empty"
    empty.mkdir()
    layers = []
    for i, (a, b) in enumerate(((empty, base), (base, upper))):
        layers.append(place / f"{i}.tar")
        with open(layers[-1], "wb") as f:
            diff_trees(None, str(a), str(b), tar=f)
    image = f"{place}/image:latest"
    subprocess.run(["umoci", "init", "--layout", place / "image"], check=True)
    subprocess.run(["umoci", "new", "--image", image], check=True)
    for layer in layers:
        subprocess.run(["umoci", "raw", "add-layer", "--image", image, layer], check=True)
    subprocess.run(["umoci", "unpack", "--image", image, place / "bundle"], check=True)
    assert _but_root(tree(place / "bundle" / "rootfs")) == _but_root(want)
    # bsdtar knows no whiteouts: a layer that only adds.
    target.mkdir()
    subprocess.run(["bsdtar", "-xpf", layers[0], "-C", target], check=True)
    assert _but_root(tree(target)) == _but_root(tree(base))


def _but_root(found: dict[str, Any]) -> dict[str, Any]:
    """Tools differ about the times of the root itself; and Go's tar takes an empty pax record for none,
    as POSIX has it, so that umoci has no empty xattrs."""
    return {
        name: {**one, "xattrs": {x: v for x, v in one["xattrs"].items() if v}}
        for name, one in found.items()
        if name != "."
    }


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_name_that_means_a_removed_file(place: Path) -> None:
    (place / "d").mkdir()
    (place / "d" / ".wh.x").touch()
    for made in (lambda: tar_of(place), lambda: _between(place / "d", place)):
        with pytest.raises(layerstore.InvalidInputError, match=r"\.wh\.x: .*\.wh\."):
            made()


def _between(a: Path, b: Path) -> bytes:
    out = io.BytesIO()
    diff_trees(None, str(a), str(b), tar=out)
    return out.getvalue()


class _Then:
    """A file that does something once bytes arrive."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act: Callable[[], object] | None = act

    def write(self, data: memoryview) -> int:
        if self._act is not None:
            self._act()
            self._act = None
        return len(data)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda p: (p / "b").write_bytes(b"y" * BIG), "/b: it changed"),
        (lambda p: os.truncate(p / "a", 100), "/a: it became shorter"),
        (lambda p: (p / "a").open("ab").write(b"more"), "/a: it changed while"),
        (lambda p: (p / "b").unlink(), "/b vanished"),
        (
            lambda p: ((p / "b").unlink(), os.symlink("/etc/passwd", p / "b")),
            "/b: it became a symb",
        ),
        (lambda p: ((p / "b").unlink(), os.mkfifo(p / "b")), "/b: it changed before"),
        (lambda p: ((p / "b").rename(p / "c"), (p / "a").rename(p / "b")), "/a: it changed"),
    ],
)
def test_a_tree_that_changes_while_it_is_read(
    place: Path, act: Callable[[Path], object], says: str
) -> None:
    for name in ("a", "b"):
        (place / name).write_bytes(name.encode() * BIG)
    with pytest.raises(layerstore.InvalidInputError, match=says):
        diff_upper(None, str(place), tar=_Then(lambda: act(place)))  # type: ignore[arg-type]


def test_nothing_stays_of_a_diff_that_failed(place: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (place / name).write_bytes(random.Random(name).randbytes(BIG))
    done = 0

    def progress(step: layerstore.Progress) -> None:
        nonlocal done
        done = step.done
        (place / "b").write_bytes(b"other")

    with layerstore.open(tmp_path / "s") as store:
        with pytest.raises(layerstore.InvalidInputError, match="/b: it changed"):
            store.diff_upper(place, progress=progress)
        assert done > 0
        assert list(store.blobs()) == []
        store.gc(aggressive=True)
        assert store.stats().packs < 1 << 20


def test_a_file_that_may_not_be_read(place: Path) -> None:
    (place / "secret").write_bytes(b"x")
    os.chmod(place / "secret", 0)
    # Loaded, and the directory opened, as root: the way to it may be closed to others.
    code = (
        "import os, sys, layerstore.layers.hashpipe\n"
        "from layerstore.layers.diff import diff_upper\n"
        f"fd = os.open({str(place)!r}, os.O_RDONLY)\n"
        "sink = open(os.devnull, 'wb')\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: diff_upper(None, fd, tar=sink)\n"
        "except PermissionError as e: print(e.filename)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(layerstore.__file__).parents[1],
    )
    assert done.stdout.strip().endswith("/secret")


def test_no_such_directory(place: Path) -> None:
    (place / "f").touch()
    for path in (place / "none", place / "f"):
        with pytest.raises(layerstore.NotFoundError, match="no directory"):
            tar_of(path)


def test_sockets_are_left_out_and_said(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(place / "s"))
        info = diff_upper(None, str(place), tar=io.BytesIO())
    assert info.notes == (f"{place}/s: a socket, left out",)


def test_progress_that_raises_stops_it(place: Path, tmp_path: Path) -> None:
    (place / "a").write_bytes(bytes(BIG))

    def progress(step: layerstore.Progress) -> None:
        raise KeyboardInterrupt

    with layerstore.open(tmp_path / "s") as store:
        with pytest.raises(KeyboardInterrupt):
            store.diff_upper(place, progress=progress)
        assert list(store.blobs()) == []


# ---- in the store --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[layerstore.Store]:
    with layerstore.open(tmp_path / "store") as made:
        yield made


def bytes_of(store: layerstore.Store, info: layerstore.LayerInfo) -> bytes:
    with store.open_blob(info.digest) as f:
        return b"".join(bytes(piece) for piece in f.chunks())


def fill(place: Path) -> None:
    source = random.Random(3)
    for i in range(40):
        (place / f"d{i % 4}").mkdir(exist_ok=True)
        (place / f"d{i % 4}" / f"f{i}").write_bytes(source.randbytes(2000 * i))
    (place / "big").write_bytes(source.randbytes(BIG))
    (place / "m.pyc").write_bytes(b"\xcb\r\r\n" + bytes(12) + b"\xe3" + source.randbytes(999))


def age(place: Path) -> None:
    """As if it had been made a while ago: what changed only just now is trusted by nobody."""
    subprocess.run(["sleep", "0.2"], check=True)


def test_the_store_has_the_tar(place: Path, store: layerstore.Store) -> None:
    fill(place)
    info = store.diff_upper(place)
    assert bytes_of(store, info) == tar_of(place)
    assert (info.digest, info.size) == (info.diff_id, len(tar_of(place)))
    assert info.entries == len(members(tar_of(place)))
    assert info.new_bytes > BIG
    assert store.stat(info.digest).forms == ("tar",)


def test_a_change_of_metadata_costs_headers(place: Path, store: layerstore.Store) -> None:
    fill(place)
    store.diff_upper(place)
    os.chmod(place / "big", 0o4711)
    os.chown(place / "d1" / "f1", 5, 6)
    os.rename(place / "d2", place / "d9")
    os.link(place / "big", place / "again")
    os.utime(place / "m.pyc", (1, 1))
    changed = store.diff_upper(place)
    # Headers of some fifty files, and of the chunk list; the tree has 5 MiB and more.
    assert changed.new_bytes < 16 << 10
    assert changed.size > BIG
    # By one change each, of one file.
    for change in (
        lambda: os.chmod(place / "big", 0o755),
        lambda: os.chown(place / "big", 7, 8),
        lambda: os.utime(place / "big", (5, 5)),
        lambda: os.rename(place / "again", place / "once more"),
        lambda: os.link(place / "d3" / "f3", place / "d3" / "link"),
        lambda: os.setxattr(place / "big", "user.note", b"note"),
    ):
        change()
        assert 0 < store.diff_upper(place).new_bytes < 8 << 10


def test_holes_cost_nothing(place: Path, store: layerstore.Store) -> None:
    with open(place / "sparse", "wb") as f:
        f.truncate(100 << 20)
        f.seek(50 << 20)
        f.write(b"data")
    info = store.diff_upper(place)
    assert info.size > 100 << 20
    assert info.new_bytes < 64 << 10


def opened(place: Path, store: layerstore.Store, *options: str) -> tuple[str, set[str]]:
    """The digest that the command prints, and the regular files of the tree that it opened."""
    return opened_by(place, store, "diff", "--upper", str(place), *options)


def opened_by(place: Path, store: layerstore.Store, *verb: str) -> tuple[str, set[str]]:
    trace = place.parent / "trace"
    command = [sys.executable, "-m", "layerstore", "--store", store.path, "-q"]
    done = subprocess.run(
        ["strace", "-f", "-o", trace, "-e", "trace=openat", *command, *verb],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": "."},
        cwd=Path(layerstore.__file__).parents[1],
    )
    names = {p.name for p in place.rglob("*") if p.is_file()}
    found = {line.split('"')[1] for line in trace.read_text().splitlines() if '"' in line}
    return done.stdout.strip(), {f for f in found if f in names}


def test_what_was_read_before_is_not_read_again(place: Path, store: layerstore.Store) -> None:
    fill(place)
    age(place)
    first = store.diff_upper(place)
    assert opened(place, store) == (first.digest, set())
    (place / "d1" / "f1").write_bytes(b"changed")
    (place / "d3" / "new").write_bytes(b"new")
    want = tar_of(place)
    age(place)
    digest, found = opened(place, store)
    assert found == {"f1", "new"}
    second = store.diff_upper(place, cache=False)
    assert second.digest == digest
    assert bytes_of(store, second) == want
    # What came from the store is known again, too.
    os.chmod(place / "big", 0o600)
    age(place)
    digest, found = opened(place, store)
    assert found == {"big"}  # its time of change is another
    full = {p.name for p in place.rglob("*") if p.is_file() and p.stat().st_size}
    assert opened(place, store, "--no-cache")[1] == full


def test_two_trees_are_not_read_again_either(place: Path, store: layerstore.Store) -> None:
    old_tree, new = place / "old", place / "new"
    old_tree.mkdir()
    new.mkdir()
    fill(new)
    age(place)
    first = store.diff_trees(old_tree, new)
    (new / "d1" / "f1").write_bytes(b"changed")
    age(place)
    digest, found = opened_by(place, store, "diff", str(old_tree), str(new))
    assert found == {"f1"}
    second = store.diff_trees(old_tree, new, cache=False)
    assert first.digest != second.digest == digest
    assert bytes_of(store, second) == _between(old_tree, new)
    for i in range(30):  # within a tick of the clock
        (new / "f").write_bytes(b"%05d" % i)
        info = store.diff_trees(old_tree, new)
        assert bytes_of(store, info) == _between(old_tree, new)


def test_a_change_within_a_tick_is_seen(place: Path, store: layerstore.Store) -> None:
    """The same size, at once: the clock that stamps files may not have moved."""
    for i in range(30):
        (place / "f").write_bytes(b"%05d" % i)
        info = store.diff_upper(place)
        assert bytes_of(store, info) == tar_of(place)


def test_a_known_tree_whose_layer_is_gone(place: Path, store: layerstore.Store) -> None:
    fill(place)
    age(place)
    store.diff_upper(place)
    with layerstore.open(store.path) as other:
        store.close()
        other.gc(aggressive=True)
        assert list(other.blobs()) == []
        info = other.diff_upper(place)
        assert bytes_of(other, info) == tar_of(place)


def test_other_options_make_another_layer(place: Path, store: layerstore.Store) -> None:
    fill(place)
    age(place)
    first = store.diff_upper(place)
    clamped = store.diff_upper(place, source_date_epoch=5)
    assert clamped.digest != first.digest
    assert bytes_of(store, clamped) == tar_of(place, source_date_epoch=5)
    assert store.diff_upper(place).digest == first.digest


def test_a_known_tree_is_held_again(place: Path, store: layerstore.Store) -> None:
    fill(place)
    age(place)
    first = store.diff_upper(place)
    lease = store.lease(ttl=3600)
    store.use_lease(lease.id)
    store.diff_upper(place)
    assert first.digest in next(x.digests for x in store.leases() if x.id == lease.id)


def test_check_and_rebuild_do_not_mind(place: Path, store: layerstore.Store) -> None:
    fill(place)
    age(place)
    first = store.diff_upper(place)
    lease = store.lease(ttl=3600)
    store.use_lease(lease.id)
    store.diff_upper(place)
    assert store.check(full=True).ok
    store.close()
    assert layerstore.rebuild_index(store.path).ok
    with layerstore.open(store.path) as again:
        assert again.check(full=True).ok
        assert again.diff_upper(place).digest == first.digest


def two(place: Path) -> tuple[Path, Path]:
    """Two trees that differ in one byte, and in nothing that stat says."""
    old, new = place / "old", place / "new"
    old.mkdir()
    fill(old)
    subprocess.run(["cp", "-a", old, new], check=True)
    was = os.lstat(new / "big")
    with open(new / "big", "r+b") as f:
        f.seek(BIG - 1)
        f.write(b"!")
    os.utime(new / "big", ns=(was.st_atime_ns, was.st_mtime_ns))
    return old, new


def test_two_trees_by_content(place: Path, store: layerstore.Store) -> None:
    a, b = two(place)
    assert list(members(bytes_of(store, store.diff_trees(a, b)))) == []
    found = members(bytes_of(store, store.diff_trees(a, b, content=True)))
    assert sorted(found) == [".", "big"]
