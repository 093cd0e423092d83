"""The registry's answers, one request at a time; the specification's own suite runs beside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from registry.asgi import Client

import layerstore
from layerstore.registry import Config, Registry
from layerstore.registry.config import LimitsConfig, MaintenanceConfig

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def push(client: Client, data: bytes, name: str = "a/b") -> str:
    digest = digest_of(data)
    answer = client("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", data)
    assert answer.status == 201, answer
    return digest


def descriptor(data: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


def image(*layers: bytes, config: bytes = b"{}", **more: object) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config, CONFIG),
            "layers": [descriptor(layer, LAYER) for layer in layers],
            **more,
        }
    ).encode()


def put(client: Client, data: bytes, reference: str, name: str = "a/b", kind: str = MANIFEST):
    return client("PUT", f"/v2/{name}/manifests/{reference}", data, {"Content-Type": kind})


def test_a_blob_comes_back_whole_and_in_ranges(client):
    data = bytes(range(256)) * 5000
    digest = push(client, data)
    whole = client("GET", f"/v2/a/b/blobs/{digest}")
    assert (whole.status, whole.body) == (200, data)
    assert whole.headers["docker-content-digest"] == digest
    head = client("HEAD", f"/v2/a/b/blobs/{digest}")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(data)))
    for text, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=300000-700000", 300000, 700000),
        ("bytes=1279999-", 1279999, 1279999),
        ("bytes=-10", 1279990, 1279999),
        ("bytes=5-99999999", 5, 1279999),
    ):
        part = client("GET", f"/v2/a/b/blobs/{digest}", headers={"Range": text})
        assert (part.status, part.body) == (206, data[first : last + 1]), text
        assert part.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
    beyond = client("GET", f"/v2/a/b/blobs/{digest}", headers={"Range": "bytes=1280000-"})
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")


def test_conditions(client):
    digest = push(client, b"x" * 100)
    path = f"/v2/a/b/blobs/{digest}"
    data = image(b"x" * 100)
    push(client, b"{}")
    assert put(client, data, "v1").status == 201
    manifest = "/v2/a/b/manifests/v1"
    for method in ("GET", "HEAD"):
        for target, tag in ((path, digest), (manifest, digest_of(data))):
            for tags in (f'"{tag}"', f'"x", W/"{tag}"', "*"):
                same = client(method, target, headers={"If-None-Match": tags})
                assert (same.status, same.body) == (304, b"")
                assert same.headers["etag"] == f'"{tag}"'
                assert "content-length" not in same.headers
            assert client(method, target, headers={"If-None-Match": f'W/"{tag}x"'}).status == 200
        absent = f"/v2/a/b/blobs/{digest_of(b'absent')}"
        assert client(method, absent, headers={"If-None-Match": "*"}).status == 404
    ranged = {"Range": "bytes=1-2"}
    assert client("GET", path, headers={**ranged, "If-Range": f'"{digest}"'}).status == 206
    assert client("GET", path, headers={**ranged, "If-Range": '"other"'}).status == 200


def test_an_upload_in_pieces(client):
    data = b"0123456789" * 1000
    begun = client("POST", "/v2/a/b/blobs/uploads/")
    assert begun.status == 202
    path = begun.headers["location"]
    first = client("PATCH", path, data[:4000], {"Content-Range": "0-3999"})
    assert (first.status, first.headers["range"]) == (202, "0-3999")
    gap = client("PATCH", path, data[5000:], {"Content-Range": "5000-9999"})
    assert (gap.status, gap.headers["range"]) == (416, "0-3999")
    overlap = client("PATCH", path, data[3000:], {"Content-Range": "3000-9999"})
    assert overlap.status == 416
    assert client("GET", path).headers["range"] == "0-3999"
    digest = digest_of(data)
    done = client("PUT", f"{path}?digest={digest}", data[4000:], {"Content-Range": "4000-9999"})
    assert done.status == 201
    assert client("GET", f"/v2/a/b/blobs/{digest}").body == data
    assert client("PUT", f"{path}?digest={digest}").code == "BLOB_UPLOAD_UNKNOWN"


def test_an_upload_goes_on_in_another_process(tmp_path):
    data = b"abcdefgh" * 100_000
    digest = digest_of(data)
    with layerstore.open(tmp_path / "store") as store:
        client = Client(Registry(store))
        path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
        assert client("PATCH", path, data[:300_001]).status == 202
    with layerstore.open(tmp_path / "store") as store:
        client = Client(Registry(store))
        assert client("GET", path).headers["range"] == "0-300000"
        assert client("PUT", f"{path}?digest={digest}", data[300_001:]).status == 201
        assert client("GET", f"/v2/a/b/blobs/{digest}").body == data
        assert store.check(full=True).ok


def test_a_client_that_goes_away_loses_nothing_that_came(client):
    data = b"z" * 5_000_000
    path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
    assert client("PATCH", path, pieces=[data[:3_000_000]], cut=True) is None
    assert client("GET", path).headers["range"] == "0-2999999"
    rest = client("PUT", f"{path}?digest={digest_of(data)}", data[3_000_000:])
    assert rest.status == 201


def test_what_does_not_match_its_digest_is_not_stored(client, store):
    wrong = digest_of(b"other")
    answer = client("POST", f"/v2/a/b/blobs/uploads/?digest={wrong}", b"data")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert client("HEAD", f"/v2/a/b/blobs/{wrong}").status == 404
    assert list(store.blobs()) == []


def test_an_upload_belongs_to_its_repository(client):
    path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
    elsewhere = path.replace("/a/b/", "/c/d/")
    for method in ("GET", "PATCH", "DELETE"):
        assert client(method, elsewhere, b"x").code == "BLOB_UPLOAD_UNKNOWN"
    assert client("GET", "/v2/a/b/blobs/uploads/0123456789abcdef").status == 404
    assert client("DELETE", path).status == 204
    assert client("GET", path).status == 404


def test_content_of_other_repositories_is_not_there(client):
    digest = push(client, b"secret", "private/one")
    absent = digest_of(b"never put")
    for name in (digest, absent):
        answer = client("GET", f"/v2/public/one/blobs/{name}")
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    there = client("GET", f"/v2/public/one/blobs/{digest}")
    nowhere = client("GET", f"/v2/public/one/blobs/{absent}")
    assert (there.body, there.headers) == (nowhere.body, nowhere.headers)


def test_a_mount_makes_it_readable(client):
    digest = push(client, b"shared", "base/one")
    mounted = client("POST", f"/v2/app/two/blobs/uploads/?mount={digest}&from=base/one")
    assert mounted.status == 201
    assert client("GET", f"/v2/app/two/blobs/{digest}").body == b"shared"
    missing = client("POST", f"/v2/app/two/blobs/uploads/?mount={digest}&from=no/such")
    assert missing.status == 202


def test_a_manifest_needs_its_blobs(client, store):
    data = image(b"layer")
    answer = put(client, data, "v1")
    assert (answer.status, answer.code) == (404, "MANIFEST_BLOB_UNKNOWN")
    push(client, b"{}")
    push(client, b"layer", "elsewhere")
    assert put(client, data, "v1").code == "MANIFEST_BLOB_UNKNOWN"
    push(client, b"layer")
    assert put(client, data, "v1").status == 201
    for reference in ("v1", digest_of(data)):
        got = client("GET", f"/v2/a/b/manifests/{reference}")
        assert (got.status, got.body) == (200, data)
        assert got.headers["content-type"] == MANIFEST
    assert [info.name for info in store.images()] == ["a/b:v1"]


def test_what_is_put_stays_through_gc(client, store):
    push(client, b"{}")
    digest = push(client, b"layer")
    store.gc()
    assert client("HEAD", f"/v2/a/b/blobs/{digest}").status == 200
    assert put(client, image(b"layer"), "v1").status == 201
    store.gc()
    assert client("GET", f"/v2/a/b/blobs/{digest}").body == b"layer"


def test_what_no_manifest_names_goes_when_nobody_asks(store):
    client = Client(Registry(store, Config(maintenance=MaintenanceConfig(idle=0.05))))
    push(client, b"{}")
    layer = push(client, b"layer")
    lone = push(client, b"alone")
    assert put(client, image(b"layer"), "v1").status == 201
    import time

    time.sleep(0.1)
    store.gc()
    store.gc()
    assert client("HEAD", f"/v2/a/b/blobs/{layer}").status == 200
    assert client("HEAD", f"/v2/a/b/blobs/{lone}").status == 404
    assert digest_of(b"alone") not in {info.digest for info in store.blobs()}


def test_deletion(client, store):
    push(client, b"{}")
    layer = push(client, b"layer")
    data = image(b"layer")
    put(client, data, "v1")
    put(client, data, "v2")
    assert client("DELETE", "/v2/a/b/manifests/v1").status == 202
    assert client("GET", "/v2/a/b/tags/list").json()["tags"] == ["v2"]
    assert client("DELETE", f"/v2/a/b/manifests/{digest_of(data)}").status == 202
    assert client("GET", "/v2/a/b/manifests/v2").status == 404
    assert client("DELETE", f"/v2/a/b/blobs/{layer}").status == 202
    assert client("HEAD", f"/v2/a/b/blobs/{layer}").status == 404


def test_tags_are_paged(client):
    push(client, b"{}")
    tags = [f"t{n:03}" for n in range(25)]
    for tag in tags:
        assert put(client, image(), tag).status == 201
    got, path = [], "/v2/a/b/tags/list?n=10"
    while path:
        answer = client("GET", path)
        got += answer.json()["tags"]
        path = answer.headers.get("link", "").partition(">")[0].lstrip("<")
    assert got == tags
    assert client("GET", "/v2/no/such/tags/list").code == "NAME_UNKNOWN"


def test_several_tags_at_once(client):
    push(client, b"{}")
    data = image()
    answer = put(client, data, f"{digest_of(data)}?tag=x&tag=y")
    assert answer.status == 201
    assert client("GET", "/v2/a/b/tags/list").json()["tags"] == ["x", "y"]


def test_referrers(client):
    push(client, b"{}")
    subject = image()
    put(client, subject, "v1")
    for kind in ("application/x.sbom", "application/x.sig"):
        refers = image(
            artifactType=kind, subject=descriptor(subject, MANIFEST), annotations={"k": kind}
        )
        answer = put(client, refers, digest_of(refers))
        assert answer.headers["oci-subject"] == digest_of(subject)
    path = f"/v2/a/b/referrers/{digest_of(subject)}"
    found = client("GET", path).json()["manifests"]
    assert sorted(one["artifactType"] for one in found) == [
        "application/x.sbom",
        "application/x.sig",
    ]
    filtered = client("GET", path + "?artifactType=application/x.sig")
    assert filtered.headers["oci-filters-applied"] == "artifactType"
    assert [one["annotations"]["k"] for one in filtered.json()["manifests"]] == [
        "application/x.sig"
    ]
    other = client("GET", f"/v2/other/one/referrers/{digest_of(subject)}")
    assert (other.status, other.json()["manifests"]) == (200, [])


def followed(client, path: str) -> Iterator[tuple[dict[str, str], list[dict]]]:
    """Pages of an index, as far as their links lead."""
    while path:
        answer = client("GET", path)
        assert answer.status == 200
        yield answer.headers, answer.json()["manifests"]
        path = answer.headers.get("link", "").partition(">")[0].lstrip("<")


def test_referrers_are_paged(store):
    """By their number, if so asked, and by what they take in any case; a filter goes along."""
    limits = LimitsConfig(manifest_bytes=40_000)
    client = Client(Registry(store, Config(limits=limits)))
    push(client, b"{}")
    subject = image()
    put(client, subject, "v1")
    wanted = {}
    for n in range(23):
        kind = ("application/x.sbom", "application/x.sig+json")[n % 2]
        notes = {"n": str(n), "much": "m" * 6000}
        refers = image(artifactType=kind, subject=descriptor(subject, MANIFEST), annotations=notes)
        assert put(client, refers, digest_of(refers)).status == 201
        wanted[digest_of(refers)] = kind
    path = f"/v2/a/b/referrers/{digest_of(subject)}"
    for query, most in (("", 7), ("?n=3", 3), ("?n=1", 1), ("?n=1000", 7)):
        pages = [found for _, found in followed(client, path + query)]
        assert all(0 < len(found) <= most for found in pages)
        assert [one["digest"] for found in pages for one in found] == sorted(wanted)
    of_kind = sorted(d for d, kind in wanted.items() if kind.endswith("sig+json"))
    query = urlencode({"artifactType": "application/x.sig+json", "n": 4})
    pages = list(followed(client, f"{path}?{query}"))
    assert [len(found) for _, found in pages] == [4, 4, 3]
    assert [one["digest"] for _, found in pages for one in found] == of_kind
    assert all(headers["oci-filters-applied"] == "artifactType" for headers, _ in pages)
    assert client("GET", path + "?n=0").json()["manifests"] == []
    assert client("GET", path + "?n=x").code == "PAGINATION_NUMBER_INVALID"


def test_a_piece_is_as_long_as_its_range(client):
    """Also where no Content-Length says so: what is beyond is not taken."""
    path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
    chunks = [b"x" * 6, b"y" * 6]
    for span, status in (("0-9", 400), ("0-12", 400), ("0-11", 202)):
        begun = client("GET", path).headers["range"]
        if begun != "0-0":  # what came before the lie showed is there
            client("DELETE", path)
            path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
        answer = client("PATCH", path, headers={"content-range": span}, pieces=chunks)
        assert answer.status == status, span
    assert client("GET", path).headers["range"] == "0-11"
    data = b"".join(chunks)
    assert client("PUT", f"{path}?digest={digest_of(data)}").status == 201


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"not json", MANIFEST),
        (b'{"schemaVersion": 2, "schemaVersion": 2}', MANIFEST),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', INDEX),
        (
            b'{"schemaVersion": 2, "mediaType": "' + INDEX.encode() + b'", "manifests": []}',
            MANIFEST,
        ),
        (b"[" * 5000 + b"]" * 5000, MANIFEST),
        (b"{}", "text/plain"),
    ],
)
def test_odd_manifests_are_refused(client, data, kind):
    answer = put(client, data, "v1", kind=kind)
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


def test_a_manifest_of_five_mebibytes_is_refused(client):
    answer = put(client, b" " * (5 << 20), "v1")
    assert answer.status == 413


@pytest.mark.parametrize(
    "path",
    [
        "/v2/a/../b/tags/list",
        "/v2/A/tags/list",
        "/v2/a%2Fb/tags/list",
        "/v2/a//b/tags/list",
        "/v2/a/b/manifests/-bad",
        "/v2/a/b/manifests/" + "t" * 129,
        "/v2/a/b/blobs/sha256:xyz/..",
        "/v2/" + "a" * 256 + "/tags/list",
        "/v2/a/b/blobs/sha256:0123",
    ],
)
def test_paths_outside_the_grammar(client, path):
    answer = client("GET", path)
    assert answer.status in (400, 404)
    assert answer.json()["errors"]


def test_what_a_path_is_not_for(client):
    answer = client("POST", "/v2/a/b/tags/list")
    assert (answer.status, answer.headers["allow"]) == (405, "GET")


def test_an_image_that_was_named_otherwise_is_served(client, store):
    push(client, b"{}")
    push(client, b"layer")
    data = image(b"layer")
    put(client, data, "v1")
    store.tag("a/b:v1", "other/name:v2")
    assert client("HEAD", f"/v2/other/name/blobs/{digest_of(b'layer')}").status == 404
    assert client("GET", "/v2/other/name/manifests/v2").body == data
    assert client("GET", f"/v2/other/name/blobs/{digest_of(b'layer')}").body == b"layer"


def test_the_store_is_whole_after_all(client, store):
    push(client, b"{}")
    push(client, b"layer" * 1000)
    put(client, image(b"layer" * 1000), "v1")
    store.gc(aggressive=True)
    assert store.check(full=True).ok
    assert client("GET", "/v2/_catalog").json() == {"repositories": ["a/b"]}
