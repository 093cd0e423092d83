"""One operation: its epoch, what it stages, and the commit that makes it visible.

An operation publishes the sequence that it starts from before it opens a snapshot; all that it finds
after that stays until it ends. What it puts, and what it tells somebody is there, is held by a lease
row of the handle's session in the same commit (rule 7). The commit checks again, inside its own write
transaction, whatever a collector could have deleted since the epoch (rule 6), and un-condemns what it
names (rule 5).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from ..digest import to_key
from ..errors import CorruptError, InvalidInputError, NotFoundError
from ..values import Edge, Ref
from . import graph, placing, reclaim
from .condemned import is_hidden
from .index import MAX_KEYS, Snapshot, Table, Write
from .leases import hold_key
from .raws import RawWriter
from .rows import BlobRow, GzipForm, RawRow, Runs, dump, serial_key
from .sink import Batch, Sink, chunk_rows

if TYPE_CHECKING:
    from .storage import Storage

LAST_DELETE = b"last_delete"
T = TypeVar("T")


@dataclass(slots=True)
class Staged:
    """A blob whose bytes are written and whose rows are not committed yet. `runs`: every chunk
    number that it names. `serial` and `fresh` are filled in by the commit."""

    row: BlobRow
    runs: Runs = field(default_factory=list)
    edges: tuple[Edge, ...] = ()
    raw: RawRow | None = None
    writer: RawWriter | None = None
    serial: int = 0
    fresh: bool = False

    def settle(self, *, keep: bool) -> None:
        """After the commit, or instead of it: lets the raw file go, to stay or to be unlinked."""
        if self.writer is not None:
            if keep:
                self.writer.close()
            else:
                self.writer.discard()
            self.writer = None


class Fenced(Exception):
    """Something that a commit names was deleted since its epoch: the work is to be done again."""


class Operation:
    """Use as a context manager; several threads may share it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        with storage.index.read() as snapshot:
            sequence = snapshot.sequence
        self._token = storage.session.begin(sequence)
        self._sink: Sink | None = None
        self._making = threading.Lock()
        self._closed = False

    def __enter__(self) -> Operation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops what was staged and not committed, and withdraws the epoch."""
        if not self._closed:
            self._closed = True
            if self._sink is not None:
                self._sink.close()
            self.storage.session.end(self._token)

    @property
    def epoch(self) -> int:
        return int(self.storage.session.epoch(self._token))

    def renew(self, sequence: int) -> None:
        """Moves the epoch to a snapshot in which what is still needed was seen live (rule 3)."""
        self.storage.session.renew(self._token, sequence)

    @property
    def sink(self) -> Sink:
        """Where new chunks go. Made on first use: only writers hold packs."""
        with self._making:
            if self._sink is None:
                self._sink = self.storage.make_sink()
            return self._sink

    # ---- looking ------------------------------------------------------------------------------

    def find(self, digest: str) -> tuple[int, BlobRow] | None:
        """A blob that is visible and whole: `(serial, row)`. Promises nothing; see `hold`."""
        with self.storage.index.read() as snapshot:
            return visible(self.storage, snapshot, digest)

    def hold(self, serials: Iterable[int]) -> bool:
        """Makes "we have that" a promise: a row of the session, committed when this returns.

        False if one of them was deleted meanwhile."""
        wanted = list(serials)
        storage = self.storage
        with storage.index.read() as snapshot:
            missing = [s for s in wanted if not storage.is_held(snapshot, s)]
        if not missing:
            return True

        def work(tx: Write) -> bool:
            if any(tx.get(Table.BLOBS, serial_key(s)) is None for s in missing):
                return False
            self.hold_in(tx, missing)
            return True

        return storage.index.update(work)

    def hold_in(self, tx: Write, serials: Sequence[int]) -> None:
        """The same, as part of a transaction that has seen that they are there."""
        self._revive(tx, serials)
        for serial in serials:
            self._hold(tx, serial)

    def known(self, tx: Write, digest: str) -> tuple[int, BlobRow]:
        """A whole blob that a transaction is to name, condemned or not. Raises NotFoundError."""
        serial = graph.serial_of(tx, digest)
        row = None if serial is None else graph.blob_row(tx, serial)
        if serial is None or row is None or not is_whole(tx, serial, row):
            raise NotFoundError(f"no blob {digest} in the store", digest=digest)
        return serial, row

    def _hold(self, tx: Write, serial: int) -> None:
        for lease in self.storage.holders(tx):
            tx.put(Table.HOLDS, hold_key(lease, serial), b"")

    def _revive(self, tx: Write, serials: Iterable[int]) -> None:
        """Un-condemns what is named, and its closure."""
        condemned = self.storage.condemned(tx)
        if condemned is None:
            return
        hidden = [s for s in serials if is_hidden(tx, condemned, s)]
        for serial in graph.closure(tx, hidden) if hidden else ():
            if condemned.has_blob(serial):
                tx.put(Table.REVIVED, serial_key(serial), b"")

    def revive(self, digest: str) -> tuple[int, BlobRow] | None:
        """Un-condemns a blob that is hidden but still whole, and holds it; None if there is none."""

        def work(tx: Write) -> tuple[int, BlobRow] | None:
            serial = graph.serial_of(tx, digest)
            row = None if serial is None else graph.blob_row(tx, serial)
            if serial is None or row is None or not is_whole(tx, serial, row):
                return None
            self._revive(tx, (serial,))
            self._hold(tx, serial)
            return serial, row

        return self.storage.index.update(work)

    def keep(self, digests: Iterable[str], work: Callable[[Write], T]) -> T:
        """Runs `work` in a transaction whose rows name blobs, which are looked at again in it, and
        un-condemned. Raises NotFoundError for one that is gone."""

        def whole(tx: Write) -> T:
            serials = []
            for digest in digests:
                serial = graph.serial_of(tx, digest)
                if serial is None or tx.get(Table.BLOBS, serial_key(serial)) is None:
                    raise NotFoundError(f"no blob {digest} in the store", digest=digest)
                serials.append(serial)
            self._revive(tx, serials)
            return work(tx)

        return self.storage.index.update(whole)

    # ---- committing ---------------------------------------------------------------------------

    def relieve(self) -> None:
        """Commits the rows of chunks that are new when there are many, so that neither memory nor
        the last transaction grows with the size of a layer (rule 12)."""
        sink = self._sink
        if sink is None or sink.waiting() < MAX_KEYS:
            return
        with sink.lock:
            if sink.waiting() >= MAX_KEYS:
                self._commit_slices(sink, keep=0)

    def _commit_slices(
        self, sink: Sink, keep: int
    ) -> tuple[list[Batch], list[tuple[bytes, bytes]]]:
        """Flushes and syncs; commits rows in slices until at most `keep` keys are left.

        Returns what is left. File rows go last: they name chunks that must be there."""
        sink.flush()
        sink.writer.sync()
        ready, files = sink.take()
        left = sum(b.place.count for b in ready)
        while ready and left > keep:
            part: list[Batch] = []
            keys = 0
            while ready and (not part or keys + ready[0].place.count < MAX_KEYS):
                keys += ready[0].place.count
                part.append(ready.pop(0))
            left -= keys
            late: list[tuple[bytes, bytes]] = [] if ready else files

            def work(
                tx: Write, part: list[Batch] = part, late: list[tuple[bytes, bytes]] = late
            ) -> None:
                sink.writer.rows(tx)
                self._put_rows(tx, part, late)

            try:
                self.storage.index.update(work)
            except BaseException:
                sink.give_back([*part, *ready], files)
                raise
            if late:
                files = []
        if keep == 0:
            sink.writer.committed()
            sink.committed()
        return ready, files

    def _put_rows(
        self, tx: Write, ready: Sequence[Batch], files: Iterable[tuple[bytes, bytes]]
    ) -> None:
        rows: list[tuple[bytes, bytes]] = []
        for batch in ready:
            if batch.healed:
                placing.replace(tx, batch.place)
                placing.heal(tx, batch.place)
            else:
                tx.put(Table.BLOCKS, *batch.place.pack_row())
                rows += chunk_rows(batch)
        rows.sort()
        if rows and not tx.put_new(Table.CHUNKS, rows):
            placing.settle(tx, self.storage, rows)
        for key, value in files:
            tx.put(Table.FILES, key, value)

    def commit(
        self,
        staged: Sequence[Staged] = (),
        *,
        refs: Mapping[str, Ref] | None = None,
        remove: Iterable[str] = (),
        before: Callable[[Write], None] | None = None,
        also: Callable[[Write], None] | None = None,
    ) -> None:
        """Makes staged blobs, refs and what `also` writes visible, atomically and durably. `before` is
        called first in the same transaction: what it raises ends the commit.

        A digest that became known meanwhile keeps its first blob; the staged one is dropped.
        Raises Fenced when something named was deleted, NotFoundError for a ref to nothing."""
        sink = self._sink
        if sink is None:
            self.storage.index.update(
                lambda tx: self._work(tx, staged, refs or {}, remove, None, [], (), before, also)
            )
        else:
            with sink.lock:
                sink.check()
                ready, files = self._commit_slices(sink, keep=MAX_KEYS)
                try:
                    self.storage.index.update(
                        lambda tx: self._work(
                            tx, staged, refs or {}, remove, sink, ready, files, before, also
                        )
                    )
                except BaseException:
                    sink.give_back(ready, files)
                    raise
                sink.writer.committed()
                sink.committed()
        for blob in staged:
            blob.settle(keep=blob.fresh)

    def _work(
        self,
        tx: Write,
        staged: Sequence[Staged],
        refs: Mapping[str, Ref],
        remove: Iterable[str],
        sink: Sink | None,
        ready: list[Batch],
        files: Iterable[tuple[bytes, bytes]],
        before: Callable[[Write], None] | None,
        also: Callable[[Write], None] | None,
    ) -> None:
        if before is not None:
            before(tx)
        if sink is not None:
            sink.writer.rows(tx)
            self._put_rows(tx, ready, files)
        careful = tx.meta(LAST_DELETE) > self.epoch
        for blob in staged:
            self._put_blob(tx, blob, careful)
        for name in remove:
            if not tx.delete(Table.REFS, name.encode()):
                raise NotFoundError(f"no image {name}")
        targets: list[int] = []
        for name, ref in refs.items():
            serial = graph.serial_of(tx, ref.digest)
            if serial is None:
                raise NotFoundError(
                    f"cannot name {name}: blob {ref.digest} is not in the store", digest=ref.digest
                )
            targets.append(serial)
            value = {"digest": ref.digest, "size": ref.size, "type": ref.media_type}
            tx.put(Table.REFS, name.encode(), dump(value))
        if targets:
            self._revive(tx, targets)
            # What a ref reaches needs no row of the session any more (rule 7).
            session = bytes.fromhex(self.storage.session.id)
            for serial in graph.closure(tx, targets):
                tx.delete(Table.HOLDS, hold_key(session, serial))
        if also is not None:
            also(tx)

    def _put_blob(self, tx: Write, blob: Staged, careful: bool) -> None:
        row = blob.row
        if careful and not placing.all_there(tx, blob.runs):
            raise Fenced(row.digest)
        # By any of its digests: one content is kept once, whatever it is called.
        known = next((s for d in row.digests if (s := graph.serial_of(tx, d)) is not None), None)
        old = None if known is None else graph.blob_row(tx, known)
        if row.gzip is not None and graph.serial_of(tx, row.gzip.inner) is None:
            raise Fenced(row.digest)
        if known is not None and old is not None and is_whole(tx, known, old):
            blob.serial, blob.fresh = known, False
            self._learn(tx, known, old, row)
            self._put_edges(tx, blob, careful)
            self._revive(tx, (known,))
            self._hold(tx, known)
            return
        blob.fresh = True
        blob.serial = known if known is not None else tx.draw(b"next_blob")
        if old is not None:
            # Put again over damage: what was known of it beside its bytes stays.
            names = dict.fromkeys((*row.digests, *old.digests))
            row.aliases = tuple(names)[1:]
            row.diff_id = row.diff_id if row.diff_id is not None else old.diff_id
            if old.raw is not None and old.raw != row.raw:
                tx.delete(Table.RAWS, serial_key(old.raw))
        key = serial_key(blob.serial)
        tx.put(Table.BLOBS, key, row.to_bytes())
        tx.delete(Table.DAMAGE, b"b" + key)
        for digest in row.digests:
            tx.put(Table.DIGESTS, to_key(digest), key)
        if row.diff_id is not None:
            tx.put(Table.LAYERS, to_key(row.diff_id) + key, b"")
        if blob.raw is not None and row.raw is not None:
            tx.put(Table.RAWS, serial_key(row.raw), blob.raw.to_bytes())
        self._put_edges(tx, blob, careful)
        self._revive(tx, (blob.serial,))
        self._hold(tx, blob.serial)

    def _put_edges(self, tx: Write, blob: Staged, careful: bool) -> None:
        """What a manifest names, and what it refers to. A blob that was put as plain bytes before
        learns them when it comes as a manifest."""
        row, key = blob.row, serial_key(blob.serial)
        if not blob.edges:
            return
        tx.put(Table.EDGES, key, graph.encode_edges(blob.edges))
        named = []
        for edge in blob.edges:
            if edge.kind == "subject":
                tx.put(Table.SUBJECTS, to_key(edge.digest) + key, b"")
                continue
            child = graph.serial_of(tx, edge.digest)
            if child is not None:
                named.append(child)
            elif edge.kind == "child":
                if careful:
                    raise Fenced(edge.digest)
                raise InvalidInputError(
                    f"manifest {row.digest} names {edge.digest}, which is not in the store",
                    digest=edge.digest,
                )
        self._revive(tx, named)

    @staticmethod
    def _learn(tx: Write, serial: int, old: BlobRow, new: BlobRow) -> None:
        """A known blob that came again may bring what was not known of it: aliases, a diff_id."""
        changed = False
        key = serial_key(serial)
        for digest in new.digests:
            if digest not in old.digests:
                old.aliases = (*old.aliases, digest)
                tx.put(Table.DIGESTS, to_key(digest), key)
                changed = True
        if old.media_type == "application/octet-stream" != new.media_type:
            old.media_type = new.media_type
            changed = True
        if new.diff_id is not None and old.diff_id is None:
            old.diff_id = new.diff_id
            tx.put(Table.LAYERS, to_key(new.diff_id) + key, b"")
            changed = True
        if new.made is not None and old.made is None:
            old.made = new.made
            changed = True
        if new.inspected and not old.inspected:
            old.inspected, old.problem, old.inner_size = True, new.problem, new.inner_size
            changed = True
        if new.gzip is not None and (old.gzip is None or not old.gzip.proven):
            old.gzip = new.gzip
            changed = True
        if new.kept is not None and new.kept != old.kept:
            old.kept = new.kept
            changed = True
        if changed:
            tx.put(Table.BLOBS, key, old.to_bytes())

    def learn(self, serial: int, row: BlobRow) -> None:
        """Records what was found out about a stored blob: its diff_id, or why it does not decode."""

        def work(tx: Write) -> None:
            old = graph.blob_row(tx, serial)
            if old is not None:
                self._learn(tx, serial, old, row)

        self.storage.index.update(work)


def is_damaged(snapshot: Snapshot, serial: int) -> bool:
    """Whether damage to the blob is on record: known means whole (rule 18)."""
    return snapshot.get(Table.DAMAGE, b"b" + serial_key(serial)) is not None


def is_whole(snapshot: Snapshot, serial: int, row: BlobRow) -> bool:
    """Whether a blob can be made: no damage on record, of what it is made from neither, and a form that
    counts."""
    if is_damaged(snapshot, serial):
        return False
    forms = row.forms
    if row.gzip is None or forms != ("gzip",):
        return bool(forms)
    inner = graph.serial_of(snapshot, row.gzip.inner)
    return inner is not None and not is_damaged(snapshot, inner)


def prove(storage: Storage, serial: int, form: GzipForm) -> None:
    """Lets a gzip form count. It was rebuilt from committed rows, through the ordinary reader, and its
    digest was right (rule 20); this looks again whether the blob still has it, undamaged."""

    def work(tx: Write) -> None:
        row = graph.blob_row(tx, serial)
        inner = graph.serial_of(tx, form.inner)
        if row is None or row.gzip != form or inner is None:
            return
        if not is_damaged(tx, serial) and not is_damaged(tx, inner):
            row.gzip = replace(form, proven=True)
            tx.put(Table.BLOBS, serial_key(serial), row.to_bytes())

    storage.index.update(work)


def drop_raw(storage: Storage, serial: int) -> int:
    """Takes the raw form from a blob whose gzip form is proven and whole, in one transaction, then its
    file. Returns the bytes that this frees, 0 when the raw form has to stay. Whoever reads the file
    goes on; whoever was about to looks the blob up again."""

    def work(tx: Write) -> tuple[int, int]:
        row = graph.blob_row(tx, serial)
        if row is None or row.raw is None or row.gzip is None or not row.gzip.proven:
            return 0, 0
        inner = graph.serial_of(tx, row.gzip.inner)
        made_from = None if inner is None else graph.blob_row(tx, inner)
        if (
            inner is None
            or made_from is None
            or is_damaged(tx, serial)
            or not is_whole(tx, inner, made_from)
        ):
            return 0, 0
        raw, key = row.raw, serial_key(row.raw)
        value = tx.get(Table.RAWS, key)
        size = 0 if value is None else RawRow.parse(value).size
        row.raw = None
        tx.put(Table.BLOBS, serial_key(serial), row.to_bytes())
        tx.delete(Table.RAWS, key)
        tx.delete(Table.META, graph.CHECKED + b"r" + key)
        return raw, size

    raw, size = storage.index.update(work)
    if raw:
        reclaim.reclaim_raw(storage, raw)
    return size


def visible(
    storage: Storage, snapshot: Snapshot, digest: str, *, damaged: bool = False
) -> tuple[int, BlobRow] | None:
    """A blob by digest, unless it is condemned or (without `damaged`) known to be damaged, or has no
    form that is proven."""
    serial = graph.serial_of(snapshot, digest)
    if serial is None or is_hidden(snapshot, storage.condemned(snapshot), serial):
        return None
    row = graph.blob_row(snapshot, serial)
    if row is None:
        raise CorruptError(f"digest {digest} names blob {serial}, which has no row", digest=digest)
    return (serial, row) if damaged or is_whole(snapshot, serial, row) else None


def present(op: Operation, snapshot: Snapshot, digest: str) -> tuple[int, BlobRow] | None:
    """A blob by digest as an operation may see it: what was condemned after it began stays open to
    it, what was condemned before does not."""
    serial = graph.serial_of(snapshot, digest)
    row = None if serial is None else graph.blob_row(snapshot, serial)
    if serial is None or row is None:
        return None
    condemned = op.storage.condemned(snapshot)
    before = condemned is not None and condemned.sequence <= op.epoch
    if before and is_hidden(snapshot, condemned, serial):
        return None
    return serial, row


def read_ref(name: str, value: bytes) -> Ref:
    """A ref from its row."""
    v = json.loads(value)
    return Ref(name, v["digest"], v["size"], v["type"])
