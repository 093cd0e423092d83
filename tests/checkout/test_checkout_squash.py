"""Layers squashed over what remains make the tree that they made one by one: random stacks, on disk.

The layers are such as a diff writes: each name once, parents directories in every layer, no link to a
name that the same layer replaces. Of others squash goes by names, not by the order of entries."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
import stores
from checkout_trees import Item, checkout, put_layers, snapshot, tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_stacks import Maker, replay
from test_checkout_oracles import PLAIN, often, with_parents

from layerstore.layers.squash import squash

EXAMPLES = int(os.environ.get("LAYERSTORE_STACKS", "160"))

ODD = ("duplicate", "implicit directory")


class Once(Maker):
    """Layers that say each name once."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, apart=True, most=24, hidden=10)
        self._said: set[str] = set()

    def layer(self) -> list[Item]:
        self._said = set()
        return super().layer()

    def _item(self) -> Item | None:
        made = super()._item()
        if made is None or made.name in self._said:
            return None
        self._said |= {made.name, made.link}
        return made


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with stores.opened(str(tmp_path_factory.mktemp("squashed") / "store")) as opened:
        yield opened


def test_squashed_stacks_are_the_same_tree(content, tmp_path):
    counts: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(seed=st.integers(0, 1 << 60), depth=st.integers(2, 5), kept=st.integers(1, 2))
    def one(seed, depth, kept):
        maker = Once(seed)
        for _ in range(depth):
            maker.layer()
        layers = with_parents(maker.layers)
        digests = put_layers(content, map(tar, layers))
        counts.update(maker.model.counts)
        want = replay(layers).expected()
        for below in (digests[: min(kept, depth - 1)], []):
            counts["with a base" if below else "of all"] += 1
            merged = b"".join(squash(content, digests[len(below) :], below))
            out = tmp_path / "out"
            try:
                checkout(content, [*below, *put_layers(content, [merged])], out)
                assert snapshot(out) == want
            finally:
                shutil.rmtree(out, ignore_errors=True)

    one()
    wanted = [name for name in PLAIN if name not in ODD]
    often(counts, (*wanted, "xattr of bsdtar", "opaque root", "with a base", "of all"))
