"""The command line on the real store: every verb, every document, and what goes wrong."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from json_documents import DOCUMENTS, ERROR, problems
from small_images import BASE, TOP, Layout, blobs, noise

import layerstore
from layerstore.cli import main
from layerstore.cli.location import store_path

COMMAND = [sys.executable, "-m", "layerstore"]
ENVIRONMENT = {
    key: value
    for key, value in os.environ.items()
    if key not in ("LAYERSTORE_DIR", "LAYERSTORE_LEASE", "XDG_DATA_HOME")
}


@pytest.fixture(autouse=True, scope="module")
def environment():
    """No store and no lease but those that the tests name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(ENVIRONMENT):
            patch.delenv(name)
        yield


def run(
    *args: str, code: int = 0, prefix: Sequence[str] = (), **options
) -> subprocess.CompletedProcess[bytes]:
    """One command; its exit status must be `code`. A process of its own where something about the
    process matters; otherwise in this one, which saves most of the time."""
    if prefix or options or any(arg.endswith(":-") for arg in args):
        done = subprocess.run(
            [*prefix, *COMMAND, *args],
            capture_output=True,
            timeout=60,
            **{"env": ENVIRONMENT, **options},
        )
    else:
        with pytest.MonkeyPatch.context() as patch:
            out, err = io.BytesIO(), io.BytesIO()
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8"))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, "utf-8"))
            status = main(args)
            done = subprocess.CompletedProcess(args, status, out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


def ask(verb: str, *args: str, code: int = 0, **options):
    """The JSON document of one command, held against its description."""
    done = run("--json", *verb.split(), *args, code=code, **options)
    document = json.loads(done.stdout)
    assert problems(document, DOCUMENTS[verb]) == []
    return document


def error(*args: str, code: int, **options) -> dict:
    """The error document of a command that fails."""
    done = run("--json", *args, code=code, **options)
    document = json.loads(done.stderr.splitlines()[-1])
    assert problems(document, ERROR) == []
    return document["error"]


def until(holds: Callable[[], object]) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    """Three images: base, app (base and a layer), zipped (the same, compressed)."""
    layout = Layout(tmp_path_factory.mktemp("layout"))
    layout.image("base", BASE)
    layout.image("app", BASE, TOP)
    layout.image("zipped", BASE, TOP, compressed=True)
    return layout.path


@pytest.fixture(scope="module")
def filled(layout, tmp_path_factory) -> Path:
    """A store with these images, to be read only."""
    store = tmp_path_factory.mktemp("filled") / "store"
    document = ask("import", "--store", str(store), "--all", f"oci:{layout}", "small/")
    assert len(document["images"]) == 3
    return store


@pytest.fixture
def store(filled, layout, tmp_path) -> Path:
    """A store of the test's own."""
    store = tmp_path / "store"
    run("--store", str(store), "import", f"oci:{layout}:app", "app:1")
    return store


def digest_of(layout: Path, tag: str) -> str:
    index = json.loads((layout / "index.json").read_text())
    names = "org.opencontainers.image.ref.name"
    return next(m["digest"] for m in index["manifests"] if m["annotations"][names] == tag)


def manifest_of(layout: Path, tag: str) -> dict:
    path = layout / "blobs" / "sha256" / digest_of(layout, tag).removeprefix("sha256:")
    return json.loads(path.read_text())


# In, and out again


def test_import_says_what_it_took(layout, tmp_path):
    s = ["--store", str(tmp_path / "s")]
    (image,) = ask("import", *s, f"oci:{layout}:app", "app:1")["images"]
    assert image["name"] == "app:1"
    assert image["digest"] == digest_of(layout, "app")
    assert image["blobs"] == 4
    assert image["bytes"] > 700_000
    assert image["new_bytes"] > 700_000
    (again,) = ask("import", *s, f"oci:{layout}:app", "app:2")["images"]
    assert again["new_bytes"] < 20_000
    done = run(*s, "import", f"oci:{layout}:base", "base")
    assert done.stdout.decode() == f"base:latest  {digest_of(layout, 'base')}\n"


def test_the_store_is_private(store):
    assert store.stat().st_mode & 0o777 == 0o700


def test_export_gives_the_same_bytes(filled, layout, tmp_path):
    out = tmp_path / "out"
    s = ["--store", str(filled)]
    names = [image["name"] for image in ask("images", *s)["images"]]
    document = ask("export", *s, *names, f"oci:{out}")
    assert [image["name"] for image in document["images"]] == names
    assert blobs(out) == blobs(layout)


def test_export_with_compression_says_the_new_digest(filled, layout, tmp_path):
    out = tmp_path / "out"
    s = ["--store", str(filled)]
    name = name_of(filled, "base")
    old = digest_of(layout, "base")
    document = ask("export", *s, "--compression", "zstd:5", name, f"oci:{out}:new")
    assert problems(document, DOCUMENTS["export"]) == []
    (image,) = document["images"]
    assert image["digest"] == digest_of(out, "new") != old
    # In the same compression everything stays as it is.
    store = str(tmp_path / "store")
    run("--store", store, "import", f"oci:{out}:new", "new:1")
    assert run("--store", store, "ls", "new:1").stdout == run(*s, "ls", name).stdout
    again = ask("export", "--store", store, "--compression=zstd", "new:1", f"oci:{out}:again")
    assert again["images"][0]["digest"] == image["digest"]
    done = run(*s, "export", "--compression", "lzma", name, f"oci:{out}", code=2)
    assert b"gzip:9" in done.stderr
    done = run(*s, "export", "--compression", "gzip", name, f"docker-archive:{tmp_path}/a", code=1)
    assert b"plain tars" in done.stderr


def test_export_to_a_pipe_and_import_from_one(filled, layout, tmp_path):
    for kind in ("oci-archive", "docker-archive"):
        done = run("--store", str(filled), "export", name_of(filled, "zipped"), f"{kind}:-")
        assert b"sha256:" in done.stderr
        store = str(tmp_path / kind)
        run("--store", store, "import", f"{kind}:-", "back:1", input=done.stdout)
        if kind == "oci-archive":
            (image,) = ask("images", "--store", store)["images"]
            assert image["digest"] == digest_of(layout, "zipped")
        assert run("--store", store, "cat", "back:1", "/etc/hostname").stdout == b"app\n"


def name_of(store: Path, tag: str) -> str:
    """The full name that an image of `filled` has."""
    found = [i["name"] for i in ask("images", "--store", str(store))["images"] if tag in i["name"]]
    return found[0]


# Looking at it


def test_images_and_inspect(filled, layout):
    s = ["--store", str(filled)]
    images = ask("images", *s)["images"]
    assert {image["digest"] for image in images} == {
        digest_of(layout, tag) for tag in ("base", "app", "zipped")
    }
    assert {image["platform"] for image in images} == {"linux/amd64"}
    assert {image["created"] for image in images} == {"2024-01-02T03:04:05Z"}
    name = name_of(filled, "app")
    document = ask("inspect", *s, name)
    assert [layer["digest"] for layer in document["layers"]] == [
        layer["digest"] for layer in manifest_of(layout, "app")["layers"]
    ]
    raw = run(*s, "inspect", "--raw", name).stdout
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == digest_of(layout, "app")
    config = run(*s, "inspect", "--config", name).stdout
    assert hashlib.sha256(config).hexdigest() in json.loads(raw)["config"]["digest"]
    text = run(*s, "inspect", name).stdout.decode()
    assert digest_of(layout, "app") in text
    assert len(run(*s, "images").stdout.splitlines()) == 4
    assert run(*s, "images", "-q").stdout.decode().split() == [i["name"] for i in images]


def test_a_digest_prefix_names_an_image(filled, layout):
    digest = digest_of(layout, "base")
    document = ask("inspect", "--store", str(filled), digest.removeprefix("sha256:")[:12])
    assert document["digest"] == digest


def test_history(filled, layout):
    steps = ask("history", "--store", str(filled), name_of(filled, "app"))["history"]
    layers = manifest_of(layout, "app")["layers"]
    assert [step["created_by"] for step in steps] == ["ADD 0", "ADD 1", 'CMD ["/srv/app"]']
    assert [step["digest"] for step in steps] == [layers[0]["digest"], layers[1]["digest"], None]
    assert [step["bytes"] for step in steps] == [layers[0]["size"], layers[1]["size"], None]


@pytest.mark.parametrize("tag", ["app", "zipped"])
def test_files_are_those_that_a_container_would_see(tag, filled):
    s = ["--store", str(filled)]
    name = name_of(filled, tag)
    entries = {e["path"].strip("/"): e for e in ask("ls", *s, name)["entries"]}
    assert "etc/removed" not in entries
    assert {"etc/os-release", "etc/hostname", "srv/data", "bin"} <= set(entries)
    assert entries["etc/hostname"]["size"] == 4
    assert entries["etc/hostname"]["layer"] == 1
    assert entries["etc/os-release"]["layer"] == 0
    assert entries["bin"]["linkname"] == "usr/bin"
    assert entries["srv/data"]["mtime"] == "2024-01-02T03:04:05Z"
    below = ask("ls", *s, name, "/srv")["entries"]
    assert {e["path"].strip("/") for e in below} - {"srv"} == {"srv/app", "srv/data"}
    lowest = {e["path"].strip("/") for e in ask("ls", *s, name, "--layer", "0")["entries"]}
    assert "etc/removed" in lowest
    assert "srv/app" not in lowest
    assert run(*s, "cat", name, "/srv/data").stdout == noise("data", 100_000)
    assert run(*s, "cat", name, "usr/lib/libbig.so").stdout == noise("libbig", 600_000)
    assert run(*s, "cat", "--layer", "0", name, "/etc/removed").stdout == b"not for long\n"
    assert b"srv/app" in run(*s, "ls", name).stdout
    for args in (
        ["cat", name, "/etc/removed"],
        ["cat", name, "/no/such"],
        ["ls", name, "/no/such"],
        ["cat", "none:1", "/x"],
        ["ls", name, "--layer", "7"],
    ):
        run(*s, *args, code=4)


def test_stats_is_what_du_says(filled):
    document = ask("stats", "--store", str(filled), "--images")
    paths = [filled, *filled.rglob("*")]
    du = sum(path.lstat().st_blocks * 512 for path in paths)
    assert abs(document["stored"]["total"] - du) <= du * 0.01
    assert document["images"] == 3 == len(document["per_image"])
    text = run("--store", str(filled), "stats", "--images").stdout.decode()
    assert "on disk:" in text
    assert "FREED IF REMOVED" in text


# Names, blobs, leases, gc


def test_tag_and_untag(store, layout):
    s = ["--store", str(store)]
    document = ask("tag", *s, "app:1", "other")
    assert document == {"name": "other:latest", "digest": digest_of(layout, "app")}
    (gone,) = ask("untag", *s, "app:1")["images"]
    assert gone == {"name": "app:1", "digest": digest_of(layout, "app")}
    assert [i["name"] for i in ask("images", *s)["images"]] == ["other:latest"]
    assert error("untag", *s, "app:1", code=4)["kind"] == "not-found"
    assert error("tag", *s, "app:1", "x", code=4)["kind"] == "not-found"


def test_blobs(store, tmp_path):
    s = ["--store", str(store)]
    data = noise("blob", 300_000)
    (tmp_path / "file").write_bytes(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    document = ask("blob put", *s, str(tmp_path / "file"), "--media-type", "a/b")
    assert document["digest"] == digest
    assert document["bytes"] == len(data)
    assert run(*s, "blob", "cat", digest).stdout == data
    assert ask("blob stat", *s, digest)["media_type"] == "a/b"
    assert digest in {blob["digest"] for blob in ask("blob ls", *s)["blobs"]}
    assert digest in run(*s, "blob", "ls", "-q").stdout.decode().split()
    assert digest in run(*s, "blob", "stat", digest).stdout.decode()
    assert run(*s, "blob", "put", "-", input=data).stdout.decode() == f"{digest}\n"
    assert error("blob", "stat", *s, f"sha256:{'0' * 64}", code=4)["kind"] == "not-found"
    assert error("blob", "cat", *s, f"sha256:{'0' * 64}", code=4)["kind"] == "not-found"
    unknown = f"sha256:{hashlib.sha256(b'wanted').hexdigest()}"
    wrong = error("blob", "put", *s, "-", "--digest", unknown, input=b"other", code=1)
    assert wrong["kind"] == "digest-mismatch"


def test_a_lease_protects_across_commands(store):
    s = ["--store", str(store)]
    lease = ask("lease create", *s, "--ttl", "1h")["id"]
    one, two = (f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (b"one", b"two"))
    run(*s, "blob", "put", "-", "--lease", lease, input=b"one")
    run(*s, "blob", "put", "-", input=b"two", env={**ENVIRONMENT, "LAYERSTORE_LEASE": lease})
    (held,) = ask("lease ls", *s)["leases"]
    assert held["id"] == lease
    assert held["ttl"] == 3600
    assert 3500 < held["left"] <= 3600
    assert set(held["digests"]) == {one, two}
    ask("gc", *s, "--aggressive")
    assert run(*s, "blob", "cat", one).stdout == b"one"
    assert run(*s, "blob", "cat", two).stdout == b"two"
    assert ask("lease rm", *s, lease) == {"removed": [lease]}
    assert ask("gc", *s, "--aggressive")["removed_blobs"] >= 2
    run(*s, "blob", "stat", one, code=4)
    error("lease", "rm", *s, lease, code=4)
    error("blob", "put", *s, "-", "--lease", lease, input=b"x", code=4)


def test_blob_put_alone_holds_its_result_for_an_hour(store):
    s = ["--store", str(store)]
    document = ask("blob put", *s, "-", input=b"precious")
    ask("gc", *s, "--aggressive")
    assert run(*s, "blob", "cat", document["digest"]).stdout == b"precious"
    (held,) = ask("lease ls", *s)["leases"]
    assert (held["id"], held["ttl"]) == (document["lease"], 3600)
    run(*s, "lease", "rm", document["lease"])
    ask("gc", *s)
    run(*s, "blob", "stat", document["digest"], code=4)


def test_gc_frees_what_untag_left(store):
    s = ["--store", str(store)]
    assert ask("gc", *s, "--dry-run")["freed_bytes"] == 0
    run(*s, "untag", "app:1")
    would = ask("gc", *s, "--dry-run")
    assert would["dry_run"] is True
    assert would["freed_bytes"] > 600_000
    assert len(ask("blob ls", *s)["blobs"]) == 4
    did = ask("gc", *s, "--aggressive", "--max-time", "1m", "--max-repack-size", "1G")
    assert did["freed_bytes"] > 600_000
    assert ask("blob ls", *s)["blobs"] == []
    assert ask("check", *s, "--full")["ok"] is True


# Check


def damage_packs(store: Path) -> None:
    """Turns bits all over the content that the store keeps."""
    for path in [*(store / "packs").rglob("*"), *(store / "raw").rglob("*")]:
        if path.is_file() and path.stat().st_size > 100_000:
            with path.open("r+b") as f:
                for offset in range(50_000, path.stat().st_size, 100_000):
                    f.seek(offset)
                    byte = f.read(1)
                    f.seek(offset)
                    f.write(bytes((byte[0] ^ 0x40,)))


def test_check_is_clean_on_a_sound_store(store):
    for options in ([], ["--blocks"], ["--full"], ["--full", "--max-time", "1h"]):
        document = ask("check", "--store", str(store), *options)
        assert document["ok"] is True
        assert document["damaged"] == []
    assert ask("check", "--store", str(store), "--full")["checked_bytes"] > 700_000


def test_damage_is_found_named_and_repaired(store, layout):
    s = ["--store", str(store)]
    damage_packs(store)
    document = ask("check", *s, "--blocks", code=3)
    assert document["ok"] is False
    assert {ref for damage in document["damaged"] for ref in damage["refs"]} == {"app:1"}
    paths = {path.strip("/") for damage in document["damaged"] for path in damage["paths"]}
    assert "usr/lib/libbig.so" in paths
    assert b"DAMAGED" in run(*s, "check", "--full", code=3).stdout
    assert error("cat", *s, "app:1", "/usr/lib/libbig.so", code=3)["kind"] == "corrupt"
    healed = ask("check", *s, "--full", "--repair-from", f"oci:{layout}")
    assert healed["ok"] is True
    assert healed["repaired"]
    assert ask("check", *s, "--full")["damaged"] == []
    assert run(*s, "cat", "app:1", "/usr/lib/libbig.so").stdout == noise("libbig", 600_000)


def test_the_index_is_rebuilt_from_the_packs(store, layout):
    s = ["--store", str(store)]
    before = ask("images", *s)
    for path in store.glob("index*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert ask("check", *s, "--rebuild-index", "--full")["ok"] is True
    assert ask("images", *s) == before
    assert run(*s, "cat", "app:1", "/srv/data").stdout == noise("data", 100_000)


def test_a_rebuild_needs_the_store_to_itself(store):
    with layerstore.open(store):
        failed = error(
            "check", "--store", str(store), "--rebuild-index", "--timeout", "0.1", code=5
        )
    assert failed["kind"] == "busy"


# What goes wrong


@pytest.mark.parametrize(
    "args",
    [
        "images",
        "inspect a",
        "history a",
        "tag a b",
        "untag a",
        "ls a",
        "cat a b",
        f"blob cat sha256:{'0' * 64}",
        f"blob stat sha256:{'0' * 64}",
        "blob ls",
        "lease ls",
        "lease rm 8c1f8c1f8c1f8c1f",
        "gc",
        "check",
        "check --rebuild-index",
        "stats",
        "export a oci:x",
    ],
)
def test_where_no_store_is_none_is_made(args, tmp_path):
    failed = error("--store", str(tmp_path / "none"), *args.split(), code=4)
    assert failed["kind"] == "not-found"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["import", "gopher:x", "x:1"],
        ["import", "", "x:1"],
        ["import", "oci:", "x:1"],
        ["import", "oci:x", "no name"],
        ["export", "app:1", "elsewhere"],
        ["inspect", ""],
        ["tag", "app:1", ""],
        ["check", "--repair-from", "elsewhere"],
        ["images", "--store", ""],
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(args, store):
    error("--store", str(store), *args, code=2)


def test_what_is_not_there_to_repair_from_is_said_at_once(store):
    for transport in ("oci:/nowhere", "oci-archive:/nowhere.tar", "docker-archive:/nowhere.tar"):
        failed = error("--store", str(store), "check", "--repair-from", transport, code=4)
        assert "/nowhere" in failed["message"]


def test_signatures_have_no_place_in_docker_archives(store, tmp_path):
    to = f"docker-archive:{tmp_path}/app.tar"
    error("--store", str(store), "export", "--referrers", "app:1", to, code=1)
    assert not (tmp_path / "app.tar").exists()


def test_an_error_names_the_archive_that_was_asked_for(store, tmp_path):
    to = f"oci-archive:{tmp_path}/none/app.tar"
    failed = error("--store", str(store), "export", "app:1", to, code=1)
    assert failed["path"] == f"{tmp_path}/none/app.tar"


def test_a_layout_that_others_write_is_waited_for_no_longer_than_timeout(store, tmp_path):
    s = ["--store", str(store)]
    run(*s, "export", "app:1", f"oci:{tmp_path}/out:1")
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    error("--timeout", "0.1", *s, "export", "app:1", f"oci:{tmp_path}/out:2", code=5)
    os.close(fd)
    run("--timeout", "0.1", *s, "export", "app:1", f"oci:{tmp_path}/out:2")


def test_what_is_imported_under_a_lease_outlives_its_name(store, layout):
    s = ["--store", str(store)]
    lease = ask("lease create", *s)["id"]
    run(*s, "--lease", lease, "import", f"oci:{layout}:app", "again:1")
    run(*s, "--lease", lease, "import", f"oci:{layout}:base", "base:1")
    blobs = {blob["digest"] for blob in ask("blob ls", *s)["blobs"]}
    run(*s, "untag", "app:1", "again:1", "base:1")
    ask("gc", *s, "--aggressive")
    assert {blob["digest"] for blob in ask("blob ls", *s)["blobs"]} == blobs
    run(*s, "lease", "rm", lease)
    ask("gc", *s, "--aggressive")
    assert ask("blob ls", *s)["blobs"] == []


def test_what_cannot_be_imported(layout, tmp_path):
    s = ["--store", str(tmp_path / "s")]
    (tmp_path / "text").write_text("no tar")
    for transport in (
        f"oci:{tmp_path}/none",
        f"oci:{layout}:none",
        f"oci-archive:{tmp_path}/none.tar",
        f"oci-archive:{tmp_path}/text",
        f"docker-archive:{tmp_path}/text",
    ):
        command = [*COMMAND, *s, "import", transport, "x:1"]
        done = subprocess.run(command, capture_output=True, env=ENVIRONMENT)
        assert done.returncode in (1, 4)
        assert done.stderr.startswith(b"layerstore: ")
        assert b"internal error" not in done.stderr
    assert ask("images", *s)["images"] == []


def test_strict_refuses_what_is_only_warned_about_otherwise(tmp_path):
    layout = Layout(tmp_path / "layout")
    layout.image("bad", {"f": noise("x", 10_000)}, compressed=True)
    manifest = manifest_of(layout.path, "bad")
    broken = layout.blob(noise("no gzip", 20_000), manifest["layers"][0]["mediaType"])
    descriptor = layout.blob(
        json.dumps({**manifest, "layers": [broken]}).encode(), manifest["mediaType"]
    )
    index = {"schemaVersion": 2, "manifests": [descriptor]}
    (layout.path / "index.json").write_text(json.dumps(index))
    s = ["--store", str(tmp_path / "s")]
    failed = error("import", *s, "--strict", f"oci:{layout.path}", "bad:1", code=1)
    assert failed["kind"] in ("invalid-input", "digest-mismatch")
    (image,) = ask("import", *s, f"oci:{layout.path}", "bad:1")["images"]
    assert image["warnings"]
    assert run(*s, "blob", "cat", broken["digest"]).stdout == noise("no gzip", 20_000)


# Root may do everything; without these two capabilities it is told "not allowed" like everybody.
WITHOUT_PRIVILEGE = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
)


def set_modes(store: Path, directory: int, file: int) -> None:
    for path in sorted([store, *store.rglob("*")], reverse=True):
        path.chmod(directory if path.is_dir() else file)


def test_a_layer_that_inflates_too_far_is_kept_and_not_looked_into(layout, tmp_path):
    s = ["--store", str(tmp_path / "s")]
    limited = ["--inflate-limit", "100k"]
    (image,) = ask("import", *s, *limited, f"oci:{layout}:zipped", "a:1")["images"]
    assert "inflates to more than 102400 bytes" in " ".join(image["warnings"])
    run(*s, "ls", "a:1", code=1)
    error(*s, "cat", "a:1", "/etc/os-release", code=1)
    run(*s, "export", "a:1", f"oci:{tmp_path}/out:zipped")
    assert blobs(tmp_path / "out").items() <= blobs(layout).items()
    assert ask("check", *s, "--full")["ok"] is True
    other = ["--store", str(tmp_path / "t")]
    error(*other, "import", "--strict", *limited, f"oci:{layout}:zipped", "a:1", code=6)


def test_what_is_not_allowed_is_7(store):
    """A store that we may not open is refused; one that we may only read is read."""
    s = ["--store", str(store)]
    plain = {"prefix": WITHOUT_PRIVILEGE}
    try:
        store.chmod(0)
        assert error("images", *s, code=7, **plain)["kind"] == "permission"
        store.chmod(0o700)
        set_modes(store, 0o555, 0o444)
        assert len(ask("images", *s, **plain)["images"]) == 1
        assert run(*s, "cat", "app:1", "/etc/hostname", **plain).stdout == b"app\n"
        assert ask("check", *s, "--full", **plain)["ok"] is True
        for args in (["untag", "app:1"], ["blob", "put", "/dev/null"], ["gc"], ["lease", "create"]):
            assert error(*s, *args, code=7, **plain)["kind"] == "permission"
    finally:
        store.chmod(0o700)
        for path in [store, *store.rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)
    assert len(ask("images", *s)["images"]) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_leaves_nothing(number, store, layout, tmp_path):
    """From a pipe that never ends: stopped while it waits for bytes."""
    s = ["--store", str(store)]
    archive = run(*s, "export", "app:1", "oci-archive:-").stdout
    other = ["--store", str(tmp_path / "other")]
    with subprocess.Popen(
        [*COMMAND, *other, "import", "oci-archive:-", "app:1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(archive[: len(archive) * 2 // 3])
        process.stdin.flush()
        until(lambda: (tmp_path / "other" / "FORMAT").exists())
        time.sleep(0.5)  # somewhere in the middle of what there is to read
        process.send_signal(number)
        _, err = process.communicate(timeout=15)
        # communicate closes stdin: an end of file must not be what ends it
    assert process.returncode == 130, err
    assert err.decode().splitlines()[-1].startswith("layerstore: interrupted")
    assert b"Traceback" not in err
    assert ask("images", *other)["images"] == []
    assert ask("check", *other, "--full")["ok"] is True
    ask("gc", *other)
    assert ask("blob ls", *other)["blobs"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_optimize_goes_on_with_the_next(number, tmp_path):
    """Stopped in the middle of many layers: some are done, none is half done."""
    many = Layout(tmp_path / "many")
    layers = [{"words": noise(f"layer {n}", 500_000).hex().encode()} for n in range(12)]
    many.image("many", *layers, compressed=True)
    store = tmp_path / "s"
    s = ["--store", str(store)]
    run("import", *s, "--defer", f"oci:{many.path}:many", "many:1")

    def raw() -> int:
        return sum(path.is_file() for path in (store / "raw").rglob("*"))

    assert raw() == len(layers)
    with subprocess.Popen(
        [*COMMAND, *s, "optimize"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while raw() == len(layers) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == b""
    assert err.decode().splitlines()[-1].startswith("layerstore: interrupted")
    assert b"Traceback" not in err
    left = raw()
    assert 0 < left < len(layers)
    assert ask("check", *s, "--full")["ok"] is True
    run(*s, "export", "many:1", f"oci:{tmp_path}/out:many")
    assert blobs(tmp_path / "out") == blobs(many.path)
    report = ask("optimize", *s)
    assert report["complete"] is True
    assert [blob["result"] for blob in report["blobs"]] == ["gzip"] * left
    assert raw() == 0
    run("gc", *s)
    assert ask("check", *s, "--full")["ok"] is True
    run(*s, "export", "many:1", f"oci:{tmp_path}/again:many")
    assert blobs(tmp_path / "again") == blobs(many.path)


# Where it is, and in containers


def test_the_library_and_the_command_line_agree_where_the_store_is(tmp_path, monkeypatch):
    for name, variables in (
        ("a", {"LAYERSTORE_DIR": str(tmp_path / "a")}),
        ("x/layerstore", {"XDG_DATA_HOME": str(tmp_path / "x")}),
    ):
        for variable in ("LAYERSTORE_DIR", "XDG_DATA_HOME"):
            monkeypatch.delenv(variable, raising=False)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        assert store_path(None, os.environ, os.geteuid()) == str(tmp_path / name)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with layerstore.open() as opened:
            assert opened.path == str(tmp_path / name)
        run("images", env={**ENVIRONMENT, **variables})


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
if os.geteuid() != 0:
    NAMESPACE += ["--user", "--map-root-user"]
AS_FIRST = ["sh", "-c", 'test $$ = 1 && exec "$@"', "sh"]


def contained(*args: str) -> list[str]:
    """A command as process 1 of a pid namespace of its own."""
    return [*NAMESPACE, *AS_FIRST, *COMMAND, *args]


def test_two_containers_share_a_store_each_as_process_1(store, layout):
    s = ["--store", str(store)]
    with subprocess.Popen(
        contained(*s, "blob", "put", "-"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as first:  # fmt: skip
        assert first.stdin is not None
        first.stdin.write(b"a" * 100_000)
        first.stdin.flush()
        until(lambda: ask("lease ls", *s)["leases"])  # it has the store open and waits for more
        assert first.poll() is None
        done = subprocess.run(contained(*s, "-v", "images"), capture_output=True, env=ENVIRONMENT)
        assert b"app:1" in done.stdout, done.stderr.decode()
        assert done.returncode == 0
        assert b"another pid" in done.stderr  # it did have to step aside
        transport = f"oci:{layout}:base"
        done = subprocess.run(
            contained(*s, "import", transport, "base:1"), capture_output=True, env=ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr.decode()
        done = subprocess.run(
            contained(*s, "inspect", "none:1"), capture_output=True, env=ENVIRONMENT
        )
        assert done.returncode == 4
        out, err = first.communicate(b"b", timeout=20)
    assert first.returncode == 0, err.decode()
    digest = hashlib.sha256(b"a" * 100_000 + b"b").hexdigest()
    assert out.decode() == f"sha256:{digest}\n"
    assert len(ask("images", *s)["images"]) == 2
    assert ask("check", *s, "--full")["ok"] is True
