"""What `stats` says is what `du` says, and what removing an image really gives back."""

from __future__ import annotations

import os
import re

import pytest
import stores
from hypothesis import given
from hypothesis import strategies as st

from layerstore.layers.content import Content
from layerstore.storage.accounting import stats, stored_bytes
from layerstore.storage.compact import ISLAND, islands
from layerstore.storage.foresight import covered_pages
from layerstore.storage.packs import HEADER_SIZE
from layerstore.storage.storage import Storage

KIB, MIB = 1 << 10, 1 << 20


def _images(content: Content) -> None:
    """Five images of some MB: own parts, parts shared by two, and by all; packs and raw files."""
    base = stores.tar_of({f"base/{i}": stores.words(i, 120 * KIB) for i in range(50)})
    pair = stores.tar_of({f"pair/{i}": stores.noise(500 + i, 90 * KIB) for i in range(20)})
    for n in range(5):
        own = stores.tar_of(
            {f"own/{n}/{i}": stores.words(1000 * n + i, 100 * KIB) for i in range(10 + 5 * n)}
            # The same file in every image, in a layer of its own.
            | {f"copy/{n}": stores.noise(77, 200 * KIB)}
        )
        layers = [(base, stores.TAR), (own, stores.TAR)]
        if n in (1, 2):
            layers.append((pair, stores.TAR))
        packed = stores.gzipped(stores.tar_of({f"p{n % 3}": stores.noise(n % 3, MIB)}))
        layers.append((packed, stores.TAR_GZIP))
        stores.put_image(content, f"image{n}", layers, note=str(n))


def _near(a: float, b: float, part: float, slack: int = 0) -> bool:
    return abs(a - b) <= part * max(a, b) + slack


def _adds_up(storage: Storage) -> None:
    found = stats(storage, per_image=True)
    assert _near(found.total, stores.du(storage.path), 0.01)
    assert found.total == found.packs + found.raw + found.unpacked + found.index
    parts = found.alone + found.shared + found.index + found.dead_bytes
    assert _near(parts, found.total, 0.01), (parts, found)
    # Each image's share of a block is rounded down to a byte.
    assert found.alone <= sum(i.alone for i in found.per_image) + len(found.per_image)
    for image in found.per_image:
        # Survivors compress anew, and holes have whole pages: near what is alone, no more than that.
        assert image.freed_if_removed <= 1.5 * image.alone + 64 * KIB
        assert image.alone + image.shared <= found.packs + found.raw


def test_figures_add_up(content: Content, storage: Storage) -> None:
    _images(content)
    _adds_up(storage)
    found = stats(storage, per_image=True)
    assert (found.images, found.dead_bytes < 0.01 * found.total) == (5, True)
    with content.operation() as op:
        blobs = list(op.blobs())
    assert found.blob_count == len(blobs)
    assert found.blob_bytes == sum(b.bytes for b in blobs)
    assert found.layer_count == sum(1 for b in blobs if "layer" in b.media_type)
    stores.untag(content, "image1", "image4")
    _adds_up(storage)
    dead = stats(storage, per_image=False).dead_bytes
    before = stores.du(storage.path)
    stores.gc(storage, aggressive=True)
    assert _near(before - stores.du(storage.path), dead, 0.02, 16 * KIB)
    _adds_up(storage)


@pytest.mark.parametrize("name", [f"image{n}" for n in range(5)])
def test_freed_if_removed(content: Content, storage: Storage, name: str) -> None:
    _images(content)
    stores.gc(storage, aggressive=True)
    found = stats(storage, per_image=True)
    said = {i.name: i.freed_if_removed for i in found.per_image}[name]
    before = stores.du(storage.path)
    stores.untag(content, name)
    report = stores.gc(storage, aggressive=True)
    got = before - stores.du(storage.path)
    assert _near(said, got, 0.02, 12 * KIB), (said, got)
    assert _near(report.freed_bytes, got, 0.02, 16 * KIB)
    _adds_up(storage)
    stores.clean(content)


@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 9000)), max_size=12))
def test_pages_that_stay(stretches: list[tuple[int, int]]) -> None:
    ordered, at = [], 0
    for gap, length in stretches:
        ordered.append((at + gap, at + gap + length))
        at += gap + length
    touched = {
        page
        for start, end in ordered
        if end > start
        for page in range(start // 4096, (end - 1) // 4096 + 1)
    }
    assert covered_pages(ordered) == len(touched)


@given(
    st.lists(st.lists(st.tuples(st.booleans(), st.integers(1, 1_200_000)), max_size=12), max_size=3)
)
def test_islands_stand_between_gaps(packs: list[list[tuple[bool, int]]]) -> None:
    """What is live between two gaps, and small, moves; oracle: the picture of a pack as letters."""
    left, expected = [], []
    for pack, stretches in enumerate(packs):
        at, row, where = HEADER_SIZE, "", []
        for live, length in stretches:
            if live:
                left.append((pack, at, length))
            row += "L" if live else "g"
            where.append((pack, at, length))
            at += length
        for run in re.finditer("(?<=g)L+(?=g+L)", row):
            blocks = where[run.start() : run.end()]
            if sum(length for _, _, length in blocks) <= ISLAND:
                expected += [(number, offset) for number, offset, _ in blocks]
    assert islands(left) == expected


def test_what_leases_hold_is_shared(content: Content, storage: Storage) -> None:
    """A layer and a blob of no image under a lease: all adds up, what is freed was said before."""
    _images(content)
    lease = storage.create_lease(3600.0)
    own = stores.tar_of(
        {f"own/3/{i}": stores.words(3000 + i, 100 * KIB) for i in range(25)}
        | {"copy/3": stores.noise(77, 200 * KIB)}
    )
    storage.use_lease(lease)
    stores.put(content, own, stores.TAR)
    stores.put(content, stores.gzipped(stores.noise(4444, MIB)))
    storage.close()
    with stores.opened(storage.path) as again:
        _adds_up(again.storage)
        said = {i.name: i for i in stats(again.storage, per_image=True).per_image}["image3"]
        assert said.shared > 25 * 20 * KIB
        stores.gc(again.storage, aggressive=True)
        before = stores.du(storage.path)
        stores.untag(again, "image3")
        stores.gc(again.storage, aggressive=True)
        assert _near(said.freed_if_removed, before - stores.du(storage.path), 0.02, 12 * KIB)
        _adds_up(again.storage)


def test_names_of_one_image_share_it(content: Content, storage: Storage) -> None:
    _images(content)
    with content.operation() as op:
        ref = op.ref("image0")
        assert ref is not None
        op.commit_refs({"again": ref})
    by_name = {i.name: i for i in stats(storage, per_image=True).per_image}
    assert by_name["again"].freed_if_removed == by_name["image0"].freed_if_removed == 0
    assert by_name["again"].alone == by_name["image0"].alone > 0
    assert by_name["image1"].freed_if_removed > 0


def test_stored_bytes(content: Content, storage: Storage) -> None:
    _images(content)
    with content.operation() as op:
        for blob in op.blobs():
            cost = stored_bytes(storage, blob.digest)
            assert 0 < cost < 1.05 * blob.bytes + 400
    assert os.path.isdir(storage.path)
