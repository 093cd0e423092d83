"""docs/registry.md names every key of the configuration, and no other, with its default."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path

from layerstore.oci.repository import NEAR
from layerstore.registry import config as module
from layerstore.registry.config import Config

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"
NO_KEYS = {"path"}
"""What the configuration knows without being told: where it was read from."""
LISTS = {"access.rules"}
"""Tables that may come several times: their keys are explained in the text."""


def keys(kind: type, prefix: str = "") -> dict[str, object]:
    """Every key that a configuration has, by its dotted name, with the default."""
    out: dict[str, object] = {}
    hints = typing.get_type_hints(kind, vars(module))
    for one in dataclasses.fields(kind):
        inner = hints[one.name]
        if isinstance(inner, types.UnionType):
            inner = next(a for a in typing.get_args(inner) if a is not type(None))
        name = prefix + one.name
        if name in NO_KEYS:
            continue
        if dataclasses.is_dataclass(inner) and name not in LISTS:
            out |= keys(inner, f"{name}.")
        else:
            out[name] = one.default
    return out


def written() -> dict[str, str]:
    """The rows of the page's table: each key, with what stands as its default."""
    table = PAGE.read_text().partition("## All keys")[2].partition("\n## ")[0]
    out: dict[str, str] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 3 or not cells[0].startswith("`"):
            continue
        before = ""
        for key in re.findall(r"`([^`]+)`", cells[0]):
            if key.startswith("."):  # `access.token.realm`, `.service`: the same table
                key = before.rpartition(".")[0] + key
            out[key] = cells[1].strip("`")
            before = key
    return out


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([smh]?)", text).groups()
    return float(number) * {"": 1, "s": 1, "m": 60, "h": 3600}[unit]


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", text).groups()
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def test_every_key_is_in_the_page():
    assert set(written()) == set(keys(Config))


def test_the_defaults_are_those_of_the_code():
    said = written()
    for key, default in keys(Config).items():
        text = said[key]
        if default is dataclasses.MISSING or key in LISTS or isinstance(default, tuple | frozenset):
            continue
        if default is None:
            assert text in ("", "none"), key
        elif isinstance(default, bool):
            assert text == str(default).lower(), key
        elif isinstance(default, float):
            assert seconds(text) == default, key
        elif isinstance(default, int):
            assert size(text) == default, key
        else:
            assert text == str(default), key


def test_how_far_a_mount_looks_is_said():
    page = " ".join(PAGE.read_text().split())
    assert f"A mount without `from` asks at most {NEAR} repositories" in page


def test_rules_are_explained():
    page = PAGE.read_text()
    for key in ("users", "repositories", "rights"):
        assert f"`{key}`" in page
    for right in module.RIGHTS:
        assert f"| `{right}` |" in page
