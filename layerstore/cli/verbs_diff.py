"""diff: a layer out of directories."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import F_SETPIPE_SZ, fcntl
from typing import TYPE_CHECKING, Any, BinaryIO

from .context import Context
from .output import human, human_seconds
from .parser import UsageError

if TYPE_CHECKING:
    import layerstore

HOLD = 3600.0  # seconds that a layer is held without a lease: enough to name it in an image
PIPE = 1 << 20  # bytes that a pipe may hold, so that who reads it does not wait for us
USAGE = "layerstore diff --upper DIR [--lower DIR]... | OLD NEW"


def diff(context: Context) -> None:
    """`diff --upper DIR [--lower DIR]...` or `diff OLD NEW`"""
    args = context.args
    if (args.upper is None) == (not args.trees) or len(args.trees) not in (0, 2):
        raise UsageError("name an upper directory, or two trees", "layerstore diff", USAGE)
    if args.trees and args.lower:
        raise UsageError("--lower goes with --upper", "layerstore diff", USAGE)
    if args.upper is not None and args.content:
        raise UsageError("--content goes with two trees", "layerstore diff", USAGE)
    if args.trees and args.fuse_overlayfs:
        raise UsageError("--fuse-overlayfs goes with --upper", "layerstore diff", USAGE)
    if args.tar is not None:
        _write(context)
    else:
        _store(context)


def _store(context: Context) -> None:
    args = context.args

    def make(store: layerstore.Store) -> layerstore.LayerInfo:
        options = _options(context)
        options["cache"] = not args.no_cache
        if args.upper is not None:
            return store.diff_upper(args.upper, args.lower or (), **options)
        return store.diff_trees(*args.trees, content=args.content, **options)

    stored(context, context.store(create=True), make)


def stored(
    context: Context,
    store: layerstore.Store,
    make: Callable[[layerstore.Store], layerstore.LayerInfo],
) -> None:
    """Makes a layer, held under the lease that was named, else under a new one, and says it."""
    own = None if context.lease else store.lease(ttl=HOLD)
    try:
        if own is not None:
            store.use_lease(own.id)
        made = make(store)
    except BaseException:
        if own is not None:
            own.drop()
        raise
    lease = own.id if own is not None else context.lease
    _say(context, made, lease)
    if own is not None and not context.output.json:
        context.output.note(f"held under lease {own.id} for {human_seconds(HOLD)}")


def _write(context: Context) -> None:
    """Into a file, or on a pipe; no store is opened."""
    import layerstore

    args, output = context.args, context.output
    pipe = args.tar == "-"
    if pipe and output.json:
        raise UsageError("--json and --tar - both want stdout", "layerstore diff", USAGE)
    options = _options(context)
    options["hashed"] = not pipe
    with _target(args.tar) as file:
        if args.upper is not None:
            made = layerstore.write_upper(file, args.upper, args.lower or (), **options)
        else:
            made = layerstore.write_trees(file, *args.trees, content=args.content, **options)
    if not pipe:
        _say(context, made, None)
        return
    context.done()
    for note in made.notes:
        output.warning(note)


def _options(context: Context) -> dict[str, Any]:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch and not (epoch.isascii() and epoch.isdigit()):
        raise UsageError(f"SOURCE_DATE_EPOCH is no number: {epoch!r}", "layerstore diff", USAGE)
    clamp = int(epoch) if epoch else None
    progress: Callable[..., None] = context.progress
    options: dict[str, Any] = {
        "source_date_epoch": clamp,
        "progress": progress,
        "rootless": context.args.rootless,
    }
    if context.args.fuse_overlayfs:
        options["fuse_overlayfs"] = True
    return options


def _say(context: Context, made: layerstore.LayerInfo, lease: str | None) -> None:
    context.done()
    output = context.output
    if output.json:
        output.document(
            {
                "mediaType": made.media_type,
                "digest": made.digest,
                "size": made.size,
                "diff_id": made.diff_id,
                "entries": made.entries,
                "new_bytes": made.new_bytes,
                "lease": lease,
                "notes": list(made.notes),
            }
        )
        return
    output.line(made.digest)
    for note in made.notes:
        output.warning(note)
    output.note(f"{made.entries} entries, {human(made.size)}", verbose=True)


@contextmanager
def _target(name: str) -> Iterator[BinaryIO]:
    """Where the tar goes. A file that was begun and not finished is removed."""
    if name == "-":
        with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as pipe:
            with suppress(OSError):  # no pipe, or more than this user may have
                fcntl(pipe, F_SETPIPE_SZ, PIPE)
            yield pipe
        return
    with open(name, "wb", buffering=0) as file:
        try:
            yield file
        except BaseException:
            os.unlink(name)
            raise
