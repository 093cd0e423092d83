"""A registry in memory that can be told to misbehave, a token server, and a proxy: all on loopback.

`Upstream.odd` is asked first for each request: what it does not answer (by returning False) is answered
as the specification says. Every request is remembered, with its headers.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import re
import secrets
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """A client that went away is part of the tests."""


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Upstream:
    """Blobs and manifests by repository and digest; tags by `(repository, tag)`."""

    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[tuple[str, str], str] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    odd: Callable[[Handler, Seen], bool] = lambda handler, seen: False
    referrers: bool = True
    mounts: bool = True
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, repository: str, image, tag: str | None = None) -> str:
        """An image of `oci_make`, or anything with `data`, `blobs`, `media_type` and `digest`."""
        for digest, data in image.blobs.items():
            self.blobs[repository, digest] = data
        self.put(repository, image.data, image.media_type, tag)
        return image.digest

    def put(self, repository: str, data: bytes, media_type: str, tag: str | None = None) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.manifests[repository, digest] = (media_type, data)
        if tag is not None:
            self.tags[repository, tag] = digest
        return digest

    def asked(self, method: str, pattern: str) -> list[Seen]:
        return [s for s in self.seen if s.method == method and re.search(pattern, s.path)]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Upstream
    disable_nagle_algorithm = True

    def log_message(self, format, *args) -> None:
        """Nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": "the test says so"}]}).encode()
        self.answer(status, body, Content_Type="application/json")

    def cut(self) -> None:
        """Ends the connection, as a crash would."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self) -> None:
        seen = Seen(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        with self.state.lock:
            self.state.seen.append(seen)
        if not self.state.odd(self, seen):
            self.good(seen)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

    def good(self, seen: Seen) -> None:
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        if parts.path == "/v2/":
            return self.answer(200, b"{}")
        match = re.match(
            r"/v2/(.+?)/(blobs/uploads|blobs|manifests|tags|referrers)/(.*)$", parts.path
        )
        if match is None:
            return self.error(404, "UNSUPPORTED")
        name, kind, what = match.groups()
        return getattr(self, "_" + kind.replace("/", "_"))(name, what, query, seen)

    def _tags(self, name: str, what: str, query: dict[str, str], seen: Seen) -> None:
        tags = sorted(tag for repository, tag in self.state.tags if repository == name)
        if not tags:
            return self.error(404, "NAME_UNKNOWN")
        tags = [tag for tag in tags if tag > query.get("last", "")]
        more = {}
        if len(tags) > 2:  # pages of two
            tags = tags[:2]
            more = {"Link": f'</v2/{name}/tags/list?n=2&last={tags[-1]}>; rel="next"'}
        return self.answer(200, json.dumps({"name": name, "tags": tags}).encode(), **more)

    def _referrers(self, name: str, what: str, query: dict[str, str], seen: Seen) -> None:
        if not self.state.referrers:
            return self.error(404, "UNSUPPORTED")
        found = []
        for (repository, digest), (kind, data) in self.state.manifests.items():
            if repository == name and json.loads(data).get("subject", {}).get("digest") == what:
                found.append({"mediaType": kind, "digest": digest, "size": len(data)})
        kind = "application/vnd.oci.image.index.v1+json"
        value = {"schemaVersion": 2, "mediaType": kind, "manifests": found}
        return self.answer(200, json.dumps(value).encode(), Content_Type=kind)

    def _manifests(self, name: str, what: str, query: dict[str, str], seen: Seen) -> None:
        if seen.method == "PUT":
            data = self.body()
            digest = self.state.put(name, data, self.headers["Content-Type"])
            if ":" not in what:
                self.state.tags[name, what] = digest
            more = {}
            if self.state.referrers and "subject" in json.loads(data):
                more = {"OCI_Subject": json.loads(data)["subject"]["digest"]}
            return self.answer(201, Docker_Content_Digest=digest, **more)
        digest = what if ":" in what else self.state.tags.get((name, what), "")
        found = self.state.manifests.get((name, digest))
        if found is None:
            return self.error(404, "MANIFEST_UNKNOWN")
        return self.answer(200, found[1], Content_Type=found[0], Docker_Content_Digest=digest)

    def _blobs(self, name: str, what: str, query: dict[str, str], seen: Seen) -> None:
        data = self.state.blobs.get((name, what))
        if data is None:
            return self.error(404, "BLOB_UNKNOWN")
        self.serve_blob(data, seen)
        return None

    def serve_blob(self, data: bytes, seen: Seen, *, stop: int | None = None) -> None:
        """A blob, or the range of it; `stop`: so many bytes and then a cut connection."""
        first = 0
        match = re.fullmatch(r"bytes=(\d+)-", seen.range or "")
        self.send_response(206 if match else 200)
        if match:
            first = int(match[1])
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        body = data[first:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if stop is None else body[:stop])
            if stop is not None:
                self.cut()

    def _blobs_uploads(self, name: str, what: str, query: dict[str, str], seen: Seen) -> None:
        state = self.state
        if seen.method == "POST":
            mounted, source = query.get("mount"), query.get("from")
            if state.mounts and mounted and (source, mounted) in state.blobs:
                state.blobs[name, mounted] = state.blobs[source, mounted]
                return self.answer(201, Docker_Content_Digest=mounted)
            upload = secrets.token_hex(8)
            state.uploads[upload] = bytearray()
            return self.answer(202, Location=f"/v2/{name}/blobs/uploads/{upload}?state=x")
        upload = state.uploads.get(what)
        if upload is None:
            return self.error(404, "BLOB_UPLOAD_UNKNOWN")
        here = {"Location": f"/v2/{name}/blobs/uploads/{what}?state=y"}
        if seen.method == "GET":
            return self.answer(204, Range=f"0-{max(0, len(upload) - 1)}", **here)
        text = self.headers.get("Content-Range")
        if text and int(text.partition("-")[0]) != len(upload):
            return self.error(416, "BLOB_UPLOAD_INVALID")
        upload += self.body()
        if seen.method == "PATCH":
            return self.answer(202, Range=f"0-{len(upload) - 1}", **here)
        digest = query["digest"]
        if digest != "sha256:" + hashlib.sha256(upload).hexdigest():
            return self.error(400, "DIGEST_INVALID")
        state.blobs[name, digest] = bytes(upload)
        del state.uploads[what]
        return self.answer(201, Docker_Content_Digest=digest)


@contextlib.contextmanager
def running(handler: type[Handler], context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = Server(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def upstream(context: ssl.SSLContext | None = None) -> Iterator[Upstream]:
    """A registry that runs."""
    state = Upstream()
    with running(type("Bound", (Handler,), {"state": state}), context) as port:
        state.port = port
        yield state


@dataclass
class Tokens:
    """A token server: who may have which token, and what was asked."""

    users: dict[str, str] = field(default_factory=dict)
    identity: str | None = None
    life: int | None = 300
    given: list[dict[str, list[str]]] = field(default_factory=list)
    valid: set[str] = field(default_factory=set)
    status: int = 200
    port: int = 0

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    def guard(self, handler: Handler, seen: Seen) -> bool:
        """To be an upstream's `odd`: asks for a token."""
        if seen.headers.get("authorization", "").removeprefix("Bearer ") in self.valid:
            return False
        handler.body()
        challenge = f'Bearer realm="{self.realm}",service="the, service"'
        handler.send_response(401)
        handler.send_header("WWW-Authenticate", challenge)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True


