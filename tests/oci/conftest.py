"""Stores and real clients for the tests of images."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_content import FakeContent

import layerstore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[layerstore.Store]:
    """A new store, open."""
    with layerstore.open(tmp_path / "the-store", timeout=20) as opened:
        yield opened


@pytest.fixture
def fake() -> FakeContent:
    return FakeContent()


class Client:
    """A real tool. Calling it without the tool installed fails the test, and says so."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *words: object) -> str:
        assert shutil.which(self.name), f"this test needs {self.name}: install it"
        done = subprocess.run(
            [self.name, *map(str, words)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{self.name} {words}: {done.stderr}"
        return done.stdout


@pytest.fixture
def skopeo() -> Client:
    return Client("skopeo")


@pytest.fixture
def umoci() -> Client:
    return Client("umoci")
