"""Snapshots and bundles of who is not root: an ordinary user, and root of a user namespace."""

from __future__ import annotations

import json
import os

import pytest
import rootless
from test_bundle import program  # noqa: F401 (a fixture)

CHANGE = """
def change(root):
    with open(root + "/etc/motd", "w") as f:
        f.write("changed")
    os.mkdir(root + "/made")
    with open(root + "/made/file", "w") as f:
        f.write("new")
    os.chmod(root + "/made/file", 0o640)
    os.unlink(root + "/d/one")
    os.rename(root + "/late/file", root + "/moved")
    shutil.rmtree(root + "/gone")
    os.mkdir(root + "/gone")
    with open(root + "/gone/again", "w") as f:
        f.write("again")
"""

LIFE = """
driver, expected, owners = json.loads(sys.stdin.readline())

def tree(root):
    found = making.tree(os.path.realpath(root), mtimes=expected != "fuse")
    if not owners:
        for one in found.values():
            del one["owner"]
    return found

def same(a, b):
    assert a == b, [(n, a.get(n), b.get(n)) for n in {*a, *b} if a.get(n) != b.get(n)]

with layerstore.open(work + "/store") as store:
    making.image(store)
    store.checkout("app:1", work + "/want")
    store.snapshots.prepare("k", "app:1")
    info = store.snapshots.mount("k", work + "/m", driver=driver)
    assert info.driver == expected, info
    assert store.snapshots.get("k").mounts == (work + "/m",)
    same(tree(work + "/m"), tree(work + "/want"))
    change(work + "/m")
    seen = making.tree(os.path.realpath(work + "/m"), mtimes=False)
    store.snapshots.unmount("k")
    assert os.listdir(work + "/m") == []
    assert store.snapshots.usage("k").inodes > 5
    store.snapshots.commit("k", "app:2")
    store.checkout("app:2", work + "/out")
    same(making.tree(work + "/out", mtimes=False), seen)
    new = [e for e in store.image("app:2").entries() if e.path in ("made", "made/file", "gone/again")]
    print(json.dumps([[e.path, e.mode, e.uid, e.gid] for e in new]))
    # It goes on where it was left, and a second one begins where the image is.
    store.snapshots.mount("k", work + "/m", driver=driver)
    assert making.tree(os.path.realpath(work + "/m"), mtimes=False) == seen
    store.snapshots.unmount("k")
    store.snapshots.view("v", "app:1")
    store.snapshots.mount("v", work + "/v", driver=driver)
    assert tree(work + "/v") == tree(work + "/want")
    store.snapshots.unmount("v")
    for key in "kv":
        store.snapshots.remove(key)
    for name in ("app:1", "app:2"):
        store.untag(name)
with layerstore.open(work + "/store") as store:
    store.gc(aggressive=True)
    assert store.check(full=True).ok
    left = [n for d in ("snapshots", "unpacked") for n in os.listdir(f"{store.path}/{d}")]
    assert set(left) <= {"empty"}
"""

WAYS = [
    pytest.param("", False, "auto", "copy", id="ordinary user, no fuse"),
    pytest.param("", True, "auto", "fuse", id="ordinary user"),
    pytest.param("one", False, "auto", "overlay", id="namespace of one id"),
    pytest.param("one", True, "fuse", "fuse", id="namespace of one id, fuse"),
    pytest.param("one", False, "copy", "copy", id="namespace of one id, copy"),
    pytest.param("many", False, "auto", "overlay", id="namespace of many ids"),
    pytest.param("many", True, "fuse", "fuse", id="namespace of many ids, fuse"),
    pytest.param("many", False, "copy", "copy", id="namespace of many ids, copy"),
]


@pytest.mark.needs("root", "fuse-overlayfs")
@pytest.mark.parametrize(("namespace", "fuse", "driver", "expected"), WAYS)
def test_a_snapshot_lives_without_root(namespace, fuse, driver, expected):
    """Shown as checkout writes it, changed, committed, shown again, removed; nothing is left. What was
    made is root's in the layer, whoever it was on this machine."""
    with rootless.home() as work:
        said = json.dumps([driver, expected, namespace == "many"])
        out = rootless.run(CHANGE + LIFE, work, namespace=namespace, fuse=fuse, said=said)
    assert json.loads(out) == [
        ["gone/again", 0o644, 0, 0],
        ["made", 0o755, 0, 0],
        ["made/file", 0o640, 0, 0],
    ]


@pytest.mark.needs("root", "newuidmap")
@pytest.mark.parametrize("driver", ["overlay", "copy"])
def test_a_snapshot_lives_on_subordinate_ids(driver):
    """The ids that /etc/subuid and /etc/subgid give to a user, through newuidmap and newgidmap: owners
    are those of the layers, in a checkout as in a snapshot."""
    with rootless.home() as work:
        said = json.dumps([driver, driver, True])
        out = rootless.run(CHANGE + LIFE, work, namespace="subids", said=said)
        owners = {os.lstat(path).st_uid for path in (work / "want").rglob("*")}
    assert [made[2:] for made in json.loads(out)] == [[0, 0]] * 3
    assert rootless.UID in owners  # root inside
    assert any(100_000 <= uid < 165_535 for uid in owners)


