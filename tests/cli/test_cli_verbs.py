"""What each verb asks of the store, prints, and makes of what goes wrong; on canned values."""

from __future__ import annotations

import errno
import io
import json
import sys

import fake_store
import pytest
from fake_store import DIGEST, FakeStore
from json_documents import CONTENT, DOCUMENTS, ERROR, KINDS, PAGE, page, problems

import layerstore
from layerstore.cli import main
from layerstore.cli.completion import _walk


class Result:
    def __init__(self, code: int, out: bytes, err: str) -> None:
        self.code, self.out, self.err = code, out.decode("utf-8", "replace"), err
        self.bytes = out

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(capfdbinary, monkeypatch):
    for name in ("LAYERSTORE_LEASE", "LAYERSTORE_DIR"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv: str, store: FakeStore | None = None, **hooks) -> Result:
        code = main(argv, open_store=(store or FakeStore(**hooks)).open)
        out, err = capfdbinary.readouterr()
        return Result(code, out, err.decode())

    return run


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """`serve` ends at once; tests/registry runs it."""

    def at_once(store, address, *, ready, **options) -> None:
        ready("http://127.0.0.1:5000")

    monkeypatch.setattr("layerstore.cli.verbs_serve.run", at_once)


COMMANDS = {
    "import": ["oci:layout:v1", "app:1"],
    "export": ["app:1", "oci:layout"],
    "pull": ["localhost:5000/app:1", "app:1"],
    "push": ["app:1", "localhost:5000/app:1"],
    "copy": ["docker://localhost:5000/app:1", "oci:layout"],
    "checkout": ["app:1", "rootfs"],
    "images": [],
    "inspect": ["app:1"],
    "history": ["app:1"],
    "tag": ["app:1", "app:2"],
    "untag": ["app:1", "app:2"],
    "ls": ["app:1"],
    "cat": ["app:1", "/etc/hostname"],
    "diff": ["old", "new"],
    "commit": ["app:1", "app:2"],
    "bundle": ["app:1", "out"],
    "snapshot prepare": ["web-1", "app:1"],
    "snapshot view": ["web-1", "app:1"],
    "snapshot mount": ["web-1", "/m"],
    "snapshot unmount": ["web-1"],
    "snapshot diff": ["web-1"],
    "snapshot commit": ["web-1", "app:2"],
    "snapshot usage": ["web-1"],
    "snapshot rm": ["web-1", "web-2"],
    "snapshot ls": [],
    "blob cat": [DIGEST],
    "blob put": [__file__],
    "blob stat": [DIGEST],
    "blob ls": [],
    "lease create": [],
    "lease ls": [],
    "lease rm": ["8c1f"],
    "optimize": ["app:1"],
    "gc": [],
    "check": [],
    "serve": ["--listen", "127.0.0.1:0"],
    "stats": ["--images"],
    "completion": ["bash"],
    "version": [],
}


def test_every_verb_is_here_and_described():
    leaves = {path for path, verb in _walk() if not verb.verbs}
    assert leaves == set(COMMANDS) == set(DOCUMENTS) | CONTENT


def test_the_page_says_what_the_table_says():
    assert PAGE.read_text() == page(), "python tests/cli/json_documents.py writes it anew"


@pytest.mark.parametrize("verb", DOCUMENTS)
def test_the_json_document_of_every_verb(verb, run):
    result = run("--json", *verb.split(), *COMMANDS[verb])
    assert result.code == (3 if verb == "check" else 0)
    assert problems(result.json, DOCUMENTS[verb]) == []
    assert result.err == ""


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_closes_the_store_and_prints_nothing_dangerous(verb, run):
    store = FakeStore()
    result = run(*verb.split(), *COMMANDS[verb], store=store)
    assert store.closed == len(store.opened)
    assert "\x1b" not in result.out
    assert "\x1b" not in result.err


def test_problems_are_found():
    keys = DOCUMENTS["tag"]
    assert problems({"name": "a", "digest": "b"}, keys) == []
    assert problems({"name": "a"}, keys) == ["digest: missing"]
    assert problems({"name": 1, "digest": "b", "x": 0}, keys) == [
        "name: 1 is no string",
        "x: not described",
    ]
    assert problems({"images": [{"name": "a", "digest": "b"}]}, DOCUMENTS["export"]) == [
        "images[].bytes: missing"
    ]
    assert problems({"id": "x", "ttl": True}, DOCUMENTS["lease create"]) != []


