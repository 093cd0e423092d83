"""Runs of numbers `(first, count)`, chunk lists, and bitmaps over the numbers of some runs.

`RunArray` keeps runs where C works on them: nothing loops in Python but iteration and making one
from tuples. The functions of the module do the same for short lists of tuples. Numbers are unsigned
and of 64 bits (a chunk list holds numbers of 40); a run's end fits in 64 bits too. *Normalised*:
sorted, no two runs touch. An array serves one thread at a time when it is marked; else any number.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final, cast

from ..errors import InvalidInputError
from ._layerstore import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

Run = tuple[int, int]

_RUN = struct.Struct("=QQ")
_BATCH: Final = 65536
_RUNS = ffi.typeof("ls_run[]")
_BYTES = ffi.typeof("uint8_t[]")
_VARINTS: Final = 20
_new = ffi.new_allocator(should_clear_after_alloc=False)


class RunArray:
    """An immutable list of runs in an array of C structs.

    The operations of sets normalise first where it is needed, so that their results are right for
    any runs, and normalised."""

    __slots__ = ("_array", "_n", "_normal")

    def __init__(self, runs: Any, n: int, normal: bool) -> None:
        """For this module: wraps an `ls_run[]` whose first `n` are runs."""
        self._array = runs
        self._n = n
        self._normal = normal

    @staticmethod
    def of(runs: Iterable[Run]) -> RunArray:
        """From tuples. Raises OverflowError for a number that is not unsigned and of 64 bits."""
        flat = array("Q", chain.from_iterable(runs))
        return RunArray(ffi.from_buffer(_RUNS, flat), len(flat) // 2, False)

    @staticmethod
    def from_buffer(data: Buffer) -> RunArray:
        """From pairs of native u64 in a buffer, which is held and must not change."""
        runs = ffi.from_buffer(_RUNS, data)
        return RunArray(runs, len(runs), False)

    @staticmethod
    def from_numbers(numbers: Buffer | Iterable[int]) -> RunArray:
        """Consecutive numbers joined, order kept. Takes an `array("Q")` or the like as it lies."""
        held = numbers if isinstance(numbers, array | memoryview) else array("Q", numbers)  # type: ignore[arg-type]
        source = ffi.from_buffer("uint64_t[]", held)
        runs = _new(_RUNS, len(source))
        return RunArray(runs, lib.ls_runs_from_numbers(source, len(source), runs), False)

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Run]:
        return cast("Iterator[Run]", _RUN.iter_unpack(self.view()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RunArray):
            return NotImplemented
        return self.view() == other.view()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RunArray({list(self)!r})" if self._n <= 8 else f"RunArray of {self._n} runs"

    def view(self) -> memoryview:
        """The runs as native u64 (first, count, first, count, ...)."""
        return memoryview(ffi.buffer(self._array)).cast("B")[: self._n * _RUN.size].cast("Q")

    def total(self) -> int:
        """How many numbers the runs hold (twice those that are in two runs)."""
        return sum(self.view()[1::2])

    def encode(self) -> bytes:
        """As a chunk list, in the order of the runs."""
        out = _new(_BYTES, self._n * _VARINTS)
        return bytes(ffi.buffer(out, lib.ls_runs_encode(self._array, self._n, out)))

    def normalise(self) -> RunArray:
        """The same numbers, each once, in normalised runs."""
        if self._normal:
            return self
        runs = _new(_RUNS, self._n)
        ffi.memmove(runs, self._array, self._n * _RUN.size)
        return RunArray(runs, lib.ls_runs_normalise(runs, self._n), True)

    def subtract(self, other: RunArray) -> RunArray:
        """The numbers of this one that are not in the other."""
        return self._combine(other, lib.ls_runs_subtract)

    def intersect(self, other: RunArray) -> RunArray:
        """The numbers that are in both."""
        return self._combine(other, lib.ls_runs_intersect)

    def _combine(self, other: RunArray, combine: Any) -> RunArray:
        a, b = self.normalise(), other.normalise()
        runs = _new(_RUNS, len(a) + len(b))
        return RunArray(runs, combine(a._array, len(a), b._array, len(b), runs), True)

    def contains(self, number: int) -> bool:
        """Whether a number is in a run. Quick on what `normalise` gave, else it normalises first."""
        a = self.normalise()
        return bool(lib.ls_runs_contain(a._array, len(a), number))


def decode_array(data: Buffer) -> RunArray:
    """The runs of a whole chunk list. Raises InvalidInputError with the offset where it is wrong."""
    source = ffi.from_buffer(_BYTES, data)
    room = len(source) // 2  # a run takes two bytes at least
    runs = _new(_RUNS, room)
    n, used, prev = ffi.new("size_t *", room), ffi.new("size_t *"), ffi.new("uint64_t *")
    err = ffi.new("ls_error *")
    code = lib.ls_runs_decode(source, len(source), True, runs, n, used, prev, err)
    if code != lib.LS_OK:
        reason = ffi.string(err.reason).decode()
        raise InvalidInputError(
            f"{reason} (at byte {err.offset})", offset=err.offset, reason=reason
        )
    if used[0] != len(source):
        # Room was for all runs that fit into the bytes, so one byte is left: half a run.
        reason = "chunk list ends inside a number"
        raise InvalidInputError(f"{reason} (at byte {used[0]})", offset=used[0], reason=reason)
    return RunArray(runs, n[0], False)


def from_numbers(numbers: Iterable[int]) -> list[Run]:
    """Consecutive numbers joined to runs, order kept."""
    return list(RunArray.from_numbers(numbers))


def encode(runs: Iterable[Run]) -> bytes:
    """A chunk list: for each run zigzag(first - end of the run before) and count, as varints."""
    return RunArray.of(runs).encode()


def decode(data: Buffer) -> list[Run]:
    """The inverse of `encode`. Raises InvalidInputError with the offset where it is wrong."""
    return list(decode_array(data))


def normalise(runs: Iterable[Run]) -> list[Run]:
    """The same numbers, sorted, each once, touching runs merged."""
    return list(RunArray.of(runs).normalise())


def subtract(a: Iterable[Run], b: Iterable[Run]) -> list[Run]:
    """The numbers of `a` that are not in `b`, normalised."""
    return list(RunArray.of(a).subtract(RunArray.of(b)))


def intersect(a: Iterable[Run], b: Iterable[Run]) -> list[Run]:
    """The numbers that are in both, normalised."""
    return list(RunArray.of(a).intersect(RunArray.of(b)))


class Bitmap:
    """One bit for each number of a space, all clear at first. Memory: the numbers / 8, in bytes.

    A space of 2^40 numbers would be 128 GiB: the caller knows what it asks for."""

    __slots__ = ("_bits", "_cumulative", "_size", "space")

    def __init__(self, space: RunArray | Iterable[Run]) -> None:
        runs = space if isinstance(space, RunArray) else RunArray.of(space)
        self.space = runs.normalise()
        ends = array("Q", accumulate(self.space.view()[1::2], initial=0))
        self._size: int = ends[-1]
        self._cumulative = ffi.from_buffer("uint64_t[]", ends)
        self._bits = ffi.new(_BYTES, (self._size + 7) // 8)

    def __len__(self) -> int:
        return self._size

    def mark(self, runs: RunArray | Iterable[Run], value: int = 1) -> int:
        """Sets (or clears, `value` 0) the bits of those numbers that are in the space; the others
        are passed over. Returns how many bits changed."""
        a = runs if isinstance(runs, RunArray) else RunArray.of(runs)
        s = self.space
        changed: int = lib.ls_bits_mark(
            self._bits, s._array, self._cumulative, len(s), a._array, len(a), value
        )
        return changed

    def runs(self, value: int = 1) -> RunArray:
        """The numbers whose bit is `value`, normalised."""
        s = self.space
        out = array("Q")
        batch = _new(_RUNS, _BATCH)
        cursor = ffi.new("size_t *")
        n = _BATCH
        while n == _BATCH:
            n = lib.ls_bits_runs(
                self._bits, s._array, self._cumulative, len(s), value, batch, _BATCH, cursor
            )
            out.frombytes(ffi.buffer(batch, n * _RUN.size))
        return RunArray(ffi.from_buffer(_RUNS, out), len(out) // 2, True)

    def count(self) -> int:
        """How many bits are set."""
        ones: int = lib.ls_bits_count(self._bits, self._size)
        return ones
