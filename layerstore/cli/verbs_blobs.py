"""blob cat, put, stat, ls: any blob by its digest."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .context import Context
from .output import human, human_seconds

if TYPE_CHECKING:
    import layerstore

HOLD = 3600.0  # seconds that a blob put without a lease is held: enough to name it in an image


def cat(context: Context) -> None:
    """`blob cat DIGEST`"""
    with context.store().open_blob(context.args.digest) as file:
        context.output.bytes(file.chunks())


def put(context: Context) -> None:
    """`blob put FILE`: held under the lease that was named, else under a new one of an hour."""
    args, output = context.args, context.output
    with ExitStack() as stack:
        size = None
        store = context.store(create=True)
        if args.file == "-":
            source = sys.stdin.buffer
        else:
            source = stack.enter_context(open(args.file, "rb"))
            status = os.fstat(source.fileno())
            size = status.st_size if os.path.isfile(args.file) else None
        own = None
        if context.lease is None:
            own = store.lease(ttl=HOLD)
            stack.callback(own.drop)  # until the blob is in
            store.use_lease(own.id)
        blob = store.put(source, digest=args.digest, size=size, media_type=args.media_type)
        if own is not None:
            stack.pop_all().pop_all()
    lease = own.id if own is not None else context.lease
    context.done()
    if output.json:
        document = {"digest": blob.digest, "bytes": blob.bytes, "media_type": blob.media_type}
        output.document({**document, "new_bytes": blob.new_bytes, "lease": lease})
        return
    output.line(blob.digest)
    output.note(f"{human(blob.bytes)}, the store grew by {human(blob.new_bytes)}", verbose=True)
    if own is not None:
        output.note(f"held under lease {own.id} for {human_seconds(HOLD)}")


def stat(context: Context) -> None:
    """`blob stat DIGEST`"""
    output = context.output
    blob = context.store().stat(context.args.digest)
    if output.json:
        output.document(_blob(blob))
        return
    output.lines(
        (
            f"digest:     {blob.digest}",
            f"size:       {human(blob.bytes)} ({blob.bytes} bytes)",
            f"media type: {blob.media_type}",
            f"forms:      {', '.join(blob.forms)}",
            f"stored:     {human(blob.stored_bytes) if blob.stored_bytes >= 0 else 'unknown'}",
        )
    )
    if blob.diff_id is not None:
        output.line(f"diff_id:    {blob.diff_id}")
    if blob.problem is not None:
        output.warning(blob.problem)


def ls(context: Context) -> None:
    """`blob ls`; with `-q` digests only. Streams."""
    output = context.output
    blobs = context.store().blobs()
    if output.json:
        output.stream("blobs", map(_blob, blobs))
    elif output.quiet:
        output.lines(blob.digest for blob in blobs)
    else:
        output.lines(
            f"{blob.digest}  {human(blob.bytes):>8}  {','.join(blob.forms):<9}  {blob.media_type}"
            for blob in blobs
        )


def _blob(blob: layerstore.BlobInfo) -> dict[str, Any]:
    return {
        "digest": blob.digest,
        "bytes": blob.bytes,
        "media_type": blob.media_type,
        "forms": list(blob.forms),
        "stored_bytes": blob.stored_bytes,
        "diff_id": blob.diff_id,
        "problem": blob.problem,
    }
