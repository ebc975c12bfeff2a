"""Tables as they are written: whole where programs read, cut at the edge where people look."""

import io
import sys

import pytest
from rich.console import Console

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.cli import views
from services.cli.output import Format, Output

ROWS = [
    App(name="apps/a-long-name-that-matters", state=Instance.RUNNING, uri="http://a.localhost:8080/"),
    App(name="apps/漢字", state=Instance.IDLE, uri="http://b\x1b[2J.localhost:8080/"),
]


def written(
    monkeypatch: pytest.MonkeyPatch, form: Format = Format.TABLE, columns: int | None = None
) -> list[str]:
    """Return the lines of a table on a terminal of so many columns, or in a pipe."""
    monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
    output = Output(form)
    if columns is not None:
        output.console = Console(force_terminal=True, width=columns, file=stream)
    output.many(ROWS, views.APPS)
    return stream.getvalue().splitlines()


def test_a_pipe_gets_all_of_it_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    head, first, second = written(monkeypatch)
    at = head.index("STATE")
    assert first[at:].startswith("RUNNING")
    assert second[at - 2 :].startswith("IDLE"), "two letters take four columns"
    assert first.endswith("http://a.localhost:8080/")


def test_nothing_in_a_cell_moves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "http://b\\x1b[2J.localhost" in written(monkeypatch)[2]


def test_a_terminal_gets_a_line_a_row_with_the_name_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    lines = written(monkeypatch, columns=60)
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("a-long-name-that-matters  RUNNING")
    assert lines[1].endswith("…")
    assert any(len(line) > 60 for line in written(monkeypatch, Format.WIDE, columns=60))


def test_colours_are_for_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in "".join(written(monkeypatch))
    assert "\x1b[32mRUNNING\x1b[0m" in "".join(written(monkeypatch, columns=200))
