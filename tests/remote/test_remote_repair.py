"""check --repair-from docker://…: damage heals from a registry that has the bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from oci import oci_make as make

import layerstore
from layerstore import RemoteOptions

LAYER = make.tar({"a": os.urandom(400_000)})
QUICK = RemoteOptions(timeout=10.0, tries=2)


def damage(folder: Path) -> None:
    """Turns bytes over in the largest file of a folder."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.chmod(path, 0o600)
    with open(path, "r+b") as f:
        f.seek(path.stat().st_size // 2)
        f.write(b"damage")


def broken(tmp_path: Path, image: make.Image, folder: str, **more: bool) -> layerstore.Store:
    """A store with the image `app:1`, of which a file is damaged, and known to be."""
    store = layerstore.open(tmp_path / "s")
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (image, {}))}", "app:1", **more)
    damage(tmp_path / "s" / folder)
    assert not store.check(full=True).ok
    return store


@pytest.mark.parametrize("end", [":1", "@", ""])
@pytest.mark.parametrize("packed", [False, True])
def test_a_layer_heals(packed: bool, end: str, upstream, tmp_path) -> None:
    """By its own digest, for which no other layer is looked at; or, uncompressed,
    from the compressed layer that decodes to it."""
    image = make.image(LAYER, compress=False)
    there = make.image(LAYER) if packed else image
    upstream.add("team/app", there, "1")
    upstream.add("team/app", make.image(salt="other"), "2")
    end = end + there.digest if end == "@" else end
    where = f"docker://{upstream.host}/team/app{end}"
    with broken(tmp_path, image, "packs") as store:
        report = store.check(full=True, repair_from=where, remote=QUICK)
        assert report.ok, report
        assert report.repaired
        assert store.check(full=True).ok
        store.export_image("app:1", f"oci:{tmp_path}/out")
    assert make.read(tmp_path / "out") == image.all
    assert len(upstream.asked("GET", "/blobs/")) >= 1
    if not packed:
        assert not upstream.asked("GET", "/manifests/")


def test_a_compressed_layer_heals_and_a_lie_does_not(upstream, tmp_path) -> None:
    image = make.image(LAYER)
    upstream.add("team/app", image, "1")
    digest = max(image.blobs, key=lambda d: len(image.blobs[d]))
    where = f"docker://{upstream.host}/team/app:1"
    with broken(tmp_path, image, "raw", defer=True) as store:
        upstream.blobs["team/app", digest] = bytes(len(image.blobs[digest]))
        report = store.check(full=True, repair_from=where, remote=QUICK)
        assert not report.ok
        assert not report.repaired
        del upstream.blobs["team/app", digest]
        assert not store.check(full=True, repair_from=where, remote=QUICK).repaired
        upstream.blobs["team/app", digest] = image.blobs[digest]
        assert store.check(full=True, repair_from=where, remote=QUICK).ok
        store.export_image("app:1", f"oci:{tmp_path}/out")
    assert make.read(tmp_path / "out") == image.all


def test_what_is_not_there_is_said_before_the_check(upstream, tmp_path) -> None:
    upstream.add("team/app", make.image(LAYER), "1")
    with layerstore.open(tmp_path / "s") as store:
        for end in ("team/app:2", "team/none"):
            with pytest.raises(layerstore.NotFoundError):
                store.check(repair_from=f"docker://{upstream.host}/{end}", remote=QUICK)
        upstream.odd = lambda handler, seen: handler.answer(401) or True
        with pytest.raises(layerstore.PermissionDeniedError):
            store.check(repair_from=f"docker://{upstream.host}/team/app:1", remote=QUICK)
