"""What every section works with: the corpus in both forms, a work directory, our command, peers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.corpus import Image, Layout
from benchmarks.measure import Command, call

HASH = """
import hashlib, sys
for path in sys.argv[1:]:
    with open(path, "rb") as f:
        hashlib.file_digest(f, "sha256")
"""

ENV = {
    "RESTIC_PASSWORD": "bench",
    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
}


@dataclass
class Setting:
    """One run of the benchmarks. `strict`: the corpus is the one that the bounds were set for."""

    plain: Layout
    gzip: Layout
    work: Path
    rounds: int
    rebuilt: tuple[str, str]
    """Tags of an image and of its rebuild with the same content."""
    drop: tuple[str, ...]
    """Tags that the gc section removes."""
    strict: bool
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        caches = {"RESTIC_CACHE_DIR": self.work / "cache", "BORG_BASE_DIR": self.work / "borg-base"}
        self.env = {**ENV, **{key: str(path) for key, path in caches.items()}}

    def bound(self, value: float) -> float | None:
        """A bound of the issue, where it applies."""
        return value if self.strict else None

    def fresh(self, name: str) -> Path:
        """A path in the work directory where nothing is."""
        path = self.work / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        return path

    def ours(self, store: Path, *args: str | Path) -> Command:
        """Our command line, as a user of this environment runs it."""
        program = Path(sys.executable).with_name("layerstore")
        return [program, "--store", store, "--progress", "none", *args]

    def ask(self, store: Path, *args: str | Path) -> Any:
        """The JSON document of one of our commands."""
        return json.loads(call([*self.ours(store, "--json"), *args]))

    def import_all(self, store: Path) -> Command:
        return self.ours(store, "import", "--all", f"oci:{self.plain.path}", "bench/")

    def full_store(self) -> Path:
        """A store with the whole plain corpus, made once; copy it before you change it."""
        store = self.work / "full"
        if not store.exists():
            partial = self.fresh("full.partial")
            call(self.import_all(partial))
            partial.rename(store)
        return store

    def copy_of(self, store: Path, name: str) -> Path:
        """A copy of a store that nobody writes to."""
        target = self.fresh(name)
        call(["cp", "-a", store, target])
        return target

    def names(self, store: Path) -> list[str]:
        return [image["name"] for image in self.ask(store, "images")["images"]]

    def image(self, tag: str) -> Image:
        return next(image for image in self.plain.images() if image.tag == tag)

    def new_in_rebuilt(self) -> list[Path]:
        """The layer blobs that the rebuilt image has and the one before has not."""
        before = {layer.digest for layer in self.image(self.rebuilt[0]).layers}
        layers = self.image(self.rebuilt[1]).layers
        return [self.plain.blob(x.digest) for x in layers if x.digest not in before]


def hash_of(paths: Sequence[Path]) -> Command:
    """sha256 of files by hashlib, one thread: the bound of every import that verifies."""
    return [sys.executable, "-I", "-c", HASH, *paths]


def installed(program: str) -> bool:
    return shutil.which(program) is not None
