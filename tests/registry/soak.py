"""Pushes against a collector in an endless loop, and against a server that is killed: nothing that was
answered 201 may be missing, and every pull is exact.

    python tests/registry/soak.py race SECONDS      aimed races with gc
    python tests/registry/soak.py kill TIMES        kill -9 of the server in the middle of pushes
    python tests/registry/soak.py slow SECONDS      clients at 1 KB/s, and such as vanish, beside one
                                                    that behaves: what it waits, what is left

Prints what it did as JSON. It is a program, so that it can run for as long as somebody likes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import layerstore
from layerstore.registry.app import THREADS
from layerstore.storage.index import Table

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
PUSHERS = 4
KEPT = 10
"""Images that stay of each pusher; others are deleted, so that gc has work."""
IDLE = 12.0
"""Seconds that a promise holds in the race: short, so that promises end while somebody asks anew. A
push that takes longer than three quarters of it may rightly find that its blob is gone."""
SHARED = 40
"""Blobs that images of all pushers have in common: more than the images that stay can name."""


PATIENCE = 600.0
"""Seconds until a request counts as hung: more than a machine with other work stands still for."""


class Refused(Exception):
    """An answer that is none of those that were expected."""

    @property
    def status(self) -> int:
        """The answer's, which stands in the words."""
        found = re.search(r"\b[2-5]\d\d\b", str(self))
        return int(found[0]) if found else 0


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Client:
    """One connection after the other to a server on a port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def __call__(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            self._connection.request(method, path, body, named)
            answer = self._connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, data

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def push_blob(client: Client, name: str, data: bytes) -> str:
    """A blob in two pieces, resumed where the server says; its digest, once it answered 201."""
    digest = digest_of(data)
    status, headers, _ = client("POST", f"/v2/{name}/blobs/uploads/")
    if status != 202:
        raise Refused(f"POST: {status}")
    return finish_blob(client, headers["location"], data, 0, digest)


def finish_blob(client: Client, where: str, data: bytes, at: int, digest: str) -> str:
    half = max(at, len(data) // 2)
    if at < half:
        status, headers, _ = client("PATCH", where, data[at:half])
        if status != 202:
            raise Refused(f"PATCH: {status}")
        where = headers["location"]
    status, _, said = client("PUT", f"{where}?digest={digest}", data[half:])
    if status != 201:
        raise Refused(f"PUT: {status} {said[:200]!r}")
    return digest


def manifest_of(config: bytes, layers: list[bytes]) -> bytes:
    def entry(data: bytes, kind: str) -> dict[str, object]:
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": entry(config, CONFIG),
        "layers": [entry(layer, LAYER) for layer in layers],
    }
    return json.dumps(document).encode()


def check_image(client: Client, name: str, tag: str, manifest: bytes, blobs: list[bytes]) -> None:
    """Raises unless all of it comes back as it went."""
    status, _, got = client("GET", f"/v2/{name}/manifests/{tag}", accept=MANIFEST)
    if status != 200 or got != manifest:
        raise Refused(f"{name}:{tag}: manifest {status}")
    for data in blobs:
        status, _, got = client("GET", f"/v2/{name}/blobs/{digest_of(data)}")
        if status != 200 or got != data:
            raise Refused(f"{name}:{tag}: blob {digest_of(data)} {status}")


@contextlib.contextmanager
def serving(store: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server and its port; it is killed at the end, if it still runs."""
    words = [sys.executable, "-m", "layerstore", "--store", store, "--json", "serve"]
    process = subprocess.Popen(
        [*words, "--listen", "127.0.0.1:0", *options], stdout=subprocess.PIPE, text=True
    )
    said = ""
    try:
        while not said.endswith("}\n"):
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError("the server has not begun")
            said += line
        yield process, int(json.loads(said)["url"].rpartition(":")[2])
    finally:
        process.kill()
        process.wait()


