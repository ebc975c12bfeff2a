"""One instance's busy worker threads never delay another's, on one loop, under load."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anyio.to_thread
import httpx
import pytest
import uvloop
from fastapi import FastAPI

from runtime_node.isolation.current import CURRENT_INSTANCE, running_as
from runtime_node.isolation.threads import attach, close_threads, open_threads
from runtime_node.isolation.undo_log import undo
from tests.eventually import WITHIN, eventually

ASGI = Callable[..., Any]


def on_both_loops(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def on_loop(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        run(test())

    on_loop.__name__ = test.__name__
    return on_loop


@contextmanager
def instance(name: str, threads: int) -> Iterator[None]:
    attach(asyncio.get_running_loop())
    open_threads(name, threads)
    try:
        yield
    finally:
        close_threads(name)


def as_instance(name: str, app: ASGI) -> httpx.AsyncClient:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        with running_as(name):
            await app(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://test")


@on_both_loops
async def test_an_app_with_all_sync_handlers_busy_does_not_delay_anothers() -> None:
    release, started = threading.Event(), []
    busy, calm = FastAPI(), FastAPI()

    @busy.get("/")
    def hold() -> str:
        started.append(1)
        release.wait(2 * WITHIN)
        return "held"

    @calm.get("/")
    def quick() -> str:
        return threading.current_thread().name

    with instance("busy", 4), instance("calm", 4):
        async with as_instance("busy", busy) as a, as_instance("calm", calm) as b:
            held = [asyncio.create_task(a.get("/")) for _ in range(64)]
            try:
                await eventually(lambda: len(started) == 4)
                for _ in range(50):
                    assert (await asyncio.wait_for(b.get("/"), WITHIN)).status_code == 200
                assert len(started) == 4, "the busy app got more threads than its limit"
            finally:
                release.set()
            assert {answer.status_code for answer in await asyncio.gather(*held)} == {200}
            assert len(started) == 64


@on_both_loops
async def test_the_default_executor_runs_each_instances_calls_on_its_own_threads() -> None:
    release = threading.Event()
    with instance("busy", 2), instance("calm", 2):
        with running_as("busy"):
            held = [asyncio.create_task(asyncio.to_thread(release.wait, 2 * WITHIN)) for _ in range(16)]
            await asyncio.sleep(0)
        try:
            with running_as("calm"):
                loop = asyncio.get_running_loop()
                name = await asyncio.wait_for(
                    loop.run_in_executor(None, lambda: threading.current_thread().name), WITHIN
                )
                assert name == "calm-worker"
                assert (
                    await asyncio.wait_for(loop.run_in_executor(None, CURRENT_INSTANCE.get), WITHIN) == "calm"
                )
            own = asyncio.to_thread(lambda: threading.current_thread().name)
            node = await asyncio.wait_for(own, WITHIN)
            assert node.startswith("node")
        finally:
            release.set()
        await asyncio.gather(*held)


@on_both_loops
async def test_a_default_executor_that_an_app_sets_is_its_own_and_ends_with_it() -> None:
    def name() -> str:
        return threading.current_thread().name

    with instance("calm", 1):
        with instance("own", 1), running_as("own"):
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="mine"))
            assert (await asyncio.to_thread(name)).startswith("mine")
            with running_as("calm"):
                assert await asyncio.to_thread(name) == "calm-worker"
            with pytest.raises(TypeError):
                asyncio.get_running_loop().set_default_executor("no executor")
        undo("own")
        with running_as("calm"):
            assert await asyncio.to_thread(name) == "calm-worker"
        assert (await asyncio.to_thread(name)).startswith("node")


@on_both_loops
async def test_an_app_may_lower_its_limit_but_not_raise_it() -> None:
    with instance("one", 4), running_as("one"):
        limiter = anyio.to_thread.current_default_thread_limiter()
        assert limiter.total_tokens == 4
        limiter.total_tokens = 100
        assert limiter.total_tokens == 4
        limiter.total_tokens = 2
        assert limiter.total_tokens == 2
    assert anyio.to_thread.current_default_thread_limiter().total_tokens == 40


@on_both_loops
async def test_a_stopped_instances_threads_end() -> None:
    with instance("short", 3), running_as("short"):
        await asyncio.gather(*[asyncio.to_thread(int) for _ in range(20)])
    await eventually(lambda: not any(t.name == "short-worker" for t in threading.enumerate()))


@on_both_loops
async def test_a_thread_stuck_in_the_apps_code_is_told_at_its_stop() -> None:
    release = threading.Event()
    attach(asyncio.get_running_loop())
    open_threads("stuck", 1)
    with running_as("stuck"):
        held = asyncio.create_task(asyncio.to_thread(release.wait, 2 * WITHIN))
        await asyncio.sleep(0)
    stuck = close_threads("stuck")
    assert [thread.name for thread in stuck] == ["stuck-worker"]
    release.set()
    await held
    await eventually(lambda: not stuck[0].is_alive())
