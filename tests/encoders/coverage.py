"""Which real encoders' blobs are made again, and what their recipes cost.

    python -m tests.encoders.coverage DIR [PREFIX...]

DIR holds blobs as `python -m tests.encoders.collection DIR` leaves them. One line for each encoder:
blobs made again exactly, corrections in bytes and as a share of the blobs, the models chosen.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from layerstore.core import recipe


def measured(blob: bytes) -> tuple[int, Counter[str]]:
    """Bytes of corrections, and the models that the spans would take."""
    decoder = recipe.Decoder()
    spans = decoder.feed(blob) + decoder.finish()
    cost, names = 0, Counter[str]()
    model = None
    for i, span in enumerate(spans):
        following = spans[i + 1] if i + 1 < len(spans) else None
        corrections = None
        if model is None:
            chosen = recipe.choose(span, following, 2 * len(blob) + 4096)
            if chosen is None:
                names["none"] += 1
                continue
            model, corrections = chosen
        else:
            corrections = recipe.analyse(span, following, model, 2 * len(blob) + 4096)
        names[model.name] += 1
        cost += len(corrections or b"")
    for span in spans:
        span.release()
    return cost, names


def main(arguments: list[str]) -> int:
    root, wanted = Path(arguments[0]), arguments[1:]
    print("encoder | blobs | bytes | corrections | % | largest % over 64 KiB | models")
    for directory in sorted(root.iterdir()):
        if wanted and not any(directory.name.startswith(w) for w in wanted):
            continue
        size = cost = count = 0
        worst = 0.0
        models: Counter[str] = Counter()
        for path in sorted(directory.glob("*.gz")):
            blob = path.read_bytes()
            own, names = measured(blob)
            count, size, cost = count + 1, size + len(blob), cost + own
            models += names
            if len(blob) > 65536:
                worst = max(worst, 100 * own / len(blob))
        chosen = " ".join(f"{n}:{k}" for n, k in models.most_common(3))
        share = 100 * cost / size
        print(
            f"{directory.name} | {count} | {size} | {cost} | {share:.4f} | {worst:.4f} | {chosen}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
