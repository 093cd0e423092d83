"""Images from a registry, over a network that does all that networks do."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from oci import oci_make as make
from remote import upstream as servers

import layerstore

QUICK = layerstore.RemoteOptions(timeout=1.0, tries=4)
BIG = os.urandom(3 << 20)


@pytest.fixture
def image(upstream: servers.Upstream) -> make.Image:
    made = make.image(make.tar({"etc/one": b"1" * 3000}), make.tar({"big": BIG}))
    upstream.add("team/app", made, "1")
    return made


def place(upstream: servers.Upstream, end: str = "team/app:1") -> str:
    return f"docker://{upstream.host}/{end}"


def pull(store: layerstore.Store, upstream: servers.Upstream, **more) -> layerstore.ImageInfo:
    return store.import_image(place(upstream), remote=more.pop("remote", QUICK), **more)


def same(store: layerstore.Store, image: make.Image) -> None:
    for digest, data in image.all.items():
        with store.open_blob(digest) as f:
            assert f.read() == data


def big_layer(image: make.Image) -> str:
    return max(image.blobs, key=lambda d: len(image.blobs[d]))


def test_an_image_comes_with_its_bytes_and_its_full_name(store, upstream, image) -> None:
    info = pull(store, upstream)
    assert (info.name, info.digest) == (f"{upstream.host}/team/app:1", image.digest)
    same(store, image)


def test_what_is_known_is_not_fetched_again(store, upstream, image) -> None:
    pull(store, upstream)
    upstream.seen.clear()
    pull(store, upstream)
    assert not upstream.asked("GET", "/blobs/")
    assert not upstream.asked("GET", "/manifests/1$")
    newer = make.image(make.tar({"etc/one": b"1" * 3000}), make.tar({"etc/two": b"2"}))
    upstream.add("team/app", newer, "1")
    pull(store, upstream)
    assert len(upstream.asked("GET", "/blobs/")) == 2  # the config, and the new layer
    same(store, newer)


def test_layers_come_side_by_side(store, upstream, image) -> None:
    together = threading.Barrier(2, timeout=20)

    def wait_for_each_other(handler, seen) -> bool:
        if seen.method == "GET" and "/blobs/" in seen.path:
            data = upstream.blobs["team/app", seen.path.rpartition("/")[2]]
            if data[:2] == b"\x1f\x8b":
                together.wait()
        return False

    upstream.odd = wait_for_each_other
    pull(store, upstream, defer=True)


def test_progress_tells_of_each_layer(store, upstream, image) -> None:
    told: dict[str, int] = {}

    def show(progress: layerstore.Progress) -> None:
        for digest, done, size in progress.parts:
            assert 0 <= done <= size
            told[digest] = max(told.get(digest, 0), done)

    pull(store, upstream, progress=show)
    assert told[big_layer(image)] > 0


def test_a_blob_goes_on_at_the_byte_where_it_broke(store, upstream, image) -> None:
    digest, cuts = big_layer(image), iter((1 << 20, 100_000, 0, 1 << 20))

    def cut(handler, seen) -> bool:
        if seen.method != "GET" or digest not in seen.path:
            return False
        stop = next(cuts, None)
        handler.serve_blob(image.blobs[digest], seen, stop=stop)
        return True

    upstream.odd = cut
    pull(store, upstream)
    same(store, image)
    starts = [int((s.range or "bytes=0-")[6:-1]) for s in upstream.asked("GET", digest)]
    assert len(starts) == 5
    assert starts == sorted(starts)
    assert starts[1] > 0
    assert starts[-1] > 1 << 20


def test_a_server_without_ranges_is_read_again_from_its_beginning(store, upstream, image) -> None:
    digest, cuts = big_layer(image), iter((2 << 20,))

    def cut(handler, seen) -> bool:
        if seen.method != "GET" or digest not in seen.path:
            return False
        seen.headers.pop("range", None)
        handler.serve_blob(image.blobs[digest], seen, stop=next(cuts, None))
        return True

    upstream.odd = cut
    pull(store, upstream)
    same(store, image)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status, store, upstream, image) -> None:
    failed: dict[str, int] = {}

    def fail_twice(handler, seen) -> bool:
        failed[seen.path] = failed.get(seen.path, 0) + 1
        if failed[seen.path] > 2:
            return False
        handler.error(status, "TOOMANYREQUESTS")
        return True

    upstream.odd = fail_twice
    pull(store, upstream)
    same(store, image)


def test_retry_after_is_heeded(store, upstream, image) -> None:
    times: list[float] = []

    def later(handler, seen) -> bool:
        if "/manifests/" not in seen.path:
            return False
        times.append(time.monotonic())
        if len(times) > 1:
            return False
        handler.answer(429, Retry_After="1")
        return True

    upstream.odd = later
    pull(store, upstream)
    assert times[1] - times[0] >= 0.99


def test_patience_ends(store, upstream, image) -> None:
    upstream.odd = lambda handler, seen: handler.answer(503) or True
    with pytest.raises(layerstore.RemoteError, match="503") as failed:
        pull(store, upstream)
    assert failed.value.status == 503
    assert len(upstream.seen) <= 2 * QUICK.tries
    upstream.odd = lambda handler, seen: handler.answer(429, Retry_After="86400") or True
    upstream.seen.clear()
    with pytest.raises(layerstore.RemoteError, match="86400 s"):
        pull(store, upstream)


def test_nobody_there_is_said(store) -> None:
    with pytest.raises(layerstore.RemoteError, match=r"127\.0\.0\.1:1"):
        store.import_image("docker://127.0.0.1:1/app", remote=QUICK)


def test_a_silent_server_is_given_up(store, upstream, image) -> None:
    ended = threading.Event()
    upstream.odd = lambda handler, seen: (
        "/manifests/" in seen.path and bool(ended.wait(20) or handler.cut() or True)
    )
    options = layerstore.RemoteOptions(timeout=0.2, tries=2)
    with pytest.raises(layerstore.RemoteError):
        pull(store, upstream, remote=options)
    ended.set()


def test_a_slow_server_is_waited_for(store, upstream) -> None:
    small = make.image(make.tar({"a": os.urandom(3000)}))
    upstream.add("team/app", small, "1")
    digest = big_layer(small)

    def drip(handler, seen) -> bool:
        if digest not in seen.path:
            return False
        data = small.blobs[digest]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for at in range(0, len(data), 500):
            handler.wfile.write(data[at : at + 500])
            time.sleep(0.05)
        return True

    upstream.odd = drip
    pull(store, upstream)
    same(store, small)


@pytest.mark.parametrize(
    ("what", "slowest"), [("blob", 4000), ("manifest", 4000), ("header", 4000), ("blob", 0)]
)
def test_a_server_that_drips_is_given_up_where_there_is_a_limit(
    store, upstream, image, what, slowest
) -> None:
    """It is never silent for as long as it may be, and would hold us for minutes."""
    over, dripped, digest = threading.Event(), [], big_layer(image)
    size = len(image.blobs[digest])

    def drip(handler, seen) -> bool:
        if seen.method != "GET" or (digest if what == "blob" else "/manifests/1") not in seen.path:
            return False
        if what != "header":
            handler.send_response(200)
            handler.send_header("Content-Type", image.media_type)
            handler.send_header("Content-Length", str(size))
            handler.end_headers()
        data = b"HTTP/1.1 200 OK\r\nX: " if what == "header" else b""
        while not over.wait(0.05):
            handler.wfile.write(data or b"x" * 10)
            data = b""
            dripped.append(time.monotonic())
        handler.cut()
        return True

    upstream.odd = drip
    options = layerstore.RemoteOptions(timeout=0.5, tries=2, slowest=slowest)
    ending = threading.Timer(20 if slowest else 3, over.set)
    ending.start()
    began = time.monotonic()
    with pytest.raises(layerstore.LayerstoreError) as refused:
        pull(store, upstream, remote=options)
    took = time.monotonic() - began
    over.set()
    ending.cancel()
    assert len(dripped) > 8
    if slowest:
        assert "fewer than 4000 bytes a second" in str(refused.value)
        assert took < 15
    else:
        assert took > 2.5


def wrong_bytes(handler, data: bytes) -> None:
    handler.answer(200, bytes(len(data)))


def truncated(handler, data: bytes) -> None:
    handler.answer(200, data[:-1])


def longer(handler, data: bytes) -> None:
    handler.answer(200, data + b"x")


def endless(handler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    piece = bytes(1 << 16)
    for _ in range(1 << 14):  # 1 GiB
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))


def chunked_and_short(handler, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"5\r\n%s\r\n0\r\n\r\n" % data[:5])


def encoded(handler, data: bytes) -> None:
    handler.answer(200, bytes(len(data)), Content_Encoding="gzip")


@pytest.mark.parametrize(
    "lie", [wrong_bytes, truncated, longer, endless, chunked_and_short, encoded]
)
@pytest.mark.parametrize("what", ["layer", "config"])
def test_wrong_bytes_are_never_kept(lie, what, store, upstream, image) -> None:
    config = min(image.blobs, key=lambda d: len(image.blobs[d]))
    digest = big_layer(image) if what == "layer" else config

    def odd(handler, seen) -> bool:
        if seen.method != "GET" or digest not in seen.path:
            return False
        lie(handler, image.blobs[digest])
        return True

    upstream.odd = odd
    with pytest.raises(layerstore.DigestMismatchError) as failed:
        pull(store, upstream)
    assert failed.value.expected == digest
    assert store.images() == []
    with pytest.raises(layerstore.NotFoundError):
        store.stat(digest)


def test_a_range_that_was_not_asked_for_is_refused(store, upstream, image) -> None:
    digest = big_layer(image)

    def odd(handler, seen) -> bool:
        if digest not in seen.path:
            return False
        if seen.range is None:
            handler.serve_blob(image.blobs[digest], seen, stop=1 << 20)
        else:
            handler.answer(206, b"x" * 10, Content_Range="bytes 5-14/100")
        return True

    upstream.odd = odd
    with pytest.raises(layerstore.RemoteError, match="bytes 5-14"):
        pull(store, upstream)


def test_a_manifest_of_other_bytes_than_its_digest_is_refused(store, upstream, image) -> None:
    upstream.odd = lambda handler, seen: (
        "/manifests/" in seen.path
        and (
            handler.answer(
                200,
                image.data + b" ",
                Content_Type=image.media_type,
                Docker_Content_Digest=image.digest,
            )
            or True
        )
    )
    with pytest.raises(layerstore.DigestMismatchError):
        pull(store, upstream)


def test_a_manifest_of_five_megabytes_is_refused(store, upstream, image) -> None:
    upstream.odd = lambda handler, seen: (
        "/manifests/" in seen.path
        and (
            handler.answer(200, b"{" + b" " * (5 << 20) + b"}", Content_Type=image.media_type)
            or True
        )
    )
    with pytest.raises(layerstore.LimitError):
        pull(store, upstream)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_without_what_proves_who_we_are(
    status, store, upstream, image, tokens
) -> None:
    with servers.upstream() as elsewhere:
        elsewhere.add("team/app", image)

        def redirect(handler, seen) -> bool:
            if tokens.guard(handler, seen):
                return True
            if "/blobs/" not in seen.path:
                return False
            handler.answer(status, Location=f"http://{elsewhere.host}{seen.path}")
            return True

        upstream.odd = redirect
        options = layerstore.RemoteOptions(creds="me:secret", timeout=5, tries=2)
        pull(store, upstream, remote=options)
        same(store, image)
        assert elsewhere.seen
        assert not any("authorization" in seen.headers for seen in elsewhere.seen)
        assert any("authorization" in seen.headers for seen in upstream.seen)


def test_endless_redirects_end(store, upstream, image) -> None:
    def redirect(handler, seen) -> bool:
        if "/manifests/" not in seen.path:
            return False
        handler.answer(302, Location=seen.path + "x")
        return True

    upstream.odd = redirect
    with pytest.raises(layerstore.RemoteError, match="redirects"):
        pull(store, upstream)
    assert len(upstream.asked("HEAD", "/manifests/")) == 6


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://h/x", "http://", "//[", "gopher:x"])
def test_redirects_lead_to_the_web_only(where, store, upstream, image) -> None:
    upstream.odd = lambda handler, seen: (
        "/manifests/" in seen.path and (handler.answer(302, Location=where) or True)
    )
    with pytest.raises(layerstore.RemoteError):
        pull(store, upstream)


def test_what_is_not_there_or_not_ours_is_said(store, upstream, image) -> None:
    with pytest.raises(layerstore.NotFoundError, match="team/app has no manifest 2"):
        store.import_image(place(upstream, "team/app:2"), remote=QUICK)
    upstream.odd = lambda handler, seen: handler.error(403, "DENIED") or True
    with pytest.raises(layerstore.PermissionDeniedError, match="log in"):
        pull(store, upstream)


@pytest.mark.parametrize("wanted", [None, "linux/arm64"])
def test_an_index_comes_whole_or_for_one_platform(wanted, store, upstream) -> None:
    amd, arm = make.image(salt="a"), make.image(salt="b", arch="arm64")
    reference = "vnd.docker.reference.digest"
    kind = {"vnd.docker.reference.type": "attestation-manifest"}
    proof, other = make.artifact(payload=b"of arm"), make.artifact(payload=b"of amd")
    inner = make.index((arm, make.platform("arm64")))
    index = make.index(
        (amd, make.platform("amd64")),
        (inner, {}),
        (proof, {"annotations": {**kind, reference: inner.digest}}),
        (other, {"annotations": {**kind, reference: amd.digest}}),
    )
    for one in (amd, arm, inner, proof, other):
        upstream.add("team/app", one)
    upstream.add("team/app", index, "1")
    info = pull(store, upstream, platform=wanted)
    assert info.digest == index.digest
    same(store, arm)
    same(store, proof)
    there = {blob.digest for blob in store.blobs()}
    assert (amd.digest in there) == (other.digest in there) == (wanted is None)


def test_a_platform_that_is_not_there_is_said(store, upstream) -> None:
    index = make.index((make.image(), make.platform("amd64")))
    upstream.add("team/app", index, "1")
    with pytest.raises(layerstore.NotFoundError, match="linux/amd64"):
        pull(store, upstream, platform="linux/s390x")


@pytest.mark.parametrize("api", [True, False])
def test_referrers_come_along(api, store, upstream, image) -> None:
    signature = make.artifact(image)
    upstream.add("team/app", signature)
    upstream.referrers = api
    if not api:
        listed = make.index((signature, {})).data
        tag = image.digest.replace(":", "-")
        upstream.put("team/app", listed, "application/vnd.oci.image.index.v1+json", tag)
    pull(store, upstream)
    assert store.referrers(image.digest) == [signature.digest]
    same(store, signature)


def test_every_tag_of_a_repository(store, upstream, image) -> None:
    others = [make.image(salt=str(n)) for n in range(6)]
    for n, one in enumerate(others):
        upstream.add("team/app", one, f"v{n}")
    taken = store.import_images(place(upstream, "team/app"), "mine", all=True, remote=QUICK)
    assert {i.name: i.digest for i in taken} == {
        "mine:1": image.digest,
        **{f"mine:v{n}": one.digest for n, one in enumerate(others)},
    }


def test_a_digest_is_asked_for_by_itself_and_named_by_the_tag_before_it(
    store, upstream, image
) -> None:
    with pytest.raises(layerstore.InvalidInputError, match="NAME"):
        store.import_image(place(upstream, f"team/app@{image.digest}"), remote=QUICK)
    info = store.import_image(place(upstream, f"team/app:x@{image.digest}"), remote=QUICK)
    assert info.name == f"{upstream.host}/team/app:x"
    assert not upstream.asked("GET", "/manifests/x")


def test_stopping_ends_all_and_keeps_no_name(store, upstream, image) -> None:
    def stop(progress: layerstore.Progress) -> None:
        if progress.done > 1 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(store, upstream, progress=stop)
    assert store.images() == []
    pull(store, upstream)
    same(store, image)


def test_an_upstream_index_that_names_much_is_bounded(store, upstream) -> None:
    """Documents altogether are bounded, whatever each of them says."""
    pad = "x" * (3 << 20)
    parts = [make.image(salt=str(n), manifest={"annotations": {"pad": pad}}) for n in range(24)]
    index = make.index(*((one, {}) for one in parts))
    upstream.add("team/app", index, "1")
    for one in parts:
        upstream.add("team/app", one)
    with pytest.raises(layerstore.LimitError):
        pull(store, upstream)


def test_a_layer_as_large_as_the_descriptor_says_is_not_trusted(store, upstream, image) -> None:
    value = json.loads(image.data)
    value["layers"][1]["size"] += 1
    upstream.put("team/app", json.dumps(value).encode(), image.media_type, "1")
    with pytest.raises(layerstore.DigestMismatchError):
        pull(store, upstream)


def test_a_copy_into_other_transports_and_back(store, upstream, image, tmp_path: Path) -> None:
    store.copy_images(place(upstream), f"oci:{tmp_path}/out", source_remote=QUICK)
    assert image.all.items() <= make.read(tmp_path / "out").items()
    store.copy_images(f"oci:{tmp_path}/out:1", place(upstream, "other/app"), target_remote=QUICK)
    assert upstream.tags["other/app", "1"] == image.digest
    assert upstream.blobs["other/app", big_layer(image)] == image.blobs[big_layer(image)]
    assert store.images() == []
