"""Clients that people use push, pull, compare digests and delete; podman runs what it has pulled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from registry.test_registry_server import a_new_go, serving, skopeo

ONE = "if test -d /sys/fs/cgroup/unified; then umount -l /sys/fs/cgroup/unified; fi"
GO = {
    "crane": "github.com/google/go-containerregistry/cmd/crane@v0.22.1",
    "oras": "oras.land/oras/cmd/oras@v1.3.6",
    "regctl": "github.com/regclient/regclient/cmd/regctl@v0.11.7",
}


def run(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, words)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def digest_at(reference: str) -> str:
    """Of the manifest that a transport's reference means, as skopeo reads its bytes."""
    insecure = ("--tls-verify=false",) if reference.startswith("docker://") else ()
    raw = skopeo("inspect", "--raw", *insecure, reference)
    return "sha256:" + hashlib.sha256(raw.encode()).hexdigest()


def is_there(reference: str) -> bool:
    words = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"]
    return subprocess.run(words, capture_output=True, timeout=60).returncode == 0


@pytest.fixture
def host(tmp_path):
    with serving(tmp_path / "store", "--workers", "2") as (_, url):
        yield url.removeprefix("http://")


@pytest.fixture
def engine():
    """podman or buildah with a storage of its own."""
    home = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))  # podman wants a short path

    def ask(program: str, *args: str) -> str:
        storage = ["--root", home / "root", "--runroot", home / "run", "--storage-driver", "vfs"]
        more = ["--cgroup-manager", "cgroupfs", "--events-backend=file"]
        words = [program, *storage, *(more if program == "podman" else ()), *args]
        return run("unshare", "-m", "sh", "-c", f'{ONE}; exec "$@"', "sh", *words)

    yield ask
    with contextlib.suppress(AssertionError):
        ask("podman", "rm", "-af")
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.needs("root", "busybox", "crun", "podman", "buildah", "skopeo")
def test_podman_and_buildah(host, engine):
    """buildah pushes what it builds, podman runs what it pulls, and pushes it again."""
    made = engine("buildah", "from", "scratch")
    engine("buildah", "copy", "-q", made, shutil.which("busybox") or "", "/bin/busybox")
    engine("buildah", "config", "--cmd", '["/bin/busybox", "echo", "hello"]', made)
    engine("buildah", "commit", "-q", made, "localhost/built:1")
    engine(
        "buildah", "push", "-q", "--tls-verify=false", "localhost/built:1", f"docker://{host}/b:1"
    )
    engine("podman", "rmi", "-af")
    engine("podman", "pull", "-q", "--tls-verify=false", f"{host}/b:1")
    limits = [f"--ulimit={name}=1024:1024" for name in ("nofile", "nproc")]
    alone = ["--network", "none", "--cgroups", "disabled", *limits]
    assert engine("podman", "run", "--rm", *alone, f"{host}/b:1") == "hello"
    shown = json.loads(engine("podman", "image", "inspect", f"{host}/b:1"))[0]
    assert shown["Digest"] == digest_at(f"docker://{host}/b:1")
    engine("podman", "push", "-q", "--tls-verify=false", f"{host}/b:1", f"{host}/p/again:1")
    engine("buildah", "pull", "-q", "--tls-verify=false", f"{host}/p/again:1")
    for name in ("b:1", "p/again:1"):
        skopeo("delete", "--tls-verify=false", f"docker://{host}/{name}")
        assert not is_there(f"{host}/{name}")


@pytest.mark.needs("umoci", "skopeo")
def test_umoci_through_skopeo(host, layout, tmp_path):
    run("umoci", "config", "--image", f"{layout}:1", "--tag", "2", "--config.label", "a=b")
    where = f"docker://{host}/umoci:2"
    skopeo("copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:2", where)
    skopeo("copy", "-q", "--src-tls-verify=false", where, f"oci:{tmp_path}/back:2")
    run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/back:2", tmp_path / "bundle")
    assert digest_at(f"oci:{layout}:2") == digest_at(f"oci:{tmp_path}/back:2") == digest_at(where)


