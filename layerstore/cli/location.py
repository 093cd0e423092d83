"""Which directory is the store, when nobody says.

`--store`, else `$LAYERSTORE_DIR`, else `$XDG_DATA_HOME/layerstore` (by default
`~/.local/share/layerstore`); for root `/var/lib/layerstore`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SYSTEM = "/var/lib/layerstore"


def store_path(option: str | None, environment: Mapping[str, str], uid: int) -> str:
    """The store's directory. Empty variables count as unset, and so does a relative XDG_DATA_HOME
    (XDG base directory specification)."""
    if option is not None:
        return option
    if named := environment.get("LAYERSTORE_DIR"):
        return named
    if uid == 0:
        return SYSTEM
    data = environment.get("XDG_DATA_HOME", "")
    if not os.path.isabs(data):
        data = os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(data, "layerstore")
