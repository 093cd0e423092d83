"""A minimal reader of a store, written from FORMAT.md alone: the proof that the page suffices.

Imports nothing of layerstore, on purpose: what this reads, another program can read. Plain and
slow; each part names its section of FORMAT.md. Wrong bytes raise `Wrong`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import deflate
import lmdb
import zstandard
from blake3 import blake3

TABLES = (
    "meta", "chunks", "files", "blocks", "packs", "blobs", "digests", "layers", "refs", "edges",
    "subjects", "leases", "holds", "raws", "damage", "revived", "seen",
    "unpacked", "snapshots", "cache", "members", "seeds",
)  # fmt: skip
SUMMED = (
    "blocks", "packs", "blobs", "digests", "refs", "edges", "subjects", "leases", "holds", "raws",
    "snapshots", "cache", "members",
)  # fmt: skip
LATER = ("seen", "unpacked", "snapshots", "cache", "members", "seeds")
UNLOGGED = ("chunks", "files", "blocks", "seen", "seeds")
ALGORITHMS = {1: "sha256", 2: "sha512", 3: "blake3"}
PIECE = 262_144


class Wrong(Exception):
    """The bytes are not what FORMAT.md says."""


def need(condition: bool, what: str) -> None:
    if not condition:
        raise Wrong(what)


# ---- sections 9.1 and 9.2: varints and lists ------------------------------------------------------


def varints(data: bytes) -> list[int]:
    out = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        need(value < 1 << 64, "a varint is above 64 bits")
        if not byte & 0x80:
            out.append(value)
            value = shift = 0
    need(shift == 0, "a varint is cut off")
    return out


def chunk_list(data: bytes) -> list[tuple[int, int]]:
    numbers = varints(data)
    need(len(numbers) % 2 == 0, "half a run")
    out = []
    end = 0
    for step, count in zip(numbers[::2], numbers[1::2], strict=True):
        first = end + (step >> 1 if step % 2 == 0 else -(step + 1 >> 1))
        end = first + count
        need(count > 0 and first >= 0 and end <= 1 << 40, "a run outside 40 bits")
        out.append((first, count))
    return out


# ---- section 9.3: framing -------------------------------------------------------------------------


def tar_number(field: bytes) -> int | None:
    if field[0] & 0x80:
        first = field[0] & 0x7F | (field[0] & 0x40) << 1
        value = int.from_bytes(bytes((first,)) + field[1:], "big", signed=True)
        return value if -(1 << 63) <= value < 1 << 63 else None
    text = field.lstrip(b" \0")
    digits = len(text) - len(text.lstrip(b"01234567"))
    rest = text[digits:].lstrip(b" ")
    if rest and rest[0] != 0:
        return None
    return int(text[:digits] or b"0", 8)


def decimal(text: bytes) -> int | None:
    if not 1 <= len(text) <= 20 or not text.isdigit():
        return None
    value = 0
    for digit in text:
        if value > 922_337_203_685_477_579:
            return None
        value = value * 10 + digit - 0x30
    return value


def pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 11)
        length = decimal(data[at:blank]) if blank >= 0 else None
        if length is None or length > len(data) - at:
            return
        record = data[blank + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if record[-1:] != b"\n" or not equals or not key:
            return
        yield key, value
        at += length


def checksum_ok(block: bytes) -> bool:
    if block[148] & 0x80:
        return False
    want = tar_number(block[148:156])
    others = block[:148] + block[156:]
    unsigned = sum(others) + 8 * 0x20
    return want in (unsigned, unsigned - 256 * sum(b >= 0x80 for b in others))


def sparse_map_length(data: bytes) -> int:
    """How many bytes at the start of `data` (all that the entry has) are its map."""
    at = left = 0
    counting = True
    while True:
        start = at
        while at < len(data) and decimal(data[start : at + 1]) is not None:
            at += 1
        if at == len(data):
            return at
        if data[at] != 0x0A or at == start:
            at += 1
            break
        number = int(data[start:at])
        at += 1
        left = 2 * number if counting else left - 1
        counting = False
        if left == 0:
            break
    return min(len(data), at + -at % 512)


class Joiner:
    """Header stream, marks and content become the tar again."""

    def __init__(self, head: bytes, marks: bytes, content: Iterator[bytes]) -> None:
        self.head = head
        self.at = 0
        pairs = varints(marks)
        need(len(pairs) % 2 == 0, "half a mark")
        self.marks = list(zip(pairs[::2], pairs[1::2], strict=True))
        self.content = content
        self.rest = b""
        self.local: dict[bytes, int] = {}
        self.local_size = 0

    def take(self, n: int) -> bytes:
        """Metadata: what there is of the next n bytes."""
        out = self.head[self.at : self.at + n]
        self.at += len(out)
        return out

    def more(self, n: int) -> bytes:
        """Content: what there is of the next n bytes, in one piece at least."""
        while not self.rest:
            piece = next(self.content, None)
            if piece is None:
                return b""
            self.rest = piece
        out, self.rest = self.rest[:n], self.rest[n:]
        return out

    def pieces(self) -> Iterator[bytes]:
        yield from self._entries()
        need(not self.more(1), "content is left over")
        need(self.at == len(self.head), "the header stream is left over")
        need(not self.marks, "marks are left over")

    def _entries(self) -> Iterator[bytes]:
        while self.at < len(self.head):
            block = self.take(512)
            yield block
            if len(block) < 512:
                return
            if not any(block):
                self.forget()
                continue
            size = tar_number(block[124:136])
            if not checksum_ok(block) or size is None or size < 0:
                break
            kind = block[156:157]
            if kind in b"xX" and size > 1_048_576 - self.local_size:
                break
            if kind in b"xXgLK":
                data = self.take(size)
                yield data + self.take(-size % 512)
                if kind in b"xX":
                    self.add_records(data, size)
                continue
            size, pad = yield from self._entry(block, kind, size)
            self.forget()
            if size and (yield from self._payload(size)):
                return
            yield self.take(pad)
        yield self.take(len(self.head))

    def forget(self) -> None:
        self.local, self.local_size = {}, 0

    def add_records(self, data: bytes, size: int) -> None:
        self.local_size += size
        for key, value in pax_records(data):
            if key in (b"size", b"GNU.sparse.major", b"GNU.sparse.minor"):
                number = decimal(value)
                if number is None:
                    self.local.pop(key, None)
                else:
                    self.local[key] = number

    def _entry(self, block: bytes, kind: bytes, size: int) -> Iterator[Any]:
        """The metadata between an entry's header and its payload; returns payload size and pad."""
        size = self.local.get(b"size", size)
        directory = kind == b"\0" and block[:100].split(b"\0")[0].endswith(b"/")
        if kind in b"123456" or directory:
            size = 0
        pad = -size % 512
        if kind == b"S" and block[482]:
            more = b"\1" * 512
            while len(more) == 512 and more[504]:
                more = self.take(512)
                yield more
        version = (self.local.get(b"GNU.sparse.major"), self.local.get(b"GNU.sparse.minor"))
        if kind in b"07\0" and not directory and version == (1, 0):
            head = self.take(sparse_map_length(self.head[self.at : self.at + size]))
            yield head
            size -= len(head)
        return size, pad

    def _payload(self, size: int) -> Iterator[Any]:
        """Returns True if the tar is cut off in it."""
        first = 0
        if self.marks:
            gap, n = self.marks[0]
            if gap == 0:
                need(0 < n <= size, "a mark claims more than its payload")
                first = n
                del self.marks[0]
            else:
                self.marks[0] = (gap - 1, n)
        data = self.take(first)
        need(len(data) == first, "the header stream ends in a payload's first bytes")
        yield data
        left = size - first
        while left:
            data = self.more(left)
            if not data:
                return True
            yield data
            left -= len(data)
        return False


