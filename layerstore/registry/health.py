"""Whether the registry is alive, and whether it can do its work.

`/healthz`: the process answers. `/readyz`: its store can be read and, unless it is read-only, has room
for an upload; else 503 with the reason. Neither names what is in the store, so both are for everybody.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .. import LayerstoreError
from .http import Request, Response, document
from .routes import Route

if TYPE_CHECKING:
    from .app import Registry

ROOM = 64 << 20
"""Bytes that a filesystem must have free."""


async def alive(registry: Registry, route: Route, request: Request) -> Response:
    return document({"status": "alive"})


async def ready(registry: Registry, route: Route, request: Request) -> Response:
    reason = await registry.run(_reason, registry)
    if reason is None:
        return document({"status": "ready"})
    return document({"status": "not ready", "reason": reason}, status=503)


def _reason(registry: Registry) -> str | None:
    try:
        registry.store.repositories("", 1)
        room = os.statvfs(registry.store.path)
    except (LayerstoreError, OSError):
        return "the store cannot be read"
    if not registry.store.readonly and room.f_bavail * room.f_frsize < ROOM:
        return "the disk is full"
    return None


async def metrics(registry: Registry, route: Route, request: Request) -> Response:
    """For Prometheus."""
    from .metrics import KIND

    text = await registry.run(registry.metrics.text, registry.store)
    return Response(200, [("Content-Type", KIND)], text.encode())
