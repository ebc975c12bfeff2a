"""Slow, stalled, half-closed and too many clients."""

import asyncio
import threading

import pytest

from runtime_node.http import FrontLimits, GateLimits, HttpFront, Router
from tests.eventually import WITHIN

HOST = b"Host: a.localhost\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX"])
async def test_headers_that_do_not_arrive_end_the_connection(make_site, start):
    site = await make_site(FrontLimits(header_timeout=0.5))
    site.app("a")
    client = await site.connect()
    client.send(start)
    data = await client.rest()
    assert data == b"" if not start else b" 408 " in data


async def test_dripping_headers_does_not_extend_their_time(make_site):
    site = await make_site(FrontLimits(header_timeout=0.5))
    site.app("a")
    client = await site.connect()

    async def drip():
        client.send(b"GET / HTTP/1.1\r\n")
        while True:
            client.send(b"X: y\r\n")
            await asyncio.sleep(0.05)

    dripping = asyncio.ensure_future(drip())
    assert b" 408 " in await client.rest()
    dripping.cancel()


async def test_an_idle_connection_is_closed(make_site):
    site = await make_site(FrontLimits(keep_alive_timeout=0.3))
    site.app("a")
    client = await site.connect()
    client.send(GET)
    assert (await client.answer()).status == 200
    assert await client.rest() == b""


@pytest.mark.parametrize("kept", [5, 60], ids=["httpx", "balancers"])
async def test_a_client_closes_an_idle_connection_before_the_node_does(kept):
    # Else its next request may meet the node's closing of it, and be lost.
    assert FrontLimits().keep_alive_timeout > kept


async def test_a_body_that_stops_arriving_is_answered_408(make_site):
    site = await make_site(FrontLimits(body_idle_timeout=0.3))
    gate = site.app("a")
    client = await site.connect()
    client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\nabc")
    answer = await client.answer()
    assert (answer.status, answer.reason) == (408, "BODY_TIMEOUT")
    assert gate.figures().errors == 0


async def test_a_client_that_was_not_yet_asked_for_its_body_is_not_late_with_it(make_site):
    site = await make_site(FrontLimits(body_idle_timeout=2.0))
    began = threading.Event()
    release = asyncio.Event()
    loops = []

    async def slow(scope, receive, send):
        loops.append(asyncio.get_running_loop())
        began.set()
        await release.wait()
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    site.app("a", slow)
    site.app("b")
    post = b"POST / HTTP/1.1\r\nHost: %b.localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    patient, late = await site.connect(), await site.connect()
    patient.send(post % b"a")
    assert await asyncio.to_thread(began.wait, WITHIN)
    late.send(post % b"b")
    assert [(await late.answer()).status for _ in range(2)] == [100, 408]
    loops[0].call_soon_threadsafe(release.set)
    assert (await patient.answer()).status == 100
    patient.send(b"abc")
    assert (await patient.answer()).body == b"abc"


async def test_a_reader_that_stalls_is_cut_and_pins_no_memory(make_site, wait_until):
    site = await make_site(FrontLimits(write_timeout=0.3))
    sent = 0

    async def flood(scope, receive, send):
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent += 65536

    gate = site.app("a", flood)
    client = await site.connect()
    client.writer.transport.pause_reading()
    client.send(GET)
    await wait_until(lambda: gate.figures().in_flight == 1)
    await wait_until(lambda: site.front.figures().connections == 0)
    assert sent < 50_000_000
    site.app("b")
    assert (await site.get("/", host="b.localhost")).status == 200
    await wait_until(lambda: gate.figures().in_flight == 0)


async def test_a_stalled_reader_of_a_complete_response_is_cut(make_site, wait_until):
    site = await make_site(FrontLimits(write_timeout=0.3))

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"x" * 30_000_000})

    gate = site.app("a", large)
    client = await site.connect()
    client.writer.transport.pause_reading()
    client.send(GET)
    await wait_until(lambda: gate.figures().requests == 1)
    await wait_until(lambda: site.front.figures().connections == 0)


