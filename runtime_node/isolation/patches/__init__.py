"""The places where an app's side effects on the process are seen, kept apart, noted and undone.

Each is a call that apps make when they start, not per request. Without a current instance each does what it
always did.
"""

from __future__ import annotations

import threading

from runtime_node.isolation import environ, frames, lost_interruptions, on_import, refusals, syntax_trees
from runtime_node.isolation.patches import (
    exit_hooks,
    libraries,
    logger_handlers,
    loggers,
    loop_policies,
    standard_streams,
    threads,
    warning_filters,
)

_installed = False
_lock = threading.Lock()


def install() -> None:
    """Put all patches in place. Once per process, before any app is loaded; repeats do nothing."""
    global _installed  # noqa: PLW0603 - the patches are the process's
    with _lock:
        if _installed:
            return
        _installed = True
    for part in (
        on_import, environ, refusals, syntax_trees, frames, threads, loggers, logger_handlers,
        standard_streams, loop_policies, exit_hooks, warning_filters, libraries, lost_interruptions,
    ):  # fmt: skip
        part.install()
