"""Requests of HTTP/2 and calls of gRPC at the node that their app has left: nothing of them is lost."""

from __future__ import annotations

import asyncio
import logging
import random

import grpc
import grpc.aio
import h2.config
import h2.connection
import pytest

from runtime_node.forwarding import Forwarder, ForwardGate, Target
from runtime_node.http import Gate, GateLimits
from tests.apps.grpc.calculator import Calculator
from tests.eventually import WITHIN, eventually
from tests.integration.http.calls import refusal
from tests.integration.http.http2_client import head
from tests.integration.http.other_node import RawNode

Code = grpc.StatusCode


def reason_of(told: grpc.aio.AioRpcError) -> str:
    return dict([*told.initial_metadata(), *told.trailing_metadata()]).get("x-appsupervisor-reason", "")


def echo(channel):
    return channel.unary_unary("/demo.Calculator/Echo")


async def test_every_kind_of_call_is_carried_to_where_the_app_is(make_moved, dial):
    moved = await make_moved(Calculator())
    channel = dial(moved.former)
    assert await echo(channel)(b"hello", timeout=WITHIN) == b"hello"
    counted = channel.unary_stream("/demo.Calculator/Count")(b"4", timeout=WITHIN)
    assert [message async for message in counted] == [b"0", b"1", b"2", b"3"]
    add = channel.stream_unary("/demo.Calculator/Sum")
    assert await add(iter([b"1", b"20", b"300"]), timeout=WITHIN) == b"321"
    chat = channel.stream_stream("/demo.Calculator/Chat")(timeout=WITHIN)
    for word in (b"one", b"two"):
        await chat.write(word)
        assert await chat.read() == b"you said " + word
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF
    failing = channel.unary_stream("/demo.Calculator/Fail")(b"first", timeout=WITHIN)
    assert await failing.read() == b"first"
    told = await refusal(failing.read())
    assert (told.code(), told.details()) == (Code.FAILED_PRECONDITION, "not now")
    assert (moved.forwarder.forwarded, moved.forwarder.failed) == (5, 0)
    # One after the other, and each by itself: over one connection.
    await eventually(lambda: len(moved.home.front._shared.connections) == 1)


async def test_many_calls_and_large_ones_in_both_directions_are_whole(make_moved, dial):
    moved = await make_moved(Calculator())
    call = echo(dial(moved.former))
    large = bytes(range(256)) * 4_000
    assert await asyncio.gather(*(call(large, timeout=WITHIN) for _ in range(2))) == [large] * 2
    asked = [b"%d" % number for number in range(100)]
    assert await asyncio.gather(*(call(it, timeout=WITHIN) for it in asked)) == asked
    assert (moved.forwarder.forwarded, moved.forwarder.failed, moved.carrier.requests) == (102, 0, 0)


async def test_a_request_that_is_no_call_is_carried_with_its_trailers(make_moved, connect):
    async def app(scope, receive, send):
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message["body"]
        fields = dict(scope["headers"])
        seen = b" ".join((scope["http_version"].encode(), scope["raw_path"], scope["query_string"], body))
        fields = [(b"x-host", fields[b"host"]), (b"x-by", fields[b"x-appsupervisor-forwarded"])]
        await send({"type": "http.response.start", "status": 201, "headers": fields, "trailers": True})
        await send({"type": "http.response.body", "body": seen})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"4")]})

    moved = await make_moved(app)
    client = await connect(moved.former)
    answer = await client.answer(client.ask(head("POST", "/p%20q?x=1"), b"said"))
    assert (answer.status, answer.body, answer.trailers) == (201, b"2 /p%20q x=1 said", {"x-sum": "4"})
    assert answer.headers["x-host"] == "a.localhost"
    assert answer.headers["x-by"] == "environments/default/nodes/node-1"
    deleted = await client.answer(client.ask(head("DELETE"), b"a body too"))
    assert deleted.body.endswith(b" a body too")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_an_answer_without_a_body_is_one(make_moved, connect, method, status):
    async def app(scope, receive, send):
        headers = [(b"content-length", b"5"), (b"etag", b'"x"')] if status != 204 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello" if status != 204 else b""})

    moved = await make_moved(app)
    client = await connect(moved.former)
    for _ in range(2):
        answer = await client.answer(client.ask(head(method)))
        assert (answer.status, answer.body, answer.ended, answer.reset) == (status, b"", True, None)


async def test_a_client_that_does_not_read_holds_up_the_app_and_little_waits(make_moved, connect):
    sent = 0

    async def app(scope, receive, send):
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(16_384), "more_body": True})
            sent += 16_384

    moved = await make_moved(app)
    client = await connect(moved.former, window=1_000)
    client.acknowledges = False
    number = client.ask(head())
    await client.read_until(lambda: len(client.responses[number].body) == 1_000)
    before = -1

    def stands():
        nonlocal before
        still, before = before == sent and sent > 0, sent
        return still

    await eventually(stands)
    # The windows of the stream between the nodes, and a piece at each of its ends.
    assert sent <= 4 * 65_536
    client.reset(number)
    await eventually(lambda: moved.gate.figures().running == 0)
    await eventually(lambda: moved.home.router.gate_of("a").figures().disconnects == 1)


