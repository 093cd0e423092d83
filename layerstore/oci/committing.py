"""New images out of old ones: a base, layers on top, changes to the config.

The result is an OCI image whatever the base was: docker's media types become OCI's, and what docker
keeps in a config about the container that made it goes. Everything else in the config stays as it is.
Documents depend on base, layers, changes and time only, so that the same build gives the same digest
where SOURCE_DATE_EPOCH gives the time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from .. import mediatypes
from ..digest import digest_of
from ..errors import InvalidInputError, NotFoundError
from ..layers.inflate import compression_of
from ..layers.squash import squash as merge
from ..layers.unpacked import diff_ids
from ..values import ConfigChanges, Descriptor, Edge, ImageInfo, Progress, ProgressCallback, Ref
from . import images, jsonio, references
from .model import Manifest

if TYPE_CHECKING:
    from ..layers.content import Content, Operation

SCRATCH = "scratch"
"""As in a Dockerfile: a base without anything."""
BASE_DIGEST = "org.opencontainers.image.base.digest"
CREATED_BY = "layerstore commit"

_PORT = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?(?:/(?:tcp|udp|sctp))?\Z")
_OF_DOCKER = ("container", "container_config", "docker_version", "id", "parent", "Size")
_OCI = {
    mediatypes.DOCKER_LAYER: mediatypes.OCI_LAYER,
    mediatypes.DOCKER_LAYER_GZIP: mediatypes.OCI_LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": mediatypes.OCI_LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.foreign.diff.tar": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar"
    ),
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}
_COMPRESSED = {
    "gzip": mediatypes.OCI_LAYER_GZIP,
    "zstd": mediatypes.OCI_LAYER_ZSTD,
    None: mediatypes.OCI_LAYER,
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the new image, by an OCI media type. `diff_id` None: nobody knows it (a base that
    does not say)."""

    digest: str
    size: int
    media_type: str
    diff_id: str


@dataclass(frozen=True, slots=True)
class Base:
    """What is built on. `digest` None: nothing."""

    digest: str | None
    layers: tuple[Layer, ...]
    config: dict[str, Any]


def commit(
    content: Content,
    op: Operation,
    base: str,
    name: str,
    layers: Sequence[str],
    changes: ConfigChanges,
    *,
    created: str,
    squash: str = "",
    platform: str | None = None,
    progress: ProgressCallback | None = None,
) -> ImageInfo:
    """An image `name` of `base` (an image, or `scratch`), stored `layers` on top (lowest first) and
    changes, named durably when this returns. `created`: RFC 3339. `squash`: `new` merges the layers
    that are added into one, `all` those of the base, too.

    Raises NotFoundError, InvalidInputError (a layer that is none, a change that cannot be said)."""
    full = references.full_name(name)
    check(changes)
    below = base_of(op, base, platform)
    added = [_layer(op, digest) for digest in layers]
    merged: list[Layer] = []
    below_layers = list(below.layers)
    if squash == "all":
        merged, below_layers = [*below_layers, *added], []
    elif squash == "new":
        merged = added
    if len(merged) > 1:
        added = [_merge(content, op, merged, below_layers, progress)]
    elif merged:
        added = merged
    config = config_of(below, changes, [*below_layers, *added], len(added), created, squash)
    said = changes.get("annotations", {})
    return _store(op, full, below, config, [*below_layers, *added], said)


def created_at(source_date_epoch: int | None) -> str:
    """The time that goes into documents, RFC 3339: the given one (seconds), else $SOURCE_DATE_EPOCH,
    else now. Raises InvalidInputError for a variable that is no time."""
    seconds = epoch(source_date_epoch)
    now = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(source_date_epoch: int | None) -> int | None:
    """The given time in seconds, else $SOURCE_DATE_EPOCH, else None."""
    if source_date_epoch is not None:
        return source_date_epoch
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) > 253402300799:
        raise InvalidInputError(f"$SOURCE_DATE_EPOCH is no time in seconds: {text[:40]!r}")
    return int(text)


# ---- what is built on -------------------------------------------------------------------------


def base_of(op: Operation, name: str, platform: str | None = None) -> Base:
    """The base that a user means. Raises NotFoundError, InvalidInputError."""
    if name == SCRATCH and op.ref(references.full_name(name)) is None:
        system, _, machine = (platform or images.host_platform()).partition("/")
        architecture, _, variant = machine.partition("/")
        config: dict[str, Any] = {"architecture": architecture, "os": system}
        if variant:
            config["variant"] = variant
        return Base(None, (), config)
    ref = images.find(op, name)
    digest, found = images.manifest(op, ref, platform)
    return base_of_manifest(op, digest, found)


