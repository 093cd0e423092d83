"""Names, digest prefixes and transports, as a user types them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.errors import InvalidInputError, LayerstoreError, UnsupportedError
from layerstore.oci import naming, references, transports
from layerstore.oci.sources import Root
from layerstore.values import Descriptor


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("app", "app:latest"),
        ("app:1.2", "app:1.2"),
        ("localhost/app:1.2", "localhost/app:1.2"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
        ("docker.io/library/x_y__z--w.v:T-1_.", "docker.io/library/x_y__z--w.v:T-1_."),
        ("Capital", "Capital:latest"),
    ],
)
def test_names_are_kept_literally(text: str, full: str) -> None:
    assert references.full_name(text) == full


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":a", "a:", "/a", "a/", "a//b", "../a", "a/../b", "a b", "a\n", "a:b\n", "a\0"),
        *("-a", "a:b:c", "a@sha256:00", "a" * 300, "a:" + "b" * 129, "é", "_a"),
        "a@sha256:" + "0" * 64,
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        references.full_name(text)


@given(st.text(alphabet="aA0._-/:@ é[]", max_size=40))
def test_any_text_is_a_name_or_a_typed_error(text: str) -> None:
    try:
        full = references.full_name(text)
    except InvalidInputError:
        return
    assert references.full_name(full) == full
    assert full.startswith(text)


def test_digest_prefixes() -> None:
    assert references.digest_prefix("deadbeef") == (None, "deadbeef")
    assert references.digest_prefix("sha512:deadbeef") == ("sha512", "deadbeef")
    for text in ("deadbee", "DEADBEEF", "md5:deadbeef", "xyzxyzxyz"):
        assert references.digest_prefix(text) is None


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("oci:dir", ("oci", "dir", None, None)),
        ("oci:/a/b:v1", ("oci", "/a/b", "v1", None)),
        ("oci:dir:localhost:5000/a:b", ("oci", "dir", "localhost:5000/a:b", None)),
        ("oci:dir@2", ("oci", "dir", None, 2)),
        ("oci:dir:@2", ("oci", "dir", None, 2)),
        ("oci-archive:-", ("oci-archive", "-", None, None)),
        ("docker-archive:x.tar:app:1", ("docker-archive", "x.tar", "app:1", None)),
    ],
)
def test_transports(text: str, want: tuple[object, ...]) -> None:
    found = transports.parse(text)
    assert (found.kind, found.path, found.selector, found.position) == want


@pytest.mark.parametrize("text", ["", "dir", "oci", "oci:", "tar:x", "oci:d:", "oci:-", "oci:a\0b"])
def test_what_is_no_transport_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        transports.parse(text)


def test_a_transport_to_come_is_named() -> None:
    with pytest.raises(UnsupportedError, match="oci:DIR"):
        transports.parse("layerstore:dir")


@pytest.mark.parametrize(
    ("text", "name", "tag", "digest"),
    [
        ("docker://h.lan/app", "h.lan/app", None, None),
        ("docker://H.lan/a/b:T_1", "h.lan/a/b", "T_1", None),
        ("docker://localhost/app:1", "localhost/app", "1", None),
        ("docker://localhost:5000/app", "localhost:5000/app", None, None),
        ("docker://[::1]:5000/a", "[::1]:5000/a", None, None),
        ("docker://docker.io/debian", "docker.io/library/debian", None, None),
        ("docker://index.docker.io/a/b:c", "docker.io/a/b", "c", None),
        (f"docker://h.lan/a@sha256:{'0' * 64}", "h.lan/a", None, "sha256:" + "0" * 64),
        (f"docker://h.lan/a:1@sha256:{'0' * 64}", "h.lan/a", "1", "sha256:" + "0" * 64),
    ],
)
def test_places_in_registries(text: str, name: str, tag: str | None, digest: str | None) -> None:
    place = transports.parse(text).place
    assert place is not None
    assert (place.name, place.tag, place.digest) == (name, tag, digest)
    assert transports.parse(str(place)).place == place


@pytest.mark.parametrize(
    "text",
    [
        # No registry is guessed: debian is on no server until one is named.
        *("docker://debian", "docker://library/debian:12", "docker:debian", "docker://"),
        *("docker://h.lan", "docker://h.lan/", "docker://h.lan/A", "docker://h.lan/a:"),
        *(
            "docker://h.lan/a@1",
            "docker://h.lan/../a",
            "docker://u:p@h.lan/a",
            "docker://h.lan/a?b",
        ),
        *("docker://h.lan:x/a", "docker:///a", "docker://h_.lan/a", f"docker://h.lan/{'a' * 256}"),
    ],
)
def test_what_is_no_place_in_a_registry_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        transports.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_transport_or_a_typed_error(text: str) -> None:
    with contextlib.suppress(LayerstoreError):
        transports.parse(text)


def root(n: int, tag: str | None = None, *full: str) -> Root:
    return Root(Descriptor(f"sha256:{n:064x}", 1), tag, full)


def test_one_image_is_named_by_wish_then_full_name_then_tag() -> None:
    both = root(1, "v1", "docker.io/library/app:v1")
    assert list(naming.single([both], "x", "it")) == ["x:latest"]
    assert list(naming.single([both], None, "it")) == ["docker.io/library/app:v1"]
    assert list(naming.single([root(1, "v1")], None, "it")) == ["v1:latest"]
    for nameless in (root(1), root(1, "-"), root(1, None, "app@sha256:" + "0" * 64)):
        with pytest.raises(InvalidInputError, match="NAME"):
            naming.single([nameless], None, "it")


def test_many_images_are_named_under_a_prefix() -> None:
    roots = [root(1, "v1"), root(2, "v2", "app:v2"), root(3), root(4, "m/app:3", "m/app:3")]
    digest = roots[2].descriptor.digest
    plain = naming.several(roots, "m", "it")
    assert list(plain) == ["m:v1", "m:v2", f"m@{digest}", "m:3"]
    slash = naming.several(roots, "m/", "it")
    assert list(slash) == ["m/v1:latest", "m/v2:latest", f"m@{digest}", "m/app:3"]
    assert list(naming.several(roots[:2], None, "it")) == ["v1:latest", "app:v2"]
    with pytest.raises(InvalidInputError, match="without a tag"):
        naming.several(roots, None, "it")


def test_two_images_of_one_name_are_refused_rather_than_lost() -> None:
    with pytest.raises(InvalidInputError, match="both"):
        naming.several([root(1, "a", "x/app:1"), root(2, "b", "x/app:1")], None, "it")
    named = naming.several([root(1, "1", "x:1"), root(2, "1", "y:1")], "m/", "it")
    assert list(named) == ["m/x:1", "m/y:1"]


@pytest.mark.parametrize("wish", ["app:1", "a b", "app@sha256:" + "0" * 64, "/"])
def test_a_prefix_that_is_none_is_refused_first(wish: str) -> None:
    with pytest.raises(InvalidInputError):
        naming.check_wish(wish, True)
