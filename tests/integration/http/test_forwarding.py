"""Requests that one listener forwards to another: what goes on, as it came and in pieces."""

import asyncio

import pytest

from runtime_node.http import Gate
from tests.eventually import WITHIN, eventually
from tests.integration.http.other_node import RawNode, lines


async def test_a_request_and_its_response_are_carried(moved):
    answer = await moved.get("/a%2Fb?x=1&y=%20", "X-Mine: yes", "X-Forwarded-For: 10.1.2.3")
    assert answer.status == 200
    seen = lines(answer)
    assert "raw_path=/a%2Fb" in seen
    assert "query=x=1&y=%20" in seen
    assert "header x-mine=yes" in seen
    assert "header host=a.localhost" in seen
    assert "header x-forwarded-for=10.1.2.3" in seen
    assert "header x-appsupervisor-forwarded=environments/default/nodes/node-1" in seen
    assert not [line for line in seen if line.startswith(("header connection", "header transfer-encoding"))]
    assert moved.forwarder.forwarded == 1
    assert moved.forwarder.failed == 0


async def test_every_way_to_name_an_app_is_found_there_too(moved):
    moved.home.router.set("a", ["shop.example.com"], moved.home.router.gate_of("a"))
    assert (await moved.get(host="shop.example.com")).status == 200
    by_path = await moved.get("/apps/a/page", host="127.0.0.1")
    assert "root_path=/apps/a" in lines(by_path)
    assert (await moved.get("/", "X-App: a", host="localhost")).status == 200
    [old] = await moved.former.raw(b"GET /apps/a/ HTTP/1.0\r\n\r\n")
    assert old.status == 200


@pytest.mark.parametrize(
    ("method", "status", "has_body"),
    [
        ("HEAD", 200, False),
        ("GET", 204, False),
        ("GET", 304, False),
        ("GET", 404, True),
        ("DELETE", 200, True),
    ],
)
async def test_responses_without_a_body_keep_the_connection(make_moved, method, status, has_body):
    async def app(scope, receive, send):
        headers = [(b"content-length", b"5"), (b"etag", b'"x"')] if status != 204 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello" if status != 204 else b""})

    moved = await make_moved(app)
    connection = await moved.former.connect()
    for _ in range(3):
        connection.send(f"{method} / HTTP/1.1\r\nHost: a.localhost\r\n\r\n".encode())
        async with asyncio.timeout(WITHIN):
            head = await connection.reader.readuntil(b"\r\n\r\n")
        assert b" %d " % status in head
        if has_body:
            assert await connection.reader.readexactly(5) == b"hello"
    assert moved.forwarder.forwarded == 3
    # Who may be asked twice is asked over a connection that was used before.
    connections = len(moved.home.front._shared.connections)
    assert connections <= (2 if method != "DELETE" else 3)


async def test_a_large_chunked_body_goes_through_in_pieces_both_ways(make_moved):
    most = 0

    async def app(scope, receive, send):
        nonlocal most
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            most = max(most, len(message["body"]))
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})
            if not more:
                return

    moved = await make_moved(app)
    connection = await moved.former.connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked\r\n"
                    b"Connection: close\r\n\r\n")  # fmt: skip
    piece = bytes(range(256)) * 256
    pieces = 32

    async def upload():
        for _ in range(pieces):
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await connection.writer.drain()
        connection.send(b"0\r\n\r\n")

    uploading = asyncio.create_task(upload())
    # A slow reader: with nothing read all stands still, and no side has taken more than its bounds.
    await eventually(lambda: moved.former.front._shared.connections)
    whole = await connection.rest(60)
    await uploading
    head, _, chunked = whole.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    body = b""
    while True:
        size, _, chunked = chunked.partition(b"\r\n")
        if not int(size, 16):
            break
        body += chunked[: int(size, 16)]
        chunked = chunked[int(size, 16) + 2 :]
    assert body == piece * pieces
    assert most < 1024 * 1024


