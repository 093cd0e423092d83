"""Content that is already here costs nothing, whatever layer it comes in again."""

from __future__ import annotations

import importlib.util
import io
import os
import py_compile
import tarfile
from pathlib import Path

import stores

from layerstore.layers.content import Content
from layerstore.storage.storage import Storage

KIB = 1 << 10
FILES = {f"usr/lib/file{i}": stores.noise(i, 500 + 3000 * i) for i in range(60)}
BIG = stores.noise(99, 3 << 20)


def _new(content: Content, data: bytes, media_type: str = stores.TAR) -> int:
    with content.operation() as op:
        return op.put(data, media_type=media_type).new_bytes


def test_the_same_files_in_another_layer(content: Content) -> None:
    first = stores.tar_of({**FILES, "big": BIG})
    assert _new(content, first) > len(BIG)
    # Other names, other times, other order, another dialect: only headers are new.
    moved = {f"opt/{n}": d for n, d in reversed(FILES.items())}
    for again in (
        stores.tar_of({**moved, "large": BIG}, mtime=1_700_000_000),
        stores.tar_of({**FILES, "big": BIG}, form=tarfile.GNU_FORMAT),
        stores.tar_of({"only": BIG}),
    ):
        assert _new(content, again) < 6 * KIB
        assert stores.get(content, stores.sha256(again)) == again


def test_in_one_operation(content: Content) -> None:
    with content.operation() as op:
        op.put(stores.tar_of(FILES), media_type=stores.TAR)
        info = op.put(stores.tar_of({f"x/{n}": d for n, d in FILES.items()}), media_type=stores.TAR)
        assert info.new_bytes < 6 * KIB


def test_a_file_and_a_blob(content: Content) -> None:
    """An artifact is cut as files are: the same content is one."""
    _new(content, stores.tar_of({"big": BIG}))
    assert _new(content, BIG, "application/octet-stream") < 2 * KIB
    assert stores.get(content, stores.sha256(BIG)) == BIG


def test_a_change_in_a_big_file(content: Content) -> None:
    _new(content, stores.tar_of({"big": BIG}))
    changed = BIG[: 1 << 20] + b"a few new bytes" + BIG[1 << 20 :]
    assert _new(content, stores.tar_of({"big": changed})) < 600 * KIB
    assert stores.get(content, stores.sha256(stores.tar_of({"big": changed})))


def _compiled(folder: Path, mtime: int) -> bytes:
    """A layer of Python sources and their .pyc files, as a build at that time makes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(40):
            source = folder / f"m{i}.py"
            lines = [f"def f{n}(x):\n    return x * {n} + {i * 7919}\n" for n in range(120)]
            source.write_text("\n".join(lines))
            os.utime(source, (mtime, mtime))
            compiled = Path(py_compile.compile(str(source), doraise=True))
            assert compiled.read_bytes()[:4] == importlib.util.MAGIC_NUMBER
            for path in (source, compiled):
                info = tarfile.TarInfo(path.name)
                info.size, info.mtime = path.stat().st_size, mtime
                tar.addfile(info, io.BytesIO(path.read_bytes()))
    return out.getvalue()


def test_a_rebuild_of_python_files(content: Content, tmp_path: Path) -> None:
    """Only the times in the headers of .pyc files differ: the code behind them is known."""
    first = _compiled(tmp_path, 1_600_000_000)
    again = _compiled(tmp_path, 1_700_000_000)
    assert first != again
    full = _new(content, first)
    assert _new(content, again) < min(1000, 0.06 * full)
    for data in (first, again):
        assert stores.get(content, stores.sha256(data)) == data


def test_shared_after_one_of_them_is_gone(content: Content, storage: Storage) -> None:
    first, other = stores.tar_of(FILES), stores.tar_of({f"o/{n}": d for n, d in FILES.items()})
    stores.put_image(content, "a", [(first, stores.TAR)])
    stores.put_image(content, "b", [(other, stores.TAR)])
    stores.untag(content, "a")
    stores.gc(storage, aggressive=True)
    assert stores.get(content, stores.sha256(other)) == other
    assert _new(content, first) < 6 * KIB
    stores.clean(content)
