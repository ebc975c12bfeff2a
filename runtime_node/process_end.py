"""The end of the node's process: in time, whatever apps and their libraries have registered for it.

Hooks that wait for threads or processes (those of concurrent.futures and multiprocessing do) are not run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import NoReturn

import psutil

from services.rpc.logs import ProgramOutput

log = logging.getLogger("runtime_node")

_FLUSH_SECONDS = 1.0


def end_within(seconds: float) -> None:
    """End the process with status 1 after so many seconds, unless it has ended by then."""

    def cut_off() -> None:
        log.error("the node did not end in time", extra={"action": "node.end_cut_off", "seconds": seconds})
        os._exit(1)

    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()


def end_process(status: int, output: ProgramOutput) -> NoReturn:
    """Write what is left of the log and end: what apps have started and not ended goes with the process."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    output.close(_FLUSH_SECONDS)
    os._exit(status)
