"""A bounded pool of worker threads that belongs to one instance and ends with it.

Unlike `ThreadPoolExecutor` its threads are daemons, end when idle, and never hold up the exit of the process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from runtime_node.isolation.current import CURRENT_INSTANCE

P = ParamSpec("P")
T = TypeVar("T")
# Long enough to serve a page's requests on warm threads, short enough that a quiet app holds none.
IDLE_SECONDS = 10.0


class PoolThread(threading.Thread):
    """A thread of a pool: its pool ends it, so nobody else needs to keep account of it."""


class InstancePool(Executor):
    """Runs at most `threads` calls at once; the rest wait in order. Safe to use from any thread."""

    def __init__(self, instance: str, threads: int, *, idle_seconds: float = IDLE_SECONDS) -> None:
        if threads < 1:
            raise ValueError("a pool needs at least one thread")
        self.instance = instance
        self.limit = threads
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._queue: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._workers: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call. Raises RuntimeError once the pool was shut down."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the instance has been stopped")
            self._queue.append((future, lambda: fn(*args, **kwargs)))
            if self._idle >= len(self._queue):
                self._wanted.notify()
                return future
            if len(self._workers) >= self.limit:
                return future
            worker = PoolThread(target=self._work, name=f"{self.instance}-worker", daemon=True)
            self._workers.add(worker)
        try:
            worker.start()
        except RuntimeError:
            # The machine has no thread to give: what runs already will get to it, or the caller hears of it.
            with self._lock:
                self._workers.discard(worker)
                if not self._workers:
                    self._queue.pop()
                    raise
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse new calls and let the threads end; `wait` waits for those that run."""
        with self._lock:
            self._closed = True
            dropped = list(self._queue) if cancel_futures else []
            if cancel_futures:
                self._queue.clear()
            workers = list(self._workers)
            self._wanted.notify_all()
        for future, _ in dropped:
            future.cancel()
        if wait:
            for worker in workers:
                worker.join()

    @property
    def running(self) -> int:
        """How many calls run now."""
        with self._lock:
            return len(self._workers) - self._idle

    def remaining(self) -> list[threading.Thread]:
        """Return the threads that have not ended; after `shutdown` these are stuck in the app's code."""
        with self._lock:
            return [worker for worker in self._workers if worker.is_alive()]

    def _work(self) -> None:
        me = threading.current_thread()
        # Calls by `run_in_executor` bring no context of their own.
        CURRENT_INSTANCE.set(self.instance)
        while True:
            with self._lock:
                if not self._queue and not self._await_work():
                    self._workers.discard(me)
                    return
                future, call = self._queue.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as fault:  # noqa: BLE001 - belongs to whoever waits for the call
                    future.set_exception(fault)
                    del fault
                else:
                    future.set_result(result)
                    del result
            # A worker that waits must not keep the last call's arguments alive.
            del future, call

    def _await_work(self) -> bool:
        deadline = time.monotonic() + self._idle_seconds
        self._idle += 1
        try:
            while not self._queue:
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    return False
                self._wanted.wait(left)
            return True
        finally:
            self._idle -= 1
