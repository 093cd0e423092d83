"""Deflate streams that no encoder makes: random tokens, blocks and codes, all within the format.

`Writer` writes bits; `member` draws a gzip member with odd blocks from a source of chance: codes of any
shape (Kraft sum 1), run lengths split at random, more code lengths than needed, 286 and 30 symbols,
stored blocks of any size with bits set in their padding, flushes, empty blocks of each kind.
"""

from __future__ import annotations

import random
import zlib

ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
LENGTH_BASE = (3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99,
               115, 131, 163, 195, 227, 258)  # fmt: skip
LENGTH_EXTRA = (0,) * 8 + (1,) * 4 + (2,) * 4 + (3,) * 4 + (4,) * 4 + (5,) * 4 + (0,)
DIST_BASE = (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025,
             1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577)  # fmt: skip
DIST_EXTRA = (0, 0, 0, 0, *(k // 2 for k in range(2, 28)))


class Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self.value = 0
        self.n = 0
        """Bits that are not in `out` yet."""

    def bits(self, value: int, n: int) -> None:
        self.value |= value << self.n
        self.n += n
        while self.n >= 8:
            self.out.append(self.value & 255)
            self.value >>= 8
            self.n -= 8

    def code(self, code: tuple[int, int]) -> None:
        """The highest bit of a prefix code comes first."""
        value, n = code
        for i in range(n - 1, -1, -1):
            self.bits(value >> i & 1, 1)

    def pad(self, chance: random.Random) -> None:
        while self.n:
            self.bits(chance.random() < 0.1, 1)

    def data(self, data: bytes) -> None:
        assert not self.n
        self.out += data

    def done(self) -> bytes:
        assert not self.n
        return bytes(self.out)


def canonical(lengths: list[int]) -> dict[int, tuple[int, int]]:
    """RFC 1951, 3.2.2."""
    code = last = 0
    out = {}
    for length, symbol in sorted((n, i) for i, n in enumerate(lengths) if n):
        code <<= length - last
        out[symbol] = (code, length)
        code += 1
        last = length
    return out


def complete(chance: random.Random, symbols: list[int], n: int, limit: int) -> list[int]:
    """Lengths of a complete code for at least two symbols, by splitting leaves at random."""
    leaves = [1, 1]
    skew = chance.choice((1, 3))
    while len(leaves) < len(symbols):
        at = int(len(leaves) * chance.random() ** skew)
        if leaves[at] < limit:
            leaves[at] += 1
            leaves.append(leaves[at])
    chance.shuffle(leaves)
    out = [0] * n
    for symbol, length in zip(symbols, leaves, strict=True):
        out[symbol] = length
    return out


def split_runs(chance: random.Random, lengths: list[int]) -> list[tuple[int, int]]:
    """Symbols of the code-length code with their extra values, in one of many ways."""
    out = []
    at = 0
    while at < len(lengths):
        run = 1
        while at + run < len(lengths) and lengths[at + run] == lengths[at]:
            run += 1
        ways = [(lengths[at], 0, 1)]
        back = 0
        if at and lengths[at - 1] == lengths[at]:
            back = min(run, 6)
            if back >= 3:
                take = chance.randint(3, back)
                ways.append((16, take - 3, take))
        if lengths[at] == 0 and run >= 3:
            take = chance.randint(3, min(run, 10))
            ways.append((17, take - 3, take))
            if run >= 11:
                take = chance.randint(11, min(run, 138))
                ways += [(18, take - 11, take)] * 3
        symbol, extra, take = chance.choice(ways)
        out.append((symbol, extra))
        at += take
    return out


def header(
    w: Writer, chance: random.Random, literals: set[int], dists: set[int]
) -> tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]]]:
    """The header of a dynamic block with codes for at least these symbols."""
    some = set(chance.sample(range(286), chance.choice((0, 0, 1, 20, 280))))
    symbols = sorted(literals | some | {256})
    hlit = chance.choice((max(257, symbols[-1] + 1), 286))
    if len(symbols) == 1:
        litlen = [0] * hlit
        litlen[256] = 1
    else:
        litlen = complete(chance, symbols, hlit, 15)
    more = set(chance.sample(range(30), chance.choice((0, 0, 1, 5, 30))))
    far = sorted(dists | more)
    hdist = chance.choice((far[-1] + 1 if far else 1, 30))
    if len(far) <= 1:
        dist = [0] * hdist
        for symbol in far:
            dist[symbol] = 1
    else:
        dist = complete(chance, far, hdist, 15)
    runs = split_runs(chance, litlen + dist)
    used = sorted({symbol for symbol, _ in runs} | set(chance.sample(range(19), 2)))
    codelen = complete(chance, used, 19, 7)
    least = max(4, *(i + 1 for i, symbol in enumerate(ORDER) if codelen[symbol]))
    hclen = chance.randint(least, 19)
    w.bits(hlit - 257, 5)
    w.bits(hdist - 1, 5)
    w.bits(hclen - 4, 4)
    for symbol in ORDER[:hclen]:
        w.bits(codelen[symbol], 3)
    codes = canonical(codelen)
    for symbol, extra in runs:
        w.code(codes[symbol])
        if symbol >= 16:
            w.bits(extra, (2, 3, 7)[symbol - 16])
    return canonical(litlen), canonical(dist)


