"""Snapshots: what a container sees, what its states are, what survives, what is shared."""

from __future__ import annotations

import contextlib
import errno
import gzip
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import making
import pytest
from making import image, mounted, tree

import layerstore
from layerstore.storage import mounts


def unpacked(path: str) -> list[str]:
    return sorted(n for n in os.listdir(f"{path}/unpacked") if n != "empty")


# ---- what a container sees --------------------------------------------------------------------


def umoci_tree(store: layerstore.Store, name: str, tmp_path: Path) -> dict:
    store.export_image(name, f"oci:{tmp_path}/layout:x")
    making.run("umoci", "unpack", "--image", f"{tmp_path}/layout:x", tmp_path / "umoci")
    return tree(tmp_path / "umoci" / "rootfs")


@pytest.mark.parametrize("kind", ["prepare", "view"])
def test_a_mount_shows_what_umoci_and_checkout_write(store, tmp_path, kind):
    image(store)
    want = umoci_tree(store, "app:1", tmp_path)
    store.checkout("app:1", tmp_path / "checkout")
    assert tree(tmp_path / "checkout") == want
    getattr(store.snapshots, kind)("k", "app:1")
    with mounted(store, "k", tmp_path / "m") as root:
        assert tree(root) == want
        assert os.lstat(root).st_mode & 0o7777 == 0o755


def test_the_root_directory_looks_as_the_image_says(store, tmp_path):
    root = making.member("./", mode=0o711, uid=3, gid=4, mtime=12345)
    image(store, layers=[[root, *making.BASE], making.TOP])
    store.snapshots.prepare("k", "app:1")
    with mounted(store, "k", tmp_path / "m") as shown:
        found = os.stat(shown)
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o711, 3, 4)
    assert found.st_mtime == 12345


def test_what_one_container_changes_no_other_sees(store, tmp_path):
    image(store)
    for key in ("a", "b"):
        store.snapshots.prepare(key, "app:1")
    with mounted(store, "a", tmp_path / "a") as a, mounted(store, "b", tmp_path / "b") as b:
        before = tree(b)
        (a / "etc/motd").write_text("changed")
        (a / "new").write_text("new")
        (a / "d/one").unlink()
        assert tree(b) == before
        assert not (a / "d/one").exists()
    store.snapshots.prepare("c", "app:1")
    with mounted(store, "c", tmp_path / "c") as c:
        assert tree(c) == before


def test_a_view_cannot_be_changed(store, tmp_path):
    image(store, layers=[making.BASE])
    store.snapshots.view("k", "app:1")
    with mounted(store, "k", tmp_path / "m") as root:
        with pytest.raises(OSError) as failed:
            (root / "new").write_text("x")
        assert failed.value.errno == errno.EROFS
    assert store.snapshots.usage("k") == layerstore.Usage(0, 0)


def test_a_snapshot_of_nothing(store, tmp_path):
    info = store.snapshots.prepare("k", "scratch")
    assert info.digest is None
    with mounted(store, "k", tmp_path / "m") as root:
        (root / "first").write_text("first")
    store.snapshots.commit("k", "first:1")
    assert [e.path for e in store.image("first:1").entries()] == ["first"]
    store.snapshots.view("v", "scratch")
    with mounted(store, "v", tmp_path / "v") as root:
        assert os.listdir(root) == []


def test_many_layers(store, tmp_path):
    layers = [[making.member(f"f{n}", b"%d" % n)] for n in range(40)]
    image(store, layers=layers)
    store.snapshots.prepare("k", "app:1")
    with mounted(store, "k", tmp_path / "m") as root:
        assert len(os.listdir(root)) == 40


# ---- states and errors ------------------------------------------------------------------------


def test_a_key_is_used_once(store):
    image(store)
    store.snapshots.prepare("k", "app:1")
    for make in (store.snapshots.prepare, store.snapshots.view):
        with pytest.raises(layerstore.InvalidInputError, match="already"):
            make("k", "app:1")
    store.snapshots.remove("k")
    assert store.snapshots.view("k", "app:1").kind == "view"


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 256, "\udcff", "a\0b"])
def test_keys_that_cannot_be(store, key):
    image(store)
    with pytest.raises(layerstore.InvalidInputError):
        store.snapshots.prepare(key, "app:1")


