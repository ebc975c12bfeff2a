"""The log of both programs: one line per event to stderr, `time level action key=value … · message`.

Nothing that logs or prints ever waits for who reads it: see `services.rpc.output`.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime

from services.rpc.output import LineOutput, LineStream

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "action", "facts"}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:+@%,()[]<>*")


class EventFormatter(logging.Formatter):
    """Writes a record as one line; what could move a terminal's cursor or turn a line is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        action = getattr(record, "action", record.name)
        facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        facts.update(getattr(record, "facts", {}))
        parts = [f"{moment}Z {record.levelname:<7} {escaped(str(action))}"]
        parts += [f"{key}={_quoted(value)}" for key, value in facts.items() if value is not None]
        text = record.getMessage()
        if text and not str(action).endswith(text):
            parts.append(_quoted(text) if "\n" in text else f"· {escaped(text)}")
        if record.exc_info and record.exc_info[1] is not None:
            fault = "".join(traceback.format_exception(record.exc_info[1]))
            parts.append(f"traceback={_quoted(fault)}")
        return " ".join(parts)


def escaped(text: str) -> str:
    r"""Return the text with each character that is not printable as `\n`, `\x1b` or `\u202e`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _quoted(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    if text and _PLAIN.issuperset(text):
        return text
    return '"' + escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


class QueuedHandler(logging.Handler):
    """Hands each record, as a line, to an output that never waits."""

    def __init__(self, output: LineOutput) -> None:
        super().__init__()
        self._output = output
        self.setFormatter(EventFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        try:
            self._output.put(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)


class ProgramOutput:
    """What a program says: its log, and what is printed to `sys.stdout` and `sys.stderr`."""

    def __init__(self, outputs: tuple[LineOutput, ...], handler: QueuedHandler) -> None:
        self._outputs = outputs
        self.handler = handler

    @property
    def dropped(self) -> int:
        """Lines that were not written because nobody read, or that could not be."""
        return sum(output.dropped for output in self._outputs)

    def close(self, timeout: float = 1.0) -> None:
        """Write what is queued, for at most `timeout` seconds for each of the two."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, LineStream):
                stream.flush()
        for output in self._outputs:
            output.close(timeout)


def configure(level: str) -> ProgramOutput:
    """Send every log record of this process from `level` on, and what is printed, to stdout and stderr.

    Neither waits for who reads them. Returns what writes them, to be closed at the end.
    """
    outputs = {number: LineOutput(number, _notice) for number in (1, 2)}
    sys.stdout = LineStream(outputs[1], 1, "<stdout>")
    sys.stderr = LineStream(outputs[2], 2, "<stderr>")
    handler = QueuedHandler(outputs[2])
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A library's own chatter is no event of ours.
    for name in ("alembic", "asyncio", "grpc", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return ProgramOutput((outputs[1], outputs[2]), handler)


def _notice(dropped: int) -> str:
    record = logging.LogRecord("log", logging.WARNING, "", 0, "lines are missing here", None, None)
    vars(record).update(action="log.dropped", dropped=dropped)
    return EventFormatter().format(record) + "\n"
