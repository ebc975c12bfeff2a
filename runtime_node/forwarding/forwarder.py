"""Answers for one app that has moved: carries each request to the node that has it, and its response back.

Stands at a gate as an app does, so that admission, limits, deadlines and slow clients are the front's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from runtime_node.asgi import Receive, Scope, Send, UndeliveredError
from runtime_node.forwarding.carrier import Carrier
from runtime_node.forwarding.heads import (
    RequestHead,
    UnsendableError,
    is_grpc_call,
    request_head,
    response_headers,
    was_forwarded,
)
from runtime_node.forwarding.link import BrokenLinkError, Link
from runtime_node.forwarding.target import Target
from runtime_node.forwarding.websocket import WebSocketRelay
from runtime_node.http.gate import Gate
from runtime_node.http.problems import REASON_HEADER
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.forwards")

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_RETRY_SECONDS = 0.1


class ForwardGate(Gate):
    """The gate of an app that has moved: the answers of another node's front pass it as they are."""

    __slots__ = ()
    relays = True


class ClientLeftError(Exception):
    """The client is gone: nobody wants the response."""


class AgainError(Exception):
    """The other node has let nothing in: it was closing the connection, or the app has moved on from it."""


class Forwarder:
    """Forwards the requests of one app to `target`, which may be set to another node at any time.

    Counts on the front loop; any thread may read.
    """

    __slots__ = ("_carrier", "app", "failed", "forwarded", "returning", "target")

    def __init__(self, carrier: Carrier, app: str, target: Target) -> None:
        self._carrier = carrier
        self.app = app
        self.target = target
        self.returning = False
        """An instance of the app is being started on this node: what cannot be forwarded waits for it."""
        self.forwarded = 0
        """Requests and WebSockets that were taken over to the other node."""
        self.failed = 0
        """Of all that came, those that were not answered by the other node, or not to the end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one `http` or `websocket` scope.

        Raises SupervisorError APP_MOVED for a request that was forwarded already, SERVER_BUSY at a bound,
        FORWARD_FAILED when nothing reached the other node, FORWARD_BROKEN_OFF when it broke off.
        Cancelling closes the connection to the other node, which so learns that the client is gone.
        """
        try:
            if was_forwarded(scope):
                raise SupervisorError(
                    "APP_MOVED", "The app has moved on; a request is forwarded once.", retry_after=1.0
                )
            if is_grpc_call(scope):
                # Its trailers would be lost between nodes, and its client tries again where the app is now.
                raise SupervisorError(
                    "APP_MOVED", "The app has moved on; calls of gRPC are not forwarded.", retry_after=1.0
                )
            try:
                if scope["type"] == "websocket":
                    with self._carrier.place_for_websocket():
                        await self._relay(scope, receive, send)
                else:
                    with self._carrier.place_for_request():
                        await self._carry(scope, receive, send)
            except UnsendableError as error:
                raise SupervisorError("MALFORMED_REQUEST", str(error)) from None
        except UndeliveredError:
            raise
        except SupervisorError:
            self.failed += 1
            raise

    async def _carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = request_head(scope, self._carrier.node)
        head_only = scope["method"] == "HEAD"
        safe = scope["method"] in _SAFE and not head.has_body
        for last in (False, True):
            link, target = await self.connect(fresh=last or not safe)
            self.forwarded += not last
            try:
                await _Exchange(link, head, head_only, receive, send).run(last=last or head.has_body)
            except AgainError:
                link.transport.abort()
                if target == self.target:
                    await asyncio.sleep(_RETRY_SECONDS)
                continue
            except ClientLeftError:
                link.transport.abort()
            except BrokenLinkError as error:
                link.transport.abort()
                raise self._broken_off(target, error) from error
            except BaseException:
                link.transport.abort()
                raise
            else:
                self._carrier.give_back(target, link)
            return

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        relay = WebSocketRelay(self._carrier, scope, receive, send)
        link, target = await self.connect(fresh=True)
        self.forwarded += 1
        try:
            await relay.run(link)
        except BrokenLinkError as error:
            raise self._broken_off(target, error) from error

    def _broken_off(self, target: Target, error: BrokenLinkError) -> SupervisorError:
        return SupervisorError(
            "FORWARD_BROKEN_OFF",
            f"{target} broke off: {error}.",
            resource=f"apps/{self.app}",
            metadata={"address": str(target), "why": str(error)},
        )

    async def connect(self, *, fresh: bool) -> tuple[Link, Target]:
        """Return a connection to where the app is now, on the second try if need be.

        Raises SupervisorError FORWARD_FAILED; UndeliveredError where the request is to wait for an instance.
        """
        for attempt in (1, 2):
            target = self.target
            try:
                return await self._carrier.connect(target, fresh=fresh), target
            except OSError as error:  # TimeoutError is one
                failure = error
            if attempt == 1:
                await asyncio.sleep(_RETRY_SECONDS)
        why = type(failure).__name__ if failure.strerror is None else failure.strerror
        refusal = SupervisorError(
            "FORWARD_FAILED",
            f"The node at {target}, which has the app now, cannot be reached: {why}.",
            resource=f"apps/{self.app}",
            metadata={"address": str(target), "why": why},
            retry_after=1.0,
        )
        if self.returning:
            raise UndeliveredError(refusal) from failure
        raise refusal from failure