@pytest.mark.parametrize("pieces", [1, 4, 100])
@pytest.mark.parametrize("ending", [b"close", b"keep-alive"])
async def test_a_slow_but_steady_reader_gets_all(make_site, pieces, ending):
    # The whole takes longer than a reader may stall.
    site = await make_site(FrontLimits(write_timeout=2.0, keep_alive_timeout=0.3))

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", ending)]})
        for _ in range(pieces):
            body = b"x" * (20_000_000 // pieces)
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    site.app("a", large)
    client = await site.connect()
    client.send(GET)
    total = 0
    while piece := await client.reader.read(1 << 20):
        total += len(piece)
        await asyncio.sleep(0.01)
    assert total > 20_000_000


async def test_an_upload_faster_than_its_app_is_held_back(site, wait_until):
    release = []

    async def slow(scope, receive, send):
        gate_open = asyncio.Event()
        release.append((asyncio.get_running_loop(), gate_open))
        await gate_open.wait()
        size = 0
        while True:
            message = await receive()
            size += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % size})

    site.app("a", slow)
    client = await site.connect()
    size = 20_000_000
    client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size)
    client.send(b"x" * size)
    await wait_until(lambda: release)
    await asyncio.sleep(0.1)  # that no more is taken can only be waited for
    assert client.writer.transport.get_write_buffer_size() > 5_000_000
    loop, event = release[0]
    loop.call_soon_threadsafe(event.set)
    assert (await client.answer()).body == b"%d" % size


async def test_a_client_that_closed_its_sending_side_is_answered(site):
    async def app(scope, receive, send):
        await asyncio.sleep(0.1)  # the end of what the client sends has come by then
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})

    site.app("a", app)
    [first, second] = await site.raw(GET + GET)
    assert (first.body, second.body) == (b"yes", b"yes")


async def test_a_half_closed_client_is_gone_after_a_while(make_site, wait_until):
    site = await make_site(FrontLimits(half_close_timeout=0.3))
    seen = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] != "http.disconnect":
            pass
        seen.append(message["type"])

    gate = site.app("a", app)
    assert await site.raw(GET) == []
    await wait_until(lambda: seen == ["http.disconnect"])
    await wait_until(lambda: gate.figures().in_flight == 0)
    assert gate.figures().disconnects == 1
    assert site.faults == []


async def test_a_refused_upload_still_sees_its_answer(site):
    site.app("a", limits=GateLimits(max_request_body_bytes=10))
    client = await site.connect()
    client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3000000\r\n\r\n")
    client.send(b"x" * 3_000_000)
    assert b" 413 " in await client.rest()


async def test_stop_waits_for_requests_and_closes_idle_connections(make_site, wait_until):
    site = await make_site()
    release = []

    async def app(scope, receive, send):
        gate_open = asyncio.Event()
        release.append((asyncio.get_running_loop(), gate_open))
        await gate_open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})

    gate = site.app("a", app)
    idle, busy = await site.connect(), await site.connect()
    busy.send(GET)
    await wait_until(lambda: gate.figures().in_flight == 1 and release)
    stopping = asyncio.ensure_future(site.front.stop(WITHIN))
    assert await idle.rest() == b""
    assert not stopping.done()
    loop, event = release[0]
    loop.call_soon_threadsafe(event.set)
    assert await stopping == 0
    data = await busy.rest()
    assert b"connection: close" in data
    assert data.endswith(b"yes")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*site.front.address)


async def test_stop_cuts_what_does_not_end(make_site, wait_until):
    site = await make_site()

    async def app(scope, receive, send):
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                if scope["path"] != "/stubborn":
                    raise
                scope["path"] = "/"

    gate = site.app("a", app)
    clients = [await site.connect(), await site.connect()]
    clients[0].send(GET)
    clients[1].send(GET.replace(b"/ ", b"/stubborn "))
    await wait_until(lambda: gate.figures().in_flight == 2)
    assert await site.front.stop(0.1) == 2
    for client in clients:
        assert b" 503 " in await client.rest()


async def test_an_address_in_use_is_an_error_and_leaves_nothing(make_site, site):
    before = [thread.name for thread in threading.enumerate()].count("front")
    front = HttpFront(*site.front.address, Router())
    with pytest.raises(OSError, match="in use"):
        await front.start()
    assert [thread.name for thread in threading.enumerate()].count("front") == before
