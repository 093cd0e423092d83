"""Sections on push and pull, beside docker-registry and zot where they are installed.

Clients and servers share two cores. Every contender serves the same client, skopeo, over the same
loopback; what a client pulls is held against the layout once. Each round begins with an empty registry
on a port of its own, so that skopeo remembers nothing of the round before. Beside the seconds stand
those of CPU, of server and clients: they say the same on a machine that is not quiet.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import registry_load
from benchmarks.corpus import Layout
from benchmarks.measure import call, du
from benchmarks.registry_server import Server, free_port, ours, serving
from benchmarks.report import Figure
from benchmarks.setting import Setting, installed

CORES = 2
CLIENTS = 16
OURS = "layerstore"
PEER = "docker-registry"
CACHE = "16G"

PEER_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


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
    OURS: ours,
    PEER: _docker_registry,
    "zot": _zot,
}


def _names() -> list[str]:
    """Who takes part."""
    if not installed("skopeo") or not installed(PEER):
        raise SystemExit(f"this section needs skopeo and {PEER} (apt install {PEER})")
    return [name for name in CONTENDERS if name == OURS or installed(name)]


def _copy(source: str, target: str) -> None:
    secure = ("--src-tls-verify=false", "--dest-tls-verify=false")
    call(["skopeo", "copy", "-q", *secure, source, target])


@dataclass
class Spent:
    """Seconds of each round: of wall clock, of the server's CPU, of the clients'."""

    wall: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    clients: list[float] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(self.wall)

    def detail(self, name: str) -> dict[str, float]:
        return {
            f"{name}, s": self.median(),
            f"{name}, s of CPU (server)": statistics.median(self.server),
            f"{name}, s of CPU (clients)": statistics.median(self.clients),
        }


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _all(
    spent: Spent, server: Server, tags: Sequence[str], copy: Callable[[str], None], clients: int
) -> None:
    """Copies every image, by so many clients side by side."""
    os.sync()
    of_server, of_clients, start = server.cpu(), _children(), time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(copy, tags))
    spent.wall.append(time.monotonic() - start)
    spent.clients.append(_children() - of_clients)
    spent.server.append(server.cpu() - of_server)


def push(
    spent: Spent, layout: Layout, tags: Sequence[str], server: Server, clients: int = 1
) -> None:
    def copy(tag: str) -> None:
        _copy(f"oci:{layout.path}:{tag}", server.reference(tag))

    _all(spent, server, tags, copy, clients)


def pull(spent: Spent, target: Path, tags: Sequence[str], server: Server, clients: int = 1) -> None:
    """Into one layout, or one for each image where several write at once."""
    if target.exists():
        shutil.rmtree(target)
    target.mkdir()

    def copy(tag: str) -> None:
        _copy(server.reference(tag), f"oci:{target if clients == 1 else target / tag}:{tag}")

    _all(spent, server, tags, copy, clients)


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


def _tags(s: Setting) -> list[str]:
    return [image.tag for image in s.gzip.images()]


def _serve(
    s: Setting, name: str, directory: Path, clients: int = 1
) -> contextlib.AbstractContextManager[Server]:
    """A contender. For many clients ours has a worker on each core, as the others have threads."""
    port = free_port()
    command = CONTENDERS[name](s, directory, port)
    if name == OURS and clients > 1:
        command = ours(s, directory, port, "serve", "--workers", str(CORES))
    return serving(command, port)


def _figures(s: Setting, what: str, bound: float, spent: dict[str, Spent]) -> list[Figure]:
    """The ratio of each contender to docker-registry; ours has a bound."""
    peer = spent[PEER]
    return [
        Figure(
            f"{name}: {what}",
            mine.median() / peer.median(),
            bound=s.bound(bound) if name == OURS else None,
            detail={**mine.detail(name), **peer.detail(PEER)},
        )
        for name, mine in spent.items()
        if name != PEER
    ]


def _pushes(s: Setting, clients: int, what: str, bound: float) -> list[Figure]:
    spent = {name: Spent() for name in _names()}
    with _on(CORES):
        for number in range(s.rounds):
            for name in _turn(spent, number):
                with _serve(s, name, s.fresh(f"registry-{name}"), clients) as server:
                    push(spent[name], s.gzip, _tags(s), server, clients)
    return _figures(s, what, bound, spent)


def _pulls(s: Setting, clients: int, what: str, bound: float) -> list[Figure]:
    spent = {name: Spent() for name in _names()}
    target = s.work / "pulled"
    with _on(CORES):
        for name in spent:
            with _serve(s, name, s.fresh(f"registry-{name}")) as server:
                push(Spent(), s.gzip, _tags(s), server, 2)
        for number in range(s.rounds):
            for name in _turn(spent, number):
                with _serve(s, name, s.work / f"registry-{name}", clients) as server:
                    pull(spent[name], target, _tags(s), server, clients)
                if not number:
                    check(s.gzip, _tags(s), target)
    return _figures(s, what, bound, spent)


def _turn(spent: dict[str, Spent], number: int) -> list[str]:
    return list(spent) if number % 2 else list(reversed(spent))


def pushing(s: Setting) -> list[Figure]:
    """The corpus pushed into an empty registry."""
    return _pushes(s, 1, "push", 1.0)


def pulling(s: Setting) -> list[Figure]:
    """The corpus pulled, as it was pushed."""
    return _pulls(s, 1, "pull", 1.0)


def sixteen(s: Setting) -> list[Figure]:
    """Both by sixteen clients side by side."""
    out = _pushes(s, CLIENTS, f"push by {CLIENTS}", 1.1)
    return out + _pulls(s, CLIENTS, f"pull by {CLIENTS}", 1.1)


def _both(s: Setting) -> tuple[Path, Path]:
    """Our registry with the corpus, optimized, and docker-registry's; made once."""
    mine, peer = s.work / "registry-optimized", s.work / f"registry-optimized-{PEER}"
    if not mine.exists():
        partial = s.fresh("registry-partial")
        for name, directory in ((OURS, partial), (PEER, peer)):
            with _serve(s, name, directory) as server:
                push(Spent(), s.gzip, _tags(s), server, 2)
        call(s.ours(partial, "optimize"))
        call(s.ours(partial, "gc"))
        partial.rename(mine)
    return mine, peer


