"""bundle: what a runtime gets out of an image, and that it runs; users looked up in hostile images."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import making
import pytest
from making import link, member

import layerstore

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int n, char **args) {
    gid_t groups[64];
    char where[4096];
    int count = getgroups(64, groups);
    printf("uid=%d gid=%d groups=", getuid(), getgid());
    for (int i = 0; i < count; i++) printf("%s%d", i ? "," : "", groups[i]);
    printf(" cwd=%s HOME=%s A=%s args=", getcwd(where, sizeof where), getenv("HOME"), getenv("A"));
    for (int i = 1; i < n; i++) printf("%s%s", i > 1 ? "," : "", args[i]);
    FILE *made = fopen("/out/made", "w");
    printf(" wrote=%d", made && fputs("made", made) > 0);
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2];
    syscall(SYS_capget, &head, caps);
    printf(" caps=%x\n", caps[0].effective);
    return 7;
}
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program that says who and where it is, writes /out/made and ends with status 7."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "prog.c").write_text(PROGRAM)
    making.run("gcc", "-static", "-Os", "-o", folder / "prog", folder / "prog.c")
    return (folder / "prog").read_bytes()


def runnable(program: bytes) -> list:
    folders = [member(f"{name}/") for name in ("proc", "dev", "sys", "srv")]
    out = [member("prog", program, mode=0o755), member("out/", mode=0o1777)]
    return [[*making.BASE, *folders], out, making.MIDDLE]


def crun(bundle: Path, name: str) -> subprocess.CompletedProcess:
    """Runs a bundle. crun refuses a machine with cgroups of both versions, so it sees one only."""
    one = "if test -d /sys/fs/cgroup/unified; then umount -l /sys/fs/cgroup/unified; fi"
    run = f"exec crun --cgroup-manager=disabled run -b {bundle} {name}"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{one}; {run}"], capture_output=True, text=True, timeout=60
    )


CHANGES = {
    "entrypoint": ["/prog"],
    "cmd": ["one", "two"],
    "env": {"A": "b c"},
    "user": "bob",
    "workdir": "/srv",
}
SAID = "uid=1000 gid=100 groups=10,100 cwd=/srv HOME=/home/bob A=b c args=one,two wrote=1 caps=0\n"
MAP = ((0, 100_000, 65_536),)


@pytest.mark.parametrize("kind", ["files", "snapshot", "mapped"])
def test_crun_runs_it(store, tmp_path, program, kind):
    making.image(store, layers=runnable(program), **CHANGES)
    bundle = tmp_path / "bundle"
    maps = {"uid_map": MAP, "gid_map": MAP} if kind == "mapped" else {}
    key = None if kind == "files" else "k"
    if kind == "mapped":
        for folder in (tmp_path, *tmp_path.parents[:2]):
            os.chmod(folder, 0o755)
    report = store.bundle("app:1", bundle, snapshot=key, **maps)
    assert (report.uid, report.gid, report.path) == (1000, 100, str(bundle))
    done = crun(bundle, f"layerstore-test-{os.getpid()}")
    assert (done.returncode, done.stdout) == (7, SAID), done.stderr
    made = os.stat(bundle / "rootfs/out/made")
    assert made.st_uid == (101_000 if kind == "mapped" else 1000)
    if key is not None:
        store.snapshots.unmount(key)
        store.snapshots.commit(key, "app:2")
        found = {e.path: e for e in store.image("app:2").entries("out")}
        assert found["out/made"].uid == 1000


def document(bundle: Path) -> dict:
    return json.loads((bundle / "config.json").read_text())


def test_it_says_what_umoci_says(store, tmp_path):
    making.image(store, **CHANGES, labels={"org.example.a": "1"}, ports=["80"], author="me")
    store.export_image("app:1", f"oci:{tmp_path}/layout:x")
    making.run("umoci", "unpack", "--image", f"{tmp_path}/layout:x", tmp_path / "umoci")
    store.bundle("app:1", tmp_path / "ours")
    ours, theirs = document(tmp_path / "ours"), document(tmp_path / "umoci")
    # As podman, and unlike umoci: the first group is among the further ones.
    assert ours["process"]["user"].pop("additionalGids") == [100, 10]
    assert theirs["process"]["user"].pop("additionalGids") == [10]
    for key in ("args", "cwd", "user"):
        assert ours["process"][key] == theirs["process"][key], key
    assert {"A=b c", "HOME=/home/bob"} <= set(ours["process"]["env"]) & set(
        theirs["process"]["env"]
    )
    shared = set(ours["annotations"]) & set(theirs["annotations"])
    assert {"org.example.a", "org.opencontainers.image.exposedPorts"} <= shared
    for key in shared:
        assert ours["annotations"][key] == theirs["annotations"][key]
    assert making.tree(tmp_path / "ours/rootfs") == making.tree(tmp_path / "umoci/rootfs")


def test_a_label_wins_over_what_would_be_an_annotation(store, tmp_path):
    name = "org.opencontainers.image.author"
    making.image(store, author="the config", labels={name: "the label"})
    store.bundle("app:1", tmp_path / "b")
    assert document(tmp_path / "b")["annotations"][name] == "the label"


@pytest.mark.parametrize(
    ("user", "want"),
    [
        ("", (0, 0, [10])),
        ("root", (0, 0, [10])),
        ("bob", (1000, 100, [100, 10])),
        ("1000", (1000, 100, [100, 10])),
        ("bob:wheel", (1000, 10, [10])),
        ("bob:77", (1000, 77, [77])),
        ("4242", (4242, 0, [0])),
        ("4242:users", (4242, 100, [100])),
    ],
)
def test_users_and_groups_by_name_and_number(store, tmp_path, user, want):
    making.image(store, user=user)
    store.bundle("app:1", tmp_path / "b")
    found = document(tmp_path / "b")["process"]["user"]
    assert (found["uid"], found["gid"], found.get("additionalGids", [])) == want


@pytest.mark.parametrize(
    "user", ["nobody", "bob:none", "4294967295", "99999999999999", "bob:-1", "-1"]
)
def test_a_user_that_cannot_be_is_said(store, tmp_path, user):
    making.image(store, user=user)
    with pytest.raises(layerstore.InvalidInputError):
        store.bundle("app:1", tmp_path / "b")
    assert not (tmp_path / "b/config.json").exists()


HOST = b"evil:x:0:0::/root:/bin/sh\n"
HOSTILE = {
    "leads outside": [link("etc/passwd", "../../../../../../etc/passwd")],
    "leads to itself": [link("etc/passwd", "passwd")],
    "goes round": [link("etc/passwd", "../a/b"), link("a", "etc"), link("etc/b", "../a/passwd")],
    "a directory": [member("etc/passwd/")],
    "a fifo": [member("etc/passwd", type=b"6")],
    "a device": [member("etc/passwd", type=b"3", devmajor=1, devminor=5)],
    "nonsense": [member("etc/passwd", b"\0\xff:::\nbob\n:x:1:1\nbob:x:abc:1::\n" + b"a" * 70_000)],
    "negative": [member("etc/passwd", b"bob:x:-1:0::/:\nbob:x:99999999999:0::/:\n")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_passwd_gives_nobody_away(store, tmp_path, name):
    """Nothing of this machine is read, nothing hangs: the user is not found, or the loop is said."""
    making.image(store, layers=[[member("etc/"), *HOSTILE[name]]], user="bob")
    with pytest.raises(layerstore.InvalidInputError):
        store.bundle("app:1", tmp_path / "b")
    making.image(store, "app:2", layers=[[member("etc/"), *HOSTILE[name]]], user="root")
    try:
        store.bundle("app:2", tmp_path / "c")
    except layerstore.InvalidInputError:
        return
    raise AssertionError("root of this machine was found")


def test_a_passwd_that_is_a_link_within_the_image_is_read(store, tmp_path):
    layers = [[link("etc/passwd", "/lib/passwd"), member("lib/passwd", b"eve:x:9:8::/home/e:\n")]]
    making.image(store, layers=layers, user="eve")
    assert store.bundle("app:1", tmp_path / "b").uid == 9
    assert "HOME=/home/e" in document(tmp_path / "b")["process"]["env"]


def test_a_passwd_without_end_is_not_read(store, tmp_path):
    making.image(store, layers=[[member("etc/passwd", b"x" * (17 << 20))]], user="bob")
    with pytest.raises(layerstore.LimitError):
        store.bundle("app:1", tmp_path / "b")


def test_where_a_bundle_cannot_be_made(store, tmp_path):
    making.image(store)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    with pytest.raises(layerstore.InvalidInputError, match="not empty"):
        store.bundle("app:1", tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["file"]
    with pytest.raises(layerstore.NotFoundError):
        store.bundle("none:1", tmp_path / "b")
    store.bundle("app:1", tmp_path / "b")
    with pytest.raises(layerstore.InvalidInputError, match="not empty"):
        store.bundle("app:1", tmp_path / "b")


def test_a_snapshot_key_that_is_taken_leaves_no_bundle(store, tmp_path):
    making.image(store)
    store.snapshots.prepare("k", "app:1")
    with pytest.raises(layerstore.InvalidInputError, match="already"):
        store.bundle("app:1", tmp_path / "b", snapshot="k")
    assert not (tmp_path / "b/config.json").exists()
    assert [one.key for one in store.snapshots.list()] == ["k"]


def test_another_command_and_a_root_that_is_not_to_be_changed(store, tmp_path):
    making.image(store, **CHANGES)
    store.bundle("app:1", tmp_path / "b", args=["/bin/true", "x"], readonly=True)
    found = document(tmp_path / "b")
    assert found["process"]["args"] == ["/bin/true", "x"]
    assert found["root"] == {"path": "rootfs", "readonly": True}


def test_reflink_is_checkouts(store, tmp_path, monkeypatch):
    making.image(store)
    asked = []
    real = layerstore.Store.checkout

    def checkout(self, *args, **options):
        asked.append(options["reflink"])
        return real(self, *args, **options)

    monkeypatch.setattr(layerstore.Store, "checkout", checkout)
    store.bundle("app:1", tmp_path / "shares")
    store.bundle("app:1", tmp_path / "writes", reflink=False)
    assert asked == [True, False]
