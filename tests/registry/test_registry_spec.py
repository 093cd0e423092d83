"""Sentences of the specification, one by one; its own suite, fetched by Go, asks for most of them too.

distribution-spec 1.1, and of its main branch `digest-algorithm`, several tags in one PUT, sha512.
"""

from __future__ import annotations

import hashlib
import json
import os
import time

import pytest
from registry.asgi import Client
from registry.test_mirror_workers import later
from registry.test_registry import CONFIG, INDEX, MANIFEST, descriptor, digest_of, image, push, put

from layerstore.oci import repository as rules
from layerstore.registry import Config, Registry
from layerstore.registry.config import AccessConfig, LimitsConfig, MaintenanceConfig, Rule

__all__ = ["later"]
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
UPLOADS = "/v2/a/b/blobs/uploads/"


def sha512_of(data: bytes) -> str:
    return "sha512:" + hashlib.sha512(data).hexdigest()


# ---- digests ----------------------------------------------------------------------------------


def test_blobs_and_manifests_by_sha512(client, store):
    data = os.urandom(300_000)
    wanted = sha512_of(data)
    begun = client("POST", UPLOADS + "?digest-algorithm=sha512")
    assert begun.status == 202
    path = begun.headers["location"]
    assert client("PATCH", path, data[:100_000]).status == 202
    done = client("PUT", f"{path}?digest={wanted}", data[100_000:])
    assert (done.status, done.headers["docker-content-digest"]) == (201, wanted)
    assert client("GET", f"/v2/a/b/blobs/{wanted}").body == data
    assert client("HEAD", f"/v2/a/b/blobs/{wanted}").headers["content-length"] == str(len(data))
    wrong = client("POST", f"{UPLOADS}?digest={sha512_of(b'other')}", data)
    assert (wrong.status, wrong.code) == (400, "DIGEST_INVALID")
    config = b"{}"
    at_once = client("POST", f"{UPLOADS}?digest={sha512_of(config)}", config)
    assert at_once.status == 201
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {**descriptor(config, CONFIG), "digest": sha512_of(config)},
            "layers": [{"mediaType": "x/y", "digest": wanted, "size": len(data)}],
        }
    ).encode()
    named = sha512_of(manifest)
    answer = put(client, manifest, f"{named}?tag=v1")
    assert (answer.status, answer.headers["docker-content-digest"]) == (201, named)
    for reference in (named, "v1"):
        got = client("GET", f"/v2/a/b/manifests/{reference}")
        assert (got.status, got.body) == (200, manifest)
        assert got.headers["docker-content-digest"] == named
    assert put(client, manifest, sha512_of(b"other")).code == "DIGEST_INVALID"
    store.gc()
    assert client("GET", f"/v2/a/b/blobs/{wanted}").body == data
    assert store.check(full=True).ok


@pytest.mark.parametrize("name", ["md5", "sha256x", "", "SHA512"])
def test_another_algorithm_is_refused_before_a_byte_is_sent(client, name):
    answer = client("POST", f"{UPLOADS}?digest-algorithm={name}")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


# ---- uploads ----------------------------------------------------------------------------------


def test_an_upload_says_where_it_stands_and_how_small_pieces_may_be(client):
    begun = client("POST", UPLOADS)
    assert int(begun.headers["oci-chunk-min-length"]) >= 0
    assert begun.headers["docker-upload-uuid"] in begun.headers["location"]
    path = begun.headers["location"]
    piece = client("PATCH", path, b"x" * 10)
    assert (piece.status, piece.headers["range"]) == (202, "0-9")
    assert piece.headers["location"].startswith(UPLOADS)
    stands = client("GET", path)
    assert (stands.status, stands.headers["range"]) == (204, "0-9")


def test_what_is_cancelled_is_gone(client, store):
    path = client("POST", UPLOADS).headers["location"]
    assert client("PATCH", path, b"x" * 5000).status == 202
    assert len(os.listdir(os.path.join(store.path, "uploads"))) == 1
    assert client("DELETE", path).status == 204
    assert os.listdir(os.path.join(store.path, "uploads")) == []
    for method in ("GET", "PATCH", "DELETE", "PUT"):
        more = f"?digest={digest_of(b'')}" if method == "PUT" else ""
        answer = client(method, path + more)
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN"), method


