"""The steps of the model, taken by the real storage: several handles in one process, step by step.

Workers and the reader call the storage's own methods, one for each step. The collector's methods run
whole, in a thread that stops before each of its transactions until it is told to go on; the thread
is a coroutine, never two things run at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import commit_protocol as model

from layerstore.core.hashing import blake3
from layerstore.digest import digest_of
from layerstore.errors import NotFoundError
from layerstore.layers.assemble import BlobFile
from layerstore.storage import gc as collector
from layerstore.storage import graph, placing, sessions
from layerstore.storage.condemned import CondemnedFiles, is_hidden
from layerstore.storage.index import Table
from layerstore.storage.leases import hold_key
from layerstore.storage.operation import Fenced, Operation, Staged
from layerstore.storage.rows import BlobRow, Runs, decode_runs
from layerstore.storage.storage import Storage, open_storage
from layerstore.values import Ref

REF = "image"


class Died(BaseException):
    """Unwinds the collector's thread where its process would have ended."""


class Stepped:
    """A function that runs in a thread from one `pause` to the next."""

    def __init__(self, body: Callable[[], None]) -> None:
        self._body = body
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._dying = False
        self.at = ""
        self.ended = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._wait()

    def _run(self) -> None:
        try:
            self.pause("mark")
            self._body()
        except Died:
            pass
        except BaseException as e:
            self.error = e
        self.ended = True
        self.at = ""
        self._stopped.release()

    def _wait(self) -> None:
        if not self._stopped.acquire(timeout=30):
            raise AssertionError(f"the collector hangs at {self.at}")
        if self.error is not None:
            raise self.error

    def pause(self, at: str) -> None:
        """Called by the body: it goes on when it is told to."""
        if threading.current_thread() is not self._thread:
            return
        self.at = at
        self._stopped.release()
        self._go.acquire()
        if self._dying:
            raise Died

    def go(self) -> None:
        """To the next pause, or to the end."""
        self._go.release()
        self._wait()

    def die(self) -> None:
        if not self.ended:
            self._dying = True
            self.go()


class Worker:
    """One handle, and what it is at."""

    def __init__(self, path: str, data: bytes) -> None:
        self.storage = open_storage(path, timeout=10.0)
        self.data = data
        self.digest = digest_of(data)
        self.op: Operation | None = None
        self.file: BlobFile | None = None
        self.staged: Staged | None = None
        self.sequence = 0
        self.serial = 0
        self.answer: object = None

    def read_sequence(self) -> None:
        with self.storage.index.read() as snapshot:
            self.sequence = snapshot.sequence

    def publish_epoch(self) -> None:
        begin = self.storage.session.begin
        # `Operation` reads the sequence and publishes it: here others came in between.
        self.storage.session.begin = lambda _: begin(self.sequence)
        try:
            self.op = self.storage.operation()
        finally:
            del self.storage.session.begin
        assert self.op.epoch == self.sequence

    def lookup(self) -> bool:
        assert self.op is not None
        found = self.op.find(self.digest)
        if found is not None:
            self.serial = found[0]
        return found is not None

    def lookup_to_read(self) -> bool:
        op = self.op
        assert op is not None
        self.storage.operation = lambda: op  # type: ignore[method-assign]
        # A reader that finds nothing ends its operation at once; here that is a step of its own.
        op.close = lambda: None  # type: ignore[method-assign]
        try:
            self.file = BlobFile(self.storage, self.digest)
        except NotFoundError:
            return False
        finally:
            del self.storage.operation  # type: ignore[method-assign]
            del op.close  # type: ignore[method-assign]
        return True

    def hold(self) -> bool:
        assert self.op is not None
        return self.op.hold((self.serial,))

    def revive(self) -> bool:
        assert self.op is not None
        return self.op.revive(self.digest) is not None

    def lookup_chunk(self) -> Runs:
        assert self.op is not None
        piece = (0, len(self.data), 1, blake3(self.data))
        runs = self.op.sink.add(memoryview(self.data), [piece])
        row = BlobRow(self.digest, len(self.data), "text/plain")
        row.plain = self.op.sink.stream(runs, len(self.data))
        self.staged = Staged(row, runs)
        return runs

    def commit(self) -> bool:
        assert self.op is not None
        assert self.staged is not None
        try:
            self.op.commit((self.staged,))
        except Fenced:
            return False
        return True

    def commit_ref(self) -> bool:
        assert self.op is not None
        ref = Ref(REF, self.digest, len(self.data), "text/plain")
        try:
            self.op.commit((), refs={REF: ref})
        except NotFoundError:
            return False
        return True

    def remove_ref(self) -> None:
        with contextlib.suppress(NotFoundError), self.storage.operation() as op:
            op.commit((), remove=(REF,))

    def renew(self) -> bool:
        assert self.file is not None
        assert self.op is not None
        seen: list[int] = []
        self.op.renew = seen.append  # type: ignore[method-assign]
        try:
            self.file._renew()
        finally:
            del self.op.renew  # type: ignore[method-assign]
        if seen:
            self.sequence = seen[0]
        return bool(seen)

    def publish_renewed(self) -> None:
        assert self.op is not None
        self.op.renew(self.sequence)

    def read(self) -> None:
        if self.file is not None:
            assert self.file.readall() == self.data
        self.withdraw_epoch()

    def withdraw_epoch(self) -> None:
        if self.file is not None:
            self.file.close()
        elif self.op is not None:
            self.op.close()

    def close(self) -> None:
        self.storage.close()

    def die(self) -> None:
        """The locks go, as with the process; the rows and the session's file stay."""
        if self.op is not None and self.op._sink is not None:
            self.op._sink.writer.close()
        self.storage.session._lock.release()

    def lose_lock(self) -> None:
        fcntl.flock(self.storage.session._lock.fd, fcntl.LOCK_UN)


