"""Section on our gzip encoder: every level beside zlib's, on one core; all cores beside gzip and pigz.

On bytes out of the middle of the largest tar. Sizes stand beside times: a fast encoder that compresses
worse has won nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.measure import fastest
from benchmarks.report import Figure
from benchmarks.setting import Setting
from layerstore.core.deflate import LEVELS, PIECE, WINDOW, Encoder
from layerstore.layers.regenerate import deflated

SIZE = 24 << 20
REPEATS = 3


def best(work: Callable[[], object]) -> float:
    return fastest(work, REPEATS)


def ours(data: bytes, level: int) -> int:
    """Encodes on one core; the size that comes out."""
    encoder, view, total = Encoder(level), memoryview(data), 0
    for start in range(0, len(data), PIECE):
        before, end = min(start, WINDOW), min(start + PIECE, len(data))
        total += len(encoder.piece(view[start - before : end], before, end == len(data)))
    return total


def theirs(data: bytes, level: int) -> int:
    """zlib's size."""
    machine = zlib.compressobj(level, zlib.DEFLATED, -15)
    return len(machine.compress(data)) + len(machine.flush())


def together(data: bytes, cores: int) -> None:
    """All pieces in a pool, as a layer is made."""
    with ThreadPoolExecutor(cores) as pool:
        pieces = (memoryview(data)[at : at + PIECE] for at in range(0, len(data), PIECE))
        for _ in deflated(pool, cores, pieces, len(data), 6):
            pass


def deflate(s: Setting) -> list[Figure]:
    """Megabytes a second of content, with the ratios to zlib at the same level in detail."""
    largest = max(s.plain.layers(), key=lambda layer: layer.size)
    with s.plain.blob(largest.digest).open("rb") as f:
        f.seek(max(0, largest.size // 2 - SIZE // 2))
        data = f.read(SIZE)
    mb = len(data) / 1e6
    out = []
    for level in LEVELS:
        size, other = ours(data, level), theirs(data, level)
        fast, slow = best(lambda n=level: ours(data, n)), best(lambda n=level: theirs(data, n))  # type: ignore[misc]
        detail = {"of zlib's rate": slow / fast, "size of zlib's": size / other}
        out.append(Figure(f"deflate: level {level}, one core", mb / fast, "MB/s", detail=detail))
        if level == 6:
            out.append(Figure("deflate: level 6, size of zlib's", size / other, bound=1.02))
            out.append(Figure("deflate: level 6, time of zlib's", fast / slow, bound=1.0))
    cores = len(os.sched_getaffinity(0))
    wall = best(lambda: together(data, cores))
    out.append(Figure("deflate: level 6, all cores", mb / wall, "MB/s"))
    sample = Path(s.work) / "deflate.bin"
    sample.parent.mkdir(parents=True, exist_ok=True)
    sample.write_bytes(data)
    for name, command in (("gzip", ["gzip"]), ("pigz", ["pigz", "-p", str(cores)])):
        if shutil.which(name):
            words = [*command, "-6", "-c", str(sample)]
            peer = best(lambda w=words: subprocess.run(w, stdout=subprocess.DEVNULL, check=True))  # type: ignore[misc]
            detail = {"of its size": ours(data, 6) / len(_output(words))}
            out.append(Figure(f"deflate: time of {' '.join(command)}", wall / peer, detail=detail))
    sample.unlink()
    return out


def _output(words: list[str]) -> bytes:
    return subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