def base_of_manifest(op: Operation, digest: str, found: Manifest) -> Base:
    """The base that a manifest describes. Raises InvalidInputError for one that is no image."""
    if found.config is None or not found.is_image:
        raise InvalidInputError(f"{digest} is no image: it has no config of one", digest=digest)
    data = op.read(found.config.digest, jsonio.MAX_CONFIG)
    config = jsonio.parse(
        data, f"config {found.config.digest}", digest=found.config.digest, limit=jsonio.MAX_CONFIG
    )
    for key in _OF_DOCKER:
        config.pop(key, None)
    for key, kind in (("config", dict), ("history", list), ("rootfs", dict)):
        if not isinstance(config.get(key) or kind(), kind):
            raise InvalidInputError(
                f"config {found.config.digest}: {key} is not what it should be",
                digest=found.config.digest,
            )
    ids = (cast("dict[str, Any]", config.get("rootfs")) or {}).get("diff_ids") or []
    if len(ids) != len(found.layers) or not all(isinstance(i, str) for i in ids):
        raise InvalidInputError(
            f"config {found.config.digest} names {len(ids)} diff_ids, the manifest "
            f"{len(found.layers)} layers",
            digest=found.config.digest,
        )
    layers = tuple(
        Layer(d.digest, d.size, _oci_type(d.media_type), diff_id)
        for d, diff_id in zip(found.layers, ids, strict=True)
    )
    return Base(digest, layers, config)


def _oci_type(media_type: str) -> str:
    base = mediatypes.base(media_type)
    return _OCI.get(base, base)


def _layer(op: Operation, digest: str) -> Layer:
    """A stored blob as a layer. Raises NotFoundError, InvalidInputError for what is none."""
    info = op.have(digest)
    if info is None:
        raise NotFoundError(f"no blob {digest} in the store", digest=digest)
    (diff_id,) = diff_ids(op, [digest], [None])
    media_type = _oci_type(info.media_type)
    if not mediatypes.is_layer(media_type):
        with op.open(digest) as blob:
            media_type = _COMPRESSED[compression_of(blob.read(8) or b"")]
    return Layer(digest, info.bytes, media_type, diff_id)


def _merge(
    content: Content,
    op: Operation,
    layers: Sequence[Layer],
    below: Sequence[Layer],
    progress: ProgressCallback | None,
) -> Layer:
    done = 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(Progress("squash", done, 0))

    tar = merge(content, [one.digest for one in layers], [one.digest for one in below])
    info = op.put(tar, media_type=mediatypes.OCI_LAYER, progress=step)
    return Layer(info.digest, info.bytes, mediatypes.OCI_LAYER, info.digest)


# ---- the config -------------------------------------------------------------------------------


def check(changes: ConfigChanges) -> None:
    """Raises InvalidInputError for what no config can say."""
    for port in changes.get("ports", ()):
        _ports(port)
    for key in changes.get("env", {}):
        if not key or "=" in key or "\0" in key:
            raise InvalidInputError(f"not the name of a variable: {key!r}")
    for key in changes.get("labels", {}):
        if not key:
            raise InvalidInputError("a label has no name")
    for key in changes.get("annotations", {}):
        if not key or key == BASE_DIGEST:
            raise InvalidInputError(f"not an annotation that can be set: {key!r}")
    for path in (changes.get("workdir"), *changes.get("volumes", ())):
        if path and not path.startswith("/"):
            raise InvalidInputError(f"not an absolute path: {path!r}")


def config_of(
    base: Base,
    changes: ConfigChanges,
    layers: Sequence[Layer],
    added: int,
    created: str,
    squash: str,
) -> bytes:
    """The new config; `added` of `layers` are on top of the base's."""
    out: dict[str, Any] = dict(base.config)
    out["created"] = created
    if changes.get("author") is not None:
        out["author"] = changes.get("author")
    out["config"] = _runtime(dict(out.get("config") or {}), changes)
    out["rootfs"] = {"type": "layers", "diff_ids": [one.diff_id for one in layers]}
    out["history"] = _history(list(out.get("history") or ()), changes, added, created, squash)
    return _dump(out)


