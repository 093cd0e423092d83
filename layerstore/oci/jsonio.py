"""JSON from outside, strictly: bounded in size and depth, no key twice, nothing but JSON.

Parsers that differ in what they let pass are how one document becomes two (CVE-2021-41190), so what
RFC 8259 leaves open is refused here: duplicate keys, NaN, invalid UTF-8, a byte order mark. The bytes
themselves are the caller's to keep: documents are stored and given back exactly as they came.
"""

from __future__ import annotations

import json
import re
from typing import NoReturn, cast

from ..errors import InvalidInputError, LimitError

MAX_MANIFEST = 4 << 20
"""Bytes of a manifest or index: what distribution-spec asks registries to take."""
MAX_CONFIG = 16 << 20
MAX_LAYOUT_INDEX = 64 << 20
"""A layout's index.json lists every image there."""
MAX_DEPTH = 100
"""Nested arrays and objects; honest documents need fewer than ten."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class _Duplicate(ValueError):
    pass


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Duplicate(f"key {key[:80]!r} twice")
            seen.add(key)
    return out


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def check_size(size: int, limit: int, what: str, digest: str | None = None) -> None:
    """Raises LimitError for a document that is too large to be looked at; nothing is read then."""
    if size > limit:
        raise LimitError(
            f"{what} has {size} bytes, more than the {limit} that are read of such a document",
            digest=digest,
        )


def parse(
    data: bytes, what: str, *, digest: str | None = None, limit: int = MAX_MANIFEST
) -> dict[str, object]:
    """The object in `data`; `what` names it in errors.

    Raises InvalidInputError (with the offset where it is known) and LimitError past `limit` bytes."""
    check_size(len(data), limit, what, digest)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InvalidInputError(
            f"{what} is not UTF-8 at byte {e.start}", digest=digest, offset=e.start, reason="utf-8"
        ) from e
    _check_depth(text, what, digest)
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except json.JSONDecodeError as e:
        raise InvalidInputError(
            f"{what} is not JSON: {e.msg} at byte {e.pos}",
            digest=digest,
            offset=e.pos,
            reason="json",
        ) from e
    except ValueError as e:
        # A duplicate key, a constant, or an integer of thousands of digits.
        raise InvalidInputError(
            f"{what} is not acceptable JSON: {e}", digest=digest, reason="json"
        ) from e
    if not isinstance(value, dict):
        raise InvalidInputError(f"{what} is not a JSON object", digest=digest, reason="json")
    return cast(dict[str, object], value)


def parse_list(data: bytes, what: str, *, limit: int = MAX_LAYOUT_INDEX) -> list[object]:
    """As `parse`, for a document that is an array (docker's manifest.json)."""
    check_size(len(data), limit, what)
    wrapped = parse(b'{"list":' + data + b"}", what, limit=limit + 16)
    value = wrapped["list"]
    if not isinstance(value, list) or len(wrapped) != 1:
        raise InvalidInputError(f"{what} is not a JSON array", reason="json")
    return cast(list[object], value)


def _check_depth(text: str, what: str, digest: str | None) -> None:
    """json.loads recurses: a deep document would end in RecursionError."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        token = match.group()
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidInputError(
                    f"{what} nests deeper than {MAX_DEPTH}",
                    digest=digest,
                    offset=match.start(),
                    reason="json depth",
                )
        elif token in "]}":
            depth -= 1


def dump(value: object) -> bytes:
    """Compact JSON, ASCII, keys in the order given: the same value gives the same bytes."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")
