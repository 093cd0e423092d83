"""What several tests of the registry begin with: an image on disk, an upstream, an empty store and its
registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.small_images import BASE, TOP, Layout
from registry.asgi import Client
from remote import upstream as servers

import layerstore
from layerstore.registry import Registry


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with one image, `1`."""
    made = Layout(tmp_path / "layout")
    made.image("1", BASE, TOP, compressed=True)
    return made.path


@pytest.fixture
def upstream() -> Iterator[servers.Upstream]:
    with servers.upstream() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[layerstore.Store]:
    with layerstore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def client(store: layerstore.Store) -> Client:
    return Client(Registry(store))
