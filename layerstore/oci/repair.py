"""Repair from a transport: what is damaged is put again from any layout or archive that has it.

Content that is put again heals under its old numbers, wherever else it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from ..storage.rows import BlobRow
from ..values import ProgressCallback
from . import parallel
from .importing import open_source
from .puts import Puts
from .transports import parse

if TYPE_CHECKING:
    from ..layers.content import Content

Repair = Callable[["Content", Sequence[BlobRow]], None]


def repair_source(text: str, progress: ProgressCallback | None = None) -> Repair:
    """A function that puts again those of the given blobs that the transport has, each verified by
    its digest. Raises InvalidInputError for what is no transport."""
    transport = parse(text)

    def repair(content: Content, damaged: Sequence[BlobRow]) -> None:
        meter = parallel.Meter(progress, "repair")
        with content.operation() as op:
            puts = Puts(op, meter, strict=False, defer=True, inflate_limit=None)
            with closing(open_source(transport, puts, None)) as source:
                for row in damaged:
                    for digest in row.digests:
                        if source.size(digest) != row.size:
                            continue
                        with source.open(digest) as file:
                            op.put(
                                file,
                                digest=digest,
                                size=row.size,
                                media_type=row.media_type,
                                edges=op.edges(digest),
                                inspect=False,
                            )
                        break

    return repair
