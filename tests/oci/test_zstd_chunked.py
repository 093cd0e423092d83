"""A layer in zstd:chunked, as skopeo makes it: a frame for each file, and skippable frames that no
decoder of zstd looks into: a table of contents and a footer that says where it is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import oci_make as make
import pytest

import layerstore
from layerstore.layers.encoders import likely_encoder

Client = Callable[..., str]
SKIPPABLE = b"\x50\x2a\x4d\x18"
FOOTERS = (b"GNUlInUx", b"GnUlInUx")  # of newer releases, of older ones (Debian's)
FILES = {"etc/words": b"line upon line\n" * 4000, "lib/noise": random.Random(1).randbytes(70_000)}


@pytest.fixture
def chunked(tmp_path: Path, skopeo: Client) -> Path:
    """A layout of an image with one such layer."""
    # It refuses tars with more zeros at their end than two blocks ("short write").
    tar = make.tar(FILES).rstrip(b"\0")
    tar += bytes(-len(tar) % 512 + 1024)
    plain = make.layout(tmp_path / "plain", (make.image(tar, compress=False), make.tagged("v1")))
    skopeo(
        *("copy", "--insecure-policy", "--dest-compress", "--dest-compress-format", "zstd:chunked"),
        *(f"oci:{plain}:v1", f"oci:{tmp_path}/chunked:v1"),
    )
    return tmp_path / "chunked"


def layer_of(layout: Path) -> tuple[str, bytes]:
    """Digest and bytes of the only layer."""
    blobs = make.read(layout)
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    (layer,) = json.loads(blobs[entry["digest"]])["layers"]
    assert layer["mediaType"].endswith("tar+zstd")
    assert any("zstd-chunked.manifest-position" in key for key in layer["annotations"])
    return layer["digest"], blobs[layer["digest"]]


@pytest.mark.needs("skopeo")
def test_a_layer_comes_back_as_it_came(
    store: layerstore.Store, tmp_path: Path, chunked: Path
) -> None:
    digest, data = layer_of(chunked)
    assert SKIPPABLE in data
    assert data.endswith(FOOTERS)
    store.import_image(f"oci:{chunked}:v1", "app:1")
    (seen,) = (b for b in store.optimize().blobs if b.digest == digest)
    assert (seen.result, seen.reason) == ("raw", "zstd data is kept as it came")
    assert seen.encoder.startswith("klauspost/compress zstd")
    assert seen.encoder.endswith("(zstd:chunked)")
    assert store.stat(digest).forms == ("raw",)
    with store.open_blob(digest) as file:
        assert file.read() == data
        file.seek(len(data) - 40)
        assert file.read() == data[-40:]
    store.export_image("app:1", f"oci:{tmp_path}/out:v1")
    assert make.read(tmp_path / "out") == make.read(chunked)


@pytest.mark.parametrize("magic", FOOTERS)
def test_the_footer_of_every_release_is_known(magic: bytes) -> None:
    frame = bytes.fromhex("28b52ffd4400e802431f00612342da2e")
    footer = SKIPPABLE + (64).to_bytes(4, "little") + bytes(56) + magic
    assert likely_encoder(frame, footer).endswith("small content (zstd:chunked)")
    assert not likely_encoder(frame, footer[:-8]).endswith("(zstd:chunked)")


@pytest.mark.needs("skopeo")
def test_its_files_are_read_and_its_annotations_go_with_its_bytes(
    store: layerstore.Store, tmp_path: Path, chunked: Path
) -> None:
    """Where its table of contents is holds for these bytes alone."""
    store.import_image(f"oci:{chunked}:v1", "app:1")
    store.checkout("app:1", tmp_path / "root", ownership="try")
    assert {name: (tmp_path / "root" / name).read_bytes() for name in FILES} == FILES
    info = store.export_image("app:1", f"oci:{tmp_path}/out:v1", compression="gzip")
    (layer,) = json.loads(make.read(tmp_path / "out")[info.digest])["layers"]
    assert layer["mediaType"].endswith("tar+gzip")
    assert not layer.get("annotations")
