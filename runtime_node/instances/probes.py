"""Probes apps over HTTP, straight through their ASGI callable, past the gate and its limits.

One timer and a bounded number of probes at once serve all instances of the node.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from runtime_node.asgi import ASGIApp, Message, Scope
from runtime_node.cancellation import was_cancelled
from runtime_node.instances.probe import Probe
from runtime_node.instances.record import Instance, Run
from runtime_node.tiers.cross_loop import run_on
from runtime_node.watchdog.interruption import is_interruption
from services.rpc.errors import SupervisorError
from services.spec.effective import EffectiveHealthCheck

log = logging.getLogger("runtime_node.instances")

MAX_CONCURRENT = 32
_LATE = 1.0
"""Seconds beyond its own limit after which a probe counts as failed because its loop does not answer."""


class _Turn:
    """One run of an instance and when it is probed next."""

    __slots__ = ("due", "instance", "probe", "run")

    def __init__(self, instance: Instance, run: Run, probe: Probe, due: float) -> None:
        self.instance = instance
        self.run = run
        self.probe = probe
        self.due = due

    def __lt__(self, other: _Turn) -> bool:
        return self.due < other.due

    @property
    def over(self) -> bool:
        """Whether this run is not to be probed any more."""
        return self.run.probe is not self.probe


class Probes:
    """Schedules the probes of all instances. Belongs to the control loop; apps are called on `front`."""

    def __init__(
        self,
        front: asyncio.AbstractEventLoop,
        base_domain: str,
        on_outcome: Callable[[Instance], None],
        max_concurrent: int = MAX_CONCURRENT,
    ) -> None:
        self._front = front
        self._base_domain = base_domain
        self._on_outcome = on_outcome
        self._max_concurrent = max_concurrent
        self._heap: list[_Turn] = []
        self._waiting: deque[_Turn] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def add(self, instance: Instance, run: Run, check: EffectiveHealthCheck) -> None:
        """Probe an instance from now on, at once for the first time."""
        run.probe = Probe(check)
        heapq.heappush(self._heap, _Turn(instance, run, run.probe, self._loop.time()))
        self._arm()

    def remove(self, run: Run) -> None:
        """Probe it no more. What is scheduled of it is passed over when it is due."""
        run.probe = None

    async def close(self) -> None:
        """End all probing."""
        self._heap.clear()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = self._loop.call_at(self._heap[0].due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._heap and self._heap[0].due <= now:
            turn = heapq.heappop(self._heap)
            if not turn.over:
                self._waiting.append(turn)
        self._pump()
        self._arm()

    def _pump(self) -> None:
        while self._waiting and len(self._under_way) < self._max_concurrent:
            turn = self._waiting.popleft()
            if not turn.over and turn.run.running is not None:
                task = self._loop.create_task(self._run(turn, turn.run.running.asgi))
                self._under_way.add(task)
                task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("a probe failed", exc_info=fault, extra={"action": "instance.probe_fault"})
        self._pump()

    async def _run(self, turn: _Turn, asgi: ASGIApp) -> None:
        probe = turn.probe
        check = probe.check
        host = f"{turn.instance.app}.{self._base_domain}"
        work: Coroutine[Any, Any, str | None] = ask(asgi, check.path, host, check.timeout)
        try:
            failure = await asyncio.wait_for(run_on(self._front, work), check.timeout + _LATE)
        except TimeoutError:
            failure = "its event loop does not answer"
        except SupervisorError as blocked:
            # An interruption that hit the node's own code around the app. The next probe comes all the same.
            failure = blocked.message
        except asyncio.CancelledError:
            if was_cancelled():
                raise
            failure = "something on its event loop cancelled the probe"
        if turn.over:
            return
        before = probe.health
        probe.record(failure)
        # A little early, at random: probes of apps that started together spread out.
        turn.due = self._loop.time() + check.interval * random.uniform(0.95, 1.0)  # noqa: S311
        heapq.heappush(self._heap, turn)
        self._arm()
        if probe.health != before:
            self._on_outcome(turn.instance)


async def ask(asgi: ASGIApp, path: str, host: str, timeout: float) -> str | None:
    """Send one GET to an app; return None when it answers 2xx or 3xx in time, else what was wrong."""
    status = 0
    complete = False
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, complete
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            complete = not message.get("more_body", False)

    try:
        async with asyncio.timeout(timeout):
            await asgi(_scope(path, host), receive, send)
    except TimeoutError:
        if not complete:
            return f"no answer within {timeout:g} s"
    except BaseException as fault:  # whatever the app raises is its answer
        if isinstance(fault, asyncio.CancelledError) and was_cancelled():
            raise
        if is_interruption(fault):
            return "it blocked its event loop"
        if not complete:
            return f"it raised {type(fault).__name__}"
    if not complete:
        return "it gave no complete response"
    return None if 200 <= status < 400 else f"it answered {status}"


def _scope(path: str, host: str) -> Scope:
    plain, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": plain,
        "raw_path": plain.encode("utf-8"),
        "query_string": query.encode("utf-8"),
        "root_path": "",
        "headers": [(b"host", host.encode("ascii")), (b"user-agent", b"appsupervisor-probe")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
