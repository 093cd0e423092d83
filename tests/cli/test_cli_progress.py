"""Progress: nothing for quick work, at most four drawings a second, bytes, rate and time left."""

from __future__ import annotations

import io
import threading

import pytest

import layerstore
from layerstore.cli import progress as room
from layerstore.cli.progress import Meter, choose, describe

MIB = 1 << 20


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(mode: str, seconds: float, steps: int) -> str:
    """What a meter writes for work at 1 MiB/s."""
    clock, stream = Clock(), io.StringIO()
    meter = Meter(mode, stream, clock=clock)
    for step in range(steps):
        clock.now = seconds * step / steps
        done = int(clock.now * MIB)
        meter(layerstore.Progress("import", done, int(seconds * MIB)))
    meter.clear()
    return stream.getvalue()


def test_quick_work_shows_nothing():
    assert run("line", 0.49, 1000) == ""


def test_a_terminal_line_is_drawn_four_times_a_second_and_taken_away():
    text = run("line", 10, 10_000)
    drawn = text.split("\r")[1:]
    assert 36 <= len(drawn) <= 40
    assert "import: 5.2 MiB of 10 MiB (52 %), 1.0 MiB/s, 4.8 s left\x1b[K" in drawn
    assert "\n" not in text
    assert drawn[-1] == "\x1b[K"


def test_plain_is_a_line_every_few_seconds():
    lines = run("plain", 10, 10_000).splitlines()
    assert len(lines) == 3
    assert lines[0] == "import: 3.0 MiB of 10 MiB (30 %), 1.0 MiB/s, 7.0 s left"


def test_none_is_silent():
    assert run("none", 100, 100) == ""


def test_the_rate_follows_and_a_new_stage_begins_anew():
    clock, stream = Clock(), io.StringIO()
    meter = Meter("line", stream, clock=clock)
    for n in range(100):
        clock.now = n / 10
        meter(layerstore.Progress("read", n * MIB, 0))
    assert "read: 98 MiB, 10 MiB/s" in stream.getvalue()
    clock.now = 20
    meter(layerstore.Progress("write", 0, 0))
    assert stream.getvalue().endswith("\rwrite: 0 B\x1b[K")


def test_counts_of_things_are_no_sizes():
    step = layerstore.Progress("mark", 1500, 3000, "blobs")
    assert describe(step, 100.0) == "mark: 1500 of 3000 (50 %) blobs, 100/s, 15 s left"


def test_a_total_that_was_too_low_does_not_break_the_line():
    assert describe(layerstore.Progress("x", 10, 5), 1.0) == "x: 10 B of 5 B (100 %), 1 B/s"


def test_a_stop_that_did_not_get_through_is_raised_again():
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Meter("none", io.StringIO(), check=stop)(layerstore.Progress("x", 0, 0))


def test_a_closed_stderr_does_not_stop_the_work():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    clock = Clock()
    meter = Meter("plain", Gone(), clock=clock)
    for clock.now in (0.0, 5.0, 10.0):
        meter(layerstore.Progress("x", 0, 0))
    meter.clear()


def test_several_threads_may_feed_it():
    stream = io.StringIO()
    meter = Meter("line", stream)
    meter._next = 0.0
    threads = [
        threading.Thread(
            target=lambda: [meter(layerstore.Progress("x", n, 1000)) for n in range(1000)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.getvalue().startswith("\rx: ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("option", "quiet", "stream", "term", "mode"),
    [
        ("auto", False, Terminal(), "xterm", "line"),
        ("auto", False, Terminal(), "dumb", "plain"),
        ("auto", False, io.StringIO(), "xterm", "none"),
        ("auto", True, Terminal(), "xterm", "none"),
        ("plain", False, io.StringIO(), "xterm", "plain"),
        ("none", False, Terminal(), "xterm", "none"),
    ],
)
def test_auto_means_a_terminal(option, quiet, stream, term, mode, monkeypatch):
    monkeypatch.setenv("TERM", term)
    assert choose(option, quiet=quiet, stream=stream) == mode


def test_the_promised_times():
    assert room.PATIENCE == 0.5
    assert room.REDRAW == 0.25
