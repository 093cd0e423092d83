"""Unpacked layers and snapshots: their rows, their directories, and what of both is dead.

`unpacked/SERIAL` is one layer as a directory, in the form that overlayfs stacks; it depends on the
layers below it, so its row has the chain id as its key (image-spec config.md). `snapshots/SERIAL` holds
what a snapshot has changed (`fs`), and overlayfs's own `work`. A directory counts once a row names it:
it is made under another name with a lock beside it, synced, renamed, and only then comes the row. So
what has neither a row nor a locked maker is left over, and gc removes it. Serials are never used twice.

A snapshot keeps its manifest, and with it the image, and its chain of unpacked layers. Other unpacked
layers are copies made for speed, and live as long as the layers that they were made from.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..digest import from_key, to_key
from ..errors import CorruptError
from ..values import IdMap
from . import mounts
from .condemned import is_hidden
from .index import Snapshot, Table, Write
from .locks import FileLock
from .rows import dump, serial_key, to_number

if TYPE_CHECKING:
    from .storage import Storage

LAYERS = "unpacked"
CHANGES = "snapshots"
EMPTY = "empty"
"""In `unpacked`: a directory without anything, for images without layers."""
NEXT_UNPACKED = b"next_unpacked"


@dataclass(frozen=True, slots=True)
class UnpackedRow:
    """An unpacked layer. `parent`: chain id of the layers below, None for a lowest one. `size`: bytes
    that its directory takes on disk. `userxattr`: its overlay marks are in `user.overlay.*`."""

    chain: str
    serial: int
    diff_id: str
    parent: str | None
    size: int
    userxattr: bool = False

    @property
    def name(self) -> str:
        """The name of its directory below `unpacked`."""
        return f"{self.serial:x}"

    def put(self, tx: Write) -> None:
        value = {
            "serial": self.serial,
            "diff_id": self.diff_id,
            "parent": self.parent,
            "size": self.size,
            "userxattr": self.userxattr,
        }
        tx.put(Table.UNPACKED, to_key(self.chain), dump(value))

    @staticmethod
    def parse(key: bytes, value: bytes) -> UnpackedRow:
        v = json.loads(value)
        return UnpackedRow(
            from_key(key), v["serial"], v["diff_id"], v["parent"], v["size"], v["userxattr"]
        )


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot. `manifest`: digest of the image's manifest, None for one over nothing; `chain`: the
    topmost unpacked layer; `driver` and `target` are set while something other than the kernel's
    overlay gives it a place (the kernel itself knows where it has mounted an overlay)."""

    key: str
    serial: int
    kind: str
    image: str
    manifest: str | None
    chain: str | None
    created: float
    uids: IdMap = ()
    gids: IdMap = ()
    driver: str = ""
    target: str | None = None

    @property
    def name(self) -> str:
        """The name of its directory below `snapshots`."""
        return f"{self.serial:x}"

    def put(self, tx: Write) -> None:
        value: dict[str, Any] = {
            "serial": self.serial,
            "kind": self.kind,
            "image": self.image,
            "manifest": self.manifest,
            "chain": self.chain,
            "created": self.created,
        }
        if self.uids or self.gids:
            value["ids"] = [self.uids, self.gids]
        if self.driver:
            value["driver"] = self.driver
        if self.target is not None:
            value["target"] = self.target
        tx.put(Table.SNAPSHOTS, self.key.encode(), dump(value))

    def placed(self, driver: str, target: str | None) -> SnapshotRow:
        return replace(self, driver=driver, target=target)

    @staticmethod
    def parse(key: bytes, value: bytes) -> SnapshotRow:
        v = json.loads(value)
        uids, gids = v.get("ids", ((), ()))
        return SnapshotRow(
            key.decode(),
            v["serial"],
            v["kind"],
            v["image"],
            v["manifest"],
            v["chain"],
            v["created"],
            tuple((a, b, n) for a, b, n in uids),
            tuple((a, b, n) for a, b, n in gids),
            v.get("driver", ""),
            v.get("target"),
        )


# ---- rows -------------------------------------------------------------------------------------


