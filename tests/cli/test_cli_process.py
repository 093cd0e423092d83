"""The command as a process: how fast it starts, and how it ends when somebody wants it to.

Signals, closed pipes and full disks meet a command whose store is `FakeStore`, slowed down.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "layerstore"]

PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
import layerstore
from fake_store import FakeStore
from layerstore.cli import main

class Slow(FakeStore):
    def close(self):
        time.sleep(CLOSING)
        sys.stderr.write("closed\\n")

def gc(dry_run, progress, **options):
    sys.stderr.write("ready\\n")
    for step in range(STEPS):
        progress(layerstore.Progress("gc", step << 20, STEPS << 20))
        time.sleep(0.05)
    return layerstore.GCReport(dry_run, 0, 0, 0, 0, 0.0)

def blobs():
    while True:
        yield from FakeStore().blobs()

def entries(*args, **options):
    yield from FakeStore()._entries()
    raise layerstore.CorruptError("bad block")

hooks = {"gc": gc, "blobs": blobs}
sys.exit(main(open_store=Slow(**hooks).open))
"""


def program(steps: int = 200, closing: float = 0.0) -> list[str]:
    text = PROGRAM.replace("STEPS", str(steps)).replace("CLOSING", str(closing))
    return [sys.executable, "-c", text, str(HERE)]


def until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line == "ready\n":
            return
    raise AssertionError("it never began")


@pytest.fixture
def start():
    running: list[subprocess.Popen[str]] = []

    def start(*args: str, **options) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*program(**options), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TERM": "xterm"},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_with_130(number, start):
    process = start("gc")
    until_ready(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert out == ""
    assert err == "closed\nlayerstore: interrupted: what was reported done stays\n"


def test_a_signal_with_json_is_an_error_document(start):
    process = start("--json", "gc")
    until_ready(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert json.loads(err.splitlines()[-1])["error"]["kind"] == "interrupted"


def test_signals_that_come_together_are_one(start):
    process = start("gc", closing=0.6)
    until_ready(process)
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "closed\n" in err
    assert "Traceback" not in err


def test_a_later_second_signal_ends_at_once(start):
    process = start("gc", closing=30.0)
    until_ready(process)
    process.send_signal(signal.SIGINT)
    time.sleep(1.3)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert time.monotonic() - begin < 5
    assert process.returncode == 130
    assert "closed" not in err


def test_nohup_is_respected():
    """A background job of a plain shell has SIGINT ignored, and it stays so."""
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *program(steps=10), "gc"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_ready(process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "freed" in out


def test_a_reader_that_had_enough_is_no_failure():
    for verb in ("blob ls", "--json blob ls"):
        process = subprocess.run(
            [
                "bash",
                "-c",
                '"$@" | head -n 3; exit ${PIPESTATUS[0]}',
                "bash",
                *program(),
                *verb.split(),
            ],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert process.returncode == 0
        assert process.stdout.count("\n") == 3
        assert process.stderr == "closed\n"


def test_a_reader_that_is_gone_before_we_write():
    process = subprocess.run(
        ["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "bash", *COMMAND, "--help"],
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("args", [["version"], ["--json", "version"], ["--help"]])
def test_results_that_cannot_be_written_are_a_failure(args):
    with open("/dev/full", "wb") as full:
        process = subprocess.run([*COMMAND, *args], stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 6
    assert "No space left on device" in process.stderr
    assert "Traceback" not in process.stderr


def test_closed_standard_streams_do_not_matter():
    for redirect in ("2>&-", "<&-", ">&- 2>&-"):
        process = subprocess.run(["sh", "-c", f'"$@" {redirect}', "sh", *COMMAND, "version"])
        assert process.returncode == 0


def test_a_latin1_locale_prints_what_it_cannot_encode():
    process = subprocess.run(
        [*program(), "ls", "app:1"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert process.returncode == 0


# Start


HEAVY = {"lmdb", "zstandard", "cffi", "blake3", "isal", "hashlib", "dataclasses", "asyncio", "json"}


@pytest.mark.parametrize("args", [["--help"], ["import", "--help"], ["blob"], ["frobnicate"]])
def test_help_imports_nothing_heavy(args):
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "layerstore", *args],
        capture_output=True,
        text=True,
    )
    imported = {
        line.rpartition("|")[2].strip().split(".")[0]
        for line in process.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "argparse" in imported
    assert not imported & HEAVY


# Progress, for real


def on_a_terminal(*args: str, term: str = "xterm", **variables: str) -> tuple[str, int]:
    """What a command writes to a terminal (both streams), and its exit status."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        args,
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": term, "COLUMNS": "200", **variables},
    )
    os.close(follower)
    text = b""
    while True:
        select.select([leader], [], [], 10)
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        if not data:
            break
        text += data
    os.close(leader)
    return text.decode(), process.wait(timeout=10)


def test_a_terminal_gets_a_line_that_goes_away_before_the_result():
    text, code = on_a_terminal(*program(steps=30), "gc")
    assert code == 0
    assert "MiB of 30 MiB" in text
    assert "left\x1b[K" in text
    assert text[text.rindex("\x1b[K") :].startswith("\x1b[Kfreed 0 B")


def test_no_terminal_no_progress_and_plain_when_asked(start):
    process = start("gc", steps=20)
    assert process.communicate(timeout=10)[1] == "ready\nclosed\n"
    process = start("gc", "--progress", "plain", steps=70)
    err = process.communicate(timeout=10)[1]
    assert "\x1b" not in err
    assert any(line.startswith("gc: ") and "/s" in line for line in err.splitlines())


def test_colours_are_for_terminals_and_no_color_is_honoured():
    assert "\x1b[31m" in on_a_terminal(*COMMAND, "frobnicate", NO_COLOR="")[0]
    assert "\x1b" not in on_a_terminal(*COMMAND, "frobnicate", NO_COLOR="1")[0]
    assert "\x1b" not in on_a_terminal(*COMMAND, "frobnicate", term="dumb", NO_COLOR="")[0]
