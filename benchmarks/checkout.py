"""Section on checkout: root filesystems out, against umoci and against tar of the flattened tree.

The page cache is warm, nothing is synced by anybody; dirty pages of before are written first. Into a
filesystem with reflinks (btrfs on a loop device, as root) both sides write the same tree again.
umoci, which takes most of the time and is far off its bound, runs in the first round only.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Command, Contender, call, in_turn, peak_memory, warm
from benchmarks.memory import LIMIT, layout_of, many_tar
from benchmarks.report import Figure
from benchmarks.setting import Setting, installed
from benchmarks.speed import _figure, _fresh

IMAGES = ("sci-2", "gcc-2")
TAR = ["--numeric-owner", "--xattrs", "--xattrs-include=*"]


def _images(s: Setting) -> list[str]:
    there = {image.tag for image in s.plain.images()}
    return [tag for tag in IMAGES if tag in there] or [s.rebuilt[1]]


def _store(s: Setting, tag: str) -> Path:
    """A store with an image, its layers as tars."""
    store = s.work / f"checkout-store-{tag}"
    if not store.exists():
        call(s.ours(store, "import", f"oci:{s.plain.path}:{tag}", f"{tag}:1"))
    return store


def _flat(s: Setting, store: Path, tag: str) -> Path:
    """A tar of the flattened tree."""
    flat = s.work / f"flat-{tag}.tar"
    if not flat.exists():
        tree = s.fresh("flattened")
        call(s.ours(store, "checkout", f"{tag}:1", tree))
        call(["tar", *TAR, "-C", tree, "-cf", flat, "."])
        s.fresh("flattened")
    return flat


def _tar(s: Setting, flat: Path, target: Path) -> Contender:
    def prepare() -> None:
        call(["rm", "-rf", target])
        target.mkdir()

    return Contender(
        "tar x of the flattened tree", [["tar", *TAR, "-C", target, "-xf", flat]], prepare
    )


@contextmanager
def _reflinks(s: Setting) -> Iterator[Path]:
    """A filesystem with reflinks."""
    image, where = s.fresh("btrfs.image"), s.fresh("btrfs")
    with image.open("wb") as f:
        f.truncate(8 << 30)
    call(["mkfs.btrfs", "-q", image])
    where.mkdir()
    call(["mount", "-o", "loop", image, where])
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
        image.unlink()


def checkout(s: Setting) -> list[Figure]:
    """All images of the section, one after the other."""
    return [figure for tag in _images(s) for figure in _checkout(s, tag)]


def checkout_sci(s: Setting) -> list[Figure]:
    """The first image alone."""
    return _checkout(s, IMAGES[0])


def checkout_gcc(s: Setting) -> list[Figure]:
    """The second image alone."""
    return _checkout(s, IMAGES[1])


def _checkout(s: Setting, tag: str) -> list[Figure]:
    """One image: checkout against umoci unpack (gzip and plain layers) and tar x."""
    store = _store(s, tag)
    warm(path for path in store.rglob("*.pack"))
    out = []
    warm(s.plain.blob(layer.digest) for layer in s.image(tag).layers)
    flat = _flat(s, store, tag)
    warm([flat])
    command = s.ours(store, "checkout", f"{tag}:1", s.work / "rootfs")
    contenders = [
        Contender(f"checkout {tag}", [command], _fresh(s, "rootfs")),
        _tar(s, flat, s.work / "untarred"),
    ]
    if installed("umoci"):
        for kind, layout in (("plain", s.plain), ("gzip", s.gzip)):
            bundle: Command = [
                "umoci", "unpack", "--image", f"{layout.path}:{tag}", s.work / "bundle",
            ]  # fmt: skip
            contenders.append(
                Contender(f"umoci unpack, {kind} layers", [bundle], _fresh(s, "bundle"))
            )
    ours, tar, *peers = contenders
    in_turn(contenders, 1, s.env)
    in_turn([ours, tar], s.rounds - 1, s.env)
    out.append(_figure(f"checkout {tag}", ours, tar, s.bound(1.3)))
    first = Contender(ours.name, ours.steps, runs=ours.runs[:1])
    out += [_figure(f"checkout {tag}", first, peer, s.bound(0.25)) for peer in peers]
    for name in ("rootfs", "untarred", "bundle"):
        s.fresh(name)
    if os.geteuid() == 0 and installed("mkfs.btrfs"):
        out.append(_second_time(s, store, tag, flat))
    return out


def _second_time(s: Setting, store: Path, tag: str, flat: Path) -> Figure:
    with _reflinks(s) as where:
        call(s.ours(store, "checkout", f"{tag}:1", where / "first"))
        command = s.ours(store, "checkout", f"{tag}:1", where / "second")
        ours = Contender(f"checkout {tag}", [command], lambda: _gone(where / "second"))
        tar = _tar(s, flat, where / "untarred")
        in_turn([ours, tar], s.rounds, s.env)
    return _figure(f"checkout {tag}, second time, reflinks", ours, tar, s.bound(0.5))


def _gone(path: Path) -> None:
    call(["rm", "-rf", path])


def checkout_memory(s: Setting) -> list[Figure]:
    """Peak memory of a checkout of a million files."""
    layout = layout_of(s.fresh("many-layout"), many_tar())
    store = s.fresh("many-store")
    call(s.ours(store, "import", f"oci:{layout}:big", "big:1"))
    s.fresh("many-layout")
    run = peak_memory(s.ours(store, "checkout", "big:1", s.fresh("many-rootfs")))
    s.fresh("many-rootfs")
    s.fresh("many-store")
    detail = {"seconds": run.wall, "mapped MiB": run.mapped / (1 << 20)}
    return [
        Figure(
            "checkout of a million files: peak memory",
            run.anonymous / (1 << 20),
            "MiB",
            LIMIT,
            detail=detail,
        )
    ]
