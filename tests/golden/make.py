"""Makes the golden store of format 1: `store-1.tar.xz`, and `store-1.json`, which says what is in it.

    python tests/golden/make.py

Every later version of layerstore must read it (tests/format/test_golden.py). Never make it again for
a format that was released; a new format gets a new file beside it. It is a store after a busy life, as
a power cut would leave it: images that share content, every form of blob, sealed packs, compaction, a
checkpoint and records after it, leases, an upload, a damaged block that was healed, a condemned set
with something taken back from it, and the session of a process that died.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

HERE = Path(__file__).parent
ARCHIVE = HERE / "store-1.tar.xz"
EXPECTED = HERE / "store-1.json"
PACK_SIZE = 64 * 1024

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
WORDS = [f"{first}{last}" for first in ("al", "bra", "char", "del") for last in "aeiou"]


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def prose(size: int, seed: int) -> bytes:
    """Bytes that compress well, and that the chunker cuts at an average distance."""
    r = random.Random(seed)
    words = [r.choice(WORDS) for _ in range(size // 5)]
    return " ".join(words).encode()[:size]


def pyc(source: int, code: bytes) -> bytes:
    return b"\xa7\r\r\n" + bytes(4) + source.to_bytes(4, "little") + b"\x10\0\0\0\xe3" + code


def tar(members: list[tuple[str, bytes]], mtime: int, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def sparse_header(name: bytes, segments: list[tuple[int, int]], real: int) -> bytes:
    """A header of GNU's old sparse format (type S), the map in the header itself."""
    stored = sum(n for _, n in segments)
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = b"%011o\0" % stored
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156] = ord("S")
    block[257:265] = b"ustar  \0"
    for i, (offset, n) in enumerate(segments):
        block[386 + 24 * i : 410 + 24 * i] = b"%011o\0%011o\0" % (offset, n)
    block[483:495] = b"%011o\0" % real
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def app(build: int) -> list[tuple[str, bytes]]:
    """What one build of the app has; most of it is the same in each."""
    files = [(f"app/part{i:03d}.txt", prose(150 + i, i)) for i in range(40)]
    files += [(f"app/mod{i}.pyc", pyc(build * 1000 + i, prose(900, 90 + i))) for i in range(5)]
    files += [
        ("app/empty", b""),
        ("app/" + "long-name/" * 15 + "file", noise(300, 1)),
        ("data/book.txt", prose(400_000, 2)),
        ("data/photo.jpg", noise(20_000, 3)),
        ("app/build", b"%d\n" % build),
    ]
    return files


