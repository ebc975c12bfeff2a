"""WebSockets that one listener forwards to another: messages, ends, bounds."""

import asyncio

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from runtime_node.forwarding.carrier import CarrierLimits
from runtime_node.http import Gate, GateLimits
from tests.eventually import eventually


async def websocket_app(scope, receive, send):
    """Echo, and do as told."""
    assert scope["type"] == "websocket"
    await receive()
    if scope["path"] == "/refuse":
        await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"no")]})
        await send({"type": "websocket.http.response.body", "body": b"not you"})
        return
    protocol = scope["subprotocols"][0] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": protocol, "headers": [(b"x-app", b"mine")]})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            websocket_app.ends.append(message["code"])
            return
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 4321, "reason": "as told"})
        elif (message.get("text") or "").startswith("send "):
            await send({"type": "websocket.send", "bytes": bytes(int(message["text"][5:]))})
        else:
            await send({**message, "type": "websocket.send"})


@pytest.fixture
async def talking(make_moved):
    websocket_app.ends = []
    moved = await make_moved(websocket_app, limits=GateLimits(max_websocket_message_bytes=16 * 1024 * 1024))
    moved.home.router.gate_of("a").limits = GateLimits(max_websocket_message_bytes=16 * 1024 * 1024)

    def open_one(path="/", **options):
        host, port = moved.former.front.address
        options.setdefault("max_size", None)
        return connect(f"ws://a.localhost:{port}{path}", host=host, port=port, proxy=None, **options)

    moved.open = open_one
    return moved


async def test_a_websocket_is_carried_both_ways_with_its_protocol_and_close(talking):
    async with talking.open(subprotocols=["chat"], compression=None) as client:
        assert (client.subprotocol, client.response.headers["x-app"]) == ("chat", "mine")
        for data in ("grüße", b"bytes", "", b"x" * 5_000_000, "y" * 100_000):
            await client.send(data)
            assert await client.recv() == data
        await client.send(iter(["in ", "parts"]))
        assert await client.recv() == "in parts"
        assert talking.carrier.websockets == 1
        await client.send("close")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.close_code, client.close_reason) == (4321, "as told")
    await eventually(lambda: talking.carrier.websockets == 0)
    assert (talking.forwarder.forwarded, talking.forwarder.failed) == (1, 0)
    assert talking.carrier.held == 0


async def test_an_app_hears_how_a_client_has_left(talking):
    client = await talking.open()
    await client.close(4000, "bye")
    await eventually(lambda: websocket_app.ends == [4000])
    client = await talking.open()
    client.transport.abort()
    await eventually(lambda: len(websocket_app.ends) == 2)
    assert talking.forwarder.failed == 0


async def test_a_refused_handshake_is_refused_as_the_app_has_it(talking):
    with pytest.raises(InvalidStatus) as refused:
        await talking.open("/refuse")
    response = refused.value.response
    assert (response.status_code, response.headers["x-why"], response.body) == (401, "no", b"not you")


async def test_a_websocket_whose_node_goes_is_told_to_come_again(talking):
    async with talking.open() as client:
        await client.send("here")
        assert await client.recv() == "here"
        for connection in list(talking.home.front._shared.connections):
            talking.home.front.loop.call_soon_threadsafe(connection.transport.abort)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1012


async def test_websockets_are_forwarded_once_and_so_many(talking):
    with pytest.raises(InvalidStatus) as refused:
        await talking.open(additional_headers={"X-AppSupervisor-Forwarded": "me"})
    assert refused.value.response.headers["x-appsupervisor-reason"] == "APP_MOVED"
    talking.carrier.limits = CarrierLimits(max_websockets=1)
    async with talking.open():
        with pytest.raises(InvalidStatus) as refused:
            await talking.open()
    assert refused.value.response.headers["x-appsupervisor-reason"] == "SERVER_BUSY"


async def test_messages_that_take_their_time_hold_no_more_than_a_bound(talking):
    talking.carrier.limits = CarrierLimits(max_held_bytes=100_000)
    async with talking.open(compression=None) as client:
        await client.send("send 5000000")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1013
    await eventually(lambda: talking.carrier.held == 0)


async def test_a_websocket_that_waited_at_an_instance_is_carried_too(talking):
    held = Gate("apps/a/instances/1")
    held.hold(lambda: None)
    talking.former.router.set("a", [], held)
    opening = asyncio.create_task(talking.open().__aenter__())
    await eventually(lambda: held.figures().queued == 1)
    talking.former.router.set("a", [], talking.gate)
    held.forward(talking.gate)
    client = await opening
    await client.send("hello")
    assert await client.recv() == "hello"
    await client.close()
