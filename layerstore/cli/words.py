"""What a verb is made of: options and arguments, and those that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import arguments


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


def option(*names: str, help: str, **more: Any) -> Argument:
    return Argument(names, help, **more)


def flag(*names: str, help: str) -> Argument:
    return Argument(names, help, flag=True)


def image(
    nargs: str | None = None,
    help: str = "image: NAME[:TAG], NAME@DIGEST, or the first 8 or more digits of its digest",
) -> Argument:
    return Argument(("name",), help, takes="image", nargs=nargs, metavar="NAME")


def transport(metavar: str = "TRANSPORT") -> Argument:
    return Argument(
        ("transport",),
        "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF] (FILE may be - for a pipe) "
        "or docker://HOST/NAME[:TAG|@DIGEST]",
        takes="transport",
        metavar=metavar,
    )


DIGEST = Argument(
    ("digest",), "the whole digest", takes="digest", metavar="DIGEST", type=arguments.digest
)
LAYER = option(
    "--layer",
    help="one layer only, as it is (0 is the lowest)",
    metavar="N",
    type=arguments.layer_number,
)

COMPRESSIONS = (
    "none",
    "gzip",
    *(f"gzip:{level}" for level in range(1, 10)),
    "zstd",
    *(f"zstd:{level}" for level in range(1, 20)),
)

GLOBAL = (
    option(
        "--store",
        help="the store's directory",
        takes="directory",
        metavar="DIR",
        type=arguments.directory,
    ),
    flag("--json", help="one JSON document on stdout, errors as JSON on stderr"),
    option(
        "--progress",
        help="auto: on a terminal; plain: a line every few seconds; none",
        choices=("auto", "plain", "none"),
        default="auto",
    ),
    option(
        "--timeout",
        help="how long to wait for others who use the store (30s, 2m; a number is seconds)",
        metavar="SECONDS",
        type=arguments.duration,
    ),
    option(
        "--lease",
        help="hold what this command puts under this lease (or $LAYERSTORE_LEASE)",
        takes="lease",
        metavar="ID",
    ),
    option(
        "--raw-cache",
        help="keep copies of popular compressed blobs, so many bytes in all (or "
        "$LAYERSTORE_RAW_CACHE)",
        metavar="SIZE",
        type=arguments.size,
    ),
    flag("-v", "--verbose", help="say more"),
    flag("-q", "--quiet", help="say less: results and errors only"),
)

CHANGES = (
    option(
        "--cmd",
        help='the command: words as a shell splits them, or a JSON list ["a","b c"]',
        metavar="WORDS",
        type=arguments.command,
    ),
    option(
        "--entrypoint",
        help="what the command is given to; alone it takes the base's command away",
        metavar="WORDS",
        type=arguments.command,
    ),
    option(
        "--env",
        help="set a variable (repeatable)",
        metavar="NAME=VALUE",
        type=arguments.pair,
        repeat=True,
    ),
    option(
        "--label",
        help="set a label (repeatable)",
        metavar="NAME=VALUE",
        type=arguments.pair,
        repeat=True,
    ),
    option("--user", help="who it runs as: USER or UID, with :GROUP or :GID", metavar="USER"),
    option("--workdir", help="where it starts", metavar="PATH"),
    option(
        "--port",
        help="a port that it offers, 80 or 53/udp (repeatable)",
        metavar="PORT",
        repeat=True,
    ),
    option("--volume", help="a path for data of its own (repeatable)", metavar="PATH", repeat=True),
    option("--stop-signal", help="what asks it to end, as SIGINT", metavar="SIGNAL"),
    option(
        "--shell",
        help="what runs commands that are given as text (a field of docker's)",
        metavar="WORDS",
        type=arguments.command,
    ),
    option(
        "--annotation",
        help="set an annotation of the manifest (repeatable)",
        metavar="NAME=VALUE",
        type=arguments.pair,
        repeat=True,
    ),
    option("--author", help="who made it", metavar="NAME"),
    option("--created-by", help="the step that made it, for its history", metavar="TEXT"),
    option("--message", help="a remark for its history", metavar="TEXT"),
)
REFLINK = option(
    "--reflink",
    help="auto: share blocks with what an earlier checkout left on the filesystem, if it can do that; "
    "never: write everything (default: auto)",
    choices=("auto", "never"),
    default="auto",
)
PLATFORM = option(
    "--platform", help="which image of an index, as linux/arm64", metavar="OS/ARCH[/VARIANT]"
)
MAPS = (
    option(
        "--uid-map",
        help="uids as a user namespace maps them, INSIDE:OUTSIDE:COUNT, several with commas",
        metavar="MAP",
        type=arguments.id_map,
        default=(),
    ),
    option(
        "--gid-map",
        help="the same for gids (default: as --uid-map)",
        metavar="MAP",
        type=arguments.id_map,
        default=(),
    ),
)


def remote(side: str = "") -> tuple[Argument, ...]:
    """How a registry is spoken to; `side` is `src-` or `dest-` where there may be two."""
    of = {"": "the registry", "src-": "the source", "dest-": "the target"}[side]
    return (
        option(
            f"--{side}creds",
            help=f"who we are for {of} (default: what skopeo, podman or docker login wrote)",
            metavar="USER:PASSWORD",
        ),
        option(
            f"--{side}authfile",
            help=f"read credentials for {of} from this file only",
            takes="file",
            metavar="FILE",
        ),
        option(
            f"--{side}tls-verify",
            help="false: check no certificates, and speak plain HTTP where there is no TLS "
            "(default: true; plain HTTP on loopback only)",
            choices=("true", "false"),
            default="true",
        ),
        option(
            f"--{side}cert-dir",
            help=f"certificates for {of}: *.crt of authorities, *.cert and *.key of ours",
            takes="directory",
            metavar="DIR",
        ),
    )


FETCHED = option(
    "--platform",
    help="of an index in a registry only the images for this, as linux/arm64 (default: all of it)",
    metavar="OS/ARCH[/VARIANT]",
)
INFLATE_LIMIT = option(
    "--inflate-limit",
    help="look into no layer that inflates to more than this (default: 1T); it is kept all the same",
    metavar="SIZE",
    type=arguments.size,
)
STRICT = flag("--strict", help="refuse layers that do not decode or do not match their diff_id")
DEFER = flag("--defer", help="leave the optimising for later")
REFERRERS = flag("--referrers", help="take signatures and attestations along")
COMPRESSION = option(
    "--compression",
    help="how layers are compressed: gzip[:1-9] (default 6), zstd[:1-19] (default 3) or "
    "none; other digests come out (default: everything as it came)",
    metavar="KIND",
    choices=COMPRESSIONS,
)
KEY = Argument(("key",), "the snapshot's key", takes="snapshot", metavar="KEY")
NEW_KEY = Argument(("key",), "a key for it, not used yet", metavar="KEY")
OVER = image(help="the image below it, or scratch for none")
