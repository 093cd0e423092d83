"""Deflate, by an encoder of our own that never changes: "ls-deflate 1" (FORMAT.md, section 15).

Content is encoded in pieces of `PIECE` bytes that see at most the `WINDOW` bytes before them. The
bytes depend on content and level alone, so pieces can be made side by side, and each again alone. The
GIL is free while C encodes; an object serves one thread at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ._layerstore import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

ENCODER = "ls-deflate 1"
LEVELS = range(1, 10)
DEFAULT_LEVEL = 6
WINDOW: int = lib.LS_DEFLATE_WINDOW
PIECE: int = lib.LS_DEFLATE_PIECE
"""Bytes of content."""

_new = ffi.new_allocator(should_clear_after_alloc=False)


class Encoder:
    """Encodes pieces; holds 0.6 MB of memory for it and 1 MiB of output."""

    __slots__ = ("_out", "_room", "_state", "level")

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        """Raises InvalidInputError for a level that is not 1 to 9."""
        if level not in LEVELS:
            raise InvalidInputError(f"no such level of gzip: {level} (1 to 9)", reason="level")
        self.level = level
        self._state = _new("uint64_t[]", (lib.ls_deflate_sizeof() + 7) // 8)
        self._room = 0
        self._out: Any = None

    def piece(self, data: Buffer, before: int, final: bool) -> bytes:
        """Raw deflate data (RFC 1951) of the content in a buffer, whose first `before` bytes are of the
        piece before. A piece that is not `final` ends on a byte, to be followed by the next.

        Raises InvalidInputError when the piece is longer than PIECE, or `before` than WINDOW."""
        source = ffi.from_buffer("uint8_t[]", data)
        size = len(source) - before
        if not 0 <= before <= WINDOW or not 0 <= size <= PIECE:
            raise InvalidInputError(f"no piece: {size} bytes behind {before}")
        room = lib.ls_deflate_bound(size)
        if room > self._room:
            self._out = _new("uint8_t[]", room)
            self._room = room
        length, error = ffi.new("size_t *"), ffi.new("ls_error *")
        code = lib.ls_deflate_piece(
            ffi.cast("ls_deflate *", self._state),
            self.level,
            source,
            before,
            size,
            final,
            self._out,
            self._room,
            length,
            error,
        )
        if code:
            raise InvalidInputError(ffi.string(error.reason).decode(), offset=error.offset)
        out: bytes = ffi.buffer(self._out, length[0])[:]
        return out
