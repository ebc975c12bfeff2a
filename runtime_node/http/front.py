"""The HTTP front of a node: the listener with its thread and event loop, driven from the control loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import uvloop

from runtime_node.http.forwarded import TrustedProxies
from runtime_node.http.limits import DEFAULT_FRONT_LIMITS, FrontLimits
from runtime_node.http.listener import Listener
from runtime_node.http.router import Router
from runtime_node.http.shared import FrontShared

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_JOIN_TIME = 5.0
# For a healthy loop to answer the control loop, beyond what it was given to do.
_ANSWER_TIME = 3.0


@dataclass(frozen=True, slots=True)
class FrontFigures:
    """What the listener carries and has refused by itself."""

    connections: int
    """Open now, WebSockets included."""
    refused_connections: int
    """Turned away at `max_connections` since the start."""
    refusals: dict[str, int]
    """Answers of the node's own since the start, by reason."""


class HttpFront:
    """The node's HTTP listener on the *front loop*, a uvloop loop in a thread named `front` that it owns.

    Made and driven on the control loop: `await start()`, then `await drain()` and `await stop()`. SHARED
    apps run on `loop` too, so it outlives `drain`; `stop` ends it.
    """

    def __init__(
        self,
        host: str,
        port: int,
        router: Router,
        *,
        limits: FrontLimits = DEFAULT_FRONT_LIMITS,
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        """Take the address to listen on (port 0: a free one) and the proxies, as addresses or networks,
        whose `Forwarded` and `X-Forwarded-…` are believed; from others they are dropped.

        Raises ValueError for a malformed network.
        """
        self._host = host
        self._port = port
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._shared = FrontShared(self._loop, router, limits, TrustedProxies(trusted_proxies))
        self._listener = Listener(self._shared)
        self._stopping = False
        self._address: tuple[str, int] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The front loop. It runs from `start` to `stop`."""
        return self._loop

    @property
    def address(self) -> tuple[str, int]:
        """The bound address. Raises RuntimeError before `start` has returned."""
        if self._address is None:
            raise RuntimeError("the front has not been started")
        return self._address

    async def start(self) -> tuple[str, int]:
        """Start the thread and listen; return the bound address once connections are accepted.

        Raises OSError when the address cannot be had; then the thread is gone again.
        """
        self._thread.start()
        try:
            self._address = await self._call(self._listener.start(self._host, self._port), _ANSWER_TIME)
        except BaseException:
            await self.stop(0)
            raise
        return self._address

    def begin_draining(self) -> None:
        """Say from now on that the node leaves. Any thread; safe to repeat; there is no way back.

        Apps that are open go on being served, each connection ends with its response, and an app that is
        gone is answered 503 NODE_DRAINING with Retry-After, not 404.
        """
        self._shared.draining = True

    async def drain(self, timeout: float) -> int:
        """Accept no more connections, let those that serve finish, cut them after `timeout` seconds.

        Returns how many were cut. WebSockets are closed with 1012 at once. The loop goes on running.
        Raises TimeoutError when the front loop is blocked and so answers nobody.
        """
        return await self._call(self._listener.drain(timeout), timeout + _ANSWER_TIME)

    async def stop(self, deadline: float) -> int:
        """Drain for at most `deadline` seconds, then end the loop and its thread. Returns how many were cut.

        Safe to repeat. Tasks that are still on the loop are cancelled. A loop that is blocked for good is
        left to the end of the process, and logged.
        """
        if not self._thread.is_alive():
            if not self._loop.is_closed():
                self._loop.close()
            return 0
        cut = 0
        try:
            cut = await self.drain(deadline)
            await self._call(self._cancel_tasks(), _ANSWER_TIME)
        except TimeoutError:
            _logger.error("the front loop is blocked", extra={"action": "front.blocked"})
        self._stopping = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, _JOIN_TIME)
        if self._thread.is_alive():
            _logger.error("the front loop does not end", extra={"action": "front.stuck"})
        return cut

    def figures(self) -> FrontFigures:
        """Return the listener's figures as of now. Any thread; cheap."""
        shared = self._shared
        return FrontFigures(
            connections=len(shared.connections),
            refused_connections=shared.refused_connections,
            refusals=shared.refusals.copy(),
        )

    async def _call(self, coroutine: Coroutine[Any, Any, _T], timeout: float) -> _T:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def _cancel_tasks(self) -> None:
        self._listener.stop()
        self._shared.ended = True
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except BaseException:
                _logger.exception("the front loop was interrupted", extra={"action": "front.interrupted"})
            if self._stopping:
                break
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
