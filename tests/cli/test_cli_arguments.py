"""Durations, sizes and digests as people type them."""

from __future__ import annotations

import contextlib
from argparse import ArgumentTypeError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.cli import arguments
from layerstore.cli.output import human


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("1h", 3600),
        ("2d", 172800),
        ("1w", 604800),
        ("90", 90),
        ("0", 0),
        ("0.5", 0.5),
        ("1h30m", 5400),
        (" 1.5h ", 5400),
    ],
)
def test_durations(text, seconds):
    assert arguments.duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1", "1y", "h1", "1 h", "1e3", "inf", "nan", "1h30", "٣", "9" * 400, "101w1d" * 99],
)
def test_no_durations(text):
    with pytest.raises(ArgumentTypeError):
        arguments.duration(text)


def test_a_ttl_of_nothing_is_refused():
    with pytest.raises(ArgumentTypeError):
        arguments.positive_duration("0s")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1234", 1234),
        ("10B", 10),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("10G", 10 << 30),
        ("10GiB", 10 << 30),
        ("10GB", 10**10),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("1 P", 1 << 50),
    ],
)
def test_sizes(text, size):
    assert arguments.size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "G", "1X", "1iB", "1e9", "1,5G", "９", "9999999P"])
def test_no_sizes(text):
    with pytest.raises(ArgumentTypeError):
        arguments.size(text)


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_usage_error(text):
    for parse in (
        arguments.duration,
        arguments.size,
        arguments.layer_number,
        arguments.digest,
    ):
        with contextlib.suppress(ArgumentTypeError):
            parse(text)


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_exact_sizes_stay_exact(size):
    assert arguments.size(str(size)) == size


@given(st.integers(min_value=0, max_value=1 << 59))
def test_human_sizes_read_back_within_their_rounding(size):
    value = arguments.size(human(size))
    assert abs(value - size) <= size * 0.051
    assert len(human(size)) <= 8
