"""Requests that one listener forwards to another: what goes on, what ends where, what is bounded."""

import asyncio
import contextlib

import pytest

from runtime_node.forwarding import Carrier, Forwarder, ForwardGate, Target
from runtime_node.forwarding.carrier import CarrierLimits
from runtime_node.http import Gate, GateLimits
from tests.eventually import WITHIN, eventually


@pytest.fixture
async def moved(make_moved):
    return await make_moved()


def lines(answer):
    return answer.body.decode("latin-1").split("\n")


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


@pytest.mark.parametrize("begun", [False, True])
async def test_a_node_that_breaks_off_is_told_from_an_answer(make_moved, begun):
    async def app(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        for connection in list(moved.home.front._shared.connections):
            connection.transport.abort()

    moved = await make_moved(app)
    connection = await moved.former.connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 0\r\n\r\n")
    if begun:
        assert b"200 OK" in (data := await connection.rest())
        assert b"part" in data
    else:
        answer = await connection.answer()
        assert (answer.status, answer.reason) == (502, "FORWARD_BROKEN_OFF")
        assert "retry-after" not in answer.headers
    assert moved.forwarder.failed == 1


async def test_a_connection_that_was_closed_meanwhile_is_replaced(moved):
    assert (await moved.get()).status == 200
    for connection in list(moved.home.front._shared.connections):
        moved.home.front.loop.call_soon_threadsafe(connection.transport.abort)
    assert (await moved.get()).status == 200
    assert moved.forwarder.failed == 0


async def test_a_node_that_cannot_be_reached_is_a_503_with_its_reason(make_moved, site):
    address = site.front.address
    await site.front.stop(0)
    moved = await make_moved(target=Target(*address))
    answer = await moved.get()
    assert (answer.status, answer.reason) == (503, "FORWARD_FAILED")
    assert answer.headers["retry-after"] == "1"
    assert str(address[1]) not in answer.body.decode()
    assert moved.forwarder.failed == 1


async def test_what_cannot_be_forwarded_waits_for_an_instance_that_is_coming(make_moved, site):
    address = site.front.address
    await site.front.stop(0)
    moved = await make_moved(target=Target(*address))
    moved.forwarder.returning = True
    asking = asyncio.create_task(moved.get())
    await eventually(lambda: moved.gate.figures().queued == 1)
    own = moved.former.app("a")
    moved.gate.forward(own)
    assert (await asking).status == 200


async def test_a_request_is_forwarded_once(make_moved):
    moved = await make_moved()
    # There it is forwarded, too: to where it came from.
    again = Forwarder(
        Carrier(moved.home.front.loop, "environments/default/nodes/node-2"),
        "a",
        Target(*moved.former.front.address),
    )
    back = ForwardGate("")
    back.open(again)
    moved.home.router.set("a", [], back)
    answer = await moved.get()
    assert (answer.status, answer.reason) == (503, "APP_MOVED")
    assert answer.headers["retry-after"] == "1"
    # Tried once more, for the app might have moved on.
    assert (again.forwarded, again.failed) == (0, 2)
    assert (moved.forwarder.forwarded, moved.home.front.figures().refusals) == (1, {"APP_MOVED": 2})
    assert (await moved.get("/", "X-AppSupervisor-Forwarded: me")).reason == "APP_MOVED"


async def test_a_request_that_meets_a_move_is_tried_where_the_app_has_gone(make_moved, make_site):
    moved = await make_moved()
    third = await make_site()
    third.app("a")
    # The app has left the node that is forwarded to, and this one is told only now.
    back = ForwardGate("")
    back.open(Forwarder(moved.carrier, "a", Target("127.0.0.1", 9)))
    home = moved.forwarder.target
    moved.home.router.set("a", [], back)
    carry = moved.carrier.connect

    async def connect(target, *, fresh):
        link = await carry(target, fresh=fresh)
        if target == home:
            moved.forwarder.target = Target(*third.front.address)
        return link

    moved.carrier.connect = connect
    assert (await moved.get("/there")).status == 200
    assert (moved.forwarder.forwarded, moved.forwarder.failed) == (1, 0)


async def test_the_other_nodes_own_answers_pass_with_their_reason_but_no_app_can_forge_one(make_moved):
    async def forging(scope, receive, send):
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"x-appsupervisor-reason", b"X")]}
        )
        await send({"type": "http.response.body"})

    moved = await make_moved(forging)
    assert (await moved.get()).reason == ""
    moved.home.router.gate_of("a").close("APP_CRASHED", 3)
    answer = await moved.get()
    assert (answer.status, answer.reason, answer.headers["retry-after"]) == (503, "APP_CRASHED", "3")