def test_what_is_not_there(store, tmp_path):
    image(store)
    snapshots = store.snapshots
    for call in (
        lambda: snapshots.mount("none", tmp_path / "m"),
        lambda: snapshots.unmount("none"),
        lambda: snapshots.commit("none", "x:1"),
        lambda: snapshots.usage("none"),
        lambda: snapshots.remove("none"),
        lambda: snapshots.get("none"),
        lambda: snapshots.prepare("k", "none:1"),
    ):
        with pytest.raises(layerstore.NotFoundError):
            call()
    assert snapshots.list() == []


def test_what_is_mounted_is_not_removed(store, tmp_path):
    image(store)
    store.snapshots.prepare("k", "app:1")
    target = tmp_path / "m"
    assert store.snapshots.mount("k", target).mounts == (str(target),)
    assert store.snapshots.mount("k", target).mounts == (str(target),), "the same place again"
    with pytest.raises(layerstore.BusyError, match=str(target)):
        store.snapshots.remove("k")
    with pytest.raises(layerstore.BusyError, match="already"):
        store.snapshots.mount("k", tmp_path / "elsewhere")
    with open(target / "etc/motd"), pytest.raises(layerstore.BusyError, match="in use"):
        store.snapshots.unmount("k")
    assert store.snapshots.unmount("k").mounts == ()
    assert store.snapshots.unmount("k").mounts == (), "nothing to do"
    store.snapshots.remove("k")
    assert os.listdir(f"{store.path}/snapshots") == []


def test_what_is_in_use_can_be_unmounted_lazily(store, tmp_path):
    image(store)
    store.snapshots.prepare("k", "app:1")
    store.snapshots.mount("k", tmp_path / "m")
    with open(tmp_path / "m/etc/motd") as f:
        store.snapshots.unmount("k", lazy=True)
        assert f.read() == "hello"
    assert store.snapshots.get("k").mounts == ()