class Layout:
    """An OCI layout directory to import from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifests: list[dict[str, Any]] = []
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def document(self, value: dict[str, Any], media_type: str) -> dict[str, Any]:
        return self.blob(json.dumps(value, indent=1).encode(), media_type)

    def image(self, *layers: bytes) -> dict[str, Any]:
        tars = [inflated(layer) for layer in layers]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "created": "2026-01-02T03:04:05Z",
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(t).hexdigest()}" for t in tars],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.document(config, CONFIG),
            "layers": [self.blob(layer, LAYER + suffix(layer)) for layer in layers],
        }
        return self.document(manifest, MANIFEST)

    def signature(self, subject: dict[str, Any]) -> dict[str, Any]:
        empty = self.blob(b"{}", "application/vnd.oci.empty.v1+json")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.example.signature",
            "config": empty,
            "layers": [self.blob(b"signed, golden", "application/octet-stream")],
            "subject": subject,
        }
        return self.document(manifest, MANIFEST)

    def tag(self, descriptor: dict[str, Any], name: str | None) -> None:
        names = {} if name is None else {"org.opencontainers.image.ref.name": name}
        self.manifests.append({**descriptor, "annotations": names})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self.manifests}
        (self.path / "index.json").write_text(json.dumps(index))


def inflated(layer: bytes) -> bytes:
    if layer[:2] == b"\x1f\x8b":
        return gzip.decompress(layer)
    return zstandard.decompress(layer) if layer[:4] == b"\x28\xb5\x2f\xfd" else layer


def suffix(layer: bytes) -> str:
    if layer[:2] == b"\x1f\x8b":
        return "+gzip"
    return "+zstd" if layer[:4] == b"\x28\xb5\x2f\xfd" else ""


def build(path: str) -> dict[str, Any]:
    """Lives the store's life; the process must end without closing it."""
    from layerstore.layers.checking import check
    from layerstore.storage import gc, uploads
    from layerstore.storage.storage import create
    from layerstore.store import Store, open_storage

    create(path, pack_size=PACK_SIZE)
    storage = open_storage(path)
    store = Store(storage)
    content = store._content
    expected: dict[str, Any] = {}

    # Images: one app built twice, a tag more, an index that lacks a platform, a signature.
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder) / "layout")
        first, second = tar(app(1), 1_700_000_000), tar(app(2), 1_700_009_999)
        small = tar([("etc/motd", prose(3000, 5))], 7, tarfile.GNU_FORMAT)
        one = layout.image(first, gzip.compress(small, 9, mtime=0))
        two = layout.image(second, zstandard.compress(small, 19))
        absent = {"mediaType": MANIFEST, "digest": f"sha256:{'a' * 64}", "size": 1234}
        both = layout.document(
            {
                "schemaVersion": 2,
                "mediaType": INDEX,
                "manifests": [
                    {**two, "platform": {"os": "linux", "architecture": "amd64"}},
                    {**absent, "platform": {"os": "linux", "architecture": "riscv64"}},
                ],
            },
            INDEX,
        )
        layout.tag(one, "one")
        layout.tag(both, "multi")
        layout.tag(layout.signature(one), None)
        layout.tag(layout.image(tar([("dead", noise(30_000, 6))], 1)), "doomed")
        for name in ("one", "multi", "doomed"):
            store.import_image(f"oci:{layout.path}:{name}", f"golden/{name}:1")
    store.tag("golden/one:1", "golden/again:1")

    # Blobs that leases hold: every form, every kind of chunk list, digests of all algorithms.
    lease, brief = storage.create_lease(None), storage.create_lease(3600.0)
    members = [(f"m/{i}", prose(20 + i % 7, 300 + i)) for i in range(700)]
    shuffled = members[:]
    random.Random(9).shuffle(shuffled)
    many = tar(members, 3)
    damaged, alias = noise(2049, 11), prose(4000, 15)
    held = [
        b"",
        b"inline",
        noise(2048, 10),
        damaged,
        prose(330_000, 12),
        many,
        tar(shuffled, 4),
        many[:100_000],
        many.rstrip(b"\0"),
        many + b"a tail that is no tar" * 50,
        sparse_header(b"holes", [(0, 700), (9_000, 100)], 10_000)
        + (noise(800, 13) + bytes(224) + bytes(1024)),
        gzip.compress(prose(5000, 14), mtime=0) + b"behind the end",
        bytes(512) + b"nearly a tar",
    ]
    more = (f"sha512:{hashlib.sha512(alias).hexdigest()}", f"blake3:{blake3(alias).hexdigest()}")
    storage.use_lease(lease)
    with content.operation() as op:
        for data in held:
            op.put(data, media_type="application/octet-stream")
        op.put(held[-2], media_type=f"{LAYER}+gzip")
        op.put(alias, aliases=more)
    storage.leave_lease(lease)
    storage.use_lease(brief)
    store.put(noise(3000, 16))
    storage.leave_lease(brief)
    expected["aliases"] = {name: hashed(alias) for name in more}

    # A block is damaged, found, and healed by the same content put again, under its old numbers.
    heal(storage, hashed(damaged), damaged, check)

    # What dies: one image. The gc copies out of blocks that are mostly dead.
    store.untag("golden/doomed:1")
    store.gc(aggressive=True)
    gc.checkpoint(storage)

    # A condemned set that waits for an older operation; something in it is wanted again.
    back, gone = noise(4000, 17), noise(4001, 18)
    with Store(open_storage(path)) as other:
        other.put(back)
        other.put(gone)
        older = open_storage(path).operation()
    store.put(b"moves the sequence on")
    assert store.gc().pending_bytes > 0
    with content.operation() as op:
        assert op.have(hashed(gone)) is None
        op.put(back, digest=hashed(back))
    older.close()
    expected["hidden"] = [hashed(gone)]
    expected["until_gc"] = [hashed(back), hashed(b"moves the sequence on")]

    upload = uploads.begin(storage)
    upload.write(b"half of an upload")
    upload.sync()
    expected["upload"] = {"id": upload.id, "bytes": 17}

    expected["leases"] = sorted([i.id, i.ttl, list(i.digests)] for i in store.leases())
    expected["refs"] = {i.name: i.digest for i in store.images()}
    expected["blobs"] = {
        info.digest: {"size": info.bytes, "forms": list(info.forms)} for info in store.blobs()
    }
    expected["referrers"] = {one["digest"]: store.referrers(one["digest"])}
    expected["files"] = [entry.path for entry in store.image("golden/one:1").entries()]
    return expected


def hashed(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def heal(storage: Any, digest: str, data: bytes, check: Any) -> None:
    from layerstore.layers.content import Content
    from layerstore.storage.index import Table
    from layerstore.storage.operation import visible

    content = Content(storage)
    with storage.index.read() as snapshot:
        found = visible(storage, snapshot, digest)
        place = storage.chunks.place(snapshot, storage.chunks.runs_of(found[1].plain)[0][0])
    with open(storage.packs.path(place.pack), "r+b") as f:
        f.seek(place.offset + place.head)
        byte = f.read(1)[0]
        f.seek(place.offset + place.head)
        f.write(bytes((byte ^ 0xFF,)))
    options = {"blocks": True, "full": True, "max_time": None, "repair": None, "progress": None}
    assert [d.digest for d in check(content, **options).damaged] == [digest]
    with content.operation() as op:
        assert op.put(data, digest=digest).digest == digest
    with storage.index.read() as snapshot:
        assert snapshot.count(Table.DAMAGE) == 0
        moved = storage.chunks.place(snapshot, place.first)
    assert (moved.pack, moved.offset) != (place.pack, place.offset)
    assert check(content, **options).ok


def main() -> None:
    if len(sys.argv) == 3:
        expected = build(sys.argv[1])
        Path(sys.argv[2]).write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
        os._exit(0)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "store")
        subprocess.run([sys.executable, __file__, path, str(EXPECTED)], check=True)
        os.unlink(os.path.join(path, "index", "lock.mdb"))
        with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
            archive.add(path, arcname="store")
    print(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
