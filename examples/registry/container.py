"""The registry in a container, without a Dockerfile, a daemon or a base image of somebody else.

    python examples/registry/container.py STORE IMAGE_STORE BUNDLE    # then: crun run -b BUNDLE NAME

Python, layerstore and what they need are copied from this machine into a directory, which becomes the
image `localhost/registry:latest` in IMAGE_STORE, and a bundle of it. The container serves STORE, which
is mounted at /store, on the host's network. Arguments of `serve` stand in the bundle's config.json.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import layerstore

NAME = "localhost/registry:latest"
SERVE = ["--store", "/store", "serve", "--listen", "127.0.0.1:5000"]
LEFT_OUT = shutil.ignore_patterns(
    *("test", "tests", "idlelib", "tkinter", "_tkinter*", "lib2to3", "ensurepip", "pydoc_data"),
    *("site-packages", "*.a", "config-*", "_test*"),
)
EPOCH = 1_700_000_000


def needed(name: str, extra: str = "", seen: set[str] | None = None) -> Iterator[str]:
    """A distribution and all that it requires, as installed here."""
    seen = set() if seen is None else seen
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return
    seen.add(key)
    try:
        required = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return  # of another platform or Python
    yield name
    for one in required:
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)", one)
        if wanted is None or wanted[1] == extra:
            found = re.match(r"[A-Za-z0-9._-]+", one)
            if found:
                yield from needed(found[0], "", seen)


def copy(source: Path, root: Path, target: Path | None = None) -> Path:
    """A file into the tree, to the same place unless told otherwise."""
    there = root / (target or source).relative_to("/")
    there.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, there)
    return there


def libraries(programs: Iterable[Path]) -> set[Path]:
    """The shared libraries that programs and extensions need, the loader too."""
    found: set[Path] = set()
    for program in programs:
        said = subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout
        found |= {Path(path) for path in re.findall(r"(/\S+) \(0x", said)}
    return found


def fill(root: Path) -> tuple[Path, Path]:
    """Python with the standard library, layerstore and its packages; where the interpreter is, and
    where the packages are: a distribution's own Python may look for them elsewhere."""
    interpreter = Path(os.path.realpath(sys.executable))
    found = importlib.util.find_spec("layerstore")
    assert found is not None
    assert found.submodule_search_locations
    package = Path(found.submodule_search_locations[0])
    standard = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    shutil.copytree(standard, root / standard.relative_to("/"), ignore=LEFT_OUT)
    packages = root / standard.relative_to("/") / "site-packages"
    packages.mkdir()
    copy(interpreter, root)
    shutil.copytree(package, packages / "layerstore", ignore=LEFT_OUT)
    for name in needed("layerstore", "registry"):
        for file in importlib.metadata.files(name) or []:
            inside = not file.is_absolute() and ".." not in file.parts
            if inside and name != "layerstore" and "__pycache__" not in file.parts:
                copy(Path(str(file.locate())), root, Path("/", packages.relative_to(root), file))
    made = [path for path in root.rglob("*.so*") if path.is_file()]
    for library in libraries([interpreter, *made]):
        copy(library, root)
    for folder in ("tmp", "store", "proc", "dev", "sys", "etc"):
        (root / folder).mkdir()
    (root / "tmp").chmod(0o1777)
    return interpreter, Path("/", packages.relative_to(root))


def image(store: layerstore.Store) -> layerstore.ImageInfo:
    """The image, of one layer."""
    with tempfile.TemporaryDirectory(prefix="registry-image-") as work:
        root = Path(work) / "root"
        root.mkdir(mode=0o755)
        interpreter, packages = fill(root)
        layer = store.diff_upper(root, source_date_epoch=EPOCH)
    entrypoint = [str(interpreter), "-m", "layerstore"]
    return store.commit(
        "scratch",
        NAME,
        layers=[layer],
        source_date_epoch=EPOCH,
        entrypoint=entrypoint,
        cmd=SERVE,
        env={"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(packages)},
    )


def bundle(store: layerstore.Store, served: Path, target: Path) -> None:
    """A bundle whose container is on the host's network, and has the store that it serves."""
    store.bundle(NAME, target, readonly=True)
    config = json.loads((target / "config.json").read_text())
    spaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [one for one in spaces if one["type"] != "network"]
    config["process"]["terminal"] = False
    served.mkdir(mode=0o700, parents=True, exist_ok=True)
    config["mounts"] += [
        {
            "destination": "/store",
            "type": "bind",
            "source": str(served.resolve()),
            "options": ["rbind", "rw", "nosuid", "nodev", "noexec"],
        },
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
    ]
    (target / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: container.py STORE IMAGE_STORE BUNDLE")
    with layerstore.open(sys.argv[2]) as opened:
        print(image(opened).digest)
        bundle(opened, Path(sys.argv[1]), Path(sys.argv[3]))
