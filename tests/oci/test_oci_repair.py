"""check --repair-from: damage heals from any transport that has the bytes."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import oci_make as make
import pytest

import layerstore
from layerstore.errors import InvalidInputError, LayerstoreError, NotFoundError

LAYER = make.tar({"a": os.urandom(400_000)})


def damage(store: Path, folder: str) -> None:
    """Turns bytes over in the largest file of the store's folder."""
    found = [p for p in (store / folder).rglob("*") if p.is_file()]
    path = max(found, key=lambda p: p.stat().st_size)
    os.chmod(path, 0o600)
    with open(path, "r+b") as f:
        f.seek(path.stat().st_size // 2)
        f.write(b"damage")


def sources(tmp_path: Path, image: make.Image, compressed: make.Image) -> dict[str, str]:
    with layerstore.open(tmp_path / "other") as other:
        other.import_image(f"oci:{make.layout(tmp_path / 'in', (image, {}))}", "app:1")
        for kind in ("oci-archive", "docker-archive"):
            other.export_image("app:1", f"{kind}:{tmp_path}/{kind}.tar")
    packed = gzip.compress((tmp_path / "oci-archive.tar").read_bytes(), 1)
    (tmp_path / "packed.tar.gz").write_bytes(packed)
    return {
        "layout": f"oci:{tmp_path}/in",
        "archive": f"oci-archive:{tmp_path}/oci-archive.tar",
        "packed archive": f"oci-archive:{tmp_path}/packed.tar.gz",
        "docker archive": f"docker-archive:{tmp_path}/docker-archive.tar",
        "compressed layers": f"oci:{make.layout(tmp_path / 'gz', (compressed, {}))}",
    }


@pytest.mark.parametrize(
    "which", ["layout", "archive", "packed archive", "docker archive", "compressed layers"]
)
def test_an_uncompressed_layer_heals(tmp_path: Path, which: str) -> None:
    image, compressed = make.image(LAYER, compress=False), make.image(LAYER)
    where = sources(tmp_path, image, compressed)
    with layerstore.open(tmp_path / "s") as store:
        store.import_image(where["layout"], "app:1")
        damage(tmp_path / "s", "packs")
        assert not store.check(full=True).ok
        report = store.check(full=True, repair_from=where[which])
        assert report.ok, report
        assert report.repaired
        assert store.check(full=True).ok
        store.export_image("app:1", f"oci:{tmp_path}/out")
        assert make.read(tmp_path / "out") == image.all


@pytest.mark.parametrize("which", ["layout", "archive"])
def test_a_compressed_layer_heals(tmp_path: Path, which: str) -> None:
    image = make.image(LAYER)
    where = sources(tmp_path, image, image)
    with layerstore.open(tmp_path / "s") as store:
        store.import_image(where["layout"], "app:1", defer=True)
        damage(tmp_path / "s", "raw")
        assert store.check(full=True, repair_from=where[which]).ok
        store.export_image("app:1", f"oci:{tmp_path}/out")
        assert make.read(tmp_path / "out") == image.all


def test_a_source_that_lacks_or_damages_it_does_not_heal(tmp_path: Path) -> None:
    image = make.image(LAYER)
    layout = make.layout(tmp_path / "in", (image, {}))
    with layerstore.open(tmp_path / "s") as store:
        store.import_image(f"oci:{layout}", "app:1", defer=True)
        damage(tmp_path / "s", "raw")
        damage(layout, "blobs")
        other = make.layout(tmp_path / "else", (make.image(salt="else"), {}))
        for source in (layout, other):
            report = store.check(full=True, repair_from=f"oci:{source}")
            assert not report.ok
            assert not report.repaired
        with pytest.raises(NotFoundError):
            store.check(full=True, repair_from=f"oci:{tmp_path}/nothing")
        with pytest.raises(InvalidInputError):
            store.check(repair_from="nonsense")
        with pytest.raises(LayerstoreError):
            store.export_image("app:1", f"oci:{tmp_path}/out")
