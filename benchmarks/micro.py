"""Section on the C machines: each against its bound, one thread, on the first bytes of a real tar.

This looks inside on purpose: the extension is called as the core calls it, without what Python adds
around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from blake3 import blake3

from benchmarks.measure import fastest
from benchmarks.report import Figure
from benchmarks.setting import Setting
from layerstore.core._layerstore import ffi, lib

SIZE = 64 << 20
REPEATS = 5
SIMD = {1: "portable", 2: "avx2", 3: "avx512", 4: "neon"}


def best(work: Callable[[], object]) -> float:
    return fastest(work, REPEATS)


def _held(condition: bool, error: Any) -> None:
    """A figure of work that was not done is worth nothing."""
    if not condition:
        reason = ffi.string(error.reason).decode()
        raise RuntimeError(f"machine stopped: {error.code} at {error.offset}: {reason}")


class Machines:
    """The buffers of all machines, made once around `data`."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)
        self.base = ffi.from_buffer("uint8_t[]", data)
        self.error = ffi.new("ls_error *")
        self.scratch = ffi.new("uint8_t[]", lib.LS_TAR_SCRATCH)
        self.id = ffi.new("uint8_t[32]")
        self.copy = bytearray(self.size)

    def memcpy(self) -> None:
        ffi.memmove(self.copy, self.base, self.size)

    def blake3(self, simd: int) -> None:
        lib.ls_blake3_hash(simd, ffi.NULL, self.base, self.size, self.id)

    def blake3_many(self, length: int) -> Callable[[], None]:
        count = self.size // length
        extents = ffi.new("ls_extent[]", [(n * length, length) for n in range(count)])
        out = ffi.new("uint8_t[]", 32 * count)
        return lambda: lib.ls_blake3_many(0, ffi.NULL, self.base, extents, count, out)

    def chunk(self) -> None:
        room = self.size // lib.LS_CHUNK_MIN + 1
        lengths, used = ffi.new("uint32_t[]", room), ffi.new("size_t *")
        lib.ls_chunk_cut(self.base, self.size, 1, lengths, room, used)
        assert used[0] == self.size

    def scan(self) -> int:
        """Scans the tar with all entries made; how many there are."""
        machine = ffi.new("char[]", lib.ls_tar_sizeof())
        tar = ffi.cast("ls_tar *", machine)
        lib.ls_tar_init(tar, self.scratch, len(self.scratch))
        events, entries = ffi.new("ls_tar_event[]", 4096), ffi.new("ls_tar_entry[]", 1024)
        arena, out, found, at = (
            ffi.new("uint8_t[]", lib.LS_TAR_SCRATCH + 1024),
            ffi.new("ls_tar_out *"),
            0,
            0,
        )
        while at < self.size:
            code = lib.ls_tar_feed(
                tar, self.base + at, self.size - at, 1, events, 4096, entries, 1024,
                arena, len(arena), out, self.error,
            )  # fmt: skip
            _held(code == 0 and out.used > 0, self.error)
            at, found = at + out.used, found + out.n_entries
        return found

    def split(self) -> tuple[Any, ...]:
        """Splits the tar in one go, every piece hashed."""
        machine = ffi.new("char[]", lib.ls_split_sizeof())
        split = ffi.cast("ls_split *", machine)
        lib.ls_split_init(split, 0, self.scratch, len(self.scratch))
        room = 1 << 18
        head, marks = ffi.new("uint8_t[]", self.size), ffi.new("uint8_t[]", 20 * room)
        pieces, out = ffi.new("ls_piece[]", room), ffi.new("ls_split_out *")
        code = lib.ls_split_feed(
            split, self.base, self.size, 1, head, self.size, marks, 20 * room, pieces, room,
            out, self.error,
        )  # fmt: skip
        _held(code == 0 and out.used == self.size, self.error)
        return head, out.head_len, marks, out.marks_len, pieces, out.n_pieces

    def join(self, parts: tuple[Any, ...]) -> Callable[[], None]:
        head, head_len, marks, marks_len, pieces, count = parts
        slices = ffi.new("ls_slice[]", max(1, count))
        for n in range(count):
            slices[n].data, slices[n].size = self.base + pieces[n].offset, pieces[n].length
        machine, out = ffi.new("char[]", lib.ls_join_sizeof()), ffi.new("uint8_t[]", self.size)

        def work() -> None:
            join, res = ffi.cast("ls_join *", machine), ffi.new("ls_join_out *")
            lib.ls_join_init(join, self.scratch, len(self.scratch))
            code = lib.ls_join_run(
                join, head, head_len, 1, marks, marks_len, 1, slices, count, 0, 1, out, self.size,
                res, self.error,
            )  # fmt: skip
            _held(code == 0 and res.out_len == self.size, self.error)

        work()
        assert ffi.buffer(out)[:] == self.data
        return work


