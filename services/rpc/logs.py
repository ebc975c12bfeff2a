"""Log lines of both services: one event a line on standard error, readable, with its ids."""

from __future__ import annotations

import logging
import sys
import time

_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class EventFormatter(logging.Formatter):
    """Formats `time level logger message action=… key=…`; a traceback follows on its own lines."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        extras = {key: value for key, value in record.__dict__.items() if key not in _PLAIN}
        pairs = " ".join(f"{key}={value}" for key, value in extras.items())
        level = record.levelname.lower()
        line = f"{self.formatTime(record)} {level:<7} {record.getMessage()}"
        if pairs:
            line += f"  [{pairs}]"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(level: str) -> None:
    """Log to standard error from `level` (`debug`, `info`, `warning`, `error`) on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # A migration's own lines say nothing that ours does not.
    logging.getLogger("alembic").setLevel(max(logging.WARNING, logging.getLogger().level))
