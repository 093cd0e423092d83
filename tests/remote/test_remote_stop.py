"""Ctrl-C ends a command within two seconds, wherever a server has fallen silent."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from oci import oci_make as make
from remote.upstream import Seen

import layerstore
from layerstore import RemoteOptions
from layerstore.remote import sockets

LAYERSTORE = [sys.executable, "-m", "layerstore"]
BIG = os.urandom(6 << 20)
PATIENCE = 2.0


def interrupted(words: list[str], silent: threading.Event, tmp_path: Path) -> tuple[int, float]:
    """Exit status of a command that gets a SIGINT when `silent` says that it waits, and how long it
    took from then on."""
    env = {**os.environ, "HOME": str(tmp_path / "home")}
    command = [*LAYERSTORE, "--store", str(tmp_path / "s"), *words]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert silent.wait(60)
            time.sleep(0.3)  # it is in its read by now
            assert process.poll() is None, process.stderr.read()
            asked = time.monotonic()
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
            took = time.monotonic() - asked
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()
    return code, took


def silence(
    upstream, asked: Callable[[Seen], bool], after: int | None = None, size: int = 1 << 20
) -> tuple[threading.Event, threading.Event]:
    """Lets the upstream fall silent in answers that are `asked` for: before it says anything, or
    `after` so many bytes of a blob. The events: it is; it may go on."""
    silent, over = threading.Event(), threading.Event()

    def odd(handler, seen) -> bool:
        if not asked(seen):
            return False
        if after is not None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(size))
            handler.end_headers()
            handler.wfile.write(bytes(after))
        silent.set()
        over.wait(60)
        handler.close_connection = True
        return True

    upstream.odd = odd
    return silent, over


@pytest.mark.parametrize(
    ("path", "after"),
    [
        ("/v2/$", None),
        ("/manifests/", None),
        ("/manifests/", 10),
        ("LAYER", None),
        ("LAYER", 3 << 20),
    ],
)
@pytest.mark.parametrize("layers", [1, 4])
def test_a_pull_ends(path, after, layers, upstream, tmp_path) -> None:
    tars = [make.tar({"big": bytes([n]) + BIG}) for n in range(layers)]
    image = make.image(*tars, compress=False)
    upstream.add("team/app", image, "1")
    sizes = {digest: len(data) for digest, data in image.blobs.items() if len(data) > 1 << 20}
    assert len(sizes) == layers
    pattern = path.replace("LAYER", "|".join(sizes))
    silent, over = silence(
        upstream,
        lambda seen: seen.method == "GET" and re.search(pattern, seen.path) is not None,
        after,
        min(sizes.values()) if path == "LAYER" else 1000,
    )
    try:
        code, took = interrupted(["pull", f"{upstream.host}/team/app:1"], silent, tmp_path)
    finally:
        over.set()
    assert code == 130
    assert took < PATIENCE
    with layerstore.open(tmp_path / "s") as store:
        assert not store.images()


def test_questions_side_by_side_end(upstream, tmp_path) -> None:
    for n in range(8):
        upstream.add("team/app", make.image(salt=str(n)), f"{n}")
    silent, over = silence(upstream, lambda seen: "/manifests/" in seen.path)
    try:
        words = ["import", "--all", f"docker://{upstream.host}/team/app"]
        code, took = interrupted(words, silent, tmp_path)
    finally:
        over.set()
    assert code == 130
    assert took < PATIENCE


def test_a_push_ends(upstream, tmp_path) -> None:
    image = make.image(make.tar({"big": BIG * 4}), make.tar({"other": BIG[::-1]}), compress=False)
    with layerstore.open(tmp_path / "s") as store:
        store.import_image(f"oci:{make.layout(tmp_path / 'l', (image, {}))}", "app:1")
    # The server takes nothing of the body: the client waits to be let write.
    silent, over = silence(upstream, lambda seen: seen.method == "PATCH")
    try:
        words = ["push", "app:1", f"{upstream.host}/team/app:1"]
        code, took = interrupted(words, silent, tmp_path)
    finally:
        over.set()
    assert code == 130
    assert took < PATIENCE


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A server that takes a connection and says nothing: no TLS comes about."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def stopped_after(work: Callable[[threading.Event], object], seconds: float) -> float:
    """How long a work that has to be stopped goes on after that."""
    stopped = threading.Event()
    at: list[float] = []

    def stop() -> None:
        at.append(time.monotonic())
        stopped.set()

    timer = threading.Timer(seconds, stop)
    timer.start()
    with pytest.raises((layerstore.LayerstoreError, OSError)):
        work(stopped)
    timer.cancel()
    assert at, "it ended by itself"
    return time.monotonic() - at[0]


def test_tls_that_does_not_come_about_is_not_waited_for(deaf, tmp_path) -> None:
    (tmp_path / "certs").mkdir()
    options = RemoteOptions(cert_dir=str(tmp_path / "certs"), timeout=60.0)
    host = f"127.0.0.1:{deaf.getsockname()[1]}"

    def ask(stopped: threading.Event) -> object:
        with layerstore.Remote(host, options, stopped=stopped) as remote:
            return remote.resolve("a", "1")

    assert stopped_after(ask, 0.5) < PATIENCE


def test_a_server_that_takes_no_connection_is_not_waited_for(tmp_path) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(8):  # a queue that is full drops what comes
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(full.getsockname())
            waiting.append(one)
        time.sleep(0.2)

        def reach(stopped: threading.Event) -> object:
            return sockets.connect("127.0.0.1", full.getsockname()[1], 60.0, stopped)

        try:
            assert stopped_after(reach, 0.5) < PATIENCE
            never = threading.Event()
            with pytest.raises(TimeoutError):
                sockets.connect("127.0.0.1", full.getsockname()[1], 0.5, never)
        finally:
            for one in waiting:
                one.close()


def test_a_name_that_is_not_found_out_is_not_waited_for(monkeypatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words: over.wait(300) and [])

    def reach(stopped: threading.Event) -> object:
        return sockets.connect("h.lan", 443, 60.0, stopped)

    try:
        assert stopped_after(reach, 0.5) < PATIENCE
    finally:
        over.set()
