"""The encoder "ls-deflate 1", written from FORMAT.md, section 15, alone: the proof that it suffices.

Imports nothing of layerstore, on purpose. Plain and slow (about 0.2 MB/s); each part names its section.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache

PIECE = 1_048_576
WINDOW = 32_768
# section 15.1: chain, nice, lazy, waits
LEVELS = {
    1: (1, 32, 0, 0),
    2: (4, 32, 0, 0),
    3: (16, 64, 0, 0),
    4: (8, 32, 16, 1),
    5: (16, 64, 32, 1),
    6: (32, 128, 64, 1),
    7: (80, 258, 128, 1),
    8: (160, 258, 258, 2),
    9: (600, 258, 258, 2),
}
MULTIPLIER = 0x9E3779B1
LENGTHS = (
    (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0), (10, 0), (11, 1), (13, 1), (15, 1),
    (17, 1), (19, 2), (23, 2), (27, 2), (31, 2), (35, 3), (43, 3), (51, 3), (59, 3), (67, 4), (83, 4),
    (99, 4), (115, 4), (131, 5), (163, 5), (195, 5), (227, 5), (258, 0),
)  # fmt: skip
DISTANCES = tuple((1 + d, 0) for d in range(4)) + tuple(
    (1 + ((2 + (s & 1)) << (s // 2 - 1)), s // 2 - 1) for s in range(4, 30)
)
ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)

Token = int | tuple[int, int]
"""A literal, or length and distance."""


class Bits:
    """RFC 1951, 3.1.1: lowest bit first."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.value = self.n = 0

    def put(self, value: int, n: int) -> None:
        self.value |= value << self.n
        self.n += n
        while self.n >= 8:
            self.out.append(self.value & 255)
            self.value >>= 8
            self.n -= 8

    def code(self, value: int, n: int) -> None:
        for i in reversed(range(n)):
            self.put(value >> i & 1, 1)

    def align(self) -> None:
        self.put(0, -self.n % 8)


# ---- section 15.2: matches -----------------------------------------------------------------------


class Finder:
    def __init__(self, data: bytes, level: int) -> None:
        self.data = data
        self.chain, self.nice, self.lazy, self.waits = LEVELS[level]
        self.fours: dict[int, list[int]] = {}
        self.threes: dict[int, int] = {}
        self.known = 0

    def hashes(self, p: int) -> tuple[int, int]:
        v = int.from_bytes(self.data[p : p + 4], "little")
        return (v * MULTIPLIER & 0xFFFFFFFF) >> 17, ((v << 8) * MULTIPLIER & 0xFFFFFFFF) >> 18

    def learn(self, end: int) -> None:
        while self.known < min(end, len(self.data) - 3):
            four, three = self.hashes(self.known)
            self.fours.setdefault(four, []).append(self.known)
            self.threes[three] = self.known
            self.known += 1

    def find(self, p: int, least: int, chain: int) -> tuple[int, int]:
        """(length, distance); (0, 0) if there is none."""
        data = self.data
        if p + 4 > len(data):
            return 0, 0
        self.learn(p)
        four, three = self.hashes(p)
        best = (0, 0)
        near = self.threes.get(three)
        close = self.waits and least < 3 and near is not None and p - near <= 4096
        if close and near is not None and data[near : near + 3] == data[p : p + 3]:
            best = (3, p - near)
        most = min(258, len(data) - p)
        length = max(least, 3)
        if length >= most:
            return best
        places = self.fours.get(four, [])
        for c in reversed(places[-chain:]) if chain else ():
            if p - c > 32_767:
                break
            n = 0
            while n < most and data[c + n] == data[p + n]:
                n += 1
            if n >= 4 and n > length:
                length = n
                best = (n, p - c)
                if n >= min(self.nice, most):
                    break
        return best


# ---- section 15.4: when a block ends -------------------------------------------------------------


def log2(x: int) -> int:
    k = x.bit_length() - 1
    f = (x >> (k - 8) if k >= 8 else x << (8 - k)) & 255
    return 256 * k + f + (88 * f * (256 - f) >> 16)


def cost(counts: tuple[Counter[int], Counter[int]]) -> int:
    total = 0
    for alphabet in counts:
        n = sum(alphabet.values())
        if n:
            total += n * log2(n) - sum(c * log2(c) for c in alphabet.values())
    return total


@cache
def symbol(table: tuple[tuple[int, int], ...], value: int) -> int:
    return max(s for s, (base, _) in enumerate(table) if base <= value)