def runs_and_bits() -> dict[str, float]:
    """Runs a second: a list of a million runs coded and read, and marked in a bitmap."""
    count = 1_000_000
    runs = ffi.new("ls_run[]", [(n * 5, 3) for n in range(count)])
    coded, read = ffi.new("uint8_t[]", 20 * count), ffi.new("ls_run[]", count)
    size = lib.ls_runs_encode(runs, count, coded)
    n, used, prev = ffi.new("size_t *"), ffi.new("size_t *"), ffi.new("uint64_t *")
    error, bits = ffi.new("ls_error *"), ffi.new("uint8_t[]", 5 * count // 8 + 1)
    space, before = ffi.new("ls_run[]", [(0, 5 * count)]), ffi.new("uint64_t[]", [0])

    def decode() -> None:
        n[0], prev[0] = count, 0
        assert lib.ls_runs_decode(coded, size, 1, read, n, used, prev, error) == 0
        assert n[0] == count

    return {
        "runs encoded": count / best(lambda: lib.ls_runs_encode(runs, count, coded)),
        "runs decoded": count / best(decode),
        "runs marked": count
        / best(lambda: lib.ls_bits_mark(bits, space, before, 1, runs, count, 1)),
    }


def micro(s: Setting) -> list[Figure]:
    """Gigabytes a second of each machine beside its bound; for runs, millions a second."""
    largest = max(s.plain.layers(), key=lambda layer: layer.size)
    with s.plain.blob(largest.digest).open("rb") as f:
        data = f.read(SIZE)
    m = Machines(data)
    gb = len(data) / 1e9
    copy, sha = gb / best(m.memcpy), gb / best(lambda: hashlib.sha256(data).digest())
    oracle = gb / best(lambda: blake3(data, max_threads=1).digest())
    out = [
        Figure("micro: memcpy", copy, "GB/s"),
        Figure("micro: hashlib sha256", sha, "GB/s"),
        Figure("micro: blake3 package, one thread", oracle, "GB/s"),
    ]

    def add(name: str, work: Callable[[], object], bound_name: str, bound: float) -> None:
        rate = gb / best(work)
        detail = {f"of {bound_name}": rate / bound}
        out.append(Figure(f"micro: {name}", rate, "GB/s", detail=detail))

    for simd, word in SIMD.items():
        if lib.ls_simd_supported() & 1 << simd:
            add(f"blake3 {word}", partial(m.blake3, simd), "the package", oracle)
    for length in (1 << 10, 4 << 10, 64 << 10):
        add(f"blake3 of {length >> 10} KiB pieces", m.blake3_many(length), "the package", oracle)
    add("gear chunking", m.chunk, "memcpy", copy)
    add("tar scan", m.scan, "memcpy", copy)
    add("split with ids", m.split, "the blake3 package", oracle)
    add("join", m.join(m.split()), "memcpy", copy)
    for name, rate in runs_and_bits().items():
        out.append(Figure(f"micro: {name}", rate / 1e6, "M/s"))
    return out
