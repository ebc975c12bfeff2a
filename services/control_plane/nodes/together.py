"""Sends calls to a node that are wanted at the same moment in one call, each with an outcome of its own.

Nobody waits for that longer than the turn of the loop that is under way, and what is wanted alone goes alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import Generic, Protocol, TypeAlias, TypeVar

from services.rpc.errors import SupervisorError

log = logging.getLogger("appsupervisor.reconciler")

MOST = 100
"""Requests in one call: as many as a node takes."""

MOST_BYTES = 512 * 1024
"""Their size together: half of what a node takes, for the specs of its apps may be large."""


class Again(Enum):
    """What a request of a batch may come to beside an answer and a refusal."""

    ALONE = auto()
    """It is to be asked for by a call of its own."""


class Sized(Protocol):
    """A request, which knows its size."""

    def ByteSize(self) -> int:  # noqa: N802  # a message's own
        """Return its size on the wire."""
        ...


Q = TypeVar("Q", bound=Sized)
A = TypeVar("A")
Outcome: TypeAlias = A | SupervisorError | Again
Batch: TypeAlias = list[tuple[Q, "asyncio.Future[A | Again]"]]


class Together(Generic[Q, A]):
    """The calls of one kind to one node. Lives on one loop."""

    def __init__(
        self,
        alone: Callable[[Q], Awaitable[A]],
        batch: Callable[[list[Q]], Awaitable[Sequence[Outcome[A]] | None]],
        closed: Callable[[], SupervisorError],
    ) -> None:
        """`batch` returns the outcomes in the order of the requests, or None of a node that knows no batches,
        which is asked for none from then on. `closed` is told to who waits when it is closed.
        """
        self._alone = alone
        self._batch = batch
        self._closed = closed
        self._knows_batches = True
        self._waiting: Batch[Q, A] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def call(self, request: Q) -> A:
        """Return the answer to a request. Raises SupervisorError; cancelling it harms no other."""
        if not self._knows_batches:
            return await self._alone(request)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A | Again] = loop.create_future()
        self._waiting.append((request, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._send)
        answer = await future
        return answer if not isinstance(answer, Again) else await self._alone(request)

    async def close(self) -> None:
        """End what is under way: whoever waits is told that it was closed."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _send(self) -> None:
        waiting = [(request, future) for request, future in self._waiting if not future.done()]
        self._waiting.clear()
        size = 0
        batch: Batch[Q, A] = []
        for request, future in waiting:
            size += request.ByteSize()
            if len(batch) == MOST or (batch and size > MOST_BYTES):
                self._begin(batch)
                size, batch = request.ByteSize(), []
            batch.append((request, future))
        self._begin(batch)

    def _begin(self, batch: Batch[Q, A]) -> None:
        if len(batch) < 2:
            for _, future in batch:
                future.set_result(Again.ALONE)
            return
        task = asyncio.create_task(self._carry_out(batch), name=f"batch of {len(batch)}")
        self._under_way.add(task)
        task.add_done_callback(partial(self._ended, batch))
        waiting = len(batch)

        def one_less(_: object) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                task.cancel()  # all have given up, unless it is done

        for _, future in batch:
            future.add_done_callback(one_less)

    async def _carry_out(self, batch: Batch[Q, A]) -> None:
        outcomes: Sequence[Outcome[A]]
        try:
            told = await self._batch([request for request, _ in batch])
            self._knows_batches = told is not None
            outcomes = told if told is not None else [Again.ALONE] * len(batch)
        except SupervisorError as failure:
            outcomes = [failure] * len(batch)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue  # who asked has given up
            if isinstance(outcome, SupervisorError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _ended(self, batch: Batch[Q, A], task: asyncio.Task[None]) -> None:
        """Leave nobody waiting, however a batch has ended: also before it began."""
        self._under_way.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("a batch failed", exc_info=fault, extra={"action": "node.batch_fault"})
        for _, future in batch:
            if not future.done():
                future.set_exception(self._closed())
