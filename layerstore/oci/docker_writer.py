"""docker's archive format, written: manifest.json, `repositories`, configs, and layers uncompressed.

What `docker load` of every age, podman and skopeo read. It has no place for manifests, so digests of
manifests and of compressed layers do not come back out of it; configs and diff_ids do. A layer is held
against its diff_id while it is written. The same images give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import mediatypes
from ..digest import hasher
from ..digest import parse as parse_digest
from ..errors import InvalidInputError, LayerstoreError
from ..layers.inflate import compression_of, inflate
from ..values import ProgressCallback, Ref
from . import images, jsonio, references
from .archive_writer import counted
from .images import LayerRef
from .outfile import Out, output, source_date_epoch
from .parallel import Meter
from .tario import TarWriter
from .transports import Transport

if TYPE_CHECKING:
    from ..layers.content import Operation


@dataclass(frozen=True, slots=True)
class _Image:
    config_name: str
    config: bytes
    names: tuple[str, ...]
    layers: tuple[LayerRef, ...]


def export_docker(
    op: Operation, refs: list[Ref], transport: Transport, progress: ProgressCallback | None
) -> None:
    """Writes images; of an index the one for this machine.

    Raises InvalidInputError for artifacts, for layers that are not here, do not decode or do not match
    their diff_id: such an image can only be exported as oci: or oci-archive:."""
    found = _merged([_image(op, ref, transport.selector) for ref in refs])
    layers = {_layer_name(layer): layer for one in found for layer in one.layers}
    configs = {one.config_name: one.config for one in found}
    meter = Meter(progress, "export")
    meter.expect(sum(layer.size for layer in layers.values()))
    listing = jsonio.dump(
        [
            {
                "Config": one.config_name,
                "RepoTags": list(one.names),
                "Layers": [_layer_name(layer) for layer in one.layers],
            }
            for one in found
        ]
    )
    small = {"manifest.json": listing, "repositories": _repositories(found), **configs}
    with output(transport.path) as out:
        tar = TarWriter(out, mtime=source_date_epoch())
        for name, data in small.items():
            tar.add(name, len(data), (data,))
        for name in sorted(layers):
            _write_layer(op, tar, out, name, layers[name], meter)
        tar.finish()


def _image(op: Operation, ref: Ref, selector: str | None) -> _Image:
    what = ref.name or ref.digest
    digest, manifest = images.manifest(op, ref)
    if not manifest.is_image or manifest.config is None:
        raise InvalidInputError(
            f"{what} is no container image: docker-archive: cannot hold it; take oci-archive:",
            digest=ref.digest,
        )
    layers = images.layers(op, Ref("", digest, 0, manifest.media_type))
    for layer in layers:
        if layer.diff_id is None or not mediatypes.is_layer(layer.media_type):
            raise InvalidInputError(
                f"{what}: layer {layer.digest} has no diff_id: docker-archive: cannot hold it; "
                "take oci-archive:",
                digest=layer.digest,
            )
        if op.stat(layer.digest) is None:
            raise InvalidInputError(
                f"{what}: layer {layer.digest} is not here, only its descriptor: take oci-archive:",
                digest=layer.digest,
            )
    config = op.read(manifest.config.digest, jsonio.MAX_CONFIG)
    name = selector if selector is not None else ref.name
    names = (references.full_name(name),) if name and "@" not in name else ()
    return _Image(
        f"{parse_digest(manifest.config.digest)[1].hex()}.json", config, names, tuple(layers)
    )


def _merged(found: list[_Image]) -> list[_Image]:
    """One entry for each config and its layers, with all its names."""
    out: dict[tuple[str, tuple[LayerRef, ...]], _Image] = {}
    for one in found:
        key = (one.config_name, one.layers)
        before = out.get(key)
        if before is not None:
            names = tuple(dict.fromkeys((*before.names, *one.names)))
            one = _Image(one.config_name, one.config, names, one.layers)
        out[key] = one
    return list(out.values())


def _layer_name(layer: LayerRef) -> str:
    assert layer.diff_id is not None
    return f"{parse_digest(layer.diff_id)[1].hex()}.tar"


def _repositories(found: list[_Image]) -> bytes:
    """Name and tag to the topmost layer, for readers of old."""
    out: dict[str, dict[str, str]] = {}
    for one in found:
        for name in one.names:
            repository, tag, _ = references.split(name)
            if one.layers:
                top = _layer_name(one.layers[-1]).removesuffix(".tar")
                out.setdefault(repository, {})[tag or "latest"] = top
    return jsonio.dump({name: out[name] for name in sorted(out)})


def _write_layer(
    op: Operation, tar: TarWriter, out: Out, name: str, layer: LayerRef, meter: Meter
) -> None:
    size = _tar_size(op, layer)
    if size is None and out.file is None:
        # A tar tells the size before the content, and a pipe cannot be written twice: count first.
        size = sum(len(piece) for piece in _content(op, layer, None))
    pieces = _content(op, layer, meter)
    if size is not None:
        tar.add(name, size, pieces)
    else:
        assert out.file is not None
        tar.add_unsized(name, pieces, out.file)


def _tar_size(op: Operation, layer: LayerRef) -> int | None:
    """The size of the uncompressed layer, if it is known without inflating."""
    assert layer.diff_id is not None
    info = op.stat(layer.diff_id)
    return None if info is None else info.bytes


def _content(op: Operation, layer: LayerRef, meter: Meter | None) -> Iterator[bytes | memoryview]:
    """The uncompressed layer; with a meter counted, and held against its diff_id."""
    assert layer.diff_id is not None
    stored = layer.digest if op.stat(layer.diff_id) is None else layer.diff_id
    with ExitStack() as stack:
        blob = stack.enter_context(op.open(stored))
        kind = compression_of(blob.read(8) or b"")
        blob.seek(0)
        raw = blob.chunks()
        if meter is not None and stored == layer.digest:
            raw = counted(raw, meter.add)
        if stored == layer.diff_id:
            if meter is not None and stored != layer.digest:
                meter.add(layer.size)
            yield from raw
            return
        algorithm, wanted = parse_digest(layer.diff_id)
        h = hasher(algorithm)
        try:
            for piece in raw if kind is None else inflate(raw, kind):
                h.update(piece)
                yield piece
        except LayerstoreError as e:
            if e.digest is None:
                e.digest = layer.digest
            raise
        if h.digest() != wanted:
            raise InvalidInputError(
                f"layer {layer.digest} does not match its diff_id {layer.diff_id}: docker-archive: "
                "cannot hold it; take oci-archive:",
                digest=layer.digest,
                reason="diff_id",
            )
