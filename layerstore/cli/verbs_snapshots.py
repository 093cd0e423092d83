"""snapshot prepare, view, mount, unmount, diff, commit, usage, rm, ls: containers' own filesystems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .context import Context
from .output import human, human_seconds, rfc3339, short
from .verbs_blobs import HOLD
from .verbs_builds import changes, maps

if TYPE_CHECKING:
    import layerstore


def prepare(context: Context) -> None:
    """`snapshot prepare KEY NAME`"""
    _make(context, context.store(write=True).snapshots.prepare)


def view(context: Context) -> None:
    """`snapshot view KEY NAME`"""
    _make(context, context.store(write=True).snapshots.view)


def _make(context: Context, make: Any) -> None:
    args = context.args
    uids, gids = maps(args)
    made = make(
        args.key,
        args.name,
        platform=args.platform,
        uid_map=uids,
        gid_map=gids,
        progress=context.progress,
    )
    _said(context, made)


def mount(context: Context) -> None:
    """`snapshot mount KEY DIR`"""
    args = context.args
    snapshots = context.store(write=True).snapshots
    made = snapshots.mount(args.key, args.dir, driver=args.driver, progress=context.progress)
    _said(context, made)
    if made.driver != "overlay":
        context.output.note(f"shown by {made.driver}, not by the kernel's overlay", verbose=True)


def unmount(context: Context) -> None:
    """`snapshot unmount KEY`"""
    _said(
        context,
        context.store(write=True).snapshots.unmount(context.args.key, lazy=context.args.lazy),
    )


def _said(context: Context, made: layerstore.SnapshotInfo) -> None:
    context.done()
    if context.output.json:
        context.output.document(_snapshot(made))
    else:
        context.output.line(made.key)


def diff(context: Context) -> None:
    """`snapshot diff KEY`: held as what `diff` makes."""
    from .verbs_diff import stored

    key = context.args.key
    stored(
        context,
        context.store(write=True),
        lambda store: store.snapshots.diff(key, progress=context.progress),
    )


def commit(context: Context) -> None:
    """`snapshot commit KEY NEWNAME`: held under the lease that was named, else under a new one."""
    args, output = context.args, context.output
    store = context.store(write=True)
    own = None if context.lease else store.lease(ttl=HOLD)
    try:
        if own is not None:
            store.use_lease(own.id)
        made = store.snapshots.commit(
            args.key, args.new, progress=context.progress, **changes(args)
        )
    except BaseException:
        if own is not None:
            own.drop()
        raise
    context.done()
    lease = own.id if own is not None else context.lease
    if output.json:
        output.document({"name": made.name, "digest": made.digest, "lease": lease})
        return
    output.line(f"{made.name}  {made.digest}")
    if own is not None:
        output.note(f"held under lease {own.id} for {human_seconds(HOLD)}")


def usage(context: Context) -> None:
    """`snapshot usage KEY`"""
    output = context.output
    found = context.store().snapshots.usage(context.args.key)
    if output.json:
        output.document({"key": context.args.key, "bytes": found.bytes, "inodes": found.inodes})
    else:
        output.line(f"{human(found.bytes)} in {found.inodes} files")


def rm(context: Context) -> None:
    """`snapshot rm KEY...`"""
    output = context.output
    snapshots = context.store(write=True).snapshots
    for key in context.args.key:
        snapshots.remove(key)
    if output.json:
        output.document({"removed": context.args.key})


def ls(context: Context) -> None:
    """`snapshot ls`; with `-q` keys only."""
    output = context.output
    snapshots = context.store().snapshots
    found = snapshots.list()
    strays = snapshots.strays()
    if output.json:
        output.document({"snapshots": list(map(_snapshot, found)), "strays": strays})
        return
    if output.quiet:
        output.lines(one.key for one in found)
        return
    output.table(
        ("KEY", "KIND", "IMAGE", "CREATED", "MOUNTED"),
        [
            (
                one.key,
                one.kind,
                _image(one),
                rfc3339(int(one.created)),
                ", ".join(one.mounts) or "-",
            )
            for one in found
        ],
    )
    for one in found:
        if one.note is not None:
            output.warning(f"{one.key}: {one.note}")
    for place in strays:
        output.warning(f"{place} shows a snapshot that is no more: `umount {place}`")


def _image(one: layerstore.SnapshotInfo) -> str:
    if one.digest is not None and one.image == one.digest:
        return short(one.digest)
    return one.image


def _snapshot(one: layerstore.SnapshotInfo) -> dict[str, Any]:
    return {
        "key": one.key,
        "kind": one.kind,
        "image": one.image,
        "digest": one.digest,
        "created": rfc3339(int(one.created)),
        "mounts": list(one.mounts),
        "driver": one.driver,
        "note": one.note,
    }
