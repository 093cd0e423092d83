"""The protocol of commits, sessions and garbage collection as a model that can be searched whole.

Two workers, a reader and a collector take turns, step by step; one of them may die, or lose its
session's lock, at any moment. The world is one chunk and one blob that may name it: small enough
that every interleaving can be visited, large enough that each rule is needed (`RULES` says what
goes wrong without it; `test_protocol.py` takes each out in turn). The steps have the names that the
code has, and `test_conformance.py` replays walks through the model against the real storage.

One step is one thing that others cannot see half of: a write transaction, a look at one snapshot,
one write of a session's file.
"""

from __future__ import annotations

import gc as cycles
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

IDLE = 1 << 30
"""The epoch of a session in which nothing runs."""

RULES = {
    "publish_first": "E is published before the snapshot is opened that it is to protect",
    "renew_looks": "a reader renews only when it has seen that its blob is still live",
    "renew_to_snapshot": "a reader renews to the snapshot that it looked at, not to the newest",
    "mark_again_at_T": "T subtracts what commits since the mark's snapshot made reachable",
    "wait_for_epochs": "nothing is deleted before every live E is at or past T",
    "look_again": "a delete transaction looks again at what is reachable",
    "spare_visible": "a delete keeps what is not condemned (any more), held by somebody or not",
    "hide_condemned": "look-ups in snapshots from T on pass over what is condemned",
    "revive": "a commit that names something condemned un-condemns it",
    "anyone_revives": "also a session that began after T un-condemns",
    "promise_is_a_row": "an answer 'we have that' is held by a row before it goes out",
    "row_goes_with_ref": "that row goes in the commit of the ref that reaches the blob, not before",
    "fence": "a commit checks that what it names still exists",
}
"""Every rule is a switch. `fence` matters only where locks are lost. Tried as rules and not needed: to
withdraw E only after the commit (the fence catches what then goes wrong, at the price of putting
again), and to spare blobs younger than S at T already (`spare_visible` saves them at the delete)."""


class Database(NamedTuple):
    """What is committed. `blob` is the serial of the blob (0: there is none; put again it gets a new
    one), `names` whether its content lies in the chunk (else in one of its own, which nobody
    condemns). `T` is 0 when nothing is condemned."""

    blob: int
    names: bool
    chunk: bool
    ref: bool
    held: tuple[bool, ...]
    T: int = 0
    condemned_blob: int = 0
    condemned_chunk: bool = False
    revived: bool = False
    last_delete: int = 0
    sequence: int = 1


class Actor(NamedTuple):
    """A worker or the reader. `step` is what it does next; `lock` that its session counts as alive;
    `E` what its session's file says. The rest is its memory."""

    program: str
    step: str
    lock: bool = True
    E: int = IDLE
    seen: int = 0
    """The sequence that it read and has not published yet."""
    found: int = 0
    """The blob that it found."""
    hit: bool = False
    """Its look-up found the chunk: that is what it reads, or what its put names."""
    owed: bool = False
    """It was told that the blob is there, and no ref has taken over since."""


class Collector(NamedTuple):
    """The gc. What it holds in memory is lost when it dies."""

    step: str
    asked: int = 0
    """How many sessions it has asked for their epoch."""
    seen: frozenset[int] = frozenset()
    marked: bool = False
    blobs: int = 0
    chunk: bool = False
    rounds: int = 1


class World(NamedTuple):
    db: Database
    actors: tuple[Actor, ...]
    gc: Collector
    deaths: int = 0
    losses: int = 0
    """Deaths and lost locks that may still happen."""


Rules = frozenset[str]
ALL: Rules = frozenset(RULES)


# ---- what can be seen of the database ------------------------------------------------------------


def hidden(db: Database) -> bool:
    """Whether the blob is condemned and was not named since."""
    return bool(db.T) and db.condemned_blob == db.blob != 0 and not db.revived


def visible(db: Database, rules: Rules) -> bool:
    """Whether a look-up by digest finds the blob."""
    return db.blob != 0 and not (hidden(db) and "hide_condemned" in rules)


def whole(db: Database) -> bool:
    return db.chunk or not db.names


