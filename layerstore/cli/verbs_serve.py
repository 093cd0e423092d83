"""serve: the store as a registry."""

from __future__ import annotations

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

    run(context.store(create=True), args.listen, idle=args.idle, sparse=args.sparse, ready=ready)
