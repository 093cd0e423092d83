"""Import: from a transport into the store.

One operation: the source is opened (a pipe streams into the store while it is read), its documents
are planned, blobs are put side by side in threads, documents after all that they name, and one commit
names the images. Until that commit nothing is visible by name; whatever goes wrong before it leaves
only blobs for the next gc. What came compressed is optimized behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import InvalidInputError
from ..values import BlobInfo, Descriptor, ImageInfo, ProgressCallback, Ref
from . import images, naming, parallel
from .plan import Blob, Node, Plan
from .puts import Puts, in_memory
from .sources import Root, Source
from .transports import DOCKER, DOCKER_ARCHIVE, OCI, Transport

if TYPE_CHECKING:
    from ..layers.content import Content, Operation
    from ..remote.options import RemoteOptions


def import_images(
    content: Content,
    transport: Transport,
    *,
    name: str | None = None,
    all: bool = False,
    strict: bool = False,
    defer: bool = False,
    progress: ProgressCallback | None = None,
    jobs: int | None = None,
    inflate_limit: int | None = None,
    platform: str | None = None,
    remote: RemoteOptions | None = None,
) -> list[ImageInfo]:
    """Takes one image, or with `all` every one; names as `naming` says. Untagged entries that refer to
    an image which is taken (signatures, attestations) come along, without a name of their own.

    Of a registry, `platform` takes from an index only the images for it; `remote` says how it is spoken
    to.

    `strict` refuses layers that do not decode or do not match their diff_id, and damaged parts of an
    index; compressed layers are optimized once the images have their names, `defer` leaves that, and
    looking into them, for later; `inflate_limit` (bytes) bounds what they may inflate to. One ImageInfo
    for each name; `new_bytes` is what the store grew by, counted once.
    Raises NotFoundError, InvalidInputError, DigestMismatchError, LimitError, StoreFullError, OSError,
    and whatever `progress` raises."""
    naming.check_wish(name, all)
    meter = parallel.Meter(progress, "import")
    with content.operation() as op:
        puts = Puts(op, meter, strict=strict, defer=defer, inflate_limit=inflate_limit)
        asked = Asked(platform, remote, jobs)
        with closing(open_source(transport, puts, asked)) as source:
            roots = list(source.roots) if all else source.pick(transport)
            plan = Plan(op, source, strict=strict)
            if all:
                others = _nameless(plan, roots)
                named = naming.several([r for r in roots if r not in others], name, source.where)
            else:
                named = naming.single(roots, name, source.where)
            tops = _take(plan, source, puts, [root.descriptor for root in named.values()], jobs)
        refs = {
            label: Ref(
                label,
                node.digest,
                len(node.data),
                node.media_type,
            )
            for label, root in named.items()
            for node in (tops[root.descriptor.digest],)
        }
        op.commit_refs(refs)
        late = puts.optimize(content, progress)
        return _infos(op, refs, tops, plan, puts, late)


def take(
    content: Content,
    op: Operation,
    transport: Transport,
    *,
    all: bool = False,
    platform: str | None = None,
    remote: RemoteOptions | None = None,
    referrers: bool = False,
    meter: parallel.Meter,
    jobs: int | None = None,
) -> list[tuple[Root, Node]]:
    """What a transport has, into the store, without a name: only what holds the operation's puts keeps
    it. Each entry with its document. Raises what `import_images` does."""
    puts = Puts(op, meter, defer=True)
    with closing(open_source(transport, puts, Asked(platform, remote, jobs))) as source:
        plan = Plan(op, source)
        roots = chosen(plan, source, transport, all=all)
        wanted = [root.descriptor for root in roots]
        tops = _take(plan, source, puts, wanted, jobs, referrers=referrers)
    return [(root, tops[root.descriptor.digest]) for root in roots]


def chosen(plan: Plan, source: Source, transport: Transport, *, all: bool) -> list[Root]:
    """The entries that are meant: one, or all that do not live by another."""
    if not all:
        return source.pick(transport)[:1]
    roots = list(source.roots)
    others = _nameless(plan, roots)
    return [root for root in roots if root not in others]


def _take(
    plan: Plan,
    source: Source,
    puts: Puts,
    wanted: Sequence[Descriptor],
    jobs: int | None,
    *,
    referrers: bool = True,
) -> dict[str, Node]:
    """Plans and puts what entries name, and what refers to it."""
    tops = {descriptor.digest: plan.add(descriptor) for descriptor in wanted}
    if referrers:
        take_referrers(plan, source.untagged())
    _put_blobs(plan, source, puts, jobs)
    for node in plan.nodes.values():
        puts.document(node.data, node.digest, node.media_type, node.edges)
    return tops


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a source is wanted, and how it is to be read."""

    platform: str | None = None
    remote: RemoteOptions | None = None
    jobs: int | None = None


