"""Processes killed while they prepare, unpack, mount, unmount, commit, remove and collect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import killing
import making
import pytest

ROUNDS = int(os.environ.get("LAYERSTORE_KILLS", "28"))
"""How many; a few hundred by hand."""


@pytest.mark.needs("root")
def test_what_a_killed_process_leaves_is_whole_or_gone(fast_path):
    """The oracle is in killing.py. Each thing was cut off at least once; the test says how often."""
    here = Path(__file__).parent
    path = f"{here}:{here.parents[1]}"
    command = [sys.executable, here / "killing.py", fast_path / "store", str(ROUNDS)]
    try:
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
    finally:
        making.unmount_all(fast_path)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    print(done.stdout)
    assert set(counts) == set(killing.KINDS)
    assert all(one["cut off"] > 0 for one in counts.values()), counts
    assert sum(sum(one.values()) for one in counts.values()) >= ROUNDS
