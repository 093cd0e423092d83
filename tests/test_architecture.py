"""ARCHITECTURE.md names every room and no other, and imports point downward only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "layerstore"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))
MACHINES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.[chS]"))

FLOORS = {
    "errors": 0, "digest": 0, "values": 0, "mediatypes": 0,
    "core": 1, "storage": 2, "layers": 3, "remote": 4, "oci": 4,
    "store": 5,
    "handles": 5, "snapshots": 5, "cache": 5, "repositories": 5,
    "bundles": 5, "tars": 5, "__init__": 5,
    "cli": 6, "registry": 6, "builder": 6, "__main__": 6,
}  # fmt: skip
# Exchangeable: what each package is behind (DESIGN, section 6).
BEHIND = {
    "lmdb": {"layerstore/storage/index.py"},
    "isal": {"layerstore/layers/inflate.py"},
    "cffi": {"layerstore/core/_build.py"},
    "urllib3": {"layerstore/remote/wire.py"},
}


def named() -> set[str]:
    """The files that the page names, from the root."""
    out = set()
    for name in re.findall(r"`([\w./-]+\.(?:py|c|h|S))`", TEXT):
        out.add(name if name.startswith(("csrc/", "tests/")) else f"layerstore/{name}")
    return out


def test_every_file_that_is_named_exists() -> None:
    assert sorted(name for name in named() if not (ROOT / name).is_file()) == []
    for name in re.findall(r"[\w/.-]+\.(?:md|py)\b", TEXT):
        assert (ROOT / name).is_file() or (PACKAGE / name).is_file(), name


def test_every_room_is_named() -> None:
    rooms = [m for m in MODULES if not re.fullmatch(r"layerstore/[a-z]+/__init__\.py", m)]
    assert sorted(set(rooms + MACHINES) - named()) == []


def imported(path: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, wherever it does it."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"


def room_of(name: str) -> str:
    """`layerstore.storage.index.Index` is in `storage`; a name of the package itself in `__init__`."""
    parts = name.split(".")
    if len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()):
        return parts[1]
    return "__init__"


@pytest.mark.parametrize("path", MODULES)
def test_imports_point_downward(path: str) -> None:
    own = FLOORS[path.removeprefix("layerstore/").removesuffix(".py").split("/")[0]]
    upward = [
        f"{path}:{line} imports {name}"
        for line, name in imported(path)
        if name.split(".")[0] == "layerstore" and FLOORS[room_of(name)] > own
    ]
    assert upward == []


def test_only_core_imports_the_extension() -> None:
    users = {
        path for path in MODULES for _, name in imported(path) if "_layerstore" in name.split(".")
    }
    assert users
    assert all(path.startswith("layerstore/core/") for path in users)


@pytest.mark.parametrize("package", sorted(BEHIND))
def test_packages_stand_behind_one_room(package: str) -> None:
    users = {p for p in MODULES for _, name in imported(p) if name.split(".")[0] == package}
    assert users == BEHIND[package]
