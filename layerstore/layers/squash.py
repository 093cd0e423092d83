"""Several layers merged into one: what they are together over the layers that remain below.

Two passes over the layers, lowest first. The first reads headers only and decides, for each name, which
entry gives it in the end, and what of the layers below has to be hidden. The second writes: whiteouts
first, then entries in the order of their layers, headers as they are. A file whose own name is gone and
that lives on under a hard link gets a new header; further names follow it at once as hard links. A hard
link to a file of the layers below, all of whose names there are gone, becomes that file. Memory grows
with the number of names, not with content: packed by folder, about 30 bytes each.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.tar import TarEntry, expand_sparse
from ..errors import InvalidInputError
from .inflate import compression_of, inflate
from .tree import OPAQUE, PREFIX, Found, Paths, Tree, clean, file_content, scan_layer, text

if TYPE_CHECKING:
    from .content import Content

BLOCK = 512
_LAYER = 40  # bits: a source is its layer's number above the number of its entry
_DIRECTORY = 1
HOT = 50_000
"""Names of folders that are kept ready, about 170 bytes each; a folder that has more is ready, too."""


class Names:
    """Path to a number below 2^64, odd for a directory. A path is kept as its folder, once, and its
    last part; folders that were not asked for lately are packed: a name costs its bytes and 9 more."""

    __slots__ = ("_count", "_hot", "_packed")

    def __init__(self) -> None:
        self._hot: dict[str, dict[str, int]] = {}
        self._count = 0  # names in them, about
        self._packed: dict[str, tuple[bytes, array[int]]] = {}

    def _inside(self, folder: str) -> dict[str, int] | None:
        found = self._hot.get(folder)
        if found is None and folder in self._packed:
            if self._count > HOT:
                self._pack()
            found = self._hot[folder] = _unpack(*self._packed.pop(folder))
            self._count += len(found)
        return found

    def _pack(self) -> None:
        """All that is in use: what is asked for next comes back."""
        for folder, inside in self._hot.items():
            names = "/".join(inside).encode("utf-8", "surrogateescape")
            self._packed[folder] = names, array("Q", inside.values())
        self._hot = {}
        self._count = 0

    def get(self, path: str) -> int | None:
        folder, _, base = path.rpartition("/")
        inside = self._inside(folder)
        return None if inside is None else inside.get(base)

    def __contains__(self, path: str) -> bool:
        return self.get(path) is not None

    def put(self, path: str, value: int) -> None:
        folder, _, base = path.rpartition("/")
        inside = self._inside(folder)
        if inside is None:
            if self._count > HOT:
                self._pack()
            inside = self._hot[folder] = {}
        inside[base] = value
        self._count += 1

    def pop(self, path: str) -> None:
        folder, _, base = path.rpartition("/")
        inside = self._inside(folder)
        if inside is not None and inside.pop(base, None) is not None and not inside:
            del self._hot[folder]

    def items(self) -> Iterator[tuple[str, int]]:
        """All of them. Nothing may be asked or changed meanwhile."""
        self._pack()
        for folder, packed in self._packed.items():
            yield from _paths(folder, _unpack(*packed))

    def drain(self) -> Iterator[tuple[str, int]]:
        """All items; what was given is forgotten."""
        self._pack()
        while self._packed:
            folder, packed = self._packed.popitem()
            yield from _paths(folder, _unpack(*packed))

    def hide(self, gone: set[str], emptied: set[str]) -> None:
        """See `_hide`."""
        root = self.get("")
        for table in (self._hot, self._packed):
            for folder in list(table):
                if "" in emptied or _below(folder, gone, emptied):
                    del table[folder]
        if root is not None:
            self.put("", root)
        for path in gone:
            self.pop(path)


def _unpack(names: bytes, values: array[int]) -> dict[str, int]:
    parts = names.decode("utf-8", "surrogateescape").split("/")
    return dict(zip(parts, values, strict=True))


def _paths(folder: str, inside: dict[str, int]) -> Iterator[tuple[str, int]]:
    start = f"{folder}/" if folder else ""
    for base, value in inside.items():
        yield start + base, value


@dataclass(slots=True)
class Plan:
    """What the layers are together. `names`: path to twice the source, plus one for a directory; a
    source is an entry that has a header of its own. `further`: source to paths that hard links gave it
    (some may have become something else since). `outside`: hard links to files of the layers below,
    path to link name. `implied`: names that have something below them, or had.
    `moved`: source to the place of an entry whose name goes through a symbolic link."""

    names: Names = field(default_factory=Names)
    further: dict[int, list[str]] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    white: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)
    implied: set[str] = field(default_factory=set)
    moved: dict[int, str] = field(default_factory=dict)


def squash(content: Content, digests: Sequence[str], below: Sequence[str] = ()) -> Iterator[bytes]:
    """The tar of the merged layer. `digests` (lowest first) are merged; `below` (lowest first) remain
    beneath it. Raises NotFoundError, InvalidInputError for a layer that does not decode."""
    plan = Plan()
    tree = Tree(content, below) if below else None
    symbolic = {} if tree is None else tree.links()
    for number, digest in enumerate(digests):
        _apply(plan, number, scan_layer(content, digest), digest, symbolic)
    _settle(plan, tree)
    lost = _lost(plan, tree) if tree is not None and plan.outside else []
    yield from _whiteouts(plan)
    for number, digest in enumerate(digests):
        yield from _write(content, digest, number, plan)
    for found, path in lost:
        yield from _copy(content, found, path)
    for path in sorted(plan.outside):
        yield header(_raw(path), b"1", link=_raw(plan.outside[path]))
    yield bytes(2 * BLOCK)


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


# ---- deciding ---------------------------------------------------------------------------------


def _apply(
    plan: Plan, number: int, entries: Iterable[TarEntry], digest: str, symbolic: dict[str, str]
) -> None:
    """One more layer on top. Its whiteouts hide what is below it, never its own entries. `symbolic`:
    the symbolic links that there are, path to target; those of this layer come in."""
    paths = Paths(symbolic)
    fresh: set[str] = set()
    marks: list[str] = []
    own = Names()
    links: dict[str, str] = {}
    white: set[str] = set()
    opaque: set[str] = set()
    for at, entry in enumerate(entries):
        if entry.problem:
            raise InvalidInputError(
                f"layer {digest}: {text(entry.name)!r} has headers that contradict each other",
                digest=digest,
                offset=entry.header_offset,
                reason="contradictory headers",
            )
        said = clean(text(entry.name))
        if said is None:
            continue
        if said.rpartition("/")[2].startswith(PREFIX):
            marks.append(said)
            hidden = paths.real(said.replace(f"/{PREFIX}", "/").removeprefix(PREFIX))
            if hidden is not None and hidden not in fresh:
                # What the layer puts there does not go through a link that it takes away.
                paths.enter(hidden, entry)
        else:
            path = paths.real(said)
            if path is None:
                raise InvalidInputError(
                    f"layer {digest}: {said!r} leads through too many symbolic links",
                    digest=digest,
                    path=said,
                    offset=entry.header_offset,
                    reason="too many symbolic links",
                )
            directory = entry.type == "5" or (entry.type in "07\0" and entry.name.endswith(b"/"))
            # The last entry of a name wins.
            links.pop(path, None)
            own.put(path, 2 * ((number << _LAYER) + at) + directory)
            if path != said:
                plan.moved[(number << _LAYER) + at] = path
            if entry.type == "1":
                links[path] = paths.real(clean(text(entry.linkname)) or "") or ""
            paths.enter(path, entry)
            (fresh.add if entry.type == "2" else fresh.discard)(path)
    for said in marks:
        # By what the layer's own entries leave: a directory may have come in place of a link.
        path = paths.real(said) or said
        folder, _, base = path.rpartition("/")
        target = base[len(PREFIX) :]
        if base == OPAQUE:
            opaque.add(folder)
        elif target not in ("", ".", ".."):
            white.add(f"{folder}/{target}" if folder else target)
    if white or opaque:
        for path in [p for p in symbolic if p not in fresh]:
            if path in white or "" in opaque or _below(path.rpartition("/")[0], white, opaque):
                del symbolic[path]
    _hide(plan, white, opaque)
    plan.white |= white
    plan.opaque |= opaque
    _link(plan, own, links)
    _cover(plan, own)


def _hide(plan: Plan, gone: set[str], emptied: set[str]) -> None:
    """Takes away names and what is below them; of the emptied only what is below."""
    if not gone and not emptied:
        return

    def hidden(path: str) -> bool:
        if path in gone or ("" in emptied and path):
            return True
        return bool(path) and _below(path.rpartition("/")[0], gone, emptied)

    plan.names.hide(gone, emptied)
    plan.outside = {p: v for p, v in plan.outside.items() if not hidden(p)}
    plan.white = {p for p in plan.white if not hidden(p)}
    plan.opaque = {p for p in plan.opaque if not hidden(p)}


def _below(folder: str, gone: set[str], emptied: set[str]) -> bool:
    """Whether a folder, or one that it is in, is gone or emptied."""
    while folder:
        if folder in gone or folder in emptied:
            return True
        folder = folder.rpartition("/")[0]
    return False


def _link(plan: Plan, own: Names, links: dict[str, str]) -> None:
    """Hard links become further names of the file that they lead to; one to itself says nothing."""
    for path in [path for path, target in links.items() if path == target]:
        own.pop(path)
        del links[path]
    for path in links:
        at = path
        for _ in range(len(links) + 1):
            if at not in links:
                break
            at = links[at]
        found = own.get(at)
        found = plan.names.get(at) if found is None else found
        if found is not None and at not in links:
            own.put(path, found)
            plan.further.setdefault(found >> 1, []).append(path)
        else:
            own.pop(path)
            plan.outside[path] = plan.outside.get(at, at)
            plan.names.pop(path)


def _cover(plan: Plan, own: Names) -> None:
    """Lays a layer's own names over those below."""
    replaced = {
        path
        for path, value in own.items()
        if not value & _DIRECTORY
        and (path in plan.implied or (plan.names.get(path) or 0) & _DIRECTORY)
    }
    replaced |= {p for p in plan.outside if p in plan.names}
    if replaced:
        _hide(plan, replaced, set())
    for path, value in own.drain():
        plan.outside.pop(path, None)
        if value & _DIRECTORY:
            _open(plan, path)
        else:
            plan.white.discard(path)
            plan.opaque.discard(path)
        plan.names.put(path, value)
        _parents(plan, path)
    for path in (*plan.outside, *plan.white, *plan.opaque):
        _parents(plan, path)


