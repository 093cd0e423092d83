"""pull, push and copy: short forms for images that come from registries, or go there."""

from __future__ import annotations

from .context import Context
from .verbs_transfer import given_out, remote_options, take_in

SCHEME = "docker://"


def pull(context: Context) -> None:
    """`pull HOST/NAME [NAME]`"""
    take_in(context, _place(context.args.place))


def push(context: Context) -> None:
    """`push NAME [HOST/NAME]`"""
    args = context.args
    given = context.store().export_images(
        [args.name],
        _place(args.name if args.place is None else args.place),
        referrers=args.referrers,
        compression=args.compression,
        remote=remote_options(args),
        progress=context.progress,
    )
    given_out(context, given, told=args.compression is not None)


def copy(context: Context) -> None:
    """`copy SOURCE TARGET`"""
    args = context.args
    kind, _, rest = args.target.partition(":")
    if kind.endswith("-archive") and rest.partition(":")[0] == "-":
        context.output.results_to_stderr()
    given = context.store(create=True).copy_images(
        args.source,
        args.target,
        all=args.all,
        platform=args.platform,
        referrers=args.referrers,
        source_remote=remote_options(args, "src_"),
        target_remote=remote_options(args, "dest_"),
        progress=context.progress,
    )
    given_out(context, given)


def _place(text: str) -> str:
    return text if text.startswith(SCHEME) else SCHEME + text
