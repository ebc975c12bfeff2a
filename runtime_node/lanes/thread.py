"""The THREAD lane: an app on an event loop of its own in a thread of its own.

Contains code that blocks its loop and its tasks; memory, crashes and the GIL stay shared.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from appsupervisor.runtime.v1.runtime_environment_pb2 import IsolationTier
from runtime_node.instances.terms import limit_terms
from runtime_node.isolation.apart import run_apart
from runtime_node.lanes.bridge import Bridge
from runtime_node.lanes.hop import run_on
from runtime_node.lanes.lag import LoopLag
from runtime_node.lanes.lane import ASGIApp, Launch, RunningApp, StopReport, Usage
from runtime_node.lanes.lifespan import CANCEL_GRACE, Lifespan
from runtime_node.lanes.ownership import Owner, prepare_loop
from runtime_node.lanes.shared import describe_task
from runtime_node.loader import LoadedCode, Loader
from services.rpc.errors import SupervisorError

T = TypeVar("T")

JOIN_SECONDS = 1.0
"""Seconds that the thread gets to end after its loop was told to."""


class AppThread:
    """A thread with a loop of its own, for one app."""

    def __init__(self, owner: Owner) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        prepare_loop(self.loop)
        self.owner = owner
        self._thread = threading.Thread(target=self._run, name=owner.name, daemon=True)
        self._cpu_seconds = 0.0

    def start(self) -> None:
        """Start the thread. Raises RuntimeError when the machine has none to give."""
        try:
            self._thread.start()
        except RuntimeError:
            self.loop.close()
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.owner.context().run(self.loop.run_forever)
        finally:
            self._cpu_seconds = time.thread_time()
            try:
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            finally:
                asyncio.set_event_loop(None)
                self.loop.close()

    def cpu_seconds(self) -> float:
        """Return the CPU time the thread has used, also after its end."""
        ident = self._thread.ident
        if ident is not None and self._thread.is_alive():
            try:
                return time.clock_gettime(time.pthread_getcpuclockid(ident))
            except OSError:
                return self._cpu_seconds
        return self._cpu_seconds

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the thread's loop."""
        return await run_on(self.loop, work, self.owner.context())

    async def end(self) -> list[str]:
        """End the loop and the thread; return what does not end, in words."""
        try:
            self.loop.call_soon_threadsafe(self.loop.stop)
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
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "" if frame is None else f" at {frame.f_code.co_filename}:{frame.f_lineno}"


class ThreadApp:
    """An app that runs on a loop of its own."""

    def __init__(self, thread: AppThread, code: LoadedCode, front: asyncio.AbstractEventLoop) -> None:
        self._thread = thread
        self._code = code
        self._front = front
        self._lag = LoopLag(thread.loop)
        self._lifespan: Lifespan | None = None
        self._bridge: Bridge | None = None

    @property
    def asgi(self) -> ASGIApp:
        """The app, called on the front's loop; each call is carried over to the app's."""
        assert self._bridge is not None
        return self._bridge

    async def start(self, launch: Launch, threads: int) -> None:
        """Build the app and run its startup. Called on the app's loop."""
        app = await self._code.build(launch.context, threads=threads)
        lifespan = Lifespan(app, tuple(launch.spec.secret_env.values()))
        await lifespan.startup()
        self._lifespan = lifespan
        self._bridge = Bridge(app, lifespan.state, self._thread.owner, self._thread.loop, self._front)

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
            error, cancelled, leaks = await asyncio.wait_for(self._thread.call(self._stop(timeout)), limit)
        except TimeoutError:
            where = self._thread.position()
            error = SupervisorError(
                "APP_SHUTDOWN_FAILED", f"The app's loop was blocked and its shutdown was cut off{where}."
            )
        except RuntimeError:
            error = SupervisorError("APP_SHUTDOWN_FAILED", "The app closed its own event loop.")
        leaks += await self._thread.end()
        leaks += self._thread.owner.close()
        self._code.release()
        return StopReport(error=error, cancelled_tasks=cancelled, leaks=tuple(leaks))

    async def _stop(self, timeout: float) -> tuple[SupervisorError | None, int, list[str]]:
        error = None if self._lifespan is None else await self._lifespan.shutdown(timeout)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if not tasks:
            return error, 0, []
        _, pending = await asyncio.wait(tasks, timeout=CANCEL_GRACE)
        return error, len(tasks), [describe_task(task) for task in pending]


class ThreadLane:
    """Starts apps on loops of their own. `front` is the loop that requests come from."""

    tier: IsolationTier.ValueType = IsolationTier.THREAD

    def __init__(self, loader: Loader, front: asyncio.AbstractEventLoop) -> None:
        self._loader = loader
        self._front = front

    async def start(self, launch: Launch) -> RunningApp:
        """Load the code on a thread, then build and start the app on a loop of its own."""
        threads = limit_terms(launch.spec).max_threads
        owner = Owner(launch.spec.name, threads)
        code = await run_apart(
            lambda: owner.context().run(self._loader.load, launch.spec.entrypoint),
            name=f"load {launch.context.app}",
        )
        thread = AppThread(owner)
        app = ThreadApp(thread, code, self._front)
        try:
            thread.start()
            await thread.call(app.start(launch, threads))
        except BaseException:
            await asyncio.shield(asyncio.create_task(self._abandon(thread, code)))
            raise
        return app

    async def _abandon(self, thread: AppThread, code: LoadedCode) -> None:
        await thread.end()
        thread.owner.close()
        code.release()

    async def close(self) -> None:
        """Do nothing: every app has taken its thread with it."""