def test_where_a_snapshot_cannot_be_mounted(store, tmp_path):
    image(store)
    store.snapshots.prepare("k", "app:1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    (tmp_path / "link").symlink_to(store.path)
    for target in (tmp_path / "full", f"{store.path}/m", store.path, tmp_path / "link/x"):
        with pytest.raises(layerstore.InvalidInputError):
            store.snapshots.mount("k", target)
    with pytest.raises(layerstore.InvalidInputError, match="driver"):
        store.snapshots.mount("k", tmp_path / "m", driver="aufs")
    assert making.mounts_of(store) == []
    assert not os.path.exists(f"{store.path}/m")


def test_layers_that_do_not_decode_are_refused(store, path):
    good = making.put(store, *making.BASE)
    broken = store.put(making.tar(*making.TOP)[:-12000] + b"\1" * 700, media_type=making.LAYER)
    store.commit("scratch", "bad:1", layers=[good, broken.digest])
    with pytest.raises(layerstore.InvalidInputError):
        store.snapshots.prepare("k", "bad:1")
    zipped = gzip.compress(making.tar(*making.TOP))[:-100]
    cut = store.put(zipped, media_type=f"{making.LAYER}+gzip")
    with pytest.raises(layerstore.InvalidInputError):
        store.commit("scratch", "bad:2", layers=[good, cut.digest])
    assert [one.name for one in store.images()] == ["bad:1"]
    assert store.snapshots.list() == []
    assert unpacked(path) == []


def test_a_layer_that_is_not_what_its_config_says_is_refused(store, tmp_path):
    image(store)
    store.export_image("app:1", f"oci:{tmp_path}/layout:x")
    config = store.image("app:1").config_bytes
    layers = store.image("app:1").layers
    other = "sha256:" + "0" * 64
    wrong = config.replace(str(layers[1].diff_id).encode(), other.encode())
    assert wrong != config
    making_layout = Path(f"{tmp_path}/layout")
    rewrite_config(making_layout, config, wrong)
    store.import_image(f"oci:{making_layout}:x", "wrong:1")
    with pytest.raises(layerstore.InvalidInputError, match="diff_id"):
        store.snapshots.prepare("k", "wrong:1")


def rewrite_config(layout: Path, old: bytes, new: bytes) -> None:
    """Another config in an OCI layout, and documents that name it."""
    import hashlib

    def swap(before: bytes, after: bytes) -> tuple[bytes, bytes]:
        a, b = (hashlib.sha256(x).hexdigest().encode() for x in (before, after))
        (layout / "blobs/sha256" / b.decode()).write_bytes(after)
        return a, b

    index = (layout / "index.json").read_bytes()
    a, b = swap(old, new)
    for blob in (layout / "blobs/sha256").iterdir():
        data = blob.read_bytes()
        if data.startswith(b"{") and a in data:
            c, d = swap(data, data.replace(a, b))
            index = index.replace(c, d)
    (layout / "index.json").write_bytes(index)


# ---- shared, once -----------------------------------------------------------------------------


def sequence(store: layerstore.Store) -> int:
    with store._storage.index.read() as snapshot:
        return snapshot.sequence


def test_the_hundredth_costs_what_the_second_did(fast_path):
    """Not in seconds, which the benchmarks count: in commits, layers unpacked, files made."""
    with layerstore.open(fast_path / "store") as store:
        hundred(store, fast_path)


def hundred(store: layerstore.Store, tmp_path: Path) -> None:
    image(store)
    store.snapshots.prepare("first", "app:1")
    before = unpacked(store.path)
    costs = set()
    for n in range(100):
        start = sequence(store)
        store.snapshots.prepare(f"k{n}", "app:1")
        prepared = sequence(store)
        store.snapshots.mount(f"k{n}", tmp_path / f"m{n}")
        costs.add((prepared - start, sequence(store) - prepared))
        assert store.snapshots.usage(f"k{n}") == layerstore.Usage(0, 0)
    assert costs == {(1, 0)}, "one commit to prepare, none to mount"
    assert unpacked(store.path) == before
    assert len(making.mounts_of(store)) == 100
    making.clear(store)


def test_images_that_share_layers_share_what_is_unpacked(store):
    image(store, "app:1", making.LAYERS)
    image(store, "app:2", [*making.LAYERS, [making.member("more", b"more")]])
    image(store, "other:1", [making.TOP, making.BASE])
    store.snapshots.prepare("a", "app:1")
    assert len(unpacked(store.path)) == 3
    store.snapshots.prepare("b", "app:2")
    assert len(unpacked(store.path)) == 4
    store.snapshots.prepare("c", "other:1")
    assert len(unpacked(store.path)) == 6, "what lies below counts, too"


def test_usage_is_what_du_counts_of_the_changes(store, tmp_path):
    """Bytes and inodes, hard links once, holes not at all; what is only read costs nothing."""
    image(store)
    store.snapshots.prepare("k", "app:1")
    with mounted(store, "k", tmp_path / "m") as root:
        tree(root)
        assert store.snapshots.usage("k") == layerstore.Usage(0, 0)
        (root / "new").mkdir()
        (root / "new/file").write_bytes(os.urandom(100_000))
        os.link(root / "new/file", root / "new/again")
        (root / "sym2").symlink_to("new/file")
        with open(root / "sparse", "wb") as f:
            f.truncate(1 << 30)
        (root / "d/one").unlink()
        os.utime(root / "d/three")
        os.sync()
        found = store.snapshots.usage("k")
    (upper,) = Path(store.path).glob("snapshots/*/fs")
    top = upper.lstat().st_blocks * 512
    assert found.bytes == int(making.run("du", "-s", "-B1", upper).split()[0]) - top
    inodes = making.run("find", upper, "-mindepth", "1", "-printf", "%i\n").split()
    assert found.inodes == len(set(inodes)) < len(inodes)
    assert 100_000 <= found.bytes < 200_000


def _prepare(path: str, key: str, barrier) -> None:
    with layerstore.open(path, timeout=60) as store:
        barrier.wait()
        store.snapshots.prepare(key, "app:1")


def test_two_processes_that_want_the_same_layers_unpack_them_once(store, path):
    files = [making.member(f"big/{n}", os.urandom(20_000)) for n in range(300)]
    image(store, layers=[[making.member("big/"), *files], making.BASE, making.TOP])
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    workers = [spawn.Process(target=_prepare, args=(path, f"k{n}", barrier)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(unpacked(path)) == 3
    assert [one.key for one in store.snapshots.list()] == ["k0", "k1", "k2"]


# ---- other owners -----------------------------------------------------------------------------

MAP = ((0, 100_000, 65_536),)


def shifted(want: dict) -> dict:
    return {
        name: {**one, "owner": tuple(n + 100_000 for n in one["owner"])}
        for name, one in want.items()
    }


@pytest.mark.parametrize("old", [False, True], ids=["new API", "mount(2)"])
def test_a_second_uid_map_costs_no_copy(store, tmp_path, monkeypatch, old):
    if old:
        from layerstore.core import mount as core

        plain = core.overlay
        monkeypatch.setattr(
            core, "overlay", lambda *a, flags=0, **o: plain(*a, flags=flags | core.OLD, **o)
        )
    image(store)
    store.snapshots.prepare("plain", "app:1")
    before = unpacked(store.path)
    store.snapshots.prepare("mapped", "app:1", uid_map=MAP, gid_map=MAP)
    store.snapshots.view("seen", "app:1", uid_map=MAP, gid_map=MAP)
    with (
        mounted(store, "plain", tmp_path / "p") as plain_root,
        mounted(store, "mapped", tmp_path / "m") as root,
        mounted(store, "seen", tmp_path / "s") as seen,
    ):
        want = shifted(tree(plain_root))
        assert tree(root) == want
        assert tree(seen) == want
        # As container root: ids inside the namespace are the image's.
        inside = "touch made && chown 5:6 made && chmod 4711 d/one && rm xattr"
        namespace = user_namespace()
        try:
            where = f"--user=/proc/{namespace.pid}/ns/user"
            making.run("nsenter", where, "sh", "-c", inside, cwd=root)
        finally:
            namespace.kill()
            namespace.wait()
        assert os.stat(root / "made").st_uid == 100_005
    assert unpacked(store.path) == before
    assert store.snapshots.usage("mapped").inodes < 8
    assert mounts_below(store.path) == [], "no mount is left in the store"
    store.snapshots.commit("mapped", "app:2")
    found = {e.path: e for e in store.image("app:2").entries()}
    assert (found["made"].uid, found["made"].gid) == (5, 6)
    assert (found["d/one"].uid, found["d/one"].gid, found["d/one"].mode) == (7, 8, 0o4711)
    assert "xattr" not in found


def mounts_below(path: str) -> list[str]:
    return [m.target for m in mounts.mounts() if m.target.startswith(f"{path}/")]


def user_namespace() -> subprocess.Popen:
    """A process in a user namespace with MAP."""
    made = subprocess.Popen(["unshare", "--user", "sleep", "60"])
    deadline = time.monotonic() + 10
    own = os.readlink("/proc/self/ns/user")
    while os.readlink(f"/proc/{made.pid}/ns/user") == own:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{made.pid}/{name}").write_text("0 100000 65536\n")
    return made


def test_maps_that_cannot_be(store):
    image(store)
    for maps in (
        {"uid_map": MAP},
        {"uid_map": ((0, 0, 0),), "gid_map": MAP},
        {"uid_map": ((-1, 0, 5),), "gid_map": MAP},
        {"uid_map": ((0, 1 << 32, 5),), "gid_map": MAP},
    ):
        with pytest.raises(layerstore.InvalidInputError):
            store.snapshots.prepare("k", "app:1", **maps)


# ---- other drivers ----------------------------------------------------------------------------


def change(root: Path) -> None:
    (root / "etc/motd").write_text("changed")
    (root / "made").mkdir()
    (root / "made/file").write_text("new")
    (root / "d/one").unlink()
    making.run("rm", "-r", root / "gone")
    (root / "gone").mkdir()
    (root / "gone/again").write_text("again")


@pytest.mark.parametrize("driver", ["overlay", "fuse", "copy"])
def test_every_driver_shows_and_commits_the_same(store, tmp_path, driver):
    image(store)
    store.checkout("app:1", tmp_path / "want")
    store.snapshots.prepare("k", "app:1")
    info = store.snapshots.mount("k", tmp_path / "m", driver=driver)
    assert (info.driver, info.mounts) == (driver, (str(tmp_path / "m"),))
    try:
        assert tree(tmp_path / "m", mtimes=driver != "fuse") == tree(
            tmp_path / "want", mtimes=driver != "fuse"
        )
        change(tmp_path / "m")
        with pytest.raises(layerstore.BusyError):
            store.snapshots.remove("k")
        want = tree(tmp_path / "m", mtimes=False)
    finally:
        store.snapshots.unmount("k")
    assert making.mounts_of(store) == []
    assert os.listdir(tmp_path / "m") == []
    with mounted(store, "k", tmp_path / "m") as root:
        assert (root / "made/file").read_text() == "new"
    store.snapshots.commit("k", "app:2")
    store.checkout("app:2", tmp_path / "out")
    assert tree(tmp_path / "out", mtimes=False) == want
    store.snapshots.remove("k")


@pytest.mark.parametrize("driver", ["overlay", "fuse", "copy"])
def test_a_mounted_snapshot_is_diffed_and_committed(store, path, tmp_path, driver):
    """While it is shown, by the library and by the command line: the layer makes of the parent what the
    mount shows, and is the one that an unmounted snapshot gives."""
    image(store)
    store.snapshots.prepare("k", "app:1")
    store.snapshots.mount("k", tmp_path / "m", driver=driver)
    try:
        change(tmp_path / "m")
        # Set by a container for itself: no owner and no mode.
        os.chown(tmp_path / "m/made/file", 5, 5)
        with contextlib.ExitStack() as stack:
            if driver == "fuse":
                # It keeps the name for itself.
                stack.enter_context(pytest.raises(PermissionError))
            os.setxattr(tmp_path / "m/made/file", "user.containers.override_stat", b"0:0:4755")
        layer = store.snapshots.diff("k")
        want = tree(tmp_path / "m", mtimes=False)
        store.snapshots.commit("k", "app:2")
        typed = [sys.executable, "-m", "layerstore", "--store", path, "snapshot"]
        for words in (["diff", "k"], ["commit", "k", "app:3"]):
            done = subprocess.run([*typed, *words], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            if words[0] == "diff":
                assert done.stdout.split() == [layer.digest]
        assert store.snapshots.get("k").mounts == (str(tmp_path / "m"),)
        # It goes on.
        (tmp_path / "m/later").write_text("later")
        assert store.snapshots.diff("k").digest != layer.digest
        (tmp_path / "m/later").unlink()
    finally:
        store.snapshots.unmount("k")
    for name in ("app:2", "app:3"):
        assert store.image(name).layers[-1].diff_id == layer.diff_id
        store.checkout(name, tmp_path / name)
        assert tree(tmp_path / name, mtimes=False) == want
    store.snapshots.remove("k")


def test_without_rights_to_mount_a_copy_is_shown_by_a_link(store, tmp_path, monkeypatch):
    from layerstore.core import mount as core

    def refuse(*args, **options):
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(core, "overlay", refuse)
    monkeypatch.setattr(core, "bind", refuse)
    monkeypatch.setenv("PATH", "/nonexistent")
    image(store)
    store.snapshots.prepare("k", "app:1")
    info = store.snapshots.mount("k", tmp_path / "m")
    assert info.driver == "copy"
    assert (tmp_path / "m/etc/motd").read_text() == "hello"
    (tmp_path / "m/new").write_text("x")
    store.snapshots.unmount("k")
    assert os.listdir(tmp_path / "m") == []
    layer = store.snapshots.diff("k")
    names = [e.path for e in store_entries(store, layer)]
    assert "new" in names
    assert "etc/motd" not in names


def store_entries(store: layerstore.Store, layer: layerstore.LayerInfo):
    store.commit("scratch", "only:1", layers=[layer])
    return [e for e in store.image("only:1").entries(layer=0) if e.path != "./"]


# ---- restart, crashes, leftovers --------------------------------------------------------------


def test_rows_come_back_when_the_index_is_made_anew(path, tmp_path):
    with layerstore.open(path) as store:
        image(store)
        store.snapshots.prepare("k", "app:1")
        with mounted(store, "k", tmp_path / "m") as root:
            (root / "new").write_text("new")
            want = tree(root)
        before = store.snapshots.list()
        store.untag("app:1")
    assert layerstore.rebuild_index(path).ok
    with layerstore.open(path) as store:
        assert store.snapshots.list() == before
        store.gc(aggressive=True)
        with mounted(store, "k", tmp_path / "m") as root:
            assert tree(root) == want
        store.snapshots.commit("k", "again:1")
        assert "new" in [e.path for e in store.image("again:1").entries()]
        assert store.check(full=True).ok


def test_snapshots_outlive_the_handle(path, tmp_path):
    with layerstore.open(path) as store:
        image(store)
        store.snapshots.prepare("k", "app:1")
        store.snapshots.mount("k", tmp_path / "m")
        (tmp_path / "m/new").write_text("new")
        want = tree(tmp_path / "m")
    with layerstore.open(path) as store:
        assert store.snapshots.get("k").mounts == (str(tmp_path / "m"),)
        assert tree(tmp_path / "m") == want
        making.run("umount", tmp_path / "m")  # as a reboot does
        assert store.snapshots.get("k").mounts == ()
        with mounted(store, "k", tmp_path / "m2") as root:
            assert tree(root) == want


KILLED = """
import os, signal, sys
import layerstore
store = layerstore.open(sys.argv[1])
store.snapshots.prepare("k", "app:1")
store.snapshots.mount("k", sys.argv[2], driver=sys.argv[3])
open(sys.argv[2] + "/new", "w").write("new")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("driver", ["overlay", "copy"])
def test_a_mount_left_from_a_dead_process_is_found_and_can_go(store, path, tmp_path, driver):
    image(store)
    target = tmp_path / "m"
    done = subprocess.run([sys.executable, "-c", KILLED, path, str(target), driver])
    assert done.returncode == -signal.SIGKILL
    assert store.snapshots.get("k").mounts == (str(target),)
    with pytest.raises(layerstore.BusyError, match=str(target)):
        store.snapshots.remove("k")
    store.gc(aggressive=True)
    assert (target / "new").read_text() == "new"
    store.snapshots.unmount("k")
    store.snapshots.remove("k")
    assert mounts_below(str(tmp_path)) == []


def test_a_fuse_mount_whose_server_died_is_said_and_can_go(store, tmp_path):
    image(store)
    store.snapshots.prepare("k", "app:1")
    target = tmp_path / "m"
    store.snapshots.mount("k", target, driver="fuse")
    server = [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdigit() and str(target) in cmdline(pid) and "fuse-overlayfs" in cmdline(pid)
    ]
    assert len(server) == 1
    os.kill(server[0], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while store.snapshots.get("k").note is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "unmount" in str(store.snapshots.get("k").note)
    assert store.snapshots.get("k").mounts == (str(target),)
    store.snapshots.unmount("k")
    store.snapshots.remove("k")


def cmdline(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_a_mount_in_another_namespace_counts(store, tmp_path):
    image(store)
    store.snapshots.prepare("k", "app:1")
    command = [sys.executable, "-m", "layerstore", "--store", store.path]
    script = f"{' '.join(command)} snapshot mount k {tmp_path}/m && echo up && read x"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        try:
            assert other.stdout is not None
            assert [other.stdout.readline(), other.stdout.readline()] == ["k\n", "up\n"]
            assert mounts_below(str(tmp_path)) == []
            (place,) = store.snapshots.get("k").mounts
            assert f"{tmp_path}/m (of process " in place
            with pytest.raises(layerstore.BusyError):
                store.snapshots.remove("k")
        finally:
            other.communicate("\n", timeout=20)
    store.snapshots.remove("k")


CRASH = """
import os, sys
import layerstore
from layerstore.storage import unpacked
from layerstore.storage.index import Index
point = int(sys.argv[2])
steps = 0
def step(inner):
    def wrapped(*a, **k):
        global steps
        steps += 1
        if steps == point:
            os._exit(9)
        return inner(*a, **k)
    return wrapped
from layerstore.storage.disk import Disk
for name in ("rename", "sync_dir", "sync_tree", "mkdir", "unlink", "sync"):
    setattr(Disk, name, step(getattr(Disk, name)))
store = layerstore.open(sys.argv[1])
store.snapshots.prepare("k", "app:1")
os._exit(0)
"""


EVERY = int(os.environ.get("LAYERSTORE_CRASHES", "4"))
"""One in so many steps is crashed at; 1 for all of them."""


def test_a_crash_at_any_step_of_preparing_leaves_a_snapshot_or_nothing(fast_path):
    path = str(fast_path / "store")
    tmp_path = fast_path
    with layerstore.open(path) as store:
        image(store)
    outcomes = set()
    for point in range(1, 200, EVERY):
        done = subprocess.run([sys.executable, "-c", CRASH, path, str(point)])
        with layerstore.open(path) as store:
            keys = [one.key for one in store.snapshots.list()]
            outcomes.add((done.returncode, tuple(keys)))
            assert keys in ([], ["k"])
            store.gc(aggressive=True)
            left = [d for d in ("snapshots", "unpacked") if os.path.isdir(f"{path}/{d}")]
            assert [len(os.listdir(f"{path}/{d}")) for d in left] in ([0] * len(left), [1, 3])
            assert keys or not any(os.listdir(f"{path}/{d}") for d in left), "gc takes leftovers"
            if keys:
                with mounted(store, "k", tmp_path / "m") as root:
                    assert (root / "etc/motd").read_text() == "hello"
                store.snapshots.remove("k")
            store.gc(aggressive=True)
            assert store.check().ok
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert (9, ()) in outcomes
    assert point > 15, "the crashes came before the end"
