"""WebSockets through a guest's proxy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.rpc.errors import SupervisorError
from tests.eventually import WITHIN, eventually

from .conftest import Guests


class Socket:
    """A WebSocket client of an ASGI callable."""

    def __init__(self, app: Any, path: str = "/", subprotocols: tuple[str, ...] = ()) -> None:
        self.left = False
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.events.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
            "scheme": "ws", "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
            "headers": [(b"host", b"test")], "client": ("192.0.2.1", 1), "server": ("test", 80),
            "subprotocols": list(subprotocols), "extensions": {"websocket.http.response": {}},
        }  # fmt: skip
        self.task = asyncio.ensure_future(app.asgi(scope, self.events.get, self.send))

    async def send(self, message: dict[str, Any]) -> None:
        if self.left:
            raise OSError("the client is gone")
        await self.sent.put(message)

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.sent.get(), WITHIN)


async def test_text_and_bytes_are_echoed_in_order(guests: Guests) -> None:
    app = await guests.start()
    socket = Socket(app, subprotocols=("chat",))
    assert await socket.next() == {"type": "websocket.accept", "subprotocol": "chat", "headers": []}
    for message in ({"text": "grüße"}, {"bytes": b"\x00\xff"}, {"text": ""}, {"bytes": b"b" * 3_000_000}):
        socket.events.put_nowait({"type": "websocket.receive", **message})
        got = await socket.next()
        assert {key: got[key] for key in message} == message
    socket.events.put_nowait({"type": "websocket.disconnect", "code": 1001, "reason": "gone"})
    await asyncio.wait_for(socket.task, WITHIN)


async def test_the_apps_close_carries_code_and_reason(guests: Guests) -> None:
    app = await guests.start()
    socket = Socket(app)
    await socket.next()
    socket.events.put_nowait({"type": "websocket.receive", "text": "bye"})
    assert await socket.next() == {"type": "websocket.close", "code": 4001, "reason": "asked"}
    await asyncio.wait_for(socket.task, WITHIN)


async def test_a_denied_handshake_carries_its_response(guests: Guests) -> None:
    app = await guests.start()
    socket = Socket(app, "/deny")
    start, body = await socket.next(), await socket.next()
    assert start["status"] == 403
    assert start["headers"] == [(b"x-why", b"no")]
    assert body["body"] == b"denied"
    await asyncio.wait_for(socket.task, WITHIN)


async def test_a_crash_breaks_the_websocket_off(guests: Guests) -> None:
    app = await guests.start()
    socket = Socket(app)
    await socket.next()
    socket.events.put_nowait({"type": "websocket.receive", "text": "die"})
    with pytest.raises(SupervisorError) as caught:
        await asyncio.wait_for(socket.task, WITHIN)
    assert caught.value.reason == "APP_CRASHED"
    await eventually(lambda: app.exits)
    assert app.exits[0].metadata["signal"] == "SIGKILL"
    guests.running.remove(app)


async def test_an_app_hears_of_its_client_from_send_and_receive(guests: Guests) -> None:
    app = await guests.start()
    socket = Socket(app, "/push")
    for _ in range(3):
        await socket.next()
    socket.events.put_nowait({"type": "websocket.receive", "text": "last"})
    socket.events.put_nowait({"type": "websocket.disconnect", "code": 1001, "reason": ""})
    socket.left = True
    await asyncio.wait_for(socket.task, WITHIN)
    heard = (app.data_dir / "heard").read_text()
    assert heard == "ClientDisconnectedError websocket.receive websocket.disconnect"


async def test_a_cancelled_websocket_is_cut_on_both_sides(guests: Guests) -> None:
    app = await guests.start()
    socket = Socket(app)
    await socket.next()
    socket.task.cancel()
    await eventually(lambda: app._guest.beat.active == 0)
