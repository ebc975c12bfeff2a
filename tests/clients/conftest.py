"""The stack that the clients talk to."""

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give a stack that the clients share: each uses an app name of its own."""
    stack = Stack(tmp_path_factory.mktemp("clients") / "stack")
    try:
        yield stack.start()
    finally:
        stack.clean_up()
