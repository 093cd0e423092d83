"""Our deflate encoder: what zlib and isal decode from it is the content, and its bytes never change."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import isal_zlib

from layerstore.core.deflate import LEVELS, PIECE, WINDOW, Encoder
from layerstore.errors import InvalidInputError

VECTORS = Path(__file__).parent / "deflate_vectors.json"


def encode(content: bytes, level: int, *, piece: int = PIECE, threads: int = 0) -> bytes:
    """All pieces of a content, one behind the other."""
    starts = range(0, max(1, len(content)), piece)

    def one(start: int) -> bytes:
        before = min(start, WINDOW)
        end = min(start + piece, len(content))
        return Encoder(level).piece(content[start - before : end], before, end == len(content))

    if threads:
        with ThreadPoolExecutor(threads) as pool:
            return b"".join(pool.map(one, starts))
    return b"".join(map(one, starts))


def decoded(data: bytes) -> bytes:
    """What two inflaters make of it: one stream, ended, nothing behind it."""
    machine = zlib.decompressobj(-15)
    out = machine.decompress(data) + machine.flush()
    assert machine.eof
    assert machine.unused_data == b""
    other = isal_zlib.decompressobj(-15)
    assert other.decompress(data) == out
    assert other.eof
    return out


# ---- contents: made by a generator, so that vectors need no files -------------------------------


def numbers(seed: int) -> Callable[[int], int]:
    """Numbers below n, of a generator that nobody will change (Numerical Recipes' constants)."""
    state = seed

    def below(n: int) -> int:
        nonlocal state
        state = (state * 1664525 + 1013904223) % (1 << 32)
        return (state >> 8) % n

    return below


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress: BLAKE2b in counter mode."""
    blocks = (hashlib.blake2b(b"%d %d" % (seed, i)).digest() for i in range(size // 64 + 1))
    return b"".join(blocks)[:size]


def text(size: int, seed: int) -> bytes:
    """Words, some more often than others, in lines."""
    below = numbers(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = [
        "".join(letters[below(1 + below(26))] for _ in range(1 + below(9))) for _ in range(900)
    ]
    out: list[str] = []
    length = 0
    while length < size:
        word = words[below(1 + below(900))] + ("\n" if below(12) == 0 else " ")
        out.append(word)
        length += len(word)
    return "".join(out).encode()[:size]


def records(size: int, seed: int) -> bytes:
    """Like a table of a binary: fields that count, that repeat, that are noise."""
    below = numbers(seed)
    out = bytearray()
    at = 0
    while len(out) < size:
        at += below(64)
        out += at.to_bytes(4, "little") + bytes((0, 0, 0, below(5)))
        out += below(1 << 20).to_bytes(4, "little")
        if below(9) == 0:
            out += out[-(1 + below(min(len(out), 40_000))) :][: below(300)]
    return bytes(out[:size])


def mixed(size: int, seed: int) -> bytes:
    """Stretches of every kind, so that blocks must end where the kind changes."""
    below = numbers(seed)
    makers = (text, noise, records, lambda n, _: bytes(n), lambda n, s: bytes((s % 256,)) * n)
    out = b""
    while len(out) < size:
        out += makers[below(5)](below(120_000), below(1000))
    return out[:size]


CONTENTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"x",
    "three bytes": lambda: b"abc",
    "few": lambda: b"abcabcabcabd",
    "zeros": lambda: bytes(300_000),
    "noise": lambda: noise(200_000, 1),
    "text": lambda: text(400_000, 2),
    "records": lambda: records(400_000, 3),
    "period 32767": lambda: noise(32_767, 4) * 4,
    "period 32768": lambda: noise(32_768, 5) * 4,
    "all bytes": lambda: bytes(range(256)) * 40,
    "mixed, a piece": lambda: mixed(PIECE, 6),
    "mixed, a piece and one": lambda: mixed(PIECE + 1, 7),
    "mixed, three pieces": lambda: mixed(2 * PIECE + 200_000, 8),
}


def vectors() -> dict[str, dict[str, str]]:
    return {
        name: {str(level): hashlib.sha256(encode(make(), level)).hexdigest() for level in LEVELS}
        for name, make in CONTENTS.items()
    }


@pytest.mark.parametrize("name", CONTENTS)
def test_the_bytes_of_ls_deflate_1_are_these_for_ever(name: str) -> None:
    """Never make these vectors again: a store of a user rests on every one of them."""
    content = CONTENTS[name]()
    want = json.loads(VECTORS.read_text())[name]
    assert sorted(want) == [str(level) for level in LEVELS]
    for level in LEVELS:
        data = encode(content, level)
        assert decoded(data) == content
        assert hashlib.sha256(data).hexdigest() == want[str(level)]


def test_the_contents_of_the_vectors_are_the_same_everywhere() -> None:
    """Or a difference in a vector would not say which side has changed."""
    want = json.loads(VECTORS.read_text())["contents"]
    assert {n: hashlib.sha256(make()).hexdigest() for n, make in CONTENTS.items()} == want


@pytest.mark.parametrize("level", [1, 6, 8])
def test_threads_change_nothing(level: int) -> None:
    content = mixed(3 * PIECE + 12_345, 20)
    assert encode(content, level, threads=4) == encode(content, level)


@pytest.mark.parametrize("level", [1, 6, 9])
def test_an_encoder_used_before_encodes_as_a_new_one(level: int) -> None:
    content, other = text(150_000, 21), records(150_000, 22)
    used = Encoder(level)
    used.piece(other, 0, False)
    assert used.piece(content, 0, True) == Encoder(level).piece(content, 0, True)


@pytest.mark.parametrize("level", [1, 6, 8])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_around_a_piece(level: int, extra: int) -> None:
    for content in (bytes(PIECE + extra), text(PIECE + extra, 23)):
        assert decoded(encode(content, level)) == content


@pytest.mark.parametrize("level", [1, 6, 8])
def test_content_that_does_not_compress_grows_little(level: int) -> None:
    content = noise(3 * PIECE // 2, 24)
    data = encode(content, level)
    assert decoded(data) == content
    assert len(data) <= len(content) + 5 * (len(content) // 65535 + 4)


@pytest.mark.parametrize("level", [1, 4, 6, 9])
def test_it_is_at_least_as_small_as_zlib_within_two_percent(level: int) -> None:
    content = text(700_000, 25) + records(700_000, 26)
    machine = zlib.compressobj(level, zlib.DEFLATED, -15)
    assert len(encode(content, level)) <= 1.02 * len(machine.compress(content) + machine.flush())


def test_counts_that_need_more_than_15_bits_are_limited() -> None:
    """Fibonacci numbers make the deepest trees; noise of that distribution has few matches."""
    counts, total = [1, 1], 2
    while total < 400_000:
        counts.append(counts[-1] + counts[-2])
        total += counts[-1]
    symbols = [i for i, n in enumerate(counts) for _ in range(n)]
    random.Random(27).shuffle(symbols)
    content = bytes(symbols)
    for level in (1, 6, 8):
        assert decoded(encode(content, level)) == content


part = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda b, n: b * n, st.binary(min_size=1, max_size=40), st.integers(1, 3000)),
    st.builds(text, st.integers(0, 9000), st.integers(0, 99)),
    st.builds(noise, st.integers(0, 9000), st.integers(0, 99)),
    st.builds(records, st.integers(0, 9000), st.integers(0, 99)),
    st.builds(bytes, st.integers(0, 70_000)),
)


@given(
    st.lists(part, max_size=8),
    st.lists(st.integers(0, 7), max_size=4),
    st.sampled_from(list(LEVELS)),
    st.sampled_from((PIECE, 50_000, 4096, 777)),
)
@settings(max_examples=250, deadline=None)
def test_what_is_encoded_decodes(
    parts: list[bytes], again: list[int], level: int, piece: int
) -> None:
    parts += [parts[i] for i in again if i < len(parts)]
    content = b"".join(parts)
    if len(content) // piece > 100:
        piece = PIECE
    assert decoded(encode(content, level, piece=piece)) == content


@pytest.mark.parametrize("level", [0, 10, -1])
def test_a_level_that_is_none_is_refused(level: int) -> None:
    with pytest.raises(InvalidInputError):
        Encoder(level)


def test_a_piece_that_is_none_is_refused() -> None:
    encoder = Encoder(1)
    for size, before in ((PIECE + 1, 0), (WINDOW + 1, WINDOW + 1), (5, 6), (5, -1)):
        with pytest.raises(InvalidInputError):
            encoder.piece(bytes(size), before, True)


if __name__ == "__main__":
    made = vectors()
    made["contents"] = {n: hashlib.sha256(make()).hexdigest() for n, make in CONTENTS.items()}
    VECTORS.write_text(json.dumps(made, indent=1) + "\n")
