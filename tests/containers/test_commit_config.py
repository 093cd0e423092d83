"""commit changes a config as other tools do: each field beside `buildah config` and `umoci config`.

What they do otherwise is named where it is taken out, and nothing else is let pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import making
import peers
import pytest
from test_commit import rewrite_sizes
from test_snapshots import rewrite_config

import layerstore

BASE: dict[str, Any] = {
    "cmd": ["old", "x"],
    "entrypoint": ["/e", "0"],
    "env": {"PATH": "/bin", "A": "1", "B": "2"},
    "labels": {"x": "1", "y": "2"},
    "user": "bob",
    "workdir": "/x",
    "ports": ["80"],
    "volumes": ["/v"],
    "stop_signal": "SIGTERM",
    "author": "Old",
}
CREATED = "2001-09-09T01:46:40Z"
EVERYTHING: dict[str, Any] = {
    "cmd": ["new", "--fast", "a b"],
    "entrypoint": ["/bin/app", "run"],
    "env": {"B": "two", "C": "3=x"},
    "labels": {"y": "two", "z": "3"},
    "user": "bob:users",
    "workdir": "/srv",
    "ports": ["81/tcp", "53/udp"],
    "volumes": ["/data"],
    "stop_signal": "SIGINT",
    "author": "A. Uthor",
    "message": "why",
    "created_by": "a step",
}
CHANGES: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "cmd": {"cmd": ["new", "--fast", "a b", "q\"uo'te", "é"]},
    "no cmd": {"cmd": []},
    "entrypoint and cmd": {"entrypoint": ["/n", "a b"], "cmd": ["c"]},
    "env replaced": {"env": {"A": "one"}},
    "env added": {"env": {"C": "c", "D": "=d=", "E": "", "F": "a b é"}},
    "env of a name": {"env": {"F": "$A"}},
    "env both": {"env": {"Z": "z", "PATH": "/usr/bin:/bin", "B": ""}},
    "label replaced": {"labels": {"x": "one"}},
    "label added": {"labels": {"org.example.a-b": "a=b c", "empty": ""}},
    "user": {"user": "0"},
    "user and group": {"user": "1000:100"},
    "no user": {"user": ""},
    "workdir": {"workdir": "/a b/é"},
    "no workdir": {"workdir": ""},
    "ports": {"ports": ["80/tcp", "80/udp", "65535/tcp"]},
    "volumes": {"volumes": ["/v", "/data", "/a b"]},
    "stop signal": {"stop_signal": "9"},
    "no stop signal": {"stop_signal": ""},
    "author": {"author": "É. <e@example.org>"},
    "message": {"message": "why"},
    "created by": {"created_by": "RUN true"},
}


def shown(layout: Path, tag: str) -> dict[str, Any]:
    """The config of an image in a layout."""
    found: dict[str, Any] = json.loads(
        making.run("skopeo", "inspect", "--raw", "--config", f"oci:{layout}:{tag}")
    )
    return found


def base(store: layerstore.Store, tmp_path: Path) -> Path:
    """A layout with the base as `base`; in the store it is `base:1`."""
    making.image(store, "base:1", [making.BASE, making.TOP], **BASE)
    store.export_image("base:1", f"oci:{tmp_path}/layout:base")
    return tmp_path / "layout"


def ours(store: layerstore.Store, layout: Path, number: int, changes: dict[str, Any]) -> Any:
    store.commit("base:1", f"ours:{number}", source_date_epoch=making.EPOCH, **changes)
    store.export_image(f"ours:{number}", f"oci:{layout}:ours{number}")
    return shown(layout, f"ours{number}")


def by_umoci(layout: Path, tag: str, changes: dict[str, Any]) -> dict[str, Any]:
    names = {"workdir": "workingdir", "stop_signal": "stopsignal"}
    words = ["--created", CREATED, "--history.created", CREATED]
    words += ["--history.created_by", changes.get("created_by", "layerstore commit")]
    for field in ("user", "workdir", "stop_signal"):
        if field in changes:
            words += [f"--config.{names.get(field, field)}", changes[field]]
    for field in ("cmd", "entrypoint"):
        if changes.get(field) == []:
            words += ["--clear", f"config.{field}"]
        for word in changes.get(field, ()):
            words.append(f"--config.{field}={word}")
    for field, option in (("env", "env"), ("labels", "label")):
        for key, value in changes.get(field, {}).items():
            words.append(f"--config.{option}={key}={value}")
    for field, option in (("ports", "exposedports"), ("volumes", "volume")):
        for one in changes.get(field, ()):
            words.append(f"--config.{option}={one}")
    if "author" in changes:
        words += ["--author", changes["author"], "--history.author", changes["author"]]
    if "message" in changes:
        words += ["--history.comment", changes["message"]]
    making.run("umoci", "config", "--image", f"{layout}:base", "--tag", tag, *words)
    return shown(layout, tag)


def by_buildah(home: Path, layout: Path, tag: str, changes: dict[str, Any]) -> dict[str, Any]:
    words = ["--created-by", changes.get("created_by", "layerstore commit")]
    for field, option in (
        ("user", "user"),
        ("workdir", "workingdir"),
        ("stop_signal", "stop-signal"),
        ("author", "author"),
        ("message", "history-comment"),
    ):
        if field in changes:
            words += [f"--{option}", changes[field]]
    if "cmd" in changes:
        words += ["--cmd", json.dumps(changes["cmd"]) if changes["cmd"] else ""]
    if "entrypoint" in changes:
        words += ["--entrypoint", json.dumps(changes["entrypoint"])]
    for field, option in (("env", "env"), ("labels", "label")):
        for key, value in changes.get(field, {}).items():
            words.append(f"--{option}={key}={value}")
    for field, option in (("ports", "port"), ("volumes", "volume")):
        for one in changes.get(field, ()):
            words.append(f"--{option}={one}")
    container = peers.buildah(home, "from", f"oci:{layout}:base")
    peers.buildah(home, "config", *words, container)
    peers.buildah(
        home, "commit", "-q", "--rm", "--timestamp", str(making.EPOCH), container,
        f"oci:{layout}:{tag}",
    )  # fmt: skip
    return shown(layout, tag)


def without_author_of_step(found: dict[str, Any]) -> dict[str, Any]:
    """Of a step without an author they say that the base's author has made it, which nobody said."""
    found["history"][-1].pop("author", None)
    return found


