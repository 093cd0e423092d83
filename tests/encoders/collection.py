"""Where the real encoders come from, and how each is asked for a blob.

What has to be built is built once, in `$LAYERSTORE_ENCODERS` or `~/.cache/layerstore-encoders`, by the
packages' own registries: Go toolchains and modules, crates. Debian's programs are taken as they are.

    python -m tests.encoders.collection DIR [NAME...]     blobs of everything (of these), in DIR

writes `DIR/ENCODER/CONTENT.gz`.
"""

from __future__ import annotations

import gzip as python_gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("LAYERSTORE_ENCODERS", "~/.cache/layerstore-encoders")).expanduser()

GO = (
    "1.19.13",
    "1.20.14",
    "1.21.13",
    "1.22.12",
    "1.23.12",
    "1.24.13",
    "1.25.8",
    "1.26.8",
    "1.27.1",
)
"""Go toolchains, oldest first; from 1.27 on its levels are klauspost/compress's."""
KLAUSPOST_OLD = (
    "1.4.1",
    "1.8.2",
    "1.9.7",
    "1.10.10",
    "1.11.13",
    "1.12.3",
    "1.13.6",
    "1.14.0",
    "1.14.4",
    "1.15.9",
)
"""klauspost/compress before the matcher that is still in use."""
KLAUSPOST = ("1.15.11", "1.15.15", "1.16.7", "1.17.11", "1.18.0", "1.18.6", "1.19.1", "1.20.4")
"""And since."""

EVERY_LEVEL = (
    "1.4.1",
    "1.8.2",
    "1.9.7",
    "1.14.0",
    "1.14.4",
    "1.15.9",
    "1.15.11",
    "1.18.0",
    "1.18.6",
    "1.20.4",
)
"""Of those, the ones that are asked for each level; the others for 5 and 6."""

Encoder = Callable[[bytes], bytes]


def _pipe(*command: str, **environment: str) -> Encoder:
    def run(content: bytes) -> bytes:
        made = subprocess.run(
            command, input=content, stdout=subprocess.PIPE, env=os.environ | environment, check=True
        )
        return made.stdout

    return run


def _built(name: str, build: Callable[[Path], None]) -> str:
    """A program in the cache, built when it is not there."""
    program = CACHE / "bin" / name
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        fresh = program.with_name(f".{name}.{os.getpid()}")
        build(fresh)
        fresh.rename(program)
    return str(program)


def go_program(version: str) -> str:
    """compress/gzip of a Go toolchain."""

    def build(to: Path) -> None:
        with tempfile.TemporaryDirectory() as work:
            shutil.copy(HERE / "go" / "std.go", work)
            subprocess.run(
                ["go", "build", "-o", str(to), "std.go"],
                cwd=work,
                check=True,
                env=os.environ | {"GOTOOLCHAIN": f"go{version}", "CGO_ENABLED": "0"},
            )

    return _built(f"go-{version}", build)


def klauspost_program(version: str) -> str:
    """gzip and pgzip over a release of klauspost/compress."""

    def build(to: Path) -> None:
        module = "github.com/klauspost/compress"
        with tempfile.TemporaryDirectory() as work:
            shutil.copy(HERE / "go" / "klauspost.go", work)
            (Path(work) / "go.mod").write_text(
                "module encoder\n\ngo 1.19\n\n"
                "require github.com/klauspost/pgzip v1.2.6\n"
                f"require {module} v{version}\n"
                f"replace {module} => {module} v{version}\n"
            )
            subprocess.run(
                ["go", "build", "-mod=mod", "-o", str(to), "."],
                cwd=work,
                check=True,
                env=os.environ | {"CGO_ENABLED": "0"},
            )

    return _built(f"klauspost-{version}", build)


def estargz_program() -> str:
    """eStargz blobs by containerd's library."""

    def build(to: Path) -> None:
        module = "github.com/containerd/stargz-snapshotter/estargz"
        with tempfile.TemporaryDirectory() as work:
            shutil.copy(HERE / "go" / "estargz.go", work)
            (Path(work) / "go.mod").write_text(
                f"module encoder\n\ngo 1.22\n\nrequire {module} v0.16.3\n"
            )
            subprocess.run(
                ["go", "build", "-mod=mod", "-o", str(to), "."],
                cwd=work,
                check=True,
                env=os.environ | {"CGO_ENABLED": "0"},
            )

    return _built("estargz", build)


