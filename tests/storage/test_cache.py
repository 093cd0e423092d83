"""The step cache, and gc that keeps a store within limits: what was promised stays.

Through the public face, as a builder uses it.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import stores
from hypothesis import given, settings
from hypothesis import strategies as st

import layerstore
from layerstore.storage import cache as rows
from layerstore.storage import prune
from layerstore.storage.locks import FileLock

SIZE = 400_000
"""Bytes of a step's result; noise, so that this is what it takes."""


def result(number: int) -> bytes:
    return stores.noise(number, SIZE)


def fill(store: layerstore.Store, count: int) -> list[str]:
    """Entries `0`, `1`, ... each with a blob of its own. Returns the digests."""
    out = []
    for number in range(count):
        made = store.put(result(number))
        store.cache.put(str(number), made)
        out.append(made.digest)
    return out


def there(store: layerstore.Store, digest: str) -> bool:
    try:
        store.stat(digest)
    except layerstore.NotFoundError:
        return False
    return True


def sequence(store: layerstore.Store) -> int:
    with store._storage.index.read() as snapshot:
        return snapshot.sequence


# ---- entries ------------------------------------------------------------------------------------


def test_an_entry_is_found_by_later_processes(where):
    with layerstore.open(where) as store:
        made = store.put(b"layer", media_type=stores.TAR)
        assert store.cache.get("RUN a") is None
        assert store.cache.put("RUN a", made) == made
        assert store.cache.put(b"\0\xff" * 5000, made.digest) == made
    with layerstore.open(where) as store:
        assert store.cache.get("RUN a") == made
        assert store.cache.get(b"RUN a") == made
        assert store.cache.get(b"\0\xff" * 5000) == made
        assert store.cache.get("RUN b") is None
    with layerstore.open(where, readonly=True) as store:
        assert store.cache.get("RUN a") == made
        with pytest.raises(layerstore.LayerstoreError):
            store.cache.put("RUN b", made)


def test_an_entry_names_an_image_in_any_way(where):
    with layerstore.open(where) as store:
        digest = stores.put_image(
            store._content, "app:1", [(stores.tar_of({"a": b"1"}), stores.TAR)]
        )
        info = store.images()[0]
        for value in ("app:1", digest, info, store.image("app:1").ref):
            found = store.cache.put(str(value), value)
            assert (found.digest, found.media_type) == (digest, stores.MANIFEST)
        for value in ("app:2", "sha256:" + "00" * 32):
            with pytest.raises(layerstore.NotFoundError):
                store.cache.put("x", value)


def test_an_entry_is_replaced_and_removed(where):
    with layerstore.open(where) as store:
        one, two = store.put(b"one"), store.put(b"two")
        store.cache.put("k", one)
        store.cache.put("k", two)
        assert store.cache.get("k") == two
        assert [entry.digest for entry in store.cache.list()] == [two.digest]
        assert store.cache.remove("k")
        assert not store.cache.remove("k")
        assert store.cache.get("k") is None
        assert store.cache.list() == []


def test_an_entry_keeps_an_image_with_its_layers(where):
    layer = stores.tar_of({"a": stores.words(1, 30_000)})
    with layerstore.open(where) as store:
        stores.put_image(store._content, "app:1", [(layer, stores.TAR)])
        store.cache.put("k", "app:1")
        store.untag("app:1")
    with layerstore.open(where) as store:
        store.gc(aggressive=True)
        found = store.cache.get("k")
        assert stores.get(store._content, stores.sha256(layer)) == layer
        store.tag(found.digest, "app:2")
        assert store.check(full=True).ok
        store.untag("app:2")
        store.cache.remove("k")
    with layerstore.open(where) as store:
        store.gc(aggressive=True)
        assert not there(store, stores.sha256(layer))


