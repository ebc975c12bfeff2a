"""What an app has raised is shown, whatever its own code does about that, and nothing of it leaves there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pytest

from runtime_node.isolation.refusals import RefusedError
from runtime_node.loader.failures import MAX_DETAIL_BYTES, describe, failure, with_refusal
from runtime_node.raised import LONGEST, message_of, traceback_of, type_name
from runtime_node.tiers.process import guest


def that(name: str, show: Callable[[Any], Any]) -> Exception:
    """Return an exception that is shown by a function."""
    kind: type[Exception] = type(name, (Exception,), {"__str__": show, "__repr__": show})
    return kind("hidden")


def raises(fault: BaseException) -> Callable[[Any], str]:
    def show(_: Any) -> str:
        raise fault

    return show


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise ValueError("no name")
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=Nameless):
    """Its class does not tell what it is called."""


class Unlike(Exception):  # noqa: N818
    """Pretends to be another class, and to have come of something odd."""

    __class__ = property(raises(SystemExit(3)))  # type: ignore[assignment]
    __cause__ = property(raises(SystemExit(3)))  # type: ignore[assignment]


def chain() -> Exception:
    fault = ValueError(0)
    for number in range(3000):
        outer = ValueError(number)
        outer.__context__ = fault
        fault = outer
    return fault


FAULTS = {
    "fails": that("fails", raises(RuntimeError())),
    "exits": that("exits", raises(SystemExit(3))),
    "ends": that("ends", raises(GeneratorExit())),
    "huge": that("huge", lambda _: "x" * 5_000_000),
    "no text": that("no text", lambda _: 7),
    "surrogates": that("surrogates", lambda _: "a\ud800b\0"),
    "no name": NamelessError("text"),
    "unlike": Unlike("text"),
    "chain": chain(),
    "odd syntax": SyntaxError("s\ud800", ("f\ud800", 1, 1, "x" * 100_000)),
}


@pytest.mark.parametrize("which", FAULTS)
def test_it_is_shown_within_bounds_as_text_that_can_be_told(which: str) -> None:
    fault = FAULTS[which]
    for text in (type_name(fault), message_of(fault), traceback_of(fault), with_refusal(fault)):
        assert text.encode()
        assert len(text) <= 2 * LONGEST + 10
    assert len(describe(fault).encode()) <= MAX_DETAIL_BYTES
    told = failure("APP_FACTORY_FAILED", f"it raised {with_refusal(fault)}", fault, secrets=("secret",))
    assert told.message.encode()
    assert told.metadata["detail"].encode()


def test_what_it_was_refused_is_told_through_what_it_was_wrapped_in() -> None:
    outer = RuntimeError("outer")
    outer.__cause__ = RefusedError("fork")
    assert with_refusal(outer).endswith("caused by RefusedError: fork")


@pytest.mark.parametrize("which", FAULTS)
def test_a_guest_that_logs_it_has_its_record_told(which: str) -> None:
    reading, writing = os.pipe()
    record = logging.LogRecord("app", logging.ERROR, __file__, 1, "Exception in the app", (), None)
    record.exc_info = (type(FAULTS[which]), FAULTS[which], None)
    with open(reading, "rb") as lines, open(writing, "wb") as told:
        os.set_blocking(writing, False)
        os.set_blocking(reading, False)
        guest._NodeLogHandler(told.fileno()).emit(record)
        assert (lines.read(50) or b"").startswith(b'[40, "app", ')
