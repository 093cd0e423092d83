"""The protocol of RULES 3 to 7, searched whole: nothing goes wrong with every rule kept, and something
does with any one of them left out. `LAYERSTORE_TRACES=1 pytest -s` prints the way to each."""

from __future__ import annotations

import os

import commit_protocol as model
import pytest


@pytest.mark.parametrize("name", model.SCENARIOS)
def test_nothing_goes_wrong(name: str) -> None:
    found = model.search(model.SCENARIOS[name])
    assert found.violation is None, found.told()
    # Not by being stuck at the start: every actor can end, and the collector can delete.
    assert found.worlds > 500


def test_every_rule_has_its_case() -> None:
    assert sorted(model.SMALLEST) == sorted(model.RULES)


@pytest.mark.parametrize("rule", model.RULES)
def test_every_rule_is_needed(rule: str) -> None:
    start = model.SMALLEST[rule]
    kept = model.search(start)
    assert kept.violation is None, kept.told()
    without = model.search(start, model.ALL - {rule})
    assert without.violation is not None, f"nothing goes wrong without: {model.RULES[rule]}"
    if os.environ.get("LAYERSTORE_TRACES"):
        print(f"\nwithout {rule} ({model.RULES[rule]}), after {without.worlds} worlds:")
        print(without.told())


def test_each_step_is_taken_somewhere() -> None:
    """A step that no walk reaches would make the searches say less than they seem to."""
    taken = set()
    for start in (
        model.SMALLEST["fence"],
        model.start("tagger", "untag", blob=True, ref=True),
        *[model.start("put_and_tag", "reader", blob=True, deaths=1)],
    ):
        for _, labels in model.worlds(start):
            taken.update(labels)
    assert taken >= {*model.OPERATION, *model.COLLECTION, "die", "lose_lock"} - {"over", "rest"}