async def test_an_apps_forwarded_requests_are_bounded_and_so_are_all_together(make_moved):
    inside = 0
    release = []

    async def app(scope, receive, send):
        nonlocal inside
        inside += 1
        over = asyncio.Event()
        release.append((asyncio.get_running_loop(), over))
        await over.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    limits = GateLimits(max_concurrent_requests=2, max_queued_requests=1)
    moved = await make_moved(app, limits=limits, carrier_limits=CarrierLimits(max_requests=3))
    other = ForwardGate("")
    other.open(Forwarder(moved.carrier, "b", moved.forwarder.target))
    moved.home.app("b", app)
    moved.former.router.set("b", [], other)
    asking = [asyncio.create_task(moved.get()) for _ in range(2)]
    await eventually(lambda: inside == 2)
    asking.append(asyncio.create_task(moved.get()))
    await eventually(lambda: moved.gate.figures().queued == 1)
    refused = await moved.get()
    assert (refused.status, refused.reason, refused.headers["retry-after"]) == (503, "SERVER_BUSY", "1")
    asking.append(asyncio.create_task(moved.get(host="b.localhost")))
    await eventually(lambda: inside == 3)
    refused = await moved.get(host="b.localhost")
    assert (refused.status, refused.reason, refused.headers["retry-after"]) == (503, "SERVER_BUSY", "1")
    assert moved.carrier.requests == 3

    def let_go():
        while release:
            front, over = release.pop()
            front.call_soon_threadsafe(over.set)
        return all(task.done() for task in asking)

    await eventually(let_go)
    assert [task.result().status for task in asking] == [200] * 4


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET",
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX-A: b\r\n folded: yes\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX-A: b\rX-B: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX-A: b\nContent-Length: 5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX-A: b\x00c\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: a.localhost\r\n\r\n",
    ],
)
async def test_what_two_servers_could_read_in_two_ways_is_forwarded_in_one_or_not(make_moved, request_bytes):
    heads = []

    async def app(scope, receive, send):
        heads.append(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    moved = await make_moved(app)
    answers = await moved.former.raw(request_bytes)
    assert len(answers) == 1
    if answers[0].status == 200:
        assert len(heads) == 1
        assert not {b"folded", b"x-b"} & set(heads[0])
    else:
        assert answers[0].status in (400, 501)
        assert heads == []


async def test_a_request_hidden_in_a_body_stays_a_body(moved):
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a.localhost\r\n\r\n"
    head = b"POST /real HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    [answer] = await moved.former.raw(head % len(hidden) + hidden)
    assert "path=/real" in lines(answer)
    assert moved.forwarder.forwarded == 1


async def test_what_connection_names_is_of_one_hop_but_not_what_others_rely_on(moved):
    answer = await moved.get("/", "Connection: X-Mine, Host, X-Forwarded-For", "X-Mine: yes", "Keep-Alive: 5",
                             "TE: trailers", "Proxy-Connection: keep-alive")  # fmt: skip
    seen = lines(answer)
    assert "header host=a.localhost" in seen
    assert any(line.startswith("header x-forwarded-for=") for line in seen)
    for name in ("x-mine", "keep-alive", "te", "proxy-connection"):
        assert not any(line.startswith(f"header {name}=") for line in seen)


class RawNode:
    """A node that answers each connection with given bytes."""

    def __init__(self, answer, *, close=True):
        self.answer = answer
        self.close = close
        self.writers = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return Target(*self.server.sockets[0].getsockname())

    async def __aexit__(self, *exc):
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader, writer):
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(self.answer)
                await writer.drain()
                if self.close:
                    writer.close()
                    return


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            200,
            b"ok",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 502, None),
        (b"not HTTP at all\r\n\r\n", 502, None),
        (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 300_000 + b"\r\n\r\n", 502, None),
    ],
)
async def test_a_strange_response_is_taken_as_far_as_it_is_one(make_moved, answer, status, body):
    async with RawNode(answer) as target:
        moved = await make_moved(target=target)
        got = await moved.get()
        assert got.status == status
        if body is not None:
            assert got.body == body


async def test_a_response_that_nobody_asked_for_is_nobodys(make_moved):
    two = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2"
    async with RawNode(two, close=False) as target:
        moved = await make_moved(target=target)
        for _ in range(3):
            assert (await moved.get()).body in (b"1", b"")
        assert (await moved.get()).body != b"2"


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