# ---- documents --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MANIFEST, DOCKER])
def test_a_document_comes_back_as_it_came(client, kind):
    """With its spaces, the order of its keys, and those that nobody knows."""
    push(client, b"{}")
    data = (
        b'{\n\t"x-mine" : [1.50, 1e2, "\\u00e9\xc3\xa9"],\r\n "layers":[ ],  "config":{"size":2,'
        b'"digest":"%s","mediaType":"application/vnd.docker.container.image.v1+json"},'
        b'"mediaType":"%s","schemaVersion":2}\n\n' % (digest_of(b"{}").encode(), kind.encode())
    )
    assert put(client, data, "v1", kind=kind).status == 201
    for reference in ("v1", digest_of(data)):
        got = client("GET", f"/v2/a/b/manifests/{reference}")
        assert (got.body, got.headers["content-type"]) == (data, kind)
        head = client("HEAD", f"/v2/a/b/manifests/{reference}")
        assert (head.status, head.headers["content-length"]) == (200, str(len(data)))
    index = json.dumps({"schemaVersion": 2, "manifests": [descriptor(data, kind)]}, indent=3)
    several = DOCKER_LIST if kind == DOCKER else INDEX
    body = index.replace("{", f'{{"mediaType": "{several}",', 1).encode()
    assert put(client, body, "all", kind=several).status == 201
    got = client("GET", "/v2/a/b/manifests/all")
    assert (got.body, got.headers["content-type"]) == (body, several)


def test_tags_of_one_put_are_all_said_or_none_is_set(client):
    push(client, b"{}")
    data = image()
    answer = put(client, data, f"{digest_of(data)}?tag=x&tag=y&tag=x")
    assert answer.status == 201
    assert answer.headers["docker-content-digest"] == digest_of(data)
    assert client("GET", "/v2/a/b/tags/list").json()["tags"] == ["x", "y"]
    other = image(annotations={"a": "b"})
    for query in ("tag=z&tag=-", "tag=z&tag=" + "t" * 129, "tag=z&tag=a/b", "tag="):
        refused = put(client, other, f"{digest_of(other)}?{query}")
        assert (refused.status, refused.code) == (400, "TAG_INVALID"), query
    many = "&".join(f"tag=t{n}" for n in range(200))
    assert put(client, other, f"{digest_of(other)}?{many}").status == 400
    assert put(client, other, "z?tag=w").code == "TAG_INVALID"
    assert client("GET", "/v2/a/b/tags/list").json()["tags"] == ["x", "y"]
    assert client("GET", f"/v2/a/b/manifests/{digest_of(other)}").status == 404


def test_the_fallback_tag_is_a_tag_as_any_other(client):
    """A client that knows no referrers API keeps a list under it; who asks the API finds the same."""
    push(client, b"{}")
    subject = image()
    put(client, subject, "v1")
    refers = image(artifactType="x/y", subject=descriptor(subject, MANIFEST))
    assert put(client, refers, digest_of(refers)).headers["oci-subject"] == digest_of(subject)
    entry = {**descriptor(refers, MANIFEST), "artifactType": "x/y"}
    listed = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    tag = digest_of(subject).replace(":", "-")
    assert put(client, listed, tag, kind=INDEX).status == 201
    assert client("GET", f"/v2/a/b/manifests/{tag}").body == listed
    found = client("GET", f"/v2/a/b/referrers/{digest_of(subject)}").json()["manifests"]
    assert found == [entry]
    assert client("DELETE", f"/v2/a/b/manifests/{tag}").status == 202
    assert client("GET", f"/v2/a/b/manifests/{tag}").status == 404
    found = client("GET", f"/v2/a/b/referrers/{digest_of(subject)}").json()["manifests"]
    assert found == [entry]


