"""Compressed layers through import and optimize: the same image as before, and damage stays damage.

Through the public face. The oracle for what decodes is Python's zlib.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import oci_make as make
import pytest
import stores
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


# ---- a bomb -----------------------------------------------------------------------------------

BOMB = 512
"""MiB of content."""
MAX_GROWTH = 192
"""MiB that the peak may grow by on two cores: a span for each and two more, up to 35 MB each, and
what is made of them. It is 110 for a bomb of 128 MiB, and for one of 512."""

CHILD = """
import os, sys
import layerstore

# Two cores, whatever the machine has: each has a span of its own.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])

def peak():
    # Not ru_maxrss, which begins with what the parent had.
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) >> 10 for line in f if line.startswith("VmHWM:"))

path, layout, how = sys.argv[1:]
with layerstore.open(path) as store:
    before = peak()
    store.import_image(f"oci:{layout}:bomb", "bomb", defer=how == "deferred")
    store.optimize()
print(peak() - before)
"""


def bomb() -> make.Image:
    """A layer of zeros, a thousandth as large as its tar; neither is in memory as a whole."""
    info = tarfile.TarInfo("zeros")
    info.size = BOMB << 20
    machine, content, blob = zlib.compressobj(9, wbits=31), hashlib.sha256(), bytearray()
    for piece in (info.tobuf(), *[bytes(1 << 20)] * BOMB, bytes(10240)):
        content.update(piece)
        blob += machine.compress(piece)
    blob += machine.flush()
    assert 1000 * len(blob) < info.size
    diff_ids = [f"sha256:{content.hexdigest()}"]
    image = image_of((b"", bytes(blob)))
    config = {"rootfs": {"type": "layers", "diff_ids": diff_ids}}
    named = make.image(b"", config=config, compress=False)
    (old, layer), new = image.blobs, next(iter(named.blobs))
    value = json.loads(image.data)
    value["config"] = make.desc(named.blobs[new], mediatypes.OCI_CONFIG)
    blobs = {new: named.blobs[new], layer: image.blobs[layer]}
    assert old != new
    return make.Image(make.dump(value), image.media_type, blobs)


@pytest.mark.parametrize("how", ["import", "deferred"])
def test_a_bomb_of_a_thousandfold_takes_no_memory(tmp_path: Path, how: str) -> None:
    image = bomb()
    make.layout(tmp_path / "in", (image, make.tagged("bomb")))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "s"), str(tmp_path / "in"), how],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MAX_GROWTH
    with layerstore.open(tmp_path / "s") as store:
        assert [blob.forms for blob in store.blobs() if "gzip" in blob.media_type] == [("gzip",)]
        assert exported(store, "bomb", tmp_path / "out") == image.all


# ---- the same as before -----------------------------------------------------------------------


def files_in(root: Path) -> dict[str, tuple[object, ...]]:
    """A tree on disk: kind and mode, owner and content of each name, and time of those that a layer
    gives one."""
    out: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        found = path.lstat()
        content = os.readlink(path) if path.is_symlink() else None
        if path.is_file() and not path.is_symlink():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        name = str(path.relative_to(root))
        time = 0 if path.is_dir() else found.st_mtime_ns
        out[name] = (found.st_mode, found.st_uid, found.st_gid, time, content)
    return out


def seen(store: Store, path: Path) -> dict[str, object]:
    """What users get of the image: its blobs, its list of files, their contents, a checkout."""
    image = store.image("v1")
    names = [entry.path for entry in image.entries() if entry.type == "file"]
    path.mkdir()
    store.checkout("v1", path / "root", reflink=False)
    return {
        "blobs": exported(store, "v1", path / "out"),
        "entries": list(image.entries()),
        "lower": list(image.entries(layer=0)),
        "files": {name.strip("/"): b"".join(image.open(name)) for name in names},
        "tree": files_in(path / "root"),
        "warnings": image.info.warnings,
        "config": image.config_bytes,
    }


def test_all_is_the_same_over_optimized_blobs(tmp_path: Path) -> None:
    first = {
        "etc/gone": b"not for long",
        "usr/words": stores.words(1, 1_500_000),
        "usr/noise": stores.noise(2, 300_000),
        "usr/zeros": bytes(700_000),
    }
    second = {"etc/.wh.gone": b"", "usr/words": stores.words(3, 200_000), "usr/empty": b""}
    tars = make.tar(first), make.tar(second)
    blobs = zlib.compress(tars[0], 9, 31), gzip.compress(tars[1], 1, mtime=3) + bytes(512)
    image = image_of(*zip(tars, blobs, strict=True))
    make.layout(tmp_path / "in", (image, make.tagged("v1")))
    where = tmp_path / "s"
    with layerstore.open(where) as store:
        store.import_image(f"oci:{tmp_path}/in:v1", "v1", defer=True)
        before = seen(store, tmp_path / "before")
        assert before["blobs"] == image.all
        left = {**first, **second}
        for name in ("etc/gone", "etc/.wh.gone"):
            del left[name]
        assert before["files"] == left
        assert {blob.result for blob in store.optimize().blobs} == {"gzip"}
        for blob in blobs:
            assert store.stat(digest_of(blob)).forms == ("gzip",)
        assert seen(store, tmp_path / "optimized") == before
    with layerstore.open(where) as store:
        report = store.gc(aggressive=True)
        assert report.removed_blobs == 0
        assert store.check(full=True).ok
        assert seen(store, tmp_path / "collected") == before
    shutil.rmtree(where / "index")
    assert layerstore.rebuild_index(where).ok
    with layerstore.open(where) as store:
        for blob in blobs:
            assert store.stat(digest_of(blob)).forms == ("gzip",)
        assert store.check(full=True).ok
        assert seen(store, tmp_path / "rebuilt") == before
        store.untag("v1")
    with layerstore.open(where) as store:
        store.gc(aggressive=True)
        assert list(store.blobs()) == []


def test_import_optimizes_defer_leaves_it_and_names_choose(store: Store, tmp_path: Path) -> None:
    """What the face promises of optimize: when it happens, of which images, what it says meanwhile."""
    trees = [make.tar({"words": stores.words(n, 200_000)}) for n in range(3)]
    blobs = [gzip.compress(tree, 6, mtime=0) for tree in trees]
    for n, (tree, blob) in enumerate(zip(trees, blobs, strict=True)):
        make.layout(tmp_path / f"in{n}", (image_of((tree, blob)), make.tagged("v1")))
    digests = [digest_of(blob) for blob in blobs]
    store.import_image(f"oci:{tmp_path}/in0:v1", "now:1")
    store.import_image(f"oci:{tmp_path}/in1:v1", "later:1", defer=True)
    store.import_image(f"oci:{tmp_path}/in2:v1", "later:2", defer=True)
    assert [store.stat(d).forms for d in digests] == [("gzip",), ("raw",), ("raw",)]

    seen: list[layerstore.Progress] = []
    report = store.optimize(["later:1"], max_corrections=0.01, progress=seen.append)
    (blob,) = report.blobs
    assert (blob.digest, blob.bytes, blob.result, blob.reason) == (
        digests[1],
        len(blobs[1]),
        "gzip",
        "",
    )
    assert blob.encoder
    assert 0 < blob.recipe_bytes <= 0.01 * blob.bytes
    assert report.complete
    assert report.freed_bytes >= blob.bytes
    assert report.seconds > 0
    assert {p.stage for p in seen} == {"optimize"}
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total
    assert [store.stat(d).forms for d in digests] == [("gzip",), ("gzip",), ("raw",)]

    report = store.optimize(max_time=0)
    assert not report.blobs
    assert not report.complete
    assert store.stat(digests[2]).forms == ("raw",)
    assert [b.digest for b in store.optimize().blobs] == [digests[2]]
    for digest, data in zip(digests, blobs, strict=True):
        with store.open_blob(digest) as file:
            assert file.read() == data