def counted(tokens: Sequence[Token]) -> tuple[Counter[int], Counter[int]]:
    litlen: Counter[int] = Counter()
    dist: Counter[int] = Counter()
    for token in tokens:
        if isinstance(token, int):
            litlen[token] += 1
        else:
            litlen[257 + symbol(LENGTHS, token[0])] += 1
            dist[symbol(DISTANCES, token[1])] += 1
    return litlen, dist


# ---- section 15.6: codes -------------------------------------------------------------------------


def code_lengths(counts: Sequence[int], limit: int) -> list[int]:
    out = [0] * len(counts)
    ranked = sorted((c, s) for s, c in enumerate(counts) if c)
    if len(ranked) == 1:
        out[ranked[0][1]] = 1
    if len(ranked) < 2:
        return out
    # An item: weight, kind (a symbol before a package), and the symbols in it.
    symbols = [(c, 0, [s]) for c, s in ranked]
    items = symbols
    for _ in range(limit - 1):
        pairs = zip(items[::2], items[1::2], strict=False)
        packages = [(a[0] + b[0], 1, a[2] + b[2]) for a, b in pairs]
        items = sorted(symbols + packages, key=lambda item: (item[0], item[1]))
    for item in items[: 2 * len(ranked) - 2]:
        for s in item[2]:
            out[s] += 1
    return out


def canonical(lengths: Sequence[int]) -> list[int]:
    codes = [0] * len(lengths)
    value = 0
    for n in range(1, 16):
        value <<= 1
        for s, length in enumerate(lengths):
            if length == n:
                codes[s] = value
                value += 1
    return codes


# ---- section 15.5: writing a block ---------------------------------------------------------------


def runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(code-length symbol, extra value, extra bits)"""
    out = []
    i = 0
    while i < len(lengths):
        length, n = lengths[i], 1
        while i + n < len(lengths) and lengths[i + n] == length:
            n += 1
        i += n
        if length:
            out.append((length, 0, 0))
            n -= 1
        while n >= 3:
            if length:
                take = min(n, 6)
                out.append((16, take - 3, 2))
            else:
                take = min(n, 138)
                out.append((18, take - 11, 7) if take >= 11 else (17, take - 3, 3))
            n -= take
        out += [(length, 0, 0)] * n
    return out


def body_size(tokens: Sequence[Token], litlen: Sequence[int], dist: Sequence[int]) -> int:
    bits = litlen[256]
    for token in tokens:
        if isinstance(token, int):
            bits += litlen[token]
        else:
            s, d = symbol(LENGTHS, token[0]), symbol(DISTANCES, token[1])
            bits += litlen[257 + s] + LENGTHS[s][1] + dist[d] + DISTANCES[d][1]
    return bits


def write_body(
    bits: Bits, tokens: Sequence[Token], litlen: Sequence[int], dist: Sequence[int]
) -> None:
    l_codes, d_codes = canonical(litlen), canonical(dist)
    for token in tokens:
        if isinstance(token, int):
            bits.code(l_codes[token], litlen[token])
            continue
        s, d = symbol(LENGTHS, token[0]), symbol(DISTANCES, token[1])
        bits.code(l_codes[257 + s], litlen[257 + s])
        bits.put(token[0] - LENGTHS[s][0], LENGTHS[s][1])
        bits.code(d_codes[d], dist[d])
        bits.put(token[1] - DISTANCES[d][0], DISTANCES[d][1])
    bits.code(l_codes[256], litlen[256])


def write_block(bits: Bits, tokens: Sequence[Token], data: bytes, final: bool) -> None:
    counts = counted(tokens)
    counts[0][256] += 1
    litlen = code_lengths([counts[0][s] for s in range(286)], 15)
    dist = code_lengths([counts[1][s] for s in range(30)], 15)
    while len(litlen) > 257 and not litlen[-1]:
        litlen.pop()
    while len(dist) > 1 and not dist[-1]:
        dist.pop()
    if dist == [0]:
        dist = [1]
    row = runs(litlen + dist)
    used = Counter(s for s, _, _ in row)
    lengths = code_lengths([used[s] for s in range(19)], 7)
    listed = [lengths[s] for s in ORDER]
    while len(listed) > 4 and not listed[-1]:
        listed.pop()
    dynamic = 17 + 3 * len(listed) + sum(lengths[s] + n for s, _, n in row)
    dynamic += body_size(tokens, litlen, dist)
    fixed_l = [8] * 144 + [9] * 112 + [7] * 24 + [8] * 8
    fixed = 3 + body_size(tokens, fixed_l, [5] * 30)
    parts = [data[i : i + 65_535] for i in range(0, len(data), 65_535)] or [b""]
    stored = 3 + -(bits.n + 3) % 8 + 32 + 40 * (len(parts) - 1) + 8 * len(data)
    if dynamic <= min(fixed, stored):
        bits.put(final, 1)
        bits.put(2, 2)
        bits.put(len(litlen) - 257, 5)
        bits.put(len(dist) - 1, 5)
        bits.put(len(listed) - 4, 4)
        for length in listed:
            bits.put(length, 3)
        codes = canonical(lengths)
        for s, extra, n in row:
            bits.code(codes[s], lengths[s])
            bits.put(extra, n)
        write_body(bits, tokens, litlen, dist)
    elif fixed <= stored:
        bits.put(final, 1)
        bits.put(1, 2)
        write_body(bits, tokens, fixed_l, [5] * 30)
    else:
        for i, part in enumerate(parts):
            bits.put(final and i == len(parts) - 1, 1)
            bits.put(0, 2)
            bits.align()
            bits.out += len(part).to_bytes(2, "little") + (len(part) ^ 0xFFFF).to_bytes(2, "little")
            bits.out += part


# ---- section 15.3: tokens ------------------------------------------------------------------------


class Piece:
    def __init__(self, data: bytes, before: int, level: int, final: bool) -> None:
        self.data = data
        self.finder = Finder(data, level)
        self.final = final
        self.at = before
        self.bits = Bits()
        self.block: list[Token] = []
        self.segment: list[Token] = []
        self.block_at = self.segment_at = before
        self.misses = 0

    def end_segment(self) -> None:
        alone = counted(self.segment)
        block = counted(self.block)
        together = (block[0] + alone[0], block[1] + alone[1])
        if self.block and (
            len(self.block) + len(self.segment) > 63_488
            or cost(together) > cost(block) + cost(alone) + 256 * 800
        ):
            self.end_block(False)
        self.block += self.segment
        self.segment = []
        self.segment_at = self.at

    def end_block(self, final: bool) -> None:
        write_block(self.bits, self.block, self.data[self.block_at : self.segment_at], final)
        self.block = []
        self.block_at = self.segment_at

    def literal(self) -> None:
        self.segment.append(self.data[self.at])
        self.at += 1

    def take(self, match: tuple[int, int]) -> None:
        if match[0]:
            self.misses = 0
            self.segment.append(match)
            self.at += match[0]
            return
        self.literal()
        more = min(self.misses // 256, 15)
        self.misses += 1
        for _ in range(min(more, len(self.data) - self.at)):
            self.literal()

    def wait(self, match: tuple[int, int]) -> tuple[int, int]:
        find, waits, chain = self.finder.find, self.finder.waits, self.finder.chain

        def worth(m: tuple[int, int]) -> int:
            return 4 * m[0] - (m[1].bit_length() - 1)

        while 0 < match[0] < self.finder.lazy:
            later = find(self.at + 1, match[0] - 1, chain // 2)
            if later[0] and worth(later) > worth(match) + 2:
                self.literal()
                match = later
                continue
            if waits < 2:
                break
            later = find(self.at + 2, match[0], chain // 4)
            if not later[0] or worth(later) <= worth(match) + 6:
                break
            self.literal()
            self.literal()
            match = later
        return match

    def encode(self) -> bytes:
        least = 2 if self.finder.waits else 3
        while self.at < len(self.data):
            match = self.finder.find(self.at, least, self.finder.chain)
            self.take(self.wait(match))
            if len(self.segment) >= 2048:
                self.end_segment()
        self.end_segment()
        if self.block or self.final:
            self.end_block(self.final)
        if not self.final:
            self.bits.put(0, 3)
            self.bits.align()
            self.bits.put(0xFFFF0000, 32)
        self.bits.align()
        return bytes(self.bits.out)


def gzip(content: bytes, level: int) -> bytes:
    """Section 15: the whole gzip blob."""
    out = b"\x1f\x8b\x08" + bytes(5) + bytes(({1: 4, 9: 2}.get(level, 0), 255))
    for start in range(0, max(1, len(content)), PIECE):
        before, end = min(start, WINDOW), min(start + PIECE, len(content))
        data = content[start - before : end]
        out += Piece(data, before, level, end == len(content)).encode()
    size = len(content) % (1 << 32)
    return out + zlib.crc32(content).to_bytes(4, "little") + size.to_bytes(4, "little")