class Real:
    """A store in the state in which a walk begins, and all who take part."""

    def __init__(self, path: str, start: model.World, data: bytes) -> None:
        self.data = data
        self.digest = digest_of(data)
        self.chunk = 0
        self._prepare(path, start)
        self.workers = [Worker(path, data) for _ in start.actors]
        self.watch = open_storage(path, timeout=10.0)
        self.gc_storage = open_storage(path, timeout=10.0)
        self.gc: Stepped | None = None

    def _prepare(self, path: str, start: model.World) -> None:
        first = Worker(path, self.data)
        first.read_sequence()
        first.publish_epoch()
        runs = first.lookup_chunk()
        ((self.chunk, _),) = runs
        assert first.op is not None
        if start.db.blob:
            assert first.commit()
        else:
            first.op._commit_slices(first.op.sink, keep=0)
        if start.db.ref:
            assert first.commit_ref()
        first.withdraw_epoch()
        first.close()

    # ---- the collector --------------------------------------------------------------------------

    def _collect(self) -> None:
        storage = self.gc_storage
        run = collector._Run(storage, lambda: False, None)
        with storage.index.read() as snapshot:
            waiting = storage.condemned(snapshot)
        if waiting is None:
            if not run._condemn():
                return
            with storage.index.read() as snapshot:
                waiting = storage.condemned(snapshot)
            assert waiting is not None
        self._pause("ask")
        assert run._delete(waiting)

    def _pause(self, at: str) -> None:
        if self.gc is not None:
            self.gc.pause(at)

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        """Stops the collector before its transactions, and before the look that follows the epochs."""
        index = self.gc_storage.index
        update, read, live = index.update, index.read, sessions.live
        asked = False

        def stepped_update(work: Callable[[Any], Any]) -> Any:
            names = getattr(work, "__code__", None)
            used = names.co_names if names is not None else ()
            if work == CondemnedFiles.clear:
                self._pause("clear")
            elif "_delete_blobs" in used:
                self._pause("delete_blobs")
            elif "_delete_numbers" in used:
                self._pause("delete_numbers")
            else:
                self._pause("condemn")
            return update(work)

        def stepped_live(directory: str) -> tuple[dict[str, int], list[str]]:
            nonlocal asked
            asked = True
            return live(directory)

        def stepped_read() -> Any:
            nonlocal asked
            if asked:
                asked = False
                self._pause("look")
            return read()

        index.update, index.read = stepped_update, stepped_read  # type: ignore[method-assign]
        sessions.live = stepped_live
        try:
            yield
        finally:
            sessions.live = live
            del index.update, index.read  # type: ignore[method-assign]

    def collect(self, step: str) -> None:
        """One step of the collector; nothing, where it has nothing to do in that step."""
        if step == "die":
            if self.gc is not None:
                self.gc.die()
            self.gc = None
            return
        if self.gc is None:
            self.gc = Stepped(self._collect)
        if self.gc.at == step:
            with self._hooks():
                self.gc.go()

    # ---- what is seen ---------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """What the model says of its database, read from the real one."""
        with self.watch.index.read() as snapshot:
            serial = graph.serial_of(snapshot, self.digest)
            condemned = self.watch.condemned(snapshot)
            row = None if serial is None else graph.blob_row(snapshot, serial)
            names = False
            if row is not None and row.plain is not None:
                runs = decode_runs(row.plain.list)
                names = any(f <= self.chunk < f + n for f, n in runs)
            held = []
            for worker in self.workers:
                key = hold_key(bytes.fromhex(worker.storage.session.id), serial or 0)
                held.append(snapshot.get(Table.HOLDS, key) is not None)
            out: dict[str, object] = {
                "blob": row is not None,
                "names": names,
                "chunk": placing.place_of(snapshot, self.chunk) is not None,
                "ref": snapshot.get(Table.REFS, REF.encode()) is not None,
                "condemned": condemned is not None,
                "hidden": serial is not None and is_hidden(snapshot, condemned, serial),
                "held": tuple(held),
            }
        if condemned is not None:
            epochs, _ = sessions.live(os.path.join(self.watch.path, "sessions"))
            out["waits"] = min(epochs.values()) < condemned.sequence
        return out

    def close(self) -> None:
        if self.gc is not None:
            with self._hooks():
                self.gc.die()
        for worker in self.workers:
            if worker.op is not None:
                with contextlib.suppress(OSError):
                    worker.op.close()
        for storage in (*(w.storage for w in self.workers), self.watch, self.gc_storage):
            storage.close()


