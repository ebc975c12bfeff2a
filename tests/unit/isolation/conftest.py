"""Two instances side by side, with every patch in place; what they did is undone after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime_node.isolation import install
from runtime_node.isolation.undo_log import undo

ME = "apps/me/instances/1"
OTHER = "apps/other/instances/1"


@pytest.fixture
def me() -> Iterator[str]:
    install()
    yield ME
    undo(ME)


@pytest.fixture
def other() -> Iterator[str]:
    install()
    yield OTHER
    undo(OTHER)
