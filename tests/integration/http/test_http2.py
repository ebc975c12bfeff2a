"""HTTP/2 at a node's port: the same requests, rules and answers as over HTTP/1.1."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime_node.http import GateLimits
from runtime_node.loader.wsgi import WSGIAdapter
from tests.eventually import WITHIN, eventually
from tests.integration.http import http2_client as http2
from tests.integration.http.http2_apps import Waits, replies
from tests.integration.http.http2_client import (
    INTERNAL_ERROR,
    Client,
    Response,
    frame,
    head,
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


async def test_an_app_of_wsgi_is_served_too(site, connect):
    def wsgi(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
        return [environ["SERVER_PROTOCOL"].encode(), b" ", environ["wsgi.input"].read()]

    with ThreadPoolExecutor(1) as threads:
        site.app("a", WSGIAdapter(wsgi, threads))
        client = await connect()
        assert (await client.answer(client.ask(head("POST"), b"said"))).body == b"HTTP/2 said"
        assert (await client.get()).body == b"HTTP/2 "
