"""Messages and frames of WebSockets: compressed, cut up, too long, out of turn; and how many may wait."""

import asyncio
import zlib

import pytest

from runtime_node.http import FrontLimits, GateLimits

from .test_websockets import HANDSHAKE, app_that_echoes, frame


async def opened(site, extra=b""):
    client = await site.connect()
    client.send(HANDSHAKE.replace(b"\r\n\r\n", b"\r\n" + extra + b"\r\n") if extra else HANDSHAKE)
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    return client, head


class Reading:
    """An app that takes messages when told to."""

    def __init__(self):
        self.go = asyncio.Event()
        self.taken = []

    async def __call__(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await self.go.wait()
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            self.taken.append(message.get("text", message.get("bytes")))


OFFER = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


async def test_compression_is_agreed_to_only_where_it_was_asked_for(site):
    for asked in (False, True):
        app = Reading()
        site.app("a", app, GateLimits(websocket_compression=asked))
        _, head = await opened(site, OFFER)
        assert (b"permessage-deflate" in head.lower()) is asked


async def test_what_is_compressed_waits_compressed_until_the_app_takes_it(site, wait_until):
    app = Reading()
    gate = site.app("a", app, GateLimits(websocket_compression=True))
    packer = zlib.compressobj(wbits=-12)
    bomb = packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    message = bytearray(frame(bomb[:-4]))
    message[0] |= 0x40
    clients = [(await opened(site, OFFER))[0] for _ in range(5)]
    for client in clients:
        client.send(bytes(message) * 20)
    await wait_until(lambda: gate.inbound.used >= 5_000_000)
    # One message of each, not twenty.
    assert gate.inbound.used < 6_000_000
    site.front.loop.call_soon_threadsafe(app.go.set)
    await wait_until(lambda: len(app.taken) == 100)
    assert {len(taken) for taken in app.taken} == {1_000_000}
    assert gate.inbound.used < 100_000


@pytest.mark.parametrize("pieces", [1, 2, 1000])
async def test_a_message_longer_than_its_limit_ends_its_websocket(site, pieces):
    site.app("a", Reading(), GateLimits(max_websocket_message_bytes=10_000))
    client, _ = await opened(site)
    whole = b"x" * 10_001
    size = -(-len(whole) // pieces)
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    for number, part in enumerate(parts):
        client.send(frame(part, 0 if number else 2, number == len(parts) - 1))
    end = await client.rest()
    assert end[:1] == b"\x88"
    assert end[2:4] == (1009).to_bytes(2, "big")


async def test_a_message_whose_header_alone_is_too_long_is_refused_at_once(site):
    site.app("a", Reading())
    client, _ = await opened(site)
    client.send(frame(b"", length=2**62))
    assert (await client.rest())[2:4] == (1009).to_bytes(2, "big")


async def test_endless_empty_fragments_are_a_message_that_is_too_long(site, wait_until):
    gate = site.app("a", Reading(), GateLimits(max_websocket_message_bytes=10_000))
    client, _ = await opened(site)
    client.send(frame(b"", fin=False) + frame(b"", 0, fin=False) * 5000)
    assert (await client.rest())[2:4] == (1009).to_bytes(2, "big")
    await wait_until(lambda: gate.inbound.used == 0)


async def test_websockets_of_an_app_that_does_not_read_hold_a_bounded_part(site, wait_until):
    app = Reading()
    gate = site.app("a", app)
    bound = gate.limits.max_waiting_websocket_bytes
    clients = [(await opened(site))[0] for _ in range(40)]
    for client in clients:
        client.send(frame(b"x" * 1_000_000) * 3)
    await wait_until(lambda: gate.inbound.used >= bound)
    # One message beyond it may be completed, and each may hold a little.
    assert gate.inbound.used < bound + 1_100_000 + 40 * 4096
    site.app("b")
    assert (await site.get("/", host="b.localhost")).status == 200
    small, _ = await opened(site)
    small.send(frame(b"small"))
    site.front.loop.call_soon_threadsafe(app.go.set)
    await wait_until(lambda: len(app.taken) == 121)
    assert b"small" in app.taken
    await wait_until(lambda: gate.inbound.used == 0)


async def test_half_messages_do_not_keep_each_other_waiting(site, wait_until):
    app = Reading()
    app.go.set()
    gate = site.app("a", app)
    bound = gate.limits.max_waiting_websocket_bytes
    message = frame(b"x" * 1_000_000)
    clients = [(await opened(site))[0] for _ in range(12)]
    for client in clients:
        client.send(message[:900_000])
    await wait_until(lambda: gate.inbound.used >= bound)
    for client in reversed(clients):
        client.send(message[900_000:])
    await wait_until(lambda: len(app.taken) == 12)
    assert gate.inbound.used == 0


async def test_half_a_message_that_all_others_wait_for_has_a_time(make_site, wait_until):
    site = await make_site(FrontLimits(body_idle_timeout=1.0))
    app = Reading()
    app.go.set()
    gate = site.app("a", app)
    message = frame(b"x" * 1_000_000)
    hogs = [(await opened(site))[0] for _ in range(10)]
    for hog in hogs:
        hog.send(message[:900_000])
    await wait_until(lambda: gate.inbound.full)
    late, _ = await opened(site)
    late.send(message)
    await wait_until(lambda: len(app.taken) == 1)


async def test_what_a_client_left_behind_is_freed_with_it(site, wait_until):
    app = Reading()
    gate = site.app("a", app)
    clients = [(await opened(site))[0] for _ in range(4)]
    for client in clients[:2]:
        client.send(frame(b"x" * 500_000))
    for client in clients[2:]:
        client.send(frame(b"x" * 500_000)[:300_000])
    await wait_until(lambda: gate.inbound.used > 1_600_000)
    for client in clients:
        client.writer.transport.abort()
    await wait_until(lambda: gate.inbound.used < 1_100_000)
    site.front.loop.call_soon_threadsafe(app.go.set)
    await wait_until(lambda: gate.figures().websockets == 0)
    assert gate.inbound.used == 0
    assert [len(taken) for taken in app.taken] == [500_000] * 2


async def test_messages_before_a_close_are_taken_before_it(site, wait_until):
    app = Reading()
    gate = site.app("a", app)
    client, _ = await opened(site)
    client.send(frame(b"one", 1) + frame(b"two") + frame((1000).to_bytes(2, "big") + b"bye", 8))
    # Echoed at once, also while the app is busy.
    assert await client.rest() == b"\x88\x05\x03\xe8bye"
    site.front.loop.call_soon_threadsafe(app.go.set)
    await wait_until(lambda: gate.figures().websockets == 0)
    assert app.taken == ["one", b"two"]
    assert site.faults == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x01x", 1002),  # no mask
        (b"\x83\x80\0\0\0\0", 1002),  # unknown opcode
        (b"\xc2\x81\0\0\0\0x", 1002),  # a reserved bit
        (frame(b"x", 0), 1002),  # a continuation of nothing
        (frame(b"a", fin=False) + frame(b"b"), 1002),  # a new message within one
        (frame(b"\xff", 1), 1007),
        (frame(b"p" * 126, 9), 1002),  # a long ping
        (frame(b"p", 9, fin=False), 1002),  # a ping in pieces
        (frame(b"\x03", 8), 1002),  # half a code
        (frame(b"\x03\xed", 8), 1002),  # 1005 is never sent
        (frame(b"\x03\xe8\xff", 8), 1007),
    ],
)
async def test_frames_that_break_the_protocol_end_the_websocket(site, wait_until, data, code):
    app = Reading()
    app.go.set()
    gate = site.app("a", app)
    client, _ = await opened(site)
    client.send(data)
    end = await client.rest()
    assert (end[:1], end[2:4]) == (b"\x88", code.to_bytes(2, "big"))
    await wait_until(lambda: gate.figures().websockets == 0)
    assert site.faults == []


