"""commit and bundle: images out of changes, and what a container runtime takes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .context import Context
from .output import human

if TYPE_CHECKING:
    import layerstore


def commit(context: Context) -> None:
    """`commit BASE NAME`"""
    args, output = context.args, context.output
    made = context.store(write=True, create=args.base == "scratch").commit(
        args.base,
        args.new,
        upper=args.upper,
        lower=args.lower or (),
        layers=args.layer or (),
        squash="all" if args.squash_all else args.squash,
        platform=args.platform,
        progress=context.progress,
        **changes(args),
    )
    context.done()
    if output.json:
        output.document({"name": made.name, "digest": made.digest})
        return
    output.line(f"{made.name}  {made.digest}")
    for warning in made.warnings:
        output.warning(warning)


def changes(args: Namespace) -> layerstore.ConfigChanges:
    """What the options say about the config; what was not given is not there."""
    out: layerstore.ConfigChanges = {}
    if args.cmd is not None:
        out["cmd"] = args.cmd
    if args.entrypoint is not None:
        out["entrypoint"] = args.entrypoint
    if args.env:
        out["env"] = dict(args.env)
    if args.label:
        out["labels"] = dict(args.label)
    if args.user is not None:
        out["user"] = args.user
    if args.workdir is not None:
        out["workdir"] = args.workdir
    if args.port:
        out["ports"] = args.port
    if args.volume:
        out["volumes"] = args.volume
    if args.stop_signal is not None:
        out["stop_signal"] = args.stop_signal
    if args.shell is not None:
        out["shell"] = args.shell
    if args.annotation:
        out["annotations"] = dict(args.annotation)
    if args.created_by is not None:
        out["created_by"] = args.created_by
    if args.author is not None:
        out["author"] = args.author
    if args.message is not None:
        out["message"] = args.message
    return out


def bundle(context: Context) -> None:
    """`bundle NAME DIR`"""
    args, output = context.args, context.output
    uids, gids = maps(args)
    made = context.store(write=args.snapshot is not None).bundle(
        args.name,
        args.dir,
        snapshot=args.snapshot,
        args=args.args,
        readonly=args.read_only,
        platform=args.platform,
        uid_map=uids,
        gid_map=gids,
        reflink=args.reflink == "auto",
        progress=context.progress,
    )
    context.done()
    if output.json:
        output.document(
            {
                "path": made.path,
                "digest": made.digest,
                "uid": made.uid,
                "gid": made.gid,
                "entries": made.entries,
                "bytes": made.bytes,
                "seconds": round(made.seconds, 3),
                "notes": list(made.notes),
            }
        )
        return
    output.line(made.path)
    for note in made.notes:
        output.warning(note)
    output.note(f"{made.entries} files, {human(made.bytes)}", verbose=True)


IdMaps = Sequence[tuple[int, int, int]]


def maps(args: Namespace) -> tuple[IdMaps, IdMaps]:
    """Maps of users and of groups; without --gid-map groups are mapped as users are."""
    return args.uid_map, args.gid_map or args.uid_map
