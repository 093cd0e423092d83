"""gzip blobs taken apart and put together again: tokens, models of encoders, corrections, recipes.

A blob is decoded (`Decoder`) into *spans* of about a MiB of content; a *model* of the encoder that made
it predicts each span's tokens and codes; what it mispredicts is the span's *corrections* (`analyse`),
usually a few bytes. A `Recipe` is the model's number and all corrections: with the content it gives the
blob again, span by span, in any order (`make_span`). Nothing here looks at digests: whether what was
made is right, the caller compares.

FORMAT.md, section 16, describes recipes. The GIL is free while C works; functions may be called by
several threads, on different spans. A thread keeps its working memory: up to 60 MiB of addresses, of
which 5 to 10 are touched.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CorruptError, InvalidInputError, LimitError, UnsupportedError
from ._layerstore import ffi, lib
from .spans import SPAN, Decoder, Model, Span, model, models

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION: int = lib.LS_RECIPE_VERSION
"""Of new recipes; older ones are read."""
NONE = 1
"""The model that predicts nothing: literals only."""
ENOUGH = 64
"""Corrections of a span, in bytes, with which no better model is looked for."""
MOST_OUT = 1 << 28
"""Bytes that one span may make: its content stored, and zeros behind a member."""

_new = ffi.new_allocator(should_clear_after_alloc=False)

# ---- working memory of a thread ----------------------------------------------------------------------


class _Work(threading.local):
    def __init__(self) -> None:
        self.rooms: dict[str, tuple[int, Any]] = {}
        self.error = ffi.new("ls_error *")
        self.length = ffi.new("size_t *")

    def room(self, name: str, kind: str, n: int) -> Any:
        """An array of at least n items, not cleared."""
        have, array_ = self.rooms.get(name, (0, None))
        if have < n:
            array_ = _new(kind, n)
            self.rooms[name] = (n, array_)
        return array_

    def state(self, model: Model) -> Any:
        """64-byte aligned memory for a model."""
        size = lib.ls_respan_sizeof(model.id)
        room = self.room("state", "uint8_t[]", size + 64)
        address = int(ffi.cast("uintptr_t", room))
        return room + (-address % 64)

    def tokens(self) -> Any:
        return self.room("tokens", "uint32_t[]", lib.LS_TOKENS_TOKENS)

    def scratch(self) -> Any:
        return self.room("scratch", "uint32_t[]", 2 * lib.LS_TOKENS_TOKENS)

    def reason(self) -> str:
        return str(ffi.string(self.error.reason).decode())


_work = _Work()


# ---- analysis ----------------------------------------------------------------------------------------


def analyse(span: Span, following: Span | None, model: Model, limit: int) -> bytes | None:
    """The corrections of a span, or None if they are more than `limit` bytes, or the model cannot
    follow what the encoder did. `following` is the span behind it, None for the last one; it is only
    read, and may be analysed at the same time."""
    out = _work.room("corrections", "uint8_t[]", limit + 16)
    code = lib.ls_respan_analyse(
        _work.state(model),
        VERSION,
        model.id,
        span._struct,
        ffi.NULL if following is None else following._struct,
        _work.scratch(),
        out,
        limit,
        _work.length,
        _work.error,
    )
    if code in (lib.LS_ELIMIT, lib.LS_EFORMAT):
        return None
    if code:
        raise InvalidInputError(_work.reason(), offset=_work.error.offset)
    corrections: bytes = ffi.buffer(out, _work.length[0])[:]
    return corrections


def mispredicted(span: Span, following: Span | None, model: Model) -> int:
    """Of how many tokens of a span the model is wrong: those that its corrections name. Takes the time
    of an analysis; for reports."""
    if analyse(span, following, model, span.size + 65536) is None:
        raise LimitError("the model does not follow the span")
    found: int = lib.ls_respan_mispredicted(_work.state(model))
    return found


def follows(model: Model) -> bool:
    """Whether the last analysis of this thread with this model found no token that it mispredicts."""
    return not lib.ls_respan_mispredicted(_work.state(model))


def telling(span: Span) -> int:
    """How much a span tells of its encoder: tokens that chose between literals and matches, about.
    Bytes that are stored, or literals throughout, or one long run, tell nothing."""
    s = span._struct
    tokens = saved = 0
    for i in range(s.n_events):
        event = s.events[i]
        if event.kind in (lib.LS_EVENT_FIXED, lib.LS_EVENT_DYNAMIC):
            tokens += event.tokens
            saved += event.size - event.tokens
    return min(tokens, saved)


_LEVELS = {2: 9, 4: 1}
"""What the header's XFL says of the level (RFC 1952, 2.3.1): slowest, fastest."""