# ---- errors -----------------------------------------------------------------------------------

NOWHERE = digest_of(b"nowhere")
MADE_UP = UPLOADS + "0123456789abcdef" + "0" * 32
ERRORS = {
    "BLOB_UNKNOWN": ("GET", f"/v2/a/b/blobs/{NOWHERE}", 404),
    "BLOB_UPLOAD_INVALID": ("PATCH", "begun", 416),
    "BLOB_UPLOAD_UNKNOWN": ("PATCH", MADE_UP, 404),
    "DIGEST_INVALID": ("PUT", "begun?digest=sha256:0", 400),
    "MANIFEST_BLOB_UNKNOWN": ("PUT", "/v2/a/b/manifests/absent", 404),
    "MANIFEST_INVALID": ("PUT", "/v2/a/b/manifests/invalid", 400),
    "MANIFEST_UNKNOWN": ("GET", "/v2/a/b/manifests/unknown", 404),
    "NAME_INVALID": ("GET", "/v2/A/tags/list", 400),
    "NAME_UNKNOWN": ("GET", "/v2/no/such/tags/list", 404),
    "SIZE_INVALID": ("PUT", "/v2/a/b/manifests/large", 413),
    "UNSUPPORTED": ("PATCH", "/v2/a/b/manifests/v1", 405),
}
"""UNAUTHORIZED, DENIED and TOOMANYREQUESTS are in test_access.py and test_limits.py."""


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_has_its_code(code, store):
    client = Client(Registry(store, Config(limits=LimitsConfig(manifest_bytes=2000))))
    push(client, b"{}")
    method, path, status = ERRORS[code]
    bodies = {
        "MANIFEST_BLOB_UNKNOWN": image(b"nowhere"),
        "MANIFEST_INVALID": b"{}",
        "SIZE_INVALID": image(annotations={"a": "x" * 2000}),
    }
    headers = {"Content-Type": MANIFEST} if "/manifests/" in path else {}
    if path.startswith("begun"):
        path = client("POST", UPLOADS).headers["location"] + path.removeprefix("begun")
        headers = {"Content-Range": "5-6"} if code == "BLOB_UPLOAD_INVALID" else {}
        bodies["BLOB_UPLOAD_INVALID"] = b"ab"
    answer = client(method, path, bodies.get(code, b""), headers)
    assert answer.status == status
    (error,) = answer.json()["errors"]
    assert error["code"] == code
    assert error["message"]
    assert answer.headers["content-type"] == "application/json"


# ---- what is kept -----------------------------------------------------------------------------

IDLE = 3600.0


@pytest.fixture
def idling(store):
    """A registry that keeps for an hour what no manifest names."""
    return Client(Registry(store, Config(maintenance=MaintenanceConfig(idle=IDLE))))


def collect(store) -> None:
    store.gc()
    store.gc()


@pytest.mark.parametrize("how", ["HEAD", "mount", "mount from anywhere", "put again", "nothing"])
def test_we_have_that_is_a_promise(how, idling, store, later):
    """Of a blob that only an image names which goes in the middle of another's push."""
    data = b"base" * 1000
    push(idling, b"{}")
    layer = push(idling, data)
    before = image(data)
    assert put(idling, before, "v1").status == 201
    later(2 * IDLE)
    name, source = "a/b", ""
    if how == "HEAD":
        assert idling("HEAD", f"/v2/a/b/blobs/{layer}").status == 200
    elif how == "put again":
        push(idling, data)
    elif how.startswith("mount"):
        name, source = "c/d", "&from=a/b" if how == "mount" else ""
        assert idling("POST", f"/v2/c/d/blobs/uploads/?mount={layer}{source}").status == 201
    assert idling("DELETE", f"/v2/a/b/manifests/{digest_of(before)}").status == 202
    if name == "c/d":
        assert idling("DELETE", f"/v2/a/b/blobs/{layer}").status == 202
    later(0.7 * IDLE)
    collect(store)
    there = idling("GET", f"/v2/{name}/blobs/{layer}")
    assert (there.status, there.body == data) == ((404, False) if how == "nothing" else (200, True))
    if how != "nothing":
        push(idling, b"{}", name)
        assert put(idling, image(data), "v2", name).status == 201
        later(2 * IDLE)
        collect(store)
        assert idling("GET", f"/v2/{name}/blobs/{layer}").body == data


