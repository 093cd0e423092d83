"""Content-defined chunking: where a buffer is cut. The rule is csrc/chunk.c's; it is part of the
store's format, and cuts do not depend on how the data comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._layerstore import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIN: int = lib.LS_CHUNK_MIN
AVG: int = lib.LS_CHUNK_AVG
MAX: int = lib.LS_CHUNK_MAX
"""Bytes. A chunk is shorter than MIN only where the data ends."""

_new = ffi.new_allocator(should_clear_after_alloc=False)


def cut(buffer: Buffer, final: bool = True) -> list[int]:
    """The lengths in bytes of the chunks at the front of a buffer.

    With `final` they cover all of it. Without, what lies behind their sum (less than MAX bytes) is
    fed again with more behind it."""
    source = ffi.from_buffer("uint8_t[]", buffer)
    room = len(source) // MIN + 1
    lengths = _new("uint32_t[]", room)
    used = ffi.new("size_t *")
    n = lib.ls_chunk_cut(source, len(source), final, lengths, room, used)
    out: list[int] = ffi.unpack(lengths, n)
    return out
