"""What a mirror holds for a time, and how it goes before its time, where space is wanted.

A manifest with a ttl, the tags that were lent to it, and of the blobs that it names those whose row
says that a mirror brought them: whoever asks for them again has them fetched again. What anybody else
put, mounted, named or asked for to push is a promise, and is not among it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..digest import from_key, to_key
from . import graph
from .index import Snapshot, Table, Write

Row = tuple[bytes, bytes]
"""Key and value, as they were when somebody looked: who asked for it since has changed it."""


@dataclass(frozen=True, slots=True)
class Lent:
    """An image that a mirror holds. `blobs`: rows of those that no manifest needs which was asked for
    later, or is to stay."""

    manifest: Row
    digest: str
    since: float
    tags: tuple[bytes, ...]
    blobs: tuple[Row, ...]

    def rows(self) -> Iterator[bytes]:
        """Keys of all rows that go with it."""
        yield self.manifest[0]
        yield from self.tags
        yield from (key for key, _ in self.blobs)

    def digests(self) -> Iterator[str]:
        """What these rows keep."""
        yield self.digest
        yield from (from_key(key.partition(b"\0")[2]) for key, _ in self.blobs)


def images(snapshot: Snapshot) -> list[Lent]:
    """All of a store, the one first that was asked for last."""
    out: list[Lent] = []
    rows = snapshot.items(Table.MEMBERS)
    for name, group in itertools.groupby(rows, key=lambda row: row[0].partition(b"\0")[0]):
        out += _images_of(snapshot, name, group)
    return sorted(out, key=lambda one: one.since, reverse=True)


def _images_of(snapshot: Snapshot, name: bytes, rows: Iterable[Row]) -> Iterator[Lent]:
    blobs: dict[bytes, Row] = {}
    lent: list[tuple[float, bytes, Row]] = []
    needed: set[bytes] = set()
    for key, value in rows:
        row, digest = json.loads(value), key[len(name) + 1 :]
        if row["kind"] != "manifest":
            if row.get("lent"):
                blobs[digest] = (key, value)
        elif row["ttl"] is None:
            needed |= _named(snapshot, digest)
        else:
            lent.append((row["since"], digest, (key, value)))
    tags = _tags_of(snapshot, name) if lent else {}
    for since, digest, manifest in sorted(lent, reverse=True):
        wanted = _named(snapshot, digest)
        own = tuple(blobs[one] for one in sorted(wanted - needed) if one in blobs)
        needed |= wanted
        text = from_key(digest)
        yield Lent(manifest, text, since, tuple(tags.get(text, ())), own)


def _named(snapshot: Snapshot, digest: bytes) -> set[bytes]:
    serial = graph.serial_of(snapshot, from_key(digest))
    edges = () if serial is None else graph.edges_of(snapshot, serial)
    return {to_key(edge.digest) for edge in edges}


def _tags_of(snapshot: Snapshot, name: bytes) -> dict[str, list[bytes]]:
    """Tags that were lent, by the digest that they name."""
    out: dict[str, list[bytes]] = {}
    for ref, value in snapshot.items(Table.REFS, name + b":"):
        row = json.loads(value)
        if row.get("lent") and b"/" not in ref[len(name) :]:
            out.setdefault(row["digest"], []).append(ref)
    return out


def let_go(tx: Write, lent: Lent) -> bool:
    """Takes an image out of its repository; False, and nothing goes, if it was asked for since."""
    key, value = lent.manifest
    if tx.get(Table.MEMBERS, key) != value:
        return False
    for ref in lent.tags:
        about = tx.get(Table.REFS, ref)
        row = {} if about is None else json.loads(about)
        if row.get("lent") and row["digest"] == lent.digest:
            tx.delete(Table.REFS, ref)
    for blob, before in lent.blobs:
        if tx.get(Table.MEMBERS, blob) == before:
            tx.delete(Table.MEMBERS, blob)
    return tx.delete(Table.MEMBERS, key)