def open_source(transport: Transport, puts: Puts, asked: Asked) -> Source:
    """The source of a transport; a pipe streams into the store through `puts`."""
    if transport.kind == DOCKER:
        from .registry_source import RegistrySource

        return RegistrySource(
            transport,
            puts.op,
            platform=asked.platform,
            options=asked.remote,
            stopped=puts.meter.stopped,
        )
    if asked.platform is not None:
        raise InvalidInputError(
            f"{transport.kind}: is copied whole; a platform can be chosen of docker:// only",
            reason="transport",
        )
    if transport.kind == OCI:
        from .layout import LayoutSource

        return LayoutSource(transport.path)
    from .archive import open_archive

    return open_archive(transport, puts, asked.jobs, docker=transport.kind == DOCKER_ARCHIVE)


def _nameless(plan: Plan, roots: Sequence[Root]) -> list[Root]:
    """Untagged entries whose subject is an entry here, too: they live as long as it."""
    here = {root.descriptor.digest for root in roots}
    out = [root for root in roots if not root.labels() and plan.subject_of(root.descriptor) in here]
    return out


def take_referrers(plan: Plan, roots: Sequence[Root]) -> None:
    """Takes along the untagged entries that refer to what is planned, and what refers to those."""
    waiting = {
        root.descriptor.digest: (root, subject)
        for root in roots
        if (subject := plan.subject_of(root.descriptor)) is not None
    }
    found = True
    while found:
        found = False
        for digest, (root, subject) in list(waiting.items()):
            if subject in plan.nodes:
                plan.add(root.descriptor)
                del waiting[digest]
                found = True


def _put_blobs(plan: Plan, source: Source, puts: Puts, jobs: int | None) -> None:
    """Every blob once, the largest first, so that no thread is left with one at the end."""
    wanted = sorted(plan.blobs.values(), key=lambda blob: -blob.descriptor.size)
    size = sum(blob.descriptor.size for blob in wanted)
    puts.meter.expect(size + sum(len(node.data) for node in plan.nodes.values()))
    if jobs is None and source.waits:
        jobs = parallel.MAX_WORKERS
    parallel.run([_task(blob, source, puts) for blob in wanted], jobs, puts.meter)


def _task(blob: Blob, source: Source, puts: Puts) -> Callable[[], BlobInfo]:
    digest = blob.descriptor.digest
    opener = in_memory(blob.data) if blob.data is not None else lambda: source.open(digest)

    def work() -> BlobInfo:
        with puts.meter.part(digest, blob.descriptor.size):
            return puts.blob(blob.descriptor, blob.diff_id, opener)

    return work


def _infos(
    op: Operation,
    refs: dict[str, Ref],
    tops: dict[str, Node],
    plan: Plan,
    puts: Puts,
    late: str | None,
) -> list[ImageInfo]:
    """What was taken. A blob that several images share counts as new for the first of them; what no
    image needs (other parts of a pipe) for the first, too."""
    left = dict(puts.new_bytes)
    out = []
    for name, ref in refs.items():
        info = images.describe(op, ref)
        new = sum(left.pop(digest, 0) for digest in _digests(tops[ref.digest]))
        warnings = (*plan.warnings, *info.warnings, *((late,) if late else ()))
        out.append(replace(info, name=name, new_bytes=new, warnings=tuple(dict.fromkeys(warnings))))
    if out and left:
        out[0] = replace(out[0], new_bytes=out[0].new_bytes + sum(left.values()))
    return out


def _digests(node: Node) -> set[str]:
    found = {node.digest, *(edge.digest for edge in node.edges)}
    for child in node.children:
        found |= _digests(child)
    return found
