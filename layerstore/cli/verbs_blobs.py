"""blob cat, put, stat, ls: any blob by its digest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, BinaryIO

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
    with _source(args.file) as (source, size):
        store = context.store(create=True)
        own = None if context.lease else store.lease(ttl=HOLD)
        try:
            if own is not None:
                store.use_lease(own.id)
            blob = store.put(
                source,
                digest=args.digest,
                size=size,
                media_type=args.media_type,
                progress=_step(context, size or 0),
            )
        except BaseException:
            if own is not None:
                own.drop()
            raise
    context.done()
    lease = own.id if own is not None else context.lease
    if output.json:
        document = {"digest": blob.digest, "bytes": blob.size, "media_type": blob.media_type}
        output.document({**document, "lease": lease})
        return
    output.line(blob.digest)
    output.note(human(blob.size), verbose=True)
    if own is not None:
        output.note(f"held under lease {own.id} for {human_seconds(HOLD)}")


def _step(context: Context, total: int) -> Callable[[int], None]:
    """The meter as `Store.put` feeds it: with the bytes of each step."""
    from layerstore import Progress

    done = 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        context.progress(Progress("put", done, total))

    return step


@contextmanager
def _source(name: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The file to read and, where it is one with a size, its bytes; `-` is stdin."""
    if name == "-":
        yield sys.stdin.buffer, None
        return
    with open(name, "rb") as file:
        status = os.fstat(file.fileno())
        yield file, status.st_size if S_ISREG(status.st_mode) else None


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
