"""A store against a dictionary: whatever anybody does, what is reachable is there byte for byte, and
after a gc what is not is gone."""

from __future__ import annotations

import shutil
import tempfile

import stores
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from layerstore.errors import NotFoundError
from layerstore.layers.content import Content, Operation
from layerstore.storage import gc
from layerstore.storage.rebuild import rebuild
from layerstore.storage.storage import open_storage
from layerstore.values import Edge, Ref

FILES = [stores.words(i, n) for i, n in enumerate((10, 700, 5000, 20_000, 70_000, 300_000))]


def make_blob(kind: int, parts: tuple[int, ...]) -> tuple[bytes, str]:
    tar = stores.tar_of({f"f{i}": FILES[p] for i, p in enumerate(parts)})
    if kind == 0:
        return tar, stores.TAR
    if kind == 1:
        return stores.gzipped(tar), stores.TAR_GZIP
    if kind == 2:
        return b"".join(FILES[p] for p in parts), "text/plain"
    return bytes((kind, *parts)), "text/plain"


class Oracle(RuleBasedStateMachine):
    """Two handles on one store; `held` is what each handle's session holds by put or have."""

    blobs: Bundle[str] = Bundle("blobs")

    @initialize()
    def begin(self) -> None:
        self.path = tempfile.mkdtemp(dir="/dev/shm") + "/s"
        self.handles = [self._open(), self._open()]
        self.bytes: dict[str, bytes] = {}
        self.children: dict[str, tuple[str, ...]] = {}
        self.refs: dict[str, str] = {}
        self.held: list[set[str]] = [set(), set()]
        self.leases: dict[str, set[str]] = {}
        self.bound: dict[str, int] = {}
        self.using: list[str | None] = [None, None]
        self.running: list[Operation | None] = [None, None]
        self._contexts: list[object] = [None, None]

    def _open(self) -> Content:
        return Content(open_storage(self.path, timeout=20.0))

    def _reachable(self) -> set[str]:
        todo = [*self.refs.values(), *(d for s in self.held for d in s)]
        todo += [d for s in self.leases.values() for d in s]
        out: set[str] = set()
        while todo:
            digest = todo.pop()
            if digest not in out:
                out.add(digest)
                todo += self.children.get(digest, ())
        return out

    def _hold(self, who: int, digest: str) -> None:
        self.held[who].add(digest)
        lease = self.using[who]
        if lease is not None:
            self.leases[lease].add(digest)

    @rule(
        target=blobs,
        who=st.integers(0, 1),
        kind=st.integers(0, 3),
        parts=st.lists(st.integers(0, len(FILES) - 1), min_size=1, max_size=4).map(tuple),
        known=st.booleans(),
    )
    def put(self, who: int, kind: int, parts: tuple[int, ...], known: bool) -> str:
        data, media_type = make_blob(kind, parts)
        digest = stores.sha256(data)
        with self.handles[who].operation() as op:
            op.put(data, digest=digest if known else None, media_type=media_type)
        self.bytes[digest] = data
        self._hold(who, digest)
        return digest

    @rule(
        target=blobs,
        who=st.integers(0, 1),
        names=st.lists(blobs, min_size=1, max_size=3, unique=True),
    )
    def put_manifest(self, who: int, names: list[str]) -> str:
        data = ("manifest " + " ".join(names)).encode()
        digest = stores.sha256(data)
        with self.handles[who].operation() as op:
            here = [d for d in names if op.have(d) is not None]
            for d in here:
                self._hold(who, d)
            if here != names:
                assert not set(names) <= self._reachable()
                return here[0] if here else self.put(who, 3, (0,), True)
            op.put(data, digest=digest, edges=[Edge(d) for d in names])
        self.bytes[digest] = data
        self.children[digest] = tuple(names)
        self._hold(who, digest)
        return digest

    @rule(who=st.integers(0, 1), digest=blobs, name=st.sampled_from("abcde"))
    def tag(self, who: int, digest: str, name: str) -> None:
        with self.handles[who].operation() as op:
            try:
                op.commit_refs({name: Ref(name, digest, len(self.bytes[digest]), "x")})
            except NotFoundError:
                assert digest not in self._reachable()
                return
        self.refs[name] = digest
        # What a ref reaches needs no row of the session any more.
        todo, closure = [digest], set()
        while todo:
            at = todo.pop()
            if at not in closure:
                closure.add(at)
                todo += self.children.get(at, ())
        self.held[who] -= closure

    @rule(who=st.integers(0, 1), name=st.sampled_from("abcde"))
    def untag(self, who: int, name: str) -> None:
        with self.handles[who].operation() as op:
            if name in self.refs:
                op.commit_refs({}, remove=[name])
                del self.refs[name]
            else:
                try:
                    op.commit_refs({}, remove=[name])
                except NotFoundError:
                    return
                raise AssertionError("removed what was not there")

    @rule(who=st.integers(0, 1), digest=blobs)
    def have(self, who: int, digest: str) -> None:
        with self.handles[who].operation() as op:
            if op.have(digest) is None:
                assert digest not in self._reachable()
            else:
                self._hold(who, digest)

    @precondition(lambda self: len(self.leases) < 3)
    @rule(who=st.integers(0, 1), ttl=st.sampled_from([None, 3600.0]))
    def lease(self, who: int, ttl: float | None) -> None:
        storage = self.handles[who].storage
        old = self.using[who]
        if old is not None:
            storage.leave_lease(old)
        made = storage.create_lease(ttl)
        storage.use_lease(made)
        self.leases[made] = set()
        if ttl is None:
            self.bound[made] = who
        self.using[who] = made

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), who=st.integers(0, 1))
    def drop_lease(self, data: st.DataObject, who: int) -> None:
        lease = data.draw(st.sampled_from(sorted(self.leases)))
        self._leave(lease)
        self.handles[who].storage.drop_lease(lease)
        del self.leases[lease]
        self.bound.pop(lease, None)

    def _leave(self, lease: str) -> None:
        for n in (0, 1):
            if self.using[n] == lease:
                self.handles[n].storage.leave_lease(lease)
                self.using[n] = None

    @rule(who=st.integers(0, 1))
    def reopen(self, who: int) -> None:
        self._close(who)
        self.handles[who] = self._open()

    def _close(self, who: int) -> None:
        """What the session held goes with it, and the leases without a ttl that it made."""
        self._end(who)
        for lease in [lease for lease, owner in self.bound.items() if owner == who]:
            self._leave(lease)
            del self.leases[lease], self.bound[lease]
        self.handles[who].storage.close()
        self.held[who] = set()
        self.using[who] = None

    @rule(who=st.integers(0, 1))
    def begin_operation(self, who: int) -> None:
        """A long operation: nothing is deleted while it runs."""
        if self.running[who] is None:
            context = self.handles[who].operation()
            self.running[who] = context.__enter__()
            self._contexts[who] = context

    @rule(who=st.integers(0, 1))
    def end_operation(self, who: int) -> None:
        self._end(who)

    def _end(self, who: int) -> None:
        if self.running[who] is not None:
            self._contexts[who].__exit__(None, None, None)  # type: ignore[attr-defined]
            self.running[who] = None

    @rule(who=st.integers(0, 1), aggressive=st.booleans())
    def gc(self, who: int, aggressive: bool) -> None:
        report = gc.collect(self.handles[who].storage, aggressive=aggressive)
        idle = self.running == [None, None]
        if idle:
            assert report.pending_bytes == 0
        if idle:
            with self.handles[who].operation() as op:
                assert {b.digest for b in op.blobs()} == self._reachable()

    @rule(who=st.integers(0, 1))
    def checkpoint(self, who: int) -> None:
        gc.checkpoint(self.handles[who].storage)

    @rule()
    def rebuild(self) -> None:
        for who in (0, 1):
            self._close(who)
        assert rebuild(self.path).ok
        self.handles = [self._open(), self._open()]

    @invariant()
    def everything_reachable_is_whole(self) -> None:
        if not hasattr(self, "handles"):
            return
        for digest in self._reachable():
            assert stores.get(self.handles[0], digest) == self.bytes[digest]
        with self.handles[1].operation() as op:
            assert {r.name: r.digest for r in op.refs()} == self.refs

    def teardown(self) -> None:
        if hasattr(self, "handles"):
            for who in (0, 1):
                self._end(who)
            stores.clean(self.handles[0])
            for handle in self.handles:
                handle.storage.close()
            shutil.rmtree(self.path.rpartition("/")[0])


TestOracle = Oracle.TestCase
TestOracle.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
