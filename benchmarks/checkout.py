"""Section on checkout: root filesystems out, against umoci and against tar of the flattened tree.

The page cache is warm, nothing is synced by anybody; dirty pages of before are written first. Into a
filesystem with reflinks (btrfs on a loop device, as root) both sides write the same tree again.
As root the trees lie in a new ext4 of their own, and none is removed before the end: for minutes ext4
steps over each inode that was deleted, at each file that is made: seconds of CPU for every side.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Command, Contender, call, in_turn, peak_memory, warm
from benchmarks.memory import LIMIT, layout_of, many_tar
from benchmarks.report import Figure
from benchmarks.setting import Setting, installed
from benchmarks.speed import _figure

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


def _flat(s: Setting, store: Path, tag: str, where: Path) -> Path:
    """A tar of the flattened tree."""
    flat, tree = s.work / f"flat-{tag}.tar", where / "flattened"
    call(s.ours(store, "checkout", f"{tag}:1", tree))
    call(["tar", *TAR, "-C", tree, "-cf", flat, "."])
    _aside(tree)
    return flat


def _aside(tree: Path) -> None:
    """Room for a tree: one that is there goes aside."""
    aside = tree.with_name("aside")
    if tree.exists():
        aside.mkdir(exist_ok=True)
        tree.rename(aside / f"{tree.name}-{len(list(aside.iterdir()))}")


def _tar(flat: Path, target: Path, room: Callable[[], None]) -> Contender:
    def prepare() -> None:
        room()
        target.mkdir()

    return Contender(
        "tar x of the flattened tree", [["tar", *TAR, "-C", target, "-xf", flat]], prepare
    )


@contextmanager
def _new_filesystem(s: Setting, kind: str, options: str = "loop") -> Iterator[Path]:
    """A filesystem that nothing has been written to; the work directory where none can be made."""
    if os.geteuid() or not installed(f"mkfs.{kind}"):
        yield s.work
        return
    image, where = s.fresh(f"{kind}.image"), s.fresh(kind)
    with image.open("wb") as f:
        f.truncate(48 << 30)
    call([f"mkfs.{kind}", "-q", image])
    where.mkdir()
    call(["mount", "-o", options, image, where])
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
    warm(s.plain.blob(layer.digest) for layer in s.image(tag).layers)
    with _new_filesystem(s, "ext4", "loop,noinit_itable") as where:
        flat = _flat(s, store, tag, where)
        warm([flat])
        out = _against(s, store, tag, flat, where)
    if os.geteuid() == 0 and installed("mkfs.btrfs"):
        out.append(_second_time(s, store, tag, flat))
    return out


def _against(s: Setting, store: Path, tag: str, flat: Path, where: Path) -> list[Figure]:
    rootfs, untarred, unpacked = where / "rootfs", where / "untarred", where / "bundle"
    command = s.ours(store, "checkout", f"{tag}:1", rootfs)
    ours = Contender(f"checkout {tag}", [command], lambda: _aside(rootfs))
    tar = _tar(flat, untarred, lambda: _aside(untarred))
    peers = []
    if installed("umoci"):
        for kind, layout in (("plain", s.plain), ("gzip", s.gzip)):
            bundle: Command = ["umoci", "unpack", "--image", f"{layout.path}:{tag}", unpacked]
            name = f"umoci unpack, {kind} layers"
            peers.append(Contender(name, [bundle], lambda: _aside(unpacked)))
    in_turn([ours, tar, *peers], s.rounds, s.env)
    _gone(rootfs, untarred, unpacked, where / "aside")
    return [
        _figure(f"checkout {tag}", ours, tar, s.bound(1.3)),
        *(_figure(f"checkout {tag}", ours, peer, s.bound(0.25)) for peer in peers),
    ]


def _second_time(s: Setting, store: Path, tag: str, flat: Path) -> Figure:
    with _new_filesystem(s, "btrfs") as where:
        call(s.ours(store, "checkout", f"{tag}:1", where / "first"))
        command = s.ours(store, "checkout", f"{tag}:1", where / "second")
        ours = Contender(f"checkout {tag}", [command], lambda: _gone(where / "second"))
        tar = _tar(flat, where / "untarred", lambda: _gone(where / "untarred"))
        in_turn([ours, tar], s.rounds, s.env)
    return _figure(f"checkout {tag}, second time, reflinks", ours, tar, s.bound(0.5))


def _gone(*paths: Path) -> None:
    call(["rm", "-rf", *paths])


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
