"""When it is tried again: waits that grow, what a server wishes, and an end to patience."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate

import pytest

import layerstore
from layerstore.remote import names, retries
from layerstore.remote.options import RemoteOptions
from layerstore.remote.retries import Patience, retry_after


class Waits(threading.Event):
    """An event that notes how long it is waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


@pytest.fixture(autouse=True)
def real(monkeypatch) -> None:
    monkeypatch.setattr(retries, "FIRST", 0.5)


def test_each_wait_is_about_twice_the_one_before() -> None:
    for _ in range(50):
        stopped = Waits()
        patience = Patience(12, stopped)
        while patience.again():
            pass
        assert len(stopped.seconds) == 11
        for number, seconds in enumerate(stopped.seconds):
            middle = 0.5 * 2**number
            assert min(0.75 * middle, 30) <= seconds <= min(1.25 * middle, 30)


def test_they_are_not_all_the_same() -> None:
    """Many clients that failed together must not come back together."""
    seen = set()
    for _ in range(20):
        stopped = Waits()
        Patience(2, stopped).again()
        seen.add(stopped.seconds[0])
    assert len(seen) > 10


def test_a_wish_is_heeded_up_to_a_limit() -> None:
    stopped = Waits()
    patience = Patience(9, stopped)
    assert patience.again(7.0)
    assert patience.again(0.0)
    assert not patience.again(retries.LONGEST + 1)
    assert stopped.seconds[0] == 7.0
    assert stopped.seconds[1] < 7.0


def test_what_comes_gives_new_patience() -> None:
    stopped = Waits()
    patience = Patience(3, stopped)
    for _ in range(5):
        assert patience.again()
        assert patience.again()
        patience.progressed()
    assert max(stopped.seconds) <= 1.25
    assert patience.again()
    assert patience.again()
    assert not patience.again()


@pytest.mark.parametrize("tries", [1, 5])
def test_who_is_stopped_is_told_so_whatever_patience_is_left(tries: int) -> None:
    stopped = Waits()
    stopped.set()
    with pytest.raises(layerstore.CancelledError):
        Patience(tries, stopped).again()
    assert not stopped.seconds


def test_wishes_are_read() -> None:
    assert retry_after("5") == 5.0
    assert retry_after(" 0 ") == 0.0
    soon = retry_after(formatdate(time.time() + 60, usegmt=True))
    assert soon is not None
    assert 50 < soon < 70
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0.0
    for text in (None, "", "-1", "soon", "1e9", "9" * 30, "٣", "1.5"):
        assert retry_after(text) is None


def test_plain_http_is_for_loopback(tmp_path) -> None:
    """By the name alone: what it resolves to is another's to say."""
    (tmp_path / "certs").mkdir()
    for host, first in (
        ("127.0.0.1:5000", "http"),
        ("127.8.9.1", "http"),
        ("[::1]:5000", "http"),
        ("localhost", "http"),
        ("app.localhost:5000", "http"),
        ("localhost.lan:5000", "https"),
        ("127.0.0.1.nip.io", "https"),
        ("10.0.0.1:5000", "https"),
        ("docker.io", "https"),
    ):
        loopback = first == "http"
        assert names.is_loopback(host) == loopback
        remote = layerstore.Remote(host)
        assert remote._schemes()[0] == first
        assert ("http" in remote._schemes()) == loopback
        forced = layerstore.Remote(host, RemoteOptions(tls_verify=False))
        assert "http" in forced._schemes()
        strict = layerstore.Remote(host, RemoteOptions(cert_dir=str(tmp_path / "certs")))
        assert strict._schemes() == ("https",)
