"""Layers made to write outside of the target, or to be read in two ways: refused before anything is
written, or kept inside. The proof is a whole filesystem of its own, looked at before and after."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
import stores
from checkout_trees import (
    CHAR,
    DIR,
    FIFO,
    FILE,
    LINK,
    SYMLINK,
    Item,
    checkout,
    put_layers,
    snapshot,
    tar,
    unpack_all,
)

from layerstore.errors import InvalidInputError


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with stores.opened(str(tmp_path_factory.mktemp("attacks") / "store")) as opened:
        yield opened


@pytest.fixture
def world(tmp_path):
    """A filesystem of its own: things to attack, and a place for the target."""
    root = tmp_path / "world"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "world", root], check=True)
    try:
        (root / "etc").mkdir()
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        (root / "outside").mkdir(mode=0o755)
        (root / "outside/sub").mkdir(mode=0o755)
        (root / "outside/su").write_bytes(b"setuid program")
        os.chmod(root / "outside/su", 0o4755)
        (root / "work").mkdir()
        yield root
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def around(world: Path) -> dict[str, object]:
    """All of it but the target, inode numbers and link counts too."""
    return {
        n: (s, os.lstat(world / n).st_nlink, os.lstat(world / n).st_ctime_ns)
        for n, s in snapshot(world, inodes=True).items()
        if n.split("/")[0] not in ("work", "")
    }


def attack(content, world, *layers, **options):
    """Layers into world/work/rootfs; what is outside stays as it was, whatever happens."""
    before = around(world)
    digests = put_layers(content, [tar(items) for items in layers])
    target = world / "work/rootfs"
    try:
        checkout(content, digests, target, **options)
        unpack_all(content, digests, world / "work/uppers")
    finally:
        assert around(world) == before
    return snapshot(target)


UP = "../../outside"
BOTH = pytest.mark.parametrize("openat2", [True, False], ids=["openat2", "nofollow"])


HUGE = {"GNU.sparse.size": str(1 << 63), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,1"}
LONG = [Item(f"l{n}", SYMLINK, link=f"l{n + 1}/" + "y/" * 2000) for n in range(12)]


@BOTH
@pytest.mark.parametrize("link", ["/outside", UP, f"./{UP}/", "/etc/../outside"])
def test_a_symlink_and_a_write_through_it_stay_inside(content, world, link, openat2):
    found = attack(
        content,
        world,
        [Item("door", SYMLINK, link=link), Item("door/su", data=b"evil", mode=0o777)],
        openat2=openat2,
    )
    assert found["door"].content == link
    assert found["outside/su"].mode == 0o777


def test_an_absolute_symlink_means_the_root_of_the_target(content, world):
    found = attack(
        content, world, [Item("d/door", SYMLINK, link="/outside"), Item("d/door/su", data=b"evil")]
    )
    assert "outside/su" in found
    assert "d/outside" not in found


def test_sizes_that_are_said_twice_are_refused(content, world):
    """In one header, in a global and a local one: readers differ about which counts."""
    sound = tar([Item("a", data=b"x" * 600)])

    def records(kind: str, *sizes: str) -> bytes:
        data = b"".join(b"12 size=%s\n" % size.encode() for size in sizes)
        assert all(len(size) == 3 for size in sizes)
        info = tarfile.TarInfo("pax")
        info.type, info.size = kind.encode(), len(data)
        return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)

    for heads in (
        records("x", "512", "600"),
        records("x", "600", "512"),
        records("x", "600") + records("x", "512"),
        records("g", "512") + records("x", "600"),
        records("g", "512"),
        records("x", "512") + records("g", "600"),
    ):
        with pytest.raises(InvalidInputError, match="contradict"):
            checkout(content, put_layers(content, [heads + sound]), world / "work/rootfs")
        assert not (world / "work/rootfs").exists()


def test_a_symlink_in_one_layer_and_a_write_in_the_next_stay_inside(content, world):
    found = attack(
        content, world, [Item("door", SYMLINK, link=UP)], [Item("door/new", data=b"evil")]
    )
    assert found["outside/new"].type == "file"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([Item("../x")], ".."),
        ([Item("a/../../x")], ".."),
        ([Item("/../x")], ".."),
        ([Item("h", LINK, link="../../outside/su")], ".."),
        ([Item("h", LINK, link="/etc/passwd")], "not there"),
        ([Item("d", SYMLINK, link=UP), Item("h", LINK, link="d/su")], "not there"),
        ([Item("d", DIR), Item("h", LINK, link="d")], "directory"),
        ([Item("h", LINK, link="i"), Item("i", LINK, link="h")], "not there"),
        ([Item(".wh...")], "whiteout"),
        ([Item("a/.wh..")], "whiteout"),
        ([Item(".wh.")], "whiteout"),
        ([Item("a/.wh.")], "whiteout"),
        ([Item(".wh.a/b")], "whiteout"),
        ([Item("./", SYMLINK, link="/outside")], "root"),
        ([Item("./", LINK, link="a")], "not there"),
        ([Item("x" * 256)], "255"),
        ([Item("x" * 256, DIR)], "255"),
        ([Item("a/" * 2100 + "b")], "2048"),
        ([Item("a/" * 9000 + "b")], "16384"),
        ([Item("a", SYMLINK, link="x/" * 2100)], "too long"),
        ([Item("a", SYMLINK, link="")], "empty"),
        ([Item("a", CHAR, device=(5000, 1))], "device"),
        ([Item("a", uid=(1 << 32) - 1)], "owner"),
        ([Item("a", data=b"x" * 600, pax={"size": "512"})], "contradict"),
        ([Item("a", data=b"x", pax={"path": "a\0b"})], "contradict"),
        ([Item("a", SYMLINK, link="x", pax={"linkpath": "b\0c"})], "contradict"),
        ([Item("h", LINK, link="")], "empty"),
        ([Item("h", LINK, link="/")], "directory"),
        ([Item("h", LINK, link="./")], "directory"),
        ([Item(".wh..")], "whiteout"),
        ([Item("a", data=b"x", pax=HUGE)], "contradict"),
        ([Item("a/" * 2048 + "b")], "2048"),
        ([*LONG, Item("l0/x")], "too long"),
    ],
)  # fmt: skip
def test_what_leads_outside_or_means_nothing_is_refused_by_name(content, world, items, reason):
    sound = Item("sound", data=b"1")
    with pytest.raises(InvalidInputError) as caught:
        attack(content, world, [sound], [sound, *items])
    assert reason in caught.value.reason
    layer = stores.sha256(tar([sound, *items]))
    assert caught.value.digest == layer
    assert layer in caught.value.message
    assert caught.value.offset is not None
    assert caught.value.offset >= 512  # behind the sound entry's header
    assert not (world / "work/rootfs").exists()


def test_absolute_names_are_below_the_root(content, world):
    found = attack(content, world, [Item("/etc/passwd", data=b"ours"), Item("//a//b/./c")])
    assert {"etc/passwd", "a/b/c"} <= set(found)


def test_a_chain_of_ten_thousand_symlinks_is_refused(content, world):
    chain = [Item(f"l{n}", SYMLINK, link=f"l{n + 1}") for n in range(10_000)]
    with pytest.raises(InvalidInputError, match="symbolic links"):
        attack(content, world, [*chain, Item("l0/x")])
    circle = [Item("a", SYMLINK, link="b"), Item("b", SYMLINK, link="a"), Item("a/x")]
    with pytest.raises(InvalidInputError, match="symbolic links"):
        attack(content, world, circle)


def test_a_chain_that_nobody_walks_is_only_symlinks(content, world):
    chain = [Item(f"l{n}", SYMLINK, link=f"l{n + 1}") for n in range(10_000)]
    assert len(attack(content, world, chain)) == 10_001


def test_deep_directories_are_made(content, world):
    found = attack(content, world, [Item("d/" * 1500 + "f", data=b"deep")], openat2=False)
    assert found["d/" * 1500 + "f"].type == "file"


def test_a_name_that_is_first_a_file_and_then_a_parent_is_a_directory(content, world):
    found = attack(content, world, [Item("a", data=b"1"), Item("a/b", data=b"2"), Item("a/b/c")])
    assert (found["a"].type, found["a/b"].type, found["a/b/c"].type) == ("dir", "dir", "file")


def test_a_directory_that_is_first_a_symlink_is_not_followed_by_its_attributes(content, world):
    attack(content, world, [Item("d", SYMLINK, link="/outside"), Item("d", DIR, mode=0o777)])
    found = snapshot(world / "work/rootfs")
    assert (found["d"].type, found["d"].mode) == ("dir", 0o777)


def test_whiteouts_behind_a_symlink_take_nothing_outside_away(content, world):
    attack(
        content, world, [Item("d", SYMLINK, link=UP)], [Item("d/.wh.su"), Item("d/.wh..wh..opq")]
    )
    assert (world / "outside/su").exists()


def test_setuid_through_a_hard_link_has_the_first_names_attributes(content, world):
    found = attack(
        content,
        world,
        [Item("su", data=b"p", mode=0o755, uid=7)],
        [Item("mine", LINK, link="su", mode=0o4777, uid=0)],
    )
    assert (found["mine"].mode, found["mine"].uid, found["mine"].same) == (0o755, 7, "mine")


def test_capabilities_of_version_3_are_kept_and_mapped(content, world):
    def capability(root: int) -> bytes:
        return struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, root)

    value = capability(257).decode("ascii")
    raw = tar([Item("ping", data=b"p", pax={"SCHILY.xattr.security.capability": value})])
    digests = put_layers(content, [raw])
    for n, (options, root) in enumerate(
        [({}, 257), ({"uid_map": ((0, 200_000, 65_536),), "gid_map": ((0, 0, 1),)}, 200_257)]
    ):
        target = world / f"work/caps{n}"
        checkout(content, digests, target, **options)
        assert os.getxattr(target / "ping", "security.capability") == capability(root)
    # A root outside of the map would be whoever has that number here.
    maps = {"uid_map": ((0, 200_000, 100),), "gid_map": ((0, 0, 1),)}
    with pytest.raises(OSError, match="Invalid argument"):
        checkout(content, digests, world / "work/none", **maps)
    report = checkout(content, digests, world / "work/noted", **maps, ownership="try")
    assert [note for note in report.notes if "extended attributes" in note]
    assert os.listxattr(world / "work/noted/ping") == []


def test_overlayfs_own_xattrs_do_not_get_into_its_directories(content, world):
    pax = {"SCHILY.xattr.trusted.overlay.redirect": "/../../outside", "SCHILY.xattr.user.k": "v"}
    digests = put_layers(content, [tar([Item("d", DIR, pax=pax)])])
    (upper,) = unpack_all(content, digests, world / "work")
    assert os.listxattr(upper / "d") == ["user.k"]


@BOTH
def test_a_directory_swapped_for_a_symlink_meanwhile_leads_nowhere(content, world, openat2):
    """Another process replaces directories by links to the outside all the time."""
    items = [Item(f"d{n}/sub/f{m}", data=b"x" * 50) for n in range(40) for m in range(40)]
    digests = put_layers(content, [tar(items)])
    before = around(world)
    stop = threading.Event()
    swapped = 0

    def swap() -> None:
        nonlocal swapped
        while not stop.is_set():
            for n in range(40):
                path = target / f"d{n}"
                try:
                    os.rename(path, target / f"away{n}-{swapped}")
                    os.symlink(world / "outside", path)
                    swapped += 1
                except OSError:
                    continue

    failed = 0
    for round in range(8):
        target = world / f"work/race{round}"
        stop.clear()
        thread = threading.Thread(target=swap)
        thread.start()
        try:
            checkout(content, digests, target, openat2=openat2)
        except (OSError, InvalidInputError):
            failed += 1
        finally:
            stop.set()
            thread.join()
    assert swapped > 0
    assert failed > 0
    assert around(world) == before


RENAMER = """
import itertools, os, sys
target, outside = sys.argv[1:]
FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

