"""Upkeep gives way to requests: a share of a core while they come, and all cores after."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import time
import urllib.request
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry.test_mirror_workers import later
from registry.test_registry_server import serving

import layerstore
from layerstore.registry.upkeep import BURST, NAP, NICE, SHARE, Pace

__all__ = ["later"]
CORES = os.sched_getaffinity(0)


class World:
    """Clocks that stand still unless somebody works or naps; requests come in the seconds said."""

    def __init__(self, busy: list[tuple[float, float]]) -> None:
        self.time = 0.0
        self.used = 0.0
        self._busy = busy
        self.pace = Pace(self.busy, used=lambda: self.used, now=lambda: self.time, nap=self.nap)

    def busy(self) -> bool:
        return any(begin <= self.time < end for begin, end in self._busy)

    def nap(self, seconds: float) -> None:
        assert 0 < seconds <= NAP
        self.time += seconds

    def work(self, seconds: float, cores: float) -> None:
        self.time += seconds
        self.used += seconds * cores
        self.pace()


@pytest.fixture(autouse=True)
def _all_cores():
    yield
    os.sched_setaffinity(0, CORES)


@given(st.lists(st.tuples(st.floats(0.001, 0.3), st.floats(0.1, 2.0)), min_size=1, max_size=60))
def test_while_requests_come_it_has_a_share_of_one_core(pieces):
    world = World([(0.0, 1e9)])
    world.pace()
    for seconds, cores in pieces:
        world.work(seconds, cores)
    largest = max(seconds * cores for seconds, cores in pieces)
    assert world.used <= SHARE * world.time + BURST + largest
    assert os.sched_getaffinity(0) == {max(CORES)}


@given(st.lists(st.floats(0.001, 0.3), min_size=1, max_size=60))
def test_without_requests_it_never_waits(pieces):
    world = World([])
    for seconds in pieces:
        world.work(seconds, 2.0)
    assert world.time == pytest.approx(sum(pieces))
    assert os.sched_getaffinity(0) == CORES


def test_it_goes_on_when_requests_end():
    world = World([(0.0, 1.05)])
    world.pace()
    world.work(1.0, 1.0)
    assert world.time < 1.05 + NAP
    world.work(0.5, 2.0)
    assert world.time < 1.55 + NAP
    assert os.sched_getaffinity(0) == CORES


def _maintains(server: int) -> int | None:
    """The process that maintains: the child that is nicer than the others."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            if parent == server and os.getpriority(os.PRIO_PROCESS, int(name)) == NICE:
                return int(name)
        except (OSError, ProcessLookupError):
            continue
    return None


def _cores(pid: int) -> set[tuple[int, ...]]:
    """Where its threads may run."""
    found = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/task"):
            found.add(tuple(sorted(os.sched_getaffinity(int(name)))))
    return found


def test_a_server_optimizes_on_one_core_until_requests_end(tmp_path):
    source = random.Random(1)
    words = [source.randbytes(9) for _ in range(3000)]
    with layerstore.open(tmp_path / "store") as store:
        repository = store.repository("app")
        for _ in range(10):
            content = b"".join(source.choices(words, k=400_000))
            layer = repository.put_blob(gzip.compress(content, 6))
    with serving(tmp_path / "store", "--optimize", "now", "--gc", "off") as (process, url):
        request = urllib.request.Request(f"{url}/v2/app/blobs/{layer.digest}", method="HEAD")
        pinned = 0
        deadline = time.monotonic() + 60
        while pinned < 10 and time.monotonic() < deadline:
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200
            pid = _maintains(process.pid)
            if pid is not None:
                pinned = pinned + 1 if _cores(pid) == {(max(CORES),)} else 0
            time.sleep(0.01)
        assert pinned == 10
        deadline = time.monotonic() + 60
        while pid is not None and time.monotonic() < deadline:
            if _cores(pid) == {tuple(sorted(CORES))}:
                return
            time.sleep(0.005)
            pid = _maintains(process.pid)
        raise AssertionError("it never had all cores")


def test_a_collector_gives_way_between_its_pieces_of_work_only(tmp_path, later):
    """Whoever is told of its progress may keep it waiting. It holds no snapshot then, which would keep
    pages of the index from being used again, and not the gate, for which writers wait."""
    told = []
    with layerstore.open(tmp_path / "store") as store:
        repository = store.repository("a", idle=3.0)
        for n in range(200):
            repository.put_blob(b"%06d" % n)
        later(4.0)
        env = store._storage.index._shared.env
        with store._storage.index.read():
            assert readers(env) == 1

        def waits(progress) -> None:
            told.append((progress.stage, readers(env)))
            with layerstore.open(tmp_path / "store", timeout=1.0) as other:
                other.put(b"%d" % len(told))

        report = store.gc(progress=waits)
        assert report.removed_blobs >= 200
    assert {stage for stage, _ in told} == {"leases", "mark", "delete", "reclaim"}
    assert {held for _, held in told} == {0}


def readers(env) -> int:
    """Of an LMDB environment, those that hold a snapshot."""
    rows = [line.split() for line in env.readers().splitlines()[1:]]
    return sum(row[2] != "-" for row in rows if len(row) == 3)