def reachable(w: World) -> bool:
    """Whether a ref, or a row of a session that counts as alive, holds the blob."""
    rows = any(h and a.lock for h, a in zip(w.db.held, w.actors, strict=False))
    return w.db.blob != 0 and (w.db.ref or rows)


def _commit(db: Database, **changes: object) -> Database:
    return db._replace(sequence=db.sequence + 1, **changes)  # type: ignore[arg-type]


def _row(db: Database, who: int, value: bool) -> tuple[bool, ...]:
    return tuple(value if i == who else h for i, h in enumerate(db.held))


def _may_revive(db: Database, actor: Actor, rules: Rules) -> bool:
    return "revive" in rules and ("anyone_revives" in rules or actor.E < db.T)


def _named(db: Database, actor: Actor, rules: Rules) -> bool:
    """Whether the blob is un-condemned after this actor's commit has named it."""
    return db.revived or (hidden(db) and _may_revive(db, actor, rules))


# ---- the steps of an operation -------------------------------------------------------------------

Outcome = World | None
Step = Callable[[World, int, Rules], Outcome]


def _act(w: World, who: int, db: Database | None = None, **changes: object) -> World:
    actor = w.actors[who]._replace(**changes)  # type: ignore[arg-type]
    actors = (*w.actors[:who], actor, *w.actors[who + 1 :])
    return w._replace(actors=actors, db=w.db if db is None else db)


def read_sequence(w: World, who: int, rules: Rules) -> Outcome:
    """The sequence that the operation starts from."""
    late = "publish_first" not in rules
    return _act(
        w, who, seen=w.db.sequence, step=_FIRST[w.actors[who].program] if late else "publish_epoch"
    )


def publish_epoch(w: World, who: int, rules: Rules) -> Outcome:
    """E goes into the session's file."""
    actor = w.actors[who]
    step = _FIRST[actor.program] if "publish_first" in rules else "renew"
    return _act(w, who, E=actor.seen, step=step)


def _looked(w: World, who: int, rules: Rules, step: str, **changes: object) -> World:
    """After the first look: without `publish_first` a reader's epoch is published only now."""
    if "publish_first" not in rules and w.actors[who].program == "reader":
        step = "publish_epoch"
    return _act(w, who, step=step, **changes)


def lookup(w: World, who: int, rules: Rules) -> Outcome:
    """By digest, in a snapshot."""
    actor = w.actors[who]
    if visible(w.db, rules):
        step = {"reader": "renew", "tagger": "commit_ref"}.get(actor.program, "hold")
        return _looked(w, who, rules, step, found=w.db.blob, hit=w.db.names)
    if actor.program in ("reader", "tagger"):
        return _act(w, who, step="withdraw_epoch")
    return _act(w, who, step="revive")


def hold(w: World, who: int, rules: Rules) -> Outcome:
    """'We have that' becomes a row of the session; fails if the blob is gone."""
    db, actor = w.db, w.actors[who]
    if "promise_is_a_row" not in rules or db.held[who]:
        return _answer(w, who, rules)
    if db.blob != actor.found:
        return _act(w, who, step="withdraw_epoch")
    db = _commit(db, held=_row(db, who, True), revived=_named(db, actor, rules))
    return _answer(w._replace(db=db), who, rules)


def _answer(w: World, who: int, rules: Rules) -> World:
    # Who has lost its lock is owed nothing: its rows protect nothing, and it will be told.
    return _act(w, who, owed=w.actors[who].lock, step=_then(w, who))


def _then(w: World, who: int) -> str:
    return "commit_ref" if w.actors[who].program == "put_and_tag" else "withdraw_epoch"


def revive(w: World, who: int, rules: Rules) -> Outcome:
    """A blob that is condemned and still there is un-condemned and held; else its content is put."""
    db, actor = w.db, w.actors[who]
    if db.blob == 0 or (hidden(db) and not _may_revive(db, actor, rules)):
        return _act(w, who, step="lookup_chunk")
    db = _commit(db, held=_row(db, who, True), revived=_named(db, actor, rules))
    return _answer(w._replace(db=db), who, rules)


