"""What tests of the store share: makers of blobs, tars and images, and looks from outside."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping

from layerstore.layers.checking import check
from layerstore.layers.content import Content
from layerstore.storage.gc import collect
from layerstore.storage.storage import Storage, open_storage
from layerstore.values import CheckReport, Edge, GCReport, Ref

TAR = "application/vnd.oci.image.layer.v1.tar"
TAR_GZIP = TAR + "+gzip"
TAR_ZSTD = TAR + "+zstd"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def noise(seed: int, size: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def words(seed: int, size: int) -> bytes:
    """Bytes that compress about threefold, unlike for each seed."""
    source = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        out += source.randbytes(12).hex().encode() + b" the same old words again\n"
    return bytes(out[:size])


def tar_of(files: Mapping[str, bytes], *, mtime: int = 0, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of regular files; names that end in a slash are directories."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mtime = mtime
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def extract(archive: tarfile.TarFile, folder: str | os.PathLike[str]) -> None:
    """Unpacks an archive of ours. Debian 12's Python knows no filters yet; later ones ask for one."""
    known = hasattr(tarfile, "data_filter")
    archive.extractall(folder, **({"filter": "data"} if known else {}))  # type: ignore[arg-type]


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def du(path: str) -> int:
    """What `du` counts, in bytes."""
    total, seen = 0, set()
    for folder, _, names in os.walk(path):
        for item in (folder, *(os.path.join(folder, n) for n in names)):
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(item)
                if found.st_ino not in seen:
                    seen.add(found.st_ino)
                    total += found.st_blocks * 512
    return total


def put(content: Content, data: bytes, media_type: str = "application/octet-stream") -> str:
    with content.operation() as op:
        return op.put(data, media_type=media_type).digest


def get(content: Content, digest: str) -> bytes:
    with content.open(digest) as blob:
        return blob.readall()


def manifest_of(config: bytes, layers: Iterable[tuple[bytes, str]]) -> tuple[bytes, list[Edge]]:
    """The bytes of a manifest, and its edges."""
    parts = [(config, CONFIG), *layers]
    rows = [{"digest": sha256(d), "size": len(d), "mediaType": t} for d, t in parts]
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": rows[0], "layers": rows[1:]}
    edges = [Edge(sha256(d), "child", len(d), t) for d, t in parts]
    return json.dumps(document).encode(), edges


def put_image(
    content: Content, name: str, layers: Iterable[tuple[bytes, str]], note: str = ""
) -> str:
    """An image by name, of config, layers and manifest. Returns the manifest's digest."""
    layers = list(layers)
    config = json.dumps({"note": note, "layers": [sha256(d) for d, _ in layers]}).encode()
    manifest, edges = manifest_of(config, layers)
    with content.operation() as op:
        for data, media_type in ((config, CONFIG), *layers):
            op.put(data, digest=sha256(data), size=len(data), media_type=media_type)
        op.put(manifest, digest=sha256(manifest), media_type=MANIFEST, edges=edges)
        op.commit_refs({name: Ref(name, sha256(manifest), len(manifest), MANIFEST)})
    return sha256(manifest)


def keep(content: Content, name: str, data: bytes, media_type: str = "text/plain") -> str:
    """A blob under a name, without a manifest."""
    digest = sha256(data)
    with content.operation() as op:
        op.put(data, digest=digest, media_type=media_type)
        op.commit_refs({name: Ref(name, digest, len(data), media_type)})
    return digest


def untag(content: Content, *names: str) -> None:
    with content.operation() as op:
        op.commit_refs({}, remove=names)


def full_check(content: Content, *, blocks: bool = True, full: bool = True) -> CheckReport:
    return check(content, blocks=blocks, full=full, max_time=None, repair=None, progress=None)


def clean(content: Content) -> None:
    """The store is whole, in every way that a check knows."""
    report = full_check(content)
    assert report.ok, report.damaged
    assert report.complete


def gc(storage: Storage, *, aggressive: bool = False) -> GCReport:
    return collect(storage, aggressive=aggressive)


@contextlib.contextmanager
def opened(path: str, **options: object) -> Iterator[Content]:
    """A store, opened and closed again."""
    options.setdefault("timeout", 20.0)
    storage = open_storage(path, **options)  # type: ignore[arg-type]
    try:
        yield Content(storage)
    finally:
        storage.close()


def packs(path: str) -> list[str]:
    folder = os.path.join(path, "packs")
    return sorted(os.path.join(folder, n) for n in os.listdir(folder))


def raws(path: str) -> list[str]:
    return sorted(
        os.path.join(folder, n)
        for folder, _, names in os.walk(os.path.join(path, "raw"))
        for n in names
    )


def flip(path: str, offset: int, bit: int = 0) -> None:
    """One bit of a file turned over."""
    with open(path, "r+b") as f:
        f.seek(offset)
        old = f.read(1)
        f.seek(offset)
        f.write(bytes((old[0] ^ (1 << bit),)))
