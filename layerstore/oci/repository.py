"""What a repository of a registry does with manifests, beyond keeping bytes.

distribution-spec 1.1: a manifest's blobs must be there, readable in the same repository; an index may
name manifests that are not; a subject need not be there. Bytes are kept as they came. A tag is a ref
`NAME:TAG` of the store, so `images` shows what was pushed; an image that was named `NAME:TAG` by other
means becomes readable when it is asked for by that tag.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import mediatypes
from ..digest import digest_of, parse
from ..errors import (
    DigestMismatchError,
    LimitError,
    MissingBlobsError,
    NotFoundError,
    PermissionDeniedError,
)
from ..storage import graph, repositories
from ..storage.index import Snapshot, Table, Write
from ..storage.leases import hold_key
from ..storage.operation import read_ref, visible
from ..values import Descriptor, Edge, Ref
from . import jsonio
from .model import Document, Index, parse_document

if TYPE_CHECKING:
    from ..layers.content import Operation
    from ..storage.storage import Storage


NEAR = 256
"""Repositories that are asked for a blob when a mount does not say from which."""


@dataclass(frozen=True, slots=True)
class Put:
    """What became of a manifest that was put."""

    descriptor: Descriptor
    subject: str | None


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a manifest is taken: how long its blobs are kept should it go again, how many bytes
    the repository may have (None: any), whether blobs may lack, what may be new, what may change; how
    long it and its tags stay when nobody asks for it (None: for good)."""

    ttl: float
    max_bytes: int | None = None
    sparse: bool = False
    create: bool = True
    overwrite: bool = True
    keep: float | None = None


def ref_name(name: str, tag: str) -> str:
    return f"{name}:{tag}"


def may_read(name: str, digest: str, *, manifest: bool = False) -> Callable[[Snapshot], bool]:
    """Whether a repository has a digest, as a manifest if so asked; for the snapshot that finds its
    bytes."""

    def has(snapshot: Snapshot) -> bool:
        found = repositories.find(snapshot, name, digest)
        return found is not None and (found.is_manifest or not manifest)

    return has


def check_bytes(storage: Storage, name: str, max_bytes: int | None) -> None:
    """Raises LimitError for a repository that is full."""
    if max_bytes is not None:
        with storage.index.read() as snapshot:
            if repositories.total(snapshot, name) >= max_bytes:
                raise LimitError(f"repository {name} has all of the {max_bytes} bytes it may have")


def _check_grown(tx: Write, name: str, max_bytes: int | None) -> None:
    """The same for a commit that has added to it: ends it where that was too much."""
    if max_bytes is not None and repositories.total(tx, name) > max_bytes:
        raise LimitError(
            f"repository {name} would have more than the {max_bytes} bytes it may have"
        )


def blob(
    storage: Storage, name: str, digest: str, ttl: float, *, lent: bool = False
) -> repositories.Member | None:
    """A member that is here, whole; the answer is a promise: it is kept for `ttl` from now on, or three
    quarters of it; no promise where it is `lent`. None alike for what is absent and for what is another
    repository's."""
    found = look(storage, name, digest)
    kept = found is not None and found.fresh and (lent or not found.lent)
    if found is not None and not kept and not storage.readonly:
        size = found.size

        def touch(tx: Write) -> bool:
            member = repositories.find(tx, name, digest)
            if member is None:
                return False
            if member.is_manifest:
                return repositories.touch(tx, name, digest)
            repositories.put(tx, name, digest, size, ttl, lent=lent)
            return True

        if not storage.index.update(touch):
            return None
    return found


def look(storage: Storage, name: str, digest: str) -> repositories.Member | None:
    """A member that is here, whole, without a promise; but one that is `fresh` has one already."""
    parse(digest)
    with storage.index.read() as snapshot:
        found = repositories.find(snapshot, name, digest)
        return None if found is None or visible(storage, snapshot, digest) is None else found


def look_up(storage: Storage, name: str, reference: str) -> repositories.Member | None:
    """The manifest that a tag or digest means, as far as one snapshot tells; see `resolve`."""
    digest = reference
    with storage.index.read() as snapshot:
        if ":" in reference:
            parse(reference)
        else:
            value = snapshot.get(Table.REFS, ref_name(name, reference).encode())
            if value is None:
                return None
            digest = read_ref(reference, value).digest
        found = repositories.find(snapshot, name, digest)
    return found if found is not None and found.is_manifest else None


