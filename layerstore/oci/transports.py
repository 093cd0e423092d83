"""What a user types for "from where" and "to where": `oci:DIR[:TAG]` and its kin.

The syntax is that of containers-transports(5), so a path cannot hold a colon; `@N` behind a path takes
the Nth entry (from 0), as there, and a digest may stand for a tag. `docker://` is `remote.names`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InvalidInputError, UnsupportedError
from ..remote.names import Place
from ..remote.names import parse as parse_place

OCI = "oci"
OCI_ARCHIVE = "oci-archive"
DOCKER_ARCHIVE = "docker-archive"
DOCKER = "docker"
KINDS = (OCI, OCI_ARCHIVE, DOCKER_ARCHIVE, DOCKER)
LATER = ("layerstore",)
_INDEX = re.compile(r"(.+)@([0-9]{1,9})\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Transport:
    """`selector`: a tag, a name, a digest, or None; `position`: which entry, or None. `place`: of a
    registry, whose `path` is its repository with its host."""

    kind: str
    path: str
    selector: str | None = None
    position: int | None = None
    place: Place | None = None

    @property
    def pipe(self) -> bool:
        """Whether the path is `-`: standard input or output."""
        return self.path == "-"

    def __str__(self) -> str:
        if self.place is not None:
            return str(self.place)
        end = "" if self.selector is None else f":{self.selector}"
        end = end if self.position is None else f":@{self.position}"
        return f"{self.kind}:{self.path}{end}"


def parse(text: str) -> Transport:
    """Raises InvalidInputError for what is no transport, UnsupportedError for one not built yet."""
    kind, colon, rest = text.partition(":")
    if colon and kind in LATER:
        raise UnsupportedError(f"the transport {kind}: is not there yet (known: {_known()})")
    if not colon or kind not in KINDS:
        raise InvalidInputError(
            f"not a transport: {text[:300]!r} (known: {_known()})", reason="transport"
        )
    if kind == DOCKER:
        if not rest.startswith("//"):
            raise InvalidInputError(
                f"{text[:300]!r} is no place in a registry: write docker://HOST/NAME[:TAG]",
                reason="transport",
            )
        place = parse_place(text)
        return Transport(kind, place.name, place.digest or place.tag, place=place)
    path, colon, selector = rest.partition(":")
    position: int | None = None
    if colon and re.fullmatch(r"@[0-9]{1,9}", selector):
        position, selector = int(selector[1:]), ""
    elif not colon and (match := _INDEX.match(path)):
        path, position = match.group(1), int(match.group(2))
    elif colon and not selector:
        raise InvalidInputError(
            f"{text[:300]!r} ends in a colon: a tag is missing", reason="transport"
        )
    if not path:
        raise InvalidInputError(f"{text[:300]!r} names no path", reason="transport")
    if "\0" in text:
        raise InvalidInputError(f"{text[:300]!r} holds a NUL", reason="transport")
    if path == "-" and kind == OCI:
        raise InvalidInputError(
            "oci: is a directory; for a pipe take oci-archive:-", reason="transport"
        )
    return Transport(kind, path, selector or None, position)


def _known() -> str:
    return (
        "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], "
        "docker://HOST/NAME[:TAG|@DIGEST]"
    )
