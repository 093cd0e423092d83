"""Layers out of directories: what changed in an overlay's upper directory, or between two trees.

A diff reads each file once; its bytes go straight into the store (or to a pipe) as the layer's tar.
The tar depends on the tree alone: sorted, numbers for owners, pax records only where they are needed,
times with the nanoseconds that the tree has; `source_date_epoch` clamps those after it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO

from ..core.pack import IdMap
from ..errors import InvalidInputError, NotFoundError
from ..mediatypes import OCI_LAYER
from ..values import LayerInfo, Progress, ProgressCallback
from .layertar import BUFFER, LayerTar, Source
from .overlay import Upper
from .stated import Stated
from .twotrees import TwoTrees

if TYPE_CHECKING:
    # A tar on a pipe needs no store: the rooms that make one are not loaded for it.
    from .content import Operation
    from .filecache import FileCache
    from .hashpipe import HashPipe

RING = 4
"""Buffers between reading, hashing and writing."""

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
                raise NotFoundError(f"no directory {path!r}", path=path) from e
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
    fuse_overlayfs: bool = False,
    overrides: bool | None = None,
    rootless: bool = False,
    progress: ProgressCallback | None = None,
    tar: BinaryIO | None = None,
    hashed: bool = True,
) -> LayerInfo:
    """The layer of an overlay's upper directory over `lower` (topmost first), into the store of `op`;
    or, with `tar`, written there and not stored (then without a digest unless `hashed`). With
    `fuse_overlayfs` and `rootless`, what these tools write in files and xattrs counts (see `stated`);
    `overrides` says otherwise of the xattrs of fuse-overlayfs.

    Raises InvalidInputError (a file vanished, changed, or cannot be said in a layer), NotFoundError (no
    such directory), OSError (not readable); each names the file."""
    with contextlib.ExitStack() as stack:
        roots = stack.enter_context(opened([upper, *lower]))
        seen: FileCache | None = None
        if op is not None and tar is None and cache:
            from .filecache import FileCache

            options = [media_type, source_date_epoch, list(uids), list(gids)]
            options += [fuse_overlayfs, overrides, rootless]
            seen = FileCache(op, *roots[0], options)
            stack.callback(seen.close)
            known = seen.same()
            if known is not None:
                return known
            seen.begin()
        stated = None
        if fuse_overlayfs or rootless:
            stated = _stated(
                roots[0],
                uids,
                gids,
                fuse=fuse_overlayfs,
                overrides=fuse_overlayfs if overrides is None else overrides,
                rootless=rootless,
            )
        source = Upper(roots, None if seen is None else seen.walked, stated)
        info = _make(
            op, source, media_type, source_date_epoch, uids, gids, progress, tar, hashed, seen
        )(tuple(source.notes))
        if seen is not None:
            seen.keep(info)
        return info


def diff_trees(
    op: Operation | None,
    old: Directory,
    new: Directory,
    *,
    content: bool = False,
    media_type: str = OCI_LAYER,
    source_date_epoch: int | None = None,
    uids: Sequence[IdMap] = (),
    gids: Sequence[IdMap] = (),
    cache: bool = True,
    rootless: bool = False,
    progress: ProgressCallback | None = None,
    tar: BinaryIO | None = None,
    hashed: bool = True,
) -> LayerInfo:
    """The layer that makes `old` into `new`: what differs by metadata and, with `content`, what has the
    same metadata and other bytes. Otherwise as `diff_upper`; with `cache`, files of the new tree that
    are known are not read for the layer."""
    with contextlib.ExitStack() as stack:
        roots = stack.enter_context(opened([old, new]))
        seen: FileCache | None = None
        if op is not None and tar is None and cache:
            from .filecache import FileCache

            seen = FileCache(op, *roots[1], ["of two trees"])
            stack.callback(seen.close)
            seen.begin()
        stated = _stated(roots[1], uids, gids, rootless=True) if rootless else None
        source = TwoTrees(roots[0], roots[1], content=content, stated=stated, cache=seen)
        info = _make(
            op, source, media_type, source_date_epoch, uids, gids, progress, tar, hashed, seen
        )(tuple(source.notes))
        if seen is not None:
            seen.keep(info, whole=False)
        return info


def _stated(
    root: tuple[int, str],
    uids: Sequence[IdMap],
    gids: Sequence[IdMap],
    *,
    fuse: bool = False,
    overrides: bool = False,
    rootless: bool = False,
) -> Stated:
    if rootless and (uids or gids):
        raise InvalidInputError(
            "owners in user.rootlesscontainers are mapped already: give no maps"
        )
    return Stated(root, fuse=fuse, overrides=overrides, rootless=rootless)


def _make(
    op: Operation | None,
    source: Source,
    media_type: str,
    clamp: int | None,
    uids: Sequence[IdMap],
    gids: Sequence[IdMap],
    progress: ProgressCallback | None,
    tar: BinaryIO | None,
    hashed: bool,
    cache: FileCache | None,
) -> Callable[[tuple[str, ...]], LayerInfo]:
    """Writes the tar; gives what makes its description once the notes are known."""
    done = 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(Progress("diff", done, 0))

    with LayerTar(source, clamp=clamp, uids=uids, gids=gids, cache=cache) as made:
        if tar is not None:
            digest = _write(made, tar, step, hashed=hashed)
            size, new = made.size, 0
        else:
            if op is None:
                raise ValueError("a layer goes into a store, or to a tar")
            from .ahead import Ahead

            with Ahead(made) as ahead:
                blob = op.put(ahead, media_type=media_type, progress=step)
            digest, size, new = blob.digest, blob.bytes, blob.new_bytes
        entries = made.entries
    return lambda notes: LayerInfo(digest, size, media_type, digest, entries, new, notes)


def _write(
    made: LayerTar, tar: BinaryIO, step: Callable[[int], None], *, hashed: bool = True
) -> str:
    """The tar into a file; its digest, or nothing where nobody asks for it. One thread writes, one
    hashes, each a few buffers behind."""
    buffers = [memoryview(mmap.mmap(-1, BUFFER)) for _ in range(RING)]
    busy: list[list[Future[None]]] = [[] for _ in buffers]
    turn = 0
    with contextlib.ExitStack() as stack:
        hashes: HashPipe | None = None
        if hashed:
            from .hashpipe import HashPipe

            hashes = stack.enter_context(HashPipe(("sha256",)))
        writer = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="layerstore-write"))
        while True:
            for waiting in busy[turn]:
                waiting.result()
            n = made.readinto(buffers[turn])
            if not n:
                break
            piece = buffers[turn][:n]
            busy[turn] = [writer.submit(_write_all, tar, piece)]
            hashing = None if hashes is None else hashes.feed(piece)
            if hashing is not None:
                busy[turn].append(hashing)
            turn = (turn + 1) % RING
            step(n)
        for waiting in (one for several in busy for one in several):
            waiting.result()
        tar.flush()
        return "" if hashes is None else hashes.digests()["sha256"]


def _write_all(tar: BinaryIO, piece: memoryview) -> None:
    """All of it: an unbuffered file may take less at a time."""
    while len(piece):
        piece = piece[tar.write(piece) :]
