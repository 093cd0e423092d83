"""What people type for durations, sizes and digests, as numbers and checked text.

Each function raises argparse.ArgumentTypeError with a sentence that names the accepted forms.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhdw])+")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?b)?", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_LONGEST = 100 * 365 * 86400.0  # a hundred years: more is a slip of the hand


def duration(text: str) -> float:
    """Seconds of `30s`, `10m`, `1h`, `2d`, `1w`, `1h30m`, or a plain number of seconds."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    elif _DURATION.fullmatch(text):
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in _PART.findall(text))
    else:
        raise ArgumentTypeError(f"{text!r} is no duration (write 30s, 10m, 1h, 2d or 1h30m)")
    if not math.isfinite(seconds) or seconds > _LONGEST:
        raise ArgumentTypeError(f"{text!r} is longer than a hundred years")
    return seconds


def positive_duration(text: str) -> float:
    """A `duration` above zero."""
    seconds = duration(text)
    if seconds <= 0:
        raise ArgumentTypeError(f"{text!r} is no time at all; it must be more than zero")
    return seconds


def size(text: str) -> int:
    """Bytes of `10G`, `512M`, `1.5GiB` (powers of 1024), `10GB` (powers of 1000) or a number."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ArgumentTypeError(f"{text!r} is no size (write 10G, 512M, 1.5GiB, 10GB or bytes)")
    number, unit, suffix = found[1], found[2].lower(), (found[3] or "").lower()
    if not unit and suffix == "ib":
        raise ArgumentTypeError(f"{text!r} is no size (write 10G, 512M, 1.5GiB, 10GB or bytes)")
    factor = (1000 if suffix == "b" else 1024) ** _POWER[unit]
    value = int(number) * factor if number.isdigit() else int(float(number) * factor)
    if value >= 1 << 63:
        raise ArgumentTypeError(f"{text!r} is more than any store can hold")
    return value


def share(text: str) -> float:
    """A share from `2%`, `0.5%` or a plain number of percent: 0 to 100."""
    number = text.strip().removesuffix("%").strip()
    if not _NUMBER.fullmatch(number) or float(number) > 100:
        raise ArgumentTypeError(f"{text!r} is no share (write 2%, 0.5% or 2)")
    return float(number) / 100


def directory(text: str) -> str:
    """A directory's name; an empty one is a variable that was never set, not the current directory."""
    if not text:
        raise ArgumentTypeError("an empty name is no directory")
    return text


def layer_number(text: str) -> int:
    """The number of a layer, counted from 0 (the lowest)."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise ArgumentTypeError(f"{text!r} is no layer number (0 is the lowest layer)")
    return int(text)


def workers(text: str) -> int:
    """A number of processes, from 1 to 256."""
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= 256:
        raise ArgumentTypeError(f"{text!r} is no number of processes (1 to 256)")
    return int(text)


def digest(text: str) -> str:
    """A whole digest, `algorithm:hex`; whether the algorithm is known is the store's to say."""
    if not _DIGEST.fullmatch(text):
        raise ArgumentTypeError(
            f"{text!r} is no digest (write it whole, as in sha256:… with all its digits)"
        )
    return text


def id_map(text: str) -> tuple[tuple[int, int, int], ...]:
    """`INSIDE:OUTSIDE:COUNT`, several with commas: ids of layers to ids of the system."""
    out = []
    for part in text.split(","):
        words = part.split(":")
        if len(words) != 3 or not all(w.isascii() and w.isdigit() for w in words):
            raise ArgumentTypeError(f"{part!r} is no map of ids (write INSIDE:OUTSIDE:COUNT)")
        inside, outside, count = map(int, words)
        if not count or max(inside, outside) + count > 0xFFFFFFFF:
            raise ArgumentTypeError(f"{part!r} has ids that do not exist, or none")
        out.append((inside, outside, count))
    return tuple(out)


def command(text: str) -> list[str]:
    """Words as a shell would split them, or a JSON list of strings; empty for none."""
    import json
    import shlex

    try:
        words = json.loads(text) if text.lstrip().startswith("[") else shlex.split(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no command: {error}") from error
    if not all(isinstance(word, str) for word in words):
        raise ArgumentTypeError(f"{text!r} is no JSON list of strings")
    return list(words)


def pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
