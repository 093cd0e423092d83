"""Manifests, indexes and configs as frozen values, out of JSON that is not trusted.

image-spec manifest.md, image-index.md, config.md; docker's manifest v2 schema 2 and manifest list. What
a document does not say is None or empty; what contradicts itself is refused: a document that could be
read as a manifest and as an index (CVE-2021-41190), a media type that is not the descriptor's, keys
that differ from known ones by case only (Go reads them as the same).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from .. import mediatypes
from ..digest import parse as parse_digest
from ..errors import InvalidInputError, LayerstoreError, UnsupportedError
from ..values import Descriptor
from . import jsonio

MAX_SIZE = 1 << 62
_KEYS = {
    key.lower(): key
    for key in (
        "schemaVersion",
        "mediaType",
        "artifactType",
        "config",
        "layers",
        "blobs",
        "manifests",
        "subject",
        "annotations",
    )
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image or artifact: its config, its layers (lowest first), what it refers to."""

    media_type: str
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    embedded: Mapping[str, bytes] = field(default_factory=dict)
    """Content that descriptors carry in themselves (`data`), by digest; not verified."""

    @property
    def is_image(self) -> bool:
        """Whether its layers are a filesystem."""
        return self.config is not None and mediatypes.is_config(self.config.media_type)

    def children(self) -> tuple[Descriptor, ...]:
        """The blobs it is made of, config first."""
        return (*(() if self.config is None else (self.config,)), *self.layers)


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests: of platforms, attestations, or indexes again."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    embedded: Mapping[str, bytes] = field(default_factory=dict)

    def children(self) -> tuple[Descriptor, ...]:
        return self.manifests


Document: TypeAlias = Manifest | Index


@dataclass(frozen=True, slots=True)
class Config:
    """What of an image's config matters here."""

    diff_ids: tuple[str, ...] = ()
    created: str | None = None
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    history: tuple[Mapping[str, object], ...] = ()

    @property
    def platform(self) -> str | None:
        return platform_text(self.os, self.architecture, self.variant)


class Reader:
    """Takes fields out of one document; its errors name document and field."""

    def __init__(self, what: str, digest: str | None) -> None:
        self.what = what
        self.digest = digest
        self.embedded: dict[str, bytes] = {}

    def error(self, message: str) -> InvalidInputError:
        return InvalidInputError(f"{self.what}: {message}", digest=self.digest, reason=message)

    def text(self, value: Mapping[str, object], key: str) -> str | None:
        got = value.get(key)
        if got is None or isinstance(got, str):
            return got
        raise self.error(f"{key} is no string")

    def list(self, value: Mapping[str, object], key: str) -> list[object]:
        got = value.get(key)
        if got is None:
            return []
        if isinstance(got, list):
            return cast(list[object], got)
        raise self.error(f"{key} is no array")

    def strings(self, value: Mapping[str, object], key: str) -> dict[str, str]:
        got = value.get(key)
        if got is None:
            return {}
        if isinstance(got, dict) and all(isinstance(v, str) for v in got.values()):
            return cast(dict[str, str], got)
        raise self.error(f"{key} is no object of strings")

    def descriptor(self, value: object, place: str) -> Descriptor:
        """A descriptor (image-spec descriptor.md). `place` names it in errors."""
        if not isinstance(value, dict):
            raise self.error(f"{place} is no descriptor")
        digest, size = value.get("digest"), value.get("size")
        if not isinstance(digest, str):
            raise self.error(f"{place} has no digest")
        try:
            parse_digest(digest)
        except InvalidInputError as e:
            raise self.error(f"{place}: {e.message}") from e
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
            raise self.error(f"{place} has no size, or an impossible one: {str(size)[:40]!r}")
        platform = value.get("platform")
        if platform is not None and not isinstance(platform, dict):
            raise self.error(f"platform of {place} is no object")
        urls = self.list(value, "urls")
        if not all(isinstance(url, str) for url in urls):
            raise self.error(f"urls of {place} are no strings")
        self._embedded(value, digest, size, place)
        return Descriptor(
            digest,
            size,
            self.text(value, "mediaType") or "",
            self.strings(value, "annotations"),
            self.text(value, "artifactType"),
            cast("Mapping[str, object] | None", platform),
            cast("tuple[str, ...]", tuple(urls)),
        )

    def _embedded(self, value: Mapping[str, object], digest: str, size: int, place: str) -> None:
        import base64
        import binascii

        data = self.text(value, "data")
        if data is None:
            return
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as e:
            raise self.error(f"data of {place} is no base64") from e
        if len(content) != size:
            raise self.error(f"data of {place} has {len(content)} bytes, its size says {size}")
        self.embedded[digest] = content

    def descriptors(self, value: Mapping[str, object], key: str) -> tuple[Descriptor, ...]:
        return tuple(
            self.descriptor(item, f"{key}[{i}]") for i, item in enumerate(self.list(value, key))
        )

    def optional(self, value: Mapping[str, object], key: str) -> Descriptor | None:
        got = value.get(key)
        return None if got is None else self.descriptor(got, key)


