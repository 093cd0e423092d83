"""Names of images: `NAME[:TAG][@DIGEST]`, kept literally, and digest prefixes.

The grammar is distribution's (reference.go), with capital letters allowed in the path, since tags of
layouts become names. No default registry is added; the default tag is `latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..digest import parse as parse_digest
from ..errors import InvalidInputError

MAX_NAME = 255
MIN_PREFIX = 8

_COMPONENT = r"[A-Za-z0-9]+(?:(?:\.|_|__|-+)[A-Za-z0-9]+)*"
_HOST = rf"(?:{_COMPONENT}|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?"
_NAME = re.compile(rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_PREFIX = re.compile(r"(?:(sha256|sha512|blake3):)?([0-9a-f]{8,128})\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """The parts of what was given; `tag` and `digest` None where they were left out."""

    name: str
    tag: str | None
    digest: str | None


def is_tag(text: str) -> bool:
    return _TAG.match(text) is not None


def is_name(text: str) -> bool:
    return len(text) <= MAX_NAME and _NAME.match(text) is not None


def split(text: str) -> tuple[str, str | None, str | None]:
    """Name, tag and digest as text, unchecked: the tag's colon is the one behind the last slash."""
    rest, at, digest = text.partition("@")
    slash = rest.rfind("/")
    colon = rest.find(":", slash + 1)
    if colon < 0:
        return rest, None, digest if at else None
    return rest[:colon], rest[colon + 1 :], digest if at else None


def parse(text: str) -> Reference:
    """Raises InvalidInputError for what is no name."""
    name, tag, digest = split(text)
    if not is_name(name):
        raise InvalidInputError(
            f"not a name of an image: {text[:300]!r} (letters and digits, joined by . _ - and /)",
            reason="reference grammar",
        )
    if tag is not None and not is_tag(tag):
        raise InvalidInputError(
            f"not a tag: {tag[:160]!r} in {text[:300]!r} (letters, digits and _ . -, up to 128)",
            reason="reference grammar",
        )
    if digest is not None:
        parse_digest(digest)
    return Reference(name, tag, digest)


def full_name(text: str) -> str:
    """`NAME:TAG` of a name to be given; the tag is `latest` where there is none.

    Raises InvalidInputError for what is no name, or names a digest."""
    reference = parse(text)
    if reference.digest is not None:
        raise InvalidInputError(
            f"{text[:300]!r} holds a digest: give a name with a tag", reason="reference grammar"
        )
    return f"{reference.name}:{reference.tag or 'latest'}"


def digest_prefix(text: str) -> tuple[str | None, str] | None:
    """`(algorithm or None, hex digits)` of a digest or a prefix of one with at least 8 digits; None
    for anything else."""
    match = _PREFIX.match(text)
    return None if match is None else (match.group(1), match.group(2))


def digest_matches(digest: str, prefix: tuple[str | None, str]) -> bool:
    """Whether a digest begins as the prefix says."""
    algorithm, _, encoded = digest.partition(":")
    return prefix[0] in (None, algorithm) and encoded.startswith(prefix[1])
