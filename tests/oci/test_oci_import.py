"""Imports from layouts: what is taken, what is warned of, what is refused, and that it comes back."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import oci_make as make
import pytest
from fake_content import FakeContent

import layerstore
from layerstore import mediatypes
from layerstore.digest import digest_of
from layerstore.errors import (
    DigestMismatchError,
    InvalidInputError,
    LayerstoreError,
    LimitError,
    NotFoundError,
)
from layerstore.oci import images, transports
from layerstore.oci.importing import import_images
from layerstore.values import Progress

Store = layerstore.Store


def back(store: Store, name: str, path: Path, **options: Any) -> dict[str, bytes]:
    """The blobs of an image as it is exported."""
    store.export_image(name, f"oci:{path}", **options)
    return make.read(path)


def absent(info: layerstore.ImageInfo) -> list[str]:
    return [w for w in info.warnings if "not here" in w]


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_an_image_comes_back_byte_for_byte(
    store: Store, tmp_path: Path, docker: bool, compress: bool
) -> None:
    layers = [make.tar({f"f{i}": b"x" * 5000 * i}) for i in range(1, 4)]
    image = make.image(*layers, docker=docker, compress=compress)
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    info = store.import_image(f"oci:{tmp_path}/in:v1", "app:1.2")
    assert (info.name, info.digest, info.blobs) == ("app:1.2", image.digest, 5)
    assert info.bytes == sum(map(len, image.all.values()))
    assert info.platform == "linux/amd64"
    assert info.created == "2024-01-02T03:04:05Z"
    assert not info.warnings
    assert store.image("app:1.2").manifest_bytes == image.data
    assert [x.diff_id for x in store.image("app:1.2").layers] == [digest_of(x) for x in layers]
    assert [x["created_by"] for x in store.image("app:1.2").history] == [
        "step 0",
        "step 1",
        "step 2",
    ]
    assert back(store, "app:1.2", tmp_path / "out") == image.all


@pytest.mark.parametrize("algorithm", ["sha512", "blake3"])
@pytest.mark.parametrize("compress", [False, True])
def test_other_digests_are_taken_and_one_content_is_kept_once(
    store: Store, tmp_path: Path, algorithm: str, compress: bool
) -> None:
    layer = make.tar({"f": os.urandom(300_000)})
    one = make.image(layer, compress=compress)
    other = make.image(layer, compress=compress, algorithm=algorithm)
    make.layout(tmp_path / "in", (one, make.tagged("a")), (other, make.tagged("b")))
    assert not store.import_image(f"oci:{tmp_path}/in:a").warnings
    again = store.import_image(f"oci:{tmp_path}/in:b")
    assert again.digest.startswith(algorithm)
    assert not again.warnings
    assert again.new_bytes < 20_000
    assert back(store, "b", tmp_path / "out") == other.all


def test_an_index_of_several_platforms(store: Store, tmp_path: Path) -> None:
    amd, arm = make.image(salt="amd"), make.image(salt="arm", arch="arm64")
    proof = make.artifact(payload=b"{}" * 30)
    notes = {"vnd.docker.reference.type": "attestation-manifest"}
    unknown = {"platform": {"os": "unknown", "architecture": "unknown"}, "annotations": notes}
    index = make.index(
        (amd, make.platform("amd64")), (arm, make.platform("arm64")), (proof, unknown)
    )
    nested = make.index((index, {}), (make.image(salt="s390"), make.platform("s390x")))
    make.layout(tmp_path / "in", (nested, make.tagged("v1")))
    info = store.import_image(f"oci:{tmp_path}/in:v1")
    assert info.platform is None
    assert not info.warnings
    assert back(store, "v1", tmp_path / "out") == nested.all
    for arch, image in (("amd64", amd), ("arm64", arm)):
        found = store.image("v1", platform=f"linux/{arch}")
        assert found.config_bytes in image.blobs.values()
    with pytest.raises(NotFoundError, match="riscv"):
        _ = store.image("v1", platform="linux/riscv64").layers
    assert store.image(arm.digest).info.digest == arm.digest
    assert store.image(f"v1@{amd.digest}").info.platform == "linux/amd64"


def test_platforms_that_are_absent_are_said_and_not_fatal(store: Store, tmp_path: Path) -> None:
    amd, arm = make.image(salt="amd"), make.image(salt="arm", arch="arm64")
    index = make.index((amd, make.platform("amd64")), (arm, make.platform("arm64")), docker=True)
    make.layout(tmp_path / "in", (index, make.tagged("v1")), lacking=tuple(arm.all))
    info = store.import_image(f"oci:{tmp_path}/in:v1")
    assert absent(info) == list(info.warnings)
    assert any(arm.digest in w and "linux/arm64" in w for w in info.warnings)
    there = {**amd.all, index.digest: index.data}
    assert info.bytes == sum(map(len, there.values()))
    assert back(store, "v1", tmp_path / "out") == there
    # What was absent comes later, and the image is whole.
    make.layout(tmp_path / "full", (index, make.tagged("v1")))
    assert not store.import_image(f"oci:{tmp_path}/full:v1").warnings
    store.gc()
    assert back(store, "v1", tmp_path / "out2") == index.all


def test_a_platform_whose_layers_are_absent_counts_as_absent(store: Store, tmp_path: Path) -> None:
    amd, arm = make.image(salt="amd"), make.image(salt="arm", arch="arm64")
    index = make.index((amd, make.platform("amd64")), (arm, make.platform("arm64")))
    lost = json.loads(arm.data)["layers"][0]["digest"]
    make.layout(tmp_path / "in", (index, make.tagged("v1")), lacking=(lost,))
    with pytest.raises(NotFoundError, match=lost):
        store.import_image(f"oci:{tmp_path}/in:v1", strict=True)
    assert any(lost in w for w in store.import_image(f"oci:{tmp_path}/in:v1").warnings)
    assert set(back(store, "v1", tmp_path / "out")) == set(index.all) - {lost}


def test_an_index_with_nothing_in_it_here_is_refused(store: Store, tmp_path: Path) -> None:
    amd = make.image()
    index = make.index((amd, make.platform("amd64")))
    make.layout(tmp_path / "in", (index, make.tagged("v1")), lacking=tuple(amd.all))
    with pytest.raises(NotFoundError, match=amd.digest):
        store.import_image(f"oci:{tmp_path}/in:v1")
    assert store.images() == []


@pytest.mark.parametrize("part", [0, 1])
def test_a_manifest_that_names_a_missing_blob_is_refused(
    store: Store, tmp_path: Path, part: int
) -> None:
    image = make.image()
    lost = list(image.blobs)[part]
    make.layout(tmp_path / "in", (image, make.tagged("v1")), lacking=(lost,))
    with pytest.raises(NotFoundError, match=lost) as caught:
        store.import_image(f"oci:{tmp_path}/in:v1")
    assert caught.value.digest == lost
    assert store.images() == []


def test_what_the_store_has_may_be_missing_in_the_source(store: Store, tmp_path: Path) -> None:
    image = make.image()
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    make.layout(tmp_path / "bare", (image, make.tagged("v1")), lacking=tuple(image.all))
    store.import_image(f"oci:{tmp_path}/in:v1")
    assert store.import_image(f"oci:{tmp_path}/bare:v1", "again").new_bytes == 0


def test_non_distributable_layers_keep_their_descriptor(store: Store, tmp_path: Path) -> None:
    base = make.image()
    foreign = make.desc(
        b"never here",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        urls=["https://example.com/layer"],
    )
    value = json.loads(base.data)
    value["layers"].insert(0, foreign)
    image = make.Image(make.dump(value), base.media_type, base.blobs)
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    info = store.import_image(f"oci:{tmp_path}/in:v1")
    assert any(foreign["digest"] in w and "non-distributable" in w for w in info.warnings)
    assert store.image("v1").manifest_bytes == image.data
    assert back(store, "v1", tmp_path / "out") == image.all


def test_artifacts_empty_configs_and_embedded_content(store: Store, tmp_path: Path) -> None:
    value = json.loads(make.artifact().data)
    value["config"]["data"] = "e30="
    plain = make.artifact()
    artifact = make.Image(make.dump(value), plain.media_type, plain.blobs)
    empty = digest_of(b"{}")
    make.layout(tmp_path / "in", (artifact, make.tagged("v1")), lacking=(empty,))
    info = store.import_image(f"oci:{tmp_path}/in:v1")
    assert not info.warnings
    assert back(store, "v1", tmp_path / "out") == artifact.all
    assert store.image("v1").history == []


def test_signatures_come_along_and_live_as_long_as_their_image(
    store: Store, tmp_path: Path
) -> None:
    image = make.image()
    signature = make.artifact(image)
    second = make.artifact(signature, b"a signature of the signature")
    stranger = make.artifact(make.image(salt="other"), b"of another image")
    both = [(signature, {}), (second, {}), (stranger, {})]
    make.layout(tmp_path / "in", (image, make.tagged("v1")), *both)
    assert [i.name for i in store.import_images(f"oci:{tmp_path}/in:v1")] == ["v1:latest"]
    assert store.referrers(image.digest) == [signature.digest]
    assert store.referrers(signature.digest) == [second.digest]
    store.gc()
    assert back(store, "v1", tmp_path / "plain") == image.all
    all_of_it = {**image.all, **signature.all, **second.all}
    assert back(store, "v1", tmp_path / "out", referrers=True) == all_of_it
    again = make.entries(tmp_path / "out")
    assert again == {"latest": image.digest, None: second.digest} or set(again) == {"latest", None}
    with layerstore.open(tmp_path / "other") as other:
        other.import_image(f"oci:{tmp_path}/out:latest")
        assert other.referrers(image.digest) == [signature.digest]


def test_all_takes_every_entry(store: Store, tmp_path: Path) -> None:
    a, b, c = (make.image(salt=x) for x in "abc")
    make.layout(tmp_path / "in", (a, make.tagged("1")), (b, make.tagged("2")), (c, {}))
    found = store.import_images(f"oci:{tmp_path}/in", "m", all=True)
    assert [i.name for i in found] == ["m:1", "m:2", f"m@{c.digest}"]
    assert store.image(f"m@{c.digest}").info.digest == c.digest
    assert sum(i.new_bytes for i in found) > 0
    assert sum(i.new_bytes for i in store.import_images(f"oci:{tmp_path}/in", "m", all=True)) == 0


def test_several_images_and_no_tag_is_an_error_that_lists_them(
    store: Store, tmp_path: Path
) -> None:
    a, b = make.image(salt="a"), make.image(salt="b")
    make.layout(tmp_path / "in", (a, make.tagged("one")), (b, make.tagged("two")))
    with pytest.raises(InvalidInputError, match=r"one, two.*--all"):
        store.import_images(f"oci:{tmp_path}/in", "x")
    with pytest.raises(NotFoundError, match="three"):
        store.import_images(f"oci:{tmp_path}/in:three", "x")
    for selector, image in ((":two", b), ("@1", b), (f":{a.digest}", a)):
        assert store.import_image(f"oci:{tmp_path}/in{selector}", "x").digest == image.digest


def test_the_name_of_the_source_is_kept(store: Store, tmp_path: Path) -> None:
    image = make.image()
    make.layout(tmp_path / "in", (image, make.tagged("1", "docker.io/library/app:1")))
    for selector in ("", ":1", ":docker.io/library/app:1", ":app:1"):
        info = store.import_image(f"oci:{tmp_path}/in{selector}")
        assert info.name == "docker.io/library/app:1"
    make.layout(tmp_path / "bare", (image, {}))
    with pytest.raises(InvalidInputError, match="NAME"):
        store.import_image(f"oci:{tmp_path}/bare")


# ---- damage and hostility ---------------------------------------------------------------------


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("how", ["flip", "cut", "longer"])
def test_damage_in_any_blob_is_refused(store: Store, tmp_path: Path, part: int, how: str) -> None:
    image = make.image()
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    digest, data = list(image.all.items())[part]
    bad = {"flip": data[:-1] + bytes((data[-1] ^ 1,)), "cut": data[:-1], "longer": data + b"\n"}[
        how
    ]
    (tmp_path / "in/blobs" / digest.replace(":", "/")).write_bytes(bad)
    with pytest.raises(DigestMismatchError) as caught:
        store.import_image(f"oci:{tmp_path}/in:v1")
    assert caught.value.digest == digest
    assert store.images() == []


def test_a_size_that_does_not_match_is_refused(store: Store, tmp_path: Path) -> None:
    value = json.loads(make.image().data)
    value["layers"][0]["size"] += 1
    image = make.Image(make.dump(value), mediatypes.OCI_MANIFEST, make.image().blobs)
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    for _ in range(2):
        with pytest.raises(DigestMismatchError):
            store.import_image(f"oci:{tmp_path}/in:v1")
        make.layout(tmp_path / "good", (make.image(), make.tagged("v1")))
        store.import_image(f"oci:{tmp_path}/good:v1")


def test_an_index_that_names_itself_is_refused(store: Store, tmp_path: Path) -> None:
    # A document cannot hold its own digest, so one lies about its bytes; the cycle is seen first or
    # the digest, but never neither.
    digest = "sha256:" + "11" * 32
    entry = {"mediaType": mediatypes.OCI_INDEX, "digest": digest, "size": 0}
    data = make.dump({"schemaVersion": 2, "manifests": [entry]})
    entry["size"] = len(data) + 2
    data = make.dump({"schemaVersion": 2, "manifests": [entry]})
    path = make.layout(tmp_path / "in", (make.image(), {}))
    (path / "blobs/sha256" / ("11" * 32)).write_bytes(data)
    listed = {**entry, "size": len(data)}
    (path / "index.json").write_bytes(make.dump({"schemaVersion": 2, "manifests": [listed]}))
    with pytest.raises(InvalidInputError):
        store.import_image(f"oci:{path}", "x")


def test_indexes_that_nest_ten_thousand_deep_are_refused(store: Store, tmp_path: Path) -> None:
    current = make.image()
    blobs = dict(current.all)
    for _ in range(10_000):
        current = make.Image(
            make.dump({"schemaVersion": 2, "manifests": [current.desc()]}), mediatypes.OCI_INDEX
        )
        blobs[current.digest] = current.data
    top = make.Image(current.data, current.media_type, blobs)
    # Ten thousand files are slow to write: those that are looked at will do.
    near = dict(list(blobs.items())[-30:])
    make.layout(tmp_path / "in", (make.Image(top.data, top.media_type, near), make.tagged("v1")))
    with pytest.raises(InvalidInputError, match="deeper"):
        store.import_image(f"oci:{tmp_path}/in:v1")


def test_a_manifest_of_100_mb_is_refused_before_it_is_read(store: Store, tmp_path: Path) -> None:
    path = make.layout(tmp_path / "in", (make.image(), {}))
    digest = "sha256:" + "22" * 32
    with open(path / "blobs/sha256" / ("22" * 32), "wb") as f:
        f.truncate(100 << 20)
    listed = {"mediaType": mediatypes.OCI_MANIFEST, "digest": digest, "size": 100 << 20}
    (path / "index.json").write_bytes(make.dump({"schemaVersion": 2, "manifests": [listed]}))
    with pytest.raises(LimitError):
        store.import_image(f"oci:{path}", "x")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("oci-layout", b""),
        ("oci-layout", b'{"imageLayoutVersion":"9.0.0"}'),
        ("oci-layout", b"x" * 5000),
        ("index.json", b"{"),
        ("index.json", b'{"schemaVersion":1,"manifests":[]}'),
        ("index.json", b'{"schemaVersion":2,"manifests":[]}'),
        ("index.json", b'{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}'),
        ("index.json", b"[" * 10_000),
        ("index.json", None),
        ("oci-layout", None),
    ],
)
def test_a_damaged_layout_is_refused(
    store: Store, tmp_path: Path, name: str, data: bytes | None
) -> None:
    path = make.layout(tmp_path / "in", (make.image(), make.tagged("v1")))
    (path / name).unlink() if data is None else (path / name).write_bytes(data)
    with pytest.raises(LayerstoreError):
        store.import_image(f"oci:{path}", "x")


def test_a_fifo_in_place_of_a_blob_is_not_waited_for(store: Store, tmp_path: Path) -> None:
    image = make.image()
    path = make.layout(tmp_path / "in", (image, make.tagged("v1")))
    blob = path / "blobs" / image.digest.replace(":", "/")
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(NotFoundError):
        store.import_image(f"oci:{path}:v1")
    (path / "index.json").unlink()
    os.mkfifo(path / "index.json")
    with pytest.raises(InvalidInputError):
        store.import_image(f"oci:{path}:v1")


# ---- layers that are not sound ----------------------------------------------------------------


def unsound(kind: str) -> make.Image:
    layer = make.tar({"a": b"b" * 3000})
    if kind == "diff_id":
        wrong = {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "00" * 32]}}
        return make.image(layer, config=wrong)
    if kind == "diff_id plain":
        wrong = {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "00" * 32]}}
        return make.image(layer, config=wrong, compress=False)
    if kind == "count":
        return make.image(layer, config={"rootfs": {"type": "layers", "diff_ids": []}})
    image = make.image(layer)
    value = json.loads(image.data)
    cut = make.packed(layer)[:-20] if kind == "cut" else b"\x1f\x8b" + os.urandom(300)
    value["layers"][0] = make.desc(cut, mediatypes.OCI_LAYER_GZIP)
    config = value["config"]["digest"]
    blobs = {config: image.blobs[config], digest_of(cut): cut}
    return make.Image(make.dump(value), image.media_type, blobs)


@pytest.mark.parametrize("kind", ["diff_id", "diff_id plain", "cut", "noise", "count"])
def test_a_layer_that_is_not_sound_is_kept_and_warned_of_or_refused(
    store: Store, tmp_path: Path, kind: str
) -> None:
    image = unsound(kind)
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    with pytest.raises(InvalidInputError):
        store.import_image(f"oci:{tmp_path}/in:v1", strict=True)
    assert store.images() == []
    info = store.import_image(f"oci:{tmp_path}/in:v1")
    assert len(info.warnings) == 1, info.warnings
    assert back(store, "v1", tmp_path / "out") == image.all
    if kind != "count":
        assert store.image("v1").info.warnings == info.warnings
    with pytest.raises(InvalidInputError):
        store.import_image(f"oci:{tmp_path}/in:v1", strict=True)


def test_one_configs_lie_is_not_held_against_another_image(store: Store, tmp_path: Path) -> None:
    layer = make.tar({"a": b"b" * 3000})
    wrong = {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "00" * 32]}}
    bad, good = make.image(layer, config=wrong), make.image(layer)
    make.layout(tmp_path / "in", (bad, make.tagged("bad")), (good, make.tagged("good")))
    assert store.import_image(f"oci:{tmp_path}/in:bad").warnings
    assert not store.import_image(f"oci:{tmp_path}/in:good").warnings
    assert store.image("bad").info.warnings


def test_defer_does_not_look_inside(store: Store, tmp_path: Path) -> None:
    make.layout(tmp_path / "in", (unsound("cut"), make.tagged("v1")))
    assert not store.import_image(f"oci:{tmp_path}/in:v1", defer=True).warnings


def test_a_config_that_is_no_json_is_kept_and_warned_of(store: Store, tmp_path: Path) -> None:
    image = make.image()
    value = json.loads(image.data)
    odd = b"{ not json"
    value["config"] = make.desc(odd, mediatypes.OCI_CONFIG)
    layer = value["layers"][0]["digest"]
    blobs = {digest_of(odd): odd, layer: image.blobs[layer]}
    made = make.Image(make.dump(value), image.media_type, blobs)
    make.layout(tmp_path / "in", (made, make.tagged("v1")))
    assert any("JSON" in w for w in store.import_image(f"oci:{tmp_path}/in:v1").warnings)
    assert back(store, "v1", tmp_path / "out") == made.all
    assert store.image("v1").info.platform is None


# ---- gc ---------------------------------------------------------------------------------------


def test_a_manifest_that_was_put_as_a_plain_blob_keeps_its_layers(tmp_path: Path) -> None:
    image = make.image()
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    with layerstore.open(tmp_path / "s") as store:
        store.put(image.data)
        store.import_image(f"oci:{tmp_path}/in:v1")
    with layerstore.open(tmp_path / "s") as store:
        store.gc(aggressive=True)
        assert back(store, "v1", tmp_path / "out") == image.all


# ---- the way it is done, seen on the fake -----------------------------------------------------


def run(fake: FakeContent, text: str, **options: Any) -> list[layerstore.ImageInfo]:
    return import_images(fake, transports.parse(text), **options)  # type: ignore[arg-type]


def test_known_blobs_are_not_read_and_each_is_put_once(fake: FakeContent, tmp_path: Path) -> None:
    base = make.tar({"base": b"x" * 9000})
    a = make.image(base, make.tar({"a": b"1"}))
    b = make.image(base, make.tar({"b": b"2"}))
    make.layout(tmp_path / "in", (a, make.tagged("a")), (b, make.tagged("b")))
    run(fake, f"oci:{tmp_path}/in", all=True)
    assert sorted(fake.reads) == sorted({**a.all, **b.all})
    fake.reads.clear()
    run(fake, f"oci:{tmp_path}/in", all=True, name="again")
    assert fake.reads == []
    assert len(fake.names) == 4


def test_blobs_go_in_side_by_side(fake: FakeContent, tmp_path: Path) -> None:
    layers = [make.tar({f"{i}": os.urandom(200_000)}) for i in range(2)]
    image = make.image(*layers, compress=False)
    make.layout(tmp_path / "in", (image, make.tagged("a")))
    # Each waits for the other before it is read: one after the other would wait for ever.
    meeting = threading.Barrier(2, timeout=20)
    both = {digest_of(layer) for layer in layers}

    def meet(digest: str | None) -> None:
        if digest in both:
            meeting.wait()

    fake.before_read = meet
    assert run(fake, f"oci:{tmp_path}/in:a", jobs=2)[0].blobs == 4


def test_progress_goes_up_to_its_total(fake: FakeContent, tmp_path: Path) -> None:
    layers = [make.tar({f"{i}": os.urandom(400_000)}) for i in range(3)]
    make.layout(tmp_path / "in", (make.image(*layers), make.tagged("a")))
    steps: list[Progress] = []
    run(fake, f"oci:{tmp_path}/in:a", progress=steps.append)
    assert {s.stage for s in steps} == {"import"}
    assert [s.done for s in steps] == sorted(s.done for s in steps)
    assert steps[-1].done == steps[-1].total > 1_000_000


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("when", [1, 3])
def test_raising_in_progress_cancels(
    fake: FakeContent, tmp_path: Path, jobs: int, when: int
) -> None:
    class Stop(Exception):
        pass

    calls = []

    def progress(step: Progress) -> None:
        calls.append(step)
        if len(calls) >= when:
            raise Stop

    layers = [make.tar({f"{i}": os.urandom(900_000)}) for i in range(6)]
    make.layout(tmp_path / "in", (make.image(*layers), make.tagged("a")))
    before = threading.active_count()
    with pytest.raises(Stop):
        run(fake, f"oci:{tmp_path}/in:a", progress=progress, jobs=jobs)
    assert len(calls) == when
    assert threading.active_count() == before
    assert fake.names == {}
    assert len(fake.data) < 6


def test_the_reason_is_raised_rather_than_its_consequence(
    fake: FakeContent, tmp_path: Path
) -> None:
    layers = [make.tar({f"{i}": os.urandom(900_000)}) for i in range(6)]
    image = make.image(*layers, compress=False)
    make.layout(tmp_path / "in", (image, make.tagged("a")))
    fake.fail_on = digest_of(layers[3])
    with pytest.raises(OSError, match="the disk is gone"):
        run(fake, f"oci:{tmp_path}/in:a", jobs=4)
    assert fake.names == {}


# ---- finding ----------------------------------------------------------------------------------


def test_images_are_found_by_name_and_by_digest(store: Store, tmp_path: Path) -> None:
    a, b = make.image(salt="a"), make.image(salt="b")
    make.layout(tmp_path / "in", (a, make.tagged("a")), (b, make.tagged("b")))
    store.import_image(f"oci:{tmp_path}/in:a", "app:1")
    store.import_image(f"oci:{tmp_path}/in:b", "localhost/app")
    digits = a.digest.partition(":")[2]
    for text in ("app:1", f"app@{a.digest}", f"app:1@{a.digest}", digits, digits[:8], a.digest):
        assert store.image(text).ref.name == "app:1"
    assert store.image("localhost/app").info.digest == b.digest
    for text in ("app", "app:2", f"app@{b.digest}", "00000000", "localhost/app:1"):
        with pytest.raises(NotFoundError):
            store.image(text)
    for text in ("", "a b", "app:", "../x", "x" * 70_000, "a\0"):
        with pytest.raises(LayerstoreError):
            store.image(text)


def test_a_name_wins_over_a_digest_of_the_same_letters(store: Store, tmp_path: Path) -> None:
    a, b = make.image(salt="a"), make.image(salt="b")
    make.layout(tmp_path / "in", (a, make.tagged("a")), (b, make.tagged("b")))
    digits = a.digest.partition(":")[2][:12]
    store.import_image(f"oci:{tmp_path}/in:a", "app:1")
    assert store.image(digits).info.digest == a.digest
    store.import_image(f"oci:{tmp_path}/in:b", digits)
    assert store.image(digits).info.digest == b.digest


def test_an_ambiguous_digest_and_one_of_several_names(fake: FakeContent, tmp_path: Path) -> None:
    image = make.image()
    make.layout(tmp_path / "in", (image, make.tagged("a")))
    run(fake, f"oci:{tmp_path}/in:a", name="one")
    run(fake, f"oci:{tmp_path}/in:a", name="two")
    with fake.operation() as op:
        found = images.find(op, image.digest)
        assert (found.name, found.digest) == ("", image.digest)
        twin = image.digest[:-1] + ("0" if image.digest[-1] != "0" else "1")
        fake.names["three:latest"] = layerstore.Ref("three:latest", twin, 1, image.media_type)
        with pytest.raises(InvalidInputError, match="beginning of 2"):
            images.find(op, image.digest[:20])


def test_one_strange_image_does_not_hide_the_others(fake: FakeContent, tmp_path: Path) -> None:
    make.layout(tmp_path / "in", (make.image(), make.tagged("a")))
    run(fake, f"oci:{tmp_path}/in:a")
    with fake.operation() as op:
        info = op.put(b"a letter", media_type="text/plain")
        ref = layerstore.Ref("letter:1", info.digest, info.bytes, "text/plain")
        op.commit_refs({"letter:1": ref})
        good, odd = (images.describe(op, one) for one in op.refs())
    assert not good.warnings
    assert (odd.name, odd.bytes, odd.blobs) == ("letter:1", 8, 1)
    assert len(odd.warnings) == 1


def test_a_path_that_is_nowhere_is_an_error_in_one_layer_too(store: Store, tmp_path: Path) -> None:
    image = make.image(make.tar({"etc/one": b"1"}), make.tar({"etc/two": b"2"}))
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (image, {}))}", "app:1")
    found = store.image("app:1")
    assert [e.path for e in found.entries("/etc", layer=1)] == ["etc/two"]
    for path in ("etc/two", "../etc", "nothing"):
        with pytest.raises(NotFoundError):
            list(found.entries(path, layer=0))
