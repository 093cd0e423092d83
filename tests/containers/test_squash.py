"""Squash: the merged layer over what remains is the same tree as the layers one by one.

Random stacks are held against a plain model of what a layer does to a tree, and count how often each
feature came up; some are written to disk and held against umoci."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import making
import pytest
import stores
from hypothesis import given, settings
from hypothesis import strategies as st
from making import link, member

import layerstore
from layerstore.layers.squash import squash
from layerstore.storage.rows import BlobRow

EXAMPLES = int(os.environ.get("LAYERSTORE_EXAMPLES", "600"))
FEATURES = (
    "whiteout", "opaque", "hard link", "file over directory", "directory over file",
    "deleted and made anew", "with a base", "of all",
)  # fmt: skip


class Layers:
    """Layers in memory, as far as squashing and merging need them."""

    def __init__(self) -> None:
        self._tars: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        digest = stores.sha256(data)
        self._tars[digest] = data
        return digest

    @contextlib.contextmanager
    def open(self, digest: str) -> Iterator[Any]:
        file = io.BytesIO(self._tars[digest])
        row = BlobRow(digest, len(self._tars[digest]), "application/vnd.oci.image.layer.v1.tar")
        yield SimpleNamespace(
            row=row, read=file.read, seek=file.seek, chunks=lambda: iter([file.read()])
        )


def steps_of(random: Random) -> list[tuple[str, str, Any]]:
    """What somebody does to a small tree."""

    def path() -> str:
        return "/".join(random.choices("abc", k=random.choice((1, 1, 2, 2, 3))))

    out: list[tuple[str, str, Any]] = []
    for _ in range(random.randint(1, 9)):
        kind = random.choice(
            ("file", "file", "dir", "white", "white", "opaque", "link", "link", "sym")
        )
        what: Any = path()
        if kind == "file":
            what = random.randbytes(random.randint(0, 600))
        elif kind == "dir":
            what = random.choice((0o700, 0o755, 0o1777))
        out.append((kind, path(), what))
    return out


def layer_of(steps: list[tuple[str, str, Any]], below: dict[str, str], seen: Counter) -> tuple:
    """The members of one layer, in the order of a tar that a tool would write, and what is there then:
    only changes that a filesystem could have seen. `below`: path to kind."""
    own: dict[str, tuple] = {}
    white: dict[str, tuple] = {}
    now = dict(below)

    def drop(path: str, *, itself: bool) -> None:
        for table in (now, own, white):
            for name in list(table):
                if name.startswith(path + "/") or (itself and name == path):
                    del table[name]

    for kind, path, what in steps:
        parents = [path.rsplit("/", n)[0] for n in range(path.count("/"), 0, -1)]
        if any(now.get(parent, "dir") != "dir" for parent in parents):
            continue
        old = now.get(path)
        for parent in parents if kind != "white" else []:
            if parent not in now:
                now[parent] = "dir"
                own[parent] = member(parent + "/")
        if kind == "file":
            if old == "dir":
                seen["file over directory"] += 1
            drop(path, itself=True)
            now[path] = "file"
            own[path] = member(path, what, uid=len(what), mtime=making.EPOCH + len(what))
        elif kind == "dir":
            if old not in (None, "dir"):
                seen["directory over file"] += 1
                drop(path, itself=True)
            now[path] = "dir"
            own[path] = member(path + "/", mode=what)
        elif kind == "white" and old is not None:
            drop(path, itself=True)
            if path in below or any(n.startswith(path + "/") for n in below):
                folder, _, base = path.rpartition("/")
                white[path] = member(f"{folder}/.wh.{base}" if folder else f".wh.{base}")
                seen["whiteout"] += 1
        elif kind == "opaque" and (old is None or old == "dir"):
            if old == "dir":
                seen["opaque"] += 1
            drop(path, itself=False)
            now[path] = "dir"
            own[path] = member(path + "/")
            white[path + "/"] = member(f"{path}/.wh..wh..opq")
        elif kind == "link" and old is None:
            files = [p for p, (info, _) in own.items() if info.isreg()]
            if not files:
                continue
            what = files[len(what) % len(files)]
            now[path] = "file"
            own[path] = link(path, what, hard=True)
            seen["hard link"] += 1
        elif kind == "sym" and old is None:
            now[path] = "sym"
            own[path] = link(path, what)
    # What is deleted and made anew as a directory: the whiteout would hide it from some readers.
    for path in list(white):
        if path in own and not path.endswith("/"):
            del white[path]
            if now.get(path) == "dir":
                white[path + "/"] = member(f"{path}/.wh..wh..opq")
                seen["deleted and made anew"] += 1
    links = {p for p, (info, _) in own.items() if info.islnk()}
    # A name that was a file when the link was made may be something else by now, or nothing.
    files = {p for p, (info, _) in own.items() if info.isreg()}
    broken = {p for p in links if own[p][0].linkname not in files}
    for path in broken:
        del own[path]
        now.pop(path, None)
    order = sorted(own, key=lambda p: (p in links, p))
    return [*white.values(), *(own[p] for p in order)], now


def apply(tree: dict[str, list[Any]], data: bytes) -> None:
    """A layer laid over a tree (image-spec layer.md, "Applying Changesets"): a plain model. A name has
    a file, which several names may share: kind, content, attributes."""

    def clear(path: str) -> None:
        for name in [n for n in tree if n.startswith(f"{path}/")]:
            del tree[name]

    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        members = [(m, file.extractfile(m) if m.isreg() else None) for m in file]
        for info, _ in members:
            folder, _, base = info.name.rpartition("/")
            if base == ".wh..wh..opq":
                clear(folder)
            elif base.startswith(".wh."):
                path = f"{folder}/{base[4:]}".lstrip("/")
                clear(path)
                tree.pop(path, None)
        for info, content in members:
            path = info.name
            parts = path.split("/")
            if parts[-1] == ".wh..wh..opq":
                parts[-1] = ""
            elif parts[-1].startswith(".wh."):
                continue
            for n in range(1, len(parts)):
                parent = "/".join(parts[:n])
                if tree.get(parent, [""])[0] != "dir":
                    tree[parent] = ["dir", None, None]
            attributes = (info.mode, info.uid, info.gid, info.mtime)
            if parts[-1] == "":
                continue
            if info.islnk():
                if info.linkname in tree and info.linkname != path:
                    clear(path)
                    tree[path] = tree[info.linkname]
                continue
            if not info.isdir():
                clear(path)
            if info.isreg():
                assert content is not None
                tree[path] = ["file", content.read(), attributes]
            else:
                tree[path] = ["dir" if info.isdir() else "sym", info.linkname, attributes]


def shown(tree: dict[str, list[Any]]) -> dict[str, Any]:
    """The tree with the names that each file has, as values that can be compared."""
    names: dict[int, list[str]] = {}
    for path in sorted(tree):
        names.setdefault(id(tree[path]), []).append(path)
    return {path: (*one, names[id(one)]) for path, one in tree.items()}


def test_squashed_layers_are_the_same_tree():
    seen: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(st.integers(0, 2**64 - 1))
    def one(seed: int) -> None:
        random = Random(seed)
        content: Any = Layers()
        now: dict[str, str] = {}
        tars = []
        for _ in range(random.randint(2, 6)):
            members, now = layer_of(steps_of(random), now, seen)
            tars.append(making.tar(*members))
        digests = [content.put(data) for data in tars]
        keep = random.randint(0, len(digests) - 1)
        seen["with a base" if keep else "of all"] += 1
        whole = b"".join(squash(content, digests[keep:], digests[:keep]))
        want: dict[str, list[Any]] = {}
        got: dict[str, list[Any]] = {}
        for data in tars:
            apply(want, data)
        for data in tars[:keep]:
            apply(got, data)
        check_whites(whole, got)
        apply(got, whole)
        assert shown(got) == shown(want)

    one()
    print(dict(sorted(seen.items())))
    assert {name: seen[name] for name in FEATURES if seen[name] < 100} == {}


def check_whites(tar: bytes, below: dict[str, Any]) -> None:
    """Nothing is hidden that is not there, and no name is hidden and given, but where a directory comes
    in the place of what is none: it is said first, so that nothing goes through it."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        kinds = {m.name: "dir" if m.isdir() else "" for m in file}
    names = list(kinds)
    for name in names:
        folder, _, base = name.rpartition("/")
        if base == ".wh..wh..opq":
            assert any(path.startswith(f"{folder}/") for path in below)
        elif base.startswith(".wh."):
            hidden = f"{folder}/{base[4:]}".lstrip("/")
            if hidden in names:
                assert below[hidden][0] != "dir"
                assert kinds[hidden] == "dir"
            assert any(path == hidden or path.startswith(f"{hidden}/") for path in below)


