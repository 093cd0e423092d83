"""Export: from the store to a transport, the same bytes under the same digests.

Every blob is read through the store's verifying reader, which gives out the last piece only when the
digest is right. A layout gets its blobs from several threads, then its index.json in one step; an
archive is one tar, under its final name only when it is whole; a registry (`registry_writer`) gets tags
last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import InvalidInputError
from ..values import Descriptor, ImageInfo, ProgressCallback, Ref
from . import images, parallel, references
from .closure import Closure, collect
from .compression import parse as parse_compression
from .layout_writer import Entry, LayoutWriter
from .recompress import Recompressed, recompress
from .transports import DOCKER, DOCKER_ARCHIVE, OCI, Transport

if TYPE_CHECKING:
    from ..layers.content import Content, Operation
    from ..remote.options import RemoteOptions


def export_images(
    content: Content,
    names: list[str],
    transport: Transport,
    *,
    referrers: bool = False,
    compression: str | None = None,
    progress: ProgressCallback | None = None,
    jobs: int | None = None,
    remote: RemoteOptions | None = None,
) -> list[ImageInfo]:
    """Writes images out. One image takes the transport's tag, if it has one; else each has the tag of
    its own name, or its full name where two would have the same tag.

    `referrers` takes signatures, attestations and other artifacts along whose subject is written.
    `compression` (`gzip[:LEVEL]`, `zstd[:LEVEL]`, `none`) writes images whose layers are compressed so:
    what is returned has their digests, and warnings for what does not fit them any more. `remote` says
    how a registry is spoken to.
    Raises NotFoundError, InvalidInputError, CorruptError, StoreFullError, OSError, and whatever
    `progress` raises; nothing has its final name then but blobs that are whole."""
    if not names:
        raise InvalidInputError("name an image to export")
    if transport.position is not None:
        raise InvalidInputError(f"{transport}: a position is for reading; give a tag to write")
    if referrers and transport.kind == DOCKER_ARCHIVE:
        raise InvalidInputError(
            "docker-archive: has no place for signatures and other referrers; take oci-archive:"
        )
    with content.operation() as op:
        refs = [images.find(op, name) for name in names]
        if transport.selector is not None and len({ref.digest for ref in refs}) > 1:
            raise InvalidInputError(
                f"{len(names)} images cannot all be {transport.selector!r}: leave the tag out, and "
                "each keeps its own"
            )
        anew: Recompressed | None = None
        if compression is not None:
            wanted = parse_compression(compression)
            if transport.kind == DOCKER_ARCHIVE and wanted.kind != "none":
                raise InvalidInputError(
                    f"{transport}: a docker archive holds plain tars: leave --compression out, or "
                    "take oci-archive:"
                )
            if transport.kind != DOCKER_ARCHIVE:
                anew = recompress(op, refs, wanted, progress, jobs)
                refs = anew.refs
        if transport.kind == DOCKER:
            from .registry_writer import check

            check(refs, transport)
        out = Writing(content.storage.timeout, referrers, progress, jobs, remote)
        write_images(op, refs, transport, out)
        if anew is not None:
            anew.prove(op)
        return [_told(op, ref, anew) for ref in refs]


@dataclass(frozen=True, slots=True)
class Writing:
    """How images are written: what `export_images` was told."""

    timeout: float | None = None
    referrers: bool = False
    progress: ProgressCallback | None = None
    jobs: int | None = None
    remote: RemoteOptions | None = None


def write_images(
    op: Operation,
    refs: list[Ref],
    transport: Transport,
    how: Writing,
    tags: Sequence[str | None] | None = None,
) -> None:
    """Writes images of the store to a transport. `tags`: one for each, where neither the transport nor
    their names decide."""
    if transport.kind == DOCKER_ARCHIVE:
        from .docker_writer import export_docker

        export_docker(op, refs, transport, how.progress)
        return
    closure = collect(op, refs, referrers=how.referrers)
    meter = parallel.Meter(how.progress, "export")
    meter.expect(closure.bytes)
    if transport.kind == DOCKER:
        from . import registry_writer

        registry_writer.write(op, refs, closure, transport, meter, how.jobs, how.remote)
        return
    entries = entries_of(refs, transport.selector, closure, tags)
    if transport.kind == OCI:
        writer = LayoutWriter(transport.path, timeout=how.timeout)
        _to_layout(op, closure, entries, writer, meter, how.jobs)
    else:
        from .archive_writer import write_oci_archive

        write_oci_archive(op, closure, entries, transport, meter)


def _told(op: Operation, ref: Ref, anew: Recompressed | None) -> ImageInfo:
    info = images.describe(op, ref)
    more = () if anew is None else tuple(anew.warnings.get(ref.digest, ()))
    return replace(info, name=ref.name or ref.digest, warnings=(*more, *info.warnings))


def entries_of(
    refs: list[Ref], tag: str | None, closure: Closure, tags: Sequence[str | None] | None = None
) -> list[Entry]:
    """What index.json is to say of the images, and of what refers to them. `tag` is for all of them;
    `tags`, one each, for those without a name."""
    out: list[Entry] = []
    for n, ref in enumerate(refs):
        descriptor = Descriptor(
            ref.digest, ref.size, closure.documents[ref.digest].document.media_type
        )
        own = tags[n] if tags is not None and tag is None and not ref.name else tag
        out.append(Entry(descriptor, own, full_name(ref.name, own)))
    out += [Entry(descriptor) for descriptor in closure.referrers]
    return out


def full_name(name: str, tag: str | None) -> str | None:
    """The whole name that an exported image carries: its own, with the tag that was asked for. A name
    that holds a digest is of this store only."""
    repository, own, digest = references.split(name)
    if not repository or digest is not None:
        return None if tag is None or not _is_full(tag) else tag
    if tag is None:
        return f"{repository}:{own or 'latest'}"
    if _is_full(tag):
        return tag
    return f"{repository}:{tag}" if references.is_tag(tag) else None


def _is_full(tag: str) -> bool:
    bare, own, digest = references.split(tag)
    return digest is None and own is not None and references.is_name(bare)


def _to_layout(
    op: Operation,
    closure: Closure,
    entries: list[Entry],
    writer: LayoutWriter,
    meter: parallel.Meter,
    jobs: int | None,
) -> None:
    largest_first = sorted(closure.blobs.items(), key=lambda item: -item[1])
    # More than there are cores: each waits for the disk most of its time (16.8 s where 2 took 20.4).
    jobs = parallel.MAX_WORKERS if jobs is None else jobs
    parallel.run([_task(op, writer, d, n, meter) for d, n in largest_first], jobs, meter)
    for digest, written in closure.documents.items():
        writer.small(digest, written.data, meter.add)
    writer.sync()
    writer.commit(entries)


def _task(
    op: Operation, writer: LayoutWriter, digest: str, size: int, meter: parallel.Meter
) -> Callable[[], None]:
    return lambda: writer.blob(digest, size, lambda: op.open(digest), meter.add)
