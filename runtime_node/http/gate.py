"""One instance's door on the front loop: admission, limits, holding, draining, figures.

Knows requests only through `GatedRequest`; how bytes come and go is the protocol's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context

from runtime_node.asgi import ASGIApp
from runtime_node.http.current import CURRENT_INSTANCE
from runtime_node.http.faults import FaultTeller, Mishaps
from runtime_node.http.figures import GateFigures, Latencies
from runtime_node.http.gated_request import GatedRequest
from runtime_node.http.inbound import InboundBudget
from runtime_node.http.limits import DEFAULT_GATE_LIMITS, GateLimits
from runtime_node.http.problems import (
    APP_BLOCKED_LOOP,
    INSTANCE_STOPPING,
    LEASE_EXPIRED,
    QUEUE_FULL,
    Problem,
    unavailable,
)
from runtime_node.lease import REVOKED, ServingRight

_logger = logging.getLogger(__name__)

SLOW_SECONDS = 0.2
"""Requests that take longer are remembered one at a time."""

_UNWIND_TIME = 1.0
_BLOCKED_TIME = 1.0


class Door:
    """What a gate does with a new request; replaced as a whole, so a reader needs no lock."""

    __slots__ = ("asgi", "forward", "on_wanted", "problem")

    def __init__(
        self,
        asgi: ASGIApp | None = None,
        on_wanted: Callable[[str], None] | None = None,
        problem: Problem | None = None,
        forward: Gate | None = None,
    ) -> None:
        """`on_wanted` is told the name of the gate."""
        self.asgi = asgi
        self.forward = forward
        self.on_wanted = on_wanted
        self.problem = problem


def first_hold(on_wanted: Callable[[str], None]) -> Door:
    """Return what gates are made with that hold requests from the beginning: one for all dormant instances.

    `on_wanted` is called on the front loop with a gate's name, once, when the first request waits there.
    """
    return Door(on_wanted=on_wanted)


MADE_CLOSED = Door(problem=INSTANCE_STOPPING)
"""What a gate does that was made to be opened, or held, later."""


# One for all gates: it is held for two assignments, and ten thousand would cost more than they free.
_doors = threading.Lock()
# What a gate has until its first request; never changed.
_EMPTY_QUEUE: OrderedDict[GatedRequest, None] = OrderedDict()
_NOBODY: set[GatedRequest] = set()
_NO_MISHAPS = Mishaps()


class Gate:
    """The door of the instance `name`. Made closed (`INSTANCE_STOPPING`) or holding; `open` or `hold` it.

    `open`, `hold`, `close`, `figures` and `drain` may be called from any thread; what is marked
    "front loop" is the protocol's. `on_fault(name, stack)` is called on the front loop with the traceback of
    an exception that left the app (at most 16 KiB, at most five a second); it must not block.
    """

    __slots__ = (
        "_context", "_door", "_errors", "_idle", "_in_flight", "_inbound", "_last_time", "_latencies",
        "_loop", "_mishaps", "_on_fault", "_queue", "_requests", "_running", "_told", "_websockets",
        "last_slow", "lease", "limits", "name",
    )  # fmt: skip

    relays = False
    """What answers is another node's front: it may say what only a node may say."""

    def __init__(
        self,
        name: str,
        limits: GateLimits = DEFAULT_GATE_LIMITS,
        on_fault: Callable[[str, str], None] | None = None,
        lease: ServingRight | None = None,
        door: Door = MADE_CLOSED,
    ) -> None:
        """`lease` has to be held to serve, from a request's beginning to its last byte; None: it need not.
        `door` is a `first_hold`, of a gate that is to hold from its beginning."""
        self.name = name
        self.limits = limits
        self.lease = lease
        self.last_slow = (0.0, 0.0)
        """When the last slow request was answered, in monotonic seconds, and how long it had taken."""
        self._on_fault = on_fault
        self._door = door
        self._told: Door | None = None
        """The door that has been told that a request waits. Front loop."""
        # A dormant app costs next to nothing: the rest is made with the first request.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: Context | None = None
        self._latencies: Latencies | None = None
        self._queue = _EMPTY_QUEUE
        self._running = _NOBODY
        self._idle: asyncio.Event | None = None
        self._in_flight = self._websockets = 0
        self._requests = self._errors = 0
        self._mishaps = _NO_MISHAPS
        self._last_time: float | None = None
        self._inbound: InboundBudget | None = None

    # --- from any thread ---

    def open(self, asgi: ASGIApp) -> None:
        """Serve with `asgi` (called on the front loop) from now on; what was held goes first, in order."""
        self._replace(Door(asgi=asgi))

    def hold(self, on_wanted: Callable[[], None]) -> None:
        """Let requests wait for `open` or `close`, each up to its time limit.

        At most as many as an open gate takes, served and waiting, so that no burst is lost for a start.

        `on_wanted` is called once, on the front loop, when the first one waits (at once if some wait
        already); it must not block. A request still waiting when its time is up is answered 504.
        """
        self._replace(Door(on_wanted=lambda _: on_wanted()))

    def close(self, reason: str, retry_after: float | None = None) -> None:
        """Answer 503 with `reason` from now on, to those that wait too. Requests being served go on.

        The public gets the reason and its fixed sentence: what the app itself said is for its owner.
        """
        self._replace(Door(problem=unavailable(reason, retry_after)))

    def forward(self, successor: Gate) -> None:
        """Hand those that wait, and any that still come, to another gate: what was held here is not lost.

        For the swap of an instance that is not open. What is being served here goes on.
        """
        if successor is self:
            raise ValueError("a gate cannot forward to itself")
        self._replace(Door(forward=successor))

    def revoke(self) -> None:
        """Serve nobody any more, whatever comes: the instance has left the node. For those with a lease."""
        if self.lease is not None:
            self.lease = REVOKED
            self.lapse()

    def lapse(self) -> None:
        """End what is under way without a lease now, and what waits."""
        loop = self._loop
        if self.lease is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: nothing is left
                loop.call_soon_threadsafe(self._lapse)

    def _replace(self, door: Door) -> None:
        with _doors:
            self._door = door
            # The front loop sets `_loop` before it reads `_door`, so it either sees the new door or is woken.
            loop = self._loop
        if loop is not None:
            # A loop that is closed has no request left to wake.
            try:
                loop.call_soon_threadsafe(self._apply)
            except RuntimeError:
                _logger.debug("the front loop is closed", extra={"action": "gate.late", "gate": self.name})

    def figures(self) -> GateFigures:
        """Return the figures as of now. Cheap; never waits for the front loop."""
        latencies = self._latencies
        mishaps = self._mishaps
        rate, p50, p99 = latencies.read(time.monotonic()) if latencies is not None else (0.0, 0.0, 0.0)
        return GateFigures(
            requests=self._requests,
            errors=self._errors,
            shed=mishaps.shed,
            timeouts=mishaps.timeouts,
            faults=mishaps.faults,
            disconnects=mishaps.disconnects,
            too_large=mishaps.too_large,
            in_flight=self._in_flight,
            queued=len(self._queue),
            websockets=self._websockets,
            running=len(self._running),
            requests_per_second=rate,
            latency_p50=p50,
            latency_p99=p99,
            last_request_time=self._last_time,
        )

    async def drain(self, timeout: float, *, websocket_grace: float = 0.0) -> int:
        """Wait until nothing is being served, for `timeout` seconds, then cut off the rest; return how many.

        WebSockets are told to come again (close code 1012) after `websocket_grace` seconds. What runs
        after a response was sent (background work) is waited for too. Switch the route or close the
        gate first: an open gate goes on admitting, and what waits for `open` is not waited for.
        Awaitable on any loop; cancelling it leaves the requests alone.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            return 0
        draining = self._drain(timeout, websocket_grace)
        try:
            async with asyncio.timeout(timeout + _UNWIND_TIME + _BLOCKED_TIME):
                return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(draining, loop))
        except TimeoutError:
            # The front loop itself is blocked, and by now nobody can be waited for.
            return len(self._running)

    # --- front loop ---

    def admit(self, gated: GatedRequest, loop: asyncio.AbstractEventLoop) -> None:
        """Let a request or WebSocket in, let it wait, or refuse it. Front loop."""
        if self._loop is None:
            self._queue, self._running = OrderedDict(), set()
            self._loop = loop
        lease = self.lease
        if lease is not None and not lease.held:
            gated.refuse(LEASE_EXPIRED)
            return
        door = self._door
        if (
            door.asgi is not None
            and self._in_flight < self.limits.max_concurrent_requests
            and not self._queue
            and not gated.is_websocket
        ):
            self._in_flight += 1
            self._last_time = gated.admitted_at
            self._start(gated, door.asgi)
        else:
            self._admit_otherwise(gated, door)

    def _admit_otherwise(self, gated: GatedRequest, door: Door) -> None:
        if door.problem is not None:
            gated.refuse(door.problem)
        elif door.forward is not None:
            assert self._loop is not None
            gated.moved(door.forward)
            door.forward.admit(gated, self._loop)
        elif gated.is_websocket and self._websockets >= self.limits.max_websockets:
            self._mishap().shed += 1
            gated.refuse(QUEUE_FULL)
        elif door.asgi is not None and gated.is_websocket:
            self._let_in(gated, door.asgi)
        elif len(self._queue) >= self._room(door):
            self._mishap().shed += 1
            gated.refuse(QUEUE_FULL)
        else:
            self._queue[gated] = None
            self._last_time = gated.admitted_at
            self._want(door)

    def _room(self, door: Door) -> int:
        room = self.limits.max_queued_requests
        return room if door.asgi is not None else room + self.limits.max_concurrent_requests

    def _let_in(self, gated: GatedRequest, asgi: ASGIApp) -> None:
        if gated.is_websocket:
            self._websockets += 1
        else:
            self._in_flight += 1
        self._last_time = gated.admitted_at
        self._start(gated, asgi)

    def _start(self, gated: GatedRequest, asgi: ASGIApp) -> None:
        assert self._loop is not None
        context = self._context
        if context is None:
            self._context = context = Context()
            context.run(CURRENT_INSTANCE.set, self.name)
        if self.lease is not None:
            gated.stretch = self.lease.stretch
        self._running.add(gated)
        gated.task = self._loop.create_task(gated.run(asgi), context=context.copy())

    def _want(self, door: Door) -> None:
        if door.on_wanted is not None and self._told is not door:
            self._told = door
            try:
                door.on_wanted(self.name)
            except Exception:
                _logger.exception("on_wanted failed", extra={"action": "gate.on_wanted", "gate": self.name})

    def _apply(self) -> None:
        """Do with those that wait what the present door says."""
        door = self._door
        queue = self._queue
        if queue and self.lease is not None and not self.lease.held:
            while queue:
                queue.popitem(last=False)[0].refuse(LEASE_EXPIRED)
        elif door.problem is not None:
            while queue:
                queue.popitem(last=False)[0].refuse(door.problem)
        elif door.forward is not None:
            while queue:
                self._admit_otherwise(queue.popitem(last=False)[0], door)
        elif door.asgi is not None:
            while queue and (
                self._in_flight < self.limits.max_concurrent_requests or next(iter(queue)).is_websocket
            ):
                self._let_in(queue.popitem(last=False)[0], door.asgi)
        elif queue:
            self._want(door)
        self._settle()

    def _lapse(self) -> None:
        self._apply()
        lease = self.lease
        if lease is None:
            return
        for gated in [it for it in self._running if not lease.covers(it.stretch)]:
            gated.cut(LEASE_EXPIRED)

    def response_done(
        self,
        gated: GatedRequest,
        now: float,
        *,
        error: bool = False,
        timeout: bool = False,
        gone: bool = False,
    ) -> None:
        """Take note that a request's response is complete or will never be: its place is free. Front loop."""
        self._in_flight -= 1
        self._requests += 1
        if error:
            self._errors += 1
        if timeout:
            self._mishap().timeouts += 1
        if gone:
            self._mishap().disconnects += 1
        self._last_time = now
        latencies = self._latencies
        if latencies is None:
            self._latencies = latencies = Latencies(gated.admitted_at)
        took = now - gated.admitted_at
        latencies.add(now, took)
        if took > SLOW_SECONDS:
            self.last_slow = (now, took)
        if self._queue:
            self._apply()

    def put_back(self, gated: GatedRequest, asgi: ASGIApp) -> None:
        """Let a request wait that `asgi` could not deliver, until the door is another one. Front loop.

        It keeps its turn and its time limit. The end of its app is on its way to whoever keeps the door.
        """
        self._in_flight -= 1
        self._running.discard(gated)
        gated.task = None
        self._queue[gated] = None
        self._queue.move_to_end(gated, last=False)
        if self._door.asgi is not asgi:
            self._apply()

    def task_done(self, gated: GatedRequest) -> None:
        """Take note that the app's callable for it has returned. Front loop."""
        self._running.discard(gated)
        if gated.is_websocket:
            self._websockets -= 1
            self._last_time = time.monotonic()
        if self._idle is not None:
            self._settle()

    def remove_waiting(self, gated: GatedRequest, *, timeout: bool = False, gone: bool = False) -> bool:
        """Take a waiting request out of the queue, and count why; tell whether it was there. Front loop."""
        if gated not in self._queue:
            return False
        del self._queue[gated]
        if timeout:
            self._mishap().timeouts += 1
        if gone:
            self._mishap().disconnects += 1
        self._settle()
        return True

    def refused_body(self) -> None:
        """Count a body that was too large. Front loop."""
        self._mishap().too_large += 1

    def fault(self, error: BaseException | None, what: str) -> None:
        """Record a fault of the app. Front loop."""
        mishaps = self._mishap()
        mishaps.faults += 1
        if self._on_fault is not None:
            if mishaps.teller is None:
                mishaps.teller = FaultTeller(self.name, self._on_fault)
            mishaps.teller.tell(error, what)

    def _mishap(self) -> Mishaps:
        if self._mishaps is _NO_MISHAPS:
            self._mishaps = Mishaps()
        return self._mishaps

    @property
    def held_connections(self) -> int:
        """How many connections its requests and WebSockets hold, waiting ones included. Front loop."""
        return len(self._running) + len(self._queue)

    @property
    def inbound(self) -> InboundBudget:
        """What its WebSockets may hold for the app together. Front loop."""
        if self._inbound is None:
            self._inbound = InboundBudget(self.limits.max_waiting_websocket_bytes)
        return self._inbound

    def tell_widened_cookie(self) -> None:
        """Say in the app's log, once, that cookies lose a `Domain` that covers other apps. Front loop."""
        mishaps = self._mishap()
        if not mishaps.widened_cookie:
            mishaps.widened_cookie = True
            # Not registered: loggers that are live as long as the process.
            logger = logging.Logger(self.name)
            logger.parent = logging.getLogger("apps")
            logger.warning(
                "Set-Cookie had a Domain that covers every app of this node; the attribute is dropped."
            )

    def reconcile(self) -> None:
        """End what an interruption left behind: it may have come after the app, in the node's own code."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: nothing is left
                loop.call_soon_threadsafe(self._reconcile)

    def _reconcile(self) -> None:
        for gated in [p for p in self._running if p.task is not None and p.task.done()]:
            gated.cut(APP_BLOCKED_LOOP)
            if gated in self._running:
                self.task_done(gated)

    # --- draining, on the front loop ---

    def _settle(self) -> None:
        if self._idle is not None and self._is_idle():
            self._idle.set()

    def _is_idle(self) -> bool:
        return not self._running and (not self._queue or self._door.asgi is None)

    async def _drain(self, timeout: float, websocket_grace: float) -> int:
        deadline = time.monotonic() + timeout
        if websocket_grace > 0:
            await self._wait_idle(min(timeout, websocket_grace))
        for gated in [p for p in self._running if p.is_websocket]:
            gated.close_gently()
        if await self._wait_idle(deadline - time.monotonic()):
            return 0
        if self._door.asgi is not None:
            while self._queue:
                self._queue.popitem(last=False)[0].refuse(INSTANCE_STOPPING)
        left_over = list(self._running)
        for gated in left_over:
            gated.cut(INSTANCE_STOPPING)
        await self._wait_idle(_UNWIND_TIME)
        return len(left_over)

    async def _wait_idle(self, timeout: float) -> bool:
        if self._is_idle():
            return True
        idle = self._idle
        if idle is None:
            self._idle = idle = asyncio.Event()
        idle.clear()
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                await idle.wait()
        except TimeoutError:
            return self._is_idle()
        return True
