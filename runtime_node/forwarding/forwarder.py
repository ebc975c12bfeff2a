"""Answers for one app that has moved: carries each request to the node that has it, and its response back.

Stands at a gate as an app does, so that admission, limits, deadlines and slow clients are the front's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from runtime_node.asgi import Receive, Scope, Send, UndeliveredError
from runtime_node.forwarding.carried import BrokenLinkError
from runtime_node.forwarding.carrier import Carrier
from runtime_node.forwarding.exchange import AgainError, ClientLeftError, Exchange
from runtime_node.forwarding.heads import UnsendableError, was_forwarded
from runtime_node.forwarding.http2_link import Http2Link
from runtime_node.forwarding.link import Link
from runtime_node.forwarding.target import Target
from runtime_node.forwarding.websocket import WebSocketRelay
from runtime_node.http.gate import Gate
from services.rpc.errors import SupervisorError

_Link = TypeVar("_Link")
_RETRY_SECONDS = 0.1
_TRIES = 4
"""Of a request that another node has let nothing of in: as many moves may come faster than it gets there."""


class ForwardGate(Gate):
    """The gate of an app that has moved: the answers of another node's front pass it as they are."""

    __slots__ = ()
    relays = True


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
        exchange = Exchange(scope, receive, send, self._carrier.node)
        for attempt in range(_TRIES):
            again = attempt > 0
            link, target = await self._reach(partial(self._open, exchange, again), exchange.read_some)
            self.forwarded += not again
            try:
                await exchange.run(link, last=attempt == _TRIES - 1)
            except AgainError:
                link.abort()
                if target == self.target:
                    await asyncio.sleep(_RETRY_SECONDS)
                continue
            except ClientLeftError:
                link.abort()
            except BrokenLinkError as error:
                link.abort()
                if link.refused:
                    raise self._failed(target, "it takes no further request") from error
                raise self._broken_off(target, error) from error
            except BaseException:
                link.abort()
                raise
            else:
                self._carrier.give_back(target, link)
            return

    async def _open(self, exchange: Exchange, again: bool, target: Target) -> Link | Http2Link:
        fresh = again or not exchange.may_reuse(target)
        if exchange.goes_over_http2(target):
            return await self._carrier.connect_http2(target, fresh=fresh)
        return await self._carrier.connect(target, fresh=fresh)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        relay = WebSocketRelay(self._carrier, scope, receive, send)
        link, target = await self._reach(partial(self._carrier.connect, fresh=True), False)
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

    def _failed(self, target: Target, why: str) -> SupervisorError:
        return SupervisorError(
            "FORWARD_FAILED",
            f"The node at {target}, which has the app now, cannot be reached: {why}.",
            resource=f"apps/{self.app}",
            metadata={"address": str(target), "why": why},
            retry_after=1.0,
        )

    async def _reach(
        self, connect: Callable[[Target], Awaitable[_Link]], read_some: bool
    ) -> tuple[_Link, Target]:
        """Return a connection to where the app is now, on the second try if need be.

        Raises SupervisorError FORWARD_FAILED; UndeliveredError where the request is to wait for an instance,
        which it cannot once it was read in part.
        """
        for attempt in (1, 2):
            target = self.target
            try:
                return await connect(target), target
            except OSError as error:  # TimeoutError is one
                failure = error
            if attempt == 1:
                await asyncio.sleep(_RETRY_SECONDS)
        why = type(failure).__name__ if failure.strerror is None else failure.strerror
        refusal = self._failed(target, why)
        if self.returning and not read_some:
            raise UndeliveredError(refusal) from failure
        raise refusal from failure
