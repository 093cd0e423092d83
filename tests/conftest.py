"""Fixtures for all tests of the store: an open store in a temporary directory; and which tests can
run here.

Some tests need more than what the build needs: a witness (skopeo), a mount. Where that is missing
they are left out, and the end of the run says so. `.ci/run` installs all of it and leaves nothing out
(LAYERSTORE_ALL_TESTS=1): what is missing there is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from layerstore.layers.content import Content
from layerstore.storage.storage import Storage, open_storage

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

NEEDS = {
    "skopeo": "skopeo",
    "umoci": "umoci",
    "docker-registry": "docker-registry",
    "openssl": "openssl",
    "containerd": "containerd",
    "ctr": "containerd",
    "busybox": "busybox-static",
    "podman": "podman",
    "buildah": "buildah",
    "crun": "crun",
    "fuse-overlayfs": "fuse-overlayfs",
    "gcc": "gcc",
    "bsdtar": "libarchive-tools",
    "mkfs.ext4": "e2fsprogs",
    "setfacl": "acl",
    "lowntfs-3g": "ntfs-3g",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.xfs": "xfsprogs",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "qemu-aarch64-static": "qemu-user-static",
    "pigz": "pigz",
    "go": "golang-go",
    "javac": "default-jdk-headless",
    "systemd-analyze": "systemd",
    "strace": "strace",
    "newuidmap": "uidmap",
    "root": "",
}
"""What a test may need (`@pytest.mark.needs`, or a fixture of that name), and the Debian package."""


def _missing(need: str) -> bool:
    return os.geteuid() != 0 if need == "root" else shutil.which(need) is None


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores SIGINT, and so would every child that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "needs(*what): programs, or root, without which it cannot run"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {need for need in NEEDS if _missing(need)}
    wants = {item: set(NEEDS) & set(getattr(item, "fixturenames", ())) for item in items}
    for item, wanted in wants.items():
        for mark in item.iter_markers("needs"):
            wanted.update(mark.args)
        assert wanted <= set(NEEDS), f"{item.nodeid}: tests/conftest.py does not know {wanted}"
    if os.environ.get("LAYERSTORE_ALL_TESTS") != "1":
        items[:] = [item for item in items if not wants[item] & missing]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = [need for need in NEEDS if _missing(need)]
    if missing:
        packages = " ".join(NEEDS[need] for need in missing if NEEDS[need])
        terminalreporter.write_line(f"LEFT OUT: the tests that need {', '.join(missing)}")
        if packages:
            terminalreporter.write_line(f"          apt-get install {packages}")


@pytest.fixture
def where(tmp_path: Path) -> str:
    """The directory of a store that is not there yet."""
    return str(tmp_path / "store")


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: syncs cost nothing there. For tests of what a dead
    process leaves, which no disk takes part in."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    made = tempfile.mkdtemp(dir="/dev/shm", prefix="layerstore-test-")
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made)


@pytest.fixture
def storage(where: str) -> Iterator[Storage]:
    """A new, open store."""
    made = open_storage(where, timeout=20.0)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def content(storage: Storage) -> Content:
    """The blobs of a new, open store."""
    return Content(storage)
