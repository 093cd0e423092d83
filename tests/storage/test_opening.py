"""Where a store may lie, who may open it, and what a full disk does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores

import layerstore
from layerstore.errors import (
    CorruptError,
    LayerstoreError,
    NotFoundError,
    PermissionDeniedError,
    StoreFullError,
    UnsupportedError,
)
from layerstore.layers.content import Content
from layerstore.storage import gc, mounts
from layerstore.storage.rebuild import rebuild
from layerstore.storage.storage import create, open_storage

MIB = 1 << 20


def test_a_remote_filesystem_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = os.stat(tmp_path).st_dev
    table = tmp_path / "mountinfo"
    line = f"1 0 {os.major(device)}:{os.minor(device)} / {tmp_path} rw - %s server:/x rw\n"
    monkeypatch.setattr(mounts, "MOUNTINFO", str(table))
    for kind in ("nfs4", "cifs", "fuse.sshfs", "9p"):
        table.write_text(line % kind)
        with pytest.raises(UnsupportedError, match=kind):
            open_storage(str(tmp_path / "s"))
        with pytest.raises(NotFoundError):
            open_storage(str(tmp_path / "s"), readonly=True)
    table.write_text(line % "ext4")
    open_storage(str(tmp_path / "s")).close()
    table.write_text(line % "nfs")
    with pytest.raises(UnsupportedError, match="nfs"):
        open_storage(str(tmp_path / "s"))
    with pytest.raises(UnsupportedError, match="nfs"):
        rebuild(str(tmp_path / "s"))


def test_a_mount_point_with_odd_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "with space\u00e9"
    folder.mkdir()
    table = tmp_path / "mountinfo"
    escaped = str(folder).replace(" ", "\\040")
    table.write_text(
        f"1 0 0:99 / / rw - ext4 /dev/x rw\n2 1 0:98 / {escaped} rw - nfs4 server:/x rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTINFO", str(table))
    assert mounts.filesystem_of(str(folder)) == "nfs4"
    assert mounts.filesystem_of(str(tmp_path)) == "ext4"


def test_a_newer_format_is_refused(where: str) -> None:
    create(where)
    path = os.path.join(where, "FORMAT")
    with open(path) as f:
        value = json.load(f)
    for change, error in (
        ({"version": 2}, UnsupportedError),
        ({"chunker": "rabin"}, UnsupportedError),
        ({"index": "sqlite"}, UnsupportedError),
        ({"format": "other"}, CorruptError),
        ({"version": "1"}, CorruptError),
        ({"secret": "zz"}, CorruptError),
    ):
        with open(path, "w") as f:
            json.dump({**value, **change}, f)
        for readonly in (False, True):
            with pytest.raises(error):
                open_storage(where, readonly=readonly)
    with open(path, "w") as f:
        f.write("not json")
    with pytest.raises(CorruptError):
        open_storage(where)
    with open(path, "w") as f:
        json.dump(value, f)
    open_storage(where).close()


def test_only_an_empty_directory_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("something else")
    with pytest.raises(LayerstoreError, match=r"mine\.txt"):
        open_storage(str(tmp_path))
    assert os.listdir(tmp_path) == ["mine.txt"]
    with pytest.raises(NotFoundError):
        open_storage(str(tmp_path / "none"), create_missing=False)
    assert not (tmp_path / "none").exists()


_AS_OTHER = """
import os, sys, tempfile
sys.path[:0] = sys.argv[2:]
import stores
from layerstore.errors import PermissionDeniedError, UnsupportedError
from layerstore.storage.storage import open_storage
from layerstore.storage.gc import collect
from layerstore.layers.content import Content
from layerstore.layers import checking, tree
# Used before: what is imported on first use may lie where the other user may not look.
with tempfile.TemporaryDirectory() as warm, stores.opened(warm + "/s") as content:
    stores.keep(content, "a", bytes(5000))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
path = sys.argv[1]
try:
    open_storage(path)
except PermissionDeniedError as e:
    print("denied")
