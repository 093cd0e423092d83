"""Split then join gives the same bytes: for any input, any windows, any sizes of the output arrays."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterable, Iterator

import blake3
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tar_cases import (
    END,
    archives,
    file,
    header,
    old_sparse,
    padded,
    pax,
    pyc,
    repaired,
    sparse_1_0,
)

from layerstore.core import _layerstore, split, tar
from layerstore.errors import InvalidInputError

ffi, lib = _layerstore.ffi, _layerstore.lib
CHUNK_MAX: int = lib.LS_CHUNK_MAX
WINDOW: int = lib.LS_SPLIT_WINDOW


def noise(n: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(n)


class Parts:
    """What a tar was split into."""

    def __init__(self) -> None:
        self.head = b""
        self.marks = b""
        self.content: list[bytes] = []
        self.kinds: list[int] = []
        self.ids: list[bytes] = []
        self.entries = 0
        self.lost: tar.Lost | None = None
        self.complete = False

    def same(self) -> tuple[object, ...]:
        return self.head, self.marks, self.content, self.kinds, self.ids, self.entries


def take_apart(data: bytes, sizes: Iterable[int] = ()) -> Parts:
    """Splits with windows of the given sizes (then as large as needed)."""
    parts = Parts()
    splitter, prover = split.Splitter(), split.Prover()
    wanted = iter(sizes)
    at, size = 0, 0
    while True:
        size = max(1, size + next(wanted, len(data)))
        final = at + size >= len(data)
        window = memoryview(data)[at : at + size]
        batch = splitter.feed(window, final)
        prover.feed(window, batch)
        for offset, length, kind, piece_id in batch.rows():
            parts.content.append(bytes(window[offset : offset + length]))
            parts.kinds.append(kind)
            parts.ids.append(piece_id)
        parts.head += bytes(batch.head)
        parts.marks += bytes(batch.marks)
        at += batch.used
        size -= min(size, batch.used)
        if final and at == len(data):
            parts.entries = batch.entries
            parts.lost, parts.complete = splitter.lost, splitter.complete
            return parts


def put_together(parts: Parts, sizes: Iterable[int] = (), out_size: int = 1 << 20) -> bytes:
    """Joins with inputs cut at the given sizes (then whole)."""
    joiner = split.Joiner()
    wanted: Iterator[int] = iter(sizes)
    out = bytearray(out_size)
    done = bytearray()
    head_at = marks_at = slices_at = offset = 0
    head_n = marks_n = slices_n = 0
    slices = [(piece, 0, len(piece)) for piece in parts.content]
    while True:
        step = next(wanted, 1 << 30)
        head_n, marks_n = head_n + step, marks_n + 1 + step // 7
        slices_n += 1 + step // 5
        head = memoryview(parts.head)[head_at : head_at + head_n]
        marks = memoryview(parts.marks)[marks_at : marks_at + marks_n]
        some = slices[slices_at : slices_at + slices_n]
        finals = (
            head_at + head_n >= len(parts.head),
            marks_at + marks_n >= len(parts.marks),
            slices_at + slices_n >= len(slices),
        )
        got = joiner.run(head, finals[0], marks, finals[1], some, offset, finals[2], out)
        done += out[: got.out_len]
        head_at, marks_at = head_at + got.head_used, marks_at + got.marks_used
        slices_at, offset = slices_at + got.slices_used, got.slice_offset
        head_n, marks_n = head_n - got.head_used, max(0, marks_n - got.marks_used)
        slices_n -= min(slices_n, got.slices_used)
        if all(finals) and not got.out_len:
            assert (head_at, marks_at) == (len(parts.head), len(parts.marks))
            assert slices_at == len(slices)
            return bytes(done)


def put_together_from(parts: Parts, offset: int, cut: int) -> bytes:
    """What lies behind `offset`; the header stream is given in two parts, cut at `cut`."""
    joiner = split.Joiner()
    content = b"".join(bytes(piece) for piece in parts.content)
    head, marks = memoryview(parts.head), memoryview(parts.marks)
    taken = passed = head_at = marks_at = 0
    for end in (min(cut, len(head)), len(head)):
        while passed < offset:
            got = joiner.skip(
                head[head_at:end],
                end == len(head),
                marks[marks_at:],
                True,
                len(content) - taken,
                offset - passed,
            )
            head_at, marks_at = head_at + got.head_used, marks_at + got.marks_used
            taken = len(content) if got.slices_used else taken + got.slice_offset
            passed += got.out_len
            if not got.out_len:
                break
    rest = content[taken:]
    done, out, at = b"", bytearray(1 << 16), 0
    while True:
        some = [(rest[at:], 0, len(rest) - at)]
        got = joiner.run(head[head_at:], True, marks[marks_at:], True, some, 0, True, out)
        head_at, marks_at = head_at + got.head_used, marks_at + got.marks_used
        at = len(rest) if got.slices_used else at + got.slice_offset
        done += out[: got.out_len]
        if not got.out_len:
            return done


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(archives(), st.integers(0), st.integers(0, 3000))
def test_what_is_stepped_over_changes_nothing_behind_it(data: bytes, at: int, cut: int) -> None:
    offset = at % (len(data) + 1)
    assert put_together_from(take_apart(data), offset, cut) == data[offset:]


def assert_exact(data: bytes, windows: Iterable[int] = (), out_size: int = 1 << 20) -> Parts:
    parts = take_apart(data)
    assert put_together(parts) == data
    windows = list(windows)
    assert take_apart(data, windows).same() == parts.same()
    assert put_together(parts, windows, out_size) == data
    return parts


sizes = st.lists(st.integers(1, 1500), max_size=30)


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(archives(), sizes, st.integers(1, 2000), st.booleans())
@example(b"", [], 1, False)
@example(END, [1], 1, False)
@example(header(size=5, type=b"S", patch={482: b"\1"}), [], 1, False)
@example(pax((b"size", b"9223372036854775807")) + header(), [], 1, False)
@example(sparse_1_0([], 0)[:-1], [7], 3, False)
def test_any_archive_comes_back_exactly(
    data: bytes, windows: list[int], out_size: int, repair: bool
) -> None:
    assert_exact(repaired(data) if repair else data, windows, out_size)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000), sizes)
def test_any_bytes_come_back_exactly(data: bytes, windows: list[int]) -> None:
    assert_exact(data, windows)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_off_anywhere_comes_back_exactly(format: int) -> None:
    data = _small_tar(format)
    for n in range(0, len(data), 37):
        assert_exact(data[:n])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_a_tar_with_any_byte_changed_come_back_exactly(format: int) -> None:
    data = _small_tar(format)
    rng = random.Random(format)
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        fixed = repaired(bytes(changed)) if rng.random() < 0.7 else bytes(changed)
        assert_exact(fixed, [rng.randint(1, 900) for _ in range(4)])


def _small_tar(format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, payload in [("a", b"x" * 600), ("d/" * 60 + "b" * 80, b"y"), ("c.pyc", pyc(7))]:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return out.getvalue()


def test_small_output_arrays_only_take_more_calls() -> None:
    data = b"".join(file(b"%d" % i, pyc(i, b"z" * (i % 600))) for i in range(60)) + END
    whole = take_apart(data)
    rng = random.Random(5)
    for _ in range(40):
        assert _raw_split(data, rng) == (whole.head, whole.marks, b"".join(whole.ids))


def _raw_split(data: bytes, rng: random.Random) -> tuple[bytes, bytes, bytes]:
    """The C function itself, with output arrays of changing sizes."""
    state = ffi.new("char[]", lib.ls_split_sizeof())
    machine = ffi.cast("ls_split *", state)
    scratch = ffi.new("uint8_t[]", lib.LS_TAR_SCRATCH)
    lib.ls_split_init(machine, 0, scratch, len(scratch))
    out, err = ffi.new("ls_split_out *"), ffi.new("ls_error *")
    source = ffi.from_buffer("uint8_t[]", data)
    at, head, marks, ids = 0, b"", b"", b""
    while at < len(data):
        head_n, marks_n, n = rng.randint(16, 800), rng.randint(20, 50), rng.randint(1, 4)
        head_out, marks_out = ffi.new("uint8_t[]", head_n), ffi.new("uint8_t[]", marks_n)
        pieces = ffi.new("ls_piece[]", n)
        args = (head_out, head_n, marks_out, marks_n, pieces, n, out, err)
        assert lib.ls_split_feed(machine, source + at, len(data) - at, 1, *args) == lib.LS_OK
        at += out.used
        head += ffi.buffer(head_out, out.head_len)[:]
        marks += ffi.buffer(marks_out, out.marks_len)[:]
        ids += b"".join(ffi.buffer(pieces[i].id)[:] for i in range(out.n_pieces))
    return head, marks, ids


def test_an_output_array_without_room_is_an_error_not_a_loop() -> None:
    state = ffi.new("char[]", lib.ls_split_sizeof())
    machine = ffi.cast("ls_split *", state)
    scratch = ffi.new("uint8_t[]", lib.LS_TAR_SCRATCH)
    out, err = ffi.new("ls_split_out *"), ffi.new("ls_error *")
    nothing = (ffi.NULL, 0, ffi.NULL, 0, ffi.NULL, 0, out, err)
    lib.ls_split_init(machine, 0, scratch, len(scratch))
    assert lib.ls_split_feed(machine, ffi.from_buffer(END), 1024, 1, *nothing) == lib.LS_ESPACE
    lib.ls_split_init(machine, 0, scratch, len(scratch) - 1)
    assert lib.ls_split_feed(machine, ffi.from_buffer(END), 1024, 1, *nothing) == lib.LS_ESPACE


def test_pieces_carry_their_blake3_and_headers_hold_no_content() -> None:
    payloads = [b"a", b"bb" * 700, noise(CHUNK_MAX), noise(CHUNK_MAX + 1)]
    data = b"".join(file(b"%d" % i, p) for i, p in enumerate(payloads)) + END
    parts = assert_exact(data)
    assert parts.content == payloads
    assert parts.kinds == [split.CHUNK] * 3 + [split.FILE]
    assert parts.ids == [blake3.blake3(p).digest() for p in payloads]
    assert parts.entries == 4
    assert len(parts.head) == len(data) - sum(map(len, payloads))
    assert parts.complete
    assert parts.lost is None


def test_batch_columns_are_its_rows() -> None:
    data = file(b"a", b"abc") + file(b"b", noise(CHUNK_MAX + 9)) + END
    batch = split.Splitter().feed(data, True)
    columns = zip(batch.offsets(), batch.lengths(), batch.kinds(), strict=True)
    assert [row[:3] for row in batch.rows()] == list(columns)
    assert b"".join(row[3] for row in batch.rows()) == batch.ids()
    assert len(batch.rows()) == batch.n == 2
    assert batch.used == len(data)


@pytest.mark.parametrize("size", [WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 16, 2 * WINDOW + 12345])
@pytest.mark.parametrize("compiled", [False, True])
def test_large_payloads_are_cut_by_their_bytes_alone(size: int, compiled: bool) -> None:
    payload = noise(size)
    if compiled:
        payload = pyc(size, payload[17:])
    data = file(b"big", payload) + file(b"next", b"n") + END
    parts = assert_exact(data, [600_000, 3 * CHUNK_MAX, 100, 2 * WINDOW] * 3, 777_777)
    body = payload[16:] if compiled else payload
    assert b"".join(parts.content) == body + b"n"
    if len(body) <= WINDOW:
        assert parts.kinds == [split.FILE, split.CHUNK]
    else:
        lengths = ffi.new("uint32_t[]", 2000)
        used = ffi.new("size_t *")
        n = lib.ls_chunk_cut(ffi.from_buffer(body), len(body), 1, lengths, 2000, used)
        assert [len(c) for c in parts.content[:-1]] == list(lengths[0:n])
        assert set(parts.kinds) == {split.CHUNK}


def test_a_large_payload_waits_for_its_window_without_being_copied() -> None:
    data = file(b"a", b"1") + file(b"big", noise(WINDOW)) + END
    splitter = split.Splitter()
    batch = splitter.feed(data[: WINDOW // 2])
    assert batch.used == 3 * 512
    assert splitter.feed(data[batch.used : WINDOW]).used == 0
    rest = data[batch.used :]
    batch = splitter.feed(rest)
    assert batch.rows()[0][:3] == (0, WINDOW, split.FILE)


def test_a_truncated_payload_is_a_payload_of_what_is_there() -> None:
    payload = noise(3 * CHUNK_MAX)
    for n, kinds in [(0, []), (1, [split.CHUNK]), (CHUNK_MAX + 1, [split.FILE])]:
        data = (header(b"f", len(payload)) + payload)[: 512 + n]
        parts = assert_exact(data, [100, 5000])
        assert parts.kinds == kinds
        assert not parts.complete


def _marks(data: bytes) -> list[tuple[int, int]]:
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_rebuilt_pyc_files_are_the_same_content() -> None:
    def layer(time: int) -> bytes:
        return b"".join(
            [
                file(b"a.py", b"print()"),
                file(b"empty", b""),
                file(b"a.pyc", pyc(time, b"one")),
                file(b"no-suffix", pyc(time, b"two")),
                file(b"dir", type=b"5"),
                file(b"x.py", b"x") * 200,
                file(b"b.pyc", pyc(time, noise(CHUNK_MAX))),
                END,
            ]
        )

    one, two = assert_exact(layer(1)), assert_exact(layer(2), [999, 1])
    assert one.ids == two.ids
    assert one.marks == two.marks
    assert _marks(one.marks) == [(1, 16), (0, 16), (200, 16)]


@pytest.mark.parametrize(
    ("payload", "split_off"),
    [
        (pyc(1), True),
        (pyc(1, b""), True),
        (pyc(1, b"")[:16], False),
        (b"\xa7\x0d\x0d\x0a\1\0\0\0" + bytes(8) + b"\x63...", True),
        (b"\xa7\x0d\x0d\x0a\3\0\0\0" + bytes(8) + b"\xe3...", True),
        (b"\xa7\x0d\x0d\x0a\4\0\0\0" + bytes(8) + b"\xe3...", False),
        (b"\xa7\x0d\x0d\x0a\0\0\0\1" + bytes(8) + b"\xe3...", False),
        (b"\xa7\x0d\x0d\x0a\0\0\0\0" + bytes(8) + b"\xe4...", False),
        (b"\xa7\x0d\x0a\x0d\0\0\0\0" + bytes(8) + b"\xe3...", False),
    ],
)
def test_pyc_is_known_by_its_content(payload: bytes, split_off: bool) -> None:
    parts = assert_exact(file(b"any name", payload) + END)
    assert parts.content == [payload[16:] if split_off else payload]


def test_what_is_not_understood_is_kept_literally() -> None:
    data = file(b"a", b"1") + b"no header at all".ljust(512, b"!") + file(b"b", b"2") + END
    parts = assert_exact(data, [10, 700])
    assert parts.content == [b"1"]
    assert parts.lost == (1024, "no tar header: wrong checksum")
    assert not parts.complete


def test_content_behind_zero_blocks_is_found() -> None:
    data = file(b"a", b"1") + END + file(b"b", b"2") + END + b"trailing bytes"
    parts = assert_exact(data, [513] * 9)
    assert parts.content == [b"1", b"2"]
    assert parts.complete


def test_sparse_maps_are_metadata() -> None:
    segments = [(i * 1000, noise(70, i)) for i in range(40)]
    joined = b"".join(data for _, data in segments)
    for made in (old_sparse(segments, 50_000), sparse_1_0(segments, 50_000)):
        parts = assert_exact(made + END, [333] * 20)
        assert parts.content == [joined]


def _simple() -> Parts:
    return take_apart(file(b"a", b"content") + file(b"b.pyc", pyc(1, b"long code")) + END)


def test_join_names_what_does_not_fit() -> None:
    cases = []
    parts = _simple()
    parts.content.append(b"more")
    cases.append((parts, "content is left over"))
    parts = _simple()
    del parts.content[-1]
    cases.append((parts, "content ends before the header stream"))
    parts = _simple()
    parts.content[-1] = parts.content[-1][:-1]
    cases.append((parts, "content ends before the header stream"))
    parts = _simple()
    parts.marks += b"\0\1"
    cases.append((parts, "marks are left over"))
    parts = _simple()
    parts.marks = b"\1"
    cases.append((parts, "the marks are damaged"))
    parts = _simple()
    parts.marks = b"\1\0"
    cases.append((parts, "the marks are damaged"))
    parts = _simple()
    parts.marks = b"\xff" * 12
    cases.append((parts, "the marks are damaged"))
    parts = _simple()
    parts.marks = b"\0\x7f"
    cases.append((parts, "a mark claims more than its payload"))
    parts = _simple()
    parts.head = parts.head[:-1520]
    cases.append((parts, "the header stream ends inside a payload's first bytes"))
    for parts, reason in cases:
        with pytest.raises(InvalidInputError) as caught:
            put_together(parts)
        assert caught.value.reason == reason
        assert caught.value.offset is not None


def test_join_refuses_slices_outside_their_buffer() -> None:
    for bad in [(b"abc", 0, 4), (b"abc", 4, 0), (b"abc", -1, 1), (b"abc", 2, -1)]:
        with pytest.raises(InvalidInputError):
            split.Joiner().run(b"", True, b"", True, [bad], 0, True, bytearray(10))
    joiner = split.Joiner()
    for _ in range(2):  # an error is final
        with pytest.raises(InvalidInputError):
            joiner.run(b"", True, b"", True, [(b"abc", 0, 3)], 4, True, bytearray(10))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(archives(), st.binary(max_size=6), st.lists(st.binary(max_size=900), max_size=6))
def test_join_of_parts_that_do_not_belong_together_ends(
    head: bytes, marks: bytes, content: list[bytes]
) -> None:
    parts = Parts()
    parts.head, parts.marks, parts.content = head, marks, content
    try:
        out = put_together(parts)
    except InvalidInputError:
        return
    assert len(out) == len(head) + sum(map(len, content))


def test_headers_alone_tell_where_content_goes() -> None:
    """Zeros in place of content, with the marks, scan to the same entries."""
    data = b"".join(file(b"%d.pyc" % i, pyc(i, noise(i))) for i in range(50)) + END
    parts = take_apart(data)
    parts.content = [bytes(len(c)) for c in parts.content]
    assert list(tar.scan([put_together(parts)])) == list(tar.scan([data]))


def test_padding_that_is_not_zero_comes_back() -> None:
    data = header(b"f", 5) + b"12345" + b"\xaa" * 507 + header(b"g", 1) + padded(b"1") + END
    assert assert_exact(data).content == [b"12345", b"1"]


class Batch:
    """What a splitter gave, to be changed."""

    def __init__(self, data: bytes) -> None:
        batch = split.Splitter().feed(data, True)
        assert batch.used == len(data)
        self.used, self.n = batch.used, batch.n
        self.head, self.marks = bytearray(batch.head), bytearray(batch.marks)
        self.pieces = ffi.new("ls_piece[]", self.n)
        ffi.memmove(self.pieces, batch.pieces, ffi.sizeof("ls_piece") * self.n)


def test_a_wrong_split_is_not_proven() -> None:
    """Whatever is changed in what the splitter gave: it does not join to what came."""
    data = (
        file(b"a", noise(3000))
        + file(b"b.pyc", pyc(1))
        + pax((b"path", b"long/" * 60))
        + file(b"c", noise(CHUNK_MAX + 9))
        + sparse_1_0([(512, b"def" * 300)], 5000)
        + old_sparse([(0, b"abc"), (9000, b"x" * 700)], 10_000)
        + file(b"d.pyc", pyc(2))
        + END
    )
    split.Prover().feed(data, Batch(data))  # type: ignore[arg-type]
    assert len(Batch(data).marks) == 4
    source = random.Random(2)
    changes = 0

    def refused(batch: Batch) -> None:
        nonlocal changes
        with pytest.raises(InvalidInputError, match="prover"):
            split.Prover().feed(data, batch)  # type: ignore[arg-type]
        changes += 1

    for at in (*range(0, 512, 7), *(source.randrange(len(Batch(data).head)) for _ in range(200))):
        batch = Batch(data)
        batch.head[at] ^= 1 << source.randrange(8)
        refused(batch)
    for name in ("head", "marks"):
        for change in (b"", b"\0", b"\1\1"):
            batch = Batch(data)
            kept = getattr(batch, name)
            setattr(batch, name, kept[:-1] if not change else kept + change)
            refused(batch)
    for at in range(4):
        for value in (0, 1, 3, 15, 17, 0x80):
            batch = Batch(data)
            if batch.marks[at] != value:
                batch.marks[at] = value
                refused(batch)
    for n in range(Batch(data).n):
        for field, by in (("offset", 1), ("offset", -1), ("length", 1), ("length", -1)):
            batch = Batch(data)
            setattr(batch.pieces[n], field, getattr(batch.pieces[n], field) + by)
            refused(batch)
    batch = Batch(data)
    batch.n -= 1
    refused(batch)
    assert changes > 250
