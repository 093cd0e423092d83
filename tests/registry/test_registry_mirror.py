"""`serve --proxy`: a mirror fills itself, once for many, and gives out what it has when it is alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path

import pytest
from oci import oci_make as make
from registry.test_registry_server import serving, serving_with

import layerstore
from layerstore import RemoteOptions
from layerstore.registry import Mirror, Registry
from layerstore.registry.mirror import FETCHES

KIND = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
BIG = os.urandom(3 << 20)


@pytest.fixture
def image(upstream) -> make.Image:
    made = make.image(make.tar({"big": BIG}), compress=False)
    upstream.add("team/app", made, "1")
    return made


@contextlib.contextmanager
def mirror(path: Path, upstream, *options: str):
    with serving(path, "--proxy", f"docker://{upstream.host}", *options) as (_, url):
        yield url


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, Message, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, headers=named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.headers, e.read()


def layer(image: make.Image) -> str:
    return max(image.blobs, key=lambda d: len(image.blobs[d]))


def test_it_fills_itself_and_works_while_the_upstream_is_away(tmp_path, upstream, image) -> None:
    with mirror(tmp_path / "s", upstream, "--proxy-ttl", "0") as url:
        for end in (f"manifests/{image.digest}", "manifests/1?ns=" + upstream.host):
            status, headers, body = get(f"{url}/v2/team/app/{end}")
            assert (status, body) == (200, image.data)
            assert headers["Docker-Content-Digest"] == image.digest
        for digest, data in image.blobs.items():
            assert get(f"{url}/v2/team/app/blobs/{digest}")[2] == data
        assert json.loads(get(f"{url}/v2/team/app/tags/list")[2])["tags"] == ["1"]
        upstream.odd = lambda handler, seen: handler.answer(503) or True
        status, headers, body = get(f"{url}/v2/team/app/manifests/1")
        assert (status, body) == (200, image.data)
        assert headers["Warning"].startswith("110 ")
        for digest, data in image.blobs.items():
            assert get(f"{url}/v2/team/app/blobs/{digest}")[2] == data
        assert json.loads(get(f"{url}/v2/team/app/tags/list")[2])["tags"] == ["1"]
        assert get(f"{url}/v2/team/app/manifests/2")[0] == 502
        assert get(f"{url}/v2/team/app/blobs/sha256:{'0' * 64}")[0] == 502
        assert json.loads(get(f"{url}/v2/_catalog")[2])["repositories"] == ["team/app"]
    # It is the image of that name for whoever opens the store.
    with layerstore.open(tmp_path / "s") as store:
        (found,) = store.images()
        assert (found.name, found.digest) == (f"{upstream.host}/team/app:1", image.digest)
        assert store.check(full=True).ok
        store.gc()
        with store.open_blob(layer(image)) as f:
            assert f.read() == image.blobs[layer(image)]


def test_tags_are_asked_for_again_after_their_time(tmp_path, upstream, image) -> None:
    newer = make.image(salt="newer")
    for ttl, wanted in (("1h", image), ("0", newer)):
        upstream.add("team/app", image, "1")
        with mirror(tmp_path / ttl, upstream, "--proxy-ttl", ttl) as url:
            assert get(f"{url}/v2/team/app/manifests/1")[2] == image.data
            upstream.add("team/app", newer, "1")
            assert get(f"{url}/v2/team/app/manifests/1")[2] == wanted.data
            del upstream.tags["team/app", "1"]
            assert get(f"{url}/v2/team/app/manifests/1")[0] == (200 if ttl == "1h" else 404)


def test_sixteen_clients_make_one_fetch(tmp_path, upstream, image) -> None:
    digest, together = layer(image), threading.Barrier(16)
    with mirror(tmp_path / "s", upstream) as url:

        def client(n: int) -> tuple[bytes, bytes]:
            together.wait(60)
            first = get(f"{url}/v2/team/app/manifests/1")[2]
            return first, get(f"{url}/v2/team/app/blobs/{digest}")[2]

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(client, range(16)))
    assert all(got == (image.data, image.blobs[digest]) for got in results)
    assert len(upstream.asked("GET", f"blobs/{digest}")) == 1
    assert len(upstream.asked("GET", "/manifests/1$")) == 1


def slowly(upstream, digest: str, data: bytes, half: threading.Event, go: threading.Event):
    """The first half, then the rest when it is told to."""

    def odd(handler, seen) -> bool:
        if seen.method != "GET" or digest not in seen.path:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        half.set()
        go.wait(60)
        handler.wfile.write(data[len(data) // 2 :])
        return True

    upstream.odd = odd


def test_bytes_are_given_out_while_they_come(tmp_path, upstream, image) -> None:
    digest = layer(image)
    data, half, go = image.blobs[digest], threading.Event(), threading.Event()
    slowly(upstream, digest, data, half, go)
    with mirror(tmp_path / "s", upstream) as url:
        same = f"{url}/v2/team/app/blobs/{digest}"
        assert get(same, "HEAD", If_None_Match=f'"{digest}"')[0] == 304
        with urllib.request.urlopen(f"{url}/v2/team/app/blobs/{digest}", timeout=60) as first:
            assert first.read(1 << 20) == data[: 1 << 20]
            assert not go.is_set()
            for method in ("GET", "HEAD"):  # what a client has, it need not wait for
                assert get(same, method, If_None_Match=f'"{digest}"')[::2] == (304, b"")
            request = urllib.request.Request(
                f"{url}/v2/team/app/blobs/{digest}", headers={"Range": "bytes=5-1004"}
            )
            with urllib.request.urlopen(request, timeout=60) as second:
                assert second.status == 206
                assert second.read() == data[5:1005]
            go.set()
            assert first.read() == data[1 << 20 :]
    assert len(upstream.asked("GET", digest)) == 1


def test_a_client_that_vanishes_does_not_end_the_fetch_of_others(tmp_path, upstream, image) -> None:
    digest = layer(image)
    data, half, go = image.blobs[digest], threading.Event(), threading.Event()
    slowly(upstream, digest, data, half, go)
    with mirror(tmp_path / "s", upstream) as url:
        with urllib.request.urlopen(f"{url}/v2/team/app/blobs/{digest}", timeout=60) as first:
            first.read(1000)
        with urllib.request.urlopen(f"{url}/v2/team/app/blobs/{digest}", timeout=60) as second:
            go.set()
            assert second.read() == data


@pytest.mark.parametrize("lie", ["wrong", "cut", "longer"])
def test_wrong_bytes_end_the_answer_and_are_not_kept(lie, tmp_path, upstream, image) -> None:
    digest = layer(image)
    data = image.blobs[digest]
    bad = bytes(len(data)) if lie == "wrong" else data

    def odd(handler, seen) -> bool:
        if seen.method != "GET" or digest not in seen.path:
            return False
        if lie == "longer":
            handler.answer(200, data + b"more")
        else:
            handler.serve_blob(bad, seen, stop=None if lie == "wrong" else 0)
        return True

    upstream.odd = odd
    with mirror(tmp_path / "s", upstream) as url:
        # A status that says so, or less than was announced.
        with contextlib.suppress(http.client.IncompleteRead):
            assert get(f"{url}/v2/team/app/blobs/{digest}")[0] == 502
        upstream.odd = lambda handler, seen: False
    with layerstore.open(tmp_path / "s") as store:
        assert not [b for b in store.blobs() if b.digest == digest]
        wrong = "sha256:" + hashlib.sha256(bad).hexdigest()
        assert not [b for b in store.blobs() if b.digest == wrong]
    with mirror(tmp_path / "s", upstream) as url:
        assert get(f"{url}/v2/team/app/blobs/{digest}")[2] == data


def endless_redirects(handler) -> None:
    handler.answer(302, Location=handler.path + "x")


def other_manifest(handler) -> None:
    wrong = "sha256:" + "0" * 64
    kind = "application/vnd.oci.image.manifest.v1+json"
    handler.answer(200, b"{}", Content_Type=kind, Docker_Content_Digest=wrong)


@pytest.mark.parametrize(
    "lie",
    [
        lambda handler: handler.answer(429),
        lambda handler: handler.answer(500),
        endless_redirects,
        other_manifest,
        lambda handler: handler.answer(200, b"x" * 100, Content_Type="text/html"),
        lambda handler: handler.cut(),
    ],
)
def test_an_upstream_that_misbehaves_is_a_bad_gateway(lie, tmp_path, upstream, image) -> None:
    upstream.odd = lambda handler, seen: seen.path != "/v2/" and bool(lie(handler) or True)
    with mirror(tmp_path / "s", upstream) as url:
        assert get(f"{url}/v2/team/app/manifests/1")[0] == 502
        with contextlib.suppress(http.client.IncompleteRead):
            assert get(f"{url}/v2/team/app/blobs/{layer(image)}")[0] == 502
        assert get(f"{url}/v2/")[0] == 200


def test_nothing_is_pushed_and_nothing_else_is_shown(tmp_path, upstream, image) -> None:
    with layerstore.open(tmp_path / "s") as store:
        own = make.image(salt="secret")
        store.import_image(f"oci:{make.layout(tmp_path / 'own', (own, {}))}", "team/app:secret")
    with mirror(tmp_path / "s", upstream) as url:
        for method, path in (("POST", "blobs/uploads/"), ("PUT", "manifests/1")):
            request = urllib.request.Request(f"{url}/v2/team/app/{path}", b"{}", method=method)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=60)
            assert refused.value.code == 405
            assert b"mirror" in refused.value.read()
        assert get(f"{url}/v2/team/app/manifests/secret")[0] == 404
        assert get(f"{url}/v2/team/app/manifests/{own.digest}")[0] == 404
        assert get(f"{url}/v2/team/app/blobs/{layer(own)}")[0] == 404
        assert get(f"{url}/v2/team/app/manifests/1?ns=other.lan")[0] == 404
        assert json.loads(get(f"{url}/v2/_catalog")[2])["repositories"] == []


def test_referrers_are_the_upstream_s(tmp_path, upstream, image) -> None:
    signature = make.artifact(image)
    upstream.add("team/app", signature)
    with mirror(tmp_path / "s", upstream) as url:
        listed = json.loads(get(f"{url}/v2/team/app/referrers/{image.digest}")[2])["manifests"]
        assert [one["digest"] for one in listed] == [signature.digest]
        assert get(f"{url}/v2/team/app/manifests/{signature.digest}")[2] == signature.data
        upstream.odd = lambda handler, seen: handler.answer(503) or True
        listed = json.loads(get(f"{url}/v2/team/app/referrers/{image.digest}")[2])["manifests"]
        assert [one["digest"] for one in listed] == [signature.digest]


def listed(handler, seen) -> bool:
    """Referrers in pages of one, as another registry may have them."""
    if "/referrers/" not in seen.path:
        return False
    at = int(seen.path.partition("at=")[2] or 0)
    entries = [{"mediaType": KIND, "digest": f"sha256:{n:064}", "size": 1} for n in range(3)]
    value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[at : at + 1]}
    more = {"Link": f'<{seen.path.partition("?")[0]}?at={at + 1}>; rel="next"'} if at < 2 else {}
    handler.answer(200, json.dumps(value).encode(), Content_Type=INDEX, **more)
    return True


def test_all_pages_of_the_upstream_s_referrers_are_given(tmp_path, upstream, image) -> None:
    upstream.odd = listed
    with mirror(tmp_path / "s", upstream) as url:
        answer = get(f"{url}/v2/team/app/referrers/{image.digest}")
        found = [int(one["digest"][-1]) for one in json.loads(answer[2])["manifests"]]
        assert found == [0, 1, 2]


@pytest.mark.parametrize(
    "said",
    [b"[" * 100_000, b"{}", b"null", b'{"manifests": 5}', b'{"manifests": [5]}', b"\xff", b"["],
)
def test_lists_that_are_none_end_in_answers(tmp_path, upstream, image, said) -> None:
    """What an upstream says is not believed to be a list: no 500, and what is here is given out."""

    def odd(handler, seen) -> bool:
        if "/referrers/" in seen.path:
            handler.answer(200, said, Content_Type=INDEX)
        elif "/tags/" in seen.path:
            handler.answer(
                200, json.dumps({"tags": ["1", "\ud800", "a b", "", "x" * 200]}).encode()
            )
        else:
            return False
        return True

    upstream.odd = odd
    config = f'[proxy]\nupstream = "docker://{upstream.host}"\n'
    with serving_with(tmp_path, config) as (_, url, errors):
        where = f"{url}/v2/team/app/referrers/{image.digest}?artifactType=a"
        assert get(where)[0] == 200
        for n, tags in (("", ["1"]), ("?n=1", ["1"]), ("?n=1&last=1", [])):
            status, headers, body = get(f"{url}/v2/team/app/tags/list{n}")
            assert (status, json.loads(body)["tags"]) == (200, tags)
            assert headers["Link"] is None
    assert "Traceback" not in errors.read_text()


def test_a_list_of_what_is_here_goes_on_where_its_client_asked(tmp_path, upstream, image) -> None:
    """Its pages are linked under the name that the mirror's clients have for a repository."""
    for tag in ("2", "3"):
        upstream.add("team/app", image, tag)
    with mirror(tmp_path / "s", upstream) as url:
        for tag in ("1", "2", "3"):
            assert get(f"{url}/v2/team/app/manifests/{tag}")[0] == 200
        upstream.odd = lambda handler, seen: handler.answer(503) or True
        path, found = "/v2/team/app/tags/list?n=2", []
        while path:
            status, headers, body = get(url + path)
            assert status == 200
            found += json.loads(body)["tags"]
            path = (headers["Link"] or "").partition(">")[0].lstrip("<")
        assert found == ["1", "2", "3"]


