"""Sections on layers out of directories: an overlay's upper directory of over a gigabyte.

The upper directory is a buildah container's: gcc-2 with two other images' trees copied in, trees
removed, moved and replaced (as a build step with installs does). So buildah commits the very
directory that we diff; umoci repacks a bundle with the same tree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Command, Contender, call, in_turn, peak_memory
from benchmarks.report import Figure
from benchmarks.setting import Setting, installed
from benchmarks.speed import _figure, _fresh

BASE, ADDED = "gcc-2", ("jre-2", "node-2", "sci-2")
MANY = 1_000_000
CHANGES = """
set -e
cd "$1"
rm -rf usr/share/man usr/lib/gcc/x86_64-linux-gnu/*/plugin
[ ! -d usr/include/c++ ] || mv usr/include/c++ usr/include/cxx-moved
rm -rf usr/share/perl5; mkdir usr/share/perl5; echo x > usr/share/perl5/new
rm -rf usr/share/locale; mkdir -p usr/share/locale/xx; echo y > usr/share/locale/xx/y
"""


def _shell(line: str, *words: str | Path) -> Command:
    return ["bash", "-o", "pipefail", "-ec", line, "bash", *words]


@dataclass
class Container:
    """A buildah container that was changed."""

    buildah: Sequence[str | Path]
    name: str
    mounted: Path
    upper: Path
    lower: Sequence[Path]


@contextmanager
def container(s: Setting) -> Iterator[Container]:
    """gcc-2 with what was installed, removed and moved."""
    root = s.fresh("buildah")
    buildah: list[str | Path] = ["buildah", "--root", root, "--runroot", s.fresh("run")]
    buildah += ["--storage-driver", "overlay"]
    base = BASE if s.strict else s.rebuilt[0]
    name = call([*buildah, "from", f"oci:{s.gzip.path}:{base}"]).split()[-1]
    mounted = Path(call([*buildah, "mount", name]).strip())
    try:
        call(_shell(CHANGES, mounted))
        # Written by our own checkout: umoci's of these images would take most of the section's time.
        store = s.fresh("added")
        for tag in ADDED if s.strict else s.rebuilt[1:]:
            call(s.ours(store, "import", f"oci:{s.plain.path}:{tag}", tag))
            call(s.ours(store, "checkout", tag, mounted / "opt" / tag))
        s.fresh("added")
        yield Container(buildah, name, mounted, *_layers(mounted))
    finally:
        call([*buildah, "umount", name])
        s.fresh("buildah")


def _layers(mounted: Path) -> tuple[Path, Sequence[Path]]:
    """The upper and lower directories of an overlay mount, as the kernel has them."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if where == str(mounted) and kind == "overlay":
            found = dict(o.partition("=")[::2] for o in options.split(","))
            root = mounted.parents[1]
            # Relative ones are relative to the driver's directory.
            lower = [root / p for p in found["lowerdir"].split(":")]
            return root / found["upperdir"], lower
    raise RuntimeError(f"{mounted} is no overlay mount")


def diff(s: Setting) -> list[Figure]:
    """The diff into the store, and onto a pipe, against tar, buildah commit and umoci repack."""
    if not (installed("buildah") and installed("umoci")):
        return []
    with container(s) as c:
        return [*_into_store(s, c), *_again(s, c), *_onto_pipe(s, c), *_builders(s, c)]


def _diff(s: Setting, c: Container, *more: str) -> Command:
    lower = [word for path in c.lower for word in ("--lower", str(path))]
    return s.ours(s.work / "diff", "diff", "--upper", c.upper, *lower, *more)


def _into_store(s: Setting, c: Container) -> list[Figure]:
    call(_shell('tar -c -C "$1" . | cat > /dev/null', c.upper))
    ours = Contender("diff", [_diff(s, c)], _fresh(s, "diff"))
    line = 'tar -c -C "$1" . | zstd -q -3 -T2 > "$2"'
    peer = Contender("tar | zstd -3 -T2", [_shell(line, c.upper, s.work / "tar.zst")])
    in_turn([ours, peer], s.rounds, s.env)
    return [_figure("diff into the store", ours, peer, s.bound(1.2))]


def _again(s: Setting, c: Container) -> list[Figure]:
    first = Contender("the first", [_diff(s, c)], _fresh(s, "diff"))
    again = Contender("the same diff again", [_diff(s, c)])
    in_turn([first, again], s.rounds, s.env)
    return [_figure("diff again", again, first, s.bound(0.1))]


def _onto_pipe(s: Setting, c: Container) -> list[Figure]:
    words = [str(word) for word in _diff(s, c, "--tar", "-")]
    ours = Contender("diff --tar -", [_shell('"$@" | cat > /dev/null', *words)])
    line = "tar -c --xattrs --xattrs-include='*' -C \"$1\" . | cat > /dev/null"
    peer = Contender("tar --xattrs", [_shell(line, c.upper)])
    in_turn([ours, peer], max(5, s.rounds), s.env)
    return [_figure("diff onto a pipe", ours, peer, s.bound(1.0))]


def _builders(s: Setting, c: Container) -> list[Figure]:
    ours = Contender("diff", [_diff(s, c)], _fresh(s, "diff"))
    buildahs = []
    for kind, disable in (("gzip", "false"), ("plain", "true")):
        commit = [*c.buildah, "commit", "-q", f"--disable-compression={disable}", c.name]
        commit.append(f"oci:{s.work / 'committed'}:1")
        name = f"buildah commit, {kind} layer"
        buildahs.append(Contender(name, [commit], _fresh(s, "committed")))
    base = BASE if s.strict else s.rebuilt[0]
    layout, bundle = s.fresh("repacked"), s.fresh("bundle")
    call(["cp", "-a", s.gzip.path, layout])
    call(["umoci", "unpack", "--image", f"{layout}:{base}", bundle])
    call(["rm", "-rf", bundle / "rootfs"])
    call(["cp", "-a", c.mounted, bundle / "rootfs"])
    umoci = Contender("umoci repack", [["umoci", "repack", "--image", f"{layout}:new", bundle]])
    # One round: each takes a minute.
    in_turn([ours, *buildahs, umoci], 1, s.env)
    for name in ("repacked", "bundle", "committed"):
        s.fresh(name)
    return [_figure("diff", ours, peer, s.bound(0.2)) for peer in (*buildahs, umoci)]


def diff_memory(s: Setting) -> list[Figure]:
    """Peak anonymous and shared memory of a diff of many files, and of the same again."""
    count = MANY if s.strict else 20_000
    tree = s.fresh("many")
    for number in range(count):
        if number % 1000 == 0:
            folder = tree / f"{number // 1000:04d}"
            folder.mkdir(parents=True)
            at = os.open(folder, os.O_RDONLY)
        fd = os.open(f"record-{number}.json", os.O_CREAT | os.O_WRONLY, dir_fd=at)
        os.write(fd, b"%d\n" % number * (1 + number % 9))
        os.close(fd)
        if number % 1000 == 999:
            os.close(at)
    out = []
    store = s.fresh("diff")
    for name in ("diff", "the same diff again", "diff with a cache of other options"):
        extra = {} if name != "diff with a cache of other options" else {"SOURCE_DATE_EPOCH": "9"}
        command = s.ours(store, "diff", "--upper", tree)
        words = ["env", *(f"{k}={v}" for k, v in extra.items()), *command]
        run = peak_memory(words)
        detail = {"mapped files": f"{run.mapped / 2**20:.0f} MiB", "seconds": run.wall}
        peak = run.anonymous / 2**20
        out.append(Figure(f"memory: {name}, {count:,} files", peak, "MiB", 256.0, detail=detail))
    call(["rm", "-rf", tree])
    s.fresh("diff")
    return out
