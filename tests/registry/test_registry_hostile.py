"""Manifests, names and tags of somebody who means no good: each shape by its name.

Over a real server, so that what a path is on the wire counts, not what a test would make of it.
"""

from __future__ import annotations

import http.client
import json
import re

import pytest
from registry.asgi import Client
from registry.test_registry import INDEX, MANIFEST, descriptor, digest_of, image, push, put
from registry.test_registry_server import serving_with

import layerstore
from layerstore.registry import Registry

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
ABSENT = descriptor(b"nowhere", "application/vnd.oci.image.layer.v1.tar")
CONFIG = descriptor(b"{}", "application/vnd.oci.image.config.v1+json")


@pytest.fixture
def client(store):
    made = Client(Registry(store))
    push(made, b"{}")
    return made


# ---- manifests --------------------------------------------------------------------------------


def of(**members: object) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, **members}).encode()


SHAPES: dict[str, tuple[bytes, str, int, str]] = {
    "blobs absent": (of(config=CONFIG, layers=[ABSENT]), MANIFEST, 404, "MANIFEST_BLOB_UNKNOWN"),
    "config absent": (of(config=ABSENT, layers=[]), MANIFEST, 404, "MANIFEST_BLOB_UNKNOWN"),
    "another type than its mediaType": (image(), DOCKER, 400, "MANIFEST_INVALID"),
    "an index that says it is an image": (image(), INDEX, 400, "MANIFEST_INVALID"),
    "no type at all": (image(), "", 400, "MANIFEST_INVALID"),
    "a type that is none": (image(), "text/html", 400, "MANIFEST_INVALID"),
    "manifests beside layers": (
        of(config=CONFIG, layers=[], manifests=[]), MANIFEST, 400, "MANIFEST_INVALID",
    ),
    "layers beside manifests": (
        of(mediaType=INDEX, manifests=[], layers=[]), INDEX, 400, "MANIFEST_INVALID",
    ),
    "5 MB": (image() + b" " * (5 << 20), MANIFEST, 413, "SIZE_INVALID"),
    "nested lists": (
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", MANIFEST, 400, "MANIFEST_INVALID",
    ),
    "nested objects": (
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000, MANIFEST, 400, "MANIFEST_INVALID",
    ),
    "not JSON": (b"<html>", MANIFEST, 400, "MANIFEST_INVALID"),
    "nothing": (b"", MANIFEST, 400, "MANIFEST_INVALID"),
    "not UTF-8": (b'{"a":"\xff"}', MANIFEST, 400, "MANIFEST_INVALID"),
    "a list": (b"[]", MANIFEST, 400, "MANIFEST_INVALID"),
    "duplicate keys": (image()[:-1] + b', "layers": []}', MANIFEST, 400, "MANIFEST_INVALID"),
    "duplicate keys below": (
        image().replace(b'"size": 2', b'"size": 2, "size": 3'), MANIFEST, 400, "MANIFEST_INVALID",
    ),
    "two documents": (image() + image(), MANIFEST, 400, "MANIFEST_INVALID"),
    "a size below zero": (
        of(config={**CONFIG, "size": -1}, layers=[]), MANIFEST, 400, "MANIFEST_INVALID",
    ),
    "a size past counting": (
        of(config={**CONFIG, "size": 1 << 80}, layers=[]), MANIFEST, 400, "MANIFEST_INVALID",
    ),
    "a digest that is a path": (
        of(config={**CONFIG, "digest": "sha256:../../etc/passwd"}, layers=[]), MANIFEST, 400, "",
    ),
    "layers of texts": (of(config=CONFIG, layers=["x"]), MANIFEST, 400, "MANIFEST_INVALID"),
    "Docker's first schema": (
        b'{"schemaVersion":1,"name":"a","tag":"b","fsLayers":[]}',
        "application/vnd.docker.distribution.manifest.v1+json", 400, "MANIFEST_INVALID",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_manifest_of_a_wrong_shape_is_refused(name, client, store):
    data, kind, status, code = SHAPES[name]
    answer = put(client, data, "v1", kind=kind)
    assert answer.status == status, answer
    assert re.fullmatch(code or "[A-Z_]+", answer.code)
    assert client("GET", "/v2/a/b/manifests/v1").status == 404
    assert client("GET", f"/v2/a/b/manifests/{digest_of(data)}").status == 404
    assert not store.images()
    assert store.check(full=True).ok


def test_indexes_in_indexes_cost_nobody_their_stack(client, store):
    """Three hundred of them, each naming the one before: taken, collected, refused by who would
    follow them, and never a crash."""
    data, kind = image(), MANIFEST
    assert put(client, data, digest_of(data), kind=kind).status == 201
    for _ in range(300):
        data = json.dumps(
            {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(data, kind)]}
        ).encode()
        kind = INDEX
        assert put(client, data, digest_of(data), kind=kind).status == 201
    assert put(client, data, "deep", kind=kind).status == 201
    store.gc()
    assert client("GET", "/v2/a/b/manifests/deep").body == data
    assert store.check().ok
    with pytest.raises(layerstore.LayerstoreError):
        list(store.image("a/b:deep").entries("/"))
    store.untag("a/b:deep")
    store.gc()
    assert store.check().ok


# ---- names and tags on the wire ---------------------------------------------------------------

DIGEST = digest_of(b"{}")
PATHS = {
    "capitals": "/v2/A/tags/list",
    "nothing": "/v2//tags/list",
    "dots": "/v2/../tags/list",
    "dots in the middle": "/v2/a/../b/tags/list",
    "dots out of the tree": "/v2/../../etc/passwd",
    "encoded dots": "/v2/%2e%2e/tags/list",
    "encoded dots in capitals": "/v2/a/%2E%2E/b/tags/list",
    "half encoded dots": "/v2/a/.%2e/b/tags/list",
    "encoded twice": "/v2/a/%252e%252e/b/tags/list",
    "an encoded slash": "/v2/a%2fb/tags/list",
    "an encoded slash, twice": "/v2/a%252fb/tags/list",
    "an encoded letter": "/v2/%61/b/tags/list",
    "a NUL": "/v2/a%00b/tags/list",
    "a new line": "/v2/a%0d%0aX-Injected:%201/tags/list",
    "a new line in a tag": "/v2/a/b/manifests/v%0d%0aX-Injected:%201",
    "a backslash": "/v2/a%5c..%5cb/tags/list",
    "an overlong dot": "/v2/%c0%ae%c0%ae/tags/list",
    "an overlong slash": "/v2/a%c0%afb/tags/list",
    "a full-width dot": "/v2/%ef%bc%8e%ef%bc%8e/tags/list",
    "a letter that is none of ours": "/v2/%c3%a4/tags/list",
    "a broken escape": "/v2/a%zz/tags/list",
    "half an escape": "/v2/a%2/tags/list",
    "256 letters": "/v2/" + "a" * 256 + "/tags/list",
    "a tag of 129 letters": "/v2/a/b/manifests/" + "t" * 129,
    "a tag with a slash": "/v2/a/b/manifests/a%2fb",
    "a tag of dots": "/v2/a/b/manifests/..",
    "a tag with a dash before it": "/v2/a/b/manifests/-x",
    "a digest of dots": "/v2/a/b/blobs/sha256:..",
    "a digest in capitals": "/v2/a/b/blobs/" + DIGEST.upper(),
    "a digest too short": "/v2/a/b/blobs/" + DIGEST[:-1],
    "a digest with more behind it": "/v2/a/b/blobs/" + DIGEST + "%00",
    "a digest with a new line": "/v2/a/b/blobs/" + DIGEST + "%0a",
    "a digest with an encoded colon": "/v2/a/b/blobs/" + DIGEST.replace(":", "%3a"),
    "a digest of another kind": "/v2/a/b/blobs/md5:" + "0" * 32,
    "an upload of dots": "/v2/a/b/blobs/uploads/%2e%2e%2fmeta",
    "an upload's file": "/v2/a/b/blobs/uploads/../../../../etc/passwd",
    "a parameter": "/v2/a;b=c/tags/list",
    "a fragment": "/v2/a%23b/tags/list",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    where = tmp_path_factory.mktemp("hostile")
    with serving_with(where, "") as (_, url, said):
        host, _, port = url.rpartition("//")[2].rpartition(":")
        yield host, int(port)
    assert "Traceback" not in said.read_text()
    with layerstore.open(where / "store") as store:
        assert not store.images()
        assert not store.repositories()
        assert store.check(full=True).ok


@pytest.mark.parametrize("name", PATHS)
def test_a_name_outside_the_grammar_means_nothing(name, server):
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        connection = http.client.HTTPConnection(*server, timeout=60)
        body = image() if method == "PUT" else None
        connection.putrequest(method, PATHS[name])
        connection.putheader("Content-Type", MANIFEST)
        connection.putheader("Content-Length", str(len(body or b"")))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status in (400, 404, 405), (method, answer.status, data)
        assert answer.headers["X-Injected"] is None
        if method != "HEAD":
            assert json.loads(data)["errors"][0]["code"].isupper()
