"""A block: up to 1 MiB of chunks as one zstd frame, with a header that tells all about it.

Header: `LSB1`, u8 codec (0 stored, 1 zstd), u8 kind (0 content, 1 metadata), u16 zero, u32 chunks,
u32 runs, u32 raw length, u32 payload length; then the runs of numbers (u64 first, u64 count), the
chunks' lengths (u32 each), their ids (32 bytes each), 16 bytes of BLAKE3 of the payload, and 16
bytes of BLAKE3 of all the header before; both keyed with the store's secret, so that no content can
pass for a block when packs are scanned. Little endian. The ids make the index rebuildable, and every
dedup hit is confirmed against them.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.hashing import blake3
from ..errors import CorruptError

if TYPE_CHECKING:
    import zstandard  # imported where it is used: many a command never decodes a block

MAGIC = b"LSB1"
_HEAD = struct.Struct("<4sBBHIIII")
BLOCK_SIZE = 1 << 20
MAX_CHUNKS = 4096
CODEC_STORED, CODEC_ZSTD = 0, 1
KIND_CONTENT, KIND_META = 0, 1
_CHECK = 16
META_LEVEL = 12
# zstd's level 3 with tables that stay in a core's second cache: a seventh less time for 1 % more bytes.
_CONTENT = {"window_log": 20, "hash_log": 15, "chain_log": 14, "search_log": 1, "min_match": 5}
# A raw length beyond this is no block of ours: bounds what a damaged header can make us allocate.
MAX_RAW = 2 * BLOCK_SIZE

_local = threading.local()


def _compressor(kind: int) -> zstandard.ZstdCompressor:
    made: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if kind not in made:
        import zstandard

        params = (
            zstandard.ZstdCompressionParameters.from_level(META_LEVEL, write_checksum=False)
            if kind == KIND_META
            else zstandard.ZstdCompressionParameters(
                **_CONTENT, strategy=zstandard.STRATEGY_DFAST, write_checksum=False
            )
        )
        made[kind] = zstandard.ZstdCompressor(compression_params=params)
    return made[kind]


def _decompressor() -> zstandard.ZstdDecompressor:
    if "decompressor" not in _local.__dict__:
        import zstandard

        _local.decompressor = zstandard.ZstdDecompressor()
    made: zstandard.ZstdDecompressor = _local.decompressor
    return made


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header. `size` is its own length."""

    codec: int
    kind: int
    runs: tuple[tuple[int, int], ...]
    lengths: array[int]
    ids: bytes
    raw: int
    payload: int
    payload_check: bytes
    size: int


def ids_offset(chunks: int, runs: int) -> int:
    """Where in the header the ids begin."""
    return _HEAD.size + 16 * runs + 4 * chunks


def encode(
    secret: bytes,
    data: bytes | bytearray | memoryview,
    runs: Sequence[tuple[int, int]],
    lengths: array[int],
    ids: bytes,
    kind: int,
) -> tuple[bytes, bytes]:
    """`(header, payload)`. Compresses unless a block gains less than 3 % by it."""
    # What does not compress costs zstd a fortieth of what the rest does: no need to ask before.
    codec, payload = CODEC_ZSTD, _compressor(kind).compress(data)
    if len(payload) >= len(data) * 0.97:
        codec, payload = CODEC_STORED, bytes(data)
    head = b"".join(
        (
            _HEAD.pack(MAGIC, codec, kind, 0, len(lengths), len(runs), len(data), len(payload)),
            b"".join(struct.pack("<QQ", first, count) for first, count in runs),
            lengths.tobytes(),
            ids,
            blake3(payload, secret)[:_CHECK],
        )
    )
    return head + blake3(head, secret)[:_CHECK], payload


def header_size(start: bytes) -> int | None:
    """The length of the header that begins with these bytes (at least 24), or None if none does."""
    if len(start) < _HEAD.size or start[:4] != MAGIC:
        return None
    _, _, _, _, chunks, runs, raw, payload = _HEAD.unpack_from(start)
    if not 0 < runs <= chunks <= MAX_CHUNKS or raw > MAX_RAW or payload > MAX_RAW:
        return None
    size: int = ids_offset(chunks, runs) + 32 * chunks + 2 * _CHECK
    return size


def parse(secret: bytes, head: bytes) -> Header | None:
    """A header of exactly `header_size` bytes, or None if its checksum is wrong."""
    size = header_size(head)
    if size != len(head) or blake3(head[:-_CHECK], secret)[:_CHECK] != head[-_CHECK:]:
        return None
    _, codec, kind, _, chunks, n_runs, raw, payload = _HEAD.unpack_from(head)
    at = _HEAD.size
    runs = tuple(struct.iter_unpack("<QQ", head[at : at + 16 * n_runs]))
    at += 16 * n_runs
    lengths = array("I")
    lengths.frombytes(head[at : at + 4 * chunks])
    at += 4 * chunks
    ids = head[at : at + 32 * chunks]
    if sum(lengths) != raw or sum(count for _, count in runs) != chunks:
        return None
    check = head[-2 * _CHECK : -_CHECK]
    return Header(codec, kind, runs, lengths, ids, raw, payload, check, len(head))


def decode(secret: bytes, head: bytes, payload: memoryview | bytes, raw: int, codec: int) -> bytes:
    """The chunks of a block, one behind the other. `head` is the header as read from the pack.

    Raises CorruptError if the payload does not have its checksum or its length."""
    if blake3(payload, secret)[:_CHECK] != head[-2 * _CHECK : -_CHECK]:
        raise CorruptError("a block's payload has a wrong checksum")
    if codec == CODEC_STORED:
        data = bytes(payload)
    else:
        import zstandard

        try:
            data = _decompressor().decompress(payload, max_output_size=raw)
        except zstandard.ZstdError as e:
            raise CorruptError(f"a block does not decompress ({e})") from e
    if len(data) != raw:
        raise CorruptError(f"a block has {len(data)} bytes where {raw} were stored")
    return data
