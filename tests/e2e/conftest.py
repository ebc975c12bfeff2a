"""The stack as real processes: one that tests share, or one of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.neighbours import RATE, ROWS, table
from tests.e2e.stack import ROOT, Stack

GUEST_DIRS = tuple(ROOT / "tests/apps" / name for name in ("guests", "django_project", "node"))


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Give a stack that the test may kill."""
    stack = Stack(tmp_path / "stack")
    try:
        yield stack.start()
    finally:
        stack.clean_up()


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give the stack that tests share: use app names of your own, and leave its processes alone."""
    stack = Stack(tmp_path_factory.mktemp("shared") / "stack")
    try:
        yield stack.start("--preload=usual")
    finally:
        stack.clean_up()


@pytest.fixture(scope="session")
def guest_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give the stack that tests of guests share: use app names of your own, and leave its processes alone."""
    stack = Stack(tmp_path_factory.mktemp("guests") / "stack", app_dirs=GUEST_DIRS)
    try:
        yield stack.start("--preload=usual")
    finally:
        stack.clean_up()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the hogs cost their neighbours, if any were let loose."""
    if ROWS:
        terminalreporter.write_sep("=", f"hogs beside neighbours at {RATE:g} requests/s")
        terminalreporter.write_line(table(ROWS))
