"""Who made a compressed blob, as far as its first bytes tell: for reports only, nothing relies on it.

gzip headers: RFC 1952, 2.3. zstd frame headers: RFC 8878, 3.1.1.
"""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
_KLAUSPOST_WINDOWS = {
    4 * MIB: "fastest (or zstd -9 to -16 of a pipe)",
    8 * MIB: "default or better (or zstd -17 to -19 of a pipe)",
    16 * MIB: "better, before 1.18",
    32 * MIB: "best, before 1.18",
}
"""Windows of klauspost/compress by its levels, and who else writes such a frame: zstd from level 9
on, of content whose size it does not know. libzstd writes a checksum only if it is asked to."""


_CHUNKED = (b"GNUlInUx", b"GnUlInUx")
"""What stands in the footer of a zstd:chunked blob: since 2024, and before."""


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
    chunked = any(magic in end for magic in _CHUNKED)
    at = 0
    # Skippable frames may come first.
    while start[at + 1 : at + 4] == b"\x2a\x4d\x18" and 0x50 <= start[at] <= 0x5F:
        at += 8 + int.from_bytes(start[at + 4 : at + 8], "little")
    frame = start[at:]
    if frame[:4] != b"\x28\xb5\x2f\xfd" or len(frame) < 6:
        return "zstd"
    flags = frame[4]
    single, checksum, sized = flags & 0x20, flags & 0x04, flags >> 6
    if single:
        name = "libzstd or klauspost/compress, content of a known size"
    else:
        exponent, mantissa = frame[5] >> 3, frame[5] & 7
        window = (1 << (10 + exponent)) // 8 * (8 + mantissa)
        if not sized and checksum and window in _KLAUSPOST_WINDOWS and mantissa == 0:
            name = f"klauspost/compress zstd, {_KLAUSPOST_WINDOWS[window]}"
        elif sized and _content_size(frame) <= window:
            # libzstd makes a single segment of it.
            name = "klauspost/compress zstd, small content"
        else:
            name = f"libzstd, window of {window // KIB} KiB"
    return f"{name} (zstd:chunked)" if chunked else name


def _content_size(frame: bytes) -> int:
    """What a frame with a window says of its content."""
    flag = frame[4] >> 6
    at = 6 + (0, 1, 2, 4)[frame[4] & 3]
    size = int.from_bytes(frame[at : at + (1 << flag)], "little")
    return size + 256 if flag == 1 else size