def admit(
    storage: Storage, name: str, ttl: float, max_bytes: int | None = None, *, lent: bool = False
) -> Callable[[Write, str], None]:
    """What makes a blob a member in the commit that stores it. From then on the row keeps it, and the
    session that stored it need not."""

    def work(tx: Write, digest: str) -> None:
        serial = graph.serial_of(tx, digest)
        row = None if serial is None else graph.blob_row(tx, serial)
        if serial is None or row is None:
            raise NotFoundError(f"no blob {digest} in the store", digest=digest)
        known = repositories.find(tx, name, digest) is not None
        repositories.put(tx, name, digest, row.size, ttl, lent=lent)
        if not known:
            _check_grown(tx, name, max_bytes)
        tx.delete(Table.HOLDS, hold_key(bytes.fromhex(storage.session.id), serial))

    return work


def mount(
    op: Operation,
    name: str,
    source: str,
    digest: str,
    ttl: float,
    max_bytes: int | None = None,
    *,
    lent: bool = False,
) -> int | None:
    """Makes a blob of another repository a member of this one; its size, or None if it is not there."""
    storage = op.op.storage

    def work(tx: Write) -> int | None:
        found = repositories.find(tx, source, digest)
        there = visible(storage, tx, digest) if found is not None else None
        if found is None or there is None:
            return None
        known = repositories.find(tx, name, digest) is not None
        repositories.put(tx, name, digest, there[1].size, ttl, lent=lent)
        if not known:
            _check_grown(tx, name, max_bytes)
        return there[1].size

    return storage.index.update(work)


def mount_any(
    op: Operation,
    name: str,
    digest: str,
    may_pull: Callable[[str], bool],
    ttl: float,
    max_bytes: int | None = None,
    *,
    lent: bool = False,
) -> int | None:
    """The same from a repository near by that has it and that `may_pull` allows. At most `NEAR` names
    are asked, from those of the same namespace on, in their order and round: what it costs has a bound,
    and tells nothing of what others have."""
    space = name.rpartition("/")[0]
    with op.op.storage.index.read() as snapshot:
        behind = repositories.names(snapshot, space)
        before = itertools.takewhile(lambda one: one <= space, repositories.names(snapshot))
        near = itertools.islice(itertools.chain(behind, before), NEAR)
        source = next(
            (
                one
                for one in near
                if may_pull(one) and repositories.find(snapshot, one, digest) is not None
            ),
            None,
        )
    if source is None:
        return None
    return mount(op, name, source, digest, ttl, max_bytes, lent=lent)


def check_manifest(data: bytes, media_type: str) -> Document:
    """A manifest or index that may be stored: parsed strictly, its type the one that it came under.
    Raises InvalidInputError, LimitError, UnsupportedError."""
    jsonio.check_size(len(data), jsonio.MAX_MANIFEST, "the manifest")
    return parse_document(data, media_type, None)


