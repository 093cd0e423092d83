"""From arguments to exit status: parse, run the verb, say what went wrong.

The one place that catches. Whatever a verb raises ends here as one message on stderr (a JSON document
with `--json`) and one of the exit statuses of `exits`; a traceback only with `-v`, and only for what
is a fault of ours.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import exits, signals
from .output import Output, ReaderGone
from .parser import UsageError, build


def run(argv: Sequence[str] | None, open_store: Callable[..., Any] | None) -> int:
    """The exit status of one command; never raises for what the command did."""
    _complete_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    guard = signals.Guard(owns_process=argv is None)
    output = Output(json=wants_json(words))
    try:
        with guard:
            code = _verb(words, output, guard, open_store)
            output.flush()
    except BaseException as error:
        code = _failed(error, output)
    if guard.asked and argv is None:
        # A thread that was being started when the signal came is known to nobody who would wait for
        # it, and CPython aborts when one begins while the interpreter ends. All is said and closed.
        sys.stderr.flush()
        os._exit(code)
    return code


def _complete_streams() -> None:
    """Opens standard streams that the caller had closed (`>&-`), on /dev/null: otherwise the next
    file opened, perhaps one of the store's, would be taken for them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


def wants_json(words: Sequence[str]) -> bool:
    """Whether `--json` is there, for errors that come before the arguments are understood."""
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


def _verb(
    words: list[str],
    output: Output,
    guard: signals.Guard,
    open_store: Callable[..., Any] | None,
) -> int:
    try:
        args = build().parse_args(words)
    except BrokenPipeError as error:  # --help | head -n 1
        raise ReaderGone from error
    output.json, output.quiet, output.verbose = args.json, args.quiet, args.verbose
    from .context import Context, SamePid

    # Only names of our own rooms get here: `parser` writes them.
    handler = getattr(importlib.import_module(f".{args.room}", __package__), args.run)
    context = Context(args, output, guard, open_store)

    def attempt() -> int:
        try:
            code = int(handler(context) or 0)
        except BaseException:
            try:
                context.close()
            except Exception as second:  # must not hide what went wrong first
                output.note(f"closing the store failed, too: {second}")
            raise
        context.close()
        return code

    try:
        return attempt()
    except SamePid as busy:
        from . import pidspace

        output.note(f"{busy}; going on in a child process with another pid", verbose=True)
        return pidspace.run_in_child(lambda: _in_child(attempt, output), busy.error)


def _in_child(attempt: Callable[[], int], output: Output) -> int:
    """The verb in a child; SamePid goes up, everything else becomes an exit status."""
    from .context import SamePid

    try:
        code = attempt()
        output.flush()
        return code
    except SamePid:
        raise
    except BaseException as error:
        return _failed(error, output)


def _failed(error: BaseException, output: Output) -> int:
    """Says what went wrong; the exit status."""
    if isinstance(error, SystemExit):  # argparse after --help; everything else says `return`
        return _flushed(output, exits.code_of_exit(error))
    if isinstance(error, ReaderGone):
        _drop_stdout()
        return exits.DONE
    if isinstance(error, UsageError):
        output.usage_error(error)
        return exits.USAGE
    failure = exits.describe(error)
    if failure.kind == "internal" and output.verbose:
        import traceback

        output.say("".join(traceback.format_exception(error)).rstrip())
    output.error(failure)
    # What a verb has printed before it failed stays printed; but the first failure decides.
    _flushed(output, failure.code)
    return failure.code


def _flushed(output: Output, code: int) -> int:
    try:
        output.flush()
    except ReaderGone:
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        if code == exits.DONE:
            failure = exits.describe(error)
            output.error(failure)
            return failure.code
    return code


def _drop_stdout() -> None:
    """Lets Python's own flush at exit succeed, when nobody reads our stdout any more."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):  # stdout is no file here, so nothing is left to flush to it
        return
