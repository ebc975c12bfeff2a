"""Sees what the code of instances prints and logs in the node's own process, and hands it on by instance.

What no instance's code says goes where it always went. Out of reach: writes to file descriptors 1 and 2 that
pass by `sys.stdout` and `sys.stderr`, such as those of C code and of child processes.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol, TextIO

from runtime_node.isolation.current import CURRENT_INSTANCE, LOADING_FOR
from runtime_node.raised import traceback_of, type_name
from services.rpc.logs import QueuedHandler

MAX_LINE = 16 * 1024
"""Characters; a longer line comes in several."""

PARTIAL_SECONDS = 1.0
"""What was printed without a line's end becomes a line when nothing has followed for so long."""

# The node's own code that works for an instance speaks for the node.
_OWN = ("runtime_node", "appsupervisor", "services")

_PREFIX = "apps/"


class Sink(Protocol):
    """Takes a line of an instance. Called on any thread; never waits, never raises."""

    def __call__(
        self,
        instance: str,
        level: int,
        source: str,
        text: str,
        *,
        when: float | None = None,
        begins_cut: bool = False,
        ends_cut: bool = False,
    ) -> None:
        """Take one line, logged at the Unix time `when` or now; `…_cut` as in Masker."""
        ...


def speaking_instance() -> str:
    """Return the instance that the running code belongs to, or ""."""
    instance = CURRENT_INSTANCE.get()
    if instance.startswith(_PREFIX):
        return instance
    # While code is imported it belongs to its location, and to the instance that it is imported for.
    return LOADING_FOR.get()


def instance_of(record: logging.LogRecord) -> str:
    """Return the instance that a log record belongs to, or ""."""
    if record.name.startswith(_PREFIX) and "/instances/" in record.name:
        return record.name  # its `context.logger`, wherever it is used
    if record.name.startswith(_OWN):
        return ""
    return speaking_instance()