def test_what_get_gave_stays(where):
    """Whatever others remove and collect, until the handle is closed."""
    with layerstore.open(where) as store:
        digest = store.put(result(1)).digest
        store.cache.put("k", digest)
    with layerstore.open(where) as store:
        assert store.cache.get("k").digest == digest
        with layerstore.open(where) as other:
            other.cache.remove("k")
            other.gc(aggressive=True, max_used_space=0)
            other.gc(aggressive=True)
        assert stores.get(store._content, digest) == result(1)
    with layerstore.open(where) as store:
        store.gc(aggressive=True)
        assert not there(store, digest)


def test_what_is_condemned_is_taken_back_by_a_put(where):
    with layerstore.open(where) as store:
        digest = store.put(result(1)).digest
        with layerstore.open(where) as other:
            # A reader that began before holds the deletion back: dead, and still there.
            reader = other._storage.operation()
            held = [bytes.fromhex(store._storage.session.id)]
            store._storage.index.update(lambda tx: [rows_drop(tx, lease) for lease in held])
            assert other.gc().pending_bytes > 0
            store.cache.put("k", digest)
            reader.close()
    with layerstore.open(where) as store:
        store.gc(aggressive=True)
        assert store.cache.get("k").digest == digest
        assert stores.get(store._content, digest) == result(1)


def rows_drop(tx, lease):
    from layerstore.storage.leases import drop

    return drop(tx, lease)


def test_a_get_costs_one_commit_and_then_none(where, monkeypatch):
    with layerstore.open(where) as store:
        fill(store, 2)
    with layerstore.open(where) as store:
        before = sequence(store)
        store.cache.get("0")
        assert sequence(store) == before + 1
        for _ in range(50):
            assert store.cache.get("0") is not None
            assert store.cache.get("missing") is None
        assert sequence(store) == before + 1
        # A use is on record again once the last one that is there has grown old.
        monkeypatch.setattr(rows, "RECORD", 0.0)
        store.cache.get("0")
        assert sequence(store) == before + 2