class Pauses:
    """The times for which this machine did not let a thread of ours run that wanted to: what failed
    meanwhile, since time ran out for a client or a server, is nobody's fault."""

    LONG = 5.0

    def __init__(self) -> None:
        self._found: list[tuple[float, float]] = [(0.0, 0.0)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._over.wait(0.01):
            now = time.monotonic()
            if now - before > 0.1:
                self._found.append((now, now - before))
            before = now

    def __enter__(self) -> Pauses:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def longest(self) -> float:
        return round(max(length for _, length in self._found), 3)

    def clock(self) -> float:
        """Seconds of a clock that stands still in long pauses."""
        lost = sum(length for _, length in self._found if length > self.LONG)
        return time.monotonic() - lost

    def within(self, began: float, ended: float) -> float:
        """Seconds of long ones in a stretch of time."""
        overlaps = (
            min(ended, at) - max(began, at - length)
            for at, length in self._found
            if length > self.LONG
        )
        return sum(max(0.0, one) for one in overlaps)

    def since(self, moment: float) -> bool:
        """Whether there was a long one that ended after a moment, or just before it."""
        time.sleep(0.5)  # it may have ended just now
        return any(at > moment - 2 and length > self.LONG for at, length in self._found)


def race(seconds: float, store: str, seed: int = 1) -> dict[str, object]:
    """Pushers against a collector. A blob that no manifest names yet lives by its promise alone; a
    blob that another image has just lost is put, asked for, or mounted in the same moment."""
    pauses = Pauses()
    end = pauses.clock() + seconds
    lost: list[str] = []
    names = ("images", "pulls", "gc", "removed", "reused", "mounted", "late", "paused")
    counts = dict.fromkeys(names, 0)
    mutex = threading.Lock()
    hurry = threading.Event()
    shared = [
        random.Random(n).randbytes(random.Random(n).randrange(1, 300_000)) for n in range(SHARED)
    ]

    def count(what: str) -> None:
        with mutex:
            counts[what] += 1

    def collector() -> None:
        try:
            with layerstore.open(store) as opened:
                while pauses.clock() < end and not lost:
                    report = opened.gc()
                    counts["gc"] += 1
                    counts["removed"] += report.removed_blobs
                    # Now, when a pusher says that it has just been answered; else soon.
                    hurry.wait(0.005)
                    hurry.clear()
        except (layerstore.LayerstoreError, OSError) as e:
            lost.append(f"gc: {type(e).__name__} {e}")

    def reuse(client: Client, name: str, other: str, data: bytes) -> None:
        """A blob that may be there already, in this repository or in another, and may just be going: a
        yes is a promise."""
        digest = digest_of(data)
        if client("HEAD", f"/v2/{name}/blobs/{digest}")[0] == 200:
            count("reused")
            return
        status, headers, _ = client(
            "POST", f"/v2/{name}/blobs/uploads/?mount={digest}&from={other}"
        )
        if status == 201:
            count("mounted")
            return
        if status != 202:
            raise Refused(f"mount: {status}")
        finish_blob(client, headers["location"], data, 0, digest)

    def pusher(number: int, port: int) -> None:
        source = random.Random(seed * 1000 + number)
        client, name = Client(port), f"soak/p{number}"
        there: list[tuple[str, bytes, list[bytes]]] = []
        serial = 0
        try:
            while pauses.clock() < end and not lost:
                serial += 1
                began = time.monotonic()
                config = b'{"n":%d,"p":%d}' % (serial, number)
                layers = [source.randbytes(source.choice((10, 5000, 200_000)))]
                layers.append(source.choice(shared))
                other = f"soak/p{source.randrange(PUSHERS)}"
                manifest = manifest_of(config, layers)
                try:
                    for data in (config, *layers):
                        if data in shared:
                            reuse(client, name, other, data)
                        else:
                            push_blob(client, name, data)
                        hurry.set()
                    if source.random() < 0.5:
                        time.sleep(source.random() * 0.02)
                    status, _, said = client(
                        "PUT", f"/v2/{name}/manifests/t{serial}", manifest, content_type=MANIFEST
                    )
                    if status != 201:
                        raise Refused(f"{name}:t{serial}: manifest {status} {said[:300]!r}")
                except Refused as e:
                    if e.status == 404 and time.monotonic() - began > IDLE / 2:
                        count("late")  # what was promised, was promised for so long
                        continue
                    if e.status == 408 and pauses.since(began):
                        count("paused")
                        continue
                    raise
                except (OSError, http.client.HTTPException):
                    if not pauses.since(began):
                        raise
                    count("paused")
                    continue
                hurry.set()
                there.append((f"t{serial}", manifest, [config, *layers]))
                count("images")
                check(client, name, source.choice(there))
                if len(there) > KEPT:
                    _, document, _ = there.pop(source.randrange(len(there)))
                    delete(client, f"/v2/{name}/manifests/{digest_of(document)}")
            for one in there:
                check(client, name, one)
        except (Refused, OSError, http.client.HTTPException) as e:
            lost.append(f"{name}: {type(e).__name__} {e}")

    def check(client: Client, name: str, image: tuple[str, bytes, list[bytes]]) -> None:
        """Pulls an image; again, where the machine stood still."""
        while True:
            began = time.monotonic()
            try:
                check_image(client, name, *image)
            except (OSError, http.client.HTTPException):
                if not pauses.since(began):
                    raise
                count("paused")
                continue
            count("pulls")
            return

    def delete(client: Client, path: str) -> None:
        began = time.monotonic()
        try:
            client("DELETE", path)
        except (OSError, http.client.HTTPException):
            if not pauses.since(began):
                raise
            count("paused")

    with serving(store, "--workers", "2", "--idle", f"{IDLE:.0f}") as (process, port):
        threads = [threading.Thread(target=collector)]
        threads += [threading.Thread(target=pusher, args=(n, port)) for n in range(PUSHERS)]
        with pauses:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    with layerstore.open(store) as opened:
        whole = opened.check(full=True).ok
    leaked = len(os.listdir(os.path.join(store, "uploads")))
    report: dict[str, object] = {
        **counts,
        "longest pause of the machine, s": pauses.longest,
    }
    return {**report, "lost": lost, "leaked uploads": leaked, "whole": whole}


def kill(times: int, store: str, seed: int = 1) -> dict[str, object]:
    """Kills the server at a random moment of a push, starts it again, goes on with the upload."""
    source = random.Random(seed)
    answered: dict[str, bytes] = {}
    images: dict[str, tuple[bytes, list[bytes]]] = {}
    resumed = restarted = finished = killed = 0
    lost: list[str] = []
    pending: tuple[str, bytes] | None = None
    while killed < times:
        with serving(store) as (process, port):
            client = Client(port)
            if pending is not None:
                where, data = pending
                status, headers, _ = client("GET", where)
                if status == 204:
                    # `Range: 0-0` is said of one byte and of none (distribution-spec).
                    last = int(headers["range"].partition("-")[2])
                    at = last + 1 if last else 0
                    try:
                        finish_blob(client, headers["location"], data, at, digest_of(data))
                        resumed += 1
                    except Refused:
                        push_blob(client, "soak/kill", data)
                        restarted += 1
                elif client("HEAD", f"/v2/soak/kill/blobs/{digest_of(data)}")[0] == 200:
                    finished += 1  # the answer was lost, not the blob
                else:
                    push_blob(client, "soak/kill", data)
                    restarted += 1
                answered[digest_of(data)] = data
                pending = None
            for digest in source.sample(sorted(answered), min(5, len(answered))):
                status, _, got = client("GET", f"/v2/soak/kill/blobs/{digest}")
                if status != 200 or got != answered[digest]:
                    lost.append(digest)
            for tag in source.sample(sorted(images), min(2, len(images))):
                try:
                    check_image(client, "soak/kill", tag, *images[tag])
                except Refused as e:
                    lost.append(str(e))
            timer = threading.Timer(source.random() * 0.3, process.kill)
            timer.start()
            try:
                while True:
                    data = source.randbytes(source.choice((100, 20_000, 3_000_000)))
                    status, headers, _ = client("POST", "/v2/soak/kill/blobs/uploads/")
                    if status != 202:
                        raise Refused(f"POST: {status}")
                    pending = headers["location"], data
                    digest = finish_blob(client, headers["location"], data, 0, digest_of(data))
                    answered[digest] = data
                    pending = None
                    if source.random() < 0.3:
                        blobs = [answered[one] for one in source.sample(sorted(answered), 1)]
                        manifest = manifest_of(data, blobs)
                        tag = f"t{len(images)}"
                        status, _, said = client(
                            "PUT",
                            f"/v2/soak/kill/manifests/{tag}",
                            manifest,
                            content_type=MANIFEST,
                        )
                        if status != 201:
                            raise Refused(f"{tag}: manifest refused, {status} {said[:300]!r}")
                        images[tag] = manifest, [data, *blobs]
            except (OSError, http.client.HTTPException):
                killed += 1
            timer.join()
    with layerstore.open(store) as opened:
        repository = opened.repository("soak/kill")
        for digest, data in answered.items():
            try:
                with repository.open_blob(digest) as blob:
                    if blob.read() != data:
                        lost.append(digest)
            except layerstore.LayerstoreError as e:
                lost.append(f"{digest}: {e}")
        for tag, (manifest, _) in images.items():
            try:
                if repository.manifest_bytes(repository.manifest(tag).digest) != manifest:
                    lost.append(tag)
            except layerstore.LayerstoreError as e:
                lost.append(f"{tag}: {e}")
        opened.gc()
        whole = opened.check(full=True).ok
    counts: dict[str, object] = {"killed": killed, "answered": len(answered), "resumed": resumed}
    counts |= {"manifests": len(images), "finished unheard": finished}
    return {**counts, "begun anew": restarted, "lost": lost, "whole": whole}


class Crowd:
    """Clients that take or give a kilobyte a second, or as fast as they can, and vanish at random.
    `lasting`: the most seconds that a slow one is there."""

    def __init__(self, port: int, digest: str, size: int, lasting: float) -> None:
        self._port = port
        self._digest = digest
        self._size = size
        self._lasting = lasting
        self.over = threading.Event()
        self.vanished = 0
        self.refused: list[str] = []
        self._mutex = threading.Lock()

    def _vanish(self, connection: socket.socket, source: random.Random) -> None:
        if source.random() < 0.5:  # without a word: what it has not read is lost
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
        with self._mutex:
            self.vanished += 1

    def _connect(self, source: random.Random) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(0.25)
        if source.random() < 0.5:  # little fits in between: the server has to wait for it
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self._port))
        return connection

    def client(self, number: int) -> None:
        """One after the other, until it is over."""
        source = random.Random(number)
        while not self.over.wait(source.uniform(0.0, 0.3)):  # a crowd, no flood
            pulls, slow = source.random() < 0.5, number % 2 == 0
            end = time.monotonic() + source.uniform(0.0, self._lasting if slow else 0.05)
            try:
                connection = self._connect(source)
            except OSError as e:
                self.refused.append(f"connect: {e}")
                continue
            try:
                (self._pull if pulls else self._push)(connection, source, end, slow)
            except OSError:
                pass  # it was too slow for a buffer in between
            except Refused as e:
                self.refused.append(str(e))
            finally:
                self._vanish(connection, source)

    def _pull(
        self, connection: socket.socket, source: random.Random, end: float, slow: bool
    ) -> None:
        path = f"/v2/slow/there/blobs/{self._digest}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while time.monotonic() < end:
            if slow and self.over.wait(0.25):
                return
            connection.recv(256 if slow else 1 << 16)

    def _push(
        self, connection: socket.socket, source: random.Random, end: float, slow: bool
    ) -> None:
        client = Client(self._port)
        with contextlib.closing(client):
            status, headers, _ = client("POST", "/v2/slow/up/blobs/uploads/")
        if status != 202:
            raise Refused(f"POST: {status}")
        head = f"PATCH {headers['location']} HTTP/1.1\r\nHost: x\r\n"
        if source.random() < 0.3:  # all at once: nothing of it stays when it breaks
            head = f"POST /v2/slow/up/blobs/uploads/?digest={self._digest} HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(f"{head}Content-Length: {self._size}\r\n\r\n".encode())
        while time.monotonic() < end:
            if slow and self.over.wait(0.25):
                return
            connection.sendall(bytes(256 if slow else 1 << 16))


