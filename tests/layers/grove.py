"""Many random trees side by side in one directory: one mount, or one commit of a builder, for all of
them, so that thousands of sequences of changes cost seconds."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from changes import Changes
from hypothesis import strategies as st

Plan = Sequence[tuple[int, int]]
"""For each tree: the seed of all that comes up in it, how many changes are made to it."""


def plan(seed: int, trees: int) -> Plan:
    """A plan out of one number."""
    source = random.Random(seed)
    return [(source.getrandbits(63), source.randint(10, 40)) for _ in range(trees)]


def plans(trees: int) -> st.SearchStrategy[Plan]:
    """Plans of about so many trees, for hypothesis."""
    one = st.tuples(st.integers(0, 2**63), st.integers(10, 40))
    return st.lists(one, min_size=trees * 3 // 4, max_size=trees * 5 // 4)


class Grove:
    """The trees of a plan. What happens to each is its seed's alone, whatever its neighbours do."""

    def __init__(self, planned: Plan, count: Counter[str]) -> None:
        self._trees = [
            (f"t{i:03}", random.Random(seed), changes) for i, (seed, changes) in enumerate(planned)
        ]
        self._count = count

    def grow(self, root: Path) -> None:
        """Trees to begin with."""
        for name, source, _ in self._trees:
            (root / name).mkdir()
            Changes(root / name, source, self._count).base(18)

    def change(self, root: Path, at_most: int = 40) -> None:
        """Changes each tree."""
        for name, source, changes in self._trees:
            Changes(root / name, source, self._count).run(min(changes, at_most))


def compare(
    got: dict[str, Any], want: dict[str, Any], without: Collection[str] = (), what: str = ""
) -> int:
    """Asserts that two groves are the same, file by file, but for the trees `without`; how many trees
    were compared."""
    names = {n for n in (*got, *want) if n.split("/")[1:2] == [] or n.split("/")[1] not in without}
    bad = [
        (name, {f: (a.get(f), b.get(f)) for f in {**a, **b} if a.get(f) != b.get(f)})
        for name in sorted(names)
        for a, b in [(got.get(name, {}), want.get(name, {}))]
        if a != b
    ]
    assert not bad, (
        f"{what} {len(bad)} of {len(names)} files differ, the first (got, wanted): {bad[:8]}"
    )
    return sum(name.count("/") == 1 for name in names)


def same_but(found: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A tree without what a tool does not keep: each of `changes` gets a file's facts and gives what
    stands for that fact."""
    out = {}
    for name, one in found.items():
        out[name] = {
            **one,
            **{fact: change(one) for fact, change in changes.items() if fact in one},
        }
    return out


def clean_environment(place: Path) -> dict[str, str]:
    """For builders: their temporary files and their configuration lie in `place`."""
    home = place / "home"
    home.mkdir(exist_ok=True)
    policy = home / ".config" / "containers"
    policy.mkdir(parents=True, exist_ok=True)
    (policy / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    return {**os.environ, "HOME": str(home), "TMPDIR": str(place), "BUILDAH_ISOLATION": "chroot"}