async def test_an_app_that_does_not_read_holds_up_its_client_and_little_waits(make_moved, connect):
    asleep = asyncio.Event()

    async def app(scope, receive, send):
        await asleep.wait()

    moved = await make_moved(app)
    client = await connect(moved.former)
    number = client.ask(head("POST"), end=False)
    said = 0
    async with asyncio.timeout(WITHIN):
        while said < 10_000_000:
            if room := min(client.engine.local_flow_control_window(number), 16_384):
                client.say(number, bytes(room))
                said += room
                continue
            reading = asyncio.create_task(client.read())
            _, pending = await asyncio.wait({reading}, timeout=0.5)
            if pending:
                reading.cancel()
                break
    # What each of the two nodes keeps for whoever is behind it, and what is between them.
    assert said <= 8 * 65_536
    client.reset(number)
    await eventually(lambda: moved.gate.figures().running == 0)
    moved.home.front.loop.call_soon_threadsafe(asleep.set)


async def test_a_call_that_is_cancelled_or_late_is_ended_at_the_app_too(make_moved, dial):
    app = Calculator()
    moved = await make_moved(app)
    channel = dial(moved.former)
    call = channel.unary_stream("/demo.Calculator/Listen")(b"")
    assert await call.read() == b"listening"
    call.cancel()
    await eventually(lambda: app.cancelled == ["Listen"])
    # The limit is told to the nodes alone: nobody here would give up first.
    waiting = channel.unary_stream("/demo.Calculator/Wait")(b"", metadata=[("grpc-timeout", "200m")])
    assert await waiting.read() == b"waiting"
    assert (await refusal(waiting.read())).code() == Code.DEADLINE_EXCEEDED
    await eventually(lambda: moved.home.router.gate_of("a").figures().running == 0)
    await eventually(lambda: moved.gate.figures().running == 0)


async def test_a_node_that_dies_in_the_middle_of_a_call_is_told(make_moved, dial):
    moved = await make_moved(Calculator())
    waiting = dial(moved.former).unary_stream("/demo.Calculator/Wait")(b"", timeout=WITHIN)
    assert await waiting.read() == b"waiting"
    for connection in list(moved.home.front._shared.connections):
        moved.home.front.loop.call_soon_threadsafe(connection.transport.abort)
    told = await refusal(waiting.read())
    assert (told.code(), reason_of(told)) == (Code.UNAVAILABLE, "FORWARD_BROKEN_OFF")
    assert moved.forwarder.failed == 1
    # Nor is one lost that finds a kept connection closed.
    assert await echo(dial(moved.former))(b"x", timeout=WITHIN) == b"x"
    await moved.home.front.drain(0)
    told = await refusal(echo(dial(moved.former))(b"x", timeout=WITHIN))
    assert (told.code(), reason_of(told)) == (Code.UNAVAILABLE, "FORWARD_FAILED")


async def test_an_app_that_fails_there_is_told_with_its_reason_and_its_status(make_moved, dial):
    moved = await make_moved(Calculator())
    failing = dial(moved.former).unary_stream("/demo.Calculator/Raises")(b"", timeout=WITHIN)
    assert await failing.read() == b"first"
    told = await refusal(failing.read())
    assert reason_of(told) == "APP_RAISED"
    moved.home.router.gate_of("a").close("APP_CRASHED", 3)
    told = await refusal(echo(dial(moved.former))(b"x", timeout=WITHIN))
    assert (told.code(), reason_of(told)) == (Code.UNAVAILABLE, "APP_CRASHED")
    assert moved.forwarder.failed == 0


async def test_a_call_that_meets_the_next_move_is_carried_to_where_the_app_has_gone(
    make_moved, make_site, dial
):
    moved = await make_moved()
    third = await make_site()
    third.app("a", Calculator())
    # The app has left the node that is forwarded to, and this one is told only now.
    back = ForwardGate("")
    back.open(Forwarder(moved.carrier, "a", Target("127.0.0.1", 9)))
    home = moved.forwarder.target
    moved.home.router.set("a", [], back)
    carry = moved.carrier.connect_http2

    async def connect(target, *, fresh):
        link = await carry(target, fresh=fresh)
        if target == home:
            moved.forwarder.target = Target(*third.front.address, serves_http2=True)
        return link

    moved.carrier.connect_http2 = connect
    channel = dial(moved.former)
    # However long: no more of it is under way than is kept, until an app reads it.
    for size in (0, 1_000, 1_000_000):
        moved.forwarder.target = home
        assert await echo(channel)(bytes(size), timeout=WITHIN) == bytes(size)
    moved.forwarder.target = home
    chat = channel.stream_stream("/demo.Calculator/Chat")(timeout=WITHIN)
    await chat.write(b"one")
    assert await chat.read() == b"you said one"
    chat.cancel()
    assert moved.forwarder.failed == 0


