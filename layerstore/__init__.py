"""layerstore: an embeddable, content-addressed store for container image layers.

    import layerstore

    with layerstore.open("/var/lib/layerstore") as store:
        store.import_image("oci:./layout:v1", name="app:1.2")

One directory on disk, no daemon, several processes at once. What is in `__all__` is the public face;
everything else may change. Names are loaded when they are first used, so that importing is cheap.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if sys.platform != "linux":
    raise ImportError(
        "layerstore runs on Linux only: it relies on Linux's file locks, hole punching and overlayfs"
    )

if sys.byteorder != "little":
    raise ImportError("layerstore runs on little-endian machines only: its format is little endian")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .cache import Cache
    from .errors import (
        BusyError,
        CancelledError,
        CorruptError,
        DigestMismatchError,
        InvalidInputError,
        LayerstoreError,
        LimitError,
        MissingBlobsError,
        NotFoundError,
        PermissionDeniedError,
        RemoteError,
        StoreFullError,
        UnsupportedError,
    )
    from .handles import BlobWriter, Image, Lease
    from .remote.client import Remote, RemoteManifest, RemoteTag
    from .remote.options import RemoteOptions
    from .repositories import ManifestInfo, Referrer, Repository, RepositoryLimits, RepositoryUpload
    from .snapshots import Snapshots
    from .store import Store, open, rebuild_index
    from .tars import write_trees, write_upper
    from .values import (
        FORMAT_VERSION,
        BlobInfo,
        BundleReport,
        CacheEntry,
        CheckoutReport,
        CheckReport,
        ConfigChanges,
        Damage,
        Descriptor,
        Edge,
        Entry,
        GCReport,
        ImageCost,
        ImageInfo,
        LayerInfo,
        LeaseInfo,
        OptimizedBlob,
        OptimizeReport,
        Progress,
        Ref,
        SnapshotInfo,
        Stats,
        Usage,
    )

_HOMES = {
    "errors": (
        "BusyError",
        "CancelledError",
        "CorruptError",
        "DigestMismatchError",
        "InvalidInputError",
        "LayerstoreError",
        "LimitError",
        "MissingBlobsError",
        "NotFoundError",
        "PermissionDeniedError",
        "RemoteError",
        "StoreFullError",
        "UnsupportedError",
    ),
    "remote.client": ("Remote", "RemoteManifest", "RemoteTag"),
    "remote.options": ("RemoteOptions",),
    "handles": ("BlobWriter", "Image", "Lease"),
    "store": ("Store", "open", "rebuild_index"),
    "cache": ("Cache",),
    "repositories": (
        "ManifestInfo",
        "Referrer",
        "Repository",
        "RepositoryLimits",
        "RepositoryUpload",
    ),
    "tars": ("write_trees", "write_upper"),
    "snapshots": ("Snapshots",),
    "values": (
        "FORMAT_VERSION",
        "BlobInfo",
        "BundleReport",
        "CacheEntry",
        "CheckReport",
        "CheckoutReport",
        "ConfigChanges",
        "Damage",
        "Descriptor",
        "Edge",
        "Entry",
        "GCReport",
        "ImageCost",
        "ImageInfo",
        "LayerInfo",
        "LeaseInfo",
        "OptimizedBlob",
        "OptimizeReport",
        "Progress",
        "Ref",
        "SnapshotInfo",
        "Stats",
        "Usage",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "FORMAT_VERSION",
    "BlobInfo",
    "BlobWriter",
    "BundleReport",
    "BusyError",
    "Cache",
    "CacheEntry",
    "CancelledError",
    "CheckReport",
    "CheckoutReport",
    "ConfigChanges",
    "CorruptError",
    "Damage",
    "Descriptor",
    "DigestMismatchError",
    "Edge",
    "Entry",
    "GCReport",
    "Image",
    "ImageCost",
    "ImageInfo",
    "InvalidInputError",
    "LayerInfo",
    "LayerstoreError",
    "Lease",
    "LeaseInfo",
    "LimitError",
    "ManifestInfo",
    "MissingBlobsError",
    "NotFoundError",
    "OptimizeReport",
    "OptimizedBlob",
    "PermissionDeniedError",
    "Progress",
    "Ref",
    "Referrer",
    "Remote",
    "RemoteError",
    "RemoteManifest",
    "RemoteOptions",
    "RemoteTag",
    "Repository",
    "RepositoryLimits",
    "RepositoryUpload",
    "SnapshotInfo",
    "Snapshots",
    "Stats",
    "Store",
    "StoreFullError",
    "UnsupportedError",
    "Usage",
    "__version__",
    "open",
    "rebuild_index",
    "write_trees",
    "write_upper",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
