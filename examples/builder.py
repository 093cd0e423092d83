"""A builder of images: each step runs in a container over what the steps before gave, and is cached.

    python examples/builder.py STORE BASE OUT    # BASE: an image in the store, or oci:DIR:TAG

As root, with crun (or chroot, where crun is missing). A step's key is its base and its command, so a
second run takes every step from the cache. OUT is an OCI layout: `podman pull oci:OUT:app`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import layerstore

NAME = "localhost/built:latest"
STEPS = (
    "mkdir -p /app && echo 'echo hello from $(cat /app/version)' > /app/run",
    "echo 'version 1' > /app/version && chmod 755 /app/run",
)
EPOCH = 1_700_000_000


@contextmanager
def snapshot(store: layerstore.Store, image: str, work: Path) -> Iterator[tuple[str, Path]]:
    """A container's filesystem over an image, in a bundle; gone afterwards."""
    key, bundle = f"build-{work.name}-{image[-12:]}", work / image[-12:]
    try:
        store.bundle(image, bundle, snapshot=key)
        yield key, bundle
    finally:
        if any(one.key == key for one in store.snapshots.list()):
            store.snapshots.unmount(key)
            store.snapshots.remove(key)


def run(bundle: Path, command: str, name: str) -> None:
    """Runs a command in a bundle. Raises CalledProcessError when it fails."""
    args = ["/bin/sh", "-ec", command]
    if shutil.which("crun") is None:
        subprocess.run(["chroot", str(bundle / "rootfs"), *args], check=True)
        return
    config = json.loads((bundle / "config.json").read_text())
    config["process"].update(args=args, user={"uid": 0, "gid": 0}, cwd="/")
    (bundle / "config.json").write_text(json.dumps(config))
    crun = ["crun", "--cgroup-manager=disabled", "run", "-b", str(bundle), name]
    subprocess.run(crun, check=True)


def step(store: layerstore.Store, base: str, command: str, work: Path) -> str:
    """The digest of the image that a command makes of an image, from the cache if it is there."""
    key = json.dumps(["builder 1", base, command])
    found = store.cache.get(key)
    if found is not None:
        print(f"cached  {found.digest[7:19]}  {command}")
        return found.digest
    with snapshot(store, base, work) as (name, bundle):
        run(bundle, command, name)
        layer = store.snapshots.diff(name, source_date_epoch=EPOCH)
    changes = layerstore.ConfigChanges(created_by=command)
    made = store.commit(base, NAME, layers=[layer], source_date_epoch=EPOCH, **changes)
    store.cache.put(key, made)
    print(f"ran     {made.digest[7:19]}  {command}")
    return made.digest


def build(store: layerstore.Store, base: str, out: str) -> layerstore.ImageInfo:
    """Runs all steps over an image, and writes what they gave into a layout."""
    if ":" in base and base.partition(":")[0] in ("oci", "oci-archive", "docker-archive"):
        image = store.import_image(base, name="localhost/base:latest").digest
    else:
        image = store.image(base).ref.digest
    with tempfile.TemporaryDirectory(prefix="builder-") as work:
        for command in STEPS:
            image = step(store, image, command, Path(work))
    cmd = ["/bin/sh", "/app/run"]
    built = store.commit(image, NAME, cmd=cmd, source_date_epoch=EPOCH)
    store.export_image(NAME, f"oci:{out}:app", compression="gzip")
    return built


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: builder.py STORE BASE OUT")
    with layerstore.open(sys.argv[1]) as opened:
        print(build(opened, *sys.argv[2:]).digest)
