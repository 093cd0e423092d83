"""What the store knows of an image: found by name, described, its config, history and layers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import mediatypes
from ..errors import (
    CorruptError,
    InvalidInputError,
    LimitError,
    NotFoundError,
    UnsupportedError,
)
from ..values import Descriptor, ImageInfo, Ref
from . import jsonio, references
from .model import (
    Config,
    Document,
    Index,
    Manifest,
    first_line,
    parse_config,
    parse_document,
    platform_of,
)
from .puts import layer_problem

if TYPE_CHECKING:
    from ..layers.content import Operation

MAX_WARNINGS = 50


@dataclass(frozen=True, slots=True)
class LayerRef:
    """A layer of an image. `size` in bytes as stored; `diff_id` as the config says, else None."""

    digest: str
    size: int
    media_type: str
    diff_id: str | None = None


# ---- finding ----------------------------------------------------------------------------------


def find(op: Operation, text: str) -> Ref:
    """The image that a user means: a name (default tag `latest`), a name with a digest, or a digest
    prefix of at least 8 hex digits; a name that exists wins. What is found by a digest that no name or
    more than one has, comes with an empty name.

    Raises NotFoundError, and InvalidInputError for an ambiguous prefix or what can be neither."""
    found = op.ref(text) if 0 < len(text) <= 512 else None
    if found is not None:
        return found
    prefix = references.digest_prefix(text)
    name, tag, digest = references.split(text)
    if references.is_name(name) and (tag is None or references.is_tag(tag)):
        if digest is None:
            found = op.ref(references.full_name(text))
        else:
            found = _with_digest(op, references.parse(text))
        if found is not None:
            return found
    elif prefix is None:
        references.parse(text)
    if prefix is not None:
        found = _by_prefix(op, text, prefix)
        if found is not None:
            return found
    raise NotFoundError(f"no image {text!r} in the store; `layerstore images` lists what there is")


def _with_digest(op: Operation, wanted: references.Reference) -> Ref | None:
    """`NAME[:TAG]@DIGEST`: that image of the name, or a manifest inside one of its indexes."""
    assert wanted.digest is not None
    inside: Ref | None = None
    for ref in op.refs():
        name, tag, _ = references.split(ref.name)
        if name != wanted.name or wanted.tag not in (None, tag):
            continue
        if ref.digest == wanted.digest:
            return ref
        for descriptor in _manifests_below(op, ref):
            if descriptor.digest == wanted.digest:
                inside = Ref("", descriptor.digest, descriptor.size, descriptor.media_type)
    return inside


def _by_prefix(op: Operation, text: str, prefix: tuple[str | None, str]) -> Ref | None:
    refs = op.refs()
    found: dict[str, list[Ref]] = {}
    for ref in refs:
        if references.digest_matches(ref.digest, prefix):
            found.setdefault(ref.digest, []).append(ref)
    if not found:
        for ref in refs:
            for d in _manifests_below(op, ref):
                if references.digest_matches(d.digest, prefix):
                    found[d.digest] = [Ref("", d.digest, d.size, d.media_type)]
    if len(found) > 1:
        raise InvalidInputError(
            f"{text!r} is the beginning of {len(found)} digests: {', '.join(sorted(found)[:5])}; "
            "give more digits",
            reason="ambiguous",
        )
    for digest, named in found.items():
        first = named[0]
        return first if len(named) == 1 else Ref("", digest, first.size, first.media_type)
    return _untagged(op, prefix)


def _untagged(op: Operation, prefix: tuple[str | None, str]) -> Ref | None:
    """A manifest that no ref names (a signature, say), by its whole digest."""
    sizes = {"sha256": 64, "sha512": 128, "blake3": 64}
    algorithm = prefix[0] or "sha256"
    if len(prefix[1]) != sizes[algorithm]:
        return None
    info = op.stat(f"{algorithm}:{prefix[1]}")
    if info is None or not mediatypes.is_document(info.media_type):
        return None
    return Ref("", f"{algorithm}:{prefix[1]}", info.bytes, info.media_type)


def _manifests_below(op: Operation, ref: Ref) -> Iterator[Descriptor]:
    """Manifests and indexes that an index names and that are here."""
    todo = [(ref.digest, ref.media_type)]
    seen = set()
    while todo:
        digest, media_type = todo.pop()
        if digest in seen or not mediatypes.is_index(media_type):
            continue
        seen.add(digest)
        for edge in op.edges(digest):
            if edge.kind == "subject" or not mediatypes.is_document(edge.media_type):
                continue
            if op.stat(edge.digest) is not None:
                yield Descriptor(edge.digest, edge.size, edge.media_type)
                todo.append((edge.digest, edge.media_type))


# ---- documents --------------------------------------------------------------------------------


def document(op: Operation, digest: str, media_type: str = "") -> Document:
    """A stored manifest or index. Raises NotFoundError, InvalidInputError."""
    return parse_document(op.read(digest, jsonio.MAX_MANIFEST), media_type, digest)


def manifest(op: Operation, ref: Ref, platform: str | None = None) -> tuple[str, Manifest]:
    """The one manifest that is meant, and its digest: of an index the one for `platform`
    (`os/arch[/variant]`), else for this machine, else the only one there.

    Raises NotFoundError when there is none, InvalidInputError when it is not clear which."""
    found = document(op, ref.digest, ref.media_type)
    if isinstance(found, Manifest):
        return ref.digest, found
    choices = [
        (stated, d)
        for d in _flatten(op, found)
        if mediatypes.is_manifest(d.media_type)
        and (stated := platform_of(d) or ("" if _is_plain(d) else None)) is not None
    ]
    what = ref.name or ref.digest
    if not choices:
        raise NotFoundError(f"{what} is an index without an image in it", digest=ref.digest)
    wanted = platform or host_platform()
    matching = [d for stated, d in choices if fits(stated, wanted)]
    if not matching and platform is None and len(choices) == 1:
        matching = [choices[0][1]]
    if not matching:
        listed = ", ".join(sorted(stated or "unknown" for stated, _ in choices))
        if platform is not None:
            raise NotFoundError(f"{what} has no image for {platform}; there is: {listed}")
        raise InvalidInputError(
            f"{what} has no image for {wanted}, but for {listed}: name one by its digest",
            digest=ref.digest,
            reason="platform",
        )
    chosen = matching[0]
    one = document(op, chosen.digest, chosen.media_type)
    assert isinstance(one, Manifest)
    return chosen.digest, one


def _flatten(op: Operation, index: Index) -> Iterator[Descriptor]:
    """What is here of an index, nested ones opened."""
    todo: list[tuple[Index, int]] = [(index, 0)]
    while todo:
        current, depth = todo.pop(0)
        for descriptor in current.manifests:
            if op.stat(descriptor.digest) is None:
                continue
            if mediatypes.is_index(descriptor.media_type):
                below = document(op, descriptor.digest, descriptor.media_type)
                if isinstance(below, Index) and depth < 16:
                    todo.append((below, depth + 1))
            else:
                yield descriptor


def _is_plain(descriptor: Descriptor) -> bool:
    """An entry that states no platform and is no attestation."""
    return descriptor.platform is None and (
        "vnd.docker.reference.type" not in descriptor.annotations
    )


def fits(stated: str, wanted: str) -> bool:
    """Whether an image for one platform (`os/arch[/variant]`) is what another asks for."""
    have, want = stated.split("/"), wanted.split("/")
    return have[: len(want)] == want or (have == want[:2] and len(want) > 2 and want[2] == "v8")


def host_platform() -> str:
    """`linux/ARCH` of this machine, in the words of image-spec (Go's GOARCH)."""
    name = os.uname().machine.lower()
    known = {
        "x86_64": "amd64",
        "amd64": "amd64",
        "aarch64": "arm64",
        "arm64": "arm64",
        "armv7l": "arm",
        "armv6l": "arm",
        "i386": "386",
        "i686": "386",
    }
    return f"linux/{known.get(name, name)}"


def config(op: Operation, ref: Ref, platform: str | None = None) -> bytes:
    """The exact bytes of the config. Raises NotFoundError for what has none."""
    digest, found = manifest(op, ref, platform)
    if found.config is None:
        raise NotFoundError(f"{ref.name or digest} has no config", digest=digest)
    return op.read(found.config.digest, jsonio.MAX_CONFIG)


def history(op: Operation, ref: Ref, platform: str | None = None) -> list[dict[str, object]]:
    """The steps of the config's history, oldest first; empty for an artifact."""
    _, found = manifest(op, ref, platform)
    parsed = _config(op, found)
    return [] if parsed is None else [dict(step) for step in parsed.history]


def layers(op: Operation, ref: Ref, platform: str | None = None) -> list[LayerRef]:
    """The layers, lowest first, with the diff_ids of the config where they fit."""
    _, found = manifest(op, ref, platform)
    try:
        parsed = _config(op, found)
    except (InvalidInputError, LimitError):
        # Kept as it came, and said by `describe`; the layers can be read without it.
        parsed = None
    ids = diff_ids(found, parsed)
    return [
        LayerRef(layer.digest, layer.size, layer.media_type, diff_id)
        for layer, diff_id in zip(found.layers, ids, strict=True)
    ]


def _config(op: Operation, found: Manifest) -> Config | None:
    if found.config is None or not found.is_image:
        return None
    return parse_config(op.read(found.config.digest, jsonio.MAX_CONFIG), found.config.digest)


def diff_ids(found: Manifest, parsed: Config | None) -> list[str | None]:
    """One for each layer, None where the config has none that fits."""
    if parsed is None or len(parsed.diff_ids) != len(found.layers):
        return [None] * len(found.layers)
    return [
        diff_id if mediatypes.is_layer(layer.media_type) else None
        for layer, diff_id in zip(found.layers, parsed.diff_ids, strict=True)
    ]


# ---- describing -------------------------------------------------------------------------------


def describe(op: Operation, ref: Ref) -> ImageInfo:
    """Sizes, platform, and what is odd about an image: blobs that are not here, layers that do not
    decode or do not match, documents that cannot be read. `bytes` and `blobs` count what is here, each
    blob once."""
    sizes: dict[str, int] = {ref.digest: ref.size}
    warnings: list[str] = []
    created: str | None = None
    platform: str | None = None
    todo: list[tuple[str, str]] = [(ref.digest, ref.media_type)]
    seen = set()
    while todo:
        digest, media_type = todo.pop()
        if digest in seen:
            continue
        seen.add(digest)
        try:
            found = document(op, digest, media_type)
        except (InvalidInputError, UnsupportedError, LimitError, CorruptError) as e:
            # A listing goes on: the other images are as good as they were.
            warnings.append(first_line(e))
            continue
        if isinstance(found, Manifest):
            parsed = _read_config(op, found, warnings)
            for descriptor, problem in _blobs(op, found, parsed):
                if problem is not None:
                    warnings.append(problem)
                if descriptor is not None:
                    sizes[descriptor.digest] = descriptor.size
            if digest == ref.digest and parsed is not None:
                created, platform = parsed.created, parsed.platform
        else:
            if digest == ref.digest:
                created = found.annotations.get("org.opencontainers.image.created")
            for child in found.manifests:
                if op.stat(child.digest) is None:
                    stated = platform_of(child)
                    named = f" ({stated})" if stated else ""
                    warnings.append(f"not here, and not taken: {child.digest}{named}")
                    continue
                sizes[child.digest] = child.size
                if mediatypes.is_document(child.media_type) or not child.media_type:
                    todo.append((child.digest, child.media_type))
    if len(warnings) > MAX_WARNINGS:
        more = len(warnings) - MAX_WARNINGS
        warnings = [*warnings[:MAX_WARNINGS], f"and {more} more of this kind"]
    return ImageInfo(
        ref.name,
        ref.digest,
        ref.media_type,
        sum(sizes.values()),
        created,
        platform,
        blobs=len(sizes),
        warnings=tuple(warnings),
    )


def _read_config(op: Operation, found: Manifest, warnings: list[str]) -> Config | None:
    if found.config is None or op.stat(found.config.digest) is None:
        return None
    try:
        return _config(op, found)
    except (InvalidInputError, LimitError, CorruptError) as e:
        warnings.append(first_line(e))
        return None


def _blobs(
    op: Operation, found: Manifest, parsed: Config | None
) -> Iterator[tuple[Descriptor | None, str | None]]:
    """Each blob of a manifest that is here, and what is wrong with it or with one that is not."""
    if found.config is not None:
        here = op.stat(found.config.digest) is not None
        yield (found.config, None) if here else (None, f"config {found.config.digest} is not here")
    for layer, diff_id in zip(found.layers, diff_ids(found, parsed), strict=True):
        info = op.stat(layer.digest)
        if info is None:
            foreign = mediatypes.is_foreign(layer.media_type)
            why = "is non-distributable and not here" if foreign else "is not here"
            yield None, f"layer {layer.digest} {why}; its descriptor is kept"
            continue
        problem = layer_problem(info, diff_id) if mediatypes.is_layer(layer.media_type) else None
        yield layer, None if problem is None else f"layer {layer.digest}: {problem}"
