"""Which filesystem a path lies on: LMDB and flock are not sound on remote ones, so they are refused.
And which mounts this machine has: those of snapshots are found by their source, also in the mount
namespaces of other processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UnsupportedError

REMOTE = frozenset(
    (
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ncpfs",
        "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse",
        "fuse.goofys", "fuse.davfs", "davfs", "gfs2", "ocfs2", "beegfs", "gpfs",
    )
)  # fmt: skip
_ESCAPE = re.compile(r"\\([0-7]{3})")
MOUNTINFO = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of mountinfo (proc(5)): what is mounted where. `pid` is a process in whose mount
    namespace it is, 0 for our own."""

    source: str
    kind: str
    target: str
    pid: int = 0


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda m: chr(int(m[1], 8)), text)


def _read(path: str, pid: int) -> Iterator[Mount]:
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            fields, _, tail = line.partition(" - ")
            kind, source = tail.split()[:2]
            yield Mount(_unescape(source), kind, _unescape(fields.split()[4]), pid)


def mounts(*, everywhere: bool = False) -> Iterator[Mount]:
    """All mounts of our mount namespace; `everywhere`: and of those of other processes, as far as
    they may be looked at."""
    yield from _read(MOUNTINFO, 0)
    if not everywhere:
        return
    seen = {os.readlink("/proc/self/ns/mnt")}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            space = os.readlink(f"/proc/{name}/ns/mnt")
            if space not in seen:
                yield from _read(f"/proc/{name}/mountinfo", int(name))
                seen.add(space)
        except OSError:
            continue  # it ended, or is somebody else's


def filesystem_of(path: str) -> str:
    """The type of the filesystem that holds `path` (proc(5), mountinfo); empty if unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    real = os.path.realpath(path)
    best, kind = "", ""
    with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            fields, _, tail = line.partition(" - ")
            parts = fields.split()
            where = _unescape(parts[4])
            inside = real == where or real.startswith(where.rstrip("/") + "/")
            # Some filesystems (btrfs) show another device in stat than in mountinfo.
            if (
                inside
                and (len(where) > len(best) or parts[2] == wanted)
                and len(where) >= len(best)
            ):
                best, kind = where, tail.split()[0]
    return kind


def refuse_remote(path: str) -> None:
    """Raises UnsupportedError on a remote filesystem."""
    kind = filesystem_of(path)
    if kind in REMOTE:
        raise UnsupportedError(
            f"{path} lies on {kind}: locks and the memory-mapped index are not safe on a remote "
            "filesystem; keep the store on a local disk",
            path=path,
        )
