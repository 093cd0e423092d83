"""What a real server does with bytes that are no honest HTTP, with slow clients, TLS, a full disk."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import bcrypt
import pytest
from cli.small_images import BASE, TOP, Layout
from registry.test_registry_server import SERVE, serving_with, skopeo

IMPATIENT = '[limits]\nheader_time = "1s"\nbody_idle = "1s"\nheader_bytes = "16K"\n'


def connect(url: str) -> socket.socket:
    host, _, port = url.rpartition("//")[2].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def answers(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    got = b""
    try:
        while piece := connection.recv(1 << 16):
            got += piece
    except ConnectionError:
        pass
    return got


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    with serving_with(tmp_path_factory.mktemp("served"), IMPATIENT) as (_, url, said):
        yield url
        with urllib.request.urlopen(f"{url}/v2/") as answer:  # whatever came before
            assert answer.status == 200
    assert "Traceback" not in said.read_text()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /v2/ HT",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/ HTTP/1.1\r\nHo",
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
        b"PUT /v2/a/manifests/v HTTP/1.1\r\nHost: x\r\nContent-Type: a\r\nContent-Length: 9\r\n\r\nx",
    ],
)
def test_slow_headers_and_bodies_come_to_an_end(impatient, said):
    with connect(impatient) as connection:
        connection.sendall(said)
        answers(connection)  # returns: the server has ended it


def test_a_header_that_drips_comes_to_an_end(impatient):
    with connect(impatient) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n")
        connection.settimeout(0.1)
        for _ in range(600):
            try:
                connection.sendall(b"X")
                got = connection.recv(100)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            assert not got or got.startswith(b"HTTP/1.1 408")
            break
        else:
            pytest.fail("the server waits for ever")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [20_000, 1 << 20])
def test_large_headers_are_refused(impatient, size, whole):
    with connect(impatient) as connection:
        try:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"y" * size)
            if whole:
                connection.sendall(b"\r\nConnection: close\r\n\r\n")
        except ConnectionError:
            pass
        got = answers(connection)
    assert not got or got.startswith(b"HTTP/1.1 431 "), got[:200]


SECOND = b"GET /v2/smuggled/tags/list HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"0\r\n\r\n" + SECOND
LINE = b"POST /v2/a/b/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "said",
    [
        LINE + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(CHUNKED) + CHUNKED,
        LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKED,
        LINE + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SECOND) + SECOND,
        LINE + b"Content-Length: 0, %d\r\n\r\n" % len(SECOND) + SECOND,
        LINE + b"Content-Length: +0\r\n\r\n" + SECOND,
        LINE + b"Content-Length: 0x0\r\n\r\n" + SECOND,
        LINE + b"Content-Length: -1\r\n\r\n" + SECOND,
        LINE + b"Content-Length : 0\r\n\r\n" + SECOND,
        LINE + b"Transfer-Encoding: identity\r\n\r\n" + SECOND,
        LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED,
        LINE + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
        LINE + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + CHUNKED,
        LINE + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
        LINE + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + CHUNKED,
        LINE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" + SECOND,
        LINE + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SECOND,
        LINE + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n" + SECOND,
        LINE + b"X: a\r\n\x00Content-Length: 0\r\n\r\n" + SECOND,
        LINE.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        LINE.replace(b"1.1", b"1.0")
        + b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
        + CHUNKED,
    ],
)
def test_no_second_request_is_smuggled(impatient, said):
    """Where two readers could take two ends of it, one answer is given, and the connection ended."""
    with connect(impatient) as connection:
        connection.sendall(said)
        got = answers(connection)
    assert got.startswith(b"HTTP/1.1 4"), got
    assert got.count(b"HTTP/1.1 ") == 1, got
    assert b"smuggled" not in got
    assert b"NAME_UNKNOWN" not in got


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://x/v2/", b"200"),
        (b"HTTPS://other.example:99/v2/_catalog?n=5", b"200"),
        (b"http://x", b"404"),
        (b"ftp://x/v2/", b"404"),
        (b"http:/v2/", b"404"),
        (b"x/v2/", b"404"),
        (b"*", b"404"),
    ],
)
def test_a_target_with_a_host_is_the_path_behind_it(impatient, target, status):
    """RFC 9112, 3.2.2: what a client sends to a proxy, an origin has to take, too."""
    with connect(impatient) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answers(connection).split(b" ", 2)[1] == status


def test_an_answer_is_read_before_the_rest_of_a_large_body(impatient):
    """Refused at once; the client that goes on sending gets to read why."""
    with connect(impatient) as connection:
        size = 3 << 20
        connection.sendall(
            b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\n"
            b"Content-Length: %d\r\n\r\n" % (size << 1)
        )
        connection.sendall(b"x" * size)
        assert connection.recv(12) == b"HTTP/1.1 413"


# ---- users, TLS -------------------------------------------------------------------------------


@pytest.fixture
def secured(tmp_path):
    """A configuration with TLS and users; the certificate is its own authority."""
    where = tmp_path / "secured"
    where.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", "key.pem", "-out", "ca.crt", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        cwd=where, check=True, capture_output=True,
    )  # fmt: skip
    hashed = bcrypt.hashpw(b"a-word", bcrypt.gensalt(4)).decode()
    (where / "users").write_text(f"ann:{hashed}\n")
    config = """
