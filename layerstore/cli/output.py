"""What goes to stdout and stderr: results there, everything else here.

Tables, human sizes, times, and the one JSON document of a verb. Names out of images are hostile:
control characters never reach a terminal (they appear as `\\x1b`), and bytes that are no UTF-8 appear
as `\\xff`. JSON carries both unharmed (as escapes; `surrogateescape` for the bytes).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exits import Failure
    from .parser import UsageError

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_BATCH = (
    1 << 16
)  # characters gathered before a write: one system call per line costs a second in 10^6


class ReaderGone(Exception):
    """Whoever read our stdout has closed it (`| head`)."""


class Output:
    """The two streams of one command."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        self._results_to_stderr = False
        self.before_message: Callable[[], None] | None = None  # clears a progress line
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")

    # stdout

    def results_to_stderr(self) -> None:
        """For verbs that were told to write content to stdout: nothing else may go there."""
        self._results_to_stderr = True

    def write(self, text: str) -> None:
        """Text to stdout, as it is."""
        try:
            (sys.stderr if self._results_to_stderr else sys.stdout).write(text)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def line(self, text: str) -> None:
        """One line to stdout."""
        self.write(printable(text) + "\n")

    def bytes(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Content to stdout, byte for byte. An error of whoever makes the chunks passes through."""
        stream = sys.stdout.buffer
        for chunk in chunks:
            try:
                stream.write(chunk)
            except BrokenPipeError as error:
                raise ReaderGone from error
        self.flush()

    def flush(self) -> None:
        """Everything written is handed to the system, or the error of doing so comes now."""
        try:
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGone from error

    def document(self, value: Mapping[str, Any]) -> None:
        """The JSON document of a verb."""
        import json

        self.write(json.dumps(value, indent=2) + "\n")

    def stream(self, key: str, items: Iterable[Mapping[str, Any]]) -> None:
        """A JSON document with one list, `{key: [...]}`, written while the items come: memory stays
        flat however many there are. When one fails, the document stays unfinished."""
        import json

        encode = json.JSONEncoder().encode
        self.write(f'{{"{key}": [')
        lines = (f"{',' if n else ''}\n  {encode(item)}" for n, item in enumerate(items))
        for batch in _batches(lines):
            self.write(batch)
        self.write("\n]}\n")

    def lines(self, lines: Iterable[str]) -> None:
        """Many lines to stdout."""
        for batch in _batches(f"{printable(line)}\n" for line in lines):
            self.write(batch)

    def table(
        self, headings: Sequence[str], rows: Iterable[Sequence[str]], right: str = ""
    ) -> None:
        """Aligned columns; `right` names those headings, comma-separated, that align right."""
        all_rows = [list(map(printable, row)) for row in rows]
        widths = [max(map(len, column)) for column in zip(headings, *all_rows, strict=True)]
        to_right = [heading in right.split(",") for heading in headings]
        for row in [list(headings), *all_rows]:
            cells = (
                cell.rjust(width) if r else cell.ljust(width)
                for cell, width, r in zip(row, widths, to_right, strict=True)
            )
            self.line("  ".join(cells).rstrip())

    # stderr

    def say(self, text: str) -> None:
        """A line to stderr; when stderr is gone there is nobody to tell."""
        if self.before_message is not None:
            self.before_message()
        try:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except OSError:
            return

    def note(self, text: str, *, verbose: bool = False) -> None:
        """Something worth knowing, unless `-q`; with `verbose`, only for those who asked by `-v`."""
        if not self.quiet and (self.verbose or not verbose):
            self.say(printable(text, newline=True))

    def warning(self, text: str) -> None:
        """Something that may be wrong, unless `-q`."""
        if not self.quiet:
            self.say(_coloured("33", "warning:") + " " + printable(text, newline=True))

    def error(self, failure: Failure) -> None:
        """What went wrong: a JSON document with `--json`."""
        if self.json:
            import json

            self.say(json.dumps(failure.document()))
            return
        text = printable(failure.message, newline=True)
        if failure.digest and failure.digest not in text:
            text += f" [{printable(failure.digest)}]"
        if failure.path and printable(failure.path) not in text:
            text += f" [{printable(failure.path)}]"
        if failure.offset is not None and str(failure.offset) not in text:
            text += f" [offset {failure.offset}]"
        self.say(_coloured("31", "layerstore:") + " " + text)

    def usage_error(self, error: UsageError) -> None:
        """Wrong usage: what was wrong, and the usage line."""
        if self.json:
            import json

            self.say(json.dumps({"error": {"kind": "usage", "message": str(error)}}))
        else:
            self.say(error.usage.rstrip())
            self.say(_coloured("31", f"{error.program}:") + " " + printable(str(error)))


def _batches(pieces: Iterable[str]) -> Iterator[str]:
    gathered: list[str] = []
    length = 0
    for piece in pieces:
        gathered.append(piece)
        length += len(piece)
        if length >= _BATCH:
            yield "".join(gathered)
            gathered.clear()
            length = 0
    yield "".join(gathered)


def printable(text: str, *, newline: bool = False) -> str:
    """Text that a terminal shows and does not obey: control characters, marks that turn the
    direction of writing, and undecodable bytes as escapes."""

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        if newline and code == 0x0A:
            return "\n"
        if 0xDC80 <= code <= 0xDCFF:  # a byte that surrogateescape kept
            return f"\\x{code - 0xDC00:02x}"
        return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"

    return _UNPRINTABLE.sub(escape, text)


def human(size: int) -> str:
    """Bytes for people: `0 B`, `9.8 KiB`, `412 MiB`. Powers of 1024, three digits at most."""
    if size < 0:
        return "-" + human(-size)
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in _UNITS:
        value /= 1024
        if value < 999.5 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def human_seconds(seconds: float) -> str:
    """A time span for people: `0.4 s`, `59 s`, `3m20s`, `2h05m`, `3d04h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC, fractions to the microsecond where there are any.
    Times outside the years 1 to 9999, which RFC 3339 cannot write, come as `@seconds`."""
    from datetime import UTC, datetime, timedelta

    try:
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return f"@{seconds:.0f}"
    text = time.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")  # %Y is not padded by glibc
    return f"{text}{f'.{time.microsecond:06}'.rstrip('0') if time.microsecond else ''}Z"


def short(digest: str) -> str:
    """A digest for tables: twelve digits, more than enough to name it by."""
    return digest.partition(":")[2][:12]


def _coloured(code: str, text: str) -> str:
    """Text in a colour, on a terminal that has any and whose user did not refuse (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain or not sys.stderr.isatty() else f"\x1b[{code}m{text}\x1b[0m"
