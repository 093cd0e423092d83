"""Section on making gzip blobs again: each model beside the encoder it stands for, one thread each.

The content is stretches out of the whole corpus. The encoder at work makes a blob of it, from memory;
ours makes the same blob from the same content and a recipe: tokens, codes, bits, and the sha256 that is
held against the encoder's. Seconds are of CPU time, in turn, the fastest of some runs each; beside it
the median of the pairs' ratios. Go's and klauspost's encoders are built by the toolchain and the
modules that they come with. Last, one blob's spans by two threads, of the time that one takes: wall
clock, so on a quiet machine only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from benchmarks.report import Figure
from benchmarks.setting import Setting
from layerstore.core import recipe as recipes
from layerstore.layers.analysis import FEED, FIRST_SPAN, SPAN, decoder_for

STRETCH = 4 << 20
STRETCHES = 8
ROUNDS = 7
"""Pairs of runs, about five seconds for each encoder."""
GO = "1.26.8"
"""The last one whose encoder is its own; levels 1 and 6 have not changed since 1.8 or so."""
GO_KLAUSPOST = "1.27.1"
KLAUSPOST = "1.18.6"
PGZIP = "1.2.6"
HERE = Path(__file__).parent

Peer = Callable[[Path, Path], float]
"""Encodes one file into another; the seconds of CPU time that encoding took."""


def sample(s: Setting) -> bytes:
    """Stretches from all over the layers, evenly by their bytes."""
    layers = s.plain.layers()
    step = sum(layer.size for layer in layers) // STRETCHES
    out = bytearray()
    passed = 0
    for layer in layers:
        with s.plain.blob(layer.digest).open("rb") as f:
            # A stretch begins at each multiple of `step` of all their bytes.
            for at in range(-passed % step, layer.size, step):
                f.seek(at)
                out += f.read(min(STRETCH, step))
        passed += layer.size
    return bytes(out)


def recipe_of(blob: bytes) -> recipes.Recipe:
    """What `optimize` would record. Raises when no model fits, or corrections outgrow it."""

    def spans_of(decoder: recipes.Decoder, most: int) -> list[recipes.Span]:
        spans: list[recipes.Span] = []
        for at in range(0, len(blob), FEED):
            spans += decoder.feed(blob[at : at + FEED])
            if len(spans) >= most:
                return spans
        return spans + decoder.finish()

    some = spans_of(recipes.Decoder(SPAN, FIRST_SPAN), 2)
    best = recipes.choose(some[0], some[1], len(blob) // 50)
    if best is None:
        raise RuntimeError("no model fits")
    recipe = recipes.Recipe(best[0])
    spans = spans_of(decoder_for(best[0]), len(blob))
    for span, following in zip(spans, [*spans[1:], None], strict=True):
        corrections = recipes.analyse(span, following, recipe.model, len(blob) // 50)
        if corrections is None:
            raise RuntimeError(f"{recipe.model.name} does not fit")
        recipe.add(span, corrections)
    return recipe


def spans(recipe: recipes.Recipe, content: memoryview, threads: int) -> Iterator[bytes]:
    """What the recipe's spans make, in order; several threads work ahead on one blob."""

    def span(number: int) -> bytes:
        e = recipe.extent(number)
        start, end = e.content_start, e.content_end
        return recipes.make_span(recipe, number, content[start - e.before : end + e.ahead])

    if threads == 1:
        yield from map(span, range(len(recipe)))
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(span, range(len(recipe)))


def make(recipe: recipes.Recipe, content: memoryview, threads: int = 1) -> str:
    """The blob's sha256."""
    digest = hashlib.sha256()
    for piece in spans(recipe, content, threads):
        digest.update(piece)
    return digest.hexdigest()


def go_peer(version: str, level: int, work: Path) -> Peer:
    program = _build("std", work / f"go-{version}", {"GOTOOLCHAIN": f"go{version}"}, "")
    return lambda source, to: float(_run(program, source, str(level), to))


def pgzip_peer(level: int, work: Path) -> Peer:
    module = "github.com/klauspost/compress"
    needs = (
        f"require github.com/klauspost/pgzip v{PGZIP}\nrequire {module} v{KLAUSPOST}\n"
        f"replace {module} => {module} v{KLAUSPOST}\n"
    )
    program = _build("pgzip", work / "pgzip", {}, needs)
    return lambda source, to: float(_run(program, source, str(level), to))


