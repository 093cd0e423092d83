"""Repositories: which digests may be read under which name.

`MEMBERS` name, a zero byte, digest key -> JSON: `kind` (`manifest` or `blob`), `size`, of a manifest
`type` (its media type) and `subject`, and of blobs a ttl on the boot clock as leases have one. Each row
is a root for gc. A manifest's row stays until it is deleted, unless it has a ttl, too (what a mirror
fetched): then it goes, with the tags that were lent to it, once nobody has asked for it for so long; or
before, where space is wanted (`lending`), with the blobs whose rows are marked as lent. A blob's stays
as long as a manifest of the repository names it, or its ttl has not run out since it was put, asked for
or mounted.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..digest import from_key, to_key
from . import graph
from .index import Snapshot, Table, Write
from .leases import expired, left, of_older_boot, stamp
from .rows import dump

if TYPE_CHECKING:
    from .storage import Storage

IDLE = 24 * 3600.0
"""Seconds that a blob which no manifest names is kept after it was last asked for."""
SLICE = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """One row: what a repository has under a digest."""

    digest: str
    is_manifest: bool
    media_type: str
    size: int
    fresh: bool
    """Touched so lately that it need not be touched again."""
    lent: bool = False
    """A blob that a mirror has brought, and nobody else has put or asked for."""


def _key(name: str, digest: str) -> bytes:
    return _prefix(name) + to_key(digest)


def _prefix(name: str) -> bytes:
    return name.encode() + b"\0"


def _parse(digest: str, value: bytes) -> Member:
    row = json.loads(value)
    is_manifest = row["kind"] == "manifest"
    remaining = left(value)
    fresh = remaining is None or remaining > 0.75 * row["ttl"]
    lent = bool(row.get("lent"))
    return Member(digest, is_manifest, row.get("type", ""), row["size"], fresh, lent)


def find(snapshot: Snapshot, name: str, digest: str) -> Member | None:
    """What a repository has under a digest; None if that may not be read there."""
    value = snapshot.get(Table.MEMBERS, _key(name, digest))
    return None if value is None else _parse(digest, value)


def members(snapshot: Snapshot, name: str, after: str | None = None) -> Iterator[Member]:
    """All that a repository has, in the order of the digests' keys."""
    prefix = _prefix(name)
    start = prefix if after is None else _key(name, after) + b"\0"
    for key, value in snapshot.items(Table.MEMBERS, prefix, start=start):
        yield _parse(from_key(key[len(prefix) :]), value)


def total(snapshot: Snapshot, name: str) -> int:
    """Bytes of all that a repository has; reads each of its rows."""
    return sum(
        json.loads(value)["size"] for _, value in snapshot.items(Table.MEMBERS, _prefix(name))
    )


