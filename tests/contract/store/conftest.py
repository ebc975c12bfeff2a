"""A store over each database; the suite's tests run over all of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from services.control_plane.store.sql_store import SqlCatalogStore, open_store


class Catalog:
    """One database that a test opens, closes and opens again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._open: list[SqlCatalogStore] = []

    def open(self, **arguments: Any) -> SqlCatalogStore:
        if "clock" in arguments:  # then time is what the test says, and nothing passes by itself
            arguments.setdefault("elapsed", lambda: 0)
        store = open_store(self.url, **arguments)
        self._open.append(store)
        return store

    def reopen(self, **arguments: Any) -> SqlCatalogStore:
        self.close()
        return self.open(**arguments)

    def close(self) -> None:
        while self._open:
            self._open.pop().close()


@pytest.fixture(params=["sqlite", "postgresql"])
def new_catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Catalog]]:
    """Makes empty databases."""
    with ExitStack() as stack:

        def new() -> Catalog:
            if request.param == "sqlite":
                catalog = Catalog(f"sqlite:///{tmp_path}/{uuid.uuid4().hex}.db")
            else:
                catalog = Catalog(request.getfixturevalue("postgresql").create_database(stack))
            stack.callback(catalog.close)
            return catalog

        yield new


@pytest.fixture
def catalog(new_catalog: Callable[[], Catalog]) -> Catalog:
    """An empty database."""
    return new_catalog()


@pytest.fixture
def store(catalog: Catalog) -> SqlCatalogStore:
    """A store on an empty database."""
    return catalog.open()