class _Exchange:
    """One request on its way to the other node, and its response on the way back."""

    def __init__(self, link: Link, head: RequestHead, head_only: bool, receive: Receive, send: Send) -> None:
        self._link = link
        self._head = head
        self._receive = receive
        self._send = send
        self._sent_all = not head.has_body
        self._left = False
        link.begin(head_only=head_only)
        link.write(head.data)

    async def run(self, *, last: bool) -> None:
        """Carry it to its end. Raises BrokenLinkError, ClientLeftError, and, unless it is the `last` try or
        one that was read from the client, AgainError."""
        link = self._link
        pulling = asyncio.get_running_loop().create_task(self._pull())
        try:
            await link.head()
            if not last and _has_moved_on(link):
                raise AgainError
            await self._push()
        except BrokenLinkError:
            if self._left:
                raise ClientLeftError from None
            if link.used and not last and not link.heard:
                # Closed under this request, which is one that may be sent twice.
                raise AgainError from None
            raise
        finally:
            # Not waited for: the next request of the app is let in already, and takes this one's place.
            pulling.cancel()
        if not self._sent_all:
            # Answered before the body was read: nobody can tell what comes on this connection.
            link.transport.abort()

    async def _push(self) -> None:
        """Pass the response on. A client that is slow holds up `send`, and with it the reading here."""
        link, send = self._link, self._send
        await send(
            {"type": "http.response.start", "status": link.status, "headers": response_headers(link.headers)}
        )
        # The head leaves with the first piece: where none is there yet it is not to wait for one.
        if not link.has_news:
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        while True:
            body = await link.read()
            ended = link.ended
            await send({"type": "http.response.body", "body": body, "more_body": not ended})
            if ended:
                return

    async def _pull(self) -> None:
        """Send the request's body, then wait for the client's end."""
        link = self._link
        try:
            while self._head.awaits_continue and not link.continued:
                if link.status:
                    return  # answered without the body, which the client is never asked for then
                await link.news()
        except BrokenLinkError:
            return
        try:
            while True:
                message = await self._receive()
                if message["type"] != "http.request":
                    self._left = True
                    link.transport.abort()
                    return
                self._pass_on(message.get("body", b""), message.get("more_body", False))
                await link.flow.drain()
        except Exception:
            log.exception("forwarding failed", extra={"action": "forward.fault"})
            link.transport.abort()

    def _pass_on(self, body: bytes, more: bool) -> None:
        if self._sent_all:
            return
        if not self._head.chunked:
            data = body
        elif body:
            data = b"%x\r\n%b\r\n" % (len(body), body)
        else:
            data = b""
        if not more:
            self._sent_all = True
            data += b"0\r\n\r\n" if self._head.chunked else b""
        if data:
            self._link.write(data)


def _has_moved_on(link: Link) -> bool:
    """Tell whether the other node answers that it only forwards for the app, too: then it let nothing in."""
    return link.status == 503 and (REASON_HEADER, b"APP_MOVED") in link.headers
