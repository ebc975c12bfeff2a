"""Seeks to lead the replicas of one control plane, keeps the lead, and ends the leader's work in time.

The holder counts its time from before it asked, on its own clock, so it always stops before another
can begin. What it does meanwhile is its owner's: `on_elected` and `on_lost`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from services.control_plane.store.interface import LeaderSeat, Standing
from services.control_plane.tenure import Pace, Tenure, steady_seconds
from services.rpc.background import kept_running
from services.rpc.errors import SupervisorError

T = TypeVar("T")

log = logging.getLogger("appsupervisor.leadership")


class Leadership:
    """One replica's part in it. Lives on one event loop; `term` is safe from any thread.

    `on_elected(tenure)` begins the leader's work and `on_lost()` ends it; they alternate, and what one of
    them raises is logged and gives the lead up. Of a catalog that nobody else can open there is no other
    leader.
    """

    def __init__(
        self,
        seat: LeaderSeat,
        address: str,
        *,
        on_elected: Callable[[Tenure], Awaitable[None]],
        on_lost: Callable[[], Awaitable[None]],
        pace: Pace | None = None,
        clock: Callable[[], float] = steady_seconds,
    ) -> None:
        self._seat = seat
        self._address = address
        self._on_elected = on_elected
        self._on_lost = on_lost
        self._pace = pace or Pace()
        self._clock = clock
        self.holder = uuid.uuid4().hex
        """Of this process, in the seat."""
        self._tenure: Tenure | None = None
        self._unreachable = False
        # A thread of its own: whatever else waits for threads, a renewal does not.
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="leadership")
        self._task: asyncio.Task[None] | None = None

    @property
    def term(self) -> int | None:
        """The own term while this replica leads, by its own clock; else None."""
        tenure = self._tenure
        return tenure.term if tenure is not None and tenure.holds else None

    async def start(self) -> None:
        """Begin to seek the lead; where nobody else can have it, the leader's work has begun on return."""
        if self._seat.exclusive:
            sent = self._clock()
            try:
                standing = await self._call(self._take)
            except SupervisorError as failure:
                self._note(failure)  # a full disk, say: reads are answered meanwhile
            else:
                await self._on_elected(self._elected(standing, sent))
                return
        self._task = kept_running(self._seek, "leadership")

    async def close(self) -> None:
        """End the leader's work and let another replica lead at once."""
        tenure = self._tenure
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        elif tenure is not None:
            await self._ended()
        if tenure is not None:
            await self._leave(tenure.term)
        self._calls.shutdown(wait=False, cancel_futures=True)

    async def _leave(self, term: int) -> None:
        # If it can't be said, the others wait for the time to run out.
        with suppress(SupervisorError, TimeoutError):
            async with asyncio.timeout(self._pace.lasts):
                await self._call(partial(self._seat.leave, self.holder, term))

    async def _seek(self) -> None:
        while True:
            sent = self._clock()
            try:
                standing = await self._call(self._take)
            except SupervisorError as failure:
                self._note(failure)
                await asyncio.sleep(self._pace.renew)
                continue
            self._note(None)
            if standing.leads:
                await self._lead(standing, sent)
            # Whoever leaves cleanly is not waited for to the end.
            await asyncio.sleep(min(standing.remaining, self._pace.renew))

    async def _lead(self, standing: Standing, sent: float) -> None:
        tenure = self._elected(standing, sent)
        beginning = asyncio.ensure_future(self._on_elected(tenure))
        try:
            why = await self._keep(tenure, beginning)
            log.warning(
                "leads no longer: %s", why, extra={"action": "leadership.lost", "term": standing.term}
            )
        finally:
            beginning.cancel()
            await asyncio.wait({beginning})
            await self._ended()
        await self._leave(standing.term)

    def _elected(self, standing: Standing, sent: float) -> Tenure:
        pace = replace(self._pace, lasts=math.inf) if self._seat.exclusive else self._pace
        self._tenure = tenure = Tenure(standing.term, sent, pace, self._clock)
        log.info(
            "leads: term %d", standing.term, extra={"action": "leadership.elected", "term": standing.term}
        )
        return tenure

    async def _ended(self) -> None:
        tenure, self._tenure = self._tenure, None
        if tenure is not None:
            tenure.end()
        try:
            await self._on_lost()
        except Exception:
            log.exception("the leader's work did not end well", extra={"action": "leadership.end_failed"})

    async def _keep(self, tenure: Tenure, beginning: asyncio.Future[None]) -> str:
        """Renew the lead until it is lost, and return why."""
        if self._seat.exclusive:
            await asyncio.wait({beginning})
            if beginning.exception() is None:
                await asyncio.Event().wait()
        wake = self._clock()
        while True:
            wake += self._pace.renew
            await asyncio.sleep(max(0.0, min(wake, tenure.until) - self._clock()))
            if beginning.done() and (failure := beginning.exception()) is not None:
                log.error("the leader's work did not begin", extra={"action": "leadership.begin_failed"},
                          exc_info=failure)  # fmt: skip
                return "its work could not begin"
            sent = self._clock()
            if not tenure.holds:
                return "its time was up before it could renew it"
            renewal = asyncio.ensure_future(
                self._call(partial(self._seat.renew, self.holder, tenure.term, self._pace.lasts))
            )
            await asyncio.wait({renewal}, timeout=tenure.until - sent)
            if not renewal.done():
                renewal.cancel()
                await asyncio.wait({renewal})
                return "the database did not answer in time"
            try:
                if not renewal.result():
                    return "another replica leads"
            except SupervisorError as failure:
                self._note(failure)
                continue
            self._note(None)
            tenure.extend(sent)

    def _take(self) -> Standing:
        return self._seat.take(self.holder, self._address, self._pace.lasts)

    async def _call(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._calls, call)

    def _note(self, failure: SupervisorError | None) -> None:
        """Log when the database cannot be asked, and when it can again."""
        if failure is not None and not self._unreachable:
            log.warning("who leads cannot be asked: %s", failure.message,
                        extra={"action": "leadership.unreachable"})  # fmt: skip
        self._unreachable = failure is not None
