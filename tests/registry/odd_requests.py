"""Odd requests, out of a seed: grammar broken in every place, alone and together.

    python -m tests.registry.odd_requests [COUNT [SEED]]           # to the application
    python -m tests.registry.odd_requests --wire [COUNT [SEED]]    # to a server, as bytes

No answer may be a fault of ours (500), each refusal has the specification's form, nothing escapes, and
nothing hangs. What failed is printed with its seed.
"""

# The tables are wide on purpose: a row is a grammar.
# ruff: noqa: E501

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import socket
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

import layerstore
from layerstore.registry import Config, Registry
from layerstore.registry.config import AccessConfig, LimitsConfig, Rule, TokenConfig

PATIENCE = 30
"""Seconds after which a request hangs."""
EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
METHODS = ("GET", "GET", "HEAD", "PUT", "PUT", "POST", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE",
           "CONNECT", "get", "X", "PROPFIND")  # fmt: skip
NAMES = ("a", "a/b", "library/app", "a/b/c", "A", "a//b", "/a", "a/", "..", "a/../b", ".", "a/.", "-a",
         "a_b", "a__b", "a___b", "a..b", "%2e%2e", "a%2fb", "a%00b", "ä", "%C3%A4", "a" * 255, "a" * 256,
         "blobs/uploads", "manifests/x", "tags/list", "_catalog", "a b", "a%0d%0ab", "a;b", "a?b", "a#b",
         "~", "*", "\\", "a\\b")  # fmt: skip
TAGS = ("v1", "latest", "-v", ".v", "v" * 128, "v" * 129, "", "v%2F1", "..", "v:1", "%", "%zz", "v\x7f",
        "v@1", "%F0%9F%98%80", "_", "0")  # fmt: skip
DIGESTS = (EMPTY, "sha256:" + "0" * 64, "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha256:", ":", "sha512:"
           + "0" * 128, "sha512:0", "blake3:" + "0" * 64, "md5:" + "0" * 32, "sha256%3A" + "0" * 64,
           "sha256:" + "0" * 64 + "/", "SHA256:" + "0" * 64, "sha256:" + "g" * 64, "a+b:c", "x" * 300,
           "sha256:../../etc/passwd", "sha256:" + "0" * 5000)  # fmt: skip
NUMBERS = ("0", "1", "-1", "+1", "1.5", "1e9", "0x1", "", " ", "99999999999999999999", "NaN", "१", "1,1",
           "00", "1_0", "2147483648")  # fmt: skip
RANGES = ("bytes=0-0", "bytes=0-", "bytes=-1", "bytes=-0", "bytes=5-1", "bytes=0-0,2-3", "bytes=", "bytes",
          "lines=0-1", "0-0", "0-4", "1-4", "5-9", "bytes 0-4/5", "bytes 0-4/*", "9-0", "-", "a-b",
          "bytes=99999999999999999999-", "0-99999999999999999999", " 0 - 4 ")  # fmt: skip
