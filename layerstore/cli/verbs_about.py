"""completion and version: about layerstore itself; no store is opened."""

from __future__ import annotations

from .context import Context


def completion(context: Context) -> None:
    """`completion bash|zsh|fish`"""
    from .completion import script

    context.output.write(script(context.args.shell))


def version(context: Context) -> None:
    """`version`"""
    import platform

    import layerstore

    output = context.output
    if output.json:
        output.document(
            {
                "version": layerstore.__version__,
                "format": layerstore.FORMAT_VERSION,
                "python": platform.python_version(),
                "machine": platform.machine(),
            }
        )
        return
    output.line(f"layerstore {layerstore.__version__}")
    output.line(f"store format {layerstore.FORMAT_VERSION}")
    output.line(f"Python {platform.python_version()} on {platform.machine()}")
