"""What a registry does not take: too much, too long, too slowly."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from registry.asgi import Client
from registry.test_registry import digest_of, image, push, put

from layerstore.registry import Config, Registry
from layerstore.registry.config import LimitsConfig, MaintenanceConfig
from layerstore.storage.uploads import ROOM


def client_with(store, **limits) -> Client:
    return Client(Registry(store, Config(limits=LimitsConfig(**limits))))


def uploads_of(store) -> list[str]:
    folder = os.path.join(store.path, "uploads")
    return os.listdir(folder) if os.path.isdir(folder) else []


def test_bytes_of_an_upload(store):
    client = client_with(store, upload_bytes=1000)
    push(client, b"x" * 1000)
    data = b"y" * 1001
    answer = client("POST", f"/v2/a/b/blobs/uploads/?digest={digest_of(data)}", data)
    assert (answer.status, answer.code) == (413, "SIZE_INVALID")
    path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
    assert client("PATCH", path, data[:600]).status == 202
    # A length that is too much is refused before a byte is taken, one that is not said when it is.
    assert client("PATCH", path, pieces=[data[:200]] * 3).status == 413
    assert client("GET", path).status == 404
    assert uploads_of(store) == []
    assert client("HEAD", f"/v2/a/b/blobs/{digest_of(data)}").status == 404


def test_bytes_of_a_repository(store):
    client = client_with(store, repository_bytes=2000)
    first = push(client, b"x" * 1500)
    push(client, b"x" * 1500)  # which it has
    for data in (b"y" * 501, b"z" * 3000):
        answer = client("POST", f"/v2/a/b/blobs/uploads/?digest={digest_of(data)}", data)
        assert (answer.status, answer.code) == (413, "SIZE_INVALID")
        assert client("HEAD", f"/v2/a/b/blobs/{digest_of(data)}").status == 404
    push(client, b"w" * 400, "c/d")
    push(client, b"v" * 501, "c/d")
    answer = client("POST", f"/v2/a/b/blobs/uploads/?mount={digest_of(b'v' * 501)}&from=c/d")
    assert answer.status == 413
    answer = client("POST", f"/v2/a/b/blobs/uploads/?mount={digest_of(b'w' * 400)}&from=c/d")
    assert answer.status == 201
    push(client, b"{}")
    assert put(client, image(), "v1").status == 413
    assert client("DELETE", f"/v2/a/b/blobs/{first}").status == 202
    assert put(client, image(), "v1").status == 201
    push(client, b"y" * 501)
    assert uploads_of(store) == []


def test_open_uploads(store):
    client = Client(
        Registry(
            store,
            Config(limits=LimitsConfig(open_uploads=2), maintenance=MaintenanceConfig(idle=3600.0)),
        )
    )
    paths = [client("POST", "/v2/a/b/blobs/uploads/").headers["location"] for _ in range(2)]
    answer = client("POST", "/v2/a/b/blobs/uploads/")
    assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
    assert client("DELETE", paths[0]).status == 204
    assert client("POST", "/v2/a/b/blobs/uploads/").status == 202


def test_uploads_that_nobody_touched_make_room(store):
    config = Config(limits=LimitsConfig(open_uploads=1), maintenance=MaintenanceConfig(idle=0.01))
    client = Client(Registry(store, config))
    for _ in range(3):
        assert client("POST", "/v2/a/b/blobs/uploads/").status == 202
        time.sleep(0.05)
    assert len(uploads_of(store)) == 1


def test_who_begins_an_upload_clears_away_a_few_at_most(store):
    """Thousands that were left take seconds to go: nobody's request waits for them."""
    config = Config(limits=LimitsConfig(open_uploads=40), maintenance=MaintenanceConfig(idle=0.2))
    client = Client(Registry(store, config))
    for _ in range(40):
        assert client("POST", "/v2/a/b/blobs/uploads/").status == 202
    time.sleep(0.3)
    assert len(uploads_of(store)) == 40
    assert client("POST", "/v2/a/b/blobs/uploads/").status == 202
    assert len(uploads_of(store)) == 40 - ROOM + 1
    for _ in range(30):
        assert client("POST", "/v2/a/b/blobs/uploads/").status == 202
        assert len(uploads_of(store)) <= 40