# What each verb hands to the store


def test_import_hands_everything_on(run):
    store = FakeStore()
    words = ("--all", "--strict", "--defer", "--inflate-limit", "10G", "--platform", "linux/arm64")
    words += ("--creds", "a:b", "--authfile", "f", "--tls-verify", "false", "--cert-dir", "d")
    for verb, place in (("import", "docker://h.lan/x"), ("pull", "h.lan/x")):
        run(verb, *words, place, "pre/", store=store)
        args, options = store.asked("import_images")
        assert args == ("docker://h.lan/x", "pre/")
        assert callable(options.pop("progress"))
        assert options.pop("inflate_limit") == 10 << 30
        remote = layerstore.RemoteOptions("a:b", "f", False, "d")
        assert options.pop("remote") == remote
        assert "a:b" not in repr(remote)
        assert options == {"all": True, "strict": True, "defer": True, "platform": "linux/arm64"}
        assert store.opened[-1]["create"] is True


def test_push_goes_where_the_name_says_or_it_is_told(run):
    store = FakeStore()
    run("push", "h.lan/app:1", store=store)
    assert store.asked("export_images")[0] == (["h.lan/app:1"], "docker://h.lan/app:1")
    run("push", "app:1", "docker://h.lan/b", "--referrers", store=store)
    assert store.asked("export_images")[0] == (["app:1"], "docker://h.lan/b")
    assert store.asked("export_images")[1]["referrers"] is True


def test_copy_speaks_to_each_side_as_it_is_told(run):
    store = FakeStore()
    words = ("--src-creds", "a:b", "--dest-tls-verify", "false", "--all")
    run("copy", "docker://h.lan/a", "docker://i.lan/a", *words, store=store)
    args, options = store.asked("copy_images")
    assert args == ("docker://h.lan/a", "docker://i.lan/a")
    assert options["source_remote"] == layerstore.RemoteOptions("a:b")
    assert options["target_remote"] == layerstore.RemoteOptions(tls_verify=False)
    assert options["all"] is True


MAKING = {"import", "pull", "copy", "diff", "blob put", "lease create", "serve"}


@pytest.mark.parametrize("verb", sorted(set(COMMANDS) - MAKING))
def test_other_verbs_never_make_a_store(verb, run):
    store = FakeStore()
    run(*verb.split(), *COMMANDS[verb], store=store)
    assert not any(options["create"] for options in store.opened)


def test_optimize_hands_everything_on(run):
    store = FakeStore()
    run("optimize", "app:1", "--max-time", "10m", "--max-corrections", "0.5%", "app:2", store=store)
    arguments, options = store.asked("optimize")
    assert arguments == (["app:1", "app:2"],)
    assert (options["max_time"], options["max_corrections"]) == (600, 0.005)
    run("optimize", store=store)
    assert store.asked("optimize")[1]["max_corrections"] == 0.02


def test_optimize_says_what_stays_and_why(run):
    result = run("optimize")
    assert "go 6: 4.8 MiB, recipe 700 B" in result.out
    assert "libzstd: zstd data is kept as it came" in result.out
    assert "the next optimize goes on" in result.err


def test_the_budget_for_copies_comes_from_option_or_environment(run, monkeypatch):
    store = FakeStore()
    run("images", "--raw-cache", "2G", store=store)
    monkeypatch.setenv("LAYERSTORE_RAW_CACHE", "1M")
    run("images", store=store)
    assert [options.get("raw_cache") for options in store.opened] == [2 << 30, 1 << 20]
    monkeypatch.setenv("LAYERSTORE_RAW_CACHE", "much")
    result = run("images", store=store)
    assert result.code == 2
    assert "LAYERSTORE_RAW_CACHE" in result.err


def test_gc_and_check_hand_their_budgets_on(run):
    store = FakeStore()
    limits = ("--max-used-space", "50G", "--min-free-space", "10G")
    run("gc", "--dry-run", "--max-time", "10m", "--max-repack-size", "1G", *limits, store=store)
    options = store.asked("gc")[1]
    del options["progress"]
    assert options == {
        "dry_run": True, "max_time": 600.0, "max_repack_size": 1 << 30, "aggressive": False,
        "max_used_space": 50 << 30, "min_free_space": 10 << 30,
    }  # fmt: skip
    words = ("--repair-from", "docker://h.lan/a", "--authfile", "f")
    run("check", "--full", "--max-time", "1h", *words, store=store)
    options = store.asked("check")[1]
    del options["progress"]
    assert options.pop("remote").authfile == "f"
    assert options == {
        "blocks": False, "full": True, "max_time": 3600.0, "repair_from": "docker://h.lan/a",
    }  # fmt: skip