async def test_frames_may_come_a_byte_at_a_time(site):
    site.app("a", app_that_echoes([]))
    client, _ = await opened(site)
    for byte in frame("grüße".encode(), 1) + frame(b"y" * 200, fin=False) + frame(b"", 9) + frame(b"z", 0):
        client.send(bytes([byte]))
        await client.writer.drain()
    answers = b"\x81\x07" + "grüße".encode(), b"\x8a\x00", b"\x82\x7e\x00\xc9" + b"y" * 200 + b"z"
    got = await client.reader.readexactly(sum(map(len, answers)))
    # The node's pong need not wait for the app.
    assert got.replace(answers[1], b"", 1) == answers[0] + answers[2]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"type": "websocket.send"}, "`bytes` or a str"),
        ({"type": "websocket.send", "text": b"bytes"}, "`bytes` or a str"),
        ({"type": "websocket.close", "code": 1005}, "invalid status code"),
        ({"type": "websocket.close", "reason": "x" * 124}, "too long"),
        ({"type": "websocket.accept"}, "Expected websocket.send"),
    ],
)
async def test_what_an_app_may_not_say_is_its_fault_and_closes_with_1011(site, wait_until, message, error):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send(message)

    site.app("a", app)
    client, _ = await opened(site)
    assert (await client.rest())[2:4] == (1011).to_bytes(2, "big")
    await wait_until(lambda: site.faults)
    assert error in site.faults[0]
