"""Layers that are kept compressed: inflated once, into a file without a name, where there is room for
it; once more where there is none. The tree is the same, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import stores
from checkout_trees import LINK, Item, checkout, put_layers, snapshot, tar, unpack_all

from layerstore.layers import inflate, merged, spool, tree
from layerstore.storage.accounting import directory_bytes

LOWER = [Item(f"d{n % 7}/f{n}", data=os.urandom(30_000)) for n in range(150)]
UPPER = [
    Item("zeros", data=bytes(5 << 20)),
    Item("d0/.wh.f0"),
    Item("d1/f1", data=b"another" * 9000),
    Item("again", LINK, link="d2/f2"),
    *(Item(f"e/f{n}", data=os.urandom(50_000)) for n in range(100)),
]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with stores.opened(str(tmp_path_factory.mktemp("spools") / "store")) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(content):
    return put_layers(content, [tar(LOWER), tar(UPPER)])


@pytest.fixture
def packed(tmp_path):
    """The same layers where no tar of them lies beside."""
    with stores.opened(str(tmp_path / "packed")) as content:
        yield (
            content,
            [
                stores.put(content, stores.gzipped(tar(items)), stores.TAR_GZIP)
                for items in (LOWER, UPPER)
            ],
        )


@pytest.fixture
def inflated(monkeypatch):
    """How many layers were inflated."""
    count = [0]

    def counted(*args, **options):
        count[0] += 1
        yield from inflate.inflate(*args, **options)

    monkeypatch.setattr(tree, "inflate", counted)
    return count


def is_the_same(content, plain, packed, tmp_path) -> None:
    checkout(content, plain, tmp_path / "expected")
    checkout(*packed, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "expected")


def test_a_compressed_layer_is_inflated_once(content, plain, packed, inflated, tmp_path):
    is_the_same(content, plain, packed, tmp_path)
    assert inflated == [2]


def test_nothing_is_left_of_it_in_the_store(packed, tmp_path):
    store = Path(packed[0].storage.path)
    before = directory_bytes(str(store)), len(os.listdir("/proc/self/fd"))
    checkout(*packed, tmp_path / "out")
    assert (directory_bytes(str(store)), len(os.listdir("/proc/self/fd"))) == before
    broken = stores.put(packed[0], stores.gzipped(tar([Item("../x")])), stores.TAR_GZIP)
    with pytest.raises(Exception, match=r"\.\."):
        checkout(packed[0], [packed[1][0], broken], tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == before[1]


@pytest.mark.parametrize("why", ["no room", "full", "no such file"])
def test_without_a_place_for_it_a_layer_is_inflated_again(
    content, plain, packed, inflated, tmp_path, monkeypatch, request, why
):
    if why == "no room":
        monkeypatch.setattr(spool, "SHARE", 1 << 60)
    elif why == "full":
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", small], check=True)
        request.addfinalizer(lambda: subprocess.run(["umount", small], check=True))
        monkeypatch.setattr(spool, "SHARE", 0.001)
        monkeypatch.setattr(merged, "Spool", lambda _: spool.Spool(str(small)))
    else:  # as in a store that may not be written
        monkeypatch.setattr(merged, "Spool", lambda _: spool.Spool("/proc"))
    is_the_same(content, plain, packed, tmp_path)
    assert inflated[0] == 4


def test_zeros_are_holes_in_it(tmp_path):
    one = spool.Spool(str(tmp_path))
    size = 8 << 20
    for _ in one.keep([b"head", *[bytes(1 << 20)] * 8]):
        pass
    assert one.whole
    assert one._fd is not None
    assert os.fstat(one._fd).st_size == size + 4
    assert os.fstat(one._fd).st_blocks * 512 < 100_000
    assert b"".join(p for p, _, _ in one.between(2, size + 9)) == b"ad" + bytes(size)
    one.close()


def without_times_of_whiteouts(upper: Path) -> dict[str, object]:
    found = snapshot(upper)
    return {n: s._replace(mtime=0) if s.type == "char" else s for n, s in found.items()}


def test_an_overlay_of_compressed_layers_is_the_same_too(content, plain, packed, tmp_path):
    expected = unpack_all(content, plain, tmp_path / "expected")
    for ours, theirs in zip(unpack_all(*packed, tmp_path / "out"), expected, strict=True):
        assert without_times_of_whiteouts(ours) == without_times_of_whiteouts(theirs)
