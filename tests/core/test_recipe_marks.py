"""Blocks that content ends: `--rsyncable`, pigz's pieces. What the models do there is frozen by recipes
of blobs that the real programs made (`recipe_vectors.json`), and held against them where they are."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_models_kp import generated

from layerstore.core import recipe as rec

VECTORS = Path(__file__).parent / "recipe_vectors.json"
VECTORS_2 = Path(__file__).parent / "recipe_vectors_2.json"
VECTORS_3 = Path(__file__).parent / "recipe_vectors_3.json"
OLD = [m for m in rec.models() if 160 <= m.id < 200]
TYPED = [m for m in rec.models() if 460 <= m.id < 480]
MARKED = OLD + TYPED


@functools.cache
def content_of(name: str) -> bytes:
    """Words and copies, bytes that are stored, zeros (every byte a mark of gzip's)."""
    parts = {
        "words": generated("words"),
        "copies": generated("copies"),
        "noise": generated("noise")[:70_000],
        "zeros": bytes(300_000),
        "few": generated("words")[:3_000],
    }
    if name == "few":
        return parts.pop(name)
    del parts["few"]
    return (
        parts["words"] + b"".join(parts.values()) + parts["copies"]
        if name == "all"
        else parts[name]
    )


def run(*command: str, content: bytes) -> bytes:
    return subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True).stdout


def spans_of(blob: bytes, span: int) -> list[rec.Span]:
    decoder = rec.Decoder(span)
    spans = [s for at in range(0, len(blob), 9_000) for s in decoder.feed(blob[at : at + 9_000])]
    return spans + decoder.finish()


def recipe_of(blob: bytes, model: rec.Model, span: int = 200_000) -> tuple[bytes, int]:
    """And how many tokens are not predicted."""
    spans = spans_of(blob, span)
    recipe = rec.Recipe(model)
    wrong = 0
    for span_, following in zip(spans, [*spans[1:], None], strict=True):
        corrections = rec.analyse(span_, following, model, len(blob) + 4096)
        assert corrections is not None
        wrong += rec.mispredicted(span_, following, model)
        recipe.add(span_, corrections)
    return recipe.to_bytes(), wrong


def told(recipe: bytes) -> int:
    """Bytes of the blob, as a recipe of version 1 or 2 has them in its table."""
    numbers, value, shift = [], 0, 0
    for byte in recipe[1:]:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    count = numbers[1]
    return sum(numbers[2 + count : 2 + 2 * count]) // 8


def made(recipe: bytes, content: bytes, blob_size: int = 0) -> bytes:
    parsed = rec.Recipe.from_bytes(recipe, len(content), blob_size or told(recipe))
    out = b""
    for number in range(len(parsed)):
        e = parsed.extent(number)
        start, end = e.content_start, e.content_end
        parts = content[start - e.before : start], content[start:end], content[end : end + e.ahead]
        out += rec.make_span(parsed, number, *parts)
    return out


def test_recipes_give_these_blobs_for_ever() -> None:
    """Never make these vectors again: recipes in users' stores rest on every one of them."""
    content = content_of("all")
    vectors = json.loads(VECTORS.read_text())
    assert {int(v["model"]) for v in vectors} == {m.id for m in OLD}
    for vector in vectors:
        assert vector["recipe"].startswith("01")
        blob = made(bytes.fromhex(vector["recipe"]), content)
        assert hashlib.sha256(blob).hexdigest() == vector["sha256"], vector["model"]


def test_recipes_of_version_2_give_these_blobs_for_ever() -> None:
    """Never make these again, either. All models with kinds of blocks; headers of all sorts."""
    vectors = json.loads(VECTORS_2.read_text())
    assert {int(v["model"]) for v in vectors} >= {m.id for m in TYPED}
    for vector in vectors:
        assert vector["recipe"].startswith("02")
        blob = made(bytes.fromhex(vector["recipe"]), content_of(vector["content"]))
        assert hashlib.sha256(blob).hexdigest() == vector["sha256"], vector["model"]
        assert blob.hex().startswith(vector.get("header", ""))


def test_recipes_of_version_3_give_these_blobs_for_ever() -> None:
    """Never make these again, either. One span and several, with corrections and without."""
    vectors = json.loads(VECTORS_3.read_text())
    assert len(vectors) == 12
    for vector in vectors:
        assert vector["recipe"].startswith("03")
        recipe = bytes.fromhex(vector["recipe"])
        blob = made(recipe, content_of(vector["content"]), vector["size"])
        assert hashlib.sha256(blob).hexdigest() == vector["sha256"], vector["model"]


