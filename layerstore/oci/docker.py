"""docker's own archive format, as `docker save` wrote it before it became an OCI layout.

Two styles: manifest.json lists config and layers of each image by path (docker 1.10 and later); before,
`repositories` names the topmost layer's directory, and each directory's `json` names its parent.
Neither has a manifest, nor digests of layers, so one is made: docker's schema 2, layers as they lie in
the tar (uncompressed, as a rule), the same bytes for the same archive. A config of the oldest style is
made too, as docker's migration does it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from .. import mediatypes
from ..digest import digest_of
from ..errors import InvalidInputError
from ..layers.inflate import compression_of
from ..values import BlobInfo, Descriptor
from . import jsonio, parallel
from .archive import LISTING, REPOSITORIES, docker_listing, repo_tags
from .members import Members, normal
from .model import parse_config
from .puts import Puts
from .sources import Root, choose, missing
from .transports import Transport

MAX_LAYERS = 1000
_TYPES = {
    None: mediatypes.DOCKER_LAYER,
    "gzip": mediatypes.DOCKER_LAYER_GZIP,
    "zstd": mediatypes.DOCKER_LAYER + ".zstd",
}


@dataclass(slots=True)
class Saved:
    """An image as the archive describes it. `config` None: to be made from `history`."""

    names: tuple[str, ...]
    layers: list[str]
    config: bytes | None
    diff_ids: tuple[str | None, ...] = ()
    history: list[dict[str, object]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Something that tells images apart before they have a manifest."""
        return digest_of(
            self.config if self.config is not None else "\n".join(self.layers).encode()
        )


class DockerArchive:
    """A source whose manifests are made when they are asked for: the layers of what was chosen are put
    first, since nothing but their content tells their digests."""

    waits = False

    def __init__(self, members: Members, puts: Puts, jobs: int | None) -> None:
        self.where = members.where
        self._members = members
        self._puts = puts
        self._jobs = jobs
        self._documents: dict[str, bytes] = {}
        self._layers: dict[str, BlobInfo] = {}
        self._made: dict[str, Root] = {}
        self._saved = saved(members)

    @property
    def roots(self) -> list[Root]:
        return self._make(self._saved)

    def pick(self, transport: Transport) -> list[Root]:
        named = [Root(Descriptor(one.key, 0), None, one.names) for one in self._saved]
        chosen = {id(root) for root in choose(self.where, named, transport)}
        return self._make(
            [one for one, root in zip(self._saved, named, strict=True) if id(root) in chosen]
        )

    def untagged(self) -> list[Root]:
        return []

    def size(self, digest: str) -> int | None:
        if digest in self._documents:
            return len(self._documents[digest])
        return self._layers[digest].bytes if digest in self._layers else None

    def open(self, digest: str) -> BinaryIO:
        if digest in self._documents:
            return io.BytesIO(self._documents[digest])
        if digest in self._layers:
            return cast(BinaryIO, self._puts.op.open(digest))
        raise missing(self, digest, "which nothing here has")

    def close(self) -> None:
        self._members.close()

    # ---- making manifests ---------------------------------------------------------------------

    def _make(self, images: list[Saved]) -> list[Root]:
        waiting = [one for one in images if one.key not in self._made]
        wanted: dict[str, str | None] = {}
        for one in waiting:
            for path, diff_id in zip(one.layers, one.diff_ids, strict=True):
                wanted.setdefault(path, diff_id)
        puts = [self._task(path, diff_id) for path, diff_id in wanted.items()]
        meter = self._puts.meter
        meter.expect(sum(self._members.size(path) or 0 for path in wanted))
        infos = dict(zip(wanted, parallel.run(puts, self._jobs, meter), strict=True))
        for one in waiting:
            self._made[one.key] = self._root(one, [infos[path] for path in one.layers])
        return [Root(self._made[one.key].descriptor, None, one.names) for one in images]

    def _task(self, path: str, diff_id: str | None) -> Callable[[], tuple[str, BlobInfo]]:
        return lambda: self._layer(path, diff_id)

    def _layer(self, path: str, diff_id: str | None) -> tuple[str, BlobInfo]:
        """Puts one layer; its media type and what became of it."""
        size = self._members.size(path)
        if size is None:
            raise InvalidInputError(
                f"{self.where}: layer {path} is named and not there", path=path, reason="missing"
            )
        with self._members.open(path) as f:
            kind = compression_of(f.read(8) if size else b"")
        known = self._members.digest(path)
        if known is None and kind is None and diff_id is not None:
            # An uncompressed layer's digest is its diff_id: if that is here, nothing is read.
            info = self._puts.op.have(diff_id)
            known = diff_id if info is not None and info.bytes == size else None
        with self._members.open(path) as f:
            info = self._puts.streamed(f, size, _TYPES[kind], known, diff_id)
        if known is not None:
            self._puts.meter.add(size)
        self._layers[info.digest] = info
        return _TYPES[kind], info

    def _root(self, one: Saved, layers: list[tuple[str, BlobInfo]]) -> Root:
        config = one.config
        if config is None:
            config = made_config(one.history, [_diff_id(info) for _, info in layers])
        data = made_manifest(config, layers)
        descriptor = Descriptor(digest_of(data), len(data), mediatypes.DOCKER_MANIFEST)
        self._documents[descriptor.digest] = data
        self._documents[digest_of(config)] = config
        return Root(descriptor, None, one.names)


