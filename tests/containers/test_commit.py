"""commit: what a new image is made of, the same for the same input, and taken by other tools."""

from __future__ import annotations

import json
import os
from pathlib import Path

import making
import pytest
from making import EPOCH, image, tree

import layerstore

OCI = "application/vnd.oci.image."


def config(store: layerstore.Store, name: str) -> dict:
    return json.loads(store.image(name).config_bytes)


def manifest(store: layerstore.Store, name: str) -> dict:
    return json.loads(store.image(name).manifest_bytes)


def test_every_change_of_the_config(store):
    image(store, "base:1", cmd=["old"], env={"A": "1", "B": "2"}, labels={"x": "1", "y": "2"})
    store.commit(
        "base:1",
        "app:1",
        entrypoint=["/bin/app", "run"],
        cmd=["--fast"],
        env={"B": "two", "C": "3=x"},
        labels={"y": "two", "z": "3"},
        user="bob:users",
        workdir="/srv",
        ports=["80", "53/udp"],
        volumes=["/data"],
        stop_signal="SIGINT",
        author="A. Uthor",
        message="why",
    )
    found = config(store, "app:1")
    assert found["config"] == {
        "Entrypoint": ["/bin/app", "run"],
        "Cmd": ["--fast"],
        "Env": ["A=1", "B=two", "C=3=x"],
        "Labels": {"x": "1", "y": "two", "z": "3"},
        "User": "bob:users",
        "WorkingDir": "/srv",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGINT",
    }
    assert found["author"] == "A. Uthor"
    step = found["history"][-1]
    assert (step["comment"], step["author"], step["empty_layer"]) == ("why", "A. Uthor", True)
    assert len(found["history"]) == 4
    assert manifest(store, "app:1")["layers"] == manifest(store, "base:1")["layers"]


def test_an_entrypoint_alone_takes_the_command_away_and_empty_values_their_field(store):
    image(store, "base:1", cmd=["old"], user="bob", workdir="/x")
    store.commit("base:1", "app:1", entrypoint=["/e"])
    assert config(store, "app:1")["config"] == {
        "Entrypoint": ["/e"],
        "User": "bob",
        "WorkingDir": "/x",
    }
    store.commit("app:1", "app:2", entrypoint=[], user="", workdir="")
    assert config(store, "app:2")["config"] == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"ports": ["0"]},
        {"ports": ["65536"]},
        {"ports": ["80/icmp"]},
        {"ports": ["90-80"]},
        {"ports": ["1-65536"]},
        {"ports": ["http"]},
        {"env": {"": "x"}},
        {"env": {"a=b": "x"}},
        {"labels": {"": "x"}},
        {"workdir": "relative"},
        {"volumes": ["relative"]},
    ],
)
def test_what_no_config_can_say_is_refused(store, changes):
    image(store)
    with pytest.raises(layerstore.InvalidInputError):
        store.commit("app:1", "app:2", **changes)
    assert [one.name for one in store.images()] == ["app:1"]


def test_layers_and_an_upper_directory_on_top(store, tmp_path):
    image(store, "base:1", [making.BASE])
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    (upper / "d/new").write_text("new")
    os.mknod(upper / "gone", 0o020000, 0)
    layer = making.put(store, *making.TOP)
    made = store.commit("base:1", "app:1", layers=[layer], upper=upper)
    assert made.digest == store.image("app:1").ref.digest
    found = config(store, "app:1")
    assert [one.digest for one in store.image("app:1").layers][1] == layer
    assert [one.digest for one in store.image("app:1").layers] == found["rootfs"]["diff_ids"]
    assert len(found["history"]) == 3
    names = {e.path for e in store.image("app:1").entries()}
    assert {"d/new", "d/one", "etc/motd"} <= names
    assert not {n for n in names if n.startswith("gone")}
    base = manifest(store, "app:1")["annotations"]["org.opencontainers.image.base.digest"]
    assert base == store.image("base:1").ref.digest


def test_the_same_input_gives_the_same_digest(tmp_path, monkeypatch):
    digests = set()
    for n in range(2):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(EPOCH))
        with layerstore.open(tmp_path / f"store{n}") as store:
            base = [making.BASE, making.MIDDLE]
            image(store, "base:1", base, labels={"b": "1", "a": "2"} if n else {"a": "2", "b": "1"})
            upper = tmp_path / f"upper{n}"
            upper.mkdir(mode=0o755)
            for name in ("a", "b") if n else ("b", "a"):
                (upper / name).write_text(name)
            digests.add(store.commit("base:1", "app:1", upper=upper, message="m").digest)
            digests.add(store.commit("base:1", "app:2", upper=upper, message="m").digest)
            assert config(store, "app:1")["created"] == "2001-09-09T01:46:40Z"
            if not n:
                monkeypatch.setenv("SOURCE_DATE_EPOCH", "no time")
                with pytest.raises(layerstore.InvalidInputError, match="SOURCE_DATE_EPOCH"):
                    store.commit("base:1", "app:3")
    assert len(digests) == 1


