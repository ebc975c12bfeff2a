"""WebSockets through the gate."""

import asyncio
import time
from types import SimpleNamespace

import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from runtime_node.http import CURRENT_INSTANCE, FrontLimits, GateLimits, shared, websocket
from tests.eventually import WITHIN

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: a.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(data, opcode=2, fin=True, length=None):
    """Return a frame as a client sends it, with a mask of zeros; `length`: what its header says."""
    size = len(data) if length is None else length
    head = bytes([opcode | (0x80 if fin else 0)])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += b"\xfe" + size.to_bytes(2, "big")
    else:
        head += b"\xff" + size.to_bytes(8, "big")
    return head + bytes(4) + data


def app_that_echoes(log):
    async def app(scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        log.append(
            (CURRENT_INSTANCE.get(), scope["type"], scope["path"], scope["root_path"], scope["subprotocols"])
        )
        await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
        while (message := await receive())["type"] == "websocket.receive":
            await send(
                {"type": "websocket.send", **{k: message[k] for k in ("text", "bytes") if k in message}}
            )
        log.append(message["code"])

    return app


def url(site, path="/"):
    return site.url.replace("http", "ws") + "/apps/a" + path


async def test_messages_go_both_ways_and_are_counted_apart(site, wait_until):
    log = []
    gate = site.app("a", app_that_echoes(log), GateLimits(max_concurrent_requests=1))
    async with connect(url(site, "/ws?x=1"), subprotocols=["chat"]) as first, connect(url(site)) as second:
        await first.send("text")
        assert await first.recv() == "text"
        await second.send(b"\0\xff" * 100_000)
        assert await second.recv() == b"\0\xff" * 100_000
        assert first.subprotocol == "chat"
        figures = gate.figures()
        assert (figures.websockets, figures.in_flight) == (2, 0)
    assert log[0] == ("apps/a/instances/1", "websocket", "/apps/a/ws", "/apps/a", ["chat"])
    await wait_until(lambda: gate.figures().websockets == 0)
    assert site.faults == []


async def test_a_handshake_waits_for_a_dormant_app(site, wait_until):
    log, wanted = [], []
    gate = site.app("a", None)
    gate.hold(lambda: wanted.append(1))
    opening = asyncio.ensure_future(connect(url(site)).__aenter__())
    await wait_until(lambda: wanted == [1] and gate.figures().queued == 1)
    gate.open(app_that_echoes(log))
    client = await opening
    await client.send("x")
    assert await client.recv() == "x"
    await client.close()


async def test_a_handshake_that_waits_too_long_is_answered_504(site):
    gate = site.app("a", None, GateLimits(request_timeout=0.2))
    gate.hold(lambda: None)
    with pytest.raises(InvalidStatus) as caught:
        await connect(url(site)).__aenter__()
    assert caught.value.response.status_code == 504
    assert gate.figures().queued == 0


async def test_a_client_that_answers_the_apps_close_is_let_go_at_once(site, monkeypatch):
    monkeypatch.setattr(websocket, "_CLOSE_SECONDS", 3600.0)

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000})

    site.app("a", app)
    connection = await site.connect()
    connection.send(HANDSHAKE)
    async with asyncio.timeout(WITHIN):
        await connection.reader.readuntil(b"\r\n\r\n")
        assert (await connection.reader.readexactly(4))[2:] == (4000).to_bytes(2, "big")
    connection.send(b"\x88\x82\0\0\0\0" + (4000).to_bytes(2, "big"))
    assert await connection.rest() == b""


async def test_a_handshake_that_meets_the_end_of_its_instance_is_taken_in_and_told_to_come_again(
    site, wait_until
):
    taking = []

    async def app(scope, receive, send):
        await receive()
        taking.append(asyncio.Event())
        await taking[0].wait()
        await send({"type": "websocket.accept"})
        await receive()

    gate = site.app("a", app)
    opening = asyncio.ensure_future(connect(url(site)).__aenter__())
    await wait_until(lambda: taking)
    draining = asyncio.create_task(gate.drain(30))
    await wait_until(lambda: gate._idle is not None)
    site.front.loop.call_soon_threadsafe(taking[0].set)
    client = await opening
    await client.wait_closed()
    assert (client.close_code, await draining) == (1012, 0)


