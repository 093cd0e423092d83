"""Blobs of real encoders go the whole way in small: into a store, optimized, proven, read again. The
table of all of them is made by hand (docs/encoders.md)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import layerstore
from tests.encoders.collection import contents, encoders
from tests.encoders.coverage import measured, rows


def test_blobs_come_back_and_their_recipes_are_small(tmp_path: Path) -> None:
    some = dict(contents(1 << 19))
    made = encoders()
    for name in ("gzip-1", "gzip-6", "python-6", "zlib-9"):
        (tmp_path / name).mkdir()
        for kind in ("elf", "text", "empty", "byte"):
            (tmp_path / name / f"{kind}.gz").write_bytes(made[name](some[kind]))
    found = list(rows(tmp_path))
    assert [row.encoder for row in found] == ["gzip-1", "gzip-6", "python-6", "zlib-9"]
    for row in found:
        assert row.exact, row
        assert row.regenerated == 4, row
        assert row.wrong == 0, row
        assert row.worst < 0.05, row


@pytest.mark.parametrize("level", [1, 3, 9])
def test_a_model_is_chosen_by_what_tells(tmp_path: Path, level: int) -> None:
    """Not by the beginning, if that is stored, or literals throughout."""
    random.seed(level)
    content = random.randbytes(4 << 20) + dict(contents(1 << 20))["text"]
    with layerstore.open(tmp_path / "store") as store:
        found = measured(store, encoders()[f"zlib-{level}"](content))
    assert found.model == f"zlib {level}"
    assert found.exact
    assert found.regenerated
    assert found.wrong * 1000 <= found.tokens
