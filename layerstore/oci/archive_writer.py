"""An OCI layout as one plain tar: index first, then every blob, in the order of their digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from . import jsonio
from .closure import Closure
from .layout_writer import VERSION_FILE, Entry, merge
from .outfile import output, source_date_epoch
from .parallel import Meter
from .tario import TarWriter
from .transports import Transport

if TYPE_CHECKING:
    from ..layers.content import Operation


def write_oci_archive(
    op: Operation, closure: Closure, entries: list[Entry], transport: Transport, meter: Meter
) -> None:
    """Writes the archive; the same images give the same bytes."""
    index: dict[str, object] = {"schemaVersion": 2, "manifests": []}
    merge(index, entries, "index.json")
    with output(transport.path) as out:
        tar = TarWriter(out, mtime=source_date_epoch())
        for name, data in (("oci-layout", VERSION_FILE), ("index.json", jsonio.dump(index))):
            tar.add(name, len(data), (data,))
        for digest in sorted({*closure.documents, *closure.blobs}):
            path = "blobs/" + digest.replace(":", "/")
            written = closure.documents.get(digest)
            if written is not None:
                tar.add(path, len(written.data), (written.data,))
                meter.add(len(written.data))
            else:
                with op.open(digest) as blob:
                    tar.add(path, closure.blobs[digest], counted(blob.chunks(), meter.add))
        tar.finish()


def counted(pieces: Iterator[memoryview], progress: Callable[[int], None]) -> Iterator[memoryview]:
    """Pieces as they pass, told to `progress`."""
    for piece in pieces:
        yield piece
        progress(len(piece))