async def test_an_app_that_never_answers_the_handshake_is_cut(site, wait_until):
    async def silent(scope, receive, send):
        await asyncio.Event().wait()

    gate = site.app("a", silent, GateLimits(request_timeout=0.2))
    with pytest.raises(InvalidStatus) as caught:
        await connect(url(site)).__aenter__()
    assert caught.value.response.status_code == 504
    await wait_until(lambda: gate.figures().websockets == 0)


async def test_an_open_websocket_outlives_the_request_limit(site, wait_until, monkeypatch):
    site.app("a", app_that_echoes([]))
    async with connect(url(site)) as client:
        # The front's clock goes on by an hour.
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600, time=time.time)
        monkeypatch.setattr(shared, "time", later)
        for least in (site.front._shared.now + 3000, site.front._shared.now + 3600.5):
            await wait_until(lambda least=least: site.front._shared.now > least)
        await client.send("still here")
        assert await client.recv() == "still here"


async def test_refusals_come_as_problems(site):
    gate = site.app("a", app_that_echoes([]), GateLimits(max_websockets=1))
    async with connect(url(site)):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url(site)).__aenter__()
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["x-appsupervisor-reason"] == "SERVER_BUSY"
    gate.close("APP_STOPPED")
    with pytest.raises(InvalidStatus) as caught:
        await connect(url(site)).__aenter__()
    assert caught.value.response.headers["x-appsupervisor-reason"] == "APP_STOPPED"
    with pytest.raises(InvalidStatus) as caught:
        await connect(url(site).replace("/apps/a", "/apps/nobody")).__aenter__()
    assert caught.value.response.status_code == 404


async def test_an_app_may_refuse_a_handshake_by_itself(site):
    async def app(scope, receive, send):
        await receive()
        if scope["path"].endswith("/custom"):
            await send({"type": "websocket.http.response.start", "status": 418, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b"teapot"})
        else:
            await send({"type": "websocket.close"})

    site.app("a", app)
    for path, status in (("/custom", 418), ("/", 403)):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url(site, path)).__aenter__()
        assert caught.value.response.status_code == status
    assert site.faults == []


FORGED = [
    {"type": "websocket.accept", "headers": [(b"x-a", b"b\r\nset-cookie: forged=1")]},
    {"type": "websocket.accept", "headers": [(b"x-a: b\r\nset-cookie", b"forged=1")]},
    {"type": "websocket.accept", "subprotocol": "a\r\nset-cookie: forged=1"},
    {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-a", b"\r\n\r\nforged")]},
    {"type": "websocket.http.response.start", "status": 101, "headers": [(b"x-a", b"forged")]},
]


@pytest.mark.parametrize("message", FORGED)
async def test_a_handshakes_answer_that_forges_bytes_is_refused_and_recorded(site, message):
    async def app(scope, receive, send):
        await receive()
        await send(message)
        await send({"type": "websocket.http.response.body", "body": b"denied"})

    gate = site.app("a", app)
    client = await site.connect()
    client.send(HANDSHAKE)
    data = await client.rest()
    assert data.startswith(b"HTTP/1.1 500 ")
    assert b"forged" not in data
    assert gate.figures().faults == 1


async def test_a_refused_handshakes_answer_is_framed_by_the_node(site):
    async def app(scope, receive, send):
        await receive()
        headers = [(b"Transfer-Encoding", b"chunked"), (b"content-length", b"3"), (b"X-Why", b"no")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"denied", "more_body": True})
        await send({"type": "websocket.http.response.body"})

    site.app("a", app)
    client = await site.connect()
    client.send(HANDSHAKE)
    head, _, body = (await client.rest()).lower().partition(b"\r\n\r\n")
    assert head.startswith(b"http/1.1 401 ")
    assert body == b"denied"
    assert b"\r\nx-why: no\r\n" in head
    assert b"\r\ncontent-length: 6\r\n" in head
    assert b"transfer-encoding" not in head
    assert site.faults == []


