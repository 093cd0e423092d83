"""Registries that misbehave, and back-off that takes no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from remote import upstream as servers

import layerstore
from layerstore.remote import retries


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, proxies or certificates of whoever runs the tests."""
    for name in (
        *("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retries, "FIRST", 0.001)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[layerstore.Store]:
    with layerstore.open(tmp_path / "the-store", timeout=20) as opened:
        yield opened


@pytest.fixture
def upstream() -> Iterator[servers.Upstream]:
    with servers.upstream() as running:
        yield running


@pytest.fixture
def tokens() -> Iterator[servers.Tokens]:
    with servers.token_server() as running:
        yield running


@pytest.fixture
def proxy() -> Iterator[servers.Proxy]:
    with servers.proxy() as running:
        yield running