def _diff_id(info: BlobInfo) -> str:
    return info.diff_id if info.diff_id is not None else info.digest


def made_manifest(config: bytes, layers: list[tuple[str, BlobInfo]]) -> bytes:
    """A docker schema 2 manifest. The order of its keys is docker's."""
    return jsonio.dump(
        {
            "schemaVersion": 2,
            "mediaType": mediatypes.DOCKER_MANIFEST,
            "config": {
                "mediaType": mediatypes.DOCKER_CONFIG,
                "size": len(config),
                "digest": digest_of(config),
            },
            "layers": [
                {"mediaType": media_type, "size": info.bytes, "digest": info.digest}
                for media_type, info in layers
            ],
        }
    )


# ---- reading the two styles -------------------------------------------------------------------


def saved(members: Members) -> list[Saved]:
    """The images that an archive describes, in its order. Raises InvalidInputError."""
    if members.size(LISTING) is not None:
        return [_listed(members, item) for item in docker_listing(members)]
    return _from_repositories(members)


def _listed(members: Members, item: dict[str, object]) -> Saved:
    path = normal(str(item["Config"]))
    layers = [normal(layer) for layer in cast("list[str]", item.get("Layers") or [])]
    config = members.read(path, jsonio.MAX_CONFIG)
    diff_ids = parse_config(config, digest_of(config)).diff_ids
    if len(diff_ids) != len(layers):
        raise InvalidInputError(
            f"{members.where}: {path} has {len(diff_ids)} diff_ids for {len(layers)} layers",
            path=path,
        )
    return Saved(repo_tags(item), layers, config, diff_ids)


def _from_repositories(members: Members) -> list[Saved]:
    what = f"{members.where}: {REPOSITORIES}"
    value = jsonio.parse(members.read(REPOSITORIES, jsonio.MAX_MANIFEST), what)
    tops: dict[str, list[str]] = {}
    for name, tags in value.items():
        if not isinstance(tags, dict):
            raise InvalidInputError(f"{what}: {name[:100]!r} has no tags")
        for tag, top in tags.items():
            if not isinstance(top, str):
                raise InvalidInputError(f"{what}: {name[:100]!r} has a tag without a layer")
            tops.setdefault(top, []).append(f"{name}:{tag}")
    return [_chain(members, top, tuple(names)) for top, names in tops.items()]


def _chain(members: Members, top: str, names: tuple[str, ...]) -> Saved:
    """From the topmost directory down to the one without a parent."""
    steps: list[dict[str, object]] = []
    ids: list[str] = []
    one: str | None = top
    while one is not None:
        if one in ids or len(ids) >= MAX_LAYERS:
            raise InvalidInputError(
                f"{members.where}: the parents of {top[:100]!r} form a circle, or are more than "
                f"{MAX_LAYERS}",
                reason="cycle",
            )
        ids.append(one)
        path = normal(f"{one}/json")
        step = jsonio.parse(members.read(path, jsonio.MAX_CONFIG), f"{members.where}: {path}")
        steps.append(step)
        parent = step.get("parent")
        one = parent if isinstance(parent, str) and parent else None
    layers = [normal(f"{one}/layer.tar") for one in reversed(ids)]
    steps.reverse()
    return Saved(names, layers, None, (None,) * len(layers), steps)


_NOT_KEPT = ("id", "parent", "parent_id", "layer_id", "throwaway", "Size")


def made_config(steps: list[dict[str, object]], diff_ids: list[str]) -> bytes:
    """The config of an image of the oldest style: the topmost step's, without what tells of
    directories, with rootfs and history; keys sorted."""
    value = {k: v for k, v in steps[-1].items() if k not in _NOT_KEPT}
    value["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    value["history"] = [_history(step) for step in steps]
    return jsonio.dump({key: value[key] for key in sorted(value)})


def _history(step: Mapping[str, object]) -> dict[str, object]:
    out = {k: step[k] for k in ("created", "author", "comment") if step.get(k)}
    ran = step.get("container_config")
    command = ran.get("Cmd") if isinstance(ran, dict) else None
    if isinstance(command, list) and all(isinstance(word, str) for word in command):
        out["created_by"] = " ".join(command)
    return out
