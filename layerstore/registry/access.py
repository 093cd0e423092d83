"""Who may do what: the rights of a caller in a repository, out of rules and of a token.

A right is one of `config.RIGHTS`. What nothing allows is not allowed; only a registry without rules
at all, which listens on loopback, allows everything. Nothing here looks at the store: so the answer
to somebody without rights is the same whether there is such a repository or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .config import RIGHTS, AccessConfig

ALL = frozenset(RIGHTS)
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks. `name` is None for who has not said it."""

    policy: Policy
    name: str | None = None
    token: Mapping[str, frozenset[str]] | None = None
    """Rights by repository, of a bearer token; it has them instead of its user's."""

    def may(self, right: str, repository: str) -> bool:
        """Whether the caller has a right in a repository."""
        if self.token is not None:
            allowed = self.token.get(repository, NONE) | self.policy.rights(None, repository)
        else:
            allowed = self.policy.rights(self.name, repository)
        return right in allowed

    def beginnings(self) -> list[str]:
        """What the names begin with of all repositories that the caller may pull: sorted, and no name
        begins with two of them."""
        if self.token is None:
            found = self.policy.beginnings(self.name)
        else:
            found = self.policy.beginnings(None)
            found |= {name for name, rights in self.token.items() if "pull" in rights}
        out: list[str] = []
        for one in sorted(found):
            if not out or not one.startswith(out[-1]):
                out.append(one)
        return out


@dataclass(frozen=True, slots=True)
class _Grant:
    users: frozenset[str]
    repositories: re.Pattern[str]
    beginnings: frozenset[str]
    rights: frozenset[str]

    def concerns(self, name: str | None) -> bool:
        """Whether it gives its rights to a user (None: anybody)."""
        if "@anyone" in self.users:
            return True
        return name is not None and ("@users" in self.users or name in self.users)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules. `open`: there are none to obey."""

    open: bool
    grants: tuple[_Grant, ...] = field(default=())

    @classmethod
    def of(cls, access: AccessConfig | None) -> Policy:
        if access is None:
            return cls(open=True)
        grants = tuple(
            _Grant(
                frozenset(rule.users),
                re.compile("|".join(map(_expression, rule.repositories))),
                frozenset(pattern.partition("*")[0] for pattern in rule.repositories),
                rule.rights,
            )
            for rule in access.rules
        )
        return cls(open=False, grants=grants)

    def rights(self, name: str | None, repository: str) -> frozenset[str]:
        """What a user (None: anybody) may do in a repository."""
        if self.open:
            return ALL
        out: set[str] = set()
        for grant in self.grants:
            if grant.concerns(name) and grant.repositories.fullmatch(repository):
                out |= grant.rights
        return frozenset(out)

    def beginnings(self, name: str | None) -> set[str]:
        """What the names of all repositories begin with that a user (None: anybody) may pull."""
        if self.open:
            return {""}
        out: set[str] = set()
        for grant in self.grants:
            if grant.concerns(name) and "pull" in grant.rights:
                out |= grant.beginnings
        return out

    def anyone_may_pull(self) -> bool:
        """Whether there is anything that may be read without saying who one is."""
        return self.open or any(
            "@anyone" in grant.users and "pull" in grant.rights for grant in self.grants
        )


def _expression(pattern: str) -> str:
    """A pattern as a regular expression: `**` any text, `*` any without a slash."""
    parts = re.split(r"(\*\*|\*)", pattern)
    return "".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