def _build(name: str, to: Path, env: dict[str, str], needs: str) -> Path:
    if not to.exists():
        with tempfile.TemporaryDirectory() as work:
            shutil.copytree(HERE / "go" / name, work, dirs_exist_ok=True)
            (Path(work) / "go.mod").write_text(f"module encoder\n\ngo 1.19\n\n{needs}")
            subprocess.run(
                ["go", "build", "-mod=mod", "-o", str(to), "."],
                cwd=work,
                check=True,
                env=os.environ | {"CGO_ENABLED": "0"} | env,
            )
    return to


def _run(*words: str | Path) -> str:
    return subprocess.run(
        list(map(str, words)), stdout=subprocess.PIPE, check=True, text=True
    ).stdout


def zlib_peer(level: int) -> Peer:
    def run(source: Path, to: Path) -> float:
        content = source.read_bytes()
        start = time.process_time()
        machine = zlib.compressobj(level, zlib.DEFLATED, 31)
        out = machine.compress(content) + machine.flush()
        seconds = time.process_time() - start
        to.write_bytes(out)
        return seconds

    return run


def regenerate(s: Setting) -> list[Figure]:
    """Rate of making a blob again, of the rate of its encoder; MB/s of content in detail."""
    content = sample(s)
    with tempfile.TemporaryDirectory(dir=s.work) as directory:
        work = Path(directory)
        source = work / "content"
        source.write_bytes(content)
        peers: list[tuple[str, Peer, float]] = [("zlib 6", zlib_peer(6), 1.6)]
        if shutil.which("go"):
            peers = [
                ("Go 6", go_peer(GO, 6, work), 1.7),
                ("Go 1", go_peer(GO, 1, work), 2.0),
                ("Go 1.27 6", go_peer(GO_KLAUSPOST, 6, work), 1.3),
                ("pgzip", pgzip_peer(-1, work), 1.3),
                *peers,
            ]
        out = [_figure(name, peer, bound, source, content, s) for name, peer, bound in peers]
        # Of the blob that the last of them made; any would do.
        if len(os.sched_getaffinity(0)) > 1:
            out.append(_cores(peers[-1][0], source.with_name("blob").read_bytes(), content, s))
        return out


def _figure(
    name: str, peer: Peer, bound: float, source: Path, content: bytes, s: Setting
) -> Figure:
    to = source.with_name("blob")
    view = memoryview(content)
    recipe: recipes.Recipe | None = None
    theirs: list[float] = []
    ours: list[float] = []
    for _ in range(ROUNDS):
        theirs.append(peer(source, to))
        if recipe is None:
            blob = to.read_bytes()
            recipe, want = recipe_of(blob), hashlib.sha256(blob).hexdigest()
        start = time.process_time()
        got = make(recipe, view)
        ours.append(time.process_time() - start)
        if got != want:
            raise RuntimeError(f"{name}: other bytes come out")
    assert recipe is not None
    mb = len(content) / 1e6
    detail = {
        "model": recipe.model.name,
        "MB/s": mb / min(ours),
        "the encoder's": mb / min(theirs),
        "median of the pairs": median(t / o for t, o in zip(theirs, ours, strict=True)),
        "recipe, bytes": len(recipe.to_bytes()),
    }
    return Figure(
        f"regenerate: {name}, rate of its encoder's",
        min(theirs) / min(ours),
        bound=s.bound(bound),
        at_least=True,
        detail=detail,
    )


def _cores(name: str, blob: bytes, content: bytes, s: Setting) -> Figure:
    """One blob by two threads, by the wall clock; with one thread in turn."""
    recipe, view = recipe_of(blob), memoryview(content)
    want = hashlib.sha256(blob).hexdigest()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for threads in islice(cycle(seconds), 2 * ROUNDS):
        start = time.perf_counter()
        if make(recipe, view, threads) != want:
            raise RuntimeError(f"{name}: other bytes come out of {threads} threads")
        seconds[threads].append(time.perf_counter() - start)
    mb = len(content) / 1e6
    detail = {
        "spans": len(recipe),
        "MB/s, two": mb / min(seconds[2]),
        "one": mb / min(seconds[1]),
        "median of the pairs": median(a / b for a, b in zip(*seconds.values(), strict=True)),
    }
    return Figure(
        f"regenerate: {name}, two cores on one blob, rate of one's",
        min(seconds[1]) / min(seconds[2]),
        bound=s.bound(1.8),
        at_least=True,
        detail=detail,
    )
