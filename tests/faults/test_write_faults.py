"""Any write, sync, rename or unlink may fail: what was acknowledged is there, the store is whole.

`Disk` is the one seam; here it fails at its n-th call, for every n, while blobs of every form are put
and collected. After each fault the store is opened anew, as after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stores

from layerstore.errors import LayerstoreError, StoreFullError
from layerstore.layers.content import Content
from layerstore.storage import gc
from layerstore.storage.disk import Disk
from layerstore.storage.rebuild import rebuild
from layerstore.storage.storage import open_storage

CALLS = (
    "open", "write_at", "writev_at", "note", "sync", "sync_dir", "rename", "unlink", "truncate",
    "mkdir", "allocate", "punch",
)  # fmt: skip
FILES = {f"f{i}": stores.words(i, 9_000) for i in range(12)}
TAR = stores.tar_of(FILES)
OTHER = stores.tar_of({n: d for i, (n, d) in enumerate(FILES.items()) if i % 6 == 0})
RAW = stores.gzipped(stores.tar_of({"x": stores.noise(3, 5000)}))
PLAIN = stores.words(5, 60_000)


class Failing(Disk):
    """Fails its `at`-th call with `code`; with `torn`, a write gets half-way before that."""

    def __init__(self, at: int, code: int, *, torn: bool = True) -> None:
        super().__init__()
        self.left = at
        self.code = code
        self.torn = torn
        self.count = 0
        self.what = ""

    def _fault(self, name: str) -> bool:
        self.count += 1
        if self.count != self.left:
            return False
        self.what = name
        return True


def _wrap(name: str) -> Callable[..., Any]:
    real = getattr(Disk, name)

    def call(self: Failing, *args: Any) -> Any:
        if self._fault(name):
            if name == "write_at" and self.torn:
                fd, data, offset, _ = args
                os.pwrite(fd, memoryview(data).cast("B")[: len(data) // 2], offset)
            error = OSError(self.code, os.strerror(self.code))
            if name in ("sync", "sync_dir"):
                self.poison = "a sync failed (injected)"
            if self.code == errno.ENOSPC:
                raise StoreFullError("no space left (injected)") from error
            raise error
        return real(self, *args)

    return call


for _name in CALLS:
    setattr(Failing, _name, _wrap(_name))


def _work(path: str, disk: Disk, done: dict[str, bytes | None]) -> None:
    """Puts, names, unnames and collects; writes down in `done` what was acknowledged: name to
    content, or None for a name whose fate is open."""
    storage = open_storage(path, disk=disk, timeout=20.0)
    try:
        content = Content(storage)

        def keep(name: str, data: bytes, kind: str) -> None:
            done[name] = None
            stores.keep(content, name, data, kind)
            done[name] = data

        def drop(name: str) -> None:
            done[name] = None
            stores.untag(content, name)
            del done[name]

        keep("tar", TAR, stores.TAR)
        keep("raw", RAW, stores.TAR_GZIP)
        keep("plain", PLAIN, "text/plain")
        keep("inline", b"small", "text/plain")
        keep("other", OTHER, stores.TAR)
        drop("tar")
        drop("raw")
        gc.collect(storage, aggressive=True)
        keep("tar", TAR, stores.TAR)
        drop("other")
        gc.checkpoint(storage)
        gc.collect(storage, aggressive=True)
    finally:
        storage.close()


def _verify(path: str, done: dict[str, bytes | None]) -> None:
    with stores.opened(path) as content:
        with content.operation() as op:
            names = {r.name: r.digest for r in op.refs()}
        for name, data in done.items():
            if data is not None:
                assert stores.get(content, names[name]) == data
        for name in names:
            assert name in done
        stores.clean(content)
        gc.collect(content.storage, aggressive=True)
        stores.clean(content)
        for name, digest in names.items():
            got = stores.get(content, digest)
            assert done[name] is None or got == done[name]
        # It goes on.
        stores.keep(content, "after", TAR, stores.TAR)
        assert stores.get(content, stores.sha256(TAR)) == TAR
        stores.untag(content, "after", *names)
        gc.collect(content.storage, aggressive=True)
        with content.operation() as op:
            assert list(op.blobs()) == []
    with stores.opened(path) as content:
        gc.collect(content.storage, aggressive=True)
        assert stores.packs(path) == []
        assert stores.raws(path) == []
        left = os.listdir(os.path.join(path, "gc")) + os.listdir(os.path.join(path, "meta"))
        assert not [n for n in left if n.endswith((".new", ".condemned"))]


def _count(path: str) -> int:
    disk = Failing(0, errno.EIO)
    _work(path, disk, {})
    return disk.count


def test_the_work_itself(fast_path: Path) -> None:
    done: dict[str, bytes | None] = {}
    _work(str(fast_path / "s"), Disk(), done)
    assert sorted(done) == ["inline", "plain", "tar"]
    _verify(str(fast_path / "s"), done)


def _sweep(fast_path: Path, code: int, start: int, step: int, after: Callable[[str], None]) -> None:
    total = _count(str(fast_path / "count"))
    assert total > 80
    for at in range(1 + start, total + 1, step):
        path = str(fast_path / f"s{at}")
        done: dict[str, bytes | None] = {}
        disk = Failing(at, code)
        with contextlib.suppress(OSError, LayerstoreError):
            _work(path, disk, done)
        after(path)
        try:
            _verify(path, done)
        except BaseException as e:
            e.add_note(f"fault at call {at} of {total}: {disk.what}")
            raise
        shutil.rmtree(path)


@pytest.mark.parametrize("start", [0, 1])
def test_failed_calls(fast_path: Path, start: int) -> None:
    _sweep(fast_path, errno.EIO, start, 2, lambda _: None)


@pytest.mark.parametrize("start", [0, 1])
def test_no_space_at_any_call(fast_path: Path, start: int) -> None:
    _sweep(fast_path, errno.ENOSPC, start, 2, lambda _: None)


def test_rebuild_after_any_fault(fast_path: Path) -> None:
    def again(path: str) -> None:
        if os.path.exists(os.path.join(path, "meta", "00000001.log")) or os.listdir(
            os.path.join(path, "meta")
        ):
            assert rebuild(path).ok

    _sweep(fast_path, errno.EIO, 12, 3, again)


def test_one_operation_after_a_fault_commits_nothing_dangling(fast_path: Path) -> None:
    """A put that failed half-way must not lend its numbers to the next put of the operation."""
    for at in range(1, 45, 2):
        path = str(fast_path / f"s{at}")
        open_storage(path).close()
        disk = Failing(-1, errno.ENOSPC)
        kept: list[bytes] = []
        with stores.opened(path, disk=disk) as content, content.operation() as op:
            disk.left, disk.count = at, 0
            for data, kind in ((TAR, stores.TAR), (OTHER, stores.TAR), (PLAIN, "text/plain")):
                try:
                    op.put(data, digest=stores.sha256(data), media_type=kind)
                except (LayerstoreError, OSError):
                    continue
                kept.append(data)
            disk.left = -1
            for data in kept:
                assert stores.get(content, stores.sha256(data)) == data
        with stores.opened(path) as content:
            stores.clean(content)


def test_a_failed_sync_poisons_the_handle(fast_path: Path) -> None:
    path = str(fast_path / "s")
    with stores.opened(path) as content:
        stores.keep(content, "before", PLAIN)

    class NoSync(Disk):
        broken = False

        def sync(self, fd: int, name: str) -> None:
            if self.broken and name.endswith(".pack"):
                self.poison = f"a sync of {name} failed (Input/output error)"
                raise OSError(errno.EIO, "Input/output error", name)
            super().sync(fd, name)

    disk = NoSync()
    with stores.opened(path, disk=disk) as content:
        disk.broken = True
        with pytest.raises(OSError, match="Input/output"):
            stores.put(content, TAR, stores.TAR)
        disk.broken = False
        # No retry: nobody knows what the kernel has dropped. Reads go on.
        for data in (TAR, b"small"):
            with pytest.raises(LayerstoreError, match="may not write any more"):
                stores.put(content, data)
        with pytest.raises(LayerstoreError, match="may not write any more"):
            gc.collect(content.storage)
        assert stores.get(content, stores.sha256(PLAIN)) == PLAIN
    with stores.opened(path) as content:
        stores.keep(content, "after", TAR, stores.TAR)
        stores.clean(content)
