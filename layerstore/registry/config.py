"""The registry's configuration: a TOML file, read strictly into frozen values.

    config = load("/etc/layerstore/registry.toml")      # or Config(), where there is no file

Every message about a file names the file, the line and the key. Keys that are not known are errors: a
misspelt limit would be none. Relative paths are relative to the file. docs/registry.md lists all keys.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .. import InvalidInputError

T = TypeVar("T")
MAX_FILE = 1 << 20
"""Bytes of a configuration file."""
RIGHTS = ("pull", "create", "overwrite", "delete")
"""What may be allowed: to read; to add blobs, manifests and new tags; to let a tag name another
manifest; to delete manifests, tags and blobs."""

_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(?:iB|B)?)?", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_PATTERN = re.compile(r"[a-z0-9._/*-]+")
_LONGEST = 100 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Tls:
    """`[server.tls]`: PEM files of the certificate, with its chain, and of its key."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`[server]`: where to listen, how many processes serve, seconds that requests have to end."""

    listen: str = "127.0.0.1:5000"
    workers: int = 1
    grace: float = 30.0
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """`[log]`: of requests (`access`) and of the server itself, on standard error."""

    format: str = "text"
    level: str = "info"
    access: bool = True


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """`[metrics]`: whether `/metrics` is served."""

    enabled: bool = True


@dataclass(frozen=True, slots=True)
class MaintenanceConfig:
    """`[maintenance]`: when to optimize and collect. `idle`: seconds that a blob which no manifest
    names, and an upload, is kept after its last use. `quiet`: seconds without a request after which
    the server counts as idle; `overdue`: since when what waits for that has not come to its end, if it
    is to wait no longer. `max_used_space`, `min_free_space`: bytes that the store may take, and that
    are to be free on its filesystem; what can be made or fetched again goes for it."""

    optimize: str = "off"
    gc: str = "off"
    idle: float = 24 * 3600.0
    quiet: float = 30.0
    overdue: float = 6 * 3600.0
    max_used_space: int | None = None
    min_free_space: int | None = None


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """`[limits]`, in bytes, seconds and counts; None: no limit."""

    upload_bytes: int | None = None
    """Of one upload."""
    repository_bytes: int | None = None
    """Of all blobs and manifests of a repository, each counted once."""
    manifest_bytes: int = 4 << 20
    """At most 4 MiB, which is as much as a client has to take."""
    open_uploads: int | None = 4096
    """In the whole store."""
    header_bytes: int = 32 << 10
    """Of one request's line and headers."""
    header_time: float = 15.0
    """Until the headers of a request are there."""
    body_idle: float = 60.0
    """Between two pieces of a body, and until a client takes what it is sent."""
    connections: int = 4096
    """Of one process."""


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """`[access.token]`: who gives out bearer tokens, and the keys that prove it."""

    realm: str
    """URL where clients get tokens."""
    service: str
    """What the tokens are for: their audience."""
    issuer: str
    keys: tuple[str, ...]
    """Files: public keys or certificates in PEM, or JWK sets."""
    leeway: float = 60.0
    """Seconds that clocks may differ."""
    push: frozenset[str] = frozenset(("create", "overwrite"))
    """The rights that a token's `push` means."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One of `[[access.rules]]`: who has which rights in which repositories."""

    users: tuple[str, ...]
    """Names; `@anyone`, or `@users` for whoever has said who they are."""
    repositories: tuple[str, ...]
    """Patterns: `*` stands for any text without a slash, `**` for any text."""
    rights: frozenset[str]


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """`[access]`: who may do what. What no rule allows is not allowed."""

    realm: str = "layerstore"
    htpasswd: str | None = None
    login: str | None = None
    """URL of this server's `/v2/token` as clients see it: they get tokens there for a password, or for
    none, instead of being asked for one."""
    token: TokenConfig | None = None
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """`[proxy]`: which registry this one mirrors, for how many seconds a tag is believed, and for how
    many an image is kept that nobody asks for (None: for good); `slowest`: the bytes a second below
    which what comes of it is given up."""

    upstream: str
    ttl: float = 3600.0
    idle: float | None = None
    slowest: int = 4096


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. Without `[access]` everybody may do everything: on loopback only."""

    server: ServerConfig = field(default_factory=ServerConfig)
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    maintenance: MaintenanceConfig = field(default_factory=MaintenanceConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    access: AccessConfig | None = None
    proxy: ProxyConfig | None = None
    readonly: bool = False
    sparse: bool = False
    path: str | None = None
    """The file that it came from."""


def load(path: str | os.PathLike[str]) -> Config:
    """The configuration in a file. Raises InvalidInputError for what it may not say; OSError."""
    name = os.fspath(path)
    with open(name, "rb") as f:
        data = f.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InvalidInputError(f"{name}: more than {MAX_FILE} bytes", path=name)
    try:
        return parse(data.decode("utf-8"), name)
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise InvalidInputError(f"{name}:{line}: not UTF-8", path=name, offset=e.start) from e


def parse(text: str, name: str = "configuration") -> Config:
    """The same of a text; `name` is what messages call it, and where relative paths start."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(e), re.DOTALL)
        line = int(found[2]) if found else text.count("\n") + 1
        what = found[1] if found else str(e)
        raise InvalidInputError(f"{name}:{line}: not TOML: {what}", path=name) from e
    except RecursionError as e:
        raise InvalidInputError(f"{name}: nested too deeply", path=name) from e
    top = _Table(document, (), text, name)
    config = Config(
        server=_server(top.table("server")),
        log=_log(top.table("log")),
        metrics=_metrics(top.table("metrics")),
        maintenance=_maintenance(top.table("maintenance")),
        limits=_limits(top.table("limits")),
        access=_access(top.table("access")) if "access" in document else None,
        proxy=_proxy(top.table("proxy")) if "proxy" in document else None,
        readonly=top.boolean("readonly", False),
        sparse=top.boolean("sparse", False),
        path=name,
    )
    top.finish()
    return config


