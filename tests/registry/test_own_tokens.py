"""Tokens that the registry gives out itself: to whoever has a password, and to nobody in particular."""

from __future__ import annotations

import base64
import re
from urllib.parse import urlencode, urlsplit

import bcrypt
import pytest
from registry.asgi import Answer, Client
from registry.test_registry import MANIFEST, image

import layerstore
from layerstore.registry import Registry, logins
from layerstore.registry.config import parse

URL = "https://r.example/v2/token"
RULES = """
[[access.rules]]
users = ["ann"]
repositories = ["**"]
rights = ["pull", "create", "overwrite"]
[[access.rules]]
users = ["@anyone"]
repositories = ["open/*"]
rights = ["pull"]
"""
SECRET = bytes(range(32))


@pytest.fixture
def made(tmp_path):
    """A registry for each configuration of `[access]`, over one store with two repositories."""
    hashed = bcrypt.hashpw(b"a-word", bcrypt.gensalt(4)).decode()
    (tmp_path / "users").write_text(f"ann:{hashed}\n")
    with layerstore.open(tmp_path / "store") as store:
        for name in ("open/app", "own/app"):
            store.repository(name).put_blob(b"{}")
            store.repository(name).put_manifest(image(), MANIFEST, tags=("1",))
        registries = []

        def make(login: str | None = URL, secret: bytes = SECRET) -> Registry:
            text = f'[access]\nhtpasswd = "users"\n{RULES}'
            if login is not None:
                text = text.replace("[access]\n", f'[access]\nlogin = "{login}"\n', 1)
            found = Registry(store, parse(text, str(tmp_path / "r.toml")), secret=secret)
            registries.append(found)
            return found

        yield make
        for one in registries:
            one.authentication.close()


def basic(password: str = "a-word") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


class GivesUp(Exception):
    """What Docker says when it does not even ask: no basic auth credentials."""


class Docker:
    """As the engine's distribution client goes about it: it asks at /v2/ once, without credentials. Of
    what that challenged for, everything must be met before each request: Basic by a login, or it gives
    up; Bearer by a token for the repository, which it fetches with the login, or without."""

    def __init__(self, registry: Registry, password: str | None = None) -> None:
        self._client = Client(registry)
        self._password = password
        answer = self._client("GET", "/v2/")
        assert answer.status in (200, 401)
        challenge = answer.headers.get("www-authenticate", "") if answer.status == 401 else ""
        self._scheme = challenge.partition(" ")[0].lower()
        self._parameters = dict(re.findall(r'([a-z]+)="([^"]*)"', challenge))

    def __call__(self, method: str, name: str, path: str, body: bytes = b"") -> Answer:
        headers = {"Content-Type": MANIFEST}
        login = {} if self._password is None else basic(self._password)
        if self._scheme == "basic":
            if not login:
                raise GivesUp
            headers |= login
        elif self._scheme == "bearer":
            where = urlsplit(self._parameters["realm"])
            actions = "pull" if method in ("GET", "HEAD") else "pull,push"
            scope = f"repository:{name}:{actions}"
            query = urlencode({"service": self._parameters["service"], "scope": scope})
            answer = self._client("GET", f"{where.path}?{query}", headers=login)
            assert answer.status == 200, answer
            headers |= bearer(answer.json()["token"])
        return self._client(method, f"/v2/{name}/{path}", body, headers)


def test_docker_pulls_what_anybody_may_pull(made):
    with pytest.raises(GivesUp):
        Docker(made(login=None))("GET", "open/app", "manifests/1")
    registry = made()
    nobody, ann = Docker(registry), Docker(registry, "a-word")
    assert nobody("GET", "open/app", "manifests/1").body == image()
    assert ann("GET", "own/app", "manifests/1").body == image()
    refused = nobody("GET", "own/app", "manifests/1")
    assert refused.status == 401
    assert refused.headers["www-authenticate"] == (
        f'Bearer realm="{URL}",service="r.example",scope="repository:own/app:pull",'
        'error="insufficient_scope"'
    )
    assert nobody("PUT", "open/app", "manifests/2", image()).status == 401
    assert ann("PUT", "open/app", "manifests/2", image()).status == 201


def test_a_password_is_taken_as_well(made):
    client = Client(made())
    assert client("GET", "/v2/").headers["www-authenticate"] == (
        f'Bearer realm="{URL}",service="r.example"'
    )
    assert client("GET", "/v2/", headers=basic()).status == 200
    assert client("GET", "/v2/own/app/manifests/1", headers=basic()).status == 200
    assert client("GET", "/v2/open/app/manifests/1").status == 200
    assert client("GET", "/v2/own/app/manifests/1").status == 401
    assert client("GET", "/v2/own/app/manifests/1", headers=basic("wrong")).status == 401


def test_who_gets_a_token(made, monkeypatch):
    client = Client(made())
    for headers in (basic("wrong"), {"Authorization": "Digest x"}, bearer("x.y")):
        assert client("GET", "/v2/token", headers=headers).status == 401
    answer = client("GET", "/v2/token?scope=repository:a:pull&scope=b&service=c", headers=basic())
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["token"] == answer.json()["access_token"]
    token = bearer(answer.json()["token"])
    assert client("GET", "/v2/", headers=token).status == 200
    assert client("GET", "/v2/own/app/manifests/1", headers=token).status == 200
    # A token is no way to the next one, and counts for its time only.
    assert client("GET", "/v2/token", headers=token).status == 401
    now = logins.time.monotonic()
    monkeypatch.setattr(logins.time, "monotonic", lambda: now + answer.json()["expires_in"] + 1)
    refused = client("GET", "/v2/open/app/manifests/1", headers=token)
    assert refused.status == 401
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]
    assert client("POST", "/v2/token", headers=basic()).status == 405
    assert Client(made(login=None))("GET", "/v2/token").status == 404


def test_a_token_is_one_of_ours(made):
    """Of this server, any of its workers, and no other; not a bit of it can be changed."""
    one, worker, other = made(), made(), made(secret=bytes(32))
    token = Client(one)("GET", "/v2/token", headers=basic()).json()["token"]
    path = "/v2/own/app/manifests/1"
    assert Client(worker)("GET", path, headers=bearer(token)).status == 200
    assert Client(other)("GET", path, headers=bearer(token)).status == 401
    client, (body, _, signature) = Client(one), token.partition(".")
    for at in range(0, len(token), 3):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert client("GET", path, headers=bearer(changed)).status == 401
    for odd in ("", ".", "..", body, f"{body}.", f".{signature}", token + ".", "\xff." + signature):
        assert client("GET", path, headers=bearer(odd)).status == 401
    assert client("GET", path, headers=bearer("x" * 30_000)).status == 401


@pytest.mark.parametrize(
    "access",
    [
        'login = "https://r.example/v2/token"',
        'htpasswd = "users"\nlogin = "https://r.example/token"',
        'htpasswd = "users"\nlogin = "r.example/v2/token"',
        'htpasswd = "users"\nlogin = "https://r.example/x/v2/token?a"',
        'htpasswd = "users"\nlogin = ""',
    ],
)
def test_a_login_that_cannot_work_is_refused(access):
    with pytest.raises(layerstore.InvalidInputError, match="login"):
        parse(f"[access]\n{access}\n")
