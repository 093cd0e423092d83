"""serve: the store as a registry."""

from __future__ import annotations

from dataclasses import replace

from ..registry import Mirror
from ..registry import serve as run
from .context import Context
from .verbs_transfer import remote_options

UPSTREAM_SILENCE = 30.0
"""Seconds that an upstream may be silent, while clients wait for what comes from it."""
UPSTREAM_TRIES = 3


def serve(context: Context) -> None:
    """`serve`"""
    args, output = context.args, context.output

    def ready(url: str) -> None:
        if output.json:
            output.document({"url": url})
            output.flush()  # who waits for it has to see it now
        else:
            output.note(f"serving {context.path} at {url}")

    store = context.store(create=True)
    mirror = None
    if args.proxy is not None:
        remote = replace(remote_options(args), timeout=UPSTREAM_SILENCE, tries=UPSTREAM_TRIES)
        mirror = Mirror(args.proxy, ttl=args.proxy_ttl, options=remote)
    run(store, args.listen, idle=args.idle, sparse=args.sparse, mirror=mirror, ready=ready)
