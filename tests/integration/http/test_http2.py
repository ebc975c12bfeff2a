"""HTTP/2 at a node's port: the same requests, rules and answers as over HTTP/1.1, and bounds of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime_node.http import FrontLimits, GateLimits
from runtime_node.loader.wsgi import WSGIAdapter
from tests.eventually import WITHIN, eventually
from tests.integration.http import http2_client as http2
from tests.integration.http.http2_client import Client, Response, frame, head

CANCEL, REFUSED_STREAM, INTERNAL_ERROR, FRAME_SIZE_ERROR, PROTOCOL_ERROR, CALM = 8, 7, 2, 6, 1, 11

Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
async def connect(site) -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def connect(where=None, window: int = 65_535) -> Client:
        client = Client(*await asyncio.open_connection(*(where or site).front.address), window)
        clients.append(client)
        client.flush()
        return client

    yield connect
    for client in clients:
        await client.close()


async def replies(scope, receive, send):
    """Answer each piece of the body as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        event = await receive()
        more = event.get("more_body", False)
        await send(
            {"type": "http.response.body", "body": b"<%s>" % event.get("body", b""), "more_body": more}
        )


async def with_trailers(scope, receive, send):
    extensions = scope.get("extensions", {})
    has = "http.response.trailers" in extensions
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"x-version", scope["http_version"].encode())],
    }
    await send({**start, "trailers": has})
    await send({"type": "http.response.body", "body": b"body"})
    if has:
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"4")], "more_trailers": True})
        await send(
            {"type": "http.response.trailers", "headers": [(b"x-end", b"1"), (b"connection", b"close")]}
        )


