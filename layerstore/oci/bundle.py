"""config.json of a runtime bundle out of an image's config (image-spec conversion.md; runtime-spec).

What the image does not say is as podman has it: own namespaces, the usual mounts, few capabilities, and
none of them in effect for a user that is not root (who would otherwise pass over every file's mode).
Labels become annotations as they are; the others are those that conversion.md lists, unless a label has
the same name. Volumes stay in the root filesystem, which is the bundle's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from . import jsonio

if TYPE_CHECKING:
    from ..values import IdMap
    from .users import User

VERSION = "1.0.2"
CONFIG = "config.json"
ROOTFS = "rootfs"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
]
_SETS = ("bounding", "effective", "permitted")
_MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
]
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_TTY = 5
"""The group of terminals, by convention."""
_IMAGE = "org.opencontainers.image."


def image_config(data: bytes, digest: str) -> dict[str, Any]:
    """An image's config for `runtime_config`: the fields that matter have the types that they should.
    Raises InvalidInputError naming field and config."""
    what = f"config {digest}"
    value: dict[str, Any] = jsonio.parse(data, what, digest=digest, limit=jsonio.MAX_CONFIG)
    runs = value.get("config") or {}
    if not isinstance(runs, dict):
        raise InvalidInputError(f"{what}: config is no object", digest=digest)
    for key in ("Entrypoint", "Cmd", "Env"):
        found = runs.get(key) or []
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise InvalidInputError(f"{what}: {key} is no list of strings", digest=digest)
    for key in ("Labels", "ExposedPorts", "Volumes"):
        if not isinstance(runs.get(key) or {}, dict):
            raise InvalidInputError(f"{what}: {key} is no object", digest=digest)
    for key in ("User", "WorkingDir", "StopSignal"):
        if not isinstance(runs.get(key) or "", str):
            raise InvalidInputError(f"{what}: {key} is no string", digest=digest)
    return {**value, "config": runs}


def ids_are_here(user: User) -> bool:
    """Whether this process may give all ids away that a container of this user needs: a user namespace
    may have few (user_namespaces(7)). The group of terminals is one of them."""
    gids = (0, user.gid, *user.groups, _TTY)
    here = {"uid_map": (0, user.uid), "gid_map": gids}
    for name, wanted in here.items():
        with open(f"/proc/self/{name}") as f:
            known = [(int(first), int(count)) for first, _, count in map(str.split, f)]
        for number in wanted:
            if not any(first <= number < first + count for first, count in known):
                return False
    return os.geteuid() == 0


def runtime_config(
    image: Mapping[str, Any],
    user: User,
    *,
    args: Sequence[str] | None = None,
    readonly: bool = False,
    uids: IdMap = (),
    gids: IdMap = (),
    rootless: bool = False,
) -> bytes:
    """The document. `image`: what `image_config` gave; `args` in place of the image's own. With maps
    the container has a user namespace; `rootless`: it is run by who has a single id to give it."""
    runs = image["config"]
    command = list(args) if args else [*(runs.get("Entrypoint") or ()), *(runs.get("Cmd") or ())]
    environment = list(runs.get("Env") or ())
    known = {line.partition("=")[0] for line in environment}
    if "PATH" not in known:
        environment.insert(0, PATH)
    if "HOME" not in known:
        environment.append(f"HOME={user.home}")
    process: dict[str, Any] = {
        "terminal": False,
        "user": {"uid": user.uid, "gid": user.gid},
        "args": command or ["sh"],
        "env": environment,
        "cwd": runs.get("WorkingDir") or "/",
        "capabilities": dict.fromkeys(_SETS if user.uid == 0 else _SETS[:1], CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }
    # The first group is among the further ones, so that no program can leave it: a file may deny to its
    # group what it allows others.
    groups = [*(() if user.uid == 0 else (user.gid,)), *user.groups]
    if groups and not rootless:
        process["user"]["additionalGids"] = groups
    spaces = ["pid", "network", "ipc", "uts", "mount"]
    spaces += ["user"] if uids else ["cgroup"]
    linux: dict[str, Any] = {
        "namespaces": [{"type": name} for name in spaces],
        "maskedPaths": _MASKED,
        "readonlyPaths": _READONLY,
    }
    if uids:
        linux["uidMappings"] = _mappings(uids)
        linux["gidMappings"] = _mappings(gids)
    if not rootless:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    document = {
        "ociVersion": VERSION,
        "process": process,
        "root": {"path": ROOTFS, "readonly": readonly},
        "hostname": "layerstore",
        "mounts": _mounts(rootless),
        "annotations": annotations_of(image),
        "linux": linux,
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _mappings(maps: IdMap) -> list[dict[str, int]]:
    return [{"containerID": a, "hostID": b, "size": n} for a, b, n in maps]


def annotations_of(image: Mapping[str, Any]) -> dict[str, str]:
    """As conversion.md says; what is no text in the config is left out."""
    runs = image["config"]
    found = {
        "os": image.get("os"),
        "architecture": image.get("architecture"),
        "variant": image.get("variant"),
        "os.version": image.get("os.version"),
        "os.features": ",".join(map(str, image.get("os.features") or ())),
        "author": image.get("author"),
        "created": image.get("created"),
        "stopSignal": runs.get("StopSignal"),
        "exposedPorts": ",".join(sorted(runs.get("ExposedPorts") or ())),
    }
    out = {_IMAGE + key: value for key, value in found.items() if value and isinstance(value, str)}
    labels = runs.get("Labels") or {}
    out.update({key: value for key, value in labels.items() if isinstance(value, str)})
    return out


def _mounts(rootless: bool) -> list[dict[str, Any]]:
    tight = ["nosuid", "noexec", "nodev"]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    out = [
        _mount("/proc", "proc", "proc", tight),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", [*terminals, *(() if rootless else (f"gid={_TTY}",))]
        ),
        _mount("/dev/shm", "tmpfs", "shm", [*tight, "mode=1777", "size=65536k"]),
        _mount("/dev/mqueue", "mqueue", "mqueue", tight),
    ]
    if rootless:
        return [*out, _mount("/sys", "none", "/sys", ["rbind", *tight, "ro"])]
    return [
        *out,
        _mount("/sys", "sysfs", "sysfs", [*tight, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*tight, "relatime", "ro"]),
    ]


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"destination": target, "type": kind, "source": source}
    if options:
        out["options"] = options
    return out


def check_target(target: str) -> None:
    """Raises InvalidInputError unless a bundle can be made there: a directory that is empty or missing,
    or holds a root filesystem that was never finished."""
    try:
        there = set(os.listdir(target))
    except FileNotFoundError:
        return
    if there - {ROOTFS}:
        raise InvalidInputError(
            f"{target} is not empty: give an empty or new directory", path=target
        )


def write_config(target: str, data: bytes) -> None:
    """Puts config.json there, last and at once: a bundle that has one is whole."""
    path = os.path.join(target, CONFIG)
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as f:
        f.write(data)
    os.rename(f"{path}.new", path)
