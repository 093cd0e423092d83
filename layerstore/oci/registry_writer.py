"""Export to a registry: blobs side by side, documents after all that they name, tags last.

A blob that the repository has is not sent; one that another repository of the same registry is known to
have, since an image of that name is in the store, is asked for by a mount. The bytes are those of the
store, verified as they are read, so the registry gets the same digests or none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from .. import mediatypes
from ..digest import digest_of
from ..digest import parse as parse_digest
from ..errors import InvalidInputError, LayerstoreError, NotFoundError
from ..remote import blobs
from ..remote.client import Remote
from ..remote.names import Place
from ..remote.options import RemoteOptions
from ..values import Descriptor, Ref
from . import jsonio, parallel, references
from .closure import Closure, Written
from .model import Index, parse_document
from .transports import Transport

if TYPE_CHECKING:
    from ..layers.content import Operation

MAX_SOURCES = 1000
"""Images of the same registry that are looked through for what can be mounted."""


def check(refs: list[Ref], transport: Transport) -> dict[str, list[str]]:
    """Under which tags each digest is to be put; none for a digest alone. Before anything is sent.

    Raises InvalidInputError where that is not clear."""
    place = transport.place
    assert place is not None
    if place.digest is not None:
        for ref in refs:
            if ref.digest != place.digest:
                raise InvalidInputError(
                    f"{transport} names another digest than {ref.name or ref.digest} has: "
                    f"{ref.digest}",
                    digest=ref.digest,
                )
    tags: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for ref in refs:
        _, own, digest = references.split(ref.name)
        tag = place.tag
        if tag is None and place.digest is None:
            tag = "latest" if not ref.name or digest is not None else own or "latest"
        named = tags.setdefault(ref.digest, [])
        if tag is None or tag in named:
            continue
        if taken.setdefault(tag, ref.digest) != ref.digest:
            raise InvalidInputError(
                f"two of the images would both be {place.name}:{tag}; export them one by one, each "
                "with a tag"
            )
        named.append(tag)
    return tags


def write(
    op: Operation,
    refs: list[Ref],
    closure: Closure,
    transport: Transport,
    meter: parallel.Meter,
    jobs: int | None,
    options: RemoteOptions | None,
    mounts: Mapping[str, list[str]] | None = None,
    opener: Callable[[str], AbstractContextManager[blobs.Stored]] | None = None,
) -> None:
    """Puts images and all that they need. `mounts`: repositories of that registry that are known to
    have a digest, beside those that the store's names tell of. `opener`: where blobs come from, if not
    from the store."""
    place = transport.place
    assert place is not None
    tags = check(refs, transport)
    sources = _sources(op, place, set(closure.blobs))
    for digest, listed in (mounts or {}).items():
        sources.setdefault(digest, [])[:0] = [r for r in listed if r != place.repository]
    with Remote(place.host, options, stopped=meter.stopped) as remote:
        largest_first = sorted(closure.blobs.items(), key=lambda item: -item[1])
        given = op.open if opener is None else opener
        tasks = [
            _task(given, remote, place, d, n, sources.get(d, []), meter) for d, n in largest_first
        ]
        jobs = parallel.MAX_WORKERS if jobs is None else jobs
        parallel.run(tasks, jobs, meter)
        referrers = {one.digest: one for one in closure.referrers}
        for digest in children_first(closure):
            written = closure.documents[digest]
            known = _put(remote, place, digest, written, tags.get(digest, []))
            subject = written.document.subject
            if digest in referrers and subject is not None and not known:
                _list_referrer(remote, place, subject.digest, referrers[digest])
            meter.add(len(written.data))


def _task(
    opener: Callable[[str], AbstractContextManager[blobs.Stored]],
    remote: Remote,
    place: Place,
    digest: str,
    size: int,
    mounts: list[str],
    meter: parallel.Meter,
) -> Callable[[], str]:
    def work() -> str:
        with meter.part(digest, size):
            return blobs.push(
                remote, place.repository, digest, size, lambda: opener(digest), meter.add, mounts
            )

    return work


def _put(remote: Remote, place: Place, digest: str, written: Written, tags: list[str]) -> bool:
    """Puts a document, whether the registry keeps its subject's referrers."""
    known = True
    for reference in tags or [digest]:
        try:
            known = remote.put_manifest(
                place.repository, reference, written.data, written.document.media_type
            )
        except (NotFoundError, InvalidInputError) as e:
            if not isinstance(written.document, Index):
                raise
            raise InvalidInputError(
                f"{e.message} (an index whose images are not all in the store is not taken by every "
                "registry: import the whole of it, or export the one image by its digest)",
                digest=digest,
            ) from e
    return known


