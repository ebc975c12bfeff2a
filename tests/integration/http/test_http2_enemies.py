"""HTTP/2 at a node's port: what is sent to harm it ends its own request, or its own connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random

import hpack
import pytest

from tests.eventually import WITHIN, eventually
from tests.integration.http import http2_client as http2
from tests.integration.http.http2_apps import Waits, replies
from tests.integration.http.http2_client import (
    CALM,
    FRAME_SIZE_ERROR,
    INTERNAL_ERROR,
    PROTOCOL_ERROR,
    Client,
    frame,
    head,
)


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


def settings(first: int, last: int) -> bytes:
    return frame(
        http2.SETTINGS, 0, 0, b"".join(b"%b\0\0\0\1" % it.to_bytes(2, "big") for it in range(first, last))
    )


async def test_settings_that_nobody_knows_are_not_kept(site, connect):
    site.app("a")
    client = await connect()
    for first in range(9, 20_000, 2_000):
        client.writer.write(settings(first, first + 2_000))
    client.writer.write(settings(4, 5))  # a window of one byte
    number = client.ask(head())
    response = client.responses[number]
    client.acknowledges = False
    await client.read_until(lambda: len(response.body) == 1)
    [connection] = site.front._shared.connections
    assert set(connection.engine.remote_settings) <= set(range(9))


BROKEN = {
    "a frame that is too long": (b"\0\x40\1\0\0\0\0\0\1", FRAME_SIZE_ERROR),
    "a stream of its own side": (frame(http2.HEADERS, 5, 2, b"\x82"), PROTOCOL_ERROR),
    "a pushed request": (frame(http2.PUSH_PROMISE, 4, 1, b"\0\0\0\2\x82"), PROTOCOL_ERROR),
    "a head that cannot be unpacked": (frame(http2.HEADERS, 5, 1, b"\xff\xff\xff\xff\xff"), PROTOCOL_ERROR),
    "the end of a head that never began": (frame(http2.CONTINUATION, 4, 1, b"\x82"), PROTOCOL_ERROR),
    "data before a request": (frame(http2.DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "a head of nothing but sizes": (frame(http2.HEADERS, 5, 1, b"\x20" * 10_000), PROTOCOL_ERROR),
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
    "a method in small letters": head("post"),
    "a coding": [*head("POST"), ("transfer-encoding", "chunked")],
    "an upgrade": [*head(), ("upgrade", "h2c")],
    "a control character in the path": head(path="/a\x01b"),
    "a line's end in the path": head(path="/ HTTP/1.1\r\nx: y"),
    "user and password": head(host="u:p@a.localhost"),
    "a host twice": [*head(), ("host", "a.localhost"), ("host", "a.localhost")],
    "a length twice": [*head("POST"), ("content-length", "1"), ("content-length", "1")],
    "a length and no body": head("POST", content_length="5"),
    "another protocol": [(":method", "CONNECT"), (":protocol", "websocket"), *head()[1:]],
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


async def test_a_body_that_is_shorter_than_it_says_is_refused(site, connect):
    gate = site.app("a")
    asked = asyncio.Event()

    async def begins(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        asked.set()
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.body", "body": b"done"})

    site.app("b", begins)
    client = await connect()
    # By trailers: behind them `h2` counts no more.
    number = client.ask(head("POST", content_length="5"), b"half", end=False)
    client.engine.send_headers(number, [("x-sum", "4")], end_stream=True)
    client.flush()
    answer = await client.answer(number)
    assert (answer.status, answer.reason) == (400, "MALFORMED_REQUEST")
    number = client.ask(head("POST", host="b.localhost", content_length="5"), b"half", end=False)
    await eventually(asked.is_set)
    client.engine.send_headers(number, [("x-sum", "4")], end_stream=True)
    client.flush()
    answer = await client.answer(number)
    assert (answer.body, answer.ended, answer.reset) == (b"begun", False, INTERNAL_ERROR)
    assert gate.figures().requests == 1
    assert (await client.get()).status == 200


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


def random_frames(chance: random.Random) -> bytes:
    """Return a preface and frames that are well-formed one by one, with requests among them."""
    encoder = hpack.Encoder()
    data = http2.PREFACE + frame(http2.SETTINGS, 0, 0)
    fresh = 1
    kinds = chance.choice([[1], [1, 1, 3, 8, 2], [0, 0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 9, 10, 77]])
    for _ in range(chance.randint(1, 25)):
        kind = chance.choice(kinds)
        flags = chance.choice([0, 1, 4, 5, 5, 8, 9, 12, 13, 0x20, 0x2D, 255])
        stream = chance.choice([0, fresh, fresh, max(1, fresh - 2), fresh + 2, 2, 2**31 - 1])
        payload = chance.randbytes(chance.choice([0, 1, 4, 5, 8, 30]))
        if kind == http2.HEADERS:
            fields = head(chance.choice(["GET", "POST", "HEAD"]), chance.choice(["/", "/x?y", "//"]))
            fields += chance.choice([[], [], [("content-length", str(chance.randint(0, 9)))]])
            fields += chance.choice([[], [("content-type", "application/grpc")]])
            payload = encoder.encode(fields)
            if chance.random() < 0.8:
                flags, stream, fresh = chance.choice([4, 5]), fresh, fresh + 2
        elif kind == http2.SETTINGS:
            ids = chance.choices([1, 2, 3, 4, 5, 6, 8, 99], k=chance.randint(0, 3))
            values = chance.choices([0, 1, 100, 65_535, 2**31 - 1, 2**32 - 1], k=len(ids))
            payload = b"".join(
                one.to_bytes(2, "big") + value.to_bytes(4, "big")
                for one, value in zip(ids, values, strict=True)
            )
        elif kind == http2.WINDOW_UPDATE:
            payload = chance.choice([0, 1, 65_535, 2**31 - 1]).to_bytes(4, "big")
        data += frame(kind, flags, stream, payload)
    return data


async def test_no_frames_harm_the_node_nor_the_one_it_forwards_to(make_moved, caplog):
    moved = await make_moved(replies)
    writers = []
    for site in (moved.home, moved.former):
        for seed in range(60):
            _, writer = await asyncio.open_connection(*site.front.address)
            writer.write(random_frames(random.Random(seed)))
            writers.append(writer)
    await eventually(lambda: moved.forwarder.forwarded > 10)
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    for shared in (moved.home.front._shared, moved.former.front._shared):
        await eventually(lambda it=shared: (it.shares.streams, it.head_bytes) == (0, 0))
    await eventually(lambda: moved.carrier.requests == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
