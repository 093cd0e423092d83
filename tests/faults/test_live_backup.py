"""A live backup by an atomic snapshot of the filesystem, as README says: the copy is a whole store.

btrfs on a loop device; writers and gc go on while the snapshot is taken. What was acknowledged before
is in the copy, every byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores

import layerstore

WRITER = """
import os, random, sys
sys.path.insert(0, sys.argv[3])
import layerstore, stores
seed = int(sys.argv[2])
source = random.Random(seed)
with layerstore.open(sys.argv[1], timeout=60) as store:
    kept = []
    for turn in range(10**9):
        number = 1000 * seed + turn
        name = f"w{seed}-{turn}"
        if turn % 3 == 2:
            store.cache.put(name, store.put(stores.words(number, 30_000)))
            os.write(1, f"cached {name} {number}\\n".encode())
        else:
            stores.keep(store._content, name, stores.words(number, 20_000 + 40_000 * (turn % 2)))
            os.write(1, f"have {name} {number}\\n".encode())
            kept.append(name)
        if len(kept) > 8:
            gone = kept.pop(source.randrange(len(kept)))
            os.write(1, f"drop {gone} 0\\n".encode())
            store.untag(gone)
        if turn % 5 == 0:
            store.gc(aggressive=source.random() < 0.5)
"""
SIZES = (20_000, 60_000)


@pytest.fixture
def volume() -> Iterator[Path]:
    """A btrfs filesystem of its own, with a subvolume `live`."""
    with tempfile.TemporaryDirectory(prefix="layerstore-backup-") as folder:
        image, place = Path(folder, "disk"), Path(folder, "at")
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(1 << 30)
        subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
        try:
            subprocess.run(["btrfs", "-q", "subvolume", "create", str(place / "live")], check=True)
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.needs("root", "mkfs.btrfs")
def test_a_snapshot_of_a_live_store_is_a_whole_store(volume: Path) -> None:
    path, said = str(volume / "live/store"), volume / "said"
    layerstore.open(path).close()
    tests = str(Path(__file__).parents[1])
    errors = volume / "errors"
    with said.open("ab") as out, errors.open("ab") as err:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, path, str(seed), tests], stdout=out, stderr=err
            )
            for seed in (1, 2, 3)
        ]
    acknowledged = []
    try:
        for turn in range(6):
            lines = len(said.read_bytes().splitlines())
            deadline = time.monotonic() + 60
            while len(said.read_bytes().splitlines()) < lines + 25:
                assert time.monotonic() < deadline, errors.read_text()
                time.sleep(0.01)
            before = said.read_text()
            copy = volume / f"copy{turn}"
            subprocess.run(
                ["btrfs", "-q", "subvolume", "snapshot", str(volume / "live"), str(copy)],
                check=True,
            )
            acknowledged.append((copy / "store", before, said.read_text()))
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert errors.read_text() == ""
    for copy, before, after in acknowledged:
        dropped = {line.split()[1] for line in after.splitlines() if line.startswith("drop ")}
        with layerstore.open(copy, timeout=20) as store:
            names = {one.name: one.digest for one in store.images()}
            found = 0
            for word, name, number in (line.split() for line in before.splitlines()):
                if word == "have" and name not in dropped:
                    turn = int(number) % 1000
                    data = stores.words(int(number), SIZES[turn % 2])
                    assert names[name] == stores.sha256(data)
                    assert stores.get(store._content, names[name]) == data
                    found += 1
                elif word == "cached":
                    data = stores.words(int(number), 30_000)
                    assert store.cache.get(name).digest == stores.sha256(data)
                    found += 1
            assert found >= 10
            assert store.check(full=True).ok
            # And it goes on as a store of its own.
            store.put(b"more")
            store.gc(aggressive=True)
            assert store.check(full=True).ok
        assert os.path.isdir(copy)
