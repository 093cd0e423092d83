"""`python -m benchmarks`: runs sections, writes bench-out/results.json and results.md.

A section can be run alone (`--sections ingest,export`); the results of the others stay in the file.
"""

from __future__ import annotations

import argparse
import compileall
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import layerstore
from benchmarks import (
    checkout,
    containers,
    deflate,
    diff,
    exact,
    memory,
    micro,
    optimize,
    regenerate,
    registry,
    report,
    space,
    speed,
)
from benchmarks.corpus import Layout, convert
from benchmarks.setting import Setting

# Those that need no quiet machine come first.
SECTIONS: dict[str, Callable[[Setting], list[report.Figure]]] = {
    "space": space.space,
    "rebuild": space.rebuild,
    "gc": space.gc,
    "accounting": space.accounting,
    "exact": exact.exact,
    "optimize": optimize.optimize,
    "regenerate": regenerate.regenerate,
    "memory": memory.memory,
    "start": speed.start,
    "snapshots": containers.snapshots,
    "micro": micro.micro,
    "deflate": deflate.deflate,
    "registry": registry.registry,
    **registry.PARTS,
    "ingest": speed.ingest,
    "export": speed.export,
    "known": speed.known,
    "gzip": speed.gzip,
    "checkout": checkout.checkout,
    "checkout-sci-2": checkout.checkout_sci,
    "checkout-gcc-2": checkout.checkout_gcc,
    "checkout-memory": checkout.checkout_memory,
    "diff": diff.diff,
    "diff-memory": diff.diff_memory,
}
QUICK = [
    "space",
    "rebuild",
    "gc",
    "optimize",
    "regenerate",
    "start",
    "micro",
    "deflate",
    "ingest",
    "export",
    "known",
    "gzip",
    "checkout",
]

# Of one section, for who wants only that.
PARTS = ("checkout-sci-2", "checkout-gcc-2", *registry.PARTS)

# The images of benchmarks/make_corpus.sh that the gc section removes: 9 of 18.
DROP = "base-1,py-1,sci-1,sci-2,gcc-1,jre-1,node-1,nodeapp-1,data-1"


def quick(work: Path, rounds: int) -> Setting:
    """The corpus that pip brings: the demo's app, built three times."""
    work.mkdir(parents=True, exist_ok=True)
    made = work / "images"
    maker = Path(__file__).parent.parent / "examples/app_images.py"
    subprocess.run([sys.executable, maker, made], check=True)
    layouts = [made / version for version in ("v1", "v2", "v3")]
    convert(layouts, work / "plain", compress=False)
    convert(layouts, work / "gzip", compress=True)
    plain, gzip = Layout(work / "plain"), Layout(work / "gzip")
    return Setting(plain, gzip, work / "stores", rounds, ("v1", "v2"), ("v1",), strict=False)


def corpus(layout: Path, plain: Path | None, work: Path, args: argparse.Namespace) -> Setting:
    """A layout of gzip layers and its plain twin, which is made beside it when it is missing."""
    twin = plain or layout.with_name(layout.name + "-plain")
    if not (twin / "index.json").exists():
        convert([layout], twin, compress=False)
    drop = tuple(args.drop.split(","))
    before, after = args.rebuilt.split(",")
    tags = {image.tag for image in Layout(layout).images()}
    if missing := {*drop, before, after} - tags:
        raise SystemExit(f"{layout} has no {', '.join(sorted(missing))}: see --drop and --rebuilt")
    strict = args.drop == DROP
    return Setting(
        Layout(twin), Layout(layout), work, args.rounds, (before, after), drop, strict=strict
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--quick", action="store_true", help="content that pip brings")
    what.add_argument("--corpus", type=Path, help="an OCI layout with gzip layers")
    parser.add_argument("--plain", type=Path, help="its uncompressed twin (default: CORPUS-plain)")
    parser.add_argument("--sections", help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each contender")
    parser.add_argument("--drop", default=DROP, help="tags that the gc section removes")
    parser.add_argument("--rebuilt", default="sci-2,sci-3", help="tags of an image and its rebuild")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    args = parser.parse_args()
    # Compiled once, as anybody's installation is: a compiler at each start is not what is measured.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(str(Path(layerstore.__file__).parent), quiet=1)
    whole = [name for name in SECTIONS if name not in PARTS]
    names = args.sections.split(",") if args.sections else QUICK if args.quick else whole
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / ("quick.json" if args.quick else "results.json")
    with tempfile.TemporaryDirectory(dir=args.out.resolve(), prefix="work-") as temporary:
        work = Path(temporary) / "work"
        if args.quick:
            setting = quick(work, args.rounds)
        else:
            setting = corpus(args.corpus.resolve(), args.plain, work, args)
        for name in names:
            started = time.monotonic()
            figures = SECTIONS[name](setting)
            report.save(results, name, figures)
            print(f"\n{name} ({time.monotonic() - started:.0f} s)")
            for figure in figures:
                print(f"  {report.line(figure)}", flush=True)
    print(f"\n{results} and {results.with_suffix('.md')}")


if __name__ == "__main__":
    main()
