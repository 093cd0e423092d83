"""Real clients as witnesses: skopeo and umoci read what we write, and we read what they write."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import oci_make as make
import pytest
import stores

import layerstore
from layerstore.digest import digest_of

Store = layerstore.Store
Client = Callable[..., str]
LAYERS = (make.tar({"etc/one": b"1" * 3000}), make.tar({"etc/two": os.urandom(5000)}))


@pytest.fixture
def app(store: Store, tmp_path: Path) -> make.Image:
    image = make.image(*LAYERS)
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (image, {}))}", "localhost/app:1.2")
    return image


def same(path: Path, image: make.Image) -> None:
    """What `skopeo copy ... dir:` wrote, which checks every digest itself."""
    assert (path / "manifest.json").read_bytes() == image.data
    found = {p.name: p.read_bytes() for p in path.iterdir() if len(p.name) == 64}
    assert found == {digest.partition(":")[2]: data for digest, data in image.blobs.items()}


def test_skopeo_copies_from_our_layout(
    store: Store, tmp_path: Path, app: make.Image, skopeo: Client
) -> None:
    store.export_image("localhost/app:1.2", f"oci:{tmp_path}/out")
    store.export_image("localhost/app:1.2", f"oci:{tmp_path}/out:named")
    for n, tag in enumerate(("1.2", "named")):
        skopeo("copy", "-q", f"oci:{tmp_path}/out:{tag}", f"dir:{tmp_path}/d{n}")
        same(tmp_path / f"d{n}", app)
    skopeo("copy", "-q", f"oci:{tmp_path}/out:1.2", f"oci:{tmp_path}/out:theirs")
    store.export_image("localhost/app:1.2", f"oci:{tmp_path}/out:ours")
    assert set(make.entries(tmp_path / "out")) == {"1.2", "named", "theirs", "ours"}


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_skopeo_copies_a_docker_schema_2_image(
    store: Store, tmp_path: Path, skopeo: Client, kind: str
) -> None:
    # skopeo looks for tags among OCI manifests only: without one it takes the only entry.
    image = make.image(*LAYERS, docker=True)
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (image, {}))}", "app:1")
    store.export_image("app:1", f"{kind}:{tmp_path}/out")
    skopeo("copy", "-q", f"{kind}:{tmp_path}/out", f"dir:{tmp_path}/d")
    same(tmp_path / "d", image)


def test_skopeo_accepts_full_names_as_tags(
    store: Store, tmp_path: Path, app: make.Image, skopeo: Client
) -> None:
    other = make.image(salt="other")
    store.import_image(f"oci:{make.layout(tmp_path / 'two', (other, {}))}", "host/other:1.2")
    store.export_images(["localhost/app:1.2", "host/other:1.2"], f"oci:{tmp_path}/out")
    skopeo("copy", "-q", f"oci:{tmp_path}/out:localhost/app:1.2", f"dir:{tmp_path}/d")
    same(tmp_path / "d", app)


def test_skopeo_copies_from_our_archive(
    store: Store, tmp_path: Path, app: make.Image, skopeo: Client
) -> None:
    store.export_image("localhost/app:1.2", f"oci-archive:{tmp_path}/a.tar")
    skopeo("copy", "-q", f"oci-archive:{tmp_path}/a.tar:1.2", f"dir:{tmp_path}/d")
    same(tmp_path / "d", app)


def test_docker_archives_both_ways(
    store: Store, tmp_path: Path, app: make.Image, skopeo: Client
) -> None:
    store.export_image("localhost/app:1.2", f"docker-archive:{tmp_path}/a.tar")
    source = f"docker-archive:{tmp_path}/a.tar:localhost/app:1.2"
    skopeo("copy", "-q", source, f"dir:{tmp_path}/d")
    for layer in LAYERS:
        assert (tmp_path / "d" / digest_of(layer).partition(":")[2]).read_bytes() == layer
    target = f"docker-archive:{tmp_path}/theirs.tar:localhost/app:theirs"
    skopeo("copy", "-q", f"oci:{tmp_path}/in", target)
    (info,) = store.import_images(f"docker-archive:{tmp_path}/theirs.tar")
    assert info.name == "localhost/app:theirs"
    assert not info.warnings
    found = store.image("localhost/app:theirs")
    assert [x.digest for x in found.layers] == [digest_of(x) for x in LAYERS]
    with open(tmp_path / "theirs.tar", "rb") as f:
        saved = os.dup(0)
        read, write = os.pipe()
        os.close(write)
        os.close(read)
        os.dup2(f.fileno(), 0)
        try:
            again = store.import_images("docker-archive:-", "piped")
        finally:
            os.dup2(saved, 0)
            os.close(saved)
    assert again[0].digest == info.digest


def test_oci_archives_of_skopeo(
    store: Store, tmp_path: Path, app: make.Image, skopeo: Client
) -> None:
    skopeo("copy", "-q", f"oci:{tmp_path}/in", f"oci-archive:{tmp_path}/theirs.tar:v7")
    with tarfile.open(tmp_path / "theirs.tar") as t:
        stores.extract(t, tmp_path / "theirs")
    store.import_image(f"oci-archive:{tmp_path}/theirs.tar:v7", "x")
    store.export_image("x", f"oci:{tmp_path}/out")
    assert make.read(tmp_path / "out") == make.read(tmp_path / "theirs")


def test_an_index_goes_through_with_all_platforms(
    store: Store, tmp_path: Path, skopeo: Client
) -> None:
    images = [make.image(salt=a, arch=a) for a in ("amd64", "arm64")]
    index = make.index(
        *((i, make.platform(a)) for i, a in zip(images, ("amd64", "arm64"), strict=True))
    )
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (index, make.tagged('v1')))}:v1")
    store.export_image("v1", f"oci:{tmp_path}/out:v1")
    skopeo("copy", "-q", "--all", f"oci:{tmp_path}/out:v1", f"oci:{tmp_path}/theirs:v1")
    assert make.read(tmp_path / "theirs") == index.all
    store.import_image(f"oci:{tmp_path}/theirs:v1", "again")
    assert store.image("again").info.digest == index.digest


def test_umoci_unpacks_our_layout(
    store: Store, tmp_path: Path, app: make.Image, umoci: Client
) -> None:
    store.export_image("localhost/app:1.2", f"oci:{tmp_path}/out")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    umoci("unpack", *rootless, "--image", f"{tmp_path}/out:1.2", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/one").read_bytes() == b"1" * 3000


def _layer(*members: tuple[str, bytes | None, str, str]) -> bytes:
    """A tar of `(name, content, type, target)`, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind.encode(), link
            info.mode = 0o755 if kind == "5" else 0o644
            info.size = 0 if data is None else len(data)
            archive.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


