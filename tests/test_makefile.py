"""`make` alone says what can be done, and knows every target that the documents name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def listed() -> set[str]:
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(re.findall(r"^ *make ([a-z-]+) ", done.stdout, flags=re.M))


def test_make_lists_the_targets() -> None:
    assert {"build", "demo", "test", "lint", "fuzz", "bench", "bench-quick"} <= listed()


def test_every_target_that_a_document_names_exists() -> None:
    named = set()
    for path in ROOT.glob("*.md"):
        named |= set(re.findall(r"`make ([a-z-]+)", path.read_text()))
    assert named <= listed(), f"unknown: {named - listed()}"
