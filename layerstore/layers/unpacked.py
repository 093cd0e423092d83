"""Layers unpacked once per store: one directory for each layer of a chain, for overlayfs to stack.

A layer's directory depends on the layers below it (a hard link to a lower file is a copy of that file
here), so it is known by its chain id (image-spec config.md, "Layer ChainID"). Of several processes that
want the same one, one makes it and the others wait and find it. What is made and how it becomes known:
`storage/unpacked.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..digest import parse
from ..errors import BusyError, InvalidInputError
from ..storage import unpacked as rows
from ..storage.accounting import directory_bytes
from ..storage.index import Write
from ..storage.locks import ByteLock
from .checkout import Unpacker

if TYPE_CHECKING:
    from ..values import ProgressCallback
    from .content import Content, Operation

RETRIES = 5
LOCKS = "unpacking"


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer, lowest first, from the diff_ids (image-spec config.md)."""
    out: list[str] = []
    for diff_id in diff_ids:
        if not out:
            out.append(diff_id)
            continue
        text = f"{out[-1]} {diff_id}".encode()
        out.append(f"sha256:{hashlib.sha256(text).hexdigest()}")
    return out


def diff_ids(op: Operation, digests: Sequence[str], stated: Sequence[str | None]) -> list[str]:
    """The diff_ids of stored layers, each verified by decoding it; `stated`: what a config says.

    Raises NotFoundError for a layer that is not here, InvalidInputError for one that does not decode or
    is not what the config says."""
    out = []
    for digest, wanted in zip(digests, stated, strict=True):
        info = op.inspect(digest, wanted)
        if info.diff_id is None:
            reason = info.problem or "it is no tar, compressed or not"
            raise InvalidInputError(f"layer {digest}: {reason}", digest=digest, reason=reason)
        if wanted is not None and wanted != info.diff_id:
            reason = f"its diff_id is {info.diff_id}, the config says {wanted}"
            raise InvalidInputError(f"layer {digest}: {reason}", digest=digest, reason=reason)
        out.append(info.diff_id)
    return out


def ensure(
    content: Content,
    op: Operation,
    digests: Sequence[str],
    stated: Sequence[str | None],
    progress: ProgressCallback | None = None,
) -> str | None:
    """Unpacks what of these layers (lowest first) is not unpacked yet. Gives the chain id of the
    topmost, None if there is no layer.

    The layers are whole when this returns; they stay while a snapshot stands on them, which whoever
    makes one looks at again in its own transaction."""
    ids = diff_ids(op, digests, stated)
    chains = chain_ids(ids)
    storage = content.storage
    locks = ByteLock(os.path.join(storage.path, LOCKS))
    if not chains:
        return None
    if _known(content, chains[-1]):
        return chains[-1]
    # Numbers for all of them at once: each draw is a synced commit.
    first = storage.index.update(lambda tx: tx.draw(rows.NEXT_UNPACKED, len(chains)))
    with contextlib.ExitStack() as held:
        made: list[tuple[rows.UnpackedRow, rows.Making]] = []
        unpacker = held.enter_context(Unpacker(content, op, progress=progress))
        begun = 0
        for i, chain in enumerate(chains):
            if _known(content, chain):
                continue
            # Lowest first, as everybody takes them: nobody waits for whom he holds up.
            held.enter_context(locks(_turn(chain), storage.timeout))
            if _known(content, chain):
                continue
            parent = chains[i - 1] if i else None
            serial = first + i
            making = held.enter_context(rows.Making(storage, rows.LAYERS, serial))
            for below in digests[begun:i]:
                unpacker.skip(below)
            unpacker.unpack(digests[i], making.path, making.final)
            begun = i + 1
            made.append((rows.UnpackedRow(chain, serial, ids[i], parent, 0), making))
        if made:
            _keep(content, made)
    return chains[-1]


def _turn(chain: str) -> int:
    return int.from_bytes(parse(chain)[1][:8], "big")


def _known(content: Content, chain: str) -> bool:
    with content.storage.index.read() as snapshot:
        return rows.stack(snapshot, chain) is not None


def _keep(content: Content, made: Sequence[tuple[rows.UnpackedRow, rows.Making]]) -> None:
    """Makes unpacked layers known, all at once: one sync and one commit, however many they are."""
    storage = content.storage
    storage.disk.sync_tree(made[0][1].path)
    whole = []
    for row, making in made:
        size = directory_bytes(making.path)
        whole.append(replace(row, size=size, userxattr=not can_trust(making.path)))
    for _, making in made:
        making.keep(sync=False)
    storage.disk.sync_dir(os.path.join(storage.path, rows.LAYERS))

    def name(tx: Write) -> None:
        lowest = whole[0].parent
        if lowest is not None and rows.find(tx, lowest) is None:
            raise BusyError(
                f"the unpacked layer {lowest} was collected while others were made on top of it: "
                "try again"
            )
        for row in whole:
            row.put(tx)

    storage.index.update(name)


def can_trust(path: str) -> bool:
    """Whether overlay marks below `path` are in `trusted.overlay.*`: who may not write those uses
    `user.overlay.*`."""
    probe = "trusted.overlay.layerstore"
    try:
        os.setxattr(path, probe, b"y")
        os.removexattr(path, probe)
    except OSError:
        return False
    return True