def lookup_chunk(w: World, who: int, rules: Rules) -> Outcome:
    """Dedup: the chunk is named if it is known, else a new one is written."""
    concealed = w.db.condemned_chunk and "hide_condemned" in rules
    return _act(w, who, hit=w.db.chunk and not concealed, step="commit")


def commit(w: World, who: int, rules: Rules) -> Outcome:
    """The blob's row and the row that holds it, after the fence."""
    db, actor = w.db, w.actors[who]
    if "fence" in rules and db.last_delete > actor.seen and actor.hit and not db.chunk:
        return _act(w, who, step="withdraw_epoch", hit=False)
    held = _row(db, who, True)
    if db.blob:
        db = _commit(db, held=held, revived=_named(db, actor, rules))
    else:
        serial = max(db.condemned_blob, actor.found, *(a.found for a in w.actors)) + 1
        db = _commit(db, held=held, blob=serial, names=actor.hit)
    return _answer(w._replace(db=db), who, rules)


def commit_ref(w: World, who: int, rules: Rules) -> Outcome:
    """A name for the blob; the session's own row is no longer needed and goes with it."""
    db, actor = w.db, w.actors[who]
    if "row_goes_with_ref" not in rules and db.held[who]:
        return _act(w, who, _commit(db, held=_row(db, who, False)))
    if not db.blob and "fence" in rules:
        return _act(w, who, step="withdraw_epoch")
    held = _row(db, who, False)
    db = _commit(db, ref=True, held=held, revived=_named(db, actor, rules))
    return _act(w, who, db, owed=False, step="withdraw_epoch")


def remove_ref(w: World, who: int, rules: Rules) -> Outcome:
    """untag."""
    db = _commit(w.db, ref=False) if w.db.ref else w.db
    return _act(w, who, db, step="close")


def read(w: World, who: int, rules: Rules) -> Outcome:
    """The reader gets its last bytes, and ends. (That it could get them at any time since it opened
    the blob is asked in `broken`.)"""
    return withdraw_epoch(w, who, rules)


def renew(w: World, who: int, rules: Rules) -> Outcome:
    """A look whether the blob is still live, in a fresh snapshot."""
    actor = w.actors[who]
    live = w.db.blob == actor.found and visible(w.db, rules)
    if live or "renew_looks" not in rules:
        return _act(w, who, seen=w.db.sequence, step="publish_renewed")
    return _act(w, who, step="read")


def publish_renewed(w: World, who: int, rules: Rules) -> Outcome:
    """E moves up to the snapshot in which the blob was seen live."""
    E = w.actors[who].seen if "renew_to_snapshot" in rules else w.db.sequence
    return _act(w, who, E=E, step="read")


def withdraw_epoch(w: World, who: int, rules: Rules) -> Outcome:
    """The operation ends; and the session, if it holds nothing that its end could let go."""
    step = "close" if w.db.held[who] or w.actors[who].owed else "over"
    return _act(w, who, E=IDLE, hit=False, found=0, seen=0, step=step)


def close(w: World, who: int, rules: Rules) -> Outcome:
    """The handle's session ends; so does what it was promised."""
    db = w.db
    if db.held[who]:
        db = _commit(db, held=_row(db, who, False))
    return _act(w, who, db, lock=False, owed=False, step="over")


def over(w: World, who: int, rules: Rules) -> Outcome:
    """Closed, or dead."""
    return None


_FIRST = {
    "put": "lookup",
    "put_and_tag": "lookup",
    "tagger": "lookup",
    "reader": "lookup",
    "untag": "remove_ref",
}

OPERATION: dict[str, Step] = {
    f.__name__: f
    for f in (
        read_sequence,
        publish_epoch,
        lookup,
        hold,
        revive,
        lookup_chunk,
        commit,
        commit_ref,
        remove_ref,
        read,
        renew,
        publish_renewed,
        withdraw_epoch,
        close,
        over,
    )
}
"""Step name -> guard and effect in one: None where it may not be taken now."""


# ---- the steps of the collector ------------------------------------------------------------------


