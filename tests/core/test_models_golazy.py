"""Go's compress/flate at levels 2 to 9, replayed: no token mispredicted, all trees predicted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from replayed_streams import filtered, replay
from test_deflate import CONTENTS, mixed, text
from test_models_zlib import EDGES, real

LEVELS = range(4, 10)
PROGRAM = """
package main

import (
	"compress/gzip"
	"io"
	"os"
	"strconv"
)

func main() {
	level, _ := strconv.Atoi(os.Args[1])
	size, _ := strconv.Atoi(os.Args[2])
	w, _ := gzip.NewWriterLevel(os.Stdout, level)
	for size > 0 {
		if n, _ := io.CopyN(w, os.Stdin, int64(size)); n == 0 {
			break
		}
		w.Flush()
	}
	io.Copy(w, os.Stdin)
	w.Close()
}
"""


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Go's gzip, flushed every so many bytes. $LAYERSTORE_TEST_GO names another version (go1.19.13)."""
    where = tmp_path_factory.mktemp("go")
    (where / "main.go").write_text(PROGRAM)
    (where / "go.mod").write_text("module encoder\n\ngo 1.19\n")
    env = dict(os.environ, GOFLAGS="-buildvcs=false")
    env["GOTOOLCHAIN"] = os.environ.get("LAYERSTORE_TEST_GO", "local")
    subprocess.run(["go", "build", "-o", "encoder", "."], cwd=where, env=env, check=True)
    return where / "encoder"


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    whole = text(140_000, 9)
    return {
        **{name: make() for name, make in CONTENTS.items()},
        "machine code": real(),
        **{f"{size} bytes of text": whole[:size] for size in EDGES},
    }


@pytest.mark.needs("go")
@pytest.mark.parametrize("level", LEVELS)
def test_go(encoder: Path, contents: dict[str, bytes], level: int) -> None:
    encode = filtered([str(encoder), str(level), "0"])
    for name, content in contents.items():
        stream = encode(content)
        for span in (100_000, 1 << 21):
            report = replay(stream, 200 + level, content, span=span)
            assert report.exact, (name, span, report)


@pytest.mark.needs("go")
@pytest.mark.parametrize("level", LEVELS)
def test_go_flushed(encoder: Path, level: int) -> None:
    """The last positions before a flush are in no chain, so that not even a quick look finds them."""
    encode = filtered([str(encoder), str(level), "200000"])
    for content in (real(), mixed(900_000, 21), text(900_000, 22)):
        report = replay(encode(content), 200 + level, content)
        assert report.exact, report
