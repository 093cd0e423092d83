"""Sections on time: each of ours against a peer or a bound, in turn, page cache warm."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.corpus import Layout
from benchmarks.measure import Command, Contender, call, in_turn, timed, warm
from benchmarks.report import Figure
from benchmarks.setting import Setting, hash_of, installed


def _figure(name: str, ours: Contender, peer: Contender, bound: float | None) -> Figure:
    """The ratio of medians, and every run of both."""
    detail = {
        ours.name: ours.median(),
        f"{ours.name} cpu": statistics.median(run.cpu for run in ours.runs),
        peer.name: peer.median(),
        "runs": " ".join(
            f"{a.wall:.2f}/{b.wall:.2f}" for a, b in zip(ours.runs, peer.runs, strict=True)
        ),
    }
    return Figure(
        f"{name}: of {peer.name}", ours.median() / peer.median(), "ratio", bound, False, detail
    )


def _fresh(s: Setting, *names: str) -> Callable[[], None]:
    def prepare() -> None:
        for name in names:
            s.fresh(name)

    return prepare


def _blobs(layout: Layout) -> Iterable[Path]:
    return (layout.path / "blobs/sha256").iterdir()


def _init_restic(s: Setting) -> None:
    s.fresh("cache")
    call(["restic", "-r", s.fresh("restic"), "init", "--repository-version", "2"], s.env)


def ingest(s: Setting) -> list[Figure]:
    """Importing all tars, deduplicated and synced, against a backup of the same tars."""
    warm(_blobs(s.plain))
    store, restic = s.work / "ingest", s.work / "restic"
    ours = Contender("import", [s.import_all(store)], _fresh(s, "ingest"))
    backup: Command = ["restic", "-r", restic, "backup", "-q", s.plain.path / "blobs"]
    peer = Contender("restic backup", [backup], lambda: _init_restic(s))
    if not installed("restic"):
        peer = Contender("sha256 of all tars", [hash_of(sorted(_blobs(s.plain)))])
    in_turn([ours, peer], s.rounds, s.env)
    bound = s.bound(0.45) if installed("restic") else None
    return [_figure("ingest", ours, peer, bound)]


def export(s: Setting) -> list[Figure]:
    """Exporting all images into one layout, every digest verified, against a restore."""
    store = s.full_store()
    warm(path for path in store.rglob("*.pack"))
    command = s.ours(store, "export", *s.names(store), f"oci:{s.work / 'exported'}")
    ours = Contender("export", [command], _fresh(s, "exported"))
    peer = Contender("sha256 of all tars", [hash_of(sorted(_blobs(s.plain)))])
    if installed("restic"):
        restic = s.work / "restic"
        _init_restic(s)
        call(["restic", "-r", restic, "backup", "-q", s.plain.path / "blobs"], s.env)
        restore: Command = [
            "restic",
            "-r",
            restic,
            "restore",
            "latest",
            "-q",
            "-t",
            s.work / "restored",
        ]
        peer = Contender("restic restore", [restore], _fresh(s, "restored"))
    in_turn([ours, peer], s.rounds, s.env)
    s.fresh("exported")
    s.fresh("restored")
    bound = s.bound(0.60) if installed("restic") else None
    return [_figure("export", ours, peer, bound)]


def known(s: Setting) -> list[Figure]:
    """An image whose layers are new and whose content is all known, against sha256 alone."""
    base = s.fresh("known-base")
    before, after = s.rebuilt
    call(s.ours(base, "import", f"oci:{s.plain.path}:{before}", "app:1"))
    new = s.new_in_rebuilt()
    warm(new)

    def prepare() -> None:
        s.copy_of(base, "known")

    command = s.ours(s.work / "known", "import", f"oci:{s.plain.path}:{after}", "app:2")
    ours = Contender(f"import of {after} after {before}", [command], prepare)
    peer = Contender("sha256 of its new layers", [hash_of(new)])
    whole = Contender(
        "sha256 of all its layers",
        [hash_of([s.plain.blob(x.digest) for x in s.image(after).layers])],
    )
    in_turn([ours, peer, whole], max(5, s.rounds), s.env)
    return [
        _figure("known content", ours, peer, s.bound(2.0)),
        _figure("known content", ours, whole, None),
    ]


def gzip(s: Setting) -> list[Figure]:
    """The gzip layout kept as it came, synced, against skopeo's copy and a plain copy."""
    warm(_blobs(s.gzip))
    command = s.ours(s.work / "raw", "import", "--defer", "--all", f"oci:{s.gzip.path}", "bench/")
    contenders = [Contender("import --defer", [command], _fresh(s, "raw"))]
    if installed("skopeo"):
        target = s.work / "skopeo"
        copies = [
            ["skopeo", "copy", "-q", f"oci:{s.gzip.path}:{x.tag}", f"oci:{target}:{x.tag}"]
            for x in s.gzip.images()
        ]
        contenders.append(Contender("skopeo copy", copies, _fresh(s, "skopeo")))
    copy: list[Command] = [["cp", "-r", s.gzip.path, s.work / "copied"], ["sync"]]
    contenders.append(Contender("cp -r and sync", copy, _fresh(s, "copied")))
    in_turn(contenders, s.rounds, s.env)
    for name in ("raw", "skopeo", "copied"):
        s.fresh(name)
    bounds = {"skopeo copy": 0.55, "cp -r and sync": 1.25}
    return [
        _figure("gzip layout, raw", contenders[0], peer, s.bound(bounds[peer.name]))
        for peer in contenders[1:]
    ]


def start(s: Setting) -> list[Figure]:
    """How long a command takes that has next to nothing to do."""
    store = s.full_store()
    out = []
    program = s.ours(store)[0]
    commands = {
        "start: layerstore --help": ([program, "--help"], 0.15),
        "start: layerstore images": (s.ours(store, "images"), s.bound(0.25)),
        "start: python -c pass (for comparison)": ([sys.executable, "-c", "pass"], None),
    }
    for name, (command, bound) in commands.items():
        walls = [timed([command]).wall for _ in range(15)]
        out.append(Figure(name, statistics.median(walls), "s", bound, detail={"best": min(walls)}))
    return out


def clean(s: Setting) -> None:
    """Removes what the sections left in the work directory."""
    shutil.rmtree(s.work, ignore_errors=True)