class Waits:
    """Says when it is asked, and when its client is gone."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.heard: list[str] = []

    async def __call__(self, scope, receive, send):
        self.asked.set()
        while True:
            event = await receive()
            self.heard.append(event["type"])
            if event["type"] == "http.disconnect":
                return


def sends(size: int, *, trailers: bool = False):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})

    return app


async def test_a_request_is_the_same_as_over_the_older_protocol(site, connect):
    site.app("a", domains=["shop.example.com"])
    client = await connect()
    answer = await client.answer(
        client.ask(head("POST", "/p%20q?x=1", accept="text/plain", x_forwarded_for="6.6.6.6"), b"said")
    )
    lines = answer.body.decode().splitlines()
    assert answer.status == 200
    assert {"method=POST", "path=/p q", "raw_path=/p%20q", "query=x=1", "body=said"} <= set(lines)
    assert {"header host=a.localhost", "header accept=text/plain"} <= set(lines)
    assert "header x-forwarded-for=127.0.0.1" in lines
    assert not any("6.6.6.6" in line for line in lines)
    assert answer.headers["content-length"] == str(len(answer.body))
    assert "date" in answer.headers
    # By domain, by path, by header; and on the same connection, at the same time.
    asked = [
        client.ask(head(host="shop.example.com")),
        client.ask(head(path="/apps/a/deep", host="localhost")),
        client.ask(head(host="localhost", x_app="a")),
        client.ask(head("HEAD")),
        client.ask(head(host="no.localhost")),
    ]
    by_domain, by_path, by_header, empty, nobody = [await client.answer(number) for number in asked]
    assert {it.status for it in (by_domain, by_path, by_header, empty)} == {200}
    assert b"root_path=/apps/a" in by_path.body
    assert empty.body == b""
    assert (nobody.status, nobody.reason) == (404, "APP_NOT_FOUND")
    assert nobody.headers["content-type"] == "application/problem+json"
    assert json.loads(nobody.body)["reason"] == "APP_NOT_FOUND"


@pytest.mark.parametrize("step", [1, 7, 24, 100])
async def test_the_preface_is_found_however_it_comes(site, step):
    site.app("a")
    client = Client(*await asyncio.open_connection(*site.front.address), 65_535)
    number = client.engine.get_next_available_stream_id()
    client.engine.send_headers(number, head(), end_stream=True)
    client.responses[number] = response = Response()
    data = client.engine.data_to_send()
    for at in range(0, len(data), step):
        client.writer.write(data[at : at + step])
        await client.writer.drain()
        await asyncio.sleep(0)
    await client.read_until(lambda: response.ended)
    assert response.status == 200
    await client.close()


async def test_a_first_piece_of_many_requests_is_read_to_its_end(site, connect):
    site.app("a")
    client = Client(*await asyncio.open_connection(*site.front.address), 65_535)
    asked = []
    for _ in range(60):
        number = client.engine.get_next_available_stream_id()
        client.engine.send_headers(number, head("POST", x_pad="p" * 200))
        client.engine.send_data(number, b"b" * 900, end_stream=True)
        client.responses[number] = Response()
        asked.append(number)
    client.flush()
    answers = [await client.answer(number) for number in asked]
    assert {answer.status for answer in answers} == {200}
    await client.close()


async def test_the_preface_behind_a_request_is_no_preface(site):
    site.app("a")
    answers = await site.raw(b"GET / HTTP/1.1\r\nHost: a.localhost\r\n\r\n" + http2.PREFACE)
    assert [answer.status for answer in answers] == [200, 400]


async def test_both_sides_talk_by_turns(site, connect):
    site.app("a", replies)
    client = await connect()
    number = client.ask(head("POST"), end=False)
    response = client.responses[number]
    for word in (b"one", b"two"):
        client.say(number, word)
        await client.read_until(lambda word=word: response.body.endswith(b"<%s>" % word))
    client.say(number, b"", end=True)
    assert (await client.answer(number)).body == b"<one><two><>"


async def test_trailers_are_offered_where_they_can_be_sent(site, connect):
    site.app("a", with_trailers)
    client = await connect()
    answer = await client.get()
    assert (answer.headers["x-version"], answer.body) == ("2", b"body")
    assert answer.trailers == {"x-sum": "4", "x-end": "1"}
    older = await site.get("/")
    assert (older.headers["x-version"], older.body) == ("1.1", b"body")
    assert site.faults == []


async def test_a_client_that_resets_its_request_is_gone_and_its_place_free(site, connect):
    app = Waits()
    gate = site.app("a", app, GateLimits(max_concurrent_requests=1))
    client = await connect()
    number = client.ask(head("POST"), end=False)
    await eventually(app.asked.is_set)
    client.reset(number)
    await eventually(lambda: gate.figures().disconnects == 1)
    assert app.heard == ["http.disconnect"]
    gate.open(replies)
    assert (await client.get()).status == 200


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


async def test_who_opens_requests_and_resets_them_without_end_is_told_to_calm_down(site, connect):
    site.app("a", Waits())
    client = await connect()

    def give_up() -> None:
        for _ in range(100):
            client.reset(client.ask(head()))

    await client.flood(give_up)
    assert client.goaway in (CALM, None)  # a reset may have taken the word away
    site.app("a")
    assert (await (await connect()).get()).status == 200


FLOODS = {
    "pings": frame(http2.PING, 0, 0, b"x" * 8),
    "settings": frame(http2.SETTINGS, 0, 0),
    "priorities": frame(http2.PRIORITY, 0, 3, b"\0\0\0\1\1"),
    "unknown frames": frame(99, 0, 0),
    "windows": frame(http2.WINDOW_UPDATE, 0, 0, b"\0\0\0\1"),
    "empty data": frame(http2.DATA, 0, 1),
    "heads without end": frame(http2.CONTINUATION, 0, 1, b"\0" * 16_000),
}


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_of_what_costs_nothing_ends_its_connection(site, connect, what):
    site.app("a", Waits())
    client = await connect()
    number = client.ask(head("POST"), end=False)
    await client.read_until(lambda: client.acknowledged_settings)
    assert number == 1
    if what == "heads without end":
        client.writer.write(
            frame(http2.HEADERS, 0, 3) + FLOODS[what].replace(b"\0\0\0\1", b"\0\0\0\3", 1)[:9]
        )
        client.writer.write(b"\0" * 16_000 + frame(http2.CONTINUATION, 0, 3, b"\0" * 16_000) * 5)
        await client.end_of_words()
    else:
        await client.flood(lambda: client.writer.write(FLOODS[what] * 500))
    assert client.goaway in (CALM, None)  # a reset may have taken the word away
    site.app("a")
    assert (await (await connect()).get()).status == 200


BROKEN = {
    "a frame that is too long": (b"\0\x40\1\0\0\0\0\0\1", FRAME_SIZE_ERROR),
    "a stream of its own side": (frame(http2.HEADERS, 5, 2, b"\x82"), PROTOCOL_ERROR),
    "a pushed request": (frame(http2.PUSH_PROMISE, 4, 1, b"\0\0\0\2\x82"), PROTOCOL_ERROR),
    "a head that cannot be unpacked": (frame(http2.HEADERS, 5, 1, b"\xff\xff\xff\xff\xff"), PROTOCOL_ERROR),
    "the end of a head that never began": (frame(http2.CONTINUATION, 4, 1, b"\x82"), PROTOCOL_ERROR),
    "data before a request": (frame(http2.DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "settings of a wrong size": (frame(http2.SETTINGS, 0, 0, b"xxxxx"), FRAME_SIZE_ERROR),
    "a window of nothing": (frame(http2.WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), PROTOCOL_ERROR),
}


async def test_what_breaks_the_protocol_ends_its_connection_with_a_word(connect, caplog):
    for what, (data, code) in BROKEN.items():
        client = await connect()
        client.writer.write(data)
        assert (what, await client.end()) == (what, code)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


MALFORMED = {
    "a header in capitals": [*head(), ("X-Big", "1")],
    "a header of a connection": [*head(), ("connection", "close")],
    "another te": [*head(), ("te", "gzip")],
    "two hosts": [*head(), ("host", "b.localhost")],
    "no path": head()[:3],
    "an empty path": head(path=""),
    "a path twice": [*head(), (":path", "/")],
    "a pseudo header behind a header": [*head()[:3], ("x", "1"), (":path", "/")],
    "a response's pseudo header": [*head(), (":status", "200")],
    "a control character": [*head(), ("x", "a\0b")],
    "a line's end": [*head(), ("x", "a\r\nx-app: b")],
    "white space around": [*head(), ("x", " a")],
    "an absolute path": head(path="http://b.localhost/"),
    "no host": [it for it in head() if it[0] != ":authority"],
    "another expectation": [*head("POST"), ("expect", "unknown")],
}


async def test_a_malformed_request_is_refused_and_its_connection_goes_on(site, connect):
    gate = site.app("a")
    client = await connect()
    for what, fields in MALFORMED.items():
        answer = await client.answer(client.ask(fields))
        status = 417 if what == "another expectation" else 400
        assert (what, answer.status, answer.reason) == (what, status, "MALFORMED_REQUEST")
    assert gate.figures().requests == 0
    assert (await client.get()).status == 200


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


async def test_a_response_that_is_not_whole_does_not_look_whole(site, connect):
    async def breaks_off(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("broken")

    site.app("a", breaks_off)
    client = await connect()
    answer = await client.get()
    assert (answer.body, answer.ended, answer.reset) == (b"half", False, INTERNAL_ERROR)
    site.app("a")
    assert (await client.get()).status == 200


async def test_a_node_that_leaves_lets_requests_end_and_begins_none(site, connect):
    go = asyncio.Event()

    async def waits(scope, receive, send):
        await go.wait()
        await replies(scope, receive, send)

    gate = site.app("a", waits)
    client, idle = await connect(), await connect()
    number = client.ask(head())
    await eventually(lambda: gate.figures().in_flight == 1)
    draining = asyncio.create_task(site.front.drain(WITHIN))
    assert await idle.end() == 0
    # Told by GOAWAY, after which `h2` on this side begins nothing; the answer comes all the same.
    site.front.loop.call_soon_threadsafe(go.set)
    rest = b""
    async with asyncio.timeout(WITHIN):
        while data := await client.reader.read(65536):
            rest += data
    assert frame(http2.GOAWAY, 0, 0, b"\0\0\0\1\0\0\0\0") in rest
    assert b"<>" in rest
    assert number == 1
    await client.close()
    await idle.close()
    assert await draining == 0


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


async def test_no_bytes_harm_the_node(site, connect, caplog):
    """What a client sends, bent at random places, ends at worst its own connection."""
    site.app("a", replies)
    for seed in range(60):
        chance = random.Random(seed)
        client = Client(*await asyncio.open_connection(*site.front.address), 65_535)
        for _ in range(3):
            number = client.engine.get_next_available_stream_id()
            client.engine.send_headers(number, head("POST", x=str(seed)))
            client.engine.send_data(number, b"d" * 50, end_stream=True)
        client.engine.ping(b"12345678")
        data = bytearray(client.engine.data_to_send())
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(http2.PREFACE), len(data))
            data[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 3))
        client.writer.write(data)
        client.writer.write_eof()
        async with asyncio.timeout(WITHIN):
            try:
                while await client.reader.read(65536):
                    pass
            except ConnectionError:
                pass
        await client.close()
    assert (await (await connect()).get()).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    shared = site.front._shared
    await eventually(lambda: (shared.shares.streams, shared.head_bytes) == (0, 0))


async def test_an_app_of_wsgi_is_served_too(site, connect):
    def wsgi(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
        return [environ["SERVER_PROTOCOL"].encode(), b" ", environ["wsgi.input"].read()]

    with ThreadPoolExecutor(1) as threads:
        site.app("a", WSGIAdapter(wsgi, threads))
        client = await connect()
        assert (await client.answer(client.ask(head("POST"), b"said"))).body == b"HTTP/2 said"
        assert (await client.get()).body == b"HTTP/2 "
