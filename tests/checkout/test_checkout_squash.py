"""Layers squashed over what remains make the tree that they made one by one: random stacks, on disk.

Half of the stacks are such as a diff writes (parents in every layer, whiteouts first, a name is always
the same kind of thing); half are anything that a tar may say: names twice in one layer, files that
become parents, links to names that the same layer replaces, paths through symbolic links."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
import stores
from checkout_trees import checkout, put_layers, snapshot, tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layer_stacks import Maker, replay
from test_checkout_oracles import ALL, often, with_parents

from layerstore.layers.squash import squash

EXAMPLES = int(os.environ.get("LAYERSTORE_STACKS", "160"))


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with stores.opened(str(tmp_path_factory.mktemp("squashed") / "store")) as opened:
        yield opened


def test_squashed_stacks_are_the_same_tree(content, tmp_path):
    counts: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(
        seed=st.integers(0, 1 << 60),
        depth=st.integers(2, 5),
        kept=st.integers(1, 2),
        plain=st.booleans(),
    )
    def one(seed, depth, kept, plain):
        maker = Maker(seed, apart=plain, most=24, hidden=10)
        for _ in range(depth):
            maker.layer()
        layers = with_parents(maker.layers) if plain else maker.layers
        digests = put_layers(content, map(tar, layers))
        counts.update(maker.model.counts)
        counts["as a diff writes it" if plain else "anything"] += 1
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
    often(counts, (*ALL, "with a base", "of all"))
    assert min(counts["as a diff writes it"], counts["anything"]) > EXAMPLES // 5
