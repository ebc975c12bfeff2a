"""Loaded code and how an app is made of it: calls factories, adapts protocols, owns the app's threads."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any, Literal

from runtime_node.asgi import ASGIApp, Receive, Scope, Send
from runtime_node.context import AppContext
from runtime_node.isolation.abandonable import run_abandonable
from runtime_node.isolation.adapters import share_type_adapters
from runtime_node.isolation.caches import evict
from runtime_node.isolation.contain import ContainedApp
from runtime_node.isolation.current import running_as
from runtime_node.isolation.dismantle import dismantle
from runtime_node.isolation.endings import end_threads
from runtime_node.isolation.environ import open_overlay
from runtime_node.isolation.leaks import Canary
from runtime_node.isolation.pool import InstancePool
from runtime_node.isolation.threads import close_threads, open_threads
from runtime_node.isolation.undo_log import undo
from runtime_node.loader import hooks
from runtime_node.loader.detect import Finding, Shape, examine
from runtime_node.loader.entrypoint import Entrypoint
from runtime_node.loader.failures import failure, with_refusal
from runtime_node.loader.locations import Lease
from runtime_node.loader.process_only import IsolationUnsupportedError
from runtime_node.loader.wsgi import WSGIAdapter
from services.rpc.errors import SupervisorError

log = logging.getLogger("runtime_node.loader")

# A step of the walk to a leak's holder stops all threads for as long as the heap is large.
_NAMING_SECONDS = 0.05


class LoadedCode:
    """What an entrypoint names, imported once. Factories may be built any number of times."""

    def __init__(
        self, entrypoint: Entrypoint, target: Any, finding: Finding, lease: Lease | None = None
    ) -> None:
        self.entrypoint = entrypoint
        self.kind: Literal["factory", "app"] = "app" if finding.is_app else "factory"
        self.protocol: Literal["asgi", "wsgi"] | None = _protocol(finding)
        """What the app speaks; None until a factory was called."""
        self.takes_context = finding.takes_context
        """Whether it is a factory that is given the context."""
        self.found = finding.found
        """What the entrypoint names, in words, for events and errors."""
        self._target = target
        self._finding = finding
        self._lease = lease
        self._instances: set[str] = set()
        self._apps: list[ContainedApp] = []
        self._canaries: list[Canary] = []
        self.suspects: list[Canary] = []
        """After `release`: what of it is still in memory, as garbage or because something holds it."""

    @property
    def freed(self) -> bool:
        """After `release`: whether all memory of the instance is free already."""
        return not self.suspects

    async def build(self, context: AppContext, *, threads: int) -> ASGIApp:
        """Return a new app for one instance, as an ASGI 3 callable.

        A factory runs in a thread of its own, so that a slow one delays nobody; an async one runs on the
        calling loop. The instance gets `threads` worker threads: a WSGI app runs on them, an ASGI app's sync
        handlers use as many. Raises SupervisorError `APP_FACTORY_FAILED`
        with the traceback when the factory raised or returned no app. When cancelled, the factory's thread
        is interrupted and its result dropped.
        """
        if self._target is None:
            raise RuntimeError("the code was released")
        self._instances.add(context.instance)
        pool = open_threads(context.instance, threads)
        if self._lease is not None:
            hooks.bind(context.instance, self._lease.tree)
            open_overlay(context.instance, parent=self._lease.tree.scope)
        if self.kind == "app":
            return self._adapt(self._target, self._finding, context, pool)
        share_type_adapters()
        with hooks.loading(None if self._lease is None else self._lease.tree), running_as(context.instance):
            app = await self._call_factory(context)
        finding = examine(app)
        if not finding.is_app:
            raise SupervisorError("APP_FACTORY_FAILED", _wrong_result(self.entrypoint, app, finding))
        self.protocol = _protocol(finding)
        if not self._is_shared(app):
            self._canaries.append(Canary("the app object", app))
        return self._adapt(app, finding, context, pool)

    def release(self, grace: float = 1.0) -> list[str]:
        """Give up the code, and undo and free what was built of it; return a sentence for each leak.

        Blocks for milliseconds, or up to about `grace` seconds while threads of the app end: call it in a
        worker thread, after the app's shutdown. What is not free by then is in `suspects`, for
        `GCPolicy.stopped`. Repeats do nothing.
        """
        leaks = []
        for instance in self._instances:
            leaks += end_threads(close_threads(instance), grace)
            leaks += undo(instance, grace)
            if self._lease is not None:
                hooks.unbind(instance, self._lease.tree)
        self._instances.clear()
        self._target = None
        remains = [app.detach() for app in self._apps]
        self._apps.clear()
        lease, self._lease = self._lease, None
        tops = frozenset({self.entrypoint.top}) if lease is None else lease.tree.tops()
        with _whatever_it_is("emptying caches of its code"):
            if self.kind == "factory":
                evict(tops)
        with _whatever_it_is("freeing it"):
            if self.kind == "factory":
                dismantle(remains)
            remains.clear()
            self._free_the_rest()
        with _whatever_it_is("naming what holds it"):
            for canary in self.suspects:
                named = canary.describe(_NAMING_SECONDS)
                leaks += named if lease is None else [_plainly(sentence, lease) for sentence in named]
        if lease is not None:
            lease.release()
        return leaks

    def _free_the_rest(self) -> None:
        """Try once more, without what a request left in cycles, and keep the canaries of what still lives."""
        self.suspects = [canary for canary in self._canaries if canary.is_alive]
        self._canaries.clear()
        if self.suspects:
            gc.collect(1)
            dismantle([canary.target() for canary in self.suspects if canary.is_alive])
            self.suspects = [canary for canary in self.suspects if canary.is_alive]

    def _is_shared(self, app: Any) -> bool:
        """Whether the factory returned something that its module keeps, which outlives the instance."""
        if isinstance(app, FunctionType | type):
            return True
        modules = self._lease.tree.modules() if self._lease is not None else ()
        return any(value is app for module in modules for value in list(vars(module).values()))

    async def _call_factory(self, context: AppContext) -> Any:
        error: SupervisorError
        try:
            call = _bound(self._target, self._finding, context)
            if inspect.iscoroutinefunction(self._target):
                return await call()
            app, raised = await run_abandonable(partial(_attempt, call), name=f"build {context.app}")
            # An awaitable that is an app as well (Starlette's endpoint classes) is the app.
            if inspect.iscoroutine(app) or (inspect.isawaitable(app) and not examine(app).is_app):
                app = await app
        except GeneratorExit:
            raise
        except asyncio.CancelledError as fault:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            error = self._factory_failed(fault, context)
        except BaseException as fault:  # noqa: BLE001 - SystemExit of an app must not end the node
            error = self._factory_failed(fault, context)
        else:
            if raised is None:
                return app
            error = self._factory_failed(raised, context)
            del raised
        # Raised outside the handler, so that it does not keep the app's frames as its context.
        raise error

    def _factory_failed(self, fault: BaseException, context: AppContext) -> SupervisorError:
        secrets = context.hidden
        if isinstance(fault, IsolationUnsupportedError):
            message = f"{self.entrypoint} cannot share a process: {fault}"
            return failure("ISOLATION_UNSUPPORTED", message, fault, secrets=secrets)
        message = f"the factory {self.entrypoint} raised {with_refusal(fault, secrets)}"
        return failure("APP_FACTORY_FAILED", message, fault, secrets=secrets)

    def _adapt(self, app: Any, finding: Finding, context: AppContext, pool: InstancePool) -> ASGIApp:
        asgi: ASGIApp = app
        if finding.shape is Shape.WSGI:
            asgi = WSGIAdapter(app, pool)
        elif finding.shape is Shape.ASGI2:
            asgi = _asgi2(app)
        contained = ContainedApp(asgi, context.instance)
        self._apps.append(contained)
        return contained


@contextmanager
def _whatever_it_is(doing: str) -> Iterator[None]:
    """Go on where an object of an app's answers a look with an exception: what is left of it, is left."""
    try:
        yield
    except Exception:
        log.exception("%s failed", doing, extra={"action": "loader.release_fault"})


