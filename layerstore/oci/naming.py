"""Under which names images are stored that an import takes.

One image: NAME if it is given, else every full name that its entries carry, else their tag (`v1`
becomes `v1:latest`), else an error that asks for one. With `--all` NAME is a prefix: `mirror` makes
`mirror:TAG`, `mirror/` makes `mirror/TAG:latest`; a full name that begins with the prefix is kept, so
that what was exported comes back under its name; an untagged entry becomes `mirror@DIGEST`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidInputError
from . import references
from .sources import Root


def check_wish(name: str | None, everything: bool) -> None:
    """Refuses a NAME that cannot be one before anything is read."""
    if name is None:
        return
    if not everything:
        references.full_name(name)
        return
    bare = name.rstrip("/")
    reference = references.parse(bare)
    if reference.tag is not None or reference.digest is not None:
        raise InvalidInputError(
            f"{name!r} is to be a prefix for many images: give it without a tag", reason="prefix"
        )


def single(roots: Sequence[Root], name: str | None, where: str) -> dict[str, Root]:
    """The names of one image, which `roots` (at least one) all stand for."""
    if name is not None:
        return {references.full_name(name): roots[0]}
    found: dict[str, Root] = {}
    for root in roots:
        for full in _full_names(root):
            found.setdefault(full, root)
    if found:
        return found
    for root in roots:
        if root.tag is not None and references.is_name(root.tag):
            found.setdefault(references.full_name(root.tag), root)
    if not found:
        raise InvalidInputError(
            f"{where} gives the image no name: say under which NAME to store it",
            digest=roots[0].descriptor.digest,
            reason="no name",
        )
    return found


def several(roots: Sequence[Root], prefix: str | None, where: str) -> dict[str, Root]:
    """The names of all images. Raises InvalidInputError when two would get the same one."""
    digests: dict[str, set[str]] = {}
    for root in roots:
        if root.tag is not None:
            digests.setdefault(root.tag, set()).add(root.descriptor.digest)
    found: dict[str, Root] = {}
    for root in roots:
        own = root.tag if root.tag is not None and len(digests[root.tag]) == 1 else None
        names = _under(root, own, prefix) if prefix is not None else _own(root, where)
        for name in names:
            before = found.setdefault(name, root)
            if before.descriptor.digest != root.descriptor.digest:
                raise InvalidInputError(
                    f"{where} holds two images that would both be {name}: "
                    f"{before.descriptor.digest} and {root.descriptor.digest}; import them one by "
                    "one, or give a prefix that ends in /",
                    digest=root.descriptor.digest,
                    reason="same name",
                )
    return found


def _own(root: Root, where: str) -> list[str]:
    if not root.labels():
        raise InvalidInputError(
            f"{where} holds {root.descriptor.digest} without a tag: give a NAME, under which it "
            "becomes NAME@DIGEST",
            digest=root.descriptor.digest,
            reason="no name",
        )
    return list(single([root], None, where))


def _under(root: Root, tag: str | None, prefix: str) -> list[str]:
    full = _full_names(root)
    kept = [name for name in full if name.startswith(prefix.rstrip("/") + _joint(prefix))]
    if kept:
        return kept
    labels = [tag] if tag is not None else full
    if not labels:
        return [f"{prefix.rstrip('/')}@{root.descriptor.digest}"]
    if prefix.endswith("/"):
        return [references.full_name(prefix + label) for label in labels]
    tags = [
        label if references.is_tag(label) else references.split(label)[1] or "latest"
        for label in labels
    ]
    return [references.full_name(f"{prefix}:{tag}") for tag in tags]


def _joint(prefix: str) -> str:
    return "/" if prefix.endswith("/") else ":"


def _full_names(root: Root) -> list[str]:
    """Those that can be names here: one with a digest in it cannot."""
    out = []
    for name in root.full_names:
        bare, tag, digest = references.split(name)
        if digest is None and references.is_name(bare) and (tag is None or references.is_tag(tag)):
            out.append(references.full_name(name))
    return out