def test_times_of_files_decide_nothing(idling, store, later):
    """They come from clocks that jump and from tools that set them: leases count."""
    path = idling("POST", UPLOADS).headers["location"]
    assert idling("PATCH", path, b"x" * 5000).status == 202
    lone = push(idling, b"alone" * 1000)
    files = [
        os.path.join(folder, name)
        for part in ("uploads", "raw")
        for folder, _, names in os.walk(os.path.join(store.path, part))
        for name in names
    ]
    assert len(files) == 2
    for moment in (0.0, time.time() + 1e6):
        for file in files:
            os.utime(file, (moment, moment))
        collect(store)
        assert idling("GET", path).status == 204
        assert idling("GET", f"/v2/a/b/blobs/{lone}").status == 200
    later(1.1 * IDLE)
    collect(store)
    assert idling("GET", path).code == "BLOB_UPLOAD_UNKNOWN"
    assert idling("GET", f"/v2/a/b/blobs/{lone}").status == 404
    assert not any(os.path.exists(file) for file in files)


@pytest.mark.parametrize("what", ["blob", "manifest"])
def test_the_row_is_looked_at_where_the_bytes_are_found(client, store, monkeypatch, what):
    """What is taken out of a repository after it was found there, and before it is read, is not read,
    though another repository has it."""
    push(client, b"{}")
    digest = push(client, b"secret" * 1000)
    data = image(b"secret" * 1000)
    assert put(client, data, "v1").status == 201
    repository = store.repository("a/b")
    assert client("POST", f"/v2/other/b/blobs/uploads/?mount={digest}&from=a/b").status == 201
    taken = []

    def before(real, remove, wanted):
        def looked(*words, **more):
            found = real(*words, **more)
            if found is not None and not taken:
                taken.append(wanted)
                remove(wanted)
            return found

        return looked

    if what == "blob":
        monkeypatch.setattr(rules, "blob", before(rules.blob, repository.remove_blob, digest))
        answer = client("GET", f"/v2/a/b/blobs/{digest}")
    else:
        monkeypatch.setattr(
            rules, "look_up", before(rules.look_up, repository.remove_manifest, digest_of(data))
        )
        answer = client("GET", "/v2/a/b/manifests/v1")
    assert taken
    assert answer.status == 404
    assert store.repository("other/b").blob_size(digest) == 6000


def test_rights_that_only_pull_change_nothing(store):
    """Each method that writes, by somebody who may read."""
    full = Client(Registry(store))
    push(full, b"{}")
    put(full, image(), "v1")
    rules = (Rule(("@anyone",), ("**",), frozenset(("pull",))),)
    reader = Client(Registry(store, Config(access=AccessConfig(rules=rules))))
    before = sorted(store.repositories()), [one.name for one in store.images()]
    upload = full("POST", UPLOADS).headers["location"]
    for method, path in (
        ("POST", UPLOADS),
        ("POST", f"{UPLOADS}?mount={digest_of(b'{}')}&from=a/b"),
        ("PATCH", upload),
        ("PUT", f"{upload}?digest={digest_of(b'')}"),
        ("DELETE", upload),
        ("PUT", "/v2/a/b/manifests/v2"),
        ("DELETE", "/v2/a/b/manifests/v1"),
        ("DELETE", f"/v2/a/b/blobs/{digest_of(b'{}')}"),
    ):
        answer = reader(method, path, image() if "manifests" in path else b"")
        assert (answer.status, answer.code) == (403, "DENIED"), path
    assert (sorted(store.repositories()), [one.name for one in store.images()]) == before
    assert reader("GET", "/v2/a/b/manifests/v1").body == image()
