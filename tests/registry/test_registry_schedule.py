"""When a server optimizes and collects: while it is idle; beside requests when that was long ago."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry.test_registry_operation import awaited, get, put, samples
from registry.test_registry_server import serving_with

import layerstore
from layerstore.registry.config import Config, MaintenanceConfig, ProxyConfig
from layerstore.registry.schedule import GC_EVERY, JOBS, Schedule

QUIET, OVERDUE, STEP = 30.0, 3600.0, 10.0


class World:
    """A server and its jobs, in steps: requests come or not; a job takes so many steps of its own."""

    def __init__(self, optimize: str = "idle", gc: str = "idle", **more: float) -> None:
        upkeep = MaintenanceConfig(optimize, gc, quiet=QUIET, overdue=OVERDUE, **more)
        self.time = self.last = 1000.0
        self.schedule = Schedule(Config(maintenance=upkeep), self.time)
        self.job: tuple[str, float, int] | None = None
        self.done: dict[str, list[float]] = {what: [] for what in JOBS}
        self.stopped: list[str] = []
        self.beside: set[str] = set()
        self.takes = dict.fromkeys(JOBS, 2)
        self.results = dict.fromkeys(JOBS, "done")

    def step(self, busy: bool) -> None:
        self.time += STEP
        if busy:
            self.last = self.time
        if self.job is None:
            what = self.schedule.next(self.time, self.last)
            if what is not None:
                self.job = (what, self.time, self.takes[what])
            return
        what, began, left = self.job
        if self.schedule.stops(what, self.time, self.last):
            self.stopped.append(what)
            self.end("interrupted")
            return
        if busy:
            self.beside.add(what)
        self.job = (what, began, left - 1)
        if left <= 1:
            self.end(self.results[what])

    def end(self, result: str) -> None:
        what, began, _ = self.job
        self.job = None
        self.schedule.ended(what, began, self.time, result)
        if result == "done":
            self.done[what].append(self.time)

    def run(self, seconds: float, busy: bool) -> None:
        for _ in range(int(seconds / STEP)):
            self.step(busy)


def test_an_idle_server_does_both_once_and_then_rests():
    world = World()
    world.run(QUIET + 20 * STEP, busy=False)
    assert [len(world.done[what]) for what in JOBS] == [1, 1]
    assert world.done["optimize"] < world.done["gc"]
    world.step(busy=True)
    world.run(QUIET + 20 * STEP, busy=False)
    assert [len(world.done[what]) for what in JOBS] == [2, 2]
    assert not world.beside


def test_what_waits_for_idleness_stops_when_requests_come_back():
    world = World()
    world.takes["optimize"] = 100
    world.run(QUIET + 5 * STEP, busy=False)
    assert world.job is not None
    world.step(busy=True)
    assert (world.job, world.stopped) == (None, ["optimize"])
    assert world.time < 1000 + OVERDUE


def test_a_server_that_is_never_idle_does_both_each_time_they_are_overdue():
    world = World()
    world.run(OVERDUE - STEP, busy=True)
    assert world.job is None
    assert world.done == {"gc": [], "optimize": []}
    world.run(10 * OVERDUE, busy=True)
    for what in JOBS:
        assert 9 <= len(world.done[what]) <= 10
    assert world.beside == set(JOBS)
    assert not world.stopped


def test_an_optimizing_that_takes_long_makes_way_for_gc():
    world = World()
    world.takes["optimize"] = 10_000
    world.run(10 * OVERDUE, busy=True)
    assert len(world.done["gc"]) >= 9
    assert set(world.stopped) == {"optimize"}
    assert world.job[0] == "optimize"


@pytest.mark.parametrize("busy", [False, True])
def test_what_fails_is_tried_again_after_a_while(busy):
    world = World(optimize="off")
    world.results["gc"], began = "failed", 0
    for _ in range(int(2 * OVERDUE / STEP)):
        before = world.job
        world.step(busy)
        began += before is None and world.job is not None
    tried = OVERDUE if busy else 2 * OVERDUE
    assert tried / GC_EVERY / 3 < began <= tried / GC_EVERY


@pytest.mark.parametrize("optimize", ["idle", "now"])
def test_a_gc_that_fails_keeps_nothing_from_its_end(optimize):
    """As where something is missing: nothing is collected until a check has said what."""
    world = World(optimize=optimize)
    world.results["gc"] = "failed"
    world.takes["optimize"] = 60
    world.run(10 * OVERDUE, busy=True)
    assert len(world.stopped) <= 1
    assert len(world.done["optimize"]) >= 5


def test_what_is_off_never_runs_and_what_is_now_needs_no_idleness():
    world = World(optimize="now", gc="off")
    world.run(3 * OVERDUE, busy=True)
    assert not world.done["gc"]
    assert len(world.done["optimize"]) > 3 * OVERDUE / GC_EVERY / 3
    assert world.beside == {"optimize"}


def test_a_mirror_without_requests_collects_what_runs_out():
    proxy = ProxyConfig("docker://h.lan", idle=7200.0)
    upkeep = MaintenanceConfig(gc="idle", idle=60.0, quiet=QUIET)
    schedule = Schedule(Config(maintenance=upkeep, proxy=proxy), 0.0)
    runs, now = [], 0.0
    while now < 20_000:
        now += STEP
        if schedule.next(now, 5.0) == "gc":
            runs.append(now)
            schedule.ended("gc", now, now, "done")
    assert runs[-1] >= 7205  # all has run out by then, and nothing has to follow
    assert runs[-1] < 7205 + 2 * 900
    assert schedule.next(1e9, 5.0) is None
    schedule.held_back(True)
    assert schedule.next(1e9, 5.0) == "gc"


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400)), max_size=10))
def test_gc_comes_to_its_end_in_time_whatever_came_before(stretches):
    world = World()
    world.takes["optimize"] = 50
    for busy, steps in stretches:
        world.run(steps * STEP, busy)
    before = len(world.done["gc"])
    world.run(OVERDUE + 6 * STEP, busy=True)
    assert len(world.done["gc"]) > before


def test_a_server_that_is_never_idle_collects(tmp_path):
    config = '[maintenance]\nidle = "1s"\ngc = "idle"\nquiet = "30s"\noverdue = "2s"\n'
    over = threading.Event()
    with serving_with(tmp_path, config) as (_, url, _errors):

        def ask() -> None:
            while not over.wait(0.05):
                get(f"{url}/v2/")

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            digest = put(url, "team/app", bytes(3000))  # no manifest will name it
            with layerstore.open(tmp_path / "store") as store:
                assert [blob.digest for blob in store.blobs()] == [digest]
                awaited(lambda: not list(store.blobs()))

            def counted() -> dict[str, float] | None:
                found = samples(get(f"{url}/metrics").decode())
                done = 'layerstore_maintenance_runs_total{what="gc",result="done"}'
                return found if found.get(done) else None

            found = awaited(counted)
            assert found['layerstore_maintenance_seconds_total{what="gc"}'] > 0
            assert 'layerstore_maintenance_freed_bytes_total{what="gc"}' in found
        finally:
            over.set()
            asking.join()
