"""A call that nobody waits for any more ends, wherever its interruption falls."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from runtime_node.isolation.abandonable import run_abandonable
from tests.eventually import eventually


class Thing:
    """Can be referred to weakly."""


def in_a_weak_references_callback(stay: Callable[[], None]) -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: stay())
    del thing
    assert reference() is None


def in_a_finalizer(stay: Callable[[], None]) -> None:
    class Finalized:
        def __del__(self) -> None:
            stay()

    Finalized()


def in_a_callback_of_the_collector(stay: Callable[[], None]) -> None:
    def told(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(told)
        stay()

    gc.callbacks.append(told)
    gc.collect()


@pytest.mark.parametrize(
    "lose", [in_a_weak_references_callback, in_a_finalizer, in_a_callback_of_the_collector]
)
async def test_an_interruption_that_gets_lost_is_repeated(
    lose: Callable[[Callable[[], None]], None],
) -> None:
    inside, ended = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        while True:
            time.sleep(0.001)

    def call() -> None:
        try:
            lose(stay)
            while True:  # as if nothing had happened
                time.sleep(0.001)
        finally:
            ended.set()

    running = asyncio.ensure_future(run_abandonable(call, name="abandoned"))
    await eventually(inside.is_set)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await eventually(ended.is_set)


async def test_what_else_gets_lost_is_told_as_ever() -> None:
    heard: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime_node.isolation.abandonable._hook_before", heard.append)

        def raises() -> None:
            raise ValueError("lost")

        await run_abandonable(lambda: in_a_finalizer(raises), name="calm")
    assert [one.exc_type for one in heard] == [ValueError]