LEFT = """
store = layerstore.open(work + "/store")
if not store.images():
    making.image(store)
    store.snapshots.prepare("k", "app:1")
assert store.snapshots.get("k").mounts == ()
store.snapshots.mount("k", work + "/m")
print(sorted(os.listdir(work + "/m/d")), flush=True)
with open(work + f"/m/d/{len(os.listdir(work + '/m/d'))}", "w") as f:
    f.write("x")
os.kill(os.getpid(), 9)
"""


@pytest.mark.needs("root")
def test_a_mount_goes_with_its_namespace_and_changes_stay():
    with rootless.home() as work:
        first = rootless.run(LEFT, work, namespace="one", status=-9)
        second = rootless.run(LEFT, work, namespace="one", status=-9)
    assert (first, second) == ("['one', 'three']\n", "['2', 'one', 'three']\n")


CAPS = 0x800405FB
"""Of a container's root: bits of linux/capability.h."""

BUNDLE = """
from making import member
user, key = json.loads(sys.stdin.readline())
with open("prog", "rb") as f:
    program = f.read()
folders = [member(f"{name}/") for name in ("proc", "dev", "sys", "srv")]
tools = [member("prog", program, mode=0o755), member("out/", mode=0o1777)]
with layerstore.open(work + "/store") as store:
    making.image(
        store, layers=[[*making.BASE, *folders], tools], entrypoint=["/prog"], cmd=["one", "two"],
        env={"A": "b c"}, user=user, workdir="/srv",
    )
    store.bundle("app:1", work + "/b", snapshot=key)
    command = ["crun", "--root", work + "/run", "--cgroup-manager=disabled", "run", "-b", work + "/b"]
    done = subprocess.run([*command, "c"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    print(done.stdout, end="")
    if key:
        store.snapshots.unmount(key)
        store.snapshots.commit(key, "app:2")
        assert "out/made" in [e.path for e in store.image("app:2").entries()]
    else:
        assert os.path.exists(work + "/b/rootfs/out/made")
"""


@pytest.mark.needs("root", "crun", "gcc")
@pytest.mark.parametrize("key", [None, "k"], ids=["files", "snapshot"])
@pytest.mark.parametrize("user", ["", "bob"])
@pytest.mark.parametrize("namespace", ["", "one", "many"])
def test_crun_runs_a_bundle_without_root(program, namespace, user, key):  # noqa: F811
    """The user is the image's, whatever ids there are to give away; further groups only with many."""
    with rootless.home() as work:
        (work / "prog").write_bytes(program)
        out = rootless.run(BUNDLE, work, namespace=namespace, said=json.dumps([user, key]))
    who = "uid=1000 gid=100" if user else "uid=0 gid=0"
    home = "/home/bob" if user else "/root"
    groups = ("10,100" if user else "10") if namespace == "many" else ""
    caps = 0 if user else CAPS
    said = f"cwd=/srv HOME={home} A=b c args=one,two wrote=1 caps={caps:x}\n"
    assert out == f"{who} groups={groups} {said}"


UMOCI = """
with layerstore.open(work + "/store") as store:
    making.image(store, user="bob", env={"A": "b"}, labels={"org.example.a": "1"}, ports=["80"])
    store.export_image("app:1", "oci:layout:x")
    store.bundle("app:1", work + "/ours")
subprocess.run(
    ["umoci", "unpack", "--rootless", "--image", "layout:x", "theirs"], check=True, capture_output=True
)
print(json.dumps([json.load(open(f"{name}/config.json")) for name in ("ours", "theirs")]))
"""


@pytest.mark.needs("root", "umoci")
def test_a_rootless_bundle_says_what_umocis_says():
    with rootless.home() as work:
        ours, theirs = json.loads(rootless.run(UMOCI, work))
    for one in (ours, theirs):
        one["mounts"] = {m["destination"]: m for m in one["mounts"]}
        one["linux"]["namespaces"] = {n["type"] for n in one["linux"]["namespaces"]}
    process = ("args", "cwd", "user", "noNewPrivileges")
    assert {k: ours["process"][k] for k in process} == {k: theirs["process"][k] for k in process}
    assert set(theirs["mounts"]) - set(ours["mounts"]) <= {"/etc/resolv.conf", "/sys/fs/cgroup"}
    assert {"rbind", "ro"} <= set(ours["mounts"]["/sys"]["options"])
    assert {"rbind", "ro"} <= set(theirs["mounts"]["/sys"]["options"])
    assert "user" in ours["linux"]["namespaces"] & theirs["linux"]["namespaces"]
    assert "network" not in theirs["linux"]["namespaces"]
    for name, own in (("uidMappings", rootless.UID), ("gidMappings", rootless.GID)):
        (a,), (b,) = ours["linux"][name], theirs["linux"][name]
        assert a["hostID"] == b["hostID"] == own
        assert a["size"] == b["size"] == 1
    assert "resources" not in ours["linux"]
