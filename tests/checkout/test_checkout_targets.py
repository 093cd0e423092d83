"""The target: what may lie there, what it can hold, who may write it, what an early end leaves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores
from checkout_trees import (
    BLOCK,
    CHAR,
    DIR,
    FIFO,
    LINK,
    SYMLINK,
    Item,
    checkout,
    put_layers,
    snapshot,
    tar,
)

from layerstore.errors import BusyError, InvalidInputError, LayerstoreError, StoreFullError
from layerstore.layers import checkout as rooms
from layerstore.layers.target import MARK, Target

ITEMS = [
    Item("./", DIR, mode=0o751, uid=3, mtime=77),
    Item("d", DIR, mode=0o500, uid=1000, gid=1000),
    Item("d/f", data=b"x" * 100, mode=0o400, uid=1000, gid=1000, pax={"SCHILY.xattr.user.k": "v"}),
    Item("d/e", DIR, mode=0o000, uid=1000, gid=1000),
    Item("d/e/g", mode=0o000, uid=70_000),
    Item("su", data=b"s", mode=0o4755, uid=5),
    Item("again", LINK, link="d/f"),
    Item("link", SYMLINK, link="d/f", uid=9),
    Item("pipe", FIFO, mode=0o640),
    Item("null", CHAR, device=(1, 3), mode=0o666),
    Item("disk", BLOCK, device=(7, 0), uid=2),
    Item("null2", LINK, link="null"),
]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with stores.opened(str(tmp_path_factory.mktemp("targets") / "store")) as opened:
        yield opened


@pytest.fixture(scope="module")
def layers(content):
    return put_layers(content, [tar(ITEMS)])


@contextlib.contextmanager
def tmpfs(path: Path, options: str) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_target_that_is_not_empty_is_refused_and_stays(content, layers, tmp_path):
    (tmp_path / "kept").write_text("mine")
    before = snapshot(tmp_path, inodes=True)
    with pytest.raises(InvalidInputError, match="not empty"):
        checkout(content, layers, tmp_path)
    assert snapshot(tmp_path, inodes=True) == before
    with pytest.raises(InvalidInputError, match="not a directory"):
        checkout(content, layers, tmp_path / "kept")
    with pytest.raises(FileNotFoundError):
        checkout(content, layers, tmp_path / "no/such")


def test_a_read_only_target_is_refused(content, layers, tmp_path):
    with tmpfs(tmp_path / "ro", "ro") as ro, pytest.raises(OSError, match="Read-only"):
        checkout(content, layers, ro)


def test_a_target_that_others_own_is_refused_and_named(public):
    """Whoever may not write there gets the error before anything is made."""
    store, digest = public
    target = store.parent / "theirs"
    target.mkdir(mode=0o755)
    here = Path(__file__).parent
    path = f"{here}:{here.parent}:{here.parents[1]}"
    for where in (target, target / "new"):
        done = subprocess.run(
            [sys.executable, "-c", ORDINARY, store, digest, where, path, ""],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"PermissionError: [Errno 13] Permission denied: '{where}" in done.stderr
    assert os.listdir(target) == []


def test_a_full_target_is_an_error_that_names_the_entry_and_leaves_nothing(content, tmp_path):
    items = [Item(f"f{n}", data=os.urandom(100_000)) for n in range(30)]
    digests = put_layers(content, [tar(items)])
    with tmpfs(tmp_path / "small", "size=1m") as small:
        with pytest.raises(StoreFullError, match=r"no space left for .*/f[0-9]+"):
            checkout(content, digests, small / "out")
        assert os.listdir(small) == []
        with pytest.raises(StoreFullError):
            checkout(content, digests, small)
        assert os.listdir(small) == []
        subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
        assert checkout(content, digests, small).entries == 31


def test_without_inodes_left_is_no_space_too(content, tmp_path):
    digests = put_layers(content, [tar([Item(f"d{n}", DIR) for n in range(40)])])
    with tmpfs(tmp_path / "few", "nr_inodes=20") as few:
        with pytest.raises(StoreFullError):
            checkout(content, digests, few)
        assert os.listdir(few) == []


def test_a_filesystem_without_xattrs_is_an_error_or_a_note(content, layers, tmp_path):
    where = tmp_path / "ramfs"
    where.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", where], check=True)
    try:
        with pytest.raises(OSError, match="not supported") as caught:
            checkout(content, layers, where / "out")
        assert "d/f at byte" in caught.value.__notes__[0]
        assert not (where / "out").exists()
        report = checkout(content, layers, where / "out", ownership="try")
        assert [n for n in report.notes if "extended attributes" in n]
        assert (where / "out/d/f").stat().st_uid == 1000
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def test_another_filesystem_than_the_stores_is_fine(content, layers, tmp_path):
    checkout(content, layers, tmp_path / "here")
    with tmpfs(tmp_path / "there", "size=16m") as there:
        checkout(content, layers, there / "out")
        assert snapshot(there / "out") == snapshot(tmp_path / "here")


def test_a_target_that_inherits_gives_nothing_on(content, layers, tmp_path):
    """Default ACLs, a set-group-id directory and the umask do not show in what is made."""
    checkout(content, layers, tmp_path / "plain")
    heir = tmp_path / "heir"
    heir.mkdir()
    os.chown(heir, 0, 1234)
    os.chmod(heir, 0o2777)
    acl = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
        for tag, perm, who in (
            (1, 7, 2**32 - 1), (2, 7, 99), (4, 7, 2**32 - 1), (16, 7, 2**32 - 1), (32, 0, 2**32 - 1)
        )
    )  # fmt: skip
    os.setxattr(heir, "system.posix_acl_default", acl)
    old = os.umask(0o077)
    try:
        checkout(content, layers, heir)
    finally:
        os.umask(old)
    assert snapshot(heir) == snapshot(tmp_path / "plain")


# ---- ended early --------------------------------------------------------------------------------

WORKER = """
import sys, layerstore
from layerstore import Progress
with layerstore.open(sys.argv[1]) as store:
    def show(p):
        print(p.done, flush=True)
    store.checkout(sys.argv[2], sys.argv[3], progress=show)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A store with an image whose checkout takes a while."""
    path = tmp_path_factory.mktemp("big") / "store"
    items = [Item(f"d{n % 50}/f{n}", data=os.urandom(20_000)) for n in range(4000)]
    with stores.opened(str(path)) as content:
        stores.put_image(content, "big:1", [(tar(items), stores.TAR)])
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_ends_midway_leaves_a_mark_and_the_next_starts_anew(big, tmp_path, number):
    target = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER, big, "big:1", target],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) > 1_000_000:
            break
    child.send_signal(number)
    child.wait()
    child.stdout.close()
    assert child.returncode != 0
    assert (target / MARK).exists()
    left = len(list(target.rglob("*")))
    assert 1 < left < 4052
    (target / "d0").mkdir(exist_ok=True)
    (target / "d0/stale").write_text("of the one that died")
    import layerstore

    with layerstore.open(big) as store:
        report = store.checkout("big:1", target)
        fresh = store.checkout("big:1", tmp_path / "fresh")
    assert [n for n in report.notes if "unfinished" in n]
    assert fresh.notes == ()
    assert snapshot(target) == snapshot(tmp_path / "fresh")
    assert not (target / MARK).exists()


def test_two_checkouts_into_one_directory_do_not_mix(content, layers, tmp_path):
    held = Target(str(tmp_path / "out"))
    try:
        with pytest.raises(BusyError, match="another process"):
            checkout(content, layers, tmp_path / "out")
    finally:
        held.close()
    assert [n for n in checkout(content, layers, tmp_path / "out").notes if "unfinished" in n]


class Enough(Exception):
    pass


def test_a_progress_callback_that_raises_leaves_nothing(content, tmp_path):
    digests = put_layers(content, [tar([Item(f"f{n}", data=b"x" * 9) for n in range(9000)])])

    def stop(progress: object) -> None:
        raise Enough

    with pytest.raises(Enough):
        rooms.checkout(content, [rooms.Layer(digests[0])], str(tmp_path / "out"), progress=stop)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir(mode=0o750)
    with pytest.raises(Enough):
        rooms.checkout(content, [rooms.Layer(digests[0])], str(tmp_path / "out"), progress=stop)
    assert os.listdir(tmp_path / "out") == []
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_nobody_else_looks_on_while_it_is_written(content, tmp_path):
    """What is set-id for an owner to come lies there for a moment before it has its owner."""
    digests = put_layers(content, [tar([Item("./", DIR), *(Item(f"f{n}") for n in range(900))])])
    target = tmp_path / "out"
    target.mkdir(mode=0o755)
    modes = set()

    def look(progress: object) -> None:
        modes.add(target.stat().st_mode & 0o7777)

    rooms.checkout(content, [rooms.Layer(digests[0])], str(target), progress=look)
    assert modes == {0o700, 0o644}
    assert target.stat().st_mode & 0o7777 == 0o644  # the root's entry says so


def test_a_link_in_the_marks_place_is_not_followed(content, layers, tmp_path):
    target, outside = tmp_path / "out", tmp_path / "outside"
    target.mkdir()
    for there in (False, True):
        if there:
            outside.write_text("mine")
        else:
            (target / MARK).symlink_to(outside)
        with pytest.raises(OSError, match="symbolic links"):
            checkout(content, layers, target)
        assert outside.exists() == there
    assert outside.read_text() == "mine"


def test_an_image_that_has_the_mark_in_it_is_refused(content, tmp_path):
    digests = put_layers(content, [tar([Item(MARK, data=b"finished? never")])])
    with pytest.raises(InvalidInputError, match=MARK):
        checkout(content, digests, tmp_path / "out")


# ---- without root ---------------------------------------------------------------------------------

ORDINARY = """
import os, sys
sys.path[:0] = sys.argv[4].split(":")
import stores
from checkout_trees import checkout, unpack_all
from pathlib import Path
import ctypes, isal.isal_zlib, zstandard  # they may lie in a home that others cannot enter
os.setgroups([]); os.setgid(4321); os.setuid(4321)
with stores.opened(sys.argv[1], readonly=True) as content:
    if sys.argv[5] == "upper":
        unpack_all(content, [sys.argv[2]], Path(sys.argv[3]))
    else:
        report = checkout(content, [sys.argv[2]], sys.argv[3], ownership=sys.argv[5] or None)
        print("\\n".join(report.notes))
