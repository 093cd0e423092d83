"""Archives: tars from files and pipes, whatever the order of their members, and docker's own styles."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import oci_make as make
import pytest
import stores
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import layerstore
from layerstore import mediatypes
from layerstore.digest import digest_of
from layerstore.errors import (
    DigestMismatchError,
    InvalidInputError,
    LayerstoreError,
    LimitError,
    NotFoundError,
)
from layerstore.oci import members, tario

Store = layerstore.Store


def tar_of(files: dict[str, bytes], *, form: int = tarfile.PAX_FORMAT, prefix: str = "") -> bytes:
    """A tar in exactly this order; a value that begins with `->` is a symlink, `=>` a hard link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as t:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            if data[:2] in (b"->", b"=>"):
                info.type = tarfile.SYMTYPE if data[:1] == b"-" else tarfile.LNKTYPE
                info.linkname = data[2:].decode()
                t.addfile(info)
            else:
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    return out.getvalue()


PACK = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": lambda data: zstandard.compress(data),
}


def back(store: Store, name: str, path: Path) -> dict[str, bytes]:
    store.export_image(name, f"oci:{path}")
    return make.read(path)


class Piped:
    """Standard input from bytes, for the length of a with block."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __enter__(self) -> None:
        read, write = os.pipe()
        self.saved = os.dup(0)
        os.dup2(read, 0)
        os.close(read)
        self.thread = threading.Thread(target=self._feed, args=(write,))
        self.thread.start()

    def _feed(self, write: int) -> None:
        with open(write, "wb") as f:
            try:
                f.write(self.data)
                f.flush()
            except BrokenPipeError:
                # The reader gave up: the tests of damaged archives want just that.
                f.close = lambda: None  # type: ignore[method-assign]

    def __exit__(self, *exc: object) -> None:
        os.dup2(self.saved, 0)
        os.close(self.saved)
        self.thread.join(20)


def take(store: Store, tmp_path: Path, data: bytes, how: str, kind: str, **options: Any) -> Any:
    """Imports an archive from a file or a pipe."""
    if how == "pipe":
        with Piped(data):
            return store.import_images(f"{kind}:-", **options)
    path = tmp_path / f"{random.randbytes(4).hex()}.tar"
    path.write_bytes(data)
    return store.import_images(f"{kind}:{path}", **options)


@pytest.mark.parametrize(
    ("how", "pack", "form"),
    [
        *((how, pack, tarfile.PAX_FORMAT) for how in ("file", "pipe") for pack in PACK),
        ("file", "plain", tarfile.GNU_FORMAT),
        ("pipe", "plain", tarfile.USTAR_FORMAT),
    ],
)
def test_an_oci_archive_in_any_order(
    store: Store, tmp_path: Path, how: str, pack: str, form: int
) -> None:
    amd, arm = make.image(make.tar({"a": os.urandom(70_000)})), make.image(arch="arm64", salt="z")
    index = make.index((amd, make.platform("amd64")), (arm, make.platform("arm64")))
    files = list(make.layout_files((index, make.tagged("v1"))).items())
    for seed in range(3):
        random.Random(seed).shuffle(files)
        data = PACK[pack](tar_of(dict(files), form=form, prefix="./" * (seed % 2)))
        (info,) = take(store, tmp_path, data, how, "oci-archive", name=f"app:{seed}")
        assert info.digest == index.digest
        assert not info.warnings
        assert back(store, f"app:{seed}", tmp_path / f"out{seed}") == index.all
    store.gc()
    assert back(store, "app:1", tmp_path / "after") == index.all


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_a_layer_that_is_not_sound_is_said_from_an_archive_too(
    store: Store, tmp_path: Path, how: str
) -> None:
    wrong = {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "00" * 32]}}
    for compress in (True, False):
        image = make.image(config=wrong, compress=compress, salt=how)
        data = tar_of(make.layout_files((image, make.tagged("v1"))))
        (info,) = take(store, tmp_path, data, how, "oci-archive")
        assert any("diff_id" in w for w in info.warnings)
        with pytest.raises(InvalidInputError):
            take(store, tmp_path, data, how, "oci-archive", strict=True)
        store.untag("v1")


@pytest.mark.parametrize("how", ["file", "pipe"])
@pytest.mark.parametrize("pack", list(PACK))
def test_an_archive_that_ends_early_is_refused(
    store: Store, tmp_path: Path, how: str, pack: str
) -> None:
    image = make.image(make.tar({"a": os.urandom(30_000)}))
    whole = PACK[pack](tar_of(make.layout_files((image, make.tagged("v1")))))
    for part in (0, 1, 300, len(whole) // 2, len(whole) - 10_600):
        with pytest.raises(LayerstoreError):
            take(store, tmp_path, whole[: max(0, part)], how, "oci-archive")
    assert store.images() == []


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_a_blob_with_the_wrong_digest_is_refused(store: Store, tmp_path: Path, how: str) -> None:
    for n in range(3):
        # Another image each time: a blob that is known already would not be read at all.
        image = make.image(salt=f"{n}")
        files = make.layout_files((image, make.tagged("v1")))
        digest = list(image.all)[n]
        path = "blobs/" + digest.replace(":", "/")
        files[path] = files[path][:-1] + bytes((files[path][-1] ^ 1,))
        with pytest.raises(DigestMismatchError):
            take(store, tmp_path, tar_of(files), how, "oci-archive")
    assert store.images() == []


@pytest.mark.parametrize("how", ["file", "pipe"])
@pytest.mark.parametrize(
    "name",
    [
        *("../../etc/passwd", "/etc/passwd", "a/../../b", "x" * 65_536, "\udcff", "."),
        *("blobs/sha256/../../../x", "blobs/sha256/zz", "blobs/sha256/" + "0" * 63),
        "blobs/md5/" + "0" * 32,
    ],
)
def test_members_of_odd_names_are_passed_over(
    store: Store, tmp_path: Path, how: str, name: str
) -> None:
    image = make.image()
    files = {name: b"odd", **make.layout_files((image, make.tagged("v1")))}
    before = sorted(p for p in tmp_path.parent.iterdir())
    (info,) = take(store, tmp_path, tar_of(files), how, "oci-archive")
    assert info.digest == image.digest
    assert sorted(p for p in tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_two_index_json_are_refused(store: Store, tmp_path: Path, how: str) -> None:
    files = make.layout_files((make.image(), make.tagged("v1")))
    data = tar_of({**files, "./index.json": make.dump({"schemaVersion": 2, "manifests": []})})
    with pytest.raises(InvalidInputError, match=r"two members index\.json"):
        take(store, tmp_path, data, how, "oci-archive")


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_a_name_of_gigabytes_is_refused_before_it_is_read(
    store: Store, tmp_path: Path, how: str
) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 20 << 30
        with pytest.raises(LimitError):
            take(store, tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(9000), how, "oci-archive")


def test_headers_without_end_are_refused(store: Store, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5
    one = info.tobuf(tarfile.GNU_FORMAT) + b"name\0".ljust(512, b"\0")
    with pytest.raises(InvalidInputError, match="too many headers"):
        take(store, tmp_path, one * 5000, "file", "oci-archive")


def test_more_members_than_anybody_needs_are_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MAX_MEMBERS", 100)
    with pytest.raises(LimitError):
        take(store, tmp_path, tar_of({f"{i}": b"" for i in range(101)}), "file", "oci-archive")


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("data", [b"", b"not a tar" * 200, bytes(10_240), b"\x1f\x8b" + bytes(600)])
def test_what_is_no_archive_is_refused(
    store: Store, tmp_path: Path, kind: str, data: bytes
) -> None:
    for how in ("file", "pipe"):
        with pytest.raises(LayerstoreError):
            take(store, tmp_path, data, how, kind)
    with pytest.raises(NotFoundError):
        store.import_images(f"{kind}:{tmp_path}/nothing.tar")
    with pytest.raises(InvalidInputError):
        store.import_images(f"{kind}:{tmp_path}")


def test_the_other_transport_is_named_when_it_fits(store: Store, tmp_path: Path) -> None:
    oci = tar_of(make.layout_files((make.image(), {})))
    docker = tar_of(make.docker_v1_files((make.image(), ["a:1"])))
    with pytest.raises(NotFoundError, match="docker-archive:"):
        take(store, tmp_path, docker, "file", "oci-archive")
    info = take(store, tmp_path, oci, "file", "docker-archive", name="x")
    assert info[0].digest == make.image().digest


NAMES = st.text("ab/.é", min_size=1, max_size=150)
FORMS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@given(st.dictionaries(NAMES, st.binary(max_size=1200), max_size=6), FORMS)
def test_our_reader_sees_what_tarfile_wrote(files: dict[str, bytes], form: int) -> None:
    files = {n: d for n, d in files.items() if not n.endswith("/") and d[:2] not in (b"->", b"=>")}
    stream = tario.Pieces([tar_of(files, form=form)])
    found = {m.name: b.read() for m, b in tario.TarReader(stream, "it") if m.kind == "file"}
    assert found == files


@given(st.dictionaries(st.text("ab/", min_size=1, max_size=150), st.binary(max_size=1200)))
def test_tarfile_sees_what_our_writer_wrote(files: dict[str, bytes]) -> None:
    files = {name.strip("/") + "x": data for name, data in files.items()}
    out = io.BytesIO()
    writer = tario.TarWriter(out)
    for name, data in files.items():
        writer.add(name, len(data), [data])
    writer.finish()
    out.seek(0)
    with tarfile.open(fileobj=out) as t:
        assert {m.name: t.extractfile(m).read() for m in t} == files  # type: ignore[union-attr]


@given(st.binary(max_size=1500), st.integers(0, 1400), st.integers(0, 255))
def test_a_damaged_tar_gives_members_or_a_typed_error(noise: bytes, at: int, byte: int) -> None:
    whole = bytearray(tar_of({"a" * 120: b"x" * 700, "index.json": b"{}"}))
    whole[at] = byte
    for data in (bytes(whole), noise):
        try:
            for _, body in tario.TarReader(tario.Pieces([data]), "it"):
                body.read()
        except LayerstoreError:
            continue


# ---- docker -----------------------------------------------------------------------------------


def diff_ids(image: make.Image) -> list[str]:
    config = json.loads(image.data)["config"]["digest"]
    found: list[str] = json.loads(image.blobs[config])["rootfs"]["diff_ids"]
    return found


@pytest.mark.parametrize("how", ["file", "pipe"])
@pytest.mark.parametrize("pack", ["plain", "gzip"])
def test_manifest_json_style(store: Store, tmp_path: Path, how: str, pack: str) -> None:
    base = make.tar({"base": b"b" * 4000})
    one = make.image(base, make.tar({"one": b"1"}))
    two = make.image(base, make.tar({"two": b"2"}))
    files = make.docker_v1_files((one, ["app:1", "localhost/app:one"]), (two, ["app:2"]))
    items = list(files.items())
    random.Random(1).shuffle(items)
    data = PACK[pack](tar_of(dict(items)))
    found = take(store, tmp_path, data, how, "docker-archive", all=True)
    assert [i.name for i in found] == ["app:1", "localhost/app:one", "app:2"]
    for name, image in (("app:1", one), ("localhost/app:one", one), ("app:2", two)):
        got = store.image(name)
        assert got.config_bytes in image.blobs.values()
        assert got.info.media_type == mediatypes.DOCKER_MANIFEST
        assert [x.digest for x in got.layers] == diff_ids(image)
        assert not got.info.warnings
    # The same archive gives the same manifest, and another way in as well.
    again = take(store, tmp_path, tar_of(files), "file", "docker-archive", all=True)
    assert [i.digest for i in again] == [i.digest for i in found]
    assert sum(i.new_bytes for i in again) == 0


def test_one_of_several_docker_images(store: Store, tmp_path: Path) -> None:
    one, two = make.image(salt="1"), make.image(salt="2")
    files = make.docker_v1_files((one, ["docker.io/library/app:1"]), (two, ["app:2"]))
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(files))
    with pytest.raises(InvalidInputError, match=r"app:1, app:2"):
        store.import_images(f"docker-archive:{path}")
    assert store.import_images(f"docker-archive:{path}:app:1")[0].name == "docker.io/library/app:1"
    assert store.image("docker.io/library/app:1").config_bytes in one.blobs.values()
    store.import_images(f"docker-archive:{path}:@1", "second")
    assert store.image("second").config_bytes in two.blobs.values()
    assert len(list(store.blobs())) == 6
    with pytest.raises(NotFoundError, match="app:3"):
        store.import_images(f"docker-archive:{path}:app:3")


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_docker_layers_as_links_and_compressed(store: Store, tmp_path: Path, how: str) -> None:
    layer = make.tar({"f": b"x" * 2000})
    image = make.image(layer, layer, make.tar({"g": b"y"}))
    files = make.docker_v1_files((image, ["app:1"]))
    paths = json.loads(files["manifest.json"])[0]["Layers"]
    first = paths[0]
    files[paths[1]] = b"->../" + first.encode()
    hard = dict(files, **{paths[1]: b"=>" + first.encode()})
    for n, variant in enumerate((files, hard)):
        (info,) = take(store, tmp_path, tar_of(variant), how, "docker-archive", name=f"app:{n}")
        assert [x.digest for x in store.image(f"app:{n}").layers] == diff_ids(image)
    files[paths[2]] = make.packed(files[paths[2]])
    (info,) = take(store, tmp_path, tar_of(files), how, "docker-archive", name="z")
    assert store.image("z").layers[2].media_type == mediatypes.DOCKER_LAYER_GZIP
    assert not info.warnings
    for loop in ("->layer.tar", "->../nowhere/layer.tar"):
        files[paths[1]] = loop.encode()
        with pytest.raises(LayerstoreError):
            take(store, tmp_path, tar_of(files), how, "docker-archive")


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_a_docker_layer_of_another_diff_id_is_said(store: Store, tmp_path: Path, how: str) -> None:
    files = make.docker_v1_files((make.image(), ["app:1"]))
    (path,) = json.loads(files["manifest.json"])[0]["Layers"]
    files[path] = make.tar({"something": b"else"})
    with pytest.raises(InvalidInputError):
        take(store, tmp_path, tar_of(files), how, "docker-archive", strict=True)
    (info,) = take(store, tmp_path, tar_of(files), how, "docker-archive")
    assert any("diff_id" in w for w in info.warnings)
    assert store.image("app:1").layers[0].digest == digest_of(files[path])


def old_style() -> tuple[dict[str, bytes], list[bytes]]:
    """`docker save` before 1.10."""
    layers = [make.tar({"base": b"b" * 900}), make.tar({}), make.tar({"top": b"t"})]
    ids = [f"{n:x}" * 64 for n in (0xA, 0xB, 0xC)]
    files: dict[str, bytes] = {}
    for n, (name, layer) in enumerate(zip(ids, layers, strict=True)):
        step = {
            "id": name,
            "created": f"2015-01-0{n + 1}T00:00:00Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) step {n}"]},
            "config": {"Env": ["A=b"], "Cmd": ["/bin/sh"]},
            "architecture": "amd64",
            "os": "linux",
            "Size": 3,
        }
        if n:
            step["parent"] = ids[n - 1]
        files[f"{name}/VERSION"] = b"1.0"
        files[f"{name}/json"] = json.dumps(step).encode()
        files[f"{name}/layer.tar"] = layer
    files["repositories"] = json.dumps({"old/app": {"1.0": ids[2], "stable": ids[2]}}).encode()
    return files, layers


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_repositories_style(store: Store, tmp_path: Path, how: str) -> None:
    files, layers = old_style()
    found = take(store, tmp_path, tar_of(files), how, "docker-archive")
    assert [i.name for i in found] == ["old/app:1.0", "old/app:stable"]
    image = store.image("old/app:1.0")
    assert [x.digest for x in image.layers] == [digest_of(x) for x in layers]
    config = json.loads(image.config_bytes)
    assert config["rootfs"] == {"type": "layers", "diff_ids": [digest_of(x) for x in layers]}
    assert config["config"] == {"Env": ["A=b"], "Cmd": ["/bin/sh"]}
    assert not {"id", "parent", "Size"} & set(config)
    assert [h["created_by"] for h in image.history] == [
        f"/bin/sh -c #(nop) step {n}" for n in range(3)
    ]
    assert image.info.platform == "linux/amd64"
    assert image.info.created == "2015-01-03T00:00:00Z"


def test_parents_in_a_circle_are_refused(store: Store, tmp_path: Path) -> None:
    files, _ = old_style()
    base = json.loads(files["a" * 64 + "/json"])
    files["a" * 64 + "/json"] = json.dumps({**base, "parent": "c" * 64}).encode()
    with pytest.raises(InvalidInputError, match="circle"):
        take(store, tmp_path, tar_of(files), "file", "docker-archive")
    files["a" * 64 + "/json"] = json.dumps({**base, "parent": "../../etc"}).encode()
    with pytest.raises(NotFoundError):
        take(store, tmp_path, tar_of(files), "file", "docker-archive")


@pytest.mark.parametrize("how", ["file", "pipe"])
def test_dockers_oci_in_one_form(store: Store, tmp_path: Path, how: str) -> None:
    """As `docker save` of today writes it: a layout, one platform of an index there, manifest.json."""
    amd, arm = make.image(salt="amd"), make.image(salt="arm", arch="arm64")
    index = make.index((amd, make.platform("amd64")), (arm, make.platform("arm64")))
    single = make.image(salt="single")
    files = make.layout_files(
        (index, make.tagged("1", "docker.io/library/app:1")),
        (single, make.tagged("2", "docker.io/library/app:2")),
        lacking=tuple(arm.all),
    )
    listed = []
    for image, tag in ((amd, "app:1"), (single, "app:2")):
        value = json.loads(image.data)
        paths = ["blobs/" + d["digest"].replace(":", "/") for d in value["layers"]]
        config = "blobs/" + value["config"]["digest"].replace(":", "/")
        listed.append({"Config": config, "RepoTags": [tag], "Layers": paths})
    files["manifest.json"] = json.dumps(listed).encode()
    files["repositories"] = b'{"app":{"1":"x"}}'
    data = tar_of(dict(sorted(files.items())))
    found = take(store, tmp_path, data, how, "docker-archive", all=True)
    assert [(i.name, i.digest) for i in found] == [
        ("app:1", index.digest),
        ("app:2", single.digest),
    ]
    assert any(arm.digest in w for w in found[0].warnings)
    assert not found[1].warnings
    # The same as an OCI archive: the names are those of the layout's annotations.
    names = [i.name for i in take(store, tmp_path, data, how, "oci-archive", all=True)]
    assert names == ["docker.io/library/app:1", "docker.io/library/app:2"]


def test_hostile_docker_listings_are_refused(store: Store, tmp_path: Path) -> None:
    files = make.docker_v1_files((make.image(), ["app:1"]))
    good = json.loads(files["manifest.json"])[0]
    for listing in (
        b"",
        b"{}",
        b"[1]",
        b"[" * 9999,
        b'[],"x":1}',
        json.dumps([{**good, "Config": 1}]).encode(),
        json.dumps([{**good, "Config": "../../etc/passwd"}]).encode(),
        json.dumps([{**good, "Layers": "x"}]).encode(),
        json.dumps([{**good, "Layers": []}]).encode(),
        json.dumps([{**good, "Layers": ["../../etc/passwd"]}]).encode(),
        json.dumps([{**good, "RepoTags": [1]}]).encode(),
        json.dumps([]).encode(),
    ):
        with pytest.raises(LayerstoreError):
            take(
                store,
                tmp_path,
                tar_of({**files, "manifest.json": listing}),
                "file",
                "docker-archive",
            )
    assert store.images() == []


# ---- writing ----------------------------------------------------------------------------------


@pytest.fixture
def app(store: Store, tmp_path: Path) -> make.Image:
    image = make.image(make.tar({"a": b"a" * 5000}), make.tar({"b": os.urandom(50_000)}))
    store.import_image(f"oci:{make.layout(tmp_path / 'in', (image, {}))}", "app:1")
    return image


def test_an_oci_archive_is_the_same_every_time(
    store: Store, tmp_path: Path, app: make.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        store.export_image("app:1", f"oci-archive:{tmp_path}/{name}.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as t:
        assert {m.mtime for m in t} == {0}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    store.export_image("app:1", f"oci-archive:{tmp_path}/three.tar:v9")
    with tarfile.open(tmp_path / "three.tar") as t:
        assert {m.mtime for m in t} == {1_700_000_000}
        stores.extract(t, tmp_path / "x")
    assert make.read(tmp_path / "x") == app.all
    assert make.entries(tmp_path / "x") == {"v9": app.digest}


def test_a_docker_archive_holds_configs_and_uncompressed_layers(
    store: Store, tmp_path: Path, app: make.Image
) -> None:
    store.tag("app:1", "other:2")
    store.export_images(["app:1", "other:2"], f"docker-archive:{tmp_path}/d.tar")
    store.export_images(["app:1", "other:2"], f"docker-archive:{tmp_path}/again.tar")
    assert (tmp_path / "d.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    with tarfile.open(tmp_path / "d.tar") as t:
        found = {m.name: t.extractfile(m).read() for m in t}  # type: ignore[union-attr]
    (listed,) = json.loads(found["manifest.json"])
    assert listed["RepoTags"] == ["app:1", "other:2"]
    assert found[listed["Config"]] in app.blobs.values()
    assert [digest_of(found[name]) for name in listed["Layers"]] == diff_ids(app)
    assert set(json.loads(found["repositories"])) == {"app", "other"}
    (_info, _) = store.import_images(f"docker-archive:{tmp_path}/d.tar")
    assert [x.digest for x in store.image("app:1").layers] == diff_ids(app)


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_a_pipe_gets_the_same_archive(
    store: Store, tmp_path: Path, app: make.Image, kind: str
) -> None:
    store.export_image("app:1", f"{kind}:{tmp_path}/a.tar")
    os.mkfifo(tmp_path / "fifo")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    store.export_image("app:1", f"{kind}:{tmp_path}/fifo")
    reader.join(20)
    assert got == [(tmp_path / "a.tar").read_bytes()]


def test_what_docker_archives_cannot_hold_is_refused(store: Store, tmp_path: Path) -> None:
    wrong = {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "00" * 32]}}
    for name, image in (("bad", make.image(config=wrong)), ("art", make.artifact())):
        store.import_image(f"oci:{make.layout(tmp_path / name, (image, {}))}", name)
        with pytest.raises(InvalidInputError, match="oci-archive:"):
            store.export_image(name, f"docker-archive:{tmp_path}/{name}.tar")
        assert not list(tmp_path.glob("*.tar*"))


def test_an_archive_that_is_there_is_replaced_only_by_a_whole_one(
    store: Store, tmp_path: Path, app: make.Image
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"before")

    def stop(step: layerstore.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.export_image("app:1", f"oci-archive:{path}", progress=stop)
    assert path.read_bytes() == b"before"
    store.export_image("app:1", f"oci-archive:{path}")
    assert subprocess.run(["tar", "-tf", path], capture_output=True).returncode == 0
    assert not list(tmp_path.glob("a.tar.*"))
