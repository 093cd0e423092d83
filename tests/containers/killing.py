"""Kills a process in the middle of work with snapshots, again and again, and looks at what is left.

`python killing.py STORE ROUNDS [SEED]`: in each round a child does one thing and is killed (SIGKILL) at
a random moment of it. Then another process opens the store: what had been reported is there, what had
not is there wholly or not at all, all that is left can be used, and gc takes the rest. Goes on until
each thing was cut off at least once. Prints as JSON how often it was, and how often it had ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import making

import layerstore

KINDS = ("unpack", "prepare", "mount", "unmount", "commit", "remove", "gc")
FILES = 150


def forked(work: Callable[[], None]) -> int:
    """A process that does it, and ends; its pid. The store is open in no parent."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


class Rounds:
    """One store, and directories beside it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.counts = {kind: [0, 0] for kind in KINDS}

    def place(self, n: int) -> Path:
        return self.path.parent / f"m{n}"

    def open(self) -> layerstore.Store:
        return layerstore.open(self.path, timeout=30)

    # ---- what is cut off ----------------------------------------------------------------------

    def victim(self, kind: str, n: int, say: int) -> None:
        store = self.open()
        key, image = f"k{n}", "app:1"
        if kind == "unpack":
            image = f"own:{n}"
            files = [making.member(f"own/{i}", os.urandom(3000)) for i in range(FILES)]
            making.image(store, image, [making.BASE, files, making.TOP])
        if kind not in ("unpack", "prepare"):
            store.snapshots.prepare(key, image)
        if kind in ("unmount", "commit"):
            store.snapshots.mount(key, self.place(n))
            (self.place(n) / "new").write_text(key)
        if kind == "gc":
            making.image(
                store, "late:1", [making.BASE, [making.member(f"late{n}", os.urandom(9000))]]
            )
            store.snapshots.prepare("late", "late:1")
            store.snapshots.remove("late")
            store.untag("late:1")
        snapshots = store.snapshots
        work: dict[str, Callable[[], object]] = {
            "unpack": lambda: snapshots.prepare(key, image),
            "prepare": lambda: snapshots.prepare(key, image),
            "mount": lambda: snapshots.mount(key, self.place(n)),
            "unmount": lambda: snapshots.unmount(key),
            "commit": lambda: snapshots.commit(key, f"new:{n}"),
            "remove": lambda: snapshots.remove(key),
            "gc": lambda: store.gc(aggressive=True),
        }
        os.write(say, b"begins")
        work[kind]()
        os.write(say, b"ended!")
        signal.pause()

    # ---- what is left -------------------------------------------------------------------------

    def look(self, kind: str, n: int, ended: bool) -> None:
        key = f"k{n}"
        with self.open() as store:
            keys = {one.key for one in store.snapshots.list()}
            there = key in keys
            if kind in ("unpack", "prepare"):
                assert there or not ended
            elif kind == "remove":
                assert not (there and ended)
            else:
                assert there
            assert not store.snapshots.strays()
            if there:
                self._use(store, key, n, kind)
            names = {one.name for one in store.images()}
            if kind == "commit":
                assert f"new:{n}" in names or not ended
                if f"new:{n}" in names:
                    assert "new" in [e.path for e in store.image(f"new:{n}").entries()]
            assert store.check(blocks=True).ok
            store.gc()
            if there and n % 3:
                store.snapshots.remove(key)
            if n % 10 == 0:
                self._all_away(store)

    def _use(self, store: layerstore.Store, key: str, n: int, kind: str) -> None:
        places = store.snapshots.get(key).mounts
        assert places in ((), (str(self.place(n)),))
        assert kind != "commit" or places
        store.snapshots.mount(key, self.place(n))
        assert (self.place(n) / "etc/motd").read_text() == "hello"
        if kind in ("unmount", "commit"):
            assert (self.place(n) / "new").read_text() == key
        if kind == "unpack":
            assert len(os.listdir(self.place(n) / "own")) == FILES
        store.snapshots.unmount(key)
        self.place(n).rmdir()

    def _all_away(self, store: layerstore.Store) -> None:
        for one in store.snapshots.list():
            store.snapshots.unmount(one.key)
            store.snapshots.remove(one.key)
        for image in store.images():
            if image.name != "app:1":
                store.untag(image.name)
        store.gc(aggressive=True)
        left = [x for d in ("unpacked", "snapshots") for x in os.listdir(self.path / d)]
        assert set(left) <= {"empty"}, left
        assert store.stats().unpacked < 64 * 1024

    # ---- rounds -------------------------------------------------------------------------------

    def one(self, n: int, kind: str) -> None:
        ear, say = os.pipe()
        pid = forked(lambda: self.victim(kind, n, say))
        os.close(say)
        assert os.read(ear, 6) == b"begins", kind
        began = time.monotonic()
        known = self.seconds[kind]
        usual = sorted(known)[len(known) // 2] if known else 0.01
        # The first of a kind is let end: it says how long that takes.
        pause = self.random.uniform(0, usual) if known else 60.0
        os.set_blocking(ear, False)
        ended = False
        while not ended and time.monotonic() < began + pause:
            try:
                ended = os.read(ear, 6) == b"ended!"
            except BlockingIOError:
                time.sleep(min(0.0002, pause))
        if ended and len(known) < 5:
            known.append(time.monotonic() - began)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if not ended:
            try:  # it may have ended in the very last moment
                ended = os.read(ear, 6) == b"ended!"
            except BlockingIOError:
                ended = False
        os.close(ear)
        self.counts[kind][ended] += 1
        _, status = os.waitpid(forked(lambda: self.look(kind, n, ended)), 0)
        assert status == 0, f"round {n}: {kind}, {'ended' if ended else 'cut off'}"


def main() -> None:
    path, rounds = Path(sys.argv[1]), int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 30)
    print(f"seed {seed}", file=sys.stderr)
    work = Rounds(path, seed)

    def first() -> None:
        with work.open() as store:
            making.image(store)

    os.waitpid(forked(first), 0)
    for n in range(rounds):
        work.one(n, KINDS[n % len(KINDS)])
    while missing := [kind for kind, (cut, _) in work.counts.items() if not cut]:
        n += 1
        work.one(n, missing[0])
    print(json.dumps({kind: {"cut off": c[0], "ended": c[1]} for kind, c in work.counts.items()}))


if __name__ == "__main__":
    main()
