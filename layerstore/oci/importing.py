"""Import: from a transport into the store.

One operation: the source is opened (a pipe streams into the store while it is read), its documents
are planned, blobs are put side by side in threads, documents after all that they name, and one commit
names the images. Until that commit nothing is visible by name; whatever goes wrong before it leaves
only blobs for the next gc. What came compressed is optimized behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from ..values import BlobInfo, ImageInfo, ProgressCallback, Ref
from . import images, naming, parallel
from .plan import Blob, Node, Plan
from .puts import Puts, in_memory
from .sources import Root, Source
from .transports import DOCKER_ARCHIVE, OCI, Transport

if TYPE_CHECKING:
    from ..layers.content import Content, Operation


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
) -> list[ImageInfo]:
    """Takes one image, or with `all` every one; names as `naming` says. Untagged entries that refer to
    an image which is taken (signatures, attestations) come along, without a name of their own.

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
        with closing(open_source(transport, puts, jobs)) as source:
            roots = list(source.roots) if all else source.pick(transport)
            plan = Plan(op, source, strict=strict)
            if all:
                others = _nameless(plan, roots)
                named = naming.several([r for r in roots if r not in others], name, source.where)
            else:
                named = naming.single(roots, name, source.where)
            tops = {root.descriptor.digest: plan.add(root.descriptor) for root in named.values()}
            _referrers(plan, source.untagged())
            _put_blobs(plan, source, puts, jobs)
            for node in plan.nodes.values():
                puts.document(node.data, node.digest, node.media_type, node.edges)
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


def open_source(transport: Transport, puts: Puts, jobs: int | None) -> Source:
    """The source of a transport; a pipe streams into the store through `puts`."""
    if transport.kind == OCI:
        from .layout import LayoutSource

        return LayoutSource(transport.path)
    from .archive import open_archive

    return open_archive(transport, puts, jobs, docker=transport.kind == DOCKER_ARCHIVE)


def _nameless(plan: Plan, roots: Sequence[Root]) -> list[Root]:
    """Untagged entries whose subject is an entry here, too: they live as long as it."""
    here = {root.descriptor.digest for root in roots}
    out = [root for root in roots if not root.labels() and plan.subject_of(root.descriptor) in here]
    return out


def _referrers(plan: Plan, roots: Sequence[Root]) -> None:
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
    parallel.run([_task(blob, source, puts) for blob in wanted], jobs, puts.meter)


def _task(blob: Blob, source: Source, puts: Puts) -> Callable[[], BlobInfo]:
    digest = blob.descriptor.digest
    opener = in_memory(blob.data) if blob.data is not None else lambda: source.open(digest)
    return lambda: puts.blob(blob.descriptor, blob.diff_id, opener)


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
