"""BLAKE3: at once, in pieces, and of many extents of one buffer.

Any contiguous buffer is taken as it lies, without a copy; the GIL is free while C hashes. An object
serves one thread at a time. Which instructions are used is decided at run time; `simd` forces a path
(one that this CPU or build does not have falls back to the plain one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._layerstore import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

AUTO: int = lib.LS_SIMD_AUTO
PORTABLE: int = lib.LS_SIMD_PORTABLE
AVX2: int = lib.LS_SIMD_AVX2
AVX512: int = lib.LS_SIMD_AVX512
NEON: int = lib.LS_SIMD_NEON

LENGTH: int = lib.LS_BLAKE3_LEN
"""Bytes of a chunk's id, and of a digest unless more are asked for."""

KEY_LENGTH = 32

_NAMES = {"portable": PORTABLE, "avx2": AVX2, "avx512": AVX512, "neon": NEON}
_OUT = ffi.typeof("uint8_t[32]")
_BYTES = ffi.typeof("uint8_t[]")
_NULL = ffi.NULL
_from_buffer = ffi.from_buffer
_buffer = ffi.buffer
_hash = lib.ls_blake3_hash
_new = ffi.new_allocator(should_clear_after_alloc=False)


def simd_supported() -> tuple[str, ...]:
    """The paths that this build has and this CPU runs, of portable, avx2, avx512 and neon."""
    mask = lib.ls_simd_supported()
    return tuple(name for name, simd in _NAMES.items() if mask >> simd & 1)


def _key(key: Buffer | None) -> Any:
    if key is None:
        return _NULL
    held = _from_buffer(_BYTES, key)
    if len(held) != KEY_LENGTH:
        raise ValueError(f"a BLAKE3 key has {KEY_LENGTH} bytes, not {len(held)}")
    return held


def blake3(data: Buffer, key: Buffer | None = None, simd: int = AUTO) -> bytes:
    """The 32-byte BLAKE3 of a buffer, keyed when a key of 32 bytes is given.

    Raises ValueError for a key of another length."""
    out = _new(_OUT)
    # Half of the time of a hash of 64 bytes goes by out here: bytes need no wrapping.
    source: Any = data if type(data) is bytes else _from_buffer(_BYTES, data)
    _hash(simd, _NULL if key is None else _key(key), source, len(source), out)
    digest: bytes = _buffer(out)[:]
    return digest


def keyed(key: Buffer, data: Buffer) -> bytes:
    """The 32-byte keyed BLAKE3 (a MAC) of a buffer. Raises ValueError unless the key has 32 bytes."""
    return blake3(data, key)


def blake3_many(
    buffer: Buffer,
    extents: Sequence[tuple[int, int]],
    key: Buffer | None = None,
    simd: int = AUTO,
) -> bytes:
    """The 32-byte BLAKE3 of each extent, `(offset, length)` in bytes, one behind the other.

    Raises ValueError when an extent does not lie in the buffer."""
    source = _from_buffer(_BYTES, buffer)
    size = len(source)
    for offset, length in extents:
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"extent ({offset}, {length}) is not within {size} bytes")
    n = len(extents)
    out = _new(_BYTES, n * LENGTH)
    lib.ls_blake3_many(simd, _key(key), source, ffi.new("ls_extent[]", list(extents)), n, out)
    return bytes(_buffer(out))


class Blake3:
    """BLAKE3 of input that comes in pieces."""

    __slots__ = ("_hash", "_state")

    def __init__(self, key: Buffer | None = None, simd: int = AUTO) -> None:
        """Raises ValueError unless the key has 32 bytes."""
        self._state = _new("uint64_t[]", (lib.ls_blake3_sizeof() + 7) // 8)
        self._hash: Any = ffi.cast("ls_blake3 *", self._state)
        lib.ls_blake3_init(self._hash, simd, _key(key))

    def update(self, data: Buffer) -> None:
        """Adds the whole of a buffer."""
        source = _from_buffer(_BYTES, data)
        lib.ls_blake3_update(self._hash, source, len(source))

    def digest(self, length: int = LENGTH) -> bytes:
        """The hash of what was added so far, of any length in bytes; more may be added after it."""
        out = _new(_BYTES, length)
        lib.ls_blake3_final(self._hash, out, length)
        return bytes(_buffer(out))

    def hexdigest(self, length: int = LENGTH) -> str:
        """`digest` in lower-case hex."""
        return self.digest(length).hex()
