"""Worker threads per instance: anyio's default limiter and asyncio's default executor, for whoever asks.

Without this all apps on a loop share anyio's 40 tokens and one executor, and one app whose sync handlers are
all busy would make every other app wait.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from runtime_node.isolation.current import CURRENT_INSTANCE, acting_instance
from runtime_node.isolation.pool import InstancePool

P = ParamSpec("P")
T = TypeVar("T")
# For the node's own blocking calls, such as looking up a host's name.
_NODE_THREADS = 8
_lock = threading.Lock()
_open: dict[str, _InstanceThreads] = {}
_make_limiter: Callable[[int], Any] | None = None
_own_executors: dict[str, Executor] = {}
"""By instance: what it has made the default executor, for its own calls."""


class _InstanceThreads:
    def __init__(self, instance: str, limit: int) -> None:
        self.limit = limit
        self.pool = InstancePool(instance, limit)
        self._limiters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = (
            weakref.WeakKeyDictionary()
        )

    def limiter(self, make: Callable[[int], Any]) -> Any:
        """Return the limiter for the running loop: a limiter is not safe across loops."""
        loop = asyncio.get_running_loop()
        limiter = self._limiters.get(loop)
        if limiter is None:
            limiter = self._limiters[loop] = make(self.limit)
        return limiter


class InstanceExecutor(ThreadPoolExecutor):
    """A loop's default executor that hands each call to the pool of the instance that makes it."""

    def __init__(self) -> None:
        super().__init__(_NODE_THREADS, thread_name_prefix="node")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` on a thread of the calling instance, or on the node's for the node's own calls."""
        instance = CURRENT_INSTANCE.get()
        own = _own_executors.get(instance)
        if own is not None:
            return own.submit(fn, *args, **kwargs)
        threads = _open.get(instance)
        if threads is not None:
            return threads.pool.submit(fn, *args, **kwargs)
        return super().submit(fn, *args, **kwargs)


def attach(loop: asyncio.AbstractEventLoop) -> None:
    """Let `run_in_executor(None, …)` and `asyncio.to_thread` on this loop use the threads of instances.

    An executor that an app sets as the loop's default is its own default: the loop is not its alone, and the
    executor ends with it.
    """
    loop.set_default_executor(InstanceExecutor())
    set_for_all: Callable[[Any], None] = loop.set_default_executor

    def set_default_executor(executor: Any) -> None:
        instance = acting_instance()
        if not instance:
            set_for_all(executor)
        elif not isinstance(executor, ThreadPoolExecutor):
            raise TypeError("executor must be ThreadPoolExecutor instance")  # as asyncio's own
        else:
            _own_executors[instance] = executor

    loop.set_default_executor = set_default_executor  # type: ignore[method-assign]


def open_threads(instance: str, limit: int) -> InstancePool:
    """Give the instance `limit` threads for its executor, and as many tokens for anyio; return its pool."""
    _serve_anyio()
    with _lock:
        threads = _open.get(instance)
        if threads is None or threads.limit != limit:
            threads = _open[instance] = _InstanceThreads(instance, limit)
        return threads.pool


def close_threads(instance: str) -> list[threading.Thread]:
    """Take the instance's threads away; return those that are stuck in its code."""
    with _lock:
        threads = _open.pop(instance, None)
        _own_executors.pop(instance, None)
    if threads is None:
        return []
    threads.pool.shutdown(wait=False, cancel_futures=True)
    return threads.pool.remaining()


def _serve_anyio() -> None:
    """Make anyio's default limiter that of the calling instance; an app may lower it, not raise it."""
    global _make_limiter  # noqa: PLW0603 - the patch is one per process, as anyio's backend is
    with _lock:
        if _make_limiter is not None or importlib.util.find_spec("anyio") is None:
            return
        backend = importlib.import_module("anyio._backends._asyncio")

        class BoundedLimiter(backend.CapacityLimiter):  # type: ignore[name-defined,misc]
            """A limiter whose `total_tokens` cannot be set above what the instance may have."""

            def __init__(self, total_tokens: float) -> None:
                self._most = total_tokens
                super().__init__(total_tokens)

            @property
            def total_tokens(self) -> float:
                """How many calls may run at once."""
                return float(super().total_tokens)

            @total_tokens.setter
            def total_tokens(self, value: float) -> None:
                backend.CapacityLimiter.total_tokens.fset(self, min(value, self._most))

        def make(limit: int) -> Any:
            return BoundedLimiter(limit)

        original = backend.AsyncIOBackend.current_default_thread_limiter.__func__

        def current_default_thread_limiter(cls: Any) -> Any:
            threads = _open.get(CURRENT_INSTANCE.get())
            return original(cls) if threads is None else threads.limiter(make)

        # Both `anyio.to_thread.run_sync` and the public function of this name ask the backend at each call.
        backend.AsyncIOBackend.current_default_thread_limiter = classmethod(current_default_thread_limiter)
        _make_limiter = make