def _marks(w: World, rules: Rules, *, deleting: bool = False) -> Collector:
    """The collector's mark brought up to date. What it has seen before it does not visit again."""
    gc, db = w.gc, w.db
    root = reachable(w)
    if deleting and "spare_visible" in rules and db.blob and not hidden(db):
        root = True
    if not root or db.blob in gc.seen:
        return gc
    return gc._replace(seen=gc.seen | {db.blob}, marked=gc.marked or db.names)


def mark(w: World, rules: Rules) -> Outcome:
    """At snapshot S: what is reachable, and what there is. Goes on with a set that is waiting."""
    if w.db.T:
        return w._replace(gc=w.gc._replace(step="ask"))
    gc = _marks(w, rules)
    return w._replace(gc=gc._replace(blobs=w.db.blob, chunk=w.db.chunk, step="condemn"))


def condemn(w: World, rules: Rules) -> Outcome:
    """T: condemns what was there at S and is unmarked, marking again under the write lock."""
    db = w.db
    gc = _marks(w, rules) if "mark_again_at_T" in rules else w.gc
    blob = gc.blobs if gc.blobs and gc.blobs not in gc.seen else 0
    chunk = gc.chunk and not gc.marked
    if not blob and not chunk:
        return w._replace(gc=_ended(gc))
    db = _commit(db, T=db.sequence + 1, condemned_blob=blob, condemned_chunk=chunk, revived=False)
    return w._replace(db=db, gc=Collector("ask", rounds=gc.rounds))


def ask(w: World, rules: Rules) -> Outcome:
    """The epoch of one session after the other. An older one holds deletion back: the collector
    would end here and come again."""
    left = [i for i, a in enumerate(w.actors) if i >= w.gc.asked and a.step != "over"]
    if not left:
        return w._replace(gc=w.gc._replace(asked=0, step="look"))
    actor = w.actors[left[0]]
    if "wait_for_epochs" in rules and actor.lock and actor.E < w.db.T:
        return None
    return w._replace(gc=w.gc._replace(asked=left[0] + 1, step="ask" if left[1:] else "look"))


def look(w: World, rules: Rules) -> Outcome:
    """A mark from the beginning, at a fresh snapshot."""
    gc = w.gc._replace(step="delete_blobs")
    if "look_again" in rules:
        gc = _marks(w._replace(gc=gc), rules, deleting=True)
    return w._replace(gc=gc)


def _delete(w: World, rules: Rules) -> Collector:
    if "look_again" not in rules:
        return w.gc
    return _marks(w, rules, deleting=True)


def delete_blobs(w: World, rules: Rules) -> Outcome:
    """Rows of blobs that are condemned and nothing reaches."""
    db, gc = w.db, _delete(w, rules)
    if db.blob and db.blob == db.condemned_blob and db.blob not in gc.seen:
        db = _commit(db, blob=0, names=False, last_delete=db.sequence + 1)
    return w._replace(db=db, gc=gc._replace(step="delete_numbers"))


def delete_numbers(w: World, rules: Rules) -> Outcome:
    """Rows of chunks that are condemned and nothing reaches."""
    db, gc = w.db, _delete(w, rules)
    if db.condemned_chunk and db.chunk and not gc.marked:
        db = _commit(db, chunk=False, last_delete=db.sequence + 1)
    return w._replace(db=db, gc=gc._replace(step="clear"))


def clear(w: World, rules: Rules) -> Outcome:
    """The condemned set is done with."""
    db = _commit(w.db, T=0, condemned_blob=0, condemned_chunk=False, revived=False)
    return w._replace(db=db, gc=_ended(w.gc))


def rest(w: World, rules: Rules) -> Outcome:
    """Nothing more to do."""
    return None


def _ended(gc: Collector) -> Collector:
    if gc.rounds > 1:
        return Collector("mark", rounds=gc.rounds - 1)
    return Collector("rest", rounds=0)


_OVER = Actor("", "over", lock=False)
_USES_FOUND = frozenset(("hold", "publish_epoch", "read", "renew", "publish_renewed"))
_USES_HIT = frozenset(("commit", *_USES_FOUND))

COLLECTION: dict[str, Callable[[World, Rules], Outcome]] = {
    f.__name__: f for f in (mark, condemn, ask, look, delete_blobs, delete_numbers, clear, rest)
}


