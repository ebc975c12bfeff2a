"""Contexts for apps, and a client that talks to an app through its ASGI callable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime_node.context import AppContext
from runtime_node.loader import Loader
from tests.eventually import WITHIN

APPS = Path(__file__).resolve().parents[2] / "apps"


@pytest.fixture
def apps() -> Path:
    return APPS


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., AppContext]:
    def make(app: str = "demo", **values: Any) -> AppContext:
        known: dict[str, Any] = {
            "app": app,
            "instance": f"apps/{app}/instances/one",
            "generation": 1,
            "config": {},
            "env": {},
            "secrets": {},
            "database_url": f"sqlite:///{tmp_path}/{app}.db",
            "data_dir": tmp_path,
            "logger": logging.getLogger(f"test.{app}"),
        }
        return AppContext(**{**known, **values})

    return make


Served = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def served(make_context: Callable[..., AppContext]) -> Served:
    """Load an entrypoint, run its lifespan, and give a client of it."""

    @asynccontextmanager
    async def serve(
        loader: Loader, entrypoint: str, *, app: str = "demo", private: bool = False
    ) -> AsyncIterator[httpx.AsyncClient]:
        code = await asyncio.to_thread(loader.load, entrypoint, private=private)
        try:
            asgi = await code.build(make_context(app), threads=4)
            async with (
                _lifespan(asgi),
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(asgi), base_url=f"http://{app}.localhost"
                ) as client,
            ):
                yield client
        finally:
            code.release()

    return serve


@asynccontextmanager
async def _lifespan(asgi: Any) -> AsyncIterator[None]:
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def run() -> None:
        try:
            await asgi({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.get, outbox.put)
        except BaseException as fault:
            await outbox.put({"type": "unsupported", "fault": fault})

    task = asyncio.create_task(run())
    await inbox.put({"type": "lifespan.startup"})
    started = await asyncio.wait_for(outbox.get(), WITHIN)
    yield
    if started["type"] == "lifespan.startup.complete":
        await inbox.put({"type": "lifespan.shutdown"})
        await asyncio.wait_for(outbox.get(), WITHIN)
    await asyncio.wait_for(task, WITHIN)
