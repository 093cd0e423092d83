"""What tests of diffs share: a tree as a value, an independent applier of layers, a disk of their own.

The applier is Python's tarfile and plain system calls, following image-spec layer.md; it knows nothing
of the code under test.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
}
OWN = ("trusted.overlay.", "user.overlay.")
PLAIN = {**os.environ, "LC_ALL": "C"}


@contextmanager
def disk(path: Path, mib: int = 512) -> Iterator[Path]:
    """An ext4 filesystem in a file: overlayfs, file handles and xattrs work there, whatever the
    temporary directory is on."""
    image = path / "disk.img"
    where = path / "disk"
    where.mkdir()
    with open(image, "wb") as f:
        f.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-I", "256", image], check=True)
    subprocess.run(["mount", "-o", "loop,noatime", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)
        image.unlink()


@contextmanager
def overlay(
    lower: list[Path], upper: Path | None, work: Path, where: Path, options: str = ""
) -> Iterator[Path]:
    """The kernel's overlayfs; only to be read without an upper directory."""
    where.mkdir(exist_ok=True)
    text = "lowerdir=" + ":".join(map(str, lower))
    if upper is not None:
        work.mkdir(exist_ok=True)
        text += f",upperdir={upper},workdir={work}"
    text += f",{options}" if options else ""
    _mount(["-t", "overlay", "overlay", "-o", text, str(where)], work / "work" / "incompat")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


def _mount(words: list[str], mark: Path) -> None:
    """mount(8). With index=on a directory that is in use elsewhere is refused: for a moment, a process
    that was just put into a mount namespace of its own may still have the mount before this one."""
    for _ in range(100):
        # Left by "volatile", which saves the syncs, also by a mount that failed: the next is refused.
        shutil.rmtree(mark, ignore_errors=True)
        done = subprocess.run(["mount", *words], capture_output=True, text=True, env=PLAIN)
        if done.returncode == 0:
            return
        if "already mounted" not in done.stderr:
            break
        time.sleep(0.2)
    raise RuntimeError(f"mount {' '.join(words)}: {done.stderr}")


def tree(root: Path, *, sockets: bool = False) -> dict[str, dict[str, Any]]:
    """Everything about every file that a layer should bring back; links as the first of their names."""
    out: dict[str, dict[str, Any]] = {}
    first: dict[str, str] = {}

    def add(path: str, name: str) -> None:
        st = os.lstat(path)
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFSOCK and not sockets:
            return
        one: dict[str, Any] = {
            "type": kind,
            "mode": stat.S_IMODE(st.st_mode),
            "owner": (st.st_uid, st.st_gid),
            "mtime": st.st_mtime_ns,
        }
        if kind == stat.S_IFREG:
            with open(path, "rb") as f:
                one["content"] = hashlib.sha256(f.read()).hexdigest()
            one["size"] = st.st_size
        if kind == stat.S_IFLNK:
            one["link"] = os.readlink(path)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            one["device"] = st.st_rdev
        if kind != stat.S_IFDIR:
            keys = (f"{st.st_dev}:{st.st_ino}", _inode(path))
            one["first"] = next((first[k] for k in keys if k in first), name)
            first.update(dict.fromkeys(keys, one["first"]))
        one["xattrs"] = {
            x: os.getxattr(path, x, follow_symlinks=False)
            for x in sorted(os.listxattr(path, follow_symlinks=False))
            if not x.startswith(OWN) and x != "security.selinux"
        }
        out[name] = one
        if kind == stat.S_IFDIR:
            for child in sorted(os.listdir(path)):
                add(os.path.join(path, child), f"{name}/{child}")

    add(str(root), ".")
    return out


def _inode(path: str) -> str:
    """The inode that the kernel has open: overlayfs gives one inode several st_ino, when one of its
    names was copied up and another was made by `link`."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as f:
            return next(line for line in f if line.startswith("ino:"))
    finally:
        os.close(fd)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def apply(layer: Path, root: Path, *, stale: bool = False) -> None:
    """Applies a layer's tar to a directory as image-spec layer.md says. With `stale` it may remove
    files from a directory that it replaced by a symbolic link (umoci's do), which means nothing."""
    root = root.resolve()
    ours: set[str] = {"."}
    times: list[tuple[str, int]] = []
    with tarfile.open(layer, errorlevel=2) as tar:
        for member in tar:
            name = os.path.normpath(member.name)
            path = os.path.join(root, name)
            base = os.path.basename(name)
            if base.startswith(".wh."):
                linked = os.path.realpath(os.path.dirname(path)) != os.path.dirname(path)
                assert stale or not linked, f"{name}: removes what a link leads to"
                if linked:
                    continue
            if base == ".wh..wh..opq":
                parent = os.path.dirname(name) or "."
                for child in os.listdir(os.path.dirname(path)):
                    if os.path.normpath(f"{parent}/{child}") not in ours:
                        remove(os.path.join(os.path.dirname(path), child))
                continue
            if base.startswith(".wh."):
                gone = os.path.join(os.path.dirname(path), base[4:])
                # What the layer itself has is not meant, whatever comes first.
                if os.path.lexists(gone) and os.path.relpath(gone, root) not in ours:
                    remove(gone)
                continue
            ours.add(name)
            there = os.path.lexists(path)
            both = member.isdir() and there and stat.S_ISDIR(os.lstat(path).st_mode)
            if there and not both:
                remove(path)
            if member.islnk():
                os.link(os.path.join(root, member.linkname), path, follow_symlinks=False)
                continue
            times.append((path, _make(tar, member, path, both)))
    for path, when in reversed(times):
        os.utime(path, ns=(when, when), follow_symlinks=False)


def _make(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str, both: bool) -> int:
    kind = TYPES[member.type]
    if kind == stat.S_IFDIR:
        if not both:
            os.mkdir(path)
        for x in os.listxattr(path):
            os.removexattr(path, x)
    elif kind == stat.S_IFLNK:
        os.symlink(member.linkname, path)
    elif kind == stat.S_IFREG:
        source = tar.extractfile(member)
        assert source is not None
        with open(path, "xb") as f:
            f.write(source.read())
    else:
        os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if kind != stat.S_IFLNK:
        os.chmod(path, member.mode)
    for key, value in member.pax_headers.items():
        if key.startswith("SCHILY.xattr."):
            raw = value.encode("utf-8", "surrogateescape")
            os.setxattr(path, key[13:], raw, follow_symlinks=False)
    return mtime_ns(member)


def mtime_ns(member: tarfile.TarInfo) -> int:
    """Nanoseconds, without the rounding of a float."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime) * 10**9
    sign = -1 if text.startswith("-") else 1
    whole, _, part = text.lstrip("-").partition(".")
    return sign * (int(whole) * 10**9 + int((part + "0" * 9)[:9]))