def enter(name, at=None):
    # It does not go through its own links: what happens outside is our doing.
    try:
        return os.open(name, FLAGS, dir_fd=at)
    except OSError:
        return None

def swap(at, name, link):
    try:
        os.rename(name, f"away{turn}-{name}", src_dir_fd=at, dst_dir_fd=at)
        os.symlink(link, name, dir_fd=at)
    except OSError:
        pass

print("at it", flush=True)
root = None
for turn in itertools.count():
    root = enter(target) if root is None else root
    for n in range(40) if root is not None else ():
        folder = enter(f"d{n}", root)
        inner = None if folder is None else enter("sub", folder)
        if inner is not None:
            for m in range(20, 40):  # before the file is made
                try:
                    os.symlink(outside + "/su", f"f{m}", dir_fd=inner)
                except OSError:
                    break
            swap(inner, "f1", outside + "/su")
            os.close(inner)
        if folder is not None:
            swap(folder, "sub", outside)
            os.close(folder)
        swap(root, f"d{n}", outside)
"""


@BOTH
def test_another_process_that_renames_inside_the_target_gets_nothing_outside(
    content, world, openat2
):
    """Directories and files are moved away and links to the outside put in their place, from a process
    that no lock of ours holds back."""
    items = [
        Item(f"d{n}/sub/f{m}", data=b"x" * 50, mode=0o4777, uid=99)
        for n in range(40)
        for m in range(40)
    ]
    items += [
        Item(f"d{n}/sub/l{m}", LINK, link=f"d{n}/sub/f{m}") for n in range(40) for m in range(5)
    ]
    digests = put_layers(content, [tar(items)])
    before = around(world)
    disturbed = 0
    for turn in range(6):
        target = world / f"work/race{turn}"
        with subprocess.Popen(
            [sys.executable, "-I", "-c", RENAMER, target, world / "outside"], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            try:
                checkout(content, digests, target, openat2=openat2)
            except (OSError, InvalidInputError):
                disturbed += 1
            finally:
                child.kill()
        if target.exists():
            disturbed += any(path.name.startswith("away") for path in target.rglob("away*"))
    assert disturbed > 0
    assert around(world) == before


SLOWLY = """
import sys; sys.path[:0] = sys.argv[4].split(":")
import stores
from checkout_trees import checkout
with stores.opened(sys.argv[1], readonly=True) as content:
    checkout(content, [sys.argv[2]], sys.argv[3])
