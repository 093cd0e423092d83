"""gzip blobs that do not decode, one of each kind (RFC 1951 and 1952 name what is wrong with them)."""

from __future__ import annotations

import stores


def flipped(data: bytes, bit: int) -> bytes:
    """The data with one bit turned over."""
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


WORDS = stores.words(9, 60_000)
TAR = stores.tar_of({"words": WORDS})
SOUND = stores.gzipped(TAR)


def stream(*parts: tuple[int, int]) -> bytes:
    """A gzip member whose deflate data is these (value, bits)."""
    value = n = 0
    for part, bits in parts:
        value |= part << n
        n += bits
    body = value.to_bytes((n + 7) // 8, "little")
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + body + bytes(8)


_HEAD = ((1, 1), (2, 2), (0, 5), (0, 5), (14, 4))
DAMAGED = {
    "truncated": SOUND[: len(SOUND) // 2],
    "header only": SOUND[:10],
    "in the trailer": SOUND[:-3],
    "crc": SOUND[:-8] + bytes(4) + SOUND[-4:],
    "isize": SOUND[:-4] + bytes(4),
    "reserved flag": SOUND[:3] + b"\x80" + SOUND[4:],
    "method": SOUND[:2] + b"\x07" + SOUND[3:],
    "block type 3": stream((1, 1), (3, 2)),
    "distance before the start": stream((1, 1), (1, 2), (0b1000000, 7), (0, 5)),
    "oversubscribed": stream(*_HEAD, *([(1, 3)] * 18)),
    "undersubscribed": stream(*_HEAD, (7, 3), *([(0, 3)] * 17)),
    "trailing": SOUND + b"no zeros",
}
