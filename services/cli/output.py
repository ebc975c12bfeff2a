"""Writes answers: tables for people, JSON, YAML or names for programs. Colour only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, Generic, TypeVar

import jmespath
import yaml
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from jmespath.exceptions import JMESPathError
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from services.cli.errors import CliError, Exit
from services.rpc.logs import escaped

M = TypeVar("M", bound=Message)

STYLES = {
    "RUNNING": "green", "HEALTHY": "green", "READY": "green", "MET": "green", "done": "green",
    "PENDING": "yellow", "STARTING": "yellow", "STOPPING": "yellow", "DEGRADED": "yellow",
    "JOINING": "yellow",
    "FAILED": "bold red", "UNHEALTHY": "red", "UNREACHABLE": "red", "UNMET": "red", "failed": "red",
    "IDLE": "cyan", "STOPPED": "dim", "DELETING": "magenta", "UNKNOWN": "dim",
}  # fmt: skip


PIPED_WIDTH = 400
"""Columns where nobody looks: nothing is wrapped or cut."""
_GAP = 2
"""Columns between two columns of a table."""


class Format(StrEnum):
    """What `--output` takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Column(Generic[M]):
    """One column of a table; `wide` ones show with `-o wide` alone."""

    title: str
    text: Callable[[M], str]
    wide: bool = False


class Output:
    """Where answers go: stdout for what was asked, stderr for everything about it."""

    def __init__(self, form: Format = Format.TABLE, query: str = "") -> None:
        """`query` is a JMESPath expression over the answer as JSON. Raises CliError for a malformed one."""
        self.form = form
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = PIPED_WIDTH
        self.notes = Console(stderr=True, highlight=False, soft_wrap=True)
        try:
            self._query = jmespath.compile(query) if query else None
        except JMESPathError as wrong:
            raise CliError(f"--jmespath: {wrong}", Exit.USAGE) from wrong

    @property
    def interactive(self) -> bool:
        """Whether a person looks: bars and colours make sense then."""
        return self.notes.is_terminal and self.form in (Format.TABLE, Format.WIDE)

    def many(
        self, messages: Iterable[M], columns: Sequence[Column[M]], *, none: str = "", headed: bool = True
    ) -> None:
        """Write a list: a line each, or one JSON or YAML array. Without a head it goes on with one before."""
        found = list(messages)
        if self._query is not None or self.form in (Format.JSON, Format.YAML):
            self._structured([as_dict(message) for message in found])
        elif self.form is Format.NAME:
            for message in found:
                print(message.name)  # type: ignore[attr-defined]  # noqa: T201 - what was asked for
        elif found:
            self._table(found, [c for c in columns if self.form is Format.WIDE or not c.wide], headed)
        elif none:
            self.note(none)

    def one(self, message: M, columns: Sequence[Column[M]]) -> None:
        """Write one answer; as a table it has one line."""
        if self._query is not None or self.form in (Format.JSON, Format.YAML):
            self._structured(as_dict(message))
        else:
            self.many([message], columns)

    def note(self, text: str) -> None:
        """Write a sentence about the answer, on stderr."""
        self.notes.print(Text(text))

    def _structured(self, content: Any) -> None:
        if self._query is not None:
            content = self._query.search(content)
            if isinstance(content, str) and self.form is not Format.JSON:
                print(content)  # noqa: T201 - a bare word for a script
                return
        if self.form is Format.YAML:
            print(dump_yaml(content), end="")  # noqa: T201
        else:
            print(json.dumps(content, indent=2, ensure_ascii=False))  # noqa: T201

    def _table(self, rows: Sequence[M], columns: Sequence[Column[M]], headed: bool) -> None:
        """Write a line a row: by itself, for a table of Rich takes seconds for some thousand rows."""
        titles = [column.title for column in columns]
        cells = [[escaped(column.text(row)) for column in columns] for row in rows]
        widths = [max(map(_width, column)) for column in zip(titles, *cells, strict=True)]
        # On a terminal a line ends at its edge; who asks for wide, or pipes, gets all of it.
        whole = self.form is Format.WIDE or not self.console.is_terminal
        limit = sys.maxsize if whole else self.console.width
        paint = self._painter()
        lines = [_line(line, widths, limit, lambda word: paint(word, STYLES.get(word, ""))) for line in cells]
        if headed:
            lines.insert(0, _line(titles, widths, limit, lambda title: paint(title, "bold")))
        sys.stdout.write("".join(lines))
        sys.stdout.flush()

    def _painter(self) -> Callable[[str, str], str]:
        """Return what colours a word: as it is where there are no colours."""
        if not self.console.is_terminal or self.console.no_color or self.console.color_system is None:
            return lambda word, _: word

        @cache
        def marks(style: str) -> tuple[str, str]:
            with self.console.capture() as captured:
                self.console.print(Text("x", style=style), end="")
            before, _, after = captured.get().partition("x")
            return before, after

        return lambda word, style: word if not style else word.join(marks(style))


def _line(cells: Sequence[str], widths: Sequence[int], limit: int, paint: Callable[[str], str]) -> str:
    parts: list[str] = []
    left = limit
    for cell, width in zip(cells, widths, strict=True):
        if left <= 0:
            break
        shown = cell if width <= left or _width(cell) <= left else set_cell_size(cell, left - 1) + "…"
        parts.append(paint(shown) + " " * (width + _GAP - _width(shown)))
        left -= width + _GAP
    return "".join(parts).rstrip() + "\n"


def _width(cell: str) -> int:
    return len(cell) if cell.isascii() else cell_len(cell)


def styled(word: str) -> Text:
    """Return a cell in the colour of the state that it names."""
    return Text(word, style=STYLES.get(word, ""))


def as_dict(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it, with the names of the proto."""
    return MessageToDict(message, preserving_proto_field_name=True)


def dump_yaml(content: Any) -> str:
    """Return YAML in the order of the fields."""
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def age(since: Timestamp) -> str:
    """Return how long ago a time was, as people write it: `42s`, `3h5m`, `12d`."""
    if not since.seconds:
        return "-"
    return span((datetime.now(UTC) - since.ToDatetime(UTC)).total_seconds())


def span(seconds: float) -> str:
    """Return a time span in at most two units."""
    left = max(0, int(seconds))
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, seconds_left = divmod(left, 60)
    if days:
        return f"{days}d{hours}h" if days < 10 and hours else f"{days}d"
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{seconds_left}s" if minutes < 10 and seconds_left else f"{minutes}m"
    return f"{seconds_left}s"


def milliseconds(duration: Duration) -> str:
    """Return a latency in milliseconds."""
    value = duration.seconds * 1000 + duration.nanos / 1e6
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def size(count: int) -> str:
    """Return bytes with a unit; `-` for none known."""
    value = float(count)
    if not count:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