storage = open_storage(path, readonly=True)
content = Content(storage)
with content.operation() as op:
    for ref in op.refs():
        data = stores.get(content, ref.digest)
        assert stores.sha256(data) == ref.digest
        print(ref.name, op.have(ref.digest).bytes)
    for attempt in (
        lambda: op.put(b"x"), lambda: op.commit_refs({}, ["a"]), lambda: collect(storage)
    ):
        try:
            attempt()
        except (UnsupportedError, PermissionDeniedError):
            print("refused")
assert stores.full_check(content).ok
storage.close()
"""


def _as_other(path: str) -> list[str]:
    import layerstore

    root = os.path.dirname(os.path.dirname(os.path.abspath(layerstore.__file__)))
    tests = os.path.dirname(os.path.abspath(stores.__file__))
    done = subprocess.run(
        [sys.executable, "-c", _AS_OTHER, path, root, tests],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A directory that other users may enter (those of pytest are private)."""
    import shutil
    import tempfile

    made = Path(tempfile.mkdtemp(prefix="layerstore-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def _others_may_read(path: str) -> None:
    for folder, _, names in os.walk(path):
        os.chmod(folder, 0o755)
        for name in names:
            os.chmod(os.path.join(folder, name), 0o644)


@pytest.mark.needs("root")
def test_another_user_may_read(shared_path: Path) -> None:
    path = str(shared_path / "s")
    with stores.opened(path) as content:
        stores.keep(content, "a", stores.words(1, 300_000))
        stores.keep(content, "b", stores.gzipped(stores.noise(1, 5000)))
    _others_may_read(path)
    said = _as_other(path)
    assert (
        said
        == ["denied", "a 300000", f"b {len(stores.gzipped(stores.noise(1, 5000)))}"]
        + ["refused"] * 3
    )


@contextlib.contextmanager
def _mounted(*command: str, at: Path) -> Iterator[None]:
    subprocess.run(["mount", *command, str(at)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.needs("root")
def test_a_filesystem_that_is_read_only(shared_path: Path) -> None:
    path, view = shared_path / "s", shared_path / "view"
    view.mkdir()
    with stores.opened(str(path)) as content:
        stores.keep(content, "a", stores.words(1, 300_000))
    with _mounted("--bind", "-o", "ro", str(path), at=view):
        with pytest.raises(PermissionDeniedError):
            open_storage(str(view))
        storage = open_storage(str(view), readonly=True)
        content = Content(storage)
        assert stores.get(content, stores.sha256(stores.words(1, 300_000)))
        assert stores.full_check(content).ok
        with pytest.raises(UnsupportedError):
            stores.put(content, b"x")
        storage.close()


def test_private_to_its_owner(where: str) -> None:
    with stores.opened(where) as content:
        stores.keep(content, "a", stores.words(1, 100_000))
        stores.keep(content, "b", stores.gzipped(b"2"))
    modes = {
        os.stat(os.path.join(folder, name)).st_mode & 0o077
        for folder, folders, names in os.walk(where)
        for name in (*folders, *names)
    }
    assert modes == {0}


# ---- a full disk -------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 filesystem of 40 MiB, nothing of it reserved for root."""
    image, at = tmp_path / "image", tmp_path / "disk"
    at.mkdir()
    with open(image, "wb") as f:
        f.truncate(40 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    with _mounted("-o", "loop", str(image), at=at):
        yield at


def _free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@pytest.mark.needs("root", "mkfs.ext4")
@pytest.mark.parametrize("kind", ["text/plain", stores.TAR, stores.TAR_GZIP])
def test_a_full_disk(small_disk: Path, kind: str) -> None:
    path = str(small_disk / "s")
    kept: dict[str, bytes] = {}
    said = ""

    def blob(n: int) -> bytes:
        data = stores.noise(n, 900_000)
        if kind == "text/plain":
            return data
        tar = stores.tar_of({f"f{n}": data})
        return tar if kind == stores.TAR else stores.gzipped(tar)

    with stores.opened(path) as content:
        for n in range(100):
            try:
                stores.keep(content, f"n{n}", blob(n), kind)
            except StoreFullError as e:
                said = str(e)
                break
            kept[f"n{n}"] = blob(n)
        assert "no space" in said
        assert 25 < len(kept) < 45
        # Not a byte is left, not even for a session.
        with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))
        assert _free(small_disk) < 4096
        # What was acknowledged can be read, on the open handle and on a new one.
        assert stores.get(content, stores.sha256(kept["n3"])) == kept["n3"]
    assert _free(small_disk) < 128 * 1024
    with stores.opened(path) as content:
        assert stores.get(content, stores.sha256(kept["n5"])) == kept["n5"]
        with pytest.raises(StoreFullError):
            stores.keep(content, "more", blob(999), kind)
        # Untag may need a block of its own; a collector is given the reserve.
        with contextlib.suppress(StoreFullError):
            stores.untag(content, "n0")
            del kept["n0"]
        report = gc.collect(content.storage)
        assert report.complete
    with stores.opened(path) as content:
        for name in [f"n{n}" for n in range(1, 8)]:
            stores.untag(content, name)
            del kept[name]
        before = _free(small_disk)
        gc.collect(content.storage)
        assert _free(small_disk) - before > 4 * MIB
        stores.clean(content)
        # It goes on.
        stores.keep(content, "more", blob(999), kind)
        kept["more"] = blob(999)
        stores.clean(content)
        for name, data in kept.items():
            with content.operation() as op:
                ref = op.ref(name)
                assert ref is not None
            assert stores.get(content, ref.digest) == data
    assert rebuild(path).ok


def _fill(disk: Path) -> None:
    """Not a byte is left, not even for a session."""
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))


@pytest.mark.needs("root", "mkfs.ext4")
def test_names_and_leases_can_be_let_go_on_a_full_disk(small_disk: Path) -> None:
    """Otherwise nothing would be dead, and nothing could ever be freed."""
    path = str(small_disk / "s")
    with stores.opened(path) as content:
        layer = stores.tar_of({"f": stores.noise(1, MIB)})
        stores.put_image(content, "app:1", [(layer, stores.TAR)])
    with layerstore.open(path) as store:
        store.use_lease(store.lease(ttl=3600).id)
        held = store.put(stores.noise(2, 9 * MIB))
        store.gc()
    for left in (1, 0):
        _fill(small_disk)
        assert _free(small_disk) < 4096
        with layerstore.open(path) as store:
            if left:
                store.untag("app:1")
                assert store.images() == []
            else:
                store.drop_lease(store.leases()[0].id)
            store.gc()
            assert [blob.digest for blob in store.blobs()] == [held.digest] * left
    assert _free(small_disk) > 8 * MIB


@pytest.mark.needs("root", "mkfs.ext4")
def test_a_put_that_failed_leaves_the_disk_as_it_was(small_disk: Path) -> None:
    path = str(small_disk / "s")
    tars = [stores.tar_of({f"{n}": stores.noise(n, 50 * MIB)}) for n in range(2)]
    with layerstore.open(path) as store:
        for first in (True, False):
            if not first:
                store.use_lease(store.lease(ttl=3600).id)
                store.put(stores.noise(9, MIB))
            before = _free(small_disk)
            with pytest.raises(StoreFullError):
                store.put(tars[first])
            assert before - _free(small_disk) < MIB
    with stores.opened(path) as content:
        stores.clean(content)


def test_a_dry_run_counts_what_dead_writers_left(where: str) -> None:
    with stores.opened(where) as content:
        stores.keep(content, "a", stores.words(1, 300_000))
        (pack,) = stores.packs(where)
        with open(pack, "ab") as f:
            f.write(bytes(5 * MIB))
        os.makedirs(os.path.join(where, "raw", "ff"), exist_ok=True)
        Path(where, "raw", "ff", "0000000000ff").write_bytes(bytes(3 * MIB))
        said = gc.collect(content.storage, dry_run=True).freed_bytes
        assert abs(said - 8 * MIB) < MIB // 8
        assert abs(stores.gc(content.storage).freed_bytes - said) < MIB // 8
        stores.clean(content)


@pytest.mark.needs("root", "mkfs.ext4")
def test_a_full_disk_while_creating(small_disk: Path) -> None:
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
    with pytest.raises((StoreFullError, OSError)):
        open_storage(str(small_disk / "s"))
    os.unlink(small_disk / "filler")
    with stores.opened(str(small_disk / "s")) as content:
        stores.keep(content, "a", b"1")
        stores.clean(content)