def put_manifest(
    op: Operation,
    name: str,
    data: bytes,
    media_type: str,
    tags: tuple[str, ...],
    digest: str | None,
    terms: Terms,
) -> Put:
    """Stores a manifest under its digest and tags, in one commit with the promise that all it names
    stays. Raises PermissionDeniedError, MissingBlobsError, DigestMismatchError, LimitError for a
    repository that is full, and what `check_manifest` does."""
    document = check_manifest(data, media_type)
    algorithm = "sha256" if digest is None else parse(digest)[0]
    got = digest_of(data, algorithm)
    if digest is not None and digest != got:
        raise DigestMismatchError(
            f"the manifest has digest {got}, not {digest}", expected=digest, got=got
        )
    storage = op.op.storage
    with storage.index.read() as snapshot:
        edges, needed = _edges(snapshot, storage, name, document, terms.sparse)
    refs = {
        ref_name(name, tag): Ref(ref_name(name, tag), got, len(data), document.media_type)
        for tag in tags
    }

    lent: list[str] = []
    lends = terms.keep is not None

    def before(tx: Write) -> None:
        _check_rights(tx, name, got, document.media_type, refs, terms)
        lent[:] = [ref for ref in refs if terms.keep and repositories.lendable(tx, ref)]

    def also(tx: Write) -> None:
        missing = _missing(tx, name, needed)
        if missing:
            raise MissingBlobsError(
                f"repository {name} does not have {missing[0]}, which the manifest names",
                tuple(missing),
            )
        for one in needed:
            member = repositories.find(tx, name, one)
            if member is not None and not member.is_manifest:
                repositories.put(tx, name, one, member.size, terms.ttl, lent=lends)
        known = repositories.find(tx, name, got) is not None
        refers = None if document.subject is None else document.subject.digest
        repositories.put_manifest(tx, name, got, len(data), document.media_type, refers, terms.keep)
        for ref in lent:
            repositories.lend(tx, ref)
        if not known:
            _check_grown(tx, name, terms.max_bytes)
        serial = graph.serial_of(tx, got)
        if serial is not None:
            tx.delete(Table.HOLDS, hold_key(bytes.fromhex(storage.session.id), serial))

    # Looked at before anything is written, too, where it costs nobody else anything.
    with storage.index.read() as snapshot:
        _check_rights(snapshot, name, got, document.media_type, refs, terms)
        missing = _missing(snapshot, name, needed)
    if missing:
        raise MissingBlobsError(
            f"repository {name} does not have {missing[0]}, which the manifest names",
            tuple(missing),
        )
    op.put_document(data, got, document.media_type, edges, refs, before, also)
    subject = None if document.subject is None else document.subject.digest
    return Put(Descriptor(got, len(data), document.media_type), subject)


def _check_rights(
    snapshot: Snapshot,
    name: str,
    digest: str,
    media_type: str,
    refs: Mapping[str, Ref],
    terms: Terms,
) -> None:
    """Ends a put without the rights: what is new needs `create`, what changes `overwrite`. Raises
    PermissionDeniedError."""
    found = repositories.find(snapshot, name, digest)
    if not terms.create and (found is None or not found.is_manifest):
        raise PermissionDeniedError(f"nothing new may be put into repository {name}")
    changes = found is not None and found.is_manifest and found.media_type != media_type
    if changes and not terms.overwrite:
        raise PermissionDeniedError("the manifest is there under another media type")
    for ref_key in refs:
        value = snapshot.get(Table.REFS, ref_key.encode())
        if value is None:
            if not terms.create:
                raise PermissionDeniedError(f"{ref_key} would be a new tag")
        elif not terms.overwrite and read_ref(ref_key, value).digest != digest:
            raise PermissionDeniedError(f"{ref_key} names another manifest already")


def _missing(snapshot: Snapshot, name: str, needed: tuple[str, ...]) -> list[str]:
    return [one for one in needed if repositories.find(snapshot, name, one) is None]


def _edges(
    snapshot: Snapshot, storage: Storage, name: str, document: Document, sparse: bool
) -> tuple[tuple[Edge, ...], tuple[str, ...]]:
    """What a manifest names, and which of it must be in the repository."""
    out: dict[str, Edge] = {}
    needed: list[str] = []
    for child in document.children():
        kind = "child"
        if sparse or isinstance(document, Index) or mediatypes.is_foreign(child.media_type):
            member = repositories.find(snapshot, name, child.digest)
            if member is None or visible(storage, snapshot, child.digest) is None:
                kind = "absent"
        if kind == "child":
            needed.append(child.digest)
        out.setdefault(child.digest, Edge(child.digest, kind, child.size, child.media_type))
    edges = list(out.values())
    subject = document.subject
    if subject is not None:
        edges.append(Edge(subject.digest, "subject", subject.size, subject.media_type))
    return tuple(edges), tuple(dict.fromkeys(needed))


def resolve(op: Operation, name: str, reference: str) -> repositories.Member | None:
    """The manifest that a tag or digest means in a repository; None if there is none."""
    storage = op.op.storage
    found = look_up(storage, name, reference)
    if found is not None and not found.fresh and not storage.readonly:
        digest = found.digest
        if not storage.index.update(lambda tx: repositories.touch(tx, name, digest)):
            return None
    if found is not None or ":" in reference or storage.readonly:
        return found
    with storage.index.read() as snapshot:
        value = snapshot.get(Table.REFS, ref_name(name, reference).encode())
        if value is None:
            return None
        ref = read_ref(reference, value)
        if repositories.find(snapshot, name, ref.digest) is not None:
            return None
    found = _adopt(storage, name, ref)
    return found if found is not None and found.is_manifest else None