"""


@pytest.mark.needs("root", "strace")
@pytest.mark.parametrize("kind", [FIFO, SYMLINK], ids=["fifo", "symlink"])
def test_a_file_put_in_the_place_of_what_was_just_made_keeps_its_owner(content, world, kind):
    """A hard link to a file outside comes between the making of a name and the change of its owner."""
    item = Item("p", kind, link="x", uid=99, gid=99, mode=0o4777)
    (digest,) = put_layers(content, [tar([item])])
    target, victim = world / "work/rootfs", world / "outside/su"
    here = Path(__file__).parent
    calls = "mknodat,symlinkat"
    with subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e",
         f"inject={calls}:delay_exit=1000000", sys.executable, "-c", SLOWLY,
         content.storage.path, digest, target, f"{here}:{here.parent}:{here.parents[1]}"],
        stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        while child.poll() is None and not os.path.lexists(target / "p"):
            time.sleep(0.01)
        os.unlink(target / "p")
        os.link(victim, target / "p")
        assert child.stderr is not None
        said = child.stderr.read()
    assert child.returncode != 0
    assert "Stale file handle" in said
    found = os.lstat(victim)
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, 0, 0o4755)


@pytest.mark.needs("lowntfs-3g")
def test_names_that_differ_in_case_stay_two_or_the_clash_is_said(content, tmp_path):
    items = [Item("File", data=b"1"), Item("file", data=b"22"), Item("Dir/a"), Item("dir/b")]
    digests = put_layers(content, [tar(items)])
    checkout(content, digests, tmp_path / "two")
    assert {"File", "file", "Dir/a", "dir/b"} <= set(snapshot(tmp_path / "two"))
    image, folded = tmp_path / "image", tmp_path / "folded"
    with image.open("wb") as f:
        f.truncate(32 << 20)
    subprocess.run(["mkntfs", "-F", "-Q", "-q", image], check=True, capture_output=True)
    folded.mkdir()
    options = ["-o", "ignore_case,permissions"]
    subprocess.run(["lowntfs-3g", *options, image, folded], check=True, capture_output=True)
    try:
        (folded / "Case").touch()
        assert (folded / "case").exists()
        for names in (items[:2], items[2:]):
            clash = put_layers(content, [tar(names)])
            with pytest.raises(FileExistsError) as caught:
                checkout(content, clash, folded / "rootfs", ownership="try")
            assert clash[0] in caught.value.__notes__[0]
            assert not (folded / "rootfs").exists()
    finally:
        subprocess.run(["umount", folded], check=True)


def test_a_layer_with_a_recorded_problem_is_refused(content, tmp_path):
    from layerstore.layers.checkout import Layer
    from layerstore.layers.checkout import checkout as take

    sound = tar([Item("a", data=b"1" * 600)])
    broken = put_layers(content, [stores.gzipped(sound)[:-12]])[0]
    cut = put_layers(content, [sound[:1000]])[0]
    wrong = put_layers(content, [sound])[0]
    for layer in (Layer(broken), Layer(cut), Layer(wrong, stores.sha256(b"another"))):
        with pytest.raises(InvalidInputError) as caught:
            take(content, [layer], str(tmp_path / "out"))
        assert layer.digest in caught.value.message
        assert not (tmp_path / "out").exists()


def test_unknown_types_are_skipped_with_a_note(content, tmp_path):
    digests = put_layers(content, [tar([Item("a"), Item("strange", b"Z"), Item("b", FILE)])])
    report = checkout(content, digests, tmp_path / "out")
    assert set(snapshot(tmp_path / "out")) == {"", "a", "b"}
    assert len(report.notes) == 1
    assert "strange" in report.notes[0]
