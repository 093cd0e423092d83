"""Where content is cut: as csrc/chunk.c and FORMAT.md 10.2 say, written a second time here, slowly.

The cuts are part of the format: another cut of known content makes it unknown. So some are pinned.
"""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.core import chunking

MIN, AVG, MAX = 16_384, 65_536, 262_144
MASK = (1 << 64) - 1
SOURCE = Path(__file__).parents[2] / "csrc/chunk.c"
GEAR = struct.unpack("<256Q", blake3.blake3(b"layerstore gear table, format 1").digest(length=2048))
NOISE = random.Random(5).randbytes(4 << 20)


def first_cut(data: bytes) -> int:
    """The length of the first chunk, hashing every byte from the first on."""
    if len(data) <= MIN:
        return len(data)
    h = 0
    for i, byte in enumerate(data[:MAX]):
        h = (2 * h + GEAR[byte]) & MASK
        if i + 1 >= MIN and h < (1 << 46 if i + 1 < AVG else 1 << 50):
            return i + 1
    return min(len(data), MAX)


def cuts(data: bytes) -> list[int]:
    out = []
    at = 0
    while at < len(data):
        out.append(first_cut(data[at : at + MAX]))
        at += out[-1]
    return out


def test_the_table_is_what_the_format_says() -> None:
    text = SOURCE.read_text().partition("gear[256] = {")[2].partition("};")[0]
    assert [int(word, 16) for word in re.findall(r"0x([0-9a-f]{16})u", text)] == list(GEAR)
    assert (chunking.MIN, chunking.AVG, chunking.MAX) == (MIN, AVG, MAX)


def test_cuts_are_those_of_the_slow_way() -> None:
    """Content of many kinds: cuts before and after the average, at the longest, and none."""
    source = random.Random(6)
    seen = {"early": 0, "late": 0, "longest": 0, "end": 0}
    for turn in range(60):
        size = source.choice((MIN - 1, MIN, MIN + 1, AVG, MAX - 1, MAX, MAX + 1, 600_000))
        start = source.randrange(len(NOISE) - size)
        data = bytearray(NOISE[start : start + size])
        if turn % 4 == 1:
            data[source.randrange(size) :] = b""
        elif turn % 4 == 2:
            period = NOISE[: source.randrange(1, 100)]
            data = bytearray((period * (size // len(period) + 1))[:size])
        got = chunking.cut(data)
        assert got == cuts(bytes(data))
        assert sum(got) == len(data)
        for n in got[:-1]:
            seen["longest" if n == MAX else "early" if n < AVG else "late"] += 1
        seen["end"] += bool(got) and got[-1] < MIN
    assert min(seen.values()) >= 4, seen


PINNED = [67315, 73071, 93026, 68634, 80445, 82733, 67521, 60994, 90767, 110079, 75391, 106970]


def test_pinned() -> None:
    assert chunking.cut(NOISE)[:12] == PINNED
    assert chunking.cut(b"") == []
    assert chunking.cut(bytes(600_000)) == [MAX, MAX, 600_000 - 2 * MAX]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_cuts_do_not_depend_on_how_the_data_comes(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 1 << 20))
    size = data.draw(st.integers(0, 2 << 20))
    whole = memoryview(NOISE)[start : start + size]
    want = chunking.cut(whole)
    got: list[int] = []
    at = end = 0
    while at < size:
        end = min(size, end + data.draw(st.integers(1, 700_000)))
        some = chunking.cut(whole[at:end], end == size)
        if end < size:
            assert end - at - sum(some) < MAX
        got += some
        at += sum(some)
    assert got == want


def test_a_change_moves_only_the_cuts_around_it() -> None:
    """What content-defined cutting is for: bytes put in at the front leave nearly all chunks as they
    were."""
    before = {bytes(p) for p in pieces(NOISE)}
    after = {bytes(p) for p in pieces(NOISE[:1000] + b"a few bytes more" + NOISE[1000:])}
    assert len(before - after) <= 2
    assert len(before) > 40


def pieces(data: bytes) -> list[memoryview]:
    view, at, out = memoryview(data), 0, []
    for n in chunking.cut(data):
        out.append(view[at : at + n])
        at += n
    return out