class AppLogHandler(logging.Handler):
    """Hands the records of instances to the sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink
        self._formatter = logging.Formatter()

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """Have none: a thread of one app that is not scheduled must not make another one wait."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Take the record if it is an instance's."""
        instance = instance_of(record)
        if instance:
            self._emit(instance, record)
        return bool(instance)

    def _emit(self, instance: str, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += "\n" + traceback_of(record.exc_info[1]).rstrip()
            elif record.exc_text:
                text += "\n" + record.exc_text
            if record.stack_info:
                text += "\n" + record.stack_info
        except (Exception, SystemExit, KeyboardInterrupt) as fault:  # noqa: BLE001 - of the app's
            # Its record cannot be shown, which may be written on the node's own loop.
            said = record.msg[:500] if type(record.msg) is str else "a record"
            text = f"{said} (not formatted: {type_name(fault)})"
        source = getattr(record, "origin", None) or record.name
        if source == instance:
            source = f"app.{instance.split('/', 2)[1]}"
        self._sink(instance, record.levelno, str(source), text, when=record.created)


class _NodesOnly(logging.Filter):
    """Keeps the records of instances away from the node's own handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not instance_of(record)


class StreamProxy(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr`: what an instance writes becomes its lines."""

    def __init__(self, name: str, level: int, inner: TextIO, sink: Sink) -> None:
        super().__init__()
        self.inner = inner
        self._name = name
        self._level = level
        self._sink = sink
        # By instance and thread: two threads that print at the same time do not mix their lines.
        self._partial: dict[tuple[str, int], tuple[str, float, bool]] = {}

    def write(self, text: str) -> int:
        """Take what an instance writes; pass on what the node does."""
        instance = speaking_instance()
        if not instance:
            return self.inner.write(text)
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        key = (instance, threading.get_ident())
        before, _, begins_cut = self._partial.pop(key, ("", 0.0, False))
        *lines, rest = (before + text).split("\n")
        for line in lines:
            begins_cut = self._tell(instance, line.rstrip("\r"), begins_cut, ended=True)
        while len(rest) > MAX_LINE:
            begins_cut = self._tell(instance, rest[:MAX_LINE], begins_cut, ended=False)
            rest = rest[MAX_LINE:]
        if rest:
            self._partial[key] = (rest, time.monotonic(), begins_cut)
        return len(text)

    def _tell(self, instance: str, line: str, begins_cut: bool, *, ended: bool) -> bool:
        pieces = [line[at : at + MAX_LINE] for at in range(0, len(line), MAX_LINE)] or [""]
        for number, piece in enumerate(pieces):
            ends_cut = not ended or number < len(pieces) - 1
            self._sink(
                instance, self._level, self._name, piece, begins_cut=begins_cut or number > 0,
                ends_cut=ends_cut,
            )  # fmt: skip
        return not ended

    def settle(self, instance: str = "") -> None:
        """Make lines of what was left without an end: of one instance, or of all where it is old."""
        now = time.monotonic()
        for key, (_, since, _) in list(self._partial.items()):
            if key[0] == instance or (not instance and now - since > PARTIAL_SECONDS):
                rest, _, begins_cut = self._partial.pop(key, ("", 0.0, False))
                if rest:
                    self._tell(key[0], rest, begins_cut, ended=True)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the node's own stream; lines of instances are never held back by it."""
        if not speaking_instance():
            self.inner.flush()

    def close(self) -> None:
        """Do nothing: the stream is the process's."""

    def detach(self) -> Any:
        """Refuse: the stream is the process's."""
        raise io.UnsupportedOperation("the standard streams of a shared process stay as they are")

    def isatty(self) -> bool:
        """Return False for an instance: nobody sees its colours."""
        return False if speaking_instance() else self.inner.isatty()

    def fileno(self) -> int:
        """Return the process's own descriptor: what is written there is not attributed."""
        return self.inner.fileno()

    def readable(self) -> bool:
        """Return False."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def reconfigure(self, **_: Any) -> None:
        """Do nothing: text is kept as it is."""

    @property
    def buffer(self) -> _BytesProxy:
        """The stream for bytes."""
        return _BytesProxy(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """UTF-8."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What becomes of what is no UTF-8."""
        return "backslashreplace"

    @property
    def name(self) -> str:
        """Name of the process's own stream."""
        return str(getattr(self.inner, "name", f"<{self._name}>"))


class _BytesProxy(io.RawIOBase):
    def __init__(self, text: StreamProxy) -> None:
        super().__init__()
        self._text = text

    def write(self, data: Any) -> int:
        raw = bytes(data)
        inner = getattr(self._text.inner, "buffer", None)
        if speaking_instance() or inner is None:
            self._text.write(raw.decode("utf-8", "backslashreplace"))
        else:
            inner.write(raw)
        return len(raw)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._text.flush()

    def fileno(self) -> int:
        return self._text.fileno()


class Capture:
    """The proxies and the handler in place, from `install` to `remove`. One per process at a time."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._handler = AppLogHandler(sink)
        self._filter = _NodesOnly()
        self._filtered: list[logging.Handler] = []
        self._streams: list[StreamProxy] = []
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Put everything in place."""
        root = logging.getLogger()
        for handler in root.handlers:
            # Its level is the node's from now on: what apps log is kept from INFO on, whatever that is.
            if type(handler) in (logging.StreamHandler, QueuedHandler):
                before = handler.level
                handler.setLevel(max(before, root.level))
                handler.addFilter(self._filter)
                self._undo += [
                    lambda handler=handler: handler.removeFilter(self._filter),  # type: ignore[misc]
                    lambda handler=handler, before=before: handler.setLevel(before),  # type: ignore[misc]
                ]
        level = root.level
        if self._undo and level > logging.INFO:
            root.setLevel(logging.INFO)
            self._undo.append(lambda: root.setLevel(level))
        root.addHandler(self._handler)
        apps = logging.getLogger("apps")
        apps_level = apps.level
        apps.setLevel(logging.DEBUG)
        self._undo += [lambda: root.removeHandler(self._handler), lambda: apps.setLevel(apps_level)]
        for name, stream_level in (("stdout", logging.INFO), ("stderr", logging.WARNING)):
            self._replace(name, stream_level)

    def _replace(self, name: str, level: int) -> None:
        inner = getattr(sys, name)
        proxy = StreamProxy(name, level, inner, self._sink)
        self._streams.append(proxy)
        setattr(sys, name, proxy)

        def put_back() -> None:
            if getattr(sys, name) is proxy:
                setattr(sys, name, inner)

        self._undo.append(put_back)

    def settle(self, instance: str = "") -> None:
        """Make lines of what was printed without a line's end."""
        for stream in self._streams:
            stream.settle(instance)

    def remove(self) -> None:
        """Put everything back as it was."""
        while self._undo:
            with suppress(Exception):
                self._undo.pop()()