def candidates(first: Span, header: bytes | None = None) -> list[Model]:
    """The models that may have made a blob, by its header and a span's first block; likeliest first.
    `header`: the blob's, if the span does not begin with it."""
    s = first._struct
    header = first.header if header is None else header
    families: dict[str, list[Model]] = {"zlib": [], "go": [], "fast": [], "kp": [], "": []}
    for m in models():
        if not m.superseded:
            families[_family(m.id)].append(m)
    tokens, size, shortest, flushes = _first_block(s)
    # Of what is here, only zlib's relatives name a system.
    stated = len(header) >= 10
    go_like = stated and header[9] == 255
    klauspost = go_like and header[4:8] == b"\x00\x09\x6e\x88"
    far = shortest != 3
    votes = {
        "zlib": _vote(not far, tokens in (16383, 32767)) + (3 if stated and not go_like else 0),
        "go": _vote(far, tokens == 16384, go_like and not klauspost),
        "fast": _vote(far, size == 65535, go_like and header[8] == 4),
        "kp": _vote(far, size > 0 and size % 65535 == 0, klauspost, far and flushes),
        "": -1,
    }
    if (level := _LEVELS.get(header[8] if len(header) >= 10 else 0)) is not None:
        for family in families.values():
            family.sort(key=lambda m: m.id % 10 != level)
    if flushes:
        # Of zlib's relatives only pigz and `--rsyncable` flush by themselves; zlib's own come close.
        families["zlib"].sort(key=lambda m: m.id < 150)
    order = sorted(families, key=lambda name: -votes[name])
    return [m for name in order for m in families[name]]


