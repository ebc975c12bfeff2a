"""Signals by which a node speaks to a guest's process; real-time ones, which apps leave alone."""

from __future__ import annotations

import signal
from typing import Final

DUMP_SIGNAL: Final = signal.SIGRTMIN + 2
"""Dumps all stacks from C, so also while the GIL is held."""
INTERRUPT_SIGNAL: Final = signal.SIGRTMIN + 3
"""Interrupts the code that blocks the loop, as soon as it runs a bytecode or waits in a system call."""
