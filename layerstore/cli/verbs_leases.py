"""lease create, ls, rm: what protects a command's results from gc until another command uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .context import Context
from .output import human_seconds

if TYPE_CHECKING:
    import layerstore


def create(context: Context) -> None:
    """`lease create [--ttl TIME]`"""
    output = context.output
    lease = context.store(create=True).lease(ttl=context.args.ttl)
    if output.json:
        output.document({"id": lease.id, "ttl": context.args.ttl})
    else:
        output.line(lease.id)


def ls(context: Context) -> None:
    """`lease ls`; with `-q` ids only."""
    output = context.output
    leases = context.store().leases()
    if output.json:
        output.document({"leases": [_lease(lease) for lease in leases]})
    elif output.quiet:
        output.lines(lease.id for lease in leases)
    else:
        output.table(
            ("LEASE", "TTL", "LEFT", "BLOBS"),
            [
                (lease.id, _span(lease.ttl), _span(lease.left), str(len(lease.digests)))
                for lease in leases
            ],
            right="TTL,LEFT,BLOBS",
        )


def _span(seconds: float | None) -> str:
    return "-" if seconds is None else human_seconds(max(seconds, 0.0))


def _lease(lease: layerstore.LeaseInfo) -> dict[str, Any]:
    return {
        "id": lease.id,
        "ttl": lease.ttl,
        "left": lease.left,
        "digests": list(lease.digests),
    }


def rm(context: Context) -> None:
    """`lease rm ID...`"""
    output = context.output
    store = context.store(write=True)
    for lease in context.args.id:
        store.drop_lease(lease)
    if output.json:
        output.document({"removed": context.args.id})
