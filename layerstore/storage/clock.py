"""Time for leases: the boot clock and the boot's id, never the wall clock (rule 8)."""

from __future__ import annotations

import functools
import time


@functools.cache
def boot_id() -> str:
    """Changes with every boot, never within a process; a lease's remaining time starts anew then."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return f.read().strip()


def boot_time() -> float:
    """Seconds since boot, suspend included. Setting the clock does not touch it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
