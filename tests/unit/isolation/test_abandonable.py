"""A call that nobody waits for any more ends, and so does a thread of an app that has stopped, wherever the
interruption falls.
"""

import asyncio
import contextlib
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from runtime_node.isolation import lasting, lost_interruptions
from runtime_node.isolation.abandonable import run_abandonable
from runtime_node.isolation.endings import ThreadEndedError, end_by_force
from tests.eventually import eventually


@pytest.fixture(autouse=True)
def lost(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Install the hook, and give what it hands on to the one before."""
    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    monkeypatch.setattr(lost_interruptions, "_hook_before", None)
    monkeypatch.setattr(lasting, "SWALLOWED_SECONDS", 0.1)

    lost_interruptions.install()
    return heard


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


def in_a_callback_that_takes_everything(stay: Callable[[], None]) -> None:
    """As asyncio does it where a task that failed unheard is collected: no hook hears of it."""

    class Finalized:
        def __del__(self) -> None:
            try:
                stay()
            except BaseException:
                return

    Finalized()


LOSE = [
    in_a_weak_references_callback,
    in_a_finalizer,
    in_a_callback_of_the_collector,
    in_a_callback_that_takes_everything,
]


@pytest.mark.parametrize("lose", LOSE)
async def test_an_interruption_that_gets_lost_is_repeated(
    lose: Callable[[Callable[[], None]], None], lost: list[Any]
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
    assert lost == []


@pytest.mark.parametrize("lose", LOSE)
def test_a_thread_ends_also_where_its_interruption_got_lost(
    lose: Callable[[Callable[[], None]], None], lost: list[Any]
) -> None:
    inside = threading.Event()

    def stay() -> None:
        inside.set()
        while True:
            time.sleep(0.001)

    def run() -> None:
        with contextlib.suppress(ThreadEndedError):
            lose(stay)
            while True:  # as if nothing had happened
                time.sleep(0.001)

    thread = threading.Thread(target=run, name="left behind", daemon=True)
    thread.start()
    assert inside.wait(30)
    end_by_force([thread], time.monotonic() + 60)
    assert not thread.is_alive()
    assert lost == []


async def test_what_else_gets_lost_is_told_as_ever(lost: list[Any]) -> None:
    def raises() -> None:
        raise ValueError("lost")

    await run_abandonable(lambda: in_a_finalizer(raises), name="calm")
    assert [one.exc_type for one in lost] == [ValueError]


async def test_an_abandoned_call_is_left_to_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "SWALLOWED_SECONDS", 3600.0)
    inside, cleaned = threading.Event(), threading.Event()

    def call() -> None:
        try:
            inside.set()
            while True:
                time.sleep(0.001)
        finally:
            for _ in range(100):
                time.sleep(0.001)
            cleaned.set()

    running = asyncio.ensure_future(run_abandonable(call, name="abandoned"))
    await eventually(inside.is_set)
    running.cancel()
    await eventually(cleaned.is_set)


def test_a_thread_that_has_ended_gets_nothing_nor_does_one_that_took_its_ident(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, go = threading.Thread(target=lambda: None), threading.Event()
    ended.start()
    ended.join()
    outcome: list[bool] = []
    other = threading.Thread(target=lambda: outcome.append(go.wait(30)))
    other.start()
    monkeypatch.setattr(ended, "_ident", other.ident)
    lasting.LastingInterruption(ended, ThreadEndedError).raise_if_due()
    go.set()
    other.join()
    assert outcome == [True]


@pytest.mark.parametrize("fault", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
async def test_a_call_that_wants_to_end_its_caller_has_failed(fault: type[BaseException]) -> None:
    def call() -> None:
        raise fault

    with pytest.raises(RuntimeError, match=f"the call raised {fault.__name__}"):
        await run_abandonable(call, name="ending")
