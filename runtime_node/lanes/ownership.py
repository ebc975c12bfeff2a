"""Tells which instance a task or a thread of a shared loop belongs to, by a context variable.

What code starts inherits its context, so all that an instance sets going can be found and ended, and
counts against its own worker threads instead of the loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from typing import Any, ParamSpec, TypeVar

from anyio import CapacityLimiter
from anyio._backends._asyncio import AsyncIOBackend

from runtime_node.isolation.pool import InstancePool

P = ParamSpec("P")
T = TypeVar("T")


class Owner:
    """An instance as the owner of tasks and of worker threads. Made and used on any thread."""

    __slots__ = ("_pool", "limiter", "max_threads", "name")

    def __init__(self, name: str, max_threads: int) -> None:
        self.name = name
        self.max_threads = max_threads
        self.limiter: CapacityLimiter | None = None
        """anyio's limiter of this owner, once its code has asked for one."""
        self._pool: InstancePool | None = None

    def context(self) -> Context:
        """Return a context of the owner's own."""
        context = copy_context()
        context.run(OWNER.set, self)
        return context

    def pool(self) -> InstancePool:
        """Return the owner's default executor; its threads start as they are needed."""
        if self._pool is None:
            self._pool = InstancePool(self.name, self.max_threads)
        return self._pool

    def close(self) -> list[str]:
        """End the owner's idle worker threads; return what its busy ones are, in words."""
        if self._pool is None:
            return []
        self._pool.shutdown(wait=False, cancel_futures=True)
        return [f"thread {thread.name}" for thread in self._pool.remaining()] if self._pool.running else []


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


class OwnersExecutor(ThreadPoolExecutor):
    """A shared loop's default executor: work of an instance's code goes to the instance's own threads."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call. Called in the context of the code that asks."""
        owner = OWNER.get()
        if owner is None:
            return super().submit(fn, *args, **kwargs)
        return owner.pool().submit(fn, *args, **kwargs)


def prepare_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Make a loop that several instances share tell whose tasks and worker threads are whose."""
    loop.set_task_factory(owning_task_factory)  # type: ignore[arg-type]
    loop.set_default_executor(OwnersExecutor(4, thread_name_prefix="front-worker"))


def limit_worker_threads_by_owner() -> None:
    """Make anyio count worker threads per instance, where its own limit is one for the whole loop.

    Done once per process, before any app runs. Without it one app whose synchronous handlers are all
    busy would keep every other app's waiting.
    """
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
