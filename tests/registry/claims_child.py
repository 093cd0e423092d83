"""A process that holds a claim, for tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

HOLD = """
import sys, time
from layerstore.registry.claims import Claims
claim = Claims(sys.argv[1]).of(*sys.argv[2:])
assert claim.take()
claim.say("it is mine")
print("held", flush=True)
time.sleep(300)
"""


@contextlib.contextmanager
def hold(directory: str, *key: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, directory, *key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()