async def test_a_slow_reader_holds_up_the_app_and_little_is_buffered(make_moved):
    sent = 0

    async def app(scope, receive, send):
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
            sent += 65536

    moved = await make_moved(app)
    connection = await moved.former.connect()
    connection.writer.transport.pause_reading()
    connection.send(b"GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n")
    before = -1

    def stands():
        nonlocal before
        still, before = before == sent and sent > 0, sent
        return still

    await eventually(stands)
    # The kernel's buffers of three sockets, and ours; not what the app could have made meanwhile.
    assert sent < 32 * 1024 * 1024
    connection.writer.transport.abort()
    await eventually(lambda: moved.gate.figures().running == 0)


async def test_a_body_of_tiny_chunks_goes_through_whole_and_in_turns(make_moved):
    chunks = 60_000
    body = b"".join(b"2\r\n%02d\r\n" % (number % 100) for number in range(chunks))
    async with RawNode(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"
    ) as target:
        moved = await make_moved(target=target)
        answer = await moved.get()
    assert answer.body == b"".join(b"%02d" % (number % 100) for number in range(chunks))


async def test_events_are_passed_on_as_they_come_and_an_empty_head_does_not_wait(make_moved):
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()
    waiting = asyncio.Event()

    async def app(scope, receive, send):
        front = asyncio.get_running_loop()
        tell = asyncio.Event()
        nonlocal go_on
        go_on = lambda: front.call_soon_threadsafe(tell.set)  # noqa: E731
        loop.call_soon_threadsafe(waiting.set)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await tell.wait()
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        tell.clear()
        await tell.wait()
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    moved = await make_moved(app)
    connection = await moved.former.connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n")
    async with asyncio.timeout(WITHIN):
        assert b"text/event-stream" in await connection.reader.readuntil(b"\r\n\r\n")
        go_on()
        assert b"data: 1" in await connection.reader.readuntil(b"\n\n")
        go_on()
        assert b"data: 2" in await connection.reader.readuntil(b"\n\n")


async def test_expect_continue_is_asked_of_the_app(make_moved):
    async def app(scope, receive, send):
        if scope["path"] == "/refuse":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    moved = await make_moved(app)
    connection = await moved.former.connect()
    connection.send(b"POST /take HTTP/1.1\r\nHost: a.localhost\r\nExpect: 100-continue\r\n"
                    b"Content-Length: 4\r\n\r\n")  # fmt: skip
    async with asyncio.timeout(WITHIN):
        assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(b"body")
    answer = await connection.answer()
    assert (answer.status, answer.body) == (200, b"body")
    connection = await moved.former.connect()
    connection.send(b"POST /refuse HTTP/1.1\r\nHost: a.localhost\r\nExpect: 100-continue\r\n"
                    b"Content-Length: 4\r\n\r\n")  # fmt: skip
    assert (await connection.answer()).status == 403


async def test_a_client_that_leaves_is_told_to_the_app(make_moved):
    loop = asyncio.get_running_loop()
    told, began = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        loop.call_soon_threadsafe(began.set)
        assert (await receive())["type"] == "http.disconnect"
        loop.call_soon_threadsafe(told.set)

    moved = await make_moved(app, half_close=0.1)
    connection = await moved.former.connect()
    connection.send(b"GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n")
    async with asyncio.timeout(WITHIN):
        await began.wait()
        connection.writer.transport.abort()
        await told.wait()
    await eventually(lambda: moved.gate.figures().running == 0)
    assert moved.carrier.requests == 0
    assert moved.forwarder.failed == 0


async def test_what_waited_at_an_instance_is_released_to_where_it_is_now(make_moved):
    moved = await make_moved()
    held = Gate("apps/a/instances/1")
    held.hold(lambda: None)
    moved.former.router.set("a", [], held)
    asking = [asyncio.create_task(moved.get(f"/{number}")) for number in range(20)]
    await eventually(lambda: held.figures().queued == 20)
    moved.former.router.set("a", [], moved.gate)
    held.forward(moved.gate)
    answers = await asyncio.gather(*asking)
    assert {answer.status for answer in answers} == {200}
    assert moved.forwarder.forwarded == 20
