"""Sections on a registry under load: small requests, the last percent of them while the store is looked
after, and memory under many large pulls and pushes.

The client is a loop over a few connections that sends bytes made before and looks at no more of an
answer than its end, on a core of its own: what is measured is the server.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import json
import multiprocessing
import os
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

import layerstore
from benchmarks.corpus import CONFIG, LAYER, MANIFEST
from benchmarks.measure import memory_of, tree
from benchmarks.registry_server import Server, free_port, ours, serving
from benchmarks.report import Figure
from benchmarks.setting import Setting
from layerstore.registry.config import MaintenanceConfig
from layerstore.registry.server import Options
from layerstore.registry.upkeep import maintain

CONNECTIONS = 4
SECONDS = 3.0
RATE = 150.0
"""Requests a second while the last percent is looked at: what leaves the cores time for other work."""
PHASE = 10.0
BLOCK = 1 << 20
LARGE = 500 << 20
PULLS = 64
PUSHES = 16
LIMIT = 400.0
HEADERS = (
    "Host: 127.0.0.1\r\nUser-Agent: skopeo/1.9.3\r\nAccept-Encoding: gzip\r\n"
    "Accept: application/vnd.oci.image.manifest.v1+json\r\n"
    "Accept: application/vnd.oci.image.index.v1+json\r\n"
    "Docker-Distribution-Api-Version: registry/2.0\r\n\r\n"
)


def request(method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\n{HEADERS}".encode()


@dataclass
class Answers:
    """What came in some seconds: how many, and how long each took."""

    seconds: float = 0.0
    took: list[float] = field(default_factory=list)

    def percentile(self, part: float) -> float:
        return sorted(self.took)[int(len(self.took) * part)]


class Connection:
    """One connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = bytearray()
        self._left = 0
        self._head = False
        self.sent = 0.0

    def send(self, data: bytes) -> None:
        self._head = data.startswith(b"HEAD")
        self.sent = time.perf_counter()
        self.socket.sendall(data)

    def receive(self) -> bool:
        """Takes what has come; whether that is all of an answer. Raises unless it says 200."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise RuntimeError("the server ended the connection")
        if self._left:
            self._left -= len(data)
            return not self._left
        self._got += data
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            return False
        header = bytes(self._got[:end]).lower()
        if not header.startswith(b"http/1.1 200"):
            raise RuntimeError(f"answered {header[:60]!r}")
        length = int(header.partition(b"content-length: ")[2].partition(b"\r")[0])
        body = len(self._got) - end - 4
        self._got.clear()
        self._left = 0 if self._head else length - body
        return not self._left


def load(
    port: int, requests: Sequence[bytes], seconds: float, *, rate: float | None = None
) -> Answers:
    """Requests in turn over a few connections; each the next as soon as it is answered, or, with
    `rate`, when its time has come: an answer that comes late counts from when it was due."""
    answers = Answers()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        idle = [Connection(port) for _ in range(CONNECTIONS)]
        for one in idle:
            stack.callback(one.socket.close)
            selector.register(one.socket, selectors.EVENT_READ, one)
        due: dict[Connection, float] = {}
        begin, sent = time.perf_counter(), 0
        while True:
            now = time.perf_counter()
            while idle and now - begin < seconds:
                when = now if rate is None else begin + sent / rate
                if when > now:
                    break
                one = idle.pop()
                one.send(requests[sent % len(requests)])
                due[one] = when
                sent += 1
            if not due and now - begin >= seconds:
                break
            wait = 1.0 if rate is None else max(0.0, begin + sent / rate - now)
            for key, _ in selector.select(min(wait, 1.0) if idle else 1.0):
                if key.data.receive():
                    answers.took.append(time.perf_counter() - due.pop(key.data))
                    idle.append(key.data)
        answers.seconds = time.perf_counter() - begin
    return answers


@contextlib.contextmanager
def _apart() -> Iterator[set[int]]:
    """This process has the second core; the set of the first one, for a server."""
    before = sorted(os.sched_getaffinity(0))
    if len(before) < 2:
        raise SystemExit("this section needs two cores")
    os.sched_setaffinity(0, before[1:2])
    try:
        yield set(before[:1])
    finally:
        os.sched_setaffinity(0, before)


def _small(store: Path) -> list[tuple[str, bytes]]:
    """A store with a small image; requests for it."""
    with layerstore.open(store) as opened:
        repository = opened.repository("bench/small")
        config, layer = repository.put_blob(b"{}"), repository.put_blob(os.urandom(1 << 20))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
            "layers": [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size}],
        }
        info, _ = repository.put_manifest(json.dumps(manifest).encode(), MANIFEST, tags=["1"])
    base = "/v2/bench/small"
    return [
        ("HEAD of a manifest by tag", request("HEAD", f"{base}/manifests/1")),
        ("HEAD of a blob", request("HEAD", f"{base}/blobs/{layer.digest}")),
        ("GET of a small manifest by tag", request("GET", f"{base}/manifests/1")),
        ("GET of a small manifest by digest", request("GET", f"{base}/manifests/{info.digest}")),
    ]


def head(s: Setting) -> list[Figure]:
    """Small requests, as many as one core answers."""
    store, port, out = s.fresh("registry-head"), free_port(), []
    requests = _small(store)
    with _apart() as core, serving(ours(s, store, port), port, core) as server:
        load(port, [data for _, data in requests], 1.0)
        for name, data in requests:
            rates, costs = [], []
            for _ in range(s.rounds):
                before = server.cpu()
                answers = load(port, [data], SECONDS)
                costs.append((server.cpu() - before) / len(answers.took) * 1e6)
                rates.append(len(answers.took) / answers.seconds)
            detail = {"us of the server's CPU each": statistics.median(costs)}
            rate = statistics.median(rates)
            figure = Figure(
                f"registry: {name}", rate, "a second", s.bound(2000.0), at_least=True, detail=detail
            )
            out.append(figure)
    return out


def _as_pushed(s: Setting, store: Path) -> None:
    """The corpus in repositories of a store, as if it had been pushed."""
    with layerstore.open(store) as opened:
        for image in s.gzip.images():
            repository = opened.repository(f"bench/{image.tag}")
            for digest in (image.config, *(layer.digest for layer in image.layers)):
                with s.gzip.blob(digest).open("rb") as f:
                    upload = repository.upload()
                    while piece := f.read(BLOCK):
                        upload.write(piece)
                    upload.commit(digest)
            repository.put_manifest(s.gzip.blob(image.digest).read_bytes(), MANIFEST, tags=["1"])


def idle(s: Setting) -> list[Figure]:
    """The last percent of small requests while the server optimizes the corpus, and gc runs again and
    again as the server runs it, to the same without. Both in turn; what is asked for stays as it is."""
    store = s.fresh("registry-idle")
    _as_pushed(s, store)
    requests = [data for _, data in _small(store)]
    kinds = {"without": (), "with": ("serve", "--optimize", "now")}
    last: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(s.rounds):
        for kind in kinds if number % 2 else reversed(kinds):
            port = free_port()
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(serving(ours(s, store, port, *kinds[kind]), port))
                if kind == "with":
                    stack.enter_context(_collecting(s, store))
                load(port, requests, PHASE / 5, rate=RATE)
                before = server.cpu()
                answers = load(port, requests, PHASE, rate=RATE)
                cpu[kind].append(server.cpu() - before)
                last[kind].append(answers.percentile(0.99) * 1e3)
    without, busy = statistics.median(last["without"]), statistics.median(last["with"])
    detail = {
        "with, ms": busy,
        "without, ms": without,
        "with, s of CPU a phase": statistics.median(cpu["with"]),
        "without, s of CPU a phase": statistics.median(cpu["without"]),
    }
    name = "registry: p99 of HEAD and GET while optimize and gc run"
    return [Figure(name, busy / without, bound=s.bound(1.25), detail=detail)]


@contextlib.contextmanager
def _collecting(s: Setting, store: Path) -> Iterator[None]:
    """Runs gc as a server does to which requests come, five seconds after the last ended: a server
    waits for thirty, and has one job at a time."""
    over = threading.Event()
    context = multiprocessing.get_context("spawn")
    asked = context.Value("d", 0.0)

    def collect() -> None:
        while not over.is_set():
            asked.value = time.monotonic()
            # Bound here, where the arguments are checked against what takes them.
            job = functools.partial(
                maintain,
                str(store),
                Options(),
                MaintenanceConfig(),
                "gc",
                str(s.work / "gc"),
                asked,
            )
            process = context.Process(target=job)
            process.start()
            while process.exitcode is None:
                asked.value = time.monotonic()
                process.join(0.1)
            if process.exitcode:
                raise RuntimeError(f"gc ended with {process.exitcode}")
            over.wait(5.0)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(collect)
        try:
            yield
        finally:
            over.set()
            running.result()


# ---- memory -----------------------------------------------------------------------------------


class _Blob:
    """A large blob that is made as it is needed: a head of its own before content that all share."""

    def __init__(self, number: int, size: int, body: bytes) -> None:
        self.size = size
        self._head = number.to_bytes(BLOCK, "little")
        self._body = memoryview(body)

    def pieces(self) -> Iterator[bytes | memoryview]:
        yield self._head
        left = self.size - len(self._head)
        while left:
            piece = self._body[:left]
            yield piece
            left -= len(piece)

    def digest(self) -> str:
        h = hashlib.sha256()
        for piece in self.pieces():
            h.update(piece)
        return f"sha256:{h.hexdigest()}"


def _pull(port: int, name: str, digest: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with contextlib.closing(connection):
        connection.request("GET", f"/v2/{name}/blobs/{digest}")
        answer = connection.getresponse()
        h, buffer = hashlib.sha256(), memoryview(bytearray(BLOCK))
        while size := answer.readinto(buffer):
            h.update(buffer[:size])
    if answer.status != 200 or f"sha256:{h.hexdigest()}" != digest:
        raise RuntimeError(f"a pull came out otherwise: {answer.status}")


def _push(port: int, name: str, blob: _Blob, digest: str) -> None:
    """As clients do it: begun, all bytes in one piece, finished."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(method: str, path: str, body: object, want: int, **headers: str) -> str:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, body, named)  # type: ignore[arg-type]
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != want:
            raise RuntimeError(f"{method} {path}: {answer.status} {said[:200]!r}")
        return answer.headers["location"]

    with contextlib.closing(connection):
        where = ask("POST", f"/v2/{name}/blobs/uploads/", None, 202)
        where = ask("PATCH", where, blob.pieces(), 202, content_length=str(blob.size))
        ask("PUT", f"{where}?digest={digest}", None, 201)