def test_the_last_use_survives_a_crash(where):
    with layerstore.open(where) as store:
        fill(store, 3)
    code = (
        "import sys, os, layerstore; s = layerstore.open(sys.argv[1]); s.cache.get('0'); os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code, where], stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGABRT
    with layerstore.open(where) as store:
        order = [stores.sha256(result(n)) for n in (1, 2, 0)]
        assert [entry.digest for entry in store.cache.list()] == order


def test_the_clock_makes_nothing_old(where, monkeypatch):
    with layerstore.open(where) as store:
        fill(store, 2)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    with layerstore.open(where) as store:
        store.cache.get("0")
        assert store.cache.list()[-1].digest == stores.sha256(result(0))


def test_a_damaged_result_is_a_miss(where):
    with layerstore.open(where) as store:
        layer = stores.tar_of({"a": result(5)})
        stores.put_image(store._content, "app:1", [(layer, stores.TAR)])
        store.cache.put("image", "app:1")
        store.cache.put("other", store.put(result(6)))
    for pack in stores.packs(where):
        stores.flip(pack, 100_000)
    with layerstore.open(where) as store:
        damaged = {damage.digest for damage in store.check(full=True).damaged}
        assert stores.sha256(layer) in damaged
        assert store.cache.get("image") is None
        with pytest.raises(layerstore.NotFoundError):
            store.cache.put("again", stores.sha256(layer))
        assert store.cache.get("other").digest == stores.sha256(result(6))


def test_a_rebuilt_index_has_the_entries_that_are_whole(where):
    with layerstore.open(where) as store:
        fill(store, 3)
        store.cache.get("0")
        # Kept as it came, and lost.
        lost = store.put(stores.gzipped(result(9))[:-9] + b"x", media_type=stores.TAR_GZIP)
        store.cache.put("lost", lost)
        before = [entry for entry in store.cache.list() if entry.digest != lost.digest]
    (raw,) = stores.raws(where)
    os.unlink(raw)
    layerstore.rebuild_index(where)
    with layerstore.open(where) as store:
        assert store.cache.list() == before
        assert store.cache.get("lost") is None
        assert store.cache.get("1").digest == stores.sha256(result(1))
        assert store.check(full=True).ok


# ---- limits -------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first_and_no_more_than_needed(where):
    with layerstore.open(where) as store:
        digests = fill(store, 8)
    with layerstore.open(where) as store:
        store.cache.get("0")
        store.cache.get("3")
    with layerstore.open(where) as store:
        used = store.stats().total
        limit = used - 2 * SIZE - SIZE // 2
        foreseen = store.gc(dry_run=True, max_used_space=limit)
        assert store.stats().total == used
        report = store.gc(max_used_space=limit)
        assert report.within_limits
        assert report.dropped_entries == foreseen.dropped_entries == 3
        assert report.removed_blobs == foreseen.removed_blobs == 3
        assert report.freed_bytes == pytest.approx(foreseen.freed_bytes, rel=0.02)
        assert store.stats().total <= limit
        left = [digests[n] for n in (5, 6, 7, 0, 3)]
        assert [entry.digest for entry in store.cache.list()] == left
        assert [d for d in digests if there(store, d)] == sorted(left, key=digests.index)
        assert store.check(full=True).ok


def test_what_is_needed_never_goes(where):
    with layerstore.open(where) as store:
        digests = fill(store, 4)
        stores.keep(store._content, "named", result(0))
        image = stores.put_image(
            store._content, "app:1", [(stores.tar_of({"a": result(20)}), stores.TAR)]
        )
        store.cache.put("image", "app:1")
        lease = store.lease(ttl=3600)
        with layerstore.open(where) as other:
            other.use_lease(lease.id)
            other.cache.get("1")
    with layerstore.open(where) as store:
        report = store.gc(max_used_space=0)
        assert not report.within_limits
        assert there(store, digests[0])
        assert there(store, digests[1])
        assert not there(store, digests[2])
        assert not there(store, digests[3])
        assert store.image("app:1").ref.digest == image
        # What would give nothing back may stay.
        assert store.gc(max_used_space=0).dropped_entries == 0
        assert store.check(full=True).ok


def test_dead_bytes_go_before_any_entry(where):
    with layerstore.open(where) as store:
        # One block after the other holds a bit of what dies: a plain gc would leave it there.
        for number in range(6):
            parts = {f"a{number}": result(number + 100)[:100_000], f"b{number}": result(number)}
            store.put(stores.tar_of(parts), media_type=stores.TAR)
            store.cache.put(str(number), store.put(stores.tar_of({"b": result(number)})))
    with layerstore.open(where) as store:
        used = store.stats().total
        report = store.gc(max_used_space=used - 500_000)
        assert report.dropped_entries == 0
        assert report.within_limits


def test_copies_of_blobs_go_before_any_entry(where):
    cold, hot = (stores.gzipped(stores.tar_of({"a": result(n)})) for n in (20, 21))
    with layerstore.open(where, raw_cache=4 * SIZE) as store:
        fill(store, 3)
        for name, data in (("cold", cold), ("hot", hot)):
            stores.keep(store._content, name, data, stores.TAR_GZIP)
        assert [blob.result for blob in store.optimize().blobs] == ["gzip", "gzip"]
        for data in (cold, hot, hot, hot):
            assert stores.get(store._content, stores.sha256(data)) == data
    with layerstore.open(where) as store:
        # The first gc finds what is dead.
        store.gc(aggressive=True)
        cache = store._storage.rawcache
        used, copies = store.stats().total, cache.used()
        assert copies > 2 * SIZE
        foreseen = store.gc(dry_run=True, max_used_space=used - SIZE // 2)
        assert (foreseen.dropped_entries, foreseen.within_limits) == (0, True)
        assert cache.used() == copies
        report = store.gc(max_used_space=used - SIZE // 2)
        assert (report.dropped_entries, report.within_limits) == (0, True)
        assert report.freed_bytes >= SIZE
        # The hotter one fits, and stays.
        assert cache.used() < copies - SIZE
        assert cache.used() > SIZE
        # When the copies are not enough, entries go as well.
        report = store.gc(max_used_space=store.stats().total - SIZE - SIZE // 2)
        assert (report.dropped_entries, report.within_limits) == (1, True)
        assert cache.used() == 0
        for data in (cold, hot):
            assert stores.get(store._content, stores.sha256(data)) == data
        assert store.check(full=True).ok


def test_shrinking_waits_for_who_has_the_cache_for_a_moment(where):
    with layerstore.open(where, raw_cache=4 * SIZE) as store:
        data = stores.gzipped(stores.tar_of({"a": result(20)}))
        stores.keep(store._content, "blob", data, stores.TAR_GZIP)
        store.optimize()
        stores.get(store._content, stores.sha256(data))
        cache = store._storage.rawcache
        assert cache.used() > SIZE
        lock = FileLock(os.path.join(cache.directory, "lock"))
        assert lock.try_acquire()
        timer = threading.Timer(0.2, lock.release)
        timer.start()
        try:
            assert cache.shrink(0) > SIZE
        finally:
            timer.join()


def test_free_space_counts_too(where, monkeypatch):
    with layerstore.open(where) as store:
        fill(store, 4)
    with layerstore.open(where) as store:
        disk = os.statvfs(where)
        free = disk.f_bavail * disk.f_frsize
        assert store.gc(min_free_space=1).dropped_entries == 0
        real = os.statvfs

        # A disk of our own: as much is free as the store does not take of 3 MB.
        def statvfs(path):
            found = list(real(path))
            found[4] = (3_000_000 - stores.du(where)) // found[1]
            return os.statvfs_result(found)

        monkeypatch.setattr(os, "statvfs", statvfs)
        has = 3_000_000 - stores.du(where)
        report = store.gc(min_free_space=has + SIZE + 1000)
        assert (report.dropped_entries, report.within_limits) == (2, True)
        report = store.gc(min_free_space=free)
        assert (report.dropped_entries, report.within_limits) == (2, False)


def test_what_a_reader_holds_back_costs_no_further_entries(where):
    with layerstore.open(where) as store:
        fill(store, 6)
    with layerstore.open(where) as reader, layerstore.open(where) as store:
        blob = reader.open_blob(stores.sha256(result(0)))
        used = store.stats().total
        report = store.gc(max_used_space=used - SIZE)
        assert report.dropped_entries == 1
        assert report.pending_bytes > 0
        assert not report.within_limits
        again = store.gc(max_used_space=used - SIZE)
        assert again.dropped_entries == 0
        assert blob.readall() == result(0)
        blob.close()
        assert store.gc(max_used_space=used - SIZE // 2).within_limits
        assert len(store.cache.list()) == 5


def test_hundreds_of_entries_go_in_few_rounds(where, monkeypatch):
    calls = []
    real = prune.victims
    monkeypatch.setattr(prune, "victims", lambda *args: calls.append(1) or real(*args))
    with layerstore.open(where) as store:
        shared = {f"s{i}": stores.words(i, 9000) for i in range(20)}
        for number in range(300):
            some = dict(itertools.islice(shared.items(), number % 20))
            tar = stores.tar_of({**some, "own": stores.noise(number, 20_000)})
            store.cache.put(str(number), store.put(tar, media_type=stores.TAR))
    with layerstore.open(where) as store:
        used = store.stats().total
        report = store.gc(max_used_space=used // 2)
        assert report.within_limits
        assert used // 2 - 100_000 < store.stats().total <= used // 2
        assert 0 < len(store.cache.list()) == 300 - report.dropped_entries
        assert len(calls) <= 3
        assert store.check(full=True).ok


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("pgr"), st.integers(0, 7)), max_size=40), st.integers(0, 9)
)
def test_order_of_use_against_a_list(tmp_path_factory, steps, keep):
    """The oracle: a plain list, moved to its end by each use."""
    where = str(tmp_path_factory.mktemp("cache") / "s")
    size = 100_000
    order: list[int] = []
    with layerstore.open(where) as store:
        for verb, number in steps:
            key = str(number)
            if verb == "p":
                store.cache.put(key, store.put(stores.noise(number, size)))
            elif verb == "g":
                found = store.cache.get(key)
                assert (found is not None) == (number in order)
                store._storage.cache_uses.clear()  # as if a minute had passed
                if found is None or store.cache.get(key) is None:
                    continue
            else:
                assert store.cache.remove(key) == (number in order)
            if number in order:
                order.remove(number)
            if verb != "r":
                order.append(number)
    digest_of = {stores.sha256(stores.noise(n, size)): n for n in range(8)}
    with layerstore.open(where) as store:
        assert [digest_of[entry.digest] for entry in store.cache.list()] == order
        store.gc(aggressive=True)
        used = store.stats().total
        gone = max(0, len(order) - keep)
        report = store.gc(max_used_space=used - gone * size + size // 2)
        assert report.dropped_entries == gone
        assert [digest_of[entry.digest] for entry in store.cache.list()] == order[gone:]


# ---- many processes, and their ends -------------------------------------------------------------

WORKER = """
import os, random, sys
sys.path.insert(0, sys.argv[3])
import layerstore, stores
source = random.Random(int(sys.argv[2]))
while True:
    with layerstore.open(sys.argv[1], timeout=60) as store:
        for _ in range(source.randrange(1, 12)):
            number = source.randrange(30)
            found = store.cache.get(str(number))
            data = stores.noise(number % 20, 60_000)
            if found is None:
                store.cache.put(str(number), store.put(data))
                os.write(1, b"put\\n")
            else:
                with store.open_blob(found.digest) as blob:
                    assert blob.readall() == data
                os.write(1, b"got\\n")
            if source.random() < 0.3:
                store.gc(max_used_space=source.randrange(300_000, 1_200_000))
                os.write(1, b"gc\\n")
"""


def test_killed_and_raced_at_any_moment(fast_path: Path):
    """Builders that get, put and prune, killed again and again: each hit is whole to its reader, the
    store stays whole, and a gc to nothing leaves nothing."""
    path = str(fast_path / "s")
    layerstore.open(path).close()
    tests = str(Path(__file__).parents[1])
    log = fast_path / "said"
    source = random.Random(4)
    errors = fast_path / "errors"

    def start(seed: int) -> subprocess.Popen[bytes]:
        with log.open("ab") as out, errors.open("ab") as err:
            command = [sys.executable, "-c", WORKER, path, str(seed), tests]
            return subprocess.Popen(command, stdout=out, stderr=err)

    running = [start(seed) for seed in range(3)]
    try:
        for seed in range(3, 28):
            # A start takes a while; how long depends on what else the machine does.
            reach = log.read_text().count("gc") + 1
            deadline = time.monotonic() + 20
            while log.read_text().count("gc") < reach and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.1 * source.random())
            victim = running.pop(source.randrange(3))
            assert victim.poll() is None, errors.read_text()
            victim.kill()
            victim.wait()
            running.append(start(seed))
            if seed % 8 == 0:
                with layerstore.open(path, timeout=60) as store:
                    store.gc(max_used_space=500_000)
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert errors.read_text() == ""
    said = log.read_text().split()
    assert min(said.count(word) for word in ("put", "got", "gc")) >= 5, said
    with layerstore.open(path) as store:
        assert store.check(full=True).ok
        store.gc(max_used_space=0)
        assert store.cache.list() == []
        assert stores.packs(path) == []
        assert store.check(full=True).ok


def test_the_command_line_says_what_went(where):
    with layerstore.open(where) as store:
        fill(store, 4)
    run = [sys.executable, "-m", "layerstore", "--store", where]
    out = subprocess.run(
        [*run, "--json", "gc", "--max-used-space", "2M"],
        capture_output=True,
        check=True,
        text=True,
    )
    document = json.loads(out.stdout)
    assert document["dropped_entries"] == 2
    assert document["within_limits"] is True
    out = subprocess.run(
        [*run, "gc", "--min-free-space", "1000T"], capture_output=True, check=True, text=True
    )
    assert "entries of the cache" in out.stdout
    assert "beyond the limit" in out.stderr
