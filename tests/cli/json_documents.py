"""The JSON document of every verb: its keys, their types, what they mean.

`docs/json.md` is made from this table (`python tests/cli/json_documents.py` writes it anew); the tests
hold real output against it, and the page too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


class Key(NamedTuple):
    """A key: `path` with dots for what is inside an object, `[]` for what is inside a list. `types`
    as in JSON: string, integer, number, boolean, null, object, list; with a `?` at the end of the path
    it may be missing."""

    path: str
    types: str
    meaning: str


_NAME = Key("images[].name", "string", "its name in the store")
_IMAGE_DIGEST = Key("images[].digest", "string", "digest of its manifest or index")
_FORMS = "forms that it is kept in: `plain`, `tar`, `gzip`, `raw`"


def _image(prefix: str) -> list[Key]:
    return [
        Key(f"{prefix}name", "string", "its name in the store"),
        Key(f"{prefix}digest", "string", "digest of its manifest or index"),
        Key(f"{prefix}media_type", "string", "media type of the manifest or index"),
        Key(f"{prefix}bytes", "integer", "size of all blobs that it names, each counted once"),
        Key(f"{prefix}created", "string|null", "when it was built, as its config says (RFC 3339)"),
        Key(f"{prefix}platform", "string|null", "such as `linux/amd64`; null for an index"),
    ]


def _blob(prefix: str) -> list[Key]:
    return [
        Key(f"{prefix}digest", "string", "the blob's digest"),
        Key(f"{prefix}bytes", "integer", "its size"),
        Key(f"{prefix}media_type", "string", "its media type, as it came"),
        Key(f"{prefix}forms", "list", _FORMS),
        Key(f"{prefix}forms[]", "string", "one form"),
        Key(f"{prefix}stored_bytes", "integer", "its share of the store's files; -1: not counted"),
        Key(f"{prefix}diff_id", "string|null", "digest of the tar in a layer, once verified"),
        Key(f"{prefix}problem", "string|null", "why a layer does not decode or match its diff_id"),
    ]


def _layer(size: str = "", lease: str = "") -> list[Key]:
    """A layer that was made; `size` and `lease`: what is said of them where none is stored."""

    def also(text: str, more: str) -> str:
        return f"{text}; {more}" if more else text

    return [
        Key("mediaType", "string", "the layer's media type"),
        Key("digest", "string", "the layer's digest"),
        Key("size", "integer", "its bytes"),
        Key("diff_id", "string", "digest of its tar: the same, since it is not compressed"),
        Key("entries", "integer", "entries of the tar, whiteouts among them"),
        Key("new_bytes", "integer", also("what the store grew by", size)),
        Key("lease", "string|null" if lease else "string", also("the lease that holds it", lease)),
        Key("notes", "list", "what was left out (sockets), or absent"),
        Key("notes[]", "string", "one file"),
    ]


def _snapshot(prefix: str) -> list[Key]:
    return [
        Key(f"{prefix}key", "string", "its key"),
        Key(f"{prefix}kind", "string", "`active`, or `view` for one that is only read"),
        Key(f"{prefix}image", "string", "the image below it, as it was named"),
        Key(f"{prefix}digest", "string|null", "digest of that image's manifest; null: of none"),
        Key(f"{prefix}created", "string", "when (RFC 3339)"),
        Key(f"{prefix}mounts", "list", "where it is mounted"),
        Key(f"{prefix}mounts[]", "string", "a directory; of another mount namespace: with a pid"),
        Key(f"{prefix}driver", "string", "`overlay`, `fuse` or `copy`; empty while not mounted"),
        Key(f"{prefix}note", "string|null", "what is odd about it, such as a mount left over"),
    ]


DOCUMENTS: dict[str, list[Key]] = {
    "import": [
        Key("images", "list", "the images that were taken in"),
        _NAME,
        _IMAGE_DIGEST,
        Key("images[].blobs", "integer", "how many blobs it has"),
        Key("images[].bytes", "integer", "their size, each counted once"),
        Key("images[].new_bytes", "integer", "what the store grew by"),
        Key("images[].warnings", "list", "what is wrong with it, or absent"),
        Key("images[].warnings[]", "string", "one warning"),
    ],
    "export": [
        Key("images", "list", "the images that were written"),
        _NAME,
        Key(
            "images[].digest",
            "string",
            "digest of its manifest or index, as written: with `--compression` not the store's",
        ),
        Key("images[].bytes", "integer", "size of all its blobs, each counted once"),
    ],
    "pull": [
        Key("images", "list", "the images that were taken in"),
        _NAME,
        _IMAGE_DIGEST,
        Key("images[].blobs", "integer", "how many blobs it has"),
        Key("images[].bytes", "integer", "their size, each counted once"),
        Key("images[].new_bytes", "integer", "what the store grew by"),
        Key("images[].warnings", "list", "what is wrong with it, or absent"),
        Key("images[].warnings[]", "string", "one warning"),
    ],
    "push": [
        Key("images", "list", "the image that was given"),
        _NAME,
        Key("images[].digest", "string", "digest of its manifest or index, as the registry has it"),
        Key("images[].bytes", "integer", "size of all its blobs, each counted once"),
    ],
    "copy": [
        Key("images", "list", "the images that were copied"),
        Key("images[].name", "string", "its name where it comes from"),
        _IMAGE_DIGEST,
        Key("images[].bytes", "integer", "size of all its blobs and documents, each counted once"),
    ],
    "checkout": [
        Key("entries", "integer", "names that were made"),
        Key("bytes", "integer", "bytes of files that were written, each file once"),
        Key("seconds", "number", "how long it took"),
        Key("notes", "list", "what could not be kept, and why"),
        Key("notes[]", "string", "one note"),
    ],
    "images": [Key("images", "list", "all images, by name"), *_image("images[].")],
    "inspect": [
        *_image(""),
        Key("blobs", "integer", "how many blobs it has"),
        Key("warnings", "list", "what is wrong with it, or absent"),
        Key("warnings[]", "string", "one warning"),
        Key("layers", "list", "its layers, lowest first"),
        Key("layers[].digest", "string", "digest of the layer blob"),
        Key("layers[].media_type", "string", "its media type"),
        Key("layers[].bytes", "integer", "its size"),
        Key("layers[].diff_id", "string|null", "digest of the tar in it, as the config says"),
    ],
    "history": [
        Key("history", "list", "the steps of the build, oldest first"),
        Key("history[].created", "string|null", "when (RFC 3339)"),
        Key("history[].created_by", "string|null", "the command"),
        Key("history[].author", "string|null", "who"),
        Key("history[].comment", "string|null", "a remark"),
        Key("history[].empty_layer", "boolean", "whether the step made no layer"),
        Key("history[].digest", "string|null", "digest of the layer that it made"),
        Key("history[].bytes", "integer|null", "size of that layer"),
    ],
    "tag": [
        Key("name", "string", "the new name, in full"),
        Key("digest", "string", "what it names"),
    ],
    "untag": [Key("images", "list", "the names that are gone"), _NAME, _IMAGE_DIGEST],
    "ls": [
        Key(
            "entries", "list", "the files, sorted by path; with `--layer` in the order of the layer"
        ),
        Key(
            "entries[].path",
            "string",
            "path in the image; bytes that are no UTF-8 appear as "
            "lone surrogates, `\\udc80` to `\\udcff`",
        ),
        Key(
            "entries[].type",
            "string",
            "`file`, `dir`, `symlink`, `hardlink`, `char`, `block`, `fifo`, `whiteout` or `other`",
        ),
        Key("entries[].mode", "integer", "permission bits, as a number (420 is 0644)"),
        Key("entries[].uid", "integer", "owner"),
        Key("entries[].gid", "integer", "group"),
        Key("entries[].size", "integer", "bytes of content"),
        Key("entries[].mtime", "string", "RFC 3339 in UTC; `@seconds` outside the years 1 to 9999"),
        Key(
            "entries[].layer", "integer", "number of the layer that it comes from; 0 is the lowest"
        ),
        Key("entries[].linkname?", "string", "where a link points"),
        Key("entries[].devmajor?", "integer", "of a device"),
        Key("entries[].devminor?", "integer", "of a device"),
    ],
    "diff": _layer("0 with `--tar`", "null with `--tar`"),
    "commit": [
        Key("name", "string", "the new image's name, in full"),
        Key("digest", "string", "digest of its manifest"),
    ],
    "bundle": [
        Key("path", "string", "the bundle's directory"),
        Key("digest", "string", "digest of the image's manifest"),
        Key("uid", "integer", "who it runs as"),
        Key("gid", "integer", "the group"),
        Key("entries", "integer", "files and directories written; 0 with `--snapshot`"),
        Key("bytes", "integer", "their size"),
        Key("seconds", "number", "how long it took"),
        Key("notes", "list", "what could not be kept as the image has it"),
        Key("notes[]", "string", "one remark"),
    ],
    "snapshot prepare": _snapshot(""),
    "snapshot view": _snapshot(""),
    "snapshot mount": _snapshot(""),
    "snapshot unmount": _snapshot(""),
    "snapshot diff": _layer(),
    "snapshot commit": [
        Key("name", "string", "the new image's name, in full"),
        Key("digest", "string", "digest of its manifest"),
        Key("lease", "string", "the lease that holds it, beside its name"),
    ],
    "snapshot usage": [
        Key("key", "string", "the snapshot's key"),
        Key("bytes", "integer", "what was changed takes on disk"),
        Key("inodes", "integer", "files and directories of it"),
    ],
    "snapshot rm": [
        Key("removed", "list", "the snapshots that are gone"),
        Key("removed[]", "string", "one key"),
    ],
    "snapshot ls": [
        Key("snapshots", "list", "all snapshots, by key"),
        *_snapshot("snapshots[]."),
        Key("strays", "list", "where snapshots are mounted that are no more"),
        Key("strays[]", "string", "a directory"),
    ],
    "blob put": [
        Key("digest", "string", "the blob's digest"),
        Key("bytes", "integer", "its size"),
        Key("media_type", "string", "its media type"),
        Key("lease", "string", "the lease that holds it"),
    ],
    "blob stat": _blob(""),
    "blob ls": [Key("blobs", "list", "all blobs, by digest"), *_blob("blobs[].")],
    "lease create": [
        Key("id", "string", "the lease's id, for `--lease`"),
        Key("ttl", "number", "seconds that it lives after its last use"),
    ],
    "lease ls": [
        Key("leases", "list", "the leases that have not expired"),
        Key("leases[].id", "string", "its id"),
        Key(
            "leases[].ttl",
            "number|null",
            "seconds that it lives after its last use; null: for ever",
        ),
        Key("leases[].left", "number|null", "seconds to go"),
        Key("leases[].digests", "list", "the blobs that it holds"),
        Key("leases[].digests[]", "string", "one digest"),
    ],
    "lease rm": [
        Key("removed", "list", "the leases that are gone"),
        Key("removed[]", "string", "one id"),
    ],
    "optimize": [
        Key("blobs", "list", "the blobs that were kept as they came"),
        Key("blobs[].digest", "string", "its digest"),
        Key("blobs[].encoder", "string", "whose model makes it again, or who has likely made it"),
        Key("blobs[].bytes", "integer", "its size"),
        Key("blobs[].recipe_bytes", "integer", "size of its recipe; 0 for one that stays"),
        Key("blobs[].result", "string", "`gzip`: made again from now on; `raw`: as it was"),
        Key("blobs[].reason", "string", "why it stays as it was; else empty"),
        Key("freed_bytes", "integer", "bytes of files that are not needed any more"),
        Key("written_bytes", "integer", "what packs grew by for content that was new"),
        Key("seconds", "number", "how long it took"),
        Key("complete", "boolean", "false: stopped by `--max-time`, the next optimize goes on"),
    ],
    "gc": [
        Key("dry_run", "boolean", "whether nothing was done, only counted"),
        Key("condemned_chunks", "integer", "chunks that nothing refers to any more"),
        Key("freed_bytes", "integer", "bytes of disk given back"),
        Key("pending_bytes", "integer", "bytes that are dead, and held back for now"),
        Key("removed_blobs", "integer", "blobs removed"),
        Key("seconds", "number", "how long it took"),
        Key("complete", "boolean", "false: stopped by a budget, the next gc goes on"),
        Key("dropped_entries", "integer", "entries of the step cache that went for the limits"),
        Key("dropped_images", "integer", "images that a mirror kept for a time, which did"),
        Key("within_limits", "boolean", "whether --max-used-space and --min-free-space hold"),
    ],
    "check": [
        Key("ok", "boolean", "whether no damage is left"),
        Key("damaged", "list", "the damage that was found, repaired or not"),
        Key("damaged[].digest", "string", "the damaged blob"),
        Key("damaged[].form", "string", "which form of it"),
        Key("damaged[].reason", "string", "what is wrong"),
        Key("damaged[].refs", "list", "the images that need it"),
        Key("damaged[].refs[]", "string", "one name"),
        Key("damaged[].paths", "list", "the files that are hit"),
        Key("damaged[].paths[]", "string", "one path"),
        Key("repaired", "list", "the blobs that were healed"),
        Key("repaired[]", "string", "one digest"),
        Key("checked_bytes", "integer", "bytes that were read and verified"),
        Key("seconds", "number", "how long it took"),
        Key("complete", "boolean", "false: stopped by `--max-time`, the next check goes on"),
    ],
    "serve": [Key("url", "string", "where clients find the registry, once it takes requests")],
    "stats": [
        Key("images", "integer", "how many images"),
        Key("blobs", "object", "all blobs"),
        Key("blobs.count", "integer", "how many"),
        Key("blobs.bytes", "integer", "their size, as they come out"),
        Key("layers", "object", "all layers that were decoded"),
        Key("layers.count", "integer", "how many"),
        Key("layers.tar_bytes", "integer", "their size, uncompressed"),
        Key("layers.entries", "integer", "files and directories in those that are kept as `tar`"),
        Key("chunks", "object", "all chunks"),
        Key("chunks.count", "integer", "how many"),
        Key("chunks.bytes", "integer", "their size, uncompressed"),
        Key("forms", "object", "in how many blobs each form occurs"),
        Key("forms.plain", "integer", "chunks"),
        Key("forms.tar", "integer", "a header stream and chunks"),
        Key("forms.gzip", "integer", "a tar and a recipe to compress it again"),
        Key("forms.raw", "integer", "a file, as it came"),
        Key("stored", "object", "what the store takes on disk"),
        Key("stored.packs", "integer", "bytes in packs"),
        Key("stored.raw", "integer", "bytes in raw files"),
        Key("stored.raw_cache", "integer", "copies of popular blobs, with `--raw-cache`"),
        Key("stored.unpacked", "integer", "bytes in unpacked layers and in snapshots"),
        Key("stored.index", "integer", "bytes of the index"),
        Key("stored.total", "integer", "all of it: what `du` counts for the directory"),
        Key("dead_bytes", "integer", "what nothing refers to; gc gives it back"),
        Key("alone?", "integer", "with `--images`: bytes that one image only needs"),
        Key(
            "shared?",
            "integer",
            "with `--images`: bytes that several images need, or a lease holds, counted once",
        ),
        Key("per_image?", "list", "with `--images`: what each image costs"),
        Key("per_image[].name", "string", "its name"),
        Key("per_image[].digest", "string", "digest of its manifest or index"),
        Key("per_image[].alone", "integer", "bytes that only it needs"),
        Key("per_image[].shared", "integer", "bytes that others need, or a lease holds, too"),
        Key(
            "per_image[].freed_if_removed",
            "integer",
            "bytes that untag and `gc --aggressive` give back",
        ),
    ],
    "version": [
        Key("version", "string", "version of layerstore"),
        Key("format", "integer", "version of the disk format that it writes"),
        Key("python", "string", "version of Python"),
        Key("machine", "string", "such as `x86_64`"),
    ],
}

# Verbs whose result is content, or a script: `--json` changes their errors only.
CONTENT = {"cat", "blob cat", "completion"}

ERROR = [
    Key("error", "object", "what went wrong"),
    Key("error.kind", "string", "a stable word"),
    Key("error.message", "string", "what, where, and what to do"),
    Key("error.digest?", "string", "the blob it is about"),
    Key("error.path?", "string", "the file it is about"),
    Key("error.offset?", "integer", "where in it"),
]

KINDS = {
    "usage": (2, "wrong usage"),
    "not-found": (4, "no such image, blob, file, lease or store"),
    "missing-blobs": (4, "a manifest names blobs that its repository does not have"),
    "invalid-input": (1, "bytes or arguments are not what they should be"),
    "digest-mismatch": (1, "bytes do not have the digest or size that was claimed"),
    "corrupt": (3, "stored bytes are wrong or missing"),
    "busy": (5, "others hold what is needed, past `--timeout`"),
    "unsupported": (1, "a newer format, a remote filesystem, a missing feature"),
    "remote": (1, "a registry could not be reached, or did not answer as it should"),
    "full": (6, "no space left"),
    "limit": (6, "a limit was reached"),
    "memory": (6, "out of memory"),
    "permission": (7, "not allowed"),
    "interrupted": (130, "SIGINT or SIGTERM"),
    "cancelled": (130, "the work was cancelled"),
    "unproven": (1, "a tar from a pipe that cannot be split safely; nothing was kept: report it"),
    "os-error": (1, "another error of the operating system"),
    "internal": (1, "a fault in layerstore; `-v` shows where"),
    "error": (1, "anything else"),
}

_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "list": list,
}


def problems(document: Any, keys: list[Key]) -> list[str]:
    """What is wrong with a document: keys missing, unknown, or of the wrong type."""
    known: dict[str, Key] = {}
    missing_allowed = set()
    for key in keys:
        plain = key.path.replace("?", "")
        known[plain] = key
        if key.path.endswith("?"):
            missing_allowed.add(plain)
    found: list[str] = []

    def visit(value: Any, path: str) -> None:
        if path:
            key = known.get(path)
            if key is None:
                # The object in a list of objects has no line of its own.
                if not (path.endswith("[]") and isinstance(value, dict)):
                    found.append(f"{path}: not described")
            elif not _fits(value, key.types):
                found.append(f"{path}: {value!r} is no {key.types}")
        if isinstance(value, dict):
            prefix = f"{path}." if path else ""
            for name in value:
                visit(value[name], prefix + name)
            for described in known:
                rest = described.removeprefix(prefix)
                direct = described.startswith(prefix) and not set(".[") & set(rest)
                if direct and rest not in value and described not in missing_allowed:
                    found.append(f"{described}: missing")
        elif isinstance(value, list):
            for item in value:
                visit(item, path + "[]")

    visit(document, "")
    return found


def _fits(value: Any, types: str) -> bool:
    for name in types.split("|"):
        if name == "null":
            if value is None:
                return True
        elif isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool)):
            return True
    return False


def _table(keys: list[Key]) -> list[str]:
    lines = ["| key | type | what it is |", "|---|---|---|"]
    for key in keys:
        path = key.path.replace("?", "")
        rare = " (may be missing)" if key.path.endswith("?") else ""
        types = key.types.replace("|", " or ")
        lines.append(f"| `{path}` | {types} | {key.meaning}{rare} |")
    return lines


def page() -> str:
    """The text of docs/json.md."""
    lines = [
        "# JSON",
        "",
        "With `--json` every verb prints one JSON document on stdout; errors are a JSON document on "
        "stderr, progress and notes stay plain text there. Keys may be added, none is renamed or "
        "removed. Sizes are bytes, spans are seconds, times are RFC 3339. `a[].b` is key `b` of each "
        "object in list `a`.",
        "",
        "A list of any length (`ls`, `blob ls`) is written while it is made: when such a verb fails, "
        "the document ends too early, and the exit status says so. `inspect --raw` and `--config`, "
        + ", ".join(f"`{verb}`" for verb in sorted(CONTENT))
        + " write content, with or without `--json`; `export` to a pipe (`-`) prints its document on "
        "stderr.",
    ]
    for verb, keys in DOCUMENTS.items():
        lines += ["", f"## {verb}", "", *_table(keys)]
    lines += [
        "",
        "## Errors",
        "",
        *_table(ERROR),
        "",
        "| kind | exit status | when |",
        "|---|---|---|",
    ]
    lines += [f"| `{kind}` | {code} | {when} |" for kind, (code, when) in KINDS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    sys.stdout.write(f"wrote {PAGE}\n")
