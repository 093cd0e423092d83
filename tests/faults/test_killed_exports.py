"""`kill -9` at random moments of an export that compresses: nothing half-stored, the next works."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import stores

import layerstore

TURNS = 24


def layers() -> list[tuple[bytes, str]]:
    """Three layers of some pieces each, with content that compresses."""
    out = []
    for number in range(3):
        files = {f"f{i}": stores.words(100 * number + i, 700_000) for i in range(6)}
        out.append((stores.tar_of(files), stores.TAR))
    return out


def whole(layout: Path, tars: list[tuple[bytes, str]]) -> bool:
    """Whether a layout has the image; what it lists must be there, every byte."""
    index = layout / "index.json"
    listed = json.loads(index.read_text())["manifests"] if index.exists() else []
    if not listed:
        return False
    with layerstore.open(layout.parent / "other", timeout=20) as other:
        other.import_image(f"oci:{layout}:app", name="app:1", strict=True)
        found = other.image("app:1").layers
        assert [one.diff_id for one in found] == [stores.sha256(data) for data, _ in tars]
        assert other.check(full=True).ok
    return True


def test_kill_at_any_moment_of_an_export(fast_path: Path) -> None:
    path, layout = str(fast_path / "s"), fast_path / "layout"
    tars = layers()
    with stores.opened(path) as content:
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [stores.sha256(data) for data, _ in tars]},
            }
        ).encode()
        manifest, edges = stores.manifest_of(config, tars)
        with content.operation() as op:
            for data, kind in ((config, stores.CONFIG), *tars):
                op.put(data, media_type=kind)
            digest = op.put(manifest, media_type=stores.MANIFEST, edges=edges).digest
            ref = layerstore.Ref("app:1", digest, len(manifest), stores.MANIFEST)
            op.commit_refs({"app:1": ref})
    command = [sys.executable, "-m", "layerstore", "--store", path, "export"]
    command += ["--compression", "gzip", "app:1", f"oci:{layout}:app"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    span = time.monotonic() - started
    assert whole(layout, tars)
    expected = {file.name for file in (layout / "blobs/sha256").iterdir()}
    subprocess.run(["rm", "-rf", str(layout)], check=True)
    source = random.Random(8)
    ends: Counter[str] = Counter()
    for turn in range(TURNS):
        if turn % 3 == 0:
            # From nothing: what earlier ones made is gone, half-made layouts too.
            with layerstore.open(path, timeout=20) as store:
                store.gc(aggressive=True)
            subprocess.run(["rm", "-rf", str(layout)], check=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # The first quarter or so is the start of Python.
        time.sleep(span * (0.15 + 0.85 * source.random()))
        process.kill()
        killed = process.wait() != 0
        with layerstore.open(path, timeout=20) as store:
            assert store.check(full=turn % 4 == 0).ok
            assert {one.name for one in store.images()} == {"app:1"}
            for blob in store.blobs():
                with store.open_blob(blob.digest) as file:
                    assert sum(map(len, file.chunks())) == blob.bytes
            left = sum(1 for blob in store.blobs() if "gzip" in blob.forms)
        there = whole(layout, tars)
        if not killed:
            assert there
        ends["done" if not killed else "in the layout" if there or left else "early"] += 1
    assert ends["early"], ends
    assert ends["in the layout"], ends
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert whole(layout, tars)
    # The same bytes as if nobody had been killed.
    assert {file.name for file in (layout / "blobs/sha256").iterdir()} == expected
    with layerstore.open(path, timeout=20) as store:
        store.gc(aggressive=True)
        assert not any("gzip" in blob.forms for blob in store.blobs())
        assert store.check(full=True).ok
