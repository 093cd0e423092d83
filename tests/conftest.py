"""Fixtures for all tests of the store: an open store in a temporary directory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerstore.layers.content import Content
from layerstore.storage.storage import Storage, open_storage


@pytest.fixture
def where(tmp_path: Path) -> str:
    """The directory of a store that is not there yet."""
    return str(tmp_path / "store")


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: syncs cost nothing there. For tests of what a dead
    process leaves, which no disk takes part in."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    made = tempfile.mkdtemp(dir="/dev/shm", prefix="layerstore-test-")
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made)


@pytest.fixture
def storage(where: str) -> Iterator[Storage]:
    """A new, open store."""
    made = open_storage(where, timeout=20.0)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def content(storage: Storage) -> Content:
    """The blobs of a new, open store."""
    return Content(storage)
