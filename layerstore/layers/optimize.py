"""Compressed blobs that were kept as they came: their content is stored as any content is, and a recipe
takes the place of the file, once it is proven.

One pass over a blob: it is decoded to spans; the content goes through the usual way in, where what is
known is only named; the spans are analysed side by side in the pool, with the model of an encoder that
the first two of them were probed for. Content and recipe are committed together. Then the blob is made
again from what was committed, through the ordinary reader; if its digest is right, the raw form goes,
in one transaction (rule 20). Stopped anywhere, the blob is as it was, or has both forms.

What cannot be made again stays raw, and its row says why; it is not tried again with the same models.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from .analysis import FEED, MAX_CORRECTIONS, Analysis, GivenUp, Limits, Stopped
from .assemble import BlobFile
from .compress import gzipped
from .encoders import likely_encoder
from .inflate import DEFAULT_LIMIT, compression_of, inflate
from .ingest import MetaStream, UnprovenError, Wanted, ingest, is_layer, look_inside

if TYPE_CHECKING:
    from .content import Content

HEAD = 4096


@dataclass(slots=True)
class Outcome:
    """What became of a blob; bytes of raw files freed, and of packs written for it."""

    blob: OptimizedBlob
    freed: int = 0
    written: int = 0


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
            except GivenUp as e:
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
                analysis = Analysis(
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
                except GivenUp:
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
            raise GivenUp(e.message, self._likely, -1) from e
        if inner.row.raw is not None:
            inner.settle(keep=False)
            raise GivenUp("its content is compressed once more", self._likely, -1)
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
                raise GivenUp("only its beginning is of our own encoder", self._likely, -1)
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
            raise GivenUp(
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
        return recipes.model_of(self._storage.chunks.read_stream(form.recipe)).name


__all__ = ["Limits", "Outcome", "Stopped", "optimize", "optimize_blob"]
