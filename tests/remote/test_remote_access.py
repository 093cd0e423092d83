"""Who we are: tokens, files, helpers, certificates, proxies."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from oci import oci_make as make
from remote import upstream as servers

import layerstore
from layerstore.remote import credentials, wire
from layerstore.remote.credentials import Credentials
from layerstore.remote.tokens import parse_challenges

IMAGE = make.image()


def options(**more) -> layerstore.RemoteOptions:
    return layerstore.RemoteOptions(**{"timeout": 10.0, "tries": 3, **more})


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def test_a_token_is_asked_for_once_and_used(store, upstream, tokens) -> None:
    upstream.add("team/app", IMAGE, "1")
    tokens.users = {"me": "secret"}
    upstream.odd = tokens.guard
    where = f"docker://{upstream.host}/team/app:1"
    store.import_image(where, remote=options(creds="me:secret"))
    (asked,) = tokens.given
    assert asked["scope"] == ["repository:team/app:pull"]
    assert (asked["service"], asked["account"]) == (["the, service"], ["me"])
    with pytest.raises(layerstore.PermissionDeniedError, match="log in"):
        store.import_image(where, "x", remote=options(creds="me:wrong"))


def test_a_token_that_is_not_good_any_more_is_asked_for_again(store, upstream, tokens) -> None:
    upstream.add("team/app", IMAGE, "1")

    def forgetful(handler, seen) -> bool:
        if tokens.guard(handler, seen):
            return True
        tokens.valid.clear()
        return False

    upstream.odd = forgetful
    store.import_image(f"docker://{upstream.host}/team/app:1", remote=options(creds="a:b"))
    assert len(tokens.given) > 2


def test_an_identity_token_is_posted(store, upstream, tokens, tmp_path) -> None:
    upstream.add("team/app", IMAGE, "1")
    tokens.identity = "long-lived"
    upstream.odd = tokens.guard
    file = write(tmp_path / "a.json", {"auths": {upstream.host: {"identitytoken": "long-lived"}}})
    where = f"docker://{upstream.host}/team/app:1"
    store.import_image(where, remote=options(authfile=str(file)))
    assert tokens.given[0]["method"] == ["POST"]
    assert tokens.given[0]["grant_type"] == ["refresh_token"]


def test_basic_is_sent_when_it_is_asked_for(store, upstream) -> None:
    upstream.add("team/app", IMAGE, "1")
    wanted = Credentials("me", "secret").basic

    def guard(handler, seen) -> bool:
        if seen.headers.get("authorization") == wanted:
            return False
        handler.answer(401, WWW_Authenticate='Basic realm="x"')
        return True

    upstream.odd = guard
    where = f"docker://{upstream.host}/team/app:1"
    store.import_image(where, remote=options(creds="me:secret"))
    assert "authorization" not in upstream.seen[0].headers
    with pytest.raises(layerstore.PermissionDeniedError):
        store.import_image(where, remote=options(creds="me:wrong"))


def test_challenges_are_read() -> None:
    (one, two) = parse_challenges(['Bearer realm="https://a/t?x=1, y",scope="a b", Basic realm=x'])
    assert one.scheme == "bearer"
    assert one.parameters == {"realm": "https://a/t?x=1, y", "scope": "a b"}
    assert (two.scheme, two.parameters) == ("basic", {"realm": "x"})
    assert parse_challenges(["", "=", '"', ",,,"]) == []


def test_files_are_asked_in_the_order_of_skopeo(tmp_path) -> None:
    env = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    places = [
        (tmp_path / "home/.dockercfg", {"h.lan": auth("oldest", "p")}),
        (
            tmp_path / "home/.docker/config.json",
            {"auths": {"https://h.lan/v1/": auth("docker", "p")}},
        ),
        (tmp_path / "home/.config/containers/auth.json", {"auths": {"h.lan": auth("config", "p")}}),
        (tmp_path / "run/containers/auth.json", {"auths": {"h.lan": auth("run", "p")}}),
    ]
    assert credentials.find("h.lan", "a", env=env) is None
    for (path, value), user in zip(places, ("oldest", "docker", "config", "run"), strict=True):
        write(path, value)
        assert credentials.find("h.lan", "a", env=env) == Credentials(user, "p")
    env["DOCKER_CONFIG"] = str(tmp_path / "d")
    write(tmp_path / "d/config.json", {"auths": {"h.lan": auth("folder", "p")}})
    assert credentials.find("h.lan", "a", env=env) == Credentials("folder", "p")
    env["REGISTRY_AUTH_FILE"] = str(write(tmp_path / "f", {"auths": {"h.lan": auth("file", "p")}}))
    assert credentials.find("h.lan", "a", env=env) == Credentials("file", "p")
    with pytest.raises(layerstore.NotFoundError):
        credentials.find("h.lan", "a", authfile=str(tmp_path / "none"), env=env)


def test_the_closest_entry_wins(tmp_path) -> None:
    entries = {
        "h.lan": auth("host", "p"),
        "h.lan/team": auth("team", "p"),
        "h.lan/team/app": auth("app", "p"),
        "https://index.docker.io/v1/": auth("hub", "p:q"),
    }
    file = str(write(tmp_path / "a.json", {"auths": entries}))
    for host, repository, user in (
        ("h.lan", "other", "host"),
        ("h.lan", "teams/app", "host"),
        ("h.lan", "team/b", "team"),
        ("h.lan", "team/app", "app"),
        ("docker.io", "library/x", "hub"),
    ):
        found = credentials.find(host, repository, authfile=file, env={})
        assert found is not None
        assert found.user == user
    assert credentials.find("i.lan", "a", authfile=file, env={}) is None
    assert "p:q" not in repr(credentials.find("docker.io", "x", authfile=file, env={}))


def test_helpers_are_asked(tmp_path) -> None:
    for name, user in (("one", "me"), ("two", "<token>")):
        program = tmp_path / f"docker-credential-{name}"
        answer = json.dumps({"ServerURL": "x", "Username": user, "Secret": name})
        program.write_text(f"#!/bin/sh\ncat > {tmp_path}/asked\necho '{answer}'\n")
        program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    value = {"credHelpers": {"h.lan": "one"}, "credsStore": "two"}
    file = str(write(tmp_path / "a.json", value))
    assert credentials.find("h.lan", "a", authfile=file, env=env) == Credentials("me", "one")
    found = credentials.find("docker.io", "a", authfile=file, env=env)
    assert found == Credentials(identity_token="two")
    assert (tmp_path / "asked").read_text() == "https://index.docker.io/v1/"
    for bad in ("../one", "none"):
        write(tmp_path / "a.json", {"credHelpers": {"h.lan": bad}})
        with pytest.raises(layerstore.LayerstoreError):
            credentials.find("h.lan", "a", authfile=file, env=env)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"auths": 1}', '{"auths": {"h.lan": {"auth": "?"}}}', "\0"]
)
def test_a_file_that_cannot_be_read_is_named(text, tmp_path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(layerstore.InvalidInputError, match=r"a\.json"):
        credentials.find("h.lan", "a", authfile=str(tmp_path / "a.json"), env={})


@pytest.mark.needs("openssl")
def test_certificates_are_checked_and_a_directory_adds_to_them(store, tmp_path) -> None:
    folder = tmp_path / "certs"
    folder.mkdir()
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem"]
    target = ["-out", folder / "ca.crt"]
    subprocess.run([*command.split(), *more, *target], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", tmp_path / "key.pem")
    with servers.upstream(context) as upstream:
        upstream.add("team/app", IMAGE, "1")
        where = f"docker://{upstream.host}/team/app:1"
        (tmp_path / "empty").mkdir()
        with pytest.raises(layerstore.RemoteError, match="certificate"):
            store.import_image(where, remote=options(cert_dir=str(tmp_path / "empty")))
        store.import_image(where, remote=options(cert_dir=str(folder)))
        store.import_image(where, remote=options(tls_verify=False))
        with pytest.raises(layerstore.NotFoundError):
            store.import_image(where, remote=options(cert_dir=str(tmp_path / "none")))

        def drip(handler, seen) -> bool:
            if "/manifests/" not in seen.path:
                return False
            handler.send_response(200)
            handler.end_headers()
            for _ in range(200):
                handler.wfile.write(b"x")
                time.sleep(0.05)
            return True

        upstream.odd = drip
        hurried = options(cert_dir=str(folder), timeout=0.5, tries=1, slowest=1000)
        with pytest.raises(layerstore.RemoteError, match="fewer than 1000 bytes a second"):
            store.import_image(where, remote=hurried)


def test_proxies_of_the_environment_are_used(store, upstream, proxy, monkeypatch) -> None:
    upstream.add("team/app", IMAGE, "1")
    proxy.names["registry.test"] = upstream.port
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    where = "docker://registry.test/team/app:1"
    # Without TLS only where that was allowed: a name that is not loopback.
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    with pytest.raises(layerstore.RemoteError):
        store.import_image(where, remote=options(tries=1))
    assert {method for method, _ in proxy.seen} == {"CONNECT"}
    store.import_image(where, remote=options(tls_verify=False))
    assert ("GET", "http://registry.test/v2/") in proxy.seen
    assert store.images()[0].name == "registry.test/team/app:1"


def test_who_is_reached_without_a_proxy(monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.lan:3128")
    monkeypatch.setenv("NO_PROXY", "inner.lan,.corp")
    assert wire.proxy_for("https://h.lan/v2/") == "http://proxy.lan:3128"
    assert wire.proxy_for("http://h.lan/v2/") is None
    for host in ("inner.lan", "a.corp", "localhost:5000", "127.0.0.1", "[::1]:5000"):
        assert wire.proxy_for(f"https://{host}/v2/") is None
