"""Small images by hand: tars, configs, manifests, layouts, archives, every byte the test's own."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerstore import mediatypes
from layerstore.digest import digest_of


def tar(files: dict[str, bytes], *, mtime: int = 0) -> bytes:
    """A layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), mtime, 0o644
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 6, mtime=0)


def dump(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def desc(data: bytes, media_type: str, *, algorithm: str = "sha256", **more: Any) -> dict[str, Any]:
    digest = digest_of(data, algorithm)
    return {"mediaType": media_type, "digest": digest, "size": len(data), **more}


@dataclass
class Image:
    """A manifest or index with all blobs below it, by digest."""

    data: bytes
    media_type: str
    blobs: dict[str, bytes] = field(default_factory=dict)
    algorithm: str = "sha256"

    @property
    def digest(self) -> str:
        return digest_of(self.data, self.algorithm)

    @property
    def all(self) -> dict[str, bytes]:
        return {**self.blobs, self.digest: self.data}

    def desc(self, **more: Any) -> dict[str, Any]:
        return desc(self.data, self.media_type, algorithm=self.algorithm, **more)


def image(
    *layers: bytes,
    compress: bool = True,
    docker: bool = False,
    algorithm: str = "sha256",
    arch: str = "amd64",
    salt: str = "",
    config: dict[str, Any] | None = None,
    manifest: dict[str, Any] | None = None,
) -> Image:
    """An image of tars."""
    layers = layers or (tar({"etc/hello": b"hello " + salt.encode()}),)
    conf = dump(
        {
            "architecture": arch,
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": ["/bin/true"], "Labels": {"salt": salt}},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(x) for x in layers]},
            "history": [{"created_by": f"step {i}"} for i in range(len(layers))],
            **(config or {}),
        }
    )
    kept = [packed(x) if compress else x for x in layers]
    if docker:
        layer_type = mediatypes.DOCKER_LAYER_GZIP if compress else mediatypes.DOCKER_LAYER
        config_type, kind = mediatypes.DOCKER_CONFIG, mediatypes.DOCKER_MANIFEST
    else:
        layer_type = mediatypes.OCI_LAYER_GZIP if compress else mediatypes.OCI_LAYER
        config_type, kind = mediatypes.OCI_CONFIG, mediatypes.OCI_MANIFEST
    data = dump(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": desc(conf, config_type, algorithm=algorithm),
            "layers": [desc(x, layer_type, algorithm=algorithm) for x in kept],
            **(manifest or {}),
        }
    )
    blobs = {digest_of(x, algorithm): x for x in (conf, *kept)}
    return Image(data, kind, blobs, algorithm)


def index(*entries: tuple[Image, dict[str, Any]], docker: bool = False, **more: Any) -> Image:
    """An index over images; each with what its descriptor has more (platform, annotations)."""
    kind = mediatypes.DOCKER_LIST if docker else mediatypes.OCI_INDEX
    listed = [i.desc(**extra) for i, extra in entries]
    data = dump({"schemaVersion": 2, "mediaType": kind, "manifests": listed, **more})
    blobs: dict[str, bytes] = {}
    for i, _ in entries:
        blobs.update(i.all)
    return Image(data, kind, blobs)


def artifact(subject: Image | None = None, payload: bytes = b"signature") -> Image:
    """An artifact with the empty config."""
    value = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_MANIFEST,
        "artifactType": "application/vnd.example.signature",
        "config": desc(b"{}", mediatypes.OCI_EMPTY),
        "layers": [desc(payload, "application/vnd.example.payload")],
    }
    if subject is not None:
        value["subject"] = subject.desc()
    blobs = {digest_of(b"{}"): b"{}", digest_of(payload): payload}
    return Image(dump(value), mediatypes.OCI_MANIFEST, blobs)


def platform(arch: str, **more: Any) -> dict[str, Any]:
    return {"platform": {"os": "linux", "architecture": arch, **more}}


def tagged(tag: str | None, full: str | None = None, **more: Any) -> dict[str, Any]:
    notes = {}
    if tag is not None:
        notes["org.opencontainers.image.ref.name"] = tag
    if full is not None:
        notes["io.containerd.image.name"] = full
    return {"annotations": notes, **more} if notes else more


Tagged = tuple[Image, dict[str, Any]]


def layout_files(*entries: Tagged, lacking: tuple[str, ...] = ()) -> dict[str, bytes]:
    """The files of a layout, by path; `lacking` digests are left out."""
    out = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    listed = [i.desc(**extra) for i, extra in entries]
    out["index.json"] = dump({"schemaVersion": 2, "manifests": listed})
    for i, _ in entries:
        for digest, data in i.all.items():
            if digest not in lacking:
                out["blobs/" + digest.replace(":", "/")] = data
    return out


def write(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


def layout(path: Path, *entries: Tagged, lacking: tuple[str, ...] = ()) -> Path:
    return write(path, layout_files(*entries, lacking=lacking))


def read(path: Path) -> dict[str, bytes]:
    """The blobs of a layout, by digest."""
    return {
        f"{p.parent.name}:{p.name}": p.read_bytes()
        for p in path.glob("blobs/*/*")
        if not p.name.startswith(".")
    }


def entries(path: Path) -> dict[str | None, str]:
    """The tags of a layout."""
    listed = json.loads((path / "index.json").read_bytes())["manifests"]
    return {
        m.get("annotations", {}).get("org.opencontainers.image.ref.name"): m["digest"]
        for m in listed
    }


def docker_v1_files(*images: tuple[Image, list[str]]) -> dict[str, bytes]:
    """manifest.json style `docker save`: config by its hex, a directory for each layer."""
    out: dict[str, bytes] = {}
    listed = []
    for i, names in images:
        manifest = json.loads(i.data)
        config = i.blobs[manifest["config"]["digest"]]
        name = manifest["config"]["digest"].partition(":")[2] + ".json"
        out[name] = config
        paths = []
        for n, layer in enumerate(manifest["layers"]):
            data = i.blobs[layer["digest"]]
            data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            directory = digest_of(data + b"%d" % n).partition(":")[2]
            out[f"{directory}/VERSION"] = b"1.0"
            out[f"{directory}/json"] = b'{"id":"' + directory.encode() + b'"}'
            out[f"{directory}/layer.tar"] = data
            paths.append(f"{directory}/layer.tar")
        listed.append({"Config": name, "RepoTags": names or None, "Layers": paths})
    out["manifest.json"] = json.dumps(listed).encode()
    return out