def levels(model: Model) -> list[Model]:
    """The models with numbers beside a model's: mostly the same encoder at its other levels."""
    return [m for m in models() if m.id // 10 == model.id // 10 and m.id != model.id]


def _family(id: int) -> str:
    """By the ranges in which csrc/deflate/model.h numbers them."""
    for name, low, high in (
        ("zlib", 100, 200),
        ("zlib", 460, 480),
        ("go", 200, 220),
        ("fast", 220, 230),
        ("kp", 300, 400),
    ):
        if low <= id < high:
            return name
    return ""


def _vote(*facts: bool) -> int:
    return sum(facts)


def _first_block(s: Any) -> tuple[int, int, int, bool]:
    """Of the first block with tokens: how many, bytes of content, shortest match (0: none); whether
    there is a flush in the span."""
    at = 0
    flushes = False
    found = (0, 0, 0)
    for i in range(s.n_events):
        event = s.events[i]
        if event.kind == lib.LS_EVENT_STORED and not event.size and not event.final:
            flushes = True
        if event.kind > lib.LS_EVENT_DYNAMIC:
            continue
        if not found[0] and event.tokens and event.kind != lib.LS_EVENT_STORED:
            tokens = array("I")
            tokens.frombytes(ffi.buffer(s.tokens + at, 4 * min(event.tokens, 1 << 16))[:])
            lengths = {t & 0xFFFF for t in tokens if t >= 256}
            found = (event.tokens, event.size, min(lengths, default=0))
        at += event.tokens
    return (*found, flushes)


def choose(first: Span, following: Span | None, limit: int) -> tuple[Model, bytes] | None:
    """The model with the fewest corrections for the first span, and these; None if all need more than
    `limit` bytes."""
    best: tuple[Model, bytes] | None = None
    for m in candidates(first):
        corrections = analyse(first, following, m, limit)
        if corrections is None:
            continue
        if best is None or len(corrections) < len(best[1]):
            best = (m, corrections)
            limit = len(corrections)
        if len(corrections) <= ENOUGH:
            break
    return best


# ---- recipes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extent:
    """What a span of a recipe makes: whole bytes of the blob; and from what: content, with so many
    bytes before and behind it."""

    blob_start: int
    blob_end: int
    content_start: int
    content_end: int
    before: int
    ahead: int


class Recipe:
    """How to make a gzip blob from its content."""

    def __init__(self, model: Model, version: int = VERSION) -> None:
        self.model = model
        self.version = version
        self._content = array("Q", [0])
        self._bits = array("Q", [0])
        self._ends = array("Q", [0])
        self._parts: list[bytes] = []
        self._all: bytes | None = None

    def __len__(self) -> int:
        return len(self._content) - 1

    @property
    def content_size(self) -> int:
        return self._content[-1]

    @property
    def blob_size(self) -> int:
        return self._bits[-1] // 8

    def add(self, span: Span, corrections: bytes) -> None:
        """The next span, with what `analyse` said of it."""
        if span.number != len(self) or span.bit_start != self._bits[-1]:
            raise ValueError("spans come in order")
        self._add(span.size, span.bit_end - span.bit_start, len(corrections))
        self._parts.append(corrections)
        self._all = None

    def _add(self, size: int, bits: int, corrections: int) -> None:
        self._content.append(self._content[-1] + size)
        self._bits.append(self._bits[-1] + bits)
        self._ends.append(self._ends[-1] + corrections)

    def to_bytes(self) -> bytes:
        out = bytearray([self.version])
        for value in (self.model.id, len(self)):
            _put(out, value)
        tables = [
            [table[i + 1] - table[i] for i in range(len(self))]
            for table in (self._content, self._bits, self._ends)
        ]
        if self.version < 3:
            for table in tables:
                for value in table:
                    _put(out, value)
            return bytes(out) + self._corrections()
        # Of the last span the blob and its content tell. Most spans have no corrections.
        content, bits, corrections = (table[:-1] for table in tables)
        for value in content:
            _put(out, value)
        for n_bits, length in zip(bits, corrections, strict=True):
            _put(out, n_bits << 1 | (length > 0))
        for length in filter(None, corrections):
            _put(out, length)
        return bytes(out) + self._corrections()

    def _corrections(self) -> bytes:
        if self._all is None:
            self._all = b"".join(self._parts)
        return self._all

    @classmethod
    def from_bytes(cls, data: bytes, content_size: int, blob_size: int) -> Recipe:
        """The recipe of a blob and its content, of so many bytes. Raises CorruptError for what is none,
        UnsupportedError for one of a newer version."""
        version, model, numbers = _begun(data)
        recipe = cls(model, version)
        count = numbers.next(len(data))
        told = max(0, count - 1) if version > 2 else count
        sizes = [numbers.next(lib.LS_TOKENS_CONTENT) for _ in range(told)]
        bits = [numbers.next(1 << 41) for _ in range(told)]
        if version > 2:
            some = [b & 1 for b in bits]
            bits = [b >> 1 for b in bits]
            lengths = [numbers.next(len(data)) if s else 0 for s in some]
        else:
            lengths = [numbers.next(len(data)) for _ in range(told)]
        if told < count:
            sizes.append(content_size - sum(sizes))
            bits.append(8 * blob_size - sum(bits))
            lengths.append(len(data) - numbers.at - sum(lengths))
        for size, n_bits, length in zip(sizes, bits, lengths, strict=True):
            if not (0 <= size <= lib.LS_TOKENS_CONTENT and 0 <= n_bits <= 1 << 40 and length >= 0):
                raise CorruptError("a recipe is damaged: a span that cannot be")
            recipe._add(size, n_bits, length)
        recipe._all = bytes(data[numbers.at :])
        if (
            len(recipe._all) != recipe._ends[-1]
            or recipe._bits[-1] != 8 * blob_size
            or recipe.content_size != content_size
        ):
            raise CorruptError("a recipe is damaged: its parts do not add up")
        return recipe

    def find(self, blob_offset: int) -> int:
        """The number of the span that makes this byte of the blob."""
        if not 0 <= blob_offset < self.blob_size:
            raise ValueError(f"no byte {blob_offset} in a blob of {self.blob_size}")
        return bisect_left(self._bits, (blob_offset + 1) * 8) - 1

    def extent(self, number: int) -> Extent:
        start, end = self._content[number], self._content[number + 1]
        return Extent(
            self._bits[number] // 8,
            self._bits[number + 1] // 8,
            start,
            end,
            min(self.model.history, start),
            min(self.model.ahead, self.content_size - end),
        )

    def corrections(self, number: int) -> bytes:
        return self._corrections()[self._ends[number] : self._ends[number + 1]]


def _begun(data: bytes) -> tuple[int, Model, _Numbers]:
    """Version and model of a recipe, and what follows."""
    if not data:
        raise CorruptError("a recipe is empty")
    if not 0 < data[0] <= VERSION:
        raise UnsupportedError(
            f"a recipe of version {data[0]} is of a newer layerstore: read this store with that"
        )
    numbers = _Numbers(data, 1)
    return data[0], model(numbers.next(1 << 32)), numbers


def model_of(data: bytes) -> Model:
    """The model that a recipe names. Raises as `Recipe.from_bytes` does."""
    return _begun(data)[1]


def make_span(recipe: Recipe, number: int, *content: Buffer) -> bytes:
    """The bytes of the blob that a span makes: `blob_start` to `blob_end` of its extent. `content`:
    what the extent says lies before, in and ahead of it, in order, in as many parts as the caller has.
    Raises CorruptError when recipe and content do not fit each other; that nothing is raised does not
    mean that the bytes are right."""
    extent = recipe.extent(number)
    parts = [memoryview(p).cast("B") for p in content]
    wanted = (extent.before, extent.content_end - extent.content_start, extent.ahead)
    total = sum(wanted)
    if sum(map(len, parts)) != total:
        raise ValueError(f"{sum(map(len, parts))} bytes of content instead of {wanted}")
    buffer = _work.room("content", "uint8_t[]", total + lib.LS_TOKENS_SLACK)
    at = 0
    for part in parts:
        ffi.memmove(buffer + at, part, len(part))
        at += len(part)
    corrections = recipe.corrections(number)
    r = ffi.new("ls_respan *")
    r.content = buffer + wanted[0]
    r.before, r.size, r.after = wanted
    r.offset = extent.content_start
    r.bit = recipe._bits[number]
    r.end_bit = recipe._bits[number + 1]
    source = ffi.from_buffer("uint8_t[]", corrections)
    r.corrections = source
    r.corrections_size = len(corrections)
    room = extent.blob_end - extent.blob_start + lib.LS_RESPAN_ROOM
    if room > MOST_OUT:
        raise CorruptError("a recipe is damaged: a span is too large", offset=extent.blob_start)
    out = _work.room("out", "uint8_t[]", room)
    code = lib.ls_respan_make(
        _work.state(recipe.model),
        recipe.version,
        recipe.model.id,
        r,
        _work.tokens(),
        _work.scratch(),
        out,
        room,
        _work.length,
        _work.error,
    )
    if code:
        raise CorruptError(
            f"a recipe does not fit its content near byte {_work.error.offset}: {_work.reason()}",
            offset=extent.blob_start,
        )
    made: bytes = ffi.buffer(out, _work.length[0])[:]
    return made


# ---- numbers in bytes: seven bits a byte, the lowest first --------------------------------------


def _put(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


class _Numbers:
    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def next(self, most: int) -> int:
        value = shift = 0
        while True:
            if self.at >= len(self.data) or shift > 63:
                raise CorruptError("a recipe is damaged: it ends in its table", offset=self.at)
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if value > most:
            raise CorruptError(f"a recipe is damaged: {value} in its table", offset=self.at)
        return value


__all__ = [
    "ENOUGH",
    "NONE",
    "SPAN",
    "VERSION",
    "Decoder",
    "Extent",
    "Model",
    "Recipe",
    "Span",
    "analyse",
    "candidates",
    "choose",
    "follows",
    "levels",
    "make_span",
    "mispredicted",
    "model",
    "model_of",
    "models",
    "telling",
]
