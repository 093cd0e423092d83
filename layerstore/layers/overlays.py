"""How a snapshot is shown at a directory: the kernel's overlayfs, fuse-overlayfs, or a plain copy.

The kernel's overlay is named after store and snapshot in mountinfo, so it needs no record. The other
two have one (`driver` and `target` of the row): fuse-overlayfs is a process that may die, and a copy is
shown by a bind mount or a symbolic link. All three keep changes in the snapshot's `fs`; in a copy that
is the whole tree.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..core import mount as core
from ..errors import InvalidInputError, LayerstoreError, UnsupportedError
from ..storage import mounts
from ..storage import unpacked as rows

if TYPE_CHECKING:
    from ..storage.unpacked import SnapshotRow, UnpackedRow
    from ..values import ProgressCallback
    from .content import Content

DRIVERS = ("auto", "overlay", "fuse", "copy")
# What a kernel, a filesystem or missing rights answer; anything else is a fault that must be seen.
_CANNOT = (
    errno.EPERM,
    errno.EACCES,
    errno.ENODEV,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.E2BIG,
    errno.ENAMETOOLONG,
)


def show(
    content: Content,
    row: SnapshotRow,
    stack: Sequence[UnpackedRow],
    target: str,
    driver: str,
    progress: ProgressCallback | None,
) -> SnapshotRow:
    """Shows a snapshot at an empty directory; its row as it is then. Raises OSError and
    UnsupportedError when the driver that was asked for cannot."""
    if driver not in DRIVERS:
        raise InvalidInputError(f"no such driver: {driver!r} (there is {', '.join(DRIVERS)})")
    if row.driver == "copy" and driver == "auto":
        # What it holds is a whole tree: nothing else can show it.
        driver = "copy"
    if (row.driver == "copy") != (driver == "copy") and _changed(content, row):
        raise InvalidInputError(
            f"snapshot {row.key!r} was changed under another driver than {driver!r}"
        )
    if row.driver == "fuse":
        settle(content, row)
    reasons: list[str] = []
    for name, work in (("overlay", _overlay), ("fuse", _fuse)):
        if driver not in ("auto", name):
            continue
        try:
            return work(content, row, stack, target)
        except UnsupportedError as e:
            reasons.append(f"{name}: {e.message}")
            if driver == name:
                raise
        except OSError as e:
            reasons.append(f"{name}: {e.strerror}")
            if driver == name or e.errno not in _CANNOT:
                raise
    return _copy(content, row, target, progress, reasons)


def _changed(content: Content, row: SnapshotRow) -> bool:
    path = os.path.join(rows.changes_path(content.storage, row.name), "fs")
    return os.path.isdir(path) and bool(os.listdir(path))


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


# ---- the kernel's overlay ---------------------------------------------------------------------


def _overlay(
    content: Content, row: SnapshotRow, stack: Sequence[UnpackedRow], target: str
) -> SnapshotRow:
    storage = content.storage
    names = [one.name for one in stack]
    if not names or (row.kind != "active" and len(names) < 2):
        # The kernel wants one lower directory, and two without an upper one.
        storage.disk.mkdir(rows.layer_path(storage, rows.EMPTY))
        names.append(rows.EMPTY)
    if len(names) > core.MAX_LOWER:
        raise UnsupportedError(
            f"the image has {len(stack)} layers, overlayfs stacks {core.MAX_LOWER}"
        )
    flags = core.USERXATTR if any(one.userxattr for one in stack) else 0
    home = rows.changes_path(storage, row.name)
    upper = f"../{rows.CHANGES}/{row.name}" if row.kind == "active" else None
    with contextlib.ExitStack() as held:
        base = held.enter_context(_directory(rows.layer_path(storage, "")))
        to = held.enter_context(_directory(target))
        userns = scratch = -1
        if row.uids:
            try:
                userns = core.user_namespace(row.uids, row.gids)
            except OSError as e:
                raise UnsupportedError(f"no user namespace with these maps: {e.strerror}") from e
            held.callback(os.close, userns)
            lower = os.path.join(home, "lower")
            os.makedirs(lower, mode=0o700, exist_ok=True)
            scratch = held.enter_context(_directory(lower))
        core.overlay(
            to,
            target,
            source=rows.source_of(storage, row.serial),
            base=base,
            lower=names,
            upper=upper,
            userns=userns,
            scratch=scratch,
            flags=flags,
        )
    return row.placed("", None)


# ---- fuse-overlayfs ---------------------------------------------------------------------------


def _fuse(
    content: Content, row: SnapshotRow, stack: Sequence[UnpackedRow], target: str
) -> SnapshotRow:
    storage = content.storage
    program = shutil.which("fuse-overlayfs")
    if program is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise UnsupportedError("fuse-overlayfs is not installed, or /dev/fuse is not ours to use")
    storage.disk.mkdir(rows.layer_path(storage, rows.EMPTY))
    lower = [rows.layer_path(storage, one.name) for one in stack]
    lower = lower or [rows.layer_path(storage, rows.EMPTY)]
    home = rows.changes_path(storage, row.name)
    options = ["lowerdir=" + ":".join(map(_escaped, lower))]
    if row.kind == "active":
        options += [f"{o}={_escaped(os.path.join(home, d))}" for o, d in _PARTS]
    for name, maps in (("uidmapping", row.uids), ("gidmapping", row.gids)):
        if maps:
            options.append(f"{name}=" + ":".join(f"{a}:{b}:{n}" for a, b, n in maps))
    done = subprocess.run(
        [program, "-o", ",".join(options), target],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UnsupportedError(f"fuse-overlayfs failed: {words}")
    return row.placed("fuse", target)


_PARTS = (("upperdir", "fs"), ("workdir", "work"))


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def settle(content: Content, row: SnapshotRow) -> None:
    """Puts what fuse-overlayfs has written into the kernel's form, which every reader knows: opaque
    directories and, where it could make no device, whiteouts are files there. Only while nothing
    shows the snapshot."""
    top = os.path.join(rows.changes_path(content.storage, row.name), "fs")
    for folder, below, names in os.walk(top):
        for name in (*below, *names):
            if not name.startswith(_PREFIX):
                continue
            path = os.path.join(folder, name)
            if name in below:
                raise InvalidInputError(f"{path}: a layer cannot hold this name", path=path)
            os.unlink(path)
            if name in _MARKS:
                _set_opaque(folder)
            else:
                os.mknod(os.path.join(folder, name[len(_PREFIX) :]), stat.S_IFCHR, 0)
        for path in (folder, *(os.path.join(folder, name) for name in (*below, *names))):
            with contextlib.suppress(FileNotFoundError):
                for key in os.listxattr(path, follow_symlinks=False):
                    if key.startswith(_OWN):
                        os.removexattr(path, key, follow_symlinks=False)


_PREFIX = ".wh."
_MARKS = (".wh..wh..opq", ".wh..opq")
_OWN = "user.fuseoverlayfs."


def _set_opaque(folder: str) -> None:
    try:
        os.setxattr(folder, "trusted.overlay.opaque", b"y")
    except PermissionError:
        os.setxattr(folder, "user.overlay.opaque", b"y")


# ---- a copy -----------------------------------------------------------------------------------


def _copy(
    content: Content,
    row: SnapshotRow,
    target: str,
    progress: ProgressCallback | None,
    reasons: Sequence[str],
) -> SnapshotRow:
    from .checkout import Layer, checkout

    if row.uids:
        why = "; ".join(reasons)
        raise UnsupportedError(f"mapped ids need an overlay{f' ({why})' if why else ''}")
    storage = content.storage
    home = rows.changes_path(storage, row.name)
    tree = os.path.join(home, "fs")
    if row.driver != "copy":
        fresh = os.path.join(home, "fs.new")
        storage.disk.remove_tree(fresh)
        if row.manifest is not None:
            below = [Layer(digest) for digest in layers_of(content, row)]
            checkout(content, below, fresh, progress=progress)
        else:
            os.mkdir(fresh, 0o755)
        storage.disk.remove_tree(tree)
        storage.disk.rename(fresh, tree)
        # Before it is shown, so that whoever finds it shown knows what it is.
        made = row.placed("copy", None)
        storage.index.update(lambda tx: made.put(tx))
    try:
        with _directory(tree) as source, _directory(target) as to:
            core.bind(source, to, target, readonly=row.kind != "active")
    except OSError as e:
        if e.errno not in _CANNOT:
            raise
        os.rmdir(target)
        os.symlink(tree, target)
    return row.placed("copy", target)


@contextlib.contextmanager
def pristine(content: Content, row: SnapshotRow) -> Iterator[str]:
    """What a copy was made from, written again, to be compared with it."""
    from .checkout import Layer, checkout

    path = os.path.join(rows.changes_path(content.storage, row.name), "before")
    content.storage.disk.remove_tree(path)
    try:
        checkout(content, [Layer(digest) for digest in layers_of(content, row)], path)
        yield path
    finally:
        content.storage.disk.remove_tree(path)


def layers_of(content: Content, row: SnapshotRow) -> list[str]:
    """Digests of stored blobs that hold the layers below a snapshot, lowest first."""
    out = []
    with content.storage.index.read() as snapshot:
        stack = rows.stack(snapshot, row.chain)
    with content.operation() as op:
        for one in reversed(stack or ()):
            found = op.have_layer(one.diff_id)
            if not found:
                raise LayerstoreError(f"no blob with diff_id {one.diff_id} is in the store")
            out.append(found[0])
    return out


# ---- away -------------------------------------------------------------------------------------


def is_shown(content: Content, row: SnapshotRow) -> bool:
    """Whether a snapshot that has a record of its place can be seen there."""
    target = row.target
    if target is None:
        return False
    if row.driver == "fuse":
        return any(m.target == target and "fuse" in m.kind for m in mounts.mounts())
    tree = os.path.join(rows.changes_path(content.storage, row.name), "fs")
    try:
        return os.path.samefile(tree, target)
    except OSError:
        return False


def hide(content: Content, row: SnapshotRow, target: str, *, lazy: bool) -> None:
    """Takes it away from there. Raises OSError."""
    if os.path.islink(target):
        os.unlink(target)
        os.mkdir(target)
        return
    try:
        core.unmount(target, lazy=lazy)
    except OSError as e:
        fusermount = shutil.which("fusermount3") or shutil.which("fusermount")
        if e.errno != errno.EPERM or row.driver != "fuse" or fusermount is None:
            raise
        command = [fusermount, "-u", *(["-z"] if lazy else []), target]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise OSError(errno.EBUSY, done.stderr.strip(), target) from e
