"""Compressed layers that do not decode, do not match, or inflate without end: kept exactly, said,
refused where somebody needs what is inside."""

from __future__ import annotations

import gzip
import random

import pytest
import stores
import zstandard

from layerstore.errors import DigestMismatchError, InvalidInputError, LimitError
from layerstore.layers.content import Content
from layerstore.layers.inflate import compression_of, inflate
from layerstore.layers.tree import Tree, file_content, layer_entries, scan_layer
from layerstore.storage.storage import Storage

FILES = {f"dir/f{i}": stores.words(i, 20_000) for i in range(40)}
TAR = stores.tar_of(FILES)
PACKED = {
    stores.TAR_GZIP: stores.gzipped(TAR),
    stores.TAR_ZSTD: zstandard.ZstdCompressor(write_checksum=True).compress(TAR),
}
KINDS = sorted(PACKED)


def _damaged(media_type: str) -> dict[str, bytes]:
    whole = PACKED[media_type]
    middle = len(whole) // 2
    return {
        "truncated": whole[:middle],
        "one byte short": whole[:-1],
        "flipped": whole[:middle] + bytes((whole[middle] ^ 0x55,)) + whole[middle + 1 :],
        "garbage behind": whole + b"not compressed at all",
        "header only": whole[:12],
        "damaged check": whole[:-6] + bytes(b ^ 0xFF for b in whole[-6:]),
    }


@pytest.mark.parametrize("media_type", KINDS)
@pytest.mark.parametrize("how", sorted(_damaged(KINDS[0])))
def test_damaged_layers_are_kept_and_said(
    content: Content, storage: Storage, media_type: str, how: str
) -> None:
    data = _damaged(media_type)[how]
    with content.operation() as op:
        with pytest.raises(InvalidInputError):
            op.put(data, digest=stores.sha256(data), media_type=media_type, strict=True)
        assert op.stat(stores.sha256(data)) is None
        assert stores.raws(storage.path) == []
        info = op.put(data, digest=stores.sha256(data), media_type=media_type)
        assert info.problem is not None
        assert "decode" in info.problem
        assert info.diff_id is None
        # Known by now, and still refused where somebody is strict.
        with pytest.raises(InvalidInputError):
            op.put(data, digest=stores.sha256(data), media_type=media_type, strict=True)
        assert op.put(data, digest=stores.sha256(data), media_type=media_type).problem
    assert stores.get(content, stores.sha256(data)) == data
    with pytest.raises(InvalidInputError) as caught:
        list(layer_entries(content, stores.sha256(data)))
    assert caught.value.digest == stores.sha256(data)
    stores.clean(content)


@pytest.mark.parametrize("media_type", KINDS)
def test_a_wrong_diff_id(content: Content, media_type: str) -> None:
    data, wrong = PACKED[media_type], stores.sha256(b"something else")
    with content.operation() as op:
        with pytest.raises((DigestMismatchError, InvalidInputError)):
            op.put(data, media_type=media_type, diff_id=wrong, strict=True)
        info = op.put(data, digest=stores.sha256(data), media_type=media_type, diff_id=wrong)
        assert info.problem is not None
        assert wrong in info.problem
        right = op.put(
            data, digest=stores.sha256(data), media_type=media_type, diff_id=stores.sha256(TAR)
        )
        assert right.diff_id == stores.sha256(TAR)
    assert stores.get(content, stores.sha256(data)) == data
    with content.operation() as op:
        bare = op.put(TAR, media_type=stores.TAR, diff_id=wrong)
        assert bare.problem is not None
        with pytest.raises((DigestMismatchError, InvalidInputError)):
            op.put(stores.tar_of({"x": b"y"}), media_type=stores.TAR, diff_id=wrong, strict=True)


