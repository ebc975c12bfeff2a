"""The SHARED tier: an app on the front's event loop, beside others, with a context and tasks of its own.

Contains errors and leftovers of an app; code that blocks the loop or holds the GIL reaches its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context, copy_context
from functools import partial

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.asgi import ASGIApp, Receive, Scope, Send
from runtime_node.context import hidden_in
from runtime_node.isolation import CURRENT_INSTANCE, tasks_of
from runtime_node.isolation.abandonable import run_abandonable
from runtime_node.isolation.current import LOADING_FOR
from runtime_node.isolation.environ import give_up, withhold
from runtime_node.isolation.leaks import Canary
from runtime_node.loader import LoadedCode, Loader
from runtime_node.loader.static import Kind
from runtime_node.tiers.cross_loop import run_on
from runtime_node.tiers.lifespan import CANCEL_GRACE, Lifespan
from runtime_node.tiers.reach import instead_of_environment, refusal_of
from runtime_node.tiers.runner import Launch, RunningApp, StopReport, Usage
from services.rpc.errors import SupervisorError
from services.spec.effective import effective_limits

_HANGS_SECONDS = 5.0
_releasing: set[asyncio.Task[list[str]]] = set()

Released = Callable[[str, Sequence[Canary]], None]
"""Told of each released app, by its instance, what of it is in memory still."""


class SharedApp:
    """An app that runs on the front's loop."""

    def __init__(self, runner: SharedRunner, launch: Launch, code: LoadedCode) -> None:
        self._runner = runner
        self._launch = launch
        self._code = code
        self._app: ASGIApp | None = None
        self._lifespan: Lifespan | None = None

    @property
    def asgi(self) -> ASGIApp:
        """The app, called in a task of the front's for each request."""
        assert self._app is not None
        assert self._lifespan is not None
        return with_state(self._app, self._lifespan)

    async def start(self, threads: int) -> None:
        """Build the app and run its startup. Called on the front's loop, in the instance's context."""
        app = await self._code.build(self._launch.context, threads=threads)
        lifespan = lifespan_of(app, self._launch)
        await lifespan.startup()
        self._app, self._lifespan = app, lifespan

    def usage(self) -> Usage:
        """Return the front loop's lag; what else a shared app uses cannot be told apart."""
        return Usage(loop_lag_seconds=self._runner.loop_lag())

    async def stop(self, timeout: float) -> StopReport:
        """Run the app's shutdown, cancel its tasks, release its code."""
        name = self._launch.spec.name
        ending = self._end(timeout, name)
        error, cancelled, left = await run_on(self._runner.loop, ending, context_of(name))
        self._app = self._lifespan = None
        left += await release(self._code, name, self._runner.released)
        return StopReport(error=error, cancelled_tasks=cancelled, leaks=tuple(left))

    async def _end(self, timeout: float, name: str) -> tuple[SupervisorError | None, int, list[str]]:
        error = None if self._lifespan is None else await self._lifespan.shutdown(timeout)
        tasks = set(tasks_of(asyncio.get_running_loop(), name))
        return error, *await end_tasks(tasks)


class SharedRunner:
    """Starts apps on the front's loop."""

    tier: InstanceSpec.IsolationTier.ValueType = InstanceSpec.SHARED

    def __init__(
        self,
        loader: Loader,
        loop: asyncio.AbstractEventLoop,
        loop_lag: Callable[[], float | None],
        released: Released,
    ) -> None:
        self._loader = loader
        self.loop = loop
        self.loop_lag = loop_lag
        self.released = released

    async def start(self, launch: Launch) -> RunningApp:
        """Load the code on a thread, build the app and run its startup on the front's loop."""
        code = await load(self._loader, launch)
        app = SharedApp(self, launch, code)
        try:
            starting = app.start(effective_limits(launch.spec).max_threads)
            await run_on(self.loop, starting, context_of(launch.spec.name))
        except BaseException:
            # A cancellation can come just after the startup was complete: then there is an app to end.
            await asyncio.shield(asyncio.create_task(app.stop(CANCEL_GRACE)))
            raise
        return app

    async def close(self) -> None:
        """Do nothing: the loop belongs to the front."""


async def load(loader: Loader, launch: Launch) -> LoadedCode:
    """Load an instance's code on a thread of its own: code that hangs holds up nobody.

    Raises ISOLATION_UNSUPPORTED for code that its settings cannot reach here. When cancelled, what is loaded
    all the same is released. Only an import that hangs is interrupted: an interruption could hit the loader
    itself in the middle of what it does for others.
    """
    instance, instead = launch.spec.name, instead_of_environment(launch.spec, "factory")

    def load_for_it() -> LoadedCode:
        LOADING_FOR.set(instance)
        withhold(instance, instead)
        try:
            return _reached(loader.load(launch.spec.entrypoint), launch.spec)
        except BaseException:
            give_up(instance, instead)
            raise

    loading = asyncio.create_task(run_abandonable(load_for_it, name=f"load {launch.context.app}"))
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        loading.add_done_callback(partial(_discard, instance, instead))
        asyncio.get_running_loop().call_later(_HANGS_SECONDS, loading.cancel)
        raise


def _reached(code: LoadedCode, spec: InstanceSpec) -> LoadedCode:
    kind: Kind = "app" if code.kind == "app" else "factory" if code.takes_context else "bare factory"
    refusal = refusal_of(spec, kind)
    if refusal is not None:
        code.release()
        raise SupervisorError("ISOLATION_UNSUPPORTED", refusal, resource=spec.name)
    if kind != "factory":
        withhold(spec.name, instead_of_environment(spec, kind))
    return code


def _discard(instance: str, instead: Mapping[str, str], loading: asyncio.Task[LoadedCode]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        give_up(instance, instead)
        releasing = asyncio.create_task(run_abandonable(loading.result().release, name="release"))
        _releasing.add(releasing)
        releasing.add_done_callback(_releasing.discard)


async def release(code: LoadedCode, instance: str, released: Released) -> list[str]:
    """Release an app's code on a thread of its own; return what it leaves behind, in words."""
    leaks = await run_abandonable(code.release, name=f"release {code.entrypoint}")
    released(instance, code.suspects)
    return leaks


def lifespan_of(app: ASGIApp, launch: Launch) -> Lifespan:
    """Return the lifespan of an app; its end by an error ends the app."""
    return Lifespan(app, hidden_in(launch.spec), launch.on_exit)


def context_of(instance: str) -> Context:
    """Return a new context in which everything counts as the instance's."""
    context = copy_context()
    context.run(CURRENT_INSTANCE.set, instance)
    return context


def with_state(app: ASGIApp, lifespan: Lifespan) -> ASGIApp:
    """Return the app so that each request gets a copy of its lifespan's state."""
    state = lifespan.state
    if not state:
        return app

    def serve(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope["state"] = state.copy()
        return app(scope, receive, send)

    return serve


async def end_tasks(tasks: set[asyncio.Task[object]]) -> tuple[int, list[str]]:
    """Cancel tasks of the running loop but the current one; return how many, and which do not end."""
    tasks.discard(asyncio.current_task())
    for task in tasks:
        task.cancel()
    if not tasks:
        return 0, []
    done, pending = await asyncio.wait(tasks, timeout=CANCEL_GRACE)
    for task in done:
        if not task.cancelled():
            task.exception()  # seen: an error on the way out is nobody's any more
    return len(tasks), [_describe(task) for task in pending]


def _describe(task: asyncio.Task[object]) -> str:
    stack = task.get_stack(limit=1)
    where = f" at {stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else ""
    return f"task {task.get_name()} ignores its cancellation{where}"
