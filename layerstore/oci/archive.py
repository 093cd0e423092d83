"""A tar that holds images, as a source: an OCI layout in a tar, or docker's own format.

`docker save` of today writes both into one: an OCI layout, and docker's manifest.json beside it. The
layout is taken then (it has the digests as the registry had them), with the names of manifest.json.
"""

from __future__ import annotations

from typing import BinaryIO, cast

from ..errors import InvalidInputError, LayerstoreError, NotFoundError
from ..values import Descriptor
from . import jsonio
from .members import Members, open_members
from .model import (
    Index,
    LayoutEntry,
    check_layout_version,
    parse_document,
    parse_layout_index,
)
from .puts import Puts
from .sources import Root, Source, choose
from .transports import Transport

INDEX = "index.json"
VERSION = "oci-layout"
LISTING = "manifest.json"
REPOSITORIES = "repositories"


def open_archive(transport: Transport, puts: Puts, jobs: int | None, *, docker: bool) -> Source:
    """The source in a file or pipe. `docker`: what docker-archive: means, else oci-archive:."""
    members = open_members(transport.path, puts)
    try:
        is_oci = members.size(INDEX) is not None
        is_docker = members.size(LISTING) is not None or members.size(REPOSITORIES) is not None
        if is_oci and (not docker or members.size(VERSION) is not None):
            return OciArchive(members, with_docker_names=docker)
        if docker and is_docker:
            from .docker import DockerArchive

            return DockerArchive(members, puts, jobs)
        if docker:
            raise NotFoundError(
                f"{members.where} is no docker archive: it has neither {LISTING} nor "
                f"{REPOSITORIES}" + (" (for a layout in a tar take oci-archive:)" * is_oci)
            )
        raise NotFoundError(
            f"{members.where} is no OCI archive: it has no {INDEX}"
            + (" (for what `docker save` writes take docker-archive:)" * is_docker)
        )
    except BaseException:
        members.close()
        raise


def docker_listing(members: Members) -> list[dict[str, object]]:
    """The entries of docker's manifest.json. Raises InvalidInputError."""
    data = members.read(LISTING, jsonio.MAX_LAYOUT_INDEX)
    what = f"{members.where}: {LISTING}"
    out = []
    for i, item in enumerate(jsonio.parse_list(data, what)):
        if not isinstance(item, dict):
            raise InvalidInputError(f"{what}: entry {i} is no object")
        tags, layers = item.get("RepoTags"), item.get("Layers")
        for key, value in (("RepoTags", tags), ("Layers", layers)):
            if value is not None and not (
                isinstance(value, list) and all(isinstance(one, str) for one in value)
            ):
                raise InvalidInputError(f"{what}: {key} of entry {i} is no array of strings")
        if not isinstance(item.get("Config"), str):
            raise InvalidInputError(f"{what}: entry {i} names no Config")
        out.append(cast("dict[str, object]", item))
    return out


def repo_tags(item: dict[str, object]) -> tuple[str, ...]:
    """The names of an entry of manifest.json; `<none>` is docker's word for none."""
    tags = cast("list[str]", item.get("RepoTags") or [])
    return tuple(dict.fromkeys(tag for tag in tags if tag and "<none>" not in tag))


class OciArchive:
    """An OCI layout in a tar. Closes the members when it is closed."""

    waits = False

    def __init__(self, members: Members, *, with_docker_names: bool = False) -> None:
        self.where = members.where
        self._members = members
        if members.size(VERSION) is None:
            raise NotFoundError(f"{self.where} is no OCI archive: it has no {VERSION}")
        check_layout_version(members.read(VERSION, 4096), f"{self.where}: {VERSION}")
        data = members.read(INDEX, jsonio.MAX_LAYOUT_INDEX)
        found = parse_layout_index(data, f"{self.where}: {INDEX}")
        names: dict[str, tuple[str, ...]] = {}
        if with_docker_names and members.size(LISTING) is not None:
            names = {str(item["Config"]): repo_tags(item) for item in docker_listing(members)}
        self.roots = [self._root(entry, names) for entry in found]

    def _root(self, entry: LayoutEntry, names: dict[str, tuple[str, ...]]) -> Root:
        full: tuple[str, ...] = () if entry.full_name is None else (entry.full_name,)
        if names:
            full = self._docker_names(entry.descriptor, names, 0) or full
        return Root(entry.descriptor, entry.tag, full)

    def _docker_names(
        self, descriptor: Descriptor, names: dict[str, tuple[str, ...]], depth: int
    ) -> tuple[str, ...]:
        """The RepoTags of the image whose config lies in this manifest, or in one below it."""
        if depth > 4 or self.size(descriptor.digest) is None:
            return ()
        path = _path(descriptor.digest)
        try:
            data = self._members.read(path, jsonio.MAX_MANIFEST)
            document = parse_document(data, descriptor.media_type, descriptor.digest)
        except LayerstoreError:
            # Only a name is wanted here: whoever imports this document says what is wrong with it.
            return ()
        if isinstance(document, Index):
            for child in document.manifests:
                found = self._docker_names(child, names, depth + 1)
                if found:
                    return found
            return ()
        return () if document.config is None else names.get(_path(document.config.digest), ())

    def size(self, digest: str) -> int | None:
        return self._members.size(_path(digest))

    def open(self, digest: str) -> BinaryIO:
        return self._members.open(_path(digest))

    def pick(self, transport: Transport) -> list[Root]:
        return choose(self.where, self.roots, transport)

    def untagged(self) -> list[Root]:
        return [root for root in self.roots if not root.labels()]

    def close(self) -> None:
        self._members.close()


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