def _adopt(storage: Storage, name: str, ref: Ref) -> repositories.Member | None:
    """An image that was named by other means than a push: all that it is made of becomes readable."""

    def work(tx: Write) -> repositories.Member | None:
        serial = graph.serial_of(tx, ref.digest)
        if serial is None:
            return None
        todo, seen = [serial], {serial}
        while todo:
            one = todo.pop()
            row = graph.blob_row(tx, one)
            if row is None:
                continue
            edges = graph.edges_of(tx, one)
            if mediatypes.is_document(row.media_type):
                refers = next((e.digest for e in edges if e.kind == "subject"), None)
                repositories.put_manifest(tx, name, row.digest, row.size, row.media_type, refers)
            else:
                repositories.put(tx, name, row.digest, row.size, repositories.IDLE)
            for edge in edges:
                child = graph.serial_of(tx, edge.digest)
                # Only what was there, and so could be read, when the document was put: not what it
                # merely names.
                if edge.kind == "child" and child is not None and child not in seen:
                    seen.add(child)
                    todo.append(child)
        return repositories.find(tx, name, ref.digest)

    return storage.index.update(work)


def tags(op: Operation, name: str, after: str = "", limit: int | None = None) -> list[str]:
    """Tags of a repository behind `after`, in the order of their bytes, at most `limit`. No others are
    read."""
    prefix = ref_name(name, "").encode()
    start = prefix + after.encode() + b"\0" if after else prefix
    with op.op.storage.index.read() as snapshot:
        rows = itertools.islice(snapshot.items(Table.REFS, prefix, start=start), limit)
        return [key[len(prefix) :].decode() for key, _ in rows]


def tags_of(op: Operation, name: str, digest: str) -> list[str]:
    """Those that name one manifest."""
    prefix = ref_name(name, "").encode()
    with op.op.storage.index.read() as snapshot:
        return [
            key[len(prefix) :].decode()
            for key, value in snapshot.items(Table.REFS, prefix)
            if read_ref("", value).digest == digest
        ]


def exists(op: Operation, name: str) -> bool:
    """Whether a repository has anything."""
    with op.op.storage.index.read() as snapshot:
        if next(repositories.members(snapshot, name), None) is not None:
            return True
        prefix = ref_name(name, "").encode()
        return next(iter(snapshot.items(Table.REFS, prefix)), None) is not None


def remove_manifest(op: Operation, name: str, digest: str) -> bool:
    """Removes a manifest and the tags that name it; False if there is none."""
    storage = op.op.storage
    parse(digest)
    prefix = ref_name(name, "").encode()

    def work(tx: Write) -> bool:
        found = repositories.find(tx, name, digest)
        if found is None or not found.is_manifest:
            return False
        named = [
            key
            for key, value in tx.items(Table.REFS, prefix)
            if read_ref("", value).digest == digest
        ]
        for key in named:
            tx.delete(Table.REFS, key)
        return repositories.remove(tx, name, digest)

    return storage.index.update(work)


def remove_blob(op: Operation, name: str, digest: str) -> bool:
    """Takes a blob out of a repository; False if it is not there. Manifests that name it stay."""
    parse(digest)

    def work(tx: Write) -> bool:
        found = repositories.find(tx, name, digest)
        if found is None or found.is_manifest:
            return False
        return repositories.remove(tx, name, digest)

    return op.op.storage.index.update(work)


def referrers(
    op: Operation, name: str, digest: str, after: str = ""
) -> Iterator[tuple[repositories.Member, bytes]]:
    """Manifests of the repository whose subject is `digest`, with their bytes, sorted by digest; those
    behind the digest `after`."""
    storage = op.op.storage
    with storage.index.read() as snapshot:
        members = [
            member
            for member in repositories.referring(snapshot, name, digest)
            if member.digest > after and visible(storage, snapshot, member.digest) is not None
        ]
    for member in sorted(members, key=lambda m: m.digest):
        allowed = may_read(name, member.digest, manifest=True)
        try:
            yield member, op.read(member.digest, jsonio.MAX_MANIFEST, allowed)
        except NotFoundError:
            continue  # taken out of the repository meanwhile
