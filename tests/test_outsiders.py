"""The command line and the examples use `layerstore.__all__` only, as any outsider would.

Read from their syntax trees: what they import from layerstore, what they take of it as attribute, and
that they touch nobody's private names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import layerstore
import layerstore.registry

ROOT = Path(__file__).parents[1]
PUBLIC = set(layerstore.__all__)
FACES = ("layerstore/cli", "layerstore/registry", "examples")
FILES = sorted(
    [ROOT / "layerstore" / "__main__.py"]
    + [path for face in FACES for path in (ROOT / face).rglob("*.py")]
)


def inside_face(module: str, package: str) -> bool:
    """Whether a module is of the same face as the package that imports it."""
    face = ".".join(package.split(".")[:2])
    return module == face or module.startswith(face + ".")


def violations(source: str, package: str) -> list[str]:
    """What a module of `package` (dotted name, empty for a script) may not do."""
    return sorted(set(_violations(ast.parse(source), package)))


def _violations(tree: ast.AST, package: str) -> Iterator[str]:
    names = {"layerstore"}  # what the package itself is called here
    others: set[str] = set()  # modules whose own underscores (os._exit) are none of ours
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "layerstore":
                    names.add(alias.asname or alias.name)
                elif not alias.name.startswith("layerstore."):
                    others.add(alias.asname or alias.name)
                elif alias.name.startswith("layerstore.") and not (
                    package and inside_face(alias.name, package)
                ):
                    yield f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            yield from _from(node, package)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if owner in names:
            if node.attr not in PUBLIC:
                yield f"layerstore.{node.attr}"
        elif re.match("_[^_]", node.attr) and owner not in {"self", "cls", *others}:
            yield f"private {ast.unparse(node)}"


def _from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    module = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        module = ".".join([*parents, module]) if module else ".".join(parents)
    if module == "layerstore":
        for alias in node.names:
            if alias.name not in PUBLIC and not (alias.name == "cli" and package):
                yield f"from layerstore import {alias.name}"
    elif module == "layerstore.registry" and package == "layerstore.cli":
        # A face of its own, which `serve` starts by its public names.
        for alias in node.names:
            if alias.name not in layerstore.registry.__all__:
                yield f"from layerstore.registry import {alias.name}"
    elif module.startswith("layerstore.") and not (package and inside_face(module, package)):
        # The entry point may start the command line; that is what it is for.
        yield f"from {module} import {', '.join(alias.name for alias in node.names)}"


def package_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return ".".join(relative.parts[:-1]) if relative.parts[0] == "layerstore" else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_faces_use_public_names_only(path):
    assert violations(path.read_text(), package_of(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import layerstore.store",
        "from layerstore.errors import NotFoundError",
        "from layerstore import store",
        "from ..storage import gc",
        "from .. import storage",
        "import layerstore\nlayerstore.storage",
        "import layerstore as ls\nls.values.Progress",
        "def f(store):\n    store._storage.close()",
    ],
)
def test_what_is_private_is_found(source):
    assert violations(source, "layerstore.cli")


@pytest.mark.parametrize(
    "source",
    [
        "import layerstore\nlayerstore.open()",
        "from layerstore import Progress",
        "from .output import human\nfrom . import exits",
        "class A:\n    def f(self):\n        return self._own",
        "from .. import NotFoundError",
    ],
)
def test_what_is_public_is_allowed(source):
    assert violations(source, "layerstore.cli") == []


def test_the_command_line_is_read():
    assert {"__init__.py", "run.py", "parser.py"} <= {path.name for path in FILES}
    assert sum("examples" in path.parts for path in FILES) > 0


def test_everything_public_is_there():
    for name in PUBLIC:
        assert getattr(layerstore, name) is not None
