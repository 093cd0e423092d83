"""Upper directories by fuse-overlayfs, and owners in xattrs: layers have what these tools state."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from trees import apply, disk, tree

import layerstore
from layerstore.errors import InvalidInputError
from layerstore.layers.diff import diff_upper

FORMS = ("device", "file", "files", "override")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path, 256) as where:
        yield where


def plant(base: Path, n: int) -> None:
    for i in range(n):
        top = base / f"t{i:03}"
        (top / "sub/deep").mkdir(parents=True)
        (top / "gone").mkdir()
        for name in ("a", "b", "sub/c", "sub/deep/d", "gone/e"):
            (top / name).write_text(f"{i} {name}")
        os.chown(top / "a", 7, 8)


def change(root: Path, n: int, count: Counter[str]) -> None:
    for i in range(n):
        top = root / f"t{i:03}"
        os.unlink(top / "b")
        count["removed"] += 1
        shutil.rmtree(top / "gone")
        if i % 2:
            (top / "gone").mkdir()
            (top / "gone/new").write_text("new")
            count["made anew"] += 1
        else:
            count["directory removed"] += 1
        os.unlink(top / "sub/c")
        os.symlink("deep/d", top / "sub/c")
        count["type change"] += 1
        os.chmod(top / "sub/deep/d", 0o4711)
        count["mode"] += 1
        os.chown(top / "a", 1000 + i, 5)
        count["owner"] += 1
        (top / "sub/more").mkdir()
        os.unlink(top / "sub/deep/d")
        (top / "sub/deep/d").write_text("again")
        count["file made anew"] += 1
        os.setxattr(top / "sub/deep/d", "user.mine", b"1")
        count["xattr"] += 1


@contextmanager
def _mounted(options: str, target: Path, environment: dict[str, str]) -> Iterator[None]:
    subprocess.run(["fuse-overlayfs", "-o", options, target], check=True, env=environment)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.needs("root", "fuse-overlayfs", "mkfs.ext4")
@pytest.mark.parametrize("form", FORMS)
def test_an_upper_directory_of_fuse_overlayfs(place: Path, form: str) -> None:
    """Made by the real one; what its mount shows is what the layer has to make of the base."""
    trees = 200
    count: Counter[str] = Counter()
    base, upper, work, shown = (place / name for name in ("base", "upper", "work", "shown"))
    for made in (base, upper, work, shown):
        made.mkdir()
    plant(base, trees)
    options = f"lowerdir={base},upperdir={upper},workdir={work}"
    if form == "override":
        options += ",xattr_permissions=2"
    environment = dict(os.environ)
    if form in ("file", "files"):
        environment["FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT"] = "1"
    with _mounted(options, shown, environment):
        change(shown, trees, count)
    # Anew, for the times that it had not written yet.
    with _mounted(options, shown, environment):
        want = tree(shown)
    for folder, folders, files in os.walk(upper):
        for name in (*folders, *files):
            found = os.lstat(os.path.join(folder, name))
            if name.startswith(".wh."):
                count["mark" if name.endswith(".opq") else "whiteout file"] += 1
            elif stat.S_ISCHR(found.st_mode):
                count["whiteout device"] += 1
            names = os.listxattr(os.path.join(folder, name), follow_symlinks=False)
            count["override_stat"] += "user.fuseoverlayfs.override_stat" in names
            if form == "files" and "trusted.overlay.opaque" in names:
                # As without rights to trusted xattrs: only the file says it.
                os.removexattr(os.path.join(folder, name), "trusted.overlay.opaque")
                count["opaque by file alone"] += 1
    print(dict(count))
    wanted = {
        "device": ["whiteout device"],
        "file": ["whiteout file"],
        "files": ["whiteout file", "opaque by file alone"],
        "override": ["override_stat"],
    }
    names = ["removed", "made anew", "directory removed", "type change", "mode", "owner", "xattr"]
    names += ["file made anew", "mark", *wanted[form]]
    assert {name: count[name] for name in names if count[name] < 100} == {}
    with pytest.raises(InvalidInputError, match=r"\.wh\."):
        diff_upper(None, upper, [base], tar=io.BytesIO())
    with open(place / "layer.tar", "wb") as f:
        diff_upper(None, upper, [base], tar=f, fuse_overlayfs=True)
    with tarfile.open(place / "layer.tar") as tar:
        members = tar.getmembers()
    assert len({m.name for m in members}) == len(members)
    leaked = [m.name for m in members if any("fuseoverlayfs" in k for k in m.pax_headers)]
    assert leaked == []
    apply(place / "layer.tar", base)
    got = tree(base)
    assert {k: _plain(v) for k, v in got.items()} == {k: _plain(v) for k, v in want.items()}


def _plain(one: dict[str, Any]) -> dict[str, Any]:
    """Directories' times are those of making the witness's marks in them, too."""
    kept = {k: v for k, v in one.items() if k not in ("first",)}
    if one["type"] == stat.S_IFDIR:
        kept.pop("mtime")
    return kept


def set_owner(path: Path, value: bytes) -> None:
    os.setxattr(path, "user.rootlesscontainers", value)


def tar_of(upper: Path, **options: Any) -> dict[str, tarfile.TarInfo]:
    out = io.BytesIO()
    diff_upper(None, upper, tar=out, **options)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        return {m.name: m for m in tar}


@pytest.mark.needs("root", "mkfs.ext4")
def test_owners_in_xattrs(place: Path, tmp_path: Path) -> None:
    """What `checkout` wrote without rights comes back as it was."""
    source, upper = place / "source", place / "upper"
    source.mkdir()
    owners = {"zero": (0, 0), "one": (1, 0), "two": (0, 127), "big": (128, 4_294_967_294)}
    for name, (uid, gid) in owners.items():
        (source / name).write_text(name)
        os.chown(source / name, uid, gid)
    os.setxattr(source / "big", "user.mine", b"1")
    with layerstore.open(tmp_path / "store", create=True) as store:
        store.commit("scratch", "a:1", layers=[store.diff_upper(source)])
        store.checkout("a:1", upper, ownership="rootless")
        kept = store.diff_upper(upper, rootless=True)
        (upper / "plain").write_text("plain")
        again = store.diff_trees(upper, upper, rootless=True)
        (place / "empty").mkdir()
        trees = store.diff_trees(place / "empty", upper, rootless=True)
        assert trees.digest == store.diff_upper(upper, rootless=True).digest
    assert again.entries == 0
    assert kept.entries == 5
    got = tar_of(upper, rootless=True)
    for name, (uid, gid) in owners.items():
        assert (got[name].uid, got[name].gid) == (uid, gid)
        assert not any("rootless" in key for key in got[name].pax_headers)
    assert got["big"].pax_headers["SCHILY.xattr.user.mine"] == "1"
    literal = tar_of(upper)
    assert literal["big"].uid == 0
    assert "SCHILY.xattr.user.rootlesscontainers" in literal["big"].pax_headers


@pytest.mark.needs("root", "mkfs.ext4")
@pytest.mark.parametrize(
    "value",
    [
        b"\x08",
        b"\x08\x80",
        b"\x18\x01",
        b"\x08\xff\xff\xff\xff\x0f",
        b"\x08\xff\xff\xff\xff\xff\x01",
    ],
)
def test_owners_that_do_not_decode_name_the_file(place: Path, value: bytes) -> None:
    (place / "file").write_text("x")
    set_owner(place / "file", value)
    with pytest.raises(InvalidInputError, match=r"/file: its xattr user.rootlesscontainers"):
        tar_of(place, rootless=True)


@pytest.mark.needs("root", "mkfs.ext4")
def test_owners_in_xattrs_are_mapped_once(place: Path) -> None:
    with pytest.raises(InvalidInputError, match="no maps"):
        tar_of(place, rootless=True, uids=[(0, 0, 10)])


@pytest.mark.needs("root", "mkfs.ext4")
@pytest.mark.parametrize(
    "key", ["user.fuseoverlayfs.override_stat", "user.containers.override_stat"]
)
def test_what_override_stat_says(place: Path, key: str) -> None:
    said = {
        "file": b"1000:5:4711",
        "old": b"1:2:100640",
        "named": b"1:2:600:file",
        "pipe": b"3:4:600:pipe",
        "disk": b"3:4:660:block-8-1",
        "tty": b"3:4:660:char-5-1",
        "socket": b"3:4:777:socket",
    }
    for name, value in said.items():
        (place / name).touch()
        os.setxattr(place / name, key, value)
    (place / "full").write_text("full")
    got = tar_of(place, fuse_overlayfs=True)
    assert (got["file"].uid, got["file"].gid, got["file"].mode) == (1000, 5, 0o4711)
    assert (got["old"].mode, got["named"].mode) == (0o640, 0o600)
    assert got["pipe"].isfifo()
    assert got["disk"].isblk()
    assert (got["disk"].devmajor, got["disk"].devminor) == (8, 1)
    assert got["tty"].ischr()
    assert "socket" not in got
    assert not any("override" in k for m in got.values() for k in m.pax_headers)
    for bad in (b"", b"1:2", b"1:2:9", b"1:2:644:what", b"1:2:644:pipe", b"4294967295:0:644"):
        os.setxattr(place / "full", key, bad)
        with pytest.raises(InvalidInputError, match=r"/full: its xattr"):
            tar_of(place, fuse_overlayfs=True)


@pytest.mark.needs("root", "mkfs.ext4")
def test_a_whiteout_that_removes_nothing_is_refused(place: Path) -> None:
    for name in (".wh.", ".wh..", ".wh...", ".wh.full"):
        (place / name).write_text("x" if name == ".wh.full" else "")
        with pytest.raises(InvalidInputError, match=r"\.wh\."):
            tar_of(place, fuse_overlayfs=True)
        os.unlink(place / name)


@pytest.mark.needs("root", "mkfs.ext4")
def test_the_command_line_says_who_made_it(place: Path, tmp_path: Path) -> None:
    (place / ".wh.gone").touch()
    (place / "file").write_text("x")
    set_owner(place / "file", b"\x08\x07\x10\x08")
    command = [sys.executable, "-m", "layerstore", "diff", "--upper", str(place), "--tar", "-"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert ".wh.gone" in refused.stderr
    done = subprocess.run([*command, "--fuse-overlayfs", "--rootless"], capture_output=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        got = {m.name: (m.uid, m.gid) for m in tar}
    assert got["file"] == (7, 8)
    assert ".wh.gone" in got
    wrong = subprocess.run(
        [sys.executable, "-m", "layerstore", "diff", place, place, "--fuse-overlayfs"],
        capture_output=True,
    )
    assert wrong.returncode == 2


@pytest.mark.needs("root", "mkfs.ext4")
def test_another_reading_is_not_taken_from_the_cache(place: Path, tmp_path: Path) -> None:
    (place / "file").write_text("x")
    set_owner(place / "file", b"\x08\x07")
    with layerstore.open(tmp_path / "store", create=True) as store:
        plain = store.diff_upper(place)
        stated = store.diff_upper(place, rootless=True)
        assert stated.digest != plain.digest
        assert store.diff_upper(place, rootless=True, cache=False).digest == stated.digest
        assert store.diff_upper(place).digest == plain.digest
