"""Random stacks of layers, and what a tree they make: a plain model, written apart from the C.

The generator knows what is there, so that its hard links have targets and its names meet often. The
model keeps a tree of dictionaries and applies a layer as image-spec layer.md says: whiteouts hide what
the layers below have, whatever their place in the layer; then entries in order, and the last of a
name wins.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field

from checkout_trees import CHAR, DIR, FIFO, FILE, LINK, SYMLINK, Item, Seen

NAMES = ["a", "b", "c", "d", "ä", "x y", "-n", "\udcff", "." + "l" * 40]
ODD = set(NAMES[4:])
FOLDERS = ["a", "d", "x y", "\udcff"]
"""Where names of directories and of other things are kept apart, these are directories."""
KINDS = {FILE: "file", SYMLINK: "symlink", CHAR: "char", FIFO: "fifo"}


class Circle(Exception):
    """Symbolic links that lead nowhere: what goes through them is refused, and not made here."""


@dataclass(eq=False)
class Node:
    """A file or directory; names of one file share it."""

    item: Item | None
    children: dict[str, Node] | None = None
    lower: bool = False


@dataclass
class Model:
    """The tree that the layers so far make."""

    root: Node = field(default_factory=lambda: Node(None, {}))
    counts: Counter[str] = field(default_factory=Counter)
    _links: int = 0
    """Symbolic links that the last walk followed."""
    _barred: set[tuple[int, str]] = field(default_factory=set)
    """Names of links, with their directories, behind which a walk ends."""

    def walk(self, path: str, create: bool) -> tuple[Node | None, str]:
        """The directory that a path's last name lies in."""
        todo = [p for p in path.split("/") if p not in ("", ".")]
        if not todo:
            return None, ""
        last = todo.pop()
        at = [self.root]
        self._links = 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                if len(at) > 1:
                    at.pop()
                continue
            assert at[-1].children is not None
            found = at[-1].children.get(part)
            if found is not None and found.item is not None and found.item.type == SYMLINK:
                self.counts["through a symlink"] += 1
                if (id(at[-1]), part) in self._barred:
                    return None, last
                self._links += 1
                if self._links > 255:
                    raise Circle
                target = found.item.link
                if target.startswith("/"):
                    at = [self.root]
                todo = [p for p in target.split("/") if p not in ("", ".")] + todo
                continue
            if found is None or found.children is None:
                if not create:
                    return None, last
                if found is not None:
                    self.counts["file to directory"] += 1
                self.counts["implicit directory"] += 1
                found = at[-1].children[part] = Node(None, {})
            at.append(found)
        return at[-1], last

    def get(self, path: str) -> Node | None:
        folder, name = self.walk(path, False)
        return None if folder is None or folder.children is None else folder.children.get(name)

    def apply(self, items: list[Item]) -> None:
        self._mark_lower(self.root)
        white = [i for i in items if i.name.rpartition("/")[2].startswith(".wh.")]
        late = [item for item in white if not self._hide(item, through=False)]
        for item in items:
            if item.type == DIR and item not in white:
                try:
                    folder, name = self.walk(item.name, False)
                except Circle:
                    continue  # of links that a late whiteout may remove
                if folder is not None and not self._links:
                    self._barred.add((id(folder), name))
        for item in late:
            self._hide(item, through=True)
        self._barred.clear()
        for item in items:
            if not item.name.rpartition("/")[2].startswith(".wh."):
                self._place(item)

    def _hide(self, item: Item, *, through: bool) -> bool:
        """What a whiteout says. One whose path leads through a link waits, for the layer may have a
        directory in the link's place: then nothing behind the link is meant."""
        folder, _, name = item.name.rpartition("/")
        opaque = name == ".wh..wh..opq"
        found, last = self.walk(f"{folder}/{'x' if opaque else name[4:]}", False)
        if self._links and not through:
            return False
        if found is not None and found.children is not None:
            if opaque:
                found.children.clear()
            else:
                found.children.pop(last, None)
        return True

    def _mark_lower(self, node: Node) -> None:
        for child in (node.children or {}).values():
            child.lower = True
            self._mark_lower(child)

    def _place(self, item: Item) -> None:
        target = self.get(item.link) if item.type == LINK else None
        folder, name = self.walk(item.name, True)
        if folder is None:
            self.root.item = item
            return
        assert folder.children is not None
        old = folder.children.get(name)
        if old is not None and old.item is not None and old.item.type != item.type:
            self.counts["type change"] += 1
        if old is not None and not old.lower and item.type != DIR:
            self.counts["duplicate"] += 1
        if item.type == LINK:
            assert target is not None
            self.counts["link across layers" if target.lower else "link in a layer"] += 1
            folder.children[name] = target
        elif item.type == DIR:
            if old is not None and old.children is not None:
                old.item = item
                self.counts["directory again"] += 1
            else:
                self.counts["file to directory"] += old is not None
                folder.children[name] = Node(item, {})
        else:
            self.counts["directory to file"] += old is not None and old.children is not None
            folder.children[name] = Node(item)

    def files(self) -> list[str]:
        """Paths of what is no directory."""
        out: list[str] = []
        self._files(self.root, "", out)
        return out

    def _files(self, node: Node, at: str, out: list[str]) -> None:
        for name, child in (node.children or {}).items():
            if child.children is None:
                out.append(at + name)
            else:
                self._files(child, f"{at}{name}/", out)

    def expected(self) -> dict[str, Seen]:
        """As `snapshot` would see it."""
        found: dict[str, tuple[Node, Seen]] = {}
        self._expect(self.root, "", found)
        first: dict[int, str] = {}
        for name, (node, _) in found.items():
            if node.children is None:
                first[id(node)] = min(name, first.get(id(node), name))
        return {n: s._replace(same=first.get(id(node), "")) for n, (node, s) in found.items()}

    def _expect(self, node: Node, name: str, found: dict[str, tuple[Node, Seen]]) -> None:
        item = node.item or Item(name, DIR, mode=0o755, mtime=0)
        kind = "dir" if node.children is not None else KINDS[item.type]
        content = ""
        if kind == "file":
            content = hashlib.sha256(expand(item)).hexdigest()
        elif kind == "symlink":
            content = item.link
        elif kind == "char":
            content = f"{item.device[0]}:{item.device[1]}"
        xattrs: dict[str, bytes] = {}
        for key, value in item.pax.items():
            if key.startswith("LIBARCHIVE.xattr."):
                xattrs.setdefault(key[17:], base64.b64decode(value + "==="))
            elif key.startswith("SCHILY.xattr."):
                xattrs[key[13:]] = value.encode("utf-8", "surrogateescape")
        mode = 0 if kind == "symlink" else item.mode
        mtime = round(item.mtime * 4) * 250_000_000
        seen = Seen(
            kind, mode, item.uid, item.gid, mtime, content, tuple(sorted(xattrs.items())), ""
        )
        found[name] = (node, seen)
        for child, below in (node.children or {}).items():
            self._expect(below, f"{name}/{child}" if name else child, found)