def on_disk(store: layerstore.Store, tmp_path: Path, name: str) -> Any:
    store.checkout(name, tmp_path / name.replace(":", "-"))
    return making.tree(tmp_path / name.replace(":", "-"))


STACKS: dict[str, tuple[tuple, ...]] = {
    "everything": (making.BASE, making.MIDDLE, making.TOP, (member("d/.wh.one"), member("e", b"e"))),
    "a file lives on under its other name": (
        (member("x", b"x"),),
        (member("f", b"f", uid=5, mode=0o4711), link("g", "f", hard=True), link("h", "f", hard=True)),
        (member(".wh.f"),),
        (member("g", b"new"),),
    ),
    "names through a symbolic link": (
        (member("usr/"), member("usr/lib/"), member("usr/lib/a", b"a"), member("usr/lib/b", b"b"),
         link("lib", "usr/lib")),
        (member("lib/foo", b"foo"), link("lib/bar", "lib/foo", hard=True)),
        (member("lib/.wh.a"), member("z", b"z"), link("y", "lib/b", hard=True)),
        (member(".wh.lib"), member("lib/"), member("lib/own", b"own")),
    ),
    "a file below lives on under a link above": (
        (member("x", b"x", uid=5), link("z", "x", hard=True, uid=5), member("w", b"w", mode=0o4711),
         link("s", "nowhere"), member("p/"), member("p/in", b"in")),
        (link("y", "x", hard=True, uid=5), link("v", "w", hard=True), link("u", "w", hard=True),
         link("t", "s", hard=True), link("o", "p/in", hard=True)),
        (member(".wh.x"), member("w", b"new"), member(".wh.s"), member("p/.wh..wh..opq")),
    ),
    "a directory becomes a file and a directory again": (
        (member("p/"), member("p/below", b"1")),
        (member("p", b"file"),),
        (member("p/"), member("p/above", b"2")),
    ),
    "deleted below, made anew above": (
        (member("p/"), member("p/below", b"1"), member("q", b"q")),
        (member(".wh.p"), member(".wh.q")),
        (member("p/"), member("p/above", b"2")),
    ),
    "sparse, long and odd names": (
        (member("a", b"a"),),
        (member("n" * 200, b"long"), member("é\udcff".encode("utf-8", "surrogateescape").decode(
            "utf-8", "surrogateescape"), b"odd"), link("l" * 150, "n" * 200, hard=True)),
        (member(".wh.a"), member("x", b"y", pax_headers={"SCHILY.xattr.user.k": "v"})),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gzip"])
def test_on_disk_it_is_the_same_and_umoci_agrees(store, tmp_path, name, packed):
    import gzip

    members = STACKS[name]
    tars = [making.tar(*one) for one in members]
    if packed:
        tars = [gzip.compress(one, mtime=0) for one in tars]
    kind = making.LAYER + ("+gzip" if packed else "")
    digests = [store.put(one, media_type=kind).digest for one in tars]
    store.commit("scratch", "base:1", layers=digests[:1])
    store.commit("base:1", "app:1", layers=digests[1:])
    store.commit("base:1", "app:2", layers=digests[1:], squash=True)
    store.commit("app:1", "app:3", squash="all")
    counts = [len(store.image(n).layers) for n in ("app:1", "app:2", "app:3")]
    assert counts == [len(members), 2, 1]
    want = on_disk(store, tmp_path, "app:1")
    assert on_disk(store, tmp_path, "app:2") == want
    assert on_disk(store, tmp_path, "app:3") == want
    whites = [e.path for e in store.image("app:3").entries(layer=0) if e.type == "whiteout"]
    assert whites == [], "nothing lies below that would have to be hidden"
    store.export_image("app:2", f"oci:{tmp_path}/layout:x")
    making.run("umoci", "unpack", "--image", f"{tmp_path}/layout:x", tmp_path / "umoci")
    assert making.tree(tmp_path / "umoci/rootfs") == want


def test_only_what_is_there_is_hidden(store):
    base = making.put(store, member("there", b"1"))
    made = making.put(store, member("made", b"2"))
    gone = making.put(store, member(".wh.made"), member(".wh.there"), member(".wh.never"))
    store.commit("scratch", "base:1", layers=[base])
    store.commit("base:1", "app:1", layers=[made, gone], squash=True)
    assert [e.path for e in store.image("app:1").entries(layer=1)] == [".wh.there"]
