"""From the table of verbs to argparse: parsers, help and usage errors.

Global options may stand before or after the verb, options and arguments of a verb in any order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .verbs import VERBS
from .words import GLOBAL, Argument, Verb

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class UsageError(Exception):
    """Wrong usage, with the usage line that would help."""

    def __init__(self, message: str, program: str, usage: str) -> None:
        super().__init__(message)
        self.program = program
        self.usage = usage


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as a page, with room for our longest option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=96)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions, whose examples are read when help is asked for, and
    that takes options and arguments of a verb in any order.

    argparse gives each run of arguments to as many positionals as it satisfies, so that in
    `ls NAME --layer 1 PATH` nothing would be left to take PATH; options first, then all arguments,
    is the order that it understands."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog, self.format_usage())

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        # argparse's own swallows errors of writing.
        (file or sys.stdout).write(self.format_help())

    def format_help(self) -> str:
        from .examples import examples_of

        return super().format_help() + examples_of(self.prog)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        if self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        found, extra = super().parse_known_args(self._sorted(args or ()), namespace)
        if extra:
            self.error(f"unrecognized arguments: {' '.join(extra)}")
        return found, []

    def _sorted(self, args: Sequence[str]) -> list[str]:
        options: list[str] = []
        words: list[str] = []
        rest = iter(args)
        for arg in rest:
            if arg == "--":
                words.extend(rest)
            elif not arg.startswith("-") or arg == "-":
                words.append(arg)
            else:
                options.append(arg)
                action = self._option_string_actions.get(arg)
                if action is not None and action.nargs is None:
                    options.extend(value for value in [next(rest, None)] if value is not None)
        dashed = any(word.startswith("-") and word != "-" for word in words)
        return [*options, "--", *words] if dashed else options + words


def build() -> argparse.ArgumentParser:
    """The parser of the whole command line. The namespace that it makes has `room` and `run`."""
    parser = _Parser(
        prog="layerstore",
        usage="layerstore [--store DIR] [--json] [--progress auto|plain|none] [--timeout SECONDS] "
        "[-v|-q] VERB ...",
        description="Keeps container images, every content once, and gives back the same bytes.",
    )
    for argument in GLOBAL:
        _add(parser, argument)
    _add_verbs(parser, VERBS)
    return parser


def _add_verbs(parser: argparse.ArgumentParser, verbs: tuple[Verb, ...]) -> None:
    group = parser.add_subparsers(
        metavar="VERB", title="verbs", required=True, prog=parser.prog, dest="verb"
    )
    for verb in verbs:
        description = verb.description or f"{verb.help[0].upper()}{verb.help[1:]}."
        made = group.add_parser(verb.name, help=verb.help, description=description)
        for argument in verb.arguments:
            _add(made, argument)
        if verb.verbs:
            _add_verbs(made, verb.verbs)
        else:
            made.set_defaults(room=verb.room, run=verb.run)
        common = made.add_argument_group("options of every verb")
        for argument in GLOBAL:
            _add(common, argument, inherited=True)


def _add(to: argparse._ActionsContainer, argument: Argument, *, inherited: bool = False) -> None:
    options: dict[str, Any] = {"help": argument.help}
    if argument.flag:
        options["action"] = "store_true"
    else:
        for key in ("nargs", "metavar", "type", "default"):
            if (value := getattr(argument, key)) is not None:
                options[key] = value
        if argument.repeat:
            options["action"] = "append"
        if argument.choices:
            options["choices"] = argument.choices
    if inherited:  # not given after the verb must not undo what was given before it
        options["default"] = argparse.SUPPRESS
    to.add_argument(*argument.names, **options)
