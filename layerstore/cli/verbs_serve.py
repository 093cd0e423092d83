"""serve: the store as a registry."""

from __future__ import annotations

from dataclasses import replace

from ..registry import Config, load
from ..registry import serve as run
from .context import Context


def serve(context: Context) -> None:
    """`serve`"""
    args, output = context.args, context.output

    config = Config() if args.config is None else load(args.config)
    if args.listen is not None:
        config = replace(config, server=replace(config.server, listen=args.listen))
    if args.idle is not None:
        config = replace(config, maintenance=replace(config.maintenance, idle=args.idle))
    config = replace(
        config,
        sparse=config.sparse or args.sparse,
        readonly=config.readonly or args.read_only,
    )

    def ready(url: str) -> None:
        if output.json:
            output.document({"url": url})
            output.flush()  # who waits for it has to see it now
        else:
            output.note(f"serving {context.path} at {url}")

    run(context.store(create=True), config, ready=ready)
