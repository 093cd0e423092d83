"""What comes out: figures in one JSON file, section by section, and a Markdown table of all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERSIONS = {
    "restic": ["restic", "version"],
    "casync": ["casync", "--version"],
    "borg": ["borg", "--version"],
    "skopeo": ["skopeo", "--version"],
    "umoci": ["umoci", "--version"],
}


@dataclass(frozen=True)
class Figure:
    """One measured thing. `bound` is what it must not pass (`at_least`: what it must reach)."""

    name: str
    value: float
    unit: str = "ratio"
    bound: float | None = None
    at_least: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    def ok(self) -> bool | None:
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = {}
    for name, command in VERSIONS.items():
        if shutil.which(name):
            out = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]
            versions[name] = out.strip()
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "peers": versions,
    }


def save(path: Path, section: str, figures: list[Figure]) -> None:
    """Replaces one section of the results; the others stay as they are."""
    results: dict[str, Any] = {"sections": {}}
    if path.exists():
        results = json.loads(path.read_text())
    results["machine"] = machine()
    results["sections"][section] = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
        "figures": [{**asdict(figure), "ok": figure.ok()} for figure in figures],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(results))


def _number(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:.1f} MB"
    if unit == "MiB":
        return f"{value:.0f} MiB"
    if unit == "s":
        return f"{value:.3f} s"
    if unit in ("blobs", "images", "layers"):
        return f"{value:.0f} {unit}"
    if unit == "a second":
        return f"{value:.0f} a second"
    if unit in ("GB/s", "M/s"):
        return f"{value:.2f} {unit}"
    if unit == "%":
        return f"{value:.2f} %"
    return f"{value:.2f}"


def _detail(detail: dict[str, Any]) -> str:
    words = []
    for key, value in detail.items():
        if isinstance(value, float):
            words.append(f"{key} {value:.2f}")
        elif isinstance(value, int) and value > 100_000:
            words.append(f"{key} {value / 1e6:.1f} MB")
        else:
            words.append(f"{key} {value}")
    return ", ".join(words)


def _target(figure: dict[str, Any]) -> str:
    if figure["bound"] is None:
        return ""
    word = "at least" if figure["at_least"] else "at most"
    mark = "" if figure["ok"] else " **missed**"
    return f"{word} {_number(figure['bound'], figure['unit'])}{mark}"


def line(figure: Figure) -> str:
    """One figure in a line of text."""
    f = {**asdict(figure), "ok": figure.ok()}
    return f"{f['name']}: {_number(f['value'], f['unit'])}  {_target(f)}  ({_detail(f['detail'])})"


def markdown(results: dict[str, Any]) -> str:
    """The table that people read."""
    m = results["machine"]
    lines = [
        "# Figures",
        "",
        f"{m['cpus']} x {m['cpu']}, Linux {m['kernel']}, Python {m['python']}. "
        + "; ".join(m["peers"].values()),
        "",
        "Times are medians of runs in turn, in seconds of wall clock, page cache warm.",
        "",
        "| section | figure | measured | target | detail |",
        "|---|---|---|---|---|",
    ]
    for section, part in sorted(results["sections"].items()):
        for f in part["figures"]:
            value = _number(f["value"], f["unit"])
            lines.append(
                f"| {section} | {f['name']} | {value} | {_target(f)} | {_detail(f['detail'])} |"
            )
    return "\n".join(lines) + "\n"