def _parents(plan: Plan, path: str) -> None:
    """Whatever has something below it is a directory."""
    folder = path.rpartition("/")[0]
    while folder:
        plan.implied.add(folder)
        _open(plan, folder)
        folder = folder.rpartition("/")[0]


def _open(plan: Plan, path: str) -> None:
    """A name becomes a directory: where it was none, or was hidden, nothing of the layers below may
    shine through."""
    if path in plan.white:
        plan.white.discard(path)
        plan.opaque.add(path)
    old = plan.names.get(path)
    if (old is not None and not old & _DIRECTORY) or path in plan.outside:
        plan.names.pop(path)
        plan.outside.pop(path, None)
        plan.opaque.add(path)


def _settle(plan: Plan, below: Tree | None) -> None:
    """Only what is there below has to be hidden."""
    if below is None:
        plan.white.clear()
        plan.opaque.clear()
        return
    there: set[str] = set()
    parents: set[str] = set()
    for found in below.entries():
        path = clean(found.entry.path) or ""
        if path in plan.white:
            there.add(path)
        while path:
            path = path.rpartition("/")[0]
            if path in parents:
                break
            parents.add(path)
    plan.white &= there | parents
    plan.opaque &= parents


def _lost(plan: Plan, below: Tree) -> list[tuple[Found, str]]:
    """Leads hard links to files of the layers below to names that these still have in the end. Those
    that have none are to be written anew: each with one of its names, which the others lead to then."""
    names: dict[tuple[str, int], list[str]] = {}
    files: dict[str, Found] = {}
    for found in below.entries():
        file = found.first or found
        path = clean(found.entry.path) or ""
        names.setdefault((file.digest, file.source.header_offset), []).append(path)
        files[path] = file
    links: dict[tuple[str, int], list[str]] = {}
    for path in sorted(plan.outside, key=_raw):
        target = files.get(plan.outside[path])
        if target is not None:
            links.setdefault((target.digest, target.source.header_offset), []).append(path)
    out = []
    for key, paths in links.items():
        left = [name for name in names[key] if _shows(plan, name)]
        if left:
            plan.outside.update(dict.fromkeys(paths, min(left, key=_raw)))
            continue
        out.append((files[plan.outside.pop(paths[0])], paths[0]))
        plan.outside.update(dict.fromkeys(paths[1:], paths[0]))
    return out


