"""Who made a compressed blob, as far as its first bytes tell: for reports only, nothing relies on it.

gzip headers: RFC 1952, 2.3. zstd frame headers: RFC 8878, 3.1.1.
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
_KLAUSPOST_WINDOWS = {4 * MIB: "fastest", 8 * MIB: "default", 16 * MIB: "better", 32 * MIB: "best"}
"""Windows of klauspost/compress by its levels. libzstd has 512 KiB to 2 MiB at levels 1 to 8, 4 MiB
from 9 on, and tells the content's size where it knows it."""


def likely_encoder(start: bytes, end: bytes = b"") -> str:
    """A few words on the likely encoder of a gzip or zstd blob, from its first and last bytes."""
    if start[:2] == b"\x1f\x8b":
        return _gzip(start)
    return _zstd(start, end)


def _gzip(start: bytes) -> str:
    if len(start) < 10 or start[2] != 8:
        return "gzip: no deflate data"
    system, extra = start[9], start[8]
    if start[4:8] == b"\x00\x09\x6e\x88":
        return "klauspost/compress or pgzip"
    if system == 255 and not start[3]:
        return "Go, zlib or Java, fastest" if extra == 4 else "Go, zlib or Java"
    if system == 3:
        return "GNU gzip, pigz or zlib-ng"
    return "gzip, by an encoder that is not known"


def _zstd(start: bytes, end: bytes) -> str:
    chunked = b"GNUlInUx" in end
    at = 0
    # Skippable frames may come first.
    while start[at + 1 : at + 4] == b"\x2a\x4d\x18" and 0x50 <= start[at] <= 0x5F:
        at += 8 + int.from_bytes(start[at + 4 : at + 8], "little")
    frame = start[at:]
    if frame[:4] != b"\x28\xb5\x2f\xfd" or len(frame) < 6:
        return "zstd"
    flags = frame[4]
    single, checksum, sized = flags & 0x20, flags & 0x04, flags >> 6
    name = "zstd"
    if single:
        name = "libzstd or klauspost/compress, content of a known size"
    else:
        exponent, mantissa = frame[5] >> 3, frame[5] & 7
        window = (1 << (10 + exponent)) // 8 * (8 + mantissa)
        if not sized and checksum and window in _KLAUSPOST_WINDOWS and mantissa == 0:
            name = f"klauspost/compress zstd, {_KLAUSPOST_WINDOWS[window]}"
        else:
            name = f"libzstd, window of {window // KIB} KiB"
    return f"{name} (zstd:chunked)" if chunked else name