async def test_a_refused_handshakes_body_is_bounded(site):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.http.response.start", "status": 401})
        while True:
            await send({"type": "websocket.http.response.body", "body": b"x" * 1_000_000, "more_body": True})

    gate = site.app("a", app)
    client = await site.connect()
    client.send(HANDSHAKE)
    assert (await client.rest()).startswith(b"HTTP/1.1 500 ")
    assert gate.figures().faults == 1


async def test_what_an_app_does_when_its_client_is_gone_is_no_fault_of_it(site, wait_until):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.receive"

    gate = site.app("a", app)
    async with connect(url(site)) as client:
        await client.close()
    await wait_until(lambda: gate.figures().websockets == 0)
    assert gate.figures().faults == 0
    async with connect(url(site)) as client:
        client.transport.abort()
    await wait_until(lambda: gate.figures().websockets == 0)
    assert gate.figures().faults == 0


async def test_a_flood_of_pings_by_a_client_that_does_not_read_pins_no_memory(make_site, wait_until):
    site = await make_site(FrontLimits(write_timeout=1.0))
    site.app("a", app_that_echoes([]))
    client = await site.connect()
    client.send(HANDSHAKE)
    await client.reader.readuntil(b"\r\n\r\n")
    [connection] = site.front._shared.connections
    client.writer.transport.pause_reading()
    pings = (b"\x89\xfd\0\0\0\0" + b"p" * 125) * 1000
    most = 0
    while site.front.figures().connections:
        if client.writer.transport.get_write_buffer_size() < 1_000_000:
            client.send(pings)
        await asyncio.sleep(0)
        most = max(most, connection.transport.get_write_buffer_size())
    assert most < 1_000_000


async def test_a_client_that_reads_on_gets_the_latest_pong(site, wait_until):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": b"x" * 20_000_000})
        await receive()

    site.app("a", app)
    client = await site.connect()
    client.send(HANDSHAKE)
    await client.reader.readuntil(b"\r\n\r\n")
    [connection] = site.front._shared.connections
    await wait_until(lambda: connection.stalled_since)
    client.send(b"".join(b"\x89\x81\0\0\0\0" + letter for letter in (b"a", b"b", b"c")))
    await wait_until(lambda: connection.pongs)
    await client.reader.readexactly(10 + 20_000_000)
    assert await client.reader.readexactly(3) == b"\x8a\x01c"


