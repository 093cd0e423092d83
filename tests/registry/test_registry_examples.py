"""The examples of running the registry: the systemd unit, and the container that layerstore makes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry.test_registry_clients import ONE, digest_at
from registry.test_registry_server import skopeo

import layerstore

EXAMPLES = Path(__file__).parents[2] / "examples" / "registry"
UNIT = EXAMPLES / "layerstore.service"
PROGRAM = "/usr/local/bin/layerstore"
LISTEN = "127.0.0.1:5000"


def free() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@contextlib.contextmanager
def running(command: list[str], host: str, **more: object) -> Iterator[subprocess.Popen[str]]:
    """A registry that answers; it ends well when it is told to."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://{host}/readyz", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield process
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()


def push_and_pull(host: str, layout: Path, tmp_path: Path) -> None:
    where = f"docker://{host}/team/app:1"
    skopeo("copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:1", where)
    skopeo("copy", "-q", "--src-tls-verify=false", where, f"oci:{tmp_path}/back:1")
    assert digest_at(f"oci:{tmp_path}/back:1") == digest_at(f"oci:{layout}:1") == digest_at(where)


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path) -> None:
    program = Path(sys.executable).with_name("layerstore")
    text = UNIT.read_text()
    assert PROGRAM in text
    (tmp_path / UNIT.name).write_text(text.replace(PROGRAM, str(program)))

    def verify() -> subprocess.CompletedProcess[str]:
        command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    done = verify()
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / UNIT.name).write_text(text)
    assert "not executable" in verify().stderr or os.access(PROGRAM, os.X_OK)
    (tmp_path / UNIT.name).write_text(
        text.replace(PROGRAM, str(program)).replace("KillMode=mixed", "KillMode=mixd")
    )
    assert "mixd" in verify().stderr


@pytest.mark.needs("skopeo")
def test_what_the_unit_starts_serves(layout, tmp_path) -> None:
    lines = UNIT.read_text().replace("\\\n", " ").splitlines()
    (line,) = [one.partition("=")[2] for one in lines if one.startswith("ExecStart=")]
    words, host = shlex.split(line), free()
    assert words[0] == PROGRAM
    own = {PROGRAM: None, "/var/lib/layerstore": str(tmp_path / "s"), LISTEN: host}
    assert set(own) <= set(words)
    command = [sys.executable, "-m", "layerstore"]
    command += [own.get(word, word) for word in words[1:]]
    with running(command, host, cwd=tmp_path):
        push_and_pull(host, layout, tmp_path)
    with layerstore.open(tmp_path / "s") as store:
        assert [image.name for image in store.images()] == ["team/app:1"]


@pytest.mark.needs("root", "crun", "skopeo")
def test_the_registry_serves_in_a_container_of_its_own_making(layout, tmp_path, fast_path) -> None:
    served, bundle, host = fast_path / "served", fast_path / "bundle", free()
    made = subprocess.run(
        [sys.executable, EXAMPLES / "container.py", served, fast_path / "images", bundle],
        capture_output=True, text=True, timeout=300, env={**os.environ, "TMPDIR": str(fast_path)},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    config = json.loads((bundle / "config.json").read_text())
    assert LISTEN in config["process"]["args"]
    config["process"]["args"][config["process"]["args"].index(LISTEN)] = host
    (bundle / "config.json").write_text(json.dumps(config))
    crun = ["crun", "--cgroup-manager=disabled", "run", "-b", str(bundle), f"ls-{os.getpid()}"]
    command = ["unshare", "-m", "sh", "-c", f'{ONE}; exec "$@"', "sh", *crun]
    with running(command, host):
        push_and_pull(host, layout, tmp_path)
    with layerstore.open(served) as store:
        assert [image.name for image in store.images()] == ["team/app:1"]
        assert store.check(full=True).ok
    with layerstore.open(fast_path / "images") as store:
        assert [image.digest for image in store.images()] == [made.stdout.strip()]
    shutil.rmtree(bundle)
