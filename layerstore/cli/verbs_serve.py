"""serve: the store as a registry."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from ..registry import UPSTREAM, Config, LogConfig, Options, ProxyConfig, load
from ..registry import serve as run
from .context import Context
from .parser import UsageError
from .verbs_transfer import remote_options


def serve(context: Context) -> None:
    """`serve`"""
    args, output = context.args, context.output

    config = _configured(args)

    def ready(url: str) -> None:
        if output.json:
            output.document({"url": url})
            output.flush()  # who waits for it has to see it now
        else:
            output.note(f"serving {context.path} at {url}")

    store = context.store(create=True)
    options = Options(
        raw_cache=context.raw_cache(),
        timeout=args.timeout,
        remote=replace(remote_options(args), timeout=UPSTREAM.timeout, tries=UPSTREAM.tries),
    )
    run(store, config, options=options, ready=ready)


def _configured(args: Namespace) -> Config:
    """The configuration file, and what the command line says instead of it."""
    given = Config(log=LogConfig(access=False)) if args.config is None else load(args.config)
    server, upkeep, log, proxy = given.server, given.maintenance, given.log, given.proxy
    if args.listen is not None:
        server = replace(server, listen=args.listen)
    if args.workers is not None:
        server = replace(server, workers=args.workers)
    if args.idle is not None:
        upkeep = replace(upkeep, idle=args.idle)
    if args.optimize is not None:
        upkeep = replace(upkeep, optimize=args.optimize)
    if args.gc is not None:
        upkeep = replace(upkeep, gc=args.gc)
    if args.quiet_time is not None:
        upkeep = replace(upkeep, quiet=args.quiet_time)
    if args.access_log == "off":
        log = replace(log, access=False)
    elif args.access_log is not None:
        log = replace(log, access=True, format=args.access_log)
    if args.proxy is not None:
        proxy = ProxyConfig(args.proxy) if proxy is None else replace(proxy, upstream=args.proxy)
    if args.proxy_ttl is not None:
        if proxy is None:
            raise UsageError("--proxy-ttl is for mirrors: --proxy", "layerstore serve", "")
        proxy = replace(proxy, ttl=args.proxy_ttl)
    return replace(
        given,
        server=server,
        maintenance=upkeep,
        log=log,
        proxy=proxy,
        sparse=given.sparse or args.sparse,
        readonly=given.readonly or args.read_only,
    )