def keys(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """Repository and digest key of every row."""
    for key, _ in snapshot.items(Table.MEMBERS):
        name, _, digest = key.partition(b"\0")
        yield name.decode(), digest


def names(snapshot: Snapshot, after: str = "", prefix: str = "") -> Iterator[str]:
    """Names of repositories behind `after` that begin with `prefix`, sorted; one look-up each."""
    begins = prefix.encode()
    start = max(begins, after.encode() + b"\1" if after else b"")
    while True:
        row = next(iter(snapshot.items(Table.MEMBERS, begins, start=start)), None)
        if row is None:
            return
        name = row[0].partition(b"\0")[0]
        yield name.decode()
        start = name + b"\1"


def put(tx: Write, name: str, digest: str, size: int, ttl: float, *, lent: bool = False) -> None:
    """A blob becomes, or stays, a member; its ttl begins anew. `lent`: for a mirror, which can fetch it
    again; what anybody else has put, or asked for, stays his."""
    key = _key(name, digest)
    old = tx.get(Table.MEMBERS, key)
    if old is not None:
        row = json.loads(old)
        if row["kind"] == "manifest":
            return
        lent = lent and bool(row.get("lent"))
    mark = {"lent": True} if lent else {}
    tx.put(Table.MEMBERS, key, dump({"kind": "blob", "size": size, **stamp(ttl), **mark}))


def put_manifest(
    tx: Write,
    name: str,
    digest: str,
    size: int,
    media_type: str,
    subject: str | None,
    ttl: float | None = None,
) -> None:
    """A manifest becomes a member, until it is removed; with a `ttl` until nobody has asked for it for
    so many seconds. One that is to stay stays. `subject`: the digest of what it refers to."""
    key = _key(name, digest)
    old = tx.get(Table.MEMBERS, key)
    if old is not None:
        row = json.loads(old)
        if row["kind"] == "manifest" and row["ttl"] is None:
            ttl = None
    until: dict[str, object] = {"ttl": None} if ttl is None else stamp(ttl)
    value = {"kind": "manifest", "type": media_type, "size": size, "subject": subject, **until}
    tx.put(Table.MEMBERS, key, dump(value))


def referring(snapshot: Snapshot, name: str, subject: str) -> Iterator[Member]:
    """The manifests of a repository that refer to a digest. Its own rows alone are read, so that the
    clock does not tell of referrers that others have."""
    prefix = _prefix(name)
    for key, value in snapshot.items(Table.MEMBERS, prefix):
        if b'"manifest"' not in value:
            continue
        row, digest = json.loads(value), from_key(key[len(prefix) :])
        # Rows of before do not say it; the manifest's edges do.
        refers = row["subject"] if "subject" in row else _subject_of(snapshot, digest)
        if refers == subject and row["kind"] == "manifest":
            yield _parse(digest, value)


def _subject_of(snapshot: Snapshot, digest: str) -> str | None:
    serial = graph.serial_of(snapshot, digest)
    edges = () if serial is None else graph.edges_of(snapshot, serial)
    return next((edge.digest for edge in edges if edge.kind == "subject"), None)


def touch(tx: Write, name: str, digest: str) -> bool:
    """A manifest's ttl, if it has one, begins anew. False if it is gone."""
    key = _key(name, digest)
    value = tx.get(Table.MEMBERS, key)
    if value is None:
        return False
    row = json.loads(value)
    if row["ttl"] is not None:
        tx.put(Table.MEMBERS, key, dump({**row, **stamp(row["ttl"])}))
    return True


def lendable(snapshot: Snapshot, ref: str) -> bool:
    """Whether a tag is free, or was lent to a manifest: nobody else has set it."""
    value = snapshot.get(Table.REFS, ref.encode())
    return value is None or bool(json.loads(value).get("lent"))


def lend(tx: Write, ref: str) -> None:
    """Marks a tag: it goes with its manifest's row. Whoever sets it anew has it for good."""
    value = tx.get(Table.REFS, ref.encode())
    if value is not None:
        tx.put(Table.REFS, ref.encode(), dump({**json.loads(value), "lent": True}))


def remove(tx: Write, name: str, digest: str) -> bool:
    """False if it was none."""
    return tx.delete(Table.MEMBERS, _key(name, digest))


def named(snapshot: Snapshot, name: str) -> set[bytes]:
    """Digest keys of all that the manifests of a repository name."""
    out: set[bytes] = set()
    for member in members(snapshot, name):
        if member.is_manifest:
            serial = graph.serial_of(snapshot, member.digest)
            if serial is not None:
                out.update(to_key(edge.digest) for edge in graph.edges_of(snapshot, serial))
    return out


def expire(storage: Storage) -> None:
    """Lets go the manifests whose ttl has run out, then the blobs of which that is true and that no
    manifest of their repository names."""
    older, manifests, blobs = _over(storage)
    for at in range(0, len(older), SLICE):
        _restart(storage, older[at : at + SLICE])
    for key in manifests:
        storage.index.update(functools.partial(_expire_manifest, key))
    if manifests:  # what only they named
        blobs = _over(storage)[2]
    for at in range(0, len(blobs), SLICE):
        _expire(storage, blobs[at : at + SLICE])


def _over(storage: Storage) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Keys of rows: of an earlier boot; of manifests and of blobs that may go."""
    older: list[bytes] = []
    manifests: list[bytes] = []
    over: dict[str, list[bytes]] = {}
    with storage.index.read() as snapshot:
        for key, value in snapshot.items(Table.MEMBERS):
            if of_older_boot(value):
                older.append(key)
            elif expired(value) and json.loads(value)["kind"] == "manifest":
                manifests.append(key)
            elif expired(value):
                name = key.partition(b"\0")[0].decode()
                over.setdefault(name, []).append(key)
        blobs: list[bytes] = []
        for name, rows in over.items():
            needed = named(snapshot, name)
            prefix = len(_prefix(name))
            blobs += [key for key in rows if key[prefix:] not in needed]
    return older, manifests, blobs


def _expire_manifest(key: bytes, tx: Write) -> None:
    """Whoever asked for it meanwhile has touched it."""
    value = tx.get(Table.MEMBERS, key)
    if value is None or not expired(value):
        return
    name, _, digest_key = key.partition(b"\0")
    digest = from_key(digest_key)
    lent = []
    for ref, about in tx.items(Table.REFS, name + b":"):
        row = json.loads(about)
        if b"/" not in ref[len(name) :] and row["digest"] == digest and row.get("lent"):
            lent.append(ref)
    for ref in lent:
        tx.delete(Table.REFS, ref)
    tx.delete(Table.MEMBERS, key)


def _restart(storage: Storage, rows: Iterable[bytes]) -> None:
    """After a reboot the ttl starts anew, from now (rule 8)."""

    def work(tx: Write) -> None:
        for key in rows:
            value = tx.get(Table.MEMBERS, key)
            if value is not None and of_older_boot(value):
                row = json.loads(value)
                tx.put(Table.MEMBERS, key, dump({**row, **stamp(row["ttl"])}))

    storage.index.update(work)


def _expire(storage: Storage, rows: Iterable[bytes]) -> None:
    def work(tx: Write) -> None:
        for key in rows:
            # Whoever asked for it meanwhile, or put a manifest that names it, has touched it.
            value = tx.get(Table.MEMBERS, key)
            if value is not None and expired(value):
                tx.delete(Table.MEMBERS, key)

    storage.index.update(work)
