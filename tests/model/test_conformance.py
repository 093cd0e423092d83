"""The model and the real storage agree: walks through the model, step by step, on real stores."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator

import commit_protocol as model
import pytest
import real_protocol

WORLDS = {
    "a put": model.start("put", deaths=1),
    "a put of what nothing holds": model.start("put_and_tag", blob=True),
    "a reader": model.start("reader", blob=True),
    "a tag and an untag": model.start("tagger", "untag", blob=True, ref=True),
    "a lost lock": model.start("put_and_tag", losses=1),
}
"""Every step that these can take is taken."""

WALKS = {
    "two puts and a reader": (model.start("put_and_tag", "put", "reader", deaths=1), 60),
    "two puts and a reader of a blob": (
        model.start("put_and_tag", "put", "reader", blob=True, deaths=1),
        80,
    ),
    "a reader and an untag": (model.start("put", "untag", "reader", blob=True, ref=True), 40),
}
"""Of these, some hundred walks by chance."""


@pytest.fixture
def fast_dir() -> Iterator[str]:
    """Syncs are not what is tested here: memory will do."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = tempfile.mkdtemp(prefix="layerstore-", dir=base)
    yield made
    shutil.rmtree(made)


def _steps(world: model.World) -> dict[model.Label, model.World]:
    return dict(model.moves(world, model.ALL))


def _on(world: model.World, walk: list[model.Label], choose: random.Random) -> None:
    """Goes on by chance until nothing can be done."""
    while steps := _next(world):
        label = choose.choice(sorted(steps))
        walk.append(label)
        world = steps[label]
        world = _ask_all(world, walk)


def _next(world: model.World) -> dict[model.Label, model.World]:
    """The steps that the real storage can be made to take: it asks for all epochs in one go."""
    steps = _steps(world)
    asking = world
    while asking.gc.step == "ask":
        further = _steps(asking).get(("gc", "ask"))
        if further is None:
            steps.pop(("gc", "ask"), None)
            break
        asking = further
    return steps


def _ask_all(world: model.World, walk: list[model.Label]) -> model.World:
    while world.gc.step == "ask" and walk[-1] == ("gc", "ask"):
        walk.append(("gc", "ask"))
        world = _steps(world)["gc", "ask"]
    return world


def covering(start: model.World) -> list[list[model.Label]]:
    """Walks that together take every step of every world that can come of `start`."""
    choose = random.Random(7)
    ways: dict[model.World, list[model.Label]] = {model.canonical(start): []}
    raw = {model.canonical(start): start}
    todo = deque(ways)
    wanted: set[tuple[model.World, model.Label]] = set()
    while todo:
        key = todo.popleft()
        for label, after in _next(raw[key]).items():
            wanted.add((key, label))
            way = [*ways[key], label]
            after = _ask_all(after, way)
            found = model.canonical(after)
            if found not in ways:
                ways[found] = way
                raw[found] = after
                todo.append(found)
    walks: list[list[model.Label]] = []
    while wanted:
        key, label = max(wanted, key=lambda item: (len(ways[item[0]]), item[1]))
        walk = [*ways[key], label]
        world = _ask_all(_steps(raw[key])[label], walk)
        _on(world, walk, choose)
        walks.append(walk)
        _strike(start, walk, wanted)
        wanted.discard((key, label))
    return walks


def _strike(
    world: model.World, walk: list[model.Label], wanted: set[tuple[model.World, model.Label]]
) -> None:
    for label in walk:
        wanted.discard((model.canonical(world), label))
        world = _steps(world)[label]


def _replay(folder: str, start: model.World, walks: list[list[model.Label]]) -> None:
    for number, walk in enumerate(walks):
        path = os.path.join(folder, str(number))
        real = real_protocol.Real(path, start, random.Random(number).randbytes(4096))
        try:
            real_protocol.replay(real, start, walk)
        finally:
            real.close()
            shutil.rmtree(path)


@pytest.mark.parametrize("name", WORLDS)
def test_every_step_does_what_the_model_says(name: str, fast_dir: str) -> None:
    walks = covering(WORLDS[name])
    assert walks
    _replay(fast_dir, WORLDS[name], walks)


@pytest.mark.parametrize("name", WALKS)
def test_walks_by_chance(name: str, fast_dir: str) -> None:
    start, count = WALKS[name]
    choose = random.Random(name)
    walks = []
    for _ in range(count):
        walk: list[model.Label] = []
        _on(start, walk, choose)
        walks.append(walk)
    _replay(fast_dir, start, walks)
