"""Snapshots: a container's own filesystem over unpacked layers, as containerd's snapshotter has them.

`prepare` gives an active one (may be changed, may be committed), `view` one that is only read. Both
cost a row and a directory: layers are unpacked once per store (`layers/unpacked.py`), and what a
container changes goes to a directory of its own. `mount` stacks them (`layers/overlays.py`) and commits
nothing while the kernel's own overlay can be had: where an overlay is mounted, the kernel knows, and it
is asked. So nothing is stale after a restart or a crash: rows and changes are on
disk, mounts are gone after a reboot and can be made again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import BusyError, InvalidInputError, NotFoundError
from ..storage import unpacked as rows
from ..storage.index import Table, Write
from ..storage.locks import ByteLock
from ..values import IdMap, LayerInfo, SnapshotInfo, Usage
from . import overlays
from .unpacked import RETRIES, ensure

if TYPE_CHECKING:
    from ..storage.unpacked import SnapshotRow, UnpackedRow
    from ..values import ProgressCallback
    from .content import Content, Operation

MAX_KEY = 255
ACTIVE = "active"
VIEW = "view"
LOCKS = "mounting"
SHOWN = "shown"
"""In a snapshot's directory, from before it is mounted for the first time. Not synced: what a power cut
takes of it, it takes of the mounts, too."""


def check_key(key: str) -> str:
    """Raises InvalidInputError for what cannot be a key."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError as e:
        raise InvalidInputError("a snapshot's key is text (UTF-8)", reason="key") from e
    if not key or size > MAX_KEY or not key.isprintable():
        raise InvalidInputError(
            f"not a key of a snapshot: {key[:80]!r} (1 to {MAX_KEY} bytes that can be printed)",
            reason="key",
        )
    return key


def find(content: Content, key: str) -> SnapshotRow:
    """Raises NotFoundError."""
    check_key(key)
    with content.storage.index.read() as snapshot:
        row = rows.snapshot_of(snapshot, key)
    if row is None:
        raise NotFoundError(f"no snapshot {key!r}; `layerstore snapshot ls` lists what there is")
    return row


def prepare(
    content: Content,
    op: Operation,
    key: str,
    *,
    kind: str,
    image: str,
    manifest: str | None,
    layers: Sequence[str],
    stated: Sequence[str | None],
    uids: IdMap = (),
    gids: IdMap = (),
    progress: ProgressCallback | None = None,
) -> SnapshotInfo:
    """A snapshot of these layers (lowest first; `stated`: their diff_ids in the config), durable when
    this returns. It keeps `manifest`, and what that reaches. Raises InvalidInputError if the key is
    taken, or a layer is not sound."""
    storage = content.storage
    check_key(key)
    check_maps(uids, gids)
    with storage.index.read() as snapshot:
        if rows.snapshot_of(snapshot, key) is not None:
            raise _taken(key)
    for _ in range(RETRIES):
        chain = ensure(content, op, layers, stated, progress)
        # Random, not counted: a counter would cost a synced commit for each.
        serial = secrets.randbits(62)
        row = rows.SnapshotRow(key, serial, kind, image, manifest, chain, time.time(), uids, gids)
        with rows.Making(storage, rows.CHANGES, serial) as making:
            with storage.index.read() as snapshot:
                stack = rows.stack(snapshot, chain)
            if stack is None:
                continue
            _lay_out(content, making.path, row, stack)
            making.keep(sync=False)

            def name(tx: Write, row: SnapshotRow = row) -> bool:
                if rows.snapshot_of(tx, key) is not None:
                    raise _taken(key)
                if rows.stack(tx, row.chain) is None:
                    return False
                row.put(tx)
                return True

            if op.op.keep(() if manifest is None else (manifest,), name):
                return _info(row, ())
    raise BusyError("unpacked layers are collected as fast as they are made: try again")


def _taken(key: str) -> InvalidInputError:
    return InvalidInputError(
        f"there is a snapshot {key!r} already: give another key, or remove it first",
        reason="key taken",
    )


