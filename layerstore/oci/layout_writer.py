"""An OCI image layout directory, written: blobs first, each synced, then index.json in one step.

A blob gets its final name only when it is whole, verified and synced; one that is there already is
hashed before it is relied on, and replaced if it is damaged. index.json is changed under a lock on the
directory, read again right before the rename and compared, so that processes of ours never lose each
other's entries. Writers of other tools do not take the lock (skopeo, oras and umoci write index.json
without one): one that writes between our comparison and our rename cannot be shut out.

Everything that is not ours stays: other entries, unknown files, unknown fields of index.json.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

from ..digest import hasher
from ..digest import parse as parse_digest
from ..errors import BusyError, InvalidInputError, LayerstoreError
from ..storage.disk import StreamFile, translate
from ..values import Descriptor
from . import jsonio, references
from .layout import BLOBS, INDEX, VERSION, blob_path, open_regular, read_small
from .model import IMAGE_NAME, REF_NAME, check_layout_version

VERSION_FILE = b'{"imageLayoutVersion":"1.0.0"}'
TEMPORARY = ".layerstore-"
READ = 1 << 20
DIRECT = 8 << 20
"""Blobs of this size or more go past the page cache."""
ROUNDS = 1000


class Chunks(Protocol):
    """A blob out of the store; its last piece comes only if its digest is right."""

    def chunks(self) -> Iterator[memoryview]: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry for index.json. `tag`: what the user asked for, or None: `full_name` decides.
    Without either the entry has no name."""

    descriptor: Descriptor
    tag: str | None = None
    full_name: str | None = None


