"""Connections between nodes: for how long one stays on which nothing that was sent is taken."""

import asyncio
import contextlib
import socket

from runtime_node.forwarding import Carrier, Target
from runtime_node.forwarding.heads import RequestHead

GET = RequestHead(b"GET / HTTP/1.1\r\n\r\n", chunked=False, length=0, awaits_continue=False, head_only=False)
POST = RequestHead(b"POST / HTTP/1.1\r\n\r\n", chunked=True, length=0, awaits_continue=False, head_only=False)


def patience(link):
    """Return the milliseconds after which the kernel gives up; 0 for never."""
    return link.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


async def test_a_body_may_wait_for_its_app_and_a_machine_that_is_cut_off_is_found_soon():
    """Linux breaks a connection whose peer lives and does not read, too: an upload was cut off after 4 s."""
    ends = asyncio.Queue()

    async def until_its_end(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        await ends.put(writer)

    server = await asyncio.start_server(until_its_end, "127.0.0.1", 0)
    carrier = Carrier(asyncio.get_running_loop(), "environments/default/nodes/a")
    target = Target(*server.sockets[0].getsockname())
    link = await carrier.connect(target, fresh=True)
    for head, milliseconds in ((GET, 4_000), (POST, 0), (GET, 4_000)):
        link.ask(head)
        assert patience(link) == milliseconds
    # Over HTTP/2 a node reads whatever its apps do.
    other = await carrier.connect_http2(target, fresh=True)
    assert patience(other) == 4_000
    for opened in (link, other):
        opened.transport.close()
        with contextlib.suppress(ConnectionError):
            await (await ends.get()).wait_closed()
    server.close()