@pytest.mark.parametrize("media_type", KINDS)
def test_a_bomb(content: Content, media_type: str) -> None:
    """Past a limit of absolute bytes it is kept, and only readers of what is inside refuse."""
    tar = stores.tar_of({"zeros": bytes(60 << 20)})
    packer = stores.gzipped if media_type == stores.TAR_GZIP else zstandard.compress
    data = packer(tar)
    with content.operation() as op:
        with pytest.raises(LimitError):
            op.put(data, media_type=media_type, limit=10 << 20, strict=True)
        info = op.put(data, media_type=media_type, limit=10 << 20)
        assert info.problem is not None
    assert stores.get(content, info.digest) == data
    with pytest.raises((LimitError, InvalidInputError)):
        list(scan_layer(content, info.digest, limit=10 << 20))
    # An honest layer that inflates a thousandfold is none.
    with content.operation() as op:
        fine = op.put(data + b"", digest=info.digest, media_type=media_type)
        assert fine.digest == info.digest
    with pytest.raises(LimitError):
        for _ in inflate(iter([data]), compression_of(data) or "", 10 << 20):
            pass


@pytest.mark.parametrize("media_type", KINDS)
def test_inflate_in_any_pieces(media_type: str) -> None:
    data = PACKED[media_type]
    kind = compression_of(data)
    assert kind is not None
    source = random.Random(1)
    for _ in range(15):
        cuts = sorted(source.sample(range(len(data)), source.choice((0, 1, 5, 40))))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert b"".join(inflate(iter(pieces), kind)) == TAR
    bytewise = (data[i : i + 1] for i in range(len(data)))
    assert b"".join(inflate(bytewise, kind)) == TAR
    doubled = data + data
    assert b"".join(inflate(iter([doubled]), kind)) == TAR + TAR
    cut = len(data) + 7
    assert b"".join(inflate(iter([doubled[:cut], doubled[cut:]]), kind)) == TAR + TAR


def test_memory_stays_bounded_while_inflating() -> None:
    """A megabyte in may be a gigabyte out: it comes in pieces."""
    for data in (gzip.compress(bytes(200 << 20), 9), zstandard.compress(bytes(200 << 20))):
        total = 0
        for piece in inflate(iter([data]), compression_of(data) or ""):
            assert len(piece) <= 2 << 20
            total += len(piece)
        assert total == 200 << 20


@pytest.mark.parametrize("media_type", [*KINDS, stores.TAR])
def test_files_of_a_layer(content: Content, media_type: str) -> None:
    data = PACKED.get(media_type, TAR)
    with content.operation() as op:
        info = op.put(data, media_type=media_type)
    tree = Tree(content, [info.digest])
    found = {f.entry.path: f for f in tree.entries() if f.entry.type == "file"}
    assert {n: f.entry.size for n, f in found.items()} == {n: len(d) for n, d in FILES.items()}
    for name in ("dir/f0", "dir/f17", "dir/f39"):
        assert b"".join(file_content(content, found[name])) == FILES[name]


def test_deferred_look(content: Content) -> None:
    """`inspect=False` leaves the look inside for later; a later put with a look catches up."""
    data = PACKED[stores.TAR_GZIP]
    with content.operation() as op:
        info = op.put(data, digest=stores.sha256(data), media_type=stores.TAR_GZIP, inspect=False)
        assert info.diff_id is None
        assert op.have_layer(stores.sha256(TAR)) == ()
        later = op.put(
            data,
            digest=stores.sha256(data),
            media_type=stores.TAR_GZIP,
            diff_id=stores.sha256(TAR),
        )
        assert later.diff_id == stores.sha256(TAR)
        assert op.have_layer(stores.sha256(TAR)) == (stores.sha256(data),)
    broken = data[:-9]
    with content.operation() as op:
        op.put(broken, digest=stores.sha256(broken), media_type=stores.TAR_GZIP, inspect=False)
        with pytest.raises(InvalidInputError):
            op.put(broken, digest=stores.sha256(broken), media_type=stores.TAR_GZIP, strict=True)
