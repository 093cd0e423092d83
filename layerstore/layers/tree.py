"""The files of layers: one layer as it is, or several as a container would see them.

Whiteouts and opaque directories are applied as image-spec layer.md says: `.wh.NAME` hides NAME of the
layers below, `.wh..wh..opq` hides all that the layers below have in its directory. Content is not
decoded for a listing. Names are shown as text, bytes that are no UTF-8 as surrogate escapes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.tar import TarEntry, expand_sparse, scan
from ..errors import InvalidInputError, LayerstoreError, NotFoundError
from ..storage.rows import BlobRow
from ..values import Entry
from .assemble import BlobFile, headers_only, inner_of
from .content import Content
from .inflate import DEFAULT_LIMIT, compression_of, inflate

PREFIX = ".wh."
OPAQUE = ".wh..wh..opq"
MAX_LINKS = 255
MAX_FOLLOWED = 4096
"""Bytes of a path in which links are followed: Linux takes no longer one."""

_TYPES = {
    "0": "file",
    "7": "file",
    "\0": "file",
    "1": "hardlink",
    "2": "symlink",
    "3": "char",
    "4": "block",
    "5": "dir",
    "6": "fifo",
    "S": "file",
}


@dataclass(frozen=True, slots=True)
class Found:
    """An entry, and where its layer holds it. `first`: of a hard link, the file that it was made a
    link to, which may have lost that name since."""

    entry: Entry
    digest: str
    source: TarEntry
    first: Found | None = None


def text(name: bytes) -> str:
    """A name from a tar as text."""
    return name.decode("utf-8", "surrogateescape")


def clean(name: str) -> str | None:
    """A path relative to the root, or None for one that leads outside."""
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        return None
    return "/".join(parts)


def tar_of(content: Content, digest: str) -> str:
    """The stored blob that holds a layer's bytes with the least work: the tar that a gzip form is made
    from, or the layer itself. Raises NotFoundError."""
    with content.open(digest) as blob:
        row = blob.row
    if row.gzip is None or row.tar is not None or (row.raw is not None and not row.gzip.proven):
        return digest
    return inner_of(content.storage, row)[1].digest


def tar_bytes(blob: BlobFile, limit: int = DEFAULT_LIMIT) -> Iterator[bytes | memoryview]:
    """The uncompressed tar of a layer, whatever it is compressed with."""
    start = blob.read(8) or b""
    blob.seek(0)
    kind = compression_of(start)
    if kind is None:
        yield from blob.chunks()
    else:
        yield from inflate(blob.chunks(), kind, limit)


def tar_pieces(
    content: Content, digest: str, row: BlobRow, limit: int
) -> Iterator[bytes | memoryview]:
    """The uncompressed tar of a layer, for scanning."""
    if row.tar is not None:
        yield from headers_only(content.storage, row)
        return
    with content.open(digest) as blob:
        yield from tar_bytes(blob, limit)


def scan_layer(content: Content, digest: str, limit: int = DEFAULT_LIMIT) -> Iterator[TarEntry]:
    """The entries of one layer. Raises NotFoundError, InvalidInputError with offset and reason for
    a layer that does not decode, and LimitError for one that inflates past `limit` bytes."""
    digest_of_tar = tar_of(content, digest)
    with content.open(digest_of_tar) as blob:
        row = blob.row
    if row.problem is not None and row.raw is not None and row.inner_size < 0 and row.inspected:
        raise InvalidInputError(f"layer {digest}: {row.problem}", digest=digest, reason=row.problem)
    try:
        yield from scan(tar_pieces(content, digest_of_tar, row, limit))
    except InvalidInputError as e:
        if e.digest is None:
            e.digest = digest
            e.message = f"layer {digest}: {e.message}"
            e.args = (e.message,)
        raise


def _type_of(source: TarEntry) -> str:
    kind = _TYPES.get(source.type, "other")
    return "dir" if kind == "file" and source.name.endswith(b"/") else kind


def to_entry(source: TarEntry, path: str, layer: int) -> Entry:
    """The public value of an entry."""
    kind = _type_of(source)
    link = text(source.linkname) if kind in ("symlink", "hardlink") else None
    return Entry(
        path=path,
        type=kind,
        mode=source.mode,
        uid=source.uid,
        gid=source.gid,
        size=source.size if kind == "file" else 0,
        mtime=source.mtime_sec + source.mtime_nsec / 1e9,
        linkname=link,
        layer=layer,
        devmajor=source.devmajor,
        devminor=source.devminor,
        xattrs=source.xattrs,
    )


def layer_entries(content: Content, digest: str, layer: int = 0) -> Iterator[Found]:
    """One layer as it is: whiteouts shown as such, names literally."""
    for source in scan_layer(content, digest):
        name = text(source.name)
        entry = to_entry(source, name, layer)
        if posixpath.basename(name.rstrip("/")).startswith(PREFIX):
            entry = Entry(
                entry.path,
                "whiteout",
                entry.mode,
                entry.uid,
                entry.gid,
                0,
                entry.mtime,
                None,
                layer,
            )
        yield Found(entry, digest, source)


class Tree:
    """The merged files of a stack of layers, lowest first."""

    def __init__(self, content: Content, digests: Sequence[str]) -> None:
        self._content = content
        self._found: dict[str, Found] = {}
        for layer, digest in enumerate(digests):
            self._apply(layer, digest)

    def _apply(self, layer: int, digest: str) -> None:
        sources: list[tuple[str, TarEntry]] = []
        marks: list[str] = []
        below = self.links()
        paths = Paths(dict(below))
        for source in scan_layer(self._content, digest):
            name = text(source.name)
            if (clean(name) or "").rpartition("/")[2].startswith(PREFIX):
                marks.append(name)
                continue
            path = paths.real(name)
            if path:
                paths.enter(path, source)
                sources.append((path, source))
        hidden, opaque = _marked(marks, below, sources) if marks else (set(), set())
        if hidden or opaque:
            self._hide(hidden, opaque)
        own = self._entries(layer, digest, sources)
        replaced = {
            path
            for path, found in own.items()
            if found.entry.type != "dir"
            and (old := self._found.get(path)) is not None
            and old.entry.type == "dir"
        }
        if replaced:
            self._hide(replaced, set())
        self._found.update(own)

    def _entries(
        self, layer: int, digest: str, sources: list[tuple[str, TarEntry]]
    ) -> dict[str, Found]:
        """The entries of a layer by path; the last of a name wins, as when a tar is extracted. A hard
        link is to what its target is at that moment, here or below."""
        own: dict[str, Found] = {}
        late: list[str] = []
        for path, source in sources:
            entry = to_entry(source, path, layer)
            first: Found | None = None
            if entry.type == "hardlink":
                first = self._first(own, entry)
                if first is None:
                    late.append(path)
            own.pop(path, None)
            own[path] = Found(entry, digest, source, first)
        for path in late:
            found = own[path]
            if found.entry.type == "hardlink" and found.first is None:
                own[path] = replace(found, first=self._first(own, found.entry))
        return own

    def _first(self, own: Mapping[str, Found], link: Entry) -> Found | None:
        target = clean(link.linkname or "") or ""
        found = own.get(target) or self._found.get(target)
        if found is None or found.entry.type != "hardlink":
            return found
        return found.first

    def _hide(self, hidden: set[str], opaque: set[str]) -> None:
        """Takes away paths, and what is below them (below only, for the opaque)."""

        def gone(path: str) -> bool:
            if path in hidden:
                return True
            at = path
            while at:
                at = at.rpartition("/")[0]
                if at in hidden or at in opaque:
                    return True
            return False

        self._found = {path: f for path, f in self._found.items() if not gone(path)}

    def links(self) -> dict[str, str]:
        """Its symbolic links, path to target."""
        return {
            path: found.entry.linkname or ""
            for path, found in self._found.items()
            if found.entry.type == "symlink"
        }

    def entries(self, path: str = "") -> list[Found]:
        """What lies at and below a path, sorted. Raises NotFoundError if nothing does."""
        want = clean(path)
        if want is None:
            raise NotFoundError(f"no such path: {path}", path=path)
        out = [
            f for p, f in self._found.items() if not want or p == want or p.startswith(want + "/")
        ]
        if want and not out:
            raise NotFoundError(f"no such path in the image: {path}", path=path)
        return sorted(out, key=lambda f: f.entry.path.split("/"))

    def resolve(self, path: str) -> Found:
        """The file that a path leads to, symbolic and hard links followed inside the image."""
        todo = [p for p in path.split("/") if p not in ("", ".")]
        at: list[str] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                del at[-1:]
                continue
            found = self._found.get("/".join([*at, part]))
            if found is not None and found.entry.type == "symlink":
                links += 1
                if links > MAX_LINKS:
                    raise InvalidInputError(f"too many symbolic links: {path}", path=path)
                link = found.entry.linkname or ""
                if link.startswith("/"):
                    at = []
                todo = [p for p in link.split("/") if p not in ("", ".")] + todo
                continue
            at.append(part)
        found = self._found.get("/".join(at))
        if found is None:
            raise NotFoundError(f"no such file in the image: {path}", path=path)
        if found.entry.type != "hardlink":
            return found
        if found.first is None:
            raise NotFoundError(
                f"{path} is a hard link to {found.entry.linkname}, which is not there", path=path
            )
        return found.first


def _marked(
    marks: Sequence[str], links: Mapping[str, str], sources: Sequence[tuple[str, TarEntry]]
) -> tuple[set[str], set[str]]:
    """What a layer hides of those below, and the directories of which it hides all, wherever in it that
    is said. Behind a link of those below, unless the layer has a directory in the link's place."""
    own = {path for path, source in sources if _type_of(source) == "dir"}
    paths = Paths({path: link for path, link in links.items() if path not in own})
    hidden: set[str] = set()
    opaque: set[str] = set()
    for name in marks:
        path = paths.real(name)
        if path is None:
            continue
        folder, _, base = path.rpartition("/")
        target = base.removeprefix(PREFIX)
        if base == OPAQUE:
            opaque.add(folder)
        elif target not in ("", ".", ".."):
            hidden.add(f"{folder}/{target}" if folder else target)
    return hidden, opaque


