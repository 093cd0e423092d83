"""Asks the models about real deflate streams: builds replayed_streams.c, which decodes by itself."""

from __future__ import annotations

import array
import ctypes
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = ("model_zlib", "model_golazy", "trees_zlib", "trees_go", "trees", "blocks")


class Report(NamedTuple):
    """What a model got wrong in one stream; `made_wrong`: blocks that it did not make again."""

    tokens: int
    wrong: int
    trees: int
    trees_wrong: int
    spans: int
    made_wrong: int
    first_wrong: int
    error: int

    @property
    def exact(self) -> bool:
        return not (self.wrong or self.trees_wrong or self.made_wrong or self.error)


class _Report(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in Report._fields)


@functools.cache
def machine() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as where:
        out = Path(where) / "replayed.so"
        # Sanitizers that this process runs under are none of the compiler's.
        env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        subprocess.run(
            [
                *(
                    "gcc",
                    "-std=c11",
                    "-O2",
                    "-Wall",
                    "-Wextra",
                    "-Wconversion",
                    "-Werror",
                    "-shared",
                ),
                *("-fPIC", "-fno-strict-aliasing", f"-I{CSRC}", "-o", out),
                HERE / "replayed_streams.c",
                *(CSRC / "deflate" / f"{name}.c" for name in SOURCES),
            ],
            check=True,
            env=env,
        )
        lib = ctypes.CDLL(str(out))
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    lib.seam_read.restype = pointer
    lib.seam_read.argtypes = [ctypes.c_char_p, size, ctypes.POINTER(size)]
    lib.seam_ask.argtypes = [pointer, ctypes.c_uint32, size, ctypes.c_int, ctypes.POINTER(_Report)]
    lib.seam_free.argtypes = [pointer]
    lib.seam_size.restype = size
    lib.seam_size.argtypes = [pointer]
    lib.seam_make.restype = size
    lib.seam_make.argtypes = [ctypes.c_uint32, ctypes.c_char_p, size, pointer, size]
    return lib


def deflate_of(blob: bytes) -> bytes:
    """The deflate data of a gzip member (RFC 1952), trailer and what follows behind it included."""
    assert blob[:3] == b"\x1f\x8b\x08"
    flags, at = blob[3], 10
    if flags & 4:
        at += 2 + int.from_bytes(blob[at : at + 2], "little")
    for bit in (8, 16):
        if flags & bit:
            at = blob.index(0, at) + 1
    return blob[at + (2 if flags & 2 else 0) :]


def replay(stream: bytes, model: int, content: bytes, *, span: int = 1 << 21) -> Report:
    """What `model` gets wrong in a raw deflate stream of `content`, in spans of about so many bytes."""
    lib = machine()
    used = ctypes.c_size_t()
    read = lib.seam_read(stream, len(stream), ctypes.byref(used))
    assert read, "no deflate stream"
    out = _Report()
    assert lib.seam_size(read) == len(content)
    assert lib.seam_ask(read, model, span, 1, ctypes.byref(out)), "no such model"
    lib.seam_free(read)
    return Report(*(getattr(out, name) for name in Report._fields))


def tokens_digest(model: int, content: bytes) -> str:
    """SHA-256 of the tokens that a model gives for content that is one span: u32, little-endian each,
    a literal as it is, a match as distance << 16 | length."""
    room = len(content) + 1
    tokens = (ctypes.c_uint32 * room)()
    n = machine().seam_make(model, content + b"\xa5" * 64, len(content), tokens, room)
    assert n or not content
    words = array.array("I", memoryview(tokens).cast("B").cast("I")[:n])
    if sys.byteorder == "big":
        words.byteswap()
    return hashlib.sha256(words).hexdigest()


def filtered(command: list[str]) -> Callable[[bytes], bytes]:
    """An encoder that is a program: content in, gzip out."""

    def run(content: bytes) -> bytes:
        done = subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True)
        return deflate_of(done.stdout)

    return run
