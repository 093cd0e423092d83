"""gzip blobs apart and together: what is decoded is what zlib decodes, what is damaged is refused, and
from content and recipe comes the blob, bit for bit."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import threading
import zlib

import deflate_streams
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore.core import recipe as rec
from layerstore.errors import CorruptError, InvalidInputError, LimitError, UnsupportedError

SLOWER = 19 if "libasan" in os.environ.get("LD_PRELOAD", "") else 1
"""Under sanitizers a stream takes so many times longer: fewer of them, and of bits every 19th, so that
each place in a byte comes up."""
NONE = rec.model(rec.NONE)


def decode(blob: bytes, feed: int = 1 << 20, span: int = 1 << 20) -> list[rec.Span]:
    decoder = rec.Decoder(span)
    out = []
    for at in range(0, len(blob), feed):
        out += decoder.feed(blob[at : at + feed])
    out += decoder.finish()
    assert decoder.blob_size == len(blob)
    assert decoder.content_size == sum(s.size for s in out)
    return out


def content_of(spans: list[rec.Span]) -> bytes:
    return b"".join(bytes(s.content) for s in spans)


def recipe_of(spans: list[rec.Span], model: rec.Model, limit: int) -> rec.Recipe:
    out = rec.Recipe(model)
    for i, span in enumerate(spans):
        following = spans[i + 1] if i + 1 < len(spans) else None
        corrections = rec.analyse(span, following, model, limit)
        assert corrections is not None
        out.add(span, corrections)
    return rec.Recipe.from_bytes(out.to_bytes(), out.content_size, out.blob_size)


def make(recipe: rec.Recipe, number: int, content: bytes) -> bytes:
    e = recipe.extent(number)
    made = rec.make_span(
        recipe,
        number,
        content[e.content_start - e.before : e.content_start],
        content[e.content_start : e.content_end],
        content[e.content_end : e.content_end + e.ahead],
    )
    assert len(made) == e.blob_end - e.blob_start
    return made


def again(blob: bytes, model: rec.Model = NONE, feed: int = 1 << 20, span: int = 1 << 20) -> bytes:
    """Asserts that the blob comes back; the content."""
    spans = decode(blob, feed, span)
    content = content_of(spans)
    recipe = recipe_of(spans, model, 4 * len(blob) + 4096)
    assert recipe.content_size == len(content)
    order = list(range(len(recipe)))
    random.Random(1).shuffle(order)
    parts = {number: make(recipe, number, content) for number in order}
    assert b"".join(parts[n] for n in sorted(parts)) == blob
    for offset in random.Random(2).sample(range(len(blob)), min(20, len(blob))):
        number = recipe.find(offset)
        e = recipe.extent(number)
        assert e.blob_start <= offset < e.blob_end
        assert parts[number][offset - e.blob_start] == blob[offset]
    return content


def text(size: int, seed: int = 0) -> bytes:
    """Content with matches near and far, and stretches that have none."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randint(2, 12)) for _ in range(300)]
    out = io.BytesIO()
    while out.tell() < size:
        if chance.random() < 0.01:
            out.write(chance.randbytes(chance.randint(1, 3000)))
        elif chance.random() < 0.01:
            out.write(bytes(chance.randint(1, 3000)))
        out.write(chance.choice(words))
    return out.getvalue()[:size]


def raw_deflate(data: bytes, level: int, window: int, memory: int, strategy: int) -> bytes:
    z = zlib.compressobj(level, zlib.DEFLATED, window, memory, strategy)
    return z.compress(data) + z.flush()


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("strategy", range(5))
def test_zlib_streams_come_back(level: int, strategy: int) -> None:
    data = text(300_000, level)
    for window in (25, 31):
        blob = raw_deflate(data, level, window, 9 if window == 31 else 1, strategy)
        assert again(blob, feed=50_021, span=100_000) == data


def test_isal_streams_come_back() -> None:
    from isal import igzip

    data = text(700_000)
    for level in range(4):
        assert again(igzip.compress(data, level), span=100_000) == data


def test_flushes_and_members_come_back() -> None:
    data = text(500_000)
    out = io.BytesIO()
    for start in range(0, len(data), 20_000):
        z = zlib.compressobj(6, zlib.DEFLATED, 31)
        for at in range(start, min(start + 20_000, len(data)), 7000):
            out.write(z.compress(data[at : min(at + 7000, start + 20_000)]))
            out.write(z.flush((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH)[at % 3]))
        out.write(z.flush())
    blob = out.getvalue()
    assert again(blob, span=50_000) == data
    assert again(blob + bytes(5000), feed=999, span=50_000) == data
    assert again(blob + b"\0\0behind it" * 20) == data


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 70_000, bytes(range(256))])
def test_small_contents_come_back(content: bytes) -> None:
    for level in range(10):
        for feed in (1, 3, 1000):
            assert again(gzip.compress(content, level), feed=feed) == content


