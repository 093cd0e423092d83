"""Compressed blobs that were kept as they came: their content is stored as any content is, and a recipe
takes the place of the file, once it is proven.

One pass over a blob: it is decoded to spans; the content goes through the usual way in, where what is
known is only named; the spans are analysed side by side in the pool, with the model of an encoder that
the first two of them were probed for. Content and recipe are committed together. Then the blob is made
again from what was committed, through the ordinary reader; if its digest is right, the raw form goes,
in one transaction (rule 20). Stopped anywhere, the blob is as it was, or has both forms.

What cannot be made again stays raw, and its row says why; it is not tried again with the same models.
Memory: a span for each core and two more (up to 35 MB each), whatever the size of the blob.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..core import recipe as recipes
from ..core.deflate import LEVELS, PIECE, Encoder
from ..digest import to_key
from ..errors import CorruptError, InvalidInputError, LimitError
from ..storage import graph
from ..storage.compact import deadline
from ..storage.index import Table, Write
from ..storage.operation import Operation, Staged, drop_raw
from ..storage.rows import BlobRow, GzipForm, Kept, serial_key
from ..storage.storage import Storage
from ..values import BlobInfo, OptimizedBlob, Progress, ProgressCallback
from . import regenerate
from .assemble import BlobFile
from .compress import gzipped
from .encoders import likely_encoder
from .inflate import DEFAULT_LIMIT, compression_of, inflate
from .ingest import MetaStream, UnprovenError, Wanted, ingest, is_layer, look_inside

if TYPE_CHECKING:
    from .content import Content

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
LOOK_AHEAD = 64 << 20
"""Bytes of content in which such a span is looked for."""
FEED = 64 << 10
HEAD = 4096


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


@dataclass(slots=True)
class Outcome:
    """What became of a blob; bytes of raw files freed, and of packs written for it."""

    blob: OptimizedBlob
    freed: int = 0
    written: int = 0


def first_span(model: recipes.Model) -> int:
    """Content of the first span."""
    return FAST_FIRST_SPAN if model.id in FAST else FIRST_SPAN


def decoder_for(model: recipes.Model) -> recipes.Decoder:
    """Gives the spans that suit a model."""
    return recipes.Decoder(max(SPAN, model.span), first_span(model))


class Stopped(Exception):
    """`Limits.stop` said so: the blob is as it was."""


class _GivenUp(Exception):
    """The blob is to be kept as it came."""

    def __init__(self, reason: str, encoder: str, cost: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.encoder = encoder
        self.cost = cost


def models_version() -> int:
    """Another number for other models: what they could not do is tried again then."""
    return zlib.crc32(",".join(str(model.id) for model in recipes.models()).encode())


def optimize_blob(
    storage: Storage, digest: str, limits: Limits, diff_id: str | None = None
) -> Outcome | None:
    """See the room's first lines. `diff_id`: what a config says of the layer. None for a blob that is
    not here or has no raw form. Raises Stopped, and what reading and writing raise."""
    turn = int(digest.partition(":")[2][:16], 16)
    with storage.put_lock(turn, storage.timeout), storage.operation() as op:
        found = op.find(digest)
        if found is None or found[1].raw is None:
            return None
        return _Work(op, *found, limits, diff_id).run()


def optimize(
    content: Content,
    blobs: Sequence[BlobInfo],
    *,
    max_corrections: float = MAX_CORRECTIONS,
    max_time: float | None = None,
    inflate_limit: int = DEFAULT_LIMIT,
    diff_ids: Mapping[str, str] = MappingProxyType({}),
    progress: ProgressCallback | None = None,
) -> tuple[list[Outcome], bool]:
    """Optimizes blobs, one after the other, each on all cores. False with it when `max_time` (seconds)
    ended it early: what is done stays, the rest is for the next one. `diff_ids`: what configs say."""
    total = 2 * sum(blob.bytes for blob in blobs)
    done = 0

    def tell(size: int) -> None:
        nonlocal done
        done = min(total, done + size)
        if progress is not None:
            progress(Progress("optimize", done, total))

    limits = Limits(max_corrections, inflate_limit, deadline(max_time), tell)
    out: list[Outcome] = []
    end = 0
    for blob in blobs:
        if limits.stop():
            return out, False
        end += 2 * blob.bytes
        try:
            outcome = optimize_blob(content.storage, blob.digest, limits, diff_ids.get(blob.digest))
        except Stopped:
            return out, False
        if outcome is not None:
            out.append(outcome)
        tell(end - done)
    return out, True


class _Work:
    """One blob."""

    def __init__(
        self, op: Operation, serial: int, row: BlobRow, limits: Limits, diff_id: str | None
    ) -> None:
        self._op = op
        self._storage = op.storage
        self._serial = serial
        self._row = row
        self._limits = limits
        self._diff_id = diff_id
        self._likely = ""

    def run(self) -> Outcome:
        row = self._row
        if "gzip" in row.forms:
            # Cut off between the proof and the end.
            return self._done(row.gzip)
        kept = self._why_not()
        if kept is None:
            self._storage.take_appended()
            try:
                form = self._take_in()
                self._prove(form)
            except _GivenUp as e:
                self._storage.take_appended()
                kept = Kept(e.encoder, e.reason, e.cost, models_version())
            except (InvalidInputError, LimitError) as e:
                self._storage.take_appended()
                kept = self._undecodable(e)
            else:
                return self._done(form)
            self._learn(kept)
        self._limits.tell(2 * row.size)
        blob = OptimizedBlob(row.digest, kept.encoder, row.size, 0, "raw", kept.reason)
        return Outcome(blob)

    # ---- what stays as it is ------------------------------------------------------------------

    def _why_not(self) -> Kept | None:
        """The reason not to try, if there is one."""
        row = self._row
        with BlobFile(self._storage, row.digest, self._op) as blob:
            start = blob.read(HEAD) or b""
            blob.seek(max(0, row.size - HEAD))
            end = blob.read(HEAD) or b""
        kind = compression_of(start)
        self._likely = row.made or likely_encoder(start, end)
        if kind != "gzip":
            reason = "zstd data is kept as it came" if kind == "zstd" else "it is not compressed"
            if kind == "zstd" and not row.inspected:
                self._look()
            return Kept(self._likely, reason, -1, 0)
        if row.inspected and row.problem is not None and row.inner_size < 0:
            return Kept(self._likely, row.problem, -1, 0)
        kept = row.kept
        if kept is None or kept.version != models_version():
            return None
        if 0 <= kept.cost <= self._limits.allowed(row.size):
            return None
        return kept

    def _undecodable(self, error: InvalidInputError | LimitError) -> Kept:
        """Damage is a finding: the blob is kept, and the row says where it ends to decode."""
        reason = f"the layer does not decode: {error.message}"
        if isinstance(error, LimitError):
            reason = error.message
        row = self._row
        if not row.inspected:
            self._look()
        if row.problem is not None and row.inner_size < 0 and isinstance(error, InvalidInputError):
            # What readers of its files are told, and the next run.
            reason = row.problem
        elif isinstance(error, InvalidInputError) and is_layer(row.media_type):
            self._storage.index.update(lambda tx: self._refuse(tx, reason))
            row.inspected, row.problem, row.inner_size = True, reason, -1
        return Kept(self._likely, reason, -1, models_version())

    def _refuse(self, tx: Write, reason: str) -> None:
        """What does not decode is no layer, also where an earlier look was content with it."""
        now = graph.blob_row(tx, self._serial)
        if now is None or (now.problem is not None and now.inner_size < 0):
            return
        if now.diff_id is not None:
            tx.delete(Table.LAYERS, to_key(now.diff_id) + serial_key(self._serial))
        now.diff_id, now.inner_size, now.inspected, now.problem = None, -1, True, reason
        tx.put(Table.BLOBS, serial_key(self._serial), now.to_bytes())

    def _look(self) -> None:
        """What is not known of the layer yet: its diff_id, or why it does not decode."""
        row = self._row
        if not is_layer(row.media_type):
            return
        wanted = Wanted(
            row.digest, None, row.media_type, self._diff_id, layer=True, limit=self._limits.inflate
        )
        with BlobFile(self._storage, row.digest, self._op) as blob:
            look_inside(blob.chunks(), row, wanted)
        self._op.learn(self._serial, row)

    def _learn(self, kept: Kept) -> None:
        row = self._row
        if not row.inspected:
            self._look()
        if kept.version == 0 or kept == row.kept:
            return
        row.kept = kept

        def work(tx: Write) -> None:
            now = graph.blob_row(tx, self._serial)
            if now is not None and "gzip" not in now.forms:
                now.kept, now.gzip = kept, None
                tx.put(Table.BLOBS, serial_key(self._serial), now.to_bytes())

        self._storage.index.update(work)

    # ---- the way in ---------------------------------------------------------------------------

    def _take_in(self) -> GzipForm:
        """Stores content and recipe; returns the form, which counts for nothing yet."""
        row, limits, storage = self._row, self._limits, self._storage
        with storage.operation() as op:
            with BlobFile(storage, row.digest, self._op) as blob:
                analysis = _Analysis(
                    storage.pool,
                    storage.workers,
                    self._watched(blob.chunks()),
                    row.size,
                    limits,
                    self._likely,
                    self._again,
                )
                try:
                    inner = self._ingest(op, analysis.content())
                except _GivenUp:
                    own = self._own_level()
                    if own is None:
                        raise
                    return self._take_in_own(own)
                finally:
                    analysis.close()
            return self._commit(op, inner, analysis.recipe())

    def _again(self) -> Iterator[memoryview]:
        """The blob once more."""
        with BlobFile(self._storage, self._row.digest, self._op) as blob:
            for piece in blob.chunks():
                if self._limits.stop():
                    raise Stopped
                yield piece

    def _ingest(self, op: Operation, content: Iterable[bytes | memoryview]) -> Staged:
        """The content, taken in as any blob is. Nothing is made from what is compressed itself."""
        media_type = self._row.media_type.removesuffix("+gzip").removesuffix(".gzip")
        wanted = Wanted(media_type=media_type, diff_id=self._diff_id)
        try:
            inner = ingest(op, content, wanted, None)
        except UnprovenError as e:
            raise _GivenUp(e.message, self._likely, -1) from e
        if inner.row.raw is not None:
            inner.settle(keep=False)
            raise _GivenUp("its content is compressed once more", self._likely, -1)
        return inner

    def _watched(self, pieces: Iterable[memoryview]) -> Iterator[memoryview]:
        for piece in pieces:
            if self._limits.stop():
                raise Stopped
            yield piece
            self._limits.tell(len(piece))

    def _commit(self, op: Operation, inner: Staged, recipe: bytes) -> GzipForm:
        stream = MetaStream(op)
        stream.write(recipe)
        kept, runs = stream.finish()
        form = GzipForm(inner.row.digest, regenerate.RECIPE, recipe=kept)
        outer = self._outer(inner, form)
        op.commit((inner, Staged(outer, [*runs, *kept.outer])))
        self._row.gzip = form
        return form

    def _outer(self, inner: Staged, form: GzipForm) -> BlobRow:
        """The blob's row with what is known now."""
        row = self._row
        algorithm = "sha256" if self._diff_id is None else self._diff_id.partition(":")[0]
        diff_id = next(d for d in inner.row.digests if d.startswith(f"{algorithm}:"))
        problem = row.problem
        if self._diff_id is not None and not row.inspected:
            problem = None
            if self._diff_id != diff_id:
                problem = f"the layer's diff_id is {diff_id}, the config says {self._diff_id}"
        # Of the content alone nothing is wrong.
        inner.row.problem = None
        return BlobRow(
            row.digest,
            row.size,
            row.media_type,
            gzip=form,
            diff_id=diff_id,
            problem=problem,
            inspected=True,
            inner_size=inner.row.size,
        )

    # ---- our own encoder ----------------------------------------------------------------------

    def _own_level(self) -> int | None:
        """The level, if our own encoder made the blob's beginning."""
        with BlobFile(self._storage, self._row.digest, self._op) as blob:
            start = blob.read(regenerate.HEADER_SIZE) or b""
            levels = [level for level in LEVELS if regenerate.header(level) == start]
            if not levels:
                return None
            blob.seek(0)
            content = bytearray()
            try:
                for piece in inflate(blob.chunks(), "gzip", DEFAULT_LIMIT):
                    content += piece
                    if len(content) > PIECE:
                        break
            except InvalidInputError:
                return None
            final = len(content) <= PIECE
            for level in levels:
                want = Encoder(level).piece(bytes(content[:PIECE]), 0, final)
                blob.seek(regenerate.HEADER_SIZE)
                at = 0
                while at < len(want):
                    got = blob.read(min(len(want) - at, FEED))
                    if not got or want[at : at + len(got)] != got:
                        break
                    at += len(got)
                else:
                    return level
        return None

    def _take_in_own(self, level: int) -> GzipForm:
        row, storage = self._row, self._storage
        with storage.operation() as op:
            with BlobFile(storage, row.digest, self._op) as blob:
                content = inflate(blob.chunks(), "gzip", self._limits.inflate)
                inner = self._ingest(op, content)
            op.commit((inner,))
            own = gzipped(op, BlobFile(storage, inner.row.digest, op), level, row.media_type, None)
            form = own.row.gzip
            if own.row.digest != row.digest or form is None:
                raise _GivenUp("only its beginning is of our own encoder", self._likely, -1)
            own.row = self._outer(inner, form)
            op.commit((own,))
            row.gzip = form
            return form

    # ---- the proof ----------------------------------------------------------------------------

    def _prove(self, form: GzipForm) -> None:
        """Makes the blob again, as any reader would."""
        try:
            with BlobFile(self._storage, self._row.digest, self._op, remade=True) as blob:
                for piece in blob.chunks():
                    if self._limits.stop():
                        raise Stopped
                    self._limits.tell(len(piece))
        except CorruptError as e:
            raise _GivenUp(
                f"its recipe does not give it back: {e.message}", self._encoder(form), -1
            ) from e

    def _done(self, form: GzipForm | None) -> Outcome:
        """The raw form goes."""
        assert form is not None
        row = self._row
        freed = drop_raw(self._storage, self._serial)
        written = self._storage.take_appended()
        result, reason = ("gzip", "") if freed else ("raw", "others were busy: to be tried again")
        blob = OptimizedBlob(
            row.digest, self._encoder(form), row.size, form.stream.size, result, reason
        )
        return Outcome(blob, freed, written)

    def _encoder(self, form: GzipForm) -> str:
        if form.recipe is None:
            return f"layerstore {form.level}"
        recipe = recipes.Recipe.from_bytes(self._storage.chunks.read_stream(form.recipe))
        return recipe.model.name


_Probe = tuple[recipes.Span, recipes.Span | None]
"""A span, and the one behind it."""


class _Analysis:
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
        """The content in order. Raises _GivenUp when the recipe gets too large, InvalidInputError for
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
                if self._choose_cuts():
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
            raise _GivenUp("no model of an encoder fits it", self._likely, -1)
        self._recipe = recipes.Recipe(best)
        return best

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

    def _too_much(self) -> _GivenUp:
        assert self._recipe is not None
        name = self._recipe.model.name
        share = 100 * self._cost / max(1, self._size)
        return _GivenUp(
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


__all__ = ["Limits", "Outcome", "Stopped", "optimize", "optimize_blob"]
