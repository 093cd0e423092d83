"""Tars made by hand: header blocks with any field set to anything, and hypothesis strategies for
whole archives, honest and hostile. Independent of the code under test and of `tarfile`."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)

PYC = b"\xa7\x0d\x0d\x0a"
"""CPython 3.11's magic."""


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    data = bytearray((value % (1 << (8 * width))).to_bytes(width, "big"))
    data[0] |= 0x80
    return bytes(data)


def padded(payload: bytes) -> bytes:
    return payload + bytes(-len(payload) % BLOCK)


def checksum(block: bytes, *, signed: bool = False) -> int:
    body = block[:148] + b" " * 8 + block[156:]
    return sum(b - 256 if signed and b > 127 else b for b in body)


def header(
    name: bytes = b"file",
    size: int | bytes = 0,
    type: bytes = b"0",
    *,
    link: bytes = b"",
    magic: bytes = USTAR,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    uname: bytes = b"",
    gname: bytes = b"",
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    patch: dict[int, bytes] | None = None,
    signed: bool = False,
) -> bytes:
    """One header block. Numbers are written octal, bytes as they are; `patch` overwrites."""
    block = bytearray(BLOCK)

    def put(at: int, width: int, value: int | bytes) -> None:
        data = octal(value, width) if isinstance(value, int) else value
        block[at : at + min(width, len(data))] = data[:width]

    put(0, 100, name)
    put(100, 8, mode)
    put(108, 8, uid)
    put(116, 8, gid)
    put(124, 12, size)
    put(136, 12, mtime)
    put(156, 1, type)
    put(157, 100, link)
    put(257, 8, magic)
    if magic != V7:
        put(265, 32, uname)
        put(297, 32, gname)
        put(329, 8, major)
        put(337, 8, minor)
        put(345, 155, prefix)
    for at, data in (patch or {}).items():
        block[at : at + len(data)] = data
    block[148:156] = b"%06o\0 " % checksum(bytes(block), signed=signed)
    return bytes(block)


def record(key: bytes, value: bytes) -> bytes:
    """One pax record, its length counting itself."""
    body = b" " + key + b"=" + value + b"\n"
    n = len(body) + 1
    while len(str(n)) + len(body) != n:
        n = len(str(n)) + len(body)
    return str(n).encode() + body


def pax(*records: tuple[bytes, bytes], type: bytes = b"x") -> bytes:
    """A pax header with its payload."""
    payload = b"".join(record(k, v) for k, v in records)
    return header(b"pax", len(payload), type) + padded(payload)


def gnu_long(name: bytes, type: bytes = b"L") -> bytes:
    payload = name + b"\0"
    return header(b"././@LongLink", len(payload), type, magic=GNU) + padded(payload)


def file(name: bytes = b"file", payload: bytes = b"", **fields: object) -> bytes:
    return header(name, len(payload), **fields) + padded(payload)  # type: ignore[arg-type]


def old_sparse(
    segments: list[tuple[int, bytes]], real: int, name: bytes = b"sparse", *, empty: bool = True
) -> bytes:
    """GNU's old sparse format, with extension blocks where four segments are not enough."""
    slots = [octal(at, 12) + octal(len(data), 12) for at, data in segments]
    if empty:
        slots.append(octal(real, 12) + octal(0, 12))
    payload = b"".join(data for _, data in segments)
    first, rest = slots[:4], slots[4:]
    patch = {386: b"".join(first), 482: b"\1" if rest else b"\0", 483: octal(real, 12)}
    out = header(name, len(payload), b"S", magic=GNU, patch=patch)
    while rest:
        part, rest = rest[:21], rest[21:]
        out += (b"".join(part).ljust(504, b"\0") + (b"\1" if rest else b"\0")).ljust(BLOCK, b"\0")
    return out + padded(payload)


def sparse_1_0(segments: list[tuple[int, bytes]], real: int, name: bytes = b"sparse") -> bytes:
    numbers = [len(segments)] + [n for at, data in segments for n in (at, len(data))]
    payload = padded(b"".join(b"%d\n" % n for n in numbers)) + b"".join(d for _, d in segments)
    return pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % real),
    ) + file(b"GNUSparseFile.0/" + name[:80], payload)


def pyc(source: int, code: bytes = b"code") -> bytes:
    """A .pyc file: magic, flags, time and size of the source, marshalled code."""
    return PYC + bytes(4) + source.to_bytes(4, "little") + bytes(4) + b"\xe3" + code


