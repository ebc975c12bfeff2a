"""Connections between nodes: for how long one stays on which nothing that was sent is taken."""

import asyncio
import contextlib
import socket

from runtime_node.forwarding import Carrier, Target
from runtime_node.forwarding.heads import RequestFields, RequestHead

GET = RequestHead(b"GET / HTTP/1.1\r\n\r\n", chunked=False, length=0, awaits_continue=False, head_only=False)
POST = RequestHead(b"POST / HTTP/1.1\r\n\r\n", chunked=True, length=0, awaits_continue=False, head_only=False)


def patience(link):
    """Return the milliseconds after which the kernel gives up; 0 for never."""
    return link.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


@contextlib.asynccontextmanager
async def some_node():
    """Give a carrier, and somebody to connect to who reads until the end."""
    ends = asyncio.Queue()

    async def until_its_end(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        await ends.put(writer)

    server = await asyncio.start_server(until_its_end, "127.0.0.1", 0)
    links = []
    yield (
        Carrier(asyncio.get_running_loop(), "environments/default/nodes/a"),
        Target(*server.sockets[0].getsockname()),
        links,
    )
    for link in links:
        link.transport.close()
        with contextlib.suppress(ConnectionError):
            await (await ends.get()).wait_closed()
    server.close()


async def test_a_body_may_wait_for_its_app_and_a_machine_that_is_cut_off_is_found_soon():
    """Linux breaks a connection whose peer lives and does not read, too: an upload was cut off after 4 s."""
    async with some_node() as (carrier, target, links):
        link = await carrier.connect(target, fresh=True)
        # Over HTTP/2 a node reads whatever its apps do.
        other = await carrier.connect_http2(target, fresh=True)
        links += [link, other]
        for head, milliseconds in ((GET, 4_000), (POST, 0), (GET, 4_000)):
            link.ask(head)
            assert patience(link) == milliseconds
        assert patience(other) == 4_000


async def test_who_sends_next_does_not_wait_for_what_was_sent_before():
    async with some_node() as (carrier, target, links):
        link = await carrier.connect_http2(target, fresh=True)
        links.append(link)
        link.ask(RequestFields([(b":method", b"POST"), (b":path", b"/"), (b":scheme", b"http")]))
        # The node takes nothing just as the last piece goes out.
        link.pause_writing()
        link.send_body(b"", False)
        assert link.flow.write_paused
        link.resume_writing()
        assert not link.flow.write_paused
