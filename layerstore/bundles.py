"""`Store.bundle`: a runtime bundle, its root filesystem written or mounted (floor 5)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import InvalidInputError
from .layers.tree import Tree
from .oci import bundle as documents
from .oci import images, jsonio
from .oci.users import look_up
from .values import BundleReport, IdMap, ProgressCallback

if TYPE_CHECKING:
    from .layers.content import Content
    from .store import Store


def bundle(
    store: Store,
    content: Content,
    name: str,
    target: str,
    *,
    snapshot: str | None,
    args: Sequence[str] | None,
    readonly: bool,
    platform: str | None,
    uids: IdMap,
    gids: IdMap,
    reflink: bool,
    progress: ProgressCallback | None,
) -> BundleReport:
    """See `Store.bundle`."""
    started = time.monotonic()
    documents.check_target(target)
    with content.operation() as op:
        ref = images.find(op, name)
        digest, found = images.manifest(op, ref, platform)
        if found.config is None or not found.is_image:
            raise InvalidInputError(f"{name} is no image: nothing to run", digest=digest)
        data = op.read(found.config.digest, jsonio.MAX_CONFIG)
        image = documents.image_config(data, found.config.digest)
        layers = [layer.digest for layer in images.layers(op, ref, platform)]
        user = look_up(content, Tree(content, layers), image["config"].get("User") or "")
        rootless = not uids and not documents.ids_are_here(user)
        if rootless:
            # The one id that there is, is the user's that the image runs as.
            uids, gids = ((user.uid, os.geteuid(), 1),), ((user.gid, os.getegid(), 1),)
        config = documents.runtime_config(
            image,
            user,
            args=args,
            readonly=readonly,
            uids=uids,
            gids=gids,
            rootless=rootless,
        )
        os.makedirs(target, exist_ok=True)
        rootfs = os.path.join(target, documents.ROOTFS)
        entries = size = 0
        notes: tuple[str, ...] = ()
        if snapshot is not None:
            maps = ((), ()) if rootless else (uids, gids)
            store.snapshots.prepare(
                snapshot, digest, uid_map=maps[0], gid_map=maps[1], progress=progress
            )
            try:
                store.snapshots.mount(snapshot, rootfs, progress=progress)
            except BaseException:
                store.snapshots.remove(snapshot)
                raise
        else:
            maps = ((), ()) if rootless else (uids, gids)
            report = store.checkout(
                digest,
                rootfs,
                uid_map=maps[0],
                gid_map=maps[1],
                reflink=reflink,
                progress=progress,
            )
            entries, size, notes = report.entries, report.bytes, report.notes
        documents.write_config(target, config)
    seconds = time.monotonic() - started
    return BundleReport(target, digest, user.uid, user.gid, entries, size, seconds, notes)
