"""A gzip blob taken apart: its content, and what an encoder would need to make the blob of that.

One pass decodes it to spans; the content goes on at once; a model is chosen by the first spans, or by
one that tells more; what was decoded so far is cut again for it, and all spans are analysed side by
side in the pool. Memory: a span for each core and two more, five at least (up to 35 MB each),
whatever the size of the blob.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import accumulate, islice

from ..core import recipe as recipes
from ..errors import InvalidInputError, LimitError
from .inflate import DEFAULT_LIMIT

MAX_CORRECTIONS = 0.02
"""Share of the blob that corrections may take, by default."""
SMALL = 1024
"""Bytes that a recipe may have in any case: a file takes more."""
FIRST_SPAN = 4 * 65535
"""Content of the first span: so long a reader waits for the first byte. Four chunks of the encoders
that work in such: what follows then is begun with all that came before."""
FAST_FIRST_SPAN = 25 * 65535
"""The same of an encoder that is fast."""
FAST = frozenset((304, 305, 306, 354, 355, 356))
"""Models of klauspost/compress that make that much in about 10 ms, and rest on a few chunks only."""
SPAN = 1 << 20
"""Content of the next ones, as long as no model is chosen."""
TELLING = 4096
"""`recipes.telling` of the spans that a model is chosen by, at least, if the blob has such."""
PLENTY = 1 << 16
"""The same, above which no further span is asked: neighbouring levels may differ in few tokens only."""
LOOK_AHEAD = 64 << 20
"""Bytes of content in which such a span is looked for."""
FEED = 64 << 10


@dataclass(slots=True)
class Limits:
    """What an optimizing may cost. `stop` is asked now and then, and ends it."""

    corrections: float = MAX_CORRECTIONS
    inflate: int = DEFAULT_LIMIT
    stop: Callable[[], bool] = lambda: False
    tell: Callable[[int], None] = lambda size: None

    def allowed(self, size: int) -> int:
        """Bytes that the recipe of a blob of `size` bytes may have."""
        return max(SMALL, int(self.corrections * size))


class Stopped(Exception):
    """`Limits.stop` said so: the blob is as it was."""


class GivenUp(Exception):
    """The blob is to be kept as it came."""

    def __init__(self, reason: str, encoder: str, cost: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.encoder = encoder
        self.cost = cost


def first_span(model: recipes.Model) -> int:
    """Content of the first span."""
    return FAST_FIRST_SPAN if model.id in FAST else FIRST_SPAN


def decoder_for(model: recipes.Model) -> recipes.Decoder:
    """Gives the spans that suit a model."""
    return recipes.Decoder(max(SPAN, model.span), first_span(model))


_Probe = tuple[recipes.Span, recipes.Span | None]
"""A span, and the one behind it."""


class Analysis:
    """A gzip blob as content, and as what an encoder would need to make it of that."""

    def __init__(
        self,
        pool: Executor,
        workers: int,
        blob: Iterable[memoryview],
        size: int,
        limits: Limits,
        likely: str,
        again: Callable[[], Iterator[memoryview]],
    ) -> None:
        self._again = again
        self._pool = pool
        self._workers = workers
        self._blob = blob
        self._limits = limits
        self._likely = likely
        self._size = size
        self._allowed = limits.allowed(size)
        self._decoder = recipes.Decoder(SPAN, FIRST_SPAN)
        self._fed = 0
        """Bytes of the blob that the decoder was given."""
        self._given = 0
        """Bytes of content that went out."""
        self._ended = False
        self._spans: deque[recipes.Span] = deque()
        """Decoded, and not handed to the pool yet."""
        self._busy: deque[tuple[recipes.Span, Future[bytes | None]]] = deque()
        self._recipe: recipes.Recipe | None = None
        self._cost = 0

    def content(self) -> Iterator[memoryview]:
        """The content in order. Raises GivenUp when the recipe gets too large, InvalidInputError for
        data that is damaged, LimitError."""
        for piece in self._blob:
            for at in range(0, len(piece), FEED):
                part = piece[at : at + FEED]
                self._fed += len(part)
                yield from self._take(self._decoder.feed(part))
        self._ended = True
        yield from self._take(self._decoder.finish())
        trailing = self._decoder.trailing
        if trailing:
            offset = self._size - trailing
            raise InvalidInputError(
                f"gzip data is damaged near byte {offset}: what follows its end is none",
                offset=offset,
                reason="trailing bytes",
            )
        if self._recipe is None and self._choose_cuts():
            self._spans.extend(self._cut_again())
        while self._spans:
            self._submit(self._spans.popleft(), self._spans[0] if self._spans else None)
        while self._busy:
            self._collect()

    def _take(self, spans: list[recipes.Span]) -> Iterator[memoryview]:
        waiting = deque(spans)
        while waiting:
            span = waiting.popleft()
            if span.offset + span.size > self._limits.inflate:
                raise LimitError(f"the layer inflates to more than {self._limits.inflate} bytes")
            self._spans.append(span)
            fresh = span.offset + span.size - self._given
            if fresh > 0:
                self._given += fresh
                yield span.content[-fresh:]
            if self._recipe is None and len(self._spans) > 2:
                if len(self._spans) > self._wanted() and self._choose_cuts():
                    waiting = deque(self._cut_again())
            elif self._recipe is not None:
                while len(self._spans) > 1:
                    self._submit(self._spans.popleft(), self._spans[0])
                while len(self._busy) > self._workers:
                    self._collect()

    def _choose_cuts(self) -> bool:
        """Chooses the model; whether it wants other spans than there are."""
        model = self._choose()
        if len(self._spans) < 2:
            return False
        return first_span(model) > FIRST_SPAN or (len(self._spans) > 2 and model.span > SPAN)

    def _cut_again(self) -> Iterator[recipes.Span]:
        """What was decoded so far, in spans as long as suits the model. Each costs some bytes, and more
        than that where the encoder knew more than the model's history."""
        assert self._recipe is not None
        for span in self._spans:
            span.release()
        self._spans.clear()
        self._decoder = decoder_for(self._recipe.model)
        left = self._fed
        for piece in self._again():
            for at in range(0, min(left, len(piece)), FEED):
                yield from self._decoder.feed(piece[at : min(at + FEED, left)])
            left -= min(left, len(piece))
            if not left:
                break
        if self._ended:
            yield from self._decoder.finish()

    def _wanted(self) -> int:
        """Spans that a model is chosen by: two, and, if these do not tell plenty, up to two that are
        asked behind them."""
        told = accumulate(map(recipes.telling, islice(self._spans, 3)))
        return max(2, 1 + sum(t < PLENTY for t in told))

    def _choose(self) -> recipes.Model:
        """The model with the fewest corrections on the first two spans (the first one is short), or,
        where they tell little of their encoder, on one behind them that tells more."""
        first, *more = self._spans
        following = [*more, None]
        probes: list[_Probe] = list(zip(self._spans, following, strict=True))[:2]
        told = sum(recipes.telling(span) for span, _ in probes)
        if len(more) > 1 and told < TELLING:
            ahead = self._look_ahead(told)
            probes = [ahead] if ahead else probes
            told = max(told, *(recipes.telling(span) for span, _ in probes))
        best: recipes.Model | None = None
        least = sum(span.size for span, _ in probes) + SMALL
        for model in recipes.candidates(probes[0][0], first.header):
            total = 0
            follows = told >= TELLING
            for span, behind in probes:
                cost = recipes.analyse(span, behind, model, max(0, least - total))
                if cost is None:
                    break
                total += len(cost)
                follows &= recipes.follows(model)
            else:
                if best is None or total < least:
                    best, least = model, total
                    if total <= recipes.ENOUGH and follows:
                        break
        if best is None:
            raise GivenUp("no model of an encoder fits it", self._likely, -1)
        best = self._among_levels(best, told)
        self._recipe = recipes.Recipe(best)
        return best

    def _among_levels(self, model: recipes.Model, told: int) -> recipes.Model:
        """The model, or that of another level of its encoder, if one of the spans behind those that it
        was chosen by tells more and is mispredicted by it."""
        behind = [*islice(self._spans, 1, None), None]
        further: list[_Probe] = list(zip(self._spans, behind, strict=True))[2:]
        if not self._ended:
            further = further[:-1]
        span, following = max(further, key=lambda p: recipes.telling(p[0]), default=(None, None))
        if span is None or told >= PLENTY or recipes.telling(span) <= told:
            return model
        cost = recipes.analyse(span, following, model, span.size)
        if cost is not None and recipes.follows(model):
            return model
        least = span.size if cost is None else len(cost)
        for other in recipes.levels(model):
            cost = recipes.analyse(span, following, other, least)
            if cost is not None and len(cost) < least:
                model, least = other, len(cost)
        return model

    def _look_ahead(self, told: int) -> _Probe | None:
        """The first span that tells enough, else the one that tells most, if that is more than `told`;
        with what follows it."""
        decoder = recipes.Decoder(SPAN)
        best: _Probe | None = None
        last: recipes.Span | None = None
        for span in self._spans_again(decoder):
            if last is not None and recipes.telling(last) > told:
                best, told = (last, span), recipes.telling(last)
            last = span
            if told >= TELLING or decoder.content_size > LOOK_AHEAD:
                break
        return best

    def _spans_again(self, decoder: recipes.Decoder) -> Iterator[recipes.Span | None]:
        for piece in self._again():
            for at in range(0, len(piece), FEED):
                yield from decoder.feed(piece[at : at + FEED])
        yield from decoder.finish()
        yield None

    def _submit(self, span: recipes.Span, following: recipes.Span | None) -> None:
        assert self._recipe is not None
        model = self._recipe.model
        future = self._pool.submit(recipes.analyse, span, following, model, self._allowed)
        self._busy.append((span, future))

    def _collect(self) -> None:
        assert self._recipe is not None
        span, future = self._busy.popleft()
        found = future.result()
        self._cost += self._allowed + 1 if found is None else len(found)
        if found is None or self._cost > self._allowed:
            raise self._too_much()
        self._recipe.add(span, found)
        # Whoever read it as what follows is done: spans are collected in order.
        span.release()

    def _too_much(self) -> GivenUp:
        assert self._recipe is not None
        name = self._recipe.model.name
        share = 100 * self._cost / max(1, self._size)
        return GivenUp(
            f"corrections would take more than {share:.1f} % of it (nearest: {name})",
            self._likely,
            self._cost,
        )

    def recipe(self) -> bytes:
        """The recipe, when all of the content was taken."""
        assert self._recipe is not None
        out = self._recipe.to_bytes()
        if len(out) > self._allowed:
            self._cost = len(out)
            raise self._too_much()
        return out

    def close(self) -> None:
        """Waits for who still reads spans, and lets them go."""
        for _, future in self._busy:
            future.cancel()
        for span, future in self._busy:
            if not future.cancelled():
                future.exception()
            span.release()
        for span in self._spans:
            span.release()
        self._busy.clear()
        self._spans.clear()