def _server(table: _Table) -> ServerConfig:
    default = ServerConfig()
    tls = None
    if table.has("tls"):
        inner = table.table("tls")
        tls = Tls(inner.file("certificate"), inner.file("key"))
        inner.finish()
    return table.done(
        ServerConfig(
            listen=table.address("listen", default.listen),
            workers=table.integer("workers", default.workers, 1, 256),
            grace=table.duration("grace", default.grace),
            tls=tls,
        )
    )


def _log(table: _Table) -> LogConfig:
    default = LogConfig()
    return table.done(
        LogConfig(
            format=table.choice("format", default.format, ("text", "json")),
            level=table.choice("level", default.level, ("debug", "info", "warning", "error")),
            access=table.boolean("access", default.access),
        )
    )


def _metrics(table: _Table) -> MetricsConfig:
    default = MetricsConfig()
    return table.done(
        MetricsConfig(
            enabled=table.boolean("enabled", default.enabled),
        )
    )


def _maintenance(table: _Table) -> MaintenanceConfig:
    default = MaintenanceConfig()
    return table.done(
        MaintenanceConfig(
            optimize=table.choice("optimize", default.optimize, ("idle", "now", "off")),
            gc=table.choice("gc", default.gc, ("idle", "off")),
            idle=table.duration("idle", default.idle),
            quiet=table.duration("quiet", default.quiet),
            overdue=table.duration("overdue", default.overdue),
            max_used_space=table.size("max_used_space"),
            min_free_space=table.size("min_free_space"),
        )
    )


def _limits(table: _Table) -> LimitsConfig:
    default = LimitsConfig()
    return table.done(
        LimitsConfig(
            upload_bytes=table.size("upload_bytes"),
            repository_bytes=table.size("repository_bytes"),
            manifest_bytes=table.size("manifest_bytes", most=default.manifest_bytes)
            or default.manifest_bytes,
            open_uploads=table.integer("open_uploads", default.open_uploads or 0, 1, 1 << 20),
            header_bytes=table.size("header_bytes", least=1024, most=1 << 20)
            or default.header_bytes,
            header_time=table.duration("header_time", default.header_time),
            body_idle=table.duration("body_idle", default.body_idle),
            connections=table.integer("connections", default.connections, 1, 1 << 20),
        )
    )


def _access(table: _Table) -> AccessConfig:
    default = AccessConfig()
    token = _token(table.table("token")) if table.has("token") else None
    login = table.quotable("login") if table.has("login") else None
    if login is not None:
        if not re.fullmatch(r"https?://[^/?#\s]+/v2/token", login):
            raise table.wrong("login", "a URL: https://HOST/v2/token")
        if token is not None or not table.has("htpasswd"):
            raise table.wrong("login", "only with `htpasswd`, and without `token`")
    return table.done(
        AccessConfig(
            login=login,
            realm=table.quotable("realm", default.realm),
            htpasswd=table.file("htpasswd") if table.has("htpasswd") else None,
            token=token,
            rules=tuple(_rule(one) for one in table.tables("rules")),
        )
    )


