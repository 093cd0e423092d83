"""BLAKE3 by every path of this CPU and build: the official vectors, and the `blake3` package as oracle.

A chunk's id is its BLAKE3, on every machine that a store may be carried to: a path that gives another
hash for one length would make content unknown, or worse. So lengths are taken around every boundary:
of a block, of a chunk, of a vector's lanes, of what goes the flat way and what is streamed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import blake3 as package
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.core import hashing

HERE = Path(__file__).parent
VECTORS: dict[str, Any] = json.loads((HERE / "blake3_vectors.json").read_text())
KEY = VECTORS["key"].encode()
NAMES = {
    "portable": hashing.PORTABLE,
    "avx2": hashing.AVX2,
    "avx512": hashing.AVX512,
    "neon": hashing.NEON,
}
PATHS = hashing.simd_supported()
NOISE = random.Random(3).randbytes(1_100_000)
CHUNK = 1024
FLAT = 256 * CHUNK
"""Up to here an input goes through the tree level by level, above it in subtrees."""
ON_EVERY_PATH = pytest.mark.parametrize("path", ["auto", *PATHS])


def simd(path: str) -> int:
    return hashing.AUTO if path == "auto" else NAMES[path]


def oracle(data: bytes | memoryview, key: bytes | None = None, length: int = 32) -> bytes:
    made = package.blake3(data) if key is None else package.blake3(data, key=key)
    return made.digest(length=length)


def streamed(pieces: list[bytes | memoryview], path: str, key: bytes | None = None) -> Any:
    made = hashing.Blake3(key, simd(path))
    for piece in pieces:
        made.update(piece)
    return made


@ON_EVERY_PATH
def test_the_official_vectors(path: str) -> None:
    assert len(VECTORS["cases"]) == 22
    for case in VECTORS["cases"]:
        size = case["input_len"]
        data = bytes(i % 251 for i in range(size))
        for key, name in ((None, "hash"), (KEY, "keyed_hash")):
            want = bytes.fromhex(case[name])
            assert len(want) == 131
            assert hashing.blake3(data, key, simd(path)) == want[:32], (size, name)
            for cut in {0, 1, size // 2, max(0, size - 1)}:
                made = streamed([data[:cut], data[cut:]], path, key)
                assert made.digest(131) == want, (size, name, cut)
                assert made.hexdigest() == case[name][:64]


@ON_EVERY_PATH
def test_every_length_around_a_boundary(path: str) -> None:
    edges = {64 * n for n in range(1, 34)} | {CHUNK * n for n in range(1, 70)}
    edges |= {CHUNK * n for n in (127, 128, 129, 255, 256, 257, 384, 511, 512, 513, 1000)}
    sizes = {edge + d for edge in edges for d in (-1, 0, 1)}
    # A last chunk of any number of blocks beside any number of whole ones: it may share their lanes.
    sizes |= {CHUNK * n + 64 * b + 1 for n in range(34) for b in range(16)}
    for size in sorted(sizes):
        part = memoryview(NOISE)[size % 97 :][:size]
        assert hashing.blake3(part, None, simd(path)) == oracle(part), size


@ON_EVERY_PATH
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_of_any_size(path: str, data: st.DataObject) -> None:
    """The hash does not depend on how the input comes, and may be asked for on the way."""
    size = data.draw(st.one_of(st.integers(0, 3000), st.integers(0, 3 * FLAT)))
    start = data.draw(st.integers(0, 64))
    key = data.draw(st.sampled_from([None, KEY]))
    whole = memoryview(NOISE)[start : start + size]
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=8)))
    made = hashing.Blake3(key, simd(path))
    at = 0
    for cut in [*cuts, size]:
        made.update(whole[at:cut])
        at = cut
        if data.draw(st.booleans()):
            assert made.digest() == oracle(whole[:at], key)
    length = data.draw(st.integers(0, 200))
    assert made.digest(length) == oracle(whole, key, length)
    assert hashing.blake3(whole, key, simd(path)) == oracle(whole, key)


@ON_EVERY_PATH
@settings(max_examples=60, deadline=None)
@given(
    extents=st.lists(
        st.tuples(st.integers(0, 500_000), st.one_of(st.integers(0, 5000), st.just(FLAT + 7))),
        max_size=20,
    ),
    keyed=st.booleans(),
)
def test_extents_of_one_buffer(path: str, extents: list[tuple[int, int]], keyed: bool) -> None:
    key = KEY if keyed else None
    got = hashing.blake3_many(NOISE, extents, key, simd(path))
    assert got == b"".join(oracle(NOISE[o : o + n], key) for o, n in extents)


def test_what_is_no_extent_and_no_key_is_refused() -> None:
    for extent in ((0, 11), (11, 0), (10, 1), (-1, 2), (3, -1)):
        with pytest.raises(ValueError, match="extent"):
            hashing.blake3_many(b"0123456789", [extent])
    for key in (b"", b"short", bytes(33)):
        with pytest.raises(ValueError, match="key"):
            hashing.blake3(b"x", key)
        with pytest.raises(ValueError, match="key"):
            hashing.Blake3(key)
    assert hashing.keyed(KEY, b"x") == oracle(b"x", KEY)


def test_a_path_that_is_not_there_is_the_plain_one() -> None:
    for missing in (*(set(NAMES) - set(PATHS)), "no such"):
        number = NAMES.get(missing, 31)
        assert hashing.blake3(NOISE, None, number) == oracle(NOISE)
    assert "portable" in PATHS


def test_the_vectors_of_this_cpu_are_used() -> None:
    """A build for this machine has the paths that the machine can run."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert ("avx2" in PATHS) == ("avx2" in words)
    assert ("avx512" in PATHS) == ({"avx512f", "avx512vl"} <= words)
    assert ("neon" in PATHS) == ("asimd" in words)


@pytest.mark.needs("aarch64-linux-gnu-gcc", "qemu-aarch64-static")
def test_neon_on_another_machine(tmp_path: Path) -> None:
    """Built for 64-bit ARM without a warning, and run there, emulated: the hashes are the same."""
    program = tmp_path / "paths"
    # Sanitizers that this process runs under are none of theirs.
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    sources = [HERE / "blake3_paths.c", *sorted((HERE.parents[1] / "csrc").glob("blake3*.c"))]
    subprocess.run(
        [
            *("aarch64-linux-gnu-gcc", "-static", "-std=c11", "-O2", "-Wall", "-Wextra"),
            *("-Wconversion", "-Werror", f"-I{HERE.parents[1] / 'csrc'}", "-o", program),
            *sources,
        ],
        check=True,
        env=env,
    )
    noise = tmp_path / "noise"
    noise.write_bytes(NOISE)
    sizes = [0, 1, 63, 64, 65, 1023, 1024, 1025, 262_143, 262_144, 262_145, len(NOISE)]
    # Whole chunks, a few and more than the lanes, and a last one of few or many blocks beside them.
    sizes += [CHUNK * n + 64 * b + 1 for n in range(1, 11) for b in (0, 1, 2, 3, 7, 8, 9, 15)]
    for name in ("neon", "portable"):
        out = subprocess.run(
            ["qemu-aarch64-static", program, str(NAMES[name]), noise, *map(str, sizes)],
            check=True,
            capture_output=True,
            text=True,
            env=env,
        ).stdout.split()
        want = []
        for size in sizes:
            data = NOISE[:size]
            want += [oracle(data), oracle(data, KEY), oracle(data, length=131)]
        assert out == [digest.hex() for digest in want], name
