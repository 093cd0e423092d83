"""Makes images as a CI job does, out of packages that pip installs: no root, no container tool.

`python examples/app_images.py DIR` writes three OCI layouts: DIR/v1, DIR/v2 (the same packages,
installed again: new times, so new .pyc files too) and DIR/v3 (one package upgraded). Each image has
three uncompressed layers: Python's own library, the packages, the application.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ["Babel==2.16.0", "Jinja2==3.1.4", "Pygments==2.18.0", "requests==2.32.3"]
OLD, NEW = "Django==5.1.4", "Django==5.1.5"
VERSIONS = {"v1": OLD, "v2": OLD, "v3": NEW}
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"test", "site-packages", "dist-packages"}
APP = "import django, sys\nprint('release', {release!r}, 'on', django.VERSION, sys.version)\n"


def pip(*args: str) -> None:
    """Runs this Python's pip; raises when it fails."""
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *args]
    subprocess.run(command, check=True)


def download(wheels: Path) -> None:
    """All packages, both versions, so that every build after it is offline."""
    pip("download", "-d", str(wheels), "--prefer-binary", *PACKAGES, OLD)
    pip("download", "-d", str(wheels), "--prefer-binary", "--no-deps", NEW)


def install(tree: Path, wheels: Path, django: str) -> None:
    """What `RUN pip install` does in a build: files with the time of now, compiled to .pyc.

    Not --target: it compiles in a temporary directory, whose name would stay in every .pyc."""
    fixed = ["--no-index", "-f", str(wheels), "--prefix", str(tree), "--ignore-installed"]
    pip("install", *fixed, "--no-warn-script-location", *PACKAGES, django)


def write_app(tree: Path, version: str) -> None:
    tree.mkdir(parents=True)
    for n in range(20):
        (tree / f"module{n}.py").write_text(f"VALUE = {n}\n")
    (tree / "main.py").write_text(APP.format(release=version))


def add_layer(layout: Path, tree: Path, prefix: str) -> dict[str, Any]:
    """Packs a tree as a layer blob, in the order of names; its descriptor."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blobs / "partial"

    def member(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if tree == LIBRARY and not LEFT_OUT.isdisjoint(Path(info.name).parts):
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        return info

    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tree, arcname=prefix, filter=member)
    with partial.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    size = partial.stat().st_size
    partial.rename(blobs / digest)
    return {"mediaType": LAYER, "digest": f"sha256:{digest}", "size": size}


def add_json(layout: Path, media_type: str, document: object) -> dict[str, Any]:
    data = json.dumps(document, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def finish(layout: Path, tag: str, layers: list[dict[str, Any]]) -> None:
    """Config, manifest and index around the layers."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}
    config = {
        "created": datetime.now(UTC).isoformat(),
        "os": "linux",
        "architecture": machine.get(sysconfig.get_platform().split("-", 1)[1], "unknown"),
        "config": {"Cmd": ["python3", "/srv/app/main.py"]},
        "rootfs": {"type": "layers", "diff_ids": [x["digest"] for x in layers]},
        "history": [{"created_by": name} for name in ("base", "pip install", "copy app")],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": add_json(layout, CONFIG, config),
        "layers": layers,
    }
    entry = add_json(layout, MANIFEST, manifest)
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def build(out: Path) -> None:
    """Writes the three layouts to `out`, which must not exist."""
    wheels, work = out / "wheels", out / "work"
    out.mkdir(parents=True)
    download(wheels)
    for version, django in VERSIONS.items():
        install(work / "packages", wheels, django)
        write_app(work / "app", version)
        layout = out / version
        layers = [
            add_layer(layout, LIBRARY, "usr/lib/python3"),
            add_layer(layout, work / "packages", "opt/app"),
            add_layer(layout, work / "app", "srv/app"),
        ]
        finish(layout, version, layers)
        shutil.rmtree(work)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: app_images.py DIR")
    build(Path(sys.argv[1]))
