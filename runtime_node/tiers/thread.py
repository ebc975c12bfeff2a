"""The THREAD tier: an app on an event loop of its own in a thread of its own.

Contains code that blocks its loop and its tasks; memory, crashes and the GIL stay shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.asgi import ASGIApp
from runtime_node.isolation import attach, guard_loop
from runtime_node.isolation.frames import current_frames
from runtime_node.loader import LoadedCode, Loader
from runtime_node.memory import give_back_zeros
from runtime_node.tiers.bridge import Bridge
from runtime_node.tiers.cross_loop import run_on
from runtime_node.tiers.lag import LoopLag
from runtime_node.tiers.lifespan import CANCEL_GRACE, Lifespan
from runtime_node.tiers.runner import Launch, RunningApp, StopReport, Usage
from runtime_node.tiers.shared import Released, context_of, end_tasks, lifespan_of, load, release
from runtime_node.watchdog import Watchdog
from services.rpc.errors import SupervisorError
from services.spec.effective import effective_limits

log = logging.getLogger("runtime_node.tiers")

T = TypeVar("T")

JOIN_SECONDS = 1.0
"""Seconds that the thread gets to end after its loop was told to."""


class AppThread:
    """A thread with a loop of its own, for one instance."""

    def __init__(self, instance: str, watchdog: Watchdog) -> None:
        self._instance = instance
        self._watchdog = watchdog
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        give_back_zeros(self.loop)
        self._stop = self.loop.stop
        attach(self.loop)
        guard_loop(self.loop)
        self._thread = threading.Thread(target=self._run, name=instance, daemon=True)
        self._cpu_seconds = 0.0
        self._ending = False

    def start(self) -> None:
        """Start the thread. Raises RuntimeError when the machine has none to give."""
        try:
            self._thread.start()
            self._watchdog.watch(self.loop, self._instance)
        except RuntimeError:
            self.loop.close()
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._ending:
            try:
                self.loop.run_forever()
            except BaseException:  # SystemExit and the like of an app's callback end nothing but that
                facts = {"action": "thread.interrupted", "instance": self._instance}
                log.warning("an app's code raised through its loop", exc_info=True, extra=facts)
        self._watchdog.unwatch(self.loop)
        self._cpu_seconds = time.thread_time()
        with contextlib.suppress(Exception):
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        self.loop.close()

    def cpu_seconds(self) -> float:
        """Return the CPU time the thread has used, also after its end."""
        ident = self._thread.ident
        if ident is None or not self._thread.is_alive():
            return self._cpu_seconds
        try:
            return time.clock_gettime(time.pthread_getcpuclockid(ident))
        except OSError:
            return self._cpu_seconds

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the thread's loop, in a context of the instance's."""
        return await run_on(self.loop, work, context_of(self._instance))

    async def end(self) -> list[str]:
        """End the loop and the thread; return what does not end, in words."""
        self._ending = True
        try:
            self.loop.call_soon_threadsafe(self._stop)
        except RuntimeError:
            return []
        deadline = time.monotonic() + JOIN_SECONDS
        # Looked at instead of joined: a joining worker thread would be held as long as the app's.
        while self._thread.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        if not self._thread.is_alive():
            return []
        return [f"its loop's thread still runs{self.position()}"]

    def position(self) -> str:
        """Say where the thread's code stands now."""
        frame = current_frames().get(self._thread.ident or 0)
        return "" if frame is None else f" at {frame.f_code.co_filename}:{frame.f_lineno}"


class ThreadApp:
    """An app that runs on a loop of its own."""

    def __init__(self, runner: ThreadRunner, launch: Launch, code: LoadedCode) -> None:
        self._runner = runner
        self._launch = launch
        self._code = code
        self._thread = AppThread(launch.spec.name, runner.watchdog)
        self._lag = LoopLag(self._thread.loop)
        self._lifespan: Lifespan | None = None
        self._bridge: Bridge | None = None

    @property
    def asgi(self) -> ASGIApp:
        """The app, called on the front's loop; each call is carried over to the app's."""
        assert self._bridge is not None
        return self._bridge

    async def start(self) -> None:
        """Start the thread, build the app on it and run its startup."""
        self._thread.start()
        await self._thread.call(self._build())

    async def _build(self) -> None:
        threads = effective_limits(self._launch.spec).max_threads
        app = await self._code.build(self._launch.context, threads=threads)
        lifespan = lifespan_of(app, self._launch)
        await lifespan.startup()
        self._lifespan = lifespan
        self._bridge = Bridge(app, lifespan.state, self._thread.loop, self._runner.front)

    def usage(self) -> Usage:
        """Return the thread's CPU time and its loop's lag; memory cannot be told apart."""
        return Usage(cpu_seconds=round(self._thread.cpu_seconds(), 3), loop_lag_seconds=self._lag.read())

    async def stop(self, timeout: float) -> StopReport:
        """Run the app's shutdown, cancel its tasks, end its thread, release its code."""
        error: SupervisorError | None = None
        cancelled = 0
        leaks: list[str] = []
        try:
            # The loop may be blocked, and then nothing that runs on it keeps the limit.
            limit = timeout + 3 * CANCEL_GRACE
            ending = self._thread.call(self._end(timeout))
            error, cancelled, leaks = await asyncio.wait_for(ending, limit)
        except TimeoutError:
            where = self._thread.position()
            text = f"The app blocked its loop and its shutdown was cut off{where}."
            error = SupervisorError("APP_SHUTDOWN_FAILED", text)
        except RuntimeError:
            pass  # its thread never started
        leaks += await self._thread.end()
        leaks += await release(self._code, self._launch.spec.name, self._runner.released)
        return StopReport(error=error, cancelled_tasks=cancelled, leaks=tuple(leaks))

    async def _end(self, timeout: float) -> tuple[SupervisorError | None, int, list[str]]:
        error = None if self._lifespan is None else await self._lifespan.shutdown(timeout)
        return error, *await end_tasks(set(asyncio.all_tasks()))


class ThreadRunner:
    """Starts apps on loops of their own. `front` is the loop that requests come from."""

    tier: InstanceSpec.IsolationTier.ValueType = InstanceSpec.THREAD

    def __init__(
        self, loader: Loader, front: asyncio.AbstractEventLoop, released: Released, watchdog: Watchdog
    ) -> None:
        self._loader = loader
        self.front = front
        self.released = released
        self.watchdog = watchdog

    async def start(self, launch: Launch) -> RunningApp:
        """Load the code on a thread, then build and start the app on a loop of its own."""
        app = ThreadApp(self, launch, await load(self._loader, launch))
        try:
            await app.start()
        except BaseException:
            # A cancellation can come just after the startup was complete: then there is an app to end.
            await asyncio.shield(asyncio.create_task(app.stop(CANCEL_GRACE)))
            raise
        return app

    async def close(self) -> None:
        """Do nothing: every app has taken its thread with it."""
