"""The registry: distribution-spec 1.1 over HTTP, an ASGI application on the public face of the store.

    application = layerstore.registry.Registry(store, layerstore.registry.load("registry.toml"))

It needs no framework; any ASGI server serves it. `serve` runs uvicorn, of the extra `registry`.
"""

from .app import Registry
from .config import Config, LogConfig, ProxyConfig, load
from .mirror import UPSTREAM, Mirror
from .server import Options, serve

__all__ = [
    "UPSTREAM",
    "Config",
    "LogConfig",
    "Mirror",
    "Options",
    "ProxyConfig",
    "Registry",
    "load",
    "serve",
]
