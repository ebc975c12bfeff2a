"""A guest behind the node's real HTTP front: bytes in, bytes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from websockets.asyncio.client import connect

from appsupervisor.runtime.v1.runtime_environment_pb2 import Limits
from runtime_node.http.front import HttpFront
from runtime_node.http.gate import Gate
from runtime_node.http.router import Router
from tests.eventually import eventually
from tests.integration.http.http2_client import Client, head

from .conftest import Guests


class Site:
    """A front with one app per name."""

    def __init__(self, guests: Guests) -> None:
        self.guests = guests
        self.router = Router()
        self.front = HttpFront("127.0.0.1", 0, self.router)
        self.port = 0

    async def open(self, name: str, **more: object) -> object:
        app = await self.guests.start(**more)
        gate = Gate(name)
        self.router.set(name, [f"{name}.test"], gate)
        gate.open(app.asgi)
        return app

    def client(self, name: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=False, base_url=f"http://127.0.0.1:{self.port}", headers={"host": f"{name}.test"}
        )


@pytest.fixture
async def site(guests: Guests) -> AsyncIterator[Site]:
    site = Site(guests)
    _, site.port = await site.front.start()
    yield site
    for app in list(guests.running):
        await guests.stop(app, 1)
    await site.front.stop(1)


async def test_requests_bodies_and_paths_pass_the_front(site: Site) -> None:
    await site.open("shop")
    async with site.client("shop") as client:
        assert (await client.get("/")).text == "ok"
        body = b"0123456789" * 100_000
        assert (await client.post("/echo", content=body)).content == body
        shown = (await client.get("/apps/shop/scope?x=%2F", headers={"host": "localhost"})).json()
        assert shown["root_path"] == "/apps/shop"
        assert shown["query"] == "x=%2F"


async def test_faults_of_a_guest_are_answered_with_their_status(site: Site) -> None:
    limits = Limits(block_budget=Duration(nanos=200_000_000))
    app = await site.open("bad", limits=limits)
    await site.open("good")
    async with site.client("bad") as bad, site.client("good") as good:
        assert (await bad.get("/raise")).status_code == 500
        cancelled = await bad.get("/raise-cancelled")
        assert cancelled.status_code == 500
        assert "APP_RAISED" in cancelled.text
        blocked = await bad.get("/spin?20")
        assert blocked.status_code == 504
        assert "APP_BLOCKED_LOOP" in blocked.text
        dying = asyncio.create_task(bad.get("/segfault"))
        assert (await good.get("/")).text == "ok"
        crashed = await dying
        assert crashed.status_code == 502
        assert "APP_CRASHED" in crashed.text
        await eventually(lambda: app.exits)
        # What never reached the process waits for the next one, which here does not come.
        gate = site.router.gate_of("bad")
        assert gate is not None
        waiting = asyncio.create_task(bad.get("/"))
        await eventually(lambda: gate.figures().queued)
        assert (await good.get("/")).text == "ok"
        gate.close("APP_CRASHED")
        assert (await waiting).status_code == 503
    site.guests.running.remove(app)


async def test_a_websocket_passes_the_front(site: Site) -> None:
    await site.open("chat")
    url = f"ws://127.0.0.1:{site.port}/apps/chat/"
    async with connect(url, subprotocols=["one"]) as socket:
        assert socket.subprotocol == "one"
        await socket.send("hello")
        assert await socket.recv() == "hello"
        await socket.send(b"\0" * 500_000)
        assert await socket.recv() == b"\0" * 500_000
        await socket.send("bye")
        await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (4001, "asked")


async def test_a_guest_talks_by_turns_over_http_2_and_ends_with_trailers(site: Site) -> None:
    await site.open("calc", entrypoint="calculator:create_app")
    client = Client(*await asyncio.open_connection("127.0.0.1", site.port), 65_535)
    asked = head("POST", "/demo.Calculator/Chat", "calc.test", content_type="application/grpc")
    number = client.ask(asked, end=False)
    response = client.responses[number]
    for word in (b"one", b"two"):
        client.say(number, b"\0\0\0\0\3" + word)
        await client.read_until(lambda word=word: response.body.endswith(b"you said " + word))
    client.say(number, b"", end=True)
    assert (await client.answer(number)).trailers == {"grpc-status": "0", "grpc-message": ""}
    refused = await client.answer(client.ask(head("POST", "/demo.Calculator/None", "calc.test"), b""))
    assert (refused.status, refused.trailers["grpc-status"]) == (200, "12")
    await client.close()