class Paths:
    """Where entries of a layer come to lie: what stands in their way as a symbolic link is followed
    inside the image, as it is when a layer is extracted over those below it."""

    def __init__(self, links: dict[str, str]) -> None:
        """`links`: the symbolic links of the layers below, path to target; kept up to date here."""
        self._links = links
        self._folder = self._real = ""

    def enter(self, path: str, source: TarEntry) -> None:
        """Takes note of an entry at its place."""
        if source.type == "2":
            self._links[path] = text(source.linkname)
        elif self._links.pop(path, None) is None:
            return
        self._folder = self._real = ""

    def real(self, name: str) -> str | None:
        """The place of a name, or None for one that leads outside."""
        path = clean(name)
        if not path:
            return path
        folder, _, base = path.rpartition("/")
        if not folder:
            return base
        if folder != self._folder:
            real = self._followed(folder)
            if real is None:
                return None
            self._folder, self._real = folder, real
        return f"{self._real}/{base}" if self._real else base

    def _followed(self, folder: str) -> str | None:
        if not self._links or len(folder) > MAX_FOLLOWED:
            return folder
        todo = folder.split("/")
        todo.reverse()
        at: list[str] = []
        followed = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del at[-1:]
                continue
            at.append(part)
            link = self._links.get("/".join(at))
            if link is None:
                continue
            followed += 1
            if followed > MAX_LINKS:
                return None
            del at[0 if link.startswith("/") else -1 :]
            todo += reversed([p for p in link.split("/") if p not in ("", ".")])
        return "/".join(at)


