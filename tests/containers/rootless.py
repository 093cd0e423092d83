"""Code of a test run as somebody who is not root, as rootless builders run it.

The process imports all that it may need and becomes an ordinary user then: interpreter and sources may
lie in a home that others cannot enter. With a namespace it goes on as root of a user namespace of its
own, with its own mounts: of one id, as anybody may make one; of many, which the caller gives it; or of
subordinate ids, which newuidmap(1) and newgidmap(1) give to who has a line in /etc/subuid.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UID, GID = 5, 60
"""`games` of Debian's base-passwd: fusermount3 wants a user that has a name."""

_START = """
import ctypes, importlib, json, os, pkgutil, shutil, subprocess, sys
sys.path[:0] = sys.argv[1].split(":")
import layerstore
for found in pkgutil.walk_packages(layerstore.__path__, "layerstore."):
    if found.name.rpartition(".")[2] not in ("__main__", "_build"):
        importlib.import_module(found.name)
import isal.isal_zlib, lmdb, zstandard
import making
os.umask(0o022)
os.setgroups([])
os.setgid(GID)
os.setuid(UID)
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: its files in /proc are its own again
helper = 0
if sys.argv[2] == "subids":
    # Somebody of the same user who stays outside asks for the map.
    ready, go = os.pipe()
    here = str(os.getpid())
    helper = os.fork()
    if not helper:
        try:
            os.read(ready, 1)
            for name, own in (("newuidmap", UID), ("newgidmap", GID)):
                subprocess.run([name, here, "0", str(own), "1", "1", "100000", "65535"], check=True)
            os._exit(0)
        finally:
            os._exit(1)
if sys.argv[2]:
    if libc.unshare(0x10020000) != 0:  # CLONE_NEWUSER | CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    if sys.argv[2] == "one":
        maps = (("setgroups", "deny"), ("uid_map", f"0 {UID} 1"), ("gid_map", f"0 {GID} 1"))
        for name, text in maps:
            with open(f"/proc/self/{name}", "w") as f:
                f.write(text)
    elif helper:
        libc.prctl(4, 1, 0, 0, 0)
        os.write(go, b"x")
        if os.waitpid(helper, 0)[1]:
            raise SystemExit("no map of subordinate ids")
    else:
        print("map me", flush=True)
        sys.stdin.readline()
    if sys.argv[2] != "one":
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
work = sys.argv[3]
os.environ["HOME"] = work
os.chdir(work)
"""


@contextmanager
def home() -> Iterator[Path]:
    """A directory of the ordinary user, in a place that everybody may reach, not in memory: there user
    xattrs have limits."""
    made = Path(tempfile.mkdtemp(prefix="layerstore-rootless-", dir="/var/tmp"))
    try:
        os.chown(made, UID, GID)
        yield made
    finally:
        shutil.rmtree(made)


def run(
    code: str,
    work: Path,
    *,
    namespace: str = "",
    fuse: bool = False,
    said: str = "",
    status: int = 0,
) -> str:
    """What `code` printed; `work` is its directory, `layerstore` and `making` are imported.
    `namespace`: empty, `one`, `many` or `subids`. `fuse`: /dev/fuse is there for everybody, as on most
    machines; else it is nobody's. `said`: a line on its standard input. `status`: how it must end."""
    here = Path(__file__).parent
    path = f"{here}:{here.parents[1]}"
    start = f"UID, GID = {UID}, {GID}\n{_START}\n{code}"
    # crun refuses a machine with cgroups of both versions.
    before = ["if test -d /sys/fs/cgroup/unified; then umount -l /sys/fs/cgroup/unified; fi"]
    device = f"{work}.fuse"
    before.append(f"mknod {device} c 10 229; chmod {'666' if fuse else '000'} {device}")
    before.append(f"mount --bind {device} /dev/fuse; rm {device}")
    if namespace == "subids":
        for name in ("subuid", "subgid"):
            Path(f"{work}.{name}").write_text(f"{pwd.getpwuid(UID).pw_name}:100000:65535\n")
            before.append(f"touch /etc/{name}; mount --bind {work}.{name} /etc/{name}")
            before.append(f"rm {work}.{name}")
    command = ["unshare", "-m", "sh", "-ec", f'{"; ".join(before)}; exec "$@"', "sh"]
    command += [sys.executable, "-c", start, path, namespace, str(work)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if namespace == "many" and child.stdout.readline() == "map me\n":
            for name, own in (("uid_map", UID), ("gid_map", GID)):
                Path(f"/proc/{child.pid}/{name}").write_text(f"0 {own} 1\n1 100000 65535\n")
            child.stdin.write("\n")
            child.stdin.flush()
        out, err = child.communicate(f"{said}\n", timeout=120)
    assert child.returncode == status, err
    return out
