"""What the scanner makes of header fields, long names, pax records and sparse maps, one by one."""

from __future__ import annotations

import base64

import pytest
from tar_cases import (
    BLOCK,
    END,
    GNU,
    V7,
    base256,
    file,
    gnu_long,
    header,
    octal,
    padded,
    pax,
    sparse_1_0,
)
from tar_reading import entries, one, payload

from layerstore.core.tar import expand_sparse, scan
from layerstore.errors import InvalidInputError

# --- by hand: fields ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "attribute", "want"),
    [
        ({"mtime": base256(-1, 12)}, "mtime_sec", -1),
        ({"mtime": base256(-(1 << 62), 12)}, "mtime_sec", -(1 << 62)),
        ({"mtime": base256(1 << 40, 12)}, "mtime_sec", 1 << 40),
        ({"uid": base256((1 << 55) - 1, 8)}, "uid", (1 << 55) - 1),
        ({"uid": b"      7\0"}, "uid", 7),
        ({"uid": b"7       "}, "uid", 7),
        ({"uid": b"00000007"}, "uid", 7),
        ({"uid": b""}, "uid", 0),
        ({"mode": octal(0o100644, 8)}, "mode", 0o644),
        ({"type": b"4", "major": 8, "minor": base256(1 << 20, 8)}, "devminor", 1 << 20),
        ({"type": b"0", "major": 8}, "devmajor", 0),
        ({"type": b"\0"}, "type", "0"),
        ({"type": b"\0", "name": b"old/"}, "type", "5"),
        ({"type": b"7"}, "type", "7"),
        ({"type": b"Z"}, "type", "Z"),
        ({"prefix": b"pre/fix"}, "name", b"pre/fix/file"),
        ({"prefix": b"p", "magic": GNU}, "name", b"file"),
        ({"prefix": b"p", "magic": V7}, "name", b"file"),
        (
            {"prefix": b"p" * 131, "patch": {476: b"7" * 20, 508: b"tar\0"}},
            "name",
            b"p" * 131 + b"/file",
        ),
        ({"name": b"n" * 100, "prefix": b"p" * 155}, "name", b"p" * 155 + b"/" + b"n" * 100),
        ({"name": b"\xff\xfe"}, "name", b"\xff\xfe"),
        ({"name": b"../../etc"}, "name", b"../../etc"),
        ({"name": b""}, "name", b""),
        ({"link": b"l" * 100, "type": b"2"}, "linkname", b"l" * 100),
        ({"uname": b"u" * 32}, "uname", b"u" * 32),
        ({"uname": b"u", "magic": V7}, "uname", b""),
    ],
)
def test_header_fields(fields: dict[str, object], attribute: str, want: object) -> None:
    entry = one(header(**fields))  # type: ignore[arg-type]
    assert getattr(entry, attribute) == want
    assert not entry.problem


def test_signed_checksums_are_accepted() -> None:
    block = header(b"\xe4\xf6\xfc" * 20, signed=True)
    assert block != header(b"\xe4\xf6\xfc" * 20)
    assert one(block).name == b"\xe4\xf6\xfc" * 20


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (header(size=b"12x"), "tar header with an invalid size"),
        (header(size=b"8"), "tar header with an invalid size"),
        (header(size=b"-1"), "tar header with an invalid size"),
        (header(size=base256(-1, 12)), "tar header with an invalid size"),
        (header(size=base256(1 << 63, 12)), "tar header with an invalid size"),
        (header(size=base256(1 << 90, 12)), "tar header with an invalid size"),
        (header(size=base256(-1, 12), type=b"L"), "tar header with an invalid size"),
        (header()[:148] + b"0000000\0" + header()[156:], "no tar header: wrong checksum"),
        (b"\1" * BLOCK, "no tar header: wrong checksum"),
        (header(size=2_000_000, type=b"x"), "pax records of one entry above 1 MiB"),
    ],
)
def test_what_cannot_be_understood_is_named(block: bytes, reason: str) -> None:
    data = file(b"before", b"1") + block + file(b"behind", b"2") + END
    found = scan([data])
    assert next(found).name == b"before"
    with pytest.raises(InvalidInputError) as caught:
        next(found)
    assert (caught.value.offset, caught.value.reason) == (1024, reason)


# --- by hand: long names and pax ---------------------------------------------------------------


def test_pax_records_win_for_the_next_entry_only() -> None:
    data = (
        pax(
            (b"path", b"p" * 70_000),
            (b"size", b"3"),
            (b"uid", b"123456789012"),
            (b"mtime", b"-1.25"),
            (b"uname", b"\xc3\xa4"),
        )
        + header(b"short", 3)
        + padded(b"abc")
        + file(b"next", b"n")
        + END
    )
    first, second = entries(data)
    assert (first.name, first.size, first.uid) == (b"p" * 70_000, 3, 123456789012)
    assert first.mtime_ns == -1_250_000_000
    assert first.uname == b"\xc3\xa4"
    assert payload(data, first) == b"abc"
    assert (second.name, second.uid, second.mtime_ns, second.pax) == (b"next", 0, 0, b"")
    assert not first.problem


