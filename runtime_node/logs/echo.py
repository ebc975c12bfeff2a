"""Shows the lines of apps on the node's own stderr too, in the form of the node's log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from runtime_node.logs.entries import Entry
from services.rpc.logs import EventFormatter


def echo_of_stderr() -> Callable[[str, Entry], None]:
    """Return what writes an entry of an app, by its id, to the stderr of now."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())

    def echo(app: str, entry: Entry) -> None:
        record = logging.LogRecord("app.log", entry.level, "", 0, "%s", (entry.text,), None)
        record.created = entry.time / 1e6
        name = f"apps/{app}/instances/{entry.instance}" if entry.instance else f"apps/{app}"
        vars(record).update(action="app.log", instance=name, source=entry.source)
        handler.handle(record)

    return echo