# ---- section 10.2: where a writer of this format cuts -----------------------------------------------


def cut(data: bytes) -> list[int]:
    """The lengths of the chunks."""
    table = struct.unpack("<256Q", blake3(b"layerstore gear table, format 1").digest(2048))
    out = []
    while data:
        length = min(len(data), 262_144)
        value = 0
        for i in range(16_384 - 64, length - 1):
            value = ((value << 1) + table[data[i]]) % (1 << 64)
            if i >= 16_383 and value < (1 << 46 if i < 65_535 else 1 << 50):
                length = i + 1
                break
        out.append(length)
        data = data[length:]
    return out


# ---- the store ------------------------------------------------------------------------------------


class Store:
    """A store directory, for reading. Nobody may collect garbage meanwhile."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(os.path.join(path, "FORMAT"), "rb") as f:
            value = json.load(f)
        need(value["format"] == "layerstore" and value["version"] == 1, "not format 1")
        need(value["chunker"] == "gear-nc2-16k-64k-256k-v1", "unknown chunker")
        need(value["index"] == "lmdb-0.9", "unknown index")
        self.uuid = bytes.fromhex(value["uuid"])
        self.secret = bytes.fromhex(value["secret"])
        self.env = lmdb.open(
            os.path.join(path, "index"), readonly=True, lock=False, max_dbs=len(TABLES)
        )
        self.dbs = {}
        for name in TABLES:
            try:
                self.dbs[name] = self.env.open_db(name.encode(), create=False)
            except lmdb.NotFoundError:
                need(name in LATER, f"no table {name}")
        self.txn = self.env.begin()
        self.condemned_blobs = self._condemned()

    def close(self) -> None:
        self.txn.abort()
        self.env.close()

    def keyed(self, data: bytes, n: int = 32) -> bytes:
        return blake3(data, key=self.secret).digest()[:n]

    # ---- section 7 --------------------------------------------------------------------------------

    def _value(self, table: str, key: bytes, stored: bytes) -> bytes:
        if table == "chunks":
            return stored
        value, check = stored[:-8], stored[-8:]
        number = TABLES.index(table)
        want = self.keyed(bytes((number, len(key) % 256)) + key + value, 8)
        need(check == want, f"row {table}/{key.hex()} has a wrong checksum")
        return value

    def get(self, table: str, key: bytes) -> bytes | None:
        if table not in self.dbs:
            return None
        stored = self.txn.get(key, db=self.dbs[table])
        return None if stored is None else self._value(table, key, stored)

    def rows(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        for key, stored in self.txn.cursor(self.dbs[table]) if table in self.dbs else ():
            yield key, self._value(table, key, stored)

    def check_sums(self) -> None:
        for number, table in enumerate(TABLES):
            kept = self.get("meta", b"sum:%d" % number)
            if kept is None:
                need(
                    table not in SUMMED or next(self.rows(table), None) is None,
                    f"no sum of {table}",
                )
                continue
            total = 0
            for key, value in self.rows(table):
                data = b"sum" + bytes((number,)) + len(key).to_bytes(2, "little") + key + value
                total += int.from_bytes(self.keyed(data, 16), "little")
            need(total % (1 << 128) == int.from_bytes(kept, "little"), f"the sum of {table}")

    # ---- sections 3, 4 and 7.2 --------------------------------------------------------------------

    def pack_path(self, number: int) -> str:
        return os.path.join(self.path, "packs", f"{number:08d}.pack")

    def parse_block(self, f: Any, offset: int) -> tuple[list[int], list[bytes], list[bytes], int]:
        """Numbers, ids and chunks of the block at `offset`, and its length; all verified."""
        f.seek(offset)
        fixed = f.read(24)
        need(len(fixed) == 24, "no block")
        magic, codec, _kind, zero, chunks, runs, raw, payload_size = struct.unpack(
            "<4sBBHIIII", fixed
        )
        need(magic == b"LSB1" and codec in (0, 1) and zero == 0, "no block")
        need(1 <= runs <= chunks <= 4096 and raw <= 2_097_152, "no block")
        rest = f.read(16 * runs + 36 * chunks + 32)
        head = fixed + rest
        need(self.keyed(head[:-16], 16) == head[-16:], "a header has a wrong checksum")
        numbers: list[int] = []
        for first, count in struct.iter_unpack("<QQ", rest[: 16 * runs]):
            numbers += range(first, first + count)
        at = 16 * runs
        lengths = struct.unpack(f"<{chunks}I", rest[at : at + 4 * chunks])
        at += 4 * chunks
        ids = [rest[at + 32 * i : at + 32 * i + 32] for i in range(chunks)]
        payload = f.read(payload_size)
        need(self.keyed(payload, 16) == head[-32:-16], "a payload has a wrong checksum")
        data = payload
        if codec == 1:
            data = zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw)
        need(len(data) == raw == sum(lengths) and len(numbers) == chunks, "lengths in a block")
        out = []
        at = 0
        for length, chunk_id in zip(lengths, ids, strict=True):
            out.append(data[at : at + length])
            need(blake3(out[-1]).digest() == chunk_id, "a chunk does not have its id")
            at += length
        return numbers, ids, out, len(head) + payload_size

    def place(self, number: int) -> tuple[Any, ...]:
        cursor = self.txn.cursor(self.dbs["blocks"])
        key = number.to_bytes(5, "big")
        if not cursor.set_range(key) or cursor.key() != key:
            need(cursor.prev() if cursor.key() else cursor.last(), f"chunk {number} has no place")
        key, stored = cursor.item()
        value = self._value("blocks", key, stored)
        lengths = [n for (n,) in struct.iter_unpack("<I", value[34:])]
        first = int.from_bytes(key, "big")
        need(number < first + len(lengths), f"chunk {number} has no place")
        return first, lengths, *struct.unpack("<IQIIIIBBI", value[:34])

    def chunks(self, runs: list[tuple[int, int]]) -> Iterator[bytes]:
        """The contents of chunks by number."""
        held: tuple[int, int] = (-1, -1)
        by_number: dict[int, bytes] = {}
        for first_number, count in runs:
            for number in range(first_number, first_number + count):
                first, lengths, pack, offset, head, disk, raw, raw_at, _codec, _kind, index = (
                    self.place(number)
                )
                if (pack, offset) != held:
                    with open(self.pack_path(pack), "rb") as f:
                        start = b"LSPACK\x01\n" + self.uuid + pack.to_bytes(8, "little")
                        need(f.read(64) == start.ljust(64, b"\0"), "a pack's header")
                        numbers, _, contents, size = self.parse_block(f, offset)
                    need(size == disk and sum(map(len, contents)) == raw, "a place")
                    need(head < disk, "a place")
                    by_number = dict(zip(numbers, contents, strict=True))
                    held = (pack, offset)
                need([len(c) for c in contents[index : index + len(lengths)]] == lengths, "a place")
                need(sum(len(c) for c in contents[:index]) == raw_at, "a place")
                need(numbers[index + number - first] == number, "a place")
                yield by_number[number]

    def toc(self, pack: int) -> list[tuple[int, int, int]] | None:
        """The table of contents of a sealed pack."""
        row = self.get("packs", pack.to_bytes(4, "big"))
        need(row is not None, f"pack {pack}")
        if row is None or not row[8]:
            return None
        with open(self.pack_path(pack), "rb") as f:
            data = f.read(int.from_bytes(row[:8], "little"))
        magic, count, offset, check = struct.unpack("<8sIQ16s", data[-36:])
        need(magic == b"LSTOC\x01\x00\n", "a table of contents")
        need(self.keyed(data[offset:-16], 16) == check, "a table of contents")
        need(len(data) == offset + 20 * count + 36, "a table of contents")
        return list(struct.iter_unpack("<QIQ", data[offset:-36]))

    # ---- sections 5, 8 and 9 ----------------------------------------------------------------------

    def raw(self, serial: int) -> Iterator[bytes]:
        row = self.get("raws", serial.to_bytes(6, "big"))
        need(row is not None, f"raw file {serial}")
        if row is None:
            return
        left, checks = int.from_bytes(row[:8], "little"), row[8:]
        name = f"{serial:012x}"
        with open(os.path.join(self.path, "raw", name[-2:], name), "rb") as f:
            for at in range(0, len(checks), 16):
                piece = f.read(min(PIECE, left))
                left -= len(piece)
                need(blake3(piece).digest()[:16] == checks[at : at + 16], "a piece")
                yield piece
        need(left == 0, "a raw file is too short")

    def stream(self, value: dict[str, Any]) -> Iterator[bytes]:
        if "outer" in value:
            data = b"".join(self.chunks([(a, b) for a, b in value["outer"]]))
            need(len(data) == value["list_size"], "a list's size")
        else:
            data = base64.b64decode(value["list"])
        size = 0
        for chunk in self.chunks(chunk_list(data)):
            size += len(chunk)
            yield chunk
        need(size == value["size"], "a stream's size")

    def blob(self, digest: str) -> dict[str, Any] | None:
        name, _, encoded = digest.partition(":")
        code = next(c for c, n in ALGORITHMS.items() if n == name)
        serial = self.get("digests", bytes((code,)) + bytes.fromhex(encoded))
        if serial is None:
            return None
        hidden = int.from_bytes(serial, "big") in self.condemned_blobs
        if hidden and self.get("revived", serial) is None:
            return None
        value = self.get("blobs", serial)
        need(value is not None, f"{digest} names a blob without a row")
        return None if value is None else json.loads(value)

    def read(self, blob: dict[str, Any], form: str) -> Iterator[bytes]:
        if form == "inline":
            yield base64.b64decode(blob["inline"])
        elif form == "plain":
            yield from self.stream(blob["plain"])
        elif form == "tar":
            tar = blob["tar"]
            head, marks = (b"".join(self.stream(tar[part])) for part in ("head", "marks"))
            yield from Joiner(head, marks, self.stream(tar["content"])).pieces()
        elif form == "gzip":
            yield self.gzip(blob["gzip"])
        else:
            yield from self.raw(blob["raw"])

    def gzip(self, form: dict[str, Any]) -> bytes:
        """Sections 8.1 and 15. A recipe (section 16) needs models, which this reader has not."""
        need("recipe" not in form, "a recipe, and no models here")
        need(form["encoder"] == "ls-deflate 1", f"encoder {form['encoder']} is not known")
        need(form["piece"] == deflate.PIECE, "pieces of another size")
        need(form["level"] in deflate.LEVELS, f"no level {form['level']}")
        inner = self.blob(form["inner"])
        need(inner is not None, f"{form['inner']} is missing")
        assert inner is not None
        own = next(name for name in ("inline", "plain", "tar", "raw") if name in inner)
        content = self.verified(inner, own)
        out = deflate.gzip(content, form["level"])
        need(out[-8:-4] == form["crc"].to_bytes(4, "little"), "the content has another CRC-32")
        points = b"".join(self.stream(form["points"]))
        need(18 + sum(struct.unpack(f"<{len(points) // 4}I", points)) == len(out), "wrong points")
        return out

    def recipe(self, blob: dict[str, Any]) -> tuple[int, int]:
        """Sections 8.1 and 16.1: the model and the count of spans of a recipe that fits its blob and
        the content, which is verified."""
        form = blob["gzip"]
        need(form["encoder"] == "recipe 1", f"encoder {form['encoder']} is not known")
        inner = self.blob(form["inner"])
        need(inner is not None, f"{form['inner']} is missing")
        assert inner is not None
        own = next(name for name in ("inline", "plain", "tar", "raw") if name in inner)
        content = self.verified(inner, own)
        data = b"".join(self.stream(form["recipe"]))
        need(data[:1] in (b"\x01", b"\x02", b"\x03"), "a recipe of another version")
        at = 1

        def number() -> int:
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                value |= (byte & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if not byte & 0x80:
                    return value

        model, count = number(), number()
        if data[0] < 3:
            sizes, bits, corrections = ([number() for _ in range(count)] for _ in range(3))
        else:
            sizes = [number() for _ in range(count - 1)]
            bits = [number() for _ in range(count - 1)]
            corrections = [number() for bit in bits if bit % 2]
            bits = [bit // 2 for bit in bits]
            sizes.append(len(content) - sum(sizes))
            bits.append(8 * blob["size"] - sum(bits))
            corrections.append(len(data) - at - sum(corrections))
            need(min(sizes + bits + corrections) >= 0, "a recipe is of another blob")
        need(sum(sizes) == len(content), "a recipe is of another content")
        need(sum(bits) == 8 * blob["size"], "a recipe is of another blob")
        need(at + sum(corrections) == len(data), "corrections")
        return model, count

    def verified(self, blob: dict[str, Any], form: str) -> bytes:
        """All bytes of a blob by one of its forms; size and every digest verified."""
        data = b"".join(self.read(blob, form))
        need(len(data) == blob["size"], f"{blob['digest']} has {len(data)} bytes")
        for digest in [blob["digest"], *blob.get("aliases", [])]:
            name, _, want = digest.partition(":")
            got = (
                blake3(data).hexdigest()
                if name == "blake3"
                else hashlib.new(name, data).hexdigest()
            )
            need(got == want, f"{digest} reads as {got}")
        return data

    def digests(self) -> list[str]:
        return [f"{ALGORITHMS[key[0]]}:{key[1:].hex()}" for key, _ in self.rows("digests")]

    def refs(self) -> dict[str, dict[str, Any]]:
        return {key.decode(): json.loads(value) for key, value in self.rows("refs")}

    # ---- section 11 -------------------------------------------------------------------------------

    def _condemned(self) -> set[int]:
        row = self.get("meta", b"condemned")
        if row is None:
            return set()
        number, _sequence = struct.unpack("<QQ", row)
        try:
            with open(os.path.join(self.path, "gc", f"{number:08d}.condemned"), "rb") as f:
                data = f.read()
        except FileNotFoundError:
            return set()
        if self.keyed(data[:-32]) != data[-32:]:
            return set()
        magic, blobs, runs = struct.unpack("<8sQQ", data[:24])
        need(magic == b"LSCOND\x01\n", "a condemned set")
        need(len(data) == 24 + 8 * blobs + 16 * runs + 32, "a condemned set")
        return {n for (n,) in struct.iter_unpack("<Q", data[24 : 24 + 8 * blobs])}

    # ---- sections 6 and 14: the same, without the index -------------------------------------------

    def records(self, path: str) -> Iterator[tuple[int, bytes, bytes, bytes]]:
        """Sequence, hash before, payload, own hash of every whole record of a file."""
        with open(path, "rb") as f:
            data = f.read()
        need(data[:24] == b"LSMETA\x01\n" + self.uuid, "a metadata pack's header")
        at = 64
        before: bytes | None = None
        while at + 80 <= len(data) and data[at : at + 4] == b"LSJR":
            length, sequence = struct.unpack("<IQ", data[at + 4 : at + 16])
            end = at + 48 + length
            own = data[end : end + 32]
            previous = data[at + 16 : at + 48]
            if own != self.keyed(data[at:end]) or before not in (None, previous):
                return
            yield sequence, previous, data[at + 48 : end], own
            before = own
            at = end + 32

    def replay(self) -> tuple[dict[tuple[str, bytes], bytes], int, bytes]:
        """Every row of the journalled tables from the metadata pack alone; the last sequence, and
        the last hash."""
        meta = os.path.join(self.path, "meta")
        names = sorted(os.listdir(meta))
        rows: dict[tuple[str, bytes], bytes] = {}
        start = 0
        for name in [n for n in names if n.endswith(".ckpt")]:
            loaded: dict[tuple[str, bytes], bytes] = {}
            last = b"?"
            for _, _, payload, _ in self.records(os.path.join(meta, name)):
                apply(loaded, payload)
                last = payload
            if last == b"":
                rows, start = loaded, int(name[:-5])
        sequence, chain = -1, b""
        for name in [n for n in names if n.endswith(".log") and int(n[:-4]) >= start]:
            for number, before, payload, own in self.records(os.path.join(meta, name)):
                need(sequence in (-1, number - 1) and chain in (b"", before), "the chain")
                apply(rows, payload)
                sequence, chain = number, own
        return rows, sequence, chain

    def scan(self) -> dict[int, tuple[bytes, bytes]]:
        """Id and content of every number that the packs hold, dead ones too, without the index."""
        rows, _, _ = self.replay()
        out: dict[int, tuple[bytes, bytes]] = {}
        for (table, key), value in rows.items():
            if table != "packs":
                continue
            path = self.pack_path(int.from_bytes(key, "big"))
            end = int.from_bytes(value[:8], "little")
            with open(path, "rb") as f:
                data = f.read()[:end]
                at = data.find(b"LSB1", 64)
                while at >= 0:
                    try:
                        numbers, ids, contents, size = self.parse_block(f, at)
                    except (Wrong, zstandard.ZstdError):
                        at = data.find(b"LSB1", at + 1)
                        continue
                    out.update(zip(numbers, zip(ids, contents, strict=True), strict=True))
                    at = data.find(b"LSB1", at + size)
        return out


def apply(rows: dict[tuple[str, bytes], bytes], payload: bytes) -> None:
    """The changes of a record, in order."""
    at = 0
    while at < len(payload):
        table, key_size, size = struct.unpack_from("<BHI", payload, at)
        at += 7
        key = payload[at : at + key_size]
        at += key_size
        if size == 0xFFFFFFFF:
            rows.pop((TABLES[table], key), None)
        else:
            rows[TABLES[table], key] = payload[at : at + size]
            at += size
    need(at == len(payload), "a change is cut off")


def main(path: str) -> None:
    """Verifies everything in a store that a reader can see."""
    store = Store(path)
    store.check_sums()
    for digest in store.digests():
        blob = store.blob(digest)
        for form in ("inline", "plain", "tar", "gzip", "raw"):
            if blob is not None and form == "gzip" and "recipe" in blob["gzip"]:
                store.recipe(blob)
                print("recipe", blob["size"], digest)
            elif blob is not None and form in blob:
                store.verified(blob, form)
                print(form, blob["size"], digest)
    store.close()


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
