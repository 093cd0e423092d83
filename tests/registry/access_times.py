"""How long the registry takes to say that something is absent, and that it is not yours.

    python -m tests.registry.access_times [COUNT [SEED]]

Nobody may learn from the clock what others have (what deduplication would tell). The application is
asked in this process, without a network, for digests that another repository has and for digests that
nobody has, in random turns, so that whatever the machine does meanwhile meets both alike. What is
compared is the two medians of COUNT answers each (10,000), by question; more than 5 % apart is failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import statistics
import sys
import tempfile
import time

import layerstore
from layerstore.registry import Config, Registry
from layerstore.registry.config import AccessConfig, Rule

COUNT = 10_000
APART = 0.05
DIGESTS = 64
"""Different ones of each kind."""
KIND = "application/vnd.oci.image.index.v1+json"
QUESTIONS = {
    "GET blob": ("GET", "/v2/mine/app/blobs/{digest}"),
    "HEAD blob": ("HEAD", "/v2/mine/app/blobs/{digest}"),
    "GET manifest": ("GET", "/v2/mine/app/manifests/{manifest}"),
    "HEAD manifest": ("HEAD", "/v2/mine/app/manifests/{manifest}"),
    "referrers": ("GET", "/v2/mine/app/referrers/{manifest}"),
    "DELETE blob": ("DELETE", "/v2/mine/app/blobs/{digest}"),
    "DELETE manifest": ("DELETE", "/v2/mine/app/manifests/{manifest}"),
    "refused repository": ("GET", "/v2/{other}/app/blobs/{digest}"),
}
ALL = frozenset(("pull", "create", "overwrite", "delete"))


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def fill(store: layerstore.Store, count: int = DIGESTS) -> list[list[dict[str, str]]]:
    """What is asked for: of the one that others have, and of that which nobody has."""
    mine, theirs = store.repository("mine/app"), store.repository("secret/app")
    out: list[list[dict[str, str]]] = [[], []]
    for number in range(count):
        mine.put_blob(os.urandom(500))
        blob = theirs.put_blob(os.urandom(500)).digest
        data = b'{"schemaVersion":2,"mediaType":"%s","manifests":[],"annotations":{"n":"%d"}}' % (
            KIND.encode(),
            number,
        )
        manifest, _ = theirs.put_manifest(data, KIND, tags=(f"v{number}",))
        theirs.put_manifest(
            b'{"schemaVersion":2,"mediaType":"%s","manifests":[],"subject":{"mediaType":"%s",'
            b'"digest":"%s","size":%d}}'
            % (KIND.encode(), KIND.encode(), manifest.digest.encode(), len(data)),
            KIND,
        )
        out[0].append({"digest": blob, "manifest": manifest.digest, "other": "secret"})
        absent = [digest_of(os.urandom(20)) for _ in range(2)]
        out[1].append({"digest": absent[0], "manifest": absent[1], "other": "absent"})
    return out


def registry(store: layerstore.Store) -> Registry:
    """One in which anybody may do everything with what is theirs."""
    rules = (Rule(("@anyone",), ("mine/**",), ALL),)
    return Registry(store, Config(access=AccessConfig(rules=rules)))


async def ask(application: Registry, method: str, path: str) -> tuple[int, bytes]:
    """Status and body of an answer."""
    said: list[object] = []
    out = bytearray()

    asked = False

    async def receive() -> dict[str, object]:
        nonlocal asked
        if asked:  # a client that is there says nothing more
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        said.append(message.get("status"))
        out.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-length", b"0")],
    }
    await application(scope, receive, send)
    return said[0], bytes(out)


async def measure(application, asked, method: str, path: str, count: int, rng: random.Random):
    """Seconds of each answer, for both kinds, in turns."""
    took: list[list[int]] = [[], []]
    answers = set()
    for _ in range(count):
        for which in rng.sample((0, 1), 2):
            target = path.format(**rng.choice(asked[which]))
            start = time.perf_counter_ns()
            answer = await ask(application, method, target)
            took[which].append(time.perf_counter_ns() - start)
            answers.add(answer)
    assert len(answers) == 1, answers
    return took


def main(words: list[str]) -> int:
    count = int(words[0]) if words else COUNT
    rng = random.Random(words[1] if len(words) > 1 else "1")
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="layerstore-times-") as path:
        with layerstore.open(f"{path}/store") as store:
            asked = fill(store)
            application = registry(store)
            for name, (method, target) in QUESTIONS.items():
                took = asyncio.run(measure(application, asked, method, target, count, rng))
                yours, absent = (statistics.median(times) / 1000 for times in took)
                apart = abs(yours / absent - 1)
                worst = max(worst, apart)
                print(
                    f"{name:20} not yours {yours:7.1f} us, absent {absent:7.1f} us, "
                    f"apart {apart:6.2%}",
                    flush=True,
                )
    print(f"the most apart: {worst:.2%}; allowed: {APART:.0%}")
    return int(worst > APART)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
