"""Small OCI layouts with everything that `ls`, `cat` and `history` have to show."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

Files = dict[str, bytes | str | None]
"""Content of a file, target of a symlink, or None for a directory."""


def tar(files: Files) -> bytes:
    """A layer. Times and owners are pinned, so that the same files are the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mtime = 1704164645
            info.mode = 0o755 if content is None else 0o644
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def noise(seed: str, size: int) -> bytes:
    """Bytes that do not compress, always the same for a seed."""
    return random.Random(seed).randbytes(size)


BASE: Files = {
    "etc": None,
    "etc/os-release": b"ID=small\n",
    "etc/removed": b"not for long\n",
    "usr": None,
    "usr/lib": None,
    "usr/lib/libbig.so": noise("libbig", 600_000),
    "bin": "usr/bin",
}
TOP: Files = {
    "etc": None,
    "etc/.wh.removed": b"",
    "etc/hostname": b"app\n",
    "srv": None,
    "srv/app": b"#!/bin/sh\necho hello\n",
    "srv/data": noise("data", 100_000),
}


class Layout:
    """An OCI layout directory that grows image by image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def image(self, tag: str, *layers: Files, compressed: bool = False) -> dict[str, Any]:
        """Adds an image; its descriptor."""
        tars = [tar(layer) for layer in layers]
        config = {
            "created": "2024-01-02T03:04:05Z",
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/srv/app"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in tars],
            },
            "history": [
                *(
                    {"created": "2024-01-02T03:04:05Z", "created_by": f"ADD {n}"}
                    for n in range(len(tars))
                ),
                {"created_by": 'CMD ["/srv/app"]', "empty_layer": True},
            ],
        }
        blobs = [
            self.blob(gzip.compress(data, 6, mtime=0), f"{LAYER}+gzip")
            if compressed
            else self.blob(data, LAYER)
            for data in tars
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(json.dumps(config).encode(), CONFIG),
            "layers": blobs,
        }
        descriptor = self.blob(json.dumps(manifest).encode(), MANIFEST)
        self.manifests.append(
            {**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}}
        )
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(index))
        return descriptor


def blobs(layout: Path) -> dict[str, bytes]:
    """Every blob of a layout by the digest that it really has; each is where its digest says."""
    found = {}
    for path in (layout / "blobs" / "sha256").iterdir():
        data = path.read_bytes()
        assert hashlib.sha256(data).hexdigest() == path.name
        found[path.name] = data
    return found