def _rust() -> str:
    def build(to: Path) -> None:
        with tempfile.TemporaryDirectory() as work:
            shutil.copytree(HERE / "rust", work, dirs_exist_ok=True)
            subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=work, check=True)
            shutil.copy(Path(work) / "target" / "release" / "encoders", to)

    return _built("rust", build)


def _java(content: bytes) -> bytes:
    return _pipe("java", str(HERE / "java" / "Gz.java"))(content)


def _zlib(level: int) -> Encoder:
    return lambda content: python_gzip.compress(content, level, mtime=0)


def _zlib_gzip(level: int) -> Encoder:
    """zlib's own gzip wrapper, with its memory level 8 and default strategy."""

    def run(content: bytes) -> bytes:
        c = zlib.compressobj(level, zlib.DEFLATED, 31)
        return c.compress(content) + c.flush()

    return run


def _isal(level: int) -> Encoder:
    def run(content: bytes) -> bytes:
        from isal import igzip

        made: bytes = igzip.compress(content, level, mtime=0)
        return made

    return run


def _layout(directory: Path, content: bytes) -> None:
    """An OCI image layout of one uncompressed layer."""

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (directory / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    oci = "application/vnd.oci.image."
    (directory / "blobs" / "sha256").mkdir(parents=True)
    layer = blob(content, f"{oci}layer.v1.tar")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{oci}manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{oci}config.v1+json"),
        "layers": [layer],
    }
    entry = blob(json.dumps(manifest).encode(), f"{oci}manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _only_layer(directory: Path) -> bytes:
    """The last layer of the only image of a layout."""
    blobs = directory / "blobs"
    index = json.loads((directory / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][-1]["digest"].replace(":", "/")).read_text())
    return (blobs / manifest["layers"][-1]["digest"].replace(":", "/")).read_bytes()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _skopeo(content: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as work:
        _layout(Path(work) / "plain", content)
        _run(
            "skopeo",
            "copy",
            "--insecure-policy",
            "--dest-compress",
            f"oci:{work}/plain:v1",
            f"oci:{work}/made:v1",
        )
        return _only_layer(Path(work) / "made")


def _estargz(level: int) -> Encoder:
    """Its blob is of the content in a tar of one file, and of a table of contents."""

    def run(content: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as work:
            (Path(work) / "layer.tar").write_bytes(_tar(content))
            command = [estargz_program(), str(level), f"{work}/layer.tar"]
            return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout

    return run


def _umoci(content: bytes) -> bytes:
    """Its blob is of the content in a tar of one file."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "layer.tar").write_bytes(_tar(content))
        _run("umoci", "init", "--layout", f"{work}/made")
        _run("umoci", "new", "--image", f"{work}/made:v1")
        _run("umoci", "raw", "add-layer", "--image", f"{work}/made:v1", f"{work}/layer.tar")
        return _only_layer(Path(work) / "made")


def _engine(tool: str) -> Encoder:
    """buildah or podman: its blob is of the content in a tar of one file, as the engine writes it."""

    def run(content: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as work:
            store = [
                "--root",
                f"{work}/root",
                "--runroot",
                f"{work}/run",
                "--storage-driver",
                "vfs",
            ]
            policy = Path(work) / "policy.json"
            policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
            made = f"oci:{work}/made:v1"
            if tool == "podman":
                (Path(work) / "layer.tar").write_bytes(_tar(content))
                _run(tool, *store, "import", f"{work}/layer.tar", "x")
                _run(tool, *store, "push", "--signature-policy", str(policy), "x", made)
            else:
                (Path(work) / "file").write_bytes(content)
                _run(tool, *store, "from", "--name", "c", "scratch")
                _run(tool, *store, "copy", "c", f"{work}/file", "/file")
                _run(
                    *(tool, *store, "commit", "--disable-compression=false"),
                    *("--signature-policy", str(policy), "c", made),
                )
            return _only_layer(Path(work) / "made")

    return run


def _bsdtar(content: bytes) -> bytes:
    """Its blob is of the content in a tar of one file."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "file").write_bytes(content)
        return subprocess.run(
            ["bsdtar", "-czf", "-", "-C", work, "file"], stdout=subprocess.PIPE, check=True
        ).stdout


def encoders() -> dict[str, Encoder]:
    """Every encoder by name; nothing is built before one is asked for a blob."""
    out: dict[str, Encoder] = {}
    for version in GO:
        for level in range(1, 10):
            out[f"go-{version}-{level}"] = lambda content, v=version, n=level: _pipe(
                go_program(v), str(n)
            )(content)
    for version in KLAUSPOST_OLD + KLAUSPOST:
        for block in (1 << 20, 1 << 18):
            out[f"pgzip-{version}-{block >> 10}k"] = lambda content, v=version, b=block: _pipe(
                klauspost_program(v), "pgzip", "-1", str(b)
            )(content)
        levels = range(1, 10) if version in EVERY_LEVEL else (5, 6)
        for level in levels:
            out[f"klauspost-{version}-{level}"] = lambda content, v=version, n=level: _pipe(
                klauspost_program(v), "gzip", str(n)
            )(content)
    out |= {"skopeo": _skopeo, "umoci": _umoci, "bsdtar": _bsdtar, "java": _java}
    out |= {tool: _engine(tool) for tool in ("buildah", "podman")}
    out |= {f"estargz-{level}": _estargz(level) for level in (1, 6, 9)}
    for level in range(1, 10):
        out[f"gzip-{level}"] = _pipe("gzip", "-nc", f"-{level}")
        out[f"python-{level}"] = _zlib(level)
        out[f"zlib-{level}"] = _zlib_gzip(level)
        for threads in (1, 2):
            out[f"pigz-p{threads}-{level}"] = _pipe("pigz", "-nc", f"-{level}", f"-p{threads}")
    out["gzip-6-rsyncable"] = _pipe("gzip", "-nc", "-6", "--rsyncable")
    out["pigz-p2-6-rsyncable"] = _pipe("pigz", "-nc", "-6", "-p2", "--rsyncable")
    for level in range(4):
        out[f"igzip-{level}"] = _isal(level)
    for library, rust_levels in (
        ("libdeflate", (1, 4, 6, 9, 12)),
        ("zlib-ng", (1, 2, 3, 4, 5, 6, 7, 8, 9)),
        ("miniz", (1, 3, 6, 9)),
    ):
        for level in rust_levels:
            out[f"{library}-{level}"] = lambda content, x=library, n=level: _pipe(
                _rust(), x, str(n)
            )(content)
    return out


def contents(size: int = 4 << 20) -> Iterator[tuple[str, bytes]]:
    """Kinds of content by name, `size` bytes each, from this machine's files; and the smallest."""

    def gathered(paths: Iterator[Path]) -> bytes:
        out = bytearray()
        for path in paths:
            if len(out) >= size:
                break
            if path.is_file() and not path.is_symlink():
                out += path.read_bytes()
        return bytes(out[:size])

    libraries = Path("/usr/lib")
    elf = gathered(p for p in sorted(libraries.glob("*-linux-gnu/*.so*")))
    text = gathered(p for p in sorted(Path(os.__file__).parent.rglob("*.py")))
    yield "elf", elf
    yield "text", text
    yield "compressed", zlib.compress(text, 6) + zlib.compress(elf, 9)
    stretch = bytes(range(251)) * 40
    repeats = bytearray()
    n = 0
    while len(repeats) < size:
        n += 1
        repeats += (
            bytes(n * 9973 % 200_000) + stretch[: n * 131 % 9000] + text[n * 997 : n * 997 + 300]
        )
    yield "repeats", bytes(repeats[:size])
    yield "zeros", bytes(size)
    yield (
        "mixed",
        b"".join(
            x[i : i + 50_000] for i in range(0, size // 4, 50_000) for x in (elf, text, repeats)
        )
        + zlib.compress(elf, 9)[: size // 4],
    )
    yield "empty", b""
    yield "byte", b"x"
    yield "line", text[:100]
    yield "page", elf[:4096]
    yield "chunk", text[:65_535]
    yield "piece", text[: 1 << 20]


def main(arguments: list[str]) -> int:
    out, wanted = Path(arguments[0]), arguments[1:]
    kinds = list(contents())
    for name, encode in encoders().items():
        if wanted and not any(name.startswith(w) for w in wanted):
            continue
        (out / name).mkdir(parents=True, exist_ok=True)
        for kind, content in kinds:
            path = out / name / f"{kind}.gz"
            if not path.exists():
                path.write_bytes(encode(content))
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
