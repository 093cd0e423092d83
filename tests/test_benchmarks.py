"""The benchmarks run: sections that need no peer, on a layout of a megabyte, and what they write."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def put(layout: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def tar_of(files: dict[str, bytes], mtime: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Tags old, again (the same content at another time) and other, each of one gzip layer."""
    layout = tmp_path / "layout"
    r = random.Random(1)
    files = {f"srv/{n}": r.randbytes(r.randrange(1, 60_000)) for n in range(40)}
    other = {f"opt/{n}": r.randbytes(9_000) for n in range(40)}
    entries = []
    for tag, content, mtime in (("old", files, 1), ("again", files, 2), ("other", other, 3)):
        tar = tar_of(content, mtime)
        diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
        config = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
        media = "application/vnd.oci.image"
        layer = put(layout, gzip.compress(tar), f"{media}.layer.v1.tar+gzip")
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{media}.manifest.v1+json",
            "config": put(layout, json.dumps(config).encode(), f"{media}.config.v1+json"),
            "layers": [layer],
        }
        entry = put(layout, json.dumps(manifest).encode(), f"{media}.manifest.v1+json")
        entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
        entries.append(entry)
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return layout


def test_sections_run_alone_and_their_results_add_up(layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for sections in ("rebuild,gc,accounting", "known"):
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks", "--corpus", layout, "--out", out),
                *("--sections", sections, "--rounds", "1"),
                *("--rebuilt", "old,again", "--drop", "old,other"),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
    results = json.loads((out / "results.json").read_text())
    assert set(results["sections"]) == {"rebuild", "gc", "accounting", "known"}
    figures = {f["name"]: f for part in results["sections"].values() for f in part["figures"]}
    assert figures["gc --aggressive: dead bytes back"]["detail"]["check --full"] is True
    table = (out / "results.md").read_text()
    assert all(name in table for name in figures)
    assert not list(out.glob("work-*"))