HEADERS = (
    ("Range", RANGES), ("Content-Range", RANGES), ("Content-Length", NUMBERS),
    ("If-Range", ('"x"', "", "W/\"x\"", f'"{EMPTY}"', "Tue, 15 Nov 1994 12:45:26 GMT")),
    ("If-None-Match", ("*", '"x"', f'"{EMPTY}"', ",,,", "W/*", '"')),
    ("Content-Type", (MANIFEST, "", "text/plain", "application/json; charset=x", "a" * 3000, "\x80",
                      "application/vnd.oci.image.index.v1+json",
                      "application/vnd.docker.distribution.manifest.v2+json")),
    ("Accept", ("*/*", "", "text/html", "x" * 2000)),
    ("Authorization", ("", "Basic", "Basic ", "Basic Og==", "Basic YTpi", "Basic !!", "Bearer", "Bearer x",
                       "Bearer a.b.c", "Bearer " + "e30." * 3, "Digest x", "Basic " + "A" * 9000)),
    ("Host", ("", "x", "a b", "evil.example", "[::1", "127.0.0.1:99999")),
    ("Expect", ("100-continue", "x")), ("Transfer-Encoding", ("chunked", "identity", "gzip, chunked", "x")),
    ("Connection", ("close", "upgrade", "keep-alive, x", "")), ("Upgrade", ("websocket", "h2c")),
    ("X", ("y" * 8000, "\x01", "", "\xff")), ("Docker-Upload-UUID", ("x",)),
)  # fmt: skip
BODIES = (
    b"", b"hello", b"{}", b"[]", b"null", b"{", b'{"schemaVersion":2}', b"\x00" * 100, b"[" * 20000,
    b'{"a":' * 5000, b'{"schemaVersion":1e999}', b'{"schemaVersion":2,"schemaVersion":2}', b"\xff\xfe{}",
    b'{"schemaVersion":2,"mediaType":"' + MANIFEST.encode() + b'","config":null,"layers":[]}',
    b'{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"sha256:../x","size":-1},"layers":[]}',
    b'{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"' + EMPTY.encode()
    + b'","size":0},"layers":[]}',
    b'{"schemaVersion":2,"manifests":[{"mediaType":"' + MANIFEST.encode() + b'","digest":"'
    + EMPTY.encode() + b'","size":99999999999999999999}]}',
    b'{"schemaVersion":2,"manifests":[],"subject":{"digest":1}}',
    b'{"schemaVersion":2,"manifests":[],"annotations":{"a":1}}', b'"' + b"a" * 100000 + b'"',
    b'{"schemaVersion":2,"layers":[],"manifests":[],"config":{}}', "{\"\ud83d\ude00\":1}".encode(
        "utf-8", "surrogatepass"), b'{"a":"\\ud800"}', b"1" * 5000,
)  # fmt: skip
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
FOREIGN = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
CLAIMS = {"iss": "issuer", "aud": "registry", "sub": "ann", "exp": 1 << 33, "access": [
    {"type": "repository", "name": "a/b", "actions": ["pull", "push"]}]}  # fmt: skip


def _signed(claims: dict[str, object]) -> str:
    return jwt.api_jws.encode(json.dumps(claims).encode(), KEY, "EdDSA")


def _tokens() -> tuple[str, ...]:
    """One that is right, and what is nearly so."""
    right = jwt.encode(CLAIMS, KEY, "EdDSA")
    head, body, signature = right.split(".")
    other = [{"type": "repository", "name": "z/z", "actions": ["*"]}]
    changed = ({"exp": 1}, {"exp": "soon"}, {"exp": 1e308}, {"nbf": 1 << 33}, {"aud": "other"}, {"aud": [1]},
               {"iss": None}, {"sub": 5}, {"access": other}, {"access": {}}, {"access": [[]]}, {"access": None},
               {"access": [{"type": "repository", "name": "a/b", "actions": "pull"}]})  # fmt: skip
    return (
        right, right, right, jwt.encode(CLAIMS, FOREIGN, "EdDSA"), f"{head}.{body}.", f"{head}.{body}",
        f"{head}.{body}.{signature[::-1]}", f"{body}.{head}.{signature}", f"eyJhbGciOiJub25lIn0.{body}.",
        f"{right}.{signature}", head * 3000, *(_signed({**CLAIMS, **one}) for one in changed),
    )  # fmt: skip


TOKENS = _tokens()
OCTETS = {"mediaType": "application/octet-stream", "digest": EMPTY, "size": 0}
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFESTS = [
    (value["mediaType"], json.dumps({"schemaVersion": 2, **value}).encode())
    for value in (
        {"mediaType": INDEX, "manifests": []},
        {"mediaType": INDEX, "manifests": [], "annotations": {"a": "\u00e4"}},
        {"mediaType": INDEX, "manifests": [], "subject": {**OCTETS, "mediaType": INDEX}},
        {"mediaType": MANIFEST, "config": OCTETS, "layers": []},
        {"mediaType": MANIFEST, "config": OCTETS, "layers": [OCTETS], "artifactType": "a/b"},
    )
]


