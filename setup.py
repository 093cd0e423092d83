"""Builds the extension: the C machines of csrc/ behind cffi (API mode, limited API, one abi3 wheel).

`LAYERSTORE_PORTABLE=1` leaves every SIMD path out; `LAYERSTORE_SANITIZE=1` builds with ASan and UBSan.
"""

from setuptools import setup

setup(
    cffi_modules=["layerstore/core/_build.py:ffi"],
    # One wheel for every CPython from 3.11 on: the extension keeps to the limited API.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
