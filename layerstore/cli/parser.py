"""The verbs and their options: what can be typed, nothing of what it does.

One table, `VERBS`, from which argparse parsers, help and completion are made. Global options may stand
before or after the verb, options and arguments of a verb in any order. A verb names the room and the
function that does it; `run` imports that room when the verb is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from . import arguments

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class UsageError(Exception):
    """Wrong usage, with the usage line that would help."""

    def __init__(self, message: str, program: str, usage: str) -> None:
        super().__init__(message)
        self.program = program
        self.usage = usage


class Argument(NamedTuple):
    """One option or positional of a verb. `takes` tells completion what may stand there: image,
    transport, file, directory, digest, lease, snapshot or nothing of these. `flag` options take no
    value, `repeat` options may be given several times."""

    names: tuple[str, ...]
    help: str
    takes: str = ""
    flag: bool = False
    repeat: bool = False
    nargs: str | None = None
    metavar: str | None = None
    type: Callable[[str], Any] | None = None
    choices: tuple[str, ...] = ()
    default: Any = None

    @property
    def is_option(self) -> bool:
        return self.names[0].startswith("-")


class Verb(NamedTuple):
    """A verb: `room` is the module of this package that does it, `run` the function there. A group
    (`blob`, `lease`) has `verbs` of its own instead."""

    name: str
    help: str
    room: str = ""
    run: str = ""
    arguments: tuple[Argument, ...] = ()
    description: str = ""
    verbs: tuple[Verb, ...] = ()


def _option(*names: str, help: str, **more: Any) -> Argument:
    return Argument(names, help, **more)


def _flag(*names: str, help: str) -> Argument:
    return Argument(names, help, flag=True)


def _image(
    nargs: str | None = None,
    help: str = "image: NAME[:TAG], NAME@DIGEST, or the first 8 or more digits of its digest",
) -> Argument:
    return Argument(("name",), help, takes="image", nargs=nargs, metavar="NAME")


def _transport(metavar: str = "TRANSPORT") -> Argument:
    return Argument(
        ("transport",),
        "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF] (FILE may be - for a pipe) "
        "or docker://HOST/NAME[:TAG|@DIGEST]",
        takes="transport",
        metavar=metavar,
    )


_DIGEST = Argument(
    ("digest",), "the whole digest", takes="digest", metavar="DIGEST", type=arguments.digest
)
_LAYER = _option(
    "--layer",
    help="one layer only, as it is (0 is the lowest)",
    metavar="N",
    type=arguments.layer_number,
)

_COMPRESSIONS = (
    "none",
    "gzip",
    *(f"gzip:{level}" for level in range(1, 10)),
    "zstd",
    *(f"zstd:{level}" for level in range(1, 20)),
)

GLOBAL = (
    _option(
        "--store",
        help="the store's directory",
        takes="directory",
        metavar="DIR",
        type=arguments.directory,
    ),
    _flag("--json", help="one JSON document on stdout, errors as JSON on stderr"),
    _option(
        "--progress",
        help="auto: on a terminal; plain: a line every few seconds; none",
        choices=("auto", "plain", "none"),
        default="auto",
    ),
    _option(
        "--timeout",
        help="how long to wait for others who use the store (30s, 2m; a number is seconds)",
        metavar="SECONDS",
        type=arguments.duration,
    ),
    _option(
        "--lease",
        help="hold what this command puts under this lease (or $LAYERSTORE_LEASE)",
        takes="lease",
        metavar="ID",
    ),
    _option(
        "--raw-cache",
        help="keep copies of popular compressed blobs, so many bytes in all (or "
        "$LAYERSTORE_RAW_CACHE)",
        metavar="SIZE",
        type=arguments.size,
    ),
    _flag("-v", "--verbose", help="say more"),
    _flag("-q", "--quiet", help="say less: results and errors only"),
)

_CHANGES = (
    _option(
        "--cmd",
        help='the command: words as a shell splits them, or a JSON list ["a","b c"]',
        metavar="WORDS",
        type=arguments.command,
    ),
    _option(
        "--entrypoint",
        help="what the command is given to; alone it takes the base's command away",
        metavar="WORDS",
        type=arguments.command,
    ),
    _option(
        "--env",
        help="set a variable (repeatable)",
        metavar="NAME=VALUE",
        type=arguments.pair,
        repeat=True,
    ),
    _option(
        "--label",
        help="set a label (repeatable)",
        metavar="NAME=VALUE",
        type=arguments.pair,
        repeat=True,
    ),
    _option("--user", help="who it runs as: USER or UID, with :GROUP or :GID", metavar="USER"),
    _option("--workdir", help="where it starts", metavar="PATH"),
    _option(
        "--port",
        help="a port that it offers, 80 or 53/udp (repeatable)",
        metavar="PORT",
        repeat=True,
    ),
    _option(
        "--volume", help="a path for data of its own (repeatable)", metavar="PATH", repeat=True
    ),
    _option("--author", help="who made it", metavar="NAME"),
    _option("--message", help="a remark for its history", metavar="TEXT"),
)
_REFLINK = _option(
    "--reflink",
    help="auto: share blocks with what an earlier checkout left on the filesystem, if it can do that; "
    "never: write everything (default: auto)",
    choices=("auto", "never"),
    default="auto",
)
_PLATFORM = _option(
    "--platform", help="which image of an index, as linux/arm64", metavar="OS/ARCH[/VARIANT]"
)
_MAPS = (
    _option(
        "--uid-map",
        help="uids as a user namespace maps them, INSIDE:OUTSIDE:COUNT, several with commas",
        metavar="MAP",
        type=arguments.id_map,
        default=(),
    ),
    _option(
        "--gid-map",
        help="the same for gids (default: as --uid-map)",
        metavar="MAP",
        type=arguments.id_map,
        default=(),
    ),
)


def _remote(side: str = "") -> tuple[Argument, ...]:
    """How a registry is spoken to; `side` is `src-` or `dest-` where there may be two."""
    of = {"": "the registry", "src-": "the source", "dest-": "the target"}[side]
    return (
        _option(
            f"--{side}creds",
            help=f"who we are for {of} (default: what skopeo, podman or docker login wrote)",
            metavar="USER:PASSWORD",
        ),
        _option(
            f"--{side}authfile",
            help=f"read credentials for {of} from this file only",
            takes="file",
            metavar="FILE",
        ),
        _option(
            f"--{side}tls-verify",
            help="false: check no certificates, and speak plain HTTP where there is no TLS "
            "(default: true; plain HTTP on loopback only)",
            choices=("true", "false"),
            default="true",
        ),
        _option(
            f"--{side}cert-dir",
            help=f"certificates for {of}: *.crt of authorities, *.cert and *.key of ours",
            takes="directory",
            metavar="DIR",
        ),
    )


_FETCHED = _option(
    "--platform",
    help="of an index in a registry only the images for this, as linux/arm64 (default: all of it)",
    metavar="OS/ARCH[/VARIANT]",
)
_INFLATE_LIMIT = _option(
    "--inflate-limit",
    help="look into no layer that inflates to more than this (default: 1T); it is kept all the same",
    metavar="SIZE",
    type=arguments.size,
)
_STRICT = _flag("--strict", help="refuse layers that do not decode or do not match their diff_id")
_DEFER = _flag("--defer", help="leave the optimising for later")
_REFERRERS = _flag("--referrers", help="take signatures and attestations along")
_COMPRESSION = _option(
    "--compression",
    help="how layers are compressed: gzip[:1-9] (default 6), zstd[:1-19] (default 3) or "
    "none; other digests come out (default: everything as it came)",
    metavar="KIND",
    choices=_COMPRESSIONS,
)
_KEY = Argument(("key",), "the snapshot's key", takes="snapshot", metavar="KEY")
_NEW_KEY = Argument(("key",), "a key for it, not used yet", metavar="KEY")
_OVER = _image(help="the image below it, or scratch for none")

_SNAPSHOT = (
    Verb(
        "prepare",
        "a filesystem over an image, to be changed",
        "verbs_snapshots",
        "prepare",
        (_NEW_KEY, _OVER, _PLATFORM, *_MAPS),
        "The image's layers are unpacked once per store; this takes a while the first time, and "
        "milliseconds from then on. With --uid-map the files appear with other owners, without a copy.",
    ),
    Verb(
        "view",
        "the same, to be read only",
        "verbs_snapshots",
        "view",
        (_NEW_KEY, _OVER, _PLATFORM, *_MAPS),
    ),
    Verb(
        "mount",
        "show a snapshot at a directory",
        "verbs_snapshots",
        "mount",
        (
            _KEY,
            Argument(("dir",), "an empty or new directory", takes="directory", metavar="DIR"),
            _option(
                "--driver",
                help="the kernel's overlay, fuse-overlayfs, a plain copy; auto: what works",
                choices=("auto", "overlay", "fuse", "copy"),
                default="auto",
            ),
        ),
        "The mount stays until `snapshot unmount`, whoever made it; after a reboot it is made again "
        "with this command, with all changes.",
    ),
    Verb(
        "unmount",
        "take a snapshot away from where it is mounted",
        "verbs_snapshots",
        "unmount",
        (_KEY, _flag("--lazy", help="also while something works there")),
        "What was changed stays in the snapshot. Works whoever has mounted it.",
    ),
    Verb(
        "diff",
        "make a layer of what a snapshot has changed",
        "verbs_snapshots",
        "diff",
        (_KEY,),
        "The layer goes into the store, as that of `diff`; the snapshot may be mounted meanwhile. "
        "`commit --layer` puts it on an image.",
    ),
    Verb(
        "commit",
        "make an image of a snapshot",
        "verbs_snapshots",
        "commit",
        (_KEY, Argument(("new",), "the new image's name", metavar="NEWNAME"), *_CHANGES),
        "The snapshot stays. Without --lease the result is held under a new lease of one hour, too, "
        "whose id is printed on stderr (in the document with --json).",
    ),
    Verb("usage", "what a snapshot takes on disk", "verbs_snapshots", "usage", (_KEY,)),
    Verb(
        "rm",
        "remove snapshots, and what was changed in them",
        "verbs_snapshots",
        "rm",
        (Argument(("key",), "the snapshot's key", takes="snapshot", nargs="+", metavar="KEY"),),
    ),
    Verb("ls", "list snapshots, and where they are mounted", "verbs_snapshots", "ls"),
)

_BLOB = (
    Verb(
        "cat",
        "write a blob's bytes to stdout, verified",
        "verbs_blobs",
        "cat",
        (_DIGEST,),
    ),
    Verb(
        "put",
        "put a file as a blob, and print its digest",
        "verbs_blobs",
        "put",
        (
            Argument(("file",), "the file, or - for stdin", takes="file", metavar="FILE"),
            _option(
                "--digest",
                help="the digest that it must have",
                metavar="DIGEST",
                type=arguments.digest,
            ),
            _option(
                "--media-type",
                help="its media type (default: application/octet-stream)",
                metavar="TYPE",
                default="application/octet-stream",
            ),
        ),
        "Without --lease the blob is held under a new lease of one hour, whose id is printed on "
        "stderr (in the document with --json): name the blob in an image, or under a lease of "
        "your own, before that has passed.",
    ),
    Verb("stat", "size, media type and forms of a blob", "verbs_blobs", "stat", (_DIGEST,)),
    Verb("ls", "list all blobs", "verbs_blobs", "ls"),
)

_LEASE = (
    Verb(
        "create",
        "make a lease, and print its id",
        "verbs_leases",
        "create",
        (
            _option(
                "--ttl",
                help="how long it lives after its last use (default: 1h)",
                metavar="TIME",
                type=arguments.positive_duration,
                default=3600.0,
            ),
        ),
        "What other commands put under a lease (--lease ID or $LAYERSTORE_LEASE) is safe from gc "
        "until the lease is removed or has not been used for its time. Setting the clock does not "
        "shorten it.",
    ),
    Verb("ls", "list leases", "verbs_leases", "ls"),
    Verb(
        "rm",
        "remove leases; what they held goes with the next gc, unless something else needs it",
        "verbs_leases",
        "rm",
        (Argument(("id",), "the lease's id", takes="lease", nargs="+", metavar="ID"),),
    ),
)

VERBS = (
    Verb(
        "import",
        "take an image into the store",
        "verbs_transfer",
        "import_",
        (
            _transport(),
            Argument(
                ("name",),
                "its name in the store (default: the one that the source carries)",
                nargs="?",
                metavar="NAME",
            ),
            _flag("--all", help="every image there; NAME is a prefix for their own tags"),
            _DEFER,
            _STRICT,
            _INFLATE_LIMIT,
            _FETCHED,
            *_remote(),
        ),
        "Of a registry --all takes every tag of a repository that is named without one. What the "
        "store has already is not fetched again.",
    ),
    Verb(
        "export",
        "write images out of the store, with the same bytes and digests",
        "verbs_transfer",
        "export",
        (
            Argument(
                ("words",),
                "one or more images, then where to: oci:DIR[:TAG], oci-archive:FILE[:TAG], "
                "docker-archive:FILE[:REF] or docker://HOST/NAME[:TAG]",
                takes="image",
                nargs="+",
                metavar="NAME... TRANSPORT",
            ),
            _REFERRERS,
            _COMPRESSION,
            *_remote(),
        ),
        "An existing layout is added to, atomically; what is there already stays as it is. Writers "
        "of other programs are not shut out meanwhile: let none change the same layout. A registry "
        "gets what it does not have, tags last.",
    ),
    Verb(
        "pull",
        "take an image from a registry: import docker://",
        "verbs_registries",
        "pull",
        (
            Argument(("place",), "HOST[:PORT]/NAME[:TAG|@DIGEST]", metavar="HOST/NAME"),
            Argument(
                ("name",),
                "its name in the store (default: HOST/NAME:TAG)",
                nargs="?",
                metavar="NAME",
            ),
            _flag("--all", help="every tag; NAME is a prefix for them"),
            _DEFER,
            _STRICT,
            _INFLATE_LIMIT,
            _FETCHED,
            *_remote(),
        ),
        "The registry is always named: docker.io/library/debian, not debian.",
    ),
    Verb(
        "push",
        "give an image to a registry: export docker://",
        "verbs_registries",
        "push",
        (
            _image(),
            Argument(
                ("place",),
                "HOST[:PORT]/NAME[:TAG] (default: where the image's name says)",
                nargs="?",
                metavar="HOST/NAME",
            ),
            _REFERRERS,
            _COMPRESSION,
            *_remote(),
        ),
    ),
    Verb(
        "copy",
        "copy images from one transport to another, with the same bytes and digests",
        "verbs_registries",
        "copy",
        (
            Argument(("source",), "where from, as for import", takes="transport", metavar="SOURCE"),
            Argument(("target",), "where to, as for export", takes="transport", metavar="TARGET"),
            _flag("--all", help="every image there, each under its own tag"),
            _FETCHED,
            _REFERRERS,
            *_remote("src-"),
            *_remote("dest-"),
        ),
        "Nothing gets a name in the store. From registry to registry bytes stream through, and only "
        "those that the target lacks; other copies pass through the store, where gc frees them.",
    ),
    Verb("images", "list the images", "verbs_images", "images"),
    Verb(
        "inspect",
        "what an image is made of",
        "verbs_images",
        "inspect",
        (
            _image(),
            _flag("--raw", help="the manifest's exact bytes"),
            _flag("--config", help="the config's exact bytes"),
        ),
    ),
    Verb("history", "how an image came to be", "verbs_images", "history", (_image(),)),
    Verb(
        "tag",
        "give an image another name",
        "verbs_images",
        "tag",
        (_image(), Argument(("new",), "the further name, or the name to move", metavar="NEW")),
    ),
    Verb(
        "untag",
        "remove names; what nothing else needs goes with the next gc",
        "verbs_images",
        "untag",
        (_image(nargs="+"),),
    ),
    Verb(
        "ls",
        "list files of an image, as a container would see them",
        "verbs_files",
        "ls",
        (
            _image(),
            Argument(
                ("path",),
                "list this file, or what is below this directory",
                nargs="?",
                metavar="PATH",
                default="",
            ),
            _LAYER,
        ),
    ),
    Verb(
        "cat",
        "write a file of an image to stdout",
        "verbs_files",
        "cat",
        (_image(), Argument(("path",), "the file", metavar="PATH"), _LAYER),
    ),
    Verb(
        "diff",
        "make a layer of what changed: in an overlay's upper directory, or between two trees",
        "verbs_diff",
        "diff",
        (
            Argument(
                ("trees",),
                "two trees: the layer makes OLD into NEW",
                takes="directory",
                nargs="*",
                metavar="OLD NEW",
            ),
            _option("--upper", help="the upper directory", takes="directory", metavar="DIR"),
            _option(
                "--lower",
                help="a directory below it, topmost first",
                takes="directory",
                metavar="DIR",
                repeat=True,
            ),
            _flag("--content", help="two trees: read files that are the same by their metadata"),
            _option(
                "--tar",
                help="write the uncompressed tar there (- for stdout) and store nothing",
                takes="file",
                metavar="FILE",
            ),
            _flag("--no-cache", help="read every file, also those that this store has read before"),
            _flag(
                "--fuse-overlayfs",
                help="fuse-overlayfs made it: .wh.NAME is a removed file, override_stat an owner",
            ),
            _flag("--rootless", help="the xattr user.rootlesscontainers names owners"),
        ),
        "The layer goes into the store, uncompressed, and is held under a new lease of one hour "
        "unless --lease names one. Nothing may change the directories meanwhile: a file that does "
        "is an error. $SOURCE_DATE_EPOCH is the latest time that the layer has.",
    ),
    Verb(
        "checkout",
        "write an image's root filesystem into a directory",
        "verbs_checkout",
        "checkout",
        (
            _image(),
            Argument(
                ("directory",),
                "an empty directory, or a new one",
                takes="directory",
                metavar="DIR",
            ),
            _option(
                "--ownership",
                help="exact: all as the layers say, or an error; try: as far as it goes; rootless: "
                "owners in the xattr user.rootlesscontainers (default: exact for root, else try)",
                choices=("exact", "try", "rootless"),
            ),
            _option(
                "--uid-map",
                help="uids of layers to uids of the system, INSIDE:OUTSIDE:COUNT, several with commas",
                metavar="MAP",
                type=arguments.id_map,
                default=(),
            ),
            _option(
                "--gid-map",
                help="the same for gids",
                metavar="MAP",
                type=arguments.id_map,
                default=(),
            ),
            _REFLINK,
        ),
        "Until it is whole the directory is marked as unfinished; a checkout that was cut off is "
        "removed by the next one into it. What could not be kept is said on stderr.",
    ),
    Verb(
        "commit",
        "make a new image: a base, layers, changes",
        "verbs_builds",
        "commit",
        (
            Argument(("base",), "the image to build on, or scratch", takes="image", metavar="BASE"),
            Argument(("new",), "the new image's name", metavar="NAME"),
            _option(
                "--upper",
                help="add what changed in this upper directory of an overlay",
                takes="directory",
                metavar="DIR",
            ),
            _option(
                "--lower",
                help="a directory below it, topmost first (repeatable)",
                takes="directory",
                metavar="DIR",
                repeat=True,
            ),
            _option(
                "--layer",
                help="add a stored layer (repeatable; lowest first)",
                takes="digest",
                metavar="DIGEST",
                type=arguments.digest,
                repeat=True,
            ),
            *_CHANGES,
            _flag("--squash", help="merge what is added into one layer"),
            _flag("--squash-all", help="merge all layers into one, those of the base too"),
            _PLATFORM,
        ),
        "The result is an OCI image, whatever the base is. With SOURCE_DATE_EPOCH the same input gives "
        "the same digest.",
    ),
    Verb(
        "bundle",
        "a runtime bundle: config.json and rootfs, for crun run",
        "verbs_builds",
        "bundle",
        (
            _image(),
            Argument(("dir",), "an empty or new directory", takes="directory", metavar="DIR"),
            _option(
                "--snapshot",
                help="mount a new snapshot of this key as rootfs, instead of writing files",
                metavar="KEY",
            ),
            _option(
                "--args",
                help="run this instead of the image's command",
                metavar="WORDS",
                type=arguments.command,
            ),
            _flag("--read-only", help="the root filesystem is not to be changed"),
            _PLATFORM,
            _REFLINK,
            *_MAPS,
        ),
    ),
    Verb("snapshot", "containers' own filesystems over images", verbs=_SNAPSHOT),
    Verb("blob", "any blob by its digest: cat, put, stat, ls", verbs=_BLOB),
    Verb("lease", "protect what commands put from gc: create, ls, rm", verbs=_LEASE),
    Verb(
        "optimize",
        "turn compressed blobs into deduplicated content and a recipe, and free their files",
        "verbs_maintenance",
        "optimize",
        (
            Argument(
                ("names",),
                "images whose blobs are to be optimized (default: all blobs)",
                takes="image",
                nargs="*",
                metavar="NAME",
            ),
            _option(
                "--max-corrections",
                help="leave a blob whose recipe would take more than this share of it (default: 2%%)",
                metavar="PERCENT",
                type=arguments.share,
                default=0.02,
            ),
            _option(
                "--max-time",
                help="stop after this long; the next optimize goes on",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
        ),
        "Each blob is made again from what was stored, and its digest compared, before its file goes: "
        "it comes out with the same bytes. What cannot be made again stays as it is, with the reason. "
        "Safe at any time, while others read and write, and can be stopped at any moment.",
    ),
    Verb(
        "gc",
        "free what nothing refers to",
        "verbs_maintenance",
        "gc",
        (
            _flag("--dry-run", help="say what would go, and remove nothing"),
            _option(
                "--max-time",
                help="stop after this long; the next gc goes on",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
            _option(
                "--max-repack-size",
                help="rewrite at most this much to get space back",
                metavar="SIZE",
                type=arguments.size,
            ),
            _flag(
                "--aggressive",
                help="get back (nearly) every dead byte, at the price of rewriting more",
            ),
            _option(
                "--max-used-space",
                help="drop cached steps, least recently used first, until the store takes no more",
                metavar="SIZE",
                type=arguments.size,
            ),
            _option(
                "--min-free-space",
                help="the same, until the filesystem has so much free",
                metavar="SIZE",
                type=arguments.size,
            ),
        ),
        "Safe at any time, while others read and write. What a running command may still need is "
        "counted as pending and goes with a later gc. The space limits also remove copies of blobs "
        "(--raw-cache) and unpacked layers that no snapshot stands on, before any cached step; "
        "never what images, leases or snapshots need.",
    ),
    Verb(
        "check",
        "verify the store, and repair it",
        "verbs_maintenance",
        "check",
        (
            _flag("--blocks", help="every checksum, at disk speed"),
            _flag("--full", help="every chunk, and every blob's digest"),
            _option(
                "--max-time",
                help="stop after this long; the next check goes on from there",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
            _option(
                "--repair-from",
                help="heal damage with bytes from there",
                takes="transport",
                metavar="TRANSPORT",
            ),
            _flag("--rebuild-index", help="first make the index anew, from the packs alone"),
        ),
        "Looks at the index, at lengths and at tables of contents, unless told to look deeper. "
        "The exit status is 3 when damage was found and not repaired.",
    ),
    Verb(
        "stats",
        "what is kept, what it costs, what was saved",
        "verbs_maintenance",
        "stats",
        (_flag("--images", help="for each image: bytes held alone, shared, freed if removed"),),
    ),
    Verb(
        "serve",
        "serve the store as a registry, on this machine",
        "verbs_serve",
        "serve",
        (
            _option(
                "--listen",
                help="where to listen (default: the configuration's, or 127.0.0.1:5000; port 0: any)",
                metavar="HOST:PORT",
            ),
            _option(
                "--config",
                help="a file of settings: who may do what, TLS, limits (docs/registry.md)",
                takes="file",
                metavar="FILE",
            ),
            _option(
                "--idle",
                help="keep what no manifest names for so long after it was last asked for "
                "(default: 1d)",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
            _flag("--read-only", help="refuse every change"),
            _option(
                "--workers",
                help="processes that serve (default: 1)",
                metavar="N",
                type=arguments.workers,
            ),
            _option(
                "--optimize",
                help="when to optimize what was pushed: at once, when no request has come for "
                "--quiet-time, or not (default: off)",
                choices=("now", "idle", "off"),
            ),
            _option(
                "--gc",
                help="when to collect what nothing names (default: off)",
                choices=("idle", "off"),
            ),
            _option(
                "--quiet-time",
                help="without a request for so long, the server is idle (default: 30s)",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
            _option(
                "--access-log",
                help="a line for each request on stderr (default: off)",
                choices=("text", "json", "off"),
            ),
            _flag(
                "--sparse", help="take manifests of images though blobs that they name are absent"
            ),
            _option(
                "--proxy",
                help="be a mirror: what is asked for comes from this registry, once",
                metavar="docker://HOST[/PREFIX]",
            ),
            _option(
                "--proxy-ttl",
                help="of a mirror: ask for a tag again after this time (default: 1h)",
                metavar="TIME",
                type=arguments.duration,
            ),
            *_remote(),
        ),
        "Speaks the OCI distribution specification until it is interrupted. Where no configuration "
        "says who may do what, whoever reaches it may read and write, and so it listens on loopback "
        "only. An image APP:TAG of the store is APP:TAG of the registry. A mirror is read-only; it "
        "gives out what it has while the other registry is away, and keeps APP as HOST/APP.",
    ),
    Verb(
        "completion",
        "a completion script for a shell",
        "verbs_about",
        "completion",
        (Argument(("shell",), "bash, zsh or fish", choices=("bash", "zsh", "fish")),),
    ),
    Verb(
        "version", "versions of layerstore, its store format and Python", "verbs_about", "version"
    ),
)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as a page, with room for our longest option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=96)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions, whose examples are read when help is asked for, and
    that takes options and arguments of a verb in any order.

    argparse gives each run of arguments to as many positionals as it satisfies, so that in
    `ls NAME --layer 1 PATH` nothing would be left to take PATH; options first, then all arguments,
    is the order that it understands."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog, self.format_usage())

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        # argparse's own swallows errors of writing.
        (file or sys.stdout).write(self.format_help())

    def format_help(self) -> str:
        from .examples import examples_of

        return super().format_help() + examples_of(self.prog)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        if self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        found, extra = super().parse_known_args(self._sorted(args or ()), namespace)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}")
        return found, []

    def _sorted(self, args: Sequence[str]) -> list[str]:
        options: list[str] = []
        words: list[str] = []
        rest = iter(args)
        for arg in rest:
            if arg == "--":
                words.extend(rest)
            elif not arg.startswith("-") or arg == "-":
                words.append(arg)
            else:
                options.append(arg)
                action = self._option_string_actions.get(arg)
                if action is not None and action.nargs is None:
                    options.extend(value for value in [next(rest, None)] if value is not None)
        dashed = any(word.startswith("-") and word != "-" for word in words)
        return [*options, "--", *words] if dashed else options + words


def build() -> argparse.ArgumentParser:
    """The parser of the whole command line. The namespace that it makes has `room` and `run`."""
    parser = _Parser(
        prog="layerstore",
        usage="layerstore [--store DIR] [--json] [--progress auto|plain|none] [--timeout SECONDS] "
        "[-v|-q] VERB ...",
        description="Keeps container images, every content once, and gives back the same bytes.",
    )
    for argument in GLOBAL:
        _add(parser, argument)
    _add_verbs(parser, VERBS)
    return parser


def _add_verbs(parser: argparse.ArgumentParser, verbs: tuple[Verb, ...]) -> None:
    group = parser.add_subparsers(
        metavar="VERB", title="verbs", required=True, prog=parser.prog, dest="verb"
    )
    for verb in verbs:
        description = verb.description or f"{verb.help[0].upper()}{verb.help[1:]}."
        made = group.add_parser(verb.name, help=verb.help, description=description)
        for argument in verb.arguments:
            _add(made, argument)
        if verb.verbs:
            _add_verbs(made, verb.verbs)
        else:
            made.set_defaults(room=verb.room, run=verb.run)
        common = made.add_argument_group("options of every verb")
        for argument in GLOBAL:
            _add(common, argument, inherited=True)


def _add(to: argparse._ActionsContainer, argument: Argument, *, inherited: bool = False) -> None:
    options: dict[str, Any] = {"help": argument.help}
    if argument.flag:
        options["action"] = "store_true"
    else:
        for key in ("nargs", "metavar", "type", "default"):
            if (value := getattr(argument, key)) is not None:
                options[key] = value
        if argument.repeat:
            options["action"] = "append"
        if argument.choices:
            options["choices"] = argument.choices
    if inherited:  # not given after the verb must not undo what was given before it
        options["default"] = argparse.SUPPRESS
    to.add_argument(*argument.names, **options)
