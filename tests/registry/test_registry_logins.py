"""Clients with and without a login: what is open is pulled without one, what is not with one only.

Both ways in which a registry knows its users, and both directions: real clients at our server, our
client at another's registry; tokens come from an issuer that is neither's.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import bcrypt
import pytest
from registry.issuer import ISSUER, PASSWORD, SERVICE, USER, issuing
from registry.test_registry_clients import containerd, digest_at, engine, programs, run
from registry.test_registry_server import serving_with, skopeo

import layerstore
from layerstore import RemoteOptions

__all__ = ["engine", "programs"]
LOGIN = f"{USER}:{PASSWORD}"
RULES = """
[[access.rules]]
users = ["ann"]
repositories = ["**"]
rights = ["pull", "create", "overwrite", "delete"]
[[access.rules]]
users = ["@anyone"]
repositories = ["open/*"]
rights = ["pull"]
"""


@pytest.fixture
def issuer(tmp_path):
    with issuing(tmp_path) as running:
        yield running


@pytest.fixture(params=["htpasswd", "own tokens", "token"])
def host(request, tmp_path, issuer):
    """Our server."""
    where, options = tmp_path / "served", []
    where.mkdir()
    if request.param != "token":
        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        (where / "users").write_text(f"{USER}:{hashed}\n")
        config = f'[access]\nhtpasswd = "users"\n{RULES}'
        if request.param == "own tokens":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            config = f'[access]\nlogin = "http://{address}/v2/token"\nhtpasswd = "users"\n{RULES}'
            options = ["--listen", address, "--workers", "2"]
    else:
        config = (
            f'[access.token]\nrealm = "{issuer.realm}"\nservice = "{SERVICE}"\n'
            f'issuer = "{ISSUER}"\nkeys = ["{issuer.certificate}"]\n'
        )
    with serving_with(where, config, *options) as (_, url, said):
        yield url.removeprefix("http://")
    assert "Traceback" not in said.read_text()


@contextlib.contextmanager
def debian_registry(path: Path, issuer):
    """docker-registry with token authentication."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(path / "registry")}},
        "http": {"addr": host},
        "auth": {
            "token": {
                "realm": issuer.realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(issuer.certificate),
            }
        },
    }
    (path / "registry.yml").write_text(json.dumps(config))  # which is YAML, too
    command = ["docker-registry", "serve", str(path / "registry.yml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{host}/v2/").close()
            except urllib.error.HTTPError:
                break  # it asks who is there
            except OSError:
                time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def files(tmp_path):
    """Authfiles: of nobody, and of ann by the host that she is known to."""
    nobody = tmp_path / "nobody.json"
    nobody.write_text("{}")

    def of(host: str) -> tuple[str, str]:
        known = tmp_path / "known.json"
        login = ["skopeo", "login", "--tls-verify=false", "--authfile", str(known)]
        for word, right in (("wrong", False), (PASSWORD, True)):
            words = [*login, "-u", USER, "-p", word, host]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
            assert (done.returncode == 0) == right, done.stderr
        return str(nobody), str(known)

    return of


def refused(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.needs("skopeo", "root", "podman", "containerd", "ctr")
def test_real_clients_with_and_without_a_login(host, files, layout, engine, tmp_path):
    nobody, known = files(host)
    source, digest = f"oci:{layout}:1", digest_at(f"oci:{layout}:1")
    copy = ["copy", "-q", "--dest-tls-verify=false", "--dest-authfile"]
    for name in ("open/app", "own/app"):
        skopeo(*copy, known, source, f"docker://{host}/{name}:1")
        said = refused("skopeo", *copy, nobody, source, f"docker://{host}/{name}:2")
        assert "unauthorized" in said or "is denied" in said
    look = ["skopeo", "inspect", "--raw", "--tls-verify=false", "--authfile"]
    run(*look, nobody, f"docker://{host}/open/app:1")
    refused(*look, nobody, f"docker://{host}/own/app:1")
    run(*look, known, f"docker://{host}/own/app:1")

    podman = ("--tls-verify=false", "-q", "--authfile")
    engine("podman", "pull", *podman, nobody, f"{host}/open/app:1")
    with pytest.raises(AssertionError, match=r"unauthorized|denied"):
        engine("podman", "pull", *podman, nobody, f"{host}/own/app:1")
    engine("podman", "pull", *podman, known, f"{host}/own/app:1")
    engine("podman", "push", *podman, known, f"{host}/own/app:1", f"{host}/own/podman:1")

    with containerd() as ctr:
        fetch = (*ctr, "content", "fetch", "--plain-http")
        run(*fetch, f"{host}/open/app:1")
        refused(*fetch, f"{host}/own/app:1")
        run(*fetch, "--user", LOGIN, f"{host}/own/app:1")
        run(*ctr, "images", "tag", f"{host}/own/app:1", f"{host}/own/ctr:1")
        push = (*ctr, "images", "push", "--plain-http")
        refused(*push, f"{host}/own/ctr:1")
        run(*push, "--user", LOGIN, f"{host}/own/ctr:1")
    raw = run(*look, known, f"docker://{host}/own/ctr:1")
    assert raw == skopeo("inspect", "--raw", source).strip()
    with layerstore.open(tmp_path / "s") as store:
        ours(store, host, digest)


@pytest.mark.needs("root", "buildah", "podman", "skopeo")
def test_buildah_with_and_without_a_login(host, files, layout, engine):
    nobody, known = files(host)
    for name in ("open/app", "own/app"):
        words = ["copy", "-q", "--dest-tls-verify=false", "--dest-authfile", known]
        skopeo(*words, f"oci:{layout}:1", f"docker://{host}/{name}:1")
    words = ("--tls-verify=false", "-q", "--authfile")
    engine("buildah", "pull", *words, nobody, f"{host}/open/app:1")
    push = (f"{host}/open/app:1", f"docker://{host}/open/again:1")
    for may_not in (("pull", *words, nobody, f"{host}/own/app:1"), ("push", *words, nobody, *push)):
        with pytest.raises(AssertionError, match=r"unauthorized|denied"):
            engine("buildah", *may_not)
    engine("buildah", "pull", *words, known, f"{host}/own/app:1")
    engine("buildah", "push", *words, known, *push)


class GoClient:
    """What crane, oras and regctl are told to give a manifest, and to push an image of a layout; with
    the configuration of somebody who has logged in by skopeo, or of nobody."""

    def __init__(self, program: Path, host: str, home: Path) -> None:
        self._program, self._host = program, host
        self._home = {"HOME": str(home), "DOCKER_CONFIG": str(home)}
        if program.name == "regctl":
            run(program, "registry", "set", host, "--tls", "disabled", "--skip-check", **self._home)

    def pull(self, name: str) -> str:
        words = {
            "crane": ("manifest", "--insecure"),
            "oras": ("manifest", "fetch", "--plain-http"),
            "regctl": ("manifest", "get", "--format", "raw-body"),
        }[self._program.name]
        return run(self._program, *words, f"{self._host}/{name}", **self._home)

    def push(self, layout: Path, name: str) -> None:
        target = f"{self._host}/{name}"
        words = {
            "crane": ("push", "--insecure", layout, target),
            "oras": ("copy", "--from-oci-layout", f"{layout}:1", "--to-plain-http", target),
            "regctl": ("image", "copy", f"ocidir://{layout}:1", target),
        }[self._program.name]
        run(self._program, *words, **self._home)


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("program", ["crane", "oras", "regctl"])
def test_clients_of_go_with_and_without_a_login(request, program, programs, host, files, layout):
    clients = []
    for file in files(host):
        home = Path(file).with_suffix("")
        home.mkdir()
        shutil.copy(file, home / "config.json")
        clients.append(GoClient(programs / program, host, home))
    nobody, ann = clients
    if program == "crane" and request.node.callspec.params["host"] == "token":
        # By its own rule it asks for no token on loopback but at the registry's own address.
        with pytest.raises(AssertionError, match="private or link-local address"):
            ann.push(layout, "own/app:1")
        return
    raw = skopeo("inspect", "--raw", f"oci:{layout}:1").strip()
    for name in ("open/app:1", "own/app:1"):
        ann.push(layout, name)
        assert ann.pull(name) == raw
        with pytest.raises(AssertionError, match=r"(?i)unauthorized|denied|credential"):
            nobody.push(layout, f"{name}-new")
    assert nobody.pull("open/app:1") == raw
    with pytest.raises(AssertionError, match=r"(?i)unauthorized|denied|credential"):
        nobody.pull("own/app:1")


def ours(store: layerstore.Store, host: str, digest: str) -> None:
    """What our client does with and without a login."""
    nobody, ann = RemoteOptions(creds="", tries=1), RemoteOptions(creds=LOGIN, tries=1)
    where = f"docker://{host}"
    assert store.import_image(f"{where}/open/app:1", remote=nobody).digest == digest
    with pytest.raises(layerstore.PermissionDeniedError):
        store.import_image(f"{where}/own/app:1", "x", remote=nobody)
    wrong = RemoteOptions(creds=f"{USER}:wrong", tries=1)
    with pytest.raises(layerstore.PermissionDeniedError):
        store.import_image(f"{where}/own/app:1", "x", remote=wrong)
    assert store.import_image(f"{where}/own/app:1", remote=ann).digest == digest
    with pytest.raises(layerstore.PermissionDeniedError):
        store.export_image(f"{host}/own/app:1", f"{where}/open/new:1", remote=nobody)
    store.export_image(f"{host}/own/app:1", f"{where}/open/new:1", remote=ann)
    assert store.import_image(f"{where}/open/new:1", "y", remote=nobody).digest == digest
    store.copy_images(
        f"{where}/own/app:1", f"{where}/own/copied:2", source_remote=ann, target_remote=ann
    )


@pytest.mark.needs("skopeo", "docker-registry")
def test_our_client_at_another_s_registry_with_tokens(issuer, files, layout, tmp_path):
    source, digest = f"oci:{layout}:1", digest_at(f"oci:{layout}:1")
    with debian_registry(tmp_path, issuer) as host, layerstore.open(tmp_path / "s") as store:
        nobody, known = files(host)
        look = ["inspect", "--raw", "--tls-verify=false", "--authfile"]
        ann = RemoteOptions(authfile=known, tries=1)
        store.import_image(source, "app:1")
        for name in ("open/app", "own/app"):
            store.export_image("app:1", f"docker://{host}/{name}:1", remote=ann)
        raw = skopeo("inspect", "--raw", source)
        assert skopeo(*look, nobody, f"docker://{host}/open/app:1") == raw
        assert skopeo(*look, known, f"docker://{host}/own/app:1") == raw
        refused("skopeo", *look, nobody, f"docker://{host}/own/app:1")
        issuer.asked.clear()
        ours(store, host, digest)
    # A push says what it wants; a mount is asked for with the right to pull its source.
    assert ("ann", "repository:open/new:pull,push") in issuer.asked
    assert ("ann", "repository:own/app:pull") in issuer.asked
    assert ("", "repository:open/app:pull") in issuer.asked