def parse_document(data: bytes, media_type: str, digest: str | None) -> Document:
    """A manifest or index. `media_type` is what the descriptor says, or empty.

    Raises InvalidInputError, LimitError, and UnsupportedError for docker's schema 1."""
    what = f"manifest {digest}" if digest else "manifest"
    value = jsonio.parse(data, what, digest=digest)
    read = Reader(what, digest)
    for key in value:
        known = _KEYS.get(key.lower())
        if known is not None and key != known:
            raise read.error(f"key {key!r} could be taken for {known!r}")
    stated = read.text(value, "mediaType")
    given = mediatypes.base(media_type)
    if stated and given and mediatypes.base(stated) != given:
        raise read.error(f"its mediaType is {stated[:100]!r}, the descriptor says {given[:100]!r}")
    kind = given or mediatypes.base(stated or "")
    if value.get("schemaVersion") == 1 or kind in (
        mediatypes.DOCKER_SCHEMA1,
        mediatypes.DOCKER_SCHEMA1_SIGNED,
    ):
        raise UnsupportedError(
            f"{what} is of docker's schema 1, which names no digests of layers as stored: "
            "convert it first (for instance with `skopeo copy --format oci`)",
            digest=digest,
        )
    if value.get("schemaVersion") != 2 and kind != mediatypes.OCI_ARTIFACT:
        raise read.error("schemaVersion is not 2")
    listing = value.get("manifests") is not None
    parts = [key for key in ("config", "layers", "blobs") if value.get(key) is not None]
    if listing and parts:
        raise read.error(f"it has both manifests and {parts[0]}: neither manifest nor index")
    if not kind:
        kind = mediatypes.OCI_INDEX if listing else mediatypes.OCI_MANIFEST
    subject = read.optional(value, "subject")
    artifact_type = read.text(value, "artifactType")
    annotations = read.strings(value, "annotations")
    if mediatypes.is_index(kind):
        if parts:
            raise read.error(f"it is an index by its media type, and has {parts[0]}")
        manifests = read.descriptors(value, "manifests")
        return Index(kind, manifests, subject, artifact_type, annotations, read.embedded)
    if not mediatypes.is_manifest(kind):
        raise UnsupportedError(
            f"{what} has media type {kind[:100]!r}, which is no manifest or index", digest=digest
        )
    if listing:
        raise read.error("it is a manifest by its media type, and has manifests")
    config = read.optional(value, "config")
    if config is None and kind != mediatypes.OCI_ARTIFACT:
        raise read.error("it has no config")
    layers = read.descriptors(value, "blobs" if kind == mediatypes.OCI_ARTIFACT else "layers")
    return Manifest(kind, config, layers, subject, artifact_type, annotations, read.embedded)


def parse_config(data: bytes, digest: str | None = None) -> Config:
    """An image's config. Raises InvalidInputError and LimitError."""
    what = f"config {digest}" if digest else "config"
    value = jsonio.parse(data, what, digest=digest, limit=jsonio.MAX_CONFIG)
    read = Reader(what, digest)
    rootfs = value.get("rootfs")
    if rootfs is not None and not isinstance(rootfs, dict):
        raise read.error("rootfs is no object")
    diff_ids = read.list(cast("dict[str, object]", rootfs or {}), "diff_ids")
    for diff_id in diff_ids:
        if not isinstance(diff_id, str):
            raise read.error("a diff_id is no string")
        parse_digest(diff_id)
    history = read.list(value, "history")
    if not all(isinstance(step, dict) for step in history):
        raise read.error("a step of history is no object")
    return Config(
        cast("tuple[str, ...]", tuple(diff_ids)),
        read.text(value, "created"),
        read.text(value, "os"),
        read.text(value, "architecture"),
        read.text(value, "variant"),
        cast("tuple[Mapping[str, object], ...]", tuple(history)),
    )


def platform_text(os: object, architecture: object, variant: object = None) -> str | None:
    """`os/architecture[/variant]`, or None where one of the first two is missing."""
    if not isinstance(os, str) or not isinstance(architecture, str) or not (os and architecture):
        return None
    return "/".join(
        (os, architecture, *((variant,) if isinstance(variant, str) and variant else ()))
    )


def platform_of(descriptor: Descriptor) -> str | None:
    """The platform that an index states for a manifest; None for attestations and such."""
    if "vnd.docker.reference.type" in descriptor.annotations:
        return None
    platform = descriptor.platform or {}
    text = platform_text(platform.get("os"), platform.get("architecture"), platform.get("variant"))
    return None if text is None or text.startswith("unknown/") else text


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """One entry of a layout's index.json, with the names that it carries."""

    descriptor: Descriptor
    tag: str | None
    full_name: str | None


REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"


def parse_layout_index(data: bytes, what: str) -> list[LayoutEntry]:
    """The entries of an index.json (image-spec image-layout.md). Raises InvalidInputError."""
    value = jsonio.parse(data, what, limit=jsonio.MAX_LAYOUT_INDEX)
    read = Reader(what, None)
    if value.get("schemaVersion") != 2:
        raise read.error("schemaVersion is not 2")
    out = []
    for descriptor in read.descriptors(value, "manifests"):
        tag = descriptor.annotations.get(REF_NAME) or None
        full = descriptor.annotations.get(IMAGE_NAME) or None
        if full is None and tag is not None and re.search(r"[:/]", tag):
            full = tag
        out.append(LayoutEntry(descriptor, tag, full))
    return out


def check_layout_version(data: bytes, what: str) -> None:
    """Raises InvalidInputError unless this is the `oci-layout` file of a version that is known."""
    value = jsonio.parse(data, what, limit=4096)
    version = value.get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise UnsupportedError(f"{what}: image layout version {json.dumps(version)[:80]}, not 1.x")


def first_line(error: LayerstoreError) -> str:
    """An error as part of a warning."""
    return error.message.partition("\n")[0]