def test_store_path_and_timeout_reach_the_store(run, monkeypatch):
    store = FakeStore()
    run("images", "--store", "/a", "--timeout", "2m", store=store)
    assert store.opened == [{"path": "/a", "create": False, "timeout": 120.0}]
    monkeypatch.setenv("LAYERSTORE_DIR", "/b")
    run("images", store=store)
    assert store.opened[1]["path"] == "/b"


def test_a_lease_is_used_by_verbs_that_put(run, monkeypatch):
    store = FakeStore()
    run("import", "oci:x", "--lease", "aa", store=store)
    assert store.asked("use_lease")[0] == ("aa",)
    monkeypatch.setenv("LAYERSTORE_LEASE", "bb")
    result = run("--json", "blob", "put", __file__, store=store)
    assert result.json["lease"] == "bb"
    assert store.asked("use_lease")[0] == ("bb",)
    assert not any(name == "lease" for name, _, _ in store.calls)
    assert run("--lease", "gone", "import", "oci:x").code == 4


def test_blob_put_without_a_lease_makes_one_of_an_hour(run):
    store = FakeStore()
    result = run("blob", "put", __file__, store=store)
    assert store.asked("lease")[1] == {"ttl": 3600.0}
    assert store.asked("use_lease")[0] == ("8c1f",)
    assert not any(name == "drop_lease" for name, _, _ in store.calls)
    assert result.out.startswith("sha256:")
    assert result.out.count("\n") == 1
    assert "lease 8c1f for 1h00m" in result.err


def test_blob_put_that_fails_leaves_no_lease(run):
    def put(*args, **options):
        raise layerstore.DigestMismatchError("wrong", expected="sha256:aa", got="sha256:bb")

    store = FakeStore(put=put)
    assert run("blob", "put", __file__, store=store).code == 1
    assert store.asked("drop_lease")[0] == ("8c1f",)


def test_blob_put_of_a_missing_file_does_not_touch_the_store(run):
    store = FakeStore()
    result = run("blob", "put", "/no/such/file", store=store)
    assert result.code == 1
    assert "/no/such/file" in result.err
    assert store.opened == []


