"""The same tree as other tools make of the same layers: umoci unpack, and tar x and bsdtar of the
flattened tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import stores
from checkout_trees import DIR, LINK, Item, Seen, checkout, put_layers, snapshot, tar
from layer_stacks import NAMES, Maker

STACKS = int(os.environ.get("LAYERSTORE_ORACLES", "45"))
PLAIN = (
    "whiteout", "opaque", "link in a layer", "link across layers", "type change", "directory again",
    "duplicate", "implicit directory", "symlink", "device", "fifo", "sparse", "pyc", "empty file",
    "set-id", "fraction of a second", "xattr", "odd name",
)  # fmt: skip
"""What every tool takes."""
ALL = (*PLAIN, "opaque root", "file to directory", "directory to file", "through a symlink",
       "xattr of bsdtar")  # fmt: skip


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    with stores.opened(str(tmp_path_factory.mktemp("oracles") / "store")) as opened:
        yield opened


def with_parents(layers: list[list[Item]]) -> list[list[Item]]:
    """Every directory on the way gets an entry of its own: what is not said, tools make up
    differently. Whiteouts come first, as diffs write them."""
    out = []
    for items in layers:
        fresh: list[Item] = []
        seen: set[str] = set()
        # umoci takes whiteouts in their order; a layer that a diff has written is like that, too.
        ordered = sorted(items, key=lambda i: ".wh." not in i.name)
        for item in ordered:
            parts = item.name.strip("/").split("/")
            for n in range(1, len(parts)):
                folder = "/".join(parts[:n])
                if folder not in seen and folder != ".":
                    seen.add(folder)
                    fresh.append(Item(folder, DIR, mode=0o755, mtime=12))
            seen.add(item.name.strip("/"))
            fresh.append(item)
        out.append([Item("./", DIR, mode=0o755, mtime=3), *fresh])
    return out


def layout(path: Path, layers: list[bytes]) -> Path:
    """An OCI layout with one image, tagged `v`."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = stores.sha256(data)
        (blobs / digest[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    rows = [blob(layer, stores.TAR) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [row["digest"] for row in rows]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": stores.MANIFEST,
        "config": blob(json.dumps(config).encode(), stores.CONFIG),
        "layers": rows,
    }
    entry = blob(json.dumps(manifest).encode(), stores.MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "v"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return path


def often(counts: Counter[str], features: Sequence[str]) -> None:
    """Every feature came up a hundred times, or the test has shown nothing about it."""
    print(dict(sorted(counts.items())))
    assert {name: counts[name] for name in features if counts[name] < 100} == {}


def clashes(layers: list[list[Item]]) -> bool:
    """Whether a name is a directory here and something else there, or a link stands in a path: umoci
    refuses such layers or follows the link; the plain model and overlayfs are the oracles for these."""
    folders: set[str] = set()
    others: set[str] = set()
    for items in layers:
        for item in items:
            name = item.name.strip("/")
            parts = name.split("/")
            if item.type == LINK and item.link == name:
                return True  # umoci removes the name before it looks for what it means
            folders.update("/".join(parts[:n]) for n in range(1, len(parts)))
            (folders if item.type == DIR else others).add(name)
    return bool(folders & others)


def without_directory_times(found: dict[str, Seen]) -> dict[str, Seen]:
    """umoci removes what a whiteout hides after it has set its directory's time."""
    return {n: s._replace(mtime=0) if s.type == "dir" else s for n, s in found.items()}


def without_links_of_devices(found: dict[str, Seen]) -> dict[str, Seen]:
    """tar keeps no hard links of fifos and devices."""
    return {
        n: s if s.type in ("file", "symlink") else s._replace(same="") for n, s in found.items()
    }


def test_umoci_unpack_makes_the_same_tree(content, tmp_path):
    counts: Counter[str] = Counter()
    done, seed = 0, 0
    while done < STACKS:
        seed += 1
        maker = Maker(seed, plain=True, apart=True, most=80, hidden=16, rooted=0.5)
        for _ in range(3):
            maker.layer()
        if clashes(maker.layers):
            continue
        done += 1
        counts.update(maker.model.counts)
        raw = [tar(items) for items in with_parents(maker.layers)]
        work = tmp_path / f"stack{seed}"
        layout(work / "oci", raw)
        subprocess.run(
            ["umoci", "unpack", "--image", f"{work}/oci:v", work / "bundle"],
            check=True, capture_output=True,
        )  # fmt: skip
        checkout(content, put_layers(content, raw), work / "ours")
        theirs = without_directory_times(snapshot(work / "bundle/rootfs"))
        assert without_directory_times(snapshot(work / "ours")) == theirs, f"seed {seed}"
        shutil.rmtree(work)
    often(counts, PLAIN)


@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_tar_of_the_flattened_tree_extracts_to_the_same(content, tmp_path, tool):
    # bsdtar takes no names that are not of the locale's encoding.
    names = NAMES if tool == "tar" else [n for n in NAMES if n != "\udcff"]
    counts: Counter[str] = Counter()
    for seed in range(25):
        maker = Maker(seed, names=names, most=80, hidden=32, rooted=0.5)
        digests = []
        for _ in range(6):
            digests += put_layers(content, [tar(maker.layer())])
        counts.update(maker.model.counts)
        ours, flat, theirs = (tmp_path / f"{x}{seed}" for x in ("ours", "flat", "theirs"))
        checkout(content, digests, ours)
        theirs.mkdir()
        subprocess.run(
            ["tar", "--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner",
             "-C", ours, "-cf", flat, "."], check=True,
        )  # fmt: skip
        options = ["--xattrs", "--xattrs-include=*"] if tool == "tar" else ["--xattrs"]
        subprocess.run([tool, "-x", *options, "--numeric-owner", "-p", "-C", theirs, "-f", flat],
            check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})  # fmt: skip
        seen = without_links_of_devices(snapshot(ours))
        their_seen = without_links_of_devices(snapshot(theirs))
        if (
            tool == "bsdtar"
        ):  # it sets the time of the directory that it stands in, then writes there
            their_seen[""] = their_seen[""]._replace(mtime=seen[""].mtime)
        assert their_seen == seen, f"seed {seed}"
        (again,) = put_layers(content, [flat.read_bytes()])
        checkout(content, [again], tmp_path / f"again{seed}")
        again_seen = without_links_of_devices(snapshot(tmp_path / f"again{seed}"))
        assert again_seen == seen, f"seed {seed}"
    often(counts, ALL)
