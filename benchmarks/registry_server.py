"""A registry that runs for a benchmark: ours or another, on a port of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import tree
from benchmarks.setting import Setting

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """One registry, running on an address."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reference(self, tag: str) -> str:
        return f"docker://127.0.0.1:{self.port}/bench/{tag}:1"

    def cpu(self) -> float:
        """Seconds of CPU that its processes have used, and those that ended."""
        total = 0.0
        for pid in tree(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15])) / TICKS
        return total


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ours(s: Setting, directory: Path, port: int, *options: str) -> list[str]:
    """Our command; `options` of the store, or behind `serve`, of the server."""
    at = options.index("serve") if "serve" in options else len(options)
    words = s.ours(directory, *options[:at], "serve", "--listen", f"127.0.0.1:{port}")
    return [str(word) for word in (*words, *options[at + 1 :])]


@contextlib.contextmanager
def serving(command: Sequence[str], port: int, cores: set[int] | None = None) -> Iterator[Server]:
    """Runs a registry until the block ends; it must end well. `cores`: the ones that it may use."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
    )
    server = Server(process, port)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{server.url}/v2/", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
