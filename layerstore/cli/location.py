"""Which directory is the store, when nobody says.

`--store`, else `$LAYERSTORE_DIR`, else `$XDG_DATA_HOME/layerstore`, else `/var/lib/layerstore` for root
and `~/.local/share/layerstore` for everybody else: what `layerstore.open()` takes, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SYSTEM = "/var/lib/layerstore"


def store_path(option: str | None, environment: Mapping[str, str], uid: int) -> str:
    """The store's directory. Empty variables count as unset."""
    if option is not None:
        return option
    if named := environment.get("LAYERSTORE_DIR"):
        return named
    if data := environment.get("XDG_DATA_HOME"):
        return os.path.join(data, "layerstore")
    if uid == 0:
        return SYSTEM
    return os.path.join(os.path.expanduser("~"), ".local", "share", "layerstore")
