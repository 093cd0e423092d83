"""What is shipped works where nothing of the source tree is: wheel, sdist, portable build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TREE = ["csrc", "layerstore", "tests", "benchmarks", "examples"]

USE = """
import io, layerstore, sys
assert "site-packages" in layerstore.__file__, layerstore.__file__
with layerstore.open(sys.argv[1]) as store:
    info = store.put(io.BytesIO(b"content" * 100000))
    with store.open_blob(info.digest) as f:
        assert f.read() == b"content" * 100000
print(info.digest)
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Runs a command without what this environment would lend it; what it printed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**clean, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def copy_of_tree(target: Path) -> Path:
    """The sources alone: nothing that was built, no environment."""
    target.mkdir(parents=True)
    built = shutil.ignore_patterns("*.so", "*.o", "__pycache__", "_layerstore.c", "*.egg-info")
    for name in TREE:
        shutil.copytree(ROOT / name, target / name, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith(".coverage"):
            shutil.copy(path, target / path.name)
    return target


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel, the wheel made from the sdist."""
    tree = copy_of_tree(tmp_path_factory.mktemp("packaging") / "tree")
    run(sys.executable, "-m", "build", "--no-isolation", cwd=tree)
    return tree / "dist"


def one(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


def test_the_wheel_holds_the_package_and_one_limited_api_extension(dist: Path) -> None:
    wheel = one(dist, "*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [n for n in names if n.endswith(".so")] == ["layerstore/core/_layerstore.abi3.so"]
    assert "layerstore/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    packages = {str(p.parent.relative_to(ROOT)) for p in (ROOT / "layerstore").rglob("*.py")}
    assert packages <= {os.path.dirname(n) for n in names}
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "examples/"))]


def test_the_sdist_holds_all_that_a_packager_needs(dist: Path) -> None:
    with tarfile.open(one(dist, "*.tar.gz")) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for path in (
        "csrc/layerstore.h",
        "tests/test_packaging.py",
        "Makefile",
        "LICENSE",
        "README.md",
    ):
        assert path in names
    assert {f"csrc/{p.name}" for p in (ROOT / "csrc").glob("*.c")} <= names
    assert not [n for n in names if n.endswith((".so", ".pyc"))]


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_it_works_in_an_empty_environment(dist: Path, tmp_path: Path, pattern: str) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "-q", one(dist, pattern), cwd=tmp_path)
    assert run(python, "-c", USE, tmp_path / "store", cwd=tmp_path).startswith("sha256:")
    program = tmp_path / "venv/bin/layerstore"
    assert "import" in run(program, "--help", cwd=tmp_path)
    assert "0." in run(program, "version", cwd=tmp_path)
    run(program, "--store", tmp_path / "store", "check", "--full", cwd=tmp_path)


def test_import_elsewhere_says_linux_only() -> None:
    code = "import sys; sys.platform = 'darwin'; import layerstore"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "Linux" in done.stderr


def test_the_portable_build_has_no_simd_and_the_same_results(tmp_path: Path) -> None:
    tree = copy_of_tree(tmp_path / "tree")
    build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    # What an ordinary build has left is not taken for it.
    run(*build, cwd=tree)
    run(*build, cwd=tree, LAYERSTORE_PORTABLE="1")
    code = "from layerstore.core._layerstore import lib; print(lib.ls_simd_supported())"
    assert run(sys.executable, "-c", code, cwd=tree).strip() == str(1 << 1)
    # The hashes, and what is built upon them; not what this machine could do, nor others.
    wanted = ["tests/core/test_hashing.py", "tests/core/test_chunking.py"]
    done = run(
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *wanted),
        *("-k", "not this_cpu and not neon"),
        cwd=tree,
    )
    assert int(done.split(" passed")[0].split()[-1]) > 12, done
