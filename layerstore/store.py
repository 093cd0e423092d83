"""The public face: `open` and `Store` (floor 5). Few verbs; the rest are values.

A `Store` may be shared by threads, and its directory by any number of processes. A handle is not to
be used after a fork; open the store again in the child.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, TypeVar, Unpack

from . import values
from .errors import InvalidInputError, NotFoundError, StoreFullError
from .handles import BlobWriter, Image, Lease
from .layers.assemble import BlobFile
from .layers.content import Content
from .layers.content import Operation as ContentOperation
from .mediatypes import OCI_LAYER
from .storage.leases import listing
from .storage.storage import Storage, open_storage

if TYPE_CHECKING:
    from .cache import Cache
    from .remote.options import RemoteOptions
    from .repositories import Repository, RepositoryLimits
    from .snapshots import Snapshots

ProgressCallback = values.ProgressCallback
T = TypeVar("T")
NIBBLES = 16
"""How often a verb that lets something go may take some of the reserve: one MiB in all."""


def default_path() -> str:
    """`$LAYERSTORE_DIR`, else `/var/lib/layerstore` for root, else below `$XDG_DATA_HOME`."""
    given = os.environ.get("LAYERSTORE_DIR")
    if given:
        return given
    home = os.environ.get("XDG_DATA_HOME")
    if home:
        return os.path.join(home, "layerstore")
    if os.geteuid() == 0:
        return "/var/lib/layerstore"
    return os.path.join(os.path.expanduser("~"), ".local", "share", "layerstore")


def open(
    path: str | os.PathLike[str] | None = None,
    *,
    create: bool = True,
    readonly: bool = False,
    timeout: float | None = None,
    raw_cache: int = 0,
) -> Store:
    """Opens the store in a directory; makes it if it is missing, unless `create` is False.

    `readonly` needs no right to write; what it reads is verified, but nothing is held for it.
    `timeout` (seconds) bounds every wait for another process; None waits for ever. `raw_cache`: bytes
    that copies of popular blobs may take, so that these are read from a file instead of being made
    again; copies that are there are used in any case.
    Raises NotFoundError, UnsupportedError (newer format, remote filesystem), CorruptError, BusyError,
    PermissionDeniedError."""
    where = os.fspath(path) if path is not None else default_path()
    return Store(
        open_storage(
            where,
            create_missing=create,
            readonly=readonly,
            timeout=timeout,
            raw_cache=raw_cache,
        )
    )


def rebuild_index(
    path: str | os.PathLike[str], *, timeout: float | None = None
) -> values.CheckReport:
    """Makes the index of a store anew from its packs alone, names included.

    Needs the store to itself (BusyError otherwise). Reports what could not be made whole."""
    from .storage.rebuild import rebuild

    return rebuild(os.fspath(path), timeout=timeout)


class Store:
    """An open store. Close it, or use it as a context manager."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._content = Content(storage)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session. What was put and is named by no ref and no lease is let go."""
        self._storage.close()

    @property
    def path(self) -> str:
        return self._storage.path

    @property
    def readonly(self) -> bool:
        return self._storage.readonly

    def _with(self, work: Callable[[ContentOperation], T]) -> T:
        with self._content.operation() as op:
            return work(op)

    # ---- blobs --------------------------------------------------------------------------------

    def put(
        self,
        data: BinaryIO | bytes | Iterable[bytes],
        *,
        digest: str | None = None,
        size: int | None = None,
        media_type: str = "application/octet-stream",
        progress: Callable[[int], None] | None = None,
    ) -> values.Descriptor:
        """Stores a blob; durable when it returns, and held until the store is closed, or longer by a
        ref or lease. `digest` and `size` are verified. Raises DigestMismatchError."""
        with self._content.operation() as op:
            info = op.put(
                data,
                digest=digest,
                size=size,
                media_type=media_type,
                progress=progress,
                inspect=False,
                verify=True,
            )
        return values.Descriptor(info.digest, info.bytes, info.media_type)

    def writer(self, upload_id: str | None = None) -> BlobWriter:
        """A blob to be written piece by piece; with an id, one that was begun before goes on.
        Raises NotFoundError for an id that is not there (any more), BusyError if it is in use."""
        from .storage import uploads

        self._storage.check_usable()
        if upload_id is None:
            return BlobWriter(self._content, uploads.begin(self._storage))
        return BlobWriter(self._content, uploads.resume(self._storage, upload_id))

    def stat(self, digest: str) -> values.BlobInfo:
        """What is known of a blob, with its share on disk. Raises NotFoundError."""
        from .storage.accounting import stored_bytes

        with self._content.operation() as op:
            info = op.stat(digest)
            if info is None:
                raise NotFoundError(f"no blob {digest} in the store", digest=digest)
            return values.BlobInfo(
                info.digest,
                info.bytes,
                info.media_type,
                info.forms,
                stored_bytes(self._storage, digest),
                0,
                info.diff_id,
                info.problem,
            )

    def blobs(self) -> Iterator[values.BlobInfo]:
        """Every blob, sorted by digest."""
        with self._content.operation() as op:
            yield from op.blobs()

    def open_blob(self, digest: str) -> BlobFile:
        """A blob as a binary file: read, readinto, seek, tell; `.chunks()` to stream."""
        self._storage.check_usable()
        return self._content.open(digest)

    def repository(
        self,
        name: str,
        *,
        idle: float = 24 * 3600.0,
        limits: RepositoryLimits | None = None,
        lent: bool = False,
    ) -> Repository:
        """A repository of a registry: what may be read under a name. `idle`: seconds that a blob which
        no manifest names is kept after it was last put, mounted or asked for. `lent`: what comes into
        it can be fetched again, and may go for gc's limits of space with the manifests that name it.
        Raises InvalidInputError for what is no name."""
        from .repositories import Repository, RepositoryLimits

        self._storage.check_usable()
        return Repository(self._content, name, idle, limits or RepositoryLimits(), lent)

    def repositories(
        self, after: str = "", limit: int | None = None, prefix: str = ""
    ) -> list[str]:
        """Names of the repositories behind `after` that begin with `prefix`, sorted, at most `limit`.
        What it costs is theirs alone, however many others there are."""
        from itertools import islice

        from .storage.repositories import names

        with self._storage.index.read() as snapshot:
            return list(islice(names(snapshot, after, prefix), limit))

    def referrers(self, digest: str) -> list[str]:
        """Digests of the manifests whose subject is `digest`."""
        return self._with(lambda op: op.referrers(digest))

    # ---- images -------------------------------------------------------------------------------

    def import_images(
        self,
        transport: str,
        name: str | None = None,
        *,
        all: bool = False,
        strict: bool = False,
        defer: bool = False,
        inflate_limit: int | None = None,
        platform: str | None = None,
        remote: RemoteOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[values.ImageInfo]:
        """Takes one image, or with `all` every image of a transport (`oci:`, `oci-archive:`,
        `docker-archive:`, `docker://`). Of a registry, `platform` (`os/arch[/variant]`) takes from an
        index only the images for it; `remote` says how it is spoken to, and PermissionDeniedError and
        RemoteError what it answered.

        `strict` refuses layers that do not decode or do not match their diff_id;
        `defer` leaves optimizing compressed layers, and looking into them, for later. A layer that
        inflates to more than `inflate_limit` bytes (None: 1 TiB) is kept and given back exactly, with a
        warning; whoever wants what is in it gets LimitError or InvalidInputError."""
        from .oci.importing import import_images
        from .oci.transports import parse

        return import_images(
            self._content,
            parse(transport),
            name=name,
            all=all,
            strict=strict,
            defer=defer,
            inflate_limit=inflate_limit,
            platform=platform,
            remote=remote,
            progress=progress,
        )

    def import_image(
        self,
        transport: str,
        name: str | None = None,
        *,
        strict: bool = False,
        defer: bool = False,
        inflate_limit: int | None = None,
        platform: str | None = None,
        remote: RemoteOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> values.ImageInfo:
        """Takes one image; see `import_images`."""
        return self.import_images(
            transport,
            name,
            strict=strict,
            defer=defer,
            inflate_limit=inflate_limit,
            platform=platform,
            remote=remote,
            progress=progress,
        )[0]

    def export_images(
        self,
        names: Sequence[str],
        transport: str,
        *,
        referrers: bool = False,
        compression: str | None = None,
        remote: RemoteOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[values.ImageInfo]:
        """Writes images out with the bytes and digests they came with, every digest verified. `remote`
        says how a registry (`docker://`) is spoken to; what it has already is not sent again.

        `compression` (`gzip[:LEVEL]`, `zstd[:LEVEL]` or `none`) writes images that differ in how their
        layers are compressed, and so in the digests of layers and manifests, which are returned. Layers
        that are compressed so already keep their bytes. Configs and diff_ids stay; signatures of the
        image as it was do not fit, and are left out. The gzip bytes are the same for ever, on any
        machine; those of zstd as long as the library is. What was made stays in the store until this
        handle is closed, gzip as a recipe of some bytes: exporting again costs less."""
        from .oci.exporting import export_images
        from .oci.transports import parse

        return export_images(
            self._content,
            list(names),
            parse(transport),
            referrers=referrers,
            compression=compression,
            remote=remote,
            progress=progress,
        )

    def export_image(
        self,
        name: str,
        transport: str,
        *,
        referrers: bool = False,
        compression: str | None = None,
        remote: RemoteOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> values.ImageInfo:
        """Writes one image out; see `export_images`."""
        return self.export_images(
            [name],
            transport,
            referrers=referrers,
            compression=compression,
            remote=remote,
            progress=progress,
        )[0]

    def copy_images(
        self,
        source: str,
        target: str,
        *,
        all: bool = False,
        platform: str | None = None,
        referrers: bool = False,
        source_remote: RemoteOptions | None = None,
        target_remote: RemoteOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[values.ImageInfo]:
        """Copies one image, or with `all` every one, from a transport to another, with the same bytes
        and digests. It gets no name here. Between registries bytes stream through, and only those that
        the target lacks; else what was copied stays in the store until this handle is closed.
        `platform` as for an import, `referrers` as for an export; raises what these do."""
        from .oci.copying import copy_images
        from .oci.transports import parse

        return copy_images(
            self._content,
            parse(source),
            parse(target),
            all=all,
            platform=platform,
            referrers=referrers,
            source_remote=source_remote,
            target_remote=target_remote,
            progress=progress,
        )

    def checkout(
        self,
        name: str,
        target: str | os.PathLike[str],
        *,
        platform: str | None = None,
        ownership: str | None = None,
        uid_map: Sequence[tuple[int, int, int]] = (),
        gid_map: Sequence[tuple[int, int, int]] = (),
        reflink: bool = True,
        progress: ProgressCallback | None = None,
    ) -> values.CheckoutReport:
        """Writes an image's root filesystem into a directory that is empty, or not there.

        `ownership`: `exact` (all as the layers say, or an error), `try` (as far as it goes, the rest in
        the report's notes), `rootless` (owners in the xattr user.rootlesscontainers); None is `exact`
        for root outside of user namespaces, else `try`. The maps give ids of layers ids of the system:
        `(inside, outside, count)`. `reflink`: files that an earlier checkout left on the target's
        filesystem, and that are still what they were, share their blocks with the new ones where the
        filesystem can do that (btrfs, XFS); for it the store keeps a record of what it writes there.
        Until it is whole, the target is marked as unfinished; it is not synced. Raises NotFoundError,
        InvalidInputError (a layer that is not sound, naming layer, entry and offset: nothing was
        written then; a target that is not empty), BusyError, StoreFullError, OSError."""
        from .layers import checkout

        layers = [
            checkout.Layer(x.digest, x.diff_id) for x in self.image(name, platform=platform).layers
        ]
        options = checkout.Options(ownership, tuple(uid_map), tuple(gid_map), reflink=reflink)
        return checkout.checkout(
            self._content, layers, os.fspath(target), options=options, progress=progress
        )

    def images(self) -> list[values.ImageInfo]:
        """All images, sorted by name."""
        from .oci import images

        with self._content.operation() as op:
            return [images.describe(op, ref) for ref in op.refs()]

    def image(self, name: str, *, platform: str | None = None) -> Image:
        """One image, by name, name with digest, or digest prefix. Raises NotFoundError."""
        from .oci import images

        return Image(self._content, self._with(lambda op: images.find(op, name)), platform)

    def tag(self, name: str, new: str) -> values.Ref:
        """Gives an image another name; an image that had it loses it."""
        from .oci import images, references

        with self._content.operation() as op:
            ref = images.find(op, name)
            full = references.full_name(new)
            made = values.Ref(full, ref.digest, ref.size, ref.media_type)
            op.commit_refs({full: made})
            return made

    def untag(self, name: str) -> values.Ref:
        """Takes a name away; what nothing else reaches is for the next gc."""
        from .oci import images

        def work() -> values.Ref:
            with self._content.operation() as op:
                ref = images.find(op, name)
                if not ref.name:
                    raise InvalidInputError(f"{name} is no name: give the name to take away")
                op.commit_refs({}, remove=[ref.name])
                return ref

        return self._letting_go(work)

    def _letting_go(self, work: Callable[[], T]) -> T:
        """Work that leaves more for gc to free: on a full disk it takes a little of the reserve, else
        nothing could ever be freed."""
        from .storage import reserve

        for _ in range(NIBBLES):
            try:
                return work()
            except StoreFullError:
                if not reserve.nibble(self._storage.path):
                    raise
        return work()

    # ---- layers out of directories ------------------------------------------------------------

    def diff_upper(
        self,
        upper: str | os.PathLike[str],
        lower: Sequence[str | os.PathLike[str]] = (),
        *,
        media_type: str = OCI_LAYER,
        source_date_epoch: int | None = None,
        uids: Sequence[tuple[int, int, int]] = (),
        gids: Sequence[tuple[int, int, int]] = (),
        cache: bool = True,
        fuse_overlayfs: bool = False,
        rootless: bool = False,
        progress: ProgressCallback | None = None,
        tar: BinaryIO | None = None,
    ) -> values.LayerInfo:
        """The layer of an overlay's upper directory, stored and held as `put` does; with `tar` it is
        written there instead. `lower`: the directories below, topmost first; needed where the upper one
        only names what lies there (redirect_dir, metacopy, index).

        `source_date_epoch` (seconds) clamps times; `uids` and `gids` map owners: (first outside,
        first inside, how many). With `cache`, files that this store has read before are not read
        again. `fuse_overlayfs`: that made it, so `.wh.NAME` is a removed file, `.wh..wh..opq` marks an
        opaque directory, and xattrs `override_stat` hold owners and modes; `rootless`: the xattr
        user.rootlesscontainers holds owners. Otherwise such a name is refused, such an xattr no more
        than an xattr. Raises InvalidInputError, OSError, each naming the file, and NotFoundError."""
        from .layers.diff import diff_upper

        with contextlib.ExitStack() as stack:
            op = None if tar is not None else stack.enter_context(self._content.operation())
            return diff_upper(
                op,
                upper,
                lower,
                media_type=media_type,
                source_date_epoch=source_date_epoch,
                uids=uids,
                gids=gids,
                cache=cache,
                fuse_overlayfs=fuse_overlayfs,
                rootless=rootless,
                progress=progress,
                tar=tar,
            )

    def diff_trees(
        self,
        old: str | os.PathLike[str],
        new: str | os.PathLike[str],
        *,
        content: bool = False,
        media_type: str = OCI_LAYER,
        source_date_epoch: int | None = None,
        uids: Sequence[tuple[int, int, int]] = (),
        gids: Sequence[tuple[int, int, int]] = (),
        cache: bool = True,
        rootless: bool = False,
        progress: ProgressCallback | None = None,
        tar: BinaryIO | None = None,
    ) -> values.LayerInfo:
        """The layer that makes the tree `old` into `new`; as `diff_upper` for the rest. Compared are
        type, mode, owner, size, mtime, device, target and xattrs; with `content` the bytes as well."""
        from .layers.diff import diff_trees

        with contextlib.ExitStack() as stack:
            op = None if tar is not None else stack.enter_context(self._content.operation())
            return diff_trees(
                op,
                old,
                new,
                content=content,
                cache=cache,
                media_type=media_type,
                source_date_epoch=source_date_epoch,
                uids=uids,
                gids=gids,
                rootless=rootless,
                progress=progress,
                tar=tar,
            )

    # ---- containers and builds ----------------------------------------------------------------

    @property
    def snapshots(self) -> Snapshots:
        """Containers' own filesystems over images."""
        from .snapshots import Snapshots

        self._storage.check_usable()
        return Snapshots(self._content)

    @property
    def cache(self) -> Cache:
        """A builder's step cache: what a step gave, by what it depends on."""
        from .cache import Cache

        self._storage.check_usable()
        return Cache(self._content)

    def commit(
        self,
        base: str,
        name: str,
        *,
        upper: str | os.PathLike[str] | None = None,
        lower: Sequence[str | os.PathLike[str]] = (),
        layers: Sequence[str | values.LayerInfo | values.Descriptor] = (),
        squash: bool | str = False,
        platform: str | None = None,
        source_date_epoch: int | None = None,
        progress: ProgressCallback | None = None,
        **changes: Unpack[values.ConfigChanges],
    ) -> values.ImageInfo:
        """A new image `name`: an image (or `scratch`, nothing), `layers` on top (stored blobs, lowest
        first, or what `diff_upper` gave), then what changed in an overlay's `upper` directory over
        `lower` (topmost first), and changes of the config.

        Always an OCI image. `squash` merges what is added into one layer; `"all"` the base's layers,
        too. Times are `source_date_epoch` (seconds), else $SOURCE_DATE_EPOCH, else now: with one of
        them the same input gives the same digest. Raises NotFoundError, InvalidInputError, OSError."""
        from .oci import committing

        with self._content.operation() as op:
            added = [one if isinstance(one, str) else one.digest for one in layers]
            if upper is not None:
                from .layers.diff import diff_upper

                clamp = committing.epoch(source_date_epoch)
                made = diff_upper(op, upper, lower, source_date_epoch=clamp, progress=progress)
                added.append(made.digest)
            return committing.commit(
                self._content,
                op,
                base,
                name,
                added,
                changes,
                created=committing.created_at(source_date_epoch),
                squash="all" if squash == "all" else "new" if squash else "",
                platform=platform,
                progress=progress,
            )

    def bundle(
        self,
        name: str,
        target: str | os.PathLike[str],
        *,
        snapshot: str | None = None,
        args: Sequence[str] | None = None,
        readonly: bool = False,
        platform: str | None = None,
        uid_map: Sequence[tuple[int, int, int]] = (),
        gid_map: Sequence[tuple[int, int, int]] = (),
        reflink: bool = True,
        progress: ProgressCallback | None = None,
    ) -> values.BundleReport:
        """A runtime bundle in an empty or new directory: config.json out of the image's config
        (image-spec conversion.md), and rootfs. config.json comes last: with it the bundle is whole.

        `snapshot`: a new snapshot of that key is mounted as rootfs, instead of writing the files.
        `args` in place of the image's command. With maps (`(inside, outside, count)`) the container
        has a user namespace. Users and groups are looked up in the image's own files. `reflink` is that
        of `checkout`, which writes the files. Raises NotFoundError, InvalidInputError, OSError."""
        from .bundles import bundle

        return bundle(
            self,
            self._content,
            name,
            os.path.abspath(target),
            snapshot=snapshot,
            args=args,
            readonly=readonly,
            platform=platform,
            uids=tuple(uid_map),
            gids=tuple(gid_map),
            reflink=reflink,
            progress=progress,
        )

    # ---- leases -------------------------------------------------------------------------------

    def lease(self, ttl: float | None = None) -> Lease:
        """A new lease. With a `ttl` (seconds, renewed by use) it outlives this process; without one it
        ends with this handle, if it is not dropped before."""
        return Lease(self._storage, self._storage.create_lease(ttl), self.drop_lease)

    def use_lease(self, lease_id: str) -> Lease:
        """Everything put from now on is held by this lease, too. Raises NotFoundError."""
        self._storage.use_lease(lease_id)
        return Lease(self._storage, lease_id, self.drop_lease)

    def drop_lease(self, lease_id: str) -> None:
        """Lets go what a lease held. Raises NotFoundError."""
        self._letting_go(lambda: self._storage.drop_lease(lease_id))

    def leases(self) -> list[values.LeaseInfo]:
        """The leases that have not expired."""
        with self._storage.index.read() as snapshot:
            return listing(snapshot)

    # ---- upkeep -------------------------------------------------------------------------------

    def gc(
        self,
        *,
        dry_run: bool = False,
        max_time: float | None = None,
        max_repack_size: int | None = None,
        aggressive: bool = False,
        max_used_space: int | None = None,
        min_free_space: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> values.GCReport:
        """Frees what no ref, lease or running operation reaches. Others go on meanwhile.

        `max_time` in seconds and `max_repack_size` in bytes bound it; the next one goes on. While the
        store takes more than `max_used_space` bytes on disk, or its filesystem has less than
        `min_free_space` free, it also lets go what could be made again: copies in the raw
        cache, unpacked layers that no snapshot stands on, then images that a mirror keeps for a time,
        then entries of `cache`, least recently used first, and no more than it takes; never other
        refs, leases, snapshots, or what they need."""
        from .storage.gc import collect
        from .storage.prune import Limits

        return collect(
            self._storage,
            dry_run=dry_run,
            max_time=max_time,
            max_repack_size=max_repack_size,
            aggressive=aggressive,
            limits=Limits(max_used_space, min_free_space),
            progress=progress,
        )

    def optimize(
        self,
        names: Sequence[str] = (),
        *,
        max_corrections: float = 0.02,
        max_time: float | None = None,
        inflate_limit: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> values.OptimizeReport:
        """Turns blobs that are kept as they came into deduplicated content and a recipe, proves each,
        then frees the file; of some images, or of all. Others go on meanwhile; stopped at any moment it
        loses nothing, and the next one goes on.

        `max_corrections`: share of a blob that its recipe may have, else it stays as it is, and the
        report says why. `max_time` in seconds. Raises NotFoundError for a name."""
        from .layers import optimize
        from .layers.inflate import DEFAULT_LIMIT
        from .oci import images

        self._storage.check_usable()
        started = time.monotonic()
        roots = None
        if names:
            roots = self._with(lambda op: [images.find(op, name).digest for name in names])
        outcomes, complete = optimize.optimize(
            self._content,
            self._content.raw_blobs(roots),
            max_corrections=max_corrections,
            max_time=max_time,
            inflate_limit=DEFAULT_LIMIT if inflate_limit is None else inflate_limit,
            progress=progress,
        )
        return values.OptimizeReport(
            tuple(outcome.blob for outcome in outcomes),
            sum(outcome.freed for outcome in outcomes),
            sum(outcome.written for outcome in outcomes),
            time.monotonic() - started,
            complete,
        )

    def check(
        self,
        *,
        blocks: bool = False,
        full: bool = False,
        max_time: float | None = None,
        repair_from: str | None = None,
        remote: RemoteOptions | None = None,
        progress: ProgressCallback | None = None,
    ) -> values.CheckReport:
        """Verifies the store: index, lengths and tables of contents; with `blocks` every checksum;
        with `full` every chunk and every blob's digest. `max_time` (seconds) stops it; the next one
        goes on, oldest checked first. `repair_from`: a transport that has the bytes; `remote`: how it
        is spoken to, if it is a registry."""
        from .layers.checking import check
        from .oci.repair import repair_source

        return check(
            self._content,
            blocks=blocks,
            full=full,
            max_time=max_time,
            repair=None if repair_from is None else repair_source(repair_from, remote),
            progress=progress,
        )

    def stats(self, *, images: bool = False) -> values.Stats:
        """What is kept and what it costs; with `images` for each image too (slower)."""
        from .storage.accounting import stats

        return stats(self._storage, per_image=images)
