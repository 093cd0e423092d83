"""Several processes and threads on one store: every blob once, nobody waits for ever, maps grow."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import stores

from layerstore.errors import BusyError, LayerstoreError
from layerstore.layers.content import Content
from layerstore.storage import index as index_room
from layerstore.storage.storage import open_storage

SPAWN = multiprocessing.get_context("spawn")
BLOB = stores.tar_of({f"f{i}": stores.noise(i, 50_000) for i in range(60)})


def _run(target: object, arguments: list[tuple[object, ...]]) -> None:
    workers = [SPAWN.Process(target=target, args=a) for a in arguments]  # type: ignore[arg-type]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [w.exitcode for w in workers] == [0] * len(workers)


def _put_same(path: str, number: int) -> None:
    with stores.opened(path, timeout=60.0) as content:
        with content.operation() as op:
            op.put(BLOB, digest=stores.sha256(BLOB), media_type=stores.TAR)
            packed = stores.gzipped(BLOB[:300_000])
            op.put(packed, digest=stores.sha256(packed))
        stores.keep(content, f"n{number}", BLOB, stores.TAR)
        assert stores.get(content, stores.sha256(BLOB)) == BLOB


def test_one_blob_by_eight_processes(fast_path: Path) -> None:
    path = str(fast_path / "s")
    _run(_put_same, [(path, n) for n in range(8)])
    assert len(stores.raws(path)) == 1
    assert sum(os.path.getsize(p) for p in stores.packs(path)) < 1.02 * len(BLOB)
    with stores.opened(path) as content:
        with content.operation() as op:
            assert len(op.refs()) == 8
        stores.clean(content)


def _crowd(path: str, number: int) -> None:
    source = random.Random(number)
    with stores.opened(path, timeout=60.0) as content:
        mine: dict[str, tuple[str, bytes]] = {}
        for step in range(25):
            choice = source.random()
            if choice < 0.15:
                try:
                    stores.gc(content.storage, aggressive=choice < 0.05)
                except BusyError:
                    continue
            elif choice < 0.4 and mine:
                name = source.choice(sorted(mine))
                stores.untag(content, name)
                del mine[name]
            else:
                # Shared by all: the same blobs come and go everywhere.
                data = stores.tar_of(
                    {f"s{i}": stores.words(i, 8000) for i in source.sample(range(12), 4)}
                )
                name = f"p{number}s{step}"
                stores.keep(content, name, data, stores.TAR)
                mine[name] = (stores.sha256(data), data)
            for digest, data in mine.values():
                assert stores.get(content, digest) == data


def test_a_crowd(fast_path: Path) -> None:
    path = str(fast_path / "s")
    open_storage(path).close()
    _run(_crowd, [(path, n) for n in range(4)])
    with stores.opened(path) as content:
        stores.clean(content)
        stores.gc(content.storage, aggressive=True)
        stores.clean(content)


def test_a_crowd_of_threads(fast_path: Path) -> None:
    """One handle, one operation each; and one operation shared by all."""
    errors: list[BaseException] = []
    with stores.opened(str(fast_path / "s")) as content, content.operation() as shared:

        def work(number: int) -> None:
            source = random.Random(number)
            try:
                for step in range(12):
                    data = stores.tar_of(
                        {f"s{i}": stores.words(i, 20_000) for i in source.sample(range(12), 5)}
                    )
                    if step % 2:
                        info = shared.put(data, media_type=stores.TAR)
                    else:
                        with content.operation() as op:
                            info = op.put(data, digest=stores.sha256(data), media_type=stores.TAR)
                    assert stores.get(content, info.digest) == data
                    if number == 0 and step % 3 == 0:
                        stores.gc(content.storage)
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        stores.clean(content)


def _grow(path: str, number: int) -> None:
    storage = open_storage(path, timeout=60.0, map_size=1 << 20)
    content = Content(storage)
    for step in range(20):
        # Many small files: the rows are what grows.
        files = {f"{number}/{step}/{i}": b"%d %d %d" % (number, step, i) for i in range(400)}
        data = stores.tar_of(files)
        stores.keep(content, f"p{number}s{step}", data, stores.TAR)
        if step % 7 == 0 and number == 0:
            stores.gc(storage)
        assert stores.get(content, stores.sha256(data)) == data
    storage.close()


def test_the_map_grows_in_every_process(fast_path: Path) -> None:
    path = str(fast_path / "s")
    open_storage(path, map_size=1 << 20).close()
    _run(_grow, [(path, n) for n in range(3)])
    assert os.path.getsize(os.path.join(path, "index", "data.mdb")) > 2 << 20
    storage = open_storage(path, map_size=1 << 20)
    stores.clean(Content(storage))
    storage.close()


def test_the_map_grows_beneath_threads(fast_path: Path) -> None:
    errors: list[BaseException] = []
    storage = open_storage(str(fast_path / "s"), map_size=1 << 20, timeout=30.0)
    content = Content(storage)

    def work(number: int) -> None:
        try:
            for step in range(12):
                files = {
                    f"{number}/{step}/{i}": b"%d %d %d" % (number, step, i) for i in range(400)
                }
                data = stores.tar_of(files)
                digest = stores.put(content, data, stores.TAR)
                assert stores.get(content, digest) == data
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    stores.clean(content)
    storage.close()


def test_a_forked_child_may_not_use_the_handle(where: str) -> None:
    data = stores.words(1, 100_000)
    with stores.opened(where) as content:
        stores.keep(content, "a", data)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                content.storage.operation()
            except LayerstoreError as e:
                code = 0 if "fork" in str(e) else 2
            content.storage.close()
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        # The child's close ended neither the session nor the locks of its parent.
        assert len(os.listdir(os.path.join(where, "sessions"))) == 1
        with stores.opened(where) as other:
            stores.untag(other, "a")
        assert stores.put(content, data + b"x")
        stores.clean(content)


def test_a_forked_child_opens_its_own(where: str) -> None:
    data = stores.words(1, 100_000)
    with stores.opened(where) as content:
        stores.keep(content, "a", data)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with stores.opened(where) as own:
                    stores.keep(own, "b", data + b"b")
                    code = 0 if stores.get(own, stores.sha256(data)) == data else 3
            except BaseException as e:
                os.write(2, repr(e).encode())
                code = 2
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert stores.get(content, stores.sha256(data + b"b")) == data + b"b"


def test_a_session_outlived_by_a_forked_child(where: str) -> None:
    """A child that goes on running does not keep its parent's session alive."""
    code = (
        "import os, sys, time\n"
        "import stores\n"
        "context = stores.opened(sys.argv[1])\n"
        "content = context.__enter__()\n"
        "stores.put(content, stores.noise(1, 50_000))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.close(1)\n"
        "    time.sleep(20)\n"
        "    os._exit(0)\n"
        "print(child, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    import layerstore

    root = os.path.dirname(os.path.dirname(os.path.abspath(layerstore.__file__)))
    tests = os.path.dirname(os.path.abspath(stores.__file__))
    done = subprocess.run(
        [sys.executable, "-c", code, where],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{root}:{tests}"},
        check=False,
    )
    child = int(done.stdout)
    try:
        with stores.opened(where) as content:
            assert stores.gc(content.storage).removed_blobs == 1
    finally:
        os.kill(child, 9)


@pytest.mark.needs("root")
def test_two_pid_namespaces(where: str) -> None:
    """LMDB knows readers by pid: the second process 1 is told what is wrong and what to do."""
    import layerstore

    root = os.path.dirname(os.path.dirname(os.path.abspath(layerstore.__file__)))
    code = (
        "import os, sys\n"
        "from layerstore.storage.storage import open_storage\n"
        "from layerstore.errors import BusyError\n"
        "assert os.getpid() == 1\n"
        "try:\n"
        "    storage = open_storage(sys.argv[1])\n"
        "    with storage.operation() as op: op.find('sha256:' + '00' * 32)\n"
        "except BusyError as e:\n"
        "    assert e.same_pid\n"
        "    print('busy', e, flush=True)\n"
        "    sys.exit(0)\n"
        "print('open', flush=True)\n"
        "sys.stdin.readline()\n"
        "storage.close()\n"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code, where]
    environment = {**os.environ, "PYTHONPATH": root}
    first = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    second = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    first.communicate("\n", timeout=30)
    assert second.stdout.startswith("busy"), second.stderr
    assert "pid namespace" in second.stdout
    assert "child process" in second.stdout
    assert first.returncode == second.returncode == 0
    with stores.opened(where) as content:
        stores.clean(content)


def test_nested_reads_do_not_lock_up_a_growing_map(where: str) -> None:
    """A transaction within another of the same thread must not wait for a resize that waits for it."""
    with stores.opened(where) as content:
        index = content.storage.index
        shared = index._shared
        assert isinstance(shared, index_room._Environment)
        inside, done = threading.Event(), threading.Event()

        def resize() -> None:
            inside.wait(10)
            shared.resize(0)
            done.set()

        thread = threading.Thread(target=resize)
        thread.start()
        with index.read():
            inside.set()
            while not shared._resizing:
                pass
            with index.read() as snapshot:
                assert snapshot.sequence > 0
        thread.join(10)
        assert done.is_set()


def test_the_gate_has_a_timeout(where: str) -> None:
    with stores.opened(where, timeout=0.2) as content, stores.opened(where) as other:
        held, free = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            held.set()
            free.wait(20)

        thread = threading.Thread(target=lambda: other.storage.index.update(hold))
        thread.start()
        held.wait(20)
        with pytest.raises(BusyError, match="writer gate"):
            stores.keep(content, "a", b"1")
        free.set()
        thread.join()
        stores.keep(content, "a", b"1")
