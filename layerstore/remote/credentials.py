"""Who we are for a registry: files and helpers, as skopeo, podman and docker keep them.

containers-auth.json(5). One file is asked after the other: `--authfile` alone if it is given, else
`$REGISTRY_AUTH_FILE` alone, else `$DOCKER_CONFIG/config.json` alone, else
`$XDG_RUNTIME_DIR/containers/auth.json` (`/run/containers/UID/auth.json`),
`$XDG_CONFIG_HOME/containers/auth.json`, `~/.docker/config.json`, `~/.dockercfg`. In each, the entry
whose name is most like the repository's wins; `credHelpers` go before entries, `credsStore` behind
them.
Nothing is ever written.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import InvalidInputError, NotFoundError, PermissionDeniedError
from .names import HUB

MAX_FILE = 4 << 20
HELPER_SECONDS = 60
HUB_KEY = "https://index.docker.io/v1/"
"""Under which docker keeps what is for docker.io."""
_HELPER = re.compile(r"[A-Za-z0-9._-]+\Z")
_TOKEN_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password; or an identity token, which tokens are given for; or a token itself."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str | None = field(default=None, repr=False)
    registry_token: str | None = field(default=None, repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        pair = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


def given(text: str) -> Credentials | None:
    """`USER:PASSWORD` as the user typed it; None for an empty text: nobody."""
    if not text:
        return None
    user, colon, password = text.partition(":")
    if not colon or not user:
        raise InvalidInputError("credentials are given as USER:PASSWORD", reason="transport")
    return Credentials(user, password)


def find(
    host: str, repository: str, *, authfile: str | None = None, env: Mapping[str, str] | None = None
) -> Credentials | None:
    """What the user's files say for a repository; None if they say nothing.

    Raises NotFoundError for a file that was named and is not there, InvalidInputError for one that
    cannot be understood, PermissionDeniedError when a helper fails."""
    environ = os.environ if env is None else env
    for path, legacy, named in _files(authfile, environ):
        content = _read(path, named)
        if content is None:
            continue
        found = _in_file(content, path, host, repository, legacy=legacy, env=environ)
        if found is not None:
            return found
    return None


def _files(authfile: str | None, env: Mapping[str, str]) -> Iterator[tuple[str, bool, bool]]:
    """Path, whether it is of the oldest form (entries at the top), whether the user named it."""
    if authfile is not None:
        yield authfile, False, True
        return
    if named := env.get("REGISTRY_AUTH_FILE"):
        yield named, False, True
        return
    if folder := env.get("DOCKER_CONFIG"):
        yield os.path.join(folder, "config.json"), False, False
        return
    home = env.get("HOME") or os.path.expanduser("~")
    runtime = env.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.geteuid()}"
    if env.get("XDG_RUNTIME_DIR"):
        runtime = os.path.join(runtime, "containers")
    config = env.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    yield os.path.join(runtime, "auth.json"), False, False
    yield os.path.join(config, "containers", "auth.json"), False, False
    yield os.path.join(home, ".docker", "config.json"), False, False
    yield os.path.join(home, ".dockercfg"), True, False


def _read(path: str, named: bool) -> dict[str, object] | None:
    try:
        with open(path, "rb") as f:
            data = f.read(MAX_FILE + 1)
    except FileNotFoundError as e:
        if named:
            raise NotFoundError(f"there is no file {path} with credentials", path=path) from e
        return None
    except NotADirectoryError:
        return None
    if len(data) > MAX_FILE:
        raise InvalidInputError(f"{path} has more than {MAX_FILE} bytes", path=path)
    if not data.strip():
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise InvalidInputError(f"{path} is no JSON: {e}", path=path) from e
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path} is no JSON object", path=path)
    return value


def _in_file(
    content: dict[str, object],
    path: str,
    host: str,
    repository: str,
    *,
    legacy: bool,
    env: Mapping[str, str],
) -> Credentials | None:
    auths = content if legacy else _object(content, "auths", path)
    helpers = {} if legacy else _object(content, "credHelpers", path)
    wanted = _keys(host, repository)
    by_key = {_normal(key): value for key, value in reversed(auths.items())}
    for name, helper in helpers.items():
        # Of a server as a whole; who has one is asked nothing else of this file.
        if _normal(name) == host and isinstance(helper, str) and helper:
            return _ask(helper, name, path, env)
    for key in wanted:
        entry = auths.get(key, by_key.get(key))
        if isinstance(entry, dict):
            found = _entry(entry, key, path)
            if found is not None:
                return found
    store = None if legacy else content.get("credsStore")
    if isinstance(store, str) and store:
        return _ask(store, HUB_KEY if host == HUB else host, path, env)
    return None


def _object(content: dict[str, object], key: str, path: str) -> dict[str, object]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path}: {key} is no object", path=path)
    return value


def _keys(host: str, repository: str) -> list[str]:
    """Names under which an entry may stand, the closest first."""
    parts = [host, *repository.split("/")] if repository else [host]
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _normal(key: str) -> str:
    """Docker writes URLs: `https://host/v1/` is `host`. A namespace stays."""
    bare = key
    for scheme in ("https://", "http://"):
        if key.startswith(scheme):
            bare = key[len(scheme) :].partition("/")[0]
    if bare in ("index.docker.io", "registry-1.docker.io") or bare.startswith("index.docker.io/v1"):
        return HUB
    return bare


def _entry(entry: dict[str, object], key: str, path: str) -> Credentials | None:
    def text(name: str) -> str:
        value = entry.get(name, "")
        if not isinstance(value, str):
            raise InvalidInputError(f"{path}: {name} of {key!r} is no string", path=path)
        return value

    user, password = text("username"), text("password")
    if auth := text("auth"):
        try:
            pair = base64.b64decode(auth, validate=True).decode()
        except (binascii.Error, ValueError) as e:
            raise InvalidInputError(f"{path}: auth of {key!r} is no base64", path=path) from e
        user, colon, password = pair.partition(":")
        if not colon:
            raise InvalidInputError(f"{path}: auth of {key!r} is no USER:PASSWORD", path=path)
        password = password.strip("\0")
    identity, registry = text("identitytoken") or None, text("registrytoken") or None
    if not (user or identity or registry):
        return None
    return Credentials(user, password, identity, registry)


def _ask(helper: str, server: str, path: str, env: Mapping[str, str]) -> Credentials | None:
    """docker-credential-helpers: the server's name in, a JSON object out."""
    if not _HELPER.match(helper):
        raise InvalidInputError(f"{path}: not the name of a helper: {helper[:80]!r}", path=path)
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_SECONDS,
            check=False,
            env=dict(env),
        )
    except FileNotFoundError as e:
        raise PermissionDeniedError(
            f"{path} names the credential helper {program}, which is not installed", path=path
        ) from e
    except subprocess.TimeoutExpired as e:
        raise PermissionDeniedError(
            f"{program} gave no answer for {server} in {HELPER_SECONDS} s", path=path
        ) from e
    said = done.stdout[:MAX_FILE]
    if done.returncode:
        if b"not found" in said:
            return None
        reason = (said or done.stderr)[:300].decode("utf-8", "replace").strip()
        raise PermissionDeniedError(f"{program} failed for {server}: {reason}", path=path)
    try:
        value = json.loads(said)
        user, secret = value["Username"], value["Secret"]
        if not isinstance(user, str) or not isinstance(secret, str):
            raise ValueError("Username and Secret are no strings")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise PermissionDeniedError(f"{program} gave no credentials for {server}", path=path) from e
    if user == _TOKEN_USER:
        return Credentials(identity_token=secret)
    return Credentials(user, secret) if user else None