@contextlib.contextmanager
def token_server() -> Iterator[Tokens]:
    state = Tokens()

    class Token(Handler):
        def handle_any(self) -> None:
            data = self.body()
            query = parse_qs(data.decode() if data else urlsplit(self.path).query)
            query["method"] = [self.command]
            state.given.append(query)
            if state.status != 200:
                return self.answer(state.status)
            if data:
                allowed = query.get("refresh_token") == [state.identity]
            else:
                text = self.headers.get("Authorization", "").removeprefix("Basic ")
                user, _, password = base64.b64decode(text).decode().partition(":")
                allowed = not state.users or state.users.get(user) == password
            if not allowed:
                return self.answer(401)
            token = f"token-{len(state.given)}"
            state.valid.add(token)
            value = {"token": token} | ({} if state.life is None else {"expires_in": state.life})
            return self.answer(200, json.dumps(value).encode())

        do_GET = do_POST = handle_any

    with running(Token) as port:
        state.port = port
        yield state


@dataclass
class Proxy:
    """`seen`: what it was asked for; `names`: where hosts really are."""

    names: dict[str, int] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0


@contextlib.contextmanager
def proxy() -> Iterator[Proxy]:
    """An HTTP proxy: absolute URLs, and CONNECT."""
    state = Proxy()

    class Forward(Handler):
        def do_CONNECT(self) -> None:
            state.seen.append(("CONNECT", self.path))
            host = self.path.rpartition(":")[0]
            with socket.create_connection(("127.0.0.1", state.names[host])) as there:
                self.send_response(200)
                self.end_headers()

                def pump(a: socket.socket, b: socket.socket) -> None:
                    with contextlib.suppress(OSError):
                        while data := a.recv(1 << 16):
                            b.sendall(data)
                        b.shutdown(socket.SHUT_WR)

                back = threading.Thread(target=pump, args=(there, self.connection))
                back.start()
                pump(self.connection, there)
                back.join()
            self.close_connection = True

        def handle_any(self) -> None:
            state.seen.append((self.command, self.path))
            parts = urlsplit(self.path)
            there = http.client.HTTPConnection("127.0.0.1", state.names[parts.hostname])
            headers = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy-")}
            there.request(self.command, parts.path, self.body() or None, headers)
            got = there.getresponse()
            data = got.read()
            self.send_response(got.status)
            for name, value in got.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            length = got.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)
            there.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = handle_any

    with running(Forward) as port:
        state.port = port
        yield state