@dataclasses.dataclass(frozen=True)
class Held:
    """What a server holds: requests in flight but for the one that asks, open files, threads, memory of
    its own in MiB."""

    requests: int
    files: int
    threads: int
    memory: float

    @classmethod
    def now(cls, client: Client, pid: int) -> Held:
        said = client("GET", "/metrics")[2].decode()
        flying = said.partition("\nlayerstore_requests_in_flight ")[2].partition("\n")[0]
        with open(f"/proc/{pid}/status", encoding="ascii") as f:
            status = dict(line.split(":", 1) for line in f)
        return cls(
            int(flying) - 1,
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]),
            round(int(status["RssAnon"].split()[0]) / 1024, 1),
        )

    def leaks(self, before: Held, memory: float) -> list[str]:
        """What is more than before, which it must not be: threads that its pools have not, and of
        memory more than `memory` MiB."""
        most = {"requests": before.requests, "files": before.files}
        most["threads"] = max(before.threads, POOLS)
        out = [
            f"{name}: {getattr(self, name)}, not {limit}"
            for name, limit in most.items()
            if getattr(self, name) > limit
        ]
        if self.memory > before.memory + memory:
            out.append(f"memory: {self.memory} MiB, not {before.memory}")
        return out


POOLS = THREADS + 2 * (os.cpu_count() or 1) + 4
"""Threads of a server whose pools are full."""
MEMORY = 32.0
"""MiB that a server may grow by from one crowd to the next: what the allocator keeps."""


