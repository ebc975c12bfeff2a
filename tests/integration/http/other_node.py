"""The other end of a forwarded request: a node that answers with bytes, and what an app there has seen."""

import asyncio
import contextlib

from runtime_node.forwarding import Target


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


def lines(answer):
    return answer.body.decode("latin-1").split("\n")
