"""`layerstore serve` as a process: real clients push and pull, and it ends when it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cli.small_images import BASE, TOP, Layout

import layerstore

SERVE = [sys.executable, "-m", "layerstore", "--json", "serve", "--listen", "127.0.0.1:0"]


def url_of(process: subprocess.Popen[str]) -> str:
    """What the server says once it takes requests: a JSON document of several lines."""
    said = ""
    while not said.endswith("}\n"):
        line = process.stdout.readline()
        assert line, said
        said += line
    return json.loads(said)["url"]


@contextlib.contextmanager
def serving(path: Path, *options: str):
    """A server on a store; its process and URL. It must end well."""
    command = [*SERVE[:3], "--store", str(path), *SERVE[3:], *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process, url_of(process)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0


@contextlib.contextmanager
def serving_with(path: Path, config: str, *options: str):
    """The same with a configuration; also the file that has what it said on standard error."""
    file, errors = path / "registry.toml", path / "errors"
    file.write_text(config)
    command = [
        *SERVE[:3],
        "--store",
        str(path / "store"),
        *SERVE[3:],
        "--config",
        str(file),
        *options,
    ]
    with errors.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            yield process, url_of(process), errors
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    assert code == 0, errors.read_text()


def skopeo(*words: str) -> str:
    return subprocess.run(["skopeo", *words], check=True, capture_output=True, text=True).stdout


@pytest.mark.needs("skopeo")
def test_skopeo_pushes_pulls_and_deletes(tmp_path):
    layout = Layout(tmp_path / "layout")
    layout.image("1", BASE, TOP, compressed=True)
    source = f"{layout.path}:1"
    with serving(tmp_path / "store") as (_, url):
        where = f"docker://{url.removeprefix('http://')}/team/app:1"
        skopeo("copy", "-q", "--dest-tls-verify=false", f"oci:{source}", where)
        skopeo("copy", "-q", "--src-tls-verify=false", where, f"oci:{tmp_path / 'back'}:1")
        raw = skopeo("inspect", "--raw", f"oci:{source}")
        assert skopeo("inspect", "--raw", f"oci:{tmp_path / 'back'}:1") == raw
        assert skopeo("inspect", "--raw", "--tls-verify=false", where) == raw
        tags = json.loads(skopeo("list-tags", "--tls-verify=false", where.rpartition(":")[0]))
        assert tags["Tags"] == ["1"]
        skopeo("delete", "--tls-verify=false", where)
        with pytest.raises(subprocess.CalledProcessError):
            skopeo("inspect", "--tls-verify=false", where)
    with layerstore.open(tmp_path / "store") as store:
        assert store.check(full=True).ok


def test_what_was_answered_is_there_after_a_kill(tmp_path):
    store = tmp_path / "store"
    data = os.urandom(300_000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    process = subprocess.Popen(
        [*SERVE[:3], "--store", str(store), *SERVE[3:]], stdout=subprocess.PIPE, text=True
    )
    url = url_of(process)
    request = urllib.request.Request(
        f"{url}/v2/a/b/blobs/uploads/?digest={digest}", data, method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201
    process.kill()
    process.wait()
    with serving(store) as (_, url):
        with urllib.request.urlopen(f"{url}/v2/a/b/blobs/{digest}") as answer:
            assert answer.read() == data


def test_it_listens_on_loopback_only(tmp_path):
    for address in ("0.0.0.0:0", "[::]:0", "nonsense"):
        done = subprocess.run(
            [*SERVE[:3], "--store", str(tmp_path / "s"), "serve", "--listen", address],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1, done
        assert "listen" in done.stderr


SUITE = "github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111"

TOOLCHAIN = "golang.org/toolchain@v0.0.1-go1.26.8.linux-amd64"
"""What builds it and the clients, where the Go at hand (Debian 12: 1.19) is too old to."""


def a_new_go(work: Path) -> str:
    """A Go of 1.26 or newer: the one at hand, or one of the module proxy, made executable."""
    said = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout
    major, minor = re.search(r"go(\d+)\.(\d+)", said).groups()
    if (int(major), int(minor)) >= (1, 26):
        return "go"
    found = subprocess.run(
        ["go", "mod", "download", "-json", TOOLCHAIN],
        cwd=work, capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    root = Path(json.loads(found.stdout)["Dir"])
    for program in (*root.glob("bin/*"), *root.glob("pkg/tool/*/*")):
        program.chmod(0o755)
    return str(root / "bin" / "go")


@pytest.mark.skipif(
    os.environ.get("LAYERSTORE_SUITES") != "1",
    reason="the specification's suite is fetched and built by Go: LAYERSTORE_SUITES=1",
)
@pytest.mark.needs("go")
def test_the_specification_s_own_suite(tmp_path):
    suite = tmp_path / "suite"
    environment = {**os.environ, "GOBIN": str(suite), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    subprocess.run([a_new_go(tmp_path), "install", SUITE], env=environment, check=True, timeout=900)
    with serving(tmp_path / "store", "--sparse") as (_, url):
        environment = {
            **os.environ,
            "OCI_REGISTRY": url.removeprefix("http://"),
            "OCI_TLS": "disabled",
            "OCI_REPO1": "conformance/one",
            "OCI_REPO2": "conformance/two",
            "OCI_VERSION": "dev",
            "OCI_DATA_SPARSE": "true",
            "OCI_DATA_SHA512": "true",
            "OCI_API_MANIFESTS_TAG_PARAM": "true",
            "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
            "OCI_API_BLOBS_DIGEST_HEADER": "true",
            "OCI_API_BLOBS_MOUNT_ANONYMOUS": "true",
            "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
            "OCI_RESULTS_DIR": str(tmp_path / "results"),
        }
        done = subprocess.run(
            [str(suite / "conformance")],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "FAIL" not in said.partition("API conformance:")[2]
    assert "Skip" not in said.partition("API conformance:")[2]


FRAGMENTS = """
import re
from layerstore.registry.server import _give_back, _keep_freed_memory

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

_keep_freed_memory()
pieces, small = [], []
for n in range(600):
    pieces.append(bytes(100_000))
    small.append(bytes(2000))
full = resident()
del pieces
freed = resident()
_give_back()
print(full, freed, resident())
"""


def test_memory_between_what_is_in_use_goes_back():
    """What is small and stays lies between pieces of blobs that are gone."""
    done = subprocess.run(
        [sys.executable, "-c", FRAGMENTS], check=True, capture_output=True, text=True
    )
    full, freed, after = map(int, done.stdout.split())
    assert freed > full - 20  # that is why
    assert after < full - 25
