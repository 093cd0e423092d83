"""A mirror of several processes fetches once for all of them; and what it lets go again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from oci import oci_make as make
from registry.claims_child import hold
from registry.test_registry_mirror import get, layer, mirror, slowly
from registry.test_registry_server import serving_with

import layerstore
from layerstore.registry.claims import Claims
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
    config = f'[proxy]\nupstream = "docker://{upstream.host}"\nidle = "1s"\n'
    config += '[maintenance]\nidle = "1s"\ngc = "idle"\nquiet = "0.2s"\n'
    with serving_with(tmp_path, config) as (_, url, _errors):
        assert get(f"{url}/v2/team/app/manifests/1")[2] == image.data
        for digest, data in image.blobs.items():
            assert get(f"{url}/v2/team/app/blobs/{digest}")[2] == data
        deadline = time.monotonic() + 60
        while json.loads(get(f"{url}/v2/_catalog")[2])["repositories"]:
            assert time.monotonic() < deadline
            time.sleep(4.0)  # without a request, so that it is idle
        assert get(f"{url}/v2/team/app/manifests/1")[2] == image.data
    assert len(upstream.asked("GET", "/manifests/1")) == 2
