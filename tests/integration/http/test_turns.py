"""What one client sends keeps the loop for a turn at a time, and nothing of it is lost."""

import hashlib
import os

import pytest

from runtime_node.http import connection, websocket

from .test_websockets import HANDSHAKE, app_that_echoes, frame

UNKNOWN = b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def shortest_turns(monkeypatch):
    """One slice, or one frame, a turn: no clock decides."""
    monkeypatch.setattr(connection, "TURN_SECONDS", -1.0)
    monkeypatch.setattr(websocket, "TURN_SECONDS", -1.0)


async def test_a_flood_of_requests_leaves_the_others_their_turns(site, wait_until):
    site.app("a")
    flood = await site.connect()
    count = 6_000
    flood.send(UNKNOWN * count)
    answered = site.front._shared.refusals
    await wait_until(lambda: answered.get("APP_NOT_FOUND", 0) > 0)
    assert (await site.get("/")).status == 200
    assert answered["APP_NOT_FOUND"] < count
    flood.writer.write_eof()
    data = await flood.rest()
    assert data.count(b"HTTP/1.1 404 ") == count == answered["APP_NOT_FOUND"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_arrives_whole(site, chunked):
    body = os.urandom(3_000_000)
    got = hashlib.sha256()

    async def app(scope, receive, send):
        more = True
        while more:
            message = await receive()
            got.update(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": got.hexdigest().encode()})

    site.app("a", app)
    client = await site.connect()
    head = b"POST / HTTP/1.1\r\nHost: a.localhost\r\n"
    if chunked:
        parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:100_000], body[100_000:])]
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(parts) + b"0\r\n\r\n")
    else:
        client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    # What comes behind it in the same read is served, too.
    client.send(UNKNOWN * 3)
    assert (await client.answer()).body == hashlib.sha256(body).hexdigest().encode()
    for _ in range(3):
        assert (await client.answer()).status == 404


async def test_what_is_too_much_within_one_read_is_refused(site):
    site.app("a")
    client = await site.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a.localhost\r\nX: " + b"x" * 200_000)
    assert b" 431 " in await client.rest()


async def test_each_frame_of_a_flood_is_answered(site):
    site.app("a", app_that_echoes([]))
    client = await site.connect()
    client.send(HANDSHAKE)
    assert b" 101 " in await client.reader.readuntil(b"\r\n\r\n")
    client.send((frame(b"p", 9) + frame(b"", 10) * 100) * 300 + frame(b"last"))
    data = await client.reader.readuntil(b"\x82\x04last")
    # Where this takes long, the front asks in between whether its client is still there.
    assert data.replace(b"\x89\0", b"") == b"\x8a\x01p" * 300 + b"\x82\x04last"


async def test_a_client_that_leaves_within_its_turn_leaves_nothing(site, wait_until):
    site.app("a")
    for _ in range(5):
        client = await site.connect()
        client.send(UNKNOWN * 10_000)
        client.writer.transport.abort()
    await wait_until(lambda: site.front.figures().connections == 0)
    assert (await site.get("/")).status == 200
