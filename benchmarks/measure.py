"""Measuring: commands timed in turn, the memory of a whole process tree, bytes on disk."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds of wall clock and of CPU, peak memory in bytes."""

    wall: float
    cpu: float
    anonymous: int = 0
    """Highest sum over all processes of anonymous plus shared memory; 0 when not sampled."""
    mapped: int = 0
    """Highest sum of mapped file pages (the index, libraries)."""


@dataclass
class Contender:
    """Something that is timed: steps run one after the other, after an untimed preparation."""

    name: str
    steps: Sequence[Command]
    prepare: Callable[[], None] = lambda: None
    runs: list[Run] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(run.wall for run in self.runs)


def du(*paths: Path) -> int:
    """Bytes that files and directories take on disk (st_blocks), each inode once."""
    seen: dict[tuple[int, int], int] = {}
    for root in paths:
        for path in (root, *root.rglob("*")):
            s = os.lstat(path)
            seen[(s.st_dev, s.st_ino)] = s.st_blocks * 512
    return sum(seen.values())


def lengths(directory: Path) -> int:
    """Bytes of all files by their lengths, without what a filesystem rounds up."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def warm(paths: Iterable[Path]) -> None:
    """Reads files once, so that they are in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as f:
            while f.read(1 << 20):
                pass


def call(command: Command, env: Mapping[str, str] | None = None) -> str:
    """Runs a command to its end; what it printed. Raises with its own words when it fails."""
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    if done.returncode:
        words = f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stderr[-4000:]}"
        raise RuntimeError(words)
    return done.stdout


def timed(steps: Sequence[Command], env: Mapping[str, str] | None = None) -> Run:
    """Runs the steps; their wall clock and CPU time. Dirty pages of before are written first."""
    os.sync()
    before, start = os.times(), time.monotonic()
    for step in steps:
        call(step, env)
    wall, after = time.monotonic() - start, os.times()
    cpu = after.children_user + after.children_system
    return Run(wall, cpu - before.children_user - before.children_system)


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs of a function."""
    walls = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        walls.append(time.perf_counter() - start)
    return min(walls)


def in_turn(contenders: Sequence[Contender], rounds: int, env: Mapping[str, str]) -> None:
    """A B A B ...: each contender once a round, so that what disturbs one disturbs all."""
    for _ in range(rounds):
        for contender in contenders:
            contender.prepare()
            contender.runs.append(timed(contender.steps, env))


def memory_of(pid: int) -> tuple[int, int]:
    """Anonymous plus shared, and mapped file pages of one process, in bytes. Pages that several
    processes share are counted once in the sum (proportional set size)."""
    anonymous = mapped = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("Pss_Anon", "Pss_Shmem", "SwapPss"):
            anonymous += int(value.split()[0]) * 1024
        elif key == "Pss_File":
            mapped += int(value.split()[0]) * 1024
    return anonymous, mapped


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            tasks = list(Path(f"/proc/{parent}/task").iterdir())
            for task in tasks:
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while it was looked at
    return found


def peak_memory(command: Command, interval: float = 0.01) -> Run:
    """Runs a command and samples the memory of all its processes."""
    peak = [0, 0]
    start, before = time.monotonic(), os.times()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(interval):
            total = [0, 0]
            for pid in tree(process.pid):
                try:
                    anonymous, mapped = memory_of(pid)
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it ended while it was looked at
                total[0] += anonymous
                total[1] += mapped
            peak[0], peak[1] = max(peak[0], total[0]), max(peak[1], total[1])

    sampler = threading.Thread(target=sample)
    sampler.start()
    words = process.communicate()[1]
    ended.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {process.returncode}\n{words[-4000:]}")
    wall, after = time.monotonic() - start, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Run(wall, cpu, peak[0], peak[1])
