"""Blobs of real encoders go the whole way in small: into a store, optimized, proven, read again. The
table of all of them is made by hand (docs/encoders.md)."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

import layerstore
from layerstore.core import recipe
from layerstore.layers.analysis import FIRST_SPAN, SPAN
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


@pytest.mark.parametrize("level", [5, 6])
def test_a_level_is_chosen_among_neighbours(tmp_path: Path, level: int) -> None:
    """Where the first two spans tell little, and nothing of these two levels, and the third does."""
    random.seed(level)
    words = b"".join(2 * random.randbytes(4) + random.randbytes(1) for _ in range(3000))
    content = random.randbytes(1_200_000) + words + random.randbytes(400_000)
    content += dict(contents(1 << 20))["text"]
    blob = encoders()[f"gzip-{level}"](content)
    decoder = recipe.Decoder(SPAN, FIRST_SPAN)
    first, second, *_ = decoder.feed(blob) + decoder.finish()
    both = [recipe.analyse(first, second, recipe.model(120 + n), 4096) for n in (5, 6)]
    assert both[0] == both[1]
    with layerstore.open(tmp_path / "store") as store:
        found = measured(store, blob)
    assert found.model.endswith(f" {level}")  # of gzip or zlib: its one block ends as both do
    assert (found.exact, found.wrong) == (True, 0)


def test_an_estargz_layer_is_made_again(tmp_path: Path) -> None:
    """`estargz.gz` is of containerd's library (`go/estargz.go`, level 9): a member a file, the table of
    contents, and a footer whose header has an extra field."""
    blob = (Path(__file__).parent / "estargz.gz").read_bytes()
    assert blob.count(b"\x1f\x8b\x08") > 5
    assert b"STARGZ" in blob[-60:]
    with layerstore.open(tmp_path / "store") as store:
        found = measured(store, blob)
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        for start in range(0, len(blob), 211):
            with store.open_blob(digest) as file:
                file.seek(start)
                assert file.read(300) == blob[start : start + 300]
    assert found.exact
    assert found.regenerated, found.reason
    assert found.model == "Go 9"
    assert found.cost < len(blob) // 20
