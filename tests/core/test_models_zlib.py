"""zlib and its relatives, replayed: no token mispredicted, all trees predicted, the same bytes for ever."""

from __future__ import annotations

import json
import random
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replayed_streams import deflate_of, filtered, replay, tokens_digest
from test_deflate import CONTENTS, noise, text

VECTORS = Path(__file__).parent / "model_vectors_lazy.json"
LEVELS = range(1, 10)
LAZY = range(4, 10)
ZLIB, PIGZ, GZIP, MEMLEVEL_9, ALONE, PIGZ_ONE = 100, 110, 120, 130, 140, 150


def real() -> bytes:
    """Machine code, as layers have it."""
    return Path("/bin/bash").read_bytes()[:1_200_000]


# Sizes at which encoders' buffers of 64 KiB are full, or move, or end within a match's length of it.
EDGES = [
    65_000,
    65_274,
    65_275,
    65_530,
    65_534,
    65_535,
    65_536,
    65_537,
    98_302,
    98_303,
    98_304,
    131_072,
]


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    out = {name: make() for name, make in CONTENTS.items()}
    out["machine code"] = real()
    whole = text(140_000, 9)
    out |= {f"{size} bytes of text": whole[:size] for size in EDGES}
    return out


def exact(
    contents: dict[str, bytes], model: int, encode: Callable[[bytes], bytes], span: int = 1 << 21
) -> None:
    for name, content in contents.items():
        report = replay(encode(content), model, content, span=span)
        assert report.exact, (name, report)


def stream(level: int, memory: int = 8) -> Callable[[bytes], bytes]:
    def run(content: bytes) -> bytes:
        machine = zlib.compressobj(level, zlib.DEFLATED, -15, memory)
        return machine.compress(content) + machine.flush()

    return run


def flushed(level: int, kind: int, sizes: list[int]) -> Callable[[bytes], bytes]:
    """A stream that is flushed again and again."""

    def run(content: bytes) -> bytes:
        pick = random.Random(len(content))
        machine = zlib.compressobj(level, zlib.DEFLATED, -15)
        out, at = b"", 0
        while at < len(content):
            n = pick.choice(sizes)
            out += machine.compress(content[at : at + n]) + machine.flush(kind)
            at += n
        return out + machine.flush()

    return run


@pytest.mark.parametrize("level", LAZY)
def test_zlib(contents: dict[str, bytes], level: int) -> None:
    """In spans of 2 MiB and of 100 kB: a span knows what the encoder knew."""
    exact(contents, ZLIB + level, stream(level))
    exact(contents, ZLIB + level, stream(level), span=100_000)
    exact(contents, MEMLEVEL_9 + level, stream(level, 9))


@pytest.mark.parametrize("level", LAZY)
def test_zlib_flushed(contents: dict[str, bytes], level: int) -> None:
    """Greedy levels leave gaps before every flush, and a span knows of the last flush only: flushes
    closer than its history cost them a token now and then, which is a correction and no more."""
    sizes = [5, 100, 3000, 40_000] if level > 3 else [300_000]
    exact(contents, ZLIB + level, flushed(level, zlib.Z_SYNC_FLUSH, sizes))
    exact(contents, ALONE + level, flushed(level, zlib.Z_FULL_FLUSH, [5, 100, 3000, 40_000]))


@pytest.mark.parametrize("level", LAZY)
def test_gnu_gzip(contents: dict[str, bytes], level: int) -> None:
    contents = {name: c for name, c in contents.items() if not name[0].isdigit()}
    exact(contents, GZIP + level, filtered(["gzip", f"-{level}", "-n"]))
    exact(contents, GZIP + level, filtered(["gzip", f"-{level}", "-n", "--rsyncable"]))


@pytest.mark.needs("pigz")
@pytest.mark.parametrize("level", LAZY)
def test_pigz(contents: dict[str, bytes], level: int) -> None:
    """Two threads: pieces with a dictionary. One: the same, but for levels that leave positions out."""
    exact(contents, PIGZ + level, filtered(["pigz", f"-{level}", "-n", "-p2"]))
    one = PIGZ_ONE if level < 4 else PIGZ
    exact(contents, one + level, filtered(["pigz", f"-{level}", "-n", "-p1"]))
    exact(contents, ALONE + level, filtered(["pigz", f"-{level}", "-n", "-p2", "-i"]))


@pytest.mark.needs("javac")
def test_java(contents: dict[str, bytes], tmp_path: Path) -> None:
    """GZIPOutputStream is zlib 6."""
    (tmp_path / "Gz.java").write_text(
        "import java.util.zip.*; public class Gz { public static void main(String[] a) throws Exception {"
        " var out = new GZIPOutputStream(System.out); System.in.transferTo(out); out.close(); } }"
    )
    subprocess.run(["javac", "-d", tmp_path, tmp_path / "Gz.java"], check=True)
    some = {
        k: contents[k] for k in ("empty", "text", "machine code", "mixed, three pieces", "zeros")
    }
    exact(some, ZLIB + 6, filtered(["java", "-cp", str(tmp_path), "Gz"]))


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=3000),
            st.builds(lambda b, n: b * n, st.binary(min_size=1, max_size=300), st.integers(1, 400)),
            st.builds(lambda n, s: text(n, s), st.integers(0, 9000), st.integers(0, 5)),
            st.builds(lambda n, s: noise(n, s), st.integers(0, 40_000), st.integers(0, 5)),
        ),
        max_size=8,
    ),
    st.integers(1, 9),
    st.sampled_from([3_000, 70_000, 1 << 21]),
)
@settings(max_examples=60, deadline=None)
def test_any_content(parts: list[bytes], level: int, span: int) -> None:
    content = b"".join(parts)
    report = replay(stream(level)(content), ZLIB + level, content, span=span)
    # Cut into spans, a greedy level starts from a history whose tokens it must find again.
    assert report.exact or (level < 4 and span < len(content) and report.wrong < 200), report
    assert not (report.trees_wrong or report.made_wrong or report.error), report
    gzip = filtered(["gzip", f"-{level}", "-n"])(content)
    assert replay(gzip, GZIP + level, content).exact


def test_a_wrong_model_is_corrected(contents: dict[str, bytes]) -> None:
    """The blocks are made again whatever the model thought, for what it mispredicted is known."""
    content = contents["machine code"]
    for model in (ZLIB + 9, GZIP + 1, PIGZ + 4, 206):
        report = replay(stream(6)(content), model, content, span=300_000)
        assert report.wrong > 100, (model, report)
        assert not (report.made_wrong or report.error), (model, report)


def test_header_and_trailer_are_not_the_model_s(contents: dict[str, bytes]) -> None:
    content = contents["text"]
    machine = zlib.compressobj(6, zlib.DEFLATED, 31)
    blob = machine.compress(content) + machine.flush()
    assert deflate_of(blob)[:-8] == stream(6)(content)


MODELS = [
    *(base + level for base in (ZLIB, PIGZ, GZIP, MEMLEVEL_9, ALONE) for level in LEVELS),
    *(PIGZ_ONE + level for level in (1, 2, 3)),
    *(200 + level for level in range(2, 10)),
]


def vectors() -> dict[str, dict[str, str]]:
    return {
        name: {str(model): tokens_digest(model, make()) for model in MODELS}
        for name, make in CONTENTS.items()
    }


def test_the_tokens_of_each_model_are_these_for_ever() -> None:
    """Never make these vectors again: recipes in users' stores rest on every one of them."""
    assert vectors() == json.loads(VECTORS.read_text())
