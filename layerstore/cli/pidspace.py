"""Several containers on one store, each as process 1 of its own pid namespace.

The index knows its readers by pid, so a process cannot open a store that a process of another pid
namespace has open under the same pid (RULES 24). The way out: a child, which has another pid, does the
work; when that one is taken too, the next child. The parent waits, passes signals on, and ends as the
child did.

The parent must not have threads yet, and must not have read or written anything: the verb starts anew
in the child.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .context import SamePid

ATTEMPTS = 128  # pids tried; each is another number, so even crowds of containers find a free one
PAUSE = 0.01  # seconds, grown each time: somebody may be trying in step with us
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
_AGAIN = b"again"


def run_in_child(work: Callable[[], int], error: Exception) -> int:
    """The exit status of `work`, done by a child whose pid the store accepts.

    `work` raises SamePid when the child's pid is taken too. Raises `error` when no pid was free."""
    for attempt in range(ATTEMPTS):
        code = _one_child(work)
        if code is not None:
            return code
        time.sleep(PAUSE * min(attempt + 1, 10))
    raise error


def _one_child(work: Callable[[], int]) -> int | None:
    """The exit status of one child; None when its pid was taken too."""
    sys.stdout.flush()
    sys.stderr.flush()
    told, tell = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # none may fall between fork and handlers
    try:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(told)
            _be_the_child(work, tell, parent)
        os.close(tell)
        with _forwarding(child):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
            status = os.waitpid(child, 0)[1]
        os.set_blocking(told, False)
        try:
            again = os.read(told, len(_AGAIN)) == _AGAIN
        except BlockingIOError:  # a process of the child's still holds the pipe: it got to work
            again = False
    finally:
        os.close(told)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    if again:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _be_the_child(work: Callable[[], int], tell: int, parent: int) -> None:
    """Does the work and ends; never returns."""
    code = 1
    try:
        _die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        code = work()
    except SamePid:
        os.write(tell, _AGAIN)
    except KeyboardInterrupt:  # in the few instructions around the work, which handles it itself
        code = 130
    finally:
        os._exit(code)


def _die_with_parent(parent: int) -> None:
    """SIGTERM for us when the parent dies, so that killing the command kills its work."""
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _forwarding(child: int) -> Iterator[None]:
    """Passes signals that reach us on to the child, which decides what they mean."""

    def forward(number: int, frame: FrameType | None) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