@dataclass(frozen=True)
class Mutation:
    """A change of bytes: `data` replaces `length` bytes at `at` (a fraction of the archive)."""

    at: float
    length: int
    data: bytes

    def apply(self, archive: bytes) -> bytes:
        start = int(self.at * len(archive))
        return archive[:start] + self.data + archive[start + self.length :]


_names = st.one_of(
    st.sampled_from([b"a", b"dir/", b"../x", b"/abs", b"", b"n\xff\xfe", b"x" * 100]),
    st.binary(min_size=1, max_size=40),
)
_payloads = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    st.integers(1, 3000).map(lambda n: b"payload!" * (n // 8) + b"x" * (n % 8)),
    st.integers(0, 1 << 20).map(pyc),
    st.sampled_from([b"\0" * 512, b"\0" * 1024, b"q" * 511, b"q" * 512, b"q" * 513]),
)
_numbers = st.one_of(
    st.integers(0, 0o777777),
    st.integers(-(1 << 20), 1 << 20).map(lambda n: base256(n, 8)),
    st.binary(max_size=8),
)
_sizes = st.one_of(
    st.integers(0, 5000),
    st.integers(-(1 << 70), 1 << 70).map(lambda n: base256(n, 12)),
    st.binary(max_size=12),
)
_keys = st.sampled_from(
    [b"path", b"linkpath", b"size", b"mtime", b"uid", b"uname", b"SCHILY.xattr.user.a", b"k"]
    + [b"GNU.sparse." + k for k in (b"major", b"minor", b"name", b"size", b"realsize", b"map")]
    + [b"GNU.sparse." + k for k in (b"numblocks", b"offset", b"numbytes")]
)
_values = st.one_of(
    st.sampled_from([b"0", b"1", b"2", b"512", b"1000", b"", b"-1.5", b"0,1,5,2", b"a/b", b"\0"]),
    st.binary(max_size=30),
)
_magics = st.sampled_from([USTAR, GNU, V7, b"ustar\0\0\0"])
_types = st.sampled_from([bytes([c]) for c in b"01234567SDMVZ\0"])


def _segments(parts: list[tuple[int, bytes]]) -> tuple[list[tuple[int, bytes]], int]:
    at, out = 0, []
    for hole, data in parts:
        out.append((at + hole, data))
        at += hole + len(data)
    return out, at


_maps = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=20)), max_size=30).map(
    _segments
)

members = st.one_of(
    st.builds(
        lambda name, payload, kind, magic, mode, uid, mtime: file(
            name, payload, type=kind, magic=magic, mode=mode, uid=uid, mtime=mtime
        ),
        _names,
        _payloads,
        _types,
        _magics,
        _numbers,
        _numbers,
        _numbers,
    ),
    st.builds(file, _names, _payloads),
    st.builds(lambda n, s, t, m: header(n, s, t, magic=m), _names, _sizes, _types, _magics),
    st.builds(
        lambda records, kind: pax(*records, type=kind),
        st.lists(st.tuples(_keys, _values), max_size=4),
        st.sampled_from([b"x", b"g", b"X"]),
    ),
    st.builds(gnu_long, st.binary(max_size=700), st.sampled_from([b"L", b"K"])),
    st.builds(lambda m: old_sparse(*m), _maps),
    st.builds(lambda m: sparse_1_0(*m), _maps),
    st.builds(header, _names, _sizes, st.sampled_from([b"x", b"g", b"L", b"K"])),
    st.sampled_from([bytes(512), bytes(1024), b"garbage", bytes(100)]),
)
"""One member of an archive: bytes, mostly whole blocks."""

_mutations = st.builds(
    Mutation,
    st.floats(0, 0.999),
    st.sampled_from([0, 0, 1, 1, 2, 8, 512, 600]),
    st.binary(max_size=9),
)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A whole archive: honest members, hostile ones, then perhaps changed and cut off anywhere."""
    data = b"".join(draw(st.lists(members, max_size=8)))
    data += draw(st.sampled_from([END, END, bytes(9 * BLOCK), b"", bytes(BLOCK), END + b"tail"]))
    for mutation in draw(st.lists(_mutations, max_size=2)):
        data = mutation.apply(data)
    if draw(st.booleans()) and data:
        data = data[: draw(st.integers(0, len(data)))]
    return data


def repaired(data: bytes) -> bytes:
    """The archive with the checksum of every block that is not zero made right, so that hostile
    fields get past it."""
    out = bytearray(data)
    for at in range(0, len(data) - BLOCK + 1, BLOCK):
        block = bytes(out[at : at + BLOCK])
        if any(block):
            out[at + 148 : at + 156] = b"%06o\0 " % checksum(block)
    return bytes(out)
