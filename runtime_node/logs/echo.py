"""Shows the lines of apps in the node's own log too, in its form."""

from __future__ import annotations

import logging
from collections.abc import Callable

from runtime_node.logs.entries import Entry
from services.rpc.logs import program_handler


def echo_to_log() -> Callable[[str, Entry], None]:
    """Return what writes an entry of an app, by its id, to where the node's log goes now."""
    handler = program_handler()

    def echo(app: str, entry: Entry) -> None:
        record = logging.LogRecord("app.log", entry.level, "", 0, "%s", (entry.text,), None)
        record.created = entry.time / 1e6
        of = (
            {"instance": f"apps/{app}/instances/{entry.instance}"}
            if entry.instance
            else {"app": f"apps/{app}"}
        )
        vars(record).update(action="app.log", **of, source=entry.source)
        handler.handle(record)

    return echo