class LayoutWriter:
    """Adds to a layout, or makes one. Blobs may be written by several threads at once."""

    def __init__(self, path: str, *, timeout: float | None = None) -> None:
        self._path = path
        self._timeout = timeout
        self._prepare()

    def _prepare(self) -> None:
        path = self._path
        made = not os.path.isdir(path)
        os.makedirs(path, exist_ok=True)
        if made:
            sync_directory(os.path.dirname(os.path.abspath(path)))
        with self._locked():
            # Under the lock, since another of ours may be making the same layout.
            known = (VERSION, INDEX, BLOBS)
            strange = [
                n for n in os.listdir(path) if n not in known and not n.startswith(TEMPORARY)
            ]
            if strange and not os.path.lexists(os.path.join(path, VERSION)):
                raise InvalidInputError(
                    f"{path} is neither empty nor an OCI layout (it has no {VERSION}): "
                    "name another directory",
                    path=path,
                )
            os.makedirs(os.path.join(path, BLOBS), exist_ok=True)
            self._remove_leftovers()
            version = os.path.join(path, VERSION)
            if os.path.lexists(version):
                check_layout_version(read_small(version, 4096, version), version)
            index = os.path.join(path, INDEX)
            if not os.path.lexists(index):
                self._replace(INDEX, jsonio.dump({"schemaVersion": 2, "manifests": []}))
            if not os.path.lexists(version):
                self._replace(VERSION, VERSION_FILE)
            sync_directory(path)

    # ---- blobs --------------------------------------------------------------------------------

    def blob(
        self,
        digest: str,
        size: int,
        open_blob: Callable[[], contextlib.AbstractContextManager[Chunks]],
        progress: Callable[[int], None],
    ) -> None:
        """Makes sure that the layout has a blob: whole, verified, synced (its directory too, by
        `sync`)."""
        target = blob_path(self._path, digest)
        if self._is_good(target, digest, size, progress):
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with self._temporary() as (f, name):
            with open_blob() as source:
                out = StreamFile(f.fileno(), name, direct=size >= DIRECT)
                for piece in source.chunks():
                    out.write(piece)
                    progress(len(piece))
                written = out.finish()
            if written != size:
                raise LayerstoreError(
                    f"blob {digest} gave {written} bytes instead of {size}", digest=digest
                )
            self._publish(f, name, target)

    def small(self, digest: str, data: bytes, progress: Callable[[int], None]) -> None:
        """The same for a document that lies in memory, verified by its reader."""

        class Memory:
            def chunks(self) -> Iterator[memoryview]:
                yield memoryview(data)

        self.blob(digest, len(data), lambda: contextlib.nullcontext(Memory()), progress)

    def sync(self) -> None:
        """Syncs the directories of blobs: call it when all are written, before `commit`."""
        top = os.path.join(self._path, BLOBS)
        for name in os.listdir(top):
            if os.path.isdir(os.path.join(top, name)):
                sync_directory(os.path.join(top, name))
        sync_directory(top)
        sync_directory(self._path)

    def _is_good(
        self, target: str, digest: str, size: int, progress: Callable[[int], None]
    ) -> bool:
        """Whether a blob is there and has its digest: what we say is verified is."""
        try:
            f = open_regular(target)
        except FileNotFoundError:
            return False
        with f:
            if os.fstat(f.fileno()).st_size != size:
                return False
            algorithm, raw = parse_digest(digest)
            h = hasher(algorithm)
            buffer = memoryview(bytearray(min(READ, max(1, size))))
            done = 0
            while got := f.readinto(buffer):  # type: ignore[attr-defined]
                h.update(buffer[:got])
                done += got
                if done > size:
                    return False
            if h.digest() != raw:
                return False
        progress(size)
        return True

    # ---- index.json ---------------------------------------------------------------------------

    def commit(self, entries: Iterable[Entry]) -> list[str | None]:
        """Adds entries to index.json, or moves the names that they carry; all at once, durably.

        Returns the tag that each got. An entry of ours or others with the same tag is replaced. A tag
        that was not asked for is the name's own, unless an image of another full name has it here:
        then it is the full name."""
        wanted = list(entries)
        path = os.path.join(self._path, INDEX)
        with self._locked():
            for _ in range(ROUNDS):
                before = read_small(path, jsonio.MAX_LAYOUT_INDEX, path)
                value = jsonio.parse(before, path, limit=jsonio.MAX_LAYOUT_INDEX)
                tags = merge(value, wanted, path)
                after = jsonio.dump(value)
                if jsonio.parse(before, path, limit=jsonio.MAX_LAYOUT_INDEX) == value:
                    return tags
                with self._temporary() as (f, name):
                    write_all(f.fileno(), after, name)
                    f.flush()
                    os.fsync(f.fileno())
                    if read_small(path, jsonio.MAX_LAYOUT_INDEX, path) == before:
                        os.rename(name, path)
                        sync_directory(self._path)
                        return tags
        raise BusyError(f"{path} changes all the time: another tool is writing it", path=path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock among ourselves: flock on the directory itself, so nothing is left behind."""
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._timeout is None:
                fcntl.flock(fd, fcntl.LOCK_EX)
            else:
                self._try_lock(fd, self._timeout)
            yield
        finally:
            os.close(fd)

    def _try_lock(self, fd: int, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as e:
                if time.monotonic() >= end:
                    raise BusyError(
                        f"layout {self._path} is being written by another process",
                        path=self._path,
                    ) from e
                time.sleep(0.02)

    # ---- files --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[BinaryIO, str]]:
        """A locked file at the top of the layout; gone at the end unless it was renamed."""
        name = os.path.join(self._path, f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}")
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(fd, "w+b", buffering=0) as f:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield f, name
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)

    def _publish(self, f: BinaryIO, name: str, target: str) -> None:
        try:
            os.fsync(f.fileno())
        except OSError as e:
            raise translate(e, name) from e
        os.rename(name, target)

    def _replace(self, name: str, data: bytes) -> None:
        with self._temporary() as (f, temporary):
            write_all(f.fileno(), data, temporary)
            self._publish(f, temporary, os.path.join(self._path, name))

    def _remove_leftovers(self) -> None:
        """Temporary files of processes that died: nobody holds their lock."""
        for entry in os.listdir(self._path):
            if not entry.startswith(TEMPORARY):
                continue
            path = os.path.join(self._path, entry)
            try:
                f = open_regular(path)
            except (FileNotFoundError, InvalidInputError):
                continue
            with f, contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(f.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


def write_all(fd: int, data: bytes | memoryview, path: str) -> int:
    """Writes all of it; returns how many bytes. Raises StoreFullError when there is no space."""
    view = memoryview(data)
    total = len(view)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as e:
        raise translate(e, path) from e
    return total


def sync_directory(path: str) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---- entries ----------------------------------------------------------------------------------


def merge(value: dict[str, object], entries: list[Entry], what: str) -> list[str | None]:
    """Puts entries into an index.json that was parsed; returns the tag of each."""
    got = value.setdefault("manifests", [])
    if not isinstance(got, list) or not all(isinstance(item, dict) for item in got):
        raise InvalidInputError(f"{what}: manifests is no array of descriptors")
    listed = cast("list[dict[str, object]]", got)
    tags: list[str | None] = []
    for entry in entries:
        tag = entry.tag if entry.tag is not None else _own_tag(entry, entries, listed)
        _put(listed, entry, tag)
        tags.append(tag)
    return tags


def _own_tag(entry: Entry, entries: list[Entry], listed: list[dict[str, object]]) -> str | None:
    """The name's tag, or the full name where that tag would be another image's."""
    full = entry.full_name
    if full is None:
        return None
    _, tag, digest = references.split(full)
    if tag is None or digest is not None:
        return full
    for other in entries:
        if (
            other.full_name not in (None, full)
            and references.split(other.full_name or "")[1] == tag
        ):
            return full
    for item in listed:
        notes = notes_of(item)
        if notes.get(REF_NAME) == tag and notes.get(IMAGE_NAME, full) != full:
            return full
    return tag


def _put(listed: list[dict[str, object]], entry: Entry, tag: str | None) -> None:
    new = describe(entry, tag)
    digest = entry.descriptor.digest
    if tag is None:
        if all(item.get("digest") != digest for item in listed):
            listed.append(new)
        return
    same = [item for item in listed if notes_of(item).get(REF_NAME) == tag]
    if len(same) == 1 and same[0].get("digest") == digest:
        notes = cast("dict[str, str]", new.get("annotations", {}))
        same[0]["annotations"] = {**notes_of(same[0]), **notes}
        return
    for item in same:
        listed.remove(item)
    # An entry of the same image that has no name yet gets this one, instead of a second entry.
    for item in listed:
        if item.get("digest") == digest and not ({REF_NAME, IMAGE_NAME} & set(notes_of(item))):
            notes = cast("dict[str, str]", new.get("annotations", {}))
            item["annotations"] = {**notes_of(item), **notes}
            return
    listed.append(new)


def notes_of(item: dict[str, object]) -> dict[str, object]:
    """The annotations of a raw entry, empty where there are none."""
    got = item.get("annotations")
    return cast("dict[str, object]", got) if isinstance(got, dict) else {}


def describe(entry: Entry, tag: str | None) -> dict[str, object]:
    """An entry as JSON."""
    descriptor = entry.descriptor
    out: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    notes = dict(descriptor.annotations)
    if tag is not None:
        notes[REF_NAME] = tag
        if entry.full_name is not None:
            notes[IMAGE_NAME] = entry.full_name
    if notes:
        out["annotations"] = notes
    if descriptor.artifact_type is not None:
        out["artifactType"] = descriptor.artifact_type
    if descriptor.platform is not None:
        out["platform"] = dict(descriptor.platform)
    return out
