"""What the floors above see of blobs: put, have, open, name, and what refers to what.

A put of a digest that is known costs a look-up and, the first time, a lease row. Puts of one digest
by several processes take turns, so that the content is stored once.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from ..digest import parse, to_key
from ..errors import CorruptError, InvalidInputError, LayerstoreError, LimitError, NotFoundError
from ..storage import graph
from ..storage.index import Snapshot, Table, Write
from ..storage.operation import Fenced, Staged, read_ref, visible
from ..storage.operation import Operation as StorageOperation
from ..storage.rows import BlobRow, serial_key, to_number
from ..storage.storage import Storage
from ..values import BlobInfo, Edge, ProgressCallback, Ref
from .assemble import BlobFile
from .compress import gzipped, is_our_gzip, zstd_compressed, zstd_maker
from .inflate import DEFAULT_LIMIT
from .ingest import Reader, UnprovenError, Wanted, compare, ingest, is_layer, look_inside
from .landing import Landing

if TYPE_CHECKING:
    from .optimize import Outcome

RETRIES = 5


class Content:
    """One for each open store."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @contextlib.contextmanager
    def operation(self) -> Iterator[Operation]:
        """A context in which nothing that was found goes away."""
        op = self.storage.operation()
        try:
            yield Operation(self, op)
        finally:
            op.close()

    def open(self, digest: str, may_read: Callable[[Snapshot], bool] | None = None) -> BlobFile:
        """A blob as a binary file. Raises NotFoundError, also when `may_read` says no in the snapshot
        that finds it."""
        return BlobFile(self.storage, digest, may_read=may_read)

    def read(self, digest: str, limit: int, may_read: Callable[[Snapshot], bool]) -> bytes:
        """A small blob whole, its digest verified. Raises what `open` does, and LimitError past `limit`
        bytes."""
        with self.open(digest, may_read) as f:
            return _whole(f, limit)

    def optimize(
        self,
        blobs: Sequence[BlobInfo],
        *,
        inflate_limit: int,
        diff_ids: Mapping[str, str],
        progress: ProgressCallback | None,
    ) -> list[Outcome]:
        """Optimizes blobs that came compressed; `layers/optimize.py` says how."""
        from .optimize import optimize  # who never optimizes does not load it

        outcomes, _ = optimize(
            self, blobs, inflate_limit=inflate_limit, diff_ids=diff_ids, progress=progress
        )
        return outcomes

    def raw_blobs(self, roots: Iterable[str] | None = None) -> list[BlobInfo]:
        """The blobs that are kept as they came, or still are beside another form, the largest first; of
        all, or of those that some documents reach. Raises NotFoundError for a document."""
        with self.storage.index.read() as snapshot:
            serials: Iterable[int]
            if roots is None:
                serials = [to_number(key) for key, _ in snapshot.items(Table.BLOBS)]
            else:
                tops = []
                for digest in roots:
                    serial = graph.serial_of(snapshot, digest)
                    if serial is None:
                        raise NotFoundError(f"no blob {digest} in the store", digest=digest)
                    tops.append(serial)
                serials = graph.closure(snapshot, tops)
            rows = [graph.blob_row(snapshot, serial) for serial in serials]
            out = [
                _info(row.digest, row)
                for row in rows
                if row is not None
                and row.raw is not None
                and visible(self.storage, snapshot, row.digest)
            ]
        return sorted(out, key=lambda info: (-info.bytes, info.digest))


