"""Documents from outside: what is taken, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import oci_make as make
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore import mediatypes
from layerstore.errors import InvalidInputError, LayerstoreError, LimitError, UnsupportedError
from layerstore.oci import jsonio, model

HEX = "ab" * 32
DESC = {"mediaType": "application/x", "digest": f"sha256:{HEX}", "size": 3}
MANIFEST = {"schemaVersion": 2, "mediaType": mediatypes.OCI_MANIFEST, "config": DESC, "layers": []}


def parse(value: Any, media_type: str = "") -> model.Document:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return model.parse_document(data, media_type, None)


def test_a_manifest_and_an_index_are_read() -> None:
    image = make.image(salt="x")
    found = parse(image.data, image.media_type)
    assert isinstance(found, model.Manifest)
    assert found.is_image
    assert [d.digest for d in found.children()] == list(image.blobs)
    both = make.index((image, make.platform("amd64")), (image, make.platform("arm64")))
    listed = parse(both.data)
    assert isinstance(listed, model.Index)
    assert [model.platform_of(d) for d in listed.manifests] == ["linux/amd64", "linux/arm64"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff{}",
        b"\xef\xbb\xbf{}",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"' + b"\\" * 3 + b'"}',
        b"[" * 100_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"a":"' + b"[" * 200,
    ],
)
def test_what_is_no_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        jsonio.parse(data, "it")


def test_brackets_in_strings_are_no_depth() -> None:
    text = '[{"\\"' * 300
    assert jsonio.parse(json.dumps({"a": text}).encode(), "it") == {"a": text}


def test_a_large_manifest_is_refused_by_its_size() -> None:
    with pytest.raises(LimitError):
        jsonio.parse(b" " * (jsonio.MAX_MANIFEST + 1), "it")


@pytest.mark.parametrize(
    ("value", "media_type"),
    [
        ({**MANIFEST, "manifests": [DESC]}, ""),
        ({**MANIFEST, "manifests": []}, mediatypes.OCI_MANIFEST),
        ({"schemaVersion": 2, "manifests": [], "config": DESC}, mediatypes.OCI_INDEX),
        ({**MANIFEST, "Layers": []}, ""),
        ({**MANIFEST, "MANIFESTS": [DESC]}, ""),
        (MANIFEST, mediatypes.DOCKER_MANIFEST),
        (MANIFEST, mediatypes.OCI_INDEX),
        ({**MANIFEST, "schemaVersion": 3}, ""),
        ({**MANIFEST, "config": None}, ""),
        ({**MANIFEST, "config": []}, ""),
        ({**MANIFEST, "layers": {}}, ""),
        ({**MANIFEST, "layers": [1]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "size": -1}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "size": True}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "size": 1.5}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "size": 1 << 70}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "digest": "../../etc/passwd"}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "digest": "sha256:" + "AB" * 32}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "digest": "md5:" + "ab" * 16}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "digest": f"sha256:{HEX}\n"}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "digest": f"sha256:{HEX[:-1]}\n"}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "data": "!!"}]}, ""),
        ({**MANIFEST, "layers": [{**DESC, "data": "e30="}]}, ""),
        ({**MANIFEST, "annotations": {"a": 1}}, ""),
        ({**MANIFEST, "subject": "x"}, ""),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(value: Any, media_type: str) -> None:
    with pytest.raises(InvalidInputError):
        parse(value, media_type)


def test_schema_1_is_named_as_such() -> None:
    with pytest.raises(UnsupportedError, match="schema 1"):
        parse({"schemaVersion": 1, "fsLayers": []})


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(DESC),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
    max_leaves=8,
)
KEYS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations"]


@given(st.dictionaries(st.sampled_from(KEYS), ODD), st.sampled_from([2, 2, 1, None]))
def test_any_json_gives_a_document_or_a_typed_error(value: dict[str, Any], version: Any) -> None:
    try:
        parse({"schemaVersion": version, **value})
        model.parse_config(json.dumps(value).encode())
    except LayerstoreError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_a_typed_error(data: bytes) -> None:
    for read in (parse, model.parse_config, lambda d: model.parse_layout_index(d, "it")):
        with contextlib.suppress(LayerstoreError):
            read(data)  # type: ignore[operator]
