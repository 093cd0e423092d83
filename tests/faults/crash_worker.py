"""Processes that put, name and collect until they are killed; say on stdout what was acknowledged.

For each line `STORE SEED` on stdin a child is forked (which costs less than an interpreter); it says
`pid N`, `open`, and for each step a line before it begins (`try NAME`, `drop NAME`) and one after it
has returned (`have NAME DIGEST`, `gone NAME`). When it has ended: `dead STATUS`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import stores

from layerstore.storage.gc import checkpoint, collect


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def content_of(number: int) -> tuple[bytes, str]:
    """What goes under the name `nNUMBER`: every form, with shared parts."""
    files = {f"shared{i}": stores.words(i, 6000) for i in range(number % 9)}
    tar = stores.tar_of({**files, f"own{number}": stores.words(900 + number, 9000)})
    kind = number % 4
    if kind == 0:
        return tar, stores.TAR
    if kind == 1:
        return stores.gzipped(tar), stores.TAR_GZIP
    if kind == 2:
        return stores.words(number, 70_000), "text/plain"
    return stores.words(number, 500), "text/plain"


def work(path: str, seed: int) -> None:
    source = random.Random(seed)
    with stores.opened(path) as content:
        say("open")
        with content.operation() as op:
            names = [r.name for r in op.refs() if r.name[0] == "n"]
        while True:
            step = source.random()
            if step < 0.2:
                collect(content.storage, aggressive=source.random() < 0.5)
                if source.random() < 0.3:
                    checkpoint(content.storage)
            elif step < 0.45 and len(names) > 3:
                name = names.pop(source.randrange(len(names)))
                say(f"drop {name}")
                stores.untag(content, name)
                say(f"gone {name}")
            else:
                number = source.randrange(60)
                name = f"n{number}"
                if name in names:
                    continue
                data, kind = content_of(number)
                say(f"try {name}")
                say(f"have {name} {stores.keep(content, name, data, kind)}")
                names.append(name)


def main() -> None:
    # Whoever runs the tests in the background of a shell has SIGINT ignored, and so would we.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        path, seed = line.rsplit(maxsplit=1)
        child = os.fork()
        if child == 0:
            say(f"pid {os.getpid()}")
            try:
                work(path, int(seed))
            except KeyboardInterrupt:
                os._exit(130)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        say(f"dead {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    main()
