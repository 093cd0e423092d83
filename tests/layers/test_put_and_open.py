"""What is put comes back byte for byte, in every form; what is wrong is not kept."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import tarfile
from collections.abc import Iterator

import blake3
import pytest
import stores
import zstandard

from layerstore.errors import DigestMismatchError, InvalidInputError, LimitError, NotFoundError
from layerstore.layers.content import Content
from layerstore.storage.storage import Storage

MIB = 1 << 20
SIZES = (0, 1, 511, 512, 2047, 2048, 2049, 262143, 262144, 262145, MIB - 1, MIB, MIB + 1, 9 * MIB)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["noise", "words", "zeros"])
def test_every_size_comes_back(content: Content, size: int, kind: str) -> None:
    data = {"noise": stores.noise, "words": stores.words}.get(kind, lambda _, n: bytes(n))(5, size)
    with content.operation() as op:
        info = op.put(data)
    assert (info.digest, info.bytes) == (stores.sha256(data), size)
    assert stores.get(content, info.digest) == data
    with content.operation() as op:
        assert op.read(info.digest, size) == data
        stat = op.stat(info.digest)
    assert stat is not None
    assert stat.forms == ("plain",)


def _blobs() -> dict[str, tuple[bytes, str, tuple[str, ...]]]:
    files = {f"f/{i}": stores.words(i, 3000 * i) for i in range(60)}
    files["big"] = stores.noise(1, 3 * MIB)
    tar = stores.tar_of(files)
    return {
        "inline": (stores.words(1, 1500), "text/plain", ("plain",)),
        "plain": (stores.words(2, 5 * MIB + 17), "text/plain", ("plain",)),
        "tar": (tar, stores.TAR, ("tar",)),
        "gzip": (stores.gzipped(tar), stores.TAR_GZIP, ("raw",)),
        "zstd": (zstandard.compress(tar), stores.TAR_ZSTD, ("raw",)),
    }


BLOBS = _blobs()


@pytest.mark.parametrize("name", sorted(BLOBS))
def test_ranges_of_every_form(content: Content, name: str) -> None:
    data, media_type, forms = BLOBS[name]
    with content.operation() as op:
        info = op.put(data, media_type=media_type)
    assert info.forms == forms
    source = random.Random(7)
    with content.open(info.digest) as blob:
        assert (blob.size, blob.seekable(), blob.readable()) == (len(data), True, True)
        for _ in range(25):
            at = source.randrange(len(data) + 1)
            n = source.choice((1, 100, 5000, 300_000))
            blob.seek(at)
            got = b""
            while len(got) < n and (piece := blob.read(n - len(got))):
                got += piece
            assert got == data[at : at + n]
            assert blob.tell() == at + len(got)
        blob.seek(-10, os.SEEK_END)
        assert blob.read() == data[-10:]
        blob.seek(0)
        assert hashlib.sha256(blob.read()).hexdigest() == info.digest[7:]
        # A file that was read is at its end, as any file is.
        assert blob.tell() == len(data)
        assert blob.read() == b""
        blob.seek(len(data) + 5)
        assert blob.read(3) == b""
    # Closed, nothing holds it any more, and nothing is read.
    for read in (blob.read, lambda: blob.read(5), lambda: list(blob.chunks())):
        with pytest.raises(ValueError, match="closed"):
            read()
        with pytest.raises(InvalidInputError):
            blob.seek(-1)
    with content.open(info.digest) as blob:
        assert b"".join(bytes(p) for p in blob.chunks()) == data
    with content.open(info.digest) as blob:
        assert io.BufferedReader(blob, 700).read() == data


@pytest.mark.parametrize("name", sorted(BLOBS))
def test_every_kind_of_source(content: Content, name: str, tmp_path: object) -> None:
    data, media_type, _ = BLOBS[name]
    digest = stores.sha256(data)

    def pieces() -> Iterator[bytes]:
        source = random.Random(3)
        at = 0
        while at < len(data):
            n = source.choice((0, 1, 13, 70_000))
            yield data[at : at + n]
            at += n

    class OnlyRead:
        def __init__(self) -> None:
            self.inner = io.BytesIO(data)

        def read(self, n: int) -> bytes:
            return self.inner.read(min(n, 30_001))

    path = os.path.join(str(tmp_path), "source")
    with open(path, "wb") as f:
        f.write(data)
    with open(path, "rb") as file, open(path, "rb", buffering=0) as bare:
        for source in (pieces(), OnlyRead(), file, bare, bytearray(data), memoryview(data)):
            with stores.opened(os.path.join(str(tmp_path), f"s{id(source)}")) as other:
                with other.operation() as op:
                    info = op.put(source, digest=digest, size=len(data), media_type=media_type)  # type: ignore[arg-type]
                assert (info.digest, info.bytes) == (digest, len(data))
                assert stores.get(other, digest) == data


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake3"])
@pytest.mark.parametrize("name", sorted(BLOBS))
def test_digests(content: Content, storage: Storage, name: str, algorithm: str) -> None:
    data, media_type, _ = BLOBS[name]
    names = {
        "sha256": stores.sha256(data),
        "sha512": "sha512:" + hashlib.sha512(data).hexdigest(),
        "blake3": "blake3:" + blake3.blake3(data).hexdigest(),
    }
    with content.operation() as op:
        first = op.put(data, digest=names[algorithm], media_type=media_type)
        assert first.digest == names[algorithm]
        before = stores.du(os.path.join(storage.path, "packs")) + stores.du(
            os.path.join(storage.path, "raw")
        )
        for other in names.values():
            info = op.put(data, digest=other, size=len(data), media_type=media_type)
            assert info.digest == other
    for other in names.values():
        assert stores.get(content, other) == data
    assert len(stores.raws(storage.path)) == (1 if first.forms == ("raw",) else 0)
    with content.operation() as op:
        assert len(list(op.blobs())) == 1
    after = stores.du(os.path.join(storage.path, "packs")) + stores.du(
        os.path.join(storage.path, "raw")
    )
    assert after <= before + 16384  # the folders of raw files that were dropped again
    stores.clean(content)


def test_aliases_are_verified(content: Content) -> None:
    data = stores.noise(4, 5000)
    right = "sha512:" + hashlib.sha512(data).hexdigest()
    wrong = "sha512:" + "00" * 64
    with content.operation() as op:
        with pytest.raises(DigestMismatchError):
            op.put(data, digest=stores.sha256(data), aliases=(wrong,))
        assert op.stat(stores.sha256(data)) is None
        op.put(data, digest=stores.sha256(data), aliases=(right,))
        assert op.stat(right) is not None
        # A known blob learns an alias only after a look at the bytes.
        with pytest.raises(DigestMismatchError):
            op.put(data, digest=stores.sha256(data), aliases=("blake3:" + "11" * 32,))
        op.put(b"", aliases=("sha512:" + hashlib.sha512(b"").hexdigest(),))


@pytest.mark.parametrize("name", sorted(BLOBS))
def test_what_is_wrong_is_not_kept(content: Content, storage: Storage, name: str) -> None:
    data, media_type, _ = BLOBS[name]
    digest = stores.sha256(data)

    def breaking() -> Iterator[bytes]:
        yield data[: len(data) // 2]
        raise OSError(5, "the source broke")

    def stopping(_: int) -> None:
        raise KeyboardInterrupt

    for source, options, error in (
        (data, {"digest": "sha256:" + "ab" * 32}, DigestMismatchError),
        (data, {"digest": digest, "size": len(data) - 1}, DigestMismatchError),
        (data, {"digest": digest, "size": len(data) + 1}, DigestMismatchError),
        (data[:-1], {"digest": digest}, DigestMismatchError),
        (breaking(), {"digest": digest}, OSError),
        (data, {"digest": digest, "progress": stopping}, KeyboardInterrupt),
    ):
        with content.operation() as op, pytest.raises(error):
            op.put(source, media_type=media_type, **options)  # type: ignore[arg-type]
    with content.operation() as op:
        assert list(op.blobs()) == []
        assert op.stat(digest) is None
    with pytest.raises(NotFoundError):
        content.open(digest)
    assert stores.raws(storage.path) == []
    stores.gc(storage)
    assert stores.packs(storage.path) == []
    stores.clean(content)


def test_size_is_a_bound_on_what_is_read(content: Content) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(MIB)

    with content.operation() as op, pytest.raises(DigestMismatchError):
        op.put(endless(), digest="sha256:" + "00" * 32, size=100)


def test_known_is_not_read(content: Content) -> None:
    data = stores.noise(1, 400_000)
    digest = stores.put(content, data)

    def never() -> Iterator[bytes]:
        raise AssertionError("was read")
        yield b""

    with content.operation() as op:
        info = op.put(never(), digest=digest, size=len(data))
    assert (info.new_bytes, info.bytes) == (0, len(data))


def test_read_has_a_limit(content: Content) -> None:
    digest = stores.put(content, bytes(5000))
    with content.operation() as op:
        assert op.read(digest, 5000) == bytes(5000)
        with pytest.raises(LimitError):
            op.read(digest, 4999)


def test_have_layer(content: Content) -> None:
    tar = BLOBS["tar"][0]
    with content.operation() as op:
        packed = op.put(stores.gzipped(tar), media_type=stores.TAR_GZIP)
        assert packed.diff_id == stores.sha256(tar)
        assert op.have_layer(stores.sha256(tar)) == (packed.digest,)
        plain = op.put(tar, media_type=stores.TAR)
        assert set(op.have_layer(stores.sha256(tar))) == {packed.digest, plain.digest}
        assert op.have_layer("sha256:" + "00" * 32) == ()


def _odd_tars() -> dict[str, bytes]:
    base = stores.tar_of({"a": b"x" * 70_000, "d/": b"", "d/b": b"y" * 513})
    sparse = io.BytesIO()
    with tarfile.open(fileobj=sparse, mode="w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("x" * 300)
        info.size = 10
        tar.addfile(info, io.BytesIO(b"0123456789"))
    code = bytes(16) + stores.words(3, 9000)
    return {
        "trailing": base + b"tail" * 999,
        "no end": base[:-1024],
        "truncated": base[:40_000],
        "in a header": base[:700],
        "one byte short": base[:-1],
        "twice": base + base,
        "zeros only": bytes(20_480),
        "long names": sparse.getvalue(),
        "pyc": stores.tar_of({"m.pyc": code}),
        "random": stores.noise(9, 300_000),
        "magic only": bytes(257) + b"ustar\x0000" + stores.noise(3, 100_000),
        "huge size": base[:124] + b"77777777777\0" + base[136:],
        "damaged checksum": base[:148] + b"000000\0 " + base[156:],
    }


@pytest.mark.parametrize("name", sorted(_odd_tars()))
def test_odd_tars_come_back(content: Content, name: str) -> None:
    data = _odd_tars()[name]
    with content.operation() as op:
        info = op.put(data, media_type=stores.TAR)
    assert stores.get(content, info.digest) == data
    with content.open(info.digest) as blob:
        for at in (1, 511, 512, 1000, len(data) // 2, len(data) - 1):
            blob.seek(at)
            assert blob.read(700) == data[at : at + 700]
    stores.clean(content)


def test_gzip_of_several_members(content: Content) -> None:
    tar = BLOBS["tar"][0]
    data = gzip.compress(tar[:1000]) + gzip.compress(tar[1000:]) + bytes(512)
    with content.operation() as op:
        info = op.put(data, media_type=stores.TAR_GZIP, diff_id=stores.sha256(tar))
    assert (info.diff_id, info.problem) == (stores.sha256(tar), None)
    assert stores.get(content, info.digest) == data
