"""OCI digests: `algorithm:hex`, parsed to a fixed type before anything else is done with them.

Floor 0. image-spec descriptor.md, section "Digests"; registered algorithms sha256, sha512, blake3.
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from blake3 import blake3

from .errors import InvalidInputError

ALGORITHMS = {"sha256": 32, "sha512": 64, "blake3": 32}
_CODES = {"sha256": 1, "sha512": 2, "blake3": 3}
_NAMES = {code: name for name, code in _CODES.items()}
_GRAMMAR = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+\Z")
_HEX = re.compile(r"[0-9a-f]+\Z")


class Hasher(Protocol):
    """What hashlib and blake3 objects share."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


def parse(digest: str) -> tuple[str, bytes]:
    """`(algorithm, raw bytes)` of a digest.

    Raises InvalidInputError when it is no digest, has an unknown algorithm or the wrong length."""
    if not isinstance(digest, str) or not _GRAMMAR.match(digest):
        raise InvalidInputError(f"not a digest: {str(digest)[:100]!r}", reason="digest grammar")
    algorithm, _, encoded = digest.partition(":")
    size = ALGORITHMS.get(algorithm)
    if size is None:
        raise InvalidInputError(
            f"digest algorithm {algorithm!r} is not known (known: sha256, sha512, blake3)",
            reason="digest algorithm",
        )
    if len(encoded) != size * 2 or not _HEX.match(encoded):
        raise InvalidInputError(
            f"not a {algorithm} digest: {digest[:160]!r} (needs {size * 2} lower-case hex digits)",
            reason="digest length",
        )
    return algorithm, bytes.fromhex(encoded)


def to_key(digest: str) -> bytes:
    """The key of a digest in the index: one byte for the algorithm, then the raw digest."""
    algorithm, raw = parse(digest)
    return bytes((_CODES[algorithm],)) + raw


def from_key(key: bytes) -> str:
    """The inverse of `to_key`."""
    return f"{_NAMES[key[0]]}:{key[1:].hex()}"


def algorithm_of(digest: str) -> str:
    """The algorithm of a digest, checked."""
    return parse(digest)[0]


def hasher(algorithm: str = "sha256") -> Hasher:
    """A new hash object for one of the registered algorithms."""
    if algorithm == "sha256":
        return hashlib.sha256(usedforsecurity=False)
    if algorithm == "sha512":
        return hashlib.sha512(usedforsecurity=False)
    if algorithm == "blake3":
        return blake3()
    raise InvalidInputError(
        f"digest algorithm {algorithm!r} is not known", reason="digest algorithm"
    )


def digest_of(data: bytes | memoryview, algorithm: str = "sha256") -> str:
    """The digest of bytes in memory."""
    h = hasher(algorithm)
    h.update(data)
    return f"{algorithm}:{h.hexdigest()}"
