"""Which real encoders' blobs are made again, and what their recipes cost.

    python -m tests.encoders.coverage DIR [PREFIX...]     a table, as in docs/encoders.md

DIR holds blobs as `python -m tests.encoders.collection DIR` leaves them. Each blob is put into a store,
optimized as any is (with its proof), and read again; a line for each encoder says what became of
them: how many came back exactly, of those how many as a recipe, what the recipes take, and how many
tokens their models mispredicted. Blobs of equal bytes are taken once.

Shares are of blobs over 64 KiB: a recipe has some 30 bytes whatever its blob.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import layerstore
from layerstore.core import recipe
from layerstore.layers.analysis import SPAN, decoder_for

LARGE = 64 << 10
"""Bytes of a blob from which on the share of its recipe means something."""


@dataclass(frozen=True)
class Found:
    """What became of a blob. `cost`: bytes of its recipe; `wrong`: tokens mispredicted of so many."""

    size: int
    model: str
    exact: bool
    cost: int
    wrong: int
    tokens: int
    reason: str

    @property
    def regenerated(self) -> bool:
        return not self.reason


@dataclass
class Row:
    """An encoder's blobs, by kind of content."""

    encoder: str
    found: dict[str, Found] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        return all(f.exact for f in self.found.values())

    @property
    def regenerated(self) -> int:
        return sum(f.regenerated for f in self.found.values())

    @property
    def cost(self) -> int:
        return sum(f.cost for f in self.found.values())

    @property
    def wrong(self) -> int:
        return sum(f.wrong for f in self.found.values())

    @property
    def tokens(self) -> int:
        return sum(f.tokens for f in self.found.values())

    def large(self) -> list[Found]:
        return [f for f in self.found.values() if f.size > LARGE]

    @property
    def share(self) -> float:
        """Of the large blobs that were regenerated, the recipes, in percent."""
        large = [f for f in self.large() if f.regenerated]
        return 100 * sum(f.cost for f in large) / max(1, sum(f.size for f in large))

    @property
    def worst(self) -> float:
        """The largest share of one of them, in percent."""
        return max((100 * f.cost / f.size for f in self.large() if f.regenerated), default=0.0)

    @property
    def models(self) -> str:
        names = Counter(f.model for f in self.found.values() if f.regenerated and f.size > LARGE)
        return ", ".join(name for name, _ in names.most_common())

    @property
    def reason(self) -> str:
        """The reasons why blobs stay as they came."""
        short = (f"{kind}: {f.reason}" for kind, f in self.found.items() if not f.regenerated)
        return "; ".join(short)


def mispredicted(blob: bytes, model: recipe.Model) -> tuple[int, int]:
    """Tokens that a model mispredicts, of so many, in the spans that an optimizing would take."""
    decoder = decoder_for(model)
    spans: list[recipe.Span] = []
    for at in range(0, len(blob), SPAN):
        spans += decoder.feed(blob[at : at + SPAN])
    spans += decoder.finish()
    wrong = tokens = 0
    for i, span in enumerate(spans):
        following = spans[i + 1] if i + 1 < len(spans) else None
        wrong += recipe.mispredicted(span, following, model)
        tokens += span.tokens
    for span in spans:
        span.release()
    return wrong, tokens


def measured(store: layerstore.Store, blob: bytes) -> Found:
    """Optimizes a blob in a store, and reads it again."""
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    store.put(blob, digest=digest)
    (outcome,) = (b for b in store.optimize().blobs if b.digest == digest)
    with store.open_blob(digest) as file:
        exact = file.read() == blob
    wrong = tokens = 0
    regenerated = outcome.result == "gzip"
    if regenerated != ("raw" not in store.stat(digest).forms):
        raise AssertionError(f"{digest}: the report says {outcome.result}, the store another")
    if regenerated:
        model = next(m for m in recipe.models() if m.name == outcome.encoder)
        wrong, tokens = mispredicted(blob, model)
    reason = "" if regenerated else outcome.reason
    return Found(len(blob), outcome.encoder, exact, outcome.recipe_bytes, wrong, tokens, reason)


def rows(root: Path, wanted: Sequence[str] = ()) -> Iterator[Row]:
    """One encoder after the other, sorted by name and number."""
    known: dict[bytes, Found] = {}
    with tempfile.TemporaryDirectory(dir=root) as directory, layerstore.open(directory) as store:
        folders = (p for p in root.iterdir() if p.is_dir() and p.name != Path(directory).name)
        for folder in sorted(folders, key=_by_number):
            if wanted and not any(folder.name.startswith(w) for w in wanted):
                continue
            row = Row(folder.name)
            for path in sorted(folder.glob("*.gz")):
                blob = path.read_bytes()
                key = hashlib.sha256(blob).digest()
                if key not in known:
                    known[key] = measured(store, blob)
                row.found[path.stem] = known[key]
            if row.found:
                yield row


def _by_number(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]


HEAD = """\
| encoder | regenerated | recipes, bytes | % of blobs | largest % | tokens mispredicted | models |
|---|---|---|---|---|---|---|"""


def line(row: Row) -> str:
    result = f"{row.regenerated} of {len(row.found)}"
    if not row.exact:
        result += ", NOT EXACT"
    share = f"{row.share:.4f} | {row.worst:.4f}" if row.models else "- | -"
    said = row.models + (f" ({row.reason})" if row.reason else "")
    return f"| {row.encoder} | {result} | {row.cost} | {share} | {row.wrong} of {row.tokens} | {said} |"


def main(arguments: list[str]) -> int:
    print(HEAD, flush=True)
    exact = True
    for row in rows(Path(arguments[0]), arguments[1:]):
        print(line(row), flush=True)
        exact &= row.exact
    return 0 if exact else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
