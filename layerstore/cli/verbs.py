"""The verbs and what can be typed behind them; nothing of what they do. One table, `VERBS`.

A verb names the room and the function that does it; `run` imports that room when the verb is run.
"""

from __future__ import annotations

from . import arguments
from .words import (
    CHANGES,
    COMPRESSION,
    DEFER,
    DIGEST,
    FETCHED,
    INFLATE_LIMIT,
    KEY,
    LAYER,
    MAPS,
    NEW_KEY,
    OVER,
    PLATFORM,
    REFERRERS,
    REFLINK,
    STRICT,
    Argument,
    Verb,
    flag,
    image,
    option,
    remote,
    transport,
)

_SNAPSHOT = (
    Verb(
        "prepare",
        "a filesystem over an image, to be changed",
        "verbs_snapshots",
        "prepare",
        (NEW_KEY, OVER, PLATFORM, *MAPS),
        "The image's layers are unpacked once per store; this takes a while the first time, and "
        "milliseconds from then on. With --uid-map the files appear with other owners, without a copy.",
    ),
    Verb(
        "view",
        "the same, to be read only",
        "verbs_snapshots",
        "view",
        (NEW_KEY, OVER, PLATFORM, *MAPS),
    ),
    Verb(
        "mount",
        "show a snapshot at a directory",
        "verbs_snapshots",
        "mount",
        (
            KEY,
            Argument(("dir",), "an empty or new directory", takes="directory", metavar="DIR"),
            option(
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
        (KEY, flag("--lazy", help="also while something works there")),
        "What was changed stays in the snapshot. Works whoever has mounted it.",
    ),
    Verb(
        "diff",
        "make a layer of what a snapshot has changed",
        "verbs_snapshots",
        "diff",
        (KEY,),
        "The layer goes into the store, as that of `diff`; the snapshot may be mounted meanwhile. "
        "`commit --layer` puts it on an image.",
    ),
    Verb(
        "commit",
        "make an image of a snapshot",
        "verbs_snapshots",
        "commit",
        (KEY, Argument(("new",), "the new image's name", metavar="NEWNAME"), *CHANGES),
        "The snapshot stays. Without --lease the result is held under a new lease of one hour, too, "
        "whose id is printed on stderr (in the document with --json).",
    ),
    Verb("usage", "what a snapshot takes on disk", "verbs_snapshots", "usage", (KEY,)),
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
        (DIGEST,),
    ),
    Verb(
        "put",
        "put a file as a blob, and print its digest",
        "verbs_blobs",
        "put",
        (
            Argument(("file",), "the file, or - for stdin", takes="file", metavar="FILE"),
            option(
                "--digest",
                help="the digest that it must have",
                metavar="DIGEST",
                type=arguments.digest,
            ),
            option(
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
    Verb("stat", "size, media type and forms of a blob", "verbs_blobs", "stat", (DIGEST,)),
    Verb("ls", "list all blobs", "verbs_blobs", "ls"),
)

_LEASE = (
    Verb(
        "create",
        "make a lease, and print its id",
        "verbs_leases",
        "create",
        (
            option(
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
            transport(),
            Argument(
                ("name",),
                "its name in the store (default: the one that the source carries)",
                nargs="?",
                metavar="NAME",
            ),
            flag("--all", help="every image there; NAME is a prefix for their own tags"),
            DEFER,
            STRICT,
            INFLATE_LIMIT,
            FETCHED,
            *remote(),
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
            REFERRERS,
            COMPRESSION,
            *remote(),
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
            flag("--all", help="every tag; NAME is a prefix for them"),
            DEFER,
            STRICT,
            INFLATE_LIMIT,
            FETCHED,
            *remote(),
        ),
        "The registry is always named: docker.io/library/debian, not debian.",
    ),
    Verb(
        "push",
        "give an image to a registry: export docker://",
        "verbs_registries",
        "push",
        (
            image(),
            Argument(
                ("place",),
                "HOST[:PORT]/NAME[:TAG] (default: where the image's name says)",
                nargs="?",
                metavar="HOST/NAME",
            ),
            REFERRERS,
            COMPRESSION,
            *remote(),
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
            flag("--all", help="every image there, each under its own tag"),
            FETCHED,
            REFERRERS,
            *remote("src-"),
            *remote("dest-"),
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
            image(),
            flag("--raw", help="the manifest's exact bytes"),
            flag("--config", help="the config's exact bytes"),
        ),
    ),
    Verb("history", "how an image came to be", "verbs_images", "history", (image(),)),
    Verb(
        "tag",
        "give an image another name",
        "verbs_images",
        "tag",
        (image(), Argument(("new",), "the further name, or the name to move", metavar="NEW")),
    ),
    Verb(
        "untag",
        "remove names; what nothing else needs goes with the next gc",
        "verbs_images",
        "untag",
        (image(nargs="+"),),
    ),
    Verb(
        "ls",
        "list files of an image, as a container would see them",
        "verbs_files",
        "ls",
        (
            image(),
            Argument(
                ("path",),
                "list this file, or what is below this directory",
                nargs="?",
                metavar="PATH",
                default="",
            ),
            LAYER,
        ),
    ),
    Verb(
        "cat",
        "write a file of an image to stdout",
        "verbs_files",
        "cat",
        (image(), Argument(("path",), "the file", metavar="PATH"), LAYER),
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
            option("--upper", help="the upper directory", takes="directory", metavar="DIR"),
            option(
                "--lower",
                help="a directory below it, topmost first",
                takes="directory",
                metavar="DIR",
                repeat=True,
            ),
            flag("--content", help="two trees: read files that are the same by their metadata"),
            option(
                "--tar",
                help="write the uncompressed tar there (- for stdout) and store nothing",
                takes="file",
                metavar="FILE",
            ),
            flag("--no-cache", help="read every file, also those that this store has read before"),
            flag(
                "--fuse-overlayfs",
                help="fuse-overlayfs made it: .wh.NAME is a removed file, override_stat an owner",
            ),
            flag("--rootless", help="the xattr user.rootlesscontainers names owners"),
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
            image(),
            Argument(
                ("directory",),
                "an empty directory, or a new one",
                takes="directory",
                metavar="DIR",
            ),
            option(
                "--ownership",
                help="exact: all as the layers say, or an error; try: as far as it goes; rootless: "
                "owners in the xattr user.rootlesscontainers (default: exact for root, else try)",
                choices=("exact", "try", "rootless"),
            ),
            option(
                "--uid-map",
                help="uids of layers to uids of the system, INSIDE:OUTSIDE:COUNT, several with commas",
                metavar="MAP",
                type=arguments.id_map,
                default=(),
            ),
            option(
                "--gid-map",
                help="the same for gids",
                metavar="MAP",
                type=arguments.id_map,
                default=(),
            ),
            REFLINK,
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
            option(
                "--upper",
                help="add what changed in this upper directory of an overlay",
                takes="directory",
                metavar="DIR",
            ),
            option(
                "--lower",
                help="a directory below it, topmost first (repeatable)",
                takes="directory",
                metavar="DIR",
                repeat=True,
            ),
            option(
                "--layer",
                help="add a stored layer (repeatable; lowest first)",
                takes="digest",
                metavar="DIGEST",
                type=arguments.digest,
                repeat=True,
            ),
            *CHANGES,
            flag("--squash", help="merge what is added into one layer"),
            flag("--squash-all", help="merge all layers into one, those of the base too"),
            PLATFORM,
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
            image(),
            Argument(("dir",), "an empty or new directory", takes="directory", metavar="DIR"),
            option(
                "--snapshot",
                help="mount a new snapshot of this key as rootfs, instead of writing files",
                metavar="KEY",
            ),
            option(
                "--args",
                help="run this instead of the image's command",
                metavar="WORDS",
                type=arguments.command,
            ),
            flag("--read-only", help="the root filesystem is not to be changed"),
            PLATFORM,
            REFLINK,
            *MAPS,
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
            option(
                "--max-corrections",
                help="leave a blob whose recipe would take more than this share of it (default: 2%%)",
                metavar="PERCENT",
                type=arguments.share,
                default=0.02,
            ),
            option(
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
            flag("--dry-run", help="say what would go, and remove nothing"),
            option(
                "--max-time",
                help="stop after this long; the next gc goes on",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
            option(
                "--max-repack-size",
                help="rewrite at most this much to get space back",
                metavar="SIZE",
                type=arguments.size,
            ),
            flag(
                "--aggressive",
                help="get back (nearly) every dead byte, at the price of rewriting more",
            ),
            option(
                "--max-used-space",
                help="drop cached steps, least recently used first, until the store takes no more",
                metavar="SIZE",
                type=arguments.size,
            ),
            option(
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
            flag("--blocks", help="every checksum, at disk speed"),
            flag("--full", help="every chunk, and every blob's digest"),
            option(
                "--max-time",
                help="stop after this long; the next check goes on from there",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
            option(
                "--repair-from",
                help="heal damage with bytes from there",
                takes="transport",
                metavar="TRANSPORT",
            ),
            flag("--rebuild-index", help="first make the index anew, from the packs alone"),
            *remote(),
        ),
        "Looks at the index, at lengths and at tables of contents, unless told to look deeper. "
        "The exit status is 3 when damage was found and not repaired.",
    ),
    Verb(
        "stats",
        "what is kept, what it costs, what was saved",
        "verbs_maintenance",
        "stats",
        (flag("--images", help="for each image: bytes held alone, shared, freed if removed"),),
    ),
    Verb(
        "serve",
        "serve the store as a registry, on this machine",
        "verbs_serve",
        "serve",
        (
            option(
                "--listen",
                help="where to listen (default: the configuration's, or 127.0.0.1:5000; port 0: any)",
                metavar="HOST:PORT",
            ),
            option(
                "--config",
                help="a file of settings: who may do what, TLS, limits (docs/registry.md)",
                takes="file",
                metavar="FILE",
            ),
            option(
                "--idle",
                help="keep what no manifest names for so long after it was last asked for "
                "(default: 1d)",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
            flag("--read-only", help="refuse every change"),
            option(
                "--workers",
                help="processes that serve (default: 1)",
                metavar="N",
                type=arguments.workers,
            ),
            option(
                "--optimize",
                help="when to optimize what was pushed: at once, when no request has come for "
                "--quiet-time, or not (default: off)",
                choices=("now", "idle", "off"),
            ),
            option(
                "--gc",
                help="when to collect what nothing names (default: off)",
                choices=("idle", "off"),
            ),
            option(
                "--quiet-time",
                help="without a request for so long, the server is idle (default: 30s)",
                metavar="TIME",
                type=arguments.positive_duration,
            ),
            option(
                "--access-log",
                help="a line for each request on stderr (default: off)",
                choices=("text", "json", "off"),
            ),
            flag(
                "--sparse", help="take manifests of images though blobs that they name are absent"
            ),
            option(
                "--proxy",
                help="be a mirror: what is asked for comes from this registry, once",
                metavar="docker://HOST[/PREFIX]",
            ),
            option(
                "--proxy-ttl",
                help="of a mirror: ask for a tag again after this time (default: 1h)",
                metavar="TIME",
                type=arguments.duration,
            ),
            *remote(),
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
