"""Copies of popular blobs: served from a file, bounded, dropped when wrong, never the last copy."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator

import pytest
import stores

from layerstore.layers.content import Content
from layerstore.storage import rawcache
from layerstore.storage.accounting import stats
from layerstore.storage.locks import FileLock
from layerstore.storage.rawcache import file_size

BUDGET = 1 << 20


@pytest.fixture
def content(where: str) -> Iterator[Content]:
    with stores.opened(where, raw_cache=BUDGET) as content:
        yield content


def made(content: Content, seed: int, size: int = 300_000) -> str:
    """A blob that is made again for each reader; it has been read once, for its proof."""
    tar = stores.tar_of({"noise": stores.noise(seed, size)})
    with content.operation() as op:
        digest = op.gzip(op.put(tar, media_type=stores.TAR).digest, 6, stores.TAR_GZIP).digest
        with op.open(digest) as blob:
            for _ in blob.chunks():
                pass
        return digest


def copies(content: Content) -> list[str]:
    """Names of copies, and of those that are being written."""
    folder = content.storage.rawcache.directory
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name for name in names if len(name.removesuffix(".new")) == 12)


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be made again from here on."""
    monkeypatch.setattr("layerstore.layers.assemble._gzip_pieces", None)


def test_the_second_read_is_of_a_file(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = made(content, 1)
    data = stores.get(content, digest)
    (name,) = copies(content)
    path = os.path.join(content.storage.rawcache.directory, name)
    assert os.path.getsize(path) == file_size(len(data))
    refuse(monkeypatch)
    assert stores.get(content, digest) == data
    with content.open(digest) as blob:
        blob.seek(len(data) // 2)
        assert blob.readall() == data[len(data) // 2 :]


def test_who_has_to_wait_for_a_moment_fills_it_nevertheless(content: Content) -> None:
    """As where a client asks for all layers of an image at once."""
    first, second = made(content, 1), made(content, 2)
    stores.get(content, first)
    lock = FileLock(os.path.join(content.storage.rawcache.directory, "lock"))
    assert lock.try_acquire()
    gone = threading.Timer(0.05, lock.release)
    gone.start()
    stores.get(content, second)
    gone.join()
    assert len(copies(content)) == 2


def test_a_range_fills_nothing(content: Content) -> None:
    digest = made(content, 1)
    with content.open(digest) as blob:
        blob.seek(1000)
        blob.readall()
    assert copies(content) == []


def test_a_read_that_ends_early_leaves_nothing(content: Content) -> None:
    digest = made(content, 1)
    with content.open(digest) as blob:
        next(blob.chunks())
        assert len(copies(content)) <= 1
    assert copies(content) == []


def test_without_a_budget_copies_are_read_and_not_made(
    where: str, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = made(content, 1), made(content, 2)
    data = stores.get(content, first)
    with stores.opened(where) as other:
        stores.get(other, second)
        assert len(copies(other)) == 1
        refuse(monkeypatch)
        assert stores.get(other, first) == data


def test_the_budget_holds_and_the_hottest_stay(content: Content) -> None:
    digests = [made(content, seed) for seed in range(5)]
    for _ in range(3):
        stores.get(content, digests[0])
        stores.get(content, digests[1])
    hot = copies(content)
    assert len(hot) == 2
    for digest in digests[2:]:
        stores.get(content, digest)
    assert set(hot) <= set(copies(content))
    assert content.storage.rawcache.used() <= BUDGET
    # Read more often than those, the others take their place.
    for _ in range(6):
        for digest in digests[2:]:
            stores.get(content, digest)
    assert not set(hot) <= set(copies(content))
    assert content.storage.rawcache.used() <= BUDGET


def test_what_is_hot_is_known_to_the_next_process(where: str, content: Content) -> None:
    digest = made(content, 1)
    for _ in range(4):
        stores.get(content, digest)
    content.storage.rawcache.save()
    name = copies(content)[0]
    with stores.opened(where, raw_cache=BUDGET) as other:
        cache = other.storage.rawcache
        assert cache._heat_of(name) >= 4


def test_counts_cool_down(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawcache, "COOL_AT", 8)
    digest = made(content, 1)
    for _ in range(9):
        stores.get(content, digest)
    cache = content.storage.rawcache
    cache.save()
    assert cache._heat_of(copies(content)[0]) < 9


def test_a_blob_larger_than_the_budget_is_not_copied(content: Content) -> None:
    digest = made(content, 1, 2 << 20)
    stores.get(content, digest)
    assert copies(content) == []


@pytest.mark.parametrize("where_in", [0.0, 0.5, 0.999, "trailer", "cut"])
def test_a_damaged_copy_is_dropped_and_the_blob_made_again(
    content: Content, where_in: float | str
) -> None:
    digest = made(content, 1)
    data = stores.get(content, digest)
    cache = content.storage.rawcache
    path = os.path.join(cache.directory, copies(content)[0])
    with open(path, "rb") as f:
        whole = f.read()
    if where_in == "cut":
        os.truncate(path, len(data) // 2)
    elif where_in == "trailer":
        stores.flip(path, os.path.getsize(path) - 3)
    else:
        stores.flip(path, int(len(data) * float(where_in)))
    assert stores.get(content, digest) == data
    if os.path.exists(path):
        # Dropped, and made anew by this read.
        with open(path, "rb") as f:
            assert f.read() == whole
    stores.clean(content)


def test_a_copy_of_another_blob_is_none(content: Content) -> None:
    by_size: dict[int, str] = {}
    seed, first, second = 0, "", ""
    while not second:
        seed += 1
        first = made(content, seed)
        with content.open(first) as blob:
            second = by_size.pop(blob.size, "")
            by_size[blob.size] = first
    data = [stores.get(content, first), stores.get(content, second)]
    one, two = (os.path.join(content.storage.rawcache.directory, n) for n in copies(content))
    assert os.path.getsize(one) == os.path.getsize(two)
    shutil.copyfile(one, two)
    assert [stores.get(content, first), stores.get(content, second)] == data


def test_it_is_no_form_and_gc_takes_it_with_its_blob(where: str) -> None:
    with stores.opened(where, raw_cache=BUDGET) as content:
        digest = made(content, 1)
        data = stores.get(content, digest)
        with content.operation() as op:
            info = op.stat(digest)
        assert info is not None
        assert info.forms == ("gzip",)
        stores.gc(content.storage)
        assert len(copies(content)) == 1
        found = stats(content.storage, per_image=False)
        assert found.raw_cache >= len(data)
        assert found.total == (
            found.packs + found.raw + found.raw_cache + found.unpacked + found.index
        )
    with stores.opened(where, raw_cache=BUDGET) as content:
        report = stores.gc(content.storage)
        assert copies(content) == []
        assert report.freed_bytes >= len(data)


def test_what_was_never_finished_goes_with_gc_unless_somebody_writes_it(content: Content) -> None:
    digest = made(content, 1)
    with content.open(digest) as blob:
        cache = content.storage.rawcache
        filler = cache.begin(blob._serial, blob.size)
        assert filler is not None
        assert cache.begin(blob._serial, blob.size) is None
        stores.gc(content.storage)
        assert len(copies(content)) == 1
        # As after a kill: the lock goes with the process.
        filler.lock.release()
        stores.gc(content.storage)
        assert copies(content) == []


def test_all_may_go_at_any_moment(content: Content) -> None:
    digest = made(content, 1, 700_000)
    data = stores.get(content, digest)
    with content.open(digest) as blob:
        pieces = blob.chunks()
        got = bytes(next(pieces))
        shutil.rmtree(content.storage.rawcache.directory)
        got += b"".join(bytes(piece) for piece in pieces)
    assert got == data
    assert stores.get(content, digest) == data


def test_shrinking_takes_the_coldest_first(content: Content) -> None:
    cold, hot = made(content, 1), made(content, 2)
    stores.get(content, cold)
    for _ in range(3):
        stores.get(content, hot)
    cache = content.storage.rawcache
    freed = cache.shrink(file_size(310_000) + 10_000)
    assert freed > 300_000
    with content.open(hot) as blob:
        assert copies(content) == [f"{blob._serial:012x}"]
    assert cache.shrink(0) > 0
    assert copies(content) == []


def test_a_full_disk_only_means_no_copy(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    from layerstore.errors import StoreFullError

    digest = made(content, 1)
    disk = content.storage.disk

    def full(*args: object) -> None:
        raise StoreFullError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", full)
        assert stores.sha256(stores.get(content, digest)) == digest
    assert copies(content) == []
