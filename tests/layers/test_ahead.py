"""A stream that is read ahead gives its bytes, its end and its failure, as it would by itself."""

from __future__ import annotations

import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.layers import ahead
from layerstore.layers.ahead import Ahead


class Made:
    """A stream that gives pieces of the sizes said, then ends or fails; it is asked by one thread only,
    and never again after its end."""

    def __init__(self, sizes: list[int], error: Exception | None) -> None:
        self._sizes = [n for n in sizes if n]
        self._source = io.BytesIO(bytes(i * 37 % 251 for i in range(sum(sizes))))
        self._error = error
        self._over = False
        self._threads: set[int] = set()

    def readinto(self, buffer: memoryview, /) -> int:
        assert not self._over
        self._threads.add(threading.get_ident())
        assert len(self._threads) == 1
        if not self._sizes:
            self._over = True
            if self._error is not None:
                raise self._error
            return 0
        n = self._source.readinto(buffer[: self._sizes[0]])
        self._sizes[0] -= n
        if not self._sizes[0]:
            del self._sizes[0]
        return n


def _take(stream: ahead.Stream, sizes: list[int], out: bytearray) -> None:
    turn = 0
    while True:
        buffer = memoryview(bytearray(sizes[turn % len(sizes)]))
        n = stream.readinto(buffer)
        if not n:
            return
        out += buffer[:n]
        turn += 1


PIECES = st.lists(st.integers(0, 300), max_size=30)
TAKEN = st.lists(st.integers(1, 400), min_size=1, max_size=8)


@pytest.fixture(autouse=True, scope="module")
def _small_buffers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "SIZE", 64)
        yield


@given(PIECES, TAKEN)
def test_it_gives_what_the_stream_gives(pieces, taken):
    with Ahead(Made(pieces, None)) as stream:
        out = bytearray()
        _take(stream, taken, out)
        assert out == bytes(i * 37 % 251 for i in range(sum(pieces)))
        assert stream.readinto(memoryview(bytearray(9))) == 0


@given(PIECES, TAKEN)
def test_a_failure_comes_where_it_was(pieces, taken):
    out = bytearray()
    with Ahead(Made(pieces, OSError(5, "gone"))) as stream, pytest.raises(OSError, match="gone"):
        _take(stream, taken, out)
    assert len(out) == sum(pieces)


def test_nothing_reads_any_more_after_it():
    before = threading.active_count()
    with Ahead(Made([100] * 100, None)) as stream:
        stream.readinto(memoryview(bytearray(10)))
    assert threading.active_count() == before
