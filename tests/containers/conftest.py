"""A store in a temporary directory, and no mount of it left behind."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import making
import pytest

import layerstore


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """The directory of a store that is not there yet."""
    yield str(tmp_path / "store")
    making.unmount_all(tmp_path)


@pytest.fixture
def store(path: str) -> Iterator[layerstore.Store]:
    with layerstore.open(path, timeout=30) as made:
        yield made


@pytest.fixture
def home() -> Iterator[Path]:
    """Where podman and buildah keep what is theirs: podman wants a short name for it."""
    made = Path(tempfile.mkdtemp(prefix="ls-", dir="/var/tmp"))
    yield made
    # A container that ended has a process of podman's clean up behind it.
    deadline = time.monotonic() + 20
    while made.exists():
        making.unmount_all(made)
        shutil.rmtree(made, ignore_errors=time.monotonic() < deadline)