@pytest.mark.parametrize("level", [1, 3, 4, 6, 9])
def test_gzip_rsyncable_is_predicted(level: int) -> None:
    content = content_of("all")
    blob = run("gzip", "-nc", f"-{level}", "--rsyncable", content=content)
    recipe, wrong = recipe_of(blob, rec.model(460 + level))
    assert made(recipe, content, len(blob)) == blob
    old, _ = recipe_of(blob, rec.model(120 + level))
    # At level 1 what is in the chains depends on tokens of long before.
    assert wrong <= (800 if level == 1 else 0)
    if level > 3:
        assert len(recipe) * 2 < len(old)


@pytest.mark.parametrize("level", [4, 6, 9])
def test_kinds_of_blocks_cost_nothing(level: int) -> None:
    """Dynamic or fixed, and what fills up the byte: of thousands of blocks a few bits are left."""
    for kind in ("zeros", "words"):
        content = content_of(kind)
        blob = run("gzip", "-nc", f"-{level}", "--rsyncable", content=content)
        recipe, wrong = recipe_of(blob, rec.model(460 + level), 4 * len(content))
        assert (made(recipe, content, len(blob)), wrong) == (blob, 0)
        # The checksum is that of the span, and so is all that the table would tell.
        assert len(recipe) <= 11
        old = recipe_of(blob, rec.model(160 + level), 4 * len(content))[0]
        assert len(old) > len(recipe) + (7 if kind == "zeros" else -1)
        dated = blob[:4] + b"\1\2\3\4" + blob[8:]
        assert len(recipe_of(dated, rec.model(460 + level), 4 * len(content))[0]) <= len(recipe) + 9


@pytest.mark.needs("pigz")
@pytest.mark.parametrize(
    ("level", "threads"), [(1, 1), (1, 2), (3, 1), (4, 2), (6, 1), (6, 2), (9, 2)]
)
def test_pigz_is_predicted(level: int, threads: int) -> None:
    content = content_of("all")
    blob = run("pigz", "-nc", f"-{level}", f"-p{threads}", content=content)
    model = (190 if threads == 1 and level < 4 else 180) + level
    recipe, wrong = recipe_of(blob, rec.model(model))
    assert made(recipe, content, len(blob)) == blob
    assert wrong <= (800 if level == 1 else 0)
    if level > 3:
        old, _ = recipe_of(blob, rec.model(110 + level))
        assert len(recipe) < len(old)


@pytest.mark.needs("pigz")
@pytest.mark.parametrize("level", [4, 6, 9])
def test_pigz_rsyncable_is_predicted(level: int) -> None:
    """Where a piece has no mark, as zeros have none, pigz ends it elsewhere: a few corrections."""
    content = content_of("all")
    blob = run("pigz", "-nc", f"-{level}", "-p2", "--rsyncable", content=content)
    recipe, wrong = recipe_of(blob, rec.model(470 + level))
    assert made(recipe, content, len(blob)) == blob
    assert wrong <= 12
    plain = content_of("words")
    blob = run("pigz", "-nc", f"-{level}", "-p2", "--rsyncable", content=plain)
    recipe, wrong = recipe_of(blob, rec.model(470 + level))
    assert (made(recipe, plain, len(blob)), wrong) == (blob, 0)


@given(
    st.sampled_from(MARKED),
    st.sampled_from(["words", "copies", "noise", "zeros"]),
    st.integers(0, 200_000),
    st.integers(1, 140_000),
    st.integers(1, 60_000),
)
@example(rec.model(163), "zeros", 0, 9_000, 1)
@settings(max_examples=40, deadline=None)
def test_any_stream_comes_back_with_them(
    model: rec.Model, kind: str, start: int, size: int, span: int
) -> None:
    """Also one that another encoder made, in spans that end anywhere."""
    content = content_of(kind)[start : start + size]
    # A span of a byte each over 140,000 bytes took gigabytes under a sanitizer.
    span = max(span, len(content) // 100)
    machine = zlib.compressobj(1 + size % 9, zlib.DEFLATED, 31)
    blob = b""
    for at in range(0, len(content), 1 + span // 2):
        blob += machine.compress(content[at : at + 1 + span // 2])
        if at % 3 == 0:
            blob += machine.flush(zlib.Z_SYNC_FLUSH)
    blob += machine.flush()
    recipe, _ = recipe_of(blob, model, span)
    assert made(recipe, content, len(blob)) == blob
