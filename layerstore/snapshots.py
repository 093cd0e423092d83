"""`Store.snapshots`: containers' own filesystems over images (floor 5).

    store.snapshots.prepare("web-1", "app:1.2")
    store.snapshots.mount("web-1", "/run/web-1/rootfs")
    ...
    store.snapshots.unmount("web-1")
    store.snapshots.commit("web-1", "app:1.3", message="changed by hand")
    store.snapshots.remove("web-1")

As in containerd's snapshotter: an active snapshot may be changed and committed, a view is only read; a
key is used once; what is mounted is not removed. Unlike there, `commit` makes an image, and the
snapshot stays as it is. Snapshots outlive the process and the machine's uptime; mounts are made again.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from . import values
from .errors import InvalidInputError

if TYPE_CHECKING:
    from .layers.content import Content

IdMaps = Sequence[tuple[int, int, int]]


class Snapshots:
    """The snapshots of one store."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def prepare(
        self,
        key: str,
        image: str,
        *,
        platform: str | None = None,
        uid_map: IdMaps = (),
        gid_map: IdMaps = (),
        progress: values.ProgressCallback | None = None,
    ) -> values.SnapshotInfo:
        """An active snapshot `key` of an image (or of `scratch`, nothing), durable when this returns.

        Its layers are unpacked first if they are not yet, which is done once per store. `uid_map` and
        `gid_map`, `(inside, outside, count)` each, say how a container's user namespace maps ids: the
        files appear with the outside ids, without a copy (idmapped mounts).
        Raises NotFoundError, InvalidInputError (the key is taken; a layer is not sound)."""
        return self._make(key, image, "active", platform, uid_map, gid_map, progress)

    def view(
        self,
        key: str,
        image: str,
        *,
        platform: str | None = None,
        uid_map: IdMaps = (),
        gid_map: IdMaps = (),
        progress: values.ProgressCallback | None = None,
    ) -> values.SnapshotInfo:
        """The same, to be read only."""
        return self._make(key, image, "view", platform, uid_map, gid_map, progress)

    def _make(
        self,
        key: str,
        image: str,
        kind: str,
        platform: str | None,
        uid_map: IdMaps,
        gid_map: IdMaps,
        progress: values.ProgressCallback | None,
    ) -> values.SnapshotInfo:
        from .layers import snapshots
        from .oci.committing import base_of

        with self._content.operation() as op:
            base = base_of(op, image, platform)
            return snapshots.prepare(
                self._content,
                op,
                key,
                kind=kind,
                image=image,
                manifest=base.digest,
                layers=[one.digest for one in base.layers],
                stated=[one.diff_id for one in base.layers],
                uids=tuple(uid_map),
                gids=tuple(gid_map),
                progress=progress,
            )

    def mount(
        self,
        key: str,
        target: str | os.PathLike[str],
        *,
        driver: str = "auto",
        progress: values.ProgressCallback | None = None,
    ) -> values.SnapshotInfo:
        """Shows a snapshot at a directory, which must be empty and is made if it is missing.

        `driver`: `overlay` (the kernel's), `fuse` (fuse-overlayfs), `copy` (a plain copy), or `auto`,
        the first of these that works. Does nothing if it is mounted there already. Raises
        NotFoundError, BusyError (mounted elsewhere), InvalidInputError, UnsupportedError, OSError."""
        from .layers import snapshots

        where = os.fspath(target)
        return snapshots.mount(self._content, key, where, driver=driver, progress=progress)

    def unmount(self, key: str, *, lazy: bool = False) -> values.SnapshotInfo:
        """Takes it away from where it is mounted, also when the process that mounted it is gone; does
        nothing if it is not. Raises NotFoundError, BusyError while something works there (`lazy`
        takes the name away, and the rest when that has ended)."""
        from .layers import snapshots

        return snapshots.unmount(self._content, key, lazy=lazy)

    def commit(
        self,
        key: str,
        name: str,
        *,
        source_date_epoch: int | None = None,
        progress: values.ProgressCallback | None = None,
        **changes: Unpack[values.ConfigChanges],
    ) -> values.ImageInfo:
        """An image `name`: the snapshot's image, with what was changed as one more layer, and changes
        of the config (see `ConfigChanges`). The snapshot stays, mounted or not. Raises
        NotFoundError, InvalidInputError (a view; a file that changes while it is read)."""
        from .layers import snapshots
        from .oci import committing

        with self._content.operation() as op:
            row = snapshots.find(self._content, key)
            if row.kind != snapshots.ACTIVE:
                raise InvalidInputError(
                    f"snapshot {key!r} is a view: only an active one can be committed",
                    reason="view",
                )
            clamp = committing.epoch(source_date_epoch)
            layer = snapshots.changes(self._content, op, row, clamp, progress)
            return committing.commit(
                self._content,
                op,
                committing.SCRATCH if row.manifest is None else row.manifest,
                name,
                [layer.digest],
                changes,
                created=committing.created_at(source_date_epoch),
                progress=progress,
            )

    def diff(
        self,
        key: str,
        *,
        source_date_epoch: int | None = None,
        progress: values.ProgressCallback | None = None,
    ) -> values.LayerInfo:
        """What was changed in a snapshot as a layer, stored and held as `Store.put` does. The snapshot
        may be mounted. Raises NotFoundError, InvalidInputError."""
        from .layers import snapshots
        from .oci import committing

        with self._content.operation() as op:
            row = snapshots.find(self._content, key)
            clamp = committing.epoch(source_date_epoch)
            return snapshots.changes(self._content, op, row, clamp, progress)

    def usage(self, key: str) -> values.Usage:
        """What it takes on disk beside the layers that it shares. Raises NotFoundError."""
        from .layers import snapshots

        return snapshots.usage(self._content, key)

    def remove(self, key: str) -> None:
        """Removes a snapshot with what was changed in it. Raises NotFoundError, BusyError if it is
        mounted. The unpacked layers below it are gc's, once nothing else uses them."""
        from .layers import snapshots

        snapshots.remove(self._content, key)

    def get(self, key: str) -> values.SnapshotInfo:
        """One snapshot. Raises NotFoundError."""
        from .layers import snapshots

        return snapshots.info(self._content, key)

    def list(self) -> builtins.list[values.SnapshotInfo]:
        """All snapshots, by key, with where each is mounted."""
        from .layers import snapshots

        return list(snapshots.listing(self._content))

    def strays(self) -> builtins.list[str]:
        """Places where snapshots are mounted that this store has no more; unmount them with umount(8).
        gc frees no unpacked layer while there are any."""
        from .layers import snapshots

        return snapshots.strays(self._content)