def symbol_of(base: tuple[int, ...], value: int) -> int:
    return max(i for i, b in enumerate(base) if b <= value)


def tokens(chance: random.Random, content: bytearray, start: int) -> list[int | tuple[int, int]]:
    """Some tokens; what they stand for is appended."""
    out: list[int | tuple[int, int]] = []
    for _ in range(chance.choice((0, 1, 3, 30, 100))):
        reach = min(len(content) - start, 32768)
        if reach and chance.random() < 0.5:
            length = chance.choice((3, 4, 258, chance.randint(3, 258)))
            dist = min(reach, chance.choice((1, 2, reach, chance.randint(1, reach))))
            out.append((length, dist))
            for _ in range(length):
                content.append(content[-dist])
        else:
            byte = chance.choice((0, 65, chance.randrange(256)))
            out.append(byte)
            content.append(byte)
    return out


def block(w: Writer, chance: random.Random, content: bytearray, start: int, final: bool) -> None:
    kind = chance.choice((0, 1, 2, 2, 2))
    w.bits(final, 1)
    w.bits(kind, 2)
    if kind == 0:
        data = chance.randbytes(chance.choice((0, 0, 1, 50, 300)))
        w.pad(chance)
        w.bits(len(data), 16)
        w.bits(len(data) ^ 0xFFFF, 16)
        w.data(data)
        content += data
        return
    drawn = tokens(chance, content, start)
    if kind == 1:
        lengths = [8] * 144 + [9] * 112 + [7] * 24 + [8] * 8
        litlen, dist = canonical(lengths), canonical([5] * 32)
    else:
        literals = {t if isinstance(t, int) else 257 + symbol_of(LENGTH_BASE, t[0]) for t in drawn}
        dists = {symbol_of(DIST_BASE, t[1]) for t in drawn if not isinstance(t, int)}
        litlen, dist = header(w, chance, literals, dists)
    for t in drawn:
        if isinstance(t, int):
            w.code(litlen[t])
            continue
        symbol, far = symbol_of(LENGTH_BASE, t[0]), symbol_of(DIST_BASE, t[1])
        w.code(litlen[257 + symbol])
        w.bits(t[0] - LENGTH_BASE[symbol], LENGTH_EXTRA[symbol])
        w.code(dist[far])
        w.bits(t[1] - DIST_BASE[far], DIST_EXTRA[far])
    w.code(litlen[256])


def gzip_header(chance: random.Random) -> bytes:
    flags = chance.choice((0, 0, 0, chance.randrange(32)))
    out = bytearray((0x1F, 0x8B, 8, flags)) + chance.randbytes(6)
    if flags & 4:
        extra = chance.randbytes(chance.randrange(20))
        out += len(extra).to_bytes(2, "little") + extra
    for flag in (8, 16):
        if flags & flag:
            out += chance.randbytes(chance.randrange(9)).replace(b"\0", b"x") + b"\0"
    if flags & 2:
        out += (zlib.crc32(out) & 0xFFFF).to_bytes(2, "little")
    return bytes(out)


def member(chance: random.Random, content: bytearray) -> bytes:
    """A gzip member; its content is appended."""
    w = Writer()
    w.data(gzip_header(chance))
    start = len(content)
    count = chance.choice((1, 1, 2, 5))
    for i in range(count):
        block(w, chance, content, start, i == count - 1)
    w.pad(chance)
    w.bits(zlib.crc32(content[start:]), 32)
    w.bits(len(content) - start, 32)
    return w.done()


def blob(seed: int) -> tuple[bytes, bytes]:
    """A gzip blob and its content."""
    chance = random.Random(seed)
    content = bytearray()
    out = b""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        out += member(chance, content)
        out += bytes(chance.choice((0, 0, 0, 7)))
    out += b"trailing"[: chance.choice((0, 0, 8))]
    return out, bytes(content)
