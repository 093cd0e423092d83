"""import and export: images between the store and everything else."""

from __future__ import annotations

from .context import Context
from .output import human
from .parser import UsageError


def import_(context: Context) -> None:
    """`import TRANSPORT [NAME]`"""
    args, output = context.args, context.output
    store = context.store(create=True)
    taken = store.import_images(
        args.transport,
        args.name,
        all=args.all,
        strict=args.strict,
        defer=args.defer,
        inflate_limit=args.inflate_limit,
        progress=context.progress,
    )
    context.done()
    for image in taken:
        for warning in image.warnings:
            output.warning(f"{image.name}: {warning}")
    if output.json:
        images = [
            {
                "name": image.name,
                "digest": image.digest,
                "blobs": image.blobs,
                "bytes": image.bytes,
                "new_bytes": image.new_bytes,
                "warnings": list(image.warnings),
            }
            for image in taken
        ]
        output.document({"images": images})
        return
    for image in taken:
        output.line(f"{image.name}  {image.digest}")
        output.note(f"{human(image.bytes)} of blobs, the store grew by {human(image.new_bytes)}")


def export(context: Context) -> None:
    """`export NAME... TRANSPORT`"""
    args, output = context.args, context.output
    *names, transport = args.words
    if not names:
        raise UsageError(
            "name an image, then where to (oci:DIR, oci-archive:FILE or docker-archive:FILE)",
            "layerstore export",
            "usage: layerstore export NAME... TRANSPORT\n",
        )
    kind, _, rest = transport.partition(":")
    if kind.endswith("-archive") and rest.partition(":")[0] == "-":
        output.results_to_stderr()
    store = context.store()
    given = store.export_images(
        names, transport, referrers=args.referrers, progress=context.progress
    )
    context.done()
    if output.json:
        images = [{"name": i.name, "digest": i.digest, "bytes": i.bytes} for i in given]
        output.document({"images": images})
        return
    for image in given:
        output.line(f"{image.name}  {image.digest}")
        output.note(f"{human(image.bytes)} of blobs", verbose=True)
