"""Where `check --repair-from` takes bytes from: any transport, by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO

from .archive import INDEX, LISTING, docker_listing
from .docker import saved
from .layout import LayoutSource
from .members import Members, normal, open_indexed
from .transports import OCI, parse

READ = 1 << 20


def repair_source(transport: str) -> Callable[[str], BinaryIO | None]:
    """A function that gives a blob's bytes by digest, unverified, or None where the transport has none.

    An archive that is compressed, or comes from a pipe, is copied to a temporary file first. Raises
    InvalidInputError, NotFoundError, UnsupportedError."""
    where = parse(transport)
    if where.kind == OCI:
        layout = LayoutSource(where.path)
        return lambda digest: None if layout.size(digest) is None else layout.open(digest)
    members = open_indexed(where.path)
    by_digest = {} if members.size(INDEX) is not None else _docker_paths(members)

    def give(digest: str) -> BinaryIO | None:
        path = by_digest.get(digest, "blobs/" + digest.replace(":", "/"))
        return None if members.size(path) is None else members.open(path)

    return give


def _docker_paths(members: Members) -> dict[str, str]:
    """Where the configs and layers of a docker archive lie, by the digests of what is there."""
    out: dict[str, str] = {}
    if members.size(LISTING) is None:
        return out
    paths = {path for one in saved(members) for path in one.layers}
    paths |= {normal(str(item["Config"])) for item in docker_listing(members)}
    for path in sorted(paths):
        if members.size(path) is None:
            continue
        h = hashlib.sha256()
        with members.open(path) as f:
            while piece := f.read(READ):
                h.update(piece)
        out[f"sha256:{h.hexdigest()}"] = path
    return out
