"""What several tests of the registry begin with: an image on disk, an upstream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.small_images import BASE, TOP, Layout
from remote import upstream as servers


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
