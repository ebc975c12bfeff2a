"""The SHARED lane: an app on the front's event loop, beside others, with a context and tasks of its own.

Contains errors and leftovers of an app; code that blocks the loop or holds the GIL reaches its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context

from appsupervisor.runtime.v1.runtime_environment_pb2 import IsolationTier
from runtime_node.instances.terms import limit_terms
from runtime_node.isolation.apart import run_apart
from runtime_node.lanes.hop import run_on
from runtime_node.lanes.lane import ASGIApp, Launch, Receive, RunningApp, Scope, Send, StopReport, Usage
from runtime_node.lanes.lifespan import CANCEL_GRACE, Lifespan
from runtime_node.lanes.ownership import OWNER, Owner, tasks_of
from runtime_node.loader import LoadedCode, Loader


class SharedApp:
    """An app that runs on the front's loop."""

    def __init__(self, lane: SharedLane, owner: Owner, code: LoadedCode, secrets: tuple[str, ...]) -> None:
        self._lane = lane
        self._owner = owner
        self._code = code
        self._secrets = secrets
        self._app: ASGIApp | None = None
        self._lifespan: Lifespan | None = None

    @property
    def asgi(self) -> ASGIApp:
        """The app, called in a task of the front's for each request."""
        app, owner, lifespan = self._app, self._owner, self._lifespan
        assert app is not None
        assert lifespan is not None
        state = lifespan.state
        if not state:

            def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
                OWNER.set(owner)
                return app(scope, receive, send)

            return serve

        def serve_with_state(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            OWNER.set(owner)
            scope["state"] = state.copy()
            return app(scope, receive, send)

        return serve_with_state

    async def start(self, launch: Launch, threads: int) -> None:
        """Build the app and run its startup. Called on the front's loop, in the owner's context."""
        app = await self._code.build(launch.context, threads=threads)
        lifespan = Lifespan(app, self._secrets)
        try:
            await lifespan.startup()
        except BaseException:
            await self._end_tasks()
            raise
        self._app, self._lifespan = app, lifespan

    def usage(self) -> Usage:
        """Return the front loop's lag; what else a shared app uses cannot be told apart."""
        return Usage(loop_lag_seconds=self._lane.loop_lag())

    async def stop(self, timeout: float) -> StopReport:
        """Run the app's shutdown, cancel its tasks, release its code."""
        return await run_on(self._lane.loop, self._stop(timeout), self._owner.context())

    async def _stop(self, timeout: float) -> StopReport:
        # The task that runs this is in the owner's context so that the shutdown is; it is none of its own.
        error = None
        if self._lifespan is not None:
            error = await self._lifespan.shutdown(timeout)
        cancelled, left = await self._end_tasks()
        self._app = self._lifespan = None
        self._owner.close()
        self._code.release()
        return StopReport(error=error, cancelled_tasks=cancelled, leaks=tuple(left))

    async def _end_tasks(self) -> tuple[int, list[str]]:
        tasks = tasks_of(self._owner, asyncio.get_running_loop())
        tasks.discard(asyncio.current_task())
        for task in tasks:
            task.cancel()
        if not tasks:
            return 0, []
        done, pending = await asyncio.wait(tasks, timeout=CANCEL_GRACE)
        for task in done:
            with suppress(asyncio.CancelledError):
                task.exception()
        return len(tasks), [describe_task(task) for task in pending]


class SharedLane:
    """Starts apps on the front's loop."""

    tier = IsolationTier.SHARED

    def __init__(
        self, loader: Loader, loop: asyncio.AbstractEventLoop, loop_lag: Callable[[], float | None]
    ) -> None:
        self._loader = loader
        self.loop = loop
        self.loop_lag = loop_lag

    async def start(self, launch: Launch) -> RunningApp:
        """Load the code on a thread, build the app and run its startup on the front's loop."""
        threads = limit_terms(launch.spec).max_threads
        owner = Owner(launch.spec.name, threads)
        context: Context = owner.context()
        code = await run_apart(
            lambda: context.run(self._loader.load, launch.spec.entrypoint), name=f"load {launch.context.app}"
        )
        app = SharedApp(self, owner, code, tuple(launch.spec.secret_env.values()))
        try:
            await run_on(self.loop, app.start(launch, threads), context)
        except BaseException:
            owner.close()
            code.release()
            raise
        return app

    async def close(self) -> None:
        """Do nothing: the loop belongs to the front."""


def describe_task(task: asyncio.Task[object]) -> str:
    """Say which task it is and where it stands."""
    stack = task.get_stack(limit=1)
    where = f" at {stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else ""
    return f"task {task.get_name()} ignores its cancellation{where}"
