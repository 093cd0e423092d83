"""The values of the public face: frozen dataclasses, no behaviour, no I/O (floor 0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

FORMAT_VERSION = 1
"""The disk format that this layerstore writes, and the newest that it reads."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a blob is and how to address it (image-spec descriptor.md). Sizes in bytes."""

    digest: str
    size: int
    media_type: str = "application/octet-stream"
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None
    platform: Mapping[str, object] | None = None
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """One digest that a manifest names.

    kind: `child` (needed; gc follows it downward and refuses to run when it is missing), `absent`
    (named, but not here when it was put: non-distributable layers, platforms that were left out;
    followed if it is here), `subject` (the referrer lives as long as the subject)."""

    digest: str
    kind: str = "child"
    size: int = 0
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A stored blob. `forms`: of plain, tar, gzip, raw. `stored_bytes`: its share on disk, or -1."""

    digest: str
    bytes: int
    media_type: str
    forms: tuple[str, ...]
    stored_bytes: int = -1
    new_bytes: int = 0
    """What this put added to the store's files; 0 for what was known."""
    diff_id: str | None = None
    """Digest of the uncompressed tar, once it was verified by decoding."""
    problem: str | None = None
    """Why this layer does not decode, or does not match its diff_id; None when it is sound or was
    not decoded yet."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A name that keeps an image alive."""

    name: str
    digest: str
    size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an image or layer, as `ls` shows it. `mtime` in seconds since the epoch (float with
    nanoseconds), `mode` permission bits, `type` one of file, dir, symlink, hardlink, char, block,
    fifo, whiteout, other. `layer` counts from 0 (lowest)."""

    path: str
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: float
    linkname: str | None = None
    layer: int = 0
    devmajor: int = 0
    devminor: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer that was made. `size` in bytes, `entries` of its tar; `new_bytes` is what the store grew
    by. `notes` names what a tar cannot hold and was left out (sockets)."""

    digest: str
    size: int
    media_type: str
    diff_id: str
    entries: int
    new_bytes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image in the store. `bytes`: sum of the sizes of all blobs that it names (each once)."""

    name: str
    digest: str
    media_type: str
    bytes: int
    created: str | None = None
    platform: str | None = None
    new_bytes: int = 0
    blobs: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a long work. `unit` is `bytes` or `blobs`; `total` is 0 while unknown. `parts`: the
    blobs that are moved right now, each with its digest, bytes done and size."""

    stage: str
    done: int
    total: int
    unit: str = "bytes"
    parts: tuple[tuple[str, int, int], ...] = ()


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class CheckoutReport:
    """What a checkout wrote: entries, bytes of files, seconds; `notes` say what could not be kept."""

    entries: int
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An entry of the step cache: `key` is the hash of its key in hex; what it names; when it was used
    last, in seconds since the epoch (at most a minute late)."""

    key: str
    digest: str
    size: int
    media_type: str
    used: float


@dataclass(frozen=True, slots=True)
class GCReport:
    """What a gc did. `pending_bytes` is dead but still held back by a running operation. Of a gc with
    limits: how many cache entries and images of a mirror went, and whether both limits hold now."""

    dry_run: bool
    condemned_chunks: int
    freed_bytes: int
    pending_bytes: int
    removed_blobs: int
    seconds: float
    complete: bool = True
    dropped_entries: int = 0
    within_limits: bool = True
    dropped_images: int = 0


@dataclass(frozen=True, slots=True)
class OptimizedBlob:
    """What became of a blob that was kept as it came. `result`: `gzip` (made again from its content and
    a recipe of `recipe_bytes`) or `raw` (as it was, for this `reason`). `encoder`: whose model makes it
    again, or who has likely made it."""

    digest: str
    encoder: str
    bytes: int
    recipe_bytes: int
    result: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OptimizeReport:
    """What an optimize did. `freed_bytes`: of files that are not needed any more; `written_bytes`: what
    packs grew by for content that was new. Not `complete`: a time limit ended it."""

    blobs: tuple[OptimizedBlob, ...]
    freed_bytes: int
    written_bytes: int
    seconds: float
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged blob: which form, why, the images that need it, the paths that are hit."""

    digest: str
    form: str
    reason: str
    refs: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found. `repaired` holds digests that were healed."""

    ok: bool
    damaged: tuple[Damage, ...]
    repaired: tuple[str, ...]
    checked_bytes: int
    seconds: float
    complete: bool = True


@dataclass(frozen=True, slots=True)
class ImageCost:
    """What one image costs on disk: bytes that only it holds, bytes it shares, bytes that untag
    and `gc --aggressive` would give back."""

    name: str
    digest: str
    alone: int
    shared: int
    freed_if_removed: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What is kept and what it costs, in bytes. `total` is what `du` counts for the directory."""

    images: int
    blob_count: int
    blob_bytes: int
    layer_count: int
    layer_tar_bytes: int
    layer_entries: int
    chunk_count: int
    chunk_bytes: int
    forms: Mapping[str, int]
    packs: int
    raw: int
    unpacked: int
    index: int
    total: int
    dead_bytes: int
    alone: int = 0
    shared: int = 0
    per_image: tuple[ImageCost, ...] = ()
    raw_cache: int = 0
    """Copies of popular blobs: may be taken away at any time."""


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease. `ttl` in seconds (None: until it is dropped), `left` seconds to go."""

    id: str
    ttl: float | None
    left: float | None
    digests: tuple[str, ...] = ()


IdMap = tuple[tuple[int, int, int], ...]
"""`(id inside, id outside, count)` each, as in /proc/PID/uid_map; empty: as they are."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot. `kind`: `active` (may be changed and committed) or `view`. `image` as it was named,
    `digest` that of its manifest, None for one over nothing. `created` in seconds since the epoch.
    `mounts`: where it is mounted; `driver`: by what (`overlay`, `fuse`, `copy`, empty while it is
    not). `note`: what is odd about it, such as a mount whose process is gone."""

    key: str
    kind: str
    image: str
    digest: str | None
    created: float
    mounts: tuple[str, ...] = ()
    driver: str = ""
    uids: IdMap = ()
    gids: IdMap = ()
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes on disk beside the layers that it shares: bytes, and inodes."""

    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True)
class BundleReport:
    """A runtime bundle that was made: its directory, the image's digest, who the container runs as. Of
    a root filesystem that was written: entries, bytes, and notes on what could not be kept."""

    path: str
    digest: str
    uid: int
    gid: int
    entries: int
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


class ConfigChanges(TypedDict, total=False):
    """What of an image's config is to be another (image-spec config.md); what is not given stays.

    `entrypoint` without `cmd` takes the base's command away, as a Dockerfile does. `env` and `labels`
    set or replace single ones; `ports` (`80`, `53/udp`, `8000-8010`) and `volumes` are added. An empty
    list or text takes a field away. `author` and `message` go into the history, `annotations` into the
    manifest. `shell` is docker's word for what runs commands that are given as text."""

    cmd: Sequence[str]
    entrypoint: Sequence[str]
    env: Mapping[str, str]
    labels: Mapping[str, str]
    user: str
    workdir: str
    ports: Sequence[str]
    volumes: Sequence[str]
    stop_signal: str
    shell: Sequence[str]
    annotations: Mapping[str, str]
    author: str
    message: str
    created_by: str