def _token(table: _Table) -> TokenConfig:
    keys = table.files("keys")
    if not keys:
        raise table.wrong("keys", "at least one file of public keys")
    return table.done(
        TokenConfig(
            realm=table.quotable("realm"),
            service=table.quotable("service"),
            issuer=table.text("issuer"),
            keys=keys,
            leeway=table.duration("leeway", 60.0, zero=True, most=3600.0),
            push=frozenset(
                table.choices("push", ("create", "overwrite", "delete"), ("create", "overwrite"))
            ),
        )
    )


def _rule(table: _Table) -> Rule:
    users = table.texts("users")
    for user in users:
        if not user or (user.startswith("@") and user not in ("@anyone", "@users")):
            raise table.wrong("users", "names, '@anyone' or '@users'")
    patterns = table.texts("repositories")
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern) or "***" in pattern:
            raise table.wrong("repositories", "names with * and ** in them, as in 'team/**'")
    if not users or not patterns:
        raise table.wrong("repositories" if users else "users", "at least one")
    return table.done(Rule(users, patterns, frozenset(table.choices("rights", RIGHTS))))


def _proxy(table: _Table) -> ProxyConfig:
    upstream = table.text("upstream")
    if not upstream.startswith("docker://") or len(upstream) < 10:
        raise table.wrong("upstream", "a registry: docker://HOST")
    ttl = table.duration("ttl", 3600.0, zero=True)
    idle = table.duration("idle", 0.0) if table.has("idle") else None
    slowest = table.size("slowest", least=0)
    default = ProxyConfig(upstream)
    return table.done(
        ProxyConfig(upstream, ttl, idle, default.slowest if slowest is None else slowest)
    )


