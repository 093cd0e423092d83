"""optimize, gc, check, stats: keeping a store lean and sound, and knowing what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import exits
from .context import Context
from .output import human, human_seconds, short
from .verbs_transfer import remote_options

if TYPE_CHECKING:
    import layerstore


def optimize(context: Context) -> None:
    """`optimize [NAME...]`"""
    args, output = context.args, context.output
    report = context.store(write=True).optimize(
        args.names,
        max_corrections=args.max_corrections,
        max_time=args.max_time,
        progress=context.progress,
    )
    context.done()
    if output.json:
        output.document(
            {
                "blobs": [
                    {
                        "digest": blob.digest,
                        "encoder": blob.encoder,
                        "bytes": blob.bytes,
                        "recipe_bytes": blob.recipe_bytes,
                        "result": blob.result,
                        "reason": blob.reason,
                    }
                    for blob in report.blobs
                ],
                "freed_bytes": report.freed_bytes,
                "written_bytes": report.written_bytes,
                "seconds": round(report.seconds, 3),
                "complete": report.complete,
            }
        )
        return
    for blob in report.blobs:
        if blob.result == "raw":
            output.line(f"raw   {short(blob.digest)}  {blob.encoder}: {blob.reason}")
            continue
        sizes = f"{human(blob.bytes)}, recipe {human(blob.recipe_bytes)}"
        output.line(f"gzip  {short(blob.digest)}  {blob.encoder}: {sizes}")
    changes = (
        f"freed {human(report.freed_bytes)}, stored {human(report.written_bytes)} of new content"
    )
    output.line(f"{changes}, {human_seconds(report.seconds)}")
    if not report.complete:
        output.note("stopped by --max-time: the next optimize goes on")


def gc(context: Context) -> None:
    """`gc`"""
    args, output = context.args, context.output
    report = context.store(write=not args.dry_run).gc(
        dry_run=args.dry_run,
        max_time=args.max_time,
        max_repack_size=args.max_repack_size,
        aggressive=args.aggressive,
        max_used_space=args.max_used_space,
        min_free_space=args.min_free_space,
        progress=context.progress,
    )
    context.done()
    if output.json:
        output.document(
            {
                "dry_run": report.dry_run,
                "condemned_chunks": report.condemned_chunks,
                "freed_bytes": report.freed_bytes,
                "pending_bytes": report.pending_bytes,
                "removed_blobs": report.removed_blobs,
                "seconds": round(report.seconds, 3),
                "complete": report.complete,
                "dropped_entries": report.dropped_entries,
                "dropped_images": report.dropped_images,
                "within_limits": report.within_limits,
            }
        )
        return
    freed = "would free" if report.dry_run else "freed"
    blobs = f"{report.removed_blobs} blobs, {report.condemned_chunks} chunks"
    if report.dropped_entries:
        blobs = f"{report.dropped_entries} entries of the cache, {blobs}"
    if report.dropped_images:
        blobs = f"{report.dropped_images} images of a mirror, {blobs}"
    output.line(f"{freed} {human(report.freed_bytes)} ({blobs}), {human_seconds(report.seconds)}")
    if report.pending_bytes:
        output.line(
            f"{human(report.pending_bytes)} more are dead, but a running command or the "
            "budget holds them back; a later gc takes them"
        )
    if not report.complete:
        output.note("stopped by --max-time or --max-repack-size: the next gc goes on")
    elif not report.within_limits:
        output.note("still beyond the limit: images, leases and snapshots need what is left")


def check(context: Context) -> int:
    """`check`; the exit status says whether damage is left."""
    args, output = context.args, context.output
    rebuilt = _rebuild(context) if args.rebuild_index else None
    report = context.store(write=bool(args.repair_from)).check(
        blocks=args.blocks,
        full=args.full,
        max_time=args.max_time,
        repair_from=args.repair_from,
        remote=remote_options(args),
        progress=context.progress,
    )
    context.done()
    if rebuilt is not None:
        report = _merged(rebuilt, report)
    if output.json:
        output.document(
            {
                "ok": report.ok,
                "damaged": [_damage(damage) for damage in report.damaged],
                "repaired": list(report.repaired),
                "checked_bytes": report.checked_bytes,
                "seconds": round(report.seconds, 3),
                "complete": report.complete,
            }
        )
    else:
        _print_check(context, report)
    return exits.DONE if report.ok else exits.DAMAGED


def _rebuild(context: Context) -> layerstore.CheckReport:
    """Makes the index anew; what could not be made whole is in the report."""
    import layerstore

    try:
        report = layerstore.rebuild_index(context.path, timeout=context.args.timeout)
    except FileNotFoundError as error:
        raise layerstore.NotFoundError(
            f"no store in {context.path}: nothing to rebuild an index from", path=context.path
        ) from error
    context.output.note("the index was made anew from the packs")
    return report


def _merged(
    rebuilt: layerstore.CheckReport, then: layerstore.CheckReport
) -> layerstore.CheckReport:
    """What a rebuild found, and what the check after it did: neither may hide the other's damage."""
    import layerstore

    known = {damage.digest for damage in then.damaged}
    lost = tuple(d for d in rebuilt.damaged if d.digest not in known)
    return layerstore.CheckReport(
        then.ok and all(damage.digest in then.repaired for damage in lost),
        lost + then.damaged,
        then.repaired,
        rebuilt.checked_bytes + then.checked_bytes,
        rebuilt.seconds + then.seconds,
        then.complete,
    )


