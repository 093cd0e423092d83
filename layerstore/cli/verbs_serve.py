"""serve: the store as a registry."""

from __future__ import annotations

from dataclasses import replace

from ..registry import Config, Mirror, ProxyConfig, load
from ..registry import serve as run
from .context import Context
from .parser import UsageError
from .verbs_transfer import remote_options

UPSTREAM_SILENCE = 30.0
"""Seconds that an upstream may be silent, while clients wait for what comes from it."""
UPSTREAM_TRIES = 3


def serve(context: Context) -> None:
    """`serve`"""
    args, output = context.args, context.output

    config = Config() if args.config is None else load(args.config)
    if args.listen is not None:
        config = replace(config, server=replace(config.server, listen=args.listen))
    if args.idle is not None:
        config = replace(config, maintenance=replace(config.maintenance, idle=args.idle))
    if args.proxy is not None:
        proxy = ProxyConfig(args.proxy) if config.proxy is None else config.proxy
        config = replace(config, proxy=replace(proxy, upstream=args.proxy))
    if args.proxy_ttl is not None:
        if config.proxy is None:
            raise UsageError("--proxy-ttl goes with --proxy")
        config = replace(config, proxy=replace(config.proxy, ttl=args.proxy_ttl))
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

    store = context.store(create=True)
    mirror = None
    if config.proxy is not None:
        remote = replace(remote_options(args), timeout=UPSTREAM_SILENCE, tries=UPSTREAM_TRIES)
        mirror = Mirror(config.proxy.upstream, ttl=config.proxy.ttl, options=remote)
    run(store, config, mirror=mirror, ready=ready)
