"""Several containers on one store, each as process 1 of its own pid namespace (RULES 24).

First on a store that refuses pids, then the real one, in real namespaces (root is needed for those).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# A store that is open elsewhere under the pids that are taken: this process and some after it.
PROGRAM = """
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
import layerstore
from fake_store import FakeStore
from layerstore.cli import main, pidspace

pidspace.ATTEMPTS = 10
first = os.getpid()
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def open_store(path, **options):
    with os.fdopen(os.dup(log), "a") as f:
        f.write(f"{os.getpid()}\\n")
    if sum(1 for _ in open(f"/proc/self/fd/{log}")) <= TAKEN:
        error = layerstore.BusyError("open in another pid namespace under our pid")
        error.same_pid = True
        raise error

def gc(dry_run, **options):
    sys.stderr.write("ready\\n")
    time.sleep(SECONDS)
    return layerstore.GCReport(dry_run, 0, 0, 0, 0, 0.0)

def stat(digest):
    raise layerstore.NotFoundError("no such blob")

sys.exit(main(open_store=FakeStore(open=open_store, gc=gc, stat=stat).open))
"""


@pytest.fixture
def command(tmp_path):
    def command(*args: str, taken: int, seconds: float = 0) -> list[str]:
        text = PROGRAM.replace("TAKEN", str(taken)).replace("SECONDS", str(seconds))
        return [sys.executable, "-c", text, str(HERE), str(tmp_path / "log"), *args]

    return command


def pids(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().split()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_the_work_goes_on_in_a_child(command, tmp_path):
    done = run(command("images", "-q", taken=1))
    assert (done.returncode, done.stdout, done.stderr) == (0, "app:1\n", "")
    assert len(set(pids(tmp_path))) == 2


def test_children_go_on_until_a_pid_is_free(command, tmp_path):
    done = run(command("images", "-q", taken=5))
    assert (done.returncode, done.stdout) == (0, "app:1\n")
    assert len(set(pids(tmp_path))) == 6


def test_when_no_pid_is_free_it_is_busy(command, tmp_path):
    done = run(command("images", taken=1000))
    assert done.returncode == 5
    assert done.stderr.count("pid namespace") == 1
    assert len(set(pids(tmp_path))) == 11


@pytest.mark.parametrize(
    ("args", "code"),
    [(["blob", "stat", "sha256:" + "00" * 32], 4), (["check"], 3), (["gc", "--dry-run"], 0)],
)
def test_the_childs_exit_status_is_passed_on(args, code, command):
    done = run(command(*args, taken=2))
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_v_says_what_is_going_on(command):
    assert "another pid" in run(command("-v", "images", taken=1)).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_child(number, command):
    process = subprocess.Popen(
        command("gc", taken=2, seconds=60),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert (out, err) == ("", "layerstore: interrupted: what was reported done stays\n")


def test_a_child_that_is_killed_is_a_failure(command, tmp_path):
    process = subprocess.Popen(
        command("gc", taken=1, seconds=60), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    process.stderr.readline()
    os.kill(int(pids(tmp_path)[-1]), signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGKILL


def test_killing_the_command_ends_its_child(command, tmp_path):
    process = subprocess.Popen(
        command("gc", taken=1, seconds=60), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    process.stderr.readline()
    child = int(pids(tmp_path)[-1])
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists():
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
