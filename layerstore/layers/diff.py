"""Layers out of directories: what changed in an overlay's upper directory, or between two trees.

A diff reads each file once; its bytes go straight into the store (or to a pipe) as the layer's tar.
The tar depends on the tree alone: sorted, numbers for owners, pax records only where they are needed,
times with the nanoseconds that the tree has; `source_date_epoch` clamps those after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from ..core.pack import IdMap
from ..errors import NotFoundError
from ..mediatypes import OCI_LAYER
from ..values import LayerInfo, Progress, ProgressCallback
from .content import Operation
from .layertar import BUFFER, LayerTar, Source
from .overlay import Upper

Directory = str | os.PathLike[str] | int
"""A path, or the descriptor of an open directory."""


@contextlib.contextmanager
def opened(directories: Sequence[Directory]) -> Iterator[list[tuple[int, str]]]:
    """Descriptors of directories with what messages call them. Raises NotFoundError."""
    with contextlib.ExitStack() as stack:
        out: list[tuple[int, str]] = []
        for one in directories:
            if isinstance(one, int):
                out.append((one, f"fd {one}"))
                continue
            path = os.fspath(one)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError) as e:
                raise NotFoundError(f"no directory {path}", path=path) from e
            stack.callback(os.close, fd)
            out.append((fd, path))
        yield out


def diff_upper(
    op: Operation | None,
    upper: Directory,
    lower: Sequence[Directory] = (),
    *,
    media_type: str = OCI_LAYER,
    source_date_epoch: int | None = None,
    uids: Sequence[IdMap] = (),
    gids: Sequence[IdMap] = (),
    cache: bool = True,
    progress: ProgressCallback | None = None,
    tar: BinaryIO | None = None,
) -> LayerInfo:
    """The layer of an overlay's upper directory over `lower` (topmost first), into the store of `op`;
    or, with `tar`, written there and not stored.

    Raises InvalidInputError (a file vanished, changed, or cannot be said in a layer), NotFoundError (no
    such directory), OSError (not readable); each names the file."""
    with opened([upper, *lower]) as roots:
        source = Upper(roots)
        info = _make(op, source, media_type, source_date_epoch, uids, gids, progress, tar)
        return info(tuple(source.notes))


def _make(
    op: Operation | None,
    source: Source,
    media_type: str,
    clamp: int | None,
    uids: Sequence[IdMap],
    gids: Sequence[IdMap],
    progress: ProgressCallback | None,
    tar: BinaryIO | None,
) -> Callable[[tuple[str, ...]], LayerInfo]:
    """Writes the tar; gives what makes its description once the notes are known."""
    done = 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(Progress("diff", done, 0))

    with LayerTar(source, clamp=clamp, uids=uids, gids=gids) as made:
        if tar is not None:
            digest = _write(made, tar, step)
            size, new = made.size, 0
        else:
            if op is None:
                raise ValueError("a layer goes into a store, or to a tar")
            blob = op.put(made, media_type=media_type, progress=step)
            digest, size, new = blob.digest, blob.bytes, blob.new_bytes
        entries = made.entries
    return lambda notes: LayerInfo(digest, size, media_type, digest, entries, new, notes)


def _write(made: LayerTar, tar: BinaryIO, step: Callable[[int], None]) -> str:
    """The tar into a file; its digest."""
    sha = hashlib.sha256()
    buffer = memoryview(bytearray(BUFFER))
    while n := made.readinto(buffer):
        tar.write(buffer[:n])
        sha.update(buffer[:n])
        step(n)
    tar.flush()
    return f"sha256:{sha.hexdigest()}"