def test_bytes_of_a_manifest(store):
    client = client_with(store, manifest_bytes=1000)
    push(client, b"{}")
    assert put(client, image(), "v1").status == 201
    answer = put(client, image(annotations={"a": "x" * 1000}), "v2")
    assert (answer.status, answer.code) == (413, "SIZE_INVALID")
    pieces = client(
        "PUT", "/v2/a/b/manifests/v2", headers={"Content-Type": "x"}, pieces=[b" " * 500] * 3
    )
    assert pieces.status == 413


def test_bytes_of_headers(store):
    client = client_with(store, header_bytes=2000)
    assert client("GET", "/v2/", headers={"X": "y" * 1900}).status == 200
    answer = client("GET", "/v2/", headers={"X": "y" * 2100})
    assert (answer.status, answer.code) == (431, "UNSUPPORTED")
    assert client("GET", "/v2/?a=" + "y" * 2100).status == 431


def test_silence_in_a_body_ends_it_and_keeps_what_came(store):
    registry = Registry(store, Config(limits=LimitsConfig(body_idle=0.1)))
    client = Client(registry)
    data = b"z" * 3_000_000
    path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
    silent = client("PATCH", path, pieces=[data[:2_000_000]], silent=True)
    assert silent.status == 408
    assert silent.headers["connection"] == "close"
    assert client("GET", path).headers["range"] == "0-1999999"
    digest = digest_of(data)
    assert client("PUT", f"{path}?digest={digest}", data[2_000_000:]).status == 201


def test_a_client_that_takes_nothing_does_not_hold_a_blob(store):
    registry = Registry(store, Config(limits=LimitsConfig(body_idle=0.1)))
    digest = push(Client(registry), os.urandom(5_000_000))
    cut = []

    async def ask() -> int:
        sent = []

        async def send(message) -> None:
            sent.append(message)
            if len(sent) > 2:
                await asyncio.Event().wait()

        async def receive():
            if not sent:
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.Event().wait()

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v2/a/b/blobs/{digest}",
            "headers": [],
            "state": {"abort": lambda: cut.append(True)},
        }
        await asyncio.wait_for(registry(scope, receive, send), 20)
        return len(sent)

    assert asyncio.run(ask()) == 3
    assert cut == [True]


def test_a_client_that_takes_little_is_waited_for(store):
    """A piece takes five times as long as silence may last; what is left gets less all the while."""
    registry = Registry(store, Config(limits=LimitsConfig(body_idle=0.1)))
    data = os.urandom(1_500_000)
    digest = push(Client(registry), data)
    left = [0]
    got, asked = bytearray(), []

    async def ask() -> None:
        async def send(message) -> None:
            left[0] = len(message.get("body", b""))
            while left[0] > 0:
                await asyncio.sleep(0.05)
                left[0] -= 60_000
            got.extend(message.get("body", b""))

        async def receive():
            if not asked:
                asked.append(True)
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.Event().wait()

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v2/a/b/blobs/{digest}",
            "headers": [],
            "state": {"abort": lambda: pytest.fail("cut"), "unsent": lambda: left[0]},
        }
        await asyncio.wait_for(registry(scope, receive, send), 20)

    asyncio.run(ask())
    assert got == data


def test_a_client_that_goes_away_ends_the_reading(store):
    registry = Registry(store)
    digest = push(Client(registry), os.urandom(8 << 20))
    sent = []

    async def ask() -> None:
        gone = asyncio.Event()
        asked = []

        async def send(message) -> None:
            sent.append(message)
            if len(sent) == 3:
                gone.set()
                await asyncio.sleep(0.01)

        async def receive():
            asked.append(True)
            if len(asked) == 1:
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v2/a/b/blobs/{digest}",
            "headers": [],
        }
        await registry(scope, receive, send)

    asyncio.run(ask())
    assert len(sent) < 6
