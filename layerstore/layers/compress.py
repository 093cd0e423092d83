"""Compressed layers made here: gzip by our own encoder, as a recipe; zstd by the library at hand, raw.

A gzip form is staged unproven: its digest was computed from the first making, and the first whole read
through the ordinary reader makes it again from committed rows and compares (rule 20). zstd's output
changes between versions of the library, so its bytes are kept, and the row says who made them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

from ..core.deflate import ENCODER, PIECE
from ..storage.operation import Operation, Staged
from ..storage.rows import BlobRow, GzipForm
from . import regenerate
from .assemble import BlobFile
from .hashpipe import HashPipe
from .inflate import crc32
from .ingest import MetaStream

ZSTD_LEVELS = range(1, 20)


def gzipped(
    op: Operation,
    inner: BlobFile,
    level: int,
    media_type: str,
    progress: Callable[[int], None] | None,
) -> Staged:
    """A stored blob as a gzip blob, ready to be committed. Reads `inner` whole and closes it;
    `progress` counts its bytes."""
    points = array("I")
    crc = size = 0

    def content() -> Iterator[memoryview]:
        nonlocal crc
        for piece in inner.chunks():
            crc = crc32(piece, crc)
            yield piece
            if progress is not None:
                progress(len(piece))

    with inner, HashPipe(["sha256"]) as hashes:
        head = regenerate.header(level)
        hashes.feed(head)
        storage = op.storage
        for piece in regenerate.deflated(
            storage.pool, storage.workers, content(), inner.size, level
        ):
            hashes.feed(piece)
            points.append(len(piece))
            size += len(piece)
        tail = regenerate.trailer(crc, inner.size)
        hashes.feed(tail)
        digest = hashes.digests()["sha256"]
    stream = MetaStream(op)
    stream.write(points.tobytes())
    kept, runs = stream.finish()
    row = BlobRow(
        digest,
        len(head) + size + len(tail),
        media_type,
        gzip=GzipForm(inner.row.digest, ENCODER, level, PIECE, crc, kept),
        diff_id=inner.row.diff_id,
        inspected=True,
        inner_size=inner.size,
    )
    return Staged(row, [*runs, *kept.outer])


def is_our_gzip(row: BlobRow, inner: str, level: int) -> bool:
    """Whether a blob is what `gzipped` makes of `inner`."""
    form = row.gzip
    return (
        form is not None
        and form.inner == inner
        and (form.encoder, form.level, form.piece) == (ENCODER, level, PIECE)
    )


def zstd_maker(level: int) -> str:
    """Who compresses: library version and level decide about the bytes."""
    import zstandard  # a listing has no use for it

    return f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))} level {level}"


def zstd_compressed(pieces: Iterable[bytes | memoryview], level: int) -> Iterator[bytes]:
    """One frame, by one thread, with a checksum (RFC 8878): the bytes depend on content, level and
    version of the library, not on the sizes of the pieces or the number of cores."""
    import zstandard

    machine = zstandard.ZstdCompressor(
        level=level, write_checksum=True, write_content_size=False, threads=0
    ).compressobj()
    for piece in pieces:
        out = machine.compress(piece)
        if out:
            yield out
    yield machine.flush()
