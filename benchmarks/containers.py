"""Section on containers: how soon a root filesystem is ready when the image is unpacked already.

The limit it is held against is the disk's: a snapshot that was acknowledged must be there after a power
cut, so an index commit (two synced writes) is the least that it can cost. Each container gets a process
in a mount namespace of its own, as a runtime gives it one: what a hundred of them cost the next one is
part of the figure.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from pathlib import Path

import layerstore
from benchmarks.measure import Command, call, timed
from benchmarks.report import Figure
from benchmarks.setting import Setting

COUNT = 100
APPEND = 512
"""Bytes of one commit record of a snapshot, about."""


def _start(store: layerstore.Store, image: str, work: Path, n: int) -> float:
    """Seconds until one more container's root filesystem can be used."""
    began = time.monotonic()
    store.snapshots.prepare(f"c{n}", image)
    store.snapshots.mount(f"c{n}", work / f"c{n}", driver="overlay")
    return time.monotonic() - began


def _synced(path: Path) -> float:
    """Seconds of one fdatasync behind a short append to a file of this disk; the median."""
    walls = []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for n in range(COUNT):
            began = time.monotonic()
            os.pwrite(fd, bytes(APPEND), n * APPEND)
            os.fdatasync(fd)
            walls.append(time.monotonic() - began)
    finally:
        os.close(fd)
    return statistics.median(walls)


def snapshots(s: Setting) -> list[Figure]:
    """Prepare and mount, a hundred times, all mounted at once; through the library and through the
    command line, whose start is counted."""
    path = s.fresh("containers")
    call(s.ours(path, "import", f"oci:{s.plain.path}:{s.rebuilt[1]}", "image"))
    work = s.fresh("mounts")
    work.mkdir()
    keys: list[str] = []
    running: list[subprocess.Popen[bytes]] = []
    with layerstore.open(path) as store:
        layers = len(store.image("image").layers)
        began = time.monotonic()
        store.snapshots.prepare("unpacked", "image")
        unpacking = time.monotonic() - began
        os.sync()
        try:
            walls = []
            for n in range(COUNT):
                keys.append(f"c{n}")
                walls.append(_start(store, "image", work, n))
                running.append(subprocess.Popen(["unshare", "-m", "sleep", "600"]))
            synced = _synced(work / "synced")
            commands: list[Command] = [
                s.ours(path, "snapshot", "prepare", "typed", "image"),
                s.ours(path, "snapshot", "mount", "typed", work / "typed"),
            ]
            keys.append("typed")
            typed = timed(commands).wall
        finally:
            for one in running:
                one.kill()
                one.wait()
            for key in keys:
                subprocess.run(["umount", "-l", work / key], check=False)
    middle = statistics.median(walls)
    late = statistics.median(walls[-10:]) / statistics.median(walls[1:11])
    detail = {"layers": layers, "first": walls[0], "best": min(walls), "worst": max(walls[1:])}
    return [
        Figure("container ready, library", middle, "s", 0.02, False, detail),
        Figure(f"{COUNT} containers ready, library", sum(walls), "s", 2.0),
        Figure("containers 91 to 100: of 2 to 11", late, "ratio", 2.0),
        Figure("a short append and its fdatasync on this disk", synced * 1000, "ms", None),
        Figure("container ready, command line (two commands)", typed, "s", None),
        Figure("unpacking the image, once", unpacking, "s", None),
    ]
