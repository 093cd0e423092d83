"""Whose login counts: files and helpers made up at random, with skopeo as the witness."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import layerstore
from layerstore.remote import credentials

KEYS = (
    *("h.lan", "h.lan/team", "h.lan/team/app", "h.lan:5000", "https://h.lan/v1/", "http://h.lan"),
    *("https://index.docker.io/v1/", "docker.io", "docker.io/library", "o.lan", "h.lan/tea"),
)
SAME = (
    {"h.lan", "https://h.lan/v1/", "http://h.lan"},
    {"https://index.docker.io/v1/", "docker.io"},
)
"""Of those that mean the same, skopeo takes any."""
ASKED = (
    *(("h.lan", ""), ("h.lan", "team"), ("h.lan", "team/app"), ("h.lan", "x"), ("h.lan:5000", "a")),
    *(("docker.io", ""), ("docker.io", "library/debian"), ("none.lan", "a")),
)
HELPERS = ("one", "two")
SCRIPT = """#!/bin/sh
# A helper that knows the servers of the file beside it.
test "$1" = get || { echo '{}'; exit; }
read -r server
user=$(sed -n "s|^$server \\(.*\\)|\\1|p" "$0.known")
test "$user" || { echo "credentials not found in native keychain"; exit 1; }
printf '{"ServerURL":"%s","Username":"%s","Secret":"s"}' "$server" "$user"
"""


def made(rng: random.Random, name: str) -> dict[str, object]:
    """What one file says: entries, helpers of servers, a helper for all."""
    out: dict[str, object] = {}
    auths = {}
    for key in rng.sample(KEYS, rng.randrange(4)):
        if any(key in same and same & set(auths) for same in SAME):
            continue
        pair = f"{name}-{KEYS.index(key)}:p".encode()
        auths[key] = {"auth": base64.b64encode(pair).decode()}
        if rng.random() < 0.1:
            auths[key] = {}  # as docker leaves it where a helper has the rest
    if auths or rng.random() < 0.5:
        out["auths"] = auths
    if rng.random() < 0.3:
        servers = ("h.lan", "docker.io", "other.lan", "h.lan:5000")
        out["credHelpers"] = {s: rng.choice(HELPERS) for s in rng.sample(servers, rng.randrange(3))}
    return out


def furnish(rng: random.Random, home: Path) -> dict[str, str]:
    """A home with some of the files, and its environment."""
    tools = home / "bin"
    tools.mkdir(parents=True)
    for helper in HELPERS:
        program = tools / f"docker-credential-{helper}"
        program.write_text(SCRIPT)
        program.chmod(0o755)
        known = rng.sample(("h.lan", "docker.io", "https://index.docker.io/v1/"), rng.randrange(3))
        Path(f"{program}.known").write_text("".join(f"{s} {helper}-{s[0]}\n" for s in known))
    env = {"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
    env["XDG_RUNTIME_DIR"] = str(home / "run")
    places = ["run/containers/auth.json", ".config/containers/auth.json", ".docker/config.json"]
    if rng.random() < 0.3:
        env["XDG_CONFIG_HOME"] = str(home / "config")
        places[1] = "config/containers/auth.json"
    # A file that the user names is the only one since containers/image 5.24; older witnesses go on.
    for place in places:
        if rng.random() < 0.6:
            path = home / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made(rng, place.strip(".")[0])))
    return env


def ours(host: str, repository: str, env: dict[str, str]) -> str | None:
    try:
        found = credentials.find(host, repository, env=env)
    except layerstore.LayerstoreError:
        return "failed"
    return None if found is None else found.user


def witness(host: str, repository: str, env: dict[str, str]) -> str | None:
    where = f"{host}/{repository}" if repository else host
    command = [shutil.which("skopeo") or "", "login", "--get-login", where]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    if done.returncode:
        return None if "not logged in" in done.stderr else "failed"
    return done.stdout.strip() or None


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("seed", range(10))
def test_skopeo_finds_the_same_login(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    env = furnish(rng, tmp_path / "home")
    differ = {}
    for host, repository in rng.sample(ASKED, 3):
        both = ours(host, repository, env), witness(host, repository, env)
        if both[0] != both[1]:
            differ[host, repository] = both
    assert not differ, [(str(p), p.read_text()) for p in tmp_path.rglob("*.json") if p.is_file()]
