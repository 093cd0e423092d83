"""What the index's rows hold, and how they are written down. FORMAT.md describes each.

Block and chunk rows are fixed binary layouts, since there are many; the rest are compact JSON.
"""

from __future__ import annotations

import json
import struct
from array import array
from base64 import b64decode, b64encode
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

from ..core import runs as core_runs

Runs = list[tuple[int, int]]
"""`(first number, count)` pairs."""

NUMBER_SIZE = 5
SERIAL_SIZE = 6
ID_KEY = 16
_PLACE = struct.Struct("<IQIIIIBB")


def number_key(number: int) -> bytes:
    """Chunk numbers are 40 bits, big-endian so that keys sort as numbers."""
    return number.to_bytes(NUMBER_SIZE, "big")


def serial_key(serial: int) -> bytes:
    """Blob and raw serials are 48 bits, big-endian."""
    return serial.to_bytes(SERIAL_SIZE, "big")


def to_number(key: bytes) -> int:
    return int.from_bytes(key, "big")


class Place:
    """Where a run of consecutive chunk numbers lies: a stretch of one physical block.

    `offset` is the block's first byte in the pack, `head` the length of its header, `disk` that of
    header and payload together, `raw` the uncompressed length of the whole block; the run begins at
    `raw_offset` of it and is the block's chunks from `index` on. `lengths` has one item a chunk,
    `size` is their sum. Immutable."""

    __slots__ = (
        "_ends",
        "codec",
        "disk",
        "end",
        "first",
        "head",
        "index",
        "kind",
        "lengths",
        "offset",
        "pack",
        "raw",
        "raw_offset",
    )

    def __init__(
        self,
        first: int,
        pack: int,
        offset: int,
        head: int,
        disk: int,
        raw: int,
        raw_offset: int,
        index: int,
        codec: int,
        kind: int,
        lengths: array[int],
    ) -> None:
        self.first = first
        self.pack = pack
        self.offset = offset
        self.head = head
        self.disk = disk
        self.raw = raw
        self.raw_offset = raw_offset
        self.index = index
        self.codec = codec
        self.kind = kind
        self.lengths = lengths
        self.end = first + len(lengths)
        self._ends: array[int] | None = None

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def size(self) -> int:
        return self.ends[-1]

    @property
    def ends(self) -> array[int]:
        """Where each chunk ends, from the start of the run; with a 0 before."""
        made = self._ends
        if made is None:
            # Not a list: places of small files are kept by the thousand, a list has 40 bytes a file.
            made = self._ends = array("I", chain((0,), accumulate(self.lengths)))
        return made

    def pack_row(self) -> tuple[bytes, bytes]:
        """Key and value of the row."""
        value = _PLACE.pack(
            self.pack,
            self.offset,
            self.head,
            self.disk,
            self.raw,
            self.raw_offset,
            self.codec,
            self.kind,
        )
        return number_key(self.first), value + self.index.to_bytes(
            4, "little"
        ) + self.lengths.tobytes()

    @staticmethod
    def parse(key: bytes, value: bytes) -> Place:
        """The inverse of `pack_row`."""
        pack, offset, head, disk, raw, raw_offset, codec, kind = _PLACE.unpack_from(value)
        at = _PLACE.size
        index = int.from_bytes(value[at : at + 4], "little")
        lengths = array("I")
        lengths.frombytes(value[at + 4 :])
        return Place(
            to_number(key), pack, offset, head, disk, raw, raw_offset, index, codec, kind, lengths
        )

    def part(self, first: int, count: int) -> Place:
        """The place of some of its numbers."""
        skip = first - self.first
        return Place(
            first,
            self.pack,
            self.offset,
            self.head,
            self.disk,
            self.raw,
            self.raw_offset + self.ends[skip],
            self.index + skip,
            self.codec,
            self.kind,
            self.lengths[skip : skip + count],
        )


