"""`check` as a whole: the rooms of storage, every blob's digest, damage named by path, and repair."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..errors import CorruptError, LayerstoreError
from ..storage import check as rooms
from ..storage import compact, graph
from ..storage.index import Table
from ..storage.rows import BlobRow, TarForm, serial_key
from ..values import CheckReport, Damage, Progress, ProgressCallback
from .assemble import BlobFile, headers_only
from .content import Content
from .tree import text

Repair = Callable[[Content, Sequence[BlobRow]], None]
"""Puts those of the blobs again whose bytes it can get."""
MAX_PATHS = 1000


def check(
    content: Content,
    *,
    blocks: bool,
    full: bool,
    max_time: float | None,
    repair: Repair | None,
    progress: ProgressCallback | None,
) -> CheckReport:
    """See `Store.check`."""
    storage = content.storage
    storage.check_usable()
    started = time.monotonic()
    stop = compact.deadline(max_time)
    found = rooms.Findings()
    done = 0

    def tell(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(Progress("check", done, 0))

    try:
        rooms.quick(storage, found)
    except CorruptError as e:
        # The index itself cannot be trusted: all else is for the rebuild to find out.
        damage = (Damage("", "index", e.message),)
        return CheckReport(False, damage, (), 0, time.monotonic() - started)
    if blocks or full:
        rooms.metadata_pack(storage, found)
        rounds = rooms.Rounds(storage)
        digests = (lambda serial: _digests(content, serial, found, tell)) if full else None
        rooms.blocks_and_raws(storage, found, rounds, stop, tell, chunks=full, blobs=digests)
        rounds.save()
    hit = rooms.affected(storage, found)
    # What can only be made from something damaged is so as long as that is: nothing to record.
    below = rooms.derived(storage, hit)
    own = {serial: what for serial, what in hit.items() if serial not in below}
    rooms.record(storage, own, found, everything=full and found.complete)
    with storage.index.read() as snapshot:
        spoilt = rooms.spoilt(storage, snapshot, found.numbers, hit)
    rooms.forget_forms(storage, [serial for serial in spoilt if serial not in hit])
    for serial, was in rooms.recorded(storage):
        # On record from an earlier check, and not looked at (or not seen) by this one.
        if serial not in hit:
            with storage.index.read() as snapshot:
                row = graph.blob_row(snapshot, serial)
            numbers = was["numbers"]
            if row is not None and isinstance(numbers, list):
                hit[serial] = (row, str(was["reason"]), [int(n) for n in numbers])
    tars: dict[int, BlobRow] = {}
    for serial, (row, inner) in rooms.derived(storage, hit).items():
        tar, reason, numbers = hit[inner]
        tars[serial] = tar
        hit[serial] = (row, f"it is made from {tar.digest}, which is damaged: {reason}", numbers)
    refs = rooms.refs_to(storage, set(hit))
    damaged = [
        Damage(
            row.digest,
            "gzip" if serial in tars else row.forms[0] if row.forms else "none",
            reason,
            tuple(refs[serial]),
            tuple(_paths(content, tars.get(serial, row), numbers)),
        )
        for serial, (row, reason, numbers) in sorted(hit.items())
    ]
    damaged += [Damage("", "index", reason) for reason in found.index]
    repaired: list[str] = []
    if repair is not None and hit:
        repair(content, [row for row, _, _ in hit.values()])
        with content.operation() as op:
            repaired = [row.digest for row, _, _ in hit.values() if op.have(row.digest) is not None]
    left = [d for d in damaged if d.digest not in repaired]
    return CheckReport(
        not left,
        tuple(damaged),
        tuple(repaired),
        found.checked_bytes,
        time.monotonic() - started,
        found.complete,
    )


def _digests(
    content: Content, serial: int, found: rooms.Findings, tell: Callable[[int], None]
) -> None:
    """A blob, read as a user would, by each of its digests, computed anew."""
    storage = content.storage
    with storage.index.read() as snapshot:
        row = graph.blob_row(snapshot, serial)
    if row is None:
        return
    try:
        for digest in row.digests:
            _read_all(content, digest, tell)
    except CorruptError as e:
        found.blobs.setdefault(serial, e.message)
    except LayerstoreError as e:
        with storage.index.read() as snapshot:
            gone = snapshot.get(Table.BLOBS, serial_key(serial)) is None
            hidden = storage.condemned(snapshot)
        if not gone and (hidden is None or not hidden.has_blob(serial)):
            found.blobs.setdefault(serial, e.message)


def _read_all(content: Content, digest: str, tell: Callable[[int], None]) -> None:
    with BlobFile(content.storage, digest) as blob:
        for piece in blob.chunks():
            tell(len(piece))


def _paths(content: Content, row: BlobRow, numbers: list[int]) -> list[str]:
    """The files of a layer that need one of the numbers."""
    tar = row.tar
    if tar is None or not numbers:
        return []
    try:
        spans = _spans(content, tar, set(numbers))
        return _hit_paths(content, row, tar, spans) if spans else []
    except CorruptError:
        # Its header stream or its list is what is damaged: no path can be told.
        return []


def _spans(content: Content, tar: TarForm, numbers: set[int]) -> list[tuple[int, int]]:
    """Where in the content stream the numbers stand."""
    storage = content.storage
    out: list[tuple[int, int]] = []
    at = 0
    with storage.index.read() as snapshot:
        for place in storage.chunks.places(snapshot, storage.chunks.runs_of(tar.content)):
            for i, length in enumerate(place.lengths):
                if place.first + i in numbers:
                    out.append((at, at + length))
                at += length
    return out


def _hit_paths(
    content: Content, row: BlobRow, tar: TarForm, spans: list[tuple[int, int]]
) -> list[str]:
    from ..core.tar import scan

    inline = _inline(content.storage.chunks.read_stream(tar.marks))
    out: list[str] = []
    at = ordinal = current = 0
    for entry in scan(headers_only(content.storage, row), strict=False, beyond_end=True):
        if not entry.stored_size:
            continue
        size = entry.stored_size - inline.get(ordinal, 0)
        ordinal += 1
        end = at + size
        while current < len(spans) and spans[current][1] <= at:
            current += 1
        if current < len(spans) and spans[current][0] < end:
            out.append(text(entry.name))
            if len(out) == MAX_PATHS:
                break
        at = end
    return out


def _inline(marks: bytes) -> dict[int, int]:
    """Marks as `{ordinal of the data entry: bytes that are in the header stream}`."""
    numbers: list[int] = []
    value = shift = 0
    for byte in marks:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            numbers.append(value)
            value = shift = 0
    out: dict[int, int] = {}
    at = -1
    for gap, n in zip(numbers[::2], numbers[1::2], strict=False):
        at += gap + 1
        out[at] = n
    return out
