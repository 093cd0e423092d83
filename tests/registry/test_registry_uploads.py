"""Uploads that do not go as they should: two clients in one, lengths that lie, ends that are no end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry.asgi import Client
from registry.soak import Client as Http
from registry.soak import digest_of
from registry.test_mirror_workers import later
from registry.test_registry_operation import awaited
from registry.test_registry_server import serving
from registry.test_registry_wire import connect

import layerstore
from layerstore import StoreFullError
from layerstore.core.hashing import blake3
from layerstore.registry import Registry
from layerstore.storage import leases
from layerstore.storage.index import Table
from layerstore.storage.operation import Operation
from layerstore.storage.raws import PieceHasher
from layerstore.storage.rows import PIECE, PIECE_HASH, dump
from layerstore.storage.uploads import SPARES

__all__ = ["later"]
UPLOADS = "/v2/a/b/blobs/uploads/"
SIZE = 70_001


def files_of(store) -> list[str]:
    return os.listdir(os.path.join(store.path, "uploads"))


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("served") / "store"


@pytest.fixture(scope="module")
def url(served):
    with serving(served) as (_, where):
        yield where


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def file_of(store: Path, location: str) -> Path:
    """What has come of an upload."""
    return store / "uploads" / location.rpartition("/")[2][:16]


def test_two_clients_in_one_upload(url, served):
    """The second is told so at once, whatever it wants; the first goes on."""
    data, other = os.urandom(3_000_000), Http(port_of(url))
    where = other("POST", UPLOADS)[1]["location"]
    with connect(url) as first:
        first.sendall(
            f"PATCH {where} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        first.sendall(data[:2_000_000])
        awaited(lambda: file_of(served, where).stat().st_size)
        digest = digest_of(data)
        status, headers, _ = other("GET", where)  # who only asks is answered, and in nobody's way
        assert status == 204
        assert 0 <= int(headers["range"].removeprefix("0-")) < len(data)
        for method, path, body in (
            ("PATCH", where, b"y"),
            ("PUT", f"{where}?digest={digest}", data),
            ("DELETE", where, None),
        ):
            status, _, said = other(method, path, body)
            assert status == 409, said
            assert b"BLOB_UPLOAD_INVALID" in said
        first.sendall(data[2_000_000:])
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 202 ")
    assert other("PUT", f"{where}?digest={digest}", b"")[0] == 201
    assert other("GET", f"/v2/a/b/blobs/{digest}")[2] == data


def test_who_asks_how_much_has_come_makes_no_writer_fail(url):
    """Clients that ask without a pause, beside one that writes piece after piece."""
    client, over = Http(port_of(url)), threading.Event()
    where = client("POST", UPLOADS)[1]["location"]
    said: list[tuple[int, int]] = []

    def ask() -> None:
        asking = Http(port_of(url))
        while not over.is_set():
            status, headers, _ = asking("GET", where)
            said.append((status, int(headers.get("range", "0-0").removeprefix("0-")) + 1))
        asking.close()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    data = b""
    for n in range(100):
        piece = bytes([n]) * (n + 1)
        span = f"{len(data)}-{len(data) + n}"
        assert client("PATCH", where, piece, content_range=span)[0] == 202, n
        data += piece
    over.set()
    for thread in threads:
        thread.join()
    assert len(said) > 50
    assert {status for status, _ in said} == {204}
    # Of a piece that is being written a part may be there.
    assert {size for _, size in said} <= set(range(1, len(data) + 1))
    assert client("PUT", f"{where}?digest={digest_of(data)}")[0] == 201


def test_asking_keeps_an_upload(store, client):
    """It counts as a use; what has expired is not there, whether gc was there or not."""
    registry = client.application
    repository = registry.repository("a/b")
    where = client("POST", UPLOADS).headers["location"]
    upload = where.rpartition("/")[2]

    def since() -> float:
        with store._storage.index.read() as snapshot:
            return json.loads(snapshot.get(Table.LEASES, bytes.fromhex(upload[:16])))["since"]

    def made_older(seconds: float) -> None:
        def work(tx) -> None:
            key = bytes.fromhex(upload[:16])
            row = json.loads(tx.get(Table.LEASES, key))
            tx.put(Table.LEASES, key, dump({**row, "since": row["since"] - seconds}))

        store._storage.index.update(work)

    before = since()
    made_older(repository.idle / 2)
    assert client("GET", where).status == 204
    assert since() >= before
    made_older(repository.idle * 2)
    assert client("GET", where).status == 404
    with pytest.raises(layerstore.NotFoundError):
        registry.repository("a/other").upload_size(upload)


@given(st.lists(st.integers(0, 2 * PIECE + 1) | st.sampled_from((1, PIECE - 1, PIECE)), max_size=8))
def test_checksums_of_pieces_do_not_depend_on_how_they_come(lengths):
    data = memoryview(bytes(range(251)) * (sum(lengths) // 251 + 1))[: sum(lengths)]
    hashes, at = PieceHasher(), 0
    for length in lengths:
        hashes.update(data[at : at + length])
        at += length
    pieces = (data[n : n + PIECE] for n in range(0, len(data), PIECE))
    assert hashes.finish() == b"".join(blake3(piece)[:PIECE_HASH] for piece in pieces)


def test_uploads_that_were_left_take_little_memory(client):
    """What is remembered of each, to go on with it, is no part of its bytes."""
    data = os.urandom(200_000)

    def leave() -> None:
        where = client("POST", UPLOADS).headers["location"]
        assert client("PATCH", where, pieces=[data], cut=True) is None

    leave()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(32):
            leave()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 32 * 8192


def test_what_is_drawn_for_uploads_ahead_is_bounded(tmp_path):
    """However many begin and come to nothing here, or are finished by a handle that begins none."""
    with layerstore.open(tmp_path / "store") as begins, layerstore.open(tmp_path / "store") as ends:
        where = begins.repository("a")
        for number in range(3 * SPARES):
            upload = where.upload()
            upload.write(b"%5000d" % number)
            upload.close()
            if number % 2:
                ends.repository("a").resume(upload.id).commit()
        assert len(begins._storage.spares._serials) <= SPARES
        assert not ends._storage.spares._ids
        with begins._storage.index.read() as snapshot:
            kinds = [json.loads(value)["kind"] for _, value in snapshot.items(Table.LEASES)]
        # Those that are open, and what is left of the last draw.
        assert kinds.count("upload") <= 3 * SPARES / 2 + SPARES


def test_thousands_of_uploads_that_were_left_go_in_few_commits(store, later, monkeypatch):
    repository = store.repository("a", idle=60.0)
    for _ in range(300):
        repository.upload().close()
    later(61)
    commits = []
    real = type(store._storage.index).update

    def counted(self, work):
        commits.append(work)
        return real(self, work)

    monkeypatch.setattr(type(store._storage.index), "update", counted)
    store.gc()
    assert len(commits) < 20
    assert files_of(store) == []
    with store._storage.index.read() as snapshot:
        kinds = [json.loads(value)["kind"] for _, value in snapshot.items(Table.LEASES)]
    assert "upload" not in kinds


@settings(max_examples=15)
@given(st.lists(st.integers(0, 12), max_size=6), st.integers(2, 9))
def test_leases_go_by_so_many_rows_at_a_time(store_of_module, held, limit):
    index = store_of_module._storage.index
    keys = [bytes([1, number]) + bytes(6) for number in range(len(held))]
    kept = bytes([2]) + bytes(7)

    def make(tx) -> None:
        for lease, count in zip([*keys, kept], [*held, 3], strict=True):
            leases.create_upload(tx, lease, 60.0)
            for serial in range(count):
                tx.put(Table.HOLDS, leases.hold_key(lease, serial), b"")

    def rows() -> int:
        with index.read() as snapshot:
            return sum(1 for table in (Table.LEASES, Table.HOLDS) for _ in snapshot.items(table))

    before = rows()
    index.update(make)
    left = keys
    while left:
        there = rows()
        gone = index.update(lambda tx, left=left: leases.drop_some(tx, left, limit))
        assert 0 < there - rows() <= limit
        left = left[gone:]
    assert rows() == before + 4
    while not index.update(lambda tx: leases.drop(tx, kept, limit)):
        pass
    assert rows() == before


@pytest.fixture(scope="module")
def store_of_module(tmp_path_factory):
    with layerstore.open(tmp_path_factory.mktemp("leases") / "store") as opened:
        yield opened


def test_many_clients_in_one_upload_leave_it_whole(url, served):
    """Each piece is taken once and whole, or refused."""
    other = Http(port_of(url))
    where = other("POST", UPLOADS)[1]["location"]
    taken: list[bytes] = []
    mutex = threading.Lock()

    def write(number: int) -> None:
        client = Http(port_of(url))
        for turn in range(8):
            piece = bytes([number * 8 + turn]) * SIZE
            status = client("PATCH", where, piece)[0]
            assert status in (202, 409)
            if status == 202:
                with mutex:
                    taken.append(piece)
        client.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = file_of(served, where).read_bytes()
    pieces = [whole[at : at + SIZE] for at in range(0, len(whole), SIZE)]
    assert pieces
    assert sorted(pieces) == sorted(taken)
    digest = digest_of(whole)
    assert other("PUT", f"{where}?digest={digest}", b"")[0] == 201
    assert other("GET", f"/v2/a/b/blobs/{digest}")[2] == whole


@pytest.mark.parametrize("much", [-1, 1, 1000])
def test_a_whole_body_of_another_length_is_no_blob(client, store, much):
    data = os.urandom(5000)
    path = f"{UPLOADS}?digest={digest_of(data)}"
    answer = client("POST", path, data, headers={"content-length": str(len(data) + much)})
    assert (answer.status, answer.code) == (400, "SIZE_INVALID")
    assert client("HEAD", f"/v2/a/b/blobs/{digest_of(data)}").status == 404
    assert files_of(store) == []


def test_a_body_that_ends_before_its_length_is_no_blob(url):
    data, other = os.urandom(50_000), Http(port_of(url))
    with connect(url) as connection:
        head = f"POST {UPLOADS}?digest={digest_of(data)} HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(f"{head}Content-Length: {len(data) + 1}\r\n\r\n".encode() + data)
    assert other("HEAD", f"/v2/a/b/blobs/{digest_of(data)}")[0] == 404


def test_a_body_that_is_longer_than_its_length_is_no_blob(url):
    """What is beyond is no part of it, and no request."""
    data, other = os.urandom(50_000), Http(port_of(url))
    with connect(url) as connection:
        head = f"POST {UPLOADS}?digest={digest_of(data)} HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(f"{head}Content-Length: {len(data) - 1}\r\n\r\n".encode() + data)
        got = connection.recv(1 << 16)
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b" 201 " not in got
    assert other("HEAD", f"/v2/a/b/blobs/{digest_of(data)}")[0] == 404


def test_an_upload_that_is_finished_is_over(client, store):
    data = os.urandom(5000)
    path = client("POST", UPLOADS).headers["location"]
    digest = digest_of(data)
    assert client("PUT", f"{path}?digest={digest}", data).status == 201
    for method, target in (
        ("PUT", f"{path}?digest={digest}"),
        ("PATCH", path),
        ("GET", path),
        ("DELETE", path),
    ):
        answer = client(method, target, b"more")
        assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN"), method
    assert client("GET", f"/v2/a/b/blobs/{digest}").body == data
    assert files_of(store) == []


@pytest.mark.parametrize("size", [100, 600_000])
def test_a_commit_that_fails_leaves_the_upload(client, store, monkeypatch, size):
    """A disk that is full at the last moment: the client tries again later, with nothing to send."""
    data = os.urandom(size)
    path = client("POST", UPLOADS).headers["location"]
    assert client("PATCH", path, data).status == 202

    def full(*args, **named):
        raise StoreFullError("no space left (injected)")

    finish = f"{path}?digest={digest_of(data)}"
    with monkeypatch.context() as patched:
        patched.setattr(Operation, "commit", full)
        assert client("PUT", finish).status == 507
    assert client("GET", path).headers["range"] == f"0-{size - 1}"
    assert client("PUT", finish).status == 201
    assert client("GET", f"/v2/a/b/blobs/{digest_of(data)}").body == data
    assert files_of(store) == []
    assert store.check(full=True).ok


def test_a_commit_that_fails_lets_more_come(client, store, monkeypatch):
    data = os.urandom(600_000)
    path = client("POST", UPLOADS).headers["location"]
    client("PATCH", path, data[:300_001])

    def full(*args, **named):
        raise StoreFullError("no space left (injected)")

    with monkeypatch.context() as patched:
        patched.setattr(Operation, "commit", full)
        assert client("PUT", f"{path}?digest={digest_of(data[:300_001])}").status == 507
    assert client("PUT", f"{path}?digest={digest_of(data)}", data[300_001:]).status == 201
    assert client("GET", f"/v2/a/b/blobs/{digest_of(data)}").body == data
    assert store.check(full=True).ok


DIES = """
import os, sys
sys.path.insert(0, sys.argv[2])
import layerstore
from layerstore.registry import Registry
from layerstore.storage.operation import Operation
from registry.asgi import Client
from registry.soak import digest_of
with layerstore.open(sys.argv[1]) as store:
    client = Client(Registry(store))
    data = bytes(range(256)) * 4000
    path = client("POST", "/v2/a/b/blobs/uploads/").headers["location"]
    assert client("PATCH", path, data).status == 202
    print(path, flush=True)
    commit = Operation.commit
    def die(*args, **named):
        if sys.argv[3] == "after":
            commit(*args, **named)
        os._exit(9)
    Operation.commit = die
    client("PUT", f"{path}?digest={digest_of(data)}")
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_dies_at_the_commit_has_lost_no_upload(tmp_path, when):
    """Nothing has to be sent twice: either the upload is there, or the blob is."""
    command = [sys.executable, "-c", DIES, tmp_path / "store", Path(__file__).parents[1], when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 9, done.stderr
    path, data = done.stdout.strip(), bytes(range(256)) * 4000
    with layerstore.open(tmp_path / "store") as store:
        store.gc()
        client = Client(Registry(store))
        if when == "before":
            assert client("GET", path).headers["range"] == f"0-{len(data) - 1}"
            more = data + b"more"
            assert client("PUT", f"{path}?digest={digest_of(more)}", b"more").status == 201
            assert client("GET", f"/v2/a/b/blobs/{digest_of(more)}").body == more
        else:
            # What is a blob now is not to be written any more.
            assert client("PATCH", path, b"more").status == 404
            assert client("GET", f"/v2/a/b/blobs/{digest_of(data)}").body == data
        store.gc()
        assert files_of(store) == []
        report = store.check(full=True)
        assert report.ok
        raw = Path(store.path, "raw")
        assert len([path for path in raw.rglob("*") if path.is_file()]) == 1


# ---- mounts from wherever ---------------------------------------------------------------------


def test_a_mount_from_anywhere_asks_the_neighbours_first_and_not_for_ever(
    client, store, monkeypatch
):
    """256 names at most, whether what is wanted is there, elsewhere or nowhere."""
    data = b"which one has, and another too"
    digest = digest_of(data)
    for number in range(300):
        store.repository(f"m/r{number:03}").put_blob(b"{}")
    for name in ("a/far", "z/near"):
        store.repository(name).put_blob(data)
    asked: list[str] = []

    def may_pull(name: str) -> bool:
        asked.append(name)
        return True

    assert store.repository("z/app").mount_any(digest, may_pull) == len(data)
    assert asked == ["z/near"]
    asked.clear()
    # Behind "n" comes "z", then it begins anew with "a".
    assert store.repository("n/app").mount_any(digest, lambda name: name < "z") == len(data)
    counts = []
    for wanted in (digest, digest_of(b"nobody has it")):
        asked.clear()
        assert store.repository("m/app").mount_any(wanted, may_pull) is None
        counts.append(len(asked))
    assert counts == [256, 256]
    answer = client("POST", f"/v2/z/other/blobs/uploads/?mount={digest}")
    assert answer.status == 201
    assert client("GET", f"/v2/z/other/blobs/{digest}").body == data
