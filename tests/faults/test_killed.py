"""Processes that are killed or interrupted at any moment: what they were told is there, is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores
from crash_worker import BLOBS, content_of, image_of, number_of

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "crash_worker.py")
ROUNDS = int(os.environ.get("LAYERSTORE_KILLS", "300")) // 2
"""For each of two seeds."""


def _environment() -> dict[str, str]:
    import layerstore

    root = os.path.dirname(os.path.dirname(os.path.abspath(layerstore.__file__)))
    return {**os.environ, "PYTHONPATH": root}


class Zygote:
    """Starts workers and reads what they say."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.pid = 0

    def begin(self, path: str, seed: int) -> None:
        self._in.write(f"{path} {seed}\n")
        self._in.flush()
        word, _, pid = self._out.readline().partition(" ")
        assert word == "pid"
        self.pid = int(pid)
        assert self._out.readline() == "open\n"

    def end(self, how: signal.Signals) -> tuple[list[str], int]:
        """What it had said, and how it ended."""
        os.kill(self.pid, how)
        said = []
        for line in self._out:
            if line.startswith("dead "):
                return said, int(line.split()[1])
            said.append(line.rstrip("\n"))
        raise AssertionError("the starter of workers ended")

    def close(self) -> None:
        self._in.close()
        self._process.wait(30)
        self._out.close()


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def _believe(lines: list[str], have: dict[str, str], unsure: set[str]) -> None:
    """Takes in what a worker said."""
    for line in lines:
        word, _, rest = line.partition(" ")
        name, _, digest = rest.partition(" ")
        if word in ("try", "drop"):
            have.pop(name, None)
            unsure.add(name)
        elif word == "have":
            unsure.discard(name)
            have[name] = digest
        elif word == "gone":
            unsure.discard(name)


def _cut(lines: list[str]) -> str:
    """What a worker was at when it was killed."""
    word, _, name = (lines or ["open"])[-1].partition(" ")
    if word == "try":
        return "import" if number_of(name) >= BLOBS else "put"
    return {"drop": "untag", "gc": "gc"}.get(word, "between")


def _verify(path: str, have: dict[str, str], unsure: set[str], *, full: bool) -> None:
    with stores.opened(path) as content:
        with content.operation() as op:
            names = {r.name: r.digest for r in op.refs()}
        assert set(have) <= set(names)
        assert set(names) <= set(have) | unsure
        for name in list(unsure):
            unsure.discard(name)
            if name in names:
                have[name] = names[name]
        assert names == have
        for name, digest in names.items():
            assert stores.sha256(content_of(number_of(name))[0]) == digest
        if full:
            for name, digest in names.items():
                number = number_of(name)
                assert stores.get(content, digest) == content_of(number)[0]
                for part in image_of(number)[1] if number >= BLOBS else ():
                    assert stores.get(content, stores.sha256(part)) == part
            stores.clean(content)


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_at_any_moment(fast_path: Path, zygote: Zygote, seed: int) -> None:
    """`kill -9` at 300 random moments (150 here, twice) of puts, imports, untags, gcs, checkpoints.

    `LAYERSTORE_KILLS=3000` does it more often."""
    path = str(fast_path / "s")
    source = random.Random(seed)
    have: dict[str, str] = {}
    unsure: set[str] = set()
    cut = {"put": 0, "import": 0, "untag": 0, "gc": 0, "between": 0}
    for turn in range(ROUNDS):
        zygote.begin(path, seed * 1000 + turn)
        time.sleep(source.random() * 0.06)
        said, status = zygote.end(signal.SIGKILL)
        assert status == -signal.SIGKILL
        cut[_cut(said)] += 1
        _believe(said, have, unsure)
        if turn % 10 == 0:
            _verify(path, have, unsure, full=turn % 50 == 0)
    _verify(path, have, unsure, full=True)
    assert min(cut["put"], cut["import"], cut["gc"]) >= ROUNDS // 15, cut
    # The next gc takes the leftovers, all of them.
    with stores.opened(path) as content:
        stores.gc(content.storage, aggressive=True)
        stores.clean(content)
        stores.untag(content, *have)
        stores.gc(content.storage, aggressive=True)
        assert stores.packs(path) == []
        assert stores.raws(path) == []
        assert len(os.listdir(os.path.join(path, "sessions"))) == 1


def test_interrupt_at_any_moment(fast_path: Path, zygote: Zygote) -> None:
    """SIGINT ends as KeyboardInterrupt; the store closes in order and holds what was said."""
    path = str(fast_path / "s")
    source = random.Random(3)
    have: dict[str, str] = {}
    unsure: set[str] = set()
    for turn in range(40):
        zygote.begin(path, turn)
        time.sleep(source.random() * 0.05)
        said, status = zygote.end(signal.SIGINT)
        assert status == 130
        _believe(said, have, unsure)
        if turn % 10 == 9:
            _verify(path, have, unsure, full=True)
        else:
            _verify(path, have, unsure, full=False)


def test_killed_while_others_go_on(fast_path: Path, zygote: Zygote) -> None:
    """One process is killed again and again; another one keeps working on the same store."""
    path = str(fast_path / "s")
    with stores.opened(path) as content:
        digest = stores.keep(content, "kept", stores.words(1, 500_000))
        source = random.Random(9)
        for turn in range(12):
            zygote.begin(path, 7000 + turn)
            time.sleep(source.random() * 0.1)
            stores.keep(content, f"mine{turn}", stores.words(turn, 30_000))
            zygote.end(signal.SIGKILL)
            stores.gc(content.storage)
            assert stores.get(content, digest) == stores.words(1, 500_000)
        for turn in range(12):
            assert stores.get(content, stores.sha256(stores.words(turn, 30_000)))
        stores.clean(content)