def optimized(s: Setting) -> list[Figure]:
    """Pulls of the corpus once it is optimized: with nothing in the cache, and again."""
    _names()
    first, again, raw = Spent(), Spent(), Spent()
    target = s.work / "pulled"
    with _on(CORES):
        mine, peer = _both(s)
        for number in range(s.rounds):
            shutil.rmtree(mine / "raw-cache", ignore_errors=True)
            port = free_port()
            with serving(ours(s, mine, port, "--raw-cache", CACHE), port) as server:
                for spent in (first, again):
                    pull(spent, target, _tags(s), server)
                    if not number:
                        check(s.gzip, _tags(s), target)
            with _serve(s, PEER, peer) as server:
                pull(raw, target, _tags(s), server)
        shutil.rmtree(mine / "raw-cache", ignore_errors=True)
    out = []
    for what, bound, spent in (("first", 3.0, first), ("again", 1.1, again)):
        out += _figures(s, f"pull, optimized, {what}", bound, {OURS: spent, PEER: raw})
    return out


def storage(s: Setting) -> list[Figure]:
    """Bytes on the disk after optimize."""
    _names()
    mine, peer = map(du, _both(s))
    detail = {OURS: mine, PEER: peer}
    name = f"{OURS}: all files after optimize"
    return [Figure(name, mine / peer, bound=s.bound(0.43), detail=detail)]


PARTS: dict[str, Callable[[Setting], list[Figure]]] = {
    "registry-push": pushing,
    "registry-pull": pulling,
    "registry-16": sixteen,
    "registry-optimized": optimized,
    "registry-storage": storage,
    "registry-head": registry_load.head,
    "registry-idle": registry_load.idle,
    "registry-memory": registry_load.memory,
}


def registry(s: Setting) -> list[Figure]:
    """All of them."""
    out = []
    for name, part in PARTS.items():
        began = time.monotonic()
        out += part(s)
        print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    return out


@contextlib.contextmanager
def _on(cores: int) -> Iterator[None]:
    """This process and what it starts use so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
