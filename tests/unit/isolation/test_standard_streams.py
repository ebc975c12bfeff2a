"""A stream that an app puts in the place of a standard one takes that app's output, and nobody else's."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime_node.isolation import running_as
from runtime_node.isolation.undo_log import undo


def test_output_that_an_app_redirects_is_its_own(me: str, other: str, capsys: Any) -> None:
    inside, ended = threading.Event(), threading.Event()
    mine = io.StringIO()

    def redirect() -> None:
        with contextlib.redirect_stdout(mine):
            print("mine")
            inside.set()
            ended.wait(60)

    with running_as(me):
        thread = threading.Thread(target=redirect)
        thread.start()
    assert inside.wait(60)
    with running_as(other):
        print("another's")
    print("the node's")
    ended.set()
    thread.join()
    with running_as(me):
        print("not redirected any more")
    assert mine.getvalue() == "mine\n"
    assert capsys.readouterr().out == "another's\nthe node's\nnot redirected any more\n"


def test_a_stream_that_an_app_leaves_in_place_goes_with_it(me: str, other: str, capsys: Any) -> None:
    mine = io.StringIO()
    with running_as(me):
        sys.stderr = mine
        assert sys.stderr is mine
        sys.stderr.write("a")
        print("b", file=sys.stderr)
    with running_as(other):
        assert sys.stderr is not mine
        print("another's", file=sys.stderr)
    undo(me)
    with running_as(me):
        print("later", file=sys.stderr)
    assert mine.getvalue() == "ab\n"
    assert capsys.readouterr().err == "another's\nlater\n"


def test_a_stream_around_the_one_that_was_there_writes_to_that(me: str, capsys: Any) -> None:
    class Loud:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def write(self, text: str) -> int:
            return int(self.inner.write(text.upper()))

        def flush(self) -> None:
            self.inner.flush()

    with running_as(me):
        sys.stdout = Loud(sys.stdout)  # type: ignore[assignment]
        print("mine")
    print("the node's")
    undo(me)
    assert capsys.readouterr().out == "MINE\nthe node's\n"


def test_what_the_process_itself_puts_there_is_for_all(me: str) -> None:
    before, stream = sys.stdout, io.StringIO()
    sys.stdout = stream
    try:
        print("the node's")
        with running_as(me):
            assert sys.stdout is stream
            print("mine")
    finally:
        sys.stdout = before
    assert stream.getvalue() == "the node's\nmine\n"
    assert sys.stdout is before


def test_modules_are_of_the_usual_type_all_the_same(
    me: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import system makes a new module by `type(sys)(name)`."""
    (tmp_path / "made_now.py").write_text("stdout = 'of its own'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with running_as(me):
        module = importlib.import_module("made_now")
    assert type(module) is ModuleType
    assert module.stdout == "of its own"
    assert type(type(sys)("another")) is ModuleType
    assert isinstance(module, type(sys))
    assert not isinstance(7, type(sys))
    del sys.modules["made_now"]
