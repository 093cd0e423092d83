"""Leases: rows that keep blobs alive until they are dropped, expire, or their process ends.

`LEASES` id (8 bytes) -> JSON: kind `session` (what a handle put; ends with the session file of
that id), `bound` (a lease without ttl; ends with the session that it names) or `lease` (ttl
seconds on the boot clock) or `upload` (the same, of an upload's file); `HOLDS` id and blob serial
-> nothing. After a reboot a ttl starts anew; use renews it (rules 7, 8).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from ..values import LeaseInfo
from . import graph
from .clock import boot_id, boot_time
from .index import Snapshot, Table, Write
from .rows import dump, serial_key, to_number


def hold_key(lease: bytes, serial: int) -> bytes:
    return lease + serial_key(serial)


def create(tx: Write, lease: bytes, ttl: float | None, session: str = "") -> None:
    """A lease. With a `ttl` (seconds) it outlives its process; without one it is bound to a session
    and ends with it, if it is not dropped before."""
    if ttl is None:
        tx.put(Table.LEASES, lease, dump({"kind": "bound", "ttl": None, "session": session}))
    else:
        tx.put(Table.LEASES, lease, _row("lease", ttl))


def create_upload(tx: Write, lease: bytes, ttl: float) -> None:
    """The lease of an upload, or of one that is to begin."""
    tx.put(Table.LEASES, lease, _row("upload", ttl))


def session_of(lease: bytes, value: bytes) -> bytes | None:
    """The session whose life a lease's row shares, or None for one that lives by its ttl."""
    row = json.loads(value)
    if row["kind"] == "session":
        return lease
    return bytes.fromhex(row["session"]) if row["kind"] == "bound" else None


def create_session(tx: Write, lease: bytes) -> None:
    """The lease of a session: made with the first thing that it holds."""
    if tx.get(Table.LEASES, lease) is None:
        tx.put(Table.LEASES, lease, dump({"kind": "session"}))


def _row(kind: str, ttl: float | None) -> bytes:
    return dump({"kind": kind, **stamp(ttl)})


def stamp(ttl: float | None) -> dict[str, object]:
    """The members of a row that say until when it counts: `ttl` seconds from now."""
    return {"ttl": ttl, "boot": boot_id(), "since": boot_time()}


def touch(tx: Write, lease: bytes) -> bool:
    """Renews a lease's ttl; False if it is gone or has expired."""
    value = tx.get(Table.LEASES, lease)
    if value is None or expired(value):
        return False
    # A row is a synced commit: not more often than a tenth of the ttl.
    if not is_fresh(value):
        row = json.loads(value)
        tx.put(Table.LEASES, lease, _row(row["kind"], row["ttl"]))
    return True


def is_fresh(value: bytes) -> bool:
    """Whether a lease was renewed so lately that it need not be renewed again."""
    row = json.loads(value)
    remaining = left(value)
    if remaining is None:
        return True
    return bool(row["boot"] == boot_id() and remaining >= 0.9 * row["ttl"])


def of_older_boot(value: bytes) -> bool:
    """Whether a ttl counts on the clock of an earlier boot."""
    row = json.loads(value)
    return row.get("ttl") is not None and row["boot"] != boot_id()


def restart(tx: Write, lease: bytes) -> None:
    """After a reboot the ttl starts anew, from now (rule 8); else nothing changes."""
    value = tx.get(Table.LEASES, lease)
    if value is not None and of_older_boot(value):
        row = json.loads(value)
        tx.put(Table.LEASES, lease, _row(row["kind"], row["ttl"]))


def left(value: bytes) -> float | None:
    """Seconds that a lease has to go; None without a ttl."""
    row = json.loads(value)
    ttl = row.get("ttl")
    if ttl is None:
        return None
    if row["boot"] != boot_id():
        return float(ttl)
    return float(ttl) - (boot_time() - float(row["since"]))


def expired(value: bytes) -> bool:
    remaining = left(value)
    return remaining is not None and remaining <= 0


def drop(tx: Write, lease: bytes, limit: int = 1 << 62) -> bool:
    """Deletes a lease's rows, at most `limit` of them; True when nothing of it is left."""
    return drop_some(tx, (lease,), limit) == 1


def drop_some(tx: Write, leases: Sequence[bytes], limit: int) -> int:
    """Deletes the rows of leases, the first ones first and at most `limit` rows; of how many nothing is
    left."""
    room = limit
    for number, lease in enumerate(leases):
        rows = tx.items(Table.HOLDS, lease)
        keys = [key for key, _ in itertools.islice(rows, max(0, room))]
        for key in keys:
            tx.delete(Table.HOLDS, key)
        room -= len(keys) + 1
        if room < 0:
            return number
        tx.delete(Table.LEASES, lease)
    return len(leases)


def held_serials(snapshot: Snapshot, lease: bytes) -> list[int]:
    """The blobs that a lease holds."""
    return [to_number(key[len(lease) :]) for key, _ in snapshot.items(Table.HOLDS, lease)]


def listing(snapshot: Snapshot) -> list[LeaseInfo]:
    """The leases that outlive a process and have not expired."""
    out = []
    for key, value in snapshot.items(Table.LEASES):
        row = json.loads(value)
        if row["kind"] in ("session", "upload") or expired(value):
            continue
        digests = []
        for serial in held_serials(snapshot, key):
            blob = graph.blob_row(snapshot, serial)
            if blob is not None:
                digests.append(blob.digest)
        out.append(LeaseInfo(key.hex(), row["ttl"], left(value), tuple(sorted(digests))))
    return out
