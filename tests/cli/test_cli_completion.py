"""Completion, asked of bash itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from layerstore.cli.completion import _options, _walk, script

STUB = """#!/bin/sh
# A layerstore that knows two images, a digest and a lease.
case "$*" in
    "images -q") printf 'app:1\\napp:2\\nbase:1\\n' ;;
    "--store /s images -q") echo other:1 ;;
    "blob ls -q") echo sha256:abcdef ;;
    "lease ls -q") echo 8c1f ;;
esac
"""


@pytest.fixture
def bash(tmp_path: Path):
    """What bash offers for a command line."""
    (tmp_path / "layerstore").write_text(STUB)
    (tmp_path / "layerstore").chmod(0o755)
    (tmp_path / "completion").write_text(script("bash"))
    work = tmp_path / "work"
    (work / "layout").mkdir(parents=True)
    (work / "app.tar").touch()

    def complete(line: str, breaks: str = " :=") -> list[str]:
        program = (
            f'source "{tmp_path}/completion"; COMP_WORDBREAKS=$2; COMP_LINE=$1; COMP_POINT=${{#1}}; '
            '_layerstore 2>&1; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", program, "bash", line, breaks],
            check=True,
            capture_output=True,
            text=True,
            cwd=work,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        assert done.stderr == ""
        return sorted(done.stdout.split())

    return complete


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("layerstore im", ["images", "import"]),
        ("layerstore --json im", ["images", "import"]),
        ("layerstore --store /tmp im", ["images", "import"]),
        ("layerstore blob ", ["cat", "ls", "put", "stat"]),
        ("layerstore blob cat sha256:a", ["abcdef"]),
        ("layerstore gc --max-", ["--max-repack-size", "--max-time", "--max-used-space"]),
        ("layerstore --progress ", ["auto", "none", "plain"]),
        ("layerstore gc --progress p", ["plain"]),
        ("layerstore inspect ", ["app:1", "app:2", "base:1"]),
        ("layerstore inspect app:", ["1", "2"]),
        ("layerstore --store /s inspect ", ["other:1"]),
        ("layerstore untag app:1 app:2 ba", ["base:1"]),
        ("layerstore lease rm 8", ["8c1f"]),
        ("layerstore gc --lease ", ["8c1f"]),
        ("layerstore completion ", ["bash", "fish", "zsh"]),
        ("layerstore blob put a", ["app.tar"]),
        ("layerstore --store l", ["layout"]),
        ("layerstore import oci", ["oci-archive:", "oci:"]),
        ("layerstore import oci:l", ["layout"]),
        ("layerstore check --repair-from oci-archive:a", ["app.tar"]),
        ("layerstore export ba", ["base:1"]),
        ("layerstore export --compression n", ["none"]),
        ("layerstore export --compression gzip:9 ba", ["base:1"]),
        ("layerstore export app:1 app:2 oci:l", ["layout"]),
        ("layerstore images ", []),
    ],
)
def test_bash_offers(line, offers, bash):
    assert bash(line) == offers


def test_bash_keeps_what_stands_before_a_colon_that_breaks_no_word(bash):
    assert bash("layerstore import oci:l", breaks=" ") == ["oci:layout"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_verb_and_option_is_offered(shell):
    text = script(shell)
    for path, verb in _walk():
        assert path in text
        for option in _options(verb):
            for name in option.names:
                # fish writes --json as -l json, and -q as -s q
                written = f"-{'ls'[len(name) == 2]} {name.lstrip('-')}" if shell == "fish" else name
                assert written in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_what_the_shell_can_read(shell, tmp_path):
    """Where zsh or fish is not installed, only what holds for all is looked at."""
    file = tmp_path / "script"
    file.write_text(script(shell))
    assert "\t" not in file.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(file)], check=True)


def test_the_verb_prints_the_script():
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-m", "layerstore", "completion", shell],
            check=True,
            capture_output=True,
        )
        assert done.stdout.decode() == script(shell)
