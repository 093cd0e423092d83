"""checkout: an image's root filesystem into a directory."""

from __future__ import annotations

from .context import Context
from .output import human, human_seconds


def checkout(context: Context) -> None:
    """`checkout NAME DIR`"""
    args, output = context.args, context.output
    report = context.store().checkout(
        args.name,
        args.directory,
        ownership=args.ownership,
        uid_map=args.uid_map,
        gid_map=args.gid_map,
        reflink=args.reflink == "auto",
        progress=context.progress,
    )
    context.done()
    if output.json:
        output.document(
            {
                "entries": report.entries,
                "bytes": report.bytes,
                "seconds": round(report.seconds, 6),
                "notes": list(report.notes),
            }
        )
        return
    for note in report.notes:
        output.warning(note)
    output.line(args.directory)
    output.note(
        f"{report.entries} entries, {human(report.bytes)} in {human_seconds(report.seconds)}"
    )
