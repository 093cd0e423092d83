"""What can be typed: global options anywhere, arguments in any order, help that ends in examples."""

from __future__ import annotations

import shlex

import pytest

from layerstore.cli.completion import _walk
from layerstore.cli.examples import EXAMPLES
from layerstore.cli.parser import UsageError, build

LEAVES = [path for path, verb in _walk() if not verb.verbs]


def parse(line: str):
    return build().parse_args(shlex.split(line))


@pytest.mark.parametrize(
    "line",
    [
        "--store S --json -q --timeout 2m --lease L --progress plain ls app",
        "ls --store S --json -q --timeout 2m --lease L --progress plain app",
        "ls app --store=S --json -q --timeout=2m --lease L --progress plain",
        "--store S --json ls app -q --timeout 120 --lease L --progress plain",
    ],
)
def test_global_options_stand_before_or_after_the_verb(line):
    args = parse(line)
    assert (args.store, args.json, args.quiet, args.timeout) == ("S", True, True, 120.0)
    assert (args.lease, args.progress, args.verbose) == ("L", "plain", False)


def test_global_options_stand_between_group_and_verb():
    args = parse("--store S blob --json ls -v")
    assert (args.store, args.json, args.verbose, args.run) == ("S", True, True, "ls")


@pytest.mark.parametrize(
    "line",
    [
        "ls app /etc --layer 1",
        "ls app --layer 1 /etc",
        "ls --layer 1 app /etc",
        "ls --layer=1 -- app /etc",
    ],
)
def test_options_and_arguments_come_in_any_order(line):
    args = parse(line)
    assert (args.name, args.path, args.layer) == ("app", "/etc", 1)


@pytest.mark.parametrize(
    "line",
    [
        "export a b oci:x --referrers",
        "export a --referrers b oci:x",
        "export a b --referrers oci:x",
    ],
)
def test_export_takes_its_names_and_then_the_transport(line):
    args = parse(line)
    assert args.words == ["a", "b", "oci:x"]
    assert args.referrers


def test_arguments_after_two_dashes_are_no_options():
    assert parse("cat app -- --layer").path == "--layer"
    assert parse("blob put -").file == "-"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "frobnicate",
        "blob",
        "ls",
        "ls a b c",
        "ls app --layer x",
        "ls app --layer",
        "ls app --unknown",
        "images --stor S",
        "--progress fast images",
        "blob cat sha256",
        "blob cat ../../etc/passwd",
        "gc --max-time 0s",
        "gc --max-repack-size lots",
        "lease create --ttl tomorrow",
        "completion tcsh",
        "lease rm",
    ],
)
def test_wrong_usage_is_said_with_the_usage_line(line):
    with pytest.raises(UsageError) as caught:
        parse(line)
    assert caught.value.usage.startswith("usage: layerstore")
    assert str(caught.value)


@pytest.mark.parametrize("path", ["", *(path for path, _ in _walk())])
def test_help_ends_in_examples_that_parse(path, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(f"{path} --help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    examples = EXAMPLES[f"layerstore {path}".strip()]
    assert examples
    assert text.index("examples:") > text.index("options:")
    for comment, command in examples:
        assert f"  {command}\n" in text
        assert not comment or f"  # {comment}\n" in text
        for words in commands(command):
            args = build().parse_args(words)
            assert args.room


def commands(line: str) -> list[list[str]]:
    """The invocations of layerstore in an example, with the shell's own parts cut off."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&<>()")
    lexer.whitespace_split = True
    found: list[list[str]] = []
    taking = False
    for token in lexer:
        if token == "layerstore":
            found.append([])
            taking = True
        elif set(token) <= set("|&<>()"):
            taking = False
        elif taking:
            found[-1].append(token)
    assert found
    return found


def test_every_verb_has_examples_and_no_example_lacks_its_verb():
    assert set(EXAMPLES) == {f"layerstore {path}".strip() for path, _ in [("", None), *_walk()]}


def test_help_says_what_an_options_value_is():
    text = build().format_help()
    for word in ("--store DIR", "LAYERSTORE_DIR", "XDG_DATA_HOME", "exit status", "130"):
        assert word in text
