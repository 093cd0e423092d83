"""The main job, on real content: three builds of one app, kept once, given back bit for bit.

`make demo`, or `python examples/demo.py [DIR]`. Makes three images as a CI job does (app_images.py:
a build, the same build again, a build with one package upgraded), takes them in, shows what each
costs, exports them, compares every digest, removes one and collects the garbage. The command line
does the steps, the library the table at the end; both are what any program would use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import app_images

import layerstore

LAYERSTORE = Path(sys.executable).with_name("layerstore")


def run(store: Path, *args: str) -> str:
    """Runs one command on the store, shows it, and gives what it printed."""
    print(f"\n$ layerstore {' '.join(args)}", flush=True)
    command = [str(LAYERSTORE), "--store", str(store), *args]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(output, end="", flush=True)
    return output


def ask(store: Path, *args: str) -> Any:
    """The JSON document of one command."""
    command = [str(LAYERSTORE), "--store", str(store), "--json", *args]
    print(f"\n$ layerstore --json {' '.join(args)}", flush=True)
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def blobs(layout: Path) -> dict[str, int]:
    """Digest and size of every blob of a layout; each file is hashed and held against its name."""
    found = {}
    for path in sorted((layout / "blobs/sha256").iterdir()):
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        if digest != path.name:
            raise SystemExit(f"{path}: holds sha256:{digest}")
        found[digest] = path.stat().st_size
    return found


def du(directory: Path) -> int:
    """Bytes on disk, as du counts them."""
    paths = [directory, *directory.rglob("*")]
    return sum(os.lstat(path).st_blocks * 512 for path in paths)


def mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def main(out: Path) -> None:
    started = time.monotonic()
    images, store, exported = out / "images", out / "store", out / "exported"
    shutil.rmtree(out, ignore_errors=True)
    print("Building an app three times: v1; v2, the same; v3, Django upgraded ...", flush=True)
    app_images.build(images)

    taken = {}
    for version in app_images.VERSIONS:
        answer = ask(store, "import", f"oci:{images / version}:{version}", f"app:{version}")
        taken[version] = answer["images"][0]
        print(
            f"{taken[version]['name']}: {mb(taken[version]['bytes'])} of blobs, "
            f"the store grew by {mb(taken[version]['new_bytes'])}"
        )
    run(store, "images")
    run(store, "ls", "app:v3", "/srv/app/main.py")
    run(store, "cat", "app:v3", "/srv/app/main.py")
    run(store, "export", *(f"app:{v}" for v in app_images.VERSIONS), f"oci:{exported}")

    given = blobs(exported)
    came: dict[str, int] = {}
    for version in app_images.VERSIONS:
        came |= blobs(images / version)
    if given != came:
        raise SystemExit(f"the exported blobs differ: {set(given) ^ set(came)}")
    print(f"\nAll {len(came)} blobs of the three images came back under their digests.")

    with layerstore.open(store, create=False) as opened:
        costs = {cost.name: cost for cost in opened.stats(images=True).per_image}
    on_disk = du(store)
    run(store, "untag", "app:v1")
    run(store, "gc", "--aggressive")
    run(store, "check", "--full")
    run(store, "images")

    layers = sum(image["bytes"] for image in taken.values())
    print(f"\n{'image':8}{'its blobs':>14}{'new in store':>15}{'held alone':>14}{'shared':>14}")
    for image in taken.values():
        cost = costs[image["name"]]
        cells = image["bytes"], image["new_bytes"], cost.alone, cost.shared
        print(
            f"{image['name']:8}"
            + "".join(f"{mb(n):>{w}}" for n, w in zip(cells, WIDTHS, strict=True))
        )
    print(f"\nThree images of {mb(layers)} took {mb(on_disk)} of disk, the index counted.")
    print(f"Done in {time.monotonic() - started:.0f} s; everything is in {out}/.")


WIDTHS = 14, 15, 14, 14

if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out"))
