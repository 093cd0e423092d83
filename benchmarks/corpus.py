"""Corpora: reads an OCI layout as the benchmarks need it, and makes its plain or gzip twin.

`python -m benchmarks.corpus plain SRC... DST` writes a layout with every layer as uncompressed tar;
the layers' digests are then the diff_ids of the configs, checked while they are inflated. `gzip`
does the inverse. Layers that SRC shares, DST shares.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

REF_NAME = "org.opencontainers.image.ref.name"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Layer:
    """One layer of an image: its blob, and the digest of its tar."""

    digest: str
    size: int
    media_type: str
    diff_id: str


@dataclass(frozen=True)
class Image:
    """One tagged image manifest of a layout."""

    tag: str
    digest: str
    config: str
    layers: tuple[Layer, ...]


class Layout:
    """An OCI image layout whose tags are plain image manifests."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def blob(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    def json(self, digest: str) -> Any:
        return json.loads(self.blob(digest).read_bytes())

    def images(self) -> list[Image]:
        index = json.loads((self.path / "index.json").read_bytes())
        out = []
        for entry in index["manifests"]:
            manifest = self.json(entry["digest"])
            config = manifest["config"]["digest"]
            diff_ids = self.json(config)["rootfs"]["diff_ids"]
            layers = tuple(
                Layer(d["digest"], d["size"], d["mediaType"], diff_id)
                for d, diff_id in zip(manifest["layers"], diff_ids, strict=True)
            )
            out.append(Image(entry["annotations"][REF_NAME], entry["digest"], config, layers))
        return out

    def layers(self) -> list[Layer]:
        """Every layer once, in the order of the images."""
        seen: dict[str, Layer] = {}
        for image in self.images():
            for layer in image.layers:
                seen.setdefault(layer.digest, layer)
        return list(seen.values())


def inflated(path: Path, media_type: str) -> BinaryIO:
    """The tar in a layer blob, as a stream."""
    if media_type.endswith("gzip"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if media_type.endswith("zstd"):
        return cast(BinaryIO, zstandard.open(path, "rb"))
    return path.open("rb")


def blocks(stream: BinaryIO, size: int = 1 << 20) -> Iterator[bytes]:
    while block := stream.read(size):
        yield block


def put_json(layout: Path, document: object, media_type: str) -> dict[str, Any]:
    """Stores a document; its descriptor."""
    data = json.dumps(document, separators=(",", ":")).encode()
    hexdigest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / hexdigest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{hexdigest}", "size": len(data)}


def _inflate(blob: Path, layer: Layer, blobs: Path) -> dict[str, Any]:
    """Stores the tar of a layer, checked against its diff_id; the descriptor."""
    partial, h = blobs / "partial", hashlib.sha256()
    with inflated(blob, layer.media_type) as stream, partial.open("wb") as out:
        for block in blocks(stream):
            h.update(block)
            out.write(block)
    digest = f"sha256:{h.hexdigest()}"
    if digest != layer.diff_id:
        raise SystemExit(f"{blob}: inflates to {digest}, not {layer.diff_id}")
    os.rename(partial, blobs / h.hexdigest())
    return {"mediaType": LAYER, "digest": digest, "size": (blobs / h.hexdigest()).stat().st_size}


def _deflate(blob: Path, layer: Layer, blobs: Path) -> dict[str, Any]:
    """Stores a layer as gzip; the descriptor."""
    partial = blobs / "partial"
    with inflated(blob, layer.media_type) as stream, gzip.open(partial, "wb", 6) as out:
        shutil.copyfileobj(stream, out, 1 << 20)
    with partial.open("rb") as f:
        hexdigest = hashlib.file_digest(f, "sha256").hexdigest()
    os.rename(partial, blobs / hexdigest)
    size = (blobs / hexdigest).stat().st_size
    return {"mediaType": f"{LAYER}+gzip", "digest": f"sha256:{hexdigest}", "size": size}


def convert(sources: Sequence[Path], target: Path, *, compress: bool) -> None:
    """Writes one layout with all images of `sources`, every layer of it as gzip or as plain tar."""
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)
    made: dict[str, dict[str, Any]] = {}
    entries: list[dict[str, Any]] = []
    for layout in map(Layout, sources):
        for image in layout.images():
            for layer in image.layers:
                if layer.diff_id not in made:
                    make = _deflate if compress else _inflate
                    made[layer.diff_id] = make(layout.blob(layer.digest), layer, blobs)
            manifest = layout.json(image.digest)
            manifest["layers"] = [made[layer.diff_id] for layer in image.layers]
            shutil.copyfile(layout.blob(image.config), blobs / image.config.partition(":")[2])
            entry = put_json(target, manifest, MANIFEST)
            entry["annotations"] = {REF_NAME: image.tag}
            entries.append(entry)
            print(f"{image.tag}: {sum(x['size'] for x in manifest['layers']) / 1e6:.1f} MB")
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def main() -> None:
    parser = argparse.ArgumentParser(description="Copies a layout with other layer compression")
    parser.add_argument("compression", choices=["plain", "gzip"])
    parser.add_argument("source", type=Path, nargs="+")
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    convert(args.source, args.target, compress=args.compression == "gzip")


if __name__ == "__main__":
    main()