class Operation:
    """Puts and look-ups of one piece of work. Several threads may share it."""

    def __init__(self, content: Content, op: StorageOperation) -> None:
        self._content = content
        self._storage = content.storage
        self.op = op

    # ---- looking ------------------------------------------------------------------------------

    def have(self, digest: str) -> BlobInfo | None:
        """A blob that is here, whole. A yes is a promise: the session holds it from now on."""
        for _ in range(RETRIES):
            found = self.op.find(digest)
            if found is None:
                return None
            if self._storage.readonly or self.op.hold((found[0],)):
                return _info(digest, found[1])
        return None

    def stat(self, digest: str) -> BlobInfo | None:
        """The same without the promise, and of damaged blobs too."""
        with self._storage.index.read() as snapshot:
            found = visible(self._storage, snapshot, digest, damaged=True)
        return None if found is None else _info(digest, found[1])

    def inspect(self, digest: str, diff_id: str | None = None) -> BlobInfo:
        """A layer, looked into if it was not yet: its diff_id, or why it does not decode. `diff_id`:
        what a config says of it. Raises NotFoundError."""
        found = self.op.find(digest)
        if found is None:
            raise NotFoundError(f"no blob {digest} in the store", digest=digest)
        serial, row = found
        if row.diff_id is None and not row.inspected and row.raw is not None:
            wanted = Wanted(digest, None, row.media_type, diff_id, (), True, False, layer=True)
            with self.open(digest) as blob:
                look_inside(blob.chunks(), row, wanted)
            if not self._storage.readonly:
                self.op.learn(serial, row)
        return _info(digest, row)

    def have_layer(self, diff_id: str) -> tuple[str, ...]:
        """Digests of stored blobs that are known to decode to this tar."""
        prefix = to_key(diff_id)
        out = []
        with self._storage.index.read() as snapshot:
            for key, _ in snapshot.items(Table.LAYERS, prefix):
                row = graph.blob_row(snapshot, to_number(key[len(prefix) :]))
                if row is not None and visible(self._storage, snapshot, row.digest):
                    out.append(row.digest)
        return tuple(out)

    def edges(self, digest: str) -> tuple[Edge, ...]:
        """What a manifest names. Raises NotFoundError."""
        with self._storage.index.read() as snapshot:
            found = visible(self._storage, snapshot, digest, damaged=True)
            if found is None:
                raise NotFoundError(f"no blob {digest} in the store", digest=digest)
            return graph.edges_of(snapshot, found[0])

    def referrers(self, digest: str) -> list[str]:
        """Digests of the manifests whose subject is `digest`, sorted."""
        with self._storage.index.read() as snapshot:
            rows = [graph.blob_row(snapshot, s) for s in graph.referrers_of(snapshot, digest)]
            return sorted(
                r.digest
                for r in rows
                if r is not None and visible(self._storage, snapshot, r.digest)
            )

    # ---- putting ------------------------------------------------------------------------------

    def put(
        self,
        source: BinaryIO | bytes | Iterable[bytes] | Reader,
        *,
        digest: str | None = None,
        size: int | None = None,
        media_type: str = "application/octet-stream",
        diff_id: str | None = None,
        edges: Sequence[Edge] = (),
        inspect: bool = True,
        strict: bool = False,
        aliases: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
        limit: int = DEFAULT_LIMIT,
        verify: bool = False,
        later: bool = False,
    ) -> BlobInfo:
        """Stores a blob; durable, and held by the session, when it returns.

        A digest that is known is answered without reading, unless `verify` asks to compare all the
        same. Digest and size are verified while the source is read; what was read of it is dropped
        on any error. Raises DigestMismatchError, StoreFullError, and with `strict`
        InvalidInputError for a layer that does not decode. `later`: it will be optimized, gzip data is
        not to be looked into before."""
        for name in (*aliases, *((diff_id,) if diff_id else ()), *((digest,) if digest else ())):
            parse(name)
        wanted = Wanted(
            digest,
            size,
            media_type,
            diff_id,
            tuple(a for a in aliases if a != digest),
            inspect,
            strict,
            layer=diff_id is not None or is_layer(media_type),
            limit=limit,
            later=later,
        )
        if digest is None:
            return self._store(source, wanted, edges, progress)
        known = self._known(wanted, edges)
        if known is not None:
            if verify:
                compare(source, wanted, progress)
            return known
        turn = int.from_bytes(parse(digest)[1][:8], "big")
        with self._storage.put_lock(turn, self._storage.timeout):
            known = self._known(wanted, edges)
            if known is not None:
                if verify:
                    compare(source, wanted, progress)
                return known
            return self._store(source, wanted, edges, progress)

    def _known(self, wanted: Wanted, edges: Sequence[Edge]) -> BlobInfo | None:
        digest = wanted.digest
        if digest is None:
            return None
        found = self.op.find(digest)
        if found is None:
            found = self.op.revive(digest)
            if found is None:
                return None
        serial, row = found
        if wanted.size is not None and row.size != wanted.size:
            return None
        if any(alias not in row.digests for alias in wanted.aliases):
            return None
        if edges and self.edges(digest) != tuple(edges):
            return None
        if not self.op.hold((serial,)):
            return None
        if wanted.looks("gzip") and row.raw is not None and not row.inspected:
            self._look(digest, serial, row, wanted)
        problem = row.problem
        if wanted.diff_id is not None and row.diff_id is not None:
            # Who put it before may have named another diff_id; what counts is what is named now.
            problem = None
            if row.diff_id != wanted.diff_id:
                problem = f"the layer's diff_id is {row.diff_id}, the config says {wanted.diff_id}"
        if wanted.strict and problem is not None:
            raise InvalidInputError(f"{digest}: {problem}", digest=digest, reason=problem)
        row.problem = problem
        return _info(digest, row)

    def _look(self, digest: str, serial: int, row: BlobRow, wanted: Wanted) -> None:
        """The look inside that an earlier put left for later."""
        with self.open(digest) as blob:
            look_inside(blob.chunks(), row, wanted)
        self.op.learn(serial, row)

    def _store(
        self,
        source: object,
        wanted: Wanted,
        edges: Sequence[Edge],
        progress: Callable[[int], None] | None,
    ) -> BlobInfo:
        if isinstance(source, bytes | bytearray | memoryview):
            source = io.BytesIO(source)
        start = _position(source)
        try:
            staged = ingest(self.op, source, wanted, progress)
        except UnprovenError:
            # Never seen. What can be read again is kept literally; what cannot is refused.
            if start is None:
                raise
            source.seek(start)  # type: ignore[attr-defined]
            staged = ingest(self.op, source, replace(wanted, split=False), progress)
        staged.edges = tuple(edges)
        try:
            self._commit(staged)
        except BaseException:
            # An interrupt may come between the commit and here: what a row names stays.
            staged.settle(keep=self._is_named(staged))
            raise
        grown = staged.raw.size if staged.fresh and staged.raw is not None else 0
        grown += self._storage.take_appended()
        digest = wanted.digest if wanted.digest is not None else staged.row.digest
        return _info(digest, staged.row, new_bytes=grown)

    def _is_named(self, staged: Staged) -> bool:
        """Whether a committed row names the raw file; also when nobody can tell (gc takes it then)."""
        if staged.row.raw is None:
            return False
        try:
            with self._storage.index.read() as snapshot:
                return snapshot.get(Table.RAWS, serial_key(staged.row.raw)) is not None
        except LayerstoreError:
            return True

    def _commit(self, staged: Staged) -> None:
        try:
            self.op.commit((staged,))
        except Fenced as e:
            # What the blob was found to share was deleted although this operation's epoch should
            # have held it: a lock was lost. Nothing dangling is committed.
            raise LayerstoreError(
                f"{staged.row.digest}: content that it shares was deleted meanwhile ({e}): "
                "put it again",
                digest=staged.row.digest,
            ) from e

    def land(
        self,
        upload: Landing,
        digest: str | None,
        media_type: str,
        also: Callable[[Write, str], None] | None = None,
    ) -> BlobInfo:
        """An upload becomes a raw blob, without being written again. `also` goes into the same commit.
        Raises DigestMismatchError; the upload stays then."""
        staged, drop = upload.staged(self.op, digest, media_type)

        def work(tx: Write) -> None:
            drop(tx)
            if also is not None:
                also(tx, digest or staged.row.digest)

        try:
            self.op.commit((staged,), also=work)
        except BaseException:
            staged.settle(keep=self._is_named(staged))
            raise
        upload.landed()
        return _info(
            digest or staged.row.digest,
            staged.row,
            new_bytes=staged.row.size if staged.fresh else 0,
        )

    def put_document(
        self,
        data: bytes,
        digest: str,
        media_type: str,
        edges: Sequence[Edge],
        refs: Mapping[str, Ref],
        before: Callable[[Write], None],
        also: Callable[[Write], None],
    ) -> BlobInfo:
        """A manifest with its edges and names, and what `also` writes, in one commit; `before` sees the
        state that it changes, and may refuse. Raises DigestMismatchError, what those two raise, and
        InvalidInputError for a needed child that is not here."""
        wanted = Wanted(digest, len(data), media_type, None, (), False, False, layer=False)
        staged = ingest(self.op, io.BytesIO(data), wanted, None)
        staged.edges = tuple(edges)
        self.op.commit((staged,), refs=refs, before=before, also=also)
        return _info(digest, staged.row, new_bytes=self._storage.take_appended())

    # ---- compressing --------------------------------------------------------------------------

    def gzip(
        self,
        digest: str,
        level: int,
        media_type: str,
        progress: Callable[[int], None] | None = None,
    ) -> BlobInfo:
        """A stored blob, compressed by our own encoder: the same bytes for ever, kept as a recipe. Read
        it once from start to end before the operation ends: that proves the recipe, and until then it
        counts for nothing. Raises NotFoundError, CorruptError, InvalidInputError for a level."""
        inner = self.open(digest)
        name, diff_id = inner.row.digest, inner.row.diff_id
        if diff_id is not None:
            known = self._made(diff_id, lambda row: is_our_gzip(row, name, level))
            if known is not None:
                inner.close()
                return known
        staged = gzipped(self.op, inner, level, media_type, progress)
        self._commit(staged)
        return _info(staged.row.digest, staged.row, new_bytes=self._storage.take_appended())

    def zstd(
        self,
        pieces: Iterable[bytes | memoryview],
        diff_id: str,
        level: int,
        media_type: str,
    ) -> BlobInfo:
        """A layer's tar, compressed by the zstd library at hand, and kept as it comes out. The tar is
        not read when that library has made it at this level before. Raises what `pieces` raises."""
        made = zstd_maker(level)
        known = self._made(diff_id, lambda row: row.made == made)
        if known is not None:
            return known
        wanted = Wanted(media_type=media_type, diff_id=diff_id, layer=True, strict=True)
        staged = ingest(self.op, zstd_compressed(pieces, level), wanted, None)
        staged.row.made = made
        try:
            self._commit(staged)
        except BaseException:
            staged.settle(keep=self._is_named(staged))
            raise
        return _info(staged.row.digest, staged.row, new_bytes=self._storage.take_appended())

    def _made(self, diff_id: str, fits: Callable[[BlobRow], bool]) -> BlobInfo | None:
        """A layer with this content that was made here in the way that is asked for."""
        with self._storage.index.read() as snapshot:
            prefix = to_key(diff_id)
            rows = [
                graph.blob_row(snapshot, to_number(key[len(prefix) :]))
                for key, _ in snapshot.items(Table.LAYERS, prefix)
            ]
        for row in rows:
            if row is not None and fits(row):
                found = self.have(row.digest)
                if found is not None:
                    return found
        return None

    # ---- reading ------------------------------------------------------------------------------

    def open(self, digest: str, may_read: Callable[[Snapshot], bool] | None = None) -> BlobFile:
        """A blob as a binary file, to be closed before the operation ends. Raises NotFoundError, also
        when `may_read` says no in the snapshot that finds it."""
        return BlobFile(self._storage, digest, self.op, may_read)

    def read(
        self, digest: str, limit: int, may_read: Callable[[Snapshot], bool] | None = None
    ) -> bytes:
        """A small blob whole, its digest verified. Raises what `open` does, and LimitError past `limit`
        bytes."""
        with self.open(digest, may_read) as f:
            return _whole(f, limit)

    # ---- names --------------------------------------------------------------------------------

    def commit_refs(self, set: Mapping[str, Ref], remove: Iterable[str] = ()) -> None:
        """Names images, atomically and durably. Raises NotFoundError for a target or a name to be
        removed that is not there."""
        self.op.commit((), refs=set, remove=list(remove))

    def ref(self, name: str) -> Ref | None:
        with self._storage.index.read() as snapshot:
            value = snapshot.get(Table.REFS, name.encode())
        return None if value is None else read_ref(name, value)

    def refs(self) -> list[Ref]:
        """All names, sorted."""
        with self._storage.index.read() as snapshot:
            return [read_ref(k.decode(), v) for k, v in snapshot.items(Table.REFS)]

    def blobs(self) -> Iterator[BlobInfo]:
        """Every blob that is visible, in the order of their digests, one short snapshot a batch."""
        start = b""
        while True:
            batch: list[BlobInfo] = []
            with self._storage.index.read() as snapshot:
                for key, value in snapshot.items(Table.DIGESTS, start=start):
                    row = graph.blob_row(snapshot, to_number(value))
                    if row is None:
                        raise CorruptError(f"digest row {key.hex()} names a blob without a row")
                    if to_key(row.digest) == key and visible(
                        self._storage, snapshot, row.digest, damaged=True
                    ):
                        batch.append(_info(row.digest, row))
                    start = key + b"\0"
                    if len(batch) >= 500:
                        break
            if not batch:
                return
            yield from batch


def _position(source: object) -> int | None:
    """Where a source stands that can be read again from there; None for one that cannot."""
    try:
        return int(source.tell()) if source.seekable() else None  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None


def _info(digest: str, row: BlobRow, *, new_bytes: int = 0) -> BlobInfo:
    return BlobInfo(
        digest,
        row.size,
        row.media_type,
        row.forms,
        new_bytes=new_bytes,
        diff_id=row.diff_id,
        problem=row.problem,
    )


def _whole(f: BlobFile, limit: int) -> bytes:
    if f.size > limit:
        raise LimitError(
            f"blob {f.digest} has {f.size} bytes, more than the {limit} allowed here",
            digest=f.digest,
        )
    return b"".join(bytes(piece) for piece in f.chunks())
