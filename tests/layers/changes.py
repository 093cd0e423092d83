"""Random trees and random changes to them, with a count of what came up."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

NAMES = ("a", "b", "c", "d.d", "e", "f-f", "x" * 90, "späße", "with space", "nl\nname", "*")
ODD = ("späße", "with space", "nl\nname", "*", "x" * 90)
CAP = bytes.fromhex("0100000200040000000000000000000000000000")


class Changes:
    """Does things below `root`. What comes up is the random source's alone, so the first n changes of
    a seed are the same for every larger n."""

    def __init__(self, root: Path, source: random.Random, count: Counter[str]) -> None:
        self.root = str(root)
        self.source = source
        self.count = count
        self.fresh = 0

    @staticmethod
    def counter() -> Counter[str]:
        return Counter()

    # ---- choosing -----------------------------------------------------------------------------

    def paths(self) -> list[str]:
        out = []
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            out += [os.path.join(folder, n) for n in sorted((*folders, *files))]
        return out

    def some(self, want: Callable[[int], bool] = lambda mode: True) -> str | None:
        found = [p for p in self.paths() if want(os.lstat(p).st_mode)]
        return self.source.choice(found) if found else None

    def folder(self) -> str:
        found = [p for p in self.paths() if stat.S_ISDIR(os.lstat(p).st_mode)]
        found = [p for p in found if p.count("/") - self.root.count("/") < 5]
        return self.source.choice([self.root, *found])

    def free(self) -> str | None:
        """A path that is not there."""
        folder = self.folder()
        for _ in range(4):
            path = os.path.join(folder, self.source.choice(NAMES))
            if not os.path.lexists(path):
                if os.path.basename(path) in ODD:
                    self.count["odd name"] += 1
                return path
        return None

    # ---- making -------------------------------------------------------------------------------

    def attributes(self, path: str) -> None:
        source = self.source
        st = os.lstat(path)
        if source.random() < 0.4:
            uid, gid = source.choice((0, 1000, 70000)), source.choice((0, 5))
            os.chown(path, uid, gid, follow_symlinks=False)
        if not stat.S_ISLNK(st.st_mode) and source.random() < 0.5:
            os.chmod(path, source.choice((0o755, 0o644, 0o700, 0o4755, 0o2750, 0o1777, 0o000)))
        if source.random() < 0.3 and stat.S_IFMT(st.st_mode) in (stat.S_IFREG, stat.S_IFDIR):
            self.count["xattr"] += 1
            name = source.choice(("user.one", "trusted.two", "user.big", "user.zero"))
            os.setxattr(
                path, name, source.randbytes({"user.big": 900, "user.zero": 0}.get(name, 8))
            )
        if source.random() < 0.1 and stat.S_ISREG(st.st_mode):
            self.count["capability"] += 1
            os.setxattr(path, "security.capability", CAP)
        if source.random() < 0.5:
            when = source.choice((0, 10**9, 1_700_000_000_123_456_789, 1_600_000_000_500_000_000))
            os.utime(path, ns=(when, when), follow_symlinks=False)

    def content(self, path: str) -> None:
        source = self.source
        with open(path, "wb") as f:
            if source.random() < 0.2:
                self.count["sparse"] += 1
                f.truncate(source.choice((5000, 70_000, 300_000)))
                f.seek(source.choice((0, 4096, 60_000)))
                f.write(b"data behind a hole")
            else:
                f.write(source.randbytes(source.choice((0, 1, 511, 512, 513, 5000))))

    def make(self, path: str) -> None:
        source = self.source
        what = source.choice(("file",) * 6 + ("dir",) * 4 + ("symlink", "fifo", "char", "block"))
        self.count[what] += 1
        if what == "file":
            self.content(path)
        elif what == "dir":
            os.mkdir(path)
        elif what == "symlink":
            os.symlink(source.choice(("a", "../b", "/etc/passwd", "x" * 150)), path)
        elif what == "fifo":
            os.mkfifo(path)
        else:
            kind = stat.S_IFCHR if what == "char" else stat.S_IFBLK
            os.mknod(path, kind | 0o600, os.makedev(source.choice((1, 7)), source.choice((1, 300))))
        self.attributes(path)

    def new(self) -> None:
        path = self.free()
        if path is not None:
            self.make(path)

    def link(self) -> None:
        old = self.some(lambda mode: not stat.S_ISDIR(mode))
        path = self.free()
        if old is not None and path is not None:
            os.link(old, path, follow_symlinks=False)
            self.count["hard link"] += 1

    def socket(self) -> None:
        path = self.free()
        if path is not None:
            self.count["socket"] += 1
            folder = os.open(os.path.dirname(path), os.O_PATH)
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    # The address of a socket has 108 bytes.
                    s.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
            finally:
                os.close(folder)

    # ---- changing -----------------------------------------------------------------------------

    def write(self) -> None:
        found = [p for p in self.paths() if stat.S_ISREG(os.lstat(p).st_mode)]
        linked = [p for p in found if os.lstat(p).st_nlink > 1]
        found = linked if linked and self.source.random() < 0.5 else found
        if found:
            path = self.source.choice(found)
            if os.lstat(path).st_nlink > 1:
                self.count["written through a link"] += 1
            self.content(path)

    def append(self) -> None:
        path = self.some(stat.S_ISREG)
        if path is not None:
            with open(path, "ab") as f:
                f.write(b"more")

    def touch(self) -> None:
        path = self.some()
        if path is not None:
            self.attributes(path)

    def remove(self) -> None:
        path = self.some()
        if path is not None:
            self.count["removed"] += 1
            _remove(path)

    def anew(self) -> None:
        path = self.some(stat.S_ISDIR if self.source.random() < 0.25 else lambda mode: True)
        if path is not None:
            old = stat.S_IFMT(os.lstat(path).st_mode)
            _remove(path)
            if stat.S_ISDIR(old) and self.source.random() < 0.7:
                os.mkdir(path)
                self.attributes(path)
            else:
                self.make(path)
            new = stat.S_IFMT(os.lstat(path).st_mode)
            self.count["made anew"] += 1
            if old != new:
                self.count["type change"] += 1
            if stat.S_ISDIR(old) and stat.S_ISDIR(new):
                self.count["directory replaced"] += 1
                for _ in range(2):
                    inside = os.path.join(path, self.source.choice(NAMES))
                    if not os.path.lexists(inside):
                        self.make(inside)

    def move(self) -> None:
        want = stat.S_ISDIR if self.source.random() < 0.4 else lambda mode: True
        path, to = self.some(want), self.free()
        if path is None or to is None or to.startswith(path + "/"):
            return
        with contextlib.suppress(OSError):  # EXDEV: a directory of a lower layer, without redirects
            kind = os.lstat(path).st_mode
            os.rename(path, to)
            self.count["directory moved" if stat.S_ISDIR(kind) else "file moved"] += 1

    def over(self) -> None:
        """`mv` of a file over another."""
        one = self.some(lambda mode: not stat.S_ISDIR(mode))
        two = self.some(lambda mode: not stat.S_ISDIR(mode))
        if one is not None and two is not None and one != two:
            os.rename(one, two)
            self.count["moved over"] += 1

    def swap(self) -> None:
        """`mv a t; mv b a; mv t b`."""
        one, two = self.some(), self.some()
        if one is None or two is None or one == two:
            return
        if (one + "/").startswith(two + "/") or (two + "/").startswith(one + "/"):
            return
        third = os.path.join(self.root, ".swap")
        if os.path.lexists(third):
            return
        try:
            os.rename(one, third)
        except OSError:  # EXDEV, as above
            return
        try:
            os.rename(two, one)
        except OSError:
            os.rename(third, one)
            return
        os.rename(third, two)
        self.count["swapped"] += 1

    def base(self, n: int) -> None:
        """A tree to begin with."""
        for _ in range(n):
            self.source.choice((self.new, self.new, self.new, self.link))()

    def run(self, n: int) -> None:
        for _ in range(n):
            change = self.source.choice(
                (self.new,) * 3
                + (self.link, self.write, self.append, self.touch, self.remove, self.anew)
                + (self.anew, self.move, self.move, self.over, self.swap, self.socket)
            )
            try:
                change()
            except OSError as e:
                # overlayfs with index=on says so of files whose links were broken below.
                # And (EXDEV) of a file whose content stays in a lower layer (metacopy): it moves by a
                # redirect, and the kernel keeps none of above 256 bytes. `mv` then copies.
                if e.errno not in (errno.ESTALE, errno.EXDEV):
                    raise


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in os.listdir(path):
            _remove(os.path.join(path, name))
        os.rmdir(path)
    else:
        os.unlink(path)