def check_maps(uids: IdMap, gids: IdMap) -> None:
    """Raises InvalidInputError for maps that no user namespace has."""
    if bool(uids) != bool(gids):
        raise InvalidInputError("give maps of users and of groups, or neither", reason="id map")
    for rows_ in (uids, gids):
        for inside, outside, count in rows_:
            ends = (inside + count, outside + count)
            if min(inside, outside) < 0 or count < 1 or max(ends) > 1 << 32:
                raise InvalidInputError(
                    f"not an id map: {inside}:{outside}:{count}", reason="id map"
                )


def mapped(number: int, maps: IdMap) -> int:
    """An id of the image as it is outside; -1 for one that the maps leave out."""
    if not maps:
        return number
    for inside, outside, count in maps:
        if inside <= number < inside + count:
            return outside + number - inside
    return -1


def _lay_out(content: Content, path: str, row: SnapshotRow, stack: Sequence[UnpackedRow]) -> None:
    """The directories of a snapshot. Overlayfs shows the upper directory's own attributes at the root,
    so they are those of the topmost layer's."""
    if row.kind == VIEW:
        return
    for name in ("fs", "work"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(path, name), 0o700)
    fs = os.path.join(path, "fs")
    uid = gid = 0
    mode, times = 0o755, None
    if stack:
        top = rows.layer_path(content.storage, stack[0].name)
        found = os.stat(top)
        uid, gid, mode = found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)
        times = (found.st_mtime_ns, found.st_mtime_ns)
        for name in os.listxattr(top):
            if ".overlay." not in name:
                os.setxattr(fs, name, os.getxattr(top, name))
    else:
        uid, gid = os.geteuid(), os.getegid()
    uid, gid = mapped(uid, row.uids), mapped(gid, row.gids)
    if (uid, gid) != (os.geteuid(), os.getegid()):
        os.chown(fs, uid, gid)
    os.chmod(fs, mode)
    if times is not None:
        os.utime(fs, ns=times)


# ---- mounts -----------------------------------------------------------------------------------


def mount(
    content: Content,
    key: str,
    target: str,
    *,
    driver: str = "auto",
    progress: ProgressCallback | None = None,
) -> SnapshotInfo:
    """Shows a snapshot at a directory, which is made if it is missing and must be empty.

    `driver`: `overlay` (the kernel's), `fuse` (fuse-overlayfs), `copy` (a plain copy; a mount of it
    where that may be done, else a symbolic link to it), or `auto`: the first of them that works.
    Raises NotFoundError, BusyError if it is mounted elsewhere, InvalidInputError, OSError."""
    storage = content.storage
    row = find(content, key)
    target = os.path.abspath(target)
    with _turn(content, row):
        row = find(content, key)
        where = places(content, row, everywhere=True) if _was_shown(content, row) else []
        if target in where:
            return _info(row, tuple(where))
        if where:
            raise BusyError(f"snapshot {key!r} is mounted at {where[0]} already", path=where[0])
        _check_target(content, target)
        with storage.index.read() as snapshot:
            stack = rows.stack(snapshot, row.chain)
        if stack is None:
            raise NotFoundError(
                f"snapshot {key!r} stands on layers that are not unpacked any more: remove it and "
                "prepare it again"
            )
        home = rows.changes_path(storage, row.name)
        if not os.path.isdir(os.path.join(home, "fs")):
            # A power cut before anything was changed may have taken the directories.
            storage.disk.mkdir(home)
            _lay_out(content, home, row, stack)
        storage.disk.mkdir(os.path.join(home, SHOWN))
        used = overlays.show(content, row, stack, target, driver, progress)
        if used.driver != row.driver or used.target != row.target:
            storage.index.update(lambda tx: used.put(tx))
        return _info(used, (target,))


def _turn(content: Content, row: SnapshotRow) -> contextlib.AbstractContextManager[None]:
    locks = ByteLock(os.path.join(content.storage.path, LOCKS))
    return locks(row.serial, content.storage.timeout)


