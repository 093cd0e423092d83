"""Processes that put, import, name and collect until they are killed, and say what was acknowledged.

For each line `STORE SEED` on stdin a child is forked (which costs less than an interpreter); it says
`pid N`, `open`, and for each step a line before it begins (`try NAME`, `drop NAME`) and one after it
has returned (`have NAME DIGEST`, `gone NAME`), and `gc` and `done` around a gc. When it has ended:
`dead STATUS`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import stores

import layerstore.oci.layout  # noqa: F401 (before the forks, which need it)
from layerstore.oci.importing import import_images
from layerstore.oci.transports import parse
from layerstore.storage.gc import checkpoint, collect

BLOBS, IMAGES = 60, 10
"""How many names there are for blobs that are put, and behind them for images that are imported."""


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def name_of(number: int) -> str:
    return f"n{number}" if number < BLOBS else f"n{number}:latest"


def number_of(name: str) -> int:
    return int(name[1:].partition(":")[0])


def tar_of(number: int) -> bytes:
    files = {f"shared{i}": stores.words(i, 6000) for i in range(number % 9)}
    return stores.tar_of({**files, f"own{number}": stores.words(900 + number, 9000)})


def image_of(number: int) -> tuple[bytes, list[bytes]]:
    """A manifest, and the blobs that it names: config, a tar, a compressed tar."""
    tar, other = tar_of(number), tar_of(number + 1)
    diff_ids = [stores.sha256(tar), stores.sha256(other)]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    packed = stores.gzipped(other)
    manifest, _ = stores.manifest_of(config, [(tar, stores.TAR), (packed, stores.TAR_GZIP)])
    return manifest, [config, tar, packed]


def make_layout(path: str) -> str:
    """A layout beside a store, with all images, once."""
    root = Path(f"{path}.layout")
    folder = root / "blobs" / "sha256"
    if (root / "index.json").exists():
        return str(root)
    folder.mkdir(parents=True)
    listed = []
    for number in range(BLOBS, BLOBS + IMAGES):
        manifest, blobs = image_of(number)
        for data in (manifest, *blobs):
            (folder / stores.sha256(data).partition(":")[2]).write_bytes(data)
        notes = {"org.opencontainers.image.ref.name": f"n{number}"}
        one = {"mediaType": stores.MANIFEST, "size": len(manifest), "annotations": notes}
        listed.append({**one, "digest": stores.sha256(manifest)})
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": listed}))
    return str(root)


def content_of(number: int) -> tuple[bytes, str]:
    """What goes under a name: blobs of every form, with shared parts, and manifests of images."""
    if number >= BLOBS:
        return image_of(number)[0], stores.MANIFEST
    tar = tar_of(number)
    kind = number % 4
    if kind == 0:
        return tar, stores.TAR
    if kind == 1:
        return stores.gzipped(tar), stores.TAR_GZIP
    if kind == 2:
        return stores.words(number, 70_000), "text/plain"
    return stores.words(number, 500), "text/plain"


def work(path: str, layout: str, seed: int) -> None:
    source = random.Random(seed)
    with stores.opened(path) as content:
        say("open")
        with content.operation() as op:
            names = [r.name for r in op.refs() if r.name[0] == "n"]
        while True:
            step = source.random()
            if step < 0.2:
                say("gc")
                collect(content.storage, aggressive=source.random() < 0.5)
                if source.random() < 0.3:
                    checkpoint(content.storage)
                say("done")
            elif step < 0.45 and len(names) > 3:
                name = names.pop(source.randrange(len(names)))
                say(f"drop {name}")
                stores.untag(content, name)
                say(f"gone {name}")
            else:
                number = source.randrange(BLOBS)
                if step >= 0.75:
                    number = BLOBS + number % IMAGES
                name = name_of(number)
                if name in names:
                    continue
                if number >= BLOBS:
                    transport = parse(f"oci:{layout}:n{number}")
                    say(f"try {name}")
                    (taken,) = import_images(content, transport, name=name)
                    say(f"have {name} {taken.digest}")
                else:
                    data, kind = content_of(number)
                    say(f"try {name}")
                    say(f"have {name} {stores.keep(content, name, data, kind)}")
                names.append(name)


def main() -> None:
    # Whoever runs the tests in the background of a shell has SIGINT ignored, and so would we.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in sys.stdin:
        path, seed = line.rsplit(maxsplit=1)
        layout = make_layout(path)
        child = os.fork()
        if child == 0:
            say(f"pid {os.getpid()}")
            try:
                work(path, layout, int(seed))
            except KeyboardInterrupt:
                os._exit(130)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        say(f"dead {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    main()
