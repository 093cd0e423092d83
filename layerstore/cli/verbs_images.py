"""images, inspect, history, tag, untag: what the store knows by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .context import Context
from .output import human, short
from .parser import UsageError

if TYPE_CHECKING:
    import layerstore


def images(context: Context) -> None:
    """`images`; with `-q` names only."""
    output = context.output
    found = context.store().images()
    if output.json:
        output.document({"images": [_image(info) for info in found]})
    elif output.quiet:
        output.lines(info.name for info in found)
    else:
        output.table(
            ("NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE"),
            [
                (i.name, short(i.digest), i.platform or "-", i.created or "-", human(i.bytes))
                for i in found
            ],
            right="SIZE",
        )


def _image(info: layerstore.ImageInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "digest": info.digest,
        "media_type": info.media_type,
        "bytes": info.bytes,
        "created": info.created,
        "platform": info.platform,
    }


def inspect(context: Context) -> None:
    """`inspect NAME`: `--raw` and `--config` give exact bytes, whatever else is asked for."""
    args, output = context.args, context.output
    if args.raw and args.config:
        raise UsageError(
            "--raw or --config, not both",
            "layerstore inspect",
            "usage: layerstore inspect [--raw | --config] NAME\n",
        )
    image = context.store().image(args.name)
    if args.raw or args.config:
        output.bytes([image.manifest_bytes if args.raw else image.config_bytes])
        return
    info = image.info
    layers = [
        {
            "digest": layer.digest,
            "media_type": layer.media_type,
            "bytes": layer.size,
            "diff_id": layer.diff_id,
        }
        for layer in image.layers
    ]
    if output.json:
        document = {**_image(info), "blobs": info.blobs, "warnings": list(info.warnings)}
        output.document({**document, "layers": layers})
        return
    output.lines(
        (
            f"name:       {info.name}",
            f"digest:     {info.digest}",
            f"media type: {info.media_type}",
            f"platform:   {info.platform or '-'}",
            f"created:    {info.created or '-'}",
            f"size:       {human(info.bytes)} in {info.blobs} blobs",
            "",
        )
    )
    output.table(
        ("LAYER", "DIGEST", "SIZE", "MEDIA TYPE"),
        [
            (str(n), short(layer.digest), human(layer.size), layer.media_type)
            for n, layer in enumerate(image.layers)
        ],
        right="LAYER,SIZE",
    )
    for warning in info.warnings:
        output.warning(warning)


def history(context: Context) -> None:
    """`history NAME`, oldest first, as the config has it; steps that made a layer name it."""
    output = context.output
    image = context.store().image(context.args.name)
    steps = [_step(step) for step in image.history]
    # Only a config that accounts for every layer says which step made which.
    making = [step for step in steps if not step["empty_layer"]]
    if len(making) == len(image.layers):
        for step, layer in zip(making, image.layers, strict=True):
            step["digest"], step["bytes"] = layer.digest, layer.size
    if output.json:
        output.document({"history": steps})
        return
    output.table(
        ("CREATED", "LAYER", "SIZE", "CREATED BY"),
        [
            (
                step["created"] or "-",
                short(step["digest"] or "") or "-",
                "-" if step["bytes"] is None else human(step["bytes"]),
                step["created_by"] or step["comment"] or "-",
            )
            for step in steps
        ],
        right="SIZE",
    )


def _step(step: Mapping[str, object]) -> dict[str, Any]:
    """One entry of a config's history (image-spec config.md); what is not text there is left out,
    since a config may hold anything."""
    fields: dict[str, Any] = {}
    for key in ("created", "created_by", "author", "comment"):
        value = step.get(key)
        fields[key] = value if isinstance(value, str) else None
    fields["empty_layer"] = step.get("empty_layer") is True
    return {**fields, "digest": None, "bytes": None}


def tag(context: Context) -> None:
    """`tag NAME NEW`"""
    args, output = context.args, context.output
    ref = context.store(write=True).tag(args.name, args.new)
    if output.json:
        output.document({"name": ref.name, "digest": ref.digest})
    else:
        output.line(f"{ref.name}  {ref.digest}")


def untag(context: Context) -> None:
    """`untag NAME...`, in order; one that is not there ends it, and what went before is said."""
    output = context.output
    store = context.store(write=True)
    gone: list[layerstore.Ref] = []
    try:
        gone.extend(store.untag(name) for name in context.args.name)
    except Exception:
        for ref in gone:
            output.note(f"untagged before that: {ref.name}")
        raise
    if output.json:
        output.document({"images": [{"name": ref.name, "digest": ref.digest} for ref in gone]})
    else:
        output.lines(f"{ref.name}  {ref.digest}" for ref in gone)