def _was_shown(content: Content, row: SnapshotRow) -> bool:
    """Whether a snapshot may be mounted anywhere. One that never was need not be looked for in the
    mount namespaces of all processes, of which every running container has one."""
    return os.path.isdir(os.path.join(rows.changes_path(content.storage, row.name), SHOWN))


def _check_target(content: Content, target: str) -> None:
    store = os.path.realpath(content.storage.path)
    real = os.path.realpath(target)
    if real == store or real.startswith(store + "/"):
        raise InvalidInputError(f"{target} lies in the store itself", path=target)
    os.makedirs(target, exist_ok=True)
    if os.listdir(target):
        raise InvalidInputError(
            f"{target} is not empty: give an empty or new directory", path=target
        )


def places(content: Content, row: SnapshotRow, *, everywhere: bool = False) -> list[str]:
    """Where a snapshot can be seen; `everywhere`: also in mount namespaces of other processes."""
    found = rows.mounted(content.storage, everywhere=everywhere).get(row.serial, [])
    out = [m.target if not m.pid else f"{m.target} (of process {m.pid})" for m in found]
    if row.target is not None and overlays.is_shown(content, row):
        out.append(row.target)
    return list(dict.fromkeys(out))


def unmount(content: Content, key: str, *, lazy: bool = False) -> SnapshotInfo:
    """Takes a snapshot away from where it is mounted; does nothing if it is not. What was changed
    stays. Raises NotFoundError, and BusyError while a process works there, unless `lazy`."""
    row = find(content, key)
    with _turn(content, row):
        row = find(content, key)
        for place in places(content, row):
            try:
                overlays.hide(content, row, place, lazy=lazy)
            except OSError as e:
                if e.errno != errno.EBUSY:
                    raise
                raise BusyError(
                    f"snapshot {key!r} is in use at {place}: end what works there, or unmount it "
                    "lazily",
                    path=place,
                ) from e
        if row.driver == "fuse":
            overlays.settle(content, row)
        if row.target is not None:
            done = row.placed("copy" if row.driver == "copy" else "", None)
            content.storage.index.update(lambda tx: done.put(tx))
            row = done
    return _info(row, ())


def remove(content: Content, key: str) -> None:
    """Removes a snapshot and what was changed in it. Raises NotFoundError, BusyError if it is
    mounted."""
    storage = content.storage
    row = find(content, key)
    with _turn(content, row):
        where = places(content, row, everywhere=True) if _was_shown(content, row) else []
        if where:
            raise BusyError(
                f"snapshot {key!r} is mounted at {where[0]}: unmount it first "
                f"(`layerstore snapshot unmount {key}`)",
                path=where[0],
            )

        def drop(tx: Write) -> None:
            if not tx.delete(Table.SNAPSHOTS, key.encode()):
                raise NotFoundError(f"no snapshot {key!r}")

        storage.index.update(drop)
        # What a crash leaves here has no row any more: gc removes it.
        storage.disk.remove_tree(rows.changes_path(storage, row.name))


# ---- looking ----------------------------------------------------------------------------------


def upper(content: Content, row: SnapshotRow) -> str:
    """The directory of what was changed."""
    return os.path.join(rows.changes_path(content.storage, row.name), "fs")


def lowers(content: Content, row: SnapshotRow) -> list[str]:
    """The directories below it, topmost first. Raises NotFoundError."""
    with content.storage.index.read() as snapshot:
        stack = rows.stack(snapshot, row.chain)
    if stack is None:
        raise NotFoundError(f"snapshot {row.key!r} stands on layers that are not unpacked any more")
    return [rows.layer_path(content.storage, one.name) for one in stack]


