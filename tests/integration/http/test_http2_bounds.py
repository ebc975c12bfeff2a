"""HTTP/2 at a node's port: who waits for whom, and what a request, a connection and a peer may have."""

from __future__ import annotations

import asyncio

from runtime_node.http import FrontLimits, GateLimits
from tests.eventually import eventually
from tests.integration.http import http2_client as http2
from tests.integration.http.http2_apps import Waits, replies, sends
from tests.integration.http.http2_client import (
    CALM,
    CANCEL,
    REFUSED_STREAM,
    frame,
    head,
)


async def test_an_app_that_does_not_read_holds_up_its_own_client_alone(site, connect):
    asleep = asyncio.Event()

    async def sleeps(scope, receive, send):
        await asleep.wait()

    site.app("b", sleeps)
    site.app("c")
    client = await connect()
    stuck = [client.ask(head("POST", host="b.localhost"), end=False) for _ in range(20)]
    for number in stuck:
        for size in (16_000, 16_000, 16_000, 16_000, 1_535):
            await client.read_until(lambda size=size: client.engine.outbound_flow_control_window >= size)
            client.say(number, b"x" * size)
    # That is more than the connection's window, which is opened again; those of the streams are not.
    await client.read_until(lambda: client.engine.outbound_flow_control_window >= 10_000)
    assert (await client.answer(client.ask(head("POST", host="c.localhost"), b"x" * 10_000))).status == 200
    assert {client.engine.local_flow_control_window(number) for number in stuck} == {0}
    for number in stuck:
        client.reset(number)
    site.front.loop.call_soon_threadsafe(asleep.set)


async def test_a_slow_client_holds_up_the_app_and_no_more(site, connect):
    told: list[str] = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in range(3):
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            told.append(f"sent {part}")
        await send({"type": "http.response.body", "body": b"end"})

    site.app("a", app)
    client = await connect(window=4_000)
    client.acknowledges = False
    number = client.ask(head())
    response = client.responses[number]
    await client.read_until(lambda: len(response.body) == 4_000)
    await eventually(lambda: told == ["sent 0"])
    client.engine.increment_flow_control_window(100_000, number)
    client.flush()
    assert len((await client.answer(number)).body) == 30_003


async def test_a_client_that_does_not_read_is_let_go_in_time(make_site, connect):
    site = await make_site(FrontLimits(write_timeout=0.2))
    gate = site.app("a", sends(100_000))
    client = await connect(site, window=1_000)
    client.acknowledges = False
    answer = await client.answer(client.ask(head()))
    assert (len(answer.body), answer.reset) == (1_000, CANCEL)
    await eventually(lambda: gate.figures().disconnects == 1)


async def test_streams_and_peers_have_their_bounds(make_site, connect):
    site = await make_site(FrontLimits(max_streams=3, max_connections=10, peer_share=0.5))
    asleep = asyncio.Event()

    async def sleeps(scope, receive, send):
        await asleep.wait()

    gate = site.app("a", sleeps)
    first, second = await connect(site), await connect(site)
    for _ in range(4):
        first.ask(head())
    # The fourth of a connection is refused untouched; so is what goes beyond the peer's share, of which the
    # two connections are a part.
    await first.read_until(lambda: first.responses[7].reset == REFUSED_STREAM)
    second.ask(head())
    await second.read_until(lambda: second.responses[1].reset == REFUSED_STREAM)
    assert gate.figures().in_flight == 3
    first.reset(1)
    await eventually(lambda: gate.figures().disconnects == 0 and site.front._shared.shares.streams == 2)
    site.front.loop.call_soon_threadsafe(asleep.set)


async def test_heads_have_their_bounds(site, connect):
    site.app("a")
    client = await connect()
    for fields, status in (
        ([*head(), *((f"x-{number}", "v") for number in range(101))], 431),
        ([*head(), *((f"x-{number}", "v" * 7_000) for number in range(10))], 431),
        (head(path="/" + "p" * 20_000), 414),
        (head("CONNECT"), 501),
    ):
        assert (await client.answer(client.ask(fields))).status == status
    assert (await client.get()).status == 200


async def test_time_limits_end_a_request_and_not_its_connection(make_site, connect):
    site = await make_site(FrontLimits(body_idle_timeout=0.2))
    site.app("a", Waits(), GateLimits(request_timeout=0.2))
    site.app("b", replies)

    async def reads(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    site.app("c", reads)
    client = await connect(site)
    late = await client.answer(client.ask(head()))
    assert (late.status, late.reason) == (504, "REQUEST_TIMEOUT")
    silent = await client.answer(client.ask(head("POST", host="c.localhost"), end=False))
    assert (silent.status, silent.reason) == (408, "BODY_TIMEOUT")
    assert (await client.get(host="b.localhost")).status == 200


async def test_a_body_that_is_too_large_is_refused(site, connect):
    site.app("a", limits=GateLimits(max_request_body_bytes=10))
    client = await connect()
    told = client.ask(head("POST", content_length="11"), b"x" * 11)
    untold = client.ask(head("POST"), b"x" * 11)
    for number in (told, untold):
        answer = await client.answer(number)
        assert (answer.status, answer.reason) == (413, "REQUEST_BODY_TOO_LARGE")


async def test_who_asks_nothing_is_not_waited_for(make_site, connect):
    site = await make_site(FrontLimits(header_timeout=0.2))
    silent, half = await connect(site), await connect(site)
    half.writer.write(frame(http2.HEADERS, 0, 1, b"\x82"))
    site = await make_site(FrontLimits(stream_idle_timeout=0.2))
    site.app("a")
    idle = await connect(site)
    assert (await idle.get()).status == 200
    assert await silent.end() == 0
    assert await half.end() in (0, CALM)
    assert await idle.end() == 0