def _plainly(sentence: str, lease: Lease) -> str:
    """Return a sentence with modules named as the app's author wrote them."""
    for top in lease.tree.tops():
        sentence = sentence.replace(f"{top}.", f"{lease.tree.plain(top)}.")
    return sentence


def _attempt(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what a call returns, or what it raises: SystemExit, raised on a loop, would end that."""
    try:
        return call(), None
    except BaseException as raised:  # noqa: BLE001 - of the app's
        return None, raised


def _bound(factory: Any, finding: Finding, context: AppContext) -> Callable[[], Any]:
    if finding.passes is None:
        call: Callable[[], Any] = factory
        return call
    if finding.passes == "positional":
        return lambda: factory(context)
    keyword = finding.passes
    return lambda: factory(**{keyword: context})


def _asgi2(app: Callable[[Scope], Callable[[Receive, Send], Awaitable[None]]]) -> ASGIApp:
    async def asgi3(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope)(receive, send)

    return asgi3


def _protocol(finding: Finding) -> Literal["asgi", "wsgi"] | None:
    if not finding.is_app:
        return None
    return "wsgi" if finding.shape is Shape.WSGI else "asgi"


def _wrong_result(entrypoint: Entrypoint, app: Any, finding: Finding) -> str:
    if app is None:
        return f"the factory {entrypoint} returned None; it must return the app it made"
    if finding.shape is Shape.FACTORY:
        return f"the factory {entrypoint} returned {finding.found}, which is a factory again and no app"
    return f"the factory {entrypoint} returned no app but {finding.found}"
