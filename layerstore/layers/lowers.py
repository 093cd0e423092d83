"""Directories stacked as overlayfs stacks them: what a name means in the layers below.

As the kernel looks names up (fs/overlayfs/namei.c; overlayfs.rst): layer by layer from the top; a
whiteout or an opaque directory ends it; a redirect changes the name, or with a leading slash the
path, that is looked for from the next layer on; a file marked metacopy has its content in the next.
Slow, and only asked where an upper directory does not hold what it shows.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import NamedTuple

from ..core.walk import METACOPY, OPAQUE, REDIRECT, WHITEOUT, Found, Looker, parse_xattrs

PREFIXES = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")

Place = tuple[int, bytes]
"""Which layer (0 is the upper one), and the path in it."""


class Hit(NamedTuple):
    """A file of one layer."""

    place: Place
    found: Found


def overlay_xattr(found: Found, what: bytes) -> bytes | None:
    """The value of an xattr of overlayfs."""
    xattrs = parse_xattrs(found.xattrs)
    for prefix in PREFIXES:
        if prefix + what in xattrs:
            return xattrs[prefix + what]
    return None


def is_dir(found: Found) -> bool:
    return stat.S_ISDIR(found.node.mode)


def join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


class Stack:
    """The layers, topmost first; number 0 is the upper one."""

    def __init__(self, roots: Sequence[tuple[int, str]]) -> None:
        self.lookers = [Looker(fd, where) for fd, where in roots]
        self._children: tuple[Place, dict[bytes, Found]] | None = None

    def look(self, place: Place) -> Found | None:
        return self.lookers[place[0]].look(place[1])

    def children(self, place: Place) -> dict[bytes, Found]:
        """What lies in a directory of one layer."""
        return self.lookers[place[0]].children(place[1])

    def below(self, layer: int) -> list[Place]:
        """The roots of the layers below one."""
        return [(i, b"") for i in range(layer + 1, len(self.lookers))]

    def find(self, bases: Sequence[Place], want: bytes) -> list[Hit]:
        """What `want` (a name, or a path) is in the directories `bases`, topmost first: directories
        that merge, or a file, followed by those below it that its content comes from."""
        hits: list[Hit] = []
        at = 0
        while at < len(bases):
            layer, base = bases[at]
            hit, ends, want = self._single(layer, base, want)
            if hit is None:
                if ends:
                    break
                at += 1
                continue
            if hits and (is_dir(hits[0].found) != is_dir(hit.found)):
                break
            hits.append(hit)
            flags = hit.found.node.flags
            redirect = overlay_xattr(hit.found, b"redirect") if flags & REDIRECT else None
            if is_dir(hit.found):
                if flags & OPAQUE or (ends and not (redirect or b"").startswith(b"/")):
                    break
            elif not flags & METACOPY:
                # One without content goes on below an opaque directory, too: the kernel looks there.
                break
            if redirect is not None and redirect.startswith(b"/"):
                want = redirect[1:]
                bases = self.below(layer)
                at = 0
                continue
            if redirect is not None:
                want = join(want.rpartition(b"/")[0], redirect)
            at += 1
        return hits

    def _single(self, layer: int, base: bytes, want: bytes) -> tuple[Hit | None, bool, bytes]:
        """One layer's file, whether the layers below are hidden, and what it is called there: a
        directory on the way may be redirected itself."""
        path = base
        ends = False
        names = want.split(b"/")
        before = b""
        for i, name in enumerate(names):
            path = join(path, name)
            below = b"/".join((before, *names[i:])) if before else b"/".join(names[i:])
            found = self.look((layer, path))
            if found is None:
                return None, ends, below
            if found.node.flags & WHITEOUT:
                return None, True, below
            if i == len(names) - 1:
                return Hit((layer, path), found), ends, below
            if not is_dir(found):
                return None, True, below
            redirect = None
            if found.node.flags & OPAQUE:
                ends = True
            elif found.node.flags & REDIRECT:
                redirect = overlay_xattr(found, b"redirect")
            if redirect is None:
                before = join(before, name)
            elif redirect.startswith(b"/"):
                # It leads out of an opaque directory above it, and the search goes on.
                before = redirect[1:]
                ends = False
            else:
                before = join(before, redirect)
        return None, ends, want

    def lower_of(self, bases: Sequence[Place], name: bytes, upper: Found) -> list[Hit]:
        """What lies below a file or directory of the upper layer; `bases`: what lies below the
        directory that it is in."""
        flags = upper.node.flags
        if flags & OPAQUE:
            return []
        redirect = overlay_xattr(upper, b"redirect") if flags & REDIRECT else None
        if redirect is not None and redirect.startswith(b"/"):
            hits = self.find(self.below(0), redirect[1:])
        else:
            hits = self.find(bases, name if redirect is None else redirect)
        if hits and is_dir(hits[0].found) != is_dir(upper):
            return []
        return hits

    def lower_bases(self, directory: bytes) -> list[Place]:
        """What lies below a directory of the upper layer, given by its path there."""
        bases = self.below(0)
        path = b""
        for name in directory.split(b"/") if directory else ():
            path = join(path, name)
            upper = self.look((0, path))
            if upper is None:
                return []
            bases = [hit.place for hit in self.lower_of(bases, name, upper)]
        return bases

    def visible(self, path: bytes) -> Hit | None:
        """What somebody who looks at the stack sees at `path`."""
        bases: list[Place] = [(0, b""), *self.below(0)]
        hits: list[Hit] = []
        for name in path.split(b"/"):
            hits = self.find(bases, name)
            if not hits:
                return None
            bases = [hit.place for hit in hits] if is_dir(hits[0].found) else []
        return hits[0]
