"""Media types of images, and what each means (floor 0: names only, no I/O).

image-spec media-types.md; the Docker ones from distribution's image manifest v2, schema 2. Parameters
behind a `;` do not count.
"""

from __future__ import annotations

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
"""Of image-spec 1.1's release candidates only; registries still hold some."""
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"

OCTETS = "application/octet-stream"

LAYERS = {
    OCI_LAYER: {"none": OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD},
    DOCKER_LAYER: {"none": DOCKER_LAYER, "gzip": DOCKER_LAYER_GZIP},
}
"""What a layer is called by its compression, in each of the two families. Docker has no zstd."""

MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST, OCI_ARTIFACT})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_FOREIGN = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)


def base(media_type: str) -> str:
    """Without parameters."""
    return media_type.partition(";")[0].strip()


def is_manifest(media_type: str) -> bool:
    return base(media_type) in MANIFESTS


def is_index(media_type: str) -> bool:
    return base(media_type) in INDEXES


def is_document(media_type: str) -> bool:
    """Whether a blob of this type names other blobs."""
    return base(media_type) in MANIFESTS or base(media_type) in INDEXES


def is_config(media_type: str) -> bool:
    """Whether this is an image's config (artifacts have others)."""
    return base(media_type) in CONFIGS


def is_layer(media_type: str) -> bool:
    """Whether this is a filesystem layer: a tar, compressed or not."""
    return base(media_type).startswith(_LAYERS)


def compressed_as(media_type: str, compression: str) -> str | None:
    """The media type of the same layer in another compression (`none`, `gzip`, `zstd`): None where its
    family has no such type, or it is of no family whose compression can be told from the type."""
    for family in LAYERS.values():
        if base(media_type) in family.values():
            return family.get(compression)
    return None


def is_foreign(media_type: str) -> bool:
    """Non-distributable: the content may lie elsewhere, at the descriptor's urls."""
    return base(media_type).startswith(_FOREIGN)


def is_uncompressed(media_type: str) -> bool:
    """Whether this is a layer whose own digest is its diff_id."""
    return is_layer(media_type) and base(media_type).endswith(".tar")
