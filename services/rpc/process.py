"""What programs do with their process: its standard descriptors, its collector, the signals that end it."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_OBJECTS = 10_000
"""New objects after which the collector looks at them; Python's own 700 are made by twenty calls."""


def settle_collector() -> None:
    """Have the collector leave alone what is here now, as it stays, and look seldom at what comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the collector from looking at what is made meanwhile: if it stays, to look through it again and
    again doubles the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def open_standard_descriptors() -> None:
    """Open what of stdin, stdout and stderr was closed when the process began, as an empty device.

    Called before anything else opens a file: that would get one of their numbers, and with it whatever is
    written to the standard streams.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - as long as we


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that drain and end the process: SIGHUP too, unless it is ignored, as under nohup."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGTERM, signal.SIGINT)
    return (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