[server]
tls = { certificate = "ca.crt", key = "key.pem" }
[access]
htpasswd = "users"
[[access.rules]]
users = ["ann"]
repositories = ["team/*"]
rights = ["pull", "create"]
[[access.rules]]
users = ["@anyone"]
repositories = ["team/open"]
rights = ["pull"]
"""
    return where, config


@pytest.mark.needs("skopeo", "podman")
def test_clients_log_in_over_tls(secured, tmp_path):
    where, config = secured
    layout = Layout(tmp_path / "layout")
    layout.image("1", BASE, TOP, compressed=True)
    source = f"oci:{layout.path}:1"
    certs = ("--cert-dir", str(where))
    with serving_with(where, config) as (_, url, said):
        host = url.removeprefix("https://")
        assert url.startswith("https://")
        login = ["login", *certs, "--authfile", str(tmp_path / "auth"), "-u", "ann", host]
        for program in ("skopeo", "podman"):
            wrong = subprocess.run([program, *login, "-p", "wrong"], capture_output=True, text=True)
            assert wrong.returncode != 0
            done = subprocess.run([program, *login, "-p", "a-word"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        dest = ["--dest-cert-dir", str(where), "--dest-authfile", str(tmp_path / "auth")]
        origin = ["--src-cert-dir", str(where), "--src-authfile"]
        nobody = str(tmp_path / "none")
        Path(nobody).write_text("{}")
        for name in ("team/app", "team/open"):
            skopeo("copy", "-q", *dest, source, f"docker://{host}/{name}:1")
        with pytest.raises(subprocess.CalledProcessError) as refused:
            skopeo("copy", "-q", *dest, source, f"docker://{host}/other/app:1")
        assert "403" in refused.value.stderr
        back = f"oci:{tmp_path / 'back'}:1"
        with pytest.raises(subprocess.CalledProcessError) as refused:
            skopeo("copy", "-q", *origin, nobody, f"docker://{host}/team/app:1", back)
        assert "unauthorized" in refused.value.stderr or "authentication" in refused.value.stderr
        skopeo("copy", "-q", *origin, nobody, f"docker://{host}/team/open:1", back)
        skopeo("copy", "-q", *origin, str(tmp_path / "auth"), f"docker://{host}/team/app:1", back)
        assert skopeo("inspect", "--raw", back) == skopeo("inspect", "--raw", source)
        context = ssl.create_default_context(cafile=str(where / "ca.crt"))
        with pytest.raises(urllib.error.HTTPError) as asked:
            urllib.request.urlopen(f"{url}/v2/", context=context)
        assert asked.value.code == 401
    assert "Traceback" not in said.read_text()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('[server]\ntls = { certificate = "none.pem", key = "none.pem" }', "TLS"),
        ('[server]\nlisten = "0.0.0.0:0"', "[access]"),
        ('[access]\nhtpasswd = "none"', "none"),
        ("[server]\nworkrs = 2", ":2: server.workrs: there is no such key"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_said(tmp_path, config, says):
    (tmp_path / "r.toml").write_text(config)
    command = [*SERVE[:3], "--store", str(tmp_path / "s"), "serve", "--config"]
    done = subprocess.run(
        [*command, str(tmp_path / "r.toml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (1, 4), done
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# ---- a full disk ------------------------------------------------------------------------------

FULL = """
import hashlib, json, os, sys
sys.path.insert(0, sys.argv[2])
import layerstore
from layerstore.registry import Registry
from registry.asgi import Client
out = []
with layerstore.open(sys.argv[1]) as store:
    client = Client(Registry(store))
    small = b"small" * 1000
    digest = "sha256:" + hashlib.sha256(small).hexdigest()
    out.append(client("POST", f"/v2/a/b/blobs/uploads/?digest={digest}", small).status)
    path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
    piece = os.urandom(1 << 20)
    full = client("PATCH", path, pieces=[piece] * 200)
    out.append(full.status)
    out.append(full.json()["errors"][0]["code"])
    out.append(client("GET", f"/v2/a/b/blobs/{digest}").body == small)
    came = int(client("GET", path).headers["range"].partition("-")[2]) + 1
    with open(os.path.join(store.path, "uploads", path.rpartition("/")[2][:16]), "rb") as f:
        out.append(f.read() == (piece * 200)[:came] and came > 1 << 20)
    out.append(client("DELETE", path).status)
    out.append(client("POST", f"/v2/c/d/blobs/uploads/?digest={digest}", small).status)
    out.append(store.check(full=True).ok)
print(json.dumps(out))
"""


@pytest.mark.needs("root")
def test_a_full_disk_in_the_middle_of_an_upload(tmp_path):
    """507; what was there is there; when there is room again it goes on."""
    (tmp_path / "disk").mkdir()
    command = (
        f"mount -t tmpfs -o size=96m none {tmp_path}/disk && "
        f'exec {sys.executable} -c "$0" {tmp_path}/disk/store {Path(__file__).parents[1]}'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, FULL], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [201, 507, "TOOMANYREQUESTS", True, True, 204, 201, True]
