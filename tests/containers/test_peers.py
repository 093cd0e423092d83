"""What other tools make of our images and bundles: podman, buildah, umoci, skopeo."""

from __future__ import annotations

import json
from pathlib import Path

import making
import peers
import pytest
from making import image, member, tree
from test_bundle import CHANGES, SAID, document, program, runnable  # noqa: F401 (program: a fixture)

import layerstore

HOW = ["commit", "squash", "snapshot", "gzip", "zstd"]


def made(store: layerstore.Store, tmp_path: Path, how: str, layers: list) -> None:
    """`app:1`, whose last layer or two are made in one of our ways."""
    image(store, "base:1", layers[:1], **CHANGES)
    more = [making.put(store, *one) for one in layers[1:]]
    store.commit("base:1", "app:0", layers=more)
    store.snapshots.prepare("k", "app:0")
    with making.mounted(store, "k", tmp_path / "m") as root:
        (root / "new").write_text("new")
        (root / "d/one").unlink()
        (root / "d/link").symlink_to("three")
    if how == "squash":
        layer = store.snapshots.diff("k")
        store.commit("app:0", "app:1", layers=[layer.digest], squash=True)
    elif how == "commit":
        layer = store.snapshots.diff("k")
        store.commit("app:0", "app:1", layers=[layer.digest])
    else:
        store.snapshots.commit("k", "app:1", message="changed")
    compression = how if how in ("gzip", "zstd") else None
    store.export_image("app:1", f"oci:{tmp_path}/layout:app", compression=compression)
    store.export_image("app:1", f"oci-archive:{tmp_path}/app.tar:app:1", compression=compression)


@pytest.mark.needs("root", "podman", "buildah", "umoci", "skopeo", "crun", "gcc")
@pytest.mark.parametrize("how", HOW)
def test_other_tools_take_and_run_what_was_committed(store, tmp_path, home, program, how):  # noqa: F811
    """podman runs it, buildah and umoci show the tree that checkout writes, skopeo copies it."""
    made(store, tmp_path, how, runnable(program))
    layout = f"oci:{tmp_path}/layout:app"
    store.checkout("app:1", tmp_path / "want")
    want = tree(tmp_path / "want")
    assert want["new"]["names"] == ["new"]
    assert "d/one" not in want

    peers.podman(home, "load", "-i", tmp_path / "app.tar")
    (name,) = peers.podman(home, "images", "-q").split()
    assert peers.podman_run(home, name) == (7, SAID)

    container = peers.buildah(home, "from", layout)
    try:
        root = peers.buildah(home, "mount", container)
        # It keeps no time of a directory whose entries a layer takes away without naming it.
        assert tree(root, mtimes=False) == tree(tmp_path / "want", mtimes=False)
    finally:
        peers.buildah(home, "rm", container)

    making.run("skopeo", "copy", layout, f"dir:{tmp_path}/dir")
    shown = json.loads(making.run("skopeo", "inspect", "--config", layout))
    assert shown["config"]["User"] == "bob"
    assert len([one for one in shown["history"] if not one.get("empty_layer")]) == len(
        shown["rootfs"]["diff_ids"]
    )
    if how != "zstd":  # umoci 0.4 knows no zstd
        making.run("umoci", "unpack", "--image", f"{tmp_path}/layout:app", tmp_path / "umoci")
        assert tree(tmp_path / "umoci/rootfs") == want


USERS = ["", "root", "bob", "1000", "bob:wheel", "bob:77", "4242", "4242:users"]


@pytest.mark.needs("root", "podman", "crun")
def test_a_bundle_says_what_podman_gives_to_crun(store, tmp_path, home):
    """Users, further groups, capabilities, environment, directory, what is mounted and masked."""
    folders = [member(f"{name}/") for name in ("proc", "dev", "sys")]
    layers = [[*making.BASE, *folders, member("prog", b"#!/none\n", mode=0o755)]]
    for n, user in enumerate(USERS):
        image(store, f"app:{n}", layers, **{**CHANGES, "user": user})
        store.export_image(f"app:{n}", f"oci-archive:{tmp_path}/{n}.tar:app:{n}")
        store.bundle(f"app:{n}", tmp_path / f"ours{n}")
        ours = document(tmp_path / f"ours{n}")
        peers.podman(home, "load", "-i", tmp_path / f"{n}.tar")
        made = peers.podman(home, "create", *peers.ALONE, f"localhost/app:{n}").strip()
        peers.podman(home, "init", made)
        where = peers.podman(home, "inspect", "--format", "{{.OCIConfigPath}}", made).strip()
        theirs = json.loads(Path(where).read_text())
        peers.podman(home, "rm", "-f", made)
        compare(ours, theirs, user)


def compare(ours: dict, theirs: dict, user: str) -> None:
    a, b = ours["process"], theirs["process"]
    assert a["args"] == b["args"], user
    assert a["cwd"] == b["cwd"] == "/srv"
    for key in ("uid", "gid"):
        assert a["user"][key] == b["user"][key], user
    further = [set(p["user"].get("additionalGids", ())) for p in (a, b)]
    # Of root podman names the first group or not, by whether the image says "root" or nothing.
    root = {0} if a["user"]["uid"] == 0 else set()
    assert further[0] - root == further[1] - root, user
    assert {k: sorted(v) for k, v in a["capabilities"].items()} == {
        k: sorted(v) for k, v in b["capabilities"].items()
    }, user
    env = [dict(line.split("=", 1) for line in p["env"]) for p in (a, b)]
    assert {k: env[0].get(k) for k in ("PATH", "A")} == {k: env[1].get(k) for k in ("PATH", "A")}
    # podman leaves HOME of somebody without a line in passwd to whoever reads it; Docker says "/".
    assert env[0]["HOME"] == env[1].get("HOME", "/"), user
    mounts = [{m["destination"]: m for m in d["mounts"]} for d in (ours, theirs)]
    own = {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/run/secrets"}
    assert set(mounts[1]) - own == set(mounts[0])
    for place in ("/proc", "/dev/pts", "/dev/mqueue", "/sys"):
        x, y = (set(m[place].get("options", ())) for m in mounts)
        assert x - {"rprivate"} == y - {"rprivate"}, place
    spaces = [{n["type"] for n in d["linux"]["namespaces"]} for d in (ours, theirs)]
    assert spaces[1] <= spaces[0]
    for key in ("maskedPaths", "readonlyPaths"):
        hidden = set(ours["linux"]["maskedPaths"]) | set(ours["linux"]["readonlyPaths"])
        assert set(theirs["linux"][key]) - {"/sys/fs/selinux", "/sys/dev/block"} <= hidden, key
