"""Makes the cffi extension from csrc/layerstore.h itself, so that no second copy of it exists."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC = ROOT / "csrc"
PORTABLE = os.environ.get("LAYERSTORE_PORTABLE") == "1"
SANITIZE = os.environ.get("LAYERSTORE_SANITIZE") == "1"


def definitions(header: str) -> str:
    """The header without comments and without preprocessor lines other than integer constants."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    keep = re.compile(r"#define \w+ +-?(0x[0-9a-fA-F]+|\d+) *$")
    return "\n".join(
        line for line in text.splitlines() if not line.lstrip().startswith("#") or keep.match(line)
    )


def sources() -> list[str]:
    """C files, relative to the root as setuptools wants them; each guards its own architecture."""
    return sorted(str(p.relative_to(ROOT)) for p in CSRC.rglob("*.c"))


def flags() -> list[str]:
    out = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Wconversion", "-fno-strict-aliasing"]
    if PORTABLE:
        out.append("-DLS_PORTABLE_ONLY=1")
    if SANITIZE:
        out += ["-g", "-O1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    return out


ffi = FFI()
ffi.cdef(definitions((CSRC / "layerstore.h").read_text()))
ffi.set_source(
    "layerstore.core._layerstore",
    '#include "layerstore.h"',
    sources=sources(),
    include_dirs=["csrc"],
    depends=sorted(str(p.relative_to(ROOT)) for p in CSRC.rglob("*.h")),
    extra_compile_args=flags(),
    extra_link_args=["-fsanitize=address,undefined"] if SANITIZE else [],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