def children_first(closure: Closure) -> list[str]:
    """Documents in an order in which each comes after all that it names, subjects before what refers to
    them."""
    order: list[str] = []
    seen: set[str] = set()
    for start in closure.documents:
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            digest, done = stack.pop()
            if done:
                order.append(digest)
                continue
            if digest in seen or digest not in closure.documents:
                continue
            seen.add(digest)
            stack.append((digest, True))
            document = closure.documents[digest].document
            below = [child.digest for child in document.children()]
            if document.subject is not None:
                below.append(document.subject.digest)
            stack += [(one, False) for one in reversed(below)]
    return order


def _list_referrer(remote: Remote, place: Place, subject: str, referrer: Descriptor) -> None:
    """For a registry without the referrers API: the tag that stands for it (distribution-spec, "Pushing
    manifests with subject")."""
    algorithm, raw = parse_digest(subject)
    tag = f"{algorithm}-{raw.hex()[:64]}"
    listed: list[object] = []
    try:
        data = remote.manifest(place.repository, tag).data
        document = parse_document(data, mediatypes.OCI_INDEX, None)
        if any(one.digest == referrer.digest for one in document.children()):
            return
        value = jsonio.parse(data, f"{place.name}:{tag}")
        before = value.get("manifests")
        listed = list(before) if isinstance(before, list) else []
    except NotFoundError:
        pass  # the first one
    entry: dict[str, object] = {
        "mediaType": referrer.media_type,
        "digest": referrer.digest,
        "size": referrer.size,
    }
    if referrer.artifact_type is not None:
        entry["artifactType"] = referrer.artifact_type
    if referrer.annotations:
        entry["annotations"] = dict(referrer.annotations)
    index = {
        "schemaVersion": 2,
        "mediaType": mediatypes.OCI_INDEX,
        "manifests": [*listed, entry],
    }
    data = json.dumps(index, separators=(",", ":")).encode()
    jsonio.check_size(len(data), jsonio.MAX_MANIFEST, f"{place.name}:{tag}", digest_of(data))
    remote.put_manifest(place.repository, tag, data, mediatypes.OCI_INDEX)


def _sources(op: Operation, place: Place, wanted: set[str]) -> dict[str, list[str]]:
    """Repositories of the same registry whose images, as the store knows them, have these blobs."""
    found: dict[str, list[str]] = {}
    prefix = f"{place.host}/"
    refs = [ref for ref in op.refs() if ref.name.startswith(prefix)]
    for ref in refs[:MAX_SOURCES]:
        repository = references.split(ref.name)[0].removeprefix(prefix)
        if repository == place.repository:
            continue
        try:
            names = _blobs_below(op, ref)
        except LayerstoreError:
            # Only a shorter way is looked for here.
            continue
        for digest in wanted.intersection(names):
            listed = found.setdefault(digest, [])
            if repository not in listed:
                listed.append(repository)
    return found


def _blobs_below(op: Operation, ref: Ref) -> Iterable[str]:
    documents, found = [ref.digest], {ref.digest}
    while documents:
        for edge in op.edges(documents.pop()):
            if edge.kind != "subject" and edge.digest not in found:
                found.add(edge.digest)
                if mediatypes.is_document(edge.media_type):
                    documents.append(edge.digest)
    return found
