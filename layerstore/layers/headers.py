"""Headers of tar entries that we write one by one: POSIX pax interchange format.

What ustar can say is said in ustar, the rest in pax records; nothing depends on time or place.
"""

from __future__ import annotations

from ..core.tar import TarEntry

BLOCK = 512


def raw(name: str) -> bytes:
    """A name as it stands in a tar."""
    return name.encode("utf-8", "surrogateescape")


def header(
    name: bytes,
    kind: bytes,
    *,
    size: int = 0,
    link: bytes = b"",
    mode: int = 0o644,
    like: TarEntry | None = None,
) -> bytes:
    """The header blocks of one entry. Owner, mode, times and xattrs are those of `like`."""
    uid, gid, seconds, nanoseconds = 0, 0, 0, 0
    records: list[tuple[bytes, bytes]] = []
    uname = gname = b""
    if like is not None:
        mode, uid, gid = like.mode & 0o7777, like.uid, like.gid
        seconds, nanoseconds = like.mtime_sec, like.mtime_nsec
        uname, gname = like.uname, like.gname
        xattrs = sorted(like.xattrs.items())
        records += [(b"SCHILY.xattr." + raw(key), value) for key, value in xattrs]
    for key, value, room in ((b"path", name, 100), (b"linkpath", link, 100)):
        if len(value) > room:
            records.append((key, value))
    for key, value, room in ((b"uname", uname, 32), (b"gname", gname, 32)):
        if len(value) >= room:
            records.append((key, value))
    numbers = ((b"uid", uid, 7), (b"gid", gid, 7), (b"size", size, 11))
    records += [(k, b"%d" % v) for k, v, digits in numbers if not 0 <= v < 8**digits]
    if nanoseconds or not 0 <= seconds < 8**11:
        records.append((b"mtime", _decimal(seconds, nanoseconds)))
    out = b""
    if records:
        data = b"".join(_record(key, value) for key, value in records)
        out = _block(b"././@PaxHeader", b"x", 0o644, 0, 0, len(data), 0) + data
        out += bytes(-len(data) % BLOCK)
    minor = (0, 0) if like is None else (like.devmajor, like.devminor)
    return out + _block(name, kind, mode, uid, gid, size, seconds, link, uname, gname, minor)


def _decimal(seconds: int, nanoseconds: int) -> bytes:
    """A time as pax says it; before 1970 the fraction counts toward zero."""
    sign = b""
    if seconds < 0:
        sign = b"-"
        seconds = -seconds
        if nanoseconds:
            seconds -= 1
            nanoseconds = 1_000_000_000 - nanoseconds
    fraction = (b".%09d" % nanoseconds).rstrip(b"0") if nanoseconds else b""
    return sign + b"%d" % seconds + fraction


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    total = size + len(str(size))
    if len(str(total)) > len(str(size)):
        total = size + len(str(total))
    return b"%d %s=%s\n" % (total, key, value)


def _number(value: int, digits: int) -> bytes:
    # What does not fit is in a pax record, which wins.
    return b"%0*o\0" % (digits, value if 0 <= value < 8**digits else 0)


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes = b"",
    uname: bytes = b"",
    gname: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One ustar header."""
    fields = [
        name[:100].ljust(100, b"\0"),
        _number(mode, 7),
        _number(uid, 7),
        _number(gid, 7),
        _number(size, 11),
        _number(mtime, 11),
        b" " * 8,
        kind,
        link[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        uname[:31].ljust(32, b"\0"),
        gname[:31].ljust(32, b"\0"),
        _number(device[0], 7),
        _number(device[1], 7),
        bytes(167),
    ]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
