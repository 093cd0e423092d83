"""Passwords out of an htpasswd file: bcrypt only, each checked once and remembered by a keyed hash.

A push is a thousand requests and bcrypt costs a tenth of a second: so a name and password that were
checked are known again by their HMAC under a key of this process, until the file gives the name
another hash. The file is read again when it changes. A name that is not there costs as much.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType

from .. import InvalidInputError, UnsupportedError

_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
MAX_COST = 15
"""2 to the power of it are the rounds: a check takes two seconds there."""
MAX_PASSWORD = 72
"""bcrypt reads no further, so a longer password is not what somebody set."""
MAX_FILE = 16 << 20
KNOWN = 4096
WAITING = 64
"""Checks that may wait for the one that is being made."""

log = logging.getLogger("layerstore.registry")


class TooManyLogins(Exception):
    """More names and passwords wait to be checked than the registry wants to hold."""


class Passwords:
    """The users of one htpasswd file. Raises what `read` does when it is made."""

    def __init__(self, path: str) -> None:
        self._bcrypt = _bcrypt()
        self._path = path
        self._stamp = _stamp(path)
        self._users = read(path)
        self._decoy = self._make_decoy()
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[str | None, bool]] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="layerstore-passwords")

    def _make_decoy(self) -> bytes:
        """What is checked for a name that is not there: as costly as the first that is."""
        first = next(iter(self._users.values()), "$2b$10$")
        made: bytes = self._bcrypt.hashpw(b"", self._bcrypt.gensalt(int(first[4:6])))
        return made

    def remembered(self, name: str, password: bytes) -> bool | None:
        """What is known of a name and password; None if they must be checked."""
        self._refresh()
        with self._lock:
            found = self._known.get(self._mark(name, password))
            if found is None or found[0] != self._users.get(name):
                return None
            return found[1]

    def check(self, name: str, password: bytes) -> Future[bool]:
        """Whether the password is the name's, once bcrypt has looked. Raises TooManyLogins."""
        with self._lock:
            if self._waiting >= WAITING:
                raise TooManyLogins
            self._waiting += 1
        future = self._pool.submit(self._check, name, password)
        future.add_done_callback(self._checked)
        return future

    def _checked(self, _: Future[bool]) -> None:
        with self._lock:
            self._waiting -= 1

    def _check(self, name: str, password: bytes) -> bool:
        known = self.remembered(name, password)
        if known is not None:  # of several that asked the same at once, the first was checked
            return known
        wanted = self._users.get(name)
        possible = len(password) <= MAX_PASSWORD and b"\0" not in password
        same = self._bcrypt.checkpw(
            password if possible else b"", self._decoy if wanted is None else wanted.encode()
        )
        right = bool(same) and possible and wanted is not None
        with self._lock:
            self._known[self._mark(name, password)] = wanted, right
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
        return right

    def _mark(self, name: str, password: bytes) -> bytes:
        said = name.encode()
        message = len(said).to_bytes(4, "big") + said + password
        return hmac.new(self._key, message, hashlib.sha256).digest()

    def _refresh(self) -> None:
        """Reads the file again if it is another; keeps what was read if it cannot be."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._users = read(self._path)
        except (OSError, InvalidInputError) as e:
            log.error("the users stay as they were: %s", e)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


def read(path: str) -> dict[str, str]:
    """Names and hashes. Raises InvalidInputError, with the line, for what is no bcrypt; OSError."""
    out: dict[str, str] = {}
    with open(path, "rb") as f:
        data = f.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InvalidInputError(f"{path}: more than {MAX_FILE} bytes", path=path)
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            name, colon, hashed = line.decode("utf-8").partition(":")
        except UnicodeDecodeError as e:
            raise InvalidInputError(f"{path}:{number}: not UTF-8", path=path) from e
        found = _HASH.fullmatch(hashed)
        if not colon or not name or name.startswith("@"):
            raise InvalidInputError(f"{path}:{number}: not NAME:HASH", path=path)
        if found is None:
            raise InvalidInputError(
                f"{path}:{number}: the hash of {name!r} is no bcrypt (htpasswd -B makes them)",
                path=path,
            )
        if not 4 <= int(found[1]) <= MAX_COST:
            raise InvalidInputError(
                f"{path}:{number}: a cost of {found[1]} for {name!r}; 4 to {MAX_COST} are taken",
                path=path,
            )
        if name in out:
            raise InvalidInputError(f"{path}:{number}: {name!r} is there twice", path=path)
        out[name] = hashed
    return out


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _bcrypt() -> ModuleType:
    try:
        import bcrypt
    except ImportError as e:
        raise UnsupportedError(
            "users of an htpasswd file need bcrypt: pip install 'layerstore[registry]'"
        ) from e
    return bcrypt