def test_a_pax_size_is_not_applied_to_the_long_name_that_follows_it() -> None:
    """node-tar CVE-2026-53655: the size of L is its own."""
    data = pax((b"size", b"4")) + gnu_long(b"n" * 200) + header(b"f", 4) + padded(b"abcd") + END
    (entry,) = entries(data)
    assert (entry.name, entry.size, payload(data, entry)) == (b"n" * 200, 4, b"abcd")


def test_a_pax_size_wins_over_a_header_that_disagrees_and_is_a_problem() -> None:
    """CVE-2025-62518 and its kin: a header size that makes other readers step elsewhere."""
    inner = header(b"smuggled")
    data = pax((b"size", b"512")) + header(b"outer", 0) + inner + file(b"next") + END
    assert [(e.name, e.problem) for e in entries(data)] == [(b"outer", True), (b"next", False)]
    huge = pax((b"size", b"%d" % (1 << 33))) + header(b"huge", 0) + bytes(512)
    assert [(e.size, e.problem) for e in entries(huge)] == [(1 << 33, False)]


def test_global_records_lie_under_local_ones() -> None:
    data = (
        pax((b"uname", b"all"), (b"mtime", b"7"), (b"comment", b"c"), type=b"g")
        + file(b"a")
        + pax((b"uname", b"own"), (b"mtime", b""))
        + header(b"b", mtime=9)
        + file(b"c")
        + END
    )
    a, b, c = entries(data)
    assert [e.uname for e in (a, b, c)] == [b"all", b"own", b"all"]
    assert [e.mtime_sec for e in (a, b, c)] == [7, 9, 7]
    assert list(a.records()) == [(b"uname", b"all"), (b"mtime", b"7"), (b"comment", b"c")]
    assert [v for k, v in b.records() if k == b"uname"] == [b"all", b"own"]
    assert a.pax_global is c.pax_global
    assert not any(e.problem for e in (a, b, c))


@pytest.mark.parametrize("key", [b"size", b"path", b"linkpath", b"GNU.sparse.major"])
def test_global_records_that_readers_treat_differently_are_not_applied(key: bytes) -> None:
    entry = one(pax((key, b"1"), type=b"g") + file(b"name", b"abc"))
    assert (entry.name, entry.size, entry.problem) == (b"name", 3, True)