def find(snapshot: Snapshot, chain: str) -> UnpackedRow | None:
    """The unpacked layer of a chain id."""
    key = to_key(chain)
    value = snapshot.get(Table.UNPACKED, key)
    return None if value is None else UnpackedRow.parse(key, value)


def stack(snapshot: Snapshot, chain: str | None) -> list[UnpackedRow] | None:
    """The unpacked layers of a chain, topmost first; None if one of them is not there."""
    out = []
    while chain is not None:
        row = find(snapshot, chain)
        if row is None:
            return None
        out.append(row)
        chain = row.parent
    return out


def layers(snapshot: Snapshot) -> Iterator[UnpackedRow]:
    for key, value in snapshot.items(Table.UNPACKED):
        yield UnpackedRow.parse(key, value)


def snapshots(snapshot: Snapshot) -> Iterator[SnapshotRow]:
    """All snapshots, by key."""
    for key, value in snapshot.items(Table.SNAPSHOTS):
        yield SnapshotRow.parse(key, value)


def snapshot_of(snapshot: Snapshot, key: str) -> SnapshotRow | None:
    value = snapshot.get(Table.SNAPSHOTS, key.encode())
    return None if value is None else SnapshotRow.parse(key.encode(), value)


# ---- directories ------------------------------------------------------------------------------


def layer_path(storage: Storage, name: str) -> str:
    return os.path.join(storage.path, LAYERS, name)


def changes_path(storage: Storage, name: str) -> str:
    return os.path.join(storage.path, CHANGES, name)


def source_of(storage: Storage, serial: int) -> str:
    """What mountinfo shows as the source of a snapshot's overlay: it names the store, too."""
    return f"layerstore:{storage.format.uuid.hex()}:{serial:x}"


def mounted(storage: Storage, *, everywhere: bool = False) -> dict[int, list[mounts.Mount]]:
    """Where the overlays of this store's snapshots are mounted, by serial."""
    prefix = f"layerstore:{storage.format.uuid.hex()}:"
    out: dict[int, list[mounts.Mount]] = {}
    for mount in mounts.mounts(everywhere=everywhere):
        if mount.source.startswith(prefix):
            out.setdefault(int(mount.source[len(prefix) :], 16), []).append(mount)
    return out