@pytest.mark.parametrize("fault", [SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("accepted", [False, True])
async def test_what_leaves_an_app_ends_its_websocket_alone(site, wait_until, accepted, fault):
    async def app(scope, receive, send):
        await receive()
        if accepted:
            await send({"type": "websocket.accept"})
        raise fault("websocket fault")

    gate = site.app("a", app)
    if accepted:
        async with connect(url(site)) as client:
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd.code == 1011
    else:
        with pytest.raises(InvalidStatus) as caught:
            await connect(url(site)).__aenter__()
        assert caught.value.response.status_code == 500
    await wait_until(lambda: gate.figures().websockets == 0)
    assert "websocket fault" in site.faults[0]
    site.app("b")
    assert (await site.get("/", host="b.localhost")).status == 200


async def test_draining_closes_with_1012_and_tells_the_app(site, wait_until):
    log = []
    gate = site.app("a", app_that_echoes(log))
    async with connect(url(site)) as client:
        assert await gate.drain(WITHIN) == 0
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd.code == 1012
    assert log[-1] == 1012


async def test_draining_can_leave_websockets_a_grace(site):
    gate = site.app("a", app_that_echoes([]))
    async with connect(url(site)) as client:
        draining = asyncio.ensure_future(gate.drain(WITHIN, websocket_grace=WITHIN))
        await client.send("last")
        assert await client.recv() == "last"
        assert not draining.done()
    assert await draining == 0


async def test_an_app_that_ignores_the_close_is_cancelled_at_the_end_of_the_drain(site):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    gate = site.app("a", app)
    async with connect(url(site)):
        assert await gate.drain(0.2) == 1
    assert gate.figures().websockets == 0


async def test_stopping_the_front_closes_websockets_with_1012(make_site):
    site = await make_site()
    site.app("a", app_that_echoes([]))
    async with connect(url(site)) as client:
        await site.front.stop(2)
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
    assert closed.value.rcvd.code == 1012


async def flood(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        await send({"type": "websocket.send", "bytes": b"x" * 65536})


async def test_a_reader_that_stalls_is_cut(make_site, wait_until):
    site = await make_site(FrontLimits(write_timeout=0.3))
    gate = site.app("a", flood)
    client = await site.connect()
    client.send(HANDSHAKE)
    await wait_until(lambda: gate.figures().websockets == 1)
    client.writer.transport.pause_reading()
    await wait_until(lambda: site.front.figures().connections == 0)
    await wait_until(lambda: gate.figures().websockets == 0)


async def test_a_reader_that_stalls_time_and_again_is_cut_once_it_stalls_for_good(make_site, wait_until):
    site = await make_site(FrontLimits(write_timeout=1.0))
    gate = site.app("a", flood)
    client = await site.connect()
    client.send(HANDSHAKE)
    await wait_until(lambda: gate.figures().websockets == 1)
    [connection] = site.front._shared.connections
    await wait_until(lambda: connection.stalled_since)
    first = connection.stalled_since
    while connection.stalled_since <= first + 0.2:
        assert await client.reader.read(65536)
    client.writer.transport.pause_reading()
    await wait_until(lambda: site.front.figures().connections == 0)
    await wait_until(lambda: gate.figures().websockets == 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Version: 13", b"Version: 8"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Connection: Upgrade\r\n", b"Connection: Upgrade\r\nContent-Length: 5\r\n"),
    ],
)
async def test_malformed_handshakes_are_refused(site, old, new):
    gate = site.app("a", app_that_echoes([]))
    client = await site.connect()
    client.send(HANDSHAKE.replace(old, new, 1))
    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")
    assert gate.figures().websockets == 0


async def test_frames_before_the_handshakes_answer_are_refused(site):
    gate = site.app("a", None)
    gate.hold(lambda: None)
    client = await site.connect()
    client.send(HANDSHAKE + b"\x81\x80\0\0\0\0")
    assert b" 400 " in await client.rest()
    assert gate.figures().queued == 0


async def test_a_client_that_leaves_a_waiting_handshake_leaves_the_queue(site, wait_until):
    gate = site.app("a", None)
    gate.hold(lambda: None)
    client = await site.connect()
    client.send(HANDSHAKE)
    await wait_until(lambda: gate.figures().queued == 1)
    client.writer.transport.abort()
    await wait_until(lambda: gate.figures().queued == 0)


def test_the_websockets_library_is_the_one_the_front_was_written_for():
    assert int(websockets.__version__.split(".")[0]) >= 15


BODILESS = {
    "HEAD": (b"HEAD / HTTP/1.1\r\nHost: b.localhost\r\n\r\n", 200),
    "204": (b"GET / HTTP/1.1\r\nHost: b.localhost\r\n\r\n", 204),
    "304": (b"GET / HTTP/1.1\r\nHost: b.localhost\r\n\r\n", 304),
}


@pytest.mark.parametrize("kind", BODILESS)
async def test_a_handshake_waits_for_the_response_before_it(site, wait_until, kind):
    request, status = BODILESS[kind]
    go = asyncio.Event()

    async def slow(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b""})

    site.app("a", app_that_echoes([]))
    gate = site.app("b", slow)
    client = await site.connect()
    client.send(request)
    # Its client has all of the response now.
    await client.reader.readuntil(b"\r\n\r\n")
    client.send(HANDSHAKE)
    await wait_until(lambda: len(next(iter(site.front._shared.connections)).waiting) == 1)
    site.front.loop.call_soon_threadsafe(go.set)
    assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    client.send(frame(b"x"))
    assert await client.reader.readexactly(3) == b"\x82\x01x"
    assert gate.figures().requests == 1


async def test_a_handshake_behind_a_response_that_ends_the_connection_is_dropped(site):
    async def last(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b""})

    gate = site.app("a", app_that_echoes([]))
    site.app("b", last)
    client = await site.connect()
    client.send(BODILESS["204"][0] + HANDSHAKE)
    assert (await client.rest()).count(b"HTTP/1.1 ") == 1
    assert gate.figures().websockets == 0