class PlaceCache:
    """Places by number, most recently parsed. A place may be out of date when compaction moved the
    block: whoever reads there sees that, since offsets are never used twice."""

    LIMIT = 20_000
    NUMBERS = 1 << 20
    """Of all places together, 8 bytes each: blocks of small files have thousands."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._places: list[Place] = []
        self._numbers = 0

    def find(self, number: int) -> Place | None:
        at = bisect_right(self._firsts, number) - 1
        if at >= 0:
            place = self._places[at]
            if number < place.end:
                return place
        return None

    def add(self, place: Place) -> None:
        if len(self._firsts) >= self.LIMIT or self._numbers >= self.NUMBERS:
            self._firsts.clear()
            self._places.clear()
            self._numbers = 0
        self._numbers += place.count
        at = bisect_right(self._firsts, place.first) - 1
        if at >= 0 and self._firsts[at] == place.first:
            self._places[at] = place
        else:
            self._firsts.insert(at + 1, place.first)
            self._places.insert(at + 1, place)


def _b64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def dump(value: Any) -> bytes:
    """Compact JSON with sorted keys."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes kept as chunks: the numbers, in order, inline when the list is short, else in chunks of
    their own whose numbers are in `outer`. `size` is the length of the bytes."""

    size: int
    list: bytes = b""
    outer: tuple[tuple[int, int], ...] = ()
    list_size: int = 0

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"size": self.size}
        if self.outer:
            out["outer"] = [list(r) for r in self.outer]
            out["list_size"] = self.list_size
        else:
            out["list"] = _b64(self.list)
        return out

    @staticmethod
    def from_json(value: dict[str, Any]) -> Stream:
        if "outer" in value:
            outer = tuple((int(a), int(b)) for a, b in value["outer"])
            return Stream(value["size"], b"", outer, value["list_size"])
        return Stream(value["size"], b64decode(value["list"]))


@dataclass(frozen=True, slots=True)
class TarForm:
    """A tar cut into header stream, marks and content."""

    head: Stream
    marks: Stream
    content: Stream
    entries: int


@dataclass(frozen=True, slots=True)
class GzipForm:
    """A gzip blob that is made again: which blob its content is, and the recipe.

    Of our own encoder: at which level, in pieces of how many bytes of content. `points`: the compressed
    length of each piece, u32 little endian, to begin in the middle; `crc`: the content's CRC-32. Of an
    encoder of others: `recipe`, a stream that says it all.

    The form counts once it is `proven`: rebuilt from stored bytes, its digest compared (rule 20)."""

    inner: str
    encoder: str
    level: int = 0
    piece: int = 0
    crc: int = 0
    points: Stream = Stream(0)
    recipe: Stream | None = None
    proven: bool = False

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"inner": self.inner, "encoder": self.encoder}
        if self.recipe is not None:
            out["recipe"] = self.recipe.to_json()
        else:
            out |= {
                "level": self.level,
                "piece": self.piece,
                "crc": self.crc,
                "points": self.points.to_json(),
            }
        if self.proven:
            out["proven"] = True
        return out

    @staticmethod
    def from_json(value: dict[str, Any]) -> GzipForm:
        return GzipForm(
            value["inner"],
            value["encoder"],
            value.get("level", 0),
            value.get("piece", 0),
            value.get("crc", 0),
            Stream.from_json(value["points"]) if "points" in value else Stream(0),
            Stream.from_json(value["recipe"]) if "recipe" in value else None,
            bool(value.get("proven", False)),
        )

    @property
    def stream(self) -> Stream:
        """What is kept beside the content."""
        return self.points if self.recipe is None else self.recipe


@dataclass(frozen=True, slots=True)
class Kept:
    """Why a compressed blob stays raw: the likely `encoder`, the `reason`, the bytes that making it
    again would have cost beside its content (-1: not known), and the `version` of the models that were
    tried: others may do better."""

    encoder: str
    reason: str
    cost: int
    version: int

    def to_json(self) -> list[Any]:
        return [self.encoder, self.reason, self.cost, self.version]


@dataclass(slots=True)
class BlobRow:
    """How to make a blob, in every form that it has."""

    digest: str
    size: int
    media_type: str
    aliases: tuple[str, ...] = ()
    inline: bytes | None = None
    plain: Stream | None = None
    tar: TarForm | None = None
    gzip: GzipForm | None = None
    raw: int | None = None
    diff_id: str | None = None
    problem: str | None = None
    inspected: bool = False
    inner_size: int = -1
    """Bytes of the tar within a compressed layer that was decoded."""
    made: str | None = None
    """How a compressed layer was made here, when its form does not say it."""
    kept: Kept | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that count."""
        out = []
        if self.inline is not None or self.plain is not None:
            out.append("plain")
        if self.tar is not None:
            out.append("tar")
        if self.gzip is not None and self.gzip.proven:
            out.append("gzip")
        if self.raw is not None:
            out.append("raw")
        return tuple(out)

    @property
    def digests(self) -> tuple[str, ...]:
        return (self.digest, *self.aliases)

    def streams(self) -> list[Stream]:
        """Every stream of chunks that the forms are made from."""
        out = []
        if self.plain is not None:
            out.append(self.plain)
        if self.tar is not None:
            out += [self.tar.head, self.tar.marks, self.tar.content]
        if self.gzip is not None:
            out.append(self.gzip.stream)
        return out

    def to_bytes(self) -> bytes:
        out: dict[str, Any] = {"digest": self.digest, "size": self.size, "type": self.media_type}
        if self.aliases:
            out["aliases"] = list(self.aliases)
        if self.inline is not None:
            out["inline"] = _b64(self.inline)
        if self.plain is not None:
            out["plain"] = self.plain.to_json()
        if self.tar is not None:
            out["tar"] = {
                "head": self.tar.head.to_json(),
                "marks": self.tar.marks.to_json(),
                "content": self.tar.content.to_json(),
                "entries": self.tar.entries,
            }
        if self.gzip is not None:
            out["gzip"] = self.gzip.to_json()
        if self.raw is not None:
            out["raw"] = self.raw
        if self.diff_id is not None:
            out["diff_id"] = self.diff_id
        if self.problem is not None:
            out["problem"] = self.problem
        if self.inspected:
            out["inspected"] = True
        if self.inner_size >= 0:
            out["inner_size"] = self.inner_size
        if self.made is not None:
            out["made"] = self.made
        if self.kept is not None:
            out["kept"] = self.kept.to_json()
        return dump(out)

    @staticmethod
    def parse(data: bytes) -> BlobRow:
        """The inverse of `to_bytes`."""
        v = json.loads(data)
        tar = v.get("tar")
        return BlobRow(
            digest=v["digest"],
            size=v["size"],
            media_type=v["type"],
            aliases=tuple(v.get("aliases", ())),
            inline=b64decode(v["inline"]) if "inline" in v else None,
            plain=Stream.from_json(v["plain"]) if "plain" in v else None,
            tar=None
            if tar is None
            else TarForm(
                Stream.from_json(tar["head"]),
                Stream.from_json(tar["marks"]),
                Stream.from_json(tar["content"]),
                tar["entries"],
            ),
            gzip=GzipForm.from_json(v["gzip"]) if "gzip" in v else None,
            raw=v.get("raw"),
            diff_id=v.get("diff_id"),
            problem=v.get("problem"),
            inspected=bool(v.get("inspected", False)),
            inner_size=v.get("inner_size", -1),
            made=v.get("made"),
            kept=Kept(*v["kept"]) if "kept" in v else None,
        )


PIECE = 256 * 1024
"""A raw file has one checksum for each piece of this size."""
PIECE_HASH = 16


@dataclass(frozen=True, slots=True)
class RawRow:
    """A raw file: its size, and 16 bytes of BLAKE3 for each 256 KiB piece."""

    size: int
    pieces: bytes

    def to_bytes(self) -> bytes:
        return self.size.to_bytes(8, "little") + self.pieces

    @staticmethod
    def parse(data: bytes) -> RawRow:
        return RawRow(int.from_bytes(data[:8], "little"), data[8:])


@dataclass(frozen=True, slots=True)
class PackRow:
    """A pack: bytes committed, and whether its table of contents is written."""

    length: int
    sealed: bool = False

    def to_bytes(self) -> bytes:
        return self.length.to_bytes(8, "little") + bytes((self.sealed,))

    @staticmethod
    def parse(data: bytes) -> PackRow:
        return PackRow(int.from_bytes(data[:8], "little"), bool(data[8]))


def pack_key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def encode_runs(runs: Runs) -> bytes:
    return core_runs.encode(runs)


def decode_runs(data: bytes) -> Runs:
    return core_runs.decode(data)
