"""Section on memory: the peak of import and export with one huge layer, and with one of many files.

Both layouts are generated: content that no compressor shrinks and no store has seen (BLAKE3's
extendable output of a running number), so that every byte goes the whole way.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from benchmarks.corpus import CONFIG, LAYER, MANIFEST, REF_NAME, put_json
from benchmarks.measure import du, peak_memory
from benchmarks.report import Figure
from benchmarks.setting import Setting

BLOCK = 1 << 20
HUGE = 8 << 30
MANY = 1_000_000
LIMIT = 256.0


def _content(number: int, size: int) -> bytes:
    """`size` pseudo-random bytes, others for each number."""
    return blake3(number.to_bytes(8, "little")).digest(length=size)


def _member(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 1_700_000_000, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def huge_tar(size: int = HUGE) -> Iterator[bytes]:
    """A tar of one file of `size` bytes, a whole number of blocks."""
    yield _member("srv/model.bin", size)
    for number in range(size // BLOCK):
        yield _content(number, BLOCK)
    yield bytes(10240)


def many_tar(count: int = MANY) -> Iterator[bytes]:
    """A tar of `count` files of 20 to 420 bytes, a thousand to a directory."""
    buffer = io.BytesIO()
    for number in range(count):
        size = 20 + number * 37 % 401
        buffer.write(_member(f"srv/data/{number // 1000:04d}/record-{number}.json", size))
        buffer.write(_content(number, size))
        buffer.write(bytes(-size % 512))
        if buffer.tell() > BLOCK:
            yield buffer.getvalue()
            buffer = io.BytesIO()
    yield buffer.getvalue() + bytes(10240)


def layout_of(path: Path, tar: Iterator[bytes]) -> Path:
    """An OCI layout with one image of that one layer, tagged `big`."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)
    partial, h = blobs / "partial", hashlib.sha256()
    with partial.open("wb") as out:
        for block in tar:
            h.update(block)
            out.write(block)
    digest, size = f"sha256:{h.hexdigest()}", partial.stat().st_size
    partial.rename(blobs / h.hexdigest())
    layer = {"mediaType": LAYER, "digest": digest, "size": size}
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": put_json(path, config, CONFIG),
        "layers": [layer],
    }
    entry = put_json(path, manifest, MANIFEST)
    entry["annotations"] = {REF_NAME: "big"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return path


def memory(s: Setting) -> list[Figure]:
    """Peak anonymous and shared memory over all processes of a command, in MiB."""
    shapes = {"one 8 GiB file": huge_tar(), "a million small files": many_tar()}
    if not s.strict:
        shapes = {"one 256 MiB file": huge_tar(256 << 20), "20,000 small files": many_tar(20_000)}
    out = []
    for shape, tar in shapes.items():
        layout = layout_of(s.fresh("big"), tar)
        store, target = s.fresh("big-store"), s.fresh("big-out")
        verbs = {
            "import": s.ours(store, "import", f"oci:{layout}:big", "big"),
            "export": s.ours(store, "export", "big", f"oci:{target}"),
            "check --full": s.ours(store, "check", "--full"),
            "gc": s.ours(store, "gc"),
        }
        for verb, command in verbs.items():
            run = peak_memory(command)
            detail = {
                "mapped files": f"{run.mapped / 2**20:.0f} MiB",
                "seconds": run.wall,
                "store": du(store),
            }
            peak = run.anonymous / 2**20
            out.append(Figure(f"memory: {verb}, {shape}", peak, "MiB", LIMIT, detail=detail))
        for name in ("big", "big-store", "big-out"):
            s.fresh(name)
    return out
