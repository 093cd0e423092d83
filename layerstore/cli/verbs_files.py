"""ls and cat: files of an image as a container would see them, or of one layer as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .context import Context
from .output import rfc3339

if TYPE_CHECKING:
    import layerstore

_LETTER = {
    "dir": "d",
    "symlink": "l",
    "char": "c",
    "block": "b",
    "fifo": "p",
    "whiteout": "w",
    "other": "?",
}


def ls(context: Context) -> None:
    """`ls NAME [PATH]`: streams, however many files there are."""
    args, output = context.args, context.output
    entries = context.store().image(args.name).entries(args.path, layer=args.layer)
    if output.json:
        output.stream("entries", map(_entry, entries))
    elif output.quiet:
        output.lines(entry.path for entry in entries)
    else:
        output.lines(_line(entry) for entry in entries)


def _entry(entry: layerstore.Entry) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": entry.path,
        "type": entry.type,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime": rfc3339(entry.mtime),
        "layer": entry.layer,
    }
    if entry.linkname is not None:
        document["linkname"] = entry.linkname
    if entry.type in ("char", "block"):
        document |= {"devmajor": entry.devmajor, "devminor": entry.devminor}
    return document


def _line(entry: layerstore.Entry) -> str:
    """As `ls -l` has it; sizes in bytes, since that is what columns of files are compared by."""
    size = str(entry.size)
    if entry.type in ("char", "block"):
        size = f"{entry.devmajor},{entry.devminor}"
    name = entry.path
    if entry.linkname is not None:
        name += f" {'->' if entry.type == 'symlink' else 'link to'} {entry.linkname}"
    owner = f"{entry.uid}:{entry.gid}"
    return f"{_mode(entry)} {owner:>11} {size:>12} {rfc3339(int(entry.mtime))} {name}"


def _mode(entry: layerstore.Entry) -> str:
    """`-rwxr-xr-x`"""
    bits = [letter if entry.mode >> (8 - n) & 1 else "-" for n, letter in enumerate("rwxrwxrwx")]
    for place, bit, letter in ((2, 0o4000, "s"), (5, 0o2000, "s"), (8, 0o1000, "t")):
        if entry.mode & bit:
            bits[place] = letter if bits[place] == "x" else letter.upper()
    return _LETTER.get(entry.type, "-") + "".join(bits)


def cat(context: Context) -> None:
    """`cat NAME PATH`"""
    args = context.args
    context.output.bytes(context.store().image(args.name).open(args.path, layer=args.layer))
