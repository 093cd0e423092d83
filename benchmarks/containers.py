"""Section on containers: how soon a root filesystem is ready when the image is unpacked already."""

from __future__ import annotations

import statistics
import subprocess
import time
from pathlib import Path

import layerstore
from benchmarks.measure import Command, timed
from benchmarks.report import Figure
from benchmarks.setting import Setting

COUNT = 100


def _start(store: layerstore.Store, image: str, work: Path, n: int) -> float:
    """Seconds until one more container's root filesystem can be used."""
    began = time.monotonic()
    store.snapshots.prepare(f"c{n}", image)
    store.snapshots.mount(f"c{n}", work / f"c{n}", driver="overlay")
    return time.monotonic() - began


def snapshots(s: Setting) -> list[Figure]:
    """Prepare and mount, a hundred times, all mounted at once; through the library and through the
    command line, whose start is counted."""
    path = s.copy_of(s.full_store(), "containers")
    work = s.fresh("mounts")
    work.mkdir()
    keys: list[str] = []
    with layerstore.open(path) as store:
        image = s.names(path)[-1]
        began = time.monotonic()
        store.snapshots.prepare("unpacked", image)
        unpacking = time.monotonic() - began
        try:
            walls = []
            for n in range(COUNT):
                keys.append(f"c{n}")
                walls.append(_start(store, image, work, n))
            commands: list[Command] = [
                s.ours(path, "snapshot", "prepare", "typed", image),
                s.ours(path, "snapshot", "mount", "typed", work / "typed"),
            ]
            keys.append("typed")
            typed = timed(commands).wall
        finally:
            for key in keys:
                subprocess.run(["umount", "-l", work / key], check=False)
    late = statistics.median(walls[-10:]) / statistics.median(walls[1:11])
    detail = {"image": image, "best": min(walls), "worst": max(walls)}
    return [
        Figure("container ready, library", statistics.median(walls), "s", 0.02, False, detail),
        Figure(f"{COUNT} containers ready, library", sum(walls), "s", 2.0),
        Figure("containers 91 to 100: of 2 to 11", late, "ratio", 2.0),
        Figure("container ready, command line (two commands)", typed, "s", None),
        Figure("unpacking the image, once", unpacking, "s", None),
    ]