async def test_a_call_is_forwarded_once(make_moved, dial):
    moved = await make_moved()
    again = Forwarder(moved.carrier, "a", Target(*moved.former.front.address, serves_http2=True))
    back = ForwardGate("")
    back.open(again)
    moved.home.router.set("a", [], back)
    told = await refusal(echo(dial(moved.former))(b"x", timeout=WITHIN))
    assert (told.code(), reason_of(told)) == (Code.UNAVAILABLE, "APP_MOVED")
    assert (moved.forwarder.forwarded, again.forwarded) == (1, 0)


async def test_a_node_that_has_no_http2_is_sent_no_call_but_all_else(make_moved, make_site, dial, connect):
    home = await make_site(trusted_proxies=["127.0.0.1"])
    home.app("a")
    moved = await make_moved(target=Target(*home.front.address))
    told = await refusal(echo(dial(moved.former))(b"x", timeout=WITHIN))
    assert (told.code(), reason_of(told)) == (Code.UNAVAILABLE, "APP_MOVED")
    client = await connect(moved.former)
    answer = await client.answer(client.ask(head("POST"), b"said"))
    assert answer.status == 200
    assert b"body=said" in answer.body
    # One that has said so and has it not: nothing was given to anybody.
    refusing = RawNode(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", close=False)
    async with refusing as target:
        moved.forwarder.target = target._replace(serves_http2=True)
        told = await refusal(echo(dial(moved.former))(b"x", timeout=WITHIN))
        assert (told.code(), reason_of(told)) == (Code.UNAVAILABLE, "FORWARD_FAILED")


async def test_a_node_that_leaves_ends_what_it_has_and_refuses_what_it_has_not_begun(make_moved, dial):
    moved = await make_moved(Calculator())
    channel = dial(moved.former)
    chat = channel.stream_stream("/demo.Calculator/Chat")(timeout=WITHIN)
    await chat.write(b"one")
    assert await chat.read() == b"you said one"
    draining = asyncio.create_task(moved.home.front.drain(WITHIN))
    await eventually(lambda: all(it._leaving for it in moved.home.front._shared.connections))
    await chat.write(b"two")
    assert await chat.read() == b"you said two"
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF
    assert await draining == 0
    assert reason_of(await refusal(echo(channel)(b"x", timeout=WITHIN))) == "FORWARD_FAILED"


async def test_a_call_that_waited_at_an_instance_goes_on_to_where_it_is_now(make_moved, dial):
    moved = await make_moved(Calculator())
    held = Gate("apps/a/instances/1")
    held.hold(lambda: None)
    moved.former.router.set("a", [], held)
    call = echo(dial(moved.former))
    asking = [asyncio.ensure_future(call(b"%d" % number, timeout=WITHIN)) for number in range(20)]
    await eventually(lambda: held.figures().queued == 20)
    moved.former.router.set("a", [], moved.gate)
    held.forward(moved.gate)
    assert await asyncio.gather(*asking) == [b"%d" % number for number in range(20)]
    assert moved.forwarder.forwarded == 20


async def test_calls_have_the_bounds_of_their_app(make_moved, dial):
    moved = await make_moved(
        Calculator(), limits=GateLimits(max_concurrent_requests=1, max_queued_requests=0)
    )
    channel = dial(moved.former)
    busy = channel.unary_stream("/demo.Calculator/Wait")(b"", timeout=WITHIN)
    assert await busy.read() == b"waiting"
    told = await refusal(echo(channel)(b"x", timeout=WITHIN))
    assert (told.code(), reason_of(told)) == (Code.UNAVAILABLE, "SERVER_BUSY")
    busy.cancel()


def answer_of_a_node() -> bytes:
    """Return what a node sends for the first request of a connection: a head, a body, trailers."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.send_headers(1, head("POST"))
    node = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    node.initiate_connection()
    node.receive_data(client.data_to_send())
    node.send_headers(1, [(":status", "200"), ("content-type", "application/grpc"), ("x-long", "v" * 100)])
    node.send_data(1, b"\0\0\0\0\1x" * 20)
    node.send_headers(1, [("grpc-status", "0"), ("grpc-message", "done")], end_stream=True)
    return node.data_to_send()


async def test_no_bytes_of_another_node_harm_this_one(make_moved, connect, caplog):
    """What it sends, bent at random places, breaks off at worst the request that it is an answer to."""
    whole = answer_of_a_node()
    moved = await make_moved()
    client = await connect(moved.former)
    for seed in range(30):
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.randint(0, 5)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        async with RawNode(bytes(data[: chance.randint(1, 2 * len(data))])) as target:
            moved.forwarder.target = target._replace(serves_http2=True)
            answer = await client.answer(client.ask(head("POST", content_type="application/grpc"), b"said"))
        assert answer.ended or answer.reset is not None
    assert moved.carrier.requests == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
