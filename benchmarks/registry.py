"""Sections on the registry, beside docker-registry and zot where they are installed.

Clients and servers share two cores. Every contender serves the same client, skopeo, over the same
loopback; what a client pulls is held against the layout once. Each round begins with an empty registry
on a port of its own, so that skopeo remembers nothing of the round before.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.corpus import Layout
from benchmarks.measure import call, du
from benchmarks.report import Figure
from benchmarks.setting import Setting, installed

CORES = 2
CLIENTS = 16
OURS = "layerstore"
PEER = "docker-registry"
CACHE = "16G"
SECONDS = 3.0

PEER_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass
class Server:
    """One registry, running on an address."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reference(self, tag: str) -> str:
        return f"docker://127.0.0.1:{self.port}/bench/{tag}:1"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ours(s: Setting, directory: Path, port: int, *options: str) -> list[str]:
    words = s.ours(directory, *options, "serve", "--listen", f"127.0.0.1:{port}")
    return [str(word) for word in words]


def _docker_registry(s: Setting, directory: Path, port: int) -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    config = directory.with_suffix(".yml")
    config.write_text(PEER_CONFIG.format(directory=directory, port=port))
    return [PEER, "serve", str(config)]


def _zot(s: Setting, directory: Path, port: int) -> list[str]:
    config = directory.with_suffix(".json")
    storage = {"rootDirectory": str(directory), "dedupe": True, "gc": False}
    http = {"address": "127.0.0.1", "port": str(port)}
    config.write_text(json.dumps({"storage": storage, "http": http, "log": {"level": "error"}}))
    return ["zot", "serve", str(config)]


CONTENDERS: dict[str, Callable[[Setting, Path, int], list[str]]] = {
    OURS: _ours,
    PEER: _docker_registry,
    "zot": _zot,
}


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, cores: set[int] | None = None) -> Iterator[Server]:
    """Runs a registry until the block ends; it must end well. `cores`: the ones that it may use."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
    )
    server = Server(process, port)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{server.url}/v2/", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _copy(source: str, target: str) -> None:
    call(
        [
            "skopeo",
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            source,
            target,
        ]
    )


def _all(tags: Sequence[str], copy: Callable[[str], None], clients: int) -> float:
    """Seconds until every image was copied, by so many clients side by side."""
    os.sync()
    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(copy, tags))
    return time.monotonic() - start


def push(layout: Layout, tags: Sequence[str], server: Server, clients: int = 1) -> float:
    """Seconds."""
    return _all(tags, lambda tag: _copy(f"oci:{layout.path}:{tag}", server.reference(tag)), clients)


def pull(target: Path, tags: Sequence[str], server: Server, clients: int = 1) -> float:
    """Seconds; into one layout, or one for each image where several write at once."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir()

    def copy(tag: str) -> None:
        _copy(server.reference(tag), f"oci:{target if clients == 1 else target / tag}:{tag}")

    return _all(tags, copy, clients)


def check(layout: Layout, tags: Sequence[str], target: Path) -> None:
    """Raises unless what was pulled is what was pushed, byte by byte."""
    want = {image.tag: image for image in layout.images()}
    for tag in tags:
        got = Layout(target if (target / "index.json").exists() else target / tag)
        found = next(image for image in got.images() if image.tag == tag)
        if found != want[tag]:
            raise RuntimeError(f"{tag}: another image comes out")
        for digest in (found.digest, found.config, *(layer.digest for layer in found.layers)):
            if not filecmp.cmp(got.blob(digest), layout.blob(digest), shallow=False):
                raise RuntimeError(f"{tag}: {digest} comes out otherwise")


@dataclass
class Times:
    """Seconds of each round, by what was done."""

    runs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, what: str, seconds: float) -> None:
        self.runs.setdefault(what, []).append(seconds)

    def median(self, what: str) -> float:
        return statistics.median(self.runs[what])


def _round(s: Setting, name: str, times: Times, tags: Sequence[str], *, verify: bool) -> Path:
    """Push and pull by one client, then by many, with a fresh registry; its directory."""
    directory = s.fresh(f"registry-{name}")
    for clients, suffix in ((1, ""), (CLIENTS, " by 16")):
        directory = s.fresh(f"registry-{name}")
        port = _free_port()
        with serving(CONTENDERS[name](s, directory, port), port) as server:
            times.add(f"push{suffix}", push(s.gzip, tags, server, clients))
            target = s.work / "pulled"
            times.add(f"pull{suffix}", pull(target, tags, server, clients))
            if verify:
                check(s.gzip, tags, target)
    return directory


def registry(s: Setting) -> list[Figure]:
    """Push and pull with skopeo, raw and optimized; space."""
    if not installed("skopeo") or not installed(PEER):
        raise SystemExit(f"this section needs skopeo and {PEER} (apt install {PEER})")
    tags = [image.tag for image in s.gzip.images()]
    names = [name for name in CONTENDERS if name == OURS or installed(name)]
    times = {name: Times() for name in names}
    sizes = {}
    with _on(CORES):
        for number in range(s.rounds):
            for name in names if number % 2 else reversed(names):
                directory = _round(s, name, times[name], tags, verify=number == 0)
                sizes[name] = du(directory)
        again = _optimized(s, tags)
    out = []
    bounds = {"push": 1.0, "pull": 1.0, "push by 16": 1.1, "pull by 16": 1.1}
    for what, bound in bounds.items():
        peer = times[PEER].median(what)
        for name in names:
            if name == PEER:
                continue
            mine = times[name].median(what)
            detail = {f"{name}, s": mine, f"{PEER}, s": peer}
            limit = s.bound(bound) if name == OURS else None
            out.append(Figure(f"{name}: {what}", mine / peer, bound=limit, detail=detail))
    peer = times[PEER].median("pull")
    for what, bound in (("first", 3.0), ("again", 1.1)):
        mine = again.median(what)
        detail = {f"{OURS}, s": mine, f"{PEER}, s": peer}
        name = f"{OURS}: pull, optimized, {what}"
        out.append(Figure(name, mine / peer, bound=s.bound(bound), detail=detail))
    space = again.median("bytes") / sizes[PEER]
    out.append(Figure(f"{OURS}: all files after optimize", space, bound=s.bound(0.43)))
    return out


def _optimized(s: Setting, tags: Sequence[str]) -> Times:
    """Pulls of the same images once they are optimized: with nothing in the cache, and again."""
    times = Times()
    directory = s.work / f"registry-{OURS}"
    call(s.ours(directory, "optimize"))
    call(s.ours(directory, "gc"))
    times.add("bytes", du(directory))
    for number in range(s.rounds):
        shutil.rmtree(directory / "raw-cache", ignore_errors=True)
        port = _free_port()
        with serving(_ours(s, directory, port, "--raw-cache", CACHE), port) as server:
            target = s.work / "pulled"
            for what in ("first", "again"):
                times.add(what, pull(target, tags, server))
                if not number:
                    check(s.gzip, tags, target)
    return times


@contextlib.contextmanager
def _on(cores: int) -> Iterator[None]:
    """This process and what it starts use so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