def _damage(damage: layerstore.Damage) -> dict[str, Any]:
    return {
        "digest": damage.digest,
        "form": damage.form,
        "reason": damage.reason,
        "refs": list(damage.refs),
        "paths": list(damage.paths),
    }


def _print_check(context: Context, report: layerstore.CheckReport) -> None:
    output = context.output
    for damage in report.damaged:
        state = "repaired" if damage.digest in report.repaired else "DAMAGED"
        what = f"{damage.digest} ({damage.form})" if damage.digest else damage.form
        output.line(f"{state}  {what}: {damage.reason}")
        output.lines(f"  in image {ref}" for ref in damage.refs)
        output.lines(f"  file {path}" for path in damage.paths)
    verdict = "sound" if report.ok else "damaged"
    checked = f"{human(report.checked_bytes)} read" if report.checked_bytes else "index and lengths"
    output.line(f"{verdict}: {checked}, {human_seconds(report.seconds)}")
    if not report.ok:
        output.note("put the same content again, or run check --repair-from TRANSPORT with a copy")
    if not report.complete:
        output.note("stopped by --max-time: the next check goes on")


def stats(context: Context) -> None:
    """`stats`; with `--images` also what each image costs."""
    args, output = context.args, context.output
    found = context.store().stats(images=args.images)
    if output.json:
        output.document(_stats(found, per_image=args.images))
        return
    saved = found.layer_tar_bytes - found.total
    output.lines(
        (
            f"images:      {found.images}",
            f"blobs:       {found.blob_count}, {human(found.blob_bytes)}",
            f"layers:      {found.layer_count}, {human(found.layer_tar_bytes)} of tar, "
            f"{found.layer_entries} entries",
            f"chunks:      {found.chunk_count}, {human(found.chunk_bytes)}",
            "forms:       " + ", ".join(f"{name} {n}" for name, n in found.forms.items()),
            f"on disk:     {human(found.total)} (packs {human(found.packs)}, raw "
            f"{human(found.raw)}, index {human(found.index)})",
            f"dead:        {human(found.dead_bytes)}",
        )
    )
    if saved > 0 and found.total > 0:
        factor = found.layer_tar_bytes / found.total
        output.line(f"saved:       {human(saved)} of tar ({factor:.1f} to 1)")
    if args.images:
        output.line("")
        output.table(
            ("NAME", "DIGEST", "ALONE", "SHARED", "FREED IF REMOVED"),
            [
                (
                    cost.name,
                    short(cost.digest),
                    human(cost.alone),
                    human(cost.shared),
                    human(cost.freed_if_removed),
                )
                for cost in found.per_image
            ],
            right="ALONE,SHARED,FREED IF REMOVED",
        )


def _stats(found: layerstore.Stats, *, per_image: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "images": found.images,
        "blobs": {"count": found.blob_count, "bytes": found.blob_bytes},
        "layers": {
            "count": found.layer_count,
            "tar_bytes": found.layer_tar_bytes,
            "entries": found.layer_entries,
        },
        "chunks": {"count": found.chunk_count, "bytes": found.chunk_bytes},
        "forms": {name: found.forms.get(name, 0) for name in ("plain", "tar", "gzip", "raw")},
        "stored": {
            "packs": found.packs,
            "raw": found.raw,
            "raw_cache": found.raw_cache,
            "unpacked": found.unpacked,
            "index": found.index,
            "total": found.total,
        },
        "dead_bytes": found.dead_bytes,
    }
    if per_image:
        document |= {"alone": found.alone, "shared": found.shared}
        document["per_image"] = [
            {
                "name": cost.name,
                "digest": cost.digest,
                "alone": cost.alone,
                "shared": cost.shared,
                "freed_if_removed": cost.freed_if_removed,
            }
            for cost in found.per_image
        ]
    return document
