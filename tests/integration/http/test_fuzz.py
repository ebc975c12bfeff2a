"""Bytes at random: the front survives them, answers in whole responses, and serves the next client."""

import random
from contextlib import suppress

import pytest

PIECES = [
    b"GET / HTTP/1.1\r\n",
    b"POST /apps/a/ HTTP/1.1\r\n",
    b"HEAD / HTTP/1.0\r\n",
    b"Host: a.localhost\r\n",
    b"Host: localhost\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Upgrade: h2c\r\n",
    b"X-App: a\r\n",
    b"\r\n",
    b"\r\n",
    b"\r\n",
    b"hello",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"5;x=y\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\xff\xfe",
    b"GET http://a.localhost/x HTTP/1.1\r\n",
    b"a: b\r\n",
    b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    b"\x81\x85\0\0\0\0hello",
]


@pytest.mark.parametrize("seed", range(8))
async def test_any_mixture_of_pieces_is_survived(site, seed, wait_until):
    rng = random.Random(seed)
    gate = site.app("a")
    for _ in range(60):
        data = b"".join(rng.choices(PIECES, k=rng.randint(1, 14)))
        if rng.random() < 0.3:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        client = await site.connect()
        for start in range(0, len(data), size := rng.choice([len(data), 7])):
            client.send(data[start : start + size])
        with suppress(OSError):  # it has hung up already
            client.writer.write_eof()
        answer = await client.rest()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 "), data
        assert b"INTERNAL" not in answer, data
    assert (await site.get("/")).status == 200
    await wait_until(lambda: site.front.figures().connections == 0)
    figures = gate.figures()
    assert (figures.in_flight, figures.queued, figures.websockets) == (0, 0, 0)
    assert "INTERNAL" not in site.front.figures().refusals