@contextlib.contextmanager
def sampled(server: Server, interval: float = 0.1) -> Iterator[list[int]]:
    """The highest sum of anonymous and shared memory over all processes of a server, in bytes."""
    peak, over = [0], threading.Event()

    def sample() -> None:
        while not over.wait(interval):
            total = 0
            for pid in tree(server.process.pid):
                with contextlib.suppress(OSError):
                    total += memory_of(pid)[0]
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def memory(s: Setting) -> list[Figure]:
    """Many large pulls and pushes at once: memory of the server; each pull is verified by its client,
    each push by the server."""
    size = LARGE if s.strict else LARGE // 10
    body = blake3(b"registry-memory").digest(length=16 * BLOCK)
    # Made known before: a client that computes meanwhile is no load.
    old = {blob.digest(): blob for blob in (_Blob(n, size, body) for n in range(4))}
    fresh = {blob.digest(): blob for blob in (_Blob(100 + n, size, body) for n in range(PUSHES))}
    out = []
    for workers in (1, 2):
        store, port = s.fresh("registry-memory"), free_port()
        command = ours(s, store, port, "serve", "--workers", str(workers))
        with serving(command, port) as server:
            for digest, blob in old.items():
                _push(port, "bench/there", blob, digest)
            there = list(old)
            began = time.monotonic()
            with sampled(server) as peak, ThreadPoolExecutor(PULLS + PUSHES) as pool:
                work = [
                    pool.submit(_push, port, "bench/push", blob, digest)
                    for digest, blob in fresh.items()
                ]
                work += [
                    pool.submit(_pull, port, "bench/there", there[n % len(there)])
                    for n in range(PULLS)
                ]
                for one in work:
                    one.result()
            seconds = time.monotonic() - began
        name = f"registry: memory of {PULLS} pulls and {PUSHES} pushes of {size >> 20} MiB"
        detail = {"workers": workers, "seconds": seconds}
        out.append(Figure(name, peak[0] / 2**20, "MiB", s.bound(LIMIT), detail=detail))
        s.fresh("registry-memory")
    return out
