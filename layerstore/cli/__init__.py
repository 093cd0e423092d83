"""The command line: a face on `layerstore.Store` that uses `layerstore.__all__` and nothing else.

Floor 6. `main` reads the arguments, runs one verb and turns whatever happens into the exit status
and the message that INTERFACE promises. Everything heavier than argparse is imported by the verb that
needs it: `layerstore --help` must answer before a reader notices.

The rooms: `parser` (verbs and options), `examples` (the end of each help text), `arguments`
(durations, sizes), `context` (what a verb works with: store, output, progress), `verbs_*` (the verbs),
`output`, `progress`, `exits` (errors to exit status), `signals`, `pidspace` (the store in containers),
`location` (which store), `completion` (for shells).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, *, open_store: Callable[..., Any] | None = None) -> int:
    """Runs one command and returns its exit status.

    Without `argv` it owns the process (arguments of the process, its signals). `open_store` stands in
    for `layerstore.open`."""
    from .run import run

    return run(argv, open_store)
