"""What Linux tells of one thread of this process: its time on a CPU and of waiting for one."""

from __future__ import annotations

import os


def run_times(native: int) -> tuple[float, float]:
    """Return (seconds on a CPU, seconds of waiting for one) of a thread; zeros when it cannot be told."""
    try:
        file = os.open(f"/proc/self/task/{native}/schedstat", os.O_RDONLY)
    except OSError:
        return 0.0, 0.0
    try:
        on_cpu, waited = os.read(file, 100).split()[:2]
    except (OSError, ValueError):
        return 0.0, 0.0
    finally:
        os.close(file)
    return int(on_cpu) / 1e9, int(waited) / 1e9
