"""`Store.cache`: a builder's step cache (floor 5).

    key = f"{base.digest} RUN apt-get install -y gcc"
    found = store.cache.get(key)
    if found is None:
        ...
        store.cache.put(key, store.snapshots.diff("step-1"))

A key is what a step depends on, as text or bytes of any length (text counts as its UTF-8 bytes). It
leads to an image (a manifest) or a layer that is in the store. What an entry names is kept until the
entry is removed, or until `Store.gc(max_used_space=, min_free_space=)` drops it, least recently used
first.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING

from . import values
from .digest import parse
from .errors import InvalidInputError
from .storage import cache as rows

if TYPE_CHECKING:
    from .layers.content import Content

Value = str | values.Descriptor | values.ImageInfo | values.LayerInfo | values.BlobInfo | values.Ref


class Cache:
    """The step cache of one store."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def get(self, key: bytes | str) -> values.Descriptor | None:
        """What a key names, None for a miss. What is given stays until this store is closed (or longer,
        by a lease in use), whatever gc does; the use is on record when this returns, at most once a
        minute for each key. A step whose result is known to be damaged is a miss."""
        with self._content.storage.operation() as op:
            return rows.get(op, key)

    def put(self, key: bytes | str, value: Value) -> values.Descriptor:
        """Names an image (a name, a digest, or what describes it) or a layer (a digest, or what
        `diff_upper` and the like gave), in place of what the key named before; durable when this
        returns. Raises NotFoundError if it is not in the store."""
        from .oci import images

        with self._content.operation() as op:
            if not isinstance(value, str):
                return rows.put(op.op, key, value.digest, value.media_type)
            try:
                parse(value)
            except InvalidInputError:
                found = images.find(op, value)
                return rows.put(op.op, key, found.digest, found.media_type)
            return rows.put(op.op, key, value, None)

    def remove(self, key: bytes | str) -> bool:
        """Forgets a key; False if there was none. What it named goes with the next gc, unless something
        else needs it."""
        return rows.remove(self._content.storage, key)

    def list(self) -> builtins.list[values.CacheEntry]:
        """All entries, least recently used first. Keys are kept as hashes only."""
        return rows.listing(self._content.storage)
