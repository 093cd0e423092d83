"""serve: the store as a registry."""

from __future__ import annotations

from ..registry import Options
from ..registry import serve as run
from .context import Context


def serve(context: Context) -> None:
    """`serve`"""
    args, output = context.args, context.output

    def ready(url: str) -> None:
        if output.json:
            output.document({"url": url})
            output.flush()  # who waits for it has to see it now
        else:
            output.note(f"serving {context.path} at {url}")

    options = Options(
        idle=args.idle,
        sparse=args.sparse,
        log=None if args.access_log == "off" else args.access_log,
        workers=args.workers,
        optimize=args.optimize,
        gc=args.gc,
        quiet=args.quiet_time,
        raw_cache=context.raw_cache(),
        timeout=args.timeout,
    )
    run(context.store(create=True), args.listen, options=options, ready=ready)