# ---- all that can happen next --------------------------------------------------------------------

Label = tuple[str, str]
"""Who, and what."""
NAMES = ("first", "second", "third")


def moves(w: World, rules: Rules) -> Iterator[tuple[Label, World]]:
    """Every step that can be taken now, with the world after it.

    A death is left out where never being run again is the same: of who has neither an epoch nor a
    row, of a reader (whose end is the same as its operation's), and of a collector that has written
    nothing since it last began."""
    for who, actor in enumerate(w.actors):
        after = OPERATION[actor.step](w, who, rules)
        if after is not None:
            yield (NAMES[who], actor.step), after
        if actor.step == "over" or actor.program == "reader":
            continue
        if w.deaths and actor.lock and (actor.E != IDLE or w.db.held[who]):
            gone = _act(w, who, lock=False, E=IDLE, owed=False, found=0, step="over")
            yield (NAMES[who], "die"), gone._replace(deaths=w.deaths - 1)
        if w.losses and actor.lock:
            after = _act(w, who, lock=False, owed=False)
            yield (NAMES[who], "lose_lock"), after._replace(losses=w.losses - 1)
    after = COLLECTION[w.gc.step](w, rules)
    if after is not None:
        yield ("gc", w.gc.step), after
    if w.deaths and w.gc.step in ("delete_numbers", "clear"):
        again = Collector("mark", rounds=w.gc.rounds)
        yield ("gc", "die"), w._replace(gc=again, deaths=w.deaths - 1)


def broken(w: World) -> str | None:
    """What is wrong with a world; None if nothing is."""
    db = w.db
    there = db.blob != 0 and whole(db)
    if db.ref and not there:
        return "a dangling ref: what it names is deleted"
    if db.ref and hidden(db):
        return "what a ref names is hidden from look-ups"
    if db.blob and not hidden(db) and not whole(db):
        return "look-ups find a blob whose chunk is deleted"
    for actor in w.actors:
        if actor.program == "reader" and actor.hit and not db.chunk:
            return "a stream is cut: the chunk is deleted beneath its reader"
        if actor.owed and not there:
            return "what was put, or was said to be there, is gone while the session lives"
        if actor.owed and hidden(db):
            return "what was put, or was said to be there, is not found by others"
    return None


def canonical(w: World) -> World:
    """The same world without what can make no difference any more: memory that nobody will use, rows
    of the dead, and of the sequences all but on which side of T and of the last delete they lie."""
    db = w.db
    T, deleted = db.T, db.last_delete
    oldest = min(min(a.E, a.seen or IDLE) for a in w.actors)
    if deleted <= oldest:
        deleted = 0
    points = sorted({0, 1, T, deleted})
    side = {value: i for i, value in enumerate(points)}
    side[IDLE] = IDLE
    actors = []
    for actor in w.actors:
        program, step, lock, E, seen, found, hit, owed = actor
        if step == "over":
            actors.append(_OVER)
            continue
        if step not in _USES_FOUND:
            found = 0
        if step not in _USES_HIT:
            hit = False
        if E not in side:
            E = points[bisect_right(points, E) - 1]
        if seen not in side:
            seen = points[bisect_right(points, seen) - 1]
        actors.append(Actor(program, step, lock, side[E], side[seen], found, hit, owed))
    held = db.held
    if any(held):
        held = tuple(h and a.step != "over" for h, a in zip(held, actors, strict=True))
    db = Database(
        db.blob,
        db.names,
        db.chunk,
        db.ref,
        held,
        side[T],
        db.condemned_blob,
        db.condemned_chunk,
        db.revived,
        side[deleted],
        len(points) - 1,
    )
    return World(db, tuple(actors), w.gc, w.deaths, w.losses)


class Result(NamedTuple):
    """How a search ended: how many worlds it saw, and the first violation with the way to it."""

    worlds: int
    violation: str | None
    trace: tuple[Label, ...]

    def told(self) -> str:
        lines = [f"{who:>6}  {what}" for who, what in self.trace]
        return "\n".join([*lines, f"    =>  {self.violation}"])