def test_members_in_their_thousands_are_cheap() -> None:
    """eStargz: a member a file. In one span, a header is said once, and no checksum at all."""
    blob = b"".join(gzip.compress(b"file %d" % i, 6, mtime=0) for i in range(3000))
    spans = decode(blob)
    assert len(spans) == 1
    corrections = rec.analyse(spans[0], None, NONE, len(blob))
    assert corrections is not None
    assert len(corrections) < 3000 * 4


@settings(max_examples=200 // SLOWER, deadline=None)
@given(st.integers(0, 2**64), st.sampled_from([1, 7, 100, 1 << 20]), st.integers(1, 2000))
def test_odd_streams_come_back(seed: int, feed: int, span: int) -> None:
    for number in range(50):
        blob, content = deflate_streams.blob(seed + number)
        assert again(blob, feed=feed, span=span) == content


def test_odd_streams_are_what_zlib_decodes() -> None:
    for seed in range(1000 // SLOWER):
        blob, content = deflate_streams.blob(seed)
        rest, out = blob, b""
        while rest.lstrip(b"\0")[:2] == b"\x1f\x8b":
            z = zlib.decompressobj(31)
            out += z.decompress(rest.lstrip(b"\0"))
            assert z.eof
            rest = z.unused_data
        assert out == content


def verdict(blob: bytes) -> bytes | str | None:
    """Content; None if it is damaged; why a recipe cannot hold it."""
    try:
        return content_of(decode(blob))
    except InvalidInputError as e:
        where, reason = e.offset, e.reason
    except LimitError as e:
        return str(e)
    assert reason
    assert where is not None
    assert 0 <= where <= len(blob)
    return None


def zlib_verdict(blob: bytes) -> bytes | None:
    """By zlib, which takes one member; what is behind it as the decoder does."""
    out, rest = b"", blob
    while True:
        z = zlib.decompressobj(31)
        try:
            out += z.decompress(rest)
        except zlib.error:
            return None
        if not z.eof:
            return None
        rest = z.unused_data.lstrip(b"\0")
        if rest[:2] != b"\x1f\x8b":
            return out


LONG_FORM = "a length of 258 in its longer form"


@pytest.mark.parametrize("seed", range(6))
def test_every_flipped_bit_is_judged_as_zlib_does(seed: int) -> None:
    blob = deflate_streams.blob(seed)[0] if seed < 4 else gzip.compress(text(3000), 6, mtime=0)
    blob = blob[:4000]
    for bit in range(0, len(blob) * 8, SLOWER):
        bad = bytearray(blob)
        bad[bit // 8] ^= 1 << bit % 8
        got = verdict(bytes(bad))
        if not isinstance(got, str):
            assert got == zlib_verdict(bytes(bad))
        else:
            assert LONG_FORM in got


def test_every_truncation_is_refused() -> None:
    blob = gzip.compress(text(2000), 6) + gzip.compress(b"second")
    second = blob.index(b"\x1f\x8b", 2)
    for size in range(len(blob)):
        if size == second or size == second + 1:
            continue  # whole members, with one byte behind them at most
        assert verdict(blob[:size]) is None, size
    with pytest.raises(InvalidInputError, match="truncated"):
        decode(b"")


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, 0, "not gzip"),
        (2, 7, "method"),
        (3, 0x20, "reserved"),
        (-8, None, "wrong CRC"),
        (-1, None, "wrong size"),
        (10, 0x07, "reserved type"),
    ],
)
def test_damage_is_named(at: int, value: int | None, reason: str) -> None:
    blob = bytearray(gzip.compress(text(500), 6))
    blob[at] = blob[at] ^ 0xFF if value is None else value
    with pytest.raises(InvalidInputError, match=reason) as e:
        decode(bytes(blob))
    assert abs((e.value.offset or 0) - at % len(blob)) <= 4


def codes(litlen: dict[int, int], dist: list[int], tail: int = 0) -> bytes:
    """A member with a dynamic block with codes of these lengths, whatever they are."""
    w = deflate_streams.Writer()
    w.data(gzip.compress(b"")[:10])
    w.bits(0b101, 3)
    lengths = [litlen.get(i, 0) for i in range(257)] + dist
    codelen = deflate_streams.canonical([4] * 16)
    for value, n in ((0, 5), (len(dist) - 1, 5), (15, 4)):
        w.bits(value, n)
    for symbol in deflate_streams.ORDER:
        w.bits(4 if symbol < 16 else 0, 3)
    for length in lengths:
        w.code(codelen[length])
    w.bits(tail, 7)
    while w.n % 8:
        w.bits(0, 1)
    w.data(bytes(8))
    return w.done()


