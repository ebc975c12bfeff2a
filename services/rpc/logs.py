"""The log of both services: one line per event to stderr, `time level action key=value … · message`."""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "action", "facts"}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:+@%,()[]<>*")


class EventFormatter(logging.Formatter):
    """Writes a record as one line; line breaks inside values are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        action = getattr(record, "action", record.name)
        facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        facts.update(getattr(record, "facts", {}))
        parts = [f"{moment}Z {record.levelname:<7} {action}"]
        parts += [f"{key}={_quoted(value)}" for key, value in facts.items() if value is not None]
        text = record.getMessage()
        if text and not str(action).endswith(text):
            parts.append(_quoted(text) if "\n" in text else f"· {text}")
        if record.exc_info and record.exc_info[1] is not None:
            fault = "".join(traceback.format_exception(record.exc_info[1]))
            parts.append(f"traceback={_quoted(fault)}")
        return " ".join(parts)


def _quoted(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if text and _PLAIN.issuperset(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def configure(level: str) -> None:
    """Send every log record of this process from `level` on to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A library's own chatter is no event of ours.
    for name in ("alembic", "asyncio", "grpc", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