LINKED = (
    _layer(
        ("usr", None, "5", ""),
        ("usr/bin", None, "5", ""),
        ("bin", None, "2", "usr/bin"),
        ("data", None, "5", ""),
        ("data/kept", b"first\n", "0", ""),
        ("data/replaced", None, "1", "data/kept"),
        ("data/gone", b"second\n", "0", ""),
        ("data/stays", None, "1", "data/gone"),
        ("data/loop", None, "2", "/data/../data"),
        ("tree", None, "5", ""),
        ("tree/below", b"hidden\n", "0", ""),
        ("twice", b"old\n", "0", ""),
        ("of-old", None, "1", "twice"),
        ("twice", b"new\n", "0", ""),
    ),
    _layer(
        # The names that hard links were made to are given away.
        ("data/kept", b"third\n", "0", ""),
        ("data/.wh.gone", b"", "0", ""),
        # Through symbolic links of the layer below.
        ("bin/tool", b"tool\n", "0", ""),
        ("data/loop/deep", b"deep\n", "0", ""),
        ("tree", b"a file now\n", "0", ""),
        ("more", None, "1", "data/stays"),
    ),
    _layer(("bin/second", b"second tool\n", "0", "")),
)


def test_files_are_those_that_umoci_unpacks(store: Store, tmp_path: Path, umoci: Client) -> None:
    """Hard links whose names were given away, and paths that lead through symbolic links."""
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (make.image(*LINKED), {}))}", "app:1")
    store.export_image("app:1", f"oci:{tmp_path}/out")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    umoci("unpack", *rootless, "--image", f"{tmp_path}/out:1", tmp_path / "bundle")
    root = tmp_path / "bundle/rootfs"
    image = store.image("app:1")
    listed = {entry.path for entry in image.entries()}
    assert listed == {str(path.relative_to(root)) for path in root.rglob("*")}
    for path in listed:
        if (root / path).is_file():
            assert b"".join(image.open(path)) == (root / path).read_bytes(), path
    assert b"".join(image.open("bin/tool")) == b"tool\n"
    assert [e.path for e in image.entries("data/stays")] == ["data/stays"]


def test_umoci_changes_an_image_and_we_take_it(
    store: Store, tmp_path: Path, umoci: Client, skopeo: Client
) -> None:
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (make.image(*LAYERS), {}))}", "app:1")
    store.export_image("app:1", f"oci:{tmp_path}/out")
    umoci("config", "--image", f"{tmp_path}/out:1", "--tag", "2", "--config.user", "nobody")
    info = store.import_image(f"oci:{tmp_path}/out:2", "app:2")
    assert json.loads(store.image("app:2").config_bytes)["config"]["User"] == "nobody"
    assert info.new_bytes < 30_000
    store.export_image("app:2", f"oci:{tmp_path}/again")
    skopeo("inspect", f"oci:{tmp_path}/again:2")
