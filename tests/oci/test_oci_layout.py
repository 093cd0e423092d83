"""Exports into layouts: what is there stays, names move in one step, nothing is half there."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import oci_make as make
import pytest

import layerstore
from layerstore.digest import digest_of
from layerstore.errors import CorruptError, InvalidInputError, LayerstoreError
from layerstore.oci import layout_writer
from layerstore.oci.layout_writer import Entry, LayoutWriter
from layerstore.values import Descriptor, Progress

Store = layerstore.Store


def put(store: Store, tmp_path: Path, name: str, salt: str = "") -> make.Image:
    image = make.image(salt=salt or name)
    layout = make.layout(tmp_path / "in" / name.replace(":", "-"), (image, {}))
    store.import_image(f"oci:{layout}", name)
    return image


def names(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def test_a_layout_grows_and_keeps_what_is_not_ours(store: Store, tmp_path: Path) -> None:
    old = make.image(salt="old")
    out = make.layout(tmp_path / "out", (old, make.tagged("old", **{"x-unknown": [1, {"y": 2}]})))
    value = json.loads((out / "index.json").read_bytes())
    value |= {"annotations": {"a": "b"}, "x-future": {"deep": [None, 1.5]}, "z": "\u00e9\ud800"}
    (out / "index.json").write_text(json.dumps(value))
    (out / "README").write_text("mine")
    new = put(store, tmp_path, "app:1.2")
    store.export_image("app:1.2", f"oci:{out}")
    after = json.loads((out / "index.json").read_bytes())
    assert after["manifests"][0] == value["manifests"][0]
    assert {k: v for k, v in after.items() if k != "manifests"} == {
        k: v for k, v in value.items() if k != "manifests"
    }
    assert make.entries(out) == {"old": old.digest, "1.2": new.digest}
    assert (out / "README").read_text() == "mine"
    assert make.read(out) == {**old.all, **new.all}


def test_exporting_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "app:1.2")
    store.export_image("app:1.2", f"oci:{tmp_path}/out")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "out").rglob("*")}
    store.export_image("app:1.2", f"oci:{tmp_path}/out")
    for path, was in before.items():
        if path.is_file():
            assert (path.stat().st_mtime_ns, path.stat().st_ino) == was


def test_names_of_one_image_moved_and_added(store: Store, tmp_path: Path) -> None:
    one, two = put(store, tmp_path, "app:1", "one"), put(store, tmp_path, "app:2", "two")
    out = tmp_path / "out"
    store.export_image("app:1", f"oci:{out}:stable")
    assert make.entries(out) == {"stable": one.digest}
    store.export_image("app:2", f"oci:{out}:stable")
    assert make.entries(out) == {"stable": two.digest}
    store.export_image("app:1", f"oci:{out}")
    assert make.entries(out) == {"stable": two.digest, "1": one.digest}
    assert len(json.loads((out / "index.json").read_bytes())["manifests"]) == 2


def test_images_that_share_a_tag_get_their_full_names(store: Store, tmp_path: Path) -> None:
    one, two = put(store, tmp_path, "a/one"), put(store, tmp_path, "a/two")
    three = put(store, tmp_path, "a/three")
    store.export_images(["a/one", "a/two"], f"oci:{tmp_path}/both")
    want = {"a/one:latest": one.digest, "a/two:latest": two.digest}
    assert make.entries(tmp_path / "both") == want
    # One after the other: who came first keeps the short tag.
    store.export_image("a/one", f"oci:{tmp_path}/each")
    store.export_image("a/three", f"oci:{tmp_path}/each")
    assert make.entries(tmp_path / "each") == {"latest": one.digest, "a/three:latest": three.digest}
    with layerstore.open(tmp_path / "again") as again:
        found = again.import_images(f"oci:{tmp_path}/both", all=True)
        assert [i.name for i in found] == ["a/one:latest", "a/two:latest"]
        assert len(again.import_images(f"oci:{tmp_path}/both", "a/", all=True)) == 2
        assert len(again.images()) == 2


def test_an_image_without_a_name_is_an_entry_without_one(store: Store, tmp_path: Path) -> None:
    image = put(store, tmp_path, "app:1")
    store.tag("app:1", "app:2")
    store.export_image(image.digest, f"oci:{tmp_path}/out")
    assert make.entries(tmp_path / "out") == {None: image.digest}
    store.export_image("app:1", f"oci:{tmp_path}/out")
    assert make.entries(tmp_path / "out") == {"1": image.digest}


def test_a_damaged_blob_in_the_target_is_made_good(store: Store, tmp_path: Path) -> None:
    image = put(store, tmp_path, "app:1")
    store.export_image("app:1", f"oci:{tmp_path}/out")
    for digest, data in image.all.items():
        path = tmp_path / "out/blobs" / digest.replace(":", "/")
        for bad in (b"", data[:-1], data + b"x", bytes(len(data))):
            path.write_bytes(bad)
            store.export_image("app:1", f"oci:{tmp_path}/out")
            assert path.read_bytes() == data


def test_a_directory_that_is_no_layout_is_left_alone(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "app:1")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    with pytest.raises(InvalidInputError, match="neither empty"):
        store.export_image("app:1", f"oci:{tmp_path}/home")
    assert names(tmp_path / "home") == ["letter"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="exists"):
        store.export_image("app:1", f"oci:{tmp_path}/file")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"manifests":{}}', b'{"manifests":[1]}'])
def test_a_damaged_index_in_the_target_is_not_overwritten(
    store: Store, tmp_path: Path, data: bytes
) -> None:
    put(store, tmp_path, "app:1")
    out = make.layout(tmp_path / "out", (make.image(), {}))
    (out / "index.json").write_bytes(data)
    with pytest.raises(InvalidInputError):
        store.export_image("app:1", f"oci:{out}")
    assert (out / "index.json").read_bytes() == data


def test_a_cancelled_export_names_nothing_and_leaves_no_half_blob(
    store: Store, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    image = make.image(*(make.tar({f"{i}": os.urandom(2_000_000)}) for i in range(4)))
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (image, {}))}", "app:1")
    steps: list[Progress] = []

    def progress(step: Progress) -> None:
        steps.append(step)
        if len(steps) == 3:
            raise Stop

    with pytest.raises(Stop):
        store.export_image("app:1", f"oci:{tmp_path}/out", progress=progress)
    assert make.entries(tmp_path / "out") == {}
    for digest, data in make.read(tmp_path / "out").items():
        assert digest_of(data) == digest
    assert not [n for n in os.listdir(tmp_path / "out") if n.startswith(".")]
    steps.clear()
    with pytest.raises(Stop):
        store.export_image("app:1", f"oci-archive:{tmp_path}/a.tar", progress=progress)
    assert not list(tmp_path.glob("a.tar*"))


def test_leftovers_of_a_killed_export_are_swept(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "app:1")
    store.export_image("app:1", f"oci:{tmp_path}/out")
    (tmp_path / "out/.layerstore-1-dead").write_text("half")
    store.export_image("app:1", f"oci:{tmp_path}/out")
    assert not [n for n in os.listdir(tmp_path / "out") if n.startswith(".")]


def test_damage_in_the_store_is_never_given_out(store: Store, tmp_path: Path) -> None:
    image = make.image(make.tar({"a": os.urandom(900_000)}))
    where = f"oci:{make.layout(tmp_path / 'in', (image, {}))}"
    store.import_image(where, "app:1", defer=True)
    (raw,) = [p for p in (tmp_path / "the-store/raw").rglob("*") if p.is_file()]
    os.chmod(raw, 0o600)
    with open(raw, "r+b") as f:
        f.seek(500_000)
        f.write(b"damage")
    with pytest.raises(CorruptError):
        store.export_image("app:1", f"oci:{tmp_path}/out")
    assert make.entries(tmp_path / "out") == {}
    assert not set(make.read(tmp_path / "out")) - set(image.all)
    for kind in ("oci-archive", "docker-archive"):
        with pytest.raises(CorruptError):
            store.export_image("app:1", f"{kind}:{tmp_path}/x.tar")
    assert not list(tmp_path.glob("x.tar*"))


# ---- several writers --------------------------------------------------------------------------


def _export(store: str, out: str, tags: list[str], meeting: object) -> None:
    with layerstore.open(store) as opened:
        meeting.wait(30)  # type: ignore[attr-defined]
        for tag in tags:
            opened.export_image("app:1", f"oci:{out}:{tag}")


def test_two_processes_into_one_layout_lose_no_tag(store: Store, tmp_path: Path) -> None:
    image = put(store, tmp_path, "app:1")
    out = tmp_path / "out"
    context = multiprocessing.get_context("spawn")
    meeting = context.Barrier(2)
    tags = [[f"{who}-{n}" for n in range(20)] for who in "ab"]
    workers = [
        context.Process(target=_export, args=(store.path, str(out), mine, meeting)) for mine in tags
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert make.entries(out) == {tag: image.digest for mine in tags for tag in mine}
    assert make.read(out) == image.all


def test_a_foreign_writer_between_our_read_and_our_rename_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = LayoutWriter(str(tmp_path / "out"))
    index = tmp_path / "out/index.json"
    foreign = make.image(salt="foreign").desc(**make.tagged("theirs"))
    merge = layout_writer.merge
    rounds = []

    def interrupted(*args: object) -> object:
        rounds.append(args)
        if len(rounds) == 1:
            index.write_bytes(make.dump({"schemaVersion": 2, "manifests": [foreign]}))
        return merge(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(layout_writer, "merge", interrupted)
    ours = make.image()
    writer.commit([Entry(Descriptor(ours.digest, len(ours.data), ours.media_type), "ours", None)])
    assert len(rounds) == 2
    assert make.entries(tmp_path / "out") == {"theirs": foreign["digest"], "ours": ours.digest}


def test_one_name_cannot_be_given_to_two_images(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "app:1")
    put(store, tmp_path, "app:2")
    with pytest.raises(InvalidInputError):
        store.export_images(["app:1", "app:2"], f"oci:{tmp_path}/out:x")
    with pytest.raises(LayerstoreError):
        store.export_images(["app:1", "nothing"], f"oci:{tmp_path}/out")
    assert not (tmp_path / "out").exists()