def expected(w: model.World) -> dict[str, object]:
    """The same of the model."""
    db = w.db
    out: dict[str, object] = {
        "blob": db.blob != 0,
        "names": db.blob != 0 and db.names,
        "chunk": db.chunk,
        "ref": db.ref,
        "condemned": db.T != 0,
        "hidden": model.hidden(db),
        "held": tuple(h and db.blob != 0 for h in db.held),
    }
    if db.T:
        out["waits"] = any(a.lock and a.E < db.T for a in w.actors)
    return out


def replay(real: Real, start: model.World, walk: list[model.Label]) -> None:
    """Takes the steps of a walk in the model and in the storage; they must agree after each."""
    world = start
    taken: list[str] = []
    for label in walk:
        who, step = label
        after = dict(model.moves(world, model.ALL))[label]
        taken.append(f"{who} {step}")
        told = "; ".join(taken)
        if who == "gc":
            real.collect(step)
        else:
            number = model.NAMES.index(who)
            _work(real, number, step, world, after, told)
        world = after
        if world.gc.step == "ask" and world.gc.asked:
            continue
        got, want = real.state(), expected(world)
        assert got == want, f"after {told}"


def _work(
    real: Real, number: int, step: str, before: model.World, after: model.World, told: str
) -> None:
    worker = real.workers[number]
    was, now = before.actors[number], after.actors[number]
    if step == "lookup" and was.program == "reader":
        assert worker.lookup_to_read() == (now.step == "renew"), told
        return
    got = getattr(worker, step)()
    if step == "lookup":
        assert got == (now.step in ("hold", "commit_ref")), told
    elif step == "revive":
        assert got == (now.step != "lookup_chunk"), told
    elif step == "lookup_chunk":
        assert (got == [(real.chunk, 1)]) == now.hit, told
    elif step == "renew":
        assert got == (now.step == "publish_renewed"), told
    elif step in ("hold", "commit"):
        tags = was.program == "put_and_tag"
        assert got == (now.step == "commit_ref" if tags else now.owed), told
    elif step == "commit_ref":
        assert got == after.db.ref, told


__all__ = ["Real", "Storage", "replay"]
