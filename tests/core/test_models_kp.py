"""The models of Go's level 1 and of klauspost/compress decide as those encoders do, for ever.

Vectors (`model_vectors_kp.json`) hold what each model gives to generated content: the same on every
machine and in every version. When they were made, every model was asked about the blobs of the real
encoders (`tests/encoders`) and mispredicted nothing. Debian's skopeo and umoci are asked here again.

    python -m tests.core.test_models_kp     makes the vectors anew: for new models only
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from layerstore.core import recipe
from tests.encoders.collection import contents, encoders

ROOT = Path(__file__).resolve().parents[2]
VECTORS = Path(__file__).with_name("model_vectors_kp.json")
CASES = ((0, 0), (262_140, 0), (150_000, 0), (200_000, 200_000), (331_070, 200_000))
"""Where a span begins, and the last flush before it."""


def generated(kind: str, size: int = 400_000) -> bytes:
    """Content of the vectors: x[i+1] = (x[i] * 1103515245 + 12345) mod 2^31, x[0] = 1, gives
    numbers n = x >> 16. "words": for each n, the word "w" + decimal n mod 500 + " ", and a line feed
    after every eleventh. "copies": for each three numbers a, b, c: if c is odd and there is so much,
    a copy of 4 + a mod 300 bytes from 1 + b mod 30000 back, which may overlap; else a mod 60 bytes,
    from the second on, of the MD5 of b in decimal, five times over. "noise": one byte n mod 256 each,
    and 40 zeros after every 977th."""
    x, out, count = 1, bytearray(), 0

    def number() -> int:
        nonlocal x
        x = (x * 1103515245 + 12345) % (1 << 31)
        return x >> 16

    while len(out) < size:
        count += 1
        if kind == "words":
            out += b"w%d " % (number() % 500) + (b"" if count % 11 else b"\n")
        elif kind == "copies":
            a, b, c = number(), number(), number()
            back = 1 + b % 30000
            if c & 1 and back <= len(out):
                for _ in range(4 + a % 300):
                    out.append(out[-back])
            else:
                out += (hashlib.md5(b"%d" % b).digest() * 5)[1 : 1 + a % 60]
        else:
            out += bytes([number() % 256]) + (b"" if count % 977 else bytes(40))
    return bytes(out[:size])


@pytest.fixture(scope="session")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("replay"))


def built(directory: Path, *flags: str) -> Path:
    """The program of model_replay.c."""
    program = directory / "model_replay"
    deflate = ROOT / "csrc" / "deflate"
    sources = [
        *deflate.glob("model_kp*.c"),
        *(deflate / n for n in ("model_gofast.c", "trees_go.c")),
    ]
    sources += [deflate / "trees.c", deflate / "blocks.c"]
    subprocess.run(
        [
            *("gcc", "-std=c11", "-O2", "-fno-strict-aliasing", f"-I{ROOT / 'csrc'}", *flags),
            *("-o", program, Path(__file__).with_name("model_replay.c"), *sources),
        ],
        check=True,
    )
    return program


def asked(program: Path, model: int, blob: bytes, *more: str) -> dict[str, int]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(blob)
        file.flush()
        done = subprocess.run(
            [program, str(model), file.name, *more], stdout=subprocess.PIPE, check=True
        )
        found: dict[str, int] = json.loads(done.stdout)
        return found


def tokens(program: Path, model: int, path: Path, case: tuple[int, int]) -> bytes:
    command = [program, str(model), path, "make", *map(str, case)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def expanded(made: bytes, content: bytes, at: int) -> bytes:
    """What tokens stand for, behind the content before `at`."""
    out = bytearray(content[:at])
    for (token,) in struct.iter_unpack("<I", made):
        if token < 256:
            out.append(token)
        else:
            for _ in range(token & 0xFFFF):
                out.append(out[-(token >> 16)])
    return bytes(out)


def vectors(program: Path) -> dict[str, dict[str, list[str]]]:
    ids = [m.id for m in recipe.models() if m.id == 221 or 300 <= m.id < 400]
    made: dict[str, dict[str, list[str]]] = {}
    for kind in ("words", "copies", "noise"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(generated(kind))
            file.flush()
            for model in ids:
                made.setdefault(str(model), {})[kind] = [
                    hashlib.sha256(tokens(program, model, Path(file.name), case)).hexdigest()
                    for case in CASES
                ]
    return made


def test_the_models_give_what_they_gave_when_they_were_frozen(replay: Path) -> None:
    assert vectors(replay) == json.loads(VECTORS.read_text())


def test_the_plain_path_gives_the_same(tmp_path: Path) -> None:
    plain = built(tmp_path, "-DLS_PORTABLE_ONLY=1")
    assert vectors(plain) == json.loads(VECTORS.read_text())


@pytest.mark.parametrize(
    "model",
    [221, 301, 304, 305, 306, 309, 313, 333, 334, 339, 363, 364, 365, 368, 371, 372, 374, 378],
)
def test_tokens_stand_for_the_content(replay: Path, model: int, tmp_path: Path) -> None:
    """By a decoder that shares nothing with the models."""
    content = generated("copies", 150_000)
    path = tmp_path / "content"
    path.write_bytes(content)
    made = tokens(replay, model, path, (70_000, 0))
    assert expanded(made, content, 70_000) == content


@pytest.mark.needs("skopeo")
def test_skopeo_is_predicted_wholly(replay: Path) -> None:
    for kind, content in contents(1 << 20):
        found = asked(replay, 305, encoders()["skopeo"](content))
        assert found["content"] == len(content), kind
        assert found["mispredicted"] == found["trees_wrong"] == found["unequal"] == 0, kind


@pytest.mark.needs("umoci")
def test_umoci_is_predicted_wholly(replay: Path) -> None:
    content = dict(contents(1 << 20))["mixed"]
    found = asked(replay, 305, encoders()["umoci"](content))
    assert found["mispredicted"] == found["trees_wrong"] == found["unequal"] == 0


def test_a_strange_encoder_is_made_again_with_corrections(replay: Path) -> None:
    """zlib's tokens, blocks and flushes by each model, in spans that begin anywhere."""
    random.seed(1)
    zlib = encoders()["zlib-6"](generated("words", 200_000) + random.randbytes(50_000))
    for model in (
        221,
        301,
        302,
        303,
        304,
        305,
        306,
        307,
        309,
        313,
        315,
        327,
        329,
        334,
        339,
        355,
        359,
        363,
        369,
        371,
        372,
        373,
        374,
        377,
    ):
        found = asked(replay, model, zlib, str(random.randrange(1, 100_000)))
        assert found["mispredicted"] > 0
        assert found["unequal"] == 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        VECTORS.write_text(json.dumps(vectors(built(Path(work))), indent=1) + "\n")
