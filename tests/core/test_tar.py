"""What the scanner says of a tar is what tarfile and GNU tar say; the bytes are told exactly."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tar_cases import (
    BLOCK,
    END,
    archives,
    file,
    header,
    pax,
    record,
    repaired,
)
from tar_reading import entries, one, payload

from layerstore.core import tar
from layerstore.core.tar import TarEntry, TarScanner, looks_like_tar, scan
from layerstore.errors import InvalidInputError

# --- tarfile as the oracle ---------------------------------------------------------------------


def _infos() -> list[tuple[tarfile.TarInfo, bytes]]:
    out = []

    def add(name: str, content: bytes = b"", **fields: object) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in fields.items():
            setattr(info, key, value)
        out.append((info, content))

    add(
        "plain.txt",
        b"hello",
        mode=0o4755,
        uid=1000,
        gid=100,
        uname="user",
        gname="users",
        mtime=1e9,
    )
    add("empty")
    add("x" * 99, b"1" * 512)
    add("d" * 60 + "/" + "n" * 60, b"2" * 513)
    add("dir/", type=tarfile.DIRTYPE, mode=0o755)
    add("link", type=tarfile.SYMTYPE, linkname="../plain.txt")
    add("hard", type=tarfile.LNKTYPE, linkname="plain.txt")
    add("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    add("sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0)
    add("pipe", type=tarfile.FIFOTYPE)
    add("contiguous", b"3", type=tarfile.CONTTYPE)
    return out


def _long_infos() -> list[tuple[tarfile.TarInfo, bytes]]:
    out = _infos()
    long = tarfile.TarInfo("l" * 300 + "/" + "m" * 200)
    long.size, long.uid, long.mtime = 3, 1 << 30, -5
    out.append((long, b"abc"))
    link = tarfile.TarInfo("wide-\u00e4\u6f22")
    link.type, link.linkname = tarfile.SYMTYPE, "t" * 400
    out.append((link, b""))
    return out


def _write(format: int, infos: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, content in infos:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def assert_as_tarfile(data: bytes) -> None:
    got = list(scan(io.BytesIO(data)))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        want = archive.getmembers()
        assert len(got) == len(want)
        for entry, info in zip(got, want, strict=True):
            assert entry.name.decode().rstrip("/") == info.name
            assert entry.linkname.decode() == info.linkname
            assert entry.type == info.type.decode().replace("S", "0")
            assert (entry.mode, entry.uid, entry.gid) == (info.mode, info.uid, info.gid)
            assert (entry.uname.decode(), entry.gname.decode()) == (info.uname, info.gname)
            assert entry.mtime_sec + entry.mtime_nsec / 1e9 == pytest.approx(info.mtime, abs=1e-6)
            assert (entry.devmajor, entry.devminor) == (info.devmajor, info.devminor)
            assert entry.header_offset == info.offset
            if info.isfile():
                content = archive.extractfile(info)
                assert content is not None
                assert payload(data, entry) == content.read()
                assert entry.size == info.size
            assert not entry.problem
            assert not entry.after_end


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tarfile_means_the_same(format: int) -> None:
    ustar = format == tarfile.USTAR_FORMAT
    assert_as_tarfile(_write(format, _infos() if ustar else _long_infos()))


def test_pax_times_and_attributes() -> None:
    info = tarfile.TarInfo("f")
    info.mtime = 1350244992.023960108
    info.pax_headers = {"SCHILY.xattr.user.a": "value", "comment": "x"}
    data = _write(tarfile.PAX_FORMAT, [(info, b"")])
    entry = one(data[: -len(data) % 10240 or len(data)])
    assert entry.xattrs == {"user.a": b"value"}
    assert entry.mtime_sec == 1350244992
    assert_as_tarfile(data)


names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\n"), min_size=1, max_size=150
).filter(lambda n: n.strip("/") == n and n.strip("./") != "")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            names,
            st.binary(max_size=1200),
            st.integers(0, 0o7777),
            st.integers(0, 1 << 33),
            st.integers(-(1 << 33), 1 << 36),
        ),
        max_size=5,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_tar_that_tarfile_writes_means_the_same(
    files: list[tuple[str, bytes, int, int, int]], format: int
) -> None:
    infos = []
    for name, content, mode, owner, when in files:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uid, info.mtime = len(content), mode, owner, when
        infos.append((info, content))
    assert_as_tarfile(_write(format, infos))


# --- GNU tar as the oracle ---------------------------------------------------------------------


def _gnu_tar(*args: str, cwd: Path) -> bytes:
    return subprocess.run(["tar", *args], cwd=cwd, check=True, capture_output=True).stdout


def _sparse_file(path: Path, segments: int) -> None:
    with path.open("wb") as f:
        for i in range(segments):
            f.seek(i * (1 << 17) + 4096)
            f.write(bytes([i + 1]) * (4096 + i))
        f.truncate(segments * (1 << 17) + 777)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "short").write_bytes(b"content")
    (root / ("n" * 90)).write_bytes(os.urandom(1000))
    (root / "sub").mkdir()
    (root / "sub" / "empty").touch()
    (root / "sub" / "link").symlink_to("../short")
    os.link(root / "short", root / "sub" / "twin")
    os.mkfifo(root / "sub" / "pipe")
    os.utime(root / "short", ns=(0, 1_600_000_000_123_456_789))
    return root


@pytest.fixture(scope="module")
def long_tree(tree: Path) -> Path:
    deep = tree / ("d" * 80) / ("e" * 90)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"deep")
    (tree / "far").symlink_to("t" * 250)
    return tree


def assert_as_on_disk(data: bytes, root: Path, *, nanoseconds: bool = False) -> None:
    seen = {}
    for entry in scan([data]):
        path = root / os.fsdecode(entry.name)
        disk = path.lstat()
        assert entry.mode == disk.st_mode & 0o7777
        assert (entry.uid, entry.gid) == (disk.st_uid, disk.st_gid)
        assert entry.mtime_sec == disk.st_mtime_ns // 10**9
        if nanoseconds:
            assert entry.mtime_ns == disk.st_mtime_ns
        kinds = {"0": path.is_file, "5": path.is_dir, "2": path.is_symlink, "6": path.is_fifo}
        if entry.type == "1":
            assert os.fsdecode(entry.linkname) in seen
        else:
            assert kinds[entry.type]()
        if entry.type == "0":
            assert entry.size == disk.st_size
            assert payload(data, entry) == path.read_bytes()
        if entry.type == "2":
            assert os.fsdecode(entry.linkname) == str(path.readlink())
        assert not entry.problem
        seen[os.fsdecode(entry.name).rstrip("/")] = entry
    want = {str(p.relative_to(root)) for p in root.rglob("*")} | {"."}
    assert {os.path.normpath(name) for name in seen} == want


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tar_of_a_tree_in_every_format(format: str, tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    _gnu_tar("--exclude=far", "--exclude=ddd*", "-cf", str(tmp_path / "t"), ".", cwd=tree)
    root.mkdir()
    _gnu_tar("-xf", str(tmp_path / "t"), cwd=root)
    if format == "v7":
        (root / "sub" / "pipe").unlink()
    data = _gnu_tar(f"--format={format}", "-cf", "-", ".", cwd=root)
    assert_as_on_disk(data, root, nanoseconds=format == "posix")


@pytest.mark.parametrize("format", ["oldgnu", "gnu", "posix"])
def test_gnu_tar_of_long_names(format: str, long_tree: Path) -> None:
    data = _gnu_tar(f"--format={format}", "-cf", "-", ".", cwd=long_tree)
    assert_as_on_disk(data, long_tree)


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["--format=gnu"], 1),
        (["--format=oldgnu"], 1),
        (["--format=posix", "--sparse-version=0.0"], 2),
        (["--format=posix", "--sparse-version=0.1"], 3),
        (["--format=posix", "--sparse-version=1.0"], 4),
    ],
)
@pytest.mark.parametrize("segments", [0, 1, 4, 5, 60])
def test_every_sparse_form_expands_to_the_file(
    args: list[str], kind: int, segments: int, tmp_path: Path
) -> None:
    _sparse_file(tmp_path / "holes", segments)
    data = _gnu_tar(*args, "--sparse", "-cf", "-", "holes", cwd=tmp_path)
    assert_as_tarfile(data)
    (entry,) = entries(data)
    content = (tmp_path / "holes").read_bytes()
    assert (entry.name, entry.type, entry.size) == (b"holes", "0", len(content))
    assert payload(data, entry) == content
    assert entry.stored_size < len(content)
    assert entry.sparse_map is not None


def test_extended_attributes_of_gnu_tar(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.touch()
    value = b"\0binary\n=value"
    try:
        os.setxattr(target, "user.some=name", b"v")
        os.setxattr(target, "user.plain", value)
    except OSError:  # a filesystem without them: GNU tar cannot be asked, the records can be made
        assert one(pax((b"SCHILY.xattr.user.plain", value)) + file()).xattrs["user.plain"] == value
        return
    data = _gnu_tar("--xattrs", "--format=posix", "-cf", "-", "f", cwd=tmp_path)
    (entry,) = entries(data)
    assert entry.xattrs["user.plain"] == value


def _gnu_listing(data: bytes, tmp_path: Path) -> list[str]:
    path = tmp_path / "listed.tar"
    path.write_bytes(data)
    done = subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_types_without_payload_have_none_whatever_their_size_says(
    kind: bytes, tmp_path: Path
) -> None:
    """Python agrees for all; GNU tar for hard links (for others it skips what POSIX says is not
    there, when it lists)."""
    data = header(b"odd", 1024, kind, link=b"target") + file(b"next", b"n") + END
    got = entries(data)
    assert [(e.name, e.size, e.stored_size, e.problem) for e in got] == [
        (b"odd", 0, 0, False),
        (b"next", 1, 1, False),
    ]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["odd", "next"]
    if kind == b"1":
        assert _gnu_listing(data, tmp_path) == ["odd", "next"]


def test_a_pax_size_gives_no_payload_to_a_link_but_is_a_problem() -> None:
    """POSIX allows it (`pax -o linkdata`), GNU tar reads it so; Go and Python do not."""
    data = pax((b"size", b"512")) + header(b"odd", 512, b"1", link=b"t") + file(b"next", b"n") + END
    got = entries(data)
    assert [(e.name, e.stored_size, e.problem) for e in got] == [
        (b"odd", 0, True),
        (b"next", 1, False),
    ]


# --- the end -----------------------------------------------------------------------------------


def test_the_end_is_where_other_readers_stop(tmp_path: Path) -> None:
    for middle in (bytes(BLOCK), END, bytes(5 * BLOCK)):
        data = file(b"a", b"1") + middle + file(b"b", b"2") + END
        assert [e.name for e in scan([data])] == [b"a"]
        assert _gnu_listing(data, tmp_path) == ["a"]
        both = list(scan([data], beyond_end=True))
        assert [(e.name, e.after_end) for e in both] == [(b"a", False), (b"b", True)]


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (b"", True),
        (END, True),
        (file(b"a", b"1") + END, True),
        (file(b"a", b"1") + END + b"trailing garbage" * 99, True),
        (file(b"a", b"1"), True),
        (header(b"a", 1) + b"1", True),
        (header(b"a", 5) + b"1", False),
        (header(b"a", 5), False),
        (header(b"a")[:300], False),
        (file(b"a") + pax((b"path", b"b")), False),
        (file(b"a") + bytes(BLOCK), True),
        (file(b"a") + bytes(100), False),
        (file(b"a") + bytes(BLOCK) + b"garbage" * 99, False),
    ],
)
def test_a_tar_is_whole_or_not(data: bytes, complete: bool) -> None:
    scanner = TarScanner()
    scanner.feed(data, final=True)
    assert scanner.complete is complete
    if complete:
        list(scan([data]))
    else:
        with pytest.raises(InvalidInputError) as caught:
            list(scan([data]))
        assert caught.value.offset is not None


def test_looks_like_tar() -> None:
    assert looks_like_tar(header())
    assert looks_like_tar(memoryview(header() + b"more"))
    assert looks_like_tar(pax((b"a", b"b")))
    assert not looks_like_tar(header()[:511])
    assert not looks_like_tar(bytes(1024))
    assert not looks_like_tar(b'{"schemaVersion": 2}' * 50)


# --- any bytes ---------------------------------------------------------------------------------


def _covered(data: bytes, sizes: list[int]) -> tuple[list[TarEntry], bytes, bytes, tar.Lost | None]:
    """Feeds in pieces; checks that the events cover each piece without gap or overlap."""
    scanner = TarScanner()
    found: list[TarEntry] = []
    meta, stored = bytearray(), bytearray()
    at = 0
    while at < len(data) or not at:
        piece = data[at : at + (sizes.pop() if sizes else len(data) + 1)]
        end = at + len(piece) >= len(data)
        inside = 0
        for kind, offset, length, entry in scanner.feed_events(piece, end):
            if entry is not None:
                assert kind == tar.ENTRY
                assert entry.data_offset == at + inside
                found.append(entry)
                continue
            assert offset == inside
            inside += length
            (meta if kind == tar.META else stored).extend(piece[offset:inside])
        assert inside == len(piece)
        at += len(piece)
        if end:
            break
    return found, bytes(meta), bytes(stored), scanner.lost


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(archives(), st.lists(st.integers(1, 1500), max_size=30), st.booleans())
def test_what_is_found_does_not_depend_on_how_it_is_fed(
    data: bytes, sizes: list[int], repair: bool
) -> None:
    if repair:
        data = repaired(data)
    whole = _covered(data, [])
    assert _covered(data, sizes) == whole
    assert whole[0] == list(scan([data], strict=False, beyond_end=True))
    assert sum(e.stored_size for e in whole[0]) >= len(whole[2])
    for entry in whole[0]:
        assert 0 <= entry.size < 1 << 63
        assert entry.mode <= 0o7777
        assert entry.mtime_nsec < 10**9
        assert isinstance(entry.xattrs, dict)
        if entry.sparse_map is not None and not entry.problem and entry.size < 1 << 20:
            stored = data[entry.data_offset : entry.data_offset + entry.stored_size]
            if len(stored) == entry.stored_size:
                assert len(payload(data, entry)) == entry.size


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000), st.lists(st.integers(1, 700), max_size=9))
def test_any_bytes_scan(data: bytes, sizes: list[int]) -> None:
    _covered(data, sizes)


def test_hostile_pax_records_never_crash_the_python_side() -> None:
    entry = one(file())
    bad: list[bytes] = [
        b"5",
        b"5 ",
        b"0 a=b\n",
        b"99999999999 a=b\n",
        b"7 a=bc",
        b"3 =\n",
        b"x a=b\n",
    ]
    for data in bad:
        assert list(dataclasses.replace(entry, pax=data).records()) == []
    good = record(b"a", b"b")
    assert list(dataclasses.replace(entry, pax=good + bad[0]).records()) == [(b"a", b"b")]


def test_a_large_layer_scans_in_time() -> None:
    """97,000 entries, as the corpus's largest layer has, in about a second of one core."""
    data = b"".join(file(b"usr/lib/file%d" % (i % 10), b"x" * 600) for i in range(1000))

    def stream() -> Iterable[bytes]:
        for _ in range(97):
            yield data
        yield END

    start = time.process_time()
    assert sum(1 for _ in scan(stream())) == 97_000
    assert time.process_time() - start < 10, "ten times slower than it should be"
