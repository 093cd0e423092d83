"""What keeps what: blobs by digest, the edges of manifests, referrers, and closures of them.

Downward from a manifest to what it names and from a blob to the one that it is made from, backward
from each subject to its referrers, since a signature lives as long as its image. Edge kinds: see
`values.Edge`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from ..digest import to_key
from ..errors import CorruptError
from ..values import Edge
from .index import Snapshot, Table, Write
from .rows import SERIAL_SIZE, BlobRow, dump, serial_key, to_number

CHECKED = b"checked:"
"""META rows that say when a check last looked at a pack, a raw file, a blob."""


def serial_of(snapshot: Snapshot, digest: str) -> int | None:
    """The serial of a stored blob, condemned or not."""
    value = snapshot.get(Table.DIGESTS, to_key(digest))
    return None if value is None else to_number(value)


def blob_row(snapshot: Snapshot, serial: int) -> BlobRow | None:
    value = snapshot.get(Table.BLOBS, serial_key(serial))
    return None if value is None else BlobRow.parse(value)


def encode_edges(edges: Iterable[Edge]) -> bytes:
    return dump([[e.digest, e.kind, e.size, e.media_type] for e in edges])


def edges_of(snapshot: Snapshot, serial: int) -> tuple[Edge, ...]:
    """The digests that a manifest names; empty for other blobs."""
    value = snapshot.get(Table.EDGES, serial_key(serial))
    if value is None:
        return ()
    return tuple(Edge(d, kind, size, media) for d, kind, size, media in json.loads(value))


def referrers_of(snapshot: Snapshot, digest: str) -> list[int]:
    """Serials of the manifests whose subject is `digest`."""
    prefix = to_key(digest)
    return [
        to_number(key[len(prefix) :])
        for key, _ in snapshot.items(Table.SUBJECTS, prefix)
        if len(key) == len(prefix) + SERIAL_SIZE
    ]


def neighbours(snapshot: Snapshot, serial: int, *, strict: bool) -> Iterator[int]:
    """What lives as long as `serial`: its children that are here, what it is made from, and its
    referrers.

    strict: a blob row, or a needed child, that is missing raises CorruptError."""
    row = blob_row(snapshot, serial)
    if row is None:
        if strict:
            raise CorruptError(f"blob {serial} has no row in the index", where=f"blob {serial}")
        return
    if row.gzip is not None:
        inner = serial_of(snapshot, row.gzip.inner)
        if inner is not None:
            yield inner
        elif strict:
            raise CorruptError(
                f"blob {row.digest} is made from {row.gzip.inner}, which is not in the index",
                digest=row.gzip.inner,
                where=row.digest,
            )
    for edge in edges_of(snapshot, serial):
        if edge.kind == "subject":
            continue
        child = serial_of(snapshot, edge.digest)
        if child is not None:
            yield child
        elif strict and edge.kind == "child":
            raise CorruptError(
                f"manifest {row.digest} needs {edge.digest}, which is not in the index",
                digest=edge.digest,
                where=row.digest,
            )
    for digest in row.digests:
        yield from referrers_of(snapshot, digest)


def closure(
    snapshot: Snapshot, roots: Iterable[int], *, strict: bool = False, seen: set[int] | None = None
) -> set[int]:
    """Everything that lives as long as one of the roots. What is in `seen` already is passed over
    (and `seen` grows); returns only what is new."""
    known = set() if seen is None else seen
    new: set[int] = set()
    todo = [r for r in roots if r not in known]
    while todo:
        serial = todo.pop()
        if serial in known:
            continue
        known.add(serial)
        new.add(serial)
        todo.extend(n for n in neighbours(snapshot, serial, strict=strict) if n not in known)
    return new


def remove_blob(tx: Write, serial: int, row: BlobRow) -> None:
    """Deletes every row of a blob but those of leases that hold it."""
    key = serial_key(serial)
    for edge in edges_of(tx, serial):
        if edge.kind == "subject":
            tx.delete(Table.SUBJECTS, to_key(edge.digest) + key)
    for digest in row.digests:
        if tx.get(Table.DIGESTS, to_key(digest)) == key:
            tx.delete(Table.DIGESTS, to_key(digest))
    if row.diff_id is not None:
        tx.delete(Table.LAYERS, to_key(row.diff_id) + key)
    if row.raw is not None:
        tx.delete(Table.RAWS, serial_key(row.raw))
        tx.delete(Table.META, CHECKED + b"r" + serial_key(row.raw))
    tx.delete(Table.EDGES, key)
    tx.delete(Table.DAMAGE, b"b" + key)
    tx.delete(Table.META, CHECKED + b"b" + key)
    tx.delete(Table.BLOBS, key)
