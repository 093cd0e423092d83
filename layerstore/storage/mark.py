"""Marking: what refs and leases reach, as a set of blob serials and a bitmap of chunk numbers.

Marking again costs only what is new: blobs that were seen before are passed over. A needed blob that
is missing, or a chunk list that cannot be read, raises: a mark that is not sure never deletes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from ..core.runs import Bitmap, RunArray
from ..digest import from_key, to_key
from ..errors import CorruptError
from . import cache, graph, repositories, unpacked
from .index import Snapshot, Table
from .leases import expired, held_serials, session_of
from .locks import FileLock
from .rows import Runs, serial_key, to_number

if TYPE_CHECKING:
    from .storage import Storage


def session_alive(storage: Storage, lease: bytes) -> bool:
    """Whether the process that owns a session still runs: its lock tells."""
    path = os.path.join(storage.path, "sessions", lease.hex())
    lock = FileLock(path)
    if lock.try_acquire(create=False):
        lock.release()
        return False
    return os.path.exists(path)


def live_leases(storage: Storage, snapshot: Snapshot) -> Iterator[bytes]:
    """The leases that protect what they hold: of live sessions, and those that have not expired."""
    for key, value in snapshot.items(Table.LEASES):
        session = session_of(key, value)
        if not expired(value) if session is None else session_alive(storage, session):
            yield key


def roots(
    storage: Storage,
    snapshot: Snapshot,
    *,
    without: Collection[bytes] = (),
    unlent: Collection[bytes] = (),
) -> set[int]:
    """The blobs that refs, live leases, snapshots, repositories and cache entries name, but for some
    entries (`without`) and some refs and members (`unlent`). Raises CorruptError for what names
    nothing."""
    out: set[int] = set()
    for name, value in snapshot.items(Table.REFS):
        if name in unlent:
            continue
        digest = json.loads(value)["digest"]
        serial = snapshot.get(Table.DIGESTS, to_key(digest))
        if serial is None:
            raise CorruptError(
                f"image {name.decode(errors='replace')} names {digest}, which is not in the index: "
                "nothing is deleted; run `layerstore check`",
                digest=digest,
            )
        out.add(to_number(serial))
    for lease in live_leases(storage, snapshot):
        out.update(held_serials(snapshot, lease))
    for row in unpacked.snapshots(snapshot):
        if row.manifest is None:
            continue
        serial = snapshot.get(Table.DIGESTS, to_key(row.manifest))
        if serial is None:
            raise CorruptError(
                f"snapshot {row.key} is of {row.manifest}, which is not in the index: "
                "nothing is deleted; run `layerstore check`",
                digest=row.manifest,
            )
        out.add(to_number(serial))
    for key, entry in cache.entries(snapshot):
        if key in without:
            continue
        target = graph.serial_of(snapshot, entry.digest)
        if target is None:
            raise CorruptError(
                f"cache entry {key.hex()} names {entry.digest}, which is not in the index: "
                "nothing is deleted; run `layerstore check`",
                digest=entry.digest,
            )
        out.add(target)
    for repository, digest_key in repositories.keys(snapshot):
        if unlent and b"\0".join((repository.encode(), digest_key)) in unlent:
            continue
        serial = snapshot.get(Table.DIGESTS, digest_key)
        if serial is None:
            raise CorruptError(
                f"repository {repository} has {from_key(digest_key)}, which is not in the index: "
                "nothing is deleted; run `layerstore check`",
                digest=from_key(digest_key),
            )
        out.add(to_number(serial))
    return out


def pinned(storage: Storage, snapshot: Snapshot, *, cached: bool = True) -> set[int]:
    """What live leases, snapshots, repositories and cache entries keep, whatever is untagged; passes
    over blobs that are missing."""
    start: set[int] = set()
    for lease in live_leases(storage, snapshot):
        start.update(held_serials(snapshot, lease))
    named = [row.manifest for row in unpacked.snapshots(snapshot) if row.manifest is not None]
    named += [from_key(key) for _, key in repositories.keys(snapshot)]
    named += [row.digest for _, row in cache.entries(snapshot)] if cached else []
    for digest in named:
        serial = graph.serial_of(snapshot, digest)
        if serial is not None:
            start.add(serial)
    return graph.closure(snapshot, start)


def blob_runs(storage: Storage, snapshot: Snapshot, serial: int) -> Runs:
    """Every chunk number that a blob needs, chunk lists included."""
    row = graph.blob_row(snapshot, serial)
    if row is None:
        raise CorruptError(f"blob {serial} has no row in the index", where=f"blob {serial}")
    out: Runs = []
    for stream in row.streams():
        out += stream.outer
        out += storage.chunks.runs_of(stream)
    return out


class Marker:
    """A mark over some chunk numbers (`space`), which can be brought up to date."""

    def __init__(self, storage: Storage, space: Iterable[tuple[int, int]]) -> None:
        self._storage = storage
        self.space = RunArray.of(space)
        self._bits = Bitmap(self.space)
        self.seen: set[int] = set()
        self._next_blob = 0

    def mark(
        self,
        snapshot: Snapshot,
        condemned: frozenset[int] | None = None,
        *,
        without: Collection[bytes] = (),
        unlent: Collection[bytes] = (),
    ) -> set[int]:
        """Marks what is reachable in the snapshot; returns the blobs that are new since last time.
        `without`: keys of cache entries that keep nothing; `unlent`: of refs and members.

        With `condemned`, every blob that is not in it, or was un-condemned since, counts as reached,
        too. It was visible after the set was named, and whoever found it there (its epoch holds
        nothing back) must find it whole, although nothing holds it any more."""
        start = roots(self._storage, snapshot, without=without, unlent=unlent)
        if condemned is not None:
            for key, _ in snapshot.items(Table.BLOBS, start=serial_key(self._next_blob)):
                serial = to_number(key)
                self._next_blob = serial + 1
                if serial not in condemned:
                    start.add(serial)
            start.update(to_number(key) for key, _ in snapshot.items(Table.REVIVED))
        new = graph.closure(snapshot, start, strict=True, seen=self.seen)
        for serial in new:
            runs = blob_runs(self._storage, snapshot, serial)
            if runs:
                self._bits.mark(RunArray.of(runs))
        return new

    def dead(self) -> Runs:
        """The numbers of the space that nothing reaches."""
        return list(self._bits.runs(0))

    def dead_within(self, run: tuple[int, int]) -> Runs:
        """Those of one run that nothing reaches."""
        return list(RunArray.of([run]).intersect(self._bits.runs(0)))