class _Table:
    """A table of the file, whose keys are taken one by one; `finish` refuses what is left."""

    def __init__(self, data: Any, at: tuple[str | int, ...], text: str, name: str) -> None:
        self._data: dict[str, Any] = data
        self._at = at
        self._text = text
        self._name = name
        self._taken: list[str] = []
        if not isinstance(data, dict):
            raise self._error("a table")

    # ---- what is wrong ------------------------------------------------------------------------

    def _error(
        self, expected: str, key: str | None = None, what: str = "expected"
    ) -> InvalidInputError:
        at = self._at if key is None else (*self._at, key)
        line = line_of(self._text, at)
        dotted = ".".join(str(part) for part in at if not isinstance(part, int))
        return InvalidInputError(
            f"{self._name}:{line}: {dotted}: {what} {expected}", path=self._name, reason=dotted
        )

    def wrong(self, key: str, expected: str) -> InvalidInputError:
        """The error for a key whose value is none that is expected."""
        if key not in self._data:
            return self._error(expected, key, "is missing: expected")
        return self._error(f"{expected}, not {self._data[key]!r:.80}", key)

    def finish(self) -> None:
        """Refuses keys that nobody took."""
        for key in self._data:
            if key not in self._taken:
                close = difflib.get_close_matches(key, self._taken, 1)
                hint = f"; is {close[0]!r} meant?" if close else ""
                raise self._error(f"such key{hint}", key, "there is no")

    def done(self, value: T) -> T:
        """`finish`, and what was made of the table."""
        self.finish()
        return value

    # ---- what may be there --------------------------------------------------------------------

    def has(self, key: str) -> bool:
        self._taken.append(key)
        return key in self._data

    def _get(self, key: str, default: Any) -> Any:
        self._taken.append(key)
        return self._data.get(key, default)

    def table(self, key: str) -> _Table:
        return _Table(self._get(key, {}), (*self._at, key), self._text, self._name)

    def tables(self, key: str) -> list[_Table]:
        found = self._get(key, [])
        if not isinstance(found, list):
            raise self.wrong(key, f"tables: [[{'.'.join(map(str, self._at))}.{key}]]")
        return [
            _Table(one, (*self._at, key, n), self._text, self._name) for n, one in enumerate(found)
        ]

    def text(self, key: str, default: str | None = None) -> str:
        found = self._get(key, default)
        if not isinstance(found, str) or not found or not found.isprintable():
            raise self.wrong(key, "a text")
        return found

    def quotable(self, key: str, default: str | None = None) -> str:
        """A text that can stand quoted in a header."""
        found = self.text(key, default)
        if not found.isascii() or '"' in found or "\\" in found:
            raise self.wrong(key, "printable ASCII without quotes and backslashes")
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        found = self._get(key, None)
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.wrong(key, "a list of texts")
        return tuple(found)

    def choices(
        self, key: str, among: tuple[str, ...], default: tuple[str, ...] | None = None
    ) -> tuple[str, ...]:
        if default is not None and not self.has(key):
            return default
        found = self.texts(key)
        if not set(found) <= set(among):
            raise self.wrong(key, f"some of {', '.join(among)}")
        return found

    def choice(self, key: str, default: str, among: tuple[str, ...]) -> str:
        found = self._get(key, default)
        if found not in among:
            raise self.wrong(key, f"one of {', '.join(among)}")
        return str(found)

    def boolean(self, key: str, default: bool) -> bool:
        found = self._get(key, default)
        if not isinstance(found, bool):
            raise self.wrong(key, "true or false")
        return found

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        found = self._get(key, default)
        if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
            raise self.wrong(key, f"a number from {least} to {most}")
        return found

    def size(self, key: str, *, least: int = 1, most: int = 1 << 62) -> int | None:
        """Bytes: a number, or a text as `4M`, `20GiB` (powers of 1024). None where it is not there."""
        found = self._get(key, None)
        if found is None:
            return None
        value = -1
        if isinstance(found, int) and not isinstance(found, bool):
            value = found
        elif isinstance(found, str) and (match := _SIZE.fullmatch(found.strip())):
            power = "KMGT".index(match[2].upper()) + 1 if match[2] else 0
            value = int(match[1][:30]) * 1024**power
        if not least <= value <= most:
            limit = f" from {least} to {most} bytes" if most < 1 << 62 else ""
            raise self.wrong(key, f"a size{limit}, as 4M or 20G")
        return value

    def duration(
        self, key: str, default: float, *, zero: bool = False, most: float = _LONGEST
    ) -> float:
        """Seconds: a number, or a text as `30s`, `10m`, `24h`."""
        found = self._get(key, default)
        value = -1.0
        if isinstance(found, int | float) and not isinstance(found, bool):
            value = float(found)
        elif isinstance(found, str) and (match := _DURATION.fullmatch(found.strip())):
            value = float(match[1]) * _SECONDS[match[2] or "s"]
        if not math.isfinite(value) or value > most or value < 0 or (value == 0 and not zero):
            raise self.wrong(key, "a time, as 30s, 10m or 24h")
        return value

    def address(self, key: str, default: str) -> str:
        found = self._get(key, default)
        host, colon, port = found.rpartition(":") if isinstance(found, str) else ("", "", "")
        plain = colon and port.isascii() and port.isdigit() and int(port[:6]) <= 65535
        if found != default and not (plain and found.isprintable() and " " not in host):
            raise self.wrong(key, "an address: HOST:PORT")
        return str(found)

    def file(self, key: str) -> str:
        return self._resolved(self.text(key))

    def files(self, key: str) -> tuple[str, ...]:
        return tuple(self._resolved(one) for one in self.texts(key))

    def _resolved(self, file: str) -> str:
        return os.path.join(os.path.dirname(os.path.abspath(self._name)), file)


def line_of(text: str, at: tuple[str | int, ...]) -> int:
    """The line on which a key of a TOML text is set, or, where it is not, its table begins.

    The parser says no lines; but it reads every prefix of whole statements, so a statement ends where
    a prefix parses again, and begins behind the one before. A key is set by the statement with which it
    appears."""
    lines = text.splitlines(keepends=True)
    for wanted in (at[:n] for n in range(len(at), 0, -1)):
        begin, prefix = 1, ""
        for number, line in enumerate(lines, 1):
            prefix += line
            try:
                document = tomllib.loads(prefix)
            except tomllib.TOMLDecodeError:
                continue
            if _there(document, wanted):
                return begin
            begin = number + 1
    return 1


def _there(document: Any, at: tuple[str | int, ...]) -> bool:
    for part in at:
        if isinstance(part, int):
            if not isinstance(document, list) or part >= len(document):
                return False
        elif not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True
