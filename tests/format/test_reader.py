"""FORMAT.md suffices: a reader written from it alone gives back every byte that layerstore stored."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import os
import random
import shutil
import sys
import tarfile
from pathlib import Path

import deflate
import pytest
import reader
import zstandard
from blake3 import blake3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layerstore.core import chunking, runs, split
from layerstore.core.deflate import Encoder
from layerstore.layers.content import Content, Operation
from layerstore.layers.optimize import optimize
from layerstore.storage import gc
from layerstore.storage.storage import Storage, create, open_storage
from layerstore.values import Edge, Ref

sys.path.append(str(Path(__file__).parent.parent / "core"))
from tar_cases import archives, file, header, old_sparse, pax, pyc, repaired, sparse_1_0

TAR = "application/vnd.oci.image.layer.v1.tar"


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def tar(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as t:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def many(count: int, seed: int) -> list[tuple[str, bytes]]:
    r = random.Random(seed)
    return [(f"many/{i:05d}", r.randbytes(r.randrange(1, 400))) for i in range(count)]


def mixed(seed: int) -> bytes:
    return tar(
        ("empty", b""),
        ("small", b"some text\n" * 20),
        ("app.pyc", pyc(seed)),
        ("n" * 300, noise(700, 3)),
        ("big", noise(900_000, 4)),
        ("other.pyc", pyc(seed + 1, b"more code")),
        ("zeros", bytes(300_000)),
        form=random.Random(seed).choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)),
    )


def blobs() -> dict[str, bytes]:
    files = many(900, 7)
    shuffled = files[:]
    random.Random(8).shuffle(shuffled)
    whole = mixed(1)
    return {
        "empty": b"",
        "one byte": b"x",
        "inline": noise(2048, 1),
        "plain": noise(2049, 2),
        "plain, cut": noise(700_000, 3),
        "tar": whole,
        "tar with new times": mixed(9),
        "tar, cut off in a payload": whole[: len(whole) // 2],
        "tar, cut off in a header": whole[:700],
        "tar without an end": whole.rstrip(b"\0"),
        "tar with a tail": whole + b"tail" * 200,
        "many files": tar(*files),
        "many files, other order": tar(*shuffled),
        "sparse": file(b"a", b"before")
        + old_sparse([(0, b"abc"), (9000, b"x" * 700)], 10_000)
        + sparse_1_0([(512, b"def" * 300)], 5000)
        + pax((b"size", b"11"))
        + header(b"b", 0)
        + b"eleven byte".ljust(512, b"\0")
        + bytes(1024),
        "gzip": gzip.compress(whole, mtime=0),
        "zstd": zstandard.compress(noise(1_000_000, 5)),
        "nearly a tar": bytes(512) + noise(5000, 6),
    }


def ref(op: Operation, name: str, digest: str, size: int) -> None:
    op.commit_refs({name: Ref(name, digest, size, "application/json")})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes]]:
    """A store after a busy life, as a power cut would leave it (its session file still there)."""
    path = str(tmp_path_factory.mktemp("store") / "s")
    create(path, pack_size=1 << 20)
    storage = open_storage(path)
    wanted: dict[str, bytes] = {}
    _live(storage, wanted)
    copy = f"{path}.copy"
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("lock.mdb"))
    storage.close()
    return copy, wanted


def _live(storage: Storage, wanted: dict[str, bytes]) -> None:
    content = Content(storage)
    with content.operation() as op:
        for data in blobs().values():
            wanted[op.put(data, media_type=TAR if len(data) > 5000 else "text/plain").digest] = data
        alias = b"known under three names" * 200
        names = (
            f"sha512:{hashlib.sha512(alias).hexdigest()}",
            f"blake3:{blake3(alias).hexdigest()}",
        )
        for digest in (op.put(alias, aliases=names).digest, *names):
            wanted[digest] = alias
        # Two pieces, most of it quick for a plain encoder.
        layer = tar(
            ("zeros", bytes(1_050_000)), ("text", b"".join(b"%d " % i for i in range(3000)))
        )
        for level in (1, 6):
            made = op.gzip(op.put(layer, media_type=TAR).digest, level, f"{TAR}+gzip").digest
            with op.open(made) as blob:
                wanted[made] = b"".join(blob.chunks())
            assert gzip.decompress(wanted[made]) == layer
        wanted[op.put(layer, media_type=TAR).digest] = layer
        image = b'{"an": "image"}'
        child = next(iter(wanted))
        done = op.put(image, edges=(Edge(child, "child", 0, "text/plain"),))
        wanted[done.digest] = image
        ref(op, "kept:1", done.digest, done.bytes)
        signature = b'{"subject": "the image"}'
        wanted[op.put(signature, edges=(Edge(done.digest, "subject"),)).digest] = signature
    # Dies at once; its neighbours live on, so that compaction has something to copy.
    with Content(other := open_storage(storage.path)).operation() as op:
        dead = op.put(tar(*((f"dead/{i}", noise(60_000, 100 + i)) for i in range(30)))).digest
        kept = tar(*((f"kept/{i}", noise(60_000, 100 + i)) for i in range(0, 30, 3)))
        digest = op.put(kept).digest
        wanted[digest] = kept
        with content.operation() as mine:
            assert mine.have(digest)
    other.close()
    assert dead not in wanted
    gc.collect(storage, aggressive=True)
    gc.checkpoint(storage)
    with content.operation() as op:
        late = noise(5000, 77)
        wanted[op.put(late).digest] = late
        packed = gzip.compress(layer, 6, mtime=0)
        came = op.put(packed, media_type=f"{TAR}+gzip")
        wanted[came.digest] = packed
        (outcome,), _ = optimize(content, [came])
        assert outcome.blob.result == "gzip"


def test_every_blob_by_every_form(stored: tuple[str, dict[str, bytes]]) -> None:
    path, wanted = stored
    store = reader.Store(path)
    assert set(store.digests()) == set(wanted)
    seen = set()
    for digest, data in wanted.items():
        blob = store.blob(digest)
        assert blob is not None
        forms = [form for form in ("inline", "plain", "tar", "gzip", "raw") if form in blob]
        assert forms
        if "recipe" in blob.get("gzip", {}):
            # Models are not this reader's: what surrounds them is.
            model, spans = store.recipe(blob)
            assert 100 <= model < 200
            assert spans >= 1
            forms = ["recipe"]
        else:
            for form in forms:
                assert store.verified(blob, form) == data
        seen.update(forms)
        if "tar" in blob and "outer" in blob["tar"]["content"]:
            seen.add("outer")
        if "tar" in blob and blob["tar"]["marks"]["size"]:
            seen.add("marks")
    assert seen == {"inline", "plain", "tar", "gzip", "recipe", "raw", "outer", "marks"}
    assert store.refs().keys() == {"kept:1"}
    store.close()


def test_rows_sums_and_tables_of_contents(stored: tuple[str, dict[str, bytes]]) -> None:
    store = reader.Store(stored[0])
    store.check_sums()
    for table in reader.TABLES:
        assert all(isinstance(value, bytes) for _, value in store.rows(table))
    sealed = 0
    for key, _ in store.rows("packs"):
        pack = int.from_bytes(key, "big")
        blocks = store.toc(pack)
        with open(store.pack_path(pack), "rb") as f:
            for offset, length, first in blocks or ():
                f.seek(offset)
                if f.read(4) == b"LSB1":
                    numbers, _, _, size = store.parse_block(f, offset)
                    assert (numbers[0], size) == (first, length)
        sealed += blocks is not None
    assert sealed > 0
    store.close()


def test_the_metadata_pack_gives_the_rows_of_the_index(
    stored: tuple[str, dict[str, bytes]],
) -> None:
    store = reader.Store(stored[0])
    rows, sequence, last = store.replay()
    want = {
        (table, key): value
        for table in reader.TABLES
        if table not in reader.UNLOGGED
        for key, value in store.rows(table)
        if table != "meta" or (key != b"journal" and not key.startswith(b"sum:"))
    }
    assert rows == want
    journal = store.get("meta", b"journal")
    assert journal is not None
    assert int.from_bytes(journal[16:24], "little") == sequence
    assert journal[24:] == last
    store.close()


def test_a_scan_of_the_packs_finds_every_chunk(stored: tuple[str, dict[str, bytes]]) -> None:
    store = reader.Store(stored[0])
    found = store.scan()
    live = 0
    for key, value in store.rows("blocks"):
        first = int.from_bytes(key, "big")
        for number in range(first, first + (len(value) - 34) // 4):
            chunk_id, content = found[number]
            assert next(store.chunks([(number, 1)])) == content
            assert store.get("chunks", chunk_id[:16]) == number.to_bytes(5, "big")
            live += 1
    assert live > 900
    store.close()


def test_damage_does_not_pass(stored: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    path = str(tmp_path / "damaged")
    shutil.copytree(stored[0], path)
    for name in os.listdir(os.path.join(path, "packs")):
        with open(os.path.join(path, "packs", name), "r+b") as f:
            data = bytearray(f.read())
            data[64:] = bytes(b ^ 1 for b in data[64:])
            f.seek(0)
            f.write(data)
    store = reader.Store(path)
    refused = 0
    for digest in store.digests():
        blob = store.blob(digest)
        assert blob is not None
        for form in ("plain", "tar", "gzip"):
            if form in blob:
                with pytest.raises(reader.Wrong):
                    store.verified(blob, form)
                refused += 1
    assert refused > 10
    store.close()


def take_apart(data: bytes) -> tuple[bytes, bytes, list[bytes]]:
    splitter = split.Splitter()
    head, marks, content = b"", b"", []
    at = 0
    while True:
        batch = splitter.feed(memoryview(data)[at:], True)
        for offset, length, _, _ in batch.rows():
            content.append(data[at + offset : at + offset + length])
        head += bytes(batch.head)
        marks += bytes(batch.marks)
        at += batch.used
        if at == len(data):
            return head, marks, content


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(archives(), st.booleans())
@example(b"", False)
@example(mixed(5), False)
@example(
    pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")) + file(b"a", b"1\n2\n3x"), True
)
def test_the_framing_rules_join_what_the_splitter_split(data: bytes, repair: bool) -> None:
    """Any bytes, tar or not. Two writings of the same rules, C and Python, agree on every byte."""
    if repair:
        data = repaired(data)
    head, marks, content = take_apart(data)
    assert b"".join(reader.Joiner(head, marks, iter(content)).pieces()) == data


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, (1 << 40) - 1), st.integers(1, 1 << 20)), max_size=20))
def test_chunk_lists(wanted: list[tuple[int, int]]) -> None:
    wanted = [(first, min(count, (1 << 40) - first)) for first, count in wanted]
    assert reader.chunk_list(runs.encode(wanted)) == wanted


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 65_536, 262_144, 262_145, 600_000])
def test_the_chunker(size: int) -> None:
    data = noise(size, size)
    assert reader.cut(data) == list(chunking.cut(data))
    even = (b"the same again " * (size // 15 + 1))[:size]
    assert reader.cut(even) == list(chunking.cut(even))


def test_the_reader_imports_nothing_of_layerstore() -> None:
    names = set()
    for module in (reader, deflate):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"lmdb", "zstandard", "blake3", "deflate"}


# ---- the deflate encoder -----------------------------------------------------------------------

piece = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda b, n: b * n, st.binary(min_size=1, max_size=20), st.integers(1, 400)),
    st.builds(noise, st.integers(0, 3000), st.integers(0, 9)),
    st.builds(
        lambda n, s: (b"%d\n" % s).join([b"line of text"] * n),
        st.integers(1, 50),
        st.integers(0, 99),
    ),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(piece, max_size=6), st.lists(st.integers(0, 5), max_size=4), st.integers(1, 9))
def test_two_writings_of_the_encoder_agree(
    parts: list[bytes], again: list[int], level: int
) -> None:
    """Section 15 and csrc/deflate: on every bit."""
    content = b"".join(parts + [parts[i] for i in again if i < len(parts)])
    got = Encoder(level).piece(content, 0, True)
    assert deflate.gzip(content, level)[10:-8] == got


@pytest.mark.parametrize("level", range(1, 10))
def test_two_writings_of_the_encoder_agree_on_long_contents(level: int) -> None:
    """Several blocks, of unlike kinds; a window before them."""
    source = random.Random(level)
    words = [source.randbytes(source.randrange(1, 9)).hex().encode() for _ in range(300)]
    text = b" ".join(source.choice(words[: source.randrange(1, 300)]) for _ in range(9000))
    content = text + noise(9000, level) + bytes(40_000) + text[5000:9000] + noise(300, 1) * 9
    before = 20_000
    for start, final in ((0, True), (before, False)):
        got = Encoder(level).piece(content, start, final)
        assert deflate.Piece(content, start, level, final).encode() == got
