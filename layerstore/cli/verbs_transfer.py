"""import and export: images between the store and everything else."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from .context import Context
from .output import human
from .parser import UsageError

if TYPE_CHECKING:
    import layerstore


def remote_options(args: Namespace, side: str = "") -> layerstore.RemoteOptions:
    """How a registry is to be spoken to; `side` is `src_` or `dest_` where there are two."""
    import layerstore

    return layerstore.RemoteOptions(
        creds=getattr(args, f"{side}creds"),
        authfile=getattr(args, f"{side}authfile"),
        tls_verify=getattr(args, f"{side}tls_verify") == "true",
        cert_dir=getattr(args, f"{side}cert_dir"),
    )


def import_(context: Context) -> None:
    """`import TRANSPORT [NAME]`"""
    take_in(context, context.args.transport)


def take_in(context: Context, source: str) -> None:
    """Imports from a transport, by the options that `import` and `pull` share, and says what came."""
    args, output = context.args, context.output
    taken = context.store(create=True).import_images(
        source,
        args.name,
        all=args.all,
        strict=args.strict,
        defer=args.defer,
        inflate_limit=args.inflate_limit,
        platform=args.platform,
        remote=remote_options(args),
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
            "name an image, then where to (oci:DIR, oci-archive:FILE, docker-archive:FILE or "
            "docker://HOST/NAME)",
            "layerstore export",
            "usage: layerstore export NAME... TRANSPORT\n",
        )
    kind, _, rest = transport.partition(":")
    if kind.endswith("-archive") and rest.partition(":")[0] == "-":
        output.results_to_stderr()
    store = context.store()
    given = store.export_images(
        names,
        transport,
        referrers=args.referrers,
        compression=args.compression,
        remote=remote_options(args),
        progress=context.progress,
    )
    given_out(context, given, told=args.compression is not None)


def given_out(context: Context, given: list[layerstore.ImageInfo], *, told: bool = False) -> None:
    """Says what was written; with `told` also what is odd about it."""
    output = context.output
    context.done()
    if told:
        for image in given:
            for warning in image.warnings:
                output.warning(f"{image.name}: {warning}")
    if output.json:
        images = [{"name": i.name, "digest": i.digest, "bytes": i.bytes} for i in given]
        output.document({"images": images})
        return
    for image in given:
        output.line(f"{image.name}  {image.digest}")
        output.note(f"{human(image.bytes)} of blobs", verbose=True)
