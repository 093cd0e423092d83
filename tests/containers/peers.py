"""podman and buildah with a storage of their own in a directory, on any machine that gives root.

crun refuses a machine with cgroups of both versions, so they see one only; limits are low ones, which
nobody needs a right for.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import making

ONE = "if test -d /sys/fs/cgroup/unified; then umount -l /sys/fs/cgroup/unified; fi"
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
ALONE = ("--network", "none", "--cgroups=disabled", *LIMITS)


def _command(program: str, home: Path, *args: str | Path) -> list[str]:
    storage = ("--root", home / "root", "--runroot", home / "run", "--storage-driver", "vfs")
    more = ("--cgroup-manager", "cgroupfs") if program == "podman" else ()
    return list(map(str, (program, *storage, *more, *args)))


def podman(home: Path, *args: str | Path) -> str:
    """What it printed; it must succeed. `home`: where its storage lies."""
    return making.run("unshare", "-m", "sh", "-c", f'{ONE}; exec "$@"', "sh",
                      *_command("podman", home, *args))  # fmt: skip


def podman_run(home: Path, image: str) -> tuple[int, str]:
    """Status and output of a container of an image."""
    command = _command("podman", home, "run", "--rm", *ALONE, image)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{ONE}; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode < 125, done.stderr
    return done.returncode, done.stdout


def buildah(home: Path, *args: str | Path) -> str:
    """What it printed, without the line's end; it must succeed."""
    return making.run(*_command("buildah", home, *args)).strip()