@contextlib.contextmanager
def containerd():
    """A daemon of its own; what to call to ask it."""
    home = Path(tempfile.mkdtemp(prefix="ls-", dir="/tmp"))  # a socket's path is short
    places = ["--root", home / "root", "--state", home / "state", "--address", home / "sock"]
    daemon = subprocess.Popen(
        ["containerd", *places],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ctr = ("ctr", "--address", home / "sock")
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([*ctr, "version"], capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield ctr
    finally:
        daemon.terminate()
        daemon.wait(60)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.needs("root", "containerd", "ctr", "skopeo")
def test_containerd(host, layout, tmp_path):
    skopeo("copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{host}/c:1")
    with containerd() as ctr:
        run(*ctr, "content", "fetch", "--plain-http", f"{host}/c:1")
        run(*ctr, "images", "tag", f"{host}/c:1", f"{host}/ctr/again:1")
        run(*ctr, "images", "push", "--plain-http", f"{host}/ctr/again:1")
        assert digest_at(f"oci:{layout}:1") in run(*ctr, "images", "ls")
    assert digest_at(f"docker://{host}/ctr/again:1") == digest_at(f"oci:{layout}:1")


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """crane, oras and regctl, built once."""
    if shutil.which("go") is None or os.environ.get("LAYERSTORE_SUITES") != "1":
        pytest.skip("these clients are fetched and built by Go: LAYERSTORE_SUITES=1")
    where = tmp_path_factory.mktemp("go")
    environment = {**os.environ, "GOBIN": str(where), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    go = a_new_go(where)
    for module in GO.values():
        subprocess.run([go, "install", module], env=environment, check=True, timeout=900)
    return where


def test_crane(programs, host, layout, tmp_path):
    crane = programs / "crane"
    run(crane, "push", "--insecure", layout, f"{host}/crane:1")
    digest = run(crane, "digest", "--insecure", f"{host}/crane:1")
    assert digest == digest_at(f"oci:{layout}:1")
    run(crane, "pull", "--insecure", "--format", "oci", f"{host}/crane:1", tmp_path / "back")
    assert digest in (tmp_path / "back" / "index.json").read_text()
    run(crane, "delete", "--insecure", f"{host}/crane@{digest}")
    assert not is_there(f"{host}/crane:1")


def test_oras(programs, host, layout, tmp_path):
    oras = programs / "oras"
    run(oras, "copy", "--from-oci-layout", f"{layout}:1", "--to-plain-http", f"{host}/oras:1")
    assert run(oras, "resolve", "--plain-http", f"{host}/oras:1") == digest_at(f"oci:{layout}:1")
    back = f"{tmp_path}/back:1"
    run(oras, "copy", "--from-plain-http", f"{host}/oras:1", "--to-oci-layout", back)
    assert digest_at(f"oci:{back}") == digest_at(f"oci:{layout}:1")
    run(oras, "manifest", "delete", "--plain-http", "-f", f"{host}/oras:1")
    assert not is_there(f"{host}/oras:1")


def test_regctl(programs, host, layout, tmp_path):
    regctl, home = programs / "regctl", {"HOME": str(tmp_path)}
    run(regctl, "registry", "set", host, "--tls", "disabled", **home)
    run(regctl, "image", "copy", f"ocidir://{layout}:1", f"{host}/regctl:1", **home)
    digest = run(regctl, "image", "digest", f"{host}/regctl:1", **home)
    assert digest == digest_at(f"oci:{layout}:1")
    back = f"{tmp_path}/back:1"
    run(regctl, "image", "copy", f"{host}/regctl:1", f"ocidir://{back}", **home)
    assert digest_at(f"oci:{back}") == digest
    run(regctl, "tag", "delete", f"{host}/regctl:1", **home)
    assert not is_there(f"{host}/regctl:1")