@dataclass
class Odd:
    """One request."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    pieces: list[bytes] = field(default_factory=list)
    cut: bool = False


def _broken(rng: random.Random, text: str) -> str:
    """A text with something changed in it, sometimes."""
    if text and rng.random() < 0.15:
        at = rng.randrange(len(text))
        text = (
            text[:at]
            + rng.choice(("%", "/", "..", "\x00", " ", "?", "&", "ä", "%2f", ":"))
            + text[at:]
        )
    return text


def _query(rng: random.Random, known: list[str]) -> str:
    out = []
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5, 80))):
        key = rng.choice(("digest", "mount", "from", "n", "last", "tag", "artifactType", "digest-algorithm",
                          "x", "", "%00"))  # fmt: skip
        value = rng.choice((*DIGESTS, *TAGS, *NAMES, *NUMBERS, *known))
        out.append(rng.choice((f"{key}={value}", key, f"{key}={value}={value}", f"{key}=%ff")))
    return rng.choice(("", "?" + "&".join(out), "?" + ";".join(out)))


def _nearly_right(rng: random.Random, known: list[str]) -> Odd:
    """What a client would send, with at most a few things changed."""
    name, upload = rng.choice(("a/b", "a", "library/app")), rng.choice([*known, "0" * 48])
    data = rng.choice((b"", b"hello", b"x" * 3000))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    length = [("Content-Length", str(len(data)))]
    manifest = rng.choice(MANIFESTS)
    kind = [("Content-Type", manifest[0]), ("Content-Length", str(len(manifest[1])))]
    under = rng.choice(("v1", "v2", "sha256:" + hashlib.sha256(manifest[1]).hexdigest()))
    method, target, headers, body = rng.choice(
        (
            ("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", length, data),
            ("POST", f"/v2/{name}/blobs/uploads/", [], b""),
            ("POST", f"/v2/{name}/blobs/uploads/?mount={digest}&from=a/b", [], b""),
            (
                "PATCH",
                f"/v2/{name}/blobs/uploads/{upload}",
                [*length, ("Content-Range", "0-4")],
                data,
            ),
            ("PATCH", f"/v2/{name}/blobs/uploads/{upload}", length, data),
            ("PUT", f"/v2/{name}/blobs/uploads/{upload}?digest={digest}", length, data),
            ("GET", f"/v2/{name}/blobs/uploads/{upload}", [], b""),
            ("DELETE", f"/v2/{name}/blobs/uploads/{upload}", [], b""),
            ("PUT", f"/v2/{name}/manifests/{under}", kind, manifest[1]),
            ("PUT", f"/v2/{name}/manifests/{under}?tag=w", kind, manifest[1]),
            ("GET", f"/v2/{name}/manifests/{under}", [], b""),
            ("HEAD", f"/v2/{name}/manifests/{under}", [], b""),
            ("GET", f"/v2/{name}/blobs/{digest}", [("Range", rng.choice(RANGES))], b""),
            ("GET", f"/v2/{name}/tags/list?n=1&last={rng.choice(TAGS)}", [], b""),
            ("GET", f"/v2/{name}/referrers/{under}", [], b""),
            (
                "DELETE",
                f"/v2/{name}/{rng.choice(('manifests', 'blobs'))}/{rng.choice((under, digest))}",
                [],
                b"",
            ),
        )
    )
    odd = Odd(method, target, list(headers), body, [body])
    change = rng.random()
    if change < 0.1:
        odd.target = _broken(rng, target) + _query(rng, known)
    elif change < 0.2:
        key, values = rng.choice(HEADERS)
        odd.headers.append((key, rng.choice(values)))
    elif change < 0.3 and body:
        at = rng.randrange(len(body))
        odd.body = body[:at] + rng.choice((b"", b"{", b'"', b"\xff")) + body[at + 1 :]
        odd.pieces = [odd.body]
    elif change < 0.35:
        odd.cut = True
    elif change < 0.45:
        odd.pieces = [body[:1], body[1:]]
    return odd


ABSENT = "sha256:" + "7" * 64


def _odd_value(rng: random.Random, depth: int = 0) -> object:
    """Any JSON."""
    if depth < 3 and rng.random() < 0.3:
        inner = [_odd_value(rng, depth + 1) for _ in range(rng.randrange(3))]
        return inner if rng.random() < 0.5 else {str(n): one for n, one in enumerate(inner)}
    return rng.choice(
        (None, True, -1, 0, 2, 1.5, 1e300, 1 << 70, "", "x", EMPTY, ABSENT, MANIFEST, "\ud800")
    )


def _odd_descriptor(rng: random.Random) -> object:
    """What a manifest names: there, absent, of the wrong shape."""
    if rng.random() < 0.1:
        return _odd_value(rng)
    made: dict[str, object] = {"mediaType": rng.choice((OCTETS["mediaType"], MANIFEST, INDEX, "a/b", "", 5)),
                               "digest": rng.choice((EMPTY, ABSENT, *DIGESTS)),
                               "size": rng.choice((0, 0, 1, -1, 1 << 70, 0.5, "0"))}  # fmt: skip
    if rng.random() < 0.2:
        made[rng.choice(("urls", "annotations", "platform", "data", "artifactType"))] = _odd_value(
            rng
        )
    if rng.random() < 0.2:
        made.pop(rng.choice(list(made)))
    return made


def _odd_manifest(rng: random.Random) -> tuple[str, bytes]:
    """A manifest or an index with a few things wrong, and the type that it comes under."""
    kind = rng.choice((MANIFEST, INDEX, "application/vnd.docker.distribution.manifest.v2+json",
                       "application/vnd.docker.distribution.manifest.list.v2+json"))  # fmt: skip
    made: dict[str, object] = {"schemaVersion": 2, "mediaType": kind}
    if "index" in kind or "list" in kind or rng.random() < 0.1:
        made["manifests"] = [_odd_descriptor(rng) for _ in range(rng.choice((0, 1, 3)))]
    if "manifests" not in made or rng.random() < 0.1:
        made |= {"config": OCTETS if rng.random() < 0.6 else _odd_descriptor(rng),
                 "layers": [OCTETS if rng.random() < 0.5 else _odd_descriptor(rng)
                            for _ in range(rng.choice((0, 1, 3)))]}  # fmt: skip
    for key, odds in (("subject", 0.2), ("artifactType", 0.1), ("annotations", 0.1), ("x", 0.1)):
        if rng.random() < odds:
            made[key] = _odd_descriptor(rng) if key == "subject" else _odd_value(rng)
    if rng.random() < 0.3:
        made[rng.choice(list(made))] = _odd_value(rng)
    text = json.dumps(made)
    change = rng.random()
    if change < 0.05:
        text = text[:-1] + ', "schemaVersion": 2}'
    elif change < 0.1:
        text = text[: rng.randrange(len(text))]
    elif change < 0.12:
        text = text[:-1] + ', "deep": ' + "[" * 3000 + "]" * 3000 + "}"
    elif change < 0.125:
        text += " " * (5 << 20)
    return rng.choice((kind, kind, kind, MANIFEST, INDEX, "", "text/plain")), text.encode(
        "utf-8", "replace"
    )


def request(rng: random.Random, known: list[str]) -> Odd:
    """One odd request. `known`: uploads of before, which it may go on with."""
    odd = _request(rng, known)
    if rng.random() < 0.3:
        odd.headers.append(("Authorization", f"Bearer {rng.choice(TOKENS)}"))
    if rng.random() < 0.002:
        odd.headers.append(("X", "y" * (1 << 20)))
    return odd


def _request(rng: random.Random, known: list[str]) -> Odd:
    if rng.random() < 0.2:
        kind, data = _odd_manifest(rng)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        target = f"/v2/a/b/manifests/{rng.choice(('v1', 'v2', digest, ABSENT))}"
        headers = [("Content-Type", kind), ("Content-Length", str(len(data)))]
        return Odd("PUT", target, headers, data, [data])
    if rng.random() < 0.5:
        return _nearly_right(rng, known)
    name = rng.choice(NAMES) if rng.random() < 0.5 else "a/b"
    digest = rng.choice(DIGESTS) if rng.random() < 0.7 else EMPTY
    upload = (
        rng.choice(known)
        if known and rng.random() < 0.7
        else rng.choice(("x", "0" * 48, "0" * 16, ".."))
    )
    target = rng.choice(
        (
            "/v2/", "/v2", "/", "", "*", "/v2/_catalog", "/v1/search", f"/v2/{name}/tags/list",
            f"/v2/{name}/manifests/{rng.choice(TAGS)}", f"/v2/{name}/manifests/{digest}",
            f"/v2/{name}/blobs/{digest}", f"/v2/{name}/blobs/uploads/", f"/v2/{name}/blobs/uploads",
            f"/v2/{name}/blobs/uploads/{upload}", f"/v2/{name}/referrers/{digest}", f"/v2/{name}",
            f"http://evil.example/v2/{name}/tags/list", "//v2/", "/v2/" + "a/" * 3000 + "tags/list",
        )
    )  # fmt: skip
    target = _broken(rng, target) + _broken(rng, _query(rng, known))
    headers = []
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        key, values = rng.choice(HEADERS)
        headers.append((key, _broken(rng, rng.choice(values))))
    body = rng.choice(BODIES) if rng.random() < 0.6 else b""
    if rng.random() < 0.1:
        body = rng.randbytes(rng.randrange(3000))
    if rng.random() < 0.05 and body:
        body = bytes(b ^ (rng.random() < 0.02) for b in body)
    if rng.random() < 0.6 and not any(key == "Content-Length" for key, _ in headers):
        headers.append(("Content-Length", str(len(body))))
    half = len(body) // 2
    pieces = [body] if rng.random() < 0.7 else [body[:half], b"", body[half:]]
    return Odd(rng.choice(METHODS), target, headers, body, pieces, rng.random() < 0.05)


def registries(store: layerstore.Store, path: str) -> list[Registry]:
    """One that is open, one that knows rules, one that may only be read, one that takes tokens, whose
    key is put beside `path`."""
    with open(f"{path}.pem", "wb") as f:
        f.write(
            KEY.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    token = TokenConfig("https://issuer/token", "registry", "issuer", (f"{path}.pem",))
    limits = LimitsConfig(open_uploads=50, upload_bytes=4000, repository_bytes=1 << 20)
    rules = (
        Rule(("@anyone",), ("a/*", "library/**"), frozenset(("pull", "create"))),
        Rule(("@anyone",), ("a",), frozenset(("overwrite", "delete"))),
    )
    return [
        Registry(store, Config(limits=limits)),
        Registry(store, Config(limits=limits, access=AccessConfig(rules=rules))),
        Registry(store, Config(readonly=True)),
        Registry(store, Config(limits=limits, access=AccessConfig(token=token, rules=rules))),
    ]


async def ask(registry: Registry, odd: Odd) -> tuple[int, dict[str, str], bytes]:
    """Status (0: none), headers and body of the answer."""
    waiting = list(odd.pieces)
    status, got, out = 0, {}, bytearray()

    async def receive():
        if waiting:
            piece = waiting.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(waiting) or odd.cut}
        if odd.cut:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()

    async def send(message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            got.update((n.decode("latin-1"), v.decode("latin-1")) for n, v in message["headers"])
        else:
            out.extend(message.get("body", b""))

    path, _, query = odd.target.partition("?")
    scope = {
        "type": "http",
        "method": odd.method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": query.encode("utf-8", "surrogatepass"),
        "headers": [(n.lower().encode(), v.encode("utf-8")) for n, v in odd.headers],
    }
    # In slices: a machine that stood still meanwhile is no request that hangs.
    answering = asyncio.ensure_future(registry(scope, receive, send))
    for _ in range(PATIENCE):
        if (await asyncio.wait({answering}, timeout=1.0))[0]:
            answering.result()
            return status, got, bytes(out)
    answering.cancel()
    raise TimeoutError("it hangs")


def wrong(odd: Odd, status: int, headers: dict[str, str], body: bytes) -> str | None:
    """What is wrong with an answer, if anything."""
    if status >= 500 and status != 507:
        return f"status {status}"
    if not status:
        return None if odd.cut else "no answer"
    if status >= 400 and odd.method != "HEAD":
        errors = json.loads(body)["errors"]
        if not errors or not errors[0]["code"].isupper():
            return f"no error in {body!r}"
    if any("\r" in value or "\n" in value for value in headers.values()):
        return f"a broken header: {headers}"
    return None


async def to_application(count: int, seed: int, path: str) -> Counter[int]:
    """Sends them one after the other; how often each status was answered. Raises AssertionError."""
    seen: Counter[int] = Counter()
    with layerstore.open(path) as store:
        several = registries(store, path)
        known: list[str] = []
        for number in range(count):
            rng = random.Random(f"{seed}/{number}")
            odd = request(rng, known)
            which = rng.choice((0, 0, 0, 1, 1, 2, 3, 3))
            try:
                status, headers, body = await ask(several[which], odd)
                fault = wrong(odd, status, headers, body)
            except Exception as e:
                fault = f"{type(e).__name__}: {e}"
            assert fault is None, f"seed {seed}, request {number}, registry {which}: {fault}\n{odd}"
            seen[status] += 1
            if status == 202 and "/uploads/" in headers.get("location", ""):
                known = [*known[-20:], headers["location"].rpartition("/")[2]]
            if number % 5000 == 4999:
                store.gc()
        assert store.check(full=True).ok
    return seen


def as_bytes(rng: random.Random, odd: Odd) -> bytes:
    """On the wire, sometimes with what HTTP itself forbids."""
    end = b"\n" if rng.random() < 0.03 else b"\r\n"
    target = odd.target if rng.random() < 0.2 else odd.target.replace(" ", "%20")
    line = f"{odd.method} {target} HTTP/{rng.choice(('1.1', '1.1', '1.1', '1.0', '2.0', '9'))}"
    headers = odd.headers if rng.random() < 0.1 else [("Host", "x"), *odd.headers]
    lines = [line.encode("utf-8"), *(f"{n}: {v}".encode() for n, v in headers)]
    data = end.join(lines) + end + end + odd.body
    if rng.random() < 0.1:
        at = rng.randrange(len(data))
        data = data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at + rng.randrange(3) :]
    if rng.random() < 0.05:
        data = data[: rng.randrange(len(data))]
    return data


def to_server(count: int, seed: int, address: tuple[str, int]) -> Counter[bytes]:
    """Sends them to a server, each on a connection of its own, whose sending side is then closed."""
    seen: Counter[bytes] = Counter()
    for number in range(count):
        rng = random.Random(f"wire/{seed}/{number}")
        data = as_bytes(rng, request(rng, []))
        got = b""
        with socket.create_connection(address, timeout=PATIENCE) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                with contextlib.suppress(OSError):  # a server that has ended it already
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(1 << 16):
                    got += piece
        status = got[9:12]
        assert not status.startswith(b"5"), f"seed {seed}, request {number}: {got!r}\n{data!r}"
        seen[status] += 1
    return seen


def main(words: list[str]) -> None:
    wire = words[:1] == ["--wire"]
    numbers = [int(word) for word in words[wire:]]
    count = numbers[0] if numbers else 10_000
    seed = numbers[1] if len(numbers) > 1 else 1
    if wire:
        host, _, port = input("HOST:PORT of the server? ").rpartition(":")
        print(dict(to_server(count, seed, (host, int(port)))))
        return
    with tempfile.TemporaryDirectory(prefix="layerstore-odd-") as path:
        print(dict(asyncio.run(to_application(count, seed, f"{path}/store"))))


if __name__ == "__main__":
    main(sys.argv[1:])
