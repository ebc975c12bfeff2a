"""One request on its way to another node, and its response on the way back, over whichever protocol.

Until its response begins it can be sent anew to where the app is then, as long as its body is not too long.
"""

from __future__ import annotations

import asyncio
import logging
from functools import cached_property
from typing import Final

from runtime_node.asgi import Receive, Scope, Send
from runtime_node.forwarding.carried import BrokenLinkError
from runtime_node.forwarding.heads import (
    RequestHead,
    is_grpc_call,
    request_fields,
    request_head,
    response_headers,
)
from runtime_node.forwarding.http2_link import Http2Link
from runtime_node.forwarding.link import Link
from runtime_node.forwarding.target import Target
from runtime_node.http.problems import REASON_HEADER
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.forwards")

KEPT_BYTES = 128 * 1024
"""Of a body that may have to be sent once more. Over HTTP/2 all that is read before the app there reads:
the first window of the stream, and a piece that waits for the next."""
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class ClientLeftError(Exception):
    """The client is gone: nobody wants the response."""


class AgainError(Exception):
    """The other node has let nothing in: it was closing the connection, or the app has moved on from it."""


class Exchange:
    """A request with its response. Made for the request; each `run` is one try to carry it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, node: bytes) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._node = node
        self._left = False
        self._read_all = False
        """The client has sent all of its body."""
        self._kept = bytearray()
        self._repeatable = True
        """All that was read of the body is kept."""
        self.read_some = False
        """Something of the request was read: only from here can it be carried on."""

    @cached_property
    def _head(self) -> RequestHead:
        return request_head(self._scope, self._node)

    def goes_over_http2(self, target: Target) -> bool:
        """Tell how it goes to a node: as it came, as far as the node has that.

        Raises SupervisorError APP_MOVED for a call of gRPC and a node that has no HTTP/2: its trailers would
        be lost, and its client tries again where the app is now.
        """
        if self._scope.get("http_version") == "2" and target.serves_http2:
            return True
        if is_grpc_call(self._scope):
            raise SupervisorError(
                "APP_MOVED",
                "The app has moved to a node that takes no calls of gRPC from this one.",
                retry_after=1.0,
            )
        return False

    def may_reuse(self, target: Target) -> bool:
        """Tell whether it may go over a connection that was used before, which may be closed under it.

        Over HTTP/2 a node says what it has not taken (RFC 9113 §6.8); over HTTP/1.1 nobody knows, so it must
        be a request that may be sent twice. Raises UnsendableError, and as `goes_over_http2`.
        """
        return self.goes_over_http2(target) or (self._scope["method"] in _SAFE and not self._head.has_body)

    async def run(self, link: Link | Http2Link, *, last: bool) -> None:
        """Carry it to its end.

        Raises BrokenLinkError, ClientLeftError, UnsendableError, and unless it is the `last` try AgainError.
        """
        pulling = asyncio.get_running_loop().create_task(self._pull(link))
        try:
            if isinstance(link, Http2Link):
                link.ask(request_fields(self._scope, self._node))
            else:
                link.ask(self._head)
            await link.head()
            if not last and self._repeatable and _has_moved_on(link):
                raise AgainError
            self._keep_nothing()
            await self._push(link)
        except BrokenLinkError:
            if self._left:
                raise ClientLeftError from None
            if not last and self._repeatable and self._was_not_let_in(link):
                raise AgainError from None
            raise
        finally:
            # Not waited for: the next request of the app is let in already, and takes this one's place.
            pulling.cancel()
        if not self._read_all:
            # Answered before the body was read: nobody can tell what comes on this connection.
            link.abort()

    def _was_not_let_in(self, link: Link | Http2Link) -> bool:
        closed_under_it = link.used and not link.heard
        return link.refused or (closed_under_it and self._scope["method"] in _SAFE)

    async def _push(self, link: Link | Http2Link) -> None:
        """Pass the response on. A client that is slow holds up `send`, and with it the reading here."""
        send = self._send
        trailers = link.carries_trailers and not link.has_ended
        start = {"type": "http.response.start", "status": link.status, "trailers": trailers}
        await send({**start, "headers": response_headers(link.headers)})
        # The head leaves with the first piece: where none is there yet it is not to wait for one.
        if not link.has_news:
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        more = True
        while more:
            body = await link.read()
            more = not link.has_ended
            await send({"type": "http.response.body", "body": body, "more_body": more})
        if trailers:
            await send({"type": "http.response.trailers", "headers": response_headers(link.trailers)})

    async def _pull(self, link: Link | Http2Link) -> None:
        """Send the request's body, then wait for the client's end."""
        try:
            if not await link.body_is_wanted():
                return
        except BrokenLinkError:
            return
        try:
            if self._kept or self._read_all:
                link.send_body(bytes(self._kept), not self._read_all)
                await link.drain()
            while True:
                message = await self._receive()
                if message["type"] != "http.request":
                    self._left = True
                    link.abort()
                    return
                body, more = message.get("body", b""), message.get("more_body", False)
                self._keep(body, more)
                link.send_body(body, more)
                await link.drain()
        except Exception:
            log.exception("forwarding failed", extra={"action": "forward.fault"})
            link.abort()

    def _keep(self, body: bytes, more: bool) -> None:
        self.read_some = True
        self._read_all = not more
        if self._repeatable:
            self._kept += body
            if len(self._kept) > KEPT_BYTES:
                self._keep_nothing()

    def _keep_nothing(self) -> None:
        self._repeatable = False
        self._kept.clear()


def _has_moved_on(link: Link | Http2Link) -> bool:
    """Tell whether the other node answers that it only forwards for the app, too: then it let nothing in."""
    return (REASON_HEADER, b"APP_MOVED") in link.headers and (
        link.status == 503 or (b"grpc-status", b"14") in link.headers
    )
