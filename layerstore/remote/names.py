"""What stands behind `docker://`: a registry, a repository, a tag or digest.

The grammar is distribution's (reference.go). The registry is always named: no default is filled in, so
`docker://app` is refused rather than looked for on a server that nobody named. Of docker.io an image
without a namespace is in `library`, as everywhere.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ..digest import parse as parse_digest
from ..errors import InvalidInputError

HUB = "docker.io"
HUB_SERVER = "registry-1.docker.io"
_HUB_NAMES = (HUB, "index.docker.io")
MAX_NAME = 255

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?\Z"
)
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Place:
    """`host` with its port, as typed; `repository` in full; `tag` and `digest` None if left out."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The repository with its registry."""
        return f"{self.host}/{self.repository}"

    @property
    def reference(self) -> str:
        """What to ask the registry for."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return f"docker://{self.name}{tag}{digest}"


def parse(text: str) -> Place:
    """`HOST[:PORT]/NAME[:TAG][@DIGEST]`, with or without `docker://` before it. With both a tag and a
    digest the digest decides. Raises InvalidInputError."""
    rest = text.removeprefix("docker://")
    host, slash, path = rest.partition("/")
    if not slash or not _is_host(host):
        raise InvalidInputError(
            f"{text[:300]!r} names no registry: write docker://HOST[:PORT]/NAME[:TAG], for instance "
            f"docker://{HUB}/{rest[:80] or 'app'}",
            reason="transport",
        )
    path, at, digest = path.partition("@")
    path, colon, tag = path.partition(":")
    if at:
        parse_digest(digest)
    if colon and not _TAG.match(tag):
        raise InvalidInputError(f"not a tag: {tag[:160]!r} in {text[:300]!r}", reason="transport")
    host = check_host(host)
    if host == HUB and "/" not in path:
        path = f"library/{path}"
    check_repository(path, text)
    return Place(host, path, tag if colon else None, digest if at else None)


def parse_registry(text: str) -> tuple[str, str]:
    """`docker://HOST[:PORT][/PREFIX]`: the registry, and what all its repositories begin with, or
    nothing. Raises InvalidInputError."""
    if not text.startswith("docker://"):
        raise InvalidInputError(
            f"not a registry: {text[:300]!r} (docker://HOST[:PORT])", reason="transport"
        )
    host, _, prefix = text.removeprefix("docker://").partition("/")
    prefix = prefix.strip("/")
    if not _is_host(host):
        raise InvalidInputError(
            f"{text[:300]!r} names no registry: write docker://HOST[:PORT]", reason="transport"
        )
    if prefix:
        check_repository(prefix, text)
    return check_host(host), prefix


def check_host(host: str) -> str:
    """A registry's name in the form that everything here compares."""
    if not _HOST.match(host):
        raise InvalidInputError(f"not the name of a registry: {host[:300]!r}", reason="transport")
    host = host.lower()
    return HUB if host in _HUB_NAMES else host


def check_repository(path: str, text: str) -> None:
    if len(path) > MAX_NAME or not _REPOSITORY.match(path):
        raise InvalidInputError(
            f"not a repository: {path[:200]!r} in {text[:300]!r} (lower-case letters and digits, "
            "joined by . _ - and /)",
            reason="transport",
        )


def _is_host(text: str) -> bool:
    """What can be told from a namespace: it has a dot or a port, or is localhost."""
    return _HOST.match(text) is not None and (
        "." in text or ":" in text or text.lower() == "localhost"
    )


def server_of(host: str) -> str:
    """Where the registry of that name answers."""
    return HUB_SERVER if host == HUB else host


def is_loopback(host: str) -> bool:
    """Whether a host (a port may follow) is this machine, by its name alone: nothing is resolved."""
    bare = host.lower()
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False
