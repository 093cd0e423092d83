"""Paths: which repository and which thing in it a request is about (distribution-spec, "Endpoints").

The grammar is the specification's; whatever does not fit it is answered before anything is looked up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .http import Failure

_NAME = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z"
)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+\Z")
_PATHS = re.compile(
    r"/v2/(?P<name>.+?)/(?:"
    r"(?P<uploads>blobs/uploads/?)|blobs/uploads/(?P<upload>[^/]+)|blobs/(?P<blob>[^/]+)|"
    r"manifests/(?P<manifest>[^/]+)|(?P<tags>tags/list)|referrers/(?P<referrers>[^/]+))\Z"
)
_OPERATION = {"/healthz": "health", "/readyz": "ready", "/metrics": "metrics"}
LOGIN = "/v2/token"
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Route:
    """What a path means; `kind` is `base`, `catalog`, or what of a repository it is."""

    kind: str
    name: str = ""
    argument: str = ""


def parse(path: str) -> Route:
    """Raises Failure for a path that means nothing."""
    if path in ("/v2", "/v2/"):
        return Route("base")
    if path == LOGIN:
        return Route("login")
    if path == "/v2/_catalog":
        return Route("catalog")
    if path in _OPERATION:
        return Route(_OPERATION[path])
    match = _PATHS.match(path)
    if match is None:
        raise Failure(404, "UNSUPPORTED", "there is nothing at this path")
    kind = match.lastgroup or ""
    argument = match.group(kind)
    name = match.group("name")
    check_name(name)
    if kind in ("blob", "referrers"):
        check_digest(argument)
    elif kind == "manifest":
        if ":" in argument:
            check_digest(argument)
        else:
            check_tag(argument)
    return Route(kind, name, argument)


def is_name(name: str) -> bool:
    return len(name) <= MAX_NAME and _NAME.match(name) is not None


def check_name(name: str) -> None:
    if not is_name(name):
        raise Failure(400, "NAME_INVALID", f"not a name of a repository: {name[:100]!r}")


def is_tag(tag: str) -> bool:
    return _TAG.match(tag) is not None


def check_tag(tag: str) -> None:
    if not is_tag(tag):
        raise Failure(400, "TAG_INVALID", f"not a tag: {tag[:100]!r}")


def check_digest(text: str) -> None:
    if not _DIGEST.match(text) or len(text) > 160:
        raise Failure(400, "DIGEST_INVALID", f"not a digest: {text[:160]!r}")
