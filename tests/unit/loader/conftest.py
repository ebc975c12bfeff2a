"""A directory to write apps into, and contexts for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime_node.context import AppContext
from runtime_node.loader import Loader


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    def write(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    return write


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[Loader]:
    loader = Loader([tmp_path])
    yield loader
    loader.close()


@pytest.fixture
def context(tmp_path: Path) -> AppContext:
    return make_context(tmp_path)


def make_context(directory: Path, **values: Any) -> AppContext:
    known: dict[str, Any] = {
        "app": "demo",
        "instance": "apps/demo/instances/one",
        "generation": 1,
        "config": {"word": "hi"},
        "env": {},
        "secrets": {"TOKEN": "hunter2-secret"},
        "database_url": "postgresql://u:pa55word@db/x",
        "data_dir": directory,
        "logger": logging.getLogger("test.demo"),
    }
    return AppContext(**{**known, **values})
