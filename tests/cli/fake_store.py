"""A store that holds one image of canned values, behind the same methods as `layerstore.Store`.

What the command line does with values, errors, progress and signals is tested on it, whatever the real
store's state; that the real one has these methods is tested in `test_real.py` and by mypy.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import layerstore

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DIGEST = "sha256:" + "ab" * 32
HOSTILE = "etc/\x1b[31mred\nline\udcff"


def entry(path: str, type: str = "file", **more: Any) -> layerstore.Entry:
    fields: dict[str, Any] = {"mode": 0o644, "uid": 0, "gid": 0, "size": 5, "mtime": 0.0}
    return layerstore.Entry(path, type, **(fields | more))


class FakeStore:
    """Canned answers; `hooks` replaces methods by name, `calls` is what was asked for."""

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        self.hooks = hooks
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.opened: list[dict[str, Any]] = []
        self.closed = 0
        self.info = layerstore.ImageInfo(
            "app:1", DIGEST, MANIFEST, 3_000_000, "2024-01-02T03:04:05Z", "linux/amd64", 1000, 3
        )

    def open(self, path: str, **options: Any) -> FakeStore:
        self.opened.append({"path": path, **options})
        if "open" in self.hooks:
            self.hooks["open"](path, **options)
        return self

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in (
            "hooks",
            "calls",
            "opened",
            "closed",
            "info",
            "open",
            "asked",
        ):
            return object.__getattribute__(self, name)
        if name == "snapshots":
            return object.__getattribute__(self, "_snapshots")()
        method = self.hooks.get(name) or object.__getattribute__(self, name)

        def called(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            return method(*args, **options)

        return called

    def asked(self, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The last call of a method."""
        return next((a, o) for n, a, o in reversed(self.calls) if n == name)

    def close(self) -> None:
        self.closed += 1

    def import_images(self, transport: str, name: str | None = None, **o: Any) -> list[Any]:
        return [self.info]

    def export_images(self, names: list[str], transport: str, **o: Any) -> list[Any]:
        return [self.info for _ in names]

    def copy_images(self, source: str, target: str, **o: Any) -> list[Any]:
        return [self.info]

    def images(self) -> list[layerstore.ImageInfo]:
        return [self.info]

    def image(self, name: str) -> Any:
        if name not in ("app:1", "abababab"):
            raise layerstore.NotFoundError(f"no image {name!r}")
        layer = SimpleNamespace(digest=DIGEST, size=10, media_type=LAYER, diff_id=DIGEST)
        return SimpleNamespace(
            info=self.info,
            manifest_bytes=b'{"m":1}',
            config_bytes=b'{"c":1}\n\xff',
            layers=[layer],
            history=[
                {"created": "2024-01-02T03:04:05Z", "created_by": "ADD x /", "junk": 1},
                {"created_by": "ENV a=b", "empty_layer": True},
            ],
            entries=self._entries,
            open=lambda path, layer=None: iter([b"content of ", path.encode()]),
        )

    def _entries(self, path: str = "", *, layer: int | None = None) -> Iterator[layerstore.Entry]:
        yield entry("bin", "dir", mode=0o1777, size=0)
        yield entry("bin/su", mode=0o4755, mtime=1704164645.25, uid=1000, gid=100)
        yield entry("bin/sh", "symlink", linkname="dash", size=0)
        yield entry("dev/null", "char", devmajor=1, devminor=3, size=0)
        yield entry(HOSTILE, mtime=-1e30)

    def tag(self, name: str, new: str) -> layerstore.Ref:
        return layerstore.Ref(new, DIGEST, 10, MANIFEST)

    def untag(self, name: str) -> layerstore.Ref:
        if name == "none:1":
            raise layerstore.NotFoundError(f"no image {name}")
        return layerstore.Ref(name, DIGEST, 10, MANIFEST)

    def diff_upper(self, upper: str, lower: Any = (), **options: Any) -> layerstore.LayerInfo:
        notes = (f"{upper}/run/s: a socket, left out",)
        return layerstore.LayerInfo(DIGEST, 2048, LAYER, DIGEST, 3, 700, notes)

    def diff_trees(self, old: str, new: str, **options: Any) -> layerstore.LayerInfo:
        return layerstore.LayerInfo(DIGEST, 2048, LAYER, DIGEST, 3, 700)

    def put(self, source: Any, *, progress: Any = None, **options: Any) -> layerstore.Descriptor:
        data = source.read()
        if progress is not None:
            progress(len(data))
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        return layerstore.Descriptor(digest, len(data), options["media_type"])

    def blobs(self) -> Iterable[layerstore.BlobInfo]:
        yield layerstore.BlobInfo(DIGEST, 2048, LAYER, ("tar", "raw"), 700)

    def stat(self, digest: str) -> layerstore.BlobInfo:
        return layerstore.BlobInfo(digest, 2048, LAYER, ("tar",), 700, 0, DIGEST, "no gzip")

    def open_blob(self, digest: str) -> Any:
        file = io.BytesIO(b"blob\x00\xff")
        file.chunks = lambda: iter([b"blob", b"\x00\xff"])  # type: ignore[attr-defined]
        return file

    def commit(self, base: str, name: str, **options: Any) -> layerstore.ImageInfo:
        return self.info

    def bundle(self, name: str, target: str, **options: Any) -> layerstore.BundleReport:
        return layerstore.BundleReport(target, DIGEST, 1000, 100, 7, 4096, 0.25, ("no mknod",))

    def snapshots_call(self, name: str, *args: Any, **options: Any) -> Any:
        one = layerstore.SnapshotInfo("web-1", "active", "app:1", DIGEST, 0.0, ("/m",), "overlay")
        odd = layerstore.SnapshotInfo("odd", "view", DIGEST, DIGEST, 0.0, note="\x1b[31mgone")
        answers = {
            "list": [one, odd],
            "strays": ["/left"],
            "usage": layerstore.Usage(4096, 2),
            "commit": self.info,
            "diff": layerstore.LayerInfo(DIGEST, 2048, LAYER, DIGEST, 3, 700),
            "remove": None,
        }
        return answers.get(name, one)

    def _snapshots(self) -> Any:
        names = [
            "prepare",
            "view",
            "mount",
            "unmount",
            "diff",
            "commit",
            "usage",
            "remove",
            "list",
            "strays",
        ]

        def method(name: str) -> Any:
            return lambda *a, **o: self.snapshots_call(name, *a, **o)

        return SimpleNamespace(**{name: method(name) for name in names})

    def lease(self, ttl: float | None = None) -> Any:
        return SimpleNamespace(id="8c1f", drop=lambda: self.drop_lease("8c1f"))

    def use_lease(self, lease: str) -> None:
        if lease == "gone":
            raise layerstore.NotFoundError("no lease gone")

    def drop_lease(self, lease: str) -> None:
        pass

    def leases(self) -> list[layerstore.LeaseInfo]:
        return [layerstore.LeaseInfo("8c1f", 3600.0, 1800.0, (DIGEST,))]

    def checkout(self, name: str, target: str, **options: Any) -> layerstore.CheckoutReport:
        return layerstore.CheckoutReport(12, 3_000_000, 0.25, ("owner not kept: etc/passwd",))

    def optimize(self, names: Any = (), **options: Any) -> layerstore.OptimizeReport:
        blobs = (
            layerstore.OptimizedBlob(DIGEST, "go 6", 5_000_000, 700, "gzip"),
            layerstore.OptimizedBlob(
                DIGEST, "libzstd", 1000, 0, "raw", "zstd data is kept as it came"
            ),
        )
        return layerstore.OptimizeReport(blobs, 5_000_000, 4_000_000, 1.23456, False)

    def gc(self, *, dry_run: bool, **options: Any) -> layerstore.GCReport:
        return layerstore.GCReport(dry_run, 7, 5_000_000, 100, 2, 1.23456, False)

    def check(self, **options: Any) -> layerstore.CheckReport:
        damage = layerstore.Damage(DIGEST, "tar", "checksum", ("app:1",), ("/etc/passwd",))
        return layerstore.CheckReport(False, (damage,), (), 1000, 0.5)

    def stats(self, *, images: bool = False) -> layerstore.Stats:
        cost = layerstore.ImageCost("app:1", DIGEST, 100, 200, 90)
        forms = {"plain": 2, "tar": 1, "raw": 0}
        return layerstore.Stats(
            1, 3, 4000, 1, 90_000, 12, 11, 3500, forms, 900, 0, 0, 100, 1000, 10, 600, 300, (cost,)
        )