"""


@pytest.fixture(scope="module")
def public():
    """A store that everybody may read, in a place that everybody may reach."""
    path = Path(tempfile.mkdtemp(prefix="layerstore-public-", dir="/var/tmp"))
    try:
        with stores.opened(str(path / "store")) as content:
            digest = put_layers(content, [tar(ITEMS)])[0]
            stores.put_image(content, "public:1", [(tar(ITEMS), stores.TAR)])
        subprocess.run(["chmod", "-R", "a+rX", path], check=True)
        yield path / "store", digest
    finally:
        shutil.rmtree(path)


def ordinary(public: tuple[Path, str], target: Path, how: str) -> str:
    store, digest = public
    target.mkdir()
    os.chown(target, 4321, 4321)
    here = Path(__file__).parent
    path = f"{here}:{here.parent}:{here.parents[1]}"
    done = subprocess.run(
        [sys.executable, "-c", ORDINARY, store, digest, target, path, how],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_root_all_is_there_and_notes_say_what_could_not_be_kept(public):
    out = public[0].parent / "out"
    notes = ordinary(public, out, "")
    found = snapshot(out)
    assert set(found) == {
        "", "d", "d/f", "d/e", "d/e/g", "su", "again", "link", "pipe",
    }  # fmt: skip
    assert found["d"].mode == 0o500
    assert found["d/e"].mode == 0o000
    assert found["d/f"].xattrs == (("user.k", b"v"),)
    assert found["again"].same == found["d/f"].same
    assert found["su"].mode == 0o755
    assert {s.uid for s in found.values()} == {4321}
    for word in ("owner not kept", "set-id", "device not made", "further name"):
        assert word in notes


def test_rootless_keeps_owners_where_umoci_does(public):
    out = public[0].parent / "rootless"
    ordinary(public, out, "rootless")
    found = snapshot(out)
    owner = dict(found["d/f"].xattrs)["user.rootlesscontainers"]
    assert owner == b"\x08\xe8\x07\x10\xe8\x07"  # 1: 1000, 2: 1000
    assert dict(found["su"].xattrs)["user.rootlesscontainers"] == b"\x08\x05"
    assert dict(found["d"].xattrs)["user.rootlesscontainers"] == owner


def test_a_layer_unpacked_without_root_marks_in_user_xattrs(content, tmp_path):
    lower, upper = tar([Item("d/old")]), tar([Item("d/.wh..wh..opq"), Item("d/new")])
    digests = put_layers(content, [lower, upper])
    # The flag alone: who is root sets what an ordinary user would.
    code = (
        "import sys; sys.path[:0]=sys.argv[4].split(':')\n"
        "import os, stores\nfrom layerstore.layers import checkout as rooms\n"
        "rooms._all_ids = lambda: False\n"
        "with stores.opened(sys.argv[1], readonly=True) as c:\n"
        "    rooms.unpack_layer(c, sys.argv[2].split(','), sys.argv[3])\n"
    )
    target = tmp_path / "upper"
    target.mkdir()
    here = Path(__file__).parent
    subprocess.run(
        [sys.executable, "-c", code, content.storage.path, ",".join(digests), target,
         f"{here.parent}:{here.parents[1]}"], check=True,
    )  # fmt: skip
    assert os.getxattr(target / "d", "user.overlay.opaque") == b"y"


def test_in_a_user_namespace_maps_are_kept_as_far_as_they_go(public, tmp_path):
    """Root of a namespace with one id: other owners cannot be kept, and nothing stops."""
    store, digest = public
    here = Path(__file__).parent
    code = (
        "import sys; sys.path[:0]=sys.argv[4].split(':')\nimport stores\n"
        "from checkout_trees import checkout\n"
        "with stores.opened(sys.argv[1], readonly=True) as c:\n"
        "    print(chr(10).join(checkout(c, [sys.argv[2]], sys.argv[3]).notes))\n"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", code, store, digest,
         tmp_path / "out", f"{here}:{here.parent}:{here.parents[1]}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "owner not kept" in done.stdout
    assert (tmp_path / "out/d/f").stat().st_size == 100


def test_in_a_user_namespace_of_many_ids_every_owner_in_it_is_kept(public, tmp_path):
    """Root of a namespace with 65,536 ids, as newuidmap(1) gives them: owners, set-id bits and
    capabilities are those of the layers, shifted; what lies outside of the map is a note."""
    store, digest = public
    here = Path(__file__).parent
    code = (
        "import sys; sys.path[:0]=sys.argv[4].split(':')\nimport stores\n"
        "from checkout_trees import checkout\n"
        "print('map me', flush=True); sys.stdin.readline()\n"
        "with stores.opened(sys.argv[1], readonly=True) as c:\n"
        "    print(chr(10).join(checkout(c, [sys.argv[2]], sys.argv[3]).notes))\n"
    )
    tmp_path.chmod(0o755)
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", 200_000, 200_000)
    with subprocess.Popen(
        ["unshare", "--user", "--keep-caps", sys.executable, "-c", code, store, digest,
         tmp_path / "out", f"{here}:{here.parent}:{here.parents[1]}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "map me\n"
        # The caller stays who it is outside; 0 to 65,535 inside are ids that nobody has.
        for name in ("gid_map", "uid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text("0 200000 65536\n100000 0 1\n")
        out, err = child.communicate("\n")
    assert child.returncode == 0, err
    found = snapshot(tmp_path / "out")
    assert (found["d/f"].uid, found["d/f"].gid) == (201_000, 201_000)
    assert (found["su"].uid, found["su"].mode) == (200_005, 0o4755)
    assert found["link"].uid == 200_009
    assert "owner not kept" in out  # d/e/g is 70,000's
    assert "null" not in found


def test_maps_give_ids_of_layers_ids_of_the_system(content, layers, tmp_path):
    maps = ((0, 100_000, 1000), (1000, 5000, 1), (70_000, 7, 1))
    checkout(content, layers, tmp_path / "out", uid_map=maps, gid_map=((0, 100_000, 65_536),))
    found = snapshot(tmp_path / "out")
    assert (found["d/f"].uid, found["d/f"].gid) == (5000, 101_000)
    assert (found["su"].uid, found["su"].mode) == (100_005, 0o4755)
    assert found["d/e/g"].uid == 7
    assert found["link"].uid == 100_009
    assert found[""].uid == 100_003
    with pytest.raises(OSError, match="Invalid argument"):
        checkout(content, layers, tmp_path / "none", uid_map=((0, 1, 10),))
    report = checkout(content, layers, tmp_path / "try", uid_map=((0, 1, 10),), ownership="try")
    assert [n for n in report.notes if "outside of the map" in n]


def test_ownership_is_one_of_three(content, layers, tmp_path):
    with pytest.raises(InvalidInputError, match="ownership"):
        checkout(content, layers, tmp_path / "out", ownership="all")


def test_what_is_replaced_is_neither_read_nor_written(content, tmp_path, monkeypatch):
    """The content of a file that an upper layer replaces is not decoded."""
    lower = [Item(f"old{n}", data=os.urandom(200_000)) for n in range(60)]
    digests = put_layers(
        content,
        [tar([*lower, Item("kept", data=b"k")]), tar([Item(f".wh.old{n}") for n in range(60)])],
    )
    loaded = []
    chunks = content.storage.chunks
    real = chunks.load
    monkeypatch.setattr(chunks, "load", lambda place: loaded.append(place.raw) or real(place))
    report = checkout(content, digests, tmp_path / "out")
    assert (report.entries, report.bytes) == (2, 1)
    assert sum(loaded) < 3 << 20


def test_holes_are_holes_again(content, tmp_path):
    zeros = bytes(1 << 20)
    data = b"head" + zeros * 3 + b"middle" + zeros * 2
    digests = put_layers(content, [tar([Item("f", data=data), Item("all", data=zeros)])])
    checkout(content, digests, tmp_path / "out")
    assert (tmp_path / "out/f").read_bytes() == data
    assert (tmp_path / "out/all").read_bytes() == zeros
    assert (tmp_path / "out/f").stat().st_blocks * 512 < 400_000
    assert (tmp_path / "out/all").stat().st_blocks == 0


def test_damage_is_an_error_and_leaves_nothing(tmp_path):
    with stores.opened(str(tmp_path / "store")) as content:
        items = [Item(f"f{n}", data=os.urandom(100_000)) for n in range(30)]
        digests = put_layers(content, [tar(items)])
    (pack,) = stores.packs(str(tmp_path / "store"))
    stores.flip(pack, os.path.getsize(pack) // 2)
    with stores.opened(str(tmp_path / "store")) as content:
        digests_now = digests
        with pytest.raises(LayerstoreError):
            checkout(content, digests_now, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_mark_is_gone_before_the_root_gets_its_time(content, layers, tmp_path):
    checkout(content, layers, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mtime == 77
    assert abs((tmp_path / "out").stat().st_ctime - time.time()) < 3600
