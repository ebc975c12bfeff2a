"""The limits that a guest puts on itself before any of its app's code is loaded: rlimits and niceness.

Memory is bounded by RLIMIT_DATA and by the node's watch on private memory; see `runner` for the choice.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from runtime_node.tiers.process import procfs

STACK_BYTES: Final = 8 << 20
"""What glibc maps, writable, for each thread's stack; RLIMIT_DATA counts all of it."""
SLACK_BYTES: Final = 64 << 20
"""Mapped but hardly touched: malloc arenas, loop buffers, what imports reserve."""


@dataclass(frozen=True, slots=True)
class Rlimits:
    """Limits that the kernel keeps for one guest; 0 means none."""

    memory_bytes: int = 0
    cpu_millis: int = 0
    max_threads: int = 8
    max_files: int = 1024

    def plain(self) -> dict[str, int]:
        """Return the limits as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Rlimits:
        """Return the limits from plain data."""
        return cls(**data)


def apply(limits: Rlimits, tag: int) -> None:
    """Bound the calling process, and mark it and its descendants with `tag`."""
    procfs.mark(tag)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, limits.max_files)
    if limits.memory_bytes:
        # Virtual size says little with threads and allocators about; what can be written says more. The
        # bound is what the process has at birth plus twice the limit, so that the node's watch, which
        # looks at what is really used, is the first to act, and a burst between two looks still fails.
        room = procfs.data_bytes() + 2 * limits.memory_bytes + SLACK_BYTES
        _lower(resource.RLIMIT_DATA, room + limits.max_threads * STACK_BYTES)
    # The kernel's own choice, should the machine run out of memory, falls on a guest before the node.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    niceness = nice_of(limits.cpu_millis)
    if niceness:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
            # With autogrouping each session is weighed as one; niceness inside it would count for nothing.
            Path("/proc/self/autogroup").write_text(str(niceness))


def nice_of(cpu_millis: int) -> int:
    """Return the niceness whose weight is to the usual one as `cpu_millis` is to one core.

    A step of niceness is a factor of 1.25 (sched(7)). A weight only: it gives way to neighbours that
    want the CPU and bounds nothing on an idle machine.
    """
    if not 0 < cpu_millis < 1000:
        return 0
    return min(19, round(math.log(1000 / cpu_millis) / math.log(1.25)))


def _lower(kind: int, bound: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        bound = min(bound, hard)
    resource.setrlimit(kind, (bound, bound))
