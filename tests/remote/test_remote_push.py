"""Images to a registry: what it has is not sent, what breaks goes on, real registries agree."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from oci import oci_make as make
from registry.test_registry_server import serving
from remote import upstream as servers

import layerstore

QUICK = layerstore.RemoteOptions(timeout=5.0, tries=4)
IMAGE = make.image(make.tar({"big": os.urandom(9 << 20)}), make.tar({"small": b"1" * 3000}))
LAYER = max(IMAGE.blobs, key=lambda d: len(IMAGE.blobs[d]))


@pytest.fixture
def app(store: layerstore.Store, tmp_path: Path) -> layerstore.Store:
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (IMAGE, {}))}", "app:1", defer=True)
    return store


def push(store: layerstore.Store, upstream: servers.Upstream, end: str = "team/app") -> None:
    store.export_image("app:1", f"docker://{upstream.host}/{end}", remote=QUICK)


def test_a_registry_gets_the_same_bytes_under_the_image_s_own_tag(app, upstream) -> None:
    push(app, upstream)
    assert upstream.tags == {("team/app", "1"): IMAGE.digest}
    assert upstream.manifests["team/app", IMAGE.digest] == (IMAGE.media_type, IMAGE.data)
    assert {d: data for (_, d), data in upstream.blobs.items()} == IMAGE.blobs
    last = [seen for seen in upstream.seen if seen.method == "PUT"][-1]
    assert last.path.endswith("/manifests/1")


def test_what_the_registry_has_is_not_sent(app, upstream) -> None:
    push(app, upstream)
    upstream.seen.clear()
    push(app, upstream, "team/app:2")
    assert not [seen for seen in upstream.seen if "uploads" in seen.path]


@pytest.mark.parametrize("granted", [True, False])
def test_blobs_that_another_repository_has_are_mounted(granted, app, upstream) -> None:
    upstream.add("base/os", IMAGE, "1")
    upstream.mounts = granted
    app.tag("app:1", f"{upstream.host}/base/os:1")
    push(app, upstream)
    assert upstream.asked("POST", "mount=sha256:.*&from=base/os")
    assert bool(upstream.asked("PATCH", "uploads")) != granted
    assert upstream.blobs["team/app", LAYER] == IMAGE.blobs[LAYER]


def test_an_upload_goes_on_where_it_broke(app, upstream) -> None:
    broken = []

    def odd(handler, seen) -> bool:
        if seen.method != "PATCH" or len(broken) >= 2:
            return False
        broken.append(seen)
        upload = seen.path.partition("?")[0].rpartition("/")[2]
        upstream.uploads[upload] += handler.rfile.read(2 << 20)
        handler.cut()
        return True

    upstream.odd = odd
    push(app, upstream)
    assert upstream.blobs["team/app", LAYER] == IMAGE.blobs[LAYER]
    starts = [s.headers["content-range"].partition("-")[0] for s in upstream.asked("PATCH", "")]
    assert starts == ["0", str(2 << 20), str(4 << 20)]


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "HEAD"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(method, status, app, upstream) -> None:
    failed = []

    def odd(handler, seen) -> bool:
        if seen.method != method or len(failed) >= 3:
            return False
        failed.append(seen.path)
        handler.body()
        handler.error(status, "TOOMANYREQUESTS")
        return True

    upstream.odd = odd
    push(app, upstream)
    assert failed
    assert {d: data for (_, d), data in upstream.blobs.items()} == IMAGE.blobs


def test_a_registry_without_the_referrers_api_gets_the_tag_for_it(app, upstream, tmp_path) -> None:
    signatures = [make.artifact(IMAGE, payload=b"%d" % n) for n in range(2)]
    listed = ((IMAGE, make.tagged("2")), *((one, {}) for one in signatures))
    app.import_image(f"oci:{make.layout(tmp_path / 'signed', *listed)}:2", "app:2")
    upstream.referrers = False
    where = f"docker://{upstream.host}/team/app"
    app.export_image("app:2", where, referrers=True, remote=QUICK)
    tag = upstream.tags["team/app", IMAGE.digest.replace(":", "-")]
    found = json.loads(upstream.manifests["team/app", tag][1])["manifests"]
    assert {one["digest"] for one in found} == {one.digest for one in signatures}
    assert all(one["artifactType"] == "application/vnd.example.signature" for one in found)


def test_two_images_cannot_have_one_tag(app, upstream, tmp_path) -> None:
    other = make.image(salt="other")
    app.import_image(f"oci:{make.layout(tmp_path / 'o', (other, {}))}", "other:1")
    with pytest.raises(layerstore.InvalidInputError, match="both"):
        app.export_images(["app:1", "other:1"], f"docker://{upstream.host}/x", remote=QUICK)
    assert not upstream.seen


def test_a_copy_between_registries_keeps_nothing_here(store, upstream) -> None:
    upstream.add("team/app", IMAGE, "1")
    with servers.upstream() as target:
        store.copy_images(
            f"docker://{upstream.host}/team/app:1",
            f"docker://{target.host}/new/app",
            source_remote=QUICK,
            target_remote=QUICK,
        )
        assert target.tags == {("new/app", "1"): IMAGE.digest}
        assert {d: data for (_, d), data in target.blobs.items()} == IMAGE.blobs
        upstream.seen.clear()
        store.copy_images(
            f"docker://{upstream.host}/team/app:1",
            f"docker://{target.host}/new/app:2",
            source_remote=QUICK,
            target_remote=QUICK,
        )
        assert not upstream.asked("GET", f"blobs/{LAYER}")
    assert list(store.blobs()) == []


def test_wrong_bytes_are_not_passed_on(store, upstream) -> None:
    upstream.add("team/app", IMAGE, "1")
    upstream.blobs["team/app", LAYER] = bytes(len(IMAGE.blobs[LAYER]))
    with servers.upstream() as target:
        with pytest.raises(layerstore.DigestMismatchError):
            store.copy_images(
                f"docker://{upstream.host}/team/app:1",
                f"docker://{target.host}/new/app",
                source_remote=QUICK,
                target_remote=QUICK,
            )
        assert not target.manifests
        assert ("new/app", LAYER) not in target.blobs


@contextlib.contextmanager
def debian_registry(path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    config = path / "registry.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {path / 'registry'}}}}}\n"
    config.write_text(f"version: 0.1\nlog: {{level: error}}\n{storage}http: {{addr: '{host}'}}\n")
    command = ["docker-registry", "serve", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{host}/v2/"):
                break
            time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def our_registry(path: Path):
    with serving(path / "served") as (_, url):
        yield url.removeprefix("http://")


@pytest.mark.needs("skopeo")
@pytest.mark.needs("docker-registry")
@pytest.mark.parametrize("registry", [debian_registry, our_registry])
def test_real_registries_and_skopeo_agree(registry, app, tmp_path) -> None:
    inner = make.image(salt="arm", arch="arm64")
    index = make.index((IMAGE, make.platform("amd64")), (inner, make.platform("arm64")))
    app.import_image(f"oci:{make.layout(tmp_path / 'index', (index, {}))}", "multi:1")
    with registry(tmp_path) as host:
        for name, image in (("app:1", IMAGE), ("multi:1", index)):
            where = f"docker://{host}/team/{name}"
            app.export_image(name, where)
            for kind in ("dir", "oci"):
                shutil.rmtree(tmp_path / "out", ignore_errors=True)
                command = ["skopeo", "copy", "-q", "--all", "--src-tls-verify=false"]
                target = f"{kind}:{tmp_path / 'out'}" + (":x" if kind == "oci" else "")
                subprocess.run([*command, where, target], check=True)
            assert image.all.items() == make.read(tmp_path / "out").items()
            with layerstore.open(tmp_path / f"back-{name[:-2]}") as other:
                assert other.import_image(where).digest == image.digest
                for digest, data in image.all.items():
                    with other.open_blob(digest) as f:
                        assert f.read() == data
        app.copy_images(f"docker://{host}/team/multi:1", f"docker://{host}/copied/multi")
        with layerstore.open(tmp_path / "copied") as other:
            assert other.import_image(f"docker://{host}/copied/multi:1").digest == index.digest
