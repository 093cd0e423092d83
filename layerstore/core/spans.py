"""gzip blobs decoded to spans: their content, and all that their encoder decided.

A *span* is about a MiB of content, or as much as suits the model that is to be asked about it; it
begins where a block or a member does. `models` lists the models there are: who decodes keeps as much
content before a span as any of them wants. The GIL is free while C works.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from ..errors import InvalidInputError, LimitError, UnsupportedError
from ._layerstore import ffi, lib

SPAN = 1 << 20
"""Bytes of content of a span, if nobody says otherwise."""

_new = ffi.new_allocator(should_clear_after_alloc=False)


@dataclass(frozen=True)
class Model:
    """One encoder at one level. `history` and `ahead`: bytes of content that it wants before and behind
    a span; `span`: bytes of content that suit it."""

    id: int
    name: str
    history: int
    ahead: int
    span: int
    superseded: bool
    """Another one does the same with fewer corrections: this is for recipes that are there."""


@cache
def _models() -> dict[int, Model]:
    out = {}
    facts = ffi.new("ls_model_facts *")
    number = 0
    while lib.ls_respan_model(number, facts):
        name = ffi.string(facts.name).decode()
        out[facts.id] = Model(
            facts.id, name, facts.history, facts.ahead, facts.span, bool(facts.superseded)
        )
        number += 1
    return out


def models() -> list[Model]:
    """All models there are, in the order of their families."""
    return list(_models().values())


def model(id: int) -> Model:
    """Raises UnsupportedError for a model that this version does not have."""
    found = _models().get(id)
    if found is None:
        raise UnsupportedError(
            f"a recipe for encoder model {id} is of a newer layerstore: read this store with that"
        )
    return found


@cache
def most_history() -> int:
    """Bytes before a span that the neediest model wants."""
    return max(1 << 15, *(m.history for m in models()))


class _Arrays:
    """The memory of a span."""

    __slots__ = ("bytes", "content", "events", "struct", "tokens")

    def __init__(self) -> None:
        room = most_history() + lib.LS_TOKENS_CONTENT + lib.LS_MODEL_MAX_AHEAD + lib.LS_TOKENS_SLACK
        self.content = _new("uint8_t[]", room)
        self.tokens = _new("uint32_t[]", lib.LS_TOKENS_TOKENS)
        self.events = _new("ls_event[]", lib.LS_TOKENS_EVENTS)
        self.bytes = _new("uint8_t[]", lib.LS_TOKENS_BYTES)
        self.struct = ffi.new("ls_tokens_span *")
        self.struct.content = self.content
        self.struct.tokens = self.tokens
        self.struct.events = self.events
        self.struct.bytes = self.bytes
        self.struct.content_room = room


class Span:
    """A stretch of a blob that begins where a block or a member does, with all that its encoder
    decided."""

    __slots__ = (
        "_arrays",
        "_pool",
        "bit_end",
        "bit_start",
        "content",
        "header",
        "number",
        "offset",
        "size",
        "tokens",
    )

    def __init__(self, number: int, arrays: _Arrays, pool: list[_Arrays]) -> None:
        s = arrays.struct
        self._arrays: _Arrays | None = arrays
        self._pool = pool
        self.number = number
        self.offset: int = s.offset
        """Bytes of the blob's content before it."""
        self.size: int = s.size
        self.tokens: int = s.n_tokens
        self.bit_start: int = s.bit
        self.bit_end: int = s.end_bit
        whole = memoryview(ffi.buffer(arrays.content, s.before + s.size))
        self.content = whole[s.before :].toreadonly()
        """Valid until `release`."""
        self.header = b""
        """Of the member with which it begins, if it does."""
        if s.n_events and s.events[0].kind == lib.LS_EVENT_HEADER:
            event = s.events[0]
            self.header = ffi.buffer(s.bytes + event.bytes, event.size)[:]

    @property
    def _struct(self) -> Any:
        if self._arrays is None:
            raise ValueError("the span was released")
        return self._arrays.struct

    def release(self) -> None:
        """Gives its memory back to the decoder. `content` must not be used any more."""
        if self._arrays is not None:
            self._pool.append(self._arrays)
            self._arrays = None
            self.content = memoryview(b"")


class Decoder:
    """A gzip blob in, spans out. Serves one thread at a time. Memory: that of the spans not released,
    each as large as its content and four bytes a token, at most 40 MiB."""

    def __init__(self, span: int = SPAN, first: int = 0) -> None:
        """`span`: bytes of content wanted in a span, at most 8 MiB; may be set at any time. `first`: in
        the first one, if that is to be another."""
        self.span = span
        self._first = first or span
        self.content_size = 0
        self.trailing = 0
        """Bytes behind the last member that are no zeros."""
        self._base = 0
        self._number = 0
        self._pool: list[_Arrays] = []
        self._state = _new("uint64_t[]", (lib.ls_tokens_sizeof() + 7) // 8)
        self._machine = ffi.cast("ls_tokens *", self._state)
        self._error = ffi.new("ls_error *")
        self._used = ffi.new("size_t *")
        self._rest = b""
        lib.ls_tokens_init(self._machine)
        self._arrays = _Arrays()
        lib.ls_tokens_begin(self._machine, self._arrays.struct, ffi.NULL, most_history())

    @property
    def blob_size(self) -> int:
        """Bytes of the blob so far."""
        return self._base + len(self._rest)

    def feed(self, data: bytes | memoryview) -> list[Span]:
        """The spans that these bytes complete. Raises InvalidInputError (offset in the blob, reason)
        for what is not gzip or damaged, LimitError for what is valid and more than a span can hold."""
        return self._decode(self._rest + data if self._rest else data, False)

    def finish(self) -> list[Span]:
        """The last spans. Raises as `feed` does; that the blob is truncated, too."""
        return self._decode(self._rest, True)

    def _decode(self, data: bytes | memoryview, last: bool) -> list[Span]:
        source = ffi.from_buffer("uint8_t[]", data)
        out: list[Span] = []
        at = 0
        while True:
            result = lib.ls_tokens_feed(
                self._machine,
                self._arrays.struct,
                self.span if self._number else self._first,
                source + at,
                len(data) - at,
                last,
                self._used,
                self._error,
            )
            at += self._used[0]
            if result == lib.LS_TOKENS_MORE:
                break
            if result == lib.LS_TOKENS_SPAN:
                self._complete(out)
            elif result == lib.LS_TOKENS_END:
                if self._arrays.struct.n_events:
                    self._complete(out)
                break
            else:
                self._fail(result)
        self._base += at
        self._rest = bytes(data[at:])
        return out

    def _complete(self, out: list[Span]) -> None:
        arrays = self._arrays
        s = arrays.struct
        self._arrays = self._pool.pop() if self._pool else _Arrays()
        lib.ls_tokens_begin(self._machine, self._arrays.struct, s, most_history())
        self.content_size += s.size
        for i in range(max(0, s.n_events - 2), s.n_events):
            if s.events[i].kind == lib.LS_EVENT_TRAILING:
                self.trailing += s.events[i].size
        out.append(Span(self._number, arrays, self._pool))
        self._number += 1

    def _fail(self, code: int) -> None:
        reason = ffi.string(self._error.reason).decode()
        offset = self._error.offset
        if code == lib.LS_ELIMIT:
            raise LimitError(
                f"gzip data that no recipe can hold, near byte {offset}: {reason}", offset=offset
            )
        raise InvalidInputError(
            f"gzip data is damaged near byte {offset}: {reason}", offset=offset, reason=reason
        )
