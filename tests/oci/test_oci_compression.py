"""Exports with layers compressed anew: other bytes outside, the same image inside."""

from __future__ import annotations

import gzip
import json
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import oci_make as make
import pytest
import zstandard

import layerstore
from layerstore import mediatypes
from layerstore.digest import digest_of
from layerstore.errors import InvalidInputError, UnsupportedError
from layerstore.oci.compression import Compression, parse

Store = layerstore.Store
Client = Callable[..., str]
LAYERS = (
    make.tar({"etc/one": b"1" * 3000, "lib/big": random.Random(1).randbytes(900_000) * 2}),
    make.tar({"etc/two": b"the second layer\n" * 5000}),
)


def put(store: Store, tmp_path: Path, image: make.Image, name: str = "app:1") -> make.Image:
    number = len(list(tmp_path.glob("in*")))
    store.import_image(f"oci:{make.layout(tmp_path / f'in{number}', (image, {}))}", name)
    return image


def manifest(path: Path, digest: str) -> dict[str, object]:
    out: dict[str, object] = json.loads(make.read(path)[digest])
    return out


def inflated(data: bytes) -> bytes:
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def kind_of(data: bytes) -> str:
    return {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd"}.get(data[:2], "none")


@pytest.mark.parametrize("before", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("wanted", ["none", "gzip", "gzip:1", "zstd", "zstd:9"])
@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_from_every_compression_to_every_other(
    store: Store, tmp_path: Path, skopeo: Client, before: str, wanted: str, kind: str
) -> None:
    image = put(store, tmp_path, compressed(before))
    info = store.export_image("app:1", f"{kind}:{tmp_path}/out:new", compression=wanted)
    # skopeo verifies every digest and size; a directory keeps the bytes.
    skopeo("copy", "-q", f"{kind}:{tmp_path}/out:new", f"dir:{tmp_path}/d")
    written = json.loads((tmp_path / "d/manifest.json").read_bytes())
    assert digest_of((tmp_path / "d/manifest.json").read_bytes()) == info.digest
    old = json.loads(image.data)
    assert {k: v for k, v in written.items() if k != "layers"} == {
        k: v for k, v in old.items() if k != "layers"
    }
    short = wanted.partition(":")[0]
    for layer, was, tar in zip(written["layers"], old["layers"], LAYERS, strict=True):
        data = (tmp_path / "d" / layer["digest"].partition(":")[2]).read_bytes()
        assert inflated(data) == tar
        assert kind_of(data) == short
        assert layer["mediaType"] == mediatypes.compressed_as(mediatypes.OCI_LAYER, short)
        # What is compressed so already keeps its bytes.
        assert (layer["digest"] == was["digest"]) == (short == before)
    assert (info.digest == image.digest) == (short == before)
    assert store.image("app:1").info.digest == image.digest


def compressed(kind: str) -> make.Image:
    if kind != "zstd":
        return make.image(*LAYERS, compress=kind == "gzip")
    image = make.image(*LAYERS, compress=False)
    kept = [zstandard.compress(x) for x in LAYERS]
    listed = [make.desc(x, mediatypes.OCI_LAYER_ZSTD) for x in kept]
    data = make.dump({**json.loads(image.data), "layers": listed})
    blobs = {d: b for d, b in image.blobs.items() if b not in LAYERS}
    return make.Image(data, image.media_type, {**blobs, **{digest_of(x): x for x in kept}})


def test_umoci_unpacks_what_we_compressed(store: Store, tmp_path: Path, umoci: Client) -> None:
    put(store, tmp_path, make.image(*LAYERS, compress=False))
    store.export_image("app:1", f"oci:{tmp_path}/out:new", compression="gzip:9")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    umoci("unpack", *rootless, "--image", f"{tmp_path}/out:new", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/etc/one").read_bytes() == b"1" * 3000
    assert (tmp_path / "bundle/rootfs/etc/two").read_bytes() == b"the second layer\n" * 5000


def test_a_second_export_compresses_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, tmp_path, make.image(*LAYERS, compress=False))
    for n, wanted in enumerate(("gzip", "zstd")):
        first = store.export_image("app:1", f"oci:{tmp_path}/a{n}", compression=wanted)
        with monkeypatch.context() as patch:
            patch.setattr("layerstore.layers.content.gzipped", None)
            patch.setattr("layerstore.layers.content.zstd_compressed", None)
            again = store.export_image("app:1", f"oci:{tmp_path}/b{n}", compression=wanted)
        assert first.digest == again.digest
        assert make.read(tmp_path / f"a{n}") == make.read(tmp_path / f"b{n}")


def test_recipes_are_kept_and_proven(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, make.image(*LAYERS, compress=False))
    before = store.stats()
    info = store.export_image("app:1", f"oci:{tmp_path}/out", compression="gzip")
    layers = [d["digest"] for d in manifest(tmp_path / "out", info.digest)["layers"]]  # type: ignore[attr-defined]
    assert [store.stat(d).forms for d in layers] == [("gzip",), ("gzip",)]
    assert store.stats().raw == before.raw
    # What a layout has already is not written, and proven all the same.
    with layerstore.open(tmp_path / "other") as other:
        put(other, tmp_path, make.image(*LAYERS, compress=False))
        other.export_image("app:1", f"oci:{tmp_path}/out", compression="gzip")
        assert [other.stat(d).forms for d in layers] == [("gzip",), ("gzip",)]
        assert other.check(full=True).ok
    assert store.check(full=True).ok


def test_the_next_process_is_free_to_collect_what_was_made(tmp_path: Path) -> None:
    with layerstore.open(tmp_path / "s") as store:
        put(store, tmp_path, make.image(*LAYERS, compress=False))
        info = store.export_image("app:1", f"oci:{tmp_path}/out", compression="gzip")
        store.gc()
        assert store.stat(info.digest).bytes > 0
    with layerstore.open(tmp_path / "s") as store:
        store.gc()
        with pytest.raises(layerstore.NotFoundError):
            store.stat(info.digest)
        assert store.check(full=True).ok


def test_archives_are_the_same_from_any_store(tmp_path: Path) -> None:
    archives = []
    for n in range(2):
        with layerstore.open(tmp_path / f"s{n}") as store:
            put(store, tmp_path, make.image(*LAYERS, compress=bool(n)))
            if n:
                # From gzip of another encoder to none, and from there to ours.
                store.export_image("app:1", f"oci:{tmp_path}/plain:x", compression="none")
                store.import_image(f"oci:{tmp_path}/plain:x", "app:1")
            store.export_image("app:1", f"oci-archive:{tmp_path}/{n}.tar:x", compression="gzip")
            archives.append((tmp_path / f"{n}.tar").read_bytes())
    with_config = [a for a in archives if b"vnd.oci.image.layer.v1.tar+gzip" in a]
    assert len(with_config) == 2
    layouts = []
    for n in range(2):
        with layerstore.open(tmp_path / "read") as store:
            store.import_image(f"oci-archive:{tmp_path}/{n}.tar:x", f"n:{n}")
            layouts.append([layer.digest for layer in store.image(f"n:{n}").layers])
    assert layouts[0] == layouts[1]


def test_an_index_and_what_is_no_image_in_it(store: Store, tmp_path: Path) -> None:
    images = [
        make.image(LAYERS[n], compress=False, arch=a) for n, a in enumerate(("amd64", "arm64"))
    ]
    done = make.image(make.tar({"z": b"z"}), arch="s390x")
    about = {"vnd.docker.reference.digest": images[0].digest, "vnd.docker.reference.type": "x"}
    attestation = make.artifact()
    index = make.index(
        (images[0], {**make.platform("amd64"), "annotations": {"mine": "kept"}}),
        (images[1], make.platform("arm64", variant="v8")),
        (done, make.platform("s390x")),
        (attestation, {**make.platform("unknown"), "annotations": about}),
        annotations={"of the index": "kept"},
    )
    put(store, tmp_path, index)
    info = store.export_image("app:1", f"oci:{tmp_path}/out:x", compression="gzip")
    blobs = make.read(tmp_path / "out")
    was, now = json.loads(index.data), json.loads(blobs[info.digest])
    assert now["annotations"] == was["annotations"]
    for old, new in zip(was["manifests"], now["manifests"], strict=True):
        same = {k: v for k, v in old.items() if k not in ("digest", "size", "annotations")}
        assert {k: v for k, v in new.items() if k in same} == same
        assert len(blobs[new["digest"]]) == new["size"]
    changed = [
        o["digest"] != n["digest"] for o, n in zip(was["manifests"], now["manifests"], strict=True)
    ]
    assert changed == [True, True, False, False]
    assert now["manifests"][0]["annotations"] == {"mine": "kept"}
    assert now["manifests"][3]["annotations"] == {
        **about,
        "vnd.docker.reference.digest": now["manifests"][0]["digest"],
    }
    assert any("attestations" in warning for warning in info.warnings)
    # Whole: another store takes it, strictly.
    with layerstore.open(tmp_path / "other") as other:
        taken = other.import_image(f"oci:{tmp_path}/out:x", "x", strict=True)
        assert taken.digest == info.digest


def test_signatures_are_told_and_left_out(store: Store, tmp_path: Path) -> None:
    image = make.image(*LAYERS, compress=False)
    signature = make.artifact(image)
    layout = make.layout(tmp_path / "in", (image, make.tagged("v1")), (signature, {}))
    store.import_images(f"oci:{layout}", "app", all=True)
    info = store.export_image("app:v1", f"oci:{tmp_path}/out:x", referrers=True, compression="gzip")
    assert any(image.digest in w and "do not fit" in w for w in info.warnings)
    assert signature.digest not in make.read(tmp_path / "out")
    # With what is left as it is, they go along.
    kept = store.export_image("app:v1", f"oci:{tmp_path}/b:x", referrers=True, compression="none")
    assert kept.digest == image.digest
    assert signature.digest in make.read(tmp_path / "b")
    assert not kept.warnings


def test_annotations_stay_but_those_of_compressed_bytes(store: Store, tmp_path: Path) -> None:
    image = make.image(LAYERS[0])
    value = json.loads(image.data)
    stays = {"mine": "x", "containerd.io/uncompressed": digest_of(LAYERS[0])}
    goes = {
        "containerd.io/snapshot/stargz/toc.digest": "sha256:" + "1" * 64,
        "io.github.containers.zstd-chunked.manifest-position": "1:2:3:4",
    }
    value["layers"][0] |= {"annotations": {**stays, **goes}, "x-future": [1], "urls": ["https://x"]}
    value |= {"annotations": {"a": "b"}, "x-unknown": {"deep": None}}
    put(store, tmp_path, make.Image(make.dump(value), image.media_type, image.blobs))
    info = store.export_image("app:1", f"oci:{tmp_path}/out", compression="zstd")
    now = manifest(tmp_path / "out", info.digest)
    assert (now["annotations"], now["x-unknown"]) == ({"a": "b"}, {"deep": None})
    (layer,) = now["layers"]  # type: ignore[misc]
    assert layer["annotations"] == stays
    assert (layer["x-future"], layer["urls"]) == ([1], ["https://x"])


def test_docker_images_keep_their_types(store: Store, tmp_path: Path, skopeo: Client) -> None:
    put(store, tmp_path, make.image(*LAYERS, compress=False, docker=True))
    info = store.export_image("app:1", f"oci-archive:{tmp_path}/out", compression="gzip")
    skopeo("copy", "-q", f"oci-archive:{tmp_path}/out", f"dir:{tmp_path}/d")
    written = json.loads((tmp_path / "d/manifest.json").read_bytes())
    assert {x["mediaType"] for x in written["layers"]} == {mediatypes.DOCKER_LAYER_GZIP}
    assert info.media_type == mediatypes.DOCKER_MANIFEST
    with pytest.raises(UnsupportedError, match="docker"):
        store.export_image("app:1", f"oci:{tmp_path}/no", compression="zstd")
    assert not (tmp_path / "no").exists()


def test_a_docker_archive_holds_plain_tars(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, make.image(*LAYERS))
    for wanted in ("gzip", "zstd:3"):
        with pytest.raises(InvalidInputError, match="plain tars"):
            store.export_image("app:1", f"docker-archive:{tmp_path}/a.tar", compression=wanted)
    store.export_image("app:1", f"docker-archive:{tmp_path}/a.tar", compression="none")
    assert store.import_image(f"docker-archive:{tmp_path}/a.tar", "back").blobs == 4


def test_layers_that_are_no_tar_by_their_type_stay(store: Store, tmp_path: Path) -> None:
    image = make.artifact(payload=b"helm chart" * 1000)
    put(store, tmp_path, image)
    info = store.export_image("app:1", f"oci:{tmp_path}/out", compression="gzip")
    assert info.digest == image.digest
    assert make.read(tmp_path / "out") == image.all


def test_a_layer_that_is_not_what_the_config_says(store: Store, tmp_path: Path) -> None:
    for n, compress in enumerate((True, False)):
        image = make.image(
            *LAYERS,
            compress=compress,
            config={"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64] * 2}},
        )
        put(store, tmp_path, image, f"odd:{n}")
    for name, wanted in (
        ("odd:0", "none"),
        ("odd:0", "zstd"),
        ("odd:1", "gzip"),
        ("odd:1", "zstd"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            store.export_image(name, f"oci:{tmp_path}/out", compression=wanted)
        assert "diff_id" in caught.value.message
    # It can still be written as it is.
    store.export_image("odd:0", f"oci:{tmp_path}/out")


def test_progress_tells_both_stages_and_can_stop(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, make.image(*LAYERS, compress=False))
    stages: list[str] = []

    def tell(p: layerstore.Progress) -> None:
        assert 0 <= p.done <= p.total
        if not stages or stages[-1] != p.stage:
            stages.append(p.stage)

    store.export_image("app:1", f"oci:{tmp_path}/a", compression="gzip:2", progress=tell)
    assert stages == ["compress", "export"]

    def stop(p: layerstore.Progress) -> None:
        if p.stage == "compress" and p.done:
            raise KeyboardInterrupt

    for wanted in ("gzip:3", "zstd:2"):
        with pytest.raises(KeyboardInterrupt):
            store.export_image("app:1", f"oci:{tmp_path}/b", compression=wanted, progress=stop)
        assert not (tmp_path / "b").exists()
    assert store.check(full=True).ok


def test_what_can_be_typed() -> None:
    assert parse("none") == Compression("none")
    assert parse("gzip") == Compression("gzip", 6)
    assert parse("gzip:1") == Compression("gzip", 1)
    assert parse("zstd") == Compression("zstd", 3)
    assert parse("zstd:19") == Compression("zstd", 19)
    bad = (
        "",
        "bzip2",
        "gzip:",
        "gzip:0",
        "gzip:10",
        "gzip:x",
        "zstd:20",
        "zstd:-1",
        "none:1",
        "GZIP",
    )
    for text in bad:
        with pytest.raises(InvalidInputError):
            parse(text)


def test_the_bytes_are_one_gzip_member_of_ours(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, make.image(LAYERS[1], compress=False))
    info = store.export_image("app:1", f"oci:{tmp_path}/out", compression="gzip")
    blobs = make.read(tmp_path / "out")
    (layer,) = json.loads(blobs[info.digest])["layers"]
    machine = zlib.decompressobj(31)
    assert machine.decompress(blobs[layer["digest"]]) == LAYERS[1]
    assert machine.eof
    assert not machine.unused_data