class Making:
    """A directory in the making, below `folder`: `path` until it is whole, `keep` gives it its name.
    Use as a context manager; what was not kept is removed at its end, or by gc if we die."""

    def __init__(self, storage: Storage, folder: str, serial: int) -> None:
        self._storage = storage
        parent = os.path.join(storage.path, folder)
        storage.disk.mkdir(parent)
        self.final = os.path.join(parent, f"{serial:x}")
        self.path = f"{self.final}.new"
        self._lock = FileLock(f"{self.final}.lock")
        if not self._lock.try_acquire():
            raise CorruptError(f"{self.final} is being made already", where=self.final)
        try:
            os.mkdir(self.path)
            os.chmod(self.path, 0o755)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Making:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._storage.disk.remove_tree(self.path)
        finally:
            self._end()

    def keep(self, *, sync: bool = True) -> None:
        """Gives it its name, durably unless told not to. A row must follow while the context lasts."""
        self._storage.disk.rename(self.path, self.final)
        if sync:
            self._storage.disk.sync_dir(os.path.dirname(self.final))

    def _end(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._storage.disk.unlink(self._lock.path)
        self._lock.release()


# ---- what is dead -----------------------------------------------------------------------------


def _needed(snapshot: Snapshot) -> set[str]:
    """The chains that snapshots stand on, whole."""
    out: set[str] = set()
    for row in snapshots(snapshot):
        chain = row.chain
        while chain is not None and chain not in out:
            below = find(snapshot, chain)
            if below is None:
                raise CorruptError(
                    f"snapshot {row.key} stands on the unpacked layer {chain}, which has no row: "
                    "nothing is deleted",
                    where=f"snapshot {row.key}",
                )
            out.add(chain)
            chain = below.parent
    return out


class Copies:
    """The unpacked layers that there are, and which of them nothing uses. They are copies of what blobs
    hold, made for speed: one goes with any of the layers that it was made from, unless a snapshot
    stands on it."""

    def __init__(self, storage: Storage, snapshot: Snapshot) -> None:
        self.rows = {row.chain: row for row in layers(snapshot)}
        self._needed = _needed(snapshot)
        condemned = storage.condemned(snapshot)
        # The blobs that hold a layer's content, compressed or not: any one of them is enough.
        self._makers: dict[str, set[int]] = {row.diff_id: set() for row in self.rows.values()}
        for diff_id, makers in self._makers.items():
            prefix = to_key(diff_id)
            for key, _ in snapshot.items(Table.LAYERS, prefix):
                serial = to_number(key[len(prefix) :])
                if snapshot.get(Table.BLOBS, serial_key(serial)) is not None and not is_hidden(
                    snapshot, condemned, serial
                ):
                    makers.add(serial)

    def dead(
        self, gone: Collection[int] = (), *, aggressive: bool = False
    ) -> dict[str, UnpackedRow]:
        """By chain: what no snapshot stands on, and (unless `aggressive`) what has lost one of its
        layers when the blobs of `gone` have gone."""
        lost = set(gone)
        alive = self._whole({d for d, makers in self._makers.items() if makers - lost})
        keep = self._needed if aggressive else self._needed | alive
        return {chain: row for chain, row in self.rows.items() if chain not in keep}

    def of(self, serials: Collection[int]) -> set[str]:
        """The chains that are made from these blobs."""
        have = set(serials)
        return self._whole({d for d, makers in self._makers.items() if makers & have})

    def _whole(self, diff_ids: Collection[str]) -> set[str]:
        """The chains all of whose layers are among these."""
        known: dict[str, bool] = {}
        for chain in self.rows:
            path = []
            at: str | None = chain
            while at is not None and at not in known and at in self.rows:
                path.append(at)
                at = self.rows[at].parent
            below = at is None or known.get(at, False)
            for one in reversed(path):
                below = known[one] = below and self.rows[one].diff_id in diff_ids
        return {chain for chain, whole in known.items() if whole}


def reclaim(storage: Storage, *, aggressive: bool) -> int:
    """Removes dead unpacked layers, and directories that no row names. Returns bytes given back.

    Each row is looked at again in the transaction that deletes it, and whoever makes a snapshot looks
    at the rows in its own."""

    def drop(tx: Write) -> int:
        gone = 0
        for row in Copies(storage, tx).dead(aggressive=aggressive).values():
            tx.delete(Table.UNPACKED, to_key(row.chain))
            gone += row.size
        return gone

    if not any(os.path.isdir(os.path.join(storage.path, f)) for f in (LAYERS, CHANGES)):
        return 0
    freed = storage.index.update(drop)
    with storage.index.read() as snapshot:
        serials = {row.serial for row in snapshots(snapshot)}
    strays = set(mounted(storage, everywhere=True)) - serials
    if strays:
        # A mount whose snapshot is gone: what it stands on cannot be told, so nothing goes.
        return 0
    _sweep(storage, LAYERS, lambda now: {row.name for row in layers(now)} | {EMPTY})
    _sweep(storage, CHANGES, lambda now: {row.name for row in snapshots(now)})
    return freed


def _sweep(storage: Storage, folder: str, named: Callable[[Snapshot], Collection[str]]) -> None:
    """Removes what no row names and nobody makes."""
    parent = os.path.join(storage.path, folder)
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return
    with storage.index.read() as snapshot:
        keep = named(snapshot)
    for name in names:
        base = name.partition(".")[0]
        if name in keep:
            continue
        lock = FileLock(os.path.join(parent, f"{base}.lock"))
        there = os.path.exists(lock.path)
        if there and not lock.try_acquire(create=False) and os.path.exists(lock.path):
            continue
        try:
            # Its maker may have ended well since we looked.
            with storage.index.read() as snapshot:
                if name in named(snapshot):
                    continue
            if name.endswith(".lock"):
                with contextlib.suppress(FileNotFoundError):
                    storage.disk.unlink(lock.path)
            else:
                storage.disk.remove_tree(os.path.join(parent, name))
        finally:
            lock.release()
