"""The registry as an operator has it: health, metrics, logs, workers, maintenance, damage."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cli.small_images import BASE, TOP, Layout
from registry.asgi import Client
from registry.test_registry_server import SERVE, serving, skopeo, url_of

import layerstore
from layerstore.registry import Registry
from layerstore.registry.logs import AccessLog
from layerstore.registry.metrics import STATS_EVERY, STATS_SHARE, Metrics


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def put(url: str, name: str, data: bytes) -> str:
    digest = digest_of(data)
    request = urllib.request.Request(
        f"{url}/v2/{name}/blobs/uploads/?digest={digest}", data, method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201
    return digest


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return answer.read()


def samples(text: str) -> dict[str, float]:
    """Every line of the metrics, checked against the grammar of the text format."""
    out = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) layerstore_[a-z_]+ .+", line), line
            continue
        match = re.fullmatch(
            r'(layerstore_[a-z_]+(?:\{[a-z]+="[^"\\]*"(?:,[a-z]+="[^"\\]*")*\})?) (\S+)', line
        )
        assert match, line
        assert match[1] not in out
        out[match[1]] = float(match[2])
    return out


def awaited(what, seconds: float = 60.0):
    """What `what` gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("nothing came of it")


def test_metrics_count_what_went_over_the_wire(tmp_path):
    with layerstore.open(tmp_path / "store") as store:
        client = Client(Registry(store))
        data = os.urandom(100_000)
        digest = digest_of(data)
        client("POST", f"/v2/a/blobs/uploads/?digest={digest}", data)
        client("GET", f"/v2/a/blobs/{digest}", headers={"range": "bytes=0-999"})
        client("GET", "/v2/a/blobs/" + digest_of(b""))
        client("BREW", "/v2/")
        found = samples(client("GET", "/metrics").body.decode())
    counted = 'layerstore_requests_total{endpoint="%s",method="%s",code="%d"}'
    assert found[counted % ("uploads", "POST", 201)] == 1
    assert found[counted % ("blob", "GET", 206)] == 1
    assert found[counted % ("blob", "GET", 404)] == 1
    assert found[counted % ("base", "other", 405)] == 1
    assert found["layerstore_received_bytes_total"] == len(data)
    assert found["layerstore_sent_bytes_total"] >= 1000
    assert found['layerstore_uploads_total{result="at once"}'] == 1
    assert found["layerstore_requests_in_flight"] == 1
    assert found["layerstore_store_blobs"] == 1
    assert found["layerstore_store_blob_bytes"] == len(data)
    buckets = [
        value
        for name, value in found.items()
        if name.startswith('layerstore_request_seconds_bucket{endpoint="blob"')
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found['layerstore_request_seconds_count{endpoint="blob"}'] == 2


def test_workers_counts_add_up_whoever_is_asked(tmp_path):
    one, other = Metrics(str(tmp_path)), Metrics(str(tmp_path))
    one.observe("blob", "GET", 200, 0.1, 0, 10)
    one.save(now=True)
    os.rename(tmp_path / f"{os.getpid()}.json", tmp_path / "1.json")
    other.observe("blob", "GET", 200, 0.1, 0, 5)
    with layerstore.open(tmp_path / "store") as store:
        found = samples(other.text(store))
    assert found["layerstore_sent_bytes_total"] == 15
    assert found['layerstore_requests_total{endpoint="blob",method="GET",code="200"}'] == 2


def test_sizes_of_the_store_are_counted_seldom_where_that_takes_long(monkeypatch):
    """And by one at a time: who asks meanwhile is told the old ones, at once."""
    now, took, counted = [1000.0], [0.1], []
    monkeypatch.setattr("layerstore.registry.metrics.time.monotonic", lambda: now[0])
    metrics = Metrics()
    inside: list[str] = []

    def sizes(store):
        counted.append(now[0])
        now[0] += took[0]
        if len(counted) > 1:
            inside.append(metrics.text(None))
        return [f"size {len(counted)}"]

    monkeypatch.setattr("layerstore.registry.metrics._sizes", sizes)
    assert metrics.text(None).endswith("size 1\n")
    now[0] += STATS_EVERY - 1
    assert metrics.text(None).endswith("size 1\n")
    now[0] += 1
    took[0] = 30.0
    assert metrics.text(None).endswith("size 2\n")
    assert inside[0].endswith("size 1\n")
    since = now[0]
    while len(counted) < 3:
        now[0] += 10
        metrics.text(None)
    assert now[0] - since >= 30.0 / STATS_SHARE
    assert now[0] - since < 30.0 / STATS_SHARE + 100


def test_health_and_readiness(tmp_path, monkeypatch):
    with layerstore.open(tmp_path / "store") as store:
        client = Client(Registry(store))
        assert client("GET", "/healthz").status == 200
        assert client("GET", "/readyz").status == 200

        class Full:
            f_bavail, f_frsize = 10, 4096

        monkeypatch.setattr(os, "statvfs", lambda path: Full)
        assert client("GET", "/healthz").status == 200
        answer = client("GET", "/readyz")
        assert (answer.status, answer.json()["reason"]) == (503, "the disk is full")


def test_a_line_of_the_log_is_a_line(tmp_path):
    for form in ("json", "text"):
        stream = io.StringIO()
        with layerstore.open(tmp_path / "store") as store:
            client = Client(Registry(store, log=AccessLog(form, stream=stream)))
            evil = {"user-agent": 'x"\n2026 request status=200\x1b[31m'}
            client("GET", "/v2/a/manifests/latest?n=%0a", headers=evil)
        text = stream.getvalue()
        assert text.count("\n") == 1
        assert "\x1b" not in text
        if form == "json":
            line = json.loads(text)
            assert (line["status"], line["path"]) == (404, "/v2/a/manifests/latest?n=%0a")
            assert line["agent"] == evil["user-agent"]


def test_damage_cuts_the_answer_and_is_counted(tmp_path):
    """A byte that has changed on the disk: the pieces before it come, the answer does not end."""
    data = os.urandom(3_000_000)
    store = tmp_path / "store"
    with serving(store, "--access-log", "json") as (_, url):
        digest = put(url, "a", data)
        raw = next(p for p in (store / "raw").rglob("*") if p.is_file())
        with raw.open("r+b") as f:
            f.seek(2_000_000)
            f.write(bytes([data[2_000_000] ^ 1]))
        with urllib.request.urlopen(f"{url}/v2/a/blobs/{digest}") as answer:
            assert int(answer.headers["content-length"]) == len(data)
            with pytest.raises(http.client.IncompleteRead) as cut:
                answer.read()
        assert 0 < len(cut.value.partial) <= 2_000_000
        assert data.startswith(cut.value.partial)
        request = urllib.request.Request(f"{url}/v2/a/blobs/{digest}")
        request.add_header("Range", "bytes=2500000-2500009")
        with urllib.request.urlopen(request) as answer:
            assert answer.read() == data[2_500_000:2_500_010]
        assert samples(get(f"{url}/metrics").decode())["layerstore_damaged_total"] == 1


def test_a_range_goes_on_only_with_the_same_bytes(tmp_path):
    """RFC 9110, 13.1.5: If-Range with another validator, a weak one or a date means the whole."""
    with layerstore.open(tmp_path / "store") as store:
        client = Client(Registry(store))
        data = os.urandom(10_000)
        digest = digest_of(data)
        client("POST", f"/v2/a/blobs/uploads/?digest={digest}", data)
        path = f"/v2/a/blobs/{digest}"
        span = {"range": "bytes=9990-"}
        tag = client("GET", path).headers["etag"]
        assert client("GET", path, headers={**span, "if-range": tag}).body == data[9990:]
        for other in (f"W/{tag}", '"sha256:0"', "Tue, 24 Nov 2026 21:00:00 GMT", f"{tag}, {tag}"):
            answer = client("GET", path, headers={**span, "if-range": other})
            assert (answer.status, answer.body) == (200, data)
        # A precondition that fails comes before the range; one that holds ends the request.
        assert client("GET", path, headers={**span, "if-none-match": tag}).status == 304
        beyond = {"range": "bytes=10000-", "if-range": tag}
        assert client("GET", path, headers=beyond).status == 416


def test_a_reader_that_is_gone_stops_the_reading(tmp_path):
    """Nobody reads a blob from the disk for a client that has left."""
    with layerstore.open(tmp_path / "store") as store:
        repository = store.repository("a")
        digest = repository.put_blob(os.urandom(20 << 20)).digest
        registry = Registry(store)
        sent = 0

        async def send(message) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            if sent > 2 << 20:
                raise OSError("gone")

        body = [{"type": "http.request", "body": b""}]

        async def receive():
            if body:
                return body.pop()
            return await asyncio.Event().wait()

        path = f"/v2/a/blobs/{digest}"
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        asyncio.run(registry(scope, receive, send))
        assert sent < 4 << 20
        assert registry.metrics.in_flight == 0
        store.repository("a").remove_blob(digest)
        assert store.gc().pending_bytes == 0  # no reader holds an epoch any more


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in found
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_workers_share_a_store_and_one_that_dies_is_replaced(tmp_path):
    data = os.urandom(50_000)
    with serving(tmp_path / "store", "--workers", "2") as (process, url):
        before = children(process.pid)
        assert len(before) == 2
        request = urllib.request.Request(f"{url}/v2/a/blobs/uploads/", b"", method="POST")
        with urllib.request.urlopen(request) as answer:
            where = url + answer.headers["location"]
        request = urllib.request.Request(where, data[:20_000], method="PATCH")
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["range"] == "0-19999"
        os.kill(before[0], signal.SIGKILL)
        awaited(lambda: len(now := children(process.pid)) == 2 and before[0] not in now)
        os.kill(before[1], signal.SIGKILL)
        awaited(lambda: len(now := children(process.pid)) == 2 and before[1] not in now)
        # The upload goes on in workers that have never seen it.
        digest = digest_of(data)
        request = urllib.request.Request(f"{where}?digest={digest}", data[20_000:], method="PUT")

        def finished():
            try:
                with urllib.request.urlopen(request) as answer:
                    return answer.status == 201
            except urllib.error.HTTPError:
                raise
            except OSError:
                return False  # the worker that had accepted it was killed

        awaited(finished)
        assert get(f"{url}/v2/a/blobs/{digest}") == data
        counts = samples(get(f"{url}/metrics").decode())
        assert counts["layerstore_workers_restarted_total"] == 2
        ours = children(process.pid)
    for pid in ours:
        assert not Path(f"/proc/{pid}").exists()


def test_workers_end_with_a_supervisor_that_is_killed(tmp_path):
    command = [*SERVE[:3], "--store", str(tmp_path / "store"), *SERVE[3:], "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    url_of(process)
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    awaited(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


@pytest.mark.needs("skopeo")
def test_an_idle_server_optimizes_and_collects(tmp_path):
    layout = Layout(tmp_path / "layout")
    layout.image("1", BASE, TOP, compressed=True)
    options = ("--optimize", "idle", "--gc", "idle", "--quiet-time", "1s", "--idle", "1s")
    store = tmp_path / "store"
    with serving(store, *options) as (_, url):
        where = f"docker://{url.removeprefix('http://')}/team/app:1"
        skopeo("copy", "-q", "--dest-tls-verify=false", f"oci:{layout.path}:1", where)
        put(url, "team/app", os.urandom(200_000))  # no manifest will name it

        def maintained():
            found = samples(get(f"{url}/metrics").decode())
            runs = 'layerstore_maintenance_runs_total{what="%s",result="done"}'
            return all(runs % what in found for what in ("optimize", "gc")) and found

        awaited(maintained)
        words = ["layerstore", "--store", str(store), "--json", "stats"]

        def small():
            done = subprocess.run(
                [sys.executable, "-m", *words], check=True, capture_output=True, text=True
            )
            forms = json.loads(done.stdout)["forms"]
            return forms["gzip"] and not forms["raw"] and forms

        awaited(small)
        skopeo("copy", "-q", "--src-tls-verify=false", where, f"oci:{tmp_path / 'back'}:1")
    assert skopeo("inspect", "--raw", f"oci:{tmp_path / 'back'}:1") == skopeo(
        "inspect", "--raw", f"oci:{layout.path}:1"
    )
