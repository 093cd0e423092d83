"""Which filesystem a path lies on: LMDB and flock are not sound on remote ones, so they are refused."""

from __future__ import annotations

import os
import re

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
            where = _ESCAPE.sub(lambda m: chr(int(m[1], 8)), parts[4])
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