def without_layer_of_buildah(found: dict[str, Any], layers: int) -> dict[str, Any]:
    """buildah adds an empty layer whenever it commits, where OCI has `empty_layer`; a label with its
    version; and the base's name to the step's comment."""
    (_,) = found["rootfs"]["diff_ids"][layers:]
    del found["rootfs"]["diff_ids"][layers:]
    del found["config"]["Labels"]["io.buildah.version"]
    step = found["history"][-1]
    assert "empty_layer" not in step
    step["empty_layer"] = True
    comment, found_name, _ = step.pop("comment").partition("FROM ")
    assert found_name
    if comment:
        step["comment"] = comment
    return found


@pytest.mark.needs("umoci", "skopeo")
def test_umoci_config_says_the_same(store, tmp_path):
    """The whole config: the fields that change, those that stay, and the history."""
    layout = base(store, tmp_path)
    for number, (name, changes) in enumerate(CHANGES.items()):
        mine = ours(store, layout, number, changes)
        theirs = by_umoci(layout, f"umoci{number}", changes)
        if "author" not in changes:
            without_author_of_step(theirs)
        assert mine == theirs, name
        assert mine["history"][-1]["empty_layer"] is True
        assert mine["created"] == mine["history"][-1]["created"] == CREATED


@pytest.mark.needs("root", "buildah", "skopeo")
def test_buildah_config_says_the_same(store, tmp_path, home):
    layout = base(store, tmp_path)
    for number, (name, changes) in enumerate(CHANGES.items()):
        mine = ours(store, layout, number, changes)
        theirs = by_buildah(home, layout, f"buildah{number}", changes)
        without_layer_of_buildah(theirs, len(mine["rootfs"]["diff_ids"]))
        if "author" not in changes:
            without_author_of_step(theirs)
        # It takes a variable away and adds it, so that those that are set stand last.
        for one in (mine, theirs):
            one["config"]["Env"].sort()
        if name == "env of a name":
            # It puts the variable's value in, as a Dockerfile's ENV does; umoci and we take the text.
            assert (mine["config"]["Env"].pop(2), theirs["config"]["Env"].pop(2)) == ("F=$A", "F=1")
        assert mine == theirs, name


@pytest.mark.needs("root", "buildah", "skopeo")
@pytest.mark.parametrize("entrypoint", [["/n"], []], ids=["new", "none"])
def test_an_entrypoint_alone_is_as_in_a_dockerfile(store, tmp_path, home, entrypoint):
    """The base's command goes: it was meant for another program. `buildah config` and `umoci config`
    leave it (buildah warns); a Dockerfile's ENTRYPOINT takes it away, and so do we."""
    layout = base(store, tmp_path)
    (tmp_path / "Dockerfile").write_text(
        f"FROM oci:{layout}:base\nENTRYPOINT {json.dumps(entrypoint)}\n"
    )
    (tmp_path / "context").mkdir()
    peers.buildah(
        home, "bud", "-q", "--layers=false", "--timestamp", str(making.EPOCH), "-f",
        tmp_path / "Dockerfile", "-t", f"oci:{layout}:file", tmp_path / "context",
    )  # fmt: skip
    mine = ours(store, layout, 0, {"entrypoint": entrypoint})
    theirs = shown(layout, "file")
    without_layer_of_buildah(theirs, len(mine["rootfs"]["diff_ids"]))
    assert mine["config"] == theirs["config"]
    assert "Cmd" not in mine["config"]
    if entrypoint:
        kept = by_umoci(layout, "umoci", {"entrypoint": entrypoint})["config"]
        assert {**mine["config"], "Cmd": BASE["cmd"]} == kept


