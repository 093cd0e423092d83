"""Which directory is the store when nobody says."""

from __future__ import annotations

import os

import pytest

from layerstore.cli.location import store_path

HOME = os.path.expanduser("~/.local/share/layerstore")


@pytest.mark.parametrize(
    ("option", "environment", "uid", "path"),
    [
        ("s", {"LAYERSTORE_DIR": "d", "XDG_DATA_HOME": "/x"}, 0, "s"),
        (None, {"LAYERSTORE_DIR": "d", "XDG_DATA_HOME": "/x"}, 0, "d"),
        (None, {"LAYERSTORE_DIR": "", "XDG_DATA_HOME": "/x"}, 1000, "/x/layerstore"),
        (None, {"XDG_DATA_HOME": ""}, 1000, HOME),
        (None, {}, 1000, HOME),
        (None, {}, 0, "/var/lib/layerstore"),
    ],
)
def test_where_the_store_is(option, environment, uid, path):
    assert store_path(option, environment, uid) == path