def leases_of(opened: layerstore.Store) -> int:
    """Leases of uploads, and others that outlive their process, that a gc has left."""
    with opened._storage.index.read() as snapshot:
        rows = [json.loads(value) for _, value in snapshot.items(Table.LEASES)]
    return sum(row["kind"] != "session" for row in rows)


def spread(took: list[tuple[float, float]], pauses: Pauses) -> dict[str, float]:
    """Of stretches of time: the middle, the 99th of a hundred, the longest; in milliseconds."""
    found = sorted(ended - began - pauses.within(began, ended) for began, ended in took)
    at = {"p50": len(found) // 2, "p99": len(found) * 99 // 100, "max": len(found) - 1}
    return {name: round(found[n] * 1000, 1) for name, n in at.items()}


def slow(seconds: float, store: str, clients: int = 24) -> dict[str, object]:
    """A client that behaves, alone and then beside a crowd that does not. A first crowd, of a tenth of
    the time, fills pools and caches; the second leaves nothing behind that was not there before it: no
    request, file, thread, memory, and in the end no upload and no lease."""
    idle = 2.0
    source = random.Random(1)
    large = source.randbytes(8 << 20)
    alone: list[tuple[float, float]] = []
    beside: list[tuple[float, float]] = []
    pauses = Pauses()
    paused = 0
    memory: list[float] = []
    vanished = 0
    lost: list[str] = []
    with serving(store, "--idle", f"{idle:.0f}") as (process, port):
        client = Client(port)
        there = push_blob(client, "slow/there", large)
        config = b"{}"
        push_blob(client, "slow/there", config)
        manifest = manifest_of(config, [large])
        path = "/v2/slow/there/manifests/v1"
        if client("PUT", path, manifest, content_type=MANIFEST)[0] != 201:
            raise Refused("the manifest")

        def behave(took: list[tuple[float, float]], seconds: float) -> None:
            """Pushes and pulls, each of which is timed."""
            nonlocal paused
            end = pauses.clock() + seconds
            while pauses.clock() < end or not took:
                data = source.randbytes(200_000)
                began = time.monotonic()
                try:
                    digest = push_blob(client, "slow/good", data)
                    took.append((began, time.monotonic()))
                    again = time.monotonic()
                    status, _, got = client("GET", f"/v2/slow/good/blobs/{digest}")
                    took.append((again, time.monotonic()))
                    if status != 200 or got != data:
                        raise Refused(f"GET: {status}")
                except (OSError, http.client.HTTPException):
                    if not pauses.since(began):
                        raise
                    paused += 1
                if len(took) % 100 == 0:
                    memory.append(Held.now(client, process.pid).memory)
                time.sleep(0.02)

        def beside_a_crowd(took: list[tuple[float, float]], seconds: float) -> int:
            lasting = max(4.0, min(60.0, seconds / 10))
            crowd = Crowd(port, there, len(large), lasting)
            threads = [threading.Thread(target=crowd.client, args=(n,)) for n in range(clients)]
            for thread in threads:
                thread.start()
            try:
                behave(took, seconds)
            finally:
                crowd.over.set()
                for thread in threads:
                    thread.join()
            lost.extend(crowd.refused)
            return crowd.vanished

        def settled(calm: Callable[[Held], bool]) -> Held:
            """What is held once it is calm, or after a while in any case."""
            deadline = time.monotonic() + 20
            while not calm(held := Held.now(client, process.pid)) and time.monotonic() < deadline:
                time.sleep(0.1)
            return held

        with pauses:
            behave(alone, seconds / 10)
            vanished += beside_a_crowd([], seconds / 10)
            before = settled(lambda held: held.requests == 0)
            vanished += beside_a_crowd(beside, seconds)
            after = settled(lambda held: not held.leaks(before, MEMORY))
        lost += after.leaks(before, MEMORY)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    time.sleep(idle + 0.5)
    with layerstore.open(store) as opened:
        opened.gc()
        whole = opened.check(full=True).ok
        leases = leases_of(opened)
    if leases:
        lost.append(f"leases: {leases}")
    return {
        "alone, ms": spread(alone, pauses),
        "beside the crowd, ms": spread(beside, pauses),
        "served": len(beside) // 2,
        "paused": paused,
        "longest pause of the machine, s": pauses.longest,
        "vanished": vanished,
        "held before": dataclasses.asdict(before),
        "held after": dataclasses.asdict(after),
        "most memory meanwhile": max(memory, default=after.memory),
        "leaked leases": leases,
        "leaked uploads": len(os.listdir(os.path.join(store, "uploads"))),
        "lost": lost,
        "whole": whole,
    }


def main() -> None:
    what, number = sys.argv[1], float(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as directory:
        store = os.path.join(directory, "store")
        report = {"race": race, "slow": slow, "kill": lambda n, s: kill(int(n), s)}[what](
            number, store
        )
    print(json.dumps(report, indent=1))
    bad = report["lost"] or report.get("leaked uploads") or not report["whole"]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
