"""What a user types for how layers are to be compressed: `gzip[:LEVEL]`, `zstd[:LEVEL]`, `none`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InvalidInputError

LEVELS = {"gzip": (range(1, 10), 6), "zstd": (range(1, 20), 3)}


@dataclass(frozen=True, slots=True)
class Compression:
    """`kind`: gzip, zstd or none; `level` is 0 for none."""

    kind: str
    level: int = 0


def parse(text: str) -> Compression:
    """Raises InvalidInputError for what is none."""
    if text == "none":
        return Compression("none")
    kind, colon, level = text.partition(":")
    if kind in LEVELS:
        levels, default = LEVELS[kind]
        if not colon:
            return Compression(kind, default)
        if re.fullmatch(r"[0-9]{1,3}", level) and int(level) in levels:
            return Compression(kind, int(level))
        raise InvalidInputError(
            f"no level of {kind}: {level[:40]!r} ({levels[0]} to {levels[-1]})", reason="level"
        )
    raise InvalidInputError(
        f"no compression: {text[:80]!r} (gzip[:LEVEL], zstd[:LEVEL] or none)", reason="compression"
    )
