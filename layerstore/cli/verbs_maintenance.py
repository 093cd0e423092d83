"""gc, check, stats: keeping a store lean and sound, and knowing what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import exits
from .context import Context
from .output import human, human_seconds, short

if TYPE_CHECKING:
    import layerstore


def gc(context: Context) -> None:
    """`gc`"""
    args, output = context.args, context.output
    report = context.store(write=not args.dry_run).gc(
        dry_run=args.dry_run,
        max_time=args.max_time,
        max_repack_size=args.max_repack_size,
        aggressive=args.aggressive,
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
            }
        )
        return
    freed = "would free" if report.dry_run else "freed"
    blobs = f"{report.removed_blobs} blobs, {report.condemned_chunks} chunks"
    output.line(f"{freed} {human(report.freed_bytes)} ({blobs}), {human_seconds(report.seconds)}")
    if report.pending_bytes:
        output.line(
            f"{human(report.pending_bytes)} more are dead, but a running command or the "
            "budget holds them back; a later gc takes them"
        )
    if not report.complete:
        output.note("stopped by --max-time or --max-repack-size: the next gc goes on")


def check(context: Context) -> int:
    """`check`; the exit status says whether damage is left."""
    args, output = context.args, context.output
    if args.rebuild_index:
        import layerstore

        layerstore.rebuild_index(context.path)
        output.note("the index was made anew from the packs")
    report = context.store(write=bool(args.repair_from)).check(
        blocks=args.blocks,
        full=args.full,
        max_time=args.max_time,
        repair_from=args.repair_from,
        progress=context.progress,
    )
    context.done()
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
    return exits.DAMAGED if _left(report) else exits.DONE


def _left(report: layerstore.CheckReport) -> bool:
    """Whether there is damage that was not repaired."""
    unrepaired = {damage.digest for damage in report.damaged} - set(report.repaired)
    return bool(unrepaired) or not (report.ok or report.damaged)


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
        repaired = damage.digest in report.repaired
        output.line(
            f"{'repaired' if repaired else 'DAMAGED'}  {damage.digest} ({damage.form}): "
            f"{damage.reason}"
        )
        output.lines(f"  in image {ref}" for ref in damage.refs)
        output.lines(f"  file {path}" for path in damage.paths)
    checked = f"{human(report.checked_bytes)} checked, {human_seconds(report.seconds)}"
    verdict = "sound" if not _left(report) else "damaged"
    output.line(f"{verdict}: {checked}")
    if _left(report):
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
            "unpacked": found.unpacked,
            "index": found.index,
            "total": found.total,
        },
        "dead_bytes": found.dead_bytes,
        "alone": found.alone,
        "shared": found.shared,
    }
    if per_image:
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