def _runtime(config: dict[str, Any], changes: ConfigChanges) -> dict[str, Any]:
    """The part that says what a container runs."""
    if (entrypoint := changes.get("entrypoint")) is not None:
        config["Entrypoint"] = list(entrypoint)
        config["Cmd"] = []
    if (cmd := changes.get("cmd")) is not None:
        config["Cmd"] = list(cmd)
    if changes.get("env", {}):
        config["Env"] = _environment(config.get("Env") or [], changes.get("env", {}))
    if changes.get("labels", {}):
        config["Labels"] = {**(config.get("Labels") or {}), **changes.get("labels", {})}
    for key, value in (
        ("User", changes.get("user")),
        ("WorkingDir", changes.get("workdir")),
        ("StopSignal", changes.get("stop_signal")),
    ):
        if value is not None:
            config[key] = value
    if (shell := changes.get("shell")) is not None:
        config["Shell"] = list(shell)
    if changes.get("ports", ()):
        config["ExposedPorts"] = {
            **(config.get("ExposedPorts") or {}),
            **{
                port: cast("dict[str, str]", {})
                for said in changes.get("ports", ())
                for port in _ports(said)
            },
        }
    if changes.get("volumes", ()):
        config["Volumes"] = {
            **(config.get("Volumes") or {}),
            **{path: cast("dict[str, str]", {}) for path in changes.get("volumes", ())},
        }
    for key in ("Entrypoint", "Cmd", "User", "WorkingDir", "StopSignal", "Shell"):
        if key in config and not config[key]:
            del config[key]
    return config


def _ports(said: str) -> list[str]:
    """The keys of ExposedPorts that `80`, `53/udp` or `8000-8010` means: one for each port, since
    image-spec config.md has none for a range. Raises InvalidInputError."""
    numbers, _, protocol = said.partition("/")
    first, _, last = numbers.partition("-")
    if not _PORT.match(said) or not 0 < int(first) <= int(last or first) < 65536:
        raise InvalidInputError(f"not a port: {said!r} (write 80, 80/tcp, 53/udp, 8000-8010)")
    return [f"{n}/{protocol or 'tcp'}" for n in range(int(first), int(last or first) + 1)]


def _environment(old: Sequence[Any], new: Mapping[str, str]) -> list[str]:
    """Each in its old place, what is new behind them. A name that the base has twice is there once when
    it is set: which one of two counts, readers of an environment do not agree."""
    left = dict(new)
    out = []
    for line in old:
        key = str(line).partition("=")[0]
        if key not in new:
            out.append(str(line))
        elif key in left:
            out.append(f"{key}={left.pop(key)}")
    return [*out, *(f"{key}={value}" for key, value in left.items())]


def _history(
    old: list[Any], changes: ConfigChanges, added: int, created: str, squash: str
) -> list[Any]:
    if squash == "all":
        # The steps stay known; their layers are in the one that follows.
        old = [{**step, "empty_layer": True} for step in old if isinstance(step, dict)]
    steps: list[dict[str, Any]] = []
    for _ in range(max(1, added)):
        step: dict[str, Any] = {
            "created": created,
            "created_by": changes.get("created_by") or CREATED_BY,
        }
        if changes.get("author") is not None:
            step["author"] = changes.get("author")
        if not added:
            step["empty_layer"] = True
        steps.append(step)
    if changes.get("message") is not None:
        steps[-1]["comment"] = changes.get("message")
    return [*old, *steps]


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# ---- storing ----------------------------------------------------------------------------------


def _store(
    op: Operation,
    name: str,
    base: Base,
    config: bytes,
    layers: Sequence[Layer],
    annotations: Mapping[str, str],
) -> ImageInfo:
    parts = [Descriptor(digest_of(config), len(config), mediatypes.OCI_CONFIG)]
    parts += [Descriptor(one.digest, one.size, one.media_type) for one in layers]
    rows = [{"mediaType": d.media_type, "digest": d.digest, "size": d.size} for d in parts]
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "config": rows[0],
        "layers": rows[1:],
    }
    said = dict(annotations)
    if base.digest is not None:
        said[BASE_DIGEST] = base.digest
    if said:
        document["annotations"] = said
    data = _dump(document)
    op.put(config, digest=parts[0].digest, size=len(config), media_type=mediatypes.OCI_CONFIG)
    edges = {
        d.digest: Edge(
            d.digest,
            "child" if op.have(d.digest) is not None else "absent",
            d.size,
            d.media_type,
        )
        for d in parts
    }
    digest = digest_of(data)
    op.put(
        data,
        digest=digest,
        size=len(data),
        media_type=mediatypes.OCI_MANIFEST,
        edges=list(edges.values()),
    )
    ref = Ref(name, digest, len(data), mediatypes.OCI_MANIFEST)
    op.commit_refs({name: ref})
    return images.describe(op, ref)