def file_content(content: Content, found: Found) -> Iterator[bytes]:
    """The bytes of a regular file, holes as zeros."""
    found = found.first or found
    source = found.source
    if found.entry.type != "file":
        raise InvalidInputError(
            f"{found.entry.path} is a {found.entry.type}, not a file", path=found.entry.path
        )
    stored = _stored(content, found.digest, source.data_offset, source.stored_size)
    if source.sparse_map is None:
        yield from stored
    else:
        yield from expand_sparse(source.sparse_map, source.size, stored)


def _stored(content: Content, digest: str, offset: int, size: int) -> Iterator[bytes]:
    """A stretch of a layer's uncompressed tar."""
    if not size:
        return
    digest = tar_of(content, digest)
    with content.open(digest) as blob:
        kind = None if blob.row.tar is not None else compression_of(blob.read(8) or b"")
        if kind is None:
            blob.seek(offset)
            left = size
            while left:
                data = blob.read(min(left, 1 << 20))
                if not data:
                    raise LayerstoreError(f"layer {digest} ends inside a file", digest=digest)
                left -= len(data)
                yield data
            return
        blob.seek(0)
        at = 0
        for piece in inflate(blob.chunks(), kind):
            start, end = max(offset - at, 0), min(offset + size - at, len(piece))
            at += len(piece)
            if start < end:
                yield piece[start:end]
            if at >= offset + size:
                return


__all__ = ["BlobFile", "Found", "Paths", "Tree", "file_content", "layer_entries", "scan_layer"]