@pytest.mark.parametrize(
    ("litlen", "dist", "reason"),
    [
        ({65: 1, 66: 1, 256: 1}, [1], "literal code is over-subscribed"),
        ({65: 2, 256: 2}, [1], "literal code is incomplete"),
        ({65: 1, 66: 1}, [1], "end of the block"),
        ({65: 1, 256: 1}, [1, 1, 1], "distance code is over-subscribed"),
        ({65: 1, 256: 1}, [2, 2, 2], "distance code is incomplete"),
    ],
)
def test_codes_that_are_none_are_refused(
    litlen: dict[int, int], dist: list[int], reason: str
) -> None:
    blob = codes(litlen, dist)
    with pytest.raises(InvalidInputError, match=reason):
        decode(blob)
    assert zlib_verdict(blob) is None


def test_single_and_missing_distance_codes_are_legal() -> None:
    for dist in ([1], [0], [0, 0, 1]):
        # Code 1 is the end of the block: an empty member.
        blob = codes({65: 1, 256: 1}, dist, tail=1)
        assert zlib_verdict(blob) == b""
        assert again(blob) == b""


def test_a_distance_before_the_member_is_refused() -> None:
    first = deflate_streams.Writer()
    first.data(gzip.compress(b"abcdef", 9))
    second = deflate_streams.Writer()
    second.data(gzip.compress(b"")[:10])
    second.bits(0b011, 3)
    second.code((0b0000001, 7))  # length 3
    second.code((0, 5))  # distance 1
    second.code((0, 7))
    second.bits(0, 2)
    second.data(bytes(8))
    with pytest.raises(InvalidInputError, match="before the start"):
        decode(first.done() + second.done())


def test_a_bomb_is_decoded_in_bounded_memory() -> None:
    z = zlib.compressobj(9, zlib.DEFLATED, 31)
    blob = b"".join(z.compress(bytes(1 << 20)) for _ in range(200)) + z.flush()
    assert len(blob) * 900 < 200 << 20
    decoder = rec.Decoder()
    largest = 0
    for at in range(0, len(blob), 4096):
        for span in decoder.feed(blob[at : at + 4096]):
            largest = max(largest, span.size)
            span.release()
    for span in decoder.finish():
        span.release()
    assert decoder.content_size == 200 << 20
    assert largest < 8 << 20


def test_a_block_that_no_span_holds_is_named() -> None:
    w = deflate_streams.Writer()
    w.data(gzip.compress(b"")[:10])
    w.bits(0b010, 3)
    body = deflate_streams.Writer()
    for _ in range(8 * 1024):
        body.code((0b00110000, 8))
    literals = int.from_bytes(body.done() * 520, "little")  # 4.2 million, of one block
    blob = bytes(w.out) + (literals << w.n | w.value).to_bytes(520 * 8 * 1024 + 1, "little")
    with pytest.raises(LimitError, match="too large"):
        decode(blob)


def test_corrections_past_the_limit_are_none() -> None:
    spans = decode(gzip.compress(text(100_000)))
    assert rec.analyse(spans[0], None, NONE, 100) is None


