"""What a verb works with: its arguments, the output, the progress meter, and the store.

Which verb opens the store how: `create` for those that put something into it, `write` for those that
change it, nothing for those that read. A reading verb on a store that this user may not write falls
back to a read-only handle, as far as the library finds that safe.
"""

from __future__ import annotations

import errno
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .arguments import size
from .location import store_path
from .output import Output
from .parser import UsageError
from .progress import Meter, meter
from .signals import Guard

if TYPE_CHECKING:
    import layerstore

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


class SamePid(Exception):
    """The store is open in another pid namespace under our pid: this process cannot open it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Context:
    """One command at work."""

    def __init__(
        self,
        args: Namespace,
        output: Output,
        guard: Guard,
        open_store: Callable[..., Any] | None = None,
    ) -> None:
        self.args = args
        self.output = output
        self._guard = guard
        self._open_store = open_store
        self._meter: Meter | None = None
        self._store: layerstore.Store | None = None

    @property
    def path(self) -> str:
        """The store's directory."""
        return store_path(self.args.store, os.environ, os.geteuid())

    @property
    def progress(self) -> Meter:
        """The callback that verbs hand to the library."""
        if self._meter is None:
            self._meter = meter(self.args.progress, quiet=self.args.quiet, check=self._guard.check)
            self.output.before_message = self._meter.clear
        return self._meter

    def store(self, *, create: bool = False, write: bool = False) -> layerstore.Store:
        """The open store; it is closed when the verb has ended.

        `create` makes it where there is none; `create` and `write` take `--lease` into account.
        Raises SamePid, before anything was read or written, when this process cannot open it but
        one with another pid can."""
        store = self._store = self._open(create=create, write=create or write)
        lease = self.args.lease or os.environ.get("LAYERSTORE_LEASE")
        if lease and (create or write):
            store.use_lease(lease)
        return store

    @property
    def lease(self) -> str | None:
        """The lease that the user named for what this verb puts."""
        return self.args.lease or os.environ.get("LAYERSTORE_LEASE") or None

    def done(self) -> None:
        """The work is over, the results come: takes the progress line away."""
        if self._meter is not None:
            self._meter.clear()

    def close(self) -> None:
        """Closes the store, if the verb opened it."""
        self.done()
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def raw_cache(self) -> int:
        """The budget for copies of popular blobs."""
        if self.args.raw_cache is not None:
            return int(self.args.raw_cache)
        given = os.environ.get("LAYERSTORE_RAW_CACHE")
        try:
            return size(given) if given else 0
        except ArgumentTypeError as error:
            raise UsageError(f"$LAYERSTORE_RAW_CACHE: {error}", "layerstore", "") from error

    def _open(self, *, create: bool, write: bool) -> layerstore.Store:
        import layerstore

        opener = self._open_store or layerstore.open
        options: dict[str, Any] = {"create": create, "timeout": self.args.timeout}
        if raw_cache := self.raw_cache():
            options["raw_cache"] = raw_cache
        try:
            try:
                return opener(self.path, **options)
            except (layerstore.PermissionDeniedError, OSError) as error:
                if write or (isinstance(error, OSError) and error.errno not in _NOT_OURS):
                    raise
            return opener(self.path, readonly=True, **options)
        except layerstore.BusyError as error:
            if getattr(error, "same_pid", False):
                raise SamePid(error) from error
            raise
