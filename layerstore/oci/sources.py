"""What an import reads from: documents and blobs by digest, and the entries that name images.

A layout directory, an archive and docker's own format all look like this from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ..errors import InvalidInputError, NotFoundError
from ..values import Descriptor
from . import references
from .transports import Transport


@dataclass(frozen=True, slots=True)
class Root:
    """One entry of a source. `tag` is its own short name, `full_names` the whole ones it carries."""

    descriptor: Descriptor
    tag: str | None = None
    full_names: tuple[str, ...] = ()

    def labels(self) -> tuple[str, ...]:
        """Everything it may be asked for by."""
        return (*(() if self.tag is None else (self.tag,)), *self.full_names)


class Source(Protocol):
    """Blobs may be opened by several threads at once."""

    @property
    def where(self) -> str:
        """For messages: what was read."""

    @property
    def waits(self) -> bool:
        """Whether reading is mostly waiting for others: then more is read side by side."""

    @property
    def roots(self) -> Sequence[Root]:
        """The entries that name images, in their order."""

    def pick(self, transport: Transport) -> list[Root]:
        """The entries of the one image that is meant; see `choose`."""

    def untagged(self) -> Sequence[Root]:
        """Entries without any name."""

    def size(self, digest: str) -> int | None:
        """Bytes of a blob that is there, or None."""

    def open(self, digest: str) -> BinaryIO:
        """A blob that is there, unverified. Raises NotFoundError."""

    def close(self) -> None:
        """Lets go of files."""


def missing(source: Source, digest: str, why: str) -> NotFoundError:
    """The error for a blob that should be there."""
    return NotFoundError(
        f"{source.where} has no blob {digest}, {why}: it is incomplete; copy it again",
        digest=digest,
    )


def choose(where: str, given: Sequence[Root], transport: Transport) -> list[Root]:
    """The entries of the one image that the transport names, or of the only one there.

    Several entries come back when they name the same digest. Raises NotFoundError, and
    InvalidInputError when it is not clear which is meant."""
    roots = list(given)
    if not roots:
        raise NotFoundError(f"{where} holds no image")
    if transport.position is not None:
        if transport.position >= len(roots):
            raise NotFoundError(f"{where} has {len(roots)} entries, no @{transport.position}")
        return [roots[transport.position]]
    if transport.selector is None:
        if len({root.descriptor.digest for root in roots}) > 1:
            raise InvalidInputError(
                f"{where} holds {len(roots)} entries: name one of {_listing(roots)}, "
                "or take them all with --all",
                reason="several images",
            )
        return roots
    return _selected(where, roots, transport.selector)


def _selected(where: str, roots: list[Root], selector: str) -> list[Root]:
    for found in (
        [r for r in roots if r.tag == selector],
        [r for r in roots if selector in r.full_names],
        [r for r in roots if _short(selector) & {_s for n in r.full_names for _s in _short(n)}],
        [r for r in roots if any(references.split(name)[1] == selector for name in r.full_names)],
        [r for r in roots if _is_digest_of(r, selector)],
    ):
        if len({r.descriptor.digest for r in found}) > 1:
            raise InvalidInputError(
                f"{selector!r} names several entries of {where}: take one of {_listing(found)}",
                reason="ambiguous",
            )
        if found:
            return found
    raise NotFoundError(f"{where} has no image {selector!r}; there is: {_listing(roots)}")


def _short(name: str) -> set[str]:
    """A name as docker would write it out, so that `app:1` finds `docker.io/library/app:1`."""
    repository, tag, digest = references.split(name)
    if digest is not None:
        return set()
    for prefix in ("docker.io/library/", "docker.io/"):
        if repository.startswith(prefix):
            repository = repository[len(prefix) :]
            break
    return {f"{repository}:{tag or 'latest'}"}


def _is_digest_of(root: Root, selector: str) -> bool:
    prefix = references.digest_prefix(selector)
    return prefix is not None and references.digest_matches(root.descriptor.digest, prefix)


def _listing(roots: Sequence[Root]) -> str:
    names = []
    for i, root in enumerate(roots):
        names.append(next(iter(root.labels()), f"@{i} ({root.descriptor.digest})"))
    shown = ", ".join(names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
