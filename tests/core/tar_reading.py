"""Short ways to read a tar with the scanner, for the tests of it."""

from __future__ import annotations

from tar_cases import END

from layerstore.core.tar import TarEntry, expand_sparse, scan


def entries(data: bytes) -> list[TarEntry]:
    return list(scan([data], strict=False))


def one(data: bytes) -> TarEntry:
    (entry,) = entries(data + END)
    return entry


def payload(data: bytes, entry: TarEntry) -> bytes:
    stored = data[entry.data_offset : entry.data_offset + entry.stored_size]
    if entry.sparse_map is None:
        return stored
    return b"".join(expand_sparse(entry.sparse_map, entry.size, [stored]))
