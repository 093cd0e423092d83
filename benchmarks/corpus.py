"""Corpora: reads an OCI layout as the benchmarks need it, and makes its uncompressed twin.

`python benchmarks/corpus.py uncompress SRC DST` copies the layout SRC to DST with every gzip or
zstd layer replaced by its tar; manifests are written anew, so that the layers' digests are the
diff_ids of the configs (checked while they are inflated). Layers shared in SRC are shared in DST.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from isal import igzip

REF_NAME = "org.opencontainers.image.ref.name"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
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
        return igzip.open(path, "rb")  # type: ignore[no-any-return]
    if media_type.endswith("zstd"):
        return zstandard.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def blocks(stream: BinaryIO, size: int = 1 << 20) -> Iterator[bytes]:
    while block := stream.read(size):
        yield block


def _put(layout: Path, data: bytes) -> tuple[str, int]:
    """Stores a document; its digest and size."""
    hexdigest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / hexdigest).write_bytes(data)
    return f"sha256:{hexdigest}", len(data)


def uncompress(source: Path, target: Path) -> None:
    """Writes the uncompressed twin of `source` to `target`; layers that are there stay."""
    layout = Layout(source)
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    entries: list[dict[str, Any]] = []
    for image in layout.images():
        for layer in image.layers:
            done = blobs / layer.diff_id.partition(":")[2]
            if not done.exists():
                partial = done.with_suffix(".partial")
                h = hashlib.sha256()
                blob = layout.blob(layer.digest)
                with inflated(blob, layer.media_type) as stream, partial.open("wb") as out:
                    for block in blocks(stream):
                        h.update(block)
                        out.write(block)
                if f"sha256:{h.hexdigest()}" != layer.diff_id:
                    raise SystemExit(f"{blob}: inflates to {h.hexdigest()}, not {layer.diff_id}")
                os.rename(partial, done)
            sizes[layer.diff_id] = done.stat().st_size
        manifest = layout.json(image.digest)
        manifest["layers"] = [
            {"mediaType": LAYER, "digest": x.diff_id, "size": sizes[x.diff_id]}
            for x in image.layers
        ]
        shutil.copyfile(layout.blob(image.config), blobs / image.config.partition(":")[2])
        digest, size = _put(target, json.dumps(manifest, separators=(",", ":")).encode())
        entries.append(
            {
                "mediaType": MANIFEST,
                "digest": digest,
                "size": size,
                "annotations": {REF_NAME: image.tag},
            }
        )
        size = sum(sizes[x.diff_id] for x in image.layers)
        print(f"{image.tag}: {size / 1e6:.1f} MB", flush=True)
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(required=True, dest="verb")
    verb = verbs.add_parser("uncompress", help="write the uncompressed twin of a layout")
    verb.add_argument("source", type=Path)
    verb.add_argument("target", type=Path)
    args = parser.parse_args()
    uncompress(args.source, args.target)


if __name__ == "__main__":
    main()
