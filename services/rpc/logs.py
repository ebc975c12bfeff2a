"""The log of both programs: one line per event to stderr, as text or as JSON.

Nothing that logs or prints ever waits for who reads it: see `services.rpc.output`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

from services.rpc.output import MAX_LINE_BYTES, LineOutput, LineStream

FORMATS = ("text", "json")
"""What `--log-format` takes."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "action", "facts"}
_SHORT = 64
"""Characters of a text that is never cut."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:+@%,()[]<>*")


class TextFormatter(logging.Formatter):
    """Writes a record as `time level action key=value … · message`.

    What could move a terminal's cursor or turn a line is escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        action = str(getattr(record, "action", record.name))
        parts = [f"{_time(record)} {record.levelname:<7} {escaped(action)}"]
        parts += [f"{key}={_quoted(value)}" for key, value in _facts(record).items()]
        text = record.getMessage()
        if text and not action.endswith(text):
            parts.append(_quoted(text) if "\n" in text else f"· {escaped(text)}")
        if fault := _traceback(record):
            parts.append(f"traceback={_quoted(fault)}")
        return " ".join(parts)


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: time, severity, logger, message, then what the record tells.

    Every line is whole JSON: of a record that is too long the longest texts are cut instead.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        event: dict[str, object] = {
            "time": _time(record),
            "severity": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if action := getattr(record, "action", None):
            event["action"] = action
        facts = _facts(record)
        # An instance's name begins with its app's: who looks for an app's lines need not take it apart.
        app, is_instance, _ = str(facts.get("instance", "")).partition("/instances/")
        if is_instance:
            facts.setdefault("app", app)
        if fault := _traceback(record):
            facts["traceback"] = fault
        for key, value in facts.items():
            event[f"{key}_" if key in event else key] = _json_value(value)
        return _within(event, MAX_LINE_BYTES - 1)


def formatter(log_format: str) -> logging.Formatter:
    """Return what writes records in one of FORMATS."""
    return JsonFormatter() if log_format == "json" else TextFormatter()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _facts(record: logging.LogRecord) -> dict[str, object]:
    facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    facts.update(getattr(record, "facts", {}))
    return {key: value for key, value in facts.items() if value is not None}


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info and record.exc_info[1] is not None:
        return "".join(traceback.format_exception(record.exc_info[1]))
    return ""


def _json_value(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _within(event: dict[str, object], limit: int) -> str:
    """Return an event as JSON of at most `limit` bytes; what is not printable is escaped."""
    while True:
        text = json.dumps(event, ensure_ascii=False)
        if not text.isprintable():
            # It can stand in texts alone, where JSON has a way to write it.
            text = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
        longest = max(event, key=lambda key: len(str(event[key])))
        long = str(event[longest])
        if len(text.encode()) <= limit or len(long) <= _SHORT:
            return text
        event[longest] = long[: len(long) // 2] + " […]"


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

    def __init__(self, output: LineOutput, log_format: str = "text") -> None:
        super().__init__()
        self._output = output
        self.setFormatter(formatter(log_format))

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


def configure(level: str, log_format: str = "text") -> ProgramOutput:
    """Send every log record of this process from `level` on, and what is printed, to stdout and stderr.

    Neither waits for who reads them. As JSON, a line that is printed is an event too, of the logger
    `stdout` or `stderr`. Returns what writes them, to be closed at the end.
    """
    outputs = {number: LineOutput(number, _notice(log_format)) for number in (1, 2)}
    sys.stdout = LineStream(outputs[1], 1, "<stdout>", _line_form("stdout", log_format))
    sys.stderr = LineStream(outputs[2], 2, "<stderr>", _line_form("stderr", log_format))
    handler = QueuedHandler(outputs[2], log_format)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # A library's own chatter is no event of ours.
    for name in ("alembic", "asyncio", "grpc", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if log_format == "json":
        # Printed line by line a traceback would be as many events.
        threading.excepthook = _log_fault_of_thread
    return ProgramOutput((outputs[1], outputs[2]), handler)


def program_handler() -> logging.Handler:
    """Return what writes this program's log, or, where `configure` was not called, to the stderr of now."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, QueuedHandler):
            return handler
    plain = logging.StreamHandler(sys.stderr)
    plain.setFormatter(TextFormatter())
    return plain


def _log_fault_of_thread(fault: threading.ExceptHookArgs) -> None:
    if fault.exc_value is not None and not isinstance(fault.exc_value, SystemExit):
        logging.getLogger("thread").error(
            "a thread ended by an exception", exc_info=fault.exc_value,
            extra={"action": "thread.failed", "thread_name": getattr(fault.thread, "name", None)},
        )  # fmt: skip


def _notice(log_format: str) -> Callable[[int], str]:
    form = formatter(log_format)

    def line(dropped: int) -> str:
        record = logging.LogRecord("log", logging.WARNING, "", 0, "lines are missing here", None, None)
        vars(record).update(action="log.dropped", dropped=dropped)
        return form.format(record) + "\n"

    return line


def _line_form(name: str, log_format: str) -> Callable[[str], str] | None:
    if log_format != "json":
        return None
    form = JsonFormatter()
    level = logging.WARNING if name == "stderr" else logging.INFO

    def line(text: str) -> str:
        return form.format(logging.LogRecord(name, level, "", 0, "%s", (text,), None))

    return line
