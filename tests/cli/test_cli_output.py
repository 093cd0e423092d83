"""What reaches a terminal: aligned, human, in RFC 3339, and never obeyed."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore.cli.output import Output, human, human_seconds, printable, rfc3339


@given(st.text(st.characters(), max_size=50))
def test_hostile_names_never_control_a_terminal(text):
    shown = printable(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode()  # and can be written as UTF-8


def test_escapes_say_what_was_there():
    assert printable("a\x1b[1mb\nc") == "a\\x1b[1mb\\x0ac"
    assert printable(b"\xff".decode("utf-8", "surrogateescape")) == "\\xff"
    assert printable("\u202egnp.exe") == "\\u202egnp.exe"
    assert printable("a\nb\r", newline=True) == "a\nb\\x0d"
    assert printable("grün 日本 \\x") == "grün 日本 \\x"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10 * 1024, "10 KiB"),
        (1023 * 1024, "1.0 MiB"),
        (432_000_000, "412 MiB"),
        (1 << 40, "1.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_human_sizes(size, text):
    assert human(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (59.4, "59 s"), (59.6, "1m00s"), (200, "3m20s"),
     (7500, "2h05m"), (273_600, "3d04h")],
)  # fmt: skip
def test_human_times(seconds, text):
    assert human_seconds(seconds) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_mtime_is_a_time_or_says_its_seconds(seconds):
    text = rfc3339(seconds)
    if text.startswith("@"):
        assert abs(float(text[1:])) > 2e10
    else:
        back = datetime.datetime.fromisoformat(text).timestamp()
        assert abs(back - seconds) < 1e-5 * max(1, abs(seconds) * 1e-9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1704164645.25, "2024-01-02T03:04:05.25Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (-62135596800, "0001-01-01T00:00:00Z"),
        (253402300800, "@253402300800"),
    ],
)
def test_times_are_rfc3339(seconds, text):
    assert rfc3339(seconds) == text


def test_tables_align(capsys):
    Output().table(("NAME", "SIZE"), [("a", "9 B"), ("long\x07", "1023 B")], right="SIZE")
    assert capsys.readouterr().out.splitlines() == [
        "NAME        SIZE",
        "a            9 B",
        "long\\x07  1023 B",
    ]


def test_a_table_of_nothing_still_says_what_it_would_show(capsys):
    Output().table(("NAME", "SIZE"), [])
    assert capsys.readouterr().out == "NAME  SIZE\n"
