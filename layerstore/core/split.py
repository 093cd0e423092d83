"""The typed face of splitter and joiner: a tar into header stream, marks and content, and back.

The caller owns every buffer of input; the splitter fills arrays of its own and uses them again.
One C call per window, the GIL free meanwhile. A machine serves one thread at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from ..errors import InvalidInputError
from ._layerstore import ffi, lib
from .tar import Buffer, Lost, raw_new

CHUNK: int = lib.LS_PIECE_CHUNK
FILE: int = lib.LS_PIECE_FILE
WINDOW: int = 2 * lib.LS_SPLIT_WINDOW
"""Bytes that a window needs, unless the tar ends in it, for the splitter to get on."""

_PIECES = 16384
_HEAD = 4 << 20
_MARK = 20
_PIECE = struct.Struct("=QII32s")
assert ffi.sizeof("ls_piece") == _PIECE.size

Piece = tuple[int, int, int, bytes]
"""Offset in the window, length, kind (CHUNK or FILE), BLAKE3."""


class SplitBatch:
    """What one call gave. Its arrays and views are good until the next call."""

    __slots__ = ("_pieces", "entries", "head", "marks", "n", "pieces", "used")

    def __init__(self, out: Any, pieces: Any, head: Any, marks: Any) -> None:
        self.used: int = out.used
        """Bytes of the window that were taken; the rest is fed again, with more behind it."""
        self.n: int = out.n_pieces
        self.entries: int = out.entries
        """Entries begun so far in the tar."""
        self.head = memoryview(ffi.buffer(head, out.head_len))
        self.marks = memoryview(ffi.buffer(marks, out.marks_len))
        self.pieces = pieces
        """The pieces as C has them, for the prover."""
        self._pieces = memoryview(ffi.buffer(pieces, self.n * _PIECE.size))

    def rows(self) -> list[Piece]:
        """The pieces of content, in order."""
        return list(_PIECE.iter_unpack(self._pieces))

    def offsets(self) -> memoryview:
        """Where each piece begins in the window (u64)."""
        return self._pieces.cast("Q")[0::6]

    def lengths(self) -> memoryview:
        """Bytes of each piece (u32)."""
        return self._pieces.cast("I")[2::12]

    def kinds(self) -> memoryview:
        """CHUNK or FILE (u32)."""
        return self._pieces.cast("I")[3::12]

    def ids(self) -> bytes:
        """The 32 bytes of BLAKE3 of each piece, one behind the other."""
        return b"".join(map(itemgetter(3), _PIECE.iter_unpack(self._pieces)))


class Splitter:
    """Takes a tar window by window. Any bytes split: what is no tar is all header stream."""

    def __init__(self, simd: int = lib.LS_SIMD_AUTO) -> None:
        self._state = raw_new("char[]", lib.ls_split_sizeof())
        self._scratch = raw_new("uint8_t[]", lib.LS_TAR_SCRATCH)
        self._split: Any = ffi.cast("ls_split *", self._state)
        lib.ls_split_init(self._split, simd, self._scratch, lib.LS_TAR_SCRATCH)
        self._head = raw_new("uint8_t[]", _HEAD)
        self._marks = raw_new("uint8_t[]", _MARK * _PIECES)
        self._pieces = raw_new("ls_piece[]", _PIECES)
        self._out = ffi.new("ls_split_out *")
        self._err = ffi.new("ls_error *")

    def feed(self, window: Buffer, final: bool = False) -> SplitBatch:
        """Splits the front of `window`. `final`: the tar ends with it. When nothing was taken, the
        window has to grow (to WINDOW bytes at most), or the tar is over."""
        source = ffi.from_buffer("uint8_t[]", window)
        code = lib.ls_split_feed(
            self._split,
            source,
            len(source),
            final,
            self._head,
            _HEAD,
            self._marks,
            _MARK * _PIECES,
            self._pieces,
            _PIECES,
            self._out,
            self._err,
        )
        if code != lib.LS_OK:
            raise _refused("splitter", self._err)
        return SplitBatch(self._out, self._pieces, self._head, self._marks)

    @property
    def lost(self) -> Lost | None:
        """Where and why the tar was understood no more, or None."""
        if not lib.ls_split_lost(self._split, self._err):
            return None
        return Lost(self._err.offset, ffi.string(self._err.reason).decode())

    @property
    def complete(self) -> bool:
        """The tar's end (two zero blocks) was seen, or it ended where an entry does."""
        return bool(lib.ls_split_complete(self._split))


