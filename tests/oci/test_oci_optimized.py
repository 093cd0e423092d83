"""Compressed layers through import and optimize: the same image as before, and damage stays damage.

Through the public face. The oracle for what decodes is Python's zlib.
"""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import oci_make as make
import pytest
from damaged_gzip import DAMAGED, SOUND, TAR, WORDS, flipped

import layerstore
from layerstore import mediatypes
from layerstore.digest import digest_of
from layerstore.errors import InvalidInputError

Store = layerstore.Store


def image_of(*layers: tuple[bytes, bytes]) -> make.Image:
    """An image of layers, each a tar and the blob that is to be it."""
    image = make.image(*(tar for tar, _ in layers), compress=False)
    config = next(iter(image.blobs))
    blobs = [blob for _, blob in layers]
    out = make.image(
        *(tar for tar, _ in layers),
        manifest={"layers": [make.desc(blob, mediatypes.OCI_LAYER_GZIP) for blob in blobs]},
    )
    out.blobs = {config: image.blobs[config], **{digest_of(blob): blob for blob in blobs}}
    return out


def exported(store: Store, name: str, path: Path) -> dict[str, bytes]:
    store.export_image(name, f"oci:{path}")
    return make.read(path)


# ---- damage -----------------------------------------------------------------------------------

REFUSAL = r"does not decode: .*(ends early, at byte \d+|byte \d+: \w+)"
"""Every refusal names the place and the reason."""


def refused(store: Store, name: str, path: Path) -> None:
    """Whoever wants a file of the layer is told where it ends to decode, and why."""
    image = store.image(name)
    digest = image.layers[0].digest
    for read in (
        lambda: list(image.entries()),
        lambda: list(image.entries(layer=0)),
        lambda: list(image.open("words")),
        lambda: store.checkout(name, path),
    ):
        with pytest.raises(InvalidInputError, match=REFUSAL) as caught:
            read()
        assert digest in caught.value.message
    assert not path.exists() or os.listdir(path) == []


@pytest.mark.parametrize("defer", [False, True], ids=["import", "deferred"])
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_kept_recorded_and_never_read_as_files(
    store: Store, tmp_path: Path, kind: str, defer: bool
) -> None:
    data = DAMAGED[kind]
    image = image_of((TAR, data))
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    store.import_image(f"oci:{tmp_path}/in:v1", "v1", defer=defer)
    (blob,) = store.optimize().blobs
    assert (blob.digest, blob.result) == (digest_of(data), "raw")
    assert "does not decode" in blob.reason
    assert store.optimize().blobs[0].reason == blob.reason
    assert store.stat(blob.digest).forms == ("raw",)
    assert any("does not decode" in warning for warning in store.image("v1").info.warnings)
    refused(store, "v1", tmp_path / "root")
    assert exported(store, "v1", tmp_path / "out") == image.all
    assert store.check(full=True).ok


def decodes(data: bytes) -> bool:
    """Whether this is one sound gzip member, and nothing else."""
    machine = zlib.decompressobj(31)
    try:
        machine.decompress(data)
    except zlib.error:
        return False
    return machine.eof and not machine.unused_data


def test_any_bit_turned_over_and_any_end(store: Store, tmp_path: Path) -> None:
    source = random.Random(11)
    # Some in the header, where a bit may mean nothing, and some in the trailer.
    bits = [source.randrange(80) for _ in range(6)]
    bits += [8 * len(SOUND) - 1 - source.randrange(64) for _ in range(2)]
    bits += [source.randrange(8 * len(SOUND)) for _ in range(12)]
    found = [flipped(SOUND, bit) for bit in bits]
    found += [SOUND[: source.randrange(3, len(SOUND))] for _ in range(8)]
    found = [data for data in dict.fromkeys(found) if data[:2] == SOUND[:2]]
    images = {f"v{n}": (data, image_of((TAR, data))) for n, data in enumerate(found)}
    make.layout(tmp_path / "in", *((image, make.tagged(n)) for n, (_, image) in images.items()))
    store.import_images(f"oci:{tmp_path}/in", all=True)
    kept = {blob.digest: blob for blob in store.optimize().blobs}
    sound = 0
    for name, (data, image) in images.items():
        assert exported(store, name, tmp_path / f"out-{name}") == image.all
        if decodes(data):
            sound += 1
            assert store.stat(digest_of(data)).forms == ("gzip",)
            assert b"".join(store.image(name).open("words")) == WORDS
        else:
            assert "does not decode" in kept[digest_of(data)].reason
            refused(store, name, tmp_path / f"root-{name}")
    assert 0 < sound < len(found) // 2
    assert store.check(full=True).ok
