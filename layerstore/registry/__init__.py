"""The registry: distribution-spec 1.1 over HTTP, an ASGI application on the public face of the store.

    application = layerstore.registry.Registry(store)

It needs no framework; any ASGI server serves it. `serve` runs uvicorn, of the extra `registry`.
"""

from .app import Registry
from .server import Options, serve

__all__ = ["Options", "Registry", "serve"]
