"""Who a container runs as: the config's User, looked up in the image's own passwd and group files.

The files are read out of the layers, not out of a directory: symbolic links lead nowhere but through
the image, and only a regular file of at most 16 MiB is read. Lines that make no sense are passed over,
as getpwent(3) does. Ids are 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidInputError, LimitError, NotFoundError
from ..layers.tree import Tree, file_content

if TYPE_CHECKING:
    from ..layers.content import Content

MAX_FILE = 16 << 20
MAX_ID = (1 << 32) - 2
PASSWD = "etc/passwd"
GROUP = "etc/group"


@dataclass(frozen=True, slots=True)
class User:
    """Ids, further groups (sorted), and the home directory."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def look_up(content: Content, tree: Tree, text: str) -> User:
    """The user that `text` means (image-spec config.md, User): a name or id, then a group's name or id
    after a colon. Empty: root. A name must be known; an id need not be.

    Raises InvalidInputError (no such user or group, an impossible id), LimitError (a file that is too
    large to be one)."""
    who, _, group = text.partition(":")
    entry = _user(content, tree, who or "0")
    groups = list(_groups(content, tree))
    if group:
        return User(entry.uid, _gid(groups, group), (), entry.home)
    further = {g.gid for g in groups if entry.name and entry.name in g.members}
    return User(entry.uid, entry.gid, tuple(sorted(further - {entry.gid})), entry.home)


def _user(content: Content, tree: Tree, who: str) -> _Entry:
    number = _number(who)
    for entry in _users(content, tree):
        if entry.name == who or entry.uid == number:
            return entry
    if number is None:
        raise InvalidInputError(
            f"the image's user {who[:80]!r} is not in its /{PASSWD}", path=PASSWD, reason="user"
        )
    return _Entry("", number, 0, "/")


def _gid(groups: list[_Group], text: str) -> int:
    number = _number(text)
    for group in groups:
        if group.name == text or group.gid == number:
            return group.gid
    if number is None:
        raise InvalidInputError(
            f"the image's group {text[:80]!r} is not in its /{GROUP}", path=GROUP, reason="group"
        )
    return number


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    value = int(text) if len(text) <= 10 else MAX_ID + 1
    if value > MAX_ID:
        raise InvalidInputError(f"not an id of a user or group: {text[:40]}", reason="user")
    return value


def _users(content: Content, tree: Tree) -> Iterator[_Entry]:
    for parts in _lines(content, tree, PASSWD):
        if len(parts) >= 4 and (ids := _ids(parts[2], parts[3])) is not None:
            home = parts[5] if len(parts) > 5 and parts[5].startswith("/") else "/"
            yield _Entry(parts[0], *ids, home)


def _groups(content: Content, tree: Tree) -> Iterator[_Group]:
    for parts in _lines(content, tree, GROUP):
        if len(parts) >= 3 and (ids := _ids(parts[2], "0")) is not None:
            members = parts[3].split(",") if len(parts) > 3 else []
            yield _Group(parts[0], ids[0], tuple(members))


def _ids(first: str, second: str) -> tuple[int, int] | None:
    try:
        a, b = _number(first), _number(second)
    except InvalidInputError:
        return None
    return None if a is None or b is None else (a, b)


def _lines(content: Content, tree: Tree, path: str) -> Iterator[list[str]]:
    """The fields of each line; nothing where there is no such file, or it is no regular one."""
    try:
        found = tree.resolve(path)
    except NotFoundError:
        return
    if found.entry.type != "file":
        return
    if found.entry.size > MAX_FILE:
        raise LimitError(
            f"/{path} has {found.entry.size} bytes: more than {MAX_FILE} are not read", path=path
        )
    data = b"".join(file_content(content, found))
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        if line and not line.startswith("#"):
            yield line.split(":")
