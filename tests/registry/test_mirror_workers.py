"""A mirror of several processes fetches once for all of them; and what it lets go again."""

from __future__ import annotations

import http.client
import math
import os
import signal
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from oci import oci_make as make
from registry.claims_child import hold
from registry.test_registry_mirror import get, layer, mirror, slowly
from registry.test_registry_operation import awaited
from registry.test_registry_server import serving_with

import layerstore
from layerstore.registry import asked
from layerstore.registry.asked import Asked
from layerstore.registry.claims import Claims
from layerstore.registry.mirror import PAUSE
from layerstore.storage import clock, leases

BIG = os.urandom(6 << 20)


@pytest.fixture
def image(upstream) -> make.Image:
    made = make.image(make.tar({"big": BIG}), compress=False)
    upstream.add("team/app", made, "1")
    return made


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    names = {int(one): Path(f"/proc/{one}/cmdline").read_bytes() for one in text.split()}
    return [one for one, words in names.items() if b"spawn_main" in words]


def test_many_clients_of_many_workers_make_one_fetch(tmp_path, upstream, image) -> None:
    digest, data = layer(image), image.blobs[layer(image)]
    half, go, together = threading.Event(), threading.Event(), threading.Barrier(24)
    slowly(upstream, digest, data, half, go)
    with mirror(tmp_path / "s", upstream, "--workers", "4") as url:

        def client(n: int) -> tuple[bytes, bytes]:
            together.wait(60)
            first = get(f"{url}/v2/team/app/manifests/1")[2]
            with urllib.request.urlopen(f"{url}/v2/team/app/blobs/{digest}", timeout=60) as answer:
                some = answer.read(len(data) // 4)  # it comes before the upstream has given all
                seen.release()
                return first, some + answer.read()

        seen = threading.Semaphore(0)
        with ThreadPoolExecutor(24) as pool:
            results = [pool.submit(client, n) for n in range(24)]
            for _ in results:
                assert seen.acquire(timeout=60)
            go.set()
            assert all(r.result() == (image.data, data) for r in results)
    assert len(upstream.asked("GET", f"blobs/{digest}")) == 1
    assert len(upstream.asked("GET", "/manifests/")) == 1


def test_what_one_worker_has_asked_the_others_know(tmp_path, upstream, image) -> None:
    """A tag is asked for once in its time, whichever worker a client meets; and so is an upstream that
    does not answer."""

    def many(url: str) -> set[int]:
        with ThreadPoolExecutor(6) as pool:
            paths = [f"{url}/v2/team/app/manifests/1"] * 36
            return {status for status, _, _ in pool.map(get, paths)}

    def asked(method: str) -> int:
        return len(upstream.asked(method, "/manifests/1$"))

    ttl = 2.0
    with mirror(tmp_path / "s", upstream, "--workers", "3", "--proxy-ttl", f"{ttl}s") as url:
        began = time.monotonic()
        assert get(f"{url}/v2/team/app/manifests/1")[2] == image.data
        assert many(url) == {200}
        assert asked("GET") == 1
        assert asked("HEAD") <= (time.monotonic() - began) / ttl
        time.sleep(ttl)
        before, began = asked("HEAD"), time.monotonic()
        assert many(url) == {200}
        assert 1 <= asked("HEAD") - before <= 1 + (time.monotonic() - began) / ttl
        upstream.odd = lambda handler, seen: handler.answer(503) or True
        time.sleep(ttl)
        assert get(f"{url}/v2/team/app/manifests/1")[1]["Warning"]
        before, began = len(upstream.seen), time.monotonic()
        assert many(url) == {200}
        assert len(upstream.seen) == before or time.monotonic() - began > PAUSE / 2


class Moments(RuleBasedStateMachine):
    """Against a dictionary: a moment may be forgotten, but none is younger than it was."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.workers = [Asked(self.directory.name) for _ in range(2)]
        self.noted: dict[tuple[str, str], float] = {}

    keys = st.tuples(st.sampled_from("abc"), st.sampled_from("12"))

    @rule(key=keys, worker=st.integers(0, 1))
    def note(self, key: tuple[str, str], worker: int) -> None:
        self.noted[key] = time.monotonic()
        self.workers[worker].note(*key)

    @rule(key=keys, worker=st.integers(0, 1))
    def ask(self, key: tuple[str, str], worker: int) -> None:
        before = time.monotonic()
        age = self.workers[worker].age(*key)
        noted = self.noted.get(key)
        if noted is None:
            assert age == math.inf
        else:
            assert age == math.inf or before - noted - 0.05 <= age <= time.monotonic() - noted

    @rule(at=st.integers(0, 3 * 16), data=st.binary(min_size=1, max_size=8))
    def torn(self, at: int, data: bytes) -> None:
        """Two write at once: half of one, half of the other."""
        self.workers[0]._table[at : at + len(data)] = data

    def teardown(self) -> None:
        for worker in self.workers:
            worker.close()
        self.directory.cleanup()


def test_moments(monkeypatch) -> None:
    """With few slots, so that keys take each other's."""
    monkeypatch.setattr(asked, "SLOTS", 4)
    run_state_machine_as_test(Moments)


def test_when_the_one_that_fetches_is_killed_another_goes_on(tmp_path, upstream, image) -> None:
    """Clients of the killed process see a cut answer; those of the others get every byte."""
    digest, data = layer(image), image.blobs[layer(image)]
    half, go = threading.Event(), threading.Event()
    slowly(upstream, digest, data, half, go)
    config = f'[proxy]\nupstream = "docker://{upstream.host}"\n[server]\nworkers = 3\n'
    with serving_with(tmp_path, config) as (process, url, _):

        def client(n: int) -> bytes | None:
            try:
                return get(f"{url}/v2/team/app/blobs/{digest}")[2]
            except (OSError, http.client.HTTPException):
                return None

        with ThreadPoolExecutor(12) as pool:
            results = [pool.submit(client, n) for n in range(12)]
            assert half.wait(60)
            time.sleep(0.5)
            claims = [
                p
                for d in Path(tempfile.gettempdir()).glob("layerstore-serve-*")
                for p in d.glob("*.claim")
            ]
            owners = {pid for pid in children(process.pid) if holds(pid, claims)}
            assert len(owners) == 1
            upstream.odd = lambda handler, seen: False
            os.kill(owners.pop(), signal.SIGKILL)
            go.set()
            got = [r.result() for r in results]
        whole = [one for one in got if one is not None]
        assert all(one == data for one in whole)
        assert client(0) == data
    assert len(upstream.asked("GET", f"blobs/{digest}")) == 2
    with layerstore.open(tmp_path / "store") as store:
        assert store.check(full=True).ok


def holds(pid: int, files: list[Path]) -> bool:
    """Whether a process has one of the files open to write."""
    names = {str(p) for p in files}
    folder = Path(f"/proc/{pid}/fd")
    found = {os.readlink(one) for one in folder.iterdir() if one.is_symlink()}
    return bool(names & found)


def test_a_claim_is_one_process_s(tmp_path) -> None:
    here = Claims(str(tmp_path)).of("a", "b")
    other = Claims(str(tmp_path)).of("a", "c")
    with hold(str(tmp_path), "a", "b") as child:
        assert not here.take()
        assert here.said() == "it is mine"
        assert other.take()
        other.release()
        child.kill()
        child.wait()
        deadline = time.monotonic() + 30
        while not here.take():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    here.say("now ours")
    assert Claims(str(tmp_path)).of("a", "b").said() == "now ours"
    here.release()
    assert not list(tmp_path.iterdir())
    alone = Claims(None).of("a")
    assert alone.take()
    assert alone.said() == ""


# ---- letting go -------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch):
    """Moves the boot clock on."""
    ahead = [0.0]
    for module in (clock, leases):
        monkeypatch.setattr(module, "boot_time", lambda: real() + ahead[0], raising=False)

    def move(seconds: float) -> None:
        ahead[0] += seconds

    return move


real = clock.boot_time
KIND = "application/vnd.oci.image.manifest.v1+json"


def fetched(store: layerstore.Store, image: make.Image, tag: str, idle: float | None) -> None:
    """What a mirror does with an image of its upstream."""
    repository = store.repository("h.lan/app", idle=60.0)
    repository.put_manifest(image.data, KIND, tags=(tag,), sparse=True, keep=idle)
    for data in image.blobs.values():
        repository.put_blob(data)


def test_what_nobody_asks_for_goes_and_what_is_asked_for_stays(tmp_path, later) -> None:
    one, two, three = (make.image(make.tar({"f": os.urandom(90_000)})) for _ in range(3))
    with layerstore.open(tmp_path / "s") as store:
        fetched(store, one, "1", 1000.0)
        fetched(store, two, "2", 1000.0)
        fetched(store, three, "3", None)
        repository = store.repository("h.lan/app", idle=60.0)
        for _ in range(3):
            later(400)
            store.gc()
            assert repository.manifest("2").digest == two.digest
        assert sorted(repository.tags()) == ["2", "3"]
        with pytest.raises(layerstore.NotFoundError):
            repository.manifest(one.digest)
        store.gc()
        digests = {blob.digest for blob in store.blobs()}
        assert not digests & {one.digest, *one.blobs}
        assert {two.digest, *two.blobs, three.digest, *three.blobs} <= digests
        later(10_000)
        store.gc()
        store.gc()
        assert repository.tags() == ["3"]
        assert {image.name for image in store.images()} == {"h.lan/app:3"}
        assert store.check(full=True).ok
        # It comes again as if it had never been here.
        fetched(store, one, "1", 1000.0)
        assert repository.manifest("1").digest == one.digest


def test_a_name_that_somebody_else_gave_stays(tmp_path, later) -> None:
    """By an import before or after the mirror's fetch, by a tag of another name."""
    before, after, named = (make.image(make.tar({"f": os.urandom(50_000)})) for _ in range(3))
    with layerstore.open(tmp_path / "s") as store:
        for n, image in enumerate((before, after, named)):
            make.layout(tmp_path / f"l{n}", (image, {}))
        store.import_image(f"oci:{tmp_path}/l0", "h.lan/app:1")
        for tag, image in (("1", before), ("2", after), ("3", named)):
            fetched(store, image, tag, 1000.0)
        store.import_image(f"oci:{tmp_path}/l1", "h.lan/app:2")
        store.tag("h.lan/app:3", "mine:3")
        later(2000)
        store.gc()
        assert {i.name for i in store.images()} == {"h.lan/app:1", "h.lan/app:2", "mine:3"}
        for image in (before, after, named):
            for digest, data in image.all.items():
                with store.open_blob(digest) as f:
                    assert f.read() == data
        # What is named is there for the mirror, too, without a fetch.
        assert store.repository("h.lan/app").manifest("1").digest == before.digest


def test_a_push_makes_it_stay(tmp_path, later) -> None:
    image = make.image(make.tar({"f": os.urandom(50_000)}))
    with layerstore.open(tmp_path / "s") as store:
        fetched(store, image, "1", 1000.0)
        fetched(store, image, "2", None)
        fetched(store, image, "3", 1000.0)
        later(2000)
        store.gc()
        assert sorted(store.repository("h.lan/app").tags()) == ["1", "2", "3"]


def test_an_idle_mirror_lets_go_by_its_configuration(tmp_path, upstream, image) -> None:
    """By itself: nobody asks it for anything meanwhile."""
    config = f'[proxy]\nupstream = "docker://{upstream.host}"\nidle = "1s"\n'
    config += '[maintenance]\nidle = "3s"\ngc = "idle"\nquiet = "0.2s"\n'
    with serving_with(tmp_path, config) as (_, url, _errors):
        assert get(f"{url}/v2/team/app/manifests/1")[2] == image.data
        for digest, data in image.blobs.items():
            assert get(f"{url}/v2/team/app/blobs/{digest}")[2] == data
        with layerstore.open(tmp_path / "store") as store:
            awaited(lambda: not store.repositories())
            awaited(lambda: not list(store.blobs()))
        assert get(f"{url}/v2/team/app/manifests/1")[2] == image.data
    assert len(upstream.asked("GET", "/manifests/1")) == 2


def fetch(repository: layerstore.Repository, image: make.Image, tag: str) -> None:
    """What a mirror that lends does: the manifest first, blobs as they are asked for."""
    repository.put_manifest(image.data, KIND, tags=(tag,), sparse=True, keep=1e6)
    for data in image.blobs.values():
        repository.put_blob(data)


def limited(store: layerstore.Store, spared: int) -> layerstore.GCReport:
    """A gc that has to give back a bit less than so many bytes; what it foresees comes true."""
    store.gc()
    limit = store.stats().total - spared + 50_000
    foreseen = store.gc(dry_run=True, max_used_space=limit)
    report = store.gc(max_used_space=limit)
    assert foreseen.dropped_images == report.dropped_images
    assert foreseen.within_limits == report.within_limits
    return report


def test_limits_of_space_let_go_what_was_not_asked_for_the_longest(tmp_path, later) -> None:
    """In the order of the last use, and no more than it takes; what they have in common stays with the
    last of them."""
    shared, size = os.urandom(400_000), 1_000_000
    images = [
        make.image(make.tar({"f": os.urandom(size)}), make.tar({"s": shared}), compress=False)
        for _ in range(4)
    ]
    with layerstore.open(tmp_path / "s") as store:
        mirrored = store.repository("h.lan/app", lent=True)
        for n, image in enumerate(images):
            fetch(mirrored, image, str(n))
            later(10)
        later(300_000)  # more than a quarter of the time: what is asked for now counts
        mirrored.manifest("0")
        report = limited(store, size)
        assert (report.dropped_images, report.within_limits) == (1, True)
        assert mirrored.tags() == ["0", "2", "3"]
        for image in (images[0], images[2], images[3]):
            for digest, data in image.blobs.items():
                with mirrored.open_blob(digest) as f:
                    assert f.read() == data
        assert not set(images[1].all) & {blob.digest for blob in store.blobs()} - set(images[0].all)
        report = limited(store, 100 * size)
        assert (report.dropped_images, report.within_limits) == (3, False)
        assert not list(store.blobs())
        assert store.repositories() == []
        assert store.check(full=True).ok


def test_limits_of_space_take_nothing_that_somebody_else_has(tmp_path) -> None:
    """A push, a name, a promise to one who is about to push, an image that the mirror is to keep."""
    one, two, three, kept = (
        make.image(
            *(make.tar({"f": os.urandom(size)}) for size in (300_000, 200_000)), compress=False
        )
        for _ in range(4)
    )
    with layerstore.open(tmp_path / "s") as store:
        mirrored = store.repository("h.lan/app", lent=True)
        pushed = store.repository("h.lan/app")
        for n, image in enumerate((one, two, three)):
            fetch(mirrored, image, str(n))
        fetch(store.repository("h.lan/kept"), kept, "1")
        store.repository("h.lan/kept").put_manifest(kept.data, KIND, sparse=True)
        asked, mounted = layer(one), layer(two)
        assert pushed.blob_size(asked) == len(one.blobs[asked])
        assert store.repository("mine").mount(mounted, mirrored)
        store.tag("h.lan/app:2", "mine:2")
        report = store.gc(max_used_space=0)
        assert (report.dropped_images, report.within_limits) == (2, False)
        assert pushed.tags() == ["2"]  # to let it go would give nothing back
        left = {blob.digest for blob in store.blobs()}
        assert left == {asked, mounted, *three.all, *kept.all}
        assert pushed.blob_size(asked)
        for digest, data in three.all.items():
            with store.open_blob(digest) as f:
                assert f.read() == data
        assert store.check(full=True).ok


def test_a_mirror_with_a_limit_keeps_it_and_fetches_again(tmp_path, upstream, image) -> None:
    more = make.image(make.tar({"big": os.urandom(6 << 20)}), compress=False)
    upstream.add("team/more", more, "1")
    config = f'[proxy]\nupstream = "docker://{upstream.host}"\nidle = "30d"\n'
    config += '[maintenance]\nmax_used_space = "10M"\ngc = "idle"\nquiet = "0.2s"\n'
    with serving_with(tmp_path, config) as (_, url, _errors):
        for name, one in (("app", image), ("more", more)):
            for end in ("manifests/1", *(f"blobs/{digest}" for digest in one.blobs)):
                assert get(f"{url}/v2/team/{name}/{end}")[0] == 200
        with layerstore.open(tmp_path / "store") as store:
            awaited(lambda: store.repositories() == [f"{upstream.host}/team/more"])
            awaited(lambda: store.stats().total < 10 << 20)
        asked = len(upstream.seen)
        assert get(f"{url}/v2/team/more/blobs/{layer(more)}")[2] == more.blobs[layer(more)]
        assert len(upstream.seen) == asked
        assert get(f"{url}/v2/team/app/blobs/{layer(image)}")[2] == image.blobs[layer(image)]