class Prover:
    """Holds what a splitter gave against the bytes that it took, call by call."""

    def __init__(self) -> None:
        self._state = raw_new("char[]", lib.ls_prove_sizeof())
        self._scratch = raw_new("uint8_t[]", lib.LS_TAR_SCRATCH)
        self._prove: Any = ffi.cast("ls_prove *", self._state)
        lib.ls_prove_init(self._prove, self._scratch, lib.LS_TAR_SCRATCH)
        self._err = ffi.new("ls_error *")

    def feed(self, window: Buffer, batch: SplitBatch) -> None:
        """`window`: what `Splitter.feed` was given for this batch. Raises InvalidInputError, with the
        tar's offset, if the batch does not join to the bytes that were taken of it."""
        source = ffi.from_buffer("uint8_t[]", window)
        head = ffi.from_buffer("uint8_t[]", batch.head)
        marks = ffi.from_buffer("uint8_t[]", batch.marks)
        code = lib.ls_prove_feed(
            self._prove,
            source,
            batch.used,
            head,
            len(head),
            marks,
            len(marks),
            batch.pieces,
            batch.n,
            self._err,
        )
        if code != lib.LS_OK:
            raise _refused("prover", self._err)


class JoinResult(NamedTuple):
    """What one call took of each input, and how much it wrote."""

    head_used: int
    marks_used: int
    slices_used: int
    """Slices wholly taken."""
    slice_offset: int
    """Bytes taken of the next one: `first_offset` of the next call."""
    out_len: int


class Joiner:
    """Writes a tar again from its header stream, marks and content.

    It is over when all inputs are final and taken, and a call wrote nothing."""

    def __init__(self) -> None:
        self._state = raw_new("char[]", lib.ls_join_sizeof())
        self._scratch = raw_new("uint8_t[]", lib.LS_TAR_SCRATCH)
        self._join: Any = ffi.cast("ls_join *", self._state)
        lib.ls_join_init(self._join, self._scratch, lib.LS_TAR_SCRATCH)
        self._res = ffi.new("ls_join_out *")
        self._err = ffi.new("ls_error *")
        self._capacity = 0
        self._slices: Any = ffi.NULL
        self._reserve(512)

    def _reserve(self, n: int) -> None:
        if n > self._capacity:
            self._capacity = max(n, 2 * self._capacity)
            self._slices = raw_new("ls_slice[]", self._capacity)

    def run(
        self,
        head: Buffer,
        head_final: bool,
        marks: Buffer,
        marks_final: bool,
        slices: Sequence[tuple[Buffer, int, int]],
        first_offset: int,
        slices_final: bool,
        out: bytearray | memoryview,
    ) -> JoinResult:
        """Writes to `out` until it is full or an input is used up. `slices`: (buffer, offset,
        length) of content; `first_offset`: bytes of the first that were taken before. The `final`s
        say that nothing follows. What was not taken is given again, with more behind it.

        Raises InvalidInputError with the tar's offset if the inputs do not fit each other."""
        held: dict[int, tuple[Any, int, int]] = {}
        flat: list[int] = []
        for data, offset, length in slices:
            known = held.get(id(data))
            if known is None:
                keep = ffi.from_buffer("uint8_t[]", data)
                known = held[id(data)] = (keep, int(ffi.cast("uintptr_t", keep)), len(keep))
            if offset < 0 or length < 0 or offset + length > known[2]:
                raise InvalidInputError(f"slice {offset}+{length} of {known[2]} bytes")
            flat += (known[1] + offset, length)
        n = len(slices)
        self._reserve(n)
        struct.pack_into(f"={2 * n}Q", ffi.buffer(self._slices), 0, *flat)
        target = ffi.from_buffer("uint8_t[]", out, require_writable=True)
        tail = (n, first_offset, slices_final, target, len(target))
        return self._run(head, head_final, marks, marks_final, tail)

    def skip(
        self,
        head: Buffer,
        head_final: bool,
        marks: Buffer,
        marks_final: bool,
        content: int,
        size: int,
    ) -> JoinResult:
        """Steps over `size` bytes of the tar, of which nothing is made; `content`: bytes of content
        from here to its end, one slice in the result. Otherwise as `run`."""
        self._slices[0].data = ffi.NULL
        self._slices[0].size = content
        return self._run(head, head_final, marks, marks_final, (1, 0, True, ffi.NULL, size))

    def _run(
        self,
        head: Buffer,
        head_final: bool,
        marks: Buffer,
        marks_final: bool,
        tail: tuple[int, int, bool, Any, int],
    ) -> JoinResult:
        """`tail`: how many slices, bytes taken of the first, whether none follows; target, its size."""
        head_buffer = ffi.from_buffer("uint8_t[]", head)
        marks_buffer = ffi.from_buffer("uint8_t[]", marks)
        n, first_offset, slices_final, target, size = tail
        res = self._res
        code = lib.ls_join_run(
            self._join,
            head_buffer,
            len(head_buffer),
            head_final,
            marks_buffer,
            len(marks_buffer),
            marks_final,
            self._slices,
            n,
            first_offset,
            slices_final,
            target,
            size,
            res,
            self._err,
        )
        if code != lib.LS_OK:
            raise _refused("joiner", self._err)
        return JoinResult(
            res.head_used, res.marks_used, res.slices_used, res.slice_offset, res.out_len
        )


def _refused(who: str, err: Any) -> InvalidInputError:
    reason = ffi.string(err.reason).decode()
    return InvalidInputError(
        f"the tar {who} refused, at byte {err.offset}: {reason}", offset=err.offset, reason=reason
    )
