"""Section on exactness: every image in and out by each transport, with other tools as witnesses."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from benchmarks.corpus import Layout
from benchmarks.measure import call
from benchmarks.report import Figure
from benchmarks.setting import Setting, installed


def _same_blobs(source: Layout, target: Layout) -> int:
    """How many blobs of `source` lie in `target`, byte for byte. Raises when one does not."""
    count = 0
    for path in (source.path / "blobs/sha256").iterdir():
        if not filecmp.cmp(path, target.path / "blobs/sha256" / path.name, shallow=False):
            raise RuntimeError(f"{path.name} differs in {target.path}")
        count += 1
    return count


def _digests(s: Setting, store: Path) -> set[str]:
    return {image["digest"] for image in s.ask(store, "images")["images"]}


def _archive_blobs(archive: Path) -> set[str]:
    """The blobs of an oci-archive, each hashed and held against its name."""
    found = set()
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile() or not member.name.startswith("blobs/sha256/"):
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
            if digest != Path(member.name).name:
                raise RuntimeError(f"{archive}: {member.name} holds {digest}")
            found.add(digest)
    return found


def _docker_archive(archive: Path) -> tuple[str, list[str]]:
    """Digest of the config and of each layer's tar in a docker-archive of one image."""
    hashes: dict[str, str] = {}
    links: dict[str, str] = {}
    manifest = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.issym():
                links[member.name] = os.path.normpath(
                    os.path.join(os.path.dirname(member.name), member.linkname)
                )
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is None:
                continue
            if member.name == "manifest.json":
                manifest = json.load(stream)
                continue
            digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
            hashes[member.name] = f"sha256:{digest}"
    (image,) = manifest
    layers = [hashes[links.get(name, name)] for name in image["Layers"]]
    return hashes[image["Config"]], layers


def _room(s: Setting) -> Path:
    """Where an unpacked image may lie for a moment: in memory, if it fits there."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    return Path(tempfile.mkdtemp(dir=memory if roomy else s.work, prefix="bench-"))


def _witnesses(s: Setting, layout: Layout) -> dict[str, int]:
    """Copies every image with skopeo and unpacks it with umoci; both check all digests."""
    seen = {"skopeo": 0, "umoci": 0}
    room = _room(s)
    target = room / "image"
    for image in layout.images():
        if installed("skopeo"):
            call(["skopeo", "copy", "-q", f"oci:{layout.path}:{image.tag}", f"dir:{target}"])
            shutil.rmtree(target)
            seen["skopeo"] += 1
        if installed("umoci"):
            rootless = [] if os.geteuid() == 0 else ["--rootless"]
            name = f"{layout.path}:{image.tag}"
            call(["umoci", "unpack", *rootless, "--image", name, target])
            shutil.rmtree(target)
            seen["umoci"] += 1
    shutil.rmtree(room)
    return seen


def exact(s: Setting) -> list[Figure]:
    """Counts of what came back equal; anything that differs ends the run."""
    out = []
    for form, layout in (("gzip", s.gzip), ("plain", s.plain)):
        store, again = s.fresh("exact"), s.fresh("exact-again")
        call(s.ours(store, "import", "--all", f"oci:{layout.path}", "bench/"))
        names = s.names(store)
        target = Layout(s.fresh("exact-out"))
        call(s.ours(store, "export", *names, f"oci:{target.path}"))
        blobs = _same_blobs(layout, target)
        out.append(Figure(f"exact: blobs of the {form} layout, by oci:", blobs, "blobs"))
        if form == "gzip":
            for tool, count in _witnesses(s, target).items():
                out.append(Figure(f"exact: images accepted by {tool}", count, "images"))
        s.fresh("exact-out")

        archive = s.fresh("exact.tar")
        call(s.ours(store, "export", *names, f"oci-archive:{archive}"))
        found = len(_archive_blobs(archive))
        call(s.ours(again, "import", "--all", f"oci-archive:{archive}", "bench/"))
        if found != blobs or _digests(s, again) != _digests(s, store):
            raise RuntimeError(f"{found} blobs in {archive}, and other images in and out")
        out.append(Figure(f"exact: blobs of the {form} layout, by oci-archive:", found, "blobs"))
        s.fresh("exact.tar")

        images = {image.digest: image for image in layout.images()}
        layers = 0
        docker = s.fresh("exact-docker")
        for entry in s.ask(store, "images")["images"]:
            archive = s.fresh("exact.tar")
            call(s.ours(store, "export", entry["name"], f"docker-archive:{archive}"))
            config, diff_ids = _docker_archive(archive)
            image = images[entry["digest"]]
            if (config, diff_ids) != (image.config, [x.diff_id for x in image.layers]):
                raise RuntimeError(f"{entry['name']} came out of docker-archive: otherwise")
            call(s.ours(docker, "import", f"docker-archive:{archive}", entry["name"]))
            layers += len(diff_ids)
        name = f"exact: layers of the {form} images, by docker-archive:"
        out.append(Figure(name, layers, "layers"))
        for name in ("exact", "exact-again", "exact-docker", "exact.tar"):
            s.fresh(name)
    return out