def _shows(plan: Plan, path: str) -> bool:
    """Whether a file of the layers below is what its name means in the end."""
    if path in plan.white or path in plan.names or path in plan.outside or path in plan.implied:
        return False
    folder = path.rpartition("/")[0]
    if "" in plan.opaque or _below(folder, plan.white, plan.opaque):
        return False
    while folder:
        value = plan.names.get(folder)
        if folder in plan.outside or (value is not None and not value & _DIRECTORY):
            return False
        folder = folder.rpartition("/")[0]
    return True


# ---- writing ----------------------------------------------------------------------------------


def _whiteouts(plan: Plan) -> Iterator[bytes]:
    names = [
        f"{folder}/{PREFIX}{base}" if folder else PREFIX + base for folder, base in _split(plan)
    ]
    names += [f"{folder}/{OPAQUE}" if folder else OPAQUE for folder in plan.opaque]
    for name in sorted(names, key=_raw):
        yield header(_raw(name), b"0")


def _split(plan: Plan) -> Iterator[tuple[str, str]]:
    for path in plan.white:
        folder, _, base = path.rpartition("/")
        yield folder, base


class _Stream:
    """The uncompressed tar of a layer, taken front to back."""

    def __init__(self, pieces: Iterable[bytes | memoryview]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self.offset = 0

    def take(self, size: int) -> Iterator[bytes]:
        """The next bytes, in pieces. Raises InvalidInputError if the tar ends before."""
        while size:
            if not len(self._rest):
                piece = next(self._pieces, None)
                if piece is None:
                    raise InvalidInputError("the layer ends inside a file", offset=self.offset)
                self._rest = memoryview(piece)
                continue
            part = self._rest[:size]
            self._rest = self._rest[size:]
            size -= len(part)
            self.offset += len(part)
            yield bytes(part)

    def skip_to(self, offset: int) -> None:
        for _ in self.take(offset - self.offset):
            pass


def _write(content: Content, digest: str, number: int, plan: Plan) -> Iterator[bytes]:
    """What of one layer is left."""
    with content.open(digest) as blob:
        start = blob.read(8) or b""
        blob.seek(0)
        kind = None if blob.row.tar is not None else compression_of(start)
        stream = _Stream(blob.chunks() if kind is None else inflate(blob.chunks(), kind))
        for at, entry in enumerate(scan_layer(content, digest)):
            source = (number << _LAYER) + at
            said = clean(text(entry.name))
            own = plan.moved.get(source, said)
            candidates = plan.further.get(source, [])
            names = {
                name
                for name in (candidates if own is None else [own, *candidates])
                if (value := plan.names.get(name)) is not None and value >> 1 == source
            }
            if not names:
                continue
            first = own if own is not None and own in names else min(names, key=_raw)
            stream.skip_to(entry.header_offset)
            yield from _entry(stream, entry, first, renamed=first != said)
            for name in sorted(names, key=_raw):
                if name != first:
                    yield header(_raw(name), b"1", link=_raw(first), like=entry)


def _entry(stream: _Stream, entry: TarEntry, name: str, *, renamed: bool) -> Iterator[bytes]:
    padding = -entry.stored_size % BLOCK
    if not renamed and not entry.pax_global:
        yield from stream.take(
            entry.data_offset - entry.header_offset + entry.stored_size + padding
        )
        return
    stream.skip_to(entry.data_offset)
    size = entry.size if entry.type in "07\0S" else 0
    kind = b"0" if entry.type in "7\0S" else entry.type.encode("latin-1")
    yield header(_raw(name), kind, size=size, link=entry.linkname, like=entry)
    stored = stream.take(entry.stored_size)
    if entry.sparse_map is not None:
        yield from expand_sparse(entry.sparse_map, entry.size, stored)
    else:
        yield from stored
    yield bytes(-size % BLOCK)
    for _ in stream.take(padding):
        pass


def _copy(content: Content, found: Found, name: str) -> Iterator[bytes]:
    """A file of the layers below, under a name of its own."""
    source = found.source
    plain = found.entry.type == "file"
    size = source.size if plain else 0
    kind = b"0" if plain else source.type.encode("latin-1")
    yield header(_raw(name), kind, size=size, link=source.linkname, like=source)
    if plain:
        yield from file_content(content, found)
        yield bytes(-size % BLOCK)


def header(
    name: bytes, kind: bytes, *, size: int = 0, link: bytes = b"", like: TarEntry | None = None
) -> bytes:
    """The header blocks of one entry (POSIX pax interchange format): what ustar can say in ustar, the
    rest in pax records. Owner, mode, times and extended attributes are those of `like`."""
    mode, uid, gid, seconds, nanoseconds = 0o644, 0, 0, 0, 0
    records: list[tuple[bytes, bytes]] = []
    uname = gname = b""
    if like is not None:
        mode, uid, gid = like.mode & 0o7777, like.uid, like.gid
        seconds, nanoseconds = like.mtime_sec, like.mtime_nsec
        uname, gname = like.uname, like.gname
        xattrs = sorted(like.xattrs.items())
        records += [(b"SCHILY.xattr." + _raw(key), value) for key, value in xattrs]
    for key, value, room in ((b"path", name, 100), (b"linkpath", link, 100)):
        if len(value) > room:
            records.append((key, value))
    for key, value, room in ((b"uname", uname, 32), (b"gname", gname, 32)):
        if len(value) >= room:
            records.append((key, value))
    numbers = ((b"uid", uid, 7), (b"gid", gid, 7), (b"size", size, 11))
    records += [(k, b"%d" % v) for k, v, digits in numbers if not 0 <= v < 8**digits]
    if nanoseconds or not 0 <= seconds < 8**11:
        records.append((b"mtime", _decimal(seconds, nanoseconds)))
    out = b""
    if records:
        data = b"".join(_record(key, value) for key, value in records)
        out = _block(b"././@PaxHeader", b"x", 0o644, 0, 0, len(data), 0) + data
        out += bytes(-len(data) % BLOCK)
    minor = (0, 0) if like is None else (like.devmajor, like.devminor)
    return out + _block(name, kind, mode, uid, gid, size, seconds, link, uname, gname, minor)


def _decimal(seconds: int, nanoseconds: int) -> bytes:
    """A time as pax says it; before 1970 the fraction counts toward zero."""
    sign = b""
    if seconds < 0:
        sign = b"-"
        seconds = -seconds
        if nanoseconds:
            seconds -= 1
            nanoseconds = 1_000_000_000 - nanoseconds
    fraction = (b".%09d" % nanoseconds).rstrip(b"0") if nanoseconds else b""
    return sign + b"%d" % seconds + fraction


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    total = size + len(str(size))
    if len(str(total)) > len(str(size)):
        total = size + len(str(total))
    return b"%d %s=%s\n" % (total, key, value)


def _number(value: int, digits: int) -> bytes:
    # What does not fit is in a pax record, which wins.
    return b"%0*o\0" % (digits, value if 0 <= value < 8**digits else 0)


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes = b"",
    uname: bytes = b"",
    gname: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One ustar header."""
    fields = [
        name[:100].ljust(100, b"\0"),
        _number(mode, 7),
        _number(uid, 7),
        _number(gid, 7),
        _number(size, 11),
        _number(mtime, 11),
        b" " * 8,
        kind,
        link[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        uname[:31].ljust(32, b"\0"),
        gname[:31].ljust(32, b"\0"),
        _number(device[0], 7),
        _number(device[1], 7),
        bytes(167),
    ]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