def test_many_and_long_global_records_are_bounded() -> None:
    piece = pax((b"comment", b"c" * 30_000), type=b"g")
    got = entries(piece + file(b"a") + piece + file(b"b") + piece + file(b"c") + END)
    assert [e.problem for e in got] == [False, False, True]
    assert [len(e.pax_global) // 30_000 for e in got] == [1, 2, 2]
    entry = one(pax((b"uname", b"u" * 300), type=b"g") + file())
    assert (entry.uname, entry.problem) == (b"", True)


@pytest.mark.parametrize("kind", [b"L", b"K"])
def test_gnu_long_names(kind: bytes) -> None:
    for n, problem in [(0, False), (101, False), (65_536, False), (200_000, True)]:
        entry = one(gnu_long(b"n" * n, kind) + header(b"short", type=b"2", link=b"short"))
        got = entry.name if kind == b"L" else entry.linkname
        assert got == b"n" * min(n, 131_072)
        assert entry.problem is problem


def test_extended_attributes_in_both_spellings() -> None:
    entry = one(
        pax(
            (b"LIBARCHIVE.xattr.user.b%20c", base64.b64encode(b"\0\1").rstrip(b"=")),
            (b"LIBARCHIVE.xattr.user.a", base64.b64encode(b"second")),
            (b"LIBARCHIVE.xattr.user.bad", b"?"),
            (b"SCHILY.xattr.user.a", b"a=\n\0b"),
            (b"SCHILY.xattr.user.empty", b""),
        )
        + file()
    )
    assert entry.xattrs == {"user.a": b"a=\n\0b", "user.b c": b"\0\1", "user.empty": b""}


PROBLEMS = {
    "path twice": pax((b"path", b"a"), (b"path", b"b")) + file(),
    "size twice": pax((b"size", b"0"), (b"size", b"0")) + file(),
    "two pax headers": pax((b"k", b"v")) + pax((b"k", b"w")) + file(),
    "two long names": gnu_long(b"a") + gnu_long(b"b") + file(),
    "long name and another path": gnu_long(b"a") + pax((b"path", b"b")) + file(),
    "NUL in a path": pax((b"path", b"a\0b")) + file(),
    "NUL in a linkpath": pax((b"linkpath", b"a\0b")) + header(type=b"2"),
    "size that is no number": pax((b"size", b"0x1")) + file(),
    "size that is negative": pax((b"size", b"-1")) + file(),
    "size above 63 bits": pax((b"size", b"9" * 19)) + file(),
    "mtime that is no number": pax((b"mtime", b"now")) + file(),
    "record with a wrong length": header(b"pax", 9, b"x") + padded(b"99 a=b\n..") + file(),
    "record without a newline": header(b"pax", 7, b"x") + padded(b"7 a=bcd") + file(),
    "record without a key": header(b"pax", 5, b"x") + padded(b"5 =b\n") + file(),
    "record without an equals sign": header(b"pax", 5, b"x") + padded(b"5 ab\n") + file(),
    "mode that is no number": header(mode=b"rwx"),
    "negative uid": header(uid=base256(-1, 8)),
    "size behind a NUL": header(size=b"\0 1") + padded(b"x"),
    "base-256 that Python does not read": header(uid=b"\x81" + bytes(7)),
    "base-256 above 63 bits": header(mtime=base256(1 << 64, 12)),
    "a file named as a directory": file(b"dir/"),
    "an old directory with a payload": header(b"dir/", 5, b"\0"),
    "sparse in a foreign dialect": header(type=b"S", patch={483: octal(0, 12)}),
    "sparse map out of order": sparse_1_0([(100, b"a"), (50, b"b")], 200),
    "sparse map past the end": sparse_1_0([(100, b"a")], 50),
    "sparse map that covers too little": header(
        size=5, type=b"S", magic=GNU, patch={386: octal(0, 12) + octal(3, 12), 483: octal(9, 12)}
    )
    + padded(b"12345"),
    "sparse of an unknown version": pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"))
    + file(),
    "sparse without a map": pax((b"GNU.sparse.size", b"5")) + file(),
    "sparse without a size": pax((b"GNU.sparse.map", b"0,0")) + file(),
    "sparse map with an odd count": pax((b"GNU.sparse.map", b"0,0,1"), (b"GNU.sparse.size", b"9"))
    + file(),
    "sparse numbytes without offset": pax(
        (b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.numbytes", b"0")
    )
    + file(),
}


@pytest.mark.parametrize("data", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_contradicting_headers_are_a_problem(data: bytes) -> None:
    entry, after = entries(data + file(b"after") + END)
    assert entry.problem
    assert (after.name, after.problem) == (b"after", False)


# --- by hand: sparse ---------------------------------------------------------------------------


def test_a_pax_1_0_map_that_breaks_ends_at_its_block() -> None:
    for bad in [b"2\n0\n", b"1\n0\n-5\n", b"\n", b"x", b"9" * 30 + b"\n"]:
        body = padded(bad) + b"rest"
        data = (
            pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
            + file(b"s", body)
            + file(b"next")
            + END
        )
        first, second = entries(data)
        assert first.problem
        assert (first.stored_size, data[first.data_offset :][:4]) == (4, b"rest")
        assert second.name == b"next"


def test_a_pax_1_0_map_over_several_blocks_and_up_to_the_end() -> None:
    segments = [(i * 10, b"%03d" % i) for i in range(400)]
    data = sparse_1_0(segments, 5000) + END
    (entry,) = entries(data)
    assert entry.sparse_map == tuple((at, 3) for at, _ in segments)
    content = payload(data, entry)
    assert len(content) == 5000
    assert content[100:103] == b"010"
    (entry,) = entries(sparse_1_0([], 77) + END)
    assert (entry.size, entry.stored_size, entry.sparse_map, entry.problem) == (77, 0, (), False)


def test_a_map_of_more_segments_than_fit_is_a_problem() -> None:
    data = sparse_1_0([(i, b"") for i in range(66_000)], 66_000) + file(b"next") + END
    first, second = entries(data)
    assert first.problem
    assert first.sparse_map is not None
    assert len(first.sparse_map) == 65_536
    assert not second.problem


def test_expand_sparse_is_bounded_and_exact() -> None:
    pieces = expand_sparse([(1 << 40, 2)], 1 << 41, [b"a", b"b"])
    assert all(len(next(pieces)) <= 1 << 18 for _ in range(10))
    assert b"".join(expand_sparse([(2, 1), (3, 3)], 8, [b"ab", b"", b"cd"])) == b"\0\0abcd\0\0"
    assert b"".join(expand_sparse([], 0, [])) == b""
    for bad_map, size, stored in [
        ([(5, 1)], 5, b"a"),
        ([(3, 1), (2, 1)], 9, b"ab"),
        ([(0, 2)], 9, b"a"),
        ([(0, 2)], 9, b"abc"),
    ]:
        with pytest.raises(InvalidInputError):
            list(expand_sparse(bad_map, size, [stored]))
