"""`optimize` killed at any moment: no blob is lost, and no file goes before its proof."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import stores

from layerstore.layers.content import Content
from layerstore.layers.optimize import optimize
from layerstore.storage import graph
from layerstore.storage.index import Table
from layerstore.storage.rows import to_number

KILLS = int(os.environ.get("LAYERSTORE_OPTIMIZE_KILLS", "30"))
"""200 of them take some minutes."""
BATCH = 4
"""Blobs in the store that are not optimized yet."""


def blob_of(number: int) -> bytes:
    """A gzip layer that shares half of its files with others."""
    tar = stores.tar_of(
        {
            "own": stores.words(number, 40_000),
            "shared": stores.words(-1 - number % 3, 40_000),
        }
    )
    return stores.gzipped(tar)


def killed(path: str, after: float) -> bool:
    """Optimizes all there is in a child, which is killed after so many seconds; whether that was
    before it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            with stores.opened(path) as content:
                optimize(content, content.raw_blobs())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def states(content: Content) -> dict[str, int]:
    """How many blobs are raw, have both forms, or are made again. Raises for any whose file went
    although its recipe is not proven."""
    found = {"raw": 0, "both": 0, "gzip": 0}
    with content.storage.index.read() as snapshot:
        for key, _ in snapshot.items(Table.BLOBS):
            row = graph.blob_row(snapshot, to_number(key))
            assert row is not None
            if row.media_type != stores.TAR_GZIP:
                continue
            if row.raw is None:
                assert row.gzip is not None
                assert row.gzip.proven
                found["gzip"] += 1
            else:
                found["raw" if row.gzip is None else "both"] += 1
    return found


@pytest.mark.timeout(600 + 30 * KILLS)
def test_kill_at_any_moment_of_optimize(fast_path: Path) -> None:
    """`LAYERSTORE_OPTIMIZE_KILLS=200` does it more often."""
    path = str(fast_path / "s")
    source = random.Random(4)
    wanted: dict[str, bytes] = {}
    cut = number = 0
    seen = {"raw": 0, "both": 0, "gzip": 0}
    usual = 0.0
    while cut < KILLS:
        with stores.opened(path) as content:
            while states(content)["raw"] + states(content)["both"] < BATCH:
                data = blob_of(number)
                wanted[stores.keep(content, f"n{number}", data, stores.TAR_GZIP)] = data
                number += 1
        if not usual:
            # How long all of them take here, so that kills come at every stage.
            start = time.monotonic()
            assert not killed(path, 0)
            usual = time.monotonic() - start
            continue
        cut += killed(path, max(0.001, source.random() * usual))
        with stores.opened(path) as content:
            for name, count in states(content).items():
                seen[name] += count
            recent = list(wanted)[-BATCH - 4 :]
            for digest in source.sample(recent, 4):
                assert stores.get(content, digest) == wanted[digest]
            if cut % 10 == 0:
                stores.gc(content.storage, aggressive=source.random() < 0.5)
    assert seen["raw"]
    assert seen["gzip"]
    with stores.opened(path) as content:
        outcomes, complete = optimize(content, content.raw_blobs())
        assert complete
        # None, if the last kill came when all were done.
        assert {o.blob.result for o in outcomes} <= {"gzip"}
        assert content.raw_blobs() == []
        for digest, data in wanted.items():
            assert stores.get(content, digest) == data
        stores.gc(content.storage, aggressive=True)
        stores.clean(content)
        assert stores.raws(path) == []
        for digest, data in wanted.items():
            assert stores.get(content, digest) == data
