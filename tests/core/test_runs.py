"""Runs, chunk lists and bitmaps against Python's sets, and chunk lists that are not what they claim."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.core import runs
from layerstore.core.runs import Bitmap, Run, RunArray
from layerstore.errors import InvalidInputError

END = 1 << 40
LAST = (1 << 64) - 1

near = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 30)), max_size=25)
"""Runs that touch, overlap, are empty, and come in any order."""
numbers = st.integers(0, END - 1)
listed = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 300), st.integers(1, 20)),
        numbers.map(lambda n: (n, 1)),
        st.tuples(numbers, st.integers(1, END)).map(lambda r: (r[0], min(r[1], END - r[0]))),
    ),
    max_size=30,
)


def members(of: Iterable[Run]) -> set[int]:
    return {n for first, count in of for n in range(first, first + count)}


def normal(of: set[int]) -> list[Run]:
    out: list[Run] = []
    for n in sorted(of):
        if out and sum(out[-1]) == n:
            out[-1] = (out[-1][0], out[-1][1] + 1)
        else:
            out.append((n, 1))
    return out


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


@settings(max_examples=400)
@given(near, near)
def test_sets(a: list[Run], b: list[Run]) -> None:
    one, two = members(a), members(b)
    assert runs.normalise(a) == normal(one)
    assert runs.subtract(a, b) == normal(one - two)
    assert runs.intersect(a, b) == normal(one & two)
    array = RunArray.of(a)
    assert list(array) == a
    assert array.normalise().total() == len(one)
    assert [n for n in range(160) if array.contains(n)] == sorted(one)


@given(st.lists(st.integers(0, 40)))
def test_from_numbers_keeps_the_order(given: list[int]) -> None:
    got = runs.from_numbers(given)
    assert [n for first, count in got for n in range(first, first + count)] == given
    assert all(sum(a) != b[0] for a, b in itertools.pairwise(got))


@settings(max_examples=400)
@given(listed)
def test_chunk_lists_come_back(given: list[Run]) -> None:
    data = runs.encode(given)
    want, end = b"", 0
    for first, count in given:
        d = first - end
        want += varint(2 * d if d >= 0 else -2 * d - 1) + varint(count)
        end = first + count
    assert data == want
    assert runs.decode(data) == given
    for cut in range(len(data)):
        whole = sum(len(runs.encode(given[:n])) == cut for n in range(len(given)))
        if not whole:
            with pytest.raises(InvalidInputError, match="ends inside"):
                runs.decode(data[:cut])


@settings(max_examples=600)
@given(st.binary(max_size=40))
def test_any_bytes_decode_to_runs_or_are_refused(data: bytes) -> None:
    try:
        got = runs.decode(data)
    except InvalidInputError as e:
        offset = e.offset
    else:
        offset = 0
        assert all(first + count <= END for first, count in got)
        assert runs.decode(runs.encode(got)) == got
    assert offset in range(len(data) + 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (varint(2) + varint(0), "empty run"),
        (varint(1) + varint(1), "above 40 bits"),
        (varint(2 * END) + varint(1), "above 40 bits"),
        (varint(2 * (END - 1)) + varint(2), "above 40 bits"),
        (varint(0) + varint(LAST), "above 40 bits"),
        (varint(0) + varint(5) + varint(11) + varint(1), "above 40 bits"),
        (b"\xff" * 9 + b"\x02" + b"\x01", "above 64 bits"),
        (b"\xff" * 11, "above 64 bits"),
        (b"\x80", "ends inside"),
        (b"\x02", "ends inside"),
    ],
)
def test_hostile_chunk_lists(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        runs.decode(data)


@pytest.mark.parametrize("bad", [b"\x02\x00", b"\xff" * 11, b"\x80", b"\x02"])
def test_where_a_chunk_list_is_wrong(bad: bytes) -> None:
    good = runs.encode([(7, 3), (500, 1)])
    with pytest.raises(InvalidInputError) as caught:
        runs.decode(good + bad)
    assert caught.value.offset == len(good)


def test_ends_that_do_not_fit() -> None:
    """A run whose end is above 64 bits ends there; nothing walks its numbers."""
    huge = [(LAST - 5, 100), (0, LAST)]
    assert runs.normalise(huge) == [(0, LAST)]
    assert runs.intersect(huge, [(3, 4)]) == [(3, 4)]
    assert runs.subtract([(3, 4)], huge) == []
    assert RunArray.of([(1, 2), (LAST - 1, 9)]).contains(LAST - 1)
    with pytest.raises(OverflowError):
        RunArray.of([(LAST + 1, 1)])
    with pytest.raises(OverflowError):
        RunArray.of([(-1, 1)])


@settings(max_examples=400)
@given(near, st.lists(st.tuples(near, st.booleans()), max_size=5))
def test_bitmaps(space: list[Run], marks: list[tuple[list[Run], bool]]) -> None:
    inside = members(space)
    bits = Bitmap(space)
    assert len(bits) == len(inside)
    assert list(bits.runs(0)) == normal(inside)
    want: set[int] = set()
    for run, value in marks:
        changed = bits.mark(run, int(value))
        now = want | (members(run) & inside) if value else want - members(run)
        assert changed == len(want ^ now)
        want = now
        assert list(bits.runs(1)) == normal(want)
        assert list(bits.runs(0)) == normal(inside - want)
        assert bits.count() == len(want)


def test_a_bitmap_of_more_runs_than_one_call_gives() -> None:
    """Every second number of a large space, and of a space with gaps: runs come in batches."""
    count = 150_000
    for space in ([(10, 2 * count)], [(3 * n, 2) for n in range(count)]):
        bits = Bitmap(space)
        wanted = [(first, 1) for run, n in space for first in range(run, run + n, 2)]
        assert bits.mark(wanted) == len(wanted)
        assert list(bits.runs(1)) == wanted
        assert bits.mark([(0, LAST)]) == len(bits) - len(wanted)
        assert list(bits.runs(1)) == runs.normalise(space)
        assert list(bits.runs(0)) == []
