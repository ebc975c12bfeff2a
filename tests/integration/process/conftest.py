"""Real guests: a zygote per test session's loop, launches, and a client of the ASGI callable."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec, Limits
from runtime_node.context import AppContext
from runtime_node.tiers.process import procfs
from runtime_node.tiers.process.runner import ProcessRunner
from runtime_node.tiers.process.running import ProcessRunningApp
from runtime_node.tiers.process.zygote import Zygote
from runtime_node.tiers.runner import Launch, StopReport
from services.rpc.errors import SupervisorError
from tests.eventually import WITHIN, eventually

APPS = Path(__file__).parent / "apps"
CALCULATOR = Path(__file__).parents[2] / "apps" / "grpc"
_names = itertools.count(1)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@dataclass
class Response:
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False


async def request(
    app: Any,
    path: str = "/",
    query: str = "",
    *,
    method: str = "GET",
    chunks: list[bytes] | None = None,
    on_body: Callable[[bytes], Any] | None = None,
    disconnect: asyncio.Event | None = None,
    **scope: Any,
) -> Response:
    """Call an app as the front does; collect what it sends."""
    headers = [(b"host", b"test")]
    if chunks is not None:
        headers.append((b"content-length", b"%d" % sum(map(len, chunks))))
    full = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": method, "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(), "headers": headers, "client": ("192.0.2.1", 4711),
        "server": ("test", 80), **scope,
    }  # fmt: skip
    response = Response()
    pending = list(chunks or [b""])

    async def receive() -> dict[str, Any]:
        if pending:
            chunk = pending.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(pending)}
        await (disconnect or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            response.status, response.headers = message["status"], message["headers"]
            return
        if on_body is not None:
            await on_body(message["body"])
        else:
            response.body += message["body"]
        response.complete = not message.get("more_body", False)

    await app.asgi(full, receive, send)
    return response


class Guests:
    """Starts guests and remembers what their tier told about them."""

    def __init__(self, runner: ProcessRunner, zygote: Zygote, data: Path) -> None:
        self.runner = runner
        self.zygote = zygote
        self.data = data
        self.exits: dict[str, list[SupervisorError | None]] = {}
        self.blocked: dict[str, list[tuple[str, float]]] = {}
        self.running: list[ProcessRunningApp] = []

    def launch(self, entrypoint: str = "chaos:app", **more: Any) -> Launch:
        app = f"app{next(_names)}"
        name = f"apps/{app}/instances/one"
        data_dir = self.data / app
        data_dir.mkdir()
        context = AppContext(
            app=app, instance=name, generation=more.get("generation", 1), config=more.get("config", {}),
            env=more.get("env", {}), secrets=more.get("secrets", {}),
            database_url=more.get("database_url"), data_dir=data_dir,
            logger=logging.getLogger(f"guest.{app}"),
        )  # fmt: skip
        exits = self.exits.setdefault(app, [])
        blocked = self.blocked.setdefault(app, [])
        spec = InstanceSpec(
            name=name, entrypoint=entrypoint, limits=more.get("limits", Limits()),
            event_loop=more.get("event_loop", InstanceSpec.EVENT_LOOP_UNSPECIFIED),
        )  # fmt: skip
        return Launch(spec, context, exits.append, lambda stack, seconds: blocked.append((stack, seconds)))

    async def start(self, entrypoint: str = "chaos:app", **more: Any) -> Any:
        return await self.start_launch(self.launch(entrypoint, **more))

    async def start_launch(self, launch: Launch) -> Any:
        app = await asyncio.wait_for(self.runner.start(launch), WITHIN)
        self.running.append(app)
        app.data_dir = launch.context.data_dir
        app.exits = self.exits[launch.context.app]
        app.blocked = self.blocked[launch.context.app]
        return app

    async def stop(self, app: ProcessRunningApp, timeout: float = WITHIN) -> StopReport:
        self.running.remove(app)
        return await app.stop(timeout)


async def ended(guests: Guests, app: Any) -> SupervisorError:
    """Return why a guest ended by itself; fail when it doesn't."""
    (error,) = await eventually(lambda: app.exits)
    guests.running.remove(app)
    assert error is not None
    return error


@pytest.fixture
async def guests(tmp_path: Path) -> AsyncIterator[Guests]:
    uvloop.new_event_loop().close()  # the first one opens a pipe that libuv keeps for the process's life
    zygote = Zygote.launch([APPS, CALCULATOR], preload=[])
    before = len(os.listdir("/proc/self/fd"))
    runner = ProcessRunner(zygote)
    guests = Guests(runner, zygote, tmp_path)
    yield guests
    for app in list(guests.running):
        await guests.stop(app, 0.5)
    first = zygote._first_tag
    left = [pid for pid, _ in procfs.marked(range(first, first + 10_000))]
    await runner.close()
    assert not left, "processes of stopped guests are still there"
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
