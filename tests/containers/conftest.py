"""A store in a temporary directory, and no mount of it left behind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import layerstore


def unmount_all(below: Path) -> None:
    """Whatever a test left mounted below its directory, topmost first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        places = [line.split()[4] for line in f]
    for place in reversed(places):
        if place.startswith(f"{below}/"):
            subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The directory of a store that is not there yet."""
    yield str(tmp_path / "store")
    unmount_all(tmp_path)


@pytest.fixture
def store(path: str) -> Iterator[layerstore.Store]:
    with layerstore.open(path, timeout=30) as made:
        yield made