def test_blob_put_reads_stdin(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x00data")))
    result = run("--json", "blob", "put", "-", "--media-type", "a/b")
    assert (result.json["bytes"], result.json["media_type"]) == (5, "a/b")


# What they print


def test_content_comes_out_byte_for_byte(run):
    assert run("blob", "cat", DIGEST).bytes == b"blob\x00\xff"
    assert run("cat", "app:1", "/x").bytes == b"content of /x"
    assert run("inspect", "--raw", "app:1").bytes == b'{"m":1}'
    assert run("--json", "inspect", "--config", "app:1").bytes == b'{"c":1}\n\xff'


def test_ls_looks_like_ls(run):
    assert run("ls", "app:1").out.splitlines() == [
        "drwxrwxrwt         0:0            0 1970-01-01T00:00:00Z bin",
        "-rwsr-xr-x    1000:100            5 2024-01-02T03:04:05Z bin/su",
        "lrw-r--r--         0:0            0 1970-01-01T00:00:00Z bin/sh -> dash",
        "crw-r--r--         0:0          1,3 1970-01-01T00:00:00Z dev/null",
        "-rw-r--r--         0:0            5 @-1000000000000000019884624838656 "
        "etc/\\x1b[31mred\\x0aline\\xff",
    ]


def test_json_keeps_hostile_names_whole(run):
    entries = run("--json", "ls", "app:1").json["entries"]
    assert entries[4]["path"] == fake_store.HOSTILE
    assert entries[1] == {
        "path": "bin/su",
        "type": "file",
        "mode": 0o4755,
        "uid": 1000,
        "gid": 100,
        "size": 5,
        "mtime": "2024-01-02T03:04:05.25Z",
        "layer": 0,
    }


def test_ls_of_nothing_is_a_document_too(run):
    class Empty:
        def entries(self, path, layer):
            return iter(())

    assert run("--json", "ls", "app:1", image=lambda name: Empty()).json == {"entries": []}


def test_quiet_lists_names_only(run):
    assert run("images", "-q").out == "app:1\n"
    assert run("-q", "blob", "ls").out == f"{DIGEST}\n"
    assert run("lease", "ls", "-q").out == "8c1f\n"


def test_history_names_the_layer_of_each_step(run):
    steps = run("--json", "history", "app:1").json["history"]
    assert [step["digest"] for step in steps] == [DIGEST, None]
    assert [step["bytes"] for step in steps] == [10, None]
    assert "ENV a=b" in run("history", "app:1").out


def test_warnings_go_to_stderr_and_into_the_document(run):
    info = layerstore.ImageInfo("a:1", DIGEST, "m", 1, warnings=("layer 1 does not decode",))
    result = run("import", "oci:x", import_images=lambda *a, **o: [info])
    assert "warning: a:1: layer 1 does not decode" in result.err
    assert run("-q", "import", "oci:x", import_images=lambda *a, **o: [info]).err == ""
    result = run("--json", "import", "oci:x", import_images=lambda *a, **o: [info])
    assert result.json["images"][0]["warnings"] == ["layer 1 does not decode"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_export_to_a_pipe_leaves_stdout_to_the_archive(options, run):
    def export_images(names, transport, **more):
        sys.stdout.buffer.write(b"tar")
        return [FakeStore().info]

    for transport in ("docker-archive:-", "oci-archive:-", "oci-archive:-:v1"):
        result = run(*options, "export", "app:1", transport, export_images=export_images)
        assert result.bytes == b"tar"
        assert DIGEST in result.err


def test_untag_says_what_was_gone_when_a_name_is_missing(run):
    result = run("untag", "app:1", "none:1", "app:2")
    assert result.code == 4
    assert "untagged before that: app:1" in result.err


def test_check_is_clean_when_everything_was_repaired(run):
    damage = layerstore.Damage(DIGEST, "tar", "checksum", ("app:1",), ("/etc/passwd",))

    def report(ok, damaged, repaired):
        return lambda **options: layerstore.CheckReport(ok, damaged, repaired, 10, 0.1)

    assert run("check", check=report(True, (damage,), (DIGEST,))).code == 0
    assert run("check", check=report(True, (), ())).code == 0
    assert run("check", check=report(False, (), ())).code == 3
    result = run("check", check=report(False, (damage,), ()))
    assert result.code == 3
    for word in ("DAMAGED", DIGEST, "checksum", "app:1", "/etc/passwd"):
        assert word in result.out


def test_a_rebuilt_index_says_what_it_lost_and_what_the_check_found(run, monkeypatch):
    lost = layerstore.Damage("sha256:aa", "tar", "incomplete", ("app:2",))
    rebuilt = layerstore.CheckReport(False, (lost,), (), 5, 1.0)
    asked = []

    def rebuild_index(path, timeout=None):
        asked.append((path, timeout))
        return rebuilt

    monkeypatch.setitem(vars(layerstore), "rebuild_index", rebuild_index)
    clean = layerstore.CheckReport(True, (), (), 10, 0.5)
    result = run(
        "--json", "--store", "/s", "--timeout", "3", "check", "--rebuild-index",
        check=lambda **options: clean,
    )  # fmt: skip
    assert asked == [("/s", 3.0)]
    assert result.code == 3
    assert problems(result.json, DOCUMENTS["check"]) == []
    assert [d["digest"] for d in result.json["damaged"]] == ["sha256:aa"]
    assert result.json["checked_bytes"] == 15


def test_a_rebuild_where_no_store_is(run, monkeypatch):
    def rebuild_index(path, timeout=None):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setitem(vars(layerstore), "rebuild_index", rebuild_index)
    assert run("check", "--rebuild-index").code == 4


def test_reading_falls_back_to_a_readonly_handle_and_writing_does_not(run):
    def refuse(path, readonly=False, **options):
        if not readonly:
            raise PermissionError(errno.EACCES, "Permission denied", path)

    store = FakeStore(open=refuse)
    assert run("images", store=store).code == 0
    assert store.opened[-1]["readonly"] is True
    for verb in ("import oci:x", "gc", "tag a b", "untag a", "lease create", "lease rm x"):
        assert run(*verb.split(), open=refuse).code == 7


# What goes wrong

ERRORS = [
    (layerstore.NotFoundError("no image x"), "not-found"),
    (layerstore.InvalidInputError("bad tar", offset=512, path="a.tar"), "invalid-input"),
    (layerstore.DigestMismatchError("no", expected="sha256:aa", got="sha256:bb"), "digest-mismatch"),
    (layerstore.CorruptError("bad block", digest=DIGEST, where="packs/1"), "corrupt"),
    (layerstore.BusyError("gc is running"), "busy"),
    (layerstore.UnsupportedError("format 9"), "unsupported"),
    (layerstore.RemoteError("h.lan answers 503", status=503), "remote"),
    (layerstore.StoreFullError("no space"), "full"),
    (layerstore.LimitError("inflates to more than 1 TiB"), "limit"),
    (layerstore.PermissionDeniedError("not yours"), "permission"),
    (layerstore.CancelledError("cancelled"), "cancelled"),
    (layerstore.LayerstoreError("something else"), "error"),
    (OSError(errno.ENOSPC, "No space left on device", "/s/pack"), "full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "full"),
    (PermissionError(errno.EACCES, "Permission denied", b"/s"), "permission"),
    (PermissionError(errno.EPERM, "Operation not permitted"), "permission"),
    (OSError(errno.EROFS, "Read-only file system"), "permission"),
    (OSError(errno.EIO, "Input/output error"), "os-error"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), "os-error"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.tar"), "os-error"),
    (MemoryError(), "memory"),
    (KeyboardInterrupt(), "interrupted"),
    (ZeroDivisionError("division by zero"), "internal"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda v: v if isinstance(v, str) else "")
def test_errors_have_an_exit_status_and_a_document(error, kind, run):
    def images():
        raise error

    result = run("--json", "images", images=images)
    assert result.code == KINDS[kind][0]
    document = json.loads(result.err)
    assert problems(document, ERROR) == []
    assert document["error"]["kind"] == kind
    assert result.out == ""
    plain = run("images", images=images)
    assert plain.code == result.code
    assert plain.err.startswith("layerstore: ")
    assert "Traceback" not in plain.err


def test_what_an_error_was_about_is_said(run):
    """An OSError of a checkout says in a note which layer and entry it was."""
    error = PermissionError(1, "Operation not permitted", "/target/dev/null")
    error.add_note("layer sha256:ab, entry dev/null at byte 512")

    def images():
        raise error

    said = run("images", images=images).err
    assert "/target/dev/null: Operation not permitted (layer sha256:ab, entry dev/null at" in said


def test_every_kind_of_error_is_described():
    tested = {kind for _, kind in ERRORS} | {"usage"}
    subclasses = [layerstore.LayerstoreError]
    for kind in subclasses:
        subclasses.extend(kind.__subclasses__())
    assert {error.kind for error in subclasses} | tested == set(KINDS)


def test_a_store_that_cannot_be_closed_is_an_error_but_hides_none(run):
    class Stuck(FakeStore):
        def close(self):
            raise layerstore.StoreFullError("no space for the last row")

    assert run("images", store=Stuck()).code == 6

    def images():
        raise layerstore.NotFoundError("no image")

    result = run("images", store=Stuck(images=images))
    assert result.code == 4
    assert "no space for the last row" in result.err


def test_an_error_says_where(run):
    def images():
        raise layerstore.CorruptError(
            "bad block\x1b[2J", digest=DIGEST, path="/etc/passwd", offset=77
        )

    err = run("images", images=images).err
    assert DIGEST in err
    assert "/etc/passwd" in err
    assert "offset 77" in err
    assert "\x1b" not in err


def test_a_fault_of_ours_shows_where_only_with_v(run):
    def images():
        raise ZeroDivisionError("division by zero")

    assert "Traceback" not in run("images", images=images).err
    result = run("-v", "images", images=images)
    assert "Traceback" in result.err
    assert result.code == 1


def test_wrong_usage_is_2_and_json_when_asked(run):
    assert run("frobnicate").code == 2
    result = run("ls", "--json")
    assert result.code == 2
    assert json.loads(result.err)["error"]["kind"] == "usage"
    assert run("export", "app:1").code == 2
    assert run("inspect", "--raw", "--config", "app:1").code == 2
    assert run("--help").code == 0


def test_no_colour_without_a_terminal(run):
    assert "\x1b" not in run("frobnicate").err


def test_signal_handlers_are_put_back(run):
    import signal

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run("images")
    run("frobnicate")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
