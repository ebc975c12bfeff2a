"""What an app sets up in logging holds for what it logs itself; neighbours and the node go on as before."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable, Iterator

import pytest

from runtime_node.isolation import running_as
from runtime_node.isolation.undo_log import undo


class Heard(logging.Handler):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def heard(me: str, other: str) -> Iterator[Heard]:
    """What reaches the node's own handler at the root."""
    handler = Heard()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


QUIET = {"version": 1, "loggers": {"shared.library": {"propagate": False, "level": "CRITICAL"}}}


def silence(logger: logging.Logger) -> None:
    logger.disabled = True


def keep_to_itself(logger: logging.Logger) -> None:
    logger.propagate = False


@pytest.mark.parametrize(
    "do",
    [
        lambda logger: logging.disable(logging.CRITICAL),
        silence,
        keep_to_itself,
        lambda logger: logger.setLevel(logging.CRITICAL),
        lambda logger: setattr(logger, "level", logging.CRITICAL),
        lambda logger: logging.config.dictConfig(QUIET),
        lambda logger: logger.addFilter(lambda record: False),
        lambda logger: setattr(logger, "filters", [lambda record: False]),
    ],
)
def test_an_app_silences_itself_alone(
    do: Callable[[logging.Logger], object], heard: Heard, me: str, other: str
) -> None:
    logger = logging.getLogger("shared.library")
    with running_as(me):
        do(logger)
        logger.error("mine")
    with running_as(other):
        logger.error("another's")
    logger.error("the node's")
    assert heard.lines == ["another's", "the node's"]
    undo(me)
    with running_as(me):
        logger.error("mine again")
    assert heard.lines[2:] == ["mine again"]


def test_the_nodes_own_words_about_an_app_are_out_of_its_reach(heard: Heard, me: str) -> None:
    nodes = logging.getLogger("runtime_node.instances")
    with running_as(me):
        logging.disable(logging.CRITICAL)
        nodes.disabled = True
        nodes.propagate = False
        nodes.setLevel(logging.CRITICAL)
        nodes.warning("of it")
    assert heard.lines == ["of it"]


def replace(logger: logging.Logger) -> None:
    logger.handlers = []


def remove_each(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


def change_each(logger: logging.Logger) -> None:
    for handler in logger.handlers:
        handler.setLevel(logging.CRITICAL)
        handler.addFilter(lambda record: False)


@pytest.mark.parametrize(
    "do",
    [
        replace,
        remove_each,
        change_each,
        lambda logger: logger.handlers.clear(),
        lambda logger: logger.handlers.pop(),
        lambda logger: logging.basicConfig(force=True),
    ],
)
def test_an_app_cannot_take_the_handlers_of_others_away(
    do: Callable[[logging.Logger], object], heard: Heard, me: str, other: str
) -> None:
    root = logging.getLogger()
    neighbours = Heard()
    with running_as(other):
        root.addHandler(neighbours)
    with running_as(me):
        assert neighbours not in root.handlers
        do(root)
        root.error("mine")
    with running_as(other):
        root.error("another's")
    root.error("the node's")
    assert heard.lines == ["mine", "another's", "the node's"]
    assert neighbours.lines == ["another's"]


def test_handlers_that_an_app_puts_into_the_list_are_its_own(heard: Heard, me: str, other: str) -> None:
    logger, mine, more = logging.getLogger("shared.library"), Heard(), Heard()
    with running_as(me):
        logger.handlers = [mine]
        logger.handlers += [more]
        assert logger.handlers == [mine, more]
        logger.error("mine")
        logger.handlers.remove(more)
        logger.error("again")
    with running_as(other):
        logger.error("another's")
        assert logger.handlers == []
    assert (mine.lines, more.lines) == (["mine", "again"], ["mine"])
    assert logger.handlers == []


def test_a_class_of_loggers_that_an_app_sets_makes_its_own_loggers(me: str, other: str) -> None:
    class Loud(logging.Logger):
        pass

    with running_as(me):
        logging.setLoggerClass(Loud)
        assert logging.getLoggerClass() is Loud
        assert type(logging.getLogger("made.by.me")) is Loud
    with running_as(other):
        assert type(logging.getLogger("made.by.another")) is logging.Logger
    undo(me)
    with running_as(me):
        assert type(logging.getLogger("made.by.me.later")) is logging.Logger
