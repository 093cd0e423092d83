"""A server that ends while it works, workers of which one hangs, optimizing that waits for nobody, and
a crowd of clients that are slow or vanish."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from cli.small_images import BASE, TOP, Layout
from registry import soak
from registry.asgi import Client
from registry.soak import Client as Http
from registry.soak import digest_of, push_blob
from registry.test_registry_operation import awaited, children, samples
from registry.test_registry_server import SERVE, serving, serving_with, skopeo, url_of
from registry.test_registry_wire import answers, connect

import layerstore
from layerstore import RepositoryUpload
from layerstore.registry import Registry
from layerstore.registry.logs import AccessLog

LARGE = 24 << 20
"""More than all buffers between server and client hold."""


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def begin_patch(url: str, where: str, size: int, sent: bytes) -> socket.socket:
    connection = connect(url)
    head = f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def test_a_graceful_stop_lets_requests_end_and_uploads_resume(tmp_path):
    """A pull and a push that go on end well; a push and a pull that hang are cut after the time of
    grace, and logged as such. What came of the push is there for the next server."""
    data = os.urandom(LARGE)
    (tmp_path / "r.toml").write_text('[server]\ngrace = "6s"\n')
    command = [*SERVE[:3], "--store", str(tmp_path / "store"), *SERVE[3:]]
    command += ["--config", str(tmp_path / "r.toml")]
    errors = tmp_path / "errors"
    with errors.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        url = url_of(process)
        client = Http(port_of(url))
        digest = push_blob(client, "a/b", data)
        places = [
            client("POST", "/v2/a/b/blobs/uploads/")[1]["location"] for _ in ("goes on", "hangs")
        ]
        goes, hangs = (begin_patch(url, where, 2 << 20, data[: 1 << 20]) for where in places)
        with connect(url) as pull, connect(url) as stuck, goes, hangs:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            for one, agent in ((pull, "pulls"), (stuck, "stuck")):
                head = f"GET /v2/a/b/blobs/{digest} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}"
                one.sendall(f"{head}\r\n\r\n".encode())
            got = pull.recv(1000)
            assert stuck.recv(1000).startswith(b"HTTP/1.1 200 ")
            files = [tmp_path / "store/uploads" / w.rpartition("/")[2][:16] for w in places]
            awaited(lambda: all(file.stat().st_size for file in files))
            process.send_signal(signal.SIGTERM)
            awaited(lambda: refused(url))
            assert process.poll() is None
            goes.sendall(data[1 << 20 : 2 << 20])
            assert answers(goes).startswith(b"HTTP/1.1 202 ")
            whole = bytearray(got)
            while piece := pull.recv(1 << 20):
                whole += piece
            got = bytes(whole)
            assert got.startswith(b"HTTP/1.1 200 ")
            assert got.partition(b"\r\n\r\n")[2] == data
            assert not answers(hangs).startswith(b"HTTP/1.1 2")
            assert len(answers(stuck)) < LARGE
        assert process.wait(60) == 0
        said = errors.read_text()
        assert "Traceback" not in said
        assert "Cancel" not in said
        cut = [line for line in said.splitlines() if 'cut="stop"' in line]
        assert len(cut) == 2
        assert all(" status=0 " in line for line in cut)
        assert sum(places[1] in line for line in cut) == sum('"stuck"' in line for line in cut) == 1
    finally:
        process.kill()
        process.wait()
    with serving(tmp_path / "store") as (_, url):
        client = Http(port_of(url))
        for where, there in zip(places, (2 << 20, 1 << 20), strict=True):
            assert client("GET", where)[1]["range"] == f"0-{there - 1}"
            assert soak.finish_blob(client, where, data, there, digest) == digest
    with layerstore.open(tmp_path / "store") as store:
        assert store.check(full=True).ok


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_who_is_cancelled_waits_for_what_it_has_begun(tmp_path, monkeypatch, method):
    """An upload is not closed, and its descriptor is nobody else's, while a thread writes to it. What
    it wrote is there."""
    begun, order = threading.Event(), []
    write, close = RepositoryUpload.write, RepositoryUpload.close

    def slow_write(upload: RepositoryUpload, data: bytes) -> int:
        begun.set()
        time.sleep(0.5)
        order.append("written")
        return write(upload, data)

    def noted_close(upload: RepositoryUpload) -> object:
        order.append("closed")
        return close(upload)

    with layerstore.open(tmp_path / "store") as store:
        stream = io.StringIO()
        registry = Registry(store, log=AccessLog(stream=stream))
        where = Client(registry)("POST", "/v2/a/b/blobs/uploads/").headers["location"]
        monkeypatch.setattr(RepositoryUpload, "write", slow_write)
        monkeypatch.setattr(RepositoryUpload, "close", noted_close)
        aborted = []

        async def cancelled() -> None:
            # The second is there at once: it is the end of the first one's writing that is awaited.
            piece = {"type": "http.request", "body": b"x" * (2 << 20), "more_body": True}
            sent = [piece, piece]

            async def receive():
                return sent.pop() if sent else await asyncio.Event().wait()

            async def send(message) -> None:
                raise AssertionError("it was cut")

            headers = [(b"content-length", b"5000000")]
            query = b"digest=" + digest_of(b"").encode() if method == "PUT" else b""
            scope = {"type": "http", "method": method, "path": where, "headers": headers}
            scope |= {"query_string": query, "state": {"abort": lambda: aborted.append(1)}}
            task = asyncio.ensure_future(registry(scope, receive, send))
            while not begun.is_set():
                await asyncio.sleep(0.01)
            task.cancel()
            await task  # it ends, and raises nothing

        asyncio.run(cancelled())
        assert order == ["written", "closed"]
        assert aborted
        assert "status=0" in stream.getvalue()
        assert 'cut="stop"' in stream.getvalue()
        assert Client(registry)("GET", where).headers["range"] == f"0-{(2 << 20) - 1}"


def refused(url: str) -> bool:
    """Whether nobody listens any more."""
    try:
        connect(url).close()
    except ConnectionRefusedError:
        return True
    return False


def test_each_of_several_workers_does_everything(tmp_path):
    """While one of them stands still the other answers on the same port, and goes on with an upload
    that the first began."""
    data = os.urandom(3_000_000)
    with serving(tmp_path / "store", "--workers", "2") as (process, url):
        one, two = children(process.pid)
        port = port_of(url)
        with still(one):
            client = Http(port)
            where = client("POST", "/v2/a/b/blobs/uploads/")[1]["location"]
            assert client("PATCH", where, data[:1_000_000])[0] == 202
            client.close()
        with still(two):
            client = Http(port)
            assert client("PATCH", where, data[1_000_000:2_000_000])[0] == 202
            client.close()
        with still(one):
            client = Http(port)
            digest = digest_of(data)
            assert client("PUT", f"{where}?digest={digest}", data[2_000_000:])[0] == 201
            client.close()
        with still(two):
            client = Http(port)
            assert client("GET", f"/v2/a/b/blobs/{digest}")[2] == data
            client.close()


class still:
    """A process that is stopped, though not ended, while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        awaited(lambda: self._state() == "T")

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def _state(self) -> str:
        with open(f"/proc/{self._pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0]


@pytest.mark.needs("skopeo")
def test_optimize_now_does_not_wait_for_idleness(tmp_path):
    """While clients ask without a pause, what was pushed is optimized; it comes out as it went in."""
    layout = Layout(tmp_path / "layout")
    layout.image("1", BASE, TOP, compressed=True)
    store = tmp_path / "store"
    words = [sys.executable, "-m", "layerstore", "--store", str(store), "--json", "stats"]
    config = '[maintenance]\noptimize = "now"\nquiet = "10m"\n'
    (tmp_path / "served").mkdir()
    with serving_with(tmp_path / "served", config) as (_, url, said):
        host = url.removeprefix("http://")
        where = f"docker://{host}/team/app:1"
        skopeo("copy", "-q", "--dest-tls-verify=false", f"oci:{layout.path}:1", where)
        client = Http(port_of(url))
        deadline, asked = time.monotonic() + 60, 0.0
        words[4] = str(tmp_path / "served/store")
        while True:
            assert time.monotonic() < deadline
            assert client("HEAD", "/v2/team/app/manifests/1")[0] == 200
            time.sleep(0.02)
            if time.monotonic() - asked > 1:
                asked = time.monotonic()
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                forms = json.loads(done.stdout)["forms"]
                if forms["gzip"] and not forms["raw"]:
                    break
        skopeo("copy", "-q", "--src-tls-verify=false", where, f"oci:{tmp_path / 'back'}:1")
    assert "Traceback" not in said.read_text()
    want = skopeo("inspect", "--raw", f"oci:{layout.path}:1")
    assert skopeo("inspect", "--raw", f"oci:{tmp_path / 'back'}:1") == want


@pytest.mark.parametrize("rude", [False, True])
def test_the_blob_of_a_client_that_vanished_is_not_read_on(tmp_path, rude):
    """The server goes on in silence when the connection is gone: who sends has to look."""
    data = os.urandom(2 * LARGE)
    with serving(tmp_path / "store") as (_, url):
        client = Http(port_of(url))
        digest = push_blob(client, "a/b", data)
        with connect(url) as connection:
            # Little fits between the two, so that the server cannot be done before it notices.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.sendall(f"GET /v2/a/b/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
            if rude:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        def counted():
            found = samples(client("GET", "/metrics")[2].decode())
            return found if found["layerstore_requests_in_flight"] == 1 else None

        assert awaited(counted)["layerstore_sent_bytes_total"] < LARGE


def test_slow_and_vanishing_clients_hold_nothing(tmp_path):
    """Neither other clients, nor requests, open files, threads, memory; nor uploads and their leases
    once they are idle."""
    report = soak.slow(4, str(tmp_path / "store"))
    assert report["lost"] == []
    assert report["leaked uploads"] == 0
    assert report["whole"]
    assert report["leaked leases"] == 0
    assert report["vanished"] > 20
    assert report["served"] > 3
    assert report["beside the crowd, ms"]["max"] < 10_000
