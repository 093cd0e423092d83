"""Section on gzip layers of others: what the layout takes after `optimize`, and reading it back.

Every blob is read whole and in random ranges, and held against the layout. First bytes and ranges are
of handles that have just been opened; one core and two are the same work under another affinity.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import layerstore
from benchmarks.corpus import Layout
from benchmarks.measure import call, du
from benchmarks.report import Figure
from benchmarks.setting import Setting

RANGES = 20
SAMPLE = 3
READ = """
import sys, time
import layerstore
with layerstore.open(sys.argv[1], create=False) as store, store.open_blob(sys.argv[2]) as blob:
    start = time.perf_counter()
    for piece in blob.chunks():
        pass
    print(time.perf_counter() - start)
"""


def _exact(store: layerstore.Store, layout: Layout) -> tuple[int, int]:
    """Blobs and ranges that were held against the layout. Raises when one differs."""
    source = random.Random(1)
    ranges = 0
    layers = layout.layers()
    for layer in layers:
        with layout.blob(layer.digest).open("rb") as want, store.open_blob(layer.digest) as blob:
            for piece in blob.chunks():
                if want.read(len(piece)) != piece:
                    raise RuntimeError(f"{layer.digest} comes out otherwise")
            if want.read(1):
                raise RuntimeError(f"{layer.digest} comes out shorter")
            for _ in range(RANGES):
                at, size = source.randrange(layer.size), source.choice((1, 4096, 1 << 20))
                want.seek(at)
                blob.seek(at)
                wanted, got = want.read(size), b""
                while len(got) < len(wanted):
                    got += blob.read(len(wanted) - len(got))
                if got != wanted:
                    raise RuntimeError(f"{layer.digest} differs in the {size} bytes from {at}")
                ranges += 1
    return len(layers), ranges


def _first(store: Path, digest: str, offset: int) -> float:
    """Seconds from the opening of a blob to a byte at an offset, by a handle that has read nothing."""
    best = []
    for _ in range(SAMPLE):
        with layerstore.open(store, create=False) as opened:
            start = time.perf_counter()
            with opened.open_blob(digest) as blob:
                blob.seek(offset)
                if not blob.read(1):
                    raise RuntimeError(f"{digest} has no byte at {offset}")
                best.append(time.perf_counter() - start)
    return min(best)


def _whole(store: Path, digest: str, cores: list[int]) -> float:
    """Seconds of a whole read on some cores."""
    words = [sys.executable, "-c", READ, str(store), digest]
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return float(done.stdout)


def optimize(s: Setting) -> list[Figure]:
    """Space, speed, exactness."""
    store = s.fresh("optimize")
    call(s.ours(store, "import", "--all", "--defer", f"oci:{s.gzip.path}", "bench/"))
    report = s.ask(store, "optimize")
    layers = s.gzip.layers()
    came = sum(layer.size for layer in layers)
    content = sum(x.size for x in s.plain.layers())
    raw = [blob for blob in report["blobs"] if blob["result"] == "raw"]
    recipes = sum(blob["recipe_bytes"] for blob in report["blobs"])
    out = [
        Figure("optimize: all files, of the gzip bytes", du(store) / came, bound=s.bound(0.43)),
        Figure("optimize: blobs that stay raw", len(raw), "blobs", bound=s.bound(0)),
        Figure("optimize: recipes, of the gzip bytes", recipes / came, bound=s.bound(0.0002)),
        Figure("optimize: content, all cores", content / 1e6 / report["seconds"], "MB/s"),
    ]
    with layerstore.open(store, create=False) as opened:
        blobs, ranges = _exact(opened, s.gzip)
    out.append(Figure("optimize: blobs read equal", blobs, "blobs"))
    out.append(Figure("optimize: random ranges read equal", ranges, "ranges"))
    made = {blob["digest"] for blob in report["blobs"] if blob["result"] == "gzip"}
    largest = max((x for x in layers if x.digest in made), key=lambda layer: layer.size)
    first = 1000 * _first(store, largest.digest, 0)
    middle = 1000 * _first(store, largest.digest, largest.size // 2)
    detail = {"blob, MB": largest.size / 1e6}
    out.append(Figure("optimize: first byte", first, "ms", bound=s.bound(20), detail=detail))
    out.append(
        Figure("optimize: byte in the middle", middle, "ms", bound=s.bound(60), detail=detail)
    )
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) == 2:
        alone = min(_whole(store, largest.digest, cores[:1]) for _ in range(SAMPLE))
        both = min(_whole(store, largest.digest, cores) for _ in range(SAMPLE))
        detail = {"MB/s of blob, two cores": largest.size / 1e6 / both}
        name = "optimize: time on two cores, of that on one"
        out.append(Figure(name, both / alone, bound=s.bound(1 / 1.8), detail=detail))
    s.fresh("optimize")
    return out
