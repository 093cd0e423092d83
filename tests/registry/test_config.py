"""The configuration file: what it may say, and that a mistake is named with file, line and key."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layerstore
from layerstore.registry.config import Config, load, parse

WHOLE = """\
readonly = true
sparse = true

[server]
listen = "0.0.0.0:5000"
workers = 4
grace = "1m"
tls = { certificate = "cert.pem", key = "/keys/key.pem" }

[log]
format = "json"
level = "warning"
access = false

[metrics]
enabled = false

[maintenance]
optimize = "idle"
gc = "idle"
idle = "12h"
quiet = 5

[limits]
upload_bytes = "20G"
repository_bytes = "1TiB"
manifest_bytes = "1M"
open_uploads = 7
header_bytes = 8192
header_time = "500ms"
body_idle = 2.5
connections = 100

[access]
realm = "here"
htpasswd = "users"

[access.token]
realm = "https://auth.example/token"
service = "registry.example"
issuer = "auth.example"
keys = ["one.pem", "two.jwks"]
leeway = 0
push = ["create"]

[[access.rules]]
users = ["@anyone"]
repositories = ["public/**"]
rights = ["pull"]

[[access.rules]]
users = ["ann", "@users"]
repositories = ["*"]
rights = ["pull", "create", "overwrite", "delete"]

[proxy]
upstream = "docker://registry.example"
ttl = "5m"
idle = "720h"
slowest = 0
"""


def test_everything_can_be_said(tmp_path):
    path = tmp_path / "registry.toml"
    path.write_text(WHOLE)
    config = load(path)
    assert config.readonly
    assert config.sparse
    assert config.path == str(path)
    assert (config.server.listen, config.server.workers, config.server.grace) == (
        "0.0.0.0:5000",
        4,
        60.0,
    )
    assert config.server.tls.certificate == str(tmp_path / "cert.pem")
    assert config.server.tls.key == "/keys/key.pem"
    assert (config.log.format, config.log.level, config.log.access) == ("json", "warning", False)
    assert not config.metrics.enabled
    assert (config.maintenance.gc, config.maintenance.idle) == ("idle", 12 * 3600.0)
    assert config.limits.upload_bytes == 20 << 30
    assert config.limits.repository_bytes == 1 << 40
    assert config.limits.manifest_bytes == 1 << 20
    assert (config.limits.header_time, config.limits.body_idle) == (0.5, 2.5)
    access = config.access
    assert access.htpasswd == str(tmp_path / "users")
    assert access.token.keys == (str(tmp_path / "one.pem"), str(tmp_path / "two.jwks"))
    assert (access.token.push, access.token.leeway) == ({"create"}, 0.0)
    assert [rule.rights for rule in access.rules] == [
        {"pull"},
        {"pull", "create", "overwrite", "delete"},
    ]
    assert (config.proxy.upstream, config.proxy.ttl) == ("docker://registry.example", 300.0)
    assert (config.proxy.idle, config.proxy.slowest) == (30 * 86400, 0)


def test_nothing_need_be_said():
    assert parse("", "x") == Config(path="x")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("x = 1", 1, "x"),
        ("\n[server]\nlisten = 5", 3, "server.listen"),
        ('[server]\nlisten = "somewhere"', 2, "server.listen"),
        ('[server]\nlisten = "h:99999"', 2, "server.listen"),
        ("[server]\n\n# none\nworkers = 0", 4, "server.workers"),
        ("[server]\nworkers = true", 2, "server.workers"),
        ('[server.tls]\nkey = "k"', 1, "server.tls.certificate"),
        ("server = 3", 1, "server"),
        ('[log]\nformat = "xml"', 2, "log.format"),
        ('[log]\nformt = "json"', 2, "log.formt"),
        ('[limits]\nupload_bytes = "many"', 2, "limits.upload_bytes"),
        ("[limits]\nupload_bytes = -1", 2, "limits.upload_bytes"),
        ('[limits]\nmanifest_bytes = "5M"', 2, "limits.manifest_bytes"),
        ('[limits]\nbody_idle = "0s"', 2, "limits.body_idle"),
        ("[limits]\nbody_idle = nan", 2, "limits.body_idle"),
        ('[access]\nrealm = "a\\"b"', 2, "access.realm"),
        ('[access.token]\nrealm = "r"\nservice = "s"\nissuer = "i"\nkeys = []', 5, "access.token.keys"),
        ("[access]\n[[access.rules]]\nusers = ['a']\nrepositories = ['A']\nrights = []", 4,
         "access.rules.repositories"),
        ("[[access.rules]]\nusers = ['a']\nrepositories = ['a']\nrights = ['pull']\n"
         "[[access.rules]]\nusers = ['a']\nrepositories = ['a']\nrights = [\n'push',\n]", 8,
         "access.rules.rights"),
        ("[[access.rules]]\nusers = ['@all']\nrepositories = ['a']\nrights = ['pull']", 2,
         "access.rules.users"),
        ("[[access.rules]]\nusers = []\nrepositories = ['a']\nrights = ['pull']", 2,
         "access.rules.users"),
        ("[access]\nrules = 3", 2, "access.rules"),
        ('[proxy]\nupstream = "https://x"', 2, "proxy.upstream"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_key(text, line, key):
    with pytest.raises(layerstore.InvalidInputError) as caught:
        parse(text, "/etc/r.toml")
    assert caught.value.message.startswith(f"/etc/r.toml:{line}: {key}: "), caught.value.message


def test_a_misspelt_key_is_guessed():
    with pytest.raises(layerstore.InvalidInputError, match="is 'upload_bytes' meant"):
        parse("[limits]\nupload_byte = 3")


@pytest.mark.parametrize(
    ("data", "line"),
    [(b"a = ", 1), (b"\n\n[x\n", 3), (b"a = 1\na = 2", 2), (b"\n\xff", 2)],
)
def test_what_is_not_toml_is_named_with_its_line(tmp_path, data, line):
    path = tmp_path / "r.toml"
    path.write_bytes(data)
    with pytest.raises(layerstore.InvalidInputError) as caught:
        load(path)
    assert caught.value.message.startswith(f"{path}:{line}: not ")


@given(st.text(alphabet="abl[]='\"\n.#{}, 1server", max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(layerstore.InvalidInputError):
        assert isinstance(parse(text), Config)


def test_a_deep_or_long_file_is_refused(tmp_path):
    with pytest.raises(layerstore.InvalidInputError):
        parse("a = " + "[" * 5000 + "]" * 5000)
    path = tmp_path / "r.toml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(layerstore.InvalidInputError, match="more than"):
        load(path)
