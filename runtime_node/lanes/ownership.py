"""Tells which instance a task or a thread of a shared loop belongs to, by a context variable.

What code starts inherits its context, so all that an instance sets going can be found and ended, and
counts against its own worker threads instead of the loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


class Owner:
    """An instance as the owner of tasks and of worker threads. Made and used on any thread."""

    __slots__ = ("_executor", "limiter", "max_threads", "name")

    def __init__(self, name: str, max_threads: int) -> None:
        self.name = name
        self.max_threads = max_threads
        self.limiter: Any = None
        """anyio's limiter of this owner, once its code has asked for one."""
        self._executor: ThreadPoolExecutor | None = None

    def context(self) -> Context:
        """Return a context of the owner's own."""
        context = copy_context()
        context.run(OWNER.set, self)
        return context

    def executor(self) -> ThreadPoolExecutor:
        """Return the owner's default executor; its threads start as they are needed."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.max_threads, thread_name_prefix=self.name)
        return self._executor

    def close(self) -> None:
        """Let the owner's idle worker threads end; a busy one ends after its work."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


OWNER: ContextVar[Owner | None] = ContextVar("appsupervisor_owner", default=None)


class OwnedTask(asyncio.Task[Any]):
    """A task that was started by an instance's code."""

    owner: Owner


def owning_task_factory(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """Create a task that knows its owner, or an ordinary one where there is none."""
    context: Context | None = options.get("context")
    owner = OWNER.get() if context is None else context.get(OWNER)
    if owner is None:
        return asyncio.Task(work, loop=loop, **options)
    task = OwnedTask(work, loop=loop, **options)
    task.owner = owner
    return task


def tasks_of(owner: Owner, loop: asyncio.AbstractEventLoop) -> set[asyncio.Task[Any]]:
    """Return the owner's tasks that are not done. Called on `loop`."""
    return {task for task in asyncio.all_tasks(loop) if isinstance(task, OwnedTask) and task.owner is owner}


class OwningLoop(uvloop.Loop):  # type: ignore[misc]
    """A loop whose default executor is that of the instance whose code asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(owning_task_factory)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> Any:
        """Run `func` on a worker thread: without an executor, on one of the owner's."""
        if executor is None and (owner := OWNER.get()) is not None:
            executor = owner.executor()
        return super().run_in_executor(executor, func, *args)


def limit_worker_threads_by_owner() -> None:
    """Make anyio count worker threads per instance, where its own limit is one for the whole loop.

    Done once per process, before any app runs. Without it one app whose synchronous handlers are all
    busy would keep every other app's waiting.
    """
    from anyio import CapacityLimiter  # noqa: PLC0415 - only where apps run
    from anyio._backends._asyncio import AsyncIOBackend  # noqa: PLC0415

    if getattr(AsyncIOBackend, "_appsupervisor_limits", False):
        return
    of_loop = AsyncIOBackend.current_default_thread_limiter.__func__  # type: ignore[attr-defined]

    def current_default_thread_limiter(cls: type[AsyncIOBackend]) -> Any:
        owner = OWNER.get()
        if owner is None:
            return of_loop(cls)
        if owner.limiter is None:
            owner.limiter = CapacityLimiter(owner.max_threads)
        return owner.limiter

    AsyncIOBackend.current_default_thread_limiter = classmethod(  # type: ignore[method-assign, assignment]
        current_default_thread_limiter
    )
    AsyncIOBackend._appsupervisor_limits = True  # type: ignore[attr-defined]
