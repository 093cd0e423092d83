"""Builds the extension: the C machines of csrc/ behind cffi (API mode, limited API, one abi3 wheel).

`LAYERSTORE_PORTABLE=1` leaves every SIMD path out; `LAYERSTORE_SANITIZE=1` builds with ASan and UBSan.
"""

import os

from setuptools import setup

# One wheel for every CPython from 3.11 on: the extension keeps to the limited API.
options: dict[str, dict[str, object]] = {"bdist_wheel": {"py_limited_api": "cp311"}}
for kind in ("PORTABLE", "SANITIZE"):
    if os.environ.get(f"LAYERSTORE_{kind}") == "1":
        # Objects of another kind of build are up to date by their times alone: not to be mixed.
        options["build"] = {"build_base": f"build/{kind.lower()}-build"}
        options["build_ext"] = {"force": True}

setup(cffi_modules=["layerstore/core/_build.py:ffi"], options=options)