def changes(
    content: Content,
    op: Operation,
    row: SnapshotRow,
    source_date_epoch: int | None = None,
    progress: ProgressCallback | None = None,
) -> LayerInfo:
    """What was changed, as a layer in the store. Raises InvalidInputError, OSError naming the file."""
    from .diff import diff_upper

    uids, gids = _ids_in_layers(row)
    if row.driver == "copy":
        from .diff import diff_trees

        with overlays.pristine(content, row) as before:
            return diff_trees(
                op,
                before,
                upper(content, row),
                source_date_epoch=source_date_epoch,
                uids=uids,
                gids=gids,
                progress=progress,
            )
    below = lowers(content, row)
    return diff_upper(
        op,
        upper(content, row),
        below,
        source_date_epoch=source_date_epoch,
        uids=uids,
        gids=gids,
        # What it has written may be in its form still, and is while it shows the snapshot.
        fuse_overlayfs=row.driver == "fuse",
        # Not by our mount, so the container's own user set them.
        overrides=False,
        progress=progress,
    )


def _ids_in_layers(row: SnapshotRow) -> tuple[list[tuple[int, int, int]], ...]:
    """Maps of users and groups from ids on disk to those of a layer: `(on disk, in the layer, count)`.

    An ordinary user owns all that was changed, and is root in it, as in the bundle that we make for one
    and in umoci's: no layer says which user of which machine made it."""
    uid = os.geteuid()
    if uid == 0 or row.uids:
        inverse = [[(b, a, n) for a, b, n in maps] for maps in (row.uids, row.gids)]
        return inverse[0], inverse[1]
    gid = os.getegid()
    further = [(other, other, 1) for other in os.getgroups() if other != gid]
    return [(uid, 0, 1)], [(gid, 0, 1), *further]


def info(content: Content, key: str) -> SnapshotInfo:
    """One snapshot as it is now. Raises NotFoundError."""
    row = find(content, key)
    return _info(row, tuple(places(content, row, everywhere=True)))


def usage(content: Content, key: str) -> Usage:
    """What a snapshot alone takes on disk: bytes and inodes of what was changed (and of the whole
    copy, if it is one). Raises NotFoundError."""
    row = find(content, key)
    size = inodes = 0
    seen: set[int] = set()
    todo = [upper(content, row)] if row.kind == ACTIVE or row.driver == "copy" else []
    while todo:
        folder = todo.pop()
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
            for item in found:
                with contextlib.suppress(FileNotFoundError):
                    facts = item.stat(follow_symlinks=False)
                    if facts.st_ino not in seen:
                        seen.add(facts.st_ino)
                        size += facts.st_blocks * 512
                        inodes += 1
                    if item.is_dir(follow_symlinks=False):
                        todo.append(item.path)
    return Usage(size, inodes)


def listing(content: Content) -> Iterator[SnapshotInfo]:
    """All snapshots, by key; where each is mounted, and what is odd about that."""
    with content.storage.index.read() as snapshot:
        found = list(rows.snapshots(snapshot))
    everywhere = rows.mounted(content.storage, everywhere=True)
    for row in found:
        where = [
            m.target if not m.pid else f"{m.target} (of process {m.pid})"
            for m in everywhere.get(row.serial, [])
        ]
        if row.target is not None and overlays.is_shown(content, row):
            where.append(row.target)
        yield _info(row, tuple(dict.fromkeys(where)))


def strays(content: Content) -> list[str]:
    """Places where snapshots are mounted that are no more: somebody removed their rows (a store that
    was put back from a copy). gc frees no unpacked layer meanwhile."""
    with content.storage.index.read() as snapshot:
        known = {row.serial for row in rows.snapshots(snapshot)}
    found = rows.mounted(content.storage, everywhere=True)
    return sorted(m.target for serial, ms in found.items() if serial not in known for m in ms)


def _info(row: SnapshotRow, where: tuple[str, ...]) -> SnapshotInfo:
    note = None
    for place in where:
        try:
            os.statvfs(place)  # asks whoever serves it, where stat would be answered from memory
        except OSError as e:
            if e.errno == errno.ENOTCONN:
                note = f"the process that served {place} is gone: unmount it"
    if row.target is not None and not where:
        note = f"it was mounted at {row.target}, and is no more"
    return SnapshotInfo(
        key=row.key,
        kind=row.kind,
        image=row.image,
        digest=row.manifest,
        created=row.created,
        mounts=where,
        driver=row.driver or ("overlay" if where else ""),
        uids=row.uids,
        gids=row.gids,
        note=note,
    )