@pytest.mark.needs("umoci", "skopeo")
def test_the_command_line_says_the_same(store, tmp_path):
    """Everything that its options name."""
    layout = base(store, tmp_path)
    changes = EVERYTHING
    words = ["--stop-signal", changes["stop_signal"], "--created-by", changes["created_by"]]
    for field in ("cmd", "entrypoint"):
        words += [f"--{field}", json.dumps(changes[field])]
    for field in ("user", "workdir", "author", "message"):
        words += [f"--{field}", changes[field]]
    for field, option in (("env", "env"), ("labels", "label")):
        words += [w for k, v in changes[field].items() for w in (f"--{option}", f"{k}={v}")]
    for field, option in (("ports", "port"), ("volumes", "volume")):
        words += [w for one in changes[field] for w in (f"--{option}", one)]
    subprocess.run(
        [sys.executable, "-m", "layerstore", "--store", store.path, "commit", *words,
         "base:1", "cli:1"],
        check=True, capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(making.EPOCH)},
    )  # fmt: skip
    store.export_image("cli:1", f"oci:{layout}:cli")
    assert shown(layout, "cli") == by_umoci(layout, "umoci", changes)


def test_a_variable_that_the_base_has_twice(store, tmp_path):
    """It is there once when it is set, for readers differ about which one counts; else it stays."""
    layout = base(store, tmp_path)
    old = store.image("base:1").config_bytes
    odd = json.loads(old)
    odd["config"]["Env"] = ["A=1", "B=2", "A=3", "B=4"]
    new = json.dumps(odd).encode()
    rewrite_sizes(layout, len(old), len(new))
    rewrite_config(layout, old, new)
    store.import_image(f"oci:{layout}:base", "odd:1")
    store.commit("odd:1", "odd:2", env={"A": "5", "C": "6"})
    made = json.loads(store.image("odd:2").config_bytes)["config"]
    assert made["Env"] == ["A=5", "B=2", "B=4", "C=6"]


def test_a_range_of_ports_is_each_of_them(store):
    """image-spec config.md has keys for ports only; buildah writes a range as it is given."""
    making.image(store, "base:1", [making.BASE])
    store.commit("base:1", "app:1", ports=["8000-8002", "70-70/udp"])
    made = json.loads(store.image("app:1").config_bytes)["config"]["ExposedPorts"]
    assert made == {port: {} for port in ("8000/tcp", "8001/tcp", "8002/tcp", "70/udp")}


@pytest.mark.needs("umoci", "skopeo")
def test_annotations_are_the_manifests(store, tmp_path):
    """As `umoci config --manifest.annotation` sets them, beside our note of the base."""
    layout = base(store, tmp_path)
    store.commit("base:1", "app:1", annotations={"org.example.a": "1", "b": "é =2"})
    store.export_image("app:1", f"oci:{layout}:ours")
    making.run(
        "umoci", "config", "--image", f"{layout}:base", "--tag", "theirs",
        "--manifest.annotation=org.example.a=1", "--manifest.annotation=b=é =2",
    )  # fmt: skip
    mine, theirs = (
        json.loads(making.run("skopeo", "inspect", "--raw", f"oci:{layout}:{tag}"))["annotations"]
        for tag in ("ours", "theirs")
    )
    assert (
        mine.pop("org.opencontainers.image.base.digest")
        == {i.name: i.digest for i in store.images()}["base:1"]
    )
    assert mine == theirs
    for key in ("", "org.opencontainers.image.base.digest"):
        with pytest.raises(layerstore.InvalidInputError, match="annotation"):
            store.commit("base:1", "app:2", annotations={key: "x"})


def test_the_shell_is_kept_and_goes(store):
    """Docker's field, which image-spec leaves to others: buildah ignores it for OCI images, BuildKit
    writes it as here."""
    making.image(store, "base:1", [making.BASE])
    store.commit("base:1", "app:1", shell=["/bin/ash", "-eo", "pipefail", "-c"])
    store.commit("app:1", "app:2", user="1")
    store.commit("app:2", "app:3", shell=[])
    found = [json.loads(store.image(f"app:{n}").config_bytes)["config"] for n in (1, 2, 3)]
    assert found[0]["Shell"] == found[1]["Shell"] == ["/bin/ash", "-eo", "pipefail", "-c"]
    assert "Shell" not in found[2]
