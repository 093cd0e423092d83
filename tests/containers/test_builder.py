"""The builder in examples/: small, through the public face alone, cached, and taken by podman."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import making
import pytest
from making import link, member

import layerstore

BUILDER = Path(__file__).parents[2] / "examples" / "builder.py"
TOOLS = ("sh", "cat", "chmod", "echo", "mkdir")


def test_it_has_at_most_a_hundred_lines():
    """That it uses nothing but the public face: tests/test_outsiders.py."""
    assert len(BUILDER.read_text().splitlines()) <= 100


@pytest.fixture
def base(path: str) -> str:
    """An image with a shell."""
    shell = Path(shutil.which("busybox") or "").read_bytes()
    files = [member(f"{name}/") for name in ("bin", "proc", "dev", "sys", "tmp", "etc")]
    files.append(member("bin/busybox", shell, mode=0o755))
    files += [link(f"bin/{tool}", "busybox") for tool in TOOLS]
    with layerstore.open(path) as store:
        making.image(store, "base:1", layers=[files], cmd=["/bin/sh"])
    return "base:1"


def build(path: str, out: Path, runtime: str, base: str = "base:1") -> list[str]:
    """Runs the example; what it said. crun refuses a machine with cgroups of both versions."""
    one = "if test -d /sys/fs/cgroup/unified; then umount -l /sys/fs/cgroup/unified; fi"
    command = ["unshare", "-m", "sh", "-c", f'{one}; exec "$@"', "sh"]
    environment = dict(os.environ)
    if runtime == "chroot":
        # A machine without crun: every other program is there.
        places = out.parent / "bin"
        places.mkdir(exist_ok=True)
        for tool in ("chroot", "umount", "test"):
            (places / tool).unlink(missing_ok=True)
            (places / tool).symlink_to(shutil.which(tool) or "/nothing")
        environment["PATH"] = str(places)
        command = [shutil.which("unshare") or "", "-m", "/bin/sh", *command[3:]]
    done = subprocess.run(
        [*command, sys.executable, str(BUILDER), path, base, str(out)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()]


@pytest.mark.needs("root", "busybox", "crun")
@pytest.mark.parametrize("runtime", ["crun", "chroot"])
def test_a_second_build_takes_every_step_from_the_cache(path, base, tmp_path, runtime):
    first = build(path, tmp_path / "one", runtime)
    assert first[:2] == ["ran", "ran"]
    second = build(path, tmp_path / "two", runtime)
    assert second == ["cached", "cached", first[2]]
    assert making.tree(tmp_path / "one", mtimes=False) == making.tree(
        tmp_path / "two", mtimes=False
    )
    with layerstore.open(path) as store:
        assert store.snapshots.list() == []
        found = b"".join(store.image("localhost/built").open("app/version"))
        assert found == b"version 1\n"
        assert len(store.cache.list()) == 2
        store.untag("localhost/built")
    with layerstore.open(path) as store:
        store.gc(max_used_space=0)
        assert store.cache.list() == []
    # The same image again: commands that say nothing of time or machine.
    assert build(path, tmp_path / "three", runtime) == first
    with layerstore.open(path) as store:
        assert store.check(full=True).ok


@pytest.mark.needs("root", "busybox", "crun", "podman")
def test_podman_takes_and_runs_it(path, base, tmp_path):
    build(path, tmp_path / "out", "crun")
    with layerstore.open(path) as store:
        store.export_image("localhost/built", f"docker-archive:{tmp_path}/a.tar")
    # Podman wants a short path for what it keeps while containers run.
    short = tempfile.mkdtemp(prefix="ls-", dir="/tmp")
    podman = ["podman", "--root", f"{tmp_path}/root", "--runroot", short]
    podman += ["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=file"]
    one = "if test -d /sys/fs/cgroup/unified; then umount -l /sys/fs/cgroup/unified; fi"

    def ask(*args: str) -> str:
        command = ["unshare", "-m", "sh", "-c", f'{one}; exec "$@"', "sh", *podman, *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        pulled = ask("pull", "-q", f"oci:{tmp_path}/out:app").split()[-1]
        loaded = ask("load", "-q", "-i", f"{tmp_path}/a.tar").split()[-1]
        quiet = ["--network", "none", "--cgroups", "disabled"]
        limits = [f"--ulimit={name}=1024:1024" for name in ("nofile", "nproc")]
        for image in (pulled, loaded):
            assert ask("run", "--rm", *quiet, *limits, image) == "hello from version 1\n"
    finally:
        subprocess.run([*podman, "rm", "-af"], capture_output=True, timeout=60)
        shutil.rmtree(short, ignore_errors=True)