def test_spans_are_analysed_and_made_side_by_side() -> None:
    blob = gzip.compress(text(2_000_000), 1)
    spans = decode(blob, span=100_000)
    content = content_of(spans)
    expected = recipe_of(spans, NONE, 1 << 20).to_bytes()
    results: dict[int, bytes] = {}

    def work(numbers: range) -> None:
        for i in numbers:
            following = spans[i + 1] if i + 1 < len(spans) else None
            results[i] = rec.analyse(spans[i], following, NONE, 1 << 20) or b""

    threads = [threading.Thread(target=work, args=(range(k, len(spans), 3),)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    recipe = rec.Recipe(NONE)
    for i, span in enumerate(spans):
        recipe.add(span, results[i])
    assert recipe.to_bytes() == expected
    made: dict[int, bytes] = {}
    workers = [
        threading.Thread(
            target=lambda k=k: made.update(
                {n: make(recipe, n, content) for n in range(k, len(recipe), 3)}
            )
        )
        for k in range(3)
    ]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert b"".join(made[n] for n in sorted(made)) == blob


def test_recipes_of_newer_versions_and_damaged_ones() -> None:
    blob = gzip.compress(text(300_000))
    spans = decode(blob, span=50_000)
    recipe = recipe_of(spans, NONE, 1 << 20)
    data = recipe.to_bytes()
    sizes = recipe.content_size, recipe.blob_size
    assert sizes == (300_000, len(blob))
    with pytest.raises(UnsupportedError, match="newer"):
        rec.Recipe.from_bytes(bytes([rec.VERSION + 1]) + data[1:], *sizes)
    with pytest.raises(UnsupportedError, match="model 99"):
        rec.Recipe.from_bytes(bytes([rec.VERSION, 99]) + data[2:], *sizes)
    # All but what corrects the last span is told; how long that is, only the stream that holds it.
    for size in range(len(data) - len(recipe.corrections(len(spans) - 1))):
        with pytest.raises(CorruptError):
            rec.Recipe.from_bytes(data[:size], *sizes)
    first = spans[0].size
    for content_size, blob_size in ((first - 1, len(blob)), (300_000, 100), (1 << 30, len(blob))):
        with pytest.raises(CorruptError):
            rec.Recipe.from_bytes(data, content_size, blob_size)


@pytest.mark.parametrize("version", [1, 2])
def test_recipes_of_older_versions_and_damaged_ones(version: int) -> None:
    """Their table tells of all spans, and must be of this blob."""
    blob = gzip.compress(text(300_000))
    recipe = recipe_of(decode(blob, span=50_000), NONE, 1 << 20)
    recipe.version = version
    data = recipe.to_bytes()
    again_ = rec.Recipe.from_bytes(data, 300_000, len(blob))
    assert [again_.extent(n) for n in range(len(again_))] == [
        recipe.extent(n) for n in range(len(recipe))
    ]
    assert [again_.corrections(n) for n in range(len(recipe))] == [
        recipe.corrections(n) for n in range(len(recipe))
    ]
    for size in range(len(data)):
        with pytest.raises(CorruptError):
            rec.Recipe.from_bytes(data[:size], 300_000, len(blob))
    for content_size, blob_size in ((299_999, len(blob)), (300_000, len(blob) - 1)):
        with pytest.raises(CorruptError):
            rec.Recipe.from_bytes(data, content_size, blob_size)
    with pytest.raises(CorruptError):
        rec.Recipe.from_bytes(data + b"x", 300_000, len(blob))


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 24), st.integers(0, 1 << 30), st.binary(max_size=300)),
        min_size=1,
        max_size=9,
    ),
    st.integers(1, rec.VERSION),
)
@settings(max_examples=300 // SLOWER, deadline=None)
def test_the_table_of_spans_comes_back(spans: list[tuple[int, int, bytes]], version: int) -> None:
    recipe = rec.Recipe(NONE, version)
    spans[-1] = spans[-1][0], spans[-1][1] + -sum(s[1] for s in spans) % 8, spans[-1][2]
    for size, bits, corrections in spans:
        recipe._add(size, bits, len(corrections))
        recipe._parts.append(corrections)
    back = rec.Recipe.from_bytes(recipe.to_bytes(), recipe.content_size, recipe.blob_size)
    assert (back.version, back.model, len(back)) == (version, NONE, len(spans))
    for number, (_, _, corrections) in enumerate(spans):
        assert back.extent(number) == recipe.extent(number)
        assert back.corrections(number) == corrections


@settings(max_examples=300 // SLOWER, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 1 << 20), st.integers(0, 1 << 16))
def test_no_recipe_is_an_error(data: bytes, content_size: int, blob_size: int) -> None:
    with contextlib.suppress(CorruptError, UnsupportedError):
        recipe = rec.Recipe.from_bytes(b"\3\1" + data, content_size, blob_size)
        assert (recipe.content_size, recipe.blob_size) == (content_size, blob_size)
        assert recipe.extent(len(recipe) - 1).blob_end == blob_size


@settings(max_examples=300 // SLOWER, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 5000), st.integers(0, 5000))
def test_hostile_recipes_end_in_an_error_or_in_bytes(
    corrections: bytes, size: int, blob_size: int
) -> None:
    recipe = rec.Recipe(NONE)
    recipe._add(size, 8 * blob_size, len(corrections))
    recipe._parts.append(corrections)
    with contextlib.suppress(CorruptError):
        assert len(make(recipe, 0, text(size))) == blob_size


@settings(max_examples=100 // SLOWER, deadline=None)
@given(st.integers(0, 1000), st.data())
def test_damaged_corrections_end_in_an_error_or_in_bytes(seed: int, data: st.DataObject) -> None:
    blob, content = deflate_streams.blob(seed)
    spans = decode(blob)
    recipe = recipe_of(spans, NONE, 4 * len(blob) + 4096)
    corrections = bytearray(recipe.corrections(0))
    if not corrections:
        return
    at = data.draw(st.integers(0, len(corrections) - 1))
    corrections[at] ^= data.draw(st.integers(1, 255))
    bad = rec.Recipe(NONE)
    bad.add(spans[0], bytes(corrections))
    with contextlib.suppress(CorruptError):
        make(bad, 0, content[: spans[0].size])