def test_content_that_another_repository_brought_is_not_fetched_again(
    tmp_path, upstream, image
) -> None:
    upstream.add("other/app", image, "1")
    digest = layer(image)
    with mirror(tmp_path / "s", upstream) as url:
        for name in ("team/app", "other/app"):
            assert get(f"{url}/v2/{name}/blobs/{digest}")[2] == image.blobs[digest]
    assert len(upstream.asked("GET", digest)) == 1


def test_an_upstream_that_drips_holds_no_others(tmp_path, upstream) -> None:
    """As many blobs as are fetched at a time come a byte now and then: they are given up, and what
    waits behind them comes."""
    dripping = {f"sha256:{n:064x}": bytes(100_000) for n in range(FETCHES)}
    good = os.urandom(10_000)
    wanted = "sha256:" + hashlib.sha256(good).hexdigest()
    upstream.blobs |= {("a", digest): data for digest, data in {**dripping, wanted: good}.items()}
    over, begun = threading.Event(), threading.Barrier(FETCHES + 1)

    def drip(handler, seen) -> bool:
        digest = seen.path.rpartition("/")[2]
        if seen.method != "GET" or digest not in dripping:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(dripping[digest])))
        handler.end_headers()
        begun.wait(60)
        while not over.wait(0.05):
            handler.wfile.write(b"x")
        return True

    upstream.odd = drip
    options = RemoteOptions(timeout=1.0, tries=1, slowest=4096)

    async def ask() -> tuple[list[str], tuple[int, bytes]]:
        def path(digest: str) -> str:
            return f"/v2/a/blobs/{digest}"

        slow = [asyncio.ensure_future(said(application, path(digest))) for digest in dripping]
        await asyncio.to_thread(begun.wait, 60)
        other = await said(application, path(wanted))
        return [str(one) for one in await asyncio.gather(*slow, return_exceptions=True)], other

    with layerstore.open(tmp_path / "s") as store:
        mirror = Mirror(f"docker://{upstream.host}", options=options)
        application = Registry(store, mirror=mirror)
        try:
            slow, other = asyncio.run(asyncio.wait_for(ask(), 60))
        finally:
            over.set()
            mirror.close()
    assert other == (200, good)
    for one in slow:
        assert "502" in one
        assert "bytes a second" in one


async def said(application: Registry, path: str) -> tuple[int, bytes]:
    """What it answers to a GET."""
    asked = False
    status, body = 0, bytearray()

    async def receive() -> dict[str, object]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        nonlocal status
        status = message.get("status", status)
        body.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
    }
    await application(scope, receive, send)
    return status, bytes(body)
