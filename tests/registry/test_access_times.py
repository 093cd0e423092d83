"""What is absent and what is not yours are told apart neither by the answer, nor by its work."""

from __future__ import annotations

import asyncio
import random

import pytest
from registry.access_times import QUESTIONS, ask, fill, main, measure, registry

import layerstore
from layerstore.storage.index import Snapshot

MOUNTS = {
    "mount": ("POST", "/v2/mine/app/blobs/uploads/?mount={digest}&from=secret/app"),
    "mount from anywhere": ("POST", "/v2/mine/app/blobs/uploads/?mount={digest}"),
}


@pytest.fixture
def looked_up(monkeypatch) -> list[tuple[str, str]]:
    """Every question to the index: which, and of which table."""
    seen: list[tuple[str, str]] = []

    def watch(name: str) -> None:
        real = getattr(Snapshot, name)

        def watched(self, table, *words, **more):
            found = real(self, table, *words, **more)
            if name == "items":  # each row that is read counts
                return counted(table, found)
            seen.append((name, table.name))
            return found

        monkeypatch.setattr(Snapshot, name, watched)

    def counted(table, rows):
        for row in rows:
            seen.append(("row", table.name))
            yield row
        seen.append(("items", table.name))

    for name in ("get", "many", "items", "floor"):
        watch(name)
    return seen


@pytest.mark.parametrize("question", [*QUESTIONS, *MOUNTS])
def test_the_look_ups_are_the_same(question, fast_path, looked_up) -> None:
    method, target = {**QUESTIONS, **MOUNTS}[question]
    with layerstore.open(fast_path / "s") as store:
        yours, absent = fill(store, 3)
        application = registry(store)
        asyncio.run(ask(application, method, target.format(**absent[0])))  # what is read once only
        work, answers = [], []
        for asked in (yours[1], absent[1]):
            looked_up.clear()
            status, body = asyncio.run(ask(application, method, target.format(**asked)))
            work.append(list(looked_up))
            answers.append((status, body))
    assert answers[0] == answers[1]
    assert work[0] == work[1]
    # Where the right to pull is missing, nothing is looked at.
    assert bool(work[0]) == (question != "refused repository" and question not in MOUNTS)


def test_a_difference_would_be_seen(fast_path, looked_up) -> None:
    """The same measures, held to what is to be told apart: a blob that is there."""
    with layerstore.open(fast_path / "s") as store:
        _, absent = fill(store, 3)
        application = registry(store)
        there = store.repository("mine/app").put_blob(b"mine").digest
        work = []
        for digest in (there, absent[0]["digest"]):
            looked_up.clear()
            asyncio.run(ask(application, "GET", f"/v2/mine/app/blobs/{digest}"))
            work.append(list(looked_up))
    assert work[0] != work[1]


def test_times_are_measured_in_turns(fast_path, capsys) -> None:
    with layerstore.open(fast_path / "s") as store:
        asked = fill(store, 3)
        rng = random.Random(1)
        method, target = QUESTIONS["GET blob"]
        took = asyncio.run(measure(registry(store), asked, method, target, 50, rng))
        assert [len(times) for times in took] == [50, 50]
        asked[0] = [{"digest": store.repository("mine/app").put_blob(b"mine").digest}]
        with pytest.raises(AssertionError):  # answers that differ are no case for the clock
            asyncio.run(measure(registry(store), asked, method, target, 50, rng))
    assert main(["1"]) in (0, 1)
    assert capsys.readouterr().out.count(" us, absent ") == len(QUESTIONS)