def test_a_docker_image_becomes_an_oci_image(store, tmp_path):
    image(store, "base:1", [making.BASE, making.TOP])
    archive = tmp_path / "docker.tar"
    store.export_image("base:1", f"oci:{tmp_path}/layout:x")
    making.run(
        "skopeo", "copy", "--format", "v2s2", f"oci:{tmp_path}/layout:x", f"dir:{tmp_path}/dir"
    )
    making.run("skopeo", "copy", f"dir:{tmp_path}/dir", f"docker-archive:{archive}:docker:1")
    store.import_image(f"docker-archive:{archive}", "docker:1")
    before = manifest(store, "docker:1")
    store.commit("docker:1", "app:1", env={"A": "b"})
    after = manifest(store, "app:1")
    assert "docker" in json.dumps(before)
    assert "docker" not in json.dumps(after)
    assert after["mediaType"] == f"{OCI}manifest.v1+json"
    assert after["config"]["mediaType"] == f"{OCI}config.v1+json"
    assert {one["mediaType"].partition("+")[0] for one in after["layers"]} == {f"{OCI}layer.v1.tar"}
    assert [x["digest"] for x in after["layers"]] == [x["digest"] for x in before["layers"]]
    assert not {"container", "container_config", "docker_version"} & set(config(store, "app:1"))


def test_what_a_config_says_beside_stays(store, tmp_path):
    image(store, "base:1", [making.BASE])
    odd = json.loads(store.image("base:1").config_bytes)
    odd["x-own"] = {"deep": [1, "é"]}
    odd["config"]["Healthcheck"] = {"Test": ["CMD", "true"]}
    store.export_image("base:1", f"oci:{tmp_path}/layout:x")
    from test_snapshots import rewrite_config

    old = store.image("base:1").config_bytes
    # As long as before, so that the sizes in the manifest hold: padded with blanks.
    new = json.dumps(odd).encode()
    rewrite_sizes(tmp_path / "layout", len(old), len(new))
    rewrite_config(tmp_path / "layout", old, new)
    store.import_image(f"oci:{tmp_path}/layout:x", "odd:1")
    store.commit("odd:1", "app:1", user="0")
    found = config(store, "app:1")
    assert found["x-own"] == odd["x-own"]
    assert found["config"]["Healthcheck"] == odd["config"]["Healthcheck"]


def rewrite_sizes(layout: Path, old: int, new: int) -> None:
    import hashlib

    index = (layout / "index.json").read_bytes()
    for blob in (layout / "blobs/sha256").iterdir():
        data = blob.read_bytes()
        if data.startswith(b"{") and b'"layers"' in data and b'"schemaVersion"' in data:
            changed = data.replace(f'"size":{old}'.encode(), f'"size":{new}'.encode(), 1)
            names = [hashlib.sha256(x).hexdigest() for x in (data, changed)]
            (layout / "blobs/sha256" / names[1]).write_bytes(changed)
            index = index.replace(names[0].encode(), names[1].encode())
            index = index.replace(f'"size":{len(data)}'.encode(), f'"size":{len(changed)}'.encode())
    (layout / "index.json").write_bytes(index)


@pytest.mark.parametrize("what", ["commit", "squash", "snapshot"])
def test_other_tools_take_what_was_committed(store, tmp_path, what):
    image(store, "base:1", making.LAYERS[:1])
    layers = [making.put(store, *one) for one in making.LAYERS[1:]]
    if what == "snapshot":
        store.commit("base:1", "app:0", layers=layers)
        store.snapshots.prepare("k", "app:0")
        with making.mounted(store, "k", tmp_path / "m") as root:
            (root / "new").write_text("new")
            (root / "d/one").unlink()
        store.snapshots.commit("k", "app:1", user="bob")
    else:
        store.commit("base:1", "app:1", layers=layers, squash=what == "squash")
    store.export_image("app:1", f"oci:{tmp_path}/layout:x")
    making.run("umoci", "unpack", "--image", f"{tmp_path}/layout:x", tmp_path / "umoci")
    making.run("skopeo", "copy", f"oci:{tmp_path}/layout:x", f"dir:{tmp_path}/dir")
    making.run("skopeo", "inspect", "--config", f"oci:{tmp_path}/layout:x")
    store.checkout("app:1", tmp_path / "out")
    assert tree(tmp_path / "umoci/rootfs") == tree(tmp_path / "out")


def test_a_base_or_layer_that_is_none(store):
    image(store)
    notes = store.put(b"just text").digest
    with pytest.raises(layerstore.NotFoundError):
        store.commit("none:1", "app:2")
    with pytest.raises(layerstore.NotFoundError):
        store.commit("app:1", "app:2", layers=["sha256:" + "0" * 64])
    with pytest.raises(layerstore.InvalidInputError):
        store.commit("app:1", "app:2", layers=[notes])
    with pytest.raises(layerstore.InvalidInputError):
        store.commit("app:1", "not a name")
