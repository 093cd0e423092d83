"""Decompression of layers, streaming and bounded: gzip (RFC 1952, several members), zstd (RFC 8878,
several frames). What does not decode ends in InvalidInputError with the offset in the compressed
bytes; past a limit of absolute output bytes, in LimitError (an honest sparse file inflates a
thousandfold, so a ratio would be wrong).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import InvalidInputError, LimitError

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
DEFAULT_LIMIT = 1 << 40
STEP = 1 << 20
FEED = 2048
MAX_WINDOW = 1 << 27
"""zstd's own limit for decoders; --long=31 archives are refused."""


def compression_of(start: bytes | memoryview) -> str | None:
    """`gzip`, `zstd` or None, by the first bytes."""
    head = bytes(start[:4])
    if head[:2] == GZIP_MAGIC:
        return "gzip"
    if head == ZSTD_MAGIC or (head[1:] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
        # The second is a skippable frame, with which zstd:chunked blobs may begin.
        return "zstd"
    return None


def inflate(
    source: Iterable[bytes | memoryview], kind: str, limit: int = DEFAULT_LIMIT
) -> Iterator[bytes]:
    """The decompressed bytes in pieces of at most about 1 MiB."""
    produced = 0
    for piece in _gzip(source) if kind == "gzip" else _zstd(source):
        produced += len(piece)
        if produced > limit:
            raise LimitError(f"the layer inflates to more than {limit} bytes")
        yield piece


def _gzip(source: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    from isal import isal_zlib  # a listing of plain layers has no use for it

    errors: Any = (isal_zlib.error, EOFError)
    machine: Any = isal_zlib.decompressobj(31)
    offset = 0
    started = False
    for data in source:
        block: bytes | memoryview = data
        while len(block):
            if machine is None:
                # Behind a member: another one, zero padding, or something that is not gzip.
                if bytes(block[:1]) == b"\0":
                    padding = bytes(block)
                    stripped = padding.lstrip(b"\0")
                    offset += len(padding) - len(stripped)
                    block = stripped
                    continue
                machine = isal_zlib.decompressobj(31)
                started = False
            size = len(block)
            try:
                out = machine.decompress(block, STEP)
            except errors as e:
                raise InvalidInputError(
                    f"gzip data is damaged near byte {offset}: {e}", offset=offset, reason=str(e)
                ) from e
            started = True
            if machine.eof:
                rest = machine.unused_data
                offset += size - len(rest)
                block = rest
                machine = None
            else:
                rest = machine.unconsumed_tail
                offset += size - len(rest)
                block = rest
            if out:
                yield out
            while machine is not None and not len(block) and len(out) == STEP:
                try:
                    out = machine.decompress(b"", STEP)
                except errors as e:
                    raise InvalidInputError(
                        f"gzip data is damaged near byte {offset}: {e}",
                        offset=offset,
                        reason=str(e),
                    ) from e
                if machine.eof:
                    block = machine.unused_data
                    offset -= len(block)
                    machine = None
                if out:
                    yield out
    if machine is not None and (started or offset == 0):
        raise InvalidInputError(
            f"gzip data ends early, at byte {offset}", offset=offset, reason="truncated"
        )


def _zstd(source: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    import zstandard

    # Frame by frame with decompressobj: unlike the stream reader it tells a truncated last frame.
    machine: Any = None
    offset = 0
    for data in source:
        block = bytes(data)
        while block:
            if machine is None:
                machine = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj(
                    write_size=STEP
                )
            # Small feeds bound what one call can inflate to.
            part, rest = block[:FEED], block[FEED:]
            try:
                out = machine.decompress(part)
            except zstandard.ZstdError as e:
                raise InvalidInputError(
                    f"zstd data is damaged near byte {offset}: {e}", offset=offset, reason=str(e)
                ) from e
            if machine.eof:
                rest = machine.unused_data + rest
                machine = None
            offset += len(block) - len(rest)
            block = rest
            for at in range(0, len(out), STEP):
                yield out[at : at + STEP]
    if machine is not None:
        raise InvalidInputError(
            f"zstd data ends early, at byte {offset}", offset=offset, reason="truncated"
        )