def search(start: World, rules: Rules = ALL, limit: int = 2_000_000) -> Result:
    """Visits every world that can come of `start`, nearest first, until one is broken.

    Raises RuntimeError when there are more than `limit`: a search that is not whole proves nothing.
    """
    collecting = cycles.isenabled()
    cycles.disable()  # tuples by the hundred thousand and no cycle: a third of the time
    try:
        return _search(canonical(start), rules, limit)
    finally:
        if collecting:
            cycles.enable()


def _search(first: World, rules: Rules, limit: int) -> Result:
    came: dict[World, tuple[World, Label] | None] = {first: None}
    todo = deque([first])
    while todo:
        world = todo.popleft()
        for label, raw in moves(world, rules):
            after = canonical(raw)
            if after in came:
                continue
            came[after] = (world, label)
            wrong = broken(after)
            if wrong is not None:
                return Result(len(came), wrong, _way(came, after))
            todo.append(after)
        if len(came) > limit:
            raise RuntimeError(f"more than {limit} worlds")
    return Result(len(came), None, ())


def worlds(start: World, rules: Rules = ALL) -> Iterator[tuple[World, list[str]]]:
    """Every world that can come of `start`, with the steps that can be taken there."""
    seen = {canonical(start)}
    todo = list(seen)
    while todo:
        world = todo.pop()
        steps = []
        for (_, what), raw in moves(world, rules):
            steps.append(what)
            after = canonical(raw)
            if after not in seen:
                seen.add(after)
                todo.append(after)
        yield world, steps


def _way(came: dict[World, tuple[World, Label] | None], world: World) -> tuple[Label, ...]:
    out: list[Label] = []
    before = came[world]
    while before is not None:
        out.append(before[1])
        before = came[before[0]]
    return tuple(reversed(out))


# ---- where searches start ------------------------------------------------------------------------


def start(
    *programs: str,
    blob: bool = False,
    ref: bool = False,
    deaths: int = 0,
    losses: int = 0,
    rounds: int = 1,
) -> World:
    """A world before anything has happened: the chunk is there, with a blob that names it or not.
    `programs`: what each actor does; of put, put_and_tag, tagger, untag, reader."""
    actors = tuple(Actor(p, "remove_ref" if p == "untag" else "read_sequence") for p in programs)
    db = Database(int(blob), blob, True, ref, tuple(False for _ in programs))
    return World(db, actors, Collector("mark", rounds=rounds), deaths, losses)


SCENARIOS = {
    "a dead chunk is put by two, and read": start("put_and_tag", "put", "reader", deaths=1),
    "a blob that nothing holds is wanted by two, and read": start(
        "put_and_tag", "put", "reader", blob=True, deaths=1
    ),
    "a blob is untagged while one tags it, and read": start(
        "tagger", "untag", "reader", blob=True, ref=True, deaths=1
    ),
    "a blob is untagged while one puts it, and read": start(
        "put", "untag", "reader", blob=True, ref=True, deaths=1
    ),
    "two collections, a put and a reader": start(
        "put_and_tag", "reader", blob=True, rounds=2, deaths=1
    ),
    "a lost lock and a dead chunk": start("put_and_tag", "put", losses=1),
    "a lost lock and a blob that nothing holds": start(
        "put_and_tag", "tagger", blob=True, losses=1
    ),
    "two lost locks": start("put_and_tag", "put", losses=2),
}

_UNHELD = start("reader", blob=True)
_TWO = start("put", "put", blob=True)

SMALLEST = {
    "publish_first": _UNHELD,
    "renew_looks": _UNHELD,
    "renew_to_snapshot": _UNHELD,
    "wait_for_epochs": _UNHELD,
    "hide_condemned": _UNHELD,
    "mark_again_at_T": start("put", blob=True),
    "look_again": start("put", blob=True),
    "spare_visible": start("put"),
    "revive": start("put", blob=True),
    "anyone_revives": _TWO,
    "promise_is_a_row": start("put", blob=True),
    "row_goes_with_ref": start("put_and_tag"),
    "fence": start("put_and_tag", losses=1),
}
"""For each rule a world small enough to read the way to what goes wrong without it."""