def expand(item: Item) -> bytes:
    """The content of a file, holes as zeros."""
    size = item.pax.get("GNU.sparse.size")
    if size is None:
        return item.data
    numbers = [int(n) for n in item.pax["GNU.sparse.map"].split(",")]
    out, at = bytearray(int(size)), 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        out[offset : offset + length] = item.data[at : at + length]
        at += length
    return bytes(out)


class Maker:
    """Layers, one after the other, each fit for what is there."""

    def __init__(
        self,
        seed: int,
        *,
        plain: bool = False,
        apart: bool = False,
        names: list[str] = NAMES,
        most: int = 14,
        hidden: int = 6,
        rooted: float = 1,
    ) -> None:
        self._random = random.Random(seed)
        self._apart = apart
        """No name is a directory here and something else there: what umoci does not take."""
        self._most, self._hidden = most, hidden
        self._rooted = rooted
        """The share of layers that may have an opaque root: nothing is left to link to below one."""
        self.model = Model()
        self.layers: list[list[Item]] = []
        self._now = self.model
        self._names = names
        self._plain = plain
        """Parents always there, nothing through links: what every tool understands alike."""

    def _path(self, kind: bytes = FILE) -> str:
        r = self._random
        parts = [r.choice(self._names) for _ in range(r.choice((1, 1, 2, 2, 3)))]
        if self._apart:
            folders = [n for n in self._names if n in FOLDERS]
            parts = [r.choice(folders) for _ in parts]
            if kind != DIR:
                parts[-1] = r.choice([n for n in self._names if n not in FOLDERS])
        self.model.counts["odd name"] += not ODD.isdisjoint(parts)
        return "/".join(parts)

    def _attributes(self, kind: bytes) -> dict[str, object]:
        r = self._random
        count = self.model.counts
        pax: dict[str, str] = {}
        out: dict[str, object] = {
            "mode": r.choice((0o644, 0o600, 0o755, 0o4755, 0o2711, 0o1777, 0o000)),
            "uid": r.choice((0, 0, 1, 1000, 70_000)),
            "gid": r.choice((0, 0, 5, 70_000)),
            "mtime": r.choice((0, 1, 1_700_000_000, 1_700_000_000.25, 1_650_000_000.75)),
        }
        count["set-id"] += bool(int(str(out["mode"])) & 0o6000) and kind == FILE
        count["fraction of a second"] += float(str(out["mtime"])) % 1 != 0
        if kind in (FILE, DIR) and r.random() < 0.3:
            # An empty value takes the attribute away for Go's reader, and is one for GNU tar.
            pax["SCHILY.xattr.user.a"] = r.choice(("v" if self._plain else "", "value", "ü" * 40))
            count["xattr"] += 1
            if r.random() < 0.3:
                pax["SCHILY.xattr.trusted.t"] = "t"
        if kind == FILE and r.random() < 0.2 and not self._plain:
            pax["LIBARCHIVE.xattr.user.b"] = base64.b64encode(r.randbytes(5)).decode().rstrip("=")
            count["xattr of bsdtar"] += 1
        out["pax"] = pax
        return out

    def _item(self) -> Item | None:
        r, model = self._random, self.model
        kind = r.choice((FILE, FILE, FILE, DIR, DIR, DIR, SYMLINK, SYMLINK, LINK, LINK, CHAR, FIFO))
        path = self._path(kind)
        more = self._attributes(kind)
        if kind == LINK:
            files = self._now.files()
            if not files:
                return None
            return Item(path, LINK, link=r.choice(files))
        if kind == SYMLINK:
            model.counts["symlink"] += 1
            target = r.choice(("a", "/b", "../c", "b/../d", "nowhere/x", "/a/b"))
            return Item(path, SYMLINK, link=target, **more)  # type: ignore[arg-type]
        if kind == CHAR:
            model.counts["device"] += 1
            return Item(path, CHAR, device=(r.choice((1, 5)), r.randrange(1, 300)), **more)  # type: ignore[arg-type]
        if kind != FILE:
            model.counts["fifo"] += kind == FIFO
            return Item(path, kind, **more)  # type: ignore[arg-type]
        data = r.randbytes(r.choice((0, 1, 100, 5000)))
        if r.random() < 0.15:
            pyc = b"\xcb\x0d\x0d\x0a" + bytes(4) + r.randbytes(8) + b"\xe3" + data
            model.counts["pyc"] += 1
            data = pyc
        elif r.random() < 0.2:
            model.counts["sparse"] += 1
            first, second = r.randbytes(512), r.randbytes(100)
            pax = more["pax"]
            assert isinstance(pax, dict)
            pax.update(
                {
                    "GNU.sparse.size": "300000",
                    "GNU.sparse.numblocks": "2",
                    "GNU.sparse.map": "4096,512,200000,100",
                }
            )
            data = first + second
        model.counts["empty file"] += not data
        return Item(path, FILE, data=data, **more)  # type: ignore[arg-type]

    def _applies(self, item: Item) -> bool:
        try:
            replay([*self.layers, [item]])
        except Circle:
            return False
        return True

    def layer(self) -> list[Item]:
        """The next layer; the model has it when this returns."""
        r, counts = self._random, self.model.counts
        items: list[Item] = []
        if r.random() < 0.5:
            items.append(Item("./", DIR, mode=r.choice((0o755, 0o711)), mtime=5))
        opaque_root = r.random() < self._rooted
        for _ in range(r.randrange(self._hidden)):
            if not self.layers:
                break
            folder, _, name = self._path(r.choice((FILE, DIR))).rpartition("/")
            prefix = f"{folder}/" if folder and r.random() < 0.7 else ""
            if r.random() < 0.25 and (prefix or opaque_root):
                items.append(Item(f"{prefix}.wh..wh..opq"))
                counts["opaque"] += 1
                counts["opaque root"] += not prefix
            else:
                items.append(Item(f"{prefix}.wh.{name}"))
                counts["whiteout"] += 1
        hidden = [item for item in items if self._applies(item)]
        items = list(hidden)
        # Links need what is there after the whiteouts: tried on a copy.
        trial = replay([*self.layers, hidden])
        self._now = trial
        for _ in range(r.randrange(1, self._most)):
            made = self._item()
            if made is None:
                continue
            try:
                trial._place(made)
            except Circle:
                continue
            items.append(made)
        if r.random() < 0.5:
            # Whiteouts mean the layers below, wherever they stand.
            tail = [i for i in items if ".wh." in i.name]
            items = [i for i in items if ".wh." not in i.name] + tail
            counts["whiteout at the end"] += bool(tail)
        self.model.apply(items)
        self.layers.append(items)
        return items


def replay(layers: list[list[Item]]) -> Model:
    """The model of some layers."""
    model = Model()
    for items in layers:
        model.apply(items)
    return model
